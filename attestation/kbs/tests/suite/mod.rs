//! What every store must do, whatever it is made of.

#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part; helpers of tests: to panic is to fail

use kata_cc_kbs::audit::{Action, Decision};
use kata_cc_kbs::session::SessionError;
use kata_cc_kbs::store::{AuditQuery, KeptManifest, PolicyName, Put, ReferenceValues, Store, StoreError};
use kata_cc_kbs_protocol::message::{Challenge, Request};
use kata_cc_kbs_protocol::{AttestedSession, AwaitAttest, ResourcePath, TeeKey};
use kata_cc_policy::reference::Kind;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Runs all of it on a store that is empty.
pub(crate) async fn everything(store: &Store) {
    store.ready().await.unwrap();
    resources(store).await;
    keys(store).await;
    policies(store).await;
    references(store).await;
    manifests(store).await;
    decisions(store).await;
    releases(store).await;
    sessions(store).await;
}

pub(crate) fn path(text: &str) -> ResourcePath {
    text.parse().unwrap()
}

async fn resources(store: &Store) {
    let (a, b) = (path("r/t/a"), path("r/t/B"));
    assert!(store.resource(&a).await.unwrap().is_none());
    assert!(!store.put_resource(&a, "one".into()).await.unwrap());
    assert!(store.put_resource(&a, "two".into()).await.unwrap());
    assert!(!store.put_resource(&b, Vec::new().into()).await.unwrap());
    assert_eq!(store.resource(&a).await.unwrap().unwrap().as_slice(), b"two");
    assert_eq!(store.resource(&b).await.unwrap().unwrap().as_slice(), b"");
    assert_eq!(store.resource_names().await.unwrap(), ["r/t/B", "r/t/a"], "in the order of bytes");
    assert!(store.delete_resource(&a).await.unwrap() && !store.delete_resource(&a).await.unwrap());
    assert!(store.resource(&a).await.unwrap().is_none());
    let large = vec![7; 2 * 1024 * 1024];
    store.put_resource(&b, large.clone().into()).await.unwrap();
    assert_eq!(*store.resource(&b).await.unwrap().unwrap(), large);
}

async fn keys(store: &Store) {
    let make = |byte: u8| move || Ok(Zeroizing::new(vec![byte; 32]));
    assert_eq!(store.key_or("suite", make(1)).await.unwrap().as_slice(), [1; 32]);
    assert_eq!(store.key_or("suite", make(2)).await.unwrap().as_slice(), [1; 32]);
    assert!(store.key_or("fails", || Err(StoreError::Corrupt("nothing"))).await.is_err());
    assert_eq!(store.key_or("fails", make(3)).await.unwrap().as_slice(), [3; 32]);
}

async fn policies(store: &Store) {
    let attestation = || PolicyName::Attestation("default_cpu".into());
    assert!(store.policy(PolicyName::Resource).await.unwrap().is_none());
    store.put_policy(PolicyName::Resource, "one".into()).await.unwrap();
    store.put_policy(PolicyName::Resource, "two".into()).await.unwrap();
    store.put_policy(attestation(), "three".into()).await.unwrap();
    assert_eq!(store.policy(PolicyName::Resource).await.unwrap().unwrap(), "two");
    assert_eq!(store.appraisal_input(attestation()).await.unwrap().policy.as_deref(), Some("three"));
    assert!(store.appraisal_input(PolicyName::Attestation("other".into())).await.unwrap().policy.is_none());
    assert_eq!(store.resource_policy().await.unwrap().as_deref(), Some("two"));
    // What decisions rest on is never older than the last change.
    store.put_policy(PolicyName::Resource, "four".into()).await.unwrap();
    store.put_policy(attestation(), "five".into()).await.unwrap();
    assert_eq!(store.resource_policy().await.unwrap().as_deref(), Some("four"));
    assert_eq!(store.appraisal_input(attestation()).await.unwrap().policy.as_deref(), Some("five"));
    assert!(store.delete_policy(PolicyName::Resource).await.unwrap() && !store.delete_policy(PolicyName::Resource).await.unwrap());
    assert!(store.policy(PolicyName::Resource).await.unwrap().is_none() && store.resource_policy().await.unwrap().is_none());
    assert!(store.delete_policy(attestation()).await.unwrap());
    assert!(store.appraisal_input(attestation()).await.unwrap().policy.is_none());
}

