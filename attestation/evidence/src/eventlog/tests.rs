//! Logs made here: bounds, lies in every field, replay, payloads, and what AC-56 is about.

use super::*;

const ALG: HashAlgorithm = HashAlgorithm::SHA384;

/// An event whose digest is that of its payload.
fn honest(index: u32, kind: EventType, data: &[u8]) -> Vec<u8> {
    let bytes = ALG.hash(&[data]).expect("SHA-384 is there");
    encode_event(index, kind, EventDigest { algorithm: ALG, bytes }, data)
}

fn label(index: u32, kind: EventType, digest: u8, data: &[u8]) -> Vec<u8> {
    encode_event(index, kind, EventDigest { algorithm: ALG, bytes: vec![digest; 48] }, data)
}

fn variable(name: &str, data: &[u8]) -> Vec<u8> {
    let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let (name_len, data_len) = (name.encode_utf16().count() as u64, data.len() as u64);
    [&[7; 16], name_len.to_le_bytes().as_slice(), &data_len.to_le_bytes(), &units, data].concat()
}

fn log(events: &[Vec<u8>]) -> Vec<u8> {
    [encode_header(&[ALG]), events.concat()].concat()
}

fn boot() -> Vec<Vec<u8>> {
    vec![
        honest(1, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable("SecureBoot", &[1])),
        honest(1, EventType::SEPARATOR, &[0; 4]),
        label(1, EventType::PLATFORM_CONFIG_FLAGS, 3, b"ACPI DATA"),
        honest(1, EventType::SEPARATOR, &[0; 4]),
        honest(2, EventType::EFI_ACTION, b"Exit Boot Services Invocation"),
        label(0, EventType::NO_ACTION, 0, b"vendor's"),
        honest(4, EventType::EVENT_TAG, &Aael::new("a.b", "op", "{\"k\": 1}").expect("well formed").to_data()),
    ]
}

fn findings(events: &[Vec<u8>]) -> Vec<(usize, FindingKind)> {
    let log = EventLog::parse(&log(events)).expect("parses");
    log.findings(Registers::Cc).into_iter().map(|finding| (finding.event, finding.what)).collect()
}

#[test]
fn a_log_round_trips_with_any_fill_behind_it() {
    let bytes = log(&boot());
    for fill in [vec![], vec![0; 1000], vec![0xff; 1000], vec![0xff; 8], vec![0; 1], vec![0xff; 11]] {
        let parsed = EventLog::parse(&[bytes.clone(), fill].concat()).expect("parses");
        assert_eq!((parsed.to_bytes(), parsed.end(), parsed.events().len()), (bytes.clone(), bytes.len(), 7));
    }
    assert_eq!(findings(&boot()), []);
}

#[test]
fn refuses_bytes_hidden_behind_the_end() {
    let bytes = log(&boot());
    for hidden in [[vec![0xff; 40], vec![1]].concat(), [vec![0; 40], vec![0xff; 40]].concat(), [vec![0xff; 8], vec![0; 20]].concat()] {
        let end = bytes.len();
        let refused = EventLog::parse(&[bytes.clone(), hidden].concat());
        assert!(
            matches!(refused, Err(EventLogError::Trailing { offset } | EventLogError::DigestCount { offset, .. }) if offset == end),
            "{refused:?}"
        );
    }
}

#[test]
fn every_prefix_is_refused_with_its_offset_or_ends_at_an_entry() {
    let bytes = log(&boot());
    let ends: Vec<usize> = EventLog::parse(&bytes).expect("parses").events().iter().map(|event| event.offset).collect();
    for length in 0..bytes.len() {
        match EventLog::parse(&bytes[..length]) {
            // Nothing but registers can tell that entries are missing. Up to 11 bytes of an entry may look like fill.
            Ok(parsed) => assert!(ends.contains(&parsed.end()) && length - parsed.end() < 12, "{length}"),
            Err(EventLogError::Truncated { offset, .. }) => assert!(offset <= length),
            Err(other) => panic!("{length}: {other}"),
        }
    }
}

#[test]
fn every_changed_byte_is_refused_or_seen_in_findings_or_registers_or_labels() {
    let bytes = log(&boot());
    let good = EventLog::parse(&bytes).expect("parses");
    let replayed = good.replay(Registers::Cc, ALG).expect("replays");
    let header = bytes.len() - boot().concat().len();
    for at in header..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            let Ok(parsed) = EventLog::parse(&changed) else { continue };
            let same =
                parsed.replay(Registers::Cc, ALG) == Ok(replayed.clone()) && parsed.findings(Registers::Cc) == good.findings(Registers::Cc);
            let event = good.events().iter().rposition(|event| event.offset <= at).expect("within an event");
            // What nothing vouches for: an event's kind or tag (which says what its digest is of), the label of the ACPI data, and what is not extended at all.
            let within = at - good.events()[event].offset;
            let is_kind = (4..8).contains(&within) || (event == 6 && (66..70).contains(&within));
            assert!(!same || is_kind || [2, 5].contains(&event), "byte {at} ^ {flip:#x} of event {event} went unseen");
        }
    }
}

