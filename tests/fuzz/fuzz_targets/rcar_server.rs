//! What anybody may send to the broker: no panic, and no evidence is taken for a session whose nonce it does not carry.
#![no_main]

use kata_cc_kbs_protocol::message::{Attestation, Request};
use kata_cc_kbs_protocol::{AwaitAttest, SessionId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = SessionId::from_cookie_header(text);
    }
    if let Ok(request) = Request::from_json(bytes) {
        let _ = AwaitAttest::open(&request, 0, 300);
    }
    if let Ok(attestation) = Attestation::from_json(bytes) {
        let auth = br#"{"version":"0.4.0","tee":"snp","extra-params":""}"#;
        let request = Request::from_json(auth).expect("a request");
        let (session, _) = AwaitAttest::open(&request, 0, 300).expect("a session");
        assert!(session.attest(attestation, 1).is_err());
    }
});