async fn references(store: &Store) {
    let set = |id: &str, value: Value| ReferenceValues::from([(id.to_owned(), value)]);
    store.put_reference_values(set("m", json!(["a", "b"]))).await.unwrap();
    store.put_reference_values(set("m", json!(["c"]))).await.unwrap();
    store.put_reference_values(set("smt", json!(true))).await.unwrap();
    let both = ReferenceValues::from([("m".to_owned(), json!(["c"])), ("smt".to_owned(), json!(true))]);
    assert_eq!(store.registered().await.unwrap().unsigned, both);
    assert_eq!(store.appraisal_input(PolicyName::Resource).await.unwrap().registered.unsigned, both);
    let too_many: ReferenceValues = (0..10_001).map(|i| (format!("id{i}"), json!(["x"]))).collect();
    assert!(matches!(store.put_reference_values(too_many).await, Err(StoreError::Full(_))));
    assert!(store.registered().await.unwrap().unsigned == both, "all or none");
    store.put_reference_values(set("m", json!([]))).await.unwrap();
    assert!(store.delete_reference_value("smt".into()).await.unwrap());
    for gone in ["smt", "never", "\0"] {
        assert!(!store.delete_reference_value(gone.into()).await.unwrap(), "{gone:?}");
    }
    assert!(store.registered().await.unwrap().unsigned.is_empty());
}

/// A manifest that was taken.
pub(crate) fn manifest(name: &str, serial: u64, sha256: &str) -> KeptManifest {
    KeptManifest {
        name: name.into(),
        release: "1".into(),
        serial,
        kind: Kind::Production,
        not_before: 0,
        expires: 10,
        signer: "aa".into(),
        sha256: sha256.into(),
        put_at: 5,
        put_by: "key x as admin".into(),
        values: BTreeMap::from([("snp_launch_measurement".to_owned(), vec![Value::from(sha256)])]),
    }
}

async fn manifests(store: &Store) {
    let put = async |serial, sha256, rollback| store.put_manifest(manifest("a", serial, sha256), sha256.into(), rollback).await.unwrap();
    assert_eq!(put(5, "x", false).await, Put::New);
    assert_eq!(put(5, "x", false).await, Put::Same);
    assert_eq!(put(5, "y", false).await, Put::NotNewer { highest: 5 });
    assert_eq!(put(7, "z", false).await, Put::Replaced { before: Some(5) });
    assert_eq!(put(6, "u", true).await, Put::Replaced { before: Some(7) });
    assert_eq!(put(7, "v", false).await, Put::NotNewer { highest: 7 });
    assert_eq!(store.manifest_envelope("a".into()).await.unwrap().unwrap(), "u");
    store.put_manifest(manifest("B", 1, "x"), "{}".into(), false).await.unwrap();
    assert_eq!(store.registered().await.unwrap().manifests, [manifest("B", 1, "x"), manifest("a", 6, "u")]);
    assert!(store.delete_manifest("a".into()).await.unwrap());
    for gone in ["a", "never", "\0"] {
        assert!(!store.delete_manifest(gone.into()).await.unwrap(), "{gone:?}");
        assert!(store.manifest_envelope(gone.into()).await.unwrap().is_none(), "{gone:?}");
    }
    assert_eq!(put(7, "z", false).await, Put::NotNewer { highest: 7 }, "remembered over a deletion");
    assert_eq!(put(8, "z", false).await, Put::Replaced { before: None });
}

