//! Golden transcripts: what a client sends, what the node is sent, what the node streams, and what the client reads. Files of sections, each
//! below its `=== name`.

use std::fs;
use std::path::Path;

/// One file.
#[derive(Clone)]
pub(super) struct Transcript {
    pub(super) name: String,
    pub(super) request: String,
    pub(super) chat: String,
    pub(super) upstream: String,
    pub(super) events: String,
    /// The whole answer, where the dialect puts it together from the events.
    pub(super) message: String,
}

/// All files of `testdata/FOLDER`.
pub(super) fn transcripts(folder: &str) -> Vec<Transcript> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(folder);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| Transcript::read(path)).collect()
}

impl Transcript {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let section = |name: &str| {
            let rest = text.split_once(&format!("=== {name}\n")).map_or("", |(_, rest)| rest);
            rest.split_once("=== ").map_or(rest, |(section, _)| section).to_owned()
        };
        Self {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            request: section("request"),
            chat: section("chat"),
            upstream: section("upstream"),
            events: section("events"),
            message: section("message"),
        }
    }

    /// What came out must be what is written; the panic has it ready to be written.
    pub(super) fn compare(&self, chat: &str, events: &str, message: &str) {
        for (section, actual, expected) in
            [("chat", chat, &self.chat), ("events", events, &self.events), ("message", message, &self.message)]
        {
            assert!(actual == expected, "{}.txt\n=== {section}\n{actual}=== end", self.name);
        }
    }

    /// What the node streams, its lines ended as asked.
    pub(super) fn upstream(&self, crlf: bool) -> String {
        if crlf { self.upstream.replace('\n', "\r\n") } else { self.upstream.clone() }
    }
}

/// `bytes` cut at these places, counted round and round.
pub(super) fn cut<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    places.sort_unstable();
    places.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect()
}
