//! A broker for development by `kata-cc kbs run --dev`, and everything that `kata-cc kbs` administers, by the programs themselves on loopback.
//!
//! The broker's program is taken from beside this one; where it is not there yet, cargo is asked to build it.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// The broker's program.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let bin = Path::new(env!("CARGO_BIN_EXE_kata-cc")).parent().unwrap();
        let program = bin.join("kata-cc-kbs");
        if !program.exists() {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.args(["build", "--locked", "--offline", "-p", "kata-cc-kbs", "--target-dir"]).arg(bin.parent().unwrap());
            if bin.ends_with("release") {
                cargo.arg("--release");
            }
            assert!(cargo.status().unwrap().success(), "the broker cannot be built");
        }
        program
    })
}

/// `kata-cc kbs run --dev`, running.
struct Broker {
    child: Child,
    told: Value,
}

impl Broker {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kata-cc"))
            .args(["--json", "kbs", "run", "--dev", "--program"])
            .arg(program())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut text = String::new();
        for line in BufReader::new(child.stdout.as_mut().unwrap()).lines() {
            let line = line.unwrap();
            text.push_str(&line);
            if line == "}" {
                break;
            }
        }
        let told = serde_json::from_str(&text).unwrap_or_else(|error| {
            let mut why = String::new();
            child.stderr.as_mut().unwrap().read_to_string(&mut why).unwrap();
            panic!("{error}: {text}{why}")
        });
        Self { child, told }
    }

    fn text(&self, name: &str) -> &str {
        self.told[name].as_str().unwrap()
    }

    /// What a command said on stdout and stderr; it ended with `code`.
    #[track_caller]
    fn kbs(&self, code: i32, args: &[&str]) -> (String, String) {
        self.kbs_as(code, &["--admin-key", self.text("admin_key")], args)
    }

    #[track_caller]
    fn kbs_as(&self, code: i32, who: &[&str], args: &[&str]) -> (String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc"));
        command.args(["kbs", "--url", self.text("url"), "--ca", self.text("ca")]).args(who).args(args);
        for name in ["URL", "CA", "ADMIN_KEY", "TOKEN_FILE"] {
            command.env_remove(format!("KATA_CC_KBS_{name}"));
        }
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}: {out}{err}");
        (out, err)
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kbs(0, &[&["--json"], args].concat()).0).unwrap()
    }

    #[track_caller]
    fn refuses(&self, args: &[&str], words: &[&str]) {
        let (_, err) = self.kbs(1, args);
        for word in words {
            assert!(err.contains(word), "no {word:?} in: {err}");
        }
    }

    /// Ends it by a signal to the command, as Ctrl-C does, and waits until it has.
    fn end(&mut self, with: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), with).unwrap();
        let since = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(since.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(self.child.wait().unwrap().success());
    }

    fn listens(&self) -> bool {
        TcpStream::connect(self.text("url").strip_prefix("https://").unwrap()).is_ok()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX)), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

fn kata_cc(args: &[&str], dir: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_kata-cc")).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn it_serves_on_loopback_until_it_is_told_to_end_and_leaves_nothing() {
    for with in [Signal::SIGINT, Signal::SIGTERM] {
        let mut broker = Broker::start(&[]);
        assert!(broker.text("url").starts_with("https://127.0.0.1:"), "{}", broker.told);
        assert!(broker.listens());
        let (out, _) = broker.kbs(0, &["health"]);
        assert!(out.contains("alive  yes") && out.contains("ready  yes"), "{out}");
        broker.end(with);
        assert!(!broker.listens());
        assert!(!Path::new(broker.text("dir")).exists());
    }
}

#[test]
fn a_folder_that_is_kept_is_the_same_broker_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker").display().to_string();
    let mut broker = Broker::start(&["--dir", &path, "--keep"]);
    fs::write(dir.path().join("secret"), "s").unwrap();
    let secret = dir.path().join("secret").display().to_string();
    broker.kbs(0, &["set-resource", "default/key/1", &secret]);
    broker.end(Signal::SIGTERM);
    let mut again = Broker::start(&["--dir", &path]);
    assert_eq!(again.json(&["list-resources"])["resources"], json!(["default/key/1"]));
    again.end(Signal::SIGTERM);
    assert!(Path::new(&path).join("kbs.toml").exists(), "what another run kept is not removed");
}