async fn decisions(store: &Store) {
    let refusal = |at: u64, rule: &str| Decision::new(at, Action::Attest, false, "refused", rule);
    store.record(Decision::new(10, Action::ReadResource, true, "released", "r")).await.unwrap();
    store.record(Decision::new(20, Action::ReadResource, false, "denied", "r\0\u{1f980}")).await.unwrap();
    store.record(Decision::new(20, Action::ReadResource, false, "denied", "r\0\u{1f980}")).await.unwrap();
    for at in [100, 130, 159, 160] {
        store.record(refusal(at, "nonce")).await.unwrap();
    }
    let find = async |query: AuditQuery| store.decisions(AuditQuery { limit: query.limit.max(100), ..query }).await.unwrap();
    let at = |found: Vec<Value>| found.iter().map(|d| d["at"].as_u64().unwrap()).collect::<Vec<_>>();
    let all = find(AuditQuery::default()).await;
    assert_eq!(at(all.clone()), [160, 100, 20, 20, 10]);
    assert_eq!((&all[1]["times"], &all[1]["last_at"], &all[0]["times"]), (&3.into(), &159.into(), &Value::Null));
    assert_eq!(all[2]["rule"], "r\0\u{1f980}");
    assert_eq!(at(find(AuditQuery { since: Some(150), ..AuditQuery::default() }).await), [160, 100]);
    assert_eq!(at(find(AuditQuery { action: Some(Action::ReadResource), ..AuditQuery::default() }).await), [20, 20, 10]);
    assert_eq!(at(find(AuditQuery { allowed: Some(true), ..AuditQuery::default() }).await), [10]);
    let id = all[3]["id"].as_i64().unwrap();
    assert_eq!(at(find(AuditQuery { id: Some(id), ..AuditQuery::default() }).await), [20]);
    assert_eq!(at(find(AuditQuery { before: Some(id), ..AuditQuery::default() }).await), [10]);
    assert_eq!(store.decisions(AuditQuery { limit: 2, ..AuditQuery::default() }).await.unwrap().len(), 2);
}

async fn releases(store: &Store) {
    let release = |at| Decision::new(at, Action::ReadResource, true, "released", "r");
    assert!(store.release(&path("r/t/none"), release(1000), |secret| secret).await.unwrap().is_none());
    store.put_resource(&path("r/t/one"), "one".into()).await.unwrap();
    assert_eq!(store.release(&path("r/t/one"), release(1001), |secret| secret).await.unwrap().unwrap().as_slice(), b"one");
    let kept = store.decisions(AuditQuery { limit: 10, since: Some(1000), ..AuditQuery::default() }).await.unwrap();
    assert_eq!(kept.iter().map(|decision| &decision["outcome"]).collect::<Vec<_>>(), ["released", "not-found"]);
}

fn challenged(now: u64) -> (AwaitAttest, Challenge) {
    let request: Request = serde_json::from_value(json!({"version": "0.4.0", "tee": "snp", "extra-params": {}})).unwrap();
    AwaitAttest::open(&request, now, 300).unwrap()
}

/// A session that waits.
pub(crate) fn waiting(now: u64) -> AwaitAttest {
    challenged(now).0
}

/// A session with a token of so many bytes.
pub(crate) fn attested(token_len: usize, now: u64) -> AttestedSession {
    let (session, Challenge { nonce, .. }) = challenged(now);
    answered(session, &nonce, now).accept("t".repeat(token_len), now + 300)
}

fn answered(session: AwaitAttest, nonce: &str, now: u64) -> kata_cc_kbs_protocol::ToVerify {
    let attestation = json!({
        "runtime-data": {"nonce": nonce, "tee-pubkey": TeeKey::generate().unwrap().to_jwk()},
        "tee-evidence": {"primary_evidence": {}, "additional_evidence": ""},
    });
    session.attest(serde_json::from_value(attestation).unwrap(), now).unwrap()
}

async fn sessions(store: &Store) {
    let (session, Challenge { nonce, .. }) = challenged(1000);
    let id = session.id().clone();
    store.open_session(session, 1000).await.unwrap();
    assert!(store.session_token(&id, 1000).await.unwrap().is_none());
    let taken = store.take_waiting(&id, 1000).await.unwrap();
    assert!(matches!(store.take_waiting(&id, 1000).await, Err(SessionError::Unknown)), "a nonce is answered once");
    // What comes back knows its nonce.
    let session = answered(taken, &nonce, 1000).accept("token".into(), 1300);
    store.keep_attested(session, 1000).await.unwrap();
    assert!(matches!(store.take_waiting(&id, 1000).await, Err(SessionError::Attested)));
    assert_eq!(store.session_token(&id, 1299).await.unwrap().unwrap(), "token");
    assert!(store.session_token(&id, 1300).await.unwrap().is_none());

    let late = waiting(1000);
    let id = late.id().clone();
    store.open_session(late, 1000).await.unwrap();
    assert!(matches!(store.take_waiting(&id, 1300).await, Err(SessionError::Unknown)), "its time is over");

    // Those whose time is over leave when others come.
    store.open_session(waiting(1000), 1000).await.unwrap();
    store.open_session(waiting(5000), 5000).await.unwrap();
    store.keep_attested(attested(9, 5000), 5000).await.unwrap();
    assert_eq!(store.session_count().await.unwrap(), 2);
}
