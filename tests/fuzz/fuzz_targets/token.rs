//! An attestation token: no panic, and none passes that the issuer did not sign.
#![no_main]

use std::sync::LazyLock;

use kata_cc_kbs_protocol::token::unverified_times;
use kata_cc_kbs_protocol::{TokenSigner, TokenVerifier};
use libfuzzer_sys::fuzz_target;

static VERIFIER: LazyLock<TokenVerifier> = LazyLock::new(|| {
    let signer = TokenSigner::generate().expect("a key");
    TokenVerifier::new([&signer.public_jwk()]).expect("a key")
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    let _ = unverified_times(token);
    assert!(VERIFIER.verify(token, 0).is_err());
});
