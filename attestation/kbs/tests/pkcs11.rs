//! The store's key wrapped by a key in an HSM: a broker's process with SoftHSM, whose tokens are in a directory of the test.
//! `cargo xtask test` runs these; by hand: `cargo test -p kata-cc-kbs --test pkcs11 -- --ignored`.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod http;

use kata_cc_kbs::seal::write_new_private;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "CANARY-PIN-4711";

/// An HSM with a token and a key of its own, and a directory for a broker.
struct Hsm {
    dir: tempfile::TempDir,
}

/// A broker's process, which ends with the test.
struct Broker {
    process: Child,
    address: std::net::SocketAddr,
}

impl Broker {
    /// What it makes once and seals: its key for tokens, as it shows it.
    fn token_key(&self) -> String {
        let shown = http::call(self.address, "GET", "/.well-known/jwks.json", &[], &[]);
        assert_eq!(shown.status, 200);
        String::from_utf8(shown.body).unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Hsm {
    fn new() -> Self {
        let hsm = Self { dir: tempfile::tempdir().unwrap() };
        let tokens = hsm.path("tokens");
        std::fs::create_dir(&tokens).unwrap();
        let settings = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
        std::fs::write(hsm.path("softhsm2.conf"), settings).unwrap();
        write_new_private(&hsm.path("pin"), format!("{PIN}\n").as_bytes()).unwrap();
        hsm.run("softhsm2-util", &["--init-token", "--free", "--label", "kbs", "--pin", PIN, "--so-pin", "12345678"]);
        hsm.key("kbs-store", 32, "--sensitive");
        hsm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn wrapped(&self) -> PathBuf {
        self.path("data/store.key.wrapped")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SOFTHSM2_CONF", self.path("softhsm2.conf")).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, program: &str, arguments: &[&str]) {
        let done = self.command(program).args(arguments).output();
        let done = done.unwrap_or_else(|e| panic!("these tests need Debian's packages softhsm2 and opensc: {program}: {e}"));
        assert!(done.status.success(), "{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    }

    /// Makes a key as the broker's messages say it is made.
    fn key(&self, label: &str, bytes: usize, access: &str) {
        let kind = format!("AES:{bytes}");
        let of_token = ["--module", MODULE, "--token-label", "kbs", "--login", "--pin", PIN];
        self.run("pkcs11-tool", &[&of_token[..], &["--keygen", "--key-type", &kind, "--label", label, access]].concat());
    }

    /// The configuration, with settings of `[store.pkcs11]` in place of the right ones.
    fn config(&self, change: &[(&str, &str)]) -> PathBuf {
        let pin = self.path("pin").display().to_string();
        let mut settings = [("module", MODULE), ("token", "kbs"), ("key", "kbs-store"), ("pin_file", pin.as_str())];
        for (name, value) in change {
            settings.iter_mut().find(|(known, _)| known == name).unwrap().1 = value;
        }
        let table: String = settings.iter().map(|(name, value)| format!("{name} = {value:?}\n")).collect();
        self.written(&format!("[store.pkcs11]\n{table}"))
    }

    fn written(&self, store: &str) -> PathBuf {
        let path = self.path("kbs.toml");
        let text = format!("listen = \"127.0.0.1:0\"\ninsecure_http = true\ndata_dir = {:?}\n{store}", self.path("data"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs the broker's program; where it listens, or what it said when it ended.
    fn broker(&self, config: &Path, arguments: &[&str]) -> Result<Broker, (bool, String)> {
        let mut command = self.command(env!("CARGO_BIN_EXE_kata-cc-kbs"));
        command.arg("--config").arg(config).args(arguments).env("RUST_LOG", "trace");
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if let Some(address) = line.trim().strip_prefix("http://") {
            return Ok(Broker { process, address: address.parse().unwrap() });
        }
        let mut said = String::new();
        process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!said.contains("CANARY"), "{said}");
        Err((process.wait().unwrap().success(), said))
    }

    #[track_caller]
    fn start(&self, config: &Path) -> Broker {
        self.broker(config, &[]).unwrap_or_else(|(_, said)| panic!("the broker did not start: {said}"))
    }

    #[track_caller]
    fn done(&self, config: &Path, arguments: &[&str]) -> String {
        let Err((true, said)) = self.broker(config, arguments).map(|_| ()) else { panic!("{arguments:?} failed") };
        said
    }

    /// That it does not go on, and says why.
    #[track_caller]
    fn refused(&self, config: &Path, arguments: &[&str], because: &[&str]) {
        let Err((succeeded, said)) = self.broker(config, arguments).map(|_| ()) else { panic!("the broker started") };
        assert!(!succeeded, "{said}");
        for word in because {
            assert!(said.contains(word), "{said}");
        }
    }
}

#[test]
#[ignore = "needs SoftHSM"]
fn the_stores_key_is_wrapped_by_a_key_of_the_hsm_and_can_be_changed() {
    let hsm = Hsm::new();
    let config = hsm.config(&[]);
    hsm.done(&config, &["--check-config"]);
    assert!(!hsm.path("data").exists(), "a check makes nothing");
    hsm.refused(&config, &["--rotate-store-key"], &["there is no key in", "store.key.wrapped"]);
    let key = hsm.start(&config).token_key();
    let first = std::fs::read(hsm.wrapped()).unwrap();
    assert_eq!(std::fs::metadata(hsm.wrapped()).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!hsm.path("data/store.key").exists());
    assert_eq!(hsm.start(&config).token_key(), key, "the same key again");
    hsm.done(&config, &["--check-config"]);

    assert!(hsm.done(&config, &["--rotate-store-key"]).contains("1 stored values"));
    let second = std::fs::read(hsm.wrapped()).unwrap();
    assert_ne!(second, first);
    assert_eq!(hsm.start(&config).token_key(), key, "sealed anew");
    std::fs::write(hsm.wrapped(), first).unwrap();
    hsm.refused(&config, &[], &["sealed with another key"]);

    // A change that was cut off before its end: no broker starts, and the same command finishes it.
    std::fs::write(hsm.path("data/store.key.wrapped.new"), second).unwrap();
    hsm.refused(&config, &[], &["was cut off", "--rotate-store-key"]);
    assert!(hsm.done(&config, &["--rotate-store-key"]).contains("0 stored values"));
    assert_eq!(hsm.start(&config).token_key(), key);
}

#[test]
#[ignore = "needs SoftHSM"]
fn an_hsm_that_is_not_as_it_should_be_is_refused_by_name() {
    let hsm = Hsm::new();
    hsm.key("loose", 32, "--extractable");
    hsm.key("short", 16, "--sensitive");
    hsm.key("twice", 32, "--sensitive");
    hsm.key("twice", 32, "--sensitive");
    write_new_private(&hsm.path("wrong"), b"CANARY-wrong").unwrap();
    std::fs::write(hsm.path("open"), PIN).unwrap();
    std::fs::set_permissions(hsm.path("open"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let (wrong, open) = (hsm.path("wrong").display().to_string(), hsm.path("open").display().to_string());
    let kbs_toml = hsm.path("kbs.toml").display().to_string();
    for (name, value, because) in [
        ("pin_file", wrong.as_str(), &["is not the one of the token's user", &wrong, "token \"kbs\""][..]),
        ("pin_file", &open, &["may be read by others", "chmod 600", &open]),
        ("pin_file", "/nowhere/pin", &["cannot read the PIN from /nowhere/pin"]),
        ("token", "other", &["no such token", "[\"kbs\"]", "softhsm2-util --init-token --free --label \"other\""]),
        ("key", "other", &["no such AES key", "pkcs11-tool --module", "--token-label \"kbs\"", "--label \"other\" --sensitive"]),
        ("key", "loose", &["may leave the HSM", "CKA_SENSITIVE false", "CKA_EXTRACTABLE true", "key \"loose\"", "--sensitive"]),
        ("key", "short", &["has 16 bytes, expected 32"]),
        ("key", "twice", &["2 AES keys of this label"]),
        ("module", "/nowhere/hsm.so", &["cannot be loaded", "/nowhere/hsm.so"]),
        ("module", &kbs_toml, &["cannot be loaded", "kbs.toml"]),
    ] {
        let config = hsm.config(&[(name, value)]);
        hsm.refused(&config, &["--check-config"], because);
        hsm.refused(&config, &[], because);
        assert!(!hsm.wrapped().exists(), "{name} = {value}");
    }
    // What the module itself needs.
    std::fs::remove_file(hsm.path("softhsm2.conf")).unwrap();
    hsm.refused(&hsm.config(&[]), &["--check-config"], &["does not answer", "SOFTHSM2_CONF"]);
}

#[test]
#[ignore = "needs SoftHSM"]
fn a_wrapped_key_that_is_not_the_stores_is_refused_by_name() {
    let hsm = Hsm::new();
    let config = hsm.config(&[]);
    let key = hsm.start(&config).token_key();
    let text = std::fs::read_to_string(hsm.wrapped()).unwrap();
    let good: serde_json::Value = serde_json::from_str(&text).unwrap();
    let flipped = |name: &str| {
        let mut changed = good.clone();
        let value = good[name].as_str().unwrap();
        let other = if value.starts_with('A') { "B" } else { "A" };
        changed[name] = format!("{other}{}", &value[1..]).into();
        changed.to_string()
    };
    let with = |name: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        changed[name] = value;
        changed.to_string()
    };
    let (opens, form) = ("does not open: it was changed, or another key has wrapped it", "is no wrapped key");
    for (text, because) in [
        (flipped("iv"), opens),
        (flipped("data_key"), opens),
        (with("data_key", "".into()), opens),
        (with("iv", "AAAA".into()), form),
        (with("version", 2.into()), form),
        (with("mechanism", "CKM_AES_CBC".into()), form),
        (with("more", 1.into()), form),
        (String::new(), form),
        (" ".repeat(5000) + &text, form),
    ] {
        std::fs::write(hsm.wrapped(), &text).unwrap();
        hsm.refused(&config, &[], &[because, "store.key.wrapped"]);
        hsm.refused(&config, &["--check-config"], &[because]);
        assert_eq!(std::fs::read_to_string(hsm.wrapped()).unwrap(), text, "it is left as it is");
    }
    std::fs::write(hsm.wrapped(), &text).unwrap();
    hsm.key("another", 32, "--sensitive");
    hsm.refused(&hsm.config(&[("key", "another")]), &[], &[opens, "key \"another\""]);
    std::fs::remove_file(hsm.wrapped()).unwrap();
    hsm.refused(&hsm.config(&[]), &[], &["store.key.wrapped", "is missing", "restore it"]);
    assert!(!hsm.wrapped().exists(), "no new key for an old database");
    std::fs::write(hsm.wrapped(), &text).unwrap();
    assert_eq!(hsm.start(&config).token_key(), key);
}

#[test]
#[ignore = "needs SoftHSM"]
fn a_store_with_a_key_file_goes_over_to_the_hsm() {
    let hsm = Hsm::new();
    let plain = hsm.written("");
    let key = hsm.start(&plain).token_key();
    let file = hsm.path("data/store.key").display().to_string();
    hsm.refused(&plain, &["--wrap-store-key", &file], &["`[store.pkcs11]` is not configured"]);
    let config = hsm.config(&[]);
    hsm.refused(&config, &[], &["store.key.wrapped", "is missing", "--wrap-store-key"]);
    hsm.refused(&config, &["--wrap-store-key", "/nowhere/key"], &["no key file /nowhere/key"]);
    assert!(hsm.done(&config, &["--wrap-store-key", &file]).contains("--rotate-store-key"));
    hsm.refused(&config, &["--wrap-store-key", &file], &["store.key.wrapped", "exists"]);
    hsm.done(&config, &["--rotate-store-key"]);
    assert_eq!(hsm.start(&config).token_key(), key);
}