#[test]
fn names_what_is_wrong_with_a_header_and_where() {
    let good = log(&[]);
    let change = |at: usize, bytes: &[u8]| {
        let mut log = good.clone();
        log[at..at + bytes.len()].copy_from_slice(bytes);
        EventLog::parse(&log).expect_err("is wrong")
    };
    assert!(matches!(change(4, &[4]), EventLogError::NotSpecId { .. }));
    assert!(matches!(change(32, b"Spec ID Event02\0"), EventLogError::NotSpecId { .. }));
    assert_eq!(change(56, &[0]), EventLogError::AlgorithmCount { found: 0 });
    assert_eq!(change(56, &[9]), EventLogError::AlgorithmCount { found: 9 });
    assert_eq!(change(62, &[47]), EventLogError::AlgorithmLength { offset: 60, algorithm: ALG, expected: "48".into(), found: 47 });
    assert!(matches!(change(60, &[0x99, 0x99, 65]), EventLogError::AlgorithmLength { offset: 60, found: 65, .. }));
    assert_eq!(change(28, &[34]), EventLogError::HeaderLength { expected: 33, found: 34 });
    assert!(matches!(change(64, &[1]), EventLogError::Truncated { offset: 65, .. }));
    assert!(matches!(EventLog::parse(&encode_header(&[ALG, ALG])), Err(EventLogError::AlgorithmLength { offset: 64, .. })));
    assert!(matches!(EventLog::parse(&vec![0; EventLog::MAX_LEN + 1]), Err(EventLogError::TooLarge { .. })));
}

#[test]
fn names_what_is_wrong_with_an_entry_and_where() {
    let good = log(&[honest(1, EventType::SEPARATOR, &[0; 4])]);
    let change = |at: usize, bytes: &[u8]| {
        let mut log = good.clone();
        log[65 + at..65 + at + bytes.len()].copy_from_slice(bytes);
        EventLog::parse(&log).expect_err("is wrong")
    };
    assert_eq!(change(8, &[2]), EventLogError::DigestCount { offset: 65, expected: 1, found: 2 });
    assert_eq!(change(8, &[0xff; 4]), EventLogError::DigestCount { offset: 65, expected: 1, found: u32::MAX });
    assert_eq!(change(8, &[0]), EventLogError::DigestCount { offset: 65, expected: 1, found: 0 });
    assert_eq!(change(12, &[0xb]), EventLogError::DigestAlgorithm { offset: 65, algorithm: HashAlgorithm::SHA256 });
    assert_eq!(change(62, &[0xff; 4]), EventLogError::EventTooLarge { offset: 65, found: u32::MAX });
    assert_eq!(change(62, &[5]), EventLogError::Truncated { offset: 131, what: "an event's payload", expected: 5, found: 4 });
    let twice = [EventDigest { algorithm: ALG, bytes: vec![1; 48] }, EventDigest { algorithm: ALG, bytes: vec![2; 48] }];
    let mut bytes = encode_header(&[ALG, HashAlgorithm::SHA256]);
    encode::event(&mut bytes, 1, EventType::IPL, &twice, b"");
    assert_eq!(EventLog::parse(&bytes), Err(EventLogError::DigestAlgorithm { offset: 69, algorithm: ALG }));
}

#[test]
fn refuses_more_events_than_are_accepted() {
    let one = label(1, EventType::IPL, 1, b"");
    assert!(EventLog::parse(&log(&vec![one.clone(); EventLog::MAX_EVENTS])).is_ok());
    assert!(matches!(EventLog::parse(&log(&vec![one; EventLog::MAX_EVENTS + 1])), Err(EventLogError::TooManyEvents { .. })));
}

/// A small generator of numbers, so that a failure can be had again.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

