//! A raw SNP report: no panic, and what parses is written back to the same bytes.
#![no_main]

use kata_cc_evidence::snp::Report;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(report) = Report::parse(bytes) {
        assert_eq!(report.to_bytes().expect("a parsed report has a raw form"), bytes);
    }
});
