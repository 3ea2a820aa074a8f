//! `kata-cc plan` by the program itself.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod firmware;

use std::path::Path;
use std::process::{Command, Output};

use kata_cc_policy::Initdata;
use serde_json::Value;

const ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";

fn initdata() -> Initdata {
    Initdata::parse(b"version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"\"\n").unwrap()
}

/// A pod with limits, and with the annotations given as lines.
fn write_pod(dir: &Path, annotations: &[(&str, &str)]) {
    let lines: String = annotations.iter().map(|(name, value)| format!("    {name}: \"{value}\"\n")).collect();
    let annotations = if lines.is_empty() { String::new() } else { format!("  annotations:\n{lines}") };
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n{annotations}spec:\n  containers:\n  - name: web\n    image: r.example/web\n    \
         resources: {{limits: {{cpu: 1500m, memory: 256Mi}}}}\n"
    );
    std::fs::write(dir.join("pod.yaml"), text).unwrap();
}

fn plan(dir: &Path, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_kata-cc"));
    program.current_dir(dir).env("KATA_CC_CONFIG", dir.join("class.toml")).args(["plan", "pod.yaml"]).args(arguments).output().unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty() && said.contains(why), "{said}");
}

#[test]
fn a_plan_has_the_pods_sizes_and_the_digest_of_its_initdata() {
    let dir = tempfile::tempdir().unwrap();
    let initdata = initdata();
    write_pod(dir.path(), &[(ANNOTATION, &initdata.to_annotation())]);
    let output = plan(dir.path(), &["--tee", "snp"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plan_json: Value = serde_json::from_slice(&output.stdout).unwrap();
    // A processor and half a GiB of the class, beside the pod's limits.
    assert_eq!((&plan_json["vcpus"], &plan_json["memory_mib"]), (&3.into(), &768.into()));
    assert_eq!(plan_json["initdata_digest"], hex::encode(initdata.digest().as_bytes()));
    assert_eq!(plan_json["tee"]["kind"], "snp");
    for (tee, protection) in [("snp", "sev-snp-guest,"), ("tdx", "\"qom-type\":\"tdx-guest\""), ("se", "s390-pv-guest,")] {
        let line = plan(dir.path(), &["--tee", tee, "--command-line", "--interfaces", "2"]);
        let line = String::from_utf8(line.stdout).unwrap();
        assert!(line.contains(protection) && line.contains("net1") && line.contains(" \\\n  -smp 3"), "{line}");
    }
}

#[test]
fn a_simulated_machine_is_planned_with_the_word_that_it_protects_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write_pod(dir.path(), &[(ANNOTATION, &initdata().to_annotation())]);
    let simulated = plan(dir.path(), &["--tee", "sim", "--command-line"]);
    let (line, said) = (String::from_utf8(simulated.stdout).unwrap(), String::from_utf8(simulated.stderr).unwrap());
    assert!(line.contains("accel=tcg") && line.contains("-cpu max") && line.contains(" \\\n  -smp 3"), "{line}");
    assert!(said.contains("protects nothing"), "{said}");
    let real = plan(dir.path(), &["--tee", "snp", "--command-line"]);
    assert!(!String::from_utf8(real.stderr).unwrap().contains("protects nothing"));
}

#[test]
fn the_installed_class_is_planned_for_without_another() {
    let dir = tempfile::tempdir().unwrap();
    write_pod(dir.path(), &[(ANNOTATION, &initdata().to_annotation())]);
    assert_refused(&plan(dir.path(), &[]), "class.toml");
    std::fs::write(dir.path().join("class.toml"), "tee = \"se\"\nkernel = \"/my/guest.img\"\n").unwrap();
    let output = plan(dir.path(), &["--json"]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = result.to_string();
    assert!(text.contains("/my/guest.img") && text.contains("/usr/bin/qemu-system-s390x"), "{text}");
}

#[test]
fn pods_that_would_not_start_are_not_planned() {
    let dir = tempfile::tempdir().unwrap();
    write_pod(dir.path(), &[]);
    assert_refused(&plan(dir.path(), &["--tee", "snp"]), "no initdata");
    write_pod(dir.path(), &[(ANNOTATION, "AAAA")]);
    assert_refused(&plan(dir.path(), &["--tee", "snp"]), "initdata");
    let annotation = initdata().to_annotation();
    write_pod(dir.path(), &[(ANNOTATION, &annotation), ("io.katacontainers.config.hypervisor.kernel_params", "init=/bin/sh")]);
    assert_refused(&plan(dir.path(), &["--tee", "snp"]), "kernel_params");
    std::fs::write(dir.path().join("pod.yaml"), "kind: Service\n").unwrap();
    assert_refused(&plan(dir.path(), &["--tee", "snp"]), "expected one pod or workload, found 0 among 1");
}

#[test]
fn a_pod_measures_as_the_command_that_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    write_pod(dir.path(), &[(ANNOTATION, &initdata().to_annotation())]);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (name, content) in [("fw", firmware::smallest()), ("kernel", b"kernel".to_vec()), ("initrd", b"initrd".to_vec())] {
        std::fs::write(path(name), content).unwrap();
    }
    let class = |more: &str| {
        let files = format!("firmware = {:?}\nkernel = {:?}\ninitrd = {:?}\n", path("fw"), path("kernel"), path("initrd"));
        std::fs::write(path("class.toml"), format!("tee = \"snp\"\n{files}{more}")).unwrap();
    };
    let run = |arguments: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_kata-cc"));
        program.current_dir(dir.path()).env("KATA_CC_CONFIG", path("class.toml")).arg("measure").args(arguments).output().unwrap()
    };
    class("kernel_params = \"quiet\"\ncpu_model = \"EPYC-Genoa\"\n");
    let by_pod = run(&["pod", "pod.yaml"]);
    let shown = String::from_utf8_lossy(&by_pod.stderr).into_owned();
    assert!(by_pod.status.success(), "{shown}");
    // The class has one processor, and the pod's limit is one and a half.
    let by_hand = [
        "snp",
        "--ovmf",
        "fw",
        "--kernel",
        "kernel",
        "--initrd",
        "initrd",
        "--append",
        "quiet",
        "--vcpus",
        "3",
        "--vcpu-type",
        "EPYC-Genoa",
    ];
    assert_eq!(by_pod.stdout, run(&by_hand).stdout);
    assert!(shown.contains("kata-cc measure snp") && shown.contains("--vcpus 3") && shown.contains("EPYC-Genoa"), "{shown}");
    class("kernel_params = \"quiet init=/bin/sh\"\ncpu_model = \"EPYC-Genoa\"\n");
    assert_ne!(run(&["pod", "pod.yaml"]).stdout, by_pod.stdout);
    // Neither a model that nobody can measure nor flags, which nobody does measure, are a class's to choose.
    for model in ["EPYC-Venus", "EPYC-v4,pmu=off"] {
        class(&format!("cpu_model = \"{model}\"\n"));
        let refused = run(&["pod", "pod.yaml"]);
        assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains(model), "{refused:?}");
    }
}

