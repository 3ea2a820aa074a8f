//! Manifests: what is signed comes back, and everything that must not be taken is not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Kind, Manifest, ManifestError, PAYLOAD_TYPE, SignedManifest, Validity};
use crate::binding::DocumentDigests;
use crate::dsse::{self, DsseError};
use crate::envelope::{self, EnvelopeError, PolicyPayload, SignedPolicy};
use crate::initdata::InitdataBuilder;
use crate::keys::{KeyKind, SigningKey, TrustedKeys};

/// An entry of each type, in the JSON form of version 1.
fn document() -> Value {
    let boot = json!({"kernel": "11".repeat(32), "initrd": "22".repeat(32), "cmdline": "console=ttyS0 quiet"});
    json!({
        "name": "kata-cc-guest", "release": "0.4.0", "serial": 7, "kind": "production", "not_before": 1000, "expires": 2000,
        "entries": [
            {"type": "snp",
             "inputs": {"firmware": "33".repeat(32), "boot": boot, "vmm": "QEMU", "guest_features": "0x1"},
             "cpus": [{"cpu_models": ["EPYC", "EPYC-v4"], "cpu_signature": 8_392_466, "launch_digests": ["aa".repeat(48), "ab".repeat(48)]}]},
            {"type": "tdx",
             "inputs": {"firmware": "44".repeat(32), "boot": boot, "vmm": "QEMU 10.1"},
             "mr_td": ["b0".repeat(48)], "rtmr_0": ["b1".repeat(48)], "rtmr_1": ["b2".repeat(48)], "rtmr_2": ["b3".repeat(48)]},
            {"type": "se", "inputs": boot, "image_phkh": ["c0".repeat(32)], "tags": ["c1".repeat(16)]},
            {"type": "values", "values": {"snp_bootloader": [4], "policy_trusted_keys": ["-----BEGIN PUBLIC KEY-----\n"], "x": [true]}},
        ],
    })
}

fn manifest() -> Manifest {
    serde_json::from_value(document()).unwrap()
}

fn key() -> SigningKey {
    SigningKey::generate(KeyKind::P256).unwrap()
}

fn trust(key: &SigningKey) -> TrustedKeys {
    TrustedKeys::new([key.public_key()], 0).unwrap()
}

/// A good signature over any document.
fn sealed(key: &SigningKey, document: &Value) -> Vec<u8> {
    dsse::sign(document.to_string().as_bytes(), PAYLOAD_TYPE, &[key]).unwrap()
}

#[track_caller]
fn refused(document: &Value, field: &str) {
    let key = key();
    match SignedManifest::verify(&sealed(&key, document), &trust(&key)) {
        Err(error @ (ManifestError::Document(_) | ManifestError::Field { .. })) => {
            assert!(error.to_string().contains(field), "{error}");
            // What a reader would refuse is not signed.
            if let Ok(manifest) = serde_json::from_value::<Manifest>(document.clone()) {
                assert!(SignedManifest::sign(&manifest, &[&key]).is_err());
            }
        }
        other => panic!("{field}: {other:?}"),
    }
}

fn with(pointer: &str, value: Value) -> Value {
    let mut changed = document();
    *changed.pointer_mut(pointer).expect(pointer) = value;
    changed
}

#[test]
fn what_was_signed_comes_back_with_its_signer() {
    for kind in [KeyKind::P256, KeyKind::Ed25519] {
        let key = SigningKey::generate(kind).unwrap();
        let verified = SignedManifest::verify(&SignedManifest::sign(&manifest(), &[&key]).unwrap(), &trust(&key)).unwrap();
        assert_eq!((verified.manifest(), verified.signer()), (&manifest(), key.public_key().id()));
        assert_eq!(serde_json::to_value(verified.manifest()).unwrap(), document());
    }
}

#[test]
fn values_have_the_ids_that_policies_ask_for() {
    let mut doubled = document();
    let entry = doubled["entries"][0].clone();
    doubled["entries"].as_array_mut().unwrap().push(entry);
    let values = serde_json::to_value(serde_json::from_value::<Manifest>(doubled).unwrap().values()).unwrap();
    let expected = json!({
        "snp_launch_measurement": ["aa".repeat(48), "ab".repeat(48)], "mr_td": ["b0".repeat(48)], "rtmr_0": ["b1".repeat(48)],
        "rtmr_1": ["b2".repeat(48)], "rtmr_2": ["b3".repeat(48)], "se_image_phkh": ["c0".repeat(32)], "se_tag": ["c1".repeat(16)],
        "snp_bootloader": [4], "policy_trusted_keys": ["-----BEGIN PUBLIC KEY-----\n"], "x": [true],
    });
    assert_eq!(values, expected, "each value once");
}

