//! Sealed secrets: made, opened, changed, and made by somebody else.

use super::*;
use crate::secret::SecretBytes;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const KEK: [u8; 32] = [7; 32];

fn path(text: &str) -> ResourcePath {
    text.parse().expect("a path")
}

fn keys() -> (SigningKey, VerifyingKey) {
    let key = SigningKey::generate().expect("random");
    let public = VerifyingKey::from_jwk(key.public_jwk().as_bytes()).expect("a key");
    (key, public)
}

fn envelope(key: &SigningKey) -> String {
    seal_envelope(b"the secret", &KEK, &path("default/kek/1"), &path("default/sealing/1"), key).expect("seals")
}

/// A payload of any form, signed under a header of any form.
fn signed(header: &Value, payload: &Value, key: &SigningKey) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(payload.to_string()));
    let signature = key.sign(text.as_bytes()).expect("signs");
    format!("sealed.{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn header() -> Value {
    json!({ "alg": "ES256", "kid": "kbs:///default/sealing/1" })
}

fn payload_of(text: &str) -> Value {
    let payload = text.split('.').nth(2).expect("a payload");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).expect("base64url")).expect("JSON")
}

fn open(text: &str, public: &VerifyingKey, resource: &[u8]) -> Result<SecretBytes, SealedError> {
    UnverifiedSecret::parse(text)?.verify(public)?.open(SecretBytes::new(resource.to_vec()))
}

/// CoCo's own sample of a vault secret, `confidential-data-hub/hub/src/secret/tests/vault-2.json`.
fn sample() -> Value {
    json!({
        "version": "0.1.0", "type": "vault", "name": "kbs:///one/2/trois", "provider": "kbs", "provider_settings": {}, "annotations": {}
    })
}

#[test]
fn a_vault_secret_is_what_is_at_the_broker() {
    let (key, public) = keys();
    let text = seal_vault(&path("default/db/password"), &path("default/sealing/1"), &key).expect("seals");
    let unverified = UnverifiedSecret::parse(&text).expect("parses");
    assert_eq!(unverified.kid(), &path("default/sealing/1"));
    let sealed = unverified.verify(&public).expect("verifies");
    assert_eq!((sealed.kind(), sealed.resource()), ("vault", &path("default/db/password")));
    assert_eq!(sealed.open(SecretBytes::new(b"from the broker".to_vec())).expect("opens").expose(), b"from the broker");
}

#[test]
fn an_envelope_is_opened_by_the_key_at_the_broker_and_by_no_other() {
    let (key, public) = keys();
    let text = envelope(&key);
    let sealed = UnverifiedSecret::parse(&text).expect("parses").verify(&public).expect("verifies");
    assert_eq!((sealed.kind(), sealed.resource()), ("envelope", &path("default/kek/1")));
    assert_eq!(open(&text, &public, &KEK).expect("opens").expose(), b"the secret");
    assert_eq!(open(&text, &public, &[8; 32]).map(|_| ()), Err(SealedError::Open { what: "encrypted_key" }));
    assert_eq!(open(&text, &public, &[7; 31]).map(|_| ()), Err(SealedError::KeyLength { found: 31 }));
}

#[test]
fn coco_headers_and_payloads_are_taken() {
    let (key, public) = keys();
    // As CoCo's tool writes it, and with the members that change nothing.
    for extra in [json!({}), json!({"b64": true}), json!({"b64": true, "crit": ["b64"]}), json!({"typ": "JOSE"})] {
        let mut header = header();
        header.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let sealed = UnverifiedSecret::parse(&signed(&header, &sample(), &key)).expect("parses").verify(&public).expect("verifies");
        assert_eq!(sealed.resource(), &path("one/2/trois"));
    }
    let mut without = sample();
    without.as_object_mut().expect("an object").remove("annotations");
    assert!(open(&signed(&header(), &without, &key), &public, b"x").is_ok());
}

#[test]
fn refuses_what_was_changed_anywhere() {
    let (key, public) = keys();
    for text in [envelope(&key), seal_vault(&path("a/b/c"), &path("a/b/k"), &key).expect("seals")] {
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("ASCII");
            assert!(open(&changed, &public, &KEK).is_err(), "byte {at}");
        }
        for cut in 0..text.len() {
            assert!(open(&text[..cut], &public, &KEK).is_err(), "cut at {cut}");
        }
    }
}