#[test]
fn a_broker_that_cannot_start_is_explained_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker");
    let run = |program: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc"));
        command.args(["kbs", "run", "--dev", "--dir"]).arg(&path).arg("--program").arg(program).args(more);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(!path.exists());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(&dir.path().join("absent"), &[]).contains("--program"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let told = run(program(), &["--port", &port]);
    assert!(told.contains("did not start") && told.contains("cannot listen"), "{told}");
    fs::write(dir.path().join("ark.pem"), "no certificate").unwrap();
    let told = run(program(), &["--tee-sim", &dir.path().display().to_string()]);
    assert!(told.contains("did not start") && told.contains("simulated root"), "{told}");
}

#[test]
fn everything_that_is_administered_can_be_listed_set_and_reset() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    };
    let broker = Broker::start(&[]);

    let secret = file("secret", "CANARY-SECRET");
    broker.kbs(0, &["set-resource", "default/key/1", &secret]);
    broker.kbs(0, &["set-resource", "other/key/1", &secret]);
    assert_eq!(broker.json(&["list-resources"])["resources"], json!(["default/key/1", "other/key/1"]));
    assert_eq!(broker.json(&["list-resources", "other"])["resources"], json!(["other/key/1"]));
    let (out, err) = broker.kbs(0, &["get-resource", "default/key/1"]);
    assert!(out.contains("is there") && !out.contains("CANARY") && !err.contains("CANARY"), "{out}{err}");
    broker.kbs(3, &["get-resource", "default/key/2"]);
    broker.kbs(0, &["delete-resource", "other/key/1"]);
    broker.refuses(&["delete-resource", "other/key/1"], &["404", "check the name"]);
    let big = file("big", &"x".repeat(2 * 1024 * 1024 + 1));
    broker.refuses(&["set-resource", "default/key/1", &big], &["413", "2 MiB"]);

    let (built_in, _) = broker.kbs(0, &["get-resource-policy"]);
    let policy = file("resource.rego", "package policy\nimport rego.v1\ndefault allow := false\n");
    broker.kbs(0, &["set-resource-policy", &policy]);
    assert_eq!(broker.kbs(0, &["get-resource-policy"]).0, fs::read_to_string(&policy).unwrap());
    broker.kbs(0, &["reset-resource-policy"]);
    assert_eq!(broker.kbs(0, &["get-resource-policy"]).0, built_in);
    let (built_in, _) = broker.kbs(0, &["get-attestation-policy"]);
    let policy = file("attestation.rego", "package policy\nimport rego.v1\ntrust_claims := {\"hardware\": 97}\n");
    broker.kbs(0, &["set-attestation-policy", &policy]);
    assert_eq!(broker.json(&["list-attestation-policies"])["policies"], json!([{"policy_id": "default_cpu", "built_in": false}]));
    broker.kbs(0, &["reset-attestation-policy"]);
    assert_eq!(broker.kbs(0, &["get-attestation-policy"]).0, built_in);
    broker.refuses(&["set-resource-policy", &file("bad.rego", "no rego")], &["400"]);

    let (who, _) = broker.kbs(0, &["whoami"]);
    assert!(who.starts_with("key ") && who.contains(" as admin") && who.contains("reference:write"), "{who}");
    let auditor = ["--admin-key", broker.text("admin_key"), "--role", "auditor"];
    let (who, _) = broker.kbs_as(0, &auditor, &["whoami"]);
    assert!(who.contains(" as auditor") && !who.contains("write"), "{who}");
    let (_, err) = broker.kbs_as(1, &auditor, &["set-resource", "default/key/1", &secret]);
    assert!(err.contains("403") && err.contains("kata-cc kbs whoami"), "{err}");
    let token = file("token", "a.b.c\n");
    let (_, err) = broker.kbs_as(1, &["--token-file", &token], &["whoami"]);
    assert!(err.contains("401") && err.contains("--token-file"), "{err}");
    let (_, err) = broker.kbs_as(1, &[], &["whoami"]);
    assert!(err.contains("who asks?"), "{err}");

    let records = broker.json(&["audit", "--action", "write-resource"]);
    assert_eq!(records["decisions"].as_array().unwrap().len(), 2);
    let id = records["decisions"][0]["id"].as_u64().unwrap();
    let before = broker.json(&["audit", "--action", "write-resource", "--before", &id.to_string()]);
    assert_eq!(before["decisions"].as_array().unwrap().len(), 1);
    assert!(broker.kbs(0, &["explain", &id.to_string()]).0.contains("write-resource"));
    broker.refuses(&["explain", "999999"], &["404"]);
    let log = fs::read_to_string(broker.text("log")).unwrap();
    assert!(log.contains("write-resource") && !log.contains("CANARY"), "the log has decisions and no secrets");
}

