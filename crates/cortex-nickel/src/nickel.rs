//! Evaluation. The only file that names Nickel.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use nickel_lang_core::cache::{CacheHub, InputFormat, SourcePath};
use nickel_lang_core::error::warning::Warning;
use nickel_lang_core::error::{Diagnostic as NickelDiagnostic, Error, EvalErrorKind, IntoDiagnostics, Label, LabelStyle, Reporter};
use nickel_lang_core::eval::cache::CacheImpl;
use nickel_lang_core::eval::value::NickelValue;
use nickel_lang_core::eval::{VirtualMachine, VmContext};
use nickel_lang_core::files::{FileId, Files};
use nickel_lang_core::position::RawSpan;
use nickel_lang_core::serialize::{self, ExportFormat};
use serde::{Deserialize, Serialize};

use crate::diagnostic::{Diagnostic, Span};
use crate::source::{Mark, Marks};

/// The contracts, as they ship in the program.
pub(crate) const CONTRACTS: &str = include_str!("../contracts/cortex.ncl");

/// A folder that exists in memory only.
const LIBRARY: &str = "/@cortex";

/// Mistakes that are looked for after the first.
const PERMISSIVE_DEPTH_MAX: usize = 64;

/// What a file comes to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Evaluated {
    /// With defaults filled in.
    pub(crate) value: serde_json::Value,
    /// Where its fields were written.
    pub(crate) marks: Marks,
}

/// What to evaluate.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) file: &'a Path,
    /// Takes the place of the file's own `hosts`.
    pub(crate) hosts: Option<&'a Path>,
}

struct Evaluation {
    context: VmContext<CacheHub, CacheImpl>,
    allowed: Allowed,
    /// How the operator named the folder; file names in messages begin with it.
    named: PathBuf,
}

/// What may be imported: the library, the file's own folder, and the hosts file.
#[derive(Clone)]
struct Allowed {
    folder: PathBuf,
    hosts: Option<PathBuf>,
}

/// Warnings are not errors; there is nobody to tell.
struct Silent;

impl Reporter<(Warning, Files)> for Silent {
    fn report(&mut self, _: (Warning, Files)) {}
}

/// Evaluates the file under the contracts.
pub(crate) fn evaluate(request: &Request<'_>) -> Result<Evaluated, Vec<Diagnostic>> {
    let file = real(request.file)?;
    let hosts = request.hosts.map(real).transpose()?;
    let quoted = |path: &Path| path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"").replace("%{", "\\%{");
    let import = match &hosts {
        None => format!("(import \"{}\")", quoted(&file)),
        Some(hosts) => format!("(std.record.update \"hosts\" (import \"{}\") (import \"{}\"))", quoted(hosts), quoted(&file)),
    };
    let folder = file.parent().map(Path::to_owned).unwrap_or_default();
    let named = request.file.parent().map(Path::to_owned).unwrap_or_default();
    let evaluation = || Evaluation::new(Allowed { folder: folder.clone(), hosts: hosts.clone() }, named.clone());
    // Each evaluation changes what it has read, so that the next one reads anew.
    let marks = evaluation().marks(&import)?;
    let value = evaluation().value(&import)?;
    Ok(Evaluated { value, marks })
}

fn real(path: &Path) -> Result<PathBuf, Vec<Diagnostic>> {
    path.canonicalize().map_err(|error| {
        vec![Diagnostic::new(format!("cannot read {}: {error}", path.display())).note("name the file: cortex placement check FILE")]
    })
}

impl Evaluation {
    fn new(allowed: Allowed, named: PathBuf) -> Self {
        let mut hub = CacheHub::new();
        hub.sources.add_string(SourcePath::Path(format!("{LIBRARY}/cortex.ncl").into(), InputFormat::Nickel), CONTRACTS.to_owned());
        hub.sources.add_import_paths(std::iter::once(PathBuf::from(LIBRARY)));
        Self { context: VmContext::new(hub, io::sink(), Silent), allowed, named }
    }

    /// Evaluates the file as it is, for the places of its fields: a contract would leave its own marks.
    fn marks(&mut self, import: &str) -> Result<Marks, Vec<Diagnostic>> {
        let value = self.run("raw", import.to_owned())?;
        let mut marks = Marking { evaluation: self, files: HashMap::new(), marks: Marks::default() };
        marks.walk(&value, &mut Vec::new());
        Ok(marks.marks)
    }

