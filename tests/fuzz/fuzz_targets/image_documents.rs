//! The documents around an image: references, signature policy, registry logins. No panic, and references round-trip.
#![no_main]

use kata_cc_image_pull::registry::auth::Credentials;
use kata_cc_image_pull::{Reference, Secret, SignaturePolicy};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = SignaturePolicy::parse(bytes);
    let _ = Credentials::parse(&Secret::new(bytes.to_vec()));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse(), Ok(reference));
    }
});