#[test]
fn refuses_another_key_and_parts_of_two_secrets() {
    let ((key, public), (other, _)) = (keys(), keys());
    assert_eq!(open(&envelope(&other), &public, &KEK).map(|_| ()), Err(SealedError::Signature));
    let (one, two) = (envelope(&key), envelope(&key));
    let (one, two): (Vec<&str>, Vec<&str>) = (one.split('.').collect(), two.split('.').collect());
    assert_eq!(open(&[one[0], one[1], two[2], one[3]].join("."), &public, &KEK).map(|_| ()), Err(SealedError::Signature));
}

#[test]
fn refuses_secrets_that_are_not_signed() {
    let payload = URL_SAFE_NO_PAD.encode(sample().to_string());
    let parse = |text: &str| UnverifiedSecret::parse(text).map(|_| ());
    assert_eq!(parse(&format!("sealed.fakejwsheader.{payload}.fakesignature")), Err(SealedError::Header));
    assert_eq!(parse(&format!("sealed.fakeheader.{payload}.fakesignature")), Err(SealedError::Header));
    assert_eq!(parse(&format!("sealed..{payload}.")), Err(SealedError::Header));
    let (key, _) = keys();
    for (header, expected) in [
        (json!({"alg": "none", "kid": "kbs:///a/b/c"}), SealedError::Algorithm),
        (json!({"alg": "HS256", "kid": "kbs:///a/b/c"}), SealedError::Algorithm),
        (json!({"alg": "ES256"}), SealedError::Header),
        (json!({"alg": "ES256", "kid": "kbs:///a/b/c", "jwk": {}}), SealedError::Header),
        (json!({"alg": "ES256", "kid": "kbs:///a/b/c", "b64": false}), SealedError::Critical),
        (json!({"alg": "ES256", "kid": "kbs:///a/b/c", "crit": ["exp"]}), SealedError::Critical),
        (json!({"alg": "ES256", "kid": "test-key"}), SealedError::KeyId(ResourcePathError::Uri)),
        (json!({"alg": "ES256", "kid": "kbs://other.example/a/b/c"}), SealedError::KeyId(ResourcePathError::Uri)),
    ] {
        assert_eq!(parse(&signed(&header, &sample(), &key)), Err(expected), "{header}");
    }
    let good = signed(&header(), &sample(), &key);
    for bad in [String::new(), "sealed.".into(), "sealed".into(), good.replacen("sealed.", "", 1), format!("{good}.x"), format!("{good}=")]
    {
        assert!(parse(&bad).is_err(), "{bad}");
    }
    let long = format!("sealed.{}", "A".repeat(MAX_SEALED));
    assert_eq!(parse(&long), Err(SealedError::TooLong { found: long.len() }));
}

#[test]
fn refuses_payloads_of_another_form_though_they_are_signed() {
    let (key, public) = keys();
    let verify = |payload: &Value| {
        let unverified = UnverifiedSecret::parse(&signed(&header(), payload, &key)).expect("parses");
        unverified.verify(&public).map(|_| ())
    };
    let with = |base: &Value, field: &str, value: Value| {
        let mut changed = base.clone();
        changed[field] = value;
        changed
    };
    let vault = sample();
    let envelope = payload_of(&envelope(&key));
    assert_eq!((verify(&vault), verify(&envelope)), (Ok(()), Ok(())));
    assert_eq!(verify(&with(&vault, "provider", json!("aliyun"))), Err(SealedError::Provider { found: "aliyun".into() }));
    assert_eq!(verify(&with(&vault, "version", json!("0.2.0"))), Err(SealedError::Version { found: "0.2.0".into() }));
    assert_eq!(verify(&with(&envelope, "wrap_type", json!("A256CTR"))), Err(SealedError::WrapType { field: "wrap_type" }));
    let ctr = with(&envelope, "annotations", json!({ "iv": STANDARD.encode([0; 12]), "wrap_type": "A256CTR" }));
    assert_eq!(verify(&ctr), Err(SealedError::WrapType { field: "annotations.wrap_type" }));
    for (base, field, value) in [
        (&vault, "type", json!("other")),
        (&vault, "name", json!("xxx")),
        (&vault, "name", json!("kbs:///a/../c")),
        (&vault, "name", json!(null)),
        (&vault, "provider_settings", json!({ "kms_instance_id": "x" })),
        (&vault, "provider_settings", json!(null)),
        (&vault, "annotations", json!({ "x": "y" })),
        (&vault, "iv", json!("AAAA")),
        (&vault, "other", json!(1)),
        (&envelope, "name", json!("kbs:///a/b/c")),
        (&envelope, "key_id", json!("kbs:///a/b")),
        (&envelope, "encrypted_key", json!("***")),
        (&envelope, "encrypted_data", json!(null)),
        (&envelope, "iv", json!(STANDARD.encode([0; 11]))),
        (&envelope, "annotations", json!({ "wrap_type": "A256GCM" })),
        (&envelope, "annotations", json!({ "iv": STANDARD.encode([0; 12]), "wrap_type": "A256GCM", "x": "" })),
    ] {
        assert!(verify(&with(base, field, value.clone())).is_err(), "{field} {value}");
    }
}

