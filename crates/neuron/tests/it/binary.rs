//! The `neuron` command, as a shell sees it.

use std::process::{Command, Output};

fn neuron(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_neuron"));
    command.args(arguments).env_clear().output().expect("the binary starts")
}

#[test]
fn a_good_configuration_is_shown_and_not_served() {
    let output = neuron(&["--check", "--listen", "127.0.0.1:7", "--model", "org/model"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("127.0.0.1:7") && text.contains("org/model"), "{text}");
}

#[test]
fn mistakes_of_the_operator_exit_with_2_and_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("neuron.toml");
    std::fs::write(&file, "[limits]\nwaiting = 1\n").unwrap();
    let cases = [
        (vec!["--config", file.to_str().unwrap()], "line 2"),
        (vec!["--config", "/nowhere/neuron.toml"], "/nowhere/neuron.toml"),
        (vec!["--listen", "here"], "--listen"),
    ];
    for (arguments, expected) in cases {
        let output = neuron(&arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.starts_with("error: ") && text.contains(expected), "{text}");
    }
}

#[test]
fn an_address_in_use_exits_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let output = neuron(&["--listen", &taken.local_addr().unwrap().to_string()]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cannot listen on"), "{text}");
}
