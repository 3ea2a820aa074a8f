//! A known answer, and keys in the forms they are registered in. Whole evidence is in `tests/tpm.rs`.

use super::quote::extended_once;
use super::*;
use crate::vectors::{read, vectors};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

#[test]
fn a_digest_is_extended_as_recorded() {
    let digest = hex::decode("8505e4e25e50a27c5dc8147af88efbece627fbea55291911eff832d9ee127781").expect("hexadecimal");
    let register = extended_once(&digest).map(hex::encode);
    assert_eq!(register.as_deref(), Ok("bddaccb9c52249e97a31baea61b7d91be8221a16e703d92148d04fb8e9c1dfdd"));
    for len in [0, 31, 33, 48, 64] {
        assert_eq!(extended_once(&vec![0; len]), Err(TpmError::InitDataDigest { found: len }));
    }
}

#[test]
fn keys_are_read_from_der_and_pem_and_nothing_else_is() {
    let Some(dir) = vectors() else { return };
    let path = "confidential-containers/trustee/deps/verifier/test_data/tpm_evidence.json";
    let evidence: Value = serde_json::from_slice(&read(&dir, path)).expect("JSON");
    let text = evidence["ak_public"].as_str().expect("text");
    let der = STANDARD.decode(text).expect("base64");
    let key = AttestationKey::from_spki(&der).expect("a key");
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    let pem = |label: &str| format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"));
    assert_eq!(AttestationKey::from_spki(pem("PUBLIC KEY").as_bytes()), Ok(key));
    assert!(AttestationKey::from_spki(pem("CERTIFICATE").as_bytes()).is_err());
    for len in 0..der.len() {
        assert!(AttestationKey::from_spki(&der[..len]).is_err(), "{len} bytes");
    }
    assert!(AttestationKey::from_spki(&[der.as_slice(), &[0]].concat()).is_err());
    // An object identifier of another algorithm.
    let mut other = der.clone();
    other[16] ^= 2;
    assert_eq!(AttestationKey::from_spki(&other), Err(TpmError::Key { reason: "not an RSA key" }));
}

#[test]
fn without_a_key_no_tpm_is_trusted() {
    let verifiers = crate::Verifiers::new(crate::Trust::hardware());
    assert!(matches!(verifiers.get(TeeType::Tpm), Err(VerifyError::Unsupported { tee: TeeType::Tpm, .. })));
}
