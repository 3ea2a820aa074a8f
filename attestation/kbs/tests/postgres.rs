//! The store in a real PostgreSQL, alone and under two brokers. `cargo xtask test` runs these; by hand:
//! `cargo test -p kata-cc-kbs --test postgres -- --ignored`.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;
mod server;
mod suite;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use broker::{SECRET, TestBroker, evidence, refused};
use kata_cc_evidence::TeeType;
use kata_cc_kbs::audit::{Action, Decision};
use kata_cc_kbs::config;
use kata_cc_kbs::seal::{SealError, write_new_private};
use kata_cc_kbs::session::{MAX_TOKENS, MAX_WAITING, SessionError};
use kata_cc_kbs::store::rotate::{RotateError, rotate};
use kata_cc_kbs::store::{AuditQuery, PolicyName, ReferenceValues, Store, StoreError};
use kata_cc_kbs_protocol::{ClientSession, ResourcePath, TokenSigner};
use serde_json::json;
use server::Server;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use suite::path;
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

/// What stores work on. Never dropped.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());

/// A broker's directory with the key that all brokers of these tests have.
fn key_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_new_private(&dir.path().join("store.key"), &[7; 32]).unwrap();
    dir
}

fn settings(server: &Server) -> config::Store {
    config::Store { postgres: Some(server.target("kbs")), ..config::Store::default() }
}

fn open_with(config: &config::Store, dir: &Path) -> Result<Store, StoreError> {
    RUNTIME.block_on(Store::configured(config, dir))
}

fn open(server: &Server) -> Store {
    open_with(&settings(server), key_dir().path()).unwrap()
}

/// A look behind the store's back.
fn sql(server: &Server, text: &str) -> Vec<String> {
    RUNTIME.block_on(async {
        let (client, connection) = tokio_postgres::connect(&server.target("kbs"), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let messages = client.simple_query(text).await.unwrap();
        let row = |message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|i| row.get(i).unwrap_or("")).collect::<Vec<_>>().join("|"))
            }
            _ => None,
        };
        messages.into_iter().filter_map(row).collect()
    })
}

#[test]
#[ignore = "needs PostgreSQL"]
fn postgres_does_what_every_store_must() {
    let server = Server::start();
    let store = open(&server);
    RUNTIME.block_on(suite::everything(&store));
}

