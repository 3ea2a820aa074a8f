//! `kata-cc firmware` by the program itself.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod firmware;

use std::process::{Command, Output};

use kata_cc_firmware::ready::READY;
use serde_json::Value;

fn kata_cc(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kata-cc")).args(arguments).output().unwrap()
}

/// A file with these bytes, identified; as JSON.
#[track_caller]
fn identified(image: &[u8]) -> Value {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image).unwrap();
    let path = file.path().to_str().unwrap();
    let output = kata_cc(&["--json", "firmware", "identify", path]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = kata_cc(&["firmware", "identify", path]);
    assert!(text.status.success() && String::from_utf8(text.stdout).unwrap().starts_with("build                    unknown\n"));
    assert!(String::from_utf8(text.stderr).unwrap().contains("no known build"));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn list_has_every_known_build_in_both_forms() {
    let text = kata_cc(&["firmware", "list"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert_eq!(text.lines().count(), READY.len() + 1);
    let json: Value = serde_json::from_slice(&kata_cc(&["--json", "firmware", "list"]).stdout).unwrap();
    assert_eq!(json["schema"], "kata-cc/firmware.list/v1");
    for (i, build) in READY.iter().enumerate() {
        assert!(text.lines().any(|line| line.contains(build.sha256) && line.contains(build.version)), "{build}");
        assert_eq!(json["builds"][i]["sha256"], build.sha256);
    }
}

#[test]
fn an_unknown_build_is_told_by_its_tables_and_is_no_error() {
    let json = identified(&firmware::smallest());
    assert_eq!(json["build"], Value::Null);
    let snp = &json["snp"];
    assert_eq!((&snp["measurable"], &snp["checks_kernel"]), (&true.into(), &true.into()), "{json}");
    assert_eq!(snp["ap_reset"], "0x10");
    assert_eq!(snp["sections"][0], serde_json::json!({ "kind": "KernelHashes", "gpa": "0x1000", "size": "0x1000" }));
    assert_eq!(json["tdx"]["measurable"], false);
    assert!(json["tdx"]["why_not"].as_str().unwrap().contains("no TDX metadata entry"), "{json}");
}

#[test]
fn it_says_why_kernels_would_not_be_checked() {
    let mut image = firmware::smallest();
    let place = image.windows(8).position(|bytes| bytes == [0, 0x10, 0, 0, 0, 4, 0, 0]).unwrap();
    image[place + 4..place + 8].copy_from_slice(&175_u32.to_le_bytes());
    let snp = &identified(&image)["snp"];
    assert_eq!((&snp["measurable"], &snp["checks_kernel"]), (&true.into(), &false.into()));
    assert!(snp["why_kernel_unchecked"].as_str().unwrap().contains("175 bytes"), "{snp}");
    // And why it could not be measured at all.
    image[8] = 2;
    let snp = &identified(&image)["snp"];
    assert_eq!(snp["measurable"], false);
    assert!(snp["why_not"].as_str().unwrap().contains("version 1, found 2"), "{snp}");
}

#[test]
fn a_file_that_is_no_firmware_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("no-firmware");
    std::fs::write(&path, [0; 8192]).unwrap();
    for path in [path.to_str().unwrap(), dir.path().join("absent").to_str().unwrap()] {
        let output = kata_cc(&["firmware", "identify", path]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty() && String::from_utf8(output.stderr).unwrap().contains(path));
    }
}
