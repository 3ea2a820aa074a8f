//! The guest's runtime event log beside SNP evidence: bound by the report, shown to policies, refused where it is anything else.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use broker::{TestBroker, evidence, refused};
use kata_cc_evidence::TeeType;
use kata_cc_evidence::eventlog::{Aael, EventDigest, EventType, HashAlgorithm, encode_event, encode_header};
use kata_cc_kbs_protocol::{ClientSession, HttpResponse};
use serde_json::{Value, json};

const ALG: HashAlgorithm = HashAlgorithm::SHA384;

fn log(register: u32) -> Vec<u8> {
    long_log(register, 1)
}

fn long_log(register: u32, events: usize) -> Vec<u8> {
    let data = Aael::new("kata-cc", "StartContainer", r#"{"container":"app"}"#).unwrap().to_data();
    let digest = EventDigest { algorithm: ALG, bytes: ALG.hash(&[&data]).unwrap() };
    [encode_header(&[ALG]), encode_event(register, EventType::EVENT_TAG, digest, &data).repeat(events)].concat()
}

/// Attests with a log. `sent` makes what is sent of what the evidence binds.
fn attest(broker: &TestBroker, log: &[u8], sent: impl FnOnce(&mut Value)) -> HttpResponse {
    let (state, request) = ClientSession::start(TeeType::Snp);
    let state = state.handle(&broker.send(&request)).unwrap();
    assert!(state.takes_runtime_log());
    let state = state.with_runtime_log(log).unwrap();
    let evidence = evidence(state.report_data().0);
    let (_, mut request) = state.submit(evidence, None).unwrap();
    let mut body = serde_json::from_slice(&request.body).unwrap();
    sent(&mut body);
    request.body = serde_json::to_vec(&body).unwrap();
    broker.send(&request)
}

/// Affirms only guests that have started a container.
fn ready() -> TestBroker {
    let broker = TestBroker::start().ready();
    let policy = r#"
package policy
import rego.v1
started if {
    some event in input.snp.runtime_events
    event.operation == "StartContainer"
    event.content.container == "app"
}
default executables := 33
executables := 2 if started
trust_claims := {"executables": executables, "hardware": 2, "configuration": 2}
"#;
    let body = json!({"type": "rego", "policy_id": "default_cpu", "policy": URL_SAFE_NO_PAD.encode(policy)});
    assert_eq!(broker.admin("POST", "/kbs/v0/attestation-policy", body.to_string().as_bytes()).status, 200);
    broker
}

fn outcomes(broker: &TestBroker) -> Vec<String> {
    broker.audit("action=attest").iter().map(|decision| decision["outcome"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn policies_see_runtime_events_that_the_report_binds() {
    let broker = ready();
    assert_eq!(attest(&broker, &log(4), |_| ()).status, 200);
    assert_eq!(outcomes(&broker), ["affirming"]);
    // Evidence without a log is evidence as before.
    broker.attest();
    assert_eq!(outcomes(&broker).iter().filter(|outcome| *outcome == "affirming").count(), 1);
}

#[test]
fn a_pod_that_has_done_much_attests_again() {
    let broker = ready();
    assert_eq!(attest(&broker, &long_log(4, 4000), |_| ()).status, 200);
    let decision = &broker.audit("action=attest")[0];
    assert_eq!((&decision["outcome"], &decision["claims"]["left_out"]), (&json!("affirming"), &json!(["runtime_events"])));
}

#[test]
fn a_log_that_the_report_does_not_bind_is_refused() {
    let broker = ready();
    let cut = |body: &mut Value| body["tee-evidence"]["additional_evidence"] = "".into();
    refused(&attest(&broker, &log(4), cut), 401, "report-data");
    let other = |body: &mut Value| body["tee-evidence"]["additional_evidence"] = r#"{"kata-cc-runtime-log":""}"#.into();
    refused(&attest(&broker, &log(4), other), 401, "report-data");
}

#[test]
fn a_log_with_anything_but_runtime_events_is_refused() {
    let broker = ready();
    refused(&attest(&broker, &log(3), |_| ()), 401, "runtime-log");
    refused(&attest(&broker, b"log", |_| ()), 401, "runtime-log");
    let devices = |body: &mut Value| body["tee-evidence"]["additional_evidence"] = r#"{"nvidia":"{}"}"#.into();
    refused(&attest(&broker, &log(4), devices), 400, "additional_evidence");
}
