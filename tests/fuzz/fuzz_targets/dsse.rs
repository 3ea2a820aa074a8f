//! The policy's DSSE envelope: no panic, and nothing passes for signed, since the only trusted key never signed anything.
#![no_main]

use std::sync::LazyLock;

use kata_cc_policy::keys::KeyKind;
use kata_cc_policy::{PublicKey, SignedPolicy, SigningKey, TrustedKeys};
use libfuzzer_sys::fuzz_target;

static TRUSTED: LazyLock<TrustedKeys> = LazyLock::new(|| {
    let key = SigningKey::generate(KeyKind::P256).expect("a key");
    TrustedKeys::new([key.public_key()], 0).expect("one key")
});

fuzz_target!(|bytes: &[u8]| {
    assert!(SignedPolicy::verify(bytes, &TRUSTED).is_err());
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(key) = PublicKey::from_pem(text)
    {
        assert_eq!(PublicKey::from_pem(&key.to_pem()).expect("its own PEM parses"), key);
    }
});