#[test]
fn holds_from_its_first_second_until_before_its_last() {
    let at = |now| manifest().validity(now);
    assert_eq!([at(999), at(1000), at(1999), at(2000)], [Validity::NotYet, Validity::Valid, Validity::Valid, Validity::Expired]);
}

/// The same key signs both; neither passes for the other, also where the host of the envelope changes its type.
#[test]
fn a_policy_is_no_manifest_and_a_manifest_no_policy() {
    let key = key();
    let documents = DocumentDigests::of(&InitdataBuilder::new().document("aa.toml", "").build().unwrap());
    let policy = PolicyPayload { version: 1, rego: "package agent_policy".into(), data: serde_json::Map::new(), documents };
    let policy = SignedPolicy::sign(&policy, &[&key]).unwrap();
    let manifest = SignedManifest::sign(&manifest(), &[&key]).unwrap();
    assert!(SignedPolicy::verify(&policy, &trust(&key)).is_ok() && SignedManifest::verify(&manifest, &trust(&key)).is_ok());

    let as_manifest = SignedManifest::verify(&policy, &trust(&key)).unwrap_err();
    assert!(matches!(as_manifest, ManifestError::Dsse(DsseError::PayloadType { .. })), "{as_manifest}");
    let as_policy = SignedPolicy::verify(&manifest, &trust(&key)).unwrap_err();
    assert!(matches!(as_policy, EnvelopeError::Dsse(DsseError::PayloadType { .. })), "{as_policy}");

    let retyped = |bytes: &[u8], payload_type: &str| {
        let mut envelope: Value = serde_json::from_slice(bytes).unwrap();
        envelope["payloadType"] = json!(payload_type);
        envelope.to_string().into_bytes()
    };
    let as_manifest = SignedManifest::verify(&retyped(&policy, PAYLOAD_TYPE), &trust(&key)).unwrap_err();
    assert!(matches!(as_manifest, ManifestError::Dsse(DsseError::Untrusted { .. })), "{as_manifest}");
    let as_policy = SignedPolicy::verify(&retyped(&manifest, envelope::PAYLOAD_TYPE), &trust(&key)).unwrap_err();
    assert!(matches!(as_policy, EnvelopeError::Dsse(DsseError::Untrusted { .. })), "{as_policy}");
}

#[test]
fn rejects_each_byte_changed_after_signing_and_other_signers() {
    let key = key();
    let good: Value = serde_json::from_slice(&SignedManifest::sign(&manifest(), &[&key]).unwrap()).unwrap();
    let body = STANDARD.decode(good["payload"].as_str().unwrap()).unwrap();
    for i in (0..body.len()).step_by(7) {
        let mut changed = body.clone();
        changed[i] ^= 1;
        let mut envelope = good.clone();
        envelope["payload"] = json!(STANDARD.encode(changed));
        let error = SignedManifest::verify(envelope.to_string().as_bytes(), &trust(&key)).unwrap_err();
        assert!(matches!(error, ManifestError::Dsse(DsseError::Untrusted { .. })), "byte {i}: {error}");
    }
    let error = SignedManifest::verify(good.to_string().as_bytes(), &trust(&self::key())).unwrap_err();
    assert!(matches!(error, ManifestError::Dsse(DsseError::Untrusted { .. })), "{error}");
}