#[test]
fn an_id_block_is_made_for_a_class_and_planned_with_it() {
    let dir = tempfile::tempdir().unwrap();
    write_pod(dir.path(), &[(ANNOTATION, &initdata().to_annotation())]);
    std::fs::write(dir.path().join("fw"), firmware::smallest()).unwrap();
    std::fs::write(dir.path().join("kernel"), b"kernel").unwrap();
    let key = |name: &str, algorithm: &'static rcgen::SignatureAlgorithm| {
        std::fs::write(dir.path().join(name), rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem()).unwrap();
    };
    key("id.pem", &rcgen::PKCS_ECDSA_P384_SHA384);
    key("author.pem", &rcgen::PKCS_ECDSA_P384_SHA384);
    key("p256.pem", &rcgen::PKCS_ECDSA_P256_SHA256);
    let measure = |more: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_kata-cc"));
        let arguments = ["measure", "snp", "--ovmf", "fw", "--kernel", "kernel", "--vcpus", "3", "--vcpu-type", "EPYC-v4"];
        program.current_dir(dir.path()).args(arguments).args(more).output().unwrap()
    };
    let files = ["--id-block", "block", "--id-auth", "auth"];
    let with = |more: &[&'static str]| measure(&[&files[..], more].concat());
    let signed = with(&["--id-key", "id.pem", "--author-key", "author.pem", "--guest-svn", "7"]);
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    let digest = String::from_utf8(signed.stdout).unwrap();

    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let class = |more: &str| {
        let text = "tee = \"snp\"\nfirmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"\n[snp]\n";
        std::fs::write(path("class.toml"), format!("{text}id_block = {:?}\nid_auth = {:?}\n{more}", path("block"), path("auth"))).unwrap();
    };
    class("");
    let planned = plan(dir.path(), &[]);
    let json: Value = serde_json::from_slice(&planned.stdout).unwrap();
    assert_eq!(json["id_block"]["launch_digest"], digest.trim());
    assert_eq!((&json["id_block"]["guest_svn"], &json["id_block"]["policy"]), (&7.into(), &"0x30000".into()));
    let line = String::from_utf8(plan(dir.path(), &["--command-line"]).stdout).unwrap();
    assert!(line.contains(",id-block=") && line.contains(",author-key-enabled=on"), "{line}");

    class("[snp.policy]\nsmt = false\n");
    assert_refused(&plan(dir.path(), &[]), "signed for the guest policy 0x30000 and the class has 0x20000");
    class("");
    std::fs::write(path("auth"), "AAAA").unwrap();
    assert_refused(&plan(dir.path(), &[]), "ID authentication information: expected 4096 bytes");
    std::fs::remove_file(path("auth")).unwrap();
    assert_refused(&plan(dir.path(), &[]), "cannot read [snp] id_auth");

    // Nothing is written that cannot be signed, and half of the arguments are none.
    std::fs::remove_file(path("block")).unwrap();
    for (arguments, why) in [
        (&["--id-key", "p256.pem"][..], "P-384"),
        (&["--id-key", "fw"], "PKCS#8"),
        (&["--id-key", "id.pem", "--author-key", "id.pem"], "author's key is the ID key"),
        (&["--id-key", "id.pem", "--family-id", "00"], "32 hexadecimal digits"),
        (&[], "--id-key"),
    ] {
        let refused = with(arguments);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && refused.stdout.is_empty() && said.contains(why), "{said}");
        assert!(!dir.path().join("block").exists() && !dir.path().join("auth").exists());
    }
}

