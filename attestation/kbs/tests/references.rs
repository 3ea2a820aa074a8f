//! Signed reference manifests over HTTP: whose count, while they hold, and never an older one in the place of a newer.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use broker::{NOW, SIMULATED_POLICY, TestBroker, body, refused};
use http::call;
use kata_cc_kbs::config;
use kata_cc_kbs::reference::References;
use kata_cc_kbs_protocol::HttpResponse;
use kata_cc_policy::SigningKey;
use kata_cc_policy::keys::KeyKind;
use kata_cc_policy::reference::{Entry, Kind, Manifest, SignedManifest};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

const PUT: &str = "/kbs/v0/reference-value";
const PATH: &str = "/kbs/v0/reference-manifest";

/// The simulated machine's launch digest, and that its initdata is the owner's.
fn manifest(serial: u64) -> Manifest {
    let snp = json!({
        "type": "snp",
        "inputs": {"firmware": "33".repeat(32), "vmm": "qemu", "guest_features": "0x1"},
        "cpus": [{"cpu_models": ["EPYC"], "cpu_signature": 8_392_466, "launch_digests": ["ff".repeat(48), "4d".repeat(48)]}],
    });
    let owner = json!({"type": "values", "values": {"init_data": ["00".repeat(32)]}});
    Manifest {
        name: "guest".into(),
        release: format!("0.{serial}"),
        serial,
        kind: Kind::Production,
        not_before: NOW - 10,
        expires: NOW + 1000,
        entries: [snp, owner].map(|entry| serde_json::from_value::<Entry>(entry).unwrap()).to_vec(),
    }
}

struct World {
    broker: TestBroker,
    key: SigningKey,
}

/// A broker that takes manifests of one key, and nothing unsigned; the simulation's policy is in force.
fn world() -> World {
    world_with(|_| ())
}

fn world_with(change: impl FnOnce(&mut config::References)) -> World {
    let key = SigningKey::generate(KeyKind::Ed25519).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("signer.pub");
    std::fs::write(&file, key.public_key().to_pem()).unwrap();
    let mut config = config::References { signers: vec![file], ..config::References::default() };
    change(&mut config);
    let references = References::configured(&config).unwrap();
    let broker = TestBroker::changed(|_| (), |broker| broker.with_references(references));
    let policy = json!({"type": "rego", "policy_id": "default_cpu", "policy": URL_SAFE_NO_PAD.encode(SIMULATED_POLICY)});
    assert_eq!(broker.admin("POST", "/kbs/v0/attestation-policy", policy.to_string().as_bytes()).status, 200);
    World { broker, key }
}

impl World {
    fn sign(&self, manifest: &Manifest) -> Vec<u8> {
        SignedManifest::sign(manifest, &[&self.key]).unwrap()
    }

    fn put(&self, manifest: &Manifest) -> HttpResponse {
        self.broker.admin("POST", PUT, &self.sign(manifest))
    }

    fn list(&self) -> Vec<Value> {
        let answer = self.broker.admin("GET", PATH, &[]);
        serde_json::from_slice::<Value>(&answer.body).unwrap()["manifests"].as_array().unwrap().clone()
    }

    fn affirmed(&self) -> bool {
        self.broker.attest();
        self.broker.audit("action=attest&limit=1")[0]["allowed"] == true
    }
}

#[track_caller]
fn took(answer: &HttpResponse, outcome: &str) {
    assert_eq!(answer.status, 200, "{}", body(answer));
    assert_eq!(serde_json::from_slice::<Value>(&answer.body).unwrap()["outcome"], outcome);
}

#[test]
fn a_guest_is_affirmed_by_a_signed_manifest_and_only_while_it_holds() {
    let world = world();
    assert!(!world.affirmed(), "nothing is registered");
    took(&world.put(&manifest(1)), "new");
    assert!(world.affirmed());
    let decision = &world.broker.audit("action=attest&limit=1")[0];
    assert!(decision["detail"].as_str().unwrap().contains("guest 0.1 (serial 1)"), "{decision}");
    assert_eq!(world.list()[0]["standing"], "in-force");

    world.broker.clock.store(NOW + 1000, Ordering::SeqCst);
    assert!(!world.affirmed(), "it has expired");
    assert_eq!(world.list()[0]["standing"], "expired");
    refused(&world.put(&manifest(2)), 400, "expired");

    world.broker.clock.store(NOW, Ordering::SeqCst);
    assert!(world.affirmed());
    let deleted = world.broker.admin("DELETE", &format!("{PATH}/guest"), &[]);
    assert_eq!(deleted.status, 200, "{}", body(&deleted));
    assert!(!world.affirmed(), "it is deleted");
}

