//! Running `cortex-placement`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `crates/cortex-nickel`
pub(crate) fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    here().join("../..")
}

/// The program with `arguments`, in `folder`.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cortex-placement"));
    command.current_dir(folder).args(arguments).env("HF_HUB_CACHE", folder.join("no-cache")).env_remove("NO_COLOR");
    command.output().expect("the program starts")
}

/// What it wrote where it should have worked.
pub(crate) fn told(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let (out, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{complaint}");
    out.into_owned()
}

/// What it complained of, with exit status 1.
pub(crate) fn complaint(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}