#[test]
fn reference_values_come_signed_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&[]);
    let sign = |out: &str, serial: &str, kind: &str| {
        let about = ["--name", "owner", "--release", "1", "--serial", serial, "--kind", kind, "--out", out];
        let values = ["measure", "values", "--value", "snp_bootloader=4", "--sign", broker.text("reference_key")];
        kata_cc(&[&values[..], &about].concat(), dir.path());
        dir.path().join(out).display().to_string()
    };
    broker.refuses(&["set-reference-value", "snp_bootloader", "4", "--as-json"], &["403", "unsigned", "configuration"]);
    let (second, first) = (sign("second", "2", "production"), sign("first", "1", "production"));
    let taken = broker.json(&["set-reference-manifest", &second]);
    assert_eq!((&taken["outcome"], &taken["standing"]), (&json!("new"), &json!("in-force")));
    broker.refuses(&["set-reference-manifest", &first], &["409", "--allow-rollback"]);
    assert_eq!(broker.json(&["set-reference-manifest", &first, "--allow-rollback"])["replaced"], 2);
    broker.refuses(&["set-reference-manifest", &sign("simulation", "3", "simulation")], &["403", "simulation", "configuration"]);
    broker.refuses(&["set-reference-manifest", broker.text("ca")], &["no signed manifest"]);

    assert_eq!(broker.json(&["list-reference-values"])["values"], json!({"snp_bootloader": [4]}));
    assert_eq!(broker.kbs(0, &["get-reference-value", "snp_bootloader"]).0, "4\n");
    broker.refuses(&["delete-reference-value", "snp_bootloader"], &["404", "manifest"]);
    let (listed, _) = broker.kbs(0, &["list-reference-manifests"]);
    assert!(listed.contains("owner 1 serial 1") && listed.contains("in-force") && listed.contains("snp_bootloader (1)"), "{listed}");
    let out = dir.path().join("fetched").display().to_string();
    broker.kbs(0, &["get-reference-manifest", "owner", "--out", &out]);
    assert_eq!(fs::read(&out).unwrap(), fs::read(&first).unwrap());
    let key = Path::new(broker.text("dir")).join("reference.pub").display().to_string();
    kata_cc(&["verify", "manifest", &out, "--key", &key], dir.path());
    broker.kbs(0, &["delete-reference-manifest", "owner"]);
    assert_eq!(broker.json(&["list-reference-manifests"])["manifests"], json!([]));
    broker.refuses(&["get-reference-value", "snp_bootloader"], &["404"]);
    let audit = broker.json(&["audit", "--action", "set-reference-manifest"]);
    assert_eq!(audit["decisions"].as_array().unwrap().len(), 5);
}

/// A self-signed certificate will do: nothing is signed under it here.
#[test]
fn a_simulated_root_brings_the_policy_for_simulations_and_takes_their_manifests() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ark.pem"), fs::read(env!("CARGO_MANIFEST_DIR").to_owned() + "/tests/simulated-root.pem").unwrap()).unwrap();
    let broker = Broker::start(&["--tee-sim", &dir.path().display().to_string()]);
    assert_eq!(broker.told["simulated"], true);
    assert!(broker.kbs(0, &["get-attestation-policy"]).0.contains("simulated == true"));
    let sign =
        ["--sign", broker.text("reference_key"), "--name", "g", "--release", "1", "--serial", "1", "--kind", "simulation", "-o", "m"];
    kata_cc(&[&["measure", "values", "--text", "x=y"], &sign[..]].concat(), dir.path());
    assert_eq!(broker.json(&["set-reference-manifest", &dir.path().join("m").display().to_string()])["standing"], "in-force");
}
