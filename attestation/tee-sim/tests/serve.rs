//! The program as the shim starts it: keys, files, socket, signal.

use kata_cc_evidence::{snp, tdx};
use kata_cc_firmware::measure::snp::{CpuModel, SnpFiles, Vmm, measure_files};
use kata_cc_tee_sim::identity;
use kata_cc_tee_sim::wire::{ReportRequest, Request, WireError, read_response};
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
fn serves_quotes_of_a_td_with_its_log_and_its_report_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, name).unwrap();
        path
    };
    let (firmware, kernel, initrd) = (file("firmware"), file("kernel"), file("initrd"));
    let (keys, socket) = (dir.path().join("keys"), dir.path().join("s"));
    identity::init(&keys, 2048, 1_800_000_000).unwrap();
    let program = || Command::new(env!("CARGO_BIN_EXE_kata-cc-tee-sim"));
    let files = |command: &mut Command| {
        command.args([Path::new("--ovmf"), &firmware, Path::new("--kernel"), &kernel, Path::new("--initrd"), &initrd]);
        command.args(["--append", "console=ttyS0", "--vcpus", "2"]);
    };
    let mut command = program();
    command.arg("serve").args([Path::new("--keys"), &keys, Path::new("--socket"), &socket]).args(["--tee", "tdx"]);
    files(&mut command);
    let mut server = command.args(["--mr-config-id", &"5a".repeat(48)]).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stderr.take().unwrap()).read_line(&mut line).unwrap();

    let ask = |request: Request| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        request.write_to(&mut stream).unwrap();
        read_response(&mut stream)
    };
    let quote = ask(Request::Report(ReportRequest { report_data: [1; 64], vmpl: 0 })).unwrap();
    let log = ask(Request::EventLog).unwrap().outblob;
    let evidence = tdx::Evidence::from_raw(&quote.outblob, Some(&log)).unwrap();
    let body = &evidence.quote().body;
    assert_eq!((quote.auxblob.len(), body.report_data.0, body.mr_config_id.0), (0, [1; 64], [0x5a; 48]));
    let report = tdx::TdReport::parse(&ask(Request::TdReport([2; 64])).unwrap().outblob).unwrap();
    assert_eq!((report.report_data.0, report.mr_config_id, report.rtmr), ([2; 64], body.mr_config_id, body.rtmr));
    let refused = ask(Request::Report(ReportRequest { report_data: [1; 64], vmpl: 1 }));
    assert!(matches!(refused, Err(WireError::Refused(_))));

    let mut command = program();
    command.arg("measure-td");
    files(&mut command);
    let output = command.output().unwrap();
    let measured: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for (name, value) in [("mr_td", body.mr_td), ("rtmr_0", body.rtmr[0]), ("rtmr_1", body.rtmr[1]), ("rtmr_2", body.rtmr[2])] {
        assert_eq!(measured[name], value.to_string());
        assert!(line.contains(&value.to_string()), "{line}");
    }
    kill(Pid::from_raw(server.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
}

#[test]
fn takes_the_initdata_digest_in_the_field_of_its_tee_alone() {
    let (host_data, mr_config_id) = (["--host-data", &"00".repeat(32)], ["--mr-config-id", &"00".repeat(48)]);
    for wrong in [
        vec![],
        mr_config_id.to_vec(),
        [host_data, mr_config_id].concat(),
        [["--tee", "tdx"].to_vec(), host_data.to_vec()].concat(),
        ["--tee", "tdx"].to_vec(),
        [["--tee", "none"].to_vec(), host_data.to_vec()].concat(),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_kata-cc-tee-sim"))
            .args(["serve", "--keys", "/nowhere", "--socket", "/nowhere/s", "--ovmf", "f", "--kernel", "k", "--initrd", "i"])
            .args(["--append", "", "--vcpus", "1"])
            .args(&wrong)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !said.contains("listen"), "{wrong:?}: {said}");
    }
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
