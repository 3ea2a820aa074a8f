//! TPM quotes, HCL reports and the evidence around them. No panic, and what parses is written back to the same.
#![no_main]

use kata_cc_evidence::azure::{HclReport, SnpEvidence, TdxEvidence};
use kata_cc_evidence::tpm::{Attest, Evidence, RsaSignature};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(attest) = Attest::parse(bytes) {
        assert_eq!(attest.as_bytes(), bytes);
        assert!((0..24).any(|pcr| attest.selection().contains(pcr)));
    }
    if let Ok(signature) = RsaSignature::parse(bytes) {
        assert_eq!(signature.to_bytes(), bytes);
    }
    if let Ok(report) = HclReport::parse(bytes) {
        assert_eq!((report.as_bytes(), report.hardware_report().len()), (bytes, 1184));
        let _ = report.runtime_digest();
    }
    if let Ok(evidence) = serde_json::from_slice::<Evidence>(bytes) {
        let json = serde_json::to_vec(&evidence).expect("parsed evidence serialises");
        let _ = evidence.quote.pcr_digest();
        assert_eq!(serde_json::from_slice::<Evidence>(&json).ok(), Some(evidence));
    }
    if let Ok(evidence) = serde_json::from_slice::<SnpEvidence>(bytes) {
        let json = serde_json::to_vec(&evidence).expect("parsed evidence serialises");
        let _ = evidence.snp();
        assert_eq!(serde_json::from_slice::<SnpEvidence>(&json).ok(), Some(evidence));
    }
    if let Ok(evidence) = serde_json::from_slice::<TdxEvidence>(bytes) {
        let json = serde_json::to_vec(&evidence).expect("parsed evidence serialises");
        assert_eq!(serde_json::from_slice::<TdxEvidence>(&json).ok(), Some(evidence));
    }
});
