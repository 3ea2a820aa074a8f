//! Resources in a real OpenBao, whose interface is Vault's. `cargo xtask test` runs these; by hand, with the program's path:
//! `KATA_CC_BAO=/usr/bin/bao cargo test -p kata-cc-kbs --test vault -- --ignored`.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use broker::{SECRET, TestBroker, body, refused};
use kata_cc_kbs::config;
use kata_cc_kbs::resources::{Resources, Vault, VaultError};
use kata_cc_kbs::seal::write_new_private;
use kata_cc_kbs_protocol::ResourcePath;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROOT: &str = "CANARY-root-token";
/// What the user guide says the broker's token needs.
const POLICY: &str = r#"path "secret/data/kbs/*" { capabilities = ["create", "read", "update"] }
path "secret/metadata/kbs/*" { capabilities = ["read", "list", "delete"] }"#;

/// A server with everything in memory, which ends with the test.
struct Bao {
    dir: tempfile::TempDir,
    address: SocketAddr,
    process: Child,
}

impl Bao {
    fn start() -> Self {
        Self::with(&[], |bao| {
            std::net::TcpStream::connect(bao.address).is_ok() && http::call(bao.address, "GET", "/v1/sys/health", &[], &[]).status == 200
        })
    }

    fn with(arguments: &[&str], is_up: impl Fn(&Self) -> bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let program = std::env::var_os("KATA_CC_BAO").unwrap_or("bao".into());
        let mut bao = Command::new(program);
        bao.args(["server", "-dev", "-dev-no-store-token"]).arg(format!("-dev-root-token-id={ROOT}"));
        bao.arg(format!("-dev-listen-address={address}"))
            .args(arguments)
            .env("HOME", dir.path())
            .env("TMPDIR", dir.path())
            .current_dir(dir.path());
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = bao.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let process = process.expect("these tests need OpenBao: its program on the PATH, or its path in KATA_CC_BAO");
        let bao = Self { dir, address, process };
        let end = Instant::now() + Duration::from_secs(60);
        while !is_up(&bao) {
            assert!(Instant::now() < end, "{}", bao.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        bao
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Asks it behind the broker's back.
    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.ask_in("", method, path, body)
    }

    fn ask_in(&self, namespace: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut headers = vec![("x-vault-token", ROOT.to_owned())];
        if !namespace.is_empty() {
            headers.push(("x-vault-namespace", namespace.to_owned()));
        }
        let answer = http::call(self.address, method, &format!("/v1/{path}"), &headers, body.to_string().as_bytes());
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
    }

    #[track_caller]
    fn put(&self, path: &str, fields: Value) {
        assert_eq!(self.ask("POST", &format!("secret/data/kbs/{path}"), &json!({"data": fields})).0, 200);
    }

    /// A token that may do what the policy says.
    fn token(&self, policy: &str) -> String {
        assert_eq!(self.ask("PUT", "sys/policies/acl/test", &json!({"policy": policy})).0, 204);
        let (status, made) = self.ask("POST", "auth/token/create", &json!({"policies": ["test"]}));
        assert_eq!(status, 200);
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    fn token_file(&self) -> PathBuf {
        self.dir.path().join("token")
    }

    fn renew(&self, token: &str) {
        let _ = std::fs::remove_file(self.token_file());
        write_new_private(&self.token_file(), format!("{token}\n").as_bytes()).unwrap();
    }

    fn config(&self) -> config::Vault {
        if !self.token_file().exists() {
            self.renew(ROOT);
        }
        config::Vault {
            address: format!("http://{}", self.address).parse().unwrap(),
            mount: "secret".into(),
            prefix: "kbs".into(),
            token_file: self.token_file(),
            ca: None,
            namespace: None,
        }
    }

    fn broker(&self, config: &config::Vault) -> TestBroker {
        let vault = Vault::configured(config).unwrap();
        TestBroker::changed(|_| (), |broker| broker.with_resources(Resources::Vault(vault.into())))
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn path(text: &str) -> ResourcePath {
    text.parse().unwrap()
}

/// Waits until the broker answers like that.
#[track_caller]
fn until(broker: &TestBroker, status: u16, word: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let ready = broker.get("/readyz");
        if ready.status == status {
            return assert!(body(&ready).contains(word), "{}", body(&ready));
        }
        assert!(Instant::now() < end, "{}: {}", ready.status, body(&ready));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "needs OpenBao"]
fn resources_are_in_the_vault_and_only_there() {
    let bao = Bao::start();
    bao.renew(&bao.token(POLICY));
    let broker = bao.broker(&bao.config());
    assert_eq!(body(&broker.admin("GET", "/kbs/v0/resource", &[])), r#"{"resources":[]}"#);
    let broker = broker.ready();
    assert_eq!(broker.get("/readyz").status, 200);
    let attested = broker.attest();
    let read = |name: &str| broker.send(&attested.get_resource(&path(name)));
    assert_eq!(attested.open_resource(&read("default/key/1")).unwrap().expose(), SECRET);
    let (_, kept) = bao.ask("GET", "secret/data/kbs/default/key/1", &json!({}));
    assert_eq!(kept["data"]["data"], json!({"data": STANDARD.encode(SECRET)}), "as CoCo's broker writes it");

    // What was there before the broker, with more beside it; bytes that are no text; nothing at all.
    bao.put("team/db/password", json!({"data": STANDARD.encode("by hand"), "owner": "somebody"}));
    assert_eq!(attested.open_resource(&read("team/db/password")).unwrap().expose(), b"by hand");
    let large: Vec<u8> = (0..2 * 1024 * 1024).map(|i: u32| (i % 251) as u8).collect();
    for value in [large.as_slice(), &[], &[0xff, 0]] {
        assert_eq!(broker.admin("POST", "/kbs/v0/resource/team/bytes/1", value).status, 200);
        assert_eq!(attested.open_resource(&read("team/bytes/1")).unwrap().expose(), value);
    }
    let outcomes: Vec<_> = broker.audit("action=write-resource").iter().map(|row| row["outcome"].clone()).collect();
    assert_eq!(outcomes, ["replaced", "replaced", "created", "created"], "newest first");

    // Names are those of resources: neither deeper nor less deep, nor such as no guest could ask for.
    for other in ["lonely", "two/levels", "a/b/c/d", "team/db/with space", "team/.hidden/x"] {
        bao.put(&other.replace(' ', "%20"), json!({"data": ""}));
    }
    let names = broker.admin("GET", "/kbs/v0/resource", &[]);
    assert_eq!(body(&names), r#"{"resources":["default/key/1","team/bytes/1","team/db/password"]}"#);

    // Deleted by the broker, it is gone with all versions; deleted in the Vault, it is not there.
    assert_eq!(broker.admin("DELETE", "/kbs/v0/resource/team/bytes/1", &[]).status, 200);
    assert_eq!(bao.ask("GET", "secret/metadata/kbs/team/bytes/1", &json!({})).0, 404);
    refused(&broker.admin("DELETE", "/kbs/v0/resource/team/bytes/1", &[]), 404, "ResourceNotFound");
    assert_eq!(bao.ask("DELETE", "secret/data/kbs/team/db/password", &json!({})).0, 204);
    for gone in ["team/bytes/1", "team/db/password", "team/db/never"] {
        refused(&read(gone), 404, "ResourceNotFound");
    }
    // Written again, it is there again.
    assert_eq!(broker.admin("POST", "/kbs/v0/resource/team/db/password", b"new").status, 200);
    assert_eq!(attested.open_resource(&read("team/db/password")).unwrap().expose(), b"new");
    assert!(!bao.log().contains("by hand"));
}

#[test]
#[ignore = "needs OpenBao"]
fn a_mount_of_its_own_in_a_namespace_without_a_prefix() {
    let bao = Bao::start();
    assert_eq!(bao.ask("POST", "sys/namespaces/team", &json!({})).0, 200);
    let kv2 = json!({"type": "kv", "options": {"version": "2"}});
    assert_eq!(bao.ask_in("team", "POST", "sys/mounts/deep/kv", &kv2).0, 204);
    let config = config::Vault { mount: "deep/kv".into(), prefix: String::new(), namespace: Some("team".into()), ..bao.config() };
    let broker = bao.broker(&config).ready();
    assert_eq!(broker.get("/readyz").status, 200);
    assert_eq!(bao.ask_in("team", "GET", "deep/kv/data/default/key/1", &json!({})).1["data"]["data"]["data"], STANDARD.encode(SECRET));
    assert_eq!(body(&broker.admin("GET", "/kbs/v0/resource", &[])), r#"{"resources":["default/key/1"]}"#);
    let elsewhere = bao.broker(&config::Vault { namespace: None, ..config });
    refused(&elsewhere.admin("GET", "/kbs/v0/resource", &[]), 502, "no secrets engine at deep/kv");
}

#[test]
#[ignore = "needs OpenBao"]
fn what_the_vault_refuses_is_an_error_without_token_and_secret() {
    let bao = Bao::start();
    let broker = bao.broker(&bao.config()).ready();
    let attested = broker.attest();
    let read = |broker: &TestBroker, name: &str| broker.send(&attested.get_resource(&path(name)));

    // A token that is no longer good, one that may not, and a good one, without a restart.
    let good = bao.token(POLICY);
    bao.renew(&good);
    assert_eq!(read(&broker, "default/key/1").status, 200);
    assert_eq!(bao.ask("POST", "auth/token/revoke", &json!({"token": good})).0, 204);
    let denied = read(&broker, "default/key/1");
    refused(&denied, 502, "denies it");
    assert!(body(&denied).contains("may not read under secret") && !body(&denied).contains(&good), "{}", body(&denied));
    bao.renew(&bao.token(r#"path "secret/data/kbs/*" { capabilities = ["read"] }"#));
    assert_eq!(read(&broker, "default/key/1").status, 200);
    until(&broker, 200, "ok");
    refused(&broker.admin("POST", "/kbs/v0/resource/default/key/1", b"x"), 502, "may not write under secret");
    refused(&broker.admin("DELETE", "/kbs/v0/resource/default/key/1", b""), 502, "may not delete under secret");
    refused(&broker.admin("GET", "/kbs/v0/resource", b""), 502, "may not list under secret");
    // The audit log says that nothing was changed.
    assert_eq!(broker.audit("action=delete-resource").len(), 0);
    bao.renew(ROOT);

    // Values that are no resources.
    for (fields, expected) in [
        (json!({"value": "CANARY-secret"}), "a field `data`, a string"),
        (json!({"data": {"password": "CANARY-secret"}}), "a field `data`, a string"),
        (json!({"data": 5}), "a field `data`, a string"),
        (json!({"data": "CANARY secret"}), "standard base64"),
        (json!({"data": "\u{e9}\"CANARY"}), "standard base64"),
    ] {
        bao.put("default/key/odd", fields);
        let answer = read(&broker, "default/key/odd");
        refused(&answer, 502, "no resource");
        let said = body(&answer);
        assert!(said.contains("secret/kbs/default/key/odd") && said.contains(expected) && !said.contains("CANARY"), "{said}");
    }

    // Engines that are not there, or of another kind.
    let other = bao.broker(&config::Vault { mount: "nowhere".into(), ..bao.config() });
    refused(&other.admin("POST", "/kbs/v0/resource/a/b/c", b"x"), 502, "may not see an engine, if there is one, under nowhere");
    refused(&other.admin("GET", "/kbs/v0/resource", b""), 502, "no secrets engine at nowhere");
    refused(&other.admin("DELETE", "/kbs/v0/resource/a/b/c", b""), 502, "no secrets engine at nowhere");
    refused(&other.get("/readyz"), 502, "may not see an engine, if there is one, under nowhere");
    assert_eq!(bao.ask("POST", "sys/mounts/old", &json!({"type": "kv", "options": {"version": "1"}})).0, 204);
    let old = bao.broker(&config::Vault { mount: "old".into(), ..bao.config() });
    refused(&old.get("/readyz"), 502, "no KV secrets engine of version 2");
    refused(&old.admin("POST", "/kbs/v0/resource/a/b/c", b"x"), 502, "no KV secrets engine of version 2");
    assert_eq!(bao.ask("LIST", "old/data/", &json!({})).0, 404, "nothing was written");
}

#[test]
#[ignore = "needs OpenBao"]
fn nothing_is_released_while_the_vault_is_sealed_or_away() {
    let mut bao = Bao::start();
    let broker = bao.broker(&bao.config()).ready();
    let attested = broker.attest();
    let read = || broker.send(&attested.get_resource(&path("default/key/1")));
    assert_eq!((read().status, broker.get("/readyz").status), (200, 200));
    assert_eq!(bao.ask("PUT", "sys/seal", &json!({})).0, 204);
    refused(&read(), 503, "VaultUnavailable");
    until(&broker, 503, "sealed");
    // What is in the store goes on.
    assert_eq!((broker.get("/healthz").status, broker.admin("GET", "/kbs/v0/reference-value", &[]).status), (200, 200));
    broker.attest();
    let log = bao.log();
    let key = log.lines().find_map(|line| line.strip_prefix("Unseal Key: ")).unwrap().trim();
    assert_eq!(bao.ask("PUT", "sys/unseal", &json!({"key": key})).0, 200);
    until(&broker, 200, "ok");
    assert_eq!(attested.open_resource(&read()).unwrap().expose(), SECRET);
    bao.process.kill().unwrap();
    bao.process.wait().unwrap();
    refused(&read(), 503, "no connection");
    until(&broker, 503, "VaultUnavailable");
    for failed in [broker.admin("POST", "/kbs/v0/resource/a/b/c", b"x"), broker.admin("GET", "/kbs/v0/resource", b"")] {
        refused(&failed, 503, "VaultUnavailable");
    }
}

#[tokio::test]
#[ignore = "needs OpenBao"]
async fn a_vault_is_known_by_the_authority_that_is_named() {
    // It says the authority's file when it has been left alone for a moment.
    let bao = Bao::with(&["-dev-tls"], |bao| bao.log().contains("Root Token"));
    let certificate = |line: &str| Some(PathBuf::from(line.split("_CACERT='").nth(1)?.trim_end().trim_end_matches('\'')));
    let log = bao.log();
    let ca = log.lines().find_map(certificate).unwrap_or_else(|| panic!("no authority is named: {log}"));
    let config = config::Vault { address: format!("https://{}", bao.address).parse().unwrap(), ca: Some(ca), ..bao.config() };
    let vault = Vault::configured(&config).unwrap();
    vault.ready().await.unwrap();
    assert!(!vault.put(&path("a/b/c"), b"x").await.unwrap());
    assert_eq!(vault.get(&path("a/b/c")).await.unwrap().unwrap().as_slice(), b"x");
    let other = bao.dir.path().join("other.pem");
    std::fs::write(&other, rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap().cert.pem()).unwrap();
    for ca in [Some(other), None] {
        let stranger = Vault::configured(&config::Vault { ca, ..config.clone() }).unwrap();
        assert!(matches!(stranger.get(&path("a/b/c")).await, Err(VaultError::Unavailable(why)) if why.contains("certificate")));
        assert!(stranger.ready().await.is_err());
    }
}
