//! An encrypted resource: no panic, and nothing opens under a key that it was not made for.
#![no_main]

use std::sync::LazyLock;

use kata_cc_kbs_protocol::TeeKey;
use kata_cc_kbs_protocol::jwe::Jwe;
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<TeeKey> = LazyLock::new(|| TeeKey::generate().expect("a key"));

fuzz_target!(|bytes: &[u8]| {
    if let Ok(jwe) = serde_json::from_slice::<Jwe>(bytes) {
        assert!(jwe.open(&KEY).is_err());
    }
});
