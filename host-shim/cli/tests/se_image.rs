//! Boot images of Secure Execution as an owner makes and measures them, by the program itself; host keys are a made-up IBM's.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use kata_cc_evidence::se::ImageTags;
use kata_cc_firmware::measure::se::header::Header;
use kata_cc_sim_uv::{Machine, Vendor};
use serde_json::Value;

/// 2025-06-15T15:06:40Z.
const MADE: u64 = 1_750_000_000;
const NOW: &str = "2025-06-16T00:00:00Z";
/// When all certificates and lists have expired.
const LATER: &str = "2026-07-01T00:00:00Z";

/// Keys of RSA take a while.
static VENDOR: LazyLock<Vendor> = LazyLock::new(|| Vendor::new(MADE));

struct Owner {
    dir: tempfile::TempDir,
    machines: [Machine; 2],
}

impl Owner {
    fn new() -> Self {
        let owner = Self { dir: tempfile::tempdir().unwrap(), machines: [Machine::new(), Machine::new()] };
        let mut kernel = vec![0x07; 0x11000];
        kernel[0x10008..0x1000e].copy_from_slice(b"S390EP");
        kernel[0x10430..0x10438].copy_from_slice(&4096_u64.to_be_bytes());
        owner.write("kernel", &kernel);
        owner.write("initrd", &b"initrd".repeat(2000));
        owner.write("stage3a", &[0xaa; 0x3000]);
        owner.write("stage3b", &[0xbb; 0x1800]);
        owner.write("root", VENDOR.root().as_bytes());
        owner.write("signing", VENDOR.signing_service().as_bytes());
        owner.write("lists", VENDOR.lists(&[]).as_bytes());
        owner.write("one", VENDOR.document(&owner.machines[0], 10).as_bytes());
        owner.write("two", VENDOR.document(&owner.machines[1], 11).as_bytes());
        owner
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path().join(name), bytes).unwrap();
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } =
            Command::new(env!("CARGO_BIN_EXE_kata-cc")).args(args).current_dir(self.path()).output().unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    fn build(&self, more: &[&str]) -> (i32, String, String) {
        self.build_at(NOW, more)
    }

    fn build_at(&self, now: &str, more: &[&str]) -> (i32, String, String) {
        self.build_with("quiet", now, more)
    }

    fn build_with(&self, append: &str, now: &str, more: &[&str]) -> (i32, String, String) {
        let mut args = vec!["image", "se", "build", "--append", append, "--out", "image", "--now", now, "--host-key-document", "one"];
        args.extend(["--kernel", "kernel", "--initrd", "initrd", "--stage3a", "stage3a", "--stage3b", "stage3b"]);
        args.extend(["--root", "root", "--certificate", "signing", "--crl", "lists"]);
        args.extend(more);
        self.run(&args)
    }

    /// Not built, for this reason, and nothing is left behind.
    #[track_caller]
    fn refused(&self, more: &[&str], because: &str) {
        let before = fs::read_dir(self.path()).unwrap().count();
        let (code, out, err) = self.build(more);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(because), "{err}");
        assert_eq!(fs::read_dir(self.path()).unwrap().count(), before);
    }
}

#[test]
fn an_image_says_what_its_class_must_set_aside() {
    let owner = Owner::new();
    for (append, said) in [("quiet", "[se] swiotlb_mib = 64"), ("swiotlb=262144 quiet", "[se] swiotlb_mib = 512 (swiotlb=262144")] {
        let (code, _, err) = owner.build_with(append, NOW, &[]);
        assert!(code == 0 && err.contains(said), "{err}");
    }
    fs::remove_file(owner.path().join("image")).unwrap();
    for append in ["swiotlb=noforce", "swiotlb=100000", "swiotlb=512M"] {
        let (code, out, err) = owner.build_with(append, NOW, &[]);
        assert!(code == 1 && out.is_empty() && err.contains("--append") && err.contains(append), "{err}");
        assert!(!owner.path().join("image").exists());
    }
}

