//! Event logs of real guests: each parses, round-trips, has no findings, and replays to the recorded registers.
//!
//! The logs are Trustee's (`deps/eventlog/test_data`).

mod vectors;

use kata_cc_evidence::eventlog::{EventLog, EventType, HashAlgorithm, Payload, PayloadCheck, Registers};

fn read(name: &str) -> Option<Vec<u8>> {
    let dir = vectors::vectors()?.join("confidential-containers/trustee/deps/eventlog/test_data");
    Some(vectors::read(&dir, name))
}

/// Log, number of events, and how RTMR0 to RTMR3 begin (empty: zeros).
const LOGS: [(&str, usize, [&str; 4]); 4] = [
    ("CCEL_data", 5, ["2dc71230", "0fa3be56", "", ""]),
    ("CCEL_data_ovmf", 20, ["8566f998", "775b9f6b", "94eaf7a7", ""]),
    ("CCEL_data_grub", 37, ["cec0a104", "6c289e0c", "08919d01", ""]),
    ("CCEL_AAEL_alibabacloud", 87, ["b796e1c1", "3b0b9061", "35f28013", "5e4ecd49"]),
];

#[test]
fn real_logs_replay_to_the_recorded_registers_and_have_no_findings() {
    for (name, events, registers) in LOGS {
        let Some(bytes) = read(name) else { return };
        let log = EventLog::parse(&bytes).expect(name);
        assert_eq!(log.events().len(), events, "{name}");
        assert_eq!(log.to_bytes(), bytes[..log.end()], "{name}");
        let replayed = log.replay(Registers::Cc, HashAlgorithm::SHA384).expect(name);
        for (index, begins) in (1..).zip(registers) {
            let value = hex::encode(&replayed[&index]);
            if begins.is_empty() {
                assert_eq!(value, "00".repeat(48), "{name} {index}");
            } else {
                assert!(value.starts_with(begins), "{name} {index}: {value}");
            }
        }
        assert_eq!(log.findings(Registers::Cc), [], "{name}");
        assert!(log.events().iter().any(|event| event.check_payload() == PayloadCheck::Matches), "{name}");
    }
}

#[test]
fn a_log_in_sm3_parses_and_is_not_replayed() {
    let Some(bytes) = read("CCEL_data_csv") else { return };
    let log = EventLog::parse(&bytes).expect("parses");
    assert_eq!(log.algorithms(), [(HashAlgorithm::SM3, 32)]);
    assert_eq!(log.to_bytes(), bytes[..log.end()]);
    assert!(log.replay(Registers::Cc, HashAlgorithm::SM3).is_err());
    assert_eq!(log.findings(Registers::Pcr).len(), log.findings(Registers::Pcr).iter().filter(|finding| finding.index < 8).count());
}

#[test]
fn partitions_and_runtime_events_are_read() {
    let Some(bytes) = read("CCEL_AAEL_alibabacloud") else { return };
    let log = EventLog::parse(&bytes).expect("parses");
    let gpt = log.events().iter().find(|event| event.kind == EventType::EFI_GPT_EVENT).expect("has one");
    let Ok(Payload::Gpt(partitions)) = gpt.payload() else { panic!("no partitions") };
    assert_eq!(partitions.len(), 3);
    assert_eq!((partitions[1].unique.as_str(), partitions[1].first), ("453603e1-1e48-4ea4-8c5f-31c52b72fa9f", 0x1800));
    let aael: Vec<_> =
        log.events().iter().filter_map(|event| if let Ok(Payload::Aael(aael)) = event.payload() { Some(aael) } else { None }).collect();
    assert_eq!((aael.len(), aael[0].domain(), aael[0].operation(), aael[0].content()), (2, "coco.com", "some-operation", "some-content"));
}

#[test]
fn cut_logs_never_panic() {
    for (name, ..) in LOGS {
        let Some(bytes) = read(name) else { return };
        let end = EventLog::parse(&bytes).expect(name).end();
        for length in (0..end).step_by(7) {
            let _ = EventLog::parse(&bytes[..length]);
        }
    }
}
