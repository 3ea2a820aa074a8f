//! The program as the shim starts it: keys, files, socket, signal.

use kata_cc_evidence::snp;
use kata_cc_firmware::measure::snp::{CpuModel, SnpFiles, Vmm, measure_files};
use kata_cc_tee_sim::identity;
use kata_cc_tee_sim::wire::{ReportRequest, read_response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

/// Debian's package `qemu-system-data`.
const QBOOT: &str = "/usr/share/qemu/qboot.rom";

#[test]
fn serves_reports_of_the_files_it_was_given_until_told_to_stop() {
    let Ok(qboot) = std::fs::read(QBOOT) else {
        eprintln!("SKIPPED: needs {QBOOT}");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let firmware = file("firmware.bin", &kata_cc_firmware::sim_firmware(&qboot).unwrap());
    let (kernel, initrd) = (file("kernel", b"a kernel"), file("initrd", b"an initrd"));
    let (keys, socket) = (dir.path().join("keys"), dir.path().join("vsock.sock_4051"));
    identity::init(&keys, 2048, 1_800_000_000).unwrap();

    let mut server = Command::new(env!("CARGO_BIN_EXE_kata-cc-tee-sim"))
        .arg("serve")
        .args([Path::new("--keys"), &keys, Path::new("--socket"), &socket, Path::new("--ovmf"), &firmware])
        .args([Path::new("--kernel"), &kernel, Path::new("--initrd"), &initrd])
        .args(["--append", "console=ttyS0 -- x", "--vcpus", "2", "--vcpu-type", "EPYC-v4", "--guest-features", "0x1"])
        .args(["--host-data", &"5a".repeat(32)])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(server.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("launch digest"), "{line}");

    let mut stream = UnixStream::connect(&socket).unwrap();
    ReportRequest { report_data: [1; 64], vmpl: 0 }.write_to(&mut stream).unwrap();
    let report = snp::Report::parse(&read_response(&mut stream).unwrap().outblob).unwrap();
    let measured = measure_files(&SnpFiles {
        firmware: &firmware,
        kernel: Some(&kernel),
        initrd: Some(&initrd),
        append: Some("console=ttyS0 -- x"),
        vcpus: 2,
        vcpu_type: "EPYC-v4".parse::<CpuModel>().unwrap(),
        guest_features: 1,
        vmm: Vmm::Qemu,
    });
    assert_eq!(report.measurement.as_bytes(), measured.unwrap().as_bytes());
    assert_eq!(report.host_data.0, [0x5a; 32]);

    kill(Pid::from_raw(server.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn refuses_to_serve_without_keys_or_files_and_leaves_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let absent = dir.path().join("absent");
    let output = Command::new(env!("CARGO_BIN_EXE_kata-cc-tee-sim"))
        .arg("serve")
        .args([Path::new("--keys"), &absent, Path::new("--socket"), &socket, Path::new("--ovmf"), &absent])
        .args([Path::new("--kernel"), &absent, Path::new("--initrd"), &absent])
        .args(["--append", "", "--vcpus", "1", "--host-data", &"00".repeat(32)])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("init"), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!socket.exists());
}
