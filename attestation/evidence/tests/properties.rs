//! What holds for every input: what is parsed is written again as it was, and what is written is parsed as it was meant.

use kata_cc_evidence::eventlog::{
    Aael, EventDigest, EventLog, EventType, HashAlgorithm, Payload, PayloadCheck, Registers, encode_event, encode_header,
};
use kata_cc_evidence::snp::{CertEntry, CertKind, CertTable, Guid, Report};
use proptest::collection::vec;
use proptest::prelude::*;

const ALG: HashAlgorithm = HashAlgorithm::SHA384;

/// Index, kind, digest and payload of an event that is extended.
type Made = (u32, u32, [u8; 48], Vec<u8>);

fn events() -> impl Strategy<Value = Vec<Made>> {
    let kind = any::<u32>().prop_filter("extended", |kind| EventType(*kind) != EventType::NO_ACTION);
    vec((1_u32..=4, kind, prop::array::uniform32(any::<u8>()), vec(any::<u8>(), 0..200)), 0..12).prop_map(|made| {
        let wide = |half: [u8; 32]| std::array::from_fn(|at| half.get(at % 32).copied().unwrap_or_default());
        made.into_iter().map(|(index, kind, half, data)| (index, kind, wide(half), data)).collect()
    })
}

fn log(events: &[Made]) -> Vec<u8> {
    let entry = |(index, kind, digest, data): &Made| {
        encode_event(*index, EventType(*kind), EventDigest { algorithm: ALG, bytes: digest.to_vec() }, data)
    };
    [encode_header(&[ALG]), events.iter().flat_map(entry).collect()].concat()
}

fn changed(mut bytes: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (at, to) in changes {
        let length = bytes.len();
        if let Some(byte) = bytes.get_mut(at % length.max(1)) {
            *byte = *to;
        }
    }
    bytes
}

proptest! {
    #[test]
    fn reports_that_parse_are_written_as_they_were(changes in vec((any::<usize>(), any::<u8>()), 0..24)) {
        let bytes = Report::default().to_bytes().expect("the default is a report").to_vec();
        let bytes = changed(bytes, &changes);
        if let Ok(report) = Report::parse(&bytes) {
            prop_assert_eq!(report.to_bytes().expect("it came from bytes").to_vec(), bytes);
        }
    }

    #[test]
    fn certificate_tables_come_back(entries in vec((any::<[u8; 16]>(), vec(any::<u8>(), 1..64)), 0..6)) {
        let entries = entries.into_iter().map(|(guid, data)| CertEntry { kind: CertKind::from_guid(Guid(guid)), data }).collect();
        let table = CertTable { entries };
        if let Ok(bytes) = table.to_bytes() {
            prop_assert_eq!(CertTable::parse(&bytes).expect("written by us"), table);
        }
    }

    #[test]
    fn certificate_tables_of_the_hosts_making_are_read_in_one_way(
        entries in vec((any::<[u8; 16]>(), vec(any::<u8>(), 1..64)), 1..6),
        changes in vec((any::<usize>(), any::<u8>()), 0..8),
    ) {
        let entries = entries.into_iter().map(|(guid, data)| CertEntry { kind: CertKind::from_guid(Guid(guid)), data }).collect();
        let Ok(bytes) = (CertTable { entries }).to_bytes() else { return Ok(()) };
        if let Ok(table) = CertTable::parse(&changed(bytes, &changes)) {
            let again = table.to_bytes().expect("what was parsed is within bounds");
            prop_assert_eq!(CertTable::parse(&again).expect("written by us"), table);
        }
    }

    #[test]
    fn event_logs_come_back_and_are_written_as_they_were(events in events()) {
        let bytes = log(&events);
        let parsed = EventLog::parse(&bytes).expect("written by us");
        let found: Vec<Made> = parsed
            .events()
            .iter()
            .filter(|event| event.kind != EventType::NO_ACTION)
            .map(|event| (event.index, event.kind.0, event.digests[0].bytes.clone().try_into().expect("48 bytes"), event.data.clone()))
            .collect();
        prop_assert_eq!(found, events);
        prop_assert_eq!(parsed.to_bytes(), bytes);
    }

    #[test]
    fn no_other_order_and_no_part_of_a_log_replays_to_the_same(events in events(), at in any::<usize>()) {
        let replay = |events: &[Made]| EventLog::parse(&log(events)).expect("ours").replay(Registers::Cc, ALG).expect("replays");
        let whole = replay(&events);
        prop_assume!(!events.is_empty());
        let at = at % events.len();
        let mut without = events.clone();
        without.remove(at);
        prop_assert_ne!(&replay(&without), &whole);
        let mut swapped = events.clone();
        swapped.swap(at, 0);
        // Registers are told apart, so order counts within each.
        let of_each = |events: &[Made]| [1, 2, 3, 4].map(|register| events.iter().filter(|e| e.0 == register).map(|e| e.2).collect::<Vec<_>>());
        prop_assert_eq!(replay(&swapped) == whole, of_each(&swapped) == of_each(&events));
    }

    #[test]
    fn logs_of_anybodys_making_are_refused_or_read_in_one_way(events in events(), changes in vec((any::<usize>(), any::<u8>()), 0..6)) {
        let bytes = changed(log(&events), &changes);
        if let Ok(parsed) = EventLog::parse(&bytes) {
            let written = parsed.to_bytes();
            prop_assert_eq!(&EventLog::parse(&written).expect("written by us").to_bytes(), &written);
            prop_assert_eq!(written.as_slice(), bytes.get(..parsed.end()).unwrap_or_default());
            for event in parsed.events() {
                let _ = (event.payload(), event.check_payload());
            }
            let _ = parsed.findings(Registers::Cc);
        }
    }

    #[test]
    fn runtime_events_come_back(domain in "[!-~]{1,40}", operation in "[!-~]{1,40}", content in "[ -~]{0,200}") {
        let aael = Aael::new(&domain, &operation, &content).expect("of its form");
        let data = aael.to_data();
        let digest = EventDigest { algorithm: ALG, bytes: ALG.hash(&[&data]).expect("computes") };
        let bytes = [encode_header(&[ALG]), encode_event(4, EventType::EVENT_TAG, digest, &data)].concat();
        let parsed = EventLog::parse(&bytes).expect("written by us");
        let event = parsed.events().last().expect("one");
        prop_assert_eq!(event.check_payload(), PayloadCheck::Matches);
        let is_it = matches!(event.payload(), Ok(Payload::Aael(found)) if found == aael);
        prop_assert!(is_it);
    }
}
