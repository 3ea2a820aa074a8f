//! Reference manifests by the program itself: made, signed, shown, and the same digests as one at a time.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod firmware;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use kata_cc_firmware::initrd::{Archive, ImageKind, LABEL_PATH, Label};
use serde_json::{Value, json};

/// A folder with a firmware, a kernel, an initrd and the keys `owner` and `other`.
struct Image {
    dir: tempfile::TempDir,
}

const INPUTS: [&str; 10] = ["measure", "snp", "--ovmf", "fw", "--kernel", "kernel", "--initrd", "initrd", "--append", "quiet"];
const ABOUT: [&str; 8] = ["--name", "guest", "--release", "1.2", "--serial", "3", "--kind", "production"];

impl Image {
    fn new() -> Self {
        let image = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(image.path("fw"), firmware::smallest()).unwrap();
        fs::write(image.path("kernel"), "kernel").unwrap();
        fs::write(image.path("initrd"), "initrd").unwrap();
        for name in ["owner", "other"] {
            image.run(0, &["policy", "keygen", "--out-dir", name]);
        }
        image
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the program said, and that it ended like this.
    #[track_caller]
    fn run(&self, code: i32, args: &[&str]) -> (String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_kata-cc")).args(args).current_dir(self.dir.path()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        assert_eq!(output.status.code(), Some(code), "{out}{err}");
        (out, err)
    }

    #[track_caller]
    fn json(&self, code: i32, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(code, &[&["--json"], args].concat()).0).unwrap()
    }

    /// A signed manifest of up to three vCPUs in the file `manifest`.
    fn sign(&self, more: &[&str]) -> (String, String) {
        let range = ["--vcpus", "3", "--range", "--sign", "owner/policy.key", "-o", "manifest"];
        self.run(0, &[&INPUTS[..], &range, &ABOUT, more].concat())
    }
}

#[test]
fn a_manifest_has_the_digests_that_are_measured_one_at_a_time() {
    let image = Image::new();
    image.sign(&[]);
    let shown = image.json(0, &["verify", "manifest", "manifest", "--key", "owner/policy.pub"]);
    let entry = &shown["manifest"]["entries"][0];
    let sha256 = |bytes: &[u8]| hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes));
    assert_eq!(
        entry["inputs"],
        json!({
            "firmware": sha256(&firmware::smallest()), "vmm": "qemu", "guest_features": "0x1",
            "boot": {"kernel": sha256(b"kernel"), "initrd": sha256(b"initrd"), "cmdline": "quiet"},
        })
    );
    let cpus = entry["cpus"].as_array().unwrap();
    assert_eq!(cpus.len(), 5);
    for cpu in cpus {
        let digests = cpu["launch_digests"].as_array().unwrap();
        assert_eq!(digests.len(), 3);
        let model = cpu["cpu_models"][0].as_str().unwrap();
        for (i, digest) in digests.iter().enumerate() {
            let one = image.run(0, &[&INPUTS[..], &["--vcpus", &(i + 1).to_string(), "--vcpu-type", model]].concat()).0;
            assert_eq!(one.trim(), digest.as_str().unwrap(), "{model} {}", i + 1);
        }
    }
}

