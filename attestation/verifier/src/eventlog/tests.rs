//! Claims against CoCo's recorded ones, and boot claims that must not come of a log that could be read otherwise.

use kata_cc_evidence::eventlog::{EventDigest, encode_event, encode_header};

use super::*;
use crate::vectors;

const ALG: HashAlgorithm = HashAlgorithm::SHA384;
const TRUSTEE: &str = "confidential-containers/trustee/deps";

fn read(path: &str) -> Option<Vec<u8>> {
    Some(vectors::read(&vectors::vectors()?, &format!("{TRUSTEE}/{path}")))
}

fn log(name: &str) -> Option<EventLog> {
    Some(EventLog::parse(&read(&format!("eventlog/test_data/{name}"))?).expect(name))
}

/// Every field of every event. In SM3 `digest_matches_event` is left out: there is no SM3 here, and it is false.
#[test]
fn claims_are_those_that_trustee_recorded() {
    for name in ["CCEL_data", "CCEL_data_ovmf", "CCEL_data_grub", "CCEL_AAEL_alibabacloud", "CCEL_data_csv"] {
        let Some(log) = log(name) else { return };
        let expected = read(&format!("eventlog/test_data/{name}_out.json")).expect("beside the log");
        let mut expected: Value = serde_json::from_slice(&expected).expect("JSON");
        let expected = expected["uefi_event_logs"].as_array_mut().expect("a list");
        let mut found = claims(&log)["uefi_event_logs"].as_array().expect("a list").clone();
        assert_eq!(found.len(), expected.len(), "{name}");
        for (number, (found, expected)) in found.iter_mut().zip(expected).enumerate() {
            if name == "CCEL_data_csv" {
                for event in [&mut *found, expected] {
                    event.as_object_mut().expect("an object").remove("digest_matches_event");
                }
            }
            assert_eq!(found, expected, "{name}, event {number}");
        }
    }
}

#[test]
fn claims_are_those_that_trustee_recorded_with_a_quote() {
    let (Some(log), Some(expected)) = (log("CCEL_data"), read("verifier/test_data/parse_tdx_claims_expected.json")) else { return };
    let expected: Value = serde_json::from_slice(&expected).expect("JSON");
    assert_eq!(claims(&log)["uefi_event_logs"], expected["uefi_event_logs"]);
}

fn rtmrs(log: &EventLog) -> [[u8; 48]; 4] {
    let values = log.replay(Registers::Cc, ALG).expect("replays");
    std::array::from_fn(|register| values[&(register as u32 + 1)].as_slice().try_into().expect("48 bytes"))
}

#[test]
fn a_directly_booted_kernel_is_claimed_with_parameters_and_initrd() {
    let Some(log) = log("CCEL_data_ovmf") else { return };
    let boot = &claims(&log)["boot"];
    for (name, begins) in [
        ("kernel", "a2ccae1e7d6c"),
        ("tdvfkernel", "a2ccae1e7d6c"),
        ("kernel_parameters", "4230f84885a6"),
        ("tdvfkernelparams", "4230f84885a6"),
        ("initrd", "b15af9286108"),
    ] {
        assert!(boot[name].as_str().is_some_and(|digest| digest.starts_with(begins)), "{name}: {boot}");
    }
}

#[test]
fn a_boot_by_way_of_grub_is_not_claimed_as_a_direct_one() {
    for name in ["CCEL_AAEL_alibabacloud", "CCEL_data_grub"] {
        let Some(log) = log(name) else { return };
        let claims = claims(&log);
        assert!(claims["boot"].get("kernel").is_none(), "{name}");
    }
    let Some(log) = log("CCEL_AAEL_alibabacloud") else { return };
    assert_eq!(claims(&log)["boot"], json!({}));
    let events = &claims(&log)["runtime_events"];
    assert_eq!(events[1]["content"]["nested-key"]["sub-key"], "value");
}

fn entry(index: u32, kind: EventType, digest: u8, data: &[u8]) -> Vec<u8> {
    encode_event(index, kind, EventDigest { algorithm: ALG, bytes: vec![digest; 48] }, data)
}

fn tag(id: u32, digest: u8) -> Vec<u8> {
    entry(RTMR2, EventType::EVENT_TAG, digest, &[id.to_le_bytes().as_slice(), &2_u32.to_le_bytes(), b"x\0"].concat())
}

fn kernel(digest: u8) -> Vec<u8> {
    let name: Vec<u8> = "kernel\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let path = [&[4, 4, 18, 0], name.as_slice(), &[0x7f, 0xff, 4, 0]].concat();
    entry(
        RTMR1,
        EventType::EFI_BOOT_SERVICES_APPLICATION,
        digest,
        &[&[0; 24], (path.len() as u64).to_le_bytes().as_slice(), &path].concat(),
    )
}

fn boot_of(events: &[Vec<u8>]) -> Value {
    claims(&EventLog::parse(&[encode_header(&[ALG]), events.concat()].concat()).expect("parses"))["boot"].clone()
}