#[test]
fn a_manifest_of_another_key_or_kind_or_form_is_refused_and_recorded() {
    let world = world();
    let other = SigningKey::generate(KeyKind::Ed25519).unwrap();
    let post = |bytes: &[u8]| world.broker.admin("POST", PUT, bytes);
    refused(&post(&SignedManifest::sign(&manifest(1), &[&other]).unwrap()), 400, "not trusted");
    refused(&world.put(&Manifest { kind: Kind::Simulation, ..manifest(1) }), 403, "simulation");
    refused(&world.put(&Manifest { kind: Kind::Debug, ..manifest(1) }), 403, "debug");
    refused(&post(br#"{"payloadType": 1}"#), 400, "DSSE");
    let long = format!("{}{}", String::from_utf8(world.sign(&manifest(1))).unwrap(), " ".repeat(1 << 20));
    refused(&post(long.as_bytes()), 400, "1048576");
    refused(&post(&vec![b' '; (2 << 20) + 1]), 413, "larger");
    refused(&world.broker.admin("POST", &format!("{PUT}?allow_rollback=perhaps"), &world.sign(&manifest(1))), 400, "allow_rollback");
    assert!(world.list().is_empty());
    let refusals = world.broker.audit("action=set-reference-manifest&allowed=false");
    assert_eq!(refusals.len(), 5);
    assert!(refusals.iter().all(|refusal| refusal["by"].as_str().unwrap().ends_with(" as admin")), "{refusals:?}");
    assert!(!world.affirmed());
}

#[test]
fn a_broker_without_signers_takes_no_manifest() {
    let world = world_with(|config| config.signers.clear());
    refused(&world.put(&manifest(1)), 403, "signers");
}

#[test]
fn development_takes_the_kinds_that_it_names() {
    let world = world_with(|config| config.development = vec![Kind::Simulation]);
    took(&world.put(&Manifest { kind: Kind::Simulation, ..manifest(1) }), "new");
    assert!(world.affirmed());
    refused(&world.put(&Manifest { kind: Kind::Debug, ..manifest(2) }), 403, "debug");
}

#[test]
fn an_older_manifest_replaces_no_newer_one_unless_asked_for() {
    let world = world();
    took(&world.put(&manifest(5)), "new");
    took(&world.put(&manifest(5)), "same");
    refused(&world.put(&manifest(4)), 409, "allow_rollback");
    refused(&world.put(&Manifest { release: "other".into(), ..manifest(5) }), 409, "serial number 5");
    took(&world.put(&manifest(6)), "replaced");
    assert_eq!(world.broker.admin("DELETE", &format!("{PATH}/guest"), &[]).status, 200);
    refused(&world.put(&manifest(5)), 409, "6");
    took(&world.broker.admin("POST", &format!("{PUT}?allow_rollback=true"), &world.sign(&manifest(5))), "replaced");
    assert_eq!((world.list().len(), &world.list()[0]["serial"]), (1, &json!(5)));

    let sha256 = world.list()[0]["sha256"].as_str().unwrap().to_owned();
    let records = world.broker.audit("action=set-reference-manifest");
    let outcomes: Vec<&str> = records.iter().map(|record| record["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["replaced", "refused", "deleted", "replaced", "refused", "refused", "same", "new"]);
    let last = &records[0];
    assert!(last["detail"].as_str().unwrap().contains(&sha256), "{last}");
    assert!(last["by"].as_str().unwrap().starts_with("key ") && last["subject"] == "guest", "{last}");
    assert_eq!(last["claims"]["snp_launch_measurement"], 2);
}

#[test]
fn unsigned_values_are_refused_and_do_not_count_unless_allowed() {
    let plain = json!({"id": "snp_launch_measurement", "values": ["4d".repeat(48)]}).to_string();
    let world = world();
    refused(&world.broker.admin("POST", "/kbs/v0/reference-value", plain.as_bytes()), 403, "allow_unsigned");
    let open = world_with(|config| config.allow_unsigned = true);
    assert_eq!(open.broker.admin("POST", "/kbs/v0/reference-value", plain.as_bytes()).status, 200);
    let only_owner = Manifest { entries: manifest(1).entries[1..].to_vec(), ..manifest(1) };
    took(&open.put(&only_owner), "new");
    assert!(open.affirmed(), "signed and unsigned ones together");
}

#[test]
fn the_manifest_comes_back_as_it_was_put_and_its_values_are_listed() {
    let world = world();
    let envelope = world.sign(&manifest(1));
    took(&world.broker.admin("POST", PUT, &envelope), "new");
    assert_eq!(world.broker.admin("GET", &format!("{PATH}/guest"), &[]).body, envelope);
    refused(&world.broker.admin("GET", &format!("{PATH}/other"), &[]), 404, "other");
    refused(&world.broker.admin("DELETE", &format!("{PATH}/other"), &[]), 404, "other");
    let values = world.broker.admin("GET", "/kbs/v0/reference-value/snp_launch_measurement", &[]);
    assert_eq!(serde_json::from_slice::<Value>(&values.body).unwrap(), json!(["ff".repeat(48), "4d".repeat(48)]));
    refused(&world.broker.admin("DELETE", "/kbs/v0/reference-value/snp_launch_measurement", &[]), 404, "manifest");
    refused(&world.broker.as_role("auditor", "POST", PUT, &envelope), 403, "reference:write");
    refused(&world.broker.as_role("auditor", "DELETE", &format!("{PATH}/guest"), &[]), 403, "reference:write");
    assert_eq!(world.broker.as_role("auditor", "GET", PATH, &[]).status, 200);
    assert_eq!(world.broker.as_role("provisioner", "POST", PUT, &envelope).status, 200);
    assert_eq!(call(world.broker.address, "GET", PATH, &[], &[]).status, 401);
}

#[test]
fn an_administrator_learns_who_the_broker_takes_it_for() {
    let broker = TestBroker::start().ready();
    let answer = broker.as_role("auditor", "GET", "/kbs/v0/whoami", &[]);
    let told: Value = serde_json::from_slice(&answer.body).unwrap();
    assert!(told["subject"].as_str().unwrap().starts_with("key "), "{told}");
    assert_eq!(told["role"], "auditor");
    assert_eq!(told["may"], json!([{"permissions": ["resource:list", "policy:read", "reference:read", "audit:read"]}]));
    refused(&broker.as_role("nobody", "GET", "/kbs/v0/whoami", &[]), 403, "role");
    refused(&call(broker.address, "GET", "/kbs/v0/whoami", &[], &[]), 401, "Bearer");
}
