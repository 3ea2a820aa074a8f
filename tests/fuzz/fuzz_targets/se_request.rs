//! IBM Secure Execution: requests, headers, challenges and evidence. No panic, and what parses is written back to the same bytes.
#![no_main]

use kata_cc_evidence::se::{Challenge, Evidence, ImageTags, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = Request::parse(bytes) {
        assert_eq!(request.to_bytes().as_deref(), Ok(bytes));
    }
    if let Ok(tags) = ImageTags::from_header(bytes) {
        assert_eq!(ImageTags::parse(&tags.to_bytes()), Ok(tags));
    }
    if let Ok(challenge) = serde_json::from_slice::<Challenge>(bytes) {
        let json = serde_json::to_vec(&challenge).expect("a parsed challenge serialises");
        assert_eq!(serde_json::from_slice::<Challenge>(&json).ok(), Some(challenge));
    }
    if let Ok(evidence) = serde_json::from_slice::<Evidence>(bytes) {
        let json = serde_json::to_vec(&evidence).expect("parsed evidence serialises");
        assert_eq!(serde_json::from_slice::<Evidence>(&json).ok(), Some(evidence));
    }
});
