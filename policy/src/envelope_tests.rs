//! The envelope: what is signed, and every way in which it must not be accepted (AC-40).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Map, Value, json};

use super::{EnvelopeError, FORMER_PAYLOAD_TYPE, PAYLOAD_TYPE, PolicyPayload, SignedPolicy};
use crate::binding::DocumentDigests;
use crate::dsse::{DsseError, Tried, pae};
use crate::initdata::InitdataBuilder;
use crate::keys::{KeyKind, SigningKey, TrustedKeys};

fn payload(version: u64) -> PolicyPayload {
    let documents = DocumentDigests::of(&InitdataBuilder::new().document("aa.toml", "").build().unwrap());
    PolicyPayload { version, rego: "package agent_policy\nR := true".to_owned(), data: Map::new(), documents }
}

/// An envelope around any text, with a good signature.
fn sealed(key: &SigningKey, payload_type: &str, text: &str) -> Vec<u8> {
    let sig = STANDARD.encode(key.sign(&pae(payload_type, text.as_bytes())).unwrap());
    json!({"payloadType": payload_type, "payload": STANDARD.encode(text), "signatures": [{"sig": sig}]}).to_string().into_bytes()
}

/// The list of documents in a payload.
const DOCUMENTS: &str = r#""documents":{"aa.toml":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}"#;

fn trust(keys: &[&SigningKey], min_version: u64) -> TrustedKeys {
    TrustedKeys::new(keys.iter().map(|key| key.public_key()), min_version).unwrap()
}

fn keys() -> [SigningKey; 2] {
    [KeyKind::P256, KeyKind::Ed25519].map(|kind| SigningKey::generate(kind).unwrap())
}

