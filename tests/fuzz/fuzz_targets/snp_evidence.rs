//! SNP evidence in CoCo's JSON form, and the certificate table that the host hands out: no panic, and both forms round-trip.
#![no_main]

use kata_cc_evidence::snp::{CertTable, Evidence};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(evidence) = serde_json::from_slice::<Evidence>(bytes) {
        let json = serde_json::to_vec(&evidence).expect("evidence serialises");
        let again: Evidence = serde_json::from_slice(&json).expect("its own JSON parses");
        assert_eq!(again.report_bytes(), evidence.report_bytes());
    }
    if let Ok(table) = CertTable::parse(bytes) {
        let written = table.to_bytes().expect("a parsed table has a raw form");
        assert_eq!(CertTable::parse(&written).expect("its own bytes parse"), table);
    }
});
