//! A token of Arm CCA: CBOR in COSE in CBOR. No panic, no runaway nesting, and none verifies that no trusted platform has signed.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kata_cc_evidence::TeeType;
use kata_cc_verifier::cca::CcaTrust;
use kata_cc_verifier::checks::Checks;
use kata_cc_verifier::collateral::Collateral;
use kata_cc_verifier::{Expected, Trust, Verifiers};
use libfuzzer_sys::fuzz_target;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;

/// The platform that the seeds name is trusted, by a key whose private half is gone.
static VERIFIERS: LazyLock<Verifiers> = LazyLock::new(|| {
    let rng = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &rng).expect("random");
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, pkcs8.as_ref(), &rng).expect("a key");
    let point = key.public_key().as_ref();
    let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..49]), URL_SAFE_NO_PAD.encode(&point[49..]));
    let store = json!([{
        "pkey": {"kty": "EC", "crv": "P-384", "x": x, "y": y},
        "implementation-id": "01".repeat(32),
        "instance-id": "01".repeat(33),
    }]);
    let cca = CcaTrust::from_store(store.to_string().as_bytes()).expect("a store");
    Verifiers::new(Trust { cca, ..Trust::hardware() })
});

fuzz_target!(|bytes: &[u8]| {
    let verifier = VERIFIERS.get(TeeType::Cca).expect("there is a trust anchor");
    let Ok(evidence) = verifier.parse_raw(bytes) else { return };
    let expected = Expected { report_data: None, initdata_digest: None, now_unix: 0 };
    assert!(verifier.verify(&evidence, &expected, &Collateral::none(), &mut Checks::default()).is_err());
});