    fn value(&mut self, import: &str) -> Result<serde_json::Value, Vec<Diagnostic>> {
        let applied = format!("{import} | (import \"{LIBRARY}/cortex.ncl\").Fleet");
        let value = self.run("main", applied)?;
        let json = serialize::validate(ExportFormat::Json, &value).and_then(|()| serialize::to_string(ExportFormat::Json, &value));
        let json = json.map_err(|error| self.explain(vec![error.with_pos_table(self.context.pos_table.clone()).into()]))?;
        serde_json::from_str(&json).map_err(|error| vec![Diagnostic::new(format!("the evaluated file is no JSON: {error}"))])
    }

    fn run(&mut self, name: &str, term: String) -> Result<NickelValue, Vec<Diagnostic>> {
        let prepared = self.prepare(name, term.clone())?;
        let evaluated = VirtualMachine::new(&mut self.context).eval_full_for_export(prepared);
        evaluated.map_err(|error| {
            let all = Self::new(self.allowed.clone(), self.named.clone()).mistakes(name, term);
            if all.is_empty() { self.explain(vec![error.into()]) } else { all }
        })
    }

    fn prepare(&mut self, name: &str, term: String) -> Result<NickelValue, Vec<Diagnostic>> {
        let main = self.context.import_resolver.sources.add_string(virtual_file(name), term);
        let prepared = self.context.prepare_eval(main);
        self.check_imports()?;
        prepared.map_err(|error| self.explain(vec![error]))
    }

    /// Looks on after the first mistake. Fields that may be absent are no mistakes when they are.
    fn mistakes(mut self, name: &str, term: String) -> Vec<Diagnostic> {
        let prepared = match self.prepare(name, term) {
            Ok(prepared) => prepared,
            Err(wrong) => return wrong,
        };
        let errors = VirtualMachine::new(&mut self.context).eval_permissive(prepared, PERMISSIVE_DEPTH_MAX);
        let optional = |kind: &EvalErrorKind| matches!(kind, EvalErrorKind::MissingFieldDef { metadata, .. } if metadata.opt);
        self.explain(errors.into_iter().filter(|error| !optional(&error.error)).map(Error::from).collect())
    }

    /// A file outside is refused before a word of it can show in a message.
    fn check_imports(&self) -> Result<(), Vec<Diagnostic>> {
        for path in self.context.import_resolver.sources.file_paths.values() {
            let SourcePath::Path(path, _) = path else { continue };
            if path.starts_with(LIBRARY) {
                continue;
            }
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            if !real.starts_with(&self.allowed.folder) && Some(&real) != self.allowed.hosts.as_ref() {
                let wrong = Diagnostic::new(format!("import of {}, which is outside the folder of the file", path.display()));
                return Err(vec![
                    wrong.note(format!("move it into {}", self.allowed.folder.display())).note("a placement reads its own folder only"),
                ]);
            }
        }
        Ok(())
    }

    /// Nickel's own diagnostics, without what operators cannot do anything about.
    fn explain(&self, errors: Vec<Error>) -> Vec<Diagnostic> {
        let mut files = self.context.import_resolver.sources.files().clone();
        let mut all: Vec<Diagnostic> = Vec::new();
        for error in errors {
            for diagnostic in error.into_diagnostics(&mut files) {
                let shown = self.shown(&files, diagnostic);
                if !all.contains(&shown) {
                    all.push(shown);
                }
            }
        }
        // One mistake can be seen from several places; whoever shares the operator's line says it once.
        let mut seen: Vec<(String, usize, usize)> = Vec::new();
        all.retain(|one| match one.spans.first() {
            Some(span) => {
                let place = (span.file.clone(), span.line, span.column);
                let new = !seen.contains(&place);
                seen.push(place);
                new
            }
            None => true,
        });
        all
    }

    fn shown(&self, files: &Files, diagnostic: NickelDiagnostic<FileId>) -> Diagnostic {
        let NickelDiagnostic { message, mut labels, mut notes, .. } = diagnostic;
        let ours = |label: &Label<FileId>| is_library(files, label.file_id);
        let mut lines = message.lines();
        let first = lines.next().unwrap_or_default().to_owned();
        let rest: Vec<&str> = lines.map(str::trim).filter(|line| !line.is_empty()).collect();
        let expected = labels.iter().find(|label| ours(label) && label.message.starts_with("expected"));
        let expected = expected
            .and_then(|label| files.source(label.file_id).get(label.range.clone()))
            .filter(|text| text.len() < 80 && !text.contains('\n'));
        let hint = expected.filter(|_| rest.is_empty()).map(|text| format!("expected: {text}"));
        labels.sort_by_key(|label| label.style != LabelStyle::Primary);
        labels.retain(|label| !ours(label));
        labels.truncate(1);
        notes.retain(|note| !note.contains("Append `, ..`") && !note.contains("stdlib"));
        let (first, next) = in_plain_words(first);
        notes.extend(next.map(str::to_owned));
        let spans = labels.into_iter().map(|label| self.span(files, &label)).collect();
        // A contract's own words say more than that a contract was broken.
        let (message, context) = match rest.is_empty() {
            true => (first, None),
            false => (rest.join(" "), Some(first)),
        };
        let field = context.as_deref().and_then(|context| context.split('`').nth(1)).map(|field| format!("in the field `{field}`"));
        Diagnostic {
            message,
            spans,
            notes: field.into_iter().chain(hint).chain(notes.into_iter().filter(|note| !note.trim().is_empty())).collect(),
        }
    }