#[test]
#[ignore = "needs PostgreSQL"]
fn whoever_has_the_database_alone_reads_no_secret_and_makes_no_decision() {
    let server = Server::start();
    let store = open(&server);
    let session = suite::waiting(100);
    let id = session.id().clone();
    RUNTIME.block_on(async {
        store.put_resource(&path("a/b/c"), "CANARY-secret".into()).await.unwrap();
        store.put_resource(&path("a/b/d"), "other".into()).await.unwrap();
        store.key_or("token", || Ok(Zeroizing::new(b"CANARY-key".to_vec()))).await.unwrap();
        store.put_policy(PolicyName::Resource, "CANARY-policy".into()).await.unwrap();
        store.put_reference_values(ReferenceValues::from([("m".into(), json!(["CANARY-value"]))])).await.unwrap();
        store.open_session(session, 100).await.unwrap();
        store.keep_attested(suite::attested(600, 100), 100).await.unwrap();
    });
    let tables = sql(&server, "SELECT tablename FROM pg_tables WHERE tablename LIKE 'kbs_%'");
    assert_eq!(tables.len(), 9, "{tables:?}");
    for table in tables {
        let rows = sql(&server, &format!("SELECT t::text FROM {table} AS t")).join("\n");
        for secret in ["CANARY", &hex::encode("CANARY"), id.as_str(), &hex::encode(id.as_str()), &hex::encode("tttttttt")] {
            assert!(!rows.contains(secret), "{table}: {rows}");
        }
    }
    // Moved, made, and changed rows: none is used.
    sql(&server, "UPDATE kbs_resources SET sealed = (SELECT sealed FROM kbs_resources WHERE path = 'a/b/d') WHERE path = 'a/b/c'");
    sql(&server, "UPDATE kbs_policies SET sealed = 'package policy\nallow := true'::bytea");
    sql(&server, "UPDATE kbs_waiting SET sealed = sealed || '\\x00'::bytea");
    RUNTIME.block_on(async {
        let sealed = |e: &StoreError| matches!(e, StoreError::Seal(SealError::Open));
        assert!(sealed(&store.resource(&path("a/b/c")).await.unwrap_err()));
        assert!(sealed(&store.policy(PolicyName::Resource).await.unwrap_err()));
        assert!(matches!(store.take_waiting(&id, 100).await, Err(SessionError::Store(e)) if sealed(&e)));
        assert_eq!(store.resource(&path("a/b/d")).await.unwrap().unwrap().as_slice(), b"other");
    });
    sql(&server, "UPDATE kbs_policies SET sealed = (SELECT sealed FROM kbs_keys LIMIT 1)");
    sql(&server, "UPDATE kbs_reference_values SET id = 'n'");
    RUNTIME.block_on(async {
        assert!(store.policy(PolicyName::Resource).await.is_err() && store.registered().await.is_err());
    });
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_database_of_another_key_or_version_is_refused() {
    let server = Server::start();
    drop(open(&server));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(open_with(&settings(&server), empty.path()), Err(StoreError::KeyLost(_))));
    assert!(!empty.path().join("store.key").exists(), "no key is made that opens nothing");
    write_new_private(&empty.path().join("store.key"), &[8; 32]).unwrap();
    assert!(matches!(open_with(&settings(&server), empty.path()), Err(StoreError::OtherKey(_))));
    sql(&server, "UPDATE kbs_schema SET version = 99");
    assert!(matches!(open_with(&settings(&server), key_dir().path()), Err(StoreError::Schema { found: 99, .. })));
    sql(&server, "DELETE FROM kbs_schema");
    assert!(matches!(open_with(&settings(&server), key_dir().path()), Err(StoreError::Corrupt(_))));
}

