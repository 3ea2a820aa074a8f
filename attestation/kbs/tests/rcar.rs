//! The whole exchange over loopback: a broker as `main` wires it, a client driven by the protocol crate's own machine, and evidence of a
//! simulated TEE. Every check has a case that fails without it.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod http;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{call, raw};
use kata_cc_collateral::{Collector, Sources, directory};
use kata_cc_evidence::snp::{Generation, TcbVersion};
use kata_cc_evidence::{HostData, LaunchDigest, TeeType, snp};
use kata_cc_kbs::admin::Admins;
use kata_cc_kbs::appraise::Appraiser;
use kata_cc_kbs::listen;
use kata_cc_kbs::reference::References;
use kata_cc_kbs::server::{Broker, Clock, Parts, router};
use kata_cc_kbs::store::Store;
use kata_cc_kbs_protocol::message::InitData;
use kata_cc_kbs_protocol::token::IssuerJwk;
use kata_cc_kbs_protocol::{Attested, ClientSession, HttpRequest, HttpResponse, Method, ResourcePath, TokenSigner, TokenVerifier};
use kata_cc_tee_sim::identity::{self, Hierarchy, Identity};
use kata_cc_tee_sim::report::{self, Launched};
use kata_cc_tee_sim::wire::ReportRequest;
use kata_cc_verifier::Trust;
use kata_cc_verifier::collateral::{Need, Source};
use kata_cc_verifier::snp::{RootSet, SnpRules, SnpTrust};
use ring::signature::Ed25519KeyPair;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

const NOW: u64 = 1_800_000_000;
const SECRET: &[u8] = b"CANARY-layer-key-0123456789";
const SIMULATED_POLICY: &str = include_str!("../policies/simulated-attestation.rego");
const INIT_DATA: &str =
    "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\nurl = \"http://kbs\"\n'''\n";

/// One hierarchy for all tests: key generation is the slow part.
static MACHINE: LazyLock<Identity> = LazyLock::new(|| Hierarchy::generate(2048, NOW).unwrap().identity);

struct TestBroker {
    address: SocketAddr,
    admin: Ed25519KeyPair,
    clock: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

impl TestBroker {
    fn start(trust_simulation: bool) -> Self {
        Self::start_with(trust_simulation, Collector::nowhere(), SnpRules::default())
    }

    fn start_with(trust_simulation: bool, collector: Collector, rules: SnpRules) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (admins, _) = Admins::set_up(&[], dir.path()).unwrap();
        let pem = std::fs::read_to_string(dir.path().join("admin.key")).unwrap();
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let admin = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&STANDARD.decode(body).unwrap()).unwrap();
        let mut roots = RootSet::amd();
        if trust_simulation {
            roots = roots.with_simulated("lab", identity::pem(&MACHINE.ark).unwrap().as_bytes()).unwrap();
        }
        let parts = Parts {
            store: Store::sqlite(dir.path()).unwrap(),
            admins,
            appraiser: Appraiser::new(Trust { snp: SnpTrust { rules, ..roots.into() }, ..Trust::hardware() }),
            collector,
            signer: TokenSigner::generate().unwrap(),
            session_lifetime: Duration::from_secs(300),
            token_lifetime: Duration::from_secs(300),
            issuer: "test".into(),
            secure: false,
        };
        let clock = Arc::new(AtomicU64::new(NOW));
        let now: Clock = Arc::new({
            let clock = Arc::clone(&clock);
            move || clock.load(Ordering::SeqCst)
        });
        let broker = Arc::new(Broker::new(parts, now).unwrap().with_references(References::unsigned()));
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

    /// With a secret, the simulation's policy and the machine's measurement: what a development set-up has.
    fn ready() -> Self {
        Self::ready_with(Collector::nowhere(), SnpRules::default())
    }

