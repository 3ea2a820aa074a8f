//! A TD before the broker, from its quote to a secret: simulated, with the collateral directory that the simulation leaves.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use broker::{NOW, SECRET, SIMULATED_POLICY, TestBroker, refused};
use kata_cc_collateral::{Collector, Sources};
use kata_cc_evidence::eventlog::{Aael, EventDigest, EventType, HashAlgorithm, encode_event, encode_header};
use kata_cc_evidence::{MrConfigId, ReportData, TdMeasurement, TeeType, tdx};
use kata_cc_kbs::appraise::Appraiser;
use kata_cc_kbs_protocol::message::InitData;
use kata_cc_kbs_protocol::{Attested, ClientSession, HashAlgorithm as Digest, HttpResponse, ResourcePath};
use kata_cc_tee_sim::identity::{self, TDX_DIR};
use kata_cc_tee_sim::intel::{self, COLLATERAL_DIR, ROOT_FILE};
use kata_cc_tee_sim::td::{Launched, XFAM};
use kata_cc_verifier::Trust;
use kata_cc_verifier::tdx::RootSet;
use serde_json::json;
use std::path::PathBuf;
use std::sync::LazyLock;

const ALG: HashAlgorithm = HashAlgorithm::SHA384;
const INITDATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = 'x = 1'\n";

/// A machine for all tests of this file, in a directory that stays until they are over.
static KEYS: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    identity::init(dir.path(), 2048, NOW).unwrap();
    dir
});

fn machine() -> PathBuf {
    KEYS.path().join(TDX_DIR)
}

fn launched() -> Launched {
    Launched {
        mr_td: TdMeasurement([0x21; 48]),
        rtmr: [0x30, 0x31, 0x32, 0].map(|byte| TdMeasurement([byte; 48])),
        mr_config_id: MrConfigId::from_digest(&Digest::Sha256.digest(INITDATA.as_bytes())),
        ..Launched::default()
    }
}

/// A broker that trusts the machine by name and has its collateral.
fn broker() -> TestBroker {
    let broker = TestBroker::with(|parts| {
        let root = std::fs::read(machine().join(ROOT_FILE)).unwrap();
        let roots = RootSet::intel().with_simulated("lab-tdx", &root).unwrap();
        parts.appraiser = Appraiser::new(Trust { tdx: roots.into(), ..Trust::hardware() });
        let directory = Some(machine().join(COLLATERAL_DIR));
        parts.collector = Collector::new(Sources { directory, ..Sources::default() }).unwrap();
    });
    let broker = broker.ready();
    let init_data = launched().mr_config_id.to_string();
    let values = |byte: &str| byte.repeat(48);
    for (id, value) in [
        ("mr_td", values("21")),
        ("rtmr_0", values("30")),
        ("rtmr_1", values("31")),
        ("rtmr_2", values("32")),
        ("xfam", XFAM.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect()),
        ("init_data", init_data),
    ] {
        let values = json!({"id": id, "values": [value]});
        assert_eq!(broker.admin("POST", "/kbs/v0/reference-value", values.to_string().as_bytes()).status, 200);
    }
    broker
}

fn set_policy(broker: &TestBroker, policy: &str) {
    let body = json!({"type": "rego", "policy_id": "default_cpu", "policy": URL_SAFE_NO_PAD.encode(policy)});
    assert_eq!(broker.admin("POST", "/kbs/v0/attestation-policy", body.to_string().as_bytes()).status, 200);
}

/// Attests as this TD, with a log of the agent's beside the evidence if there is one.
fn attest(broker: &TestBroker, td: &Launched, log: Option<&[u8]>) -> Result<Attested, HttpResponse> {
    let (state, request) = ClientSession::start(TeeType::Tdx);
    let mut state = state.handle(&broker.send(&request)).unwrap();
    if let Some(log) = log {
        state = state.with_runtime_log(log).unwrap();
    }
    let quote = td.quote(&intel::load(&machine()).unwrap(), ReportData(state.report_data().0)).unwrap();
    let evidence = serde_json::to_value(tdx::Evidence::from_raw(&quote, None).unwrap()).unwrap();
    let init_data = InitData { format: "toml".into(), body: INITDATA.into() };
    let (state, request) = state.submit(evidence, Some(init_data)).unwrap();
    let response = broker.send(&request);
    if response.status != 200 {
        return Err(response);
    }
    Ok(state.handle(&response, broker.now()).unwrap())
}

