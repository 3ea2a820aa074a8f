//! The service as it is started: its blob cache over the socket, across a crash.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc-node"));
    command.arg("--socket").arg(dir.join("node.sock")).arg("--state").arg(dir.join("state"));
    command.env_remove("LISTEN_FDS").stdin(Stdio::null());
    command
}

/// A running service, killed when dropped.
struct Running(Child);

impl Running {
    fn start(dir: &Path) -> Self {
        let mut command = command(dir);
        Self(command.arg("--blobs-socket").arg(dir.join("blobs.sock")).arg("--blobs-size").arg("4MiB").spawn().expect("the service starts"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(dir: &Path, head: &str, body: &[u8]) -> Vec<u8> {
    // The service needs a moment to come up; there is nothing to wait on but its socket.
    let mut stream = (0..3000)
        .find_map(|_| {
            let connected = UnixStream::connect(dir.join("blobs.sock")).ok();
            if connected.is_none() {
                std::thread::sleep(Duration::from_millis(20));
            }
            connected
        })
        .expect("the service listens");
    stream.write_all(format!("{head}\r\nhost: node\r\n\r\n").as_bytes()).expect("the service reads");
    stream.write_all(body).expect("the service reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the service answers");
    answer
}

#[test]
fn blobs_outlive_a_crash_of_the_service_and_half_of_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let blob = vec![7; 100_000];
    let path = format!("/blobs/sha256:{}", hex::encode(Sha256::digest(&blob)));
    let first = Running::start(dir);
    let kept = ask(dir, &format!("PUT {path} HTTP/1.1\r\ncontent-length: {}", blob.len()), &blob);
    assert!(kept.starts_with(b"HTTP/1.1 201 "), "{}", String::from_utf8_lossy(&kept));
    assert_eq!(std::fs::metadata(dir.join("blobs.sock")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(dir.join("state/blobs")).unwrap().permissions().mode() & 0o777, 0o700);
    drop(first);
    std::fs::write(dir.join("state/blobs/9.tmp"), "half").unwrap();
    let _second = Running::start(dir);
    let given = ask(dir, &format!("GET {path} HTTP/1.1"), b"");
    assert!(given.starts_with(b"HTTP/1.1 200 ") && given.ends_with(&blob));
    assert!(!dir.join("state/blobs/9.tmp").exists());
}

#[test]
fn options_of_the_cache_without_a_cache_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [["--blobs-size", "1GiB"], ["--blobs-max", "1GiB"], ["--blobs-size", "1GB"]] {
        let output = command(dir.path()).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(if arguments[1] == "1GB" { "10GiB" } else { "--blobs-socket" }), "{text}");
    }
}
