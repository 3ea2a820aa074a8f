//! A real token of a public test suite, and made-up ones each part of which is bent.

use super::*;
use crate::checks::Outcome;
use crate::vectors::{read, vectors};
use crate::{Trust, Verifiers};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coset::cbor::value::Value as Cbor;
use coset::iana::Algorithm;
use coset::{CoseSign1Builder, HeaderBuilder, TaggedCborSerializable as _};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

const TRUSTEE: &str = "confidential-containers/trustee/deps/verifier/test_data/cca";
const REPORT_DATA: ReportData = ReportData([0x51; 64]);
const DIGEST: [u8; 48] = [0x52; 48];

fn key() -> EcdsaKeyPair {
    let rng = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &rng).expect("random");
    EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, pkcs8.as_ref(), &rng).expect("a key")
}

/// A platform with a realm on it: every claim and key a test may want to bend.
struct Made {
    platform_key: EcdsaKeyPair,
    /// That the trust anchor has.
    trusted_key: Vec<u8>,
    realm_key: EcdsaKeyPair,
    algorithm: Algorithm,
    platform: Vec<(i64, Cbor)>,
    realm: Vec<(i64, Cbor)>,
    collection: Vec<i64>,
    tag: u64,
}

fn map(entries: &[(i64, Cbor)]) -> Cbor {
    Cbor::Map(entries.iter().map(|(label, value)| (Cbor::from(*label), value.clone())).collect())
}

fn bytes(value: &Cbor) -> Vec<u8> {
    let mut bytes = Vec::new();
    coset::cbor::ser::into_writer(value, &mut bytes).expect("encodes");
    bytes
}

fn set(claims: &mut Vec<(i64, Cbor)>, label: i64, value: impl Into<Cbor>) {
    claims.retain(|(known, _)| *known != label);
    claims.push((label, value.into()));
}

impl Made {
    fn new() -> Self {
        let (platform_key, realm_key) = (key(), key());
        let public = realm_key.public_key().as_ref().to_vec();
        let component =
            map(&[(1, "RMM".into()), (2, vec![3; 32].into()), (4, "1.0".into()), (5, vec![4; 32].into()), (6, "sha-256".into())]);
        Self {
            trusted_key: platform_key.public_key().as_ref().to_vec(),
            platform: vec![
                (265, token::PROFILE.into()),
                (10, digest(&SHA256, &public).as_ref().to_vec().into()),
                (2396, vec![1; 32].into()),
                (256, vec![1; 33].into()),
                (2401, vec![0xcf; 4].into()),
                (2395, 0x3003.into()),
                (2402, "sha-256".into()),
                (2399, Cbor::Array(vec![component])),
            ],
            realm: vec![
                (10, REPORT_DATA.as_bytes().to_vec().into()),
                (44235, [DIGEST.as_slice(), &[0; 16]].concat().into()),
                (44237, public.into()),
                (44240, "sha-256".into()),
                (44238, vec![5; 64].into()),
                (44236, "sha-512".into()),
                (44239, Cbor::Array(vec![vec![6; 64].into(); 4])),
            ],
            platform_key,
            realm_key,
            algorithm: Algorithm::ES384,
            collection: vec![44234, 44241],
            tag: 399,
        }
    }

    fn sign(&self, claims: &[(i64, Cbor)], key: &EcdsaKeyPair) -> Vec<u8> {
        let header = HeaderBuilder::new().algorithm(self.algorithm).build();
        let cose = CoseSign1Builder::new().protected(header).payload(bytes(&map(claims)));
        let sign = |message: &[u8]| key.sign(&SystemRandom::new(), message).expect("signs").as_ref().to_vec();
        cose.create_signature(&[], sign).build().to_tagged_vec().expect("encodes")
    }

    fn token(&self) -> Vec<u8> {
        let parts = [self.sign(&self.platform, &self.platform_key), self.sign(&self.realm, &self.realm_key)];
        let parts: Vec<(i64, Cbor)> = self.collection.iter().copied().zip(parts.map(Cbor::from)).collect();
        bytes(&Cbor::Tag(self.tag, Box::new(map(&parts))))
    }