    fn ready_with(collector: Collector, rules: SnpRules) -> Self {
        let broker = Self::start_with(true, collector, rules);
        assert_eq!(broker.admin("POST", "/kbs/v0/resource/default/key/1", SECRET).status, 200);
        let policy = json!({"type": "rego", "policy_id": "default_cpu", "policy": URL_SAFE_NO_PAD.encode(SIMULATED_POLICY)});
        assert_eq!(broker.admin("POST", "/kbs/v0/attestation-policy", policy.to_string().as_bytes()).status, 200);
        let values = json!({"id": "snp_launch_measurement", "values": ["4d".repeat(48)]});
        assert_eq!(broker.admin("POST", "/kbs/v0/reference-value", values.to_string().as_bytes()).status, 200);
        broker.reference("init_data", &["00".repeat(32)]);
        broker
    }

    fn reference(&self, id: &str, values: &[String]) {
        let message = json!({"id": id, "values": values});
        assert_eq!(self.admin("POST", "/kbs/v0/reference-value", message.to_string().as_bytes()).status, 200);
    }

    fn admin_token(&self) -> String {
        let now = self.clock.load(Ordering::SeqCst);
        let claims = json!({"role": "admin", "iat": now, "exp": now + 600});
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA"}"#), URL_SAFE_NO_PAD.encode(claims.to_string()));
        format!("Bearer {signed}.{}", URL_SAFE_NO_PAD.encode(self.admin.sign(signed.as_bytes())))
    }

    fn admin(&self, method: &str, path: &str, body: &[u8]) -> HttpResponse {
        call(self.address, method, path, &[("authorization", self.admin_token())], body)
    }

    fn get(&self, path: &str) -> HttpResponse {
        call(self.address, "GET", path, &[], &[])
    }

    fn post(&self, path: &str, body: &str) -> HttpResponse {
        call(self.address, "POST", path, &[], body.as_bytes())
    }

    fn send(&self, request: &HttpRequest) -> HttpResponse {
        let method = if request.method == Method::Get { "GET" } else { "POST" };
        call(self.address, method, &request.path, &request.headers, &request.body)
    }

    /// Attests with the given launch; `spoil` may change what is sent to `/attest`.
    fn attest_with(
        &self,
        launched: &Launched,
        init_data: Option<InitData>,
        spoil: impl FnOnce(&mut HttpRequest),
    ) -> Result<Attested, HttpResponse> {
        let (state, request) = ClientSession::start(TeeType::Snp);
        let state = state.handle(&self.send(&request)).unwrap();
        let evidence = evidence(launched, state.report_data().0);
        let (state, mut request) = state.submit(evidence, init_data).unwrap();
        spoil(&mut request);
        let response = self.send(&request);
        if response.status != 200 {
            return Err(response);
        }
        Ok(state.handle(&response, self.clock.load(Ordering::SeqCst)).unwrap())
    }

    fn attest(&self) -> Attested {
        self.attest_with(&launched(), None, |_| ()).unwrap()
    }

    fn audit(&self) -> Vec<Value> {
        let response = self.admin("GET", "/kbs/v0/audit?limit=50", &[]);
        assert_eq!(response.status, 200);
        serde_json::from_slice(&response.body).unwrap()
    }
}

fn launched() -> Launched {
    Launched { measurement: LaunchDigest([0x4d; 48]), host_data: HostData::ZERO, report_id: [1; 32] }
}

fn evidence(launched: &Launched, report_data: [u8; 64]) -> Value {
    let blobs = report::report(&MACHINE, launched, &ReportRequest { report_data, vmpl: 0 }).unwrap();
    serde_json::to_value(snp::Evidence::from_raw(&blobs.outblob, &blobs.auxblob).unwrap()).unwrap()
}

fn init_data() -> InitData {
    InitData { format: "toml".into(), body: INIT_DATA.into() }
}

fn path(text: &str) -> ResourcePath {
    text.parse().unwrap()
}

fn body(response: &HttpResponse) -> String {
    String::from_utf8_lossy(&response.body).into_owned()
}

fn change(request: &mut HttpRequest, change: impl FnOnce(&mut Value)) {
    let mut message: Value = serde_json::from_slice(&request.body).unwrap();
    change(&mut message);
    request.body = message.to_string().into_bytes();
}

