//! Hygon's certificates, reports and evidence, and reports of GPUs. No panic, and what parses holds the bytes it was parsed from.
#![no_main]

use kata_cc_evidence::csv::{CaCertificate, Certificate, ChipChain, Evidence, Report, Version};
use kata_cc_evidence::nvidia;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(certificate) = CaCertificate::parse(bytes) {
        assert_eq!((certificate.as_bytes(), certificate.signed_bytes().len()), (bytes, 576));
    }
    if let Ok(certificate) = Certificate::parse(bytes) {
        assert_eq!((certificate.as_bytes(), certificate.signed_bytes().len()), (bytes, 1044));
    }
    if let Ok(chain) = ChipChain::parse(bytes) {
        assert_eq!([chain.hsk.as_bytes(), chain.cek.as_bytes()].concat(), bytes);
    }
    for version in [Version::V1, Version::V2] {
        if let Ok(report) = Report::parse(bytes, version) {
            assert_eq!(report.as_bytes(), bytes);
            assert!(!report.signed_bytes().is_empty());
        }
    }
    let _ = serde_json::from_slice::<Evidence>(bytes);
    if let Ok(report) = nvidia::Report::parse(bytes) {
        assert_eq!((report.as_bytes(), report.signed_bytes().len()), (bytes, bytes.len() - 96));
    }
    if let Ok(evidence) = serde_json::from_slice::<nvidia::Evidence>(bytes) {
        let json = serde_json::to_vec(&evidence).expect("parsed evidence serialises");
        assert_eq!(serde_json::from_slice::<nvidia::Evidence>(&json).ok(), Some(evidence));
    }
});