    fn trust(&self) -> CcaTrust {
        let number = |at: usize| URL_SAFE_NO_PAD.encode(&self.trusted_key[at..at + 48]);
        let pkey = json!({"kty": "EC", "crv": "P-384", "x": number(1), "y": number(49)});
        let store = json!([{"pkey": pkey, "implementation-id": "01".repeat(32), "instance-id": "01".repeat(33)}]);
        CcaTrust::from_store(store.to_string().as_bytes()).expect("a store")
    }

    fn check(&self) -> Result<Value, CcaError> {
        check(&self.token(), &self.trust(), &REPORT_DATA, Some(&DIGEST))
    }
}

fn check(token: &[u8], trust: &CcaTrust, report_data: &ReportData, digest: Option<&[u8]>) -> Result<Value, CcaError> {
    let expected = Expected { report_data: Some(report_data), initdata_digest: digest, now_unix: 0 };
    let mut checks = Checks::default();
    let verified = verify(token, &expected, trust, &mut checks);
    // Whatever the verdict, the record tells the same: a refusal is the last check, and the only one that failed.
    let failed: Vec<_> = checks.all().iter().map(|check| check.outcome == Outcome::Fail).collect();
    assert_eq!(failed.last(), Some(&verified.is_err()), "{checks:?}");
    assert!(!failed.iter().rev().skip(1).any(|failed| *failed), "{checks:?}");
    verified.map(|verified| verified.claims())
}

#[track_caller]
fn refusal(bend: impl FnOnce(&mut Made)) -> CcaError {
    let mut made = Made::new();
    bend(&mut made);
    made.check().expect_err("refused")
}

#[test]
fn a_real_token_verifies_under_its_platforms_key() {
    let Some(dir) = vectors() else { return };
    let token = read(&dir, &format!("{TRUSTEE}/misc/cca-example-token.cbor"));
    let store = read(&dir, &format!("{TRUSTEE}/conf/tastore.json"));
    let trust = Trust { cca: CcaTrust::from_store(&store).expect("a store"), ..Trust::hardware() };
    let verifiers = Verifiers::new(trust);
    let verifier = verifiers.get(TeeType::Cca).expect("listed");
    let evidence = verifier.parse_raw(&token).expect("a token");
    let challenge = "57e979ae2618de0c1ab73144c440d741cf9236dc9d52ed190053382a4d190252\
                     f9f0370403c35dcb155fb4362d73c66d5b0494bf939315d3dc52b8cdc8b85a96";
    let report_data: ReportData = challenge.parse().expect("64 bytes");
    let expected = Expected { report_data: Some(&report_data), initdata_digest: Some(&[0; 32]), now_unix: 0 };
    let verified = verifier.verify(&evidence, &expected, &Collateral::none(), &mut Checks::default()).expect("verifies");

    // As the reference values of the same suite say.
    let rvstore: Value = serde_json::from_slice(&read(&dir, &format!("{TRUSTEE}/conf/rvstore.json"))).expect("JSON");
    assert_eq!(verified.claims()["measurement"], rvstore["realm"][0]["initial-measurement"]);
    assert_eq!(verifier.measurement(verified.claims()), rvstore["realm"][0]["initial-measurement"].as_str());
    let hexadecimal = |value: &Value| hex::encode(STANDARD.decode(value.as_str().expect("text")).expect("base64"));
    let components = verified.claims()["platform"]["cca-platform-sw-components"].as_array().expect("a list");
    let reference = rvstore["platform"][0]["sw-components"].as_array().expect("a list");
    assert_eq!(components.len(), reference.len());
    for (found, wanted) in components.iter().zip(reference) {
        assert_eq!(found["measurement-type"], wanted["component-type"]);
        assert_eq!(hexadecimal(&found["measurement-value"]), wanted["measurement-value"]);
        assert_eq!(hexadecimal(&found["signer-id"]), wanted["signer-id"]);
    }
    // The names of claims are those of CoCo's example.
    let example: Value = serde_json::from_slice(&read(&dir, &format!("{TRUSTEE}/../cca-claims.json"))).expect("JSON");
    for part in ["platform", "realm"] {
        for name in example[part].as_object().expect("claims").keys() {
            assert!(verified.claims()[part].get(name).is_some(), "{name}");
        }
    }
    crate::claims_page::compare("Arm CCA", &[], &[verified.claims()]);
    // It is in the clear who it is of; another platform's key does not do.
    assert!(matches!(check(&token, &Made::new().trust(), &report_data, None), Err(CcaError::Untrusted { trusted: 1, .. })));
}