    fn span(&self, files: &Files, label: &Label<FileId>) -> Span {
        let name = self.file_name(files, label.file_id);
        let message = if label.message.starts_with("applied to this expression") { String::new() } else { label.message.clone() };
        Span::of(&name, files.source(label.file_id), label.range.start, label.range.end).labelled(message)
    }

    /// As the operator would write it.
    fn file_name(&self, files: &Files, id: FileId) -> String {
        let path = Path::new(files.name(id));
        match path.strip_prefix(&self.allowed.folder) {
            Ok(inside) => self.named.join(inside).display().to_string(),
            Err(_) => path.display().to_string(),
        }
    }
}

/// Nickel's own words where they say too little or too much, and what to do.
fn in_plain_words(message: String) -> (String, Option<&'static str>) {
    if let Some((file, _)) = message.strip_prefix("import of ").and_then(|rest| rest.split_once(" failed: could not find import")) {
        return (format!("there is no file {file} to import"), Some("an import is looked for beside the file that imports it"));
    }
    let next = match message.as_str() {
        "unexpected token" => Some("a comma may be missing before it: every field of a record ends with one"),
        "infinite recursion" => Some("its value depends on itself: a name in a record means the field of that record"),
        _ => None,
    };
    (message, next)
}

fn virtual_file(name: &str) -> SourcePath {
    SourcePath::Path(format!("{LIBRARY}/{name}.ncl").into(), InputFormat::Nickel)
}

/// The library, the standard library, and what Nickel generates.
fn is_library(files: &Files, id: FileId) -> bool {
    let name = files.name(id).to_string_lossy();
    name.starts_with(LIBRARY) || name.starts_with('<') || files.is_stdlib(id)
}

/// Collects the places of fields.
struct Marking<'a> {
    evaluation: &'a Evaluation,
    files: HashMap<FileId, usize>,
    marks: Marks,
}

impl Marking<'_> {
    fn walk(&mut self, value: &NickelValue, path: &mut Vec<String>) {
        if let Some(record) = value.as_record().and_then(nickel_lang_core::eval::value::Container::into_opt) {
            for (key, field) in &record.fields {
                let Some(value) = &field.value else { continue };
                path.push(key.label().to_owned());
                let is_record = value.as_record().is_some();
                let of_value = self.evaluation.context.pos_table.get(value.pos_idx()).into_opt();
                let name = key.pos.into_opt();
                let place = if is_record { name.or(of_value) } else { of_value.or(name) };
                if let Some(place) = place {
                    let name = name.filter(|name| name.src_id == place.src_id);
                    self.mark(path, place, name);
                }
                self.walk(value, path);
                path.pop();
            }
        }
        if let Some(array) = value.as_array().and_then(nickel_lang_core::eval::value::Container::into_opt) {
            for (at, value) in array.array.iter().enumerate() {
                path.push(at.to_string());
                if let Some(place) = self.evaluation.context.pos_table.get(value.pos_idx()).into_opt() {
                    self.mark(path, place, None);
                }
                self.walk(value, path);
                path.pop();
            }
        }
    }

    fn mark(&mut self, path: &[String], place: RawSpan, name: Option<RawSpan>) {
        let id = place.src_id;
        let files = self.evaluation.context.import_resolver.sources.files();
        if is_library(files, id) {
            return;
        }
        let (evaluation, marks) = (self.evaluation, &mut self.marks);
        let file = *self.files.entry(id).or_insert_with(|| {
            marks.files.push((evaluation.file_name(files, id), files.source(id).to_owned()));
            marks.files.len() - 1
        });
        let bytes = |span: RawSpan| (span.start.to_usize(), span.end.to_usize());
        let (start, end) = bytes(place);
        self.marks.marks.push(Mark { path: path.to_vec(), file, start, end, name: name.map(bytes) });
    }
}
