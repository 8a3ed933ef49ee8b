//! Where a model's files are: a folder on this host, or a repository on the hub.

use std::path::{Component, Path, PathBuf};

use cortex_core::ModelSpec;

/// The two places a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder with `config.json` and safetensors.
    Folder(PathBuf),
    /// A repository on the hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

/// Why a source cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It looks like a path, and nothing is there.
    #[error("the folder `{0}` does not exist on this node: correct `source`")]
    NoFolder(String),
    /// It is neither.
    #[error("`{0}` is neither a folder on this node nor a hub id (`org/name`): correct `source`")]
    Neither(String),
    /// The revision could not be a branch, tag or commit.
    #[error("`{0}` is no branch, tag or commit: correct `revision`")]
    BadRevision(String),
}

impl ModelSource {
    /// Decides what the spec names: what starts like a path or is a folder is a folder, everything else must be a hub id.
    /// `is_folder` tells whether a folder is there.
    pub fn of(spec: &ModelSpec, is_folder: &dyn Fn(&Path) -> bool) -> Result<Self, SourceError> {
        let text = spec.source.as_deref().unwrap_or(spec.model_id.as_str());
        if is_folder(Path::new(text)) {
            return Ok(Self::Folder(text.into()));
        }
        if text.starts_with(['/', '.', '~']) {
            return Err(SourceError::NoFolder(text.to_owned()));
        }
        if !is_repo(text) {
            return Err(SourceError::Neither(text.to_owned()));
        }
        let revision = spec.revision.as_deref().unwrap_or("main");
        if !is_revision(revision) {
            return Err(SourceError::BadRevision(revision.to_owned()));
        }
        Ok(Self::Hub { repo: text.to_owned(), revision: revision.to_owned() })
    }
}

/// `name` or `org/name` in the hub's alphabet.
fn is_repo(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with('.')
            && !part.contains("--")
            && !part.contains("..")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    text.split('/').count() <= 2 && text.split('/').all(part)
}

/// A revision becomes part of an address and of a file name, so it must not climb out of either.
fn is_revision(text: &str) -> bool {
    !text.is_empty() && is_inside(text) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./+".contains(&byte))
}

/// True for a relative path that stays below where it starts.
pub(crate) fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_folder_or_a_hub_id() {
        let hub = |repo: &str, revision: &str| Ok(ModelSource::Hub { repo: repo.into(), revision: revision.into() });
        let folder = |path: &str| Ok(ModelSource::Folder(path.into()));
        type Case<'a> = (&'a str, Option<&'a str>, Option<&'a str>, Result<ModelSource, SourceError>);
        let cases: &[Case<'_>] = &[
            ("chat", Some("/models/here"), None, folder("/models/here")),
            ("chat", Some("models/here"), None, folder("models/here")),
            ("models/here", None, None, folder("models/here")),
            ("chat", Some("/models/gone"), None, Err(SourceError::NoFolder("/models/gone".into()))),
            ("chat", Some("./gone"), None, Err(SourceError::NoFolder("./gone".into()))),
            ("Qwen/Qwen3-8B", None, None, hub("Qwen/Qwen3-8B", "main")),
            ("chat", Some("Qwen/Qwen3-8B"), Some("refs/pr/1"), hub("Qwen/Qwen3-8B", "refs/pr/1")),
            ("gpt2", None, None, hub("gpt2", "main")),
            ("a/b/c", None, None, Err(SourceError::Neither("a/b/c".into()))),
            ("chat", Some("a/../b"), None, Err(SourceError::Neither("a/../b".into()))),
            ("chat", Some("a/b?x"), None, Err(SourceError::Neither("a/b?x".into()))),
            ("chat", Some(""), None, Err(SourceError::Neither(String::new()))),
            ("a/b", None, Some("../../etc"), Err(SourceError::BadRevision("../../etc".into()))),
            ("a/b", None, Some("/etc"), Err(SourceError::BadRevision("/etc".into()))),
            ("a/b", None, Some("x#y"), Err(SourceError::BadRevision("x#y".into()))),
            ("a/b", None, Some(""), Err(SourceError::BadRevision(String::new()))),
        ];
        for (id, source, revision, expected) in cases {
            let spec = ModelSpec { source: source.map(Into::into), revision: revision.map(Into::into), ..ModelSpec::new(*id) };
            assert_eq!(&ModelSource::of(&spec, &|path| path.ends_with("here")), expected, "{id} {source:?} {revision:?}");
        }
    }
}