#[track_caller]
fn refused(response: &HttpResponse, status: u16, word: &str) {
    assert_eq!(response.status, status, "{}", body(response));
    let json: Value = serde_json::from_slice(&response.body).unwrap();
    assert!(json["type"].as_str().unwrap().starts_with("https://github.com/confidential-containers/kbs/errors/"));
    assert!(body(response).contains(word), "{}", body(response));
}

#[test]
fn one_attestation_serves_every_secret() {
    let broker = TestBroker::ready();
    broker.admin("POST", "/kbs/v0/resource/default/key/2", b"second");
    let attested = broker.attest();
    let first = attested.open_resource(&broker.send(&attested.get_resource(&path("default/key/1")))).unwrap();
    assert_eq!(first.expose(), SECRET);
    let second = attested.open_resource(&broker.send(&attested.get_resource(&path("default/key/2")))).unwrap();
    assert_eq!(second.expose(), b"second");
    let metrics = body(&broker.get("/metrics"));
    assert!(metrics.contains("kbs_attestations_total{tee=\"snp\",outcome=\"affirming\"} 1\n"), "{metrics}");
    assert!(metrics.contains("kbs_resource_reads_total{outcome=\"released\"} 2\n"), "{metrics}");
}

#[test]
fn the_token_alone_serves_too_and_verifies_with_the_published_key() {
    let broker = TestBroker::ready();
    let attested = broker.attest();
    let mut request = attested.get_resource(&path("default/key/1"));
    request.headers.retain(|(name, _)| *name != "cookie");
    assert_eq!(attested.open_resource(&broker.send(&request)).unwrap().expose(), SECRET);
    let jwks: Value = serde_json::from_slice(&broker.get("/.well-known/jwks.json").body).unwrap();
    let key: IssuerJwk = serde_json::from_value(jwks["keys"][0].clone()).unwrap();
    let token = TokenVerifier::new([&key]).unwrap().verify(attested.token(), NOW).unwrap();
    let cpu = &token.claims()["submods"]["cpu0"];
    assert_eq!(cpu["ear.status"], "affirming");
    let annotated = &cpu["ear.veraison.annotated-evidence"];
    assert_eq!(annotated["snp"]["simulated"], true);
    assert_eq!(annotated["runtime_data_claims"]["tee-pubkey"]["crv"], "P-256");
}

#[test]
fn ac_59_the_default_policies_refuse_a_simulation_and_name_claims_without_values() {
    let broker = TestBroker::start(true);
    broker.admin("POST", "/kbs/v0/resource/default/key/1", SECRET);
    let values = json!({"id": "snp_launch_measurement", "values": ["ab".repeat(48)]});
    broker.admin("POST", "/kbs/v0/reference-value", values.to_string().as_bytes());
    let attested = broker.attest();
    let response = broker.send(&attested.get_resource(&path("default/key/1")));
    refused(&response, 403, "cpu0/hardware");
    refused(&response, 403, "cpu0/executables");
    assert!(!body(&response).contains("4d4d") && !body(&response).contains("abab"), "values are not the guest's to know");
    // The same refusal for a name that does not exist: no probing.
    refused(&broker.send(&attested.get_resource(&path("default/key/none"))), 403, "cpu0/hardware");

    let audit = broker.audit();
    let attest = audit.iter().find(|d| d["action"] == "attest").unwrap();
    assert_eq!((&attest["outcome"], &attest["allowed"]), (&json!("contraindicated"), &json!(false)));
    let compared = attest["comparisons"].as_array().unwrap();
    assert!(compared.iter().any(|c| c["claim"] == "snp_launch_measurement" && c["expected"] == json!(["ab".repeat(48)])));
    assert!(compared.iter().any(|c| c["claim"] == "trust vector: hardware" && c["found"] == 97));
    assert_eq!(attest["claims"]["measurement"], "4d".repeat(48));
}

