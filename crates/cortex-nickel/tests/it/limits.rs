//! Files that mean harm end in an error, within the limits.

use crate::program::complaint;

fn told(files: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("a scratch folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("within the folder")).expect("what the test wrote");
        std::fs::write(path, text).expect("what the test wrote");
    }
    complaint(&folder.path().join("fleet"), &["check"])
        .replace(&folder.path().canonicalize().expect("it is there").display().to_string(), "DIR")
}

/// Which of the limits a file meets first depends on the machine.
fn is_cut(models: &str) {
    let message = told(&[("fleet/models.ncl", models)]);
    let cut = ["takes too long", "needs too much memory", "is nested too deeply"];
    assert!(cut.iter().any(|words| message.contains(words)), "{message}");
}

#[test]
fn an_endless_loop_is_cut() {
    is_cut("let rec loop = fun n => loop (n + 1) in { hosts = {}, models = loop 0 }");
}

#[test]
fn deep_nesting_is_cut() {
    is_cut(&format!("{{ hosts = {{}}, models = {}1 {} }}", "{ a = ".repeat(200_000), "} ".repeat(200_000)));
}

#[test]
fn endless_growth_is_cut() {
    is_cut("let rec grow = fun s => grow (s ++ s) in { hosts = {}, models = grow \"0123456789abcdef\" }");
}

#[test]
fn a_file_outside_is_refused_and_not_shown() {
    let models = "{ hosts = {}, models = import \"../secret.ncl\" }";
    let message = told(&[("fleet/models.ncl", models), ("secret.ncl", "{ secret = hunter2 ")]);
    assert!(message.contains("outside the folder of the file") && !message.contains("hunter2"), "{message}");
}

#[test]
fn a_file_beside_is_welcome_and_told_by_its_name() {
    let files =
        [("fleet/models.ncl", "{ hosts = {}, models = import \"more/all.ncl\" }"), ("fleet/more/all.ncl", "{\n  a = { contxt = 1 },\n}")];
    let message = told(&files);
    assert!(message.contains("more/all.ncl:2:"), "{message}");
}
