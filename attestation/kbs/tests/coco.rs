//! A client of CoCo's before our broker: its messages, its `sample` evidence, its kinds of keys, opened by hand.
//!
//! Written from the protocol's text (RCAR 0.4.0) without any code of our own client. CoCo's client itself is in no package registry.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;

use aes_kw::KekAes256;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use broker::{SECRET, TestBroker, body, refused};
use http::call;
use kata_cc_kbs::appraise::Appraiser;
use kata_cc_kbs_protocol::HttpResponse;
use kata_cc_verifier::Trust;
use p521::elliptic_curve::rand_core::OsRng;
use p521::elliptic_curve::sec1::ToEncodedPoint;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, SHA384, digest};
use rsa::traits::PublicKeyParts;
use rsa::{Oaep, RsaPrivateKey};
use serde_json::{Value, json};

const SAMPLE_POLICY: &str = include_str!("../policies/sample-attestation.rego");

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(text: &Value) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text.as_str().unwrap()).unwrap()
}

fn parse(response: &HttpResponse) -> Value {
    assert_eq!(response.status, 200, "{}", body(response));
    serde_json::from_slice(&response.body).unwrap()
}

/// A client's key.
enum Key {
    P256(p256::SecretKey),
    P521(p521::SecretKey),
    Rsa(Box<RsaPrivateKey>),
}

impl Key {
    fn all() -> [Self; 3] {
        let rsa = RsaPrivateKey::new(&mut OsRng, 2048).unwrap();
        [Self::P256(p256::SecretKey::random(&mut OsRng)), Self::P521(p521::SecretKey::random(&mut OsRng)), Self::Rsa(Box::new(rsa))]
    }

    /// RFC 7518 section 6.
    fn jwk(&self) -> Value {
        let ec = |crv: &str, point: &[u8]| {
            let (x, y) = point[1..].split_at(point.len() / 2);
            json!({"kty": "EC", "crv": crv, "alg": "ECDH-ES+A256KW", "x": encode(x), "y": encode(y)})
        };
        match self {
            Self::P256(key) => ec("P-256", key.public_key().to_encoded_point(false).as_bytes()),
            Self::P521(key) => ec("P-521", key.public_key().to_encoded_point(false).as_bytes()),
            Self::Rsa(key) => json!({
                "kty": "RSA", "alg": "RSA-OAEP-256", "n": encode(&key.n().to_bytes_be()), "e": encode(&key.e().to_bytes_be()),
            }),
        }
    }

    /// RFC 7516 section 5.2, of the protocol's combinations.
    fn open(&self, jwe: &Value) -> Vec<u8> {
        let header: Value = serde_json::from_slice(&decode(&jwe["protected"])).unwrap();
        assert_eq!((&header["enc"], &header["alg"]), (&json!("A256GCM"), &self.jwk()["alg"]));
        let wrapped = decode(&jwe["encrypted_key"]);
        let point = || [[4].as_slice(), &decode(&header["epk"]["x"]), &decode(&header["epk"]["y"])].concat();
        let content_key = match self {
            Self::P256(key) => {
                let peer = p256::PublicKey::from_sec1_bytes(&point()).unwrap();
                unwrap_key(p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine()).raw_secret_bytes(), &wrapped)
            }
            Self::P521(key) => {
                let peer = p521::PublicKey::from_sec1_bytes(&point()).unwrap();
                unwrap_key(p521::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine()).raw_secret_bytes(), &wrapped)
            }
            Self::Rsa(key) => key.decrypt(Oaep::new::<rsa::sha2::Sha256>(), &wrapped).unwrap(),
        };
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &content_key).unwrap());
        let nonce = Nonce::try_assume_unique_for_key(&decode(&jwe["iv"])).unwrap();
        let mut text = [decode(&jwe["ciphertext"]), decode(&jwe["tag"])].concat();
        key.open_in_place(nonce, Aad::from(jwe["protected"].as_str().unwrap().as_bytes()), &mut text).unwrap().to_vec()
    }
}

/// Concat KDF of one round (RFC 7518 section 4.6.2), and AES key wrap.
fn unwrap_key(shared: &[u8], wrapped: &[u8]) -> Vec<u8> {
    let name = b"ECDH-ES+A256KW";
    let info = [[0, 0, 0, 1].as_slice(), shared, &14_u32.to_be_bytes(), name, &[0; 8], &256_u32.to_be_bytes()].concat();
    let kek: [u8; 32] = digest(&SHA256, &info).as_ref().try_into().unwrap();
    let mut key = vec![0; 32];
    KekAes256::from(kek).unwrap(wrapped, &mut key).unwrap();
    key
}

/// A broker that looks at sample evidence, with a secret.
fn broker(policy: Option<&str>) -> TestBroker {
    let broker = TestBroker::with(|parts| parts.appraiser = Appraiser::new(Trust { sample: true, ..Trust::hardware() }));
    assert_eq!(broker.admin("POST", "/kbs/v0/resource/default/key/1", SECRET).status, 200);
    if let Some(policy) = policy {
        let message = json!({"type": "rego", "policy_id": "default_cpu", "policy": encode(policy.as_bytes())});
        assert_eq!(broker.admin("POST", "/kbs/v0/attestation-policy", message.to_string().as_bytes()).status, 200);
    }
    broker
}

struct Session {
    cookie: String,
    nonce: String,
}