#[test]
fn another_measurement_is_refused_and_the_audit_says_what_was_expected() {
    let broker = TestBroker::ready();
    let other = Launched { measurement: LaunchDigest([0x4e; 48]), ..launched() };
    let attested = broker.attest_with(&other, None, |_| ()).unwrap();
    refused(&broker.send(&attested.get_resource(&path("default/key/1"))), 403, "cpu0/executables");
    let audit = broker.audit();
    let attest = audit.iter().find(|d| d["action"] == "attest").unwrap();
    let expected = json!({"claim": "snp_launch_measurement", "expected": ["4d".repeat(48)], "found": "4e".repeat(48)});
    assert!(attest["comparisons"].as_array().unwrap().contains(&expected), "{attest}");
}

#[test]
fn ac_51_simulated_evidence_without_a_configured_root_gets_no_token() {
    let broker = TestBroker::start(false);
    refused(&broker.attest_with(&launched(), None, |_| ()).unwrap_err(), 401, "unknown-root");
    // The guest learns the name; the administrator what was checked, and what was found at the check that failed.
    let audit = broker.audit();
    let compared = audit.iter().find(|d| d["action"] == "attest").unwrap()["comparisons"].as_array().unwrap();
    let names: Vec<&str> = compared.iter().filter_map(|c| c["claim"].as_str()).collect();
    assert_eq!(names, ["report", "signing key", "endorsement", "root"], "{audit:?}");
    assert_eq!(compared[3]["expected"], "one of AMD Milan, AMD Genoa, AMD Turin");
    assert!(body(&broker.get("/metrics")).contains("kbs_attestations_total{tee=\"snp\",outcome=\"refused\"} 1\n"));
}

#[test]
fn ac_52_evidence_for_another_nonce_or_key_is_refused() {
    let broker = TestBroker::ready();
    let stranger = kata_cc_kbs_protocol::TeeKey::generate().unwrap().to_jwk();
    let swapped = broker.attest_with(&launched(), None, |r| change(r, |m| m["runtime-data"]["tee-pubkey"] = json!(stranger)));
    refused(&swapped.unwrap_err(), 401, "report-data");
    let replayed = broker.attest_with(&launched(), None, |r| {
        change(r, |m| m["tee-evidence"]["primary_evidence"] = evidence(&launched(), [0x11; 64]));
    });
    refused(&replayed.unwrap_err(), 401, "report-data");
    let nonce = broker.attest_with(&launched(), None, |r| change(r, |m| m["runtime-data"]["nonce"] = json!(STANDARD.encode([7; 32]))));
    refused(&nonce.unwrap_err(), 401, "nonce");
    let changed = broker.attest_with(&launched(), None, |r| {
        change(r, |m| m["tee-evidence"]["primary_evidence"]["attestation_report"]["guest_svn"] = json!(9));
    });
    refused(&changed.unwrap_err(), 401, "report-signature");
}

#[test]
fn ac_52_a_challenge_is_answered_once() {
    let broker = TestBroker::ready();
    let mut sent = None;
    broker.attest_with(&launched(), None, |r| sent = Some(r.clone())).unwrap();
    refused(&broker.send(&sent.take().unwrap()), 409, "attested already");
    let failed = broker.attest_with(&launched(), None, |r| {
        sent = Some(r.clone());
        change(r, |m| m["runtime-data"]["nonce"] = json!("AAAA"));
    });
    assert!(failed.is_err());
    refused(&broker.send(&sent.unwrap()), 401, "no such session");
}

#[test]
fn sessions_and_tokens_expire() {
    let broker = TestBroker::ready();
    let attested = broker.attest();
    let (waiting, request) = ClientSession::start(TeeType::Snp);
    let waiting = waiting.handle(&broker.send(&request)).unwrap();
    let evidence = evidence(&launched(), waiting.report_data().0);
    let (_, late) = waiting.submit(evidence, None).unwrap();
    broker.clock.store(NOW + 301, Ordering::SeqCst);
    refused(&broker.send(&attested.get_resource(&path("default/key/1"))), 401, "expired");
    refused(&broker.send(&late), 401, "session");
}