#[test]
fn every_byte_of_a_real_token_counts() {
    let Some(dir) = vectors() else { return };
    let token = read(&dir, &format!("{TRUSTEE}/misc/cca-example-token.cbor"));
    let trust = CcaTrust::from_store(&read(&dir, &format!("{TRUSTEE}/conf/tastore.json"))).expect("a store");
    let expected = Expected { report_data: None, initdata_digest: None, now_unix: 0 };
    assert!(verify(&token, &expected, &trust, &mut Checks::default()).is_ok());
    for offset in 0..token.len() {
        let mut bytes = token.clone();
        bytes[offset] ^= 1;
        assert!(verify(&bytes, &expected, &trust, &mut Checks::default()).is_err(), "byte {offset} does not matter");
    }
    for len in 0..token.len() {
        assert!(verify(&token[..len], &expected, &trust, &mut Checks::default()).is_err(), "{len} bytes");
    }
    assert!(verify(&[token.as_slice(), &[0]].concat(), &expected, &trust, &mut Checks::default()).is_err());
}

#[test]
fn a_made_up_realm_verifies_and_says_what_it_is() {
    let claims = Made::new().check().expect("verifies");
    let mut more = claims.clone();
    more["realm"]["cca-realm-brand-new"] = 1.into();
    assert!(std::panic::catch_unwind(|| crate::claims_page::compare("Arm CCA", &[], &[&more])).is_err());
    assert_eq!(claims["init_data"], hex::encode([DIGEST.as_slice(), &[0; 16]].concat()));
    assert_eq!((&claims["report_data"], &claims["measurement"]), (&json!(REPORT_DATA), &json!("05".repeat(64))));
    assert_eq!(claims["platform"]["cca-platform-lifecycle"], 0x3003);
    assert_eq!(claims["platform"]["cca-platform-sw-components"][0]["version"], "1.0");
}

#[test]
fn the_platform_must_be_one_that_is_trusted_and_secured() {
    for label in [256, 2396] {
        let error = refusal(|made| set(&mut made.platform, label, vec![2; if label == 256 { 33 } else { 32 }]));
        assert!(matches!(error, CcaError::Untrusted { trusted: 1, .. }) && error.rule() == "platform-key", "{error}");
    }
    assert_eq!(refusal(|made| made.platform_key = key()), CcaError::PlatformSignature);
    for found in [0_u16, 0x2fff, 0x3100, 0x4003, 0x5003] {
        assert_eq!(refusal(|made| set(&mut made.platform, 2395, found)), CcaError::Lifecycle { found });
    }
    let error = refusal(|made| set(&mut made.platform, 265, "tag:arm.com,2023:cca_platform#1.0.0"));
    assert!(matches!(error, CcaError::Profile { .. }), "{error}");
}

#[test]
fn the_realm_key_must_be_the_one_the_platform_vouches_for() {
    // Another key with its own right signature.
    let error = refusal(|made| {
        made.realm_key = key();
        set(&mut made.realm, 44237, made.realm_key.public_key().as_ref().to_vec());
    });
    assert!(matches!(error, CcaError::RealmKey { .. }), "{error}");
    let error = refusal(|made| set(&mut made.platform, 10, vec![0; 32]));
    assert!(matches!(error, CcaError::RealmKey { .. }), "{error}");
    let error = refusal(|made| set(&mut made.realm, 44240, "sha-512"));
    assert!(matches!(error, CcaError::RealmKey { .. }), "{error}");
    assert_eq!(refusal(|made| made.realm_key = key()), CcaError::RealmSignature);
    let error = refusal(|made| set(&mut made.realm, 44240, "md5"));
    assert!(matches!(error, CcaError::Form { what: "the realm token", .. }), "{error}");
}

#[test]
fn challenge_and_initdata_must_be_those_of_the_exchange() {
    let error = refusal(|made| set(&mut made.realm, 10, vec![0; 64]));
    assert!(matches!(error, CcaError::ReportData { .. }), "{error}");
    for value in [vec![0; 64], vec![0x52; 64]] {
        let error = refusal(|made| set(&mut made.realm, 44235, value));
        assert!(matches!(error, CcaError::InitData { .. }), "{error}");
    }
    let made = Made::new();
    let refused = check(&made.token(), &made.trust(), &REPORT_DATA, Some(&[DIGEST.as_slice(), &[0; 17]].concat()));
    assert!(matches!(refused, Err(CcaError::InitData { .. })), "{refused:?}");
}

