//! Initdata as an owner makes it, by the program itself: both ways to sign, and what is said when documents are not those signed.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

struct Owner {
    dir: tempfile::TempDir,
}

/// What one call of the program left.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn json(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    #[track_caller]
    fn fails_with(&self, words: &[&str]) {
        assert!(self.code == 1 || self.code == 2, "exit code {}: {}{}", self.code, self.out, self.err);
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in: {}", self.err);
        }
    }
}

/// The documents that the tests describe by options.
const DOCUMENTS: [&str; 4] = ["--insecure-registry", "10.0.0.1:5000", "--registry-credentials-uri", "kbs:///default/credentials/app"];

impl Owner {
    /// With a policy and the keys `owner` and `other`.
    fn new() -> Self {
        let owner = Owner { dir: tempfile::tempdir().unwrap() };
        fs::write(owner.path("app.rego"), "package agent_policy\nStartContainerRequest := true\n").unwrap();
        for name in ["owner", "other"] {
            owner.run(&["policy", "keygen", "--out-dir", name]).done();
        }
        owner
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Said {
        let Output { status, stdout, stderr } =
            Command::new(env!("CARGO_BIN_EXE_kata-cc")).args(args).current_dir(self.dir.path()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
    }

    fn build(&self, more: &[&str]) -> Said {
        self.run(&[&["--json", "initdata", "build", "--policy-key", "owner/policy.pub"], &DOCUMENTS[..], more].concat())
    }

    /// The short way: everything in one step.
    fn build_signed(&self, out: &str, version: &str) -> Said {
        self.build(&["--policy", "app.rego", "--policy-version", version, "--sign-with", "owner/policy.key", "--out", out])
    }

    fn show(&self, name: &str) -> Said {
        self.run(&["--json", "initdata", "show", name])
    }

    /// What a host makes of initdata: the text of one document changed in the file.
    fn change(&self, from: &str, to: &str, what: (&str, &str)) {
        let text = fs::read_to_string(self.path(from)).unwrap();
        assert_eq!(text.matches(what.0).count(), 1, "{text}");
        fs::write(self.path(to), text.replace(what.0, what.1)).unwrap();
    }
}

impl Said {
    #[track_caller]
    fn done(&self) {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
    }
}

fn is_digest(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[test]
fn one_step_signs_the_policy_together_with_the_documents() {
    let owner = Owner::new();
    let built = owner.build_signed("app.toml", "3").json(0);
    assert!(is_digest(&built["digest"]));
    let shown = owner.show("app.toml").json(0);
    assert_eq!((&shown["guest"]["accepts"], &shown["policy"]["version"]), (&json!(true), &json!(3)));
    assert_eq!(shown["digest"], built["digest"]);
    let names: Vec<&String> = shown["documents"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["cdh.toml", "kata-cc.toml"]);
    assert!(shown["data"]["kata-cc.toml"].as_str().unwrap().contains("min_version = 3"));
    let text = owner.run(&["initdata", "show", "app.toml"]);
    assert!(text.out.contains("guest accepts it         yes") && text.out.contains("--- cdh.toml (sha256 "), "{}", text.out);
}

#[test]
fn a_draft_is_signed_elsewhere_and_completed() {
    let owner = Owner::new();
    let draft = owner.build(&["--unsigned", "--policy-min-version", "2", "--out", "draft.toml"]).json(0);
    assert_eq!((&draft["schema"], &draft["min_version"]), (&json!("kata-cc/initdata.draft/v1"), &json!(2)));
    assert_eq!(owner.show("draft.toml").json(3)["guest"]["accepts"], false);
    let sign = |version: &str, key: &str| {
        let args = ["--json", "policy", "sign", "--policy", "app.rego", "--version", version, "--key", key, "--initdata", "draft.toml"];
        owner.run(&[&args[..], &["--out", "env.json"]].concat())
    };
    sign("1", "owner/policy.key").fails_with(&["version 1, expected at least 2", "draft.toml"]);
    sign("2", "other/policy.key").fails_with(&["no good signature by a trusted key", "draft.toml"]);
    let signed = sign("2", "owner/policy.key").json(0);
    assert_eq!(signed["documents"], draft["documents"]);
    let complete = ["--json", "initdata", "build", "--from", "draft.toml", "--policy-envelope", "env.json", "--out", "app.toml"];
    owner.run(&complete).json(0);
    let shown = owner.show("app.toml").json(0);
    assert_eq!((&shown["guest"]["accepts"], &shown["documents"]), (&json!(true), &draft["documents"]));
    // The same in one step is the same text but for the signature.
    owner.build_signed("short.toml", "2").json(0);
    assert_eq!(owner.show("short.toml").json(0)["documents"], draft["documents"]);
}

#[test]
fn a_draft_changed_by_hand_can_be_signed_in_one_step() {
    let owner = Owner::new();
    owner.build(&["--unsigned", "--out", "draft.toml"]).json(0);
    let text = fs::read_to_string(owner.path("draft.toml")).unwrap() + "\"workload.txt\" = \"of my own\"\n";
    fs::write(owner.path("draft.toml"), text).unwrap();
    let args = ["--json", "initdata", "build", "--from", "draft.toml", "--policy", "app.rego", "--policy-version", "1"];
    owner.run(&[&args[..], &["--sign-with", "owner/policy.key", "--out", "app.toml"]].concat()).json(0);
    assert!(is_digest(&owner.show("app.toml").json(0)["documents"]["workload.txt"]));
}

#[test]
fn says_which_document_differs_with_both_digests() {
    let owner = Owner::new();
    owner.build_signed("app.toml", "1").json(0);
    let signed = owner.show("app.toml").json(0)["documents"]["cdh.toml"].clone();
    owner.change("app.toml", "host.toml", ("\"10.0.0.1:5000\"", "\"10.0.0.1:5000\", \"10.0.0.66:5000\""));
    let shown = owner.show("host.toml").json(3);
    assert_eq!(shown["guest"]["accepts"], false);
    let found = &shown["documents"]["cdh.toml"];
    let differences = json!([{ "document": "cdh.toml", "change": "changed", "expected": signed, "found": found }]);
    assert_eq!(shown["guest"]["differences"], differences);
    let text = owner.run(&["initdata", "show", "host.toml"]);
    let words = format!("`cdh.toml` was changed (expected sha256 {}, found {})", signed.as_str().unwrap(), found.as_str().unwrap());
    assert!(text.code == 3 && text.out.contains(&words), "{}", text.out);

    // The same by the envelope alone.
    let envelope = shown["data"]["policy.dsse.json"].as_str().unwrap();
    fs::write(owner.path("env.json"), envelope).unwrap();
    let verify = |more: &[&str]| owner.run(&[&["--json", "policy", "verify", "env.json", "--key", "owner/policy.pub"], more].concat());
    assert_eq!(verify(&[]).json(0)["documents"]["cdh.toml"], signed);
    assert_eq!(verify(&["--initdata", "app.toml"]).json(0)["initdata"], json!({ "covered": true, "differences": [] }));
    assert_eq!(verify(&["--initdata", "host.toml"]).json(3)["initdata"]["differences"], differences);
    let text = owner.run(&["policy", "verify", "env.json", "--key", "owner/policy.pub", "--initdata", "host.toml"]);
    assert!(text.out.contains(&format!("no: {words}")) && text.out.contains("signed with              cdh.toml (sha256 "), "{}", text.out);
}

#[test]
fn refuses_to_build_what_the_guest_would_refuse() {
    let owner = Owner::new();
    owner.build_signed("app.toml", "1").json(0);
    let other = ["--policy", "app.rego", "--policy-version", "1", "--sign-with", "other/policy.key", "--out", "x.toml"];
    owner.build(&other).fails_with(&["no good signature by a trusted key"]);
    let low = ["--policy", "app.rego", "--policy-version", "1", "--sign-with", "owner/policy.key", "--policy-min-version", "2"];
    owner.build(&[&low[..], &["--out", "x.toml"]].concat()).fails_with(&["version 1, expected at least 2"]);
    // An envelope that was signed for other documents.
    fs::write(owner.path("env.json"), owner.show("app.toml").json(0)["data"]["policy.dsse.json"].as_str().unwrap()).unwrap();
    owner.change("app.toml", "host.toml", ("10.0.0.1:5000", "10.0.0.66:5000"));
    let mixed = ["--json", "initdata", "build", "--from", "host.toml", "--policy-envelope", "env.json", "--out", "x.toml"];
    owner.run(&mixed).fails_with(&["`cdh.toml` was changed"]);
    assert!(!Path::new(&owner.path("x.toml")).exists());
    // Asked for, it is written all the same: that is how the guest's own refusal is tested.
    owner.run(&[&mixed[..], &["--skip-policy-verification"]].concat()).json(0);
    owner.build(&[&other[..], &["--skip-policy-verification"]].concat()).json(0);
    assert_eq!(owner.show("x.toml").json(3)["guest"]["accepts"], false);
}

#[test]
fn arguments_that_contradict_each_other_are_refused() {
    let owner = Owner::new();
    owner.build(&["--unsigned", "--out", "draft.toml"]).json(0);
    let sign = ["--policy", "app.rego", "--policy-version", "1", "--sign-with", "owner/policy.key"];
    for (args, word) in [
        (vec!["--policy-key", "owner/policy.pub"], "--policy"),
        (vec!["--policy-key", "owner/policy.pub", "--policy", "app.rego"], "--sign-with"),
        ([&["--policy-key", "owner/policy.pub", "--unsigned"], &sign[..]].concat(), "--unsigned"),
        (sign.to_vec(), "--policy-key"),
        ([&["--from", "draft.toml", "--insecure-registry", "x"], &sign[..]].concat(), "--from"),
        ([&["--from", "draft.toml", "--policy-key", "owner/policy.pub"], &sign[..]].concat(), "--from"),
        (vec!["--from", "draft.toml", "--unsigned"], "--from"),
        (vec!["--policy-key", "owner/policy.pub", "--policy-envelope", "env.json"], "--policy-envelope"),
        (vec!["--policy-envelope", "env.json"], "--from"),
    ] {
        let said = owner.run(&[&["initdata", "build", "--out", "x.toml"], &args[..]].concat());
        assert_eq!(said.code, 2, "{args:?}: {}{}", said.out, said.err);
        assert!(said.err.contains(word), "{args:?}: {}", said.err);
    }
    let said = owner.run(&["policy", "sign", "--policy", "app.rego", "--version", "1", "--key", "owner/policy.key", "--out", "env.json"]);
    assert!(said.code == 2 && said.err.contains("--initdata"), "{}", said.err);
}