#[test]
fn an_envelope_whose_ciphertext_was_exchanged_before_signing_does_not_open() {
    let (key, public) = keys();
    let good = payload_of(&envelope(&key));
    for (field, what) in [("encrypted_key", "encrypted_key"), ("encrypted_data", "encrypted_data"), ("iv", "encrypted_data")] {
        let mut bytes = STANDARD.decode(good[field].as_str().expect("text")).expect("base64");
        bytes[0] ^= 1;
        let mut changed = good.clone();
        changed[field] = STANDARD.encode(bytes).into();
        assert_eq!(open(&signed(&header(), &changed, &key), &public, &KEK).map(|_| ()), Err(SealedError::Open { what }), "{field}");
    }
}

#[test]
fn keys_are_taken_in_the_form_of_cocos_tool() {
    // The public half of `confidential-data-hub/hub/src/secret/tests/test-key.json`, and the whole of it.
    let jwk = json!({
        "kty": "EC", "use": "sig", "crv": "P-256", "kid": "test-key", "alg": "ES256",
        "x": "QT3_slJmispaOwnAo6hxebXGLRuiveFuRCLpS4j4S4k", "y": "jcDn4N4nRBQ-a7_D3qjqtb6hwOAXh_ve1wvibPSi1G0",
    });
    let mut private = jwk.clone();
    private["d"] = "7baJLiTk68NcLgYPv05jJvElqoAhbzi1ZWx4OyILUtA".into();
    let key = SigningKey::from_jwk(private.to_string().as_bytes()).expect("a key");
    let public = VerifyingKey::from_jwk(jwk.to_string().as_bytes()).expect("a key");
    assert!(open(&envelope(&key), &public, &KEK).is_ok());
    // A private key at the broker is everybody's who may read it.
    assert_eq!(VerifyingKey::from_jwk(private.to_string().as_bytes()), Err(SealedError::PrivateKey));
    for (field, value) in [
        ("kty", "RSA"),
        ("crv", "P-384"),
        ("alg", "ES384"),
        ("use", "enc"),
        ("x", "AAAA"),
        ("y", "QT3_slJmispaOwnAo6hxebXGLRuiveFuRCLpS4j4S4k"),
    ] {
        let mut bad = jwk.clone();
        bad[field] = value.into();
        assert_eq!(VerifyingKey::from_jwk(bad.to_string().as_bytes()), Err(SealedError::Key), "{field}");
        let mut bad = private.clone();
        bad[field] = value.into();
        assert!(SigningKey::from_jwk(bad.to_string().as_bytes()).is_err(), "{field}");
    }
    for d in ["", "7baJ", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        private["d"] = d.into();
        assert!(SigningKey::from_jwk(private.to_string().as_bytes()).is_err(), "{d:?}");
    }
    assert_eq!(VerifyingKey::from_jwk(b"not JSON"), Err(SealedError::Key));
    assert!(SigningKey::from_jwk(jwk.to_string().as_bytes()).is_err());
}

#[test]
fn a_signing_key_survives_storing_and_is_not_printed() {
    let (key, public) = keys();
    let again = SigningKey::from_jwk(key.to_jwk().as_bytes()).expect("a key");
    assert!(open(&envelope(&again), &public, &KEK).is_ok());
    let d = serde_json::from_str::<Value>(&key.to_jwk()).expect("JSON")["d"].as_str().expect("text").to_owned();
    assert!(!format!("{key:?}").contains(&d) && !key.public_jwk().contains(&d));
}

#[test]
fn neither_errors_nor_debug_show_what_is_sealed() {
    let (key, public) = keys();
    let text = seal_vault(&path("default/db/password"), &path("default/sealing/1"), &key).expect("seals");
    let payload = text.split('.').nth(2).expect("a payload").to_owned();
    let unverified = UnverifiedSecret::parse(&text).expect("parses");
    assert!(!format!("{unverified:?}").contains(&payload));
    let sealed = unverified.verify(&public).expect("verifies");
    assert_eq!(format!("{sealed:?}"), "SealedSecret(vault by default/db/password)");
}
