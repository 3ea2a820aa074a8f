//! Reference manifests: no panic, nothing passes for signed, and what passes the checks reads back as the same.
#![no_main]

use std::sync::LazyLock;

use kata_cc_policy::keys::KeyKind;
use kata_cc_policy::reference::{Manifest, SignedManifest};
use kata_cc_policy::{SigningKey, TrustedKeys};
use libfuzzer_sys::fuzz_target;

static TRUSTED: LazyLock<TrustedKeys> = LazyLock::new(|| {
    let key = SigningKey::generate(KeyKind::P256).expect("a key");
    TrustedKeys::new([key.public_key()], 0).expect("one key")
});

fuzz_target!(|bytes: &[u8]| {
    assert!(SignedManifest::verify(bytes, &TRUSTED).is_err());
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes)
        && manifest.check().is_ok()
    {
        assert!(manifest.expires > manifest.not_before && manifest.serial > 0);
        assert!(manifest.values().values().all(|values| !values.is_empty()));
        let text = serde_json::to_vec(&manifest).expect("it has a JSON form");
        assert_eq!(serde_json::from_slice::<Manifest>(&text).expect("its own JSON parses"), manifest);
    }
});