#[test]
fn random_damage_never_panics_and_what_parses_round_trips() {
    let good = log(&boot());
    for seed in 0..3000 {
        let mut random = Seeded(seed);
        let mut bytes = good.clone();
        for _ in 0..=random.next(6) {
            match random.next(4) {
                0 => bytes.truncate(random.next(bytes.len().max(1))),
                1 => bytes.extend((0..random.next(40)).map(|_| random.0 as u8)),
                _ if bytes.is_empty() => {}
                2 => {
                    let at = random.next(bytes.len());
                    bytes[at] = random.next(256) as u8;
                }
                _ => {
                    let at = random.next(bytes.len());
                    bytes.splice(at..at, [0xff; 4]);
                }
            }
        }
        if let Ok(parsed) = EventLog::parse(&bytes) {
            assert_eq!(parsed.to_bytes(), bytes[..parsed.end()], "seed {seed}");
            let _ = parsed.findings(Registers::Pcr);
            let _ = parsed.replay(Registers::Pcr, ALG);
        }
    }
}

#[test]
fn random_logs_round_trip_and_replay_as_computed_by_hand() {
    for seed in 0..200 {
        let mut random = Seeded(seed);
        let mut registers = vec![vec![0; 48]; 5];
        let mut events = Vec::new();
        for _ in 0..random.next(30) {
            let (index, digest) = (1 + random.next(4), random.next(256) as u8);
            let kind = [EventType::NO_ACTION, EventType::IPL, EventType(random.next(1 << 30) as u32)][random.next(3)];
            events.push(label(index as u32, kind, digest, &vec![digest; random.next(100)]));
            if kind != EventType::NO_ACTION {
                registers[index] = ALG.hash(&[&registers[index], &[digest; 48]]).expect("computes");
            }
        }
        let parsed = EventLog::parse(&log(&events)).expect("parses");
        assert_eq!(parsed.to_bytes(), log(&events));
        let replayed = parsed.replay(Registers::Cc, ALG).expect("replays");
        assert!((1..=4).all(|index| replayed[&(index as u32)] == registers[index]), "seed {seed}");
    }
}

#[test]
fn replay_refuses_registers_that_nothing_extends_and_digests_it_cannot_compute() {
    for index in [0, 5, u32::MAX] {
        let parsed = EventLog::parse(&log(&[label(index, EventType::IPL, 1, b"")])).expect("parses");
        assert!(matches!(parsed.replay(Registers::Cc, ALG), Err(ReplayError::Register { offset: 65, found, .. }) if found == index));
    }
    let parsed = EventLog::parse(&log(&[label(24, EventType::IPL, 1, b"")])).expect("parses");
    assert!(matches!(parsed.replay(Registers::Pcr, ALG), Err(ReplayError::Register { found: 24, .. })));
    assert_eq!(parsed.replay(Registers::Pcr, HashAlgorithm::SM3), Err(ReplayError::Algorithm { algorithm: HashAlgorithm::SM3 }));
    let parsed = EventLog::parse(&log(&[label(1, EventType::IPL, 1, b"")])).expect("parses");
    let sha256 = HashAlgorithm::SHA256;
    assert_eq!(parsed.replay(Registers::Cc, sha256), Err(ReplayError::NoDigest { offset: 65, algorithm: sha256 }));
}

#[test]
fn pcr_0_begins_with_the_startup_locality() {
    let parsed = EventLog::parse(&log(&[label(0, EventType::NO_ACTION, 0, b"StartupLocality\0\x03")])).expect("parses");
    let mut start = vec![0; 48];
    start[47] = 3;
    assert_eq!(parsed.replay(Registers::Pcr, ALG).expect("replays")[&0], start);
}

#[test]
fn runtime_events_have_cocos_digests() {
    // CoCo's known answers.
    let data = Aael::new("domain", "operation", "content").expect("well formed").to_data();
    for (algorithm, digest) in [
        (HashAlgorithm::SHA256, "46df8dacf00a07d34a83cdf56d7978697790787cf2ba1432ef7c38f22cd96351"),
        (ALG, "dad5f0e226318ffa9839b75a472c6aa7fdb5834949d0a0a22990cf04d5692440fb00f3aa0609db7e49cd8d793f670d02"),
        (
            HashAlgorithm::SHA512,
            "b708d222ca8bd44dfe6ba0c4ca2cbb72379276fba8091025217064be45a813e5d6124ccf073219edb617d1faf007d55061465bdf34b7437dbdc9a7405bd4e9c0",
        ),
    ] {
        assert_eq!(algorithm.hash(&[&data]).map(hex::encode).as_deref(), Some(digest));
    }
}