#[test]
fn a_range_without_a_key_is_a_table() {
    let image = Image::new();
    let range = ["--vcpus", "2", "--range", "--vcpu-type", "EPYC-v4", "--vcpu-type", "EPYC-Milan"];
    let (table, _) = image.run(0, &[&INPUTS[..], &range].concat());
    assert_eq!(table.lines().count(), 4);
    assert!(table.lines().next().unwrap().ends_with(" 1 EPYC-v4"), "{table}");
    let entry = image.json(0, &[&INPUTS[..], &range].concat());
    assert_eq!(entry["entry"]["cpus"][1]["launch_digests"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_not_said_or_contradicts_itself_is_refused() {
    let image = Image::new();
    let refused = |code: i32, more: &[&str], word: &str| {
        let (_, err) = image.run(code, &[&INPUTS[..], more].concat());
        assert!(err.contains(word), "no {word:?} in {err}");
    };
    refused(1, &["--vcpus", "1"], "--vcpu-type");
    refused(1, &["--vcpus", "1", "--vcpu-type", "EPYC", "--vcpu-type", "EPYC-v4"], "--range");
    refused(1, &["--vcpus", "1", "--range", "--vmm", "ec2", "--vcpu-type", "EPYC"], "--vcpu-type");
    refused(2, &["--vcpus", "1", "--range", "--each-vcpu-count"], "--each-vcpu-count");
    let sign = ["--vcpus", "1", "--vcpu-type", "EPYC", "--sign", "owner/policy.key"];
    refused(1, &[&sign[..], &ABOUT].concat(), "--range");
    for left_out in (0..ABOUT.len()).step_by(2) {
        let mut about = ABOUT.to_vec();
        about.drain(left_out..left_out + 2);
        refused(2, &[&sign[..], &["--range"], &about].concat(), ABOUT[left_out]);
    }
    let about = |field: &str, value: &'static str| {
        let mut about = ABOUT;
        let at = about.iter().position(|word| *word == field).unwrap() + 1;
        about[at] = value;
        about
    };
    refused(1, &[&sign[..], &["--range"], &about("--name", "a b")].concat(), "name");
    refused(1, &[&sign[..], &["--range"], &about("--serial", "0")].concat(), "serial");
    refused(2, &[&sign[..], &["--range"], &about("--kind", "test")].concat(), "simulation");
    refused(1, &[&sign[..], &["--range", "--expires", "2001-01-01T00:00:00Z"], &ABOUT].concat(), "expires");
}

#[test]
fn a_manifest_is_shown_only_under_its_signers_key() {
    let image = Image::new();
    image.sign(&["--expires", "90d"]);
    let (text, _) = image.run(0, &["verify", "manifest", "manifest", "--key", "other/policy.pub", "--key", "owner/policy.pub"]);
    for word in ["guest 1.2, serial 3", "production", "1 to 3 vCPUs of EPYC,", "\"quiet\"", "valid"] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    let (text, _) = image.run(0, &["verify", "manifest", "manifest", "--key", "owner/policy.pub", "--values"]);
    assert_eq!(text.lines().filter(|line| line.starts_with("snp_launch_measurement ")).count(), 15);
    let (text, _) = image.run(3, &["verify", "manifest", "manifest", "--key", "other/policy.pub"]);
    assert!(text.contains("not trusted") && !text.contains("EPYC"), "{text}");
    let late = ["verify", "manifest", "manifest", "--key", "owner/policy.pub", "--now", "2999-01-01T00:00:00Z"];
    assert!(image.run(3, &late).0.contains("EXPIRED"));
    assert_eq!(image.json(3, &late)["validity"], "expired");
    assert_eq!(
        image.json(3, &["verify", "manifest", "manifest", "--key", "owner/policy.pub", "--now", "2001-01-01T00:00:00Z"])["validity"],
        "not-yet"
    );
}

/// An initrd that says it is of this kind.
fn initrd_of(kind: ImageKind) -> Vec<u8> {
    let mut initrd = Archive::with_base_tree();
    initrd.add(LABEL_PATH, Label::new(kind, "7").unwrap().to_node()).unwrap();
    initrd.to_bytes()
}

#[test]
fn an_initrd_is_not_signed_as_more_than_it_says() {
    let image = Image::new();
    let range =
        ["--vcpus", "1", "--range", "--sign", "owner/policy.key", "-o", "manifest", "--name", "g", "--release", "1", "--serial", "1"];
    let sign = |code: i32, kind: &str| image.run(code, &[&INPUTS[..], &range, &["--kind", kind]].concat()).1;
    // One that says nothing, such as another project's.
    assert!(sign(0, "production").contains("does not say what kind of image it is"));
    fs::remove_file(image.path("manifest")).unwrap();

    for (says, kind) in [(ImageKind::Simulation, "production"), (ImageKind::Debug, "production"), (ImageKind::Bench, "simulation")] {
        fs::write(image.path("initrd"), initrd_of(says)).unwrap();
        let error = sign(1, kind);
        assert!(error.contains(&format!("says it is a {says} image")) && error.contains(&format!("not signed as {kind}")), "{error}");
        assert!(!image.path("manifest").exists());
    }
    for (says, kind) in
        [(ImageKind::Simulation, "simulation"), (ImageKind::Production, "production"), (ImageKind::Production, "simulation")]
    {
        fs::write(image.path("initrd"), initrd_of(says)).unwrap();
        assert!(!sign(0, kind).contains("does not say"), "{says} {kind}");
    }
    let twice = [initrd_of(ImageKind::Production), initrd_of(ImageKind::Simulation)].concat();
    fs::write(image.path("initrd"), twice).unwrap();
    assert!(sign(1, "production").contains("twice"));
    // Nobody vouches for what is only measured.
    image.run(0, &[&INPUTS[..], &["--vcpus", "1", "--vcpu-type", "EPYC"]].concat());
}

#[test]
fn values_that_no_image_measures_to_are_signed_too() {
    let image = Image::new();
    let values = [
        "measure",
        "values",
        "--value",
        "snp_bootloader=4",
        "--text",
        "tdx_tcb_status=UpToDate",
        "--file",
        "policy_trusted_keys=other/policy.pub",
    ];
    let sign = ["--sign", "owner/policy.key", "--out", "values"];
    image.run(0, &[&values[..], &sign, &ABOUT].concat());
    let shown = image.json(0, &["verify", "manifest", "values", "--key", "owner/policy.pub"]);
    let key = fs::read_to_string(image.path("other/policy.pub")).unwrap();
    let expected = json!({"snp_bootloader": [4], "tdx_tcb_status": ["UpToDate"], "policy_trusted_keys": [key]});
    assert_eq!(shown["manifest"]["entries"][0]["values"], expected);
    let measured = ["measure", "values", "--text", "snp_launch_measurement=aa"];
    assert!(image.run(1, &[&measured[..], &sign, &ABOUT].concat()).1.contains("measured"));
    assert!(image.run(1, &[&["measure", "values"], &sign[..], &ABOUT].concat()).1.contains("at least one"));
}