#[test]
fn init_data_must_be_what_the_guest_was_launched_with() {
    let broker = TestBroker::ready();
    refused(&broker.attest_with(&launched(), Some(init_data()), |_| ()).unwrap_err(), 401, "host-data");
    let digest = ring::digest::digest(&ring::digest::SHA256, INIT_DATA.as_bytes());
    let with = Launched { host_data: HostData::from_digest(digest.as_ref()), ..launched() };
    let attested = broker.attest_with(&with, Some(init_data()), |_| ()).unwrap();
    let payload = URL_SAFE_NO_PAD.decode(attested.token().split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&payload).unwrap();
    let shown = &claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["init_data_claims"];
    assert_eq!(shown["aa.toml"]["token_configs"]["kbs"]["url"], "http://kbs");
    let other = InitData { body: INIT_DATA.replace("http://kbs", "http://bad"), ..init_data() };
    refused(&broker.attest_with(&with, Some(other), |_| ()).unwrap_err(), 401, "host-data");
    let nonsense = InitData { body: "x".into(), ..init_data() };
    refused(&broker.attest_with(&with, Some(nonsense), |_| ()).unwrap_err(), 401, "init-data");
}

/// Initdata whose policy has a version and is signed by whatever key of these; the signature is the guest's to look at.
fn owned(keys: &str, payload_type: &str, version: u64) -> InitData {
    let payload = STANDARD.encode(json!({"version": version, "rego": "", "documents": {}}).to_string());
    let envelope = json!({"payloadType": payload_type, "payload": payload, "signatures": []});
    InitData {
        format: "toml".into(),
        body: format!(
            "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"kata-cc.toml\" = \"\"\"\n[policy]\ntrusted_keys = [{keys}]\n\"\"\"\n\
             \"policy.dsse.json\" = '{envelope}'\n"
        ),
    }
}

const POLICY_TYPE: &str = "application/vnd.kata-cc.agent-policy.v2+json";

impl TestBroker {
    /// Attests with initdata that the guest was launched with, and asks for the secret.
    fn read_under(&self, init_data: &InitData) -> HttpResponse {
        let digest = ring::digest::digest(&ring::digest::SHA256, init_data.body.as_bytes());
        let launched = Launched { host_data: HostData::from_digest(digest.as_ref()), ..launched() };
        let attested = self.attest_with(&launched, Some(init_data.clone()), |_| ()).unwrap();
        self.send(&attested.get_resource(&path("default/key/1")))
    }
}

#[test]
fn initdata_of_the_hosts_own_making_gets_no_secret() {
    let broker = TestBroker::ready();
    let owned = |keys| owned(keys, POLICY_TYPE, 1);
    let (owner, host, both, none) = (owned("'owner'"), owned("'host'"), owned("'owner', 'host'"), owned(""));
    refused(&broker.read_under(&owner), 403, "cpu0/configuration");
    broker.reference("policy_trusted_keys", &["owner".into()]);
    assert_eq!(broker.read_under(&owner).status, 200);
    for other in [&host, &both, &none] {
        refused(&broker.read_under(other), 403, "cpu0/configuration");
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, host.body.as_bytes());
    broker.reference("init_data", &[hex::encode(digest.as_ref())]);
    assert_eq!(broker.read_under(&host).status, 200, "this very initdata is registered");
}

/// The form before, which the guests before took: its signature leaves the other documents to the host.
#[test]
fn initdata_whose_policy_does_not_cover_it_gets_no_secret_by_its_keys() {
    let broker = TestBroker::ready();
    broker.reference("policy_trusted_keys", &["owner".into()]);
    let former = owned("'owner'", "application/vnd.kata-cc.agent-policy.v1+json", 1);
    refused(&broker.read_under(&former), 403, "cpu0/configuration");
    assert_eq!(broker.read_under(&owned("'owner'", POLICY_TYPE, 1)).status, 200);
}