fn outcome(broker: &TestBroker) -> serde_json::Value {
    broker.audit("action=attest")[0]["outcome"].clone()
}

#[test]
fn a_simulated_td_gets_the_secret_where_the_policy_names_simulations() {
    let broker = broker();
    let attested = attest(&broker, &launched(), None).unwrap();
    let path: ResourcePath = "default/key/1".parse().unwrap();
    let response = broker.send(&attested.get_resource(&path));
    assert_eq!(attested.open_resource(&response).unwrap().expose(), SECRET);
    let decision = &broker.audit("action=attest")[0];
    assert_eq!((&decision["outcome"], &decision["claims"]["simulated"]), (&json!("affirming"), &json!(true)));

    // Each thing that was launched counts.
    let other = |change: &dyn Fn(&mut Launched)| {
        let mut td = launched();
        change(&mut td);
        attest(&broker, &td, None)
    };
    let token = other(&|td| td.mr_td = TdMeasurement([1; 48])).unwrap();
    refused(&broker.send(&token.get_resource(&path)), 403, "executables");
    assert_eq!(outcome(&broker), "warning");
    let token = other(&|td| td.rtmr[1] = TdMeasurement([1; 48])).unwrap();
    refused(&broker.send(&token.get_resource(&path)), 403, "executables");
    // Another initdata than the one that was sent.
    refused(&other(&|td| td.mr_config_id = MrConfigId([1; 48])).unwrap_err(), 401, "mr-config-id");
}

#[test]
fn by_the_default_policy_a_simulated_td_gets_nothing() {
    let broker = broker();
    set_policy(&broker, include_str!("../policies/default-attestation.rego"));
    attest(&broker, &launched(), None).unwrap();
    assert_eq!(outcome(&broker), "contraindicated");
}

#[test]
fn a_simulated_td_is_refused_where_its_root_is_not_named() {
    let broker = TestBroker::with(|parts| {
        let directory = Some(machine().join(COLLATERAL_DIR));
        parts.collector = Collector::new(Sources { directory, ..Sources::default() }).unwrap();
    });
    refused(&attest(&broker.ready(), &launched(), None).unwrap_err(), 401, "root");
}

fn log() -> Vec<u8> {
    let data = Aael::new("kata-cc", "StartContainer", r#"{"container":"app"}"#).unwrap().to_data();
    let digest = EventDigest { algorithm: ALG, bytes: ALG.hash(&[&data]).unwrap() };
    [encode_header(&[ALG]), encode_event(4, EventType::EVENT_TAG, digest, &data)].concat()
}

#[test]
fn policies_see_runtime_events_of_a_td_whose_kernel_cannot_extend_rtmr3() {
    let broker = broker();
    let started = "executables := 2 if { some event in input.tdx.runtime_events; event.content.container == \"app\" }";
    let policy = SIMULATED_POLICY.replace("trust_claims := {", &format!("{started}\n\ntrust_claims := {{"));
    let policy = policy.split("executables := 3 if").next().unwrap().to_owned() + "hardware := 2\n\nconfiguration := 3\n";
    set_policy(&broker, &policy);
    attest(&broker, &launched(), Some(&log())).unwrap();
    assert_eq!(outcome(&broker), "affirming");
    attest(&broker, &launched(), None).unwrap();
    assert_eq!(outcome(&broker), "warning");
}

#[test]
fn ac_56_a_log_beside_a_td_whose_rtmr3_is_in_use_is_refused() {
    let mut td = launched();
    td.rtmr[3] = TdMeasurement([9; 48]);
    refused(&attest(&broker(), &td, Some(&log())).unwrap_err(), 401, "runtime-log");
}