#[test]
fn runtime_events_take_no_parts_that_would_read_as_others() {
    for (domain, operation, content) in [
        ("", "o", "c"),
        ("a b", "o", "c"),
        ("d", "", "c"),
        ("d", "o\n", "c"),
        ("d", "o", "c\nd o c"),
        ("d", "o\u{a0}p", "c"),
        ("d", "o", "\0"),
    ] {
        assert!(Aael::new(domain, operation, content).is_err(), "{domain:?} {operation:?} {content:?}");
    }
    assert!(Aael::new("d", "o", &"x".repeat(16 << 10)).is_ok() && Aael::new("d", "o", &"x".repeat((16 << 10) + 1)).is_err());
    assert!(Aael::new(&"d".repeat(257), "o", "").is_err());
    assert_eq!(Aael::new("d", "o", "").expect("empty content is content").text(), "d o ");
}

#[test]
fn ac_56_a_payload_that_was_not_measured_is_found() {
    for event in [0, 1, 4, 6] {
        let mut bytes = log(&boot());
        let parsed = EventLog::parse(&bytes).expect("parses");
        let end = parsed.events().get(event + 1).map_or(bytes.len(), |next| next.offset);
        bytes[end - 1] ^= 1;
        let parsed = EventLog::parse(&bytes).expect("parses");
        let found: Vec<_> = parsed.findings(Registers::Cc).into_iter().map(|finding| (finding.event, finding.what)).collect();
        assert_eq!(found, [(event, FindingKind::PayloadDiffers)]);
    }
    let grub = |prefix: &str, tail: &[u8]| {
        let digest = EventDigest { algorithm: ALG, bytes: ALG.hash(&[b"linux /vmlinuz quiet"]).expect("computes") };
        encode_event(3, EventType::IPL, digest, &[prefix.as_bytes(), b"linux /vmlinuz ", tail].concat())
    };
    for prefix in ["grub_cmd ", "grub_cmd: ", "kernel_cmdline: ", "grub_kernel_cmdline "] {
        assert_eq!(findings(&[grub(prefix, b"quiet\0x")]), []);
        assert_eq!(findings(&[grub(prefix, b"debug\0x")]), [(0, FindingKind::PayloadDiffers)]);
    }
    let boot_order = encode_event(
        1,
        EventType::EFI_VARIABLE_BOOT,
        EventDigest { algorithm: ALG, bytes: ALG.hash(&[&[0, 0]]).expect("computes") },
        &variable("BootOrder", &[0, 0]),
    );
    assert_eq!(findings(&[boot_order]), []);
}

#[test]
fn ac_56_an_event_after_the_separator_is_found() {
    let with = |event: Vec<u8>| findings(&[boot(), vec![event]].concat());
    let after = [(7, FindingKind::AfterSeparator)];
    assert_eq!(with(label(1, EventType::PLATFORM_CONFIG_FLAGS, 1, b"ACPI DATA")), after);
    assert_eq!(with(honest(1, EventType::EFI_VARIABLE_BOOT, &variable("BootOrder", &[0, 0]))), after);
    assert_eq!(with(honest(1, EventType::EFI_VARIABLE_AUTHORITY, &variable("db", &[0, 0]))), []);
    assert_eq!(with(honest(1, EventType::SEPARATOR, &[0; 4])), [(7, FindingKind::ExtraSeparator)]);
    // Secure Boot said to be on, after the first separator.
    let mut events = boot();
    events.insert(2, honest(1, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable("SecureBoot", &[1])));
    assert_eq!(findings(&events), [(2, FindingKind::AfterSeparator)]);
}

#[test]
fn ac_56_an_error_separator_and_malformed_payloads_are_found() {
    assert_eq!(findings(&[honest(2, EventType::SEPARATOR, &[1, 0, 0, 0])]), [(0, FindingKind::ErrorSeparator)]);
    assert_eq!(findings(&[honest(2, EventType::SEPARATOR, &[0xff; 4])]), []);
    assert_eq!(findings(&[honest(2, EventType::SEPARATOR, &[0; 5])]), [(0, FindingKind::Malformed)]);
    let mut lying = variable("SecureBoot", &[1]);
    lying[16] = 0xff;
    assert_eq!(findings(&[honest(1, EventType::EFI_VARIABLE_DRIVER_CONFIG, &lying)]), [(0, FindingKind::Malformed)]);
    let mut huge = variable("SecureBoot", &[1]);
    huge[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(findings(&[honest(1, EventType::EFI_VARIABLE_DRIVER_CONFIG, &huge)]), [(0, FindingKind::Malformed)]);
    let aael = [b"LEAA\x03\0\0\0".as_slice(), b"a b"].concat();
    assert_eq!(findings(&[label(4, EventType::EVENT_TAG, 1, &aael)]), [(0, FindingKind::Malformed)]);
}
