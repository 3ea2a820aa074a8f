//! An event log: no panic in parsing, payloads, findings and replay, and what parses is written back to the same bytes.
#![no_main]

use kata_cc_evidence::eventlog::{EventLog, HashAlgorithm, Registers};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = EventLog::parse(bytes) else { return };
    assert_eq!(log.to_bytes(), bytes[..log.end()]);
    for event in log.events() {
        let _ = event.payload();
        let _ = event.check_payload();
    }
    for registers in [Registers::Cc, Registers::Pcr] {
        let _ = log.findings(registers);
        let _ = log.replay(registers, HashAlgorithm::SHA384);
    }
});
