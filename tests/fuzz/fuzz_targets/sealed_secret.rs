//! Sealed secrets: no panic, and nothing verifies that the key did not sign. Inputs that do not begin as a sealed secret does are taken for a
//! payload and signed here: what is behind the signature would never be reached otherwise.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kata_cc_kbs_protocol::SecretBytes;
use kata_cc_kbs_protocol::sealed::{SigningKey, UnverifiedSecret, VerifyingKey, is_sealed};
use libfuzzer_sys::fuzz_target;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

struct Keys {
    signing: EcdsaKeyPair,
    verifying: VerifyingKey,
    /// Base64url of a header that names it.
    header: String,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).expect("a key");
    let signing = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &SystemRandom::new()).expect("a key");
    let point = signing.public_key().as_ref();
    let [x, y] = [&point[1..33], &point[33..65]].map(|part| URL_SAFE_NO_PAD.encode(part));
    let jwk = format!(r#"{{"kty":"EC","crv":"P-256","x":"{x}","y":"{y}"}}"#);
    let verifying = VerifyingKey::from_jwk(jwk.as_bytes()).expect("its public half");
    Keys { signing, verifying, header: URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"kbs:///default/sealing/1"}"#) }
});

fuzz_target!(|bytes: &[u8]| {
    let _ = VerifyingKey::from_jwk(bytes);
    let _ = SigningKey::from_jwk(bytes);
    let keys = &*KEYS;
    if is_sealed(bytes) {
        if let Ok(unverified) = std::str::from_utf8(bytes).map_err(|_| ()).and_then(|text| UnverifiedSecret::parse(text).map_err(|_| ())) {
            // No input holds a signature of a key that was made a moment ago.
            assert!(unverified.verify(&keys.verifying).is_err());
        }
        return;
    }
    let signed = format!("{}.{}", keys.header, URL_SAFE_NO_PAD.encode(bytes));
    let signature = keys.signing.sign(&SystemRandom::new(), signed.as_bytes()).expect("signs");
    let text = format!("sealed.{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
    if let Ok(secret) = UnverifiedSecret::parse(&text).and_then(|unverified| unverified.verify(&keys.verifying)) {
        let vault = secret.kind() == "vault";
        // A vault secret is what is at the broker. The seeds' envelope opens; one with a changed ciphertext must not open to something else.
        let opened = secret.open(SecretBytes::new(vec![7; 32]));
        assert!(!vault || opened.is_ok());
    }
});
