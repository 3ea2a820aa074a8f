//! A broker as `main` wires it, on loopback, for tests of how it is operated: administrators, audit, limits, load.

#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part; helpers of tests: to panic is to fail

use crate::http::call;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kata_cc_collateral::Collector;
use kata_cc_evidence::{HostData, LaunchDigest, TeeType, snp};
use kata_cc_kbs::admin::Admins;
use kata_cc_kbs::appraise::Appraiser;
use kata_cc_kbs::listen;
use kata_cc_kbs::reference::References;
use kata_cc_kbs::server::{Broker, Clock, Parts, router};
use kata_cc_kbs::store::Store;
use kata_cc_kbs_protocol::{Attested, ClientSession, HttpRequest, HttpResponse, Method, TokenSigner};
use kata_cc_tee_sim::identity::{self, Hierarchy, Identity};
use kata_cc_tee_sim::report::{self, Launched};
use kata_cc_tee_sim::wire::ReportRequest;
use kata_cc_verifier::Trust;
use kata_cc_verifier::snp::RootSet;
use ring::signature::Ed25519KeyPair;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const SECRET: &[u8] = b"CANARY-layer-key-0123456789";
pub(crate) const SIMULATED_POLICY: &str = include_str!("../../policies/simulated-attestation.rego");

/// One hierarchy for all tests of a file: key generation is the slow part.
pub(crate) static MACHINE: LazyLock<Identity> = LazyLock::new(|| Hierarchy::generate(2048, NOW).unwrap().identity);

/// The private half of what a first start makes.
pub(crate) fn admin_key(dir: &Path) -> Ed25519KeyPair {
    let pem = std::fs::read_to_string(dir.join("admin.key")).unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(&STANDARD.decode(body).unwrap()).unwrap()
}

/// `Authorization` for a role, signed by an administrator's key.
pub(crate) fn bearer(key: &Ed25519KeyPair, role: &str, now: u64) -> String {
    let claims = json!({"role": role, "iat": now, "exp": now + 600});
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA"}"#), URL_SAFE_NO_PAD.encode(claims.to_string()));
    format!("Bearer {signed}.{}", URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())))
}

/// Evidence of the simulated machine for this report data.
pub(crate) fn evidence(report_data: [u8; 64]) -> Value {
    let launched = Launched { measurement: LaunchDigest([0x4d; 48]), host_data: HostData::ZERO, report_id: [1; 32] };
    let blobs = report::report(&MACHINE, &launched, &ReportRequest { report_data, vmpl: 0 }).unwrap();
    serde_json::to_value(snp::Evidence::from_raw(&blobs.outblob, &blobs.auxblob).unwrap()).unwrap()
}

pub(crate) fn body(response: &HttpResponse) -> String {
    String::from_utf8_lossy(&response.body).into_owned()
}

#[track_caller]
pub(crate) fn refused(response: &HttpResponse, status: u16, word: &str) {
    assert_eq!(response.status, status, "{}", body(response));
    assert!(body(response).contains(word), "{}", body(response));
}

/// A broker in this process.
pub(crate) struct TestBroker {
    pub(crate) address: SocketAddr,
    pub(crate) admin: Ed25519KeyPair,
    pub(crate) clock: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

impl TestBroker {
    /// One that trusts the simulation and has nothing yet.
    pub(crate) fn start() -> Self {
        Self::with(|_| ())
    }

    /// The same, with its parts changed.
    pub(crate) fn with(change: impl FnOnce(&mut Parts)) -> Self {
        Self::changed(change, |broker| broker)
    }

    /// The same, with the broker itself changed too.
    pub(crate) fn changed(change: impl FnOnce(&mut Parts), finish: impl FnOnce(Broker) -> Broker) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (admins, _) = Admins::set_up(&[], dir.path()).unwrap();
        let admin = admin_key(dir.path());
        let roots = RootSet::amd().with_simulated("lab", identity::pem(&MACHINE.ark).unwrap().as_bytes()).unwrap();
        let mut parts = Parts {
            store: Store::sqlite(dir.path()).unwrap(),
            admins,
            appraiser: Appraiser::new(Trust { snp: roots.into(), ..Trust::hardware() }),
            collector: Collector::nowhere(),
            signer: TokenSigner::generate().unwrap(),
            session_lifetime: Duration::from_secs(300),
            token_lifetime: Duration::from_secs(300),
            issuer: "test".into(),
            secure: false,
        };
        change(&mut parts);
        let clock = Arc::new(AtomicU64::new(NOW));
        let now: Clock = Arc::new({
            let clock = Arc::clone(&clock);
            move || clock.load(Ordering::SeqCst)
        });
        let broker = Arc::new(finish(Broker::new(parts, now).unwrap().with_references(References::unsigned())));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                listen::serve(listener, None, router(broker), std::future::pending()).await;
            });
        });
        Self { address, admin, clock, _dir: dir }
    }

    /// With a secret, the simulation's policy and the machine's measurement.
    pub(crate) fn ready(self) -> Self {
        assert_eq!(self.admin("POST", "/kbs/v0/resource/default/key/1", SECRET).status, 200);
        let policy = json!({"type": "rego", "policy_id": "default_cpu", "policy": URL_SAFE_NO_PAD.encode(SIMULATED_POLICY)});
        assert_eq!(self.admin("POST", "/kbs/v0/attestation-policy", policy.to_string().as_bytes()).status, 200);
        for (id, value) in [("snp_launch_measurement", "4d".repeat(48)), ("init_data", "00".repeat(32))] {
            let values = json!({"id": id, "values": [value]});
            assert_eq!(self.admin("POST", "/kbs/v0/reference-value", values.to_string().as_bytes()).status, 200);
        }
        self
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    pub(crate) fn admin(&self, method: &str, path: &str, body: &[u8]) -> HttpResponse {
        self.as_role("admin", method, path, body)
    }

    pub(crate) fn as_role(&self, role: &str, method: &str, path: &str, body: &[u8]) -> HttpResponse {
        call(self.address, method, path, &[("authorization", bearer(&self.admin, role, self.now()))], body)
    }

    pub(crate) fn get(&self, path: &str) -> HttpResponse {
        call(self.address, "GET", path, &[], &[])
    }

    pub(crate) fn send(&self, request: &HttpRequest) -> HttpResponse {
        let method = if request.method == Method::Get { "GET" } else { "POST" };
        call(self.address, method, &request.path, &request.headers, &request.body)
    }

    /// Attests with the evidence that `make` gives for the report data.
    pub(crate) fn attest_with(&self, make: impl FnOnce([u8; 64]) -> Value) -> Result<Attested, HttpResponse> {
        let (state, request) = ClientSession::start(TeeType::Snp);
        let opened = self.send(&request);
        if opened.status != 200 {
            return Err(opened);
        }
        let state = state.handle(&opened).unwrap();
        let evidence = make(state.report_data().0);
        let (state, request) = state.submit(evidence, None).unwrap();
        let response = self.send(&request);
        if response.status != 200 {
            return Err(response);
        }
        Ok(state.handle(&response, self.now()).unwrap())
    }

    pub(crate) fn attest(&self) -> Attested {
        self.attest_with(evidence).unwrap()
    }

    pub(crate) fn audit(&self, query: &str) -> Vec<Value> {
        let response = self.admin("GET", &format!("/kbs/v0/audit?{query}"), &[]);
        assert_eq!(response.status, 200, "{}", body(&response));
        serde_json::from_slice(&response.body).unwrap()
    }
}