#[test]
fn a_pod_is_measured_to_what_the_id_block_of_its_class_says_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    write_pod(dir.path(), &[(ANNOTATION, &initdata().to_annotation())]);
    std::fs::write(path("fw"), firmware::smallest()).unwrap();
    std::fs::write(path("kernel"), b"kernel").unwrap();
    std::fs::write(path("initrd"), b"initrd").unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    std::fs::write(path("id.pem"), key).unwrap();
    let class = |more: &str| {
        let text = format!("tee = \"snp\"\nfirmware = {:?}\nkernel = {:?}\ninitrd = {:?}\n", path("fw"), path("kernel"), path("initrd"));
        std::fs::write(path("class.toml"), text + more).unwrap();
    };
    let measured = || {
        let mut program = Command::new(env!("CARGO_BIN_EXE_kata-cc"));
        program.env("KATA_CC_CONFIG", path("class.toml")).args(["measure", "pod"]).arg(path("pod.yaml")).output().unwrap()
    };
    class("");
    let without = measured();
    assert!(without.status.success(), "{}", String::from_utf8_lossy(&without.stderr));
    // The command that it says can be run as it is, and with more.
    let said = String::from_utf8(without.stderr).unwrap();
    let command = said.split_once("kata-cc measure snp").unwrap().1.trim_end();
    let more = format!("--id-block {} --id-auth {} --id-key {}", path("block"), path("auth"), path("id.pem"));
    let line = format!("{} measure snp {command} {more}", env!("CARGO_BIN_EXE_kata-cc"));
    let signed = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    assert_eq!(signed.stdout, without.stdout);

    class(&format!("[snp]\nid_block = {:?}\nid_auth = {:?}\n", path("block"), path("auth")));
    let same = measured();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stderr));
    assert_eq!(same.stdout, without.stdout);
    std::fs::write(path("initrd"), b"another").unwrap();
    assert_refused(&measured(), "are others than those of that digest");
}