/// Initdata that the owner signed once and has replaced since.
#[test]
fn initdata_with_a_policy_below_the_registered_version_gets_no_secret() {
    let broker = TestBroker::ready();
    broker.reference("policy_trusted_keys", &["owner".into()]);
    let [old, new] = [2, 3].map(|version| owned("'owner'", POLICY_TYPE, version));
    assert_eq!(broker.read_under(&old).status, 200, "no lowest version is registered");
    let floor = json!({"id": "policy_min_version", "values": [3]});
    assert_eq!(broker.admin("POST", "/kbs/v0/reference-value", floor.to_string().as_bytes()).status, 200);
    refused(&broker.read_under(&old), 403, "cpu0/configuration");
    assert_eq!(broker.read_under(&new).status, 200);
    let compared = json!({"claim": "policy_min_version", "expected": [3], "found": 2});
    let audit = broker.audit();
    let shown = audit.iter().filter_map(|d| d["comparisons"].as_array()).any(|c| c.contains(&compared));
    assert!(shown, "the audit log says what was expected and found: {audit:?}");
}

#[test]
fn ac_59_nothing_is_released_without_a_token_of_this_broker() {
    let broker = TestBroker::ready();
    let resource = "/kbs/v0/resource/default/key/1";
    refused(&broker.get(resource), 401, "attest first");
    let forged = call(broker.address, "GET", resource, &[("authorization", "Bearer a.b.c".into())], &[]);
    refused(&forged, 401, "token");
    // A genuine token, of another broker.
    let attested = TestBroker::ready().attest();
    refused(&broker.send(&attested.get_resource(&path("default/key/1"))), 401, "token");
    // The administrator's token administers; it does not attest.
    refused(&call(broker.address, "GET", resource, &[("authorization", broker.admin_token())], &[]), 401, "token");
    // A session that is not attested yet.
    let (_, request) = ClientSession::start(TeeType::Snp);
    let cookie = broker.send(&request).headers.into_iter().find(|(n, _)| n == "set-cookie").unwrap().1;
    let cookie = cookie.split(';').next().unwrap().to_owned();
    refused(&call(broker.address, "GET", resource, &[("cookie", cookie)], &[]), 401, "attest first");
}

#[test]
fn ac_59_administration_needs_an_administrator() {
    let broker = TestBroker::ready();
    for (method, path) in [
        ("POST", "/kbs/v0/resource/default/key/1"),
        ("DELETE", "/kbs/v0/resource/default/key/1"),
        ("GET", "/kbs/v0/resource-policy"),
        ("POST", "/kbs/v0/resource-policy"),
        ("POST", "/kbs/v0/attestation-policy"),
        ("GET", "/kbs/v0/attestation-policy/default_cpu"),
        ("POST", "/kbs/v0/reference-value"),
        ("GET", "/kbs/v0/reference-value/snp_launch_measurement"),
        ("GET", "/kbs/v0/audit"),
    ] {
        refused(&call(broker.address, method, path, &[], &[]), 401, "administrator");
        let attested = [("authorization", format!("Bearer {}", broker.attest().token()))];
        refused(&call(broker.address, method, path, &attested, &[]), 401, "administrator");
    }
    let token = broker.admin_token();
    broker.clock.store(NOW + 7200, Ordering::SeqCst);
    let old = call(broker.address, "GET", "/kbs/v0/audit", &[("authorization", token)], &[]);
    refused(&old, 401, "expired");
}