#[test]
fn tokens_of_another_form_are_refused() {
    let form = |bend: &dyn Fn(&mut Made)| match refusal(bend) {
        CcaError::Form { what, expected } => format!("{what} is not {expected}"),
        other => panic!("{other}"),
    };
    assert!(form(&|made| made.tag = 400).contains("tag 399"));
    assert!(form(&|made| made.collection = vec![44234, 44242]).contains("44241"));
    assert!(form(&|made| made.collection = vec![44234, 44234]).contains("each claim once"));
    assert!(form(&|made| made.algorithm = Algorithm::ES256).contains("ES384"));
    assert!(form(&|made| made.realm.push((10, vec![1; 64].into()))).contains("each claim once"));
    assert!(form(&|made| set(&mut made.platform, 2399, Cbor::Array(vec![map(&[]); 65]))).contains("at most 64"));
    assert!(form(&|made| set(&mut made.platform, 2399, Cbor::Array(vec![map(&[])]))).contains("measurement (2)"));
    assert!(form(&|made| set(&mut made.realm, 44239, Cbor::Array(vec![vec![6; 64].into(); 3]))).contains("four hashes"));
    assert!(form(&|made| set(&mut made.realm, 44239, Cbor::Array(vec![vec![6; 64].into(); 5]))).contains("four hashes"));
    assert!(form(&|made| set(&mut made.realm, 44237, vec![4; 96])).contains("44237"));
    assert!(form(&|made| set(&mut made.platform, 2395, 0x1_3003)).contains("2395"));
    for label in [265, 10, 2396, 256, 2401, 2395, 2402, 2399] {
        assert!(form(&|made| made.platform.retain(|(known, _)| *known != label)).contains("the platform token"), "{label}");
    }
    for label in [10, 44235, 44237, 44240, 44238, 44236, 44239] {
        assert!(form(&|made| made.realm.retain(|(known, _)| *known != label)).contains("the realm token"), "{label}");
    }
    // Nested deeper than any token is.
    let deep = [vec![0x81; 10_000], vec![0]].concat();
    assert!(matches!(Token::parse(&deep), Err(CcaError::Form { .. })));
    let error = refusal(|made| set(&mut made.platform, 1, (0..20).fold(Cbor::from(1), |inner, _| Cbor::Array(vec![inner]))));
    assert!(matches!(error, CcaError::Form { what: "the platform token", .. }), "{error}");
}

#[test]
fn stores_that_cannot_be_used_are_refused() {
    let good = json!({"pkey": {"kty": "EC", "crv": "P-384", "x": "A".repeat(64), "y": "A".repeat(64)},
        "implementation-id": "01".repeat(32), "instance-id": "01".repeat(33)});
    let store = |entries: Value| CcaTrust::from_store(entries.to_string().as_bytes());
    assert!(store(json!([good])).is_ok_and(|trust| !trust.is_empty()));
    let bent = |bend: fn(&mut Value)| {
        let mut entry = good.clone();
        bend(&mut entry);
        store(json!([entry])).map(|_| ())
    };
    for bend in [
        (|entry| entry["pkey"]["crv"] = "P-256".into()) as fn(&mut Value),
        |entry| entry["pkey"]["kty"] = "RSA".into(),
        |entry| entry["pkey"]["x"] = "AA".into(),
        |entry| entry["instance-id"] = "01".into(),
        |entry| entry["implementation-id"] = "zz".into(),
        |entry| entry["comment"] = "no such field".into(),
    ] {
        assert!(matches!(bent(bend), Err(CcaError::Anchor { .. })));
    }
    assert!(matches!(store(json!([good, good])), Err(CcaError::Anchor { .. })));
    assert!(matches!(store(json!({})), Err(CcaError::Anchor { .. })));
    // Without a platform the kind is refused.
    assert!(matches!(Verifiers::new(Trust::hardware()).get(TeeType::Cca), Err(VerifyError::Unsupported { .. })));
}