fn auth(broker: &TestBroker) -> Session {
    let request =
        json!({"version": "0.4.0", "tee": "sample", "extra-params": {"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}});
    let response =
        call(broker.address, "POST", "/kbs/v0/auth", &[("content-type", "application/json".into())], request.to_string().as_bytes());
    let challenge = parse(&response);
    assert_eq!(challenge["extra-params"], "");
    let nonce = challenge["nonce"].as_str().unwrap().to_owned();
    assert_eq!(STANDARD.decode(&nonce).unwrap().len(), 32);
    let cookie = response.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("set-cookie")).unwrap().1.clone();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    assert!(cookie.starts_with("kbs-session-id="), "{cookie}");
    Session { cookie, nonce }
}

/// Evidence over the canonical form (RFC 8785) of what it has to bind, as CoCo's attester writes it: the digest alone, unpadded.
fn attest(broker: &TestBroker, session: &Session, key: &Key, additional: &str) -> HttpResponse {
    let jwk = key.jwk();
    // Keys in order, no spaces: what serde_json writes of a map without floats and controls is canonical.
    let bound = json!({"additional-evidence": additional, "nonce": session.nonce, "tee-pubkey": jwk}).to_string();
    let evidence = json!({"svn": "1", "report_data": STANDARD.encode(digest(&SHA384, bound.as_bytes()))});
    let message = json!({
        "runtime-data": {"nonce": session.nonce, "tee-pubkey": jwk},
        "tee-evidence": {"primary_evidence": evidence, "additional_evidence": additional},
    });
    call(broker.address, "POST", "/kbs/v0/attest", &[("cookie", session.cookie.clone())], message.to_string().as_bytes())
}

#[test]
fn cocos_client_gets_a_resource_with_each_kind_of_key() {
    let broker = broker(Some(SAMPLE_POLICY));
    for key in Key::all() {
        let session = auth(&broker);
        let token = parse(&attest(&broker, &session, &key, ""))["token"].as_str().unwrap().to_owned();
        let claims: Value = serde_json::from_slice(&decode(&json!(token.split('.').nth(1).unwrap()))).unwrap();
        assert_eq!(claims["eat_profile"], "tag:github.com,2024:confidential-containers/Trustee");
        let evidence = &claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"];
        assert_eq!((&evidence["sample"]["svn"], &evidence["runtime_data_claims"]["tee-pubkey"]), (&json!("1"), &key.jwk()));
        // By cookie, and by the token alone, as its clients do either.
        for header in [("cookie", session.cookie.clone()), ("authorization", format!("Bearer {token}"))] {
            let jwe = parse(&call(broker.address, "GET", "/kbs/v0/resource/default/key/1", &[header], &[]));
            assert_eq!(key.open(&jwe), SECRET);
        }
    }
}

#[test]
fn keys_that_are_weak_or_unknown_are_refused_by_name() {
    let broker = broker(Some(SAMPLE_POLICY));
    let weak = RsaPrivateKey::new(&mut OsRng, 1024).unwrap();
    refused(&attest(&broker, &auth(&broker), &Key::Rsa(Box::new(weak)), ""), 400, "2048 to 4096 bits");
    let session = auth(&broker);
    let message = json!({
        "runtime-data": {"nonce": session.nonce, "tee-pubkey": {"kty": "AKP", "alg": "ML-KEM-768+A192KW", "pub": ""}},
        "tee-evidence": {"primary_evidence": {}, "additional_evidence": ""},
    });
    let response = call(broker.address, "POST", "/kbs/v0/attest", &[("cookie", session.cookie)], message.to_string().as_bytes());
    refused(&response, 400, "expected `EC` or `RSA`");
}

#[test]
fn ac_51_sample_evidence_gets_nothing_under_the_default_policies() {
    let broker = broker(None);
    let [key, ..] = Key::all();
    let session = auth(&broker);
    parse(&attest(&broker, &session, &key, ""));
    let response = call(broker.address, "GET", "/kbs/v0/resource/default/key/1", &[("cookie", session.cookie)], &[]);
    refused(&response, 403, "cpu0/hardware");
}

#[test]
fn sample_evidence_of_another_session_is_refused() {
    let broker = broker(Some(SAMPLE_POLICY));
    let [key, ..] = Key::all();
    let (one, two) = (auth(&broker), auth(&broker));
    refused(&attest(&broker, &Session { cookie: one.cookie, nonce: two.nonce }, &key, ""), 401, "nonce");
}

#[test]
fn evidence_of_devices_is_refused_by_name_before_anything_is_verified() {
    let broker = broker(Some(SAMPLE_POLICY));
    let [key, ..] = Key::all();
    refused(&attest(&broker, &auth(&broker), &key, r#"{"nvidia":"{}"}"#), 400, "additional_evidence");
}

#[test]
fn errors_have_cocos_form() {
    let broker = broker(None);
    let request = json!({"version": "0.1.1", "tee": "sample", "extra-params": ""});
    let response = call(broker.address, "POST", "/kbs/v0/auth", &[], request.to_string().as_bytes());
    refused(&response, 400, "0.4.0");
    let error: Value = serde_json::from_slice(&response.body).unwrap();
    let form = "https://github.com/confidential-containers/kbs/errors/";
    assert!(error["type"].as_str().unwrap().starts_with(form) && error["detail"].is_string(), "{error}");
}