#[test]
fn ac_59_malformed_requests_are_refused_with_the_right_code() {
    let broker = TestBroker::ready();
    refused(&broker.post("/kbs/v0/auth", "{"), 400, "JSON");
    refused(&broker.post("/kbs/v0/auth", r#"{"version":"0.3.0","tee":"snp","extra-params":""}"#), 400, "0.4.0");
    refused(&broker.post("/kbs/v0/auth", r#"{"version":"0.4.0","tee":"toaster","extra-params":""}"#), 400, "toaster");
    refused(&broker.post("/kbs/v0/attest", "{}"), 401, "session");
    refused(&call(broker.address, "POST", "/kbs/v0/auth", &[], &vec![b' '; 2 * 1024 * 1024 + 1]), 413, "larger");
    for path in ["/", "/kbs/v0/resource/a/b", "/kbs/v0/resource/a/b/c/d", "/kbs/v0/resource/..%2f..%2fetc/b/c", "/kbs/v0/nebula-ca/x"] {
        refused(&broker.get(path), 404, "InvalidRequestPath");
    }
    refused(&call(broker.address, "PUT", "/kbs/v0/auth", &[], &[]), 405, "MethodNotAllowed");
    refused(&broker.admin("GET", "/kbs/v0/audit?limit=x", &[]), 400, "limit");
    let attested = broker.attest();
    refused(&broker.send(&attested.get_resource(&path("default/key/none"))), 404, "default/key/none");
    refused(&broker.admin("DELETE", "/kbs/v0/resource/default/key/none", &[]), 404, "default/key/none");
}

#[test]
fn ac_51_sample_evidence_and_other_tees_get_no_token() {
    let broker = TestBroker::ready();
    for tee in [TeeType::Sample, TeeType::Cca] {
        let (_, request) = ClientSession::start(tee);
        refused(&broker.send(&request), 400, "TeeUnsupported");
    }
    for tee in [TeeType::Snp, TeeType::Tdx] {
        let (state, request) = ClientSession::start(tee);
        let state = state.handle(&broker.send(&request)).unwrap();
        let (_, request) = state.submit(json!({"svn": "1", "report_data": ""}), None).unwrap();
        refused(&broker.send(&request), 401, "evidence-form");
    }
}

#[test]
fn a_policy_that_is_none_is_refused_and_the_old_one_stays() {
    let broker = TestBroker::ready();
    let set = |path: &str, message: Value| broker.admin("POST", path, message.to_string().as_bytes());
    let encode = |rego: &str| URL_SAFE_NO_PAD.encode(rego);
    refused(&set("/kbs/v0/resource-policy", json!({"policy": encode("package policy\nallow {")})), 400, "not a usable policy");
    refused(&set("/kbs/v0/resource-policy", json!({"policy": "%%"})), 400, "base64url");
    refused(
        &set("/kbs/v0/attestation-policy", json!({"type": "rego", "policy_id": "other", "policy": encode(SIMULATED_POLICY)})),
        400,
        "default_cpu",
    );
    let attested = broker.attest();
    let resource = attested.get_resource(&path("default/key/1"));
    assert_eq!(broker.send(&resource).status, 200);
    assert_eq!(set("/kbs/v0/resource-policy", json!({"policy": encode("package policy\nallow := false")})).status, 200);
    refused(&broker.send(&resource), 403, "does not allow");
    let by_tag = "package policy\nimport rego.v1\ndefault allow := false\nallow if data[\"resource-path\"][2] == \"1\"";
    assert_eq!(set("/kbs/v0/resource-policy", json!({"policy": encode(by_tag)})).status, 200);
    assert_eq!(broker.send(&resource).status, 200);
    let read: Value = serde_json::from_slice(&broker.admin("GET", "/kbs/v0/resource-policy", &[]).body).unwrap();
    assert_eq!(read["policy"], encode(by_tag));
    // A policy that breaks at run time releases nothing, and the audit log has why: asked on another thread first, then where the request is.
    assert_eq!(set("/kbs/v0/resource-policy", json!({"policy": encode("package policy\nallow := \"yes\"")})).status, 200);
    for times in 1..4 {
        refused(&broker.send(&resource), 500, "internal");
        let audit = broker.audit();
        let of_this = |d: &&Value| d["outcome"] == "denied" && d["detail"].as_str().is_some_and(|why| why.contains("true or false"));
        assert_eq!(audit.iter().filter(of_this).count(), times, "{audit:?}");
    }
}

#[test]
fn ac_61_no_secret_shows_up_in_audit_metrics_or_errors() {
    let broker = TestBroker::ready();
    let attested = broker.attest();
    let released = broker.send(&attested.get_resource(&path("default/key/1")));
    assert!(!body(&released).contains("CANARY"));
    let audit = serde_json::to_string(&broker.audit()).unwrap();
    assert!(audit.contains("default/key/1") && audit.contains("read-resource"));
    assert!(!audit.contains("CANARY") && !audit.contains(attested.token()));
    let metrics = body(&broker.get("/metrics"));
    assert!(!metrics.contains("CANARY") && !metrics.contains("default/key"));
}

#[test]
fn health_is_for_everybody_and_a_broken_request_disturbs_nobody() {
    let broker = TestBroker::start(false);
    assert_eq!(broker.get("/healthz").status, 200);
    assert_eq!(broker.get("/readyz").status, 200);
    raw(broker.address, b"\x00\xff garbage\r\n\r\n");
    assert_eq!(broker.get("/healthz").status, 200);
}

/// Evidence without the chip's certificate, and with the rest of the chain.
fn without_vcek(request: &mut HttpRequest) {
    change(request, |message| {
        let chain = &mut message["tee-evidence"]["primary_evidence"]["cert_chain"];
        let certs = chain.as_array_mut().unwrap();
        let all = certs.len();
        certs.retain(|cert| cert["cert_type"] != "VCEK");
        assert_eq!(certs.len(), all - 1);
    });
}

fn vcek() -> Need {
    let platform = &MACHINE.platform;
    let path = format!(
        "vcek/v1/Milan/{}?blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
        hex::encode(platform.chip_id),
        platform.bootloader,
        platform.tee,
        platform.snp,
        platform.microcode
    );
    Need { source: Source::AmdKds, path }
}

#[test]
fn ac_53_certificates_that_evidence_does_not_bring_come_from_the_directory() {
    let files = tempfile::tempdir().unwrap();
    let from = || Collector::new(Sources { directory: Some(files.path().into()), ..Sources::default() }).unwrap();
    refused(&TestBroker::ready().attest_with(&launched(), None, without_vcek).unwrap_err(), 401, "endorsement");
    refused(
        &TestBroker::ready_with(from(), SnpRules::default()).attest_with(&launched(), None, without_vcek).unwrap_err(),
        401,
        "endorsement",
    );
    let file = files.path().join(directory::file_name(&vcek()).unwrap());
    std::fs::write(&file, &MACHINE.vcek).unwrap();
    assert!(TestBroker::ready_with(from(), SnpRules::default()).attest_with(&launched(), None, without_vcek).is_ok());
    // What lies there is verified like anything else.
    std::fs::write(&file, &MACHINE.ask).unwrap();
    let broker = TestBroker::ready_with(from(), SnpRules::default());
    assert!(broker.attest_with(&launched(), None, without_vcek).is_err());
}

#[test]
fn ac_53_rules_of_the_configuration_hold_whatever_the_policy_says() {
    let with = |rules: SnpRules| TestBroker::ready_with(Collector::nowhere(), rules).attest_with(&launched(), None, |_| ());
    assert!(with(SnpRules { allow_vlek: false, ..SnpRules::default() }).is_ok());
    refused(&with(SnpRules { require_crl: true, ..SnpRules::default() }).unwrap_err(), 401, "revocation");
    refused(&with(SnpRules { deny_generations: vec![Generation::Milan], ..SnpRules::default() }).unwrap_err(), 401, "generation");
    let floor = TcbVersion { fmc: None, bootloader: 4, tee: 0, snp: 25, microcode: 0 };
    refused(&with(SnpRules { minimum_tcb: vec![(Generation::Milan, floor)], ..SnpRules::default() }).unwrap_err(), 401, "tcb");
    let met = TcbVersion { snp: 24, ..floor };
    assert!(with(SnpRules { minimum_tcb: vec![(Generation::Milan, met)], ..SnpRules::default() }).is_ok());
}
