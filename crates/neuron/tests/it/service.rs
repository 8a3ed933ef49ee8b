//! The `neuron` command under a service manager: what it tells, and what it does when told.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// A node that believes systemd started it; ended when the test ends.
struct Service {
    process: Child,
    manager: UnixDatagram,
    folder: TempDir,
}

impl Service {
    /// With this neuron.toml.
    fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("what the test wrote");
        let socket = folder.path().join("notify");
        let manager = UnixDatagram::bind(&socket).expect("what the test wrote");
        manager.set_read_timeout(Some(Duration::from_secs(60))).expect("what the test wrote");
        write(&folder.path().join("neuron.toml"), config);
        let process = Command::new(env!("CARGO_BIN_EXE_neuron"))
            .args(["--listen", "127.0.0.1:0", "--config"])
            .arg(folder.path().join("neuron.toml"))
            .env_clear()
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "300000")
            .env("HF_HUB_OFFLINE", "1")
            .stderr(Stdio::null())
            .spawn()
            .expect("what the test wrote");
        Self { process, manager, folder }
    }

    /// Waits for a message that has this line.
    fn hears(&self, line: &str) -> String {
        let mut message = [0; 4096];
        loop {
            let length = self.manager.recv(&mut message).unwrap_or_else(|error| panic!("never heard {line}: {error}"));
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            if text.lines().any(|heard| heard == line) {
                return text;
            }
        }
    }

    fn told(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.process.id());
        let status = Command::new("sh").args(["-c", &kill]).status().expect("what the test wrote");
        assert!(status.success());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn write(file: &Path, text: &str) {
    std::fs::File::create(file).and_then(|mut file| file.write_all(text.as_bytes())).expect("what the test wrote");
}

#[test]
fn it_says_when_it_is_ready_alive_reloading_and_stopping() {
    let mut service = Service::start("");
    assert!(service.hears("READY=1").contains("STATUS=listens on 127.0.0.1:"));
    service.hears("WATCHDOG=1");
    service.hears("WATCHDOG=1");
    service.told("HUP");
    assert!(service.hears("RELOADING=1").contains("MONOTONIC_USEC="));
    assert!(service.hears("READY=1").contains("STATUS=reloaded"));
    service.told("TERM");
    service.hears("STOPPING=1");
    assert!(service.process.wait().unwrap().success());
}

#[test]
fn a_file_that_cannot_be_used_changes_nothing() {
    let service = Service::start("");
    service.hears("READY=1");
    write(&service.folder.path().join("neuron.toml"), "[limits]\nwaiting = 1\n");
    service.told("HUP");
    assert!(service.hears("READY=1").contains("STATUS=not reloaded: "));
    service.hears("WATCHDOG=1");
}