/// The example of the protocol's text.
#[test]
fn pre_authentication_encoding_is_that_of_the_protocol() {
    assert_eq!(pae("http://example.com/HelloWorld", b"hello world"), b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
}

#[test]
fn verifies_what_a_trusted_key_signed() {
    for key in &keys() {
        let bytes = SignedPolicy::sign(&payload(3), &[key]).unwrap();
        let policy = SignedPolicy::verify(&bytes, &trust(&[key], 3)).unwrap();
        assert_eq!((policy.version(), policy.rego(), policy.key()), (3, payload(3).rego.as_str(), key.public_key().id()));
    }
}

#[test]
fn one_good_signature_of_several_is_enough() {
    let [a, b] = keys();
    let bytes = SignedPolicy::sign(&payload(1), &[&a, &b]).unwrap();
    for key in [&a, &b] {
        assert_eq!(SignedPolicy::verify(&bytes, &trust(&[key], 1)).unwrap().key(), key.public_key().id());
    }
}

#[test]
fn keyid_is_only_a_hint_and_base64_may_be_either() {
    for key in &keys() {
        let mut envelope: Value = serde_json::from_slice(&SignedPolicy::sign(&payload(1), &[key]).unwrap()).unwrap();
        envelope["signatures"][0].as_object_mut().unwrap().remove("keyid");
        let body = STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap();
        envelope["payload"] = json!(URL_SAFE.encode(body));
        envelope["extra"] = json!("ignored, as the protocol demands");
        SignedPolicy::verify(envelope.to_string().as_bytes(), &trust(&[key], 1)).unwrap();
    }
}

#[test]
fn rejects_untrusted_signer_and_says_who() {
    let [a, b] = keys();
    let bytes = SignedPolicy::sign(&payload(1), &[&a]).unwrap();
    let (expected, found) = (vec![b.public_key().id()], vec![Tried::OtherKey(a.public_key().id().to_string())]);
    let error = SignedPolicy::verify(&bytes, &trust(&[&b], 1)).unwrap_err();
    assert_eq!(error, EnvelopeError::Dsse(DsseError::Untrusted { expected, found }));
    for id in [a.public_key().id(), b.public_key().id()] {
        assert!(error.to_string().contains(&id.to_string()));
    }
}

/// Every part of the envelope that is authenticated, changed.
#[test]
fn rejects_each_mutation_of_what_is_signed() {
    for key in &keys() {
        let good: Value = serde_json::from_slice(&SignedPolicy::sign(&payload(1), &[key]).unwrap()).unwrap();
        let trusted = trust(&[key], 1);
        let verify = |envelope: Value| SignedPolicy::verify(envelope.to_string().as_bytes(), &trusted).map(drop);
        let with = |pointer: &str, value: Value| {
            let mut envelope = good.clone();
            *envelope.pointer_mut(pointer).unwrap() = value;
            envelope
        };
        verify(good.clone()).unwrap();

        let body = STANDARD.decode(good["payload"].as_str().unwrap()).unwrap();
        for i in 0..body.len() {
            let mut changed = body.clone();
            changed[i] ^= 1;
            assert!(matches!(
                verify(with("/payload", json!(STANDARD.encode(changed)))),
                Err(EnvelopeError::Dsse(DsseError::Untrusted { .. }))
            ));
        }
        let other_version = serde_json::to_vec(&payload(2)).unwrap();
        assert!(matches!(
            verify(with("/payload", json!(STANDARD.encode(other_version)))),
            Err(EnvelopeError::Dsse(DsseError::Untrusted { .. }))
        ));
        let signature = STANDARD.decode(good["signatures"][0]["sig"].as_str().unwrap()).unwrap();
        for i in 0..signature.len() {
            let mut changed = signature.clone();
            changed[i] ^= 0x10;
            assert!(verify(with("/signatures/0/sig", json!(STANDARD.encode(changed)))).is_err(), "byte {i}");
        }
        let bad = verify(with("/signatures/0/sig", json!(""))).unwrap_err();
        let found = vec![Tried::BadSignature(key.public_key().id())];
        assert_eq!(bad, EnvelopeError::Dsse(DsseError::Untrusted { expected: vec![key.public_key().id()], found }));
        assert!(matches!(
            verify(with("/payloadType", json!("application/vnd.in-toto+json"))),
            Err(EnvelopeError::Dsse(DsseError::PayloadType { .. }))
        ));
        assert!(matches!(verify(with("/payload", json!("%"))), Err(EnvelopeError::Dsse(DsseError::Base64("payload")))));
        assert!(matches!(verify(with("/signatures/0/sig", json!("%"))), Err(EnvelopeError::Dsse(DsseError::Base64("signature")))));
        assert!(matches!(verify(with("/signatures", json!([]))), Err(EnvelopeError::Dsse(DsseError::Untrusted { .. }))));
        let many = vec![good["signatures"][0].clone(); 17];
        assert!(matches!(verify(with("/signatures", json!(many))), Err(EnvelopeError::Dsse(DsseError::Signatures { found: 17 }))));
        assert!(matches!(verify(with("/signatures/0/keyid", json!("00"))), Err(EnvelopeError::Dsse(DsseError::Untrusted { .. }))));
    }
}

#[test]
fn rejects_versions_below_the_minimum() {
    let [key, _] = keys();
    let bytes = SignedPolicy::sign(&payload(4), &[&key]).unwrap();
    assert_eq!(SignedPolicy::verify(&bytes, &trust(&[&key], 5)).unwrap_err(), EnvelopeError::Version { found: 4, minimum: 5 });
    assert_eq!(SignedPolicy::sign(&payload(0), &[&key]).unwrap_err(), EnvelopeError::Version { found: 0, minimum: 1 });
}

#[test]
fn rejects_signed_payloads_that_are_no_policy() {
    let [key, _] = keys();
    let verify = |text: &str| SignedPolicy::verify(&sealed(&key, PAYLOAD_TYPE, text), &trust(&[&key], 1)).map(drop);
    verify(&format!(r#"{{"version":1,"rego":"",{DOCUMENTS}}}"#)).unwrap();
    for text in [
        String::new(),
        "{}".to_owned(),
        "[]".to_owned(),
        format!(r#"{{"version":1,{DOCUMENTS}}}"#),
        format!(r#"{{"version":1,"rego":"","x":1,{DOCUMENTS}}}"#),
        format!(r#"{{"version":-1,"rego":"",{DOCUMENTS}}}"#),
        format!(r#"{{"version":"1","rego":"",{DOCUMENTS}}}"#),
    ] {
        assert!(matches!(verify(&text), Err(EnvelopeError::Payload(_))), "{text}");
    }
    // Version 0 with a good signature, as another signer could make it.
    let text = format!(r#"{{"version":0,"rego":"",{DOCUMENTS}}}"#);
    let zero = TrustedKeys::new([key.public_key()], 0).unwrap();
    let outcome = SignedPolicy::verify(&sealed(&key, PAYLOAD_TYPE, &text), &zero);
    assert_eq!(outcome.unwrap_err(), EnvelopeError::Version { found: 0, minimum: 1 });
}

#[test]
fn rejects_a_signed_payload_that_lists_no_documents() {
    let [key, _] = keys();
    for text in [r#"{"version":1,"rego":""}"#, r#"{"version":1,"rego":"","documents":{}}"#, r#"{"version":1,"rego":"","documents":null}"#] {
        let error = SignedPolicy::verify(&sealed(&key, PAYLOAD_TYPE, text), &trust(&[&key], 1)).unwrap_err();
        assert!(matches!(&error, EnvelopeError::Payload(_)), "{text}");
        assert!(error.to_string().contains("documents"), "{error}");
    }
    let nothing = DocumentDigests::of(&InitdataBuilder::new().build().unwrap());
    let unbound = PolicyPayload { documents: nothing, ..payload(1) };
    assert!(matches!(SignedPolicy::sign(&unbound, &[&key]), Err(EnvelopeError::Payload(_))));
}

#[test]
fn rejects_the_format_before_and_says_what_to_do() {
    let [key, _] = keys();
    let old = sealed(&key, FORMER_PAYLOAD_TYPE, r#"{"version":1,"rego":"package agent_policy"}"#);
    let error = SignedPolicy::verify(&old, &trust(&[&key], 1)).unwrap_err();
    assert_eq!(error, EnvelopeError::FormerFormat);
    assert!(error.to_string().contains("does not cover initdata") && error.to_string().contains("sign the policy again"), "{error}");
    // Neither does the new name on the old signature help, nor the old payload under a new signature.
    let mut renamed: Value = serde_json::from_slice(&old).unwrap();
    renamed["payloadType"] = json!(PAYLOAD_TYPE);
    let outcome = SignedPolicy::verify(renamed.to_string().as_bytes(), &trust(&[&key], 1));
    assert!(matches!(outcome, Err(EnvelopeError::Dsse(DsseError::Untrusted { .. }))));
}

#[test]
fn rejects_what_is_no_envelope() {
    let [key, _] = keys();
    let trusted = trust(&[&key], 1);
    let good = SignedPolicy::sign(&payload(1), &[&key]).unwrap();
    for length in 0..good.len() {
        assert!(SignedPolicy::verify(&good[..length], &trusted).is_err());
    }
    let text = String::from_utf8(good).unwrap();
    let twice = text.replacen('{', &format!("{{\"payloadType\":\"{PAYLOAD_TYPE}\","), 1);
    assert!(matches!(SignedPolicy::verify(twice.as_bytes(), &trusted), Err(EnvelopeError::Dsse(DsseError::Envelope(_)))));
    assert!(matches!(SignedPolicy::verify(&vec![b' '; (1 << 20) + 1], &trusted), Err(EnvelopeError::Dsse(DsseError::TooLarge { .. }))));
}