#[test]
#[ignore = "needs PostgreSQL"]
fn tables_hold_as_much_as_they_may() {
    let server = Server::start();
    let store = open(&server);
    sql(
        &server,
        &format!(
            "INSERT INTO kbs_waiting SELECT ('\\x' || lpad(to_hex(n), 8, '0'))::bytea, '', 400 FROM generate_series(1, {MAX_WAITING}) n;
             INSERT INTO kbs_attested SELECT ('\\x' || lpad(to_hex(n), 8, '0'))::bytea, decode(repeat('00', {}), 'hex'), 300 + n
                FROM generate_series(1, 9) n;
             INSERT INTO kbs_audit (decision, class, action, allowed, at, last_at, times)
                SELECT '{{\"n\":' || n || '}}', 'affirmed', 'attest', true, n, n, 1 FROM generate_series(1, 6000) n;
             INSERT INTO kbs_resources SELECT 'a/b/' || n, '' FROM generate_series(1, 100000) n;
             INSERT INTO kbs_manifests SELECT 'n' || n, 1, NULL, NULL FROM generate_series(1, 1000) n",
            MAX_TOKENS / 8
        ),
    );
    RUNTIME.block_on(async {
        assert!(matches!(store.open_session(suite::waiting(101), 101).await, Err(SessionError::Full)));
        store.open_session(suite::waiting(401), 401).await.unwrap();
        store.keep_attested(suite::attested(100, 101), 101).await.unwrap();
        assert!(matches!(store.put_resource(&path("a/b/new"), "x".into()).await, Err(StoreError::Full(_))));
        assert!(store.put_resource(&path("a/b/1"), "x".into()).await.unwrap());
        store.record(Decision::new(9000, Action::Attest, true, "affirming", "r")).await.unwrap();
        // Trimming comes after the answer.
        let end = Instant::now() + Duration::from_secs(10);
        while store.decisions(AuditQuery { limit: 10_000, ..AuditQuery::default() }).await.unwrap().len() > 5000 {
            assert!(Instant::now() < end, "the log was not trimmed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(sql(&server, "SELECT count(*) FROM kbs_waiting"), ["1"], "those whose time was over have left");
    let tokens = sql(&server, "SELECT count(*), sum(octet_length(sealed)) < 16777216, min(expires_at) > 301 FROM kbs_attested");
    assert_eq!(tokens, ["8|t|t"], "the oldest made room");
    assert_eq!(sql(&server, "SELECT min(at), max(at) FROM kbs_audit"), ["1002|9000"]);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn what_is_sent_over_a_network_is_encrypted_for_a_database_that_somebody_vouches_for() {
    let mut server = Server::start();
    let authority = rcgen::CertifiedIssuer::self_signed(
        {
            let mut params = rcgen::CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params
        },
        rcgen::KeyPair::generate().unwrap(),
    )
    .unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["db.test".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let (certificate, key) = (server.file("server.pem", &certificate.pem()), server.file("server.key", &key.serialize_pem()));
    server.stop();
    server.run(&[
        "ssl=on",
        &format!("ssl_cert_file={}", certificate.display()),
        &format!("ssl_key_file={}", key.display()),
        "ssl_min_protocol_version=TLSv1.2",
    ]);
    let dir = key_dir();
    let ca = dir.path().join("ca.pem");
    let url = dir.path().join("url");
    let config = config::Store { postgres_url_file: Some(url.clone()), postgres_ca: Some(ca.clone()), ..config::Store::default() };
    let connect = |name: &str, password: &str, authority: &str| {
        std::fs::write(&ca, authority).unwrap();
        let _ = std::fs::remove_file(&url);
        let text = format!("postgresql://kbs:{password}@{name}:{}/kbs?hostaddr=127.0.0.1&sslmode=require\n", server.port());
        write_new_private(&url, text.as_bytes()).unwrap();
        open_with(&config, dir.path())
    };
    let store = connect("db.test", "PASSWORD", &authority.pem()).unwrap();
    RUNTIME.block_on(store.ready()).unwrap();
    assert_eq!(
        sql(&server, "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'kata-cc-kbs'"),
        ["t"]
    );
    let other = rcgen::generate_simple_self_signed(["db.test".to_owned()]).unwrap().cert.pem();
    for (name, password, authority) in
        [("other.test", "PASSWORD", authority.pem()), ("db.test", "PASSWORD", other), ("db.test", "CANARY", authority.pem())]
    {
        let error = connect(name, password, &authority).unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)) && !error.to_string().contains("CANARY"), "{error}");
    }
}

fn signer(store: &Store) -> TokenSigner {
    let make = || Ok(Zeroizing::new(TokenSigner::generate().unwrap().to_bytes().to_vec()));
    TokenSigner::from_bytes(&RUNTIME.block_on(store.key_or("token", make)).unwrap()).unwrap()
}

fn broker(server: &Server) -> TestBroker {
    let store = open(server);
    TestBroker::with(|parts| {
        parts.signer = signer(&store);
        parts.store = store;
    })
}

fn key(text: &str) -> ResourcePath {
    text.parse().unwrap()
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_exchange_goes_over_any_of_the_brokers() {
    let server = Server::start();
    let (first, second) = (broker(&server).ready(), broker(&server));
    let (state, request) = ClientSession::start(TeeType::Snp);
    let state = state.handle(&first.send(&request)).unwrap();
    let report_data = state.report_data().0;
    let (state, request) = state.submit(evidence(report_data), None).unwrap();
    let attested = state.handle(&second.send(&request), first.now()).unwrap();
    for broker in [&first, &second] {
        let opened = attested.open_resource(&broker.send(&attested.get_resource(&key("default/key/1")))).unwrap();
        assert_eq!(opened.expose(), SECRET, "by the session");
        let mut by_token = attested.get_resource(&key("default/key/1"));
        by_token.headers.retain(|(name, _)| *name != "cookie");
        assert_eq!(attested.open_resource(&broker.send(&by_token)).unwrap().expose(), SECRET, "by the token");
        refused(&broker.send(&request), 409, "SessionAttested");
    }
    assert_eq!(second.audit("action=attest").len(), 1);
    assert_eq!(first.audit("action=read-resource&allowed=true").len(), 4);
    // A policy set at one is in force at the other.
    let policy = json!({"policy": URL_SAFE_NO_PAD.encode("package policy\nallow := false")});
    assert_eq!(second.admin("POST", "/kbs/v0/resource-policy", policy.to_string().as_bytes()).status, 200);
    refused(&first.send(&attested.get_resource(&key("default/key/1"))), 403, "PolicyDeny");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_nonce_is_answered_once_over_all_brokers() {
    let server = Server::start();
    let brokers = [broker(&server).ready(), broker(&server)];
    for round in 0..10 {
        let (state, request) = ClientSession::start(TeeType::Snp);
        let state = state.handle(&brokers[round % 2].send(&request)).unwrap();
        let report_data = state.report_data().0;
        let (_, request) = state.submit(evidence(report_data), None).unwrap();
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let send = |broker: usize| {
                scope.spawn({
                    let (brokers, request) = (&brokers, &request);
                    move || brokers[broker].send(request).status
                })
            };
            [send(0), send(1), send(0), send(1)].map(|thread| thread.join().unwrap()).to_vec()
        });
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 401, 409].contains(status)), "{statuses:?}");
    }
    assert_eq!(brokers[0].audit("action=attest&allowed=true&limit=100").len(), 10);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn while_the_database_is_away_nothing_is_released_and_then_it_goes_on() {
    let mut server = Server::start();
    let broker = broker(&server).ready();
    assert_eq!(broker.admin("POST", "/kbs/v0/resource/default/key/forbidden", SECRET).status, 200);
    let policy = "package policy\nimport rego.v1\ndefault allow := false\nallow if data[\"resource-path\"][2] == \"1\"";
    let policy = json!({"policy": URL_SAFE_NO_PAD.encode(policy)});
    assert_eq!(broker.admin("POST", "/kbs/v0/resource-policy", policy.to_string().as_bytes()).status, 200);
    let attested = broker.attest();
    let by_token = |path: &str| {
        let mut request = attested.get_resource(&key(path));
        request.headers.retain(|(name, _)| *name != "cookie");
        request
    };
    let (allowed, forbidden) = (by_token("default/key/1"), by_token("default/key/forbidden"));
    let mut by_session = attested.get_resource(&key("default/key/1"));
    by_session.headers.retain(|(name, _)| *name == "cookie");
    assert_eq!((broker.send(&allowed).status, broker.send(&forbidden).status), (200, 403));

    // Asked all the while, over two restarts.
    let over = AtomicBool::new(false);
    let answers: Vec<[u16; 2]> = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut answers = Vec::new();
            while !over.load(Ordering::SeqCst) {
                answers.push([broker.send(&allowed).status, broker.send(&forbidden).status]);
            }
            answers
        });
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(200));
            server.stop();
            refused(&broker.send(&allowed), 503, "StoreUnavailable");
            refused(&broker.send(&by_session), 503, "StoreUnavailable");
            refused(&broker.admin("GET", "/kbs/v0/audit", &[]), 503, "StoreUnavailable");
            refused(&broker.send(&ClientSession::start(TeeType::Snp).1), 503, "StoreUnavailable");
            assert_eq!(broker.get("/readyz").status, 503);
            assert_eq!((broker.get("/healthz").status, broker.get("/metrics").status), (200, 200));
            server.run(&[]);
        }
        let end = Instant::now() + Duration::from_secs(20);
        while broker.send(&allowed).status != 200 || broker.get("/readyz").status != 200 {
            assert!(Instant::now() < end, "it did not recover");
        }
        over.store(true, Ordering::SeqCst);
        asking.join().unwrap()
    });
    assert!(answers.iter().all(|[allowed, forbidden]| [200, 503].contains(allowed) && [403, 503].contains(forbidden)), "{answers:?}");
    assert!(answers.iter().any(|[allowed, _]| *allowed == 503));
    // Every release is in the log, also those that were cut off before the guest had them.
    let released = broker.audit("action=read-resource&allowed=true&limit=1000").len();
    assert!(released >= answers.iter().filter(|[allowed, _]| *allowed == 200).count().min(1000));
    // Sessions did not survive the crash, and a new one works.
    refused(&broker.send(&by_session), 401, "Unauthenticated");
    let again = broker.attest();
    assert_eq!(again.open_resource(&broker.send(&again.get_resource(&key("default/key/1")))).unwrap().expose(), SECRET);
}