#[test]
fn ac_56_no_kernel_is_claimed_where_another_digest_may_be_the_kernels() {
    assert_eq!(boot_of(&[kernel(1)])["kernel"], "01".repeat(48));
    // The kernel that ran under another label, and the expected digest extended by it.
    for label in [EventType::EFI_BOOT_SERVICES_APPLICATION, EventType::EFI_BOOT_SERVICES_DRIVER, EventType::IPL, EventType(0x1234)] {
        assert_eq!(boot_of(&[entry(RTMR1, label, 9, b""), kernel(1)]), json!({}), "{label}");
    }
    // A label whose payload is measured, with a digest that is not its own.
    assert_eq!(boot_of(&[entry(RTMR1, EventType::EFI_ACTION, 9, b"Exit Boot Services Invocation"), kernel(1)]), json!({}));
    assert_eq!(boot_of(&[kernel(9), kernel(1)]), json!({}));
    // The kernel that ran as the payload of an event whose digest is that of its payload.
    let whole = |data: &[u8]| {
        let bytes = ALG.hash(&[data]).expect("computes");
        encode_event(RTMR1, EventType::EFI_ACTION, EventDigest { algorithm: ALG, bytes }, data)
    };
    assert_eq!(boot_of(&[whole(b"MZ, a kernel"), kernel(1)]), json!({}));
    assert_eq!(boot_of(&[whole(b"Exit Boot Services Invocation\0MZ"), kernel(1)]), json!({}));
    assert_eq!(boot_of(&[whole(b"Exit Boot Services Invocation"), kernel(1)])["kernel"], "01".repeat(48));
}

#[test]
fn ac_56_no_parameters_or_initrd_are_claimed_from_events_out_of_order() {
    let good = boot_of(&[tag(LOAD_OPTIONS, 1), tag(INITRD, 2)]);
    assert_eq!((&good["kernel_parameters"], &good["initrd"]), (&json!("01".repeat(48)), &json!("02".repeat(48))));
    assert_eq!(boot_of(&[tag(LOAD_OPTIONS, 1)])["kernel_parameters"], "01".repeat(48));
    for events in [
        vec![tag(INITRD, 2), tag(LOAD_OPTIONS, 1)],
        vec![entry(RTMR2, EventType::IPL, 9, b"MokList\0"), tag(LOAD_OPTIONS, 1), tag(INITRD, 2)],
        vec![tag(LOAD_OPTIONS, 9), tag(LOAD_OPTIONS, 1)],
        vec![tag(LOAD_OPTIONS, 1), tag(INITRD, 9), tag(INITRD, 2)],
    ] {
        assert_eq!(boot_of(&events), json!({}));
    }
}

#[test]
fn ac_56_runtime_events_whose_text_was_not_measured_are_no_claims() {
    let data = kata_cc_evidence::eventlog::Aael::new("d", "o", "c").expect("well formed").to_data();
    let right =
        encode_event(RTMR3, EventType::EVENT_TAG, EventDigest { algorithm: ALG, bytes: ALG.hash(&[&data]).expect("computes") }, &data);
    for (events, expected) in [(vec![right], 1), (vec![entry(RTMR3, EventType::EVENT_TAG, 1, &data)], 0)] {
        let log = EventLog::parse(&[encode_header(&[ALG]), events.concat()].concat()).expect("parses");
        assert_eq!(claims(&log)["runtime_events"].as_array().map(Vec::len), Some(expected));
    }
}

#[test]
fn ac_56_a_log_without_a_register_holds_runtime_events_alone() {
    let data = kata_cc_evidence::eventlog::Aael::new("d", "o", "{\"a\":1}").expect("well formed").to_data();
    let digest = || EventDigest { algorithm: ALG, bytes: ALG.hash(&[&data]).expect("computes") };
    let log = |events: &[Vec<u8>]| runtime_log(&[encode_header(&[ALG]), events.concat()].concat());
    let right = encode_event(RTMR3, EventType::EVENT_TAG, digest(), &data);
    let expected = json!({"domain": "d", "operation": "o", "content": {"a": 1}});
    assert_eq!(log(&[right.clone(), right.clone()]), Ok(json!([expected, expected])));
    assert_eq!(log(&[]), Ok(json!([])));
    for wrong in [
        entry(RTMR3, EventType::EVENT_TAG, 1, &data),
        encode_event(RTMR2, EventType::EVENT_TAG, digest(), &data),
        encode_event(RTMR3, EventType::IPL, digest(), &data),
        kernel(1),
    ] {
        assert_eq!(log(&[right.clone(), wrong]), Err(RuntimeLogError::Event { index: 1 }));
    }
    assert!(matches!(runtime_log(b"log"), Err(RuntimeLogError::Malformed(_))));
}

#[test]
fn ac_54_a_log_that_is_cut_reordered_or_anothers_does_not_replay() {
    let events = [kernel(1), tag(LOAD_OPTIONS, 1), tag(INITRD, 2)];
    let parse = |events: &[Vec<u8>]| EventLog::parse(&[encode_header(&[ALG]), events.concat()].concat()).expect("parses");
    let rtmrs = rtmrs(&parse(&events));
    assert_eq!(check_replay(&parse(&events), &rtmrs), Ok(()));
    for (changed, at) in [
        (vec![events[0].clone(), events[1].clone()], 2),
        (vec![events[0].clone(), events[2].clone(), events[1].clone()], 2),
        (vec![events[1].clone(), events[2].clone()], 1),
        (events.iter().cloned().chain([entry(1, EventType::IPL, 1, b"")]).collect(), 0),
        (events.iter().cloned().chain([entry(4, EventType::IPL, 1, b"")]).collect(), 3),
    ] {
        let refused = check_replay(&parse(&changed), &rtmrs);
        assert!(matches!(refused, Err(ReplayError::Register { register, .. }) if register == at), "{refused:?}");
    }
    let unextendable = parse(&[entry(0, EventType::IPL, 1, b"")]);
    assert!(matches!(check_replay(&unextendable, &rtmrs), Err(ReplayError::Log(_))));
}

#[test]
fn each_register_of_a_real_log_is_compared() {
    let Some(log) = log("CCEL_AAEL_alibabacloud") else { return };
    let good = rtmrs(&log);
    assert_eq!(check_replay(&log, &good), Ok(()));
    for register in 0..4 {
        let mut changed = good;
        changed[register][47] ^= 1;
        assert!(matches!(check_replay(&log, &changed), Err(ReplayError::Register { register: found, .. }) if found == register));
    }
}