#[test]
fn rejects_unknown_and_missing_fields_at_every_level() {
    fn objects(value: &Value, at: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.push(at.to_owned());
                fields.iter().for_each(|(name, inner)| objects(inner, &format!("{at}/{name}"), found));
            }
            Value::Array(list) => list.iter().enumerate().for_each(|(i, inner)| objects(inner, &format!("{at}/{i}"), found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    objects(&document(), "", &mut found);
    found.retain(|at| at != "/entries/3/values");
    assert_eq!(found.len(), 11);
    let optional = ["/entries/0/inputs/boot", "/entries/1/inputs/boot", "/entries/1/rtmr_0"];
    for at in &found {
        let mut unknown = document();
        unknown.pointer_mut(at).unwrap()["surprise"] = json!(1);
        refused(&unknown, "surprise");
        for name in document().pointer(at).unwrap().as_object().unwrap().keys() {
            let mut missing = document();
            missing.pointer_mut(at).unwrap().as_object_mut().unwrap().remove(name);
            if !optional.contains(&format!("{at}/{name}").as_str()) && name != "initrd" {
                refused(&missing, if name == "cpu_signature" { "cpu_models" } else { name });
            }
        }
    }
}

#[test]
fn rejects_each_part_that_has_no_sense() {
    let long = "a".repeat(129);
    for (pointer, field, bad) in [
        ("/name", "name", vec![json!(""), json!("a b"), json!("a/b"), json!(".."), json!(long)]),
        ("/release", "release", vec![json!(""), json!("1\n2"), json!(long)]),
        ("/serial", "serial", vec![json!(0), json!(u64::MAX)]),
        ("/serial", "invalid", vec![json!(-1), json!("7"), json!(1.5)]),
        ("/kind", "variant", vec![json!("Production"), json!("test"), json!("")]),
        ("/expires", "expires", vec![json!(1000), json!(0), json!(u64::MAX)]),
        ("/entries", "entries", vec![json!([]), json!(vec![document()["entries"][0].clone(); 65])]),
        ("/entries/0/type", "variant", vec![json!("sgx"), json!("SNP")]),
        ("/entries/0/inputs/firmware", "hexadecimal", vec![json!("33"), json!("AA".repeat(32)), json!("zz".repeat(32))]),
        ("/entries/0/inputs/guest_features", "0x1", vec![json!("1"), json!("0x+1"), json!("0x"), json!("0x11111111111111111")]),
        ("/entries/0/inputs/guest_features", "invalid", vec![json!(1)]),
        ("/entries/0/inputs/vmm", "vmm", vec![json!(""), json!("QEMU\u{7}")]),
        ("/entries/0/inputs/boot/cmdline", "cmdline", vec![json!("a\0b"), json!("a".repeat(4097))]),
        ("/entries/2/inputs/cmdline", "cmdline", vec![json!("a\0b")]),
        ("/entries/0/cpus", "cpus", vec![json!([])]),
        ("/entries/0/cpus/0/cpu_models", "cpu_models", vec![json!([]), json!([""])]),
        ("/entries/0/cpus/0/launch_digests", "launch_digests", vec![json!([])]),
        ("/entries/0/cpus/0/launch_digests/0", "hexadecimal", vec![json!("aa".repeat(47)), json!("aa".repeat(49)), json!("AA".repeat(48))]),
        ("/entries/1/mr_td", "mr_td", vec![json!([])]),
        ("/entries/1/rtmr_1", "rtmr_1", vec![json!([])]),
        ("/entries/1/rtmr_2", "rtmr_2", vec![json!([])]),
        ("/entries/2/tags", "tags", vec![json!([])]),
        ("/entries/2/image_phkh", "image_phkh", vec![json!([])]),
        ("/entries/3/values", "values", vec![json!({}), json!({"x": []}), json!({"x": [{}]}), json!({"x": [null]}), json!({"a b": [1]})]),
        ("/entries/3/values", "measured", vec![json!({"snp_launch_measurement": ["aa"]}), json!({"mr_td": ["aa"]})]),
        ("/entries/3/values", "values", vec![json!({"x": ["a".repeat(4097)]}), json!({"x": (0..6001).collect::<Vec<_>>()})]),
    ] {
        for value in bad {
            refused(&with(pointer, value), field);
        }
    }
}

#[test]
fn rejects_a_key_that_is_given_twice() {
    let key = key();
    for (once, twice) in [
        (r#""serial":7"#, r#""serial":7,"serial":8"#),
        (r#""type":"se""#, r#""type":"se","type":"tdx""#),
        (r#""snp_bootloader":[4]"#, r#""snp_bootloader":[4],"snp_bootloader":[0]"#),
        (r#""guest_features":"0x1""#, r#""guest_features":"0x1","guest_features":"0x3""#),
    ] {
        let text = document().to_string();
        assert!(text.contains(once), "{once}");
        let sealed = dsse::sign(text.replace(once, twice).as_bytes(), PAYLOAD_TYPE, &[&key]).unwrap();
        let error = SignedManifest::verify(&sealed, &trust(&key)).unwrap_err();
        assert!(matches!(error, ManifestError::Document(_)), "{error}");
    }
}

#[test]
fn kinds_are_told_by_their_names() {
    for kind in [Kind::Production, Kind::Debug, Kind::Simulation] {
        assert_eq!(kind.to_string().parse(), Ok(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), json!(kind.as_str()));
    }
    assert!("Production".parse::<Kind>().is_err());
}

/// RFC 8410, section 10. Ed25519 signatures are the same each time.
const SAMPLE_KEY: &str =
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";

/// What version 1 looks like on the wire. It stays readable: a change of the format gets a new payload type.
#[test]
fn the_sample_of_version_1_is_read_and_written_as_ever() {
    let sample = include_str!("sample-v1.dsse.json").trim_end();
    let key = SigningKey::from_pkcs8_pem(SAMPLE_KEY).unwrap();
    assert_eq!(String::from_utf8(SignedManifest::sign(&manifest(), &[&key]).unwrap()).unwrap(), sample);
    let verified = SignedManifest::verify(sample.as_bytes(), &trust(&key)).unwrap();
    assert_eq!(verified.manifest(), &manifest());
    assert_eq!(verified.digest().to_string(), SAMPLE_DIGEST);
}

const SAMPLE_DIGEST: &str = "c5c40650bb2daa96adf43f2fb0bf41ce876c8907a0b8baf7669b5ffc60d3185b";