/// A broker's process, which ends with the test.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn brokers_that_start_at_once_agree_on_their_keys() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("url");
    write_new_private(&url, server.target("kbs").as_bytes()).unwrap();
    let start = |n: usize| {
        let config = dir.path().join(format!("{n}.toml"));
        let text = format!(
            "listen = \"127.0.0.1:0\"\ninsecure_http = true\ndata_dir = {:?}\n[store]\npostgres_url_file = {url:?}\nkey_env = \"KEY\"\n",
            dir.path().join(format!("data{n}"))
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc-kbs"));
        command.arg("--config").arg(config).env("KEY", STANDARD.encode([7; 32])).stdout(Stdio::piped());
        Process(command.spawn().unwrap())
    };
    let mut brokers: Vec<Process> = (0..5).map(start).collect();
    let keys = brokers.iter_mut().map(|broker| {
        let mut line = String::new();
        BufReader::new(broker.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").expect("the broker says where it listens").parse().unwrap();
        String::from_utf8(http::call(address, "GET", "/.well-known/jwks.json", &[], &[]).body).unwrap()
    });
    let keys: Vec<String> = keys.collect();
    assert!(keys[0].contains("\"kty\"") && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    assert_eq!(sql(&server, "SELECT name FROM kbs_keys ORDER BY name"), ["check", "token"]);
    assert!(!dir.path().join("data0/store.key").exists());
}

#[test]
#[ignore = "needs PostgreSQL"]
fn everything_is_sealed_with_another_key_while_no_broker_runs() {
    let server = Server::start();
    let dir = key_dir();
    let config = settings(&server);
    let change = || RUNTIME.block_on(rotate(&config, dir.path(), None));
    let store = open_with(&config, dir.path()).unwrap();
    let session = suite::waiting(100);
    let id = session.id().clone();
    RUNTIME.block_on(async {
        store.put_resource(&path("a/b/c"), "secret".into()).await.unwrap();
        store.put_policy(PolicyName::Resource, "policy".into()).await.unwrap();
        store.put_reference_values(ReferenceValues::from([("m".into(), json!(["value"]))])).await.unwrap();
        store.put_manifest(suite::manifest("n", 1, "x"), "{}".into(), false).await.unwrap();
        store.open_session(session, 100).await.unwrap();
    });
    assert!(matches!(change(), Err(RotateError::Store(StoreError::InUse))));
    assert!(!dir.path().join("store.key.new").exists());
    drop(store);
    let end = Instant::now() + Duration::from_secs(10);
    while !sql(&server, "SELECT 1 FROM pg_stat_activity WHERE application_name = 'kata-cc-kbs'").is_empty() {
        assert!(Instant::now() < end, "connections stay open");
    }
    assert_eq!(change().unwrap(), 5, "check, resource, policy, value, manifest");
    let store = open_with(&config, dir.path()).unwrap();
    RUNTIME.block_on(async {
        assert_eq!(store.resource(&path("a/b/c")).await.unwrap().unwrap().as_slice(), b"secret");
        let input = store.appraisal_input(PolicyName::Resource).await.unwrap();
        assert_eq!((input.policy.as_deref(), input.registered.unsigned.len()), (Some("policy"), 1));
        assert_eq!(input.registered.manifests, [suite::manifest("n", 1, "x")]);
        assert!(matches!(store.take_waiting(&id, 100).await, Err(SessionError::Unknown)));
    });
    assert!(matches!(open_with(&config, key_dir().path()), Err(StoreError::OtherKey(_))), "the former key");
}
