//! `kata-cc measure tdx` by the program itself: what it prints is what the library computes, and it says what it cannot know.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use kata_cc_firmware::footer::{Footer, TDX_METADATA};
use kata_cc_firmware::initrd::{Archive, ImageKind, LABEL_PATH, Label};
use kata_cc_firmware::measure::tdx::{DirectBoot, Edk2, Event, GuestMemory, Initrd, KernelHeader, PageOrder, TdxFirmware};
use serde_json::{Value, json};

/// The smallest firmware with all that one has: a page of variables, a page of code, memory, the TD HOB.
fn firmware() -> Vec<u8> {
    let mut image = vec![0x90; 8192];
    let sections = [
        (4096_u32, 4096_u32, 0xffff_f000_u64, 4096_u64, 0_u32, 1_u32),
        (0, 4096, 0xffff_e000, 4096, 1, 0),
        (0, 0, 0x10_0000, 4096, 3, 0),
        (0, 0, 0x20_0000, 4096, 2, 0),
    ];
    let mut metadata = [*b"TDVF", 144_u32.to_le_bytes(), 1_u32.to_le_bytes(), 4_u32.to_le_bytes()].concat();
    for (offset, length, gpa, size, kind, attributes) in sections {
        metadata.extend([offset, length].map(u32::to_le_bytes).concat());
        metadata.extend([gpa, size].map(u64::to_le_bytes).concat());
        metadata.extend([kind, attributes].map(u32::to_le_bytes).concat());
    }
    image[4096..4096 + metadata.len()].copy_from_slice(&metadata);
    let table = Footer::build(&[(TDX_METADATA, &4096_u32.to_le_bytes())]);
    let place = Footer::place(image.len(), &table).unwrap();
    image[place].copy_from_slice(&table);
    image
}

/// The smallest kernel that is both an EFI application and a bzImage.
fn kernel() -> Vec<u8> {
    let mut kernel = vec![0x55; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40_u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x46, &1_u16.to_le_bytes());
    put(0x54, &160_u16.to_le_bytes());
    put(0x58, &0x20b_u16.to_le_bytes());
    put(0x58 + 60, &0x600_u32.to_le_bytes());
    put(0x58 + 108, &6_u32.to_le_bytes());
    put(0x58 + 112 + 32, &[0; 8]);
    put(0x58 + 160 + 16, &0xa00_u32.to_le_bytes());
    put(0x58 + 160 + 20, &0x600_u32.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x236, &[3, 0]);
    kernel
}

const FIRMWARE: [&str; 4] = ["measure", "tdx", "--firmware", "fw"];
const BOOT: [&str; 6] = ["--kernel", "kernel", "--initrd", "initrd", "--append", "quiet"];
const ABOUT: [&str; 8] = ["--name", "td", "--release", "1.2", "--serial", "3", "--kind", "production"];

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::write(folder.path("fw"), firmware()).unwrap();
        fs::write(folder.path("kernel"), kernel()).unwrap();
        fs::write(folder.path("initrd"), "initrd").unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What the program said, and that it ended like this.
    #[track_caller]
    fn run(&self, code: i32, args: &[&[&str]]) -> (String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_kata-cc")).args(args.concat()).current_dir(self.0.path()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        assert_eq!(output.status.code(), Some(code), "{out}{err}");
        (out, err)
    }

    #[track_caller]
    fn json(&self, args: &[&[&str]]) -> Value {
        let mut all = vec![&["--json"][..]];
        all.extend(args);
        serde_json::from_str(&self.run(0, &all).0).unwrap()
    }
}

/// RTMR1 and RTMR2 as the library has them.
fn rtmrs(header: KernelHeader, edk2: Edk2) -> [String; 2] {
    let boot = DirectBoot::new(kernel(), Some(Initrd::of(b"initrd")), "quiet", header).unwrap();
    [boot.rtmr_1(edk2), boot.rtmr_2(edk2)].map(|events| Event::replay(&events).to_string())
}

#[test]
fn mrtd_alone_is_on_stdout_in_the_order_asked_for() {
    let (folder, image) = (Folder::new(), firmware());
    let firmware = TdxFirmware::parse(&image).unwrap();
    let (out, err) = folder.run(0, &[&FIRMWARE, &BOOT]);
    assert_eq!(out, format!("{}\n", firmware.mrtd(PageOrder::Qemu9)));
    for word in ["initrd=initrd quiet", "page order qemu9", "rtmr_0          not predicted"] {
        assert!(err.contains(word), "no {word:?} in {err}");
    }
    for order in PageOrder::ALL {
        let (out, _) = folder.run(0, &[&FIRMWARE, &["--page-order", order.as_str()]]);
        assert_eq!(out.trim(), firmware.mrtd(order).to_string());
    }
}