#[test]
fn an_image_has_the_tag_that_is_printed_and_a_slot_for_each_machine() {
    let owner = Owner::new();
    let (code, out, err) = owner.build(&["--host-key-document", "two", "--header", "image.hdr"]);
    assert_eq!(code, 0, "{err}");
    let tag = out.trim();
    assert_eq!((tag.len(), hex::decode(tag).map(|tag| tag.len())), (32, Ok(16)));
    assert!(err.contains("[se] images = [\"image.hdr\"]") && err.contains(&format!("se_tag={tag}")), "{err}");

    let header = Header::parse(&fs::read(owner.path().join("image.hdr")).unwrap()).unwrap();
    let slots: Vec<_> = header.head().slots().iter().map(|slot| slot.phkh).collect();
    assert_eq!(slots, owner.machines.each_ref().map(Machine::phkh));

    // From the image, from the header, and as the broker reads it: one tag.
    for file in ["image", "image.hdr"] {
        let (code, out, err) = owner.run(&["measure", "se", file, "--header", "again.hdr"]);
        assert_eq!((code, out.trim()), (0, tag), "{err}");
        assert_eq!(fs::read(owner.path().join("again.hdr")).unwrap(), header.to_bytes().unwrap());
    }
    let tags = ImageTags::from_header(&fs::read(owner.path().join("again.hdr")).unwrap()).unwrap();
    assert_eq!(hex::encode(tags.tag), tag);

    let (code, json, _) = owner.run(&["--json", "measure", "se", "image"]);
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &value["schema"]), (0, &"kata-cc/measure.se/v1".into()));
    assert_eq!(value["tag"], tag);
    assert_eq!(value["page_list_digest"], hex::encode(tags.pld));
    assert_eq!(value["address_list_digest"], hex::encode(tags.ald));
    assert_eq!(value["tweak_list_digest"], hex::encode(tags.tld));
    // 17 of the kernel, 3 of the initrd, 1 of the command line, 2 of stage3b.
    assert_eq!((&value["pages"], &value["pages_encrypted"], &value["dumping_allowed"]), (&23.into(), &true.into(), &false.into()));
    assert_eq!(value["host_keys"], serde_json::json!(owner.machines.each_ref().map(|machine| hex::encode(machine.phkh()))));
}

#[test]
fn each_build_has_keys_of_its_own() {
    let owner = Owner::new();
    let (_, first, _) = owner.build(&[]);
    let image = fs::read(owner.path().join("image")).unwrap();
    let (code, json, _) = owner.build(&["--json"]);
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &value["schema"]), (0, &"kata-cc/image.se.build/v1".into()));
    assert_ne!(value["tag"], first.trim());
    assert_eq!(value["documents"][0]["document"], "one");
    let again = fs::read(owner.path().join("image")).unwrap();
    let same = image.iter().zip(&again).skip(0x15000).take(0x10000).filter(|(one, other)| one == other).count();
    // One byte in 256 by chance.
    assert!(same < 0x10000 / 128, "{same} bytes of the kernel are encrypted alike");
}

#[test]
fn host_keys_that_do_not_verify_get_no_image() {
    let owner = Owner::new();
    owner.refused(&["--no-verify"], "--no-verify is refused");
    let with = |name: &str, bytes: &str| {
        let owner = Owner::new();
        owner.write(name, bytes.as_bytes());
        owner
    };
    with("lists", &VENDOR.lists(&[10])).refused(&[], "was revoked");
    let other = Vendor::new(MADE);
    with("root", &other.root()).refused(&[], "nobody who is trusted issued");
    with("one", &other.document(&Machine::new(), 10)).refused(&[], "the signature is not by");
    with("signing", &VENDOR.root()).refused(&[], "no certificate is that of an IBM Z key signing service");
    // One that verifies does not carry another that does not.
    owner.write("two", other.document(&Machine::new(), 11).as_bytes());
    owner.refused(&["--host-key-document", "two"], "host-key document two is not to be trusted");
    owner.refused(&["--host-key-document", "one"], "is there twice");

    let (code, _, err) = Owner::new().build_at(LATER, &[]);
    assert!(code == 1 && err.contains("is valid from"), "{err}");
    // What must be verified by is no option.
    for missing in ["--host-key-document", "--certificate", "--crl", "--root", "--stage3a", "--stage3b"] {
        let all = [
            "--host-key-document",
            "--certificate",
            "--crl",
            "--root",
            "--stage3a",
            "--stage3b",
            "--kernel",
            "--initrd",
            "--append",
            "--out",
        ];
        let args: Vec<&str> =
            ["image", "se", "build"].into_iter().chain(all.iter().filter(|arg| **arg != missing).flat_map(|arg| [*arg, "x"])).collect();
        let (code, _, err) = owner.run(&args);
        assert!(code == 2 && err.contains(missing), "{err}");
    }
}

#[test]
fn what_cannot_start_is_not_made_and_what_is_no_image_not_measured() {
    let owner = Owner::new();
    owner.write("kernel", b"\x7fELF");
    owner.refused(&[], "ELF");
    owner.write("kernel", &[]);
    owner.refused(&[], "S390EP");
    let owner = Owner::new();
    owner.write("initrd", b"");
    owner.refused(&[], "the initrd is empty");
    owner.write("initrd", b"x");
    owner.write("stage3a", b"short");
    owner.refused(&[], "stage3a has 5 bytes");

    for file in ["kernel", "one", "absent"] {
        let (code, out, err) = owner.run(&["measure", "se", file]);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(file), "{err}");
    }
}