#[test]
fn json_has_the_registers_and_what_is_not_predicted_with_the_reason() {
    let folder = Folder::new();
    let [rtmr_1, rtmr_2] = rtmrs(KernelHeader::AsInFile, Edk2::From202508);
    let shown = folder.json(&[&FIRMWARE, &BOOT]);
    assert_eq!((&shown["rtmr_1"], &shown["rtmr_2"]), (&json!(rtmr_1), &json!(rtmr_2)));
    assert_eq!(shown["events"]["rtmr_1"].as_array().unwrap().len(), 5);
    assert_eq!(shown["events"]["rtmr_2"][1]["event"], "initrd");
    assert!(shown["not_predicted"]["rtmr_0"].as_str().unwrap().contains("ACPI"), "{shown}");
    assert_eq!(shown["not_predicted"].as_object().unwrap().len(), 2);
    assert!(shown["events"].get("rtmr_0").is_none());

    let memory = GuestMemory::from_mib(2048).unwrap();
    let [rtmr_1, rtmr_2] = rtmrs(KernelHeader::FilledIn(memory), Edk2::Before202411);
    let older = ["--memory", "2048", "--kernel-header-filled-in", "--edk2", "before-202411"];
    let shown = folder.json(&[&FIRMWARE, &BOOT, &older]);
    assert_eq!((&shown["rtmr_1"], &shown["rtmr_2"]), (&json!(rtmr_1), &json!(rtmr_2)));
    let image = firmware();
    let machine = TdxFirmware::parse(&image).unwrap().machine_digests(memory).unwrap();
    assert_eq!(shown["events"]["rtmr_0"][0]["digest"], hex::encode(machine.td_hob));
    assert_eq!(shown["events"]["rtmr_0"][1]["digest"], hex::encode(machine.configuration));

    let firmware_only = folder.json(&[&FIRMWARE]);
    assert!(firmware_only.get("rtmr_1").is_none() && firmware_only["mr_td"] == shown["mr_td"]);
    assert!(firmware_only["not_predicted"]["rtmr_2"].as_str().unwrap().contains("--kernel"));
}

#[test]
fn a_manifest_has_what_is_measured_and_rtmr_0_as_it_was_given() {
    let folder = Folder::new();
    folder.run(0, &[&["policy", "keygen", "--out-dir", "owner"]]);
    let rtmr_0 = "0a".repeat(48);
    let sign = ["--sign", "owner/policy.key", "-o", "manifest", "--rtmr-0", rtmr_0.as_str()];
    folder.run(0, &[&FIRMWARE, &BOOT, &sign, &ABOUT]);
    let shown = folder.json(&[&["verify", "manifest", "manifest", "--key", "owner/policy.pub"]]);
    let [rtmr_1, rtmr_2] = rtmrs(KernelHeader::AsInFile, Edk2::From202508);
    let image = firmware();
    let mr_td = TdxFirmware::parse(&image).unwrap().mrtd(PageOrder::Qemu9).to_string();
    let sha256 = |bytes: &[u8]| hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes));
    assert_eq!(
        shown["manifest"]["entries"][0],
        json!({
            "type": "tdx",
            "inputs": {
                "firmware": sha256(&firmware()), "vmm": "QEMU, page order qemu9, kernel header as in the file, edk2 202508",
                "boot": {"kernel": sha256(&kernel()), "initrd": sha256(b"initrd"), "cmdline": "quiet"},
            },
            "mr_td": [mr_td], "rtmr_0": [rtmr_0], "rtmr_1": [rtmr_1], "rtmr_2": [rtmr_2],
        })
    );
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    let folder = Folder::new();
    let refused = |code: i32, args: &[&str], word: &str| {
        let (out, err) = folder.run(code, &[&FIRMWARE, args]);
        assert!(out.is_empty() && err.contains(word), "no {word:?} in {err}");
    };
    refused(2, &["--initrd", "initrd"], "--kernel");
    refused(2, &["--append", "quiet"], "--kernel");
    refused(2, &[&BOOT[..], &["--kernel-header-filled-in"]].concat(), "--memory");
    refused(2, &["--memory", "2G"], "MiB");
    refused(2, &["--memory", "1"], "16 to");
    refused(2, &["--page-order", "qemu10"], "qemu10");
    refused(2, &["--edk2", "202602"], "202508");
    refused(2, &["--rtmr-0", "0a".repeat(48).as_str()], "--sign");
    refused(1, &["--kernel", "initrd"], "PE image");
    refused(1, &["--kernel", "kernel", "--append", "kühl"], "ASCII");
    refused(1, &["--kernel", "no-such-kernel"], "no-such-kernel");
    refused(1, &[&["--sign", "owner/policy.key"][..], &ABOUT].concat(), "--kernel");
    refused(1, &[&["--kernel", "kernel", "--sign", "owner/policy.key"][..], &ABOUT].concat(), "RTMR2");
    let mut simulation = Archive::with_base_tree();
    simulation.add(LABEL_PATH, Label::new(ImageKind::Simulation, "7").unwrap().to_node()).unwrap();
    fs::write(folder.path("initrd"), simulation.to_bytes()).unwrap();
    refused(1, &[&BOOT[..], &["--sign", "owner/policy.key"], &ABOUT].concat(), "not signed as production");
    let (out, err) = folder.run(1, &[&["measure", "tdx", "--firmware", "kernel"]]);
    assert!(out.is_empty() && err.contains("cannot measure kernel") && err.contains("footer GUID"), "{err}");
}
