//! Which TEE is found, and what its evidence is made of, with the kernel played.

use std::fs;
use std::path::Path;

use kata_cc_evidence::TdMeasurement;
use kata_cc_evidence::eventlog::{Aael, EventDigest, EventLog, EventType, HashAlgorithm, Registers, encode_event, encode_header};
use kata_cc_evidence::tdx::{
    Body, CertificationData, CertificationDataType, EnclaveReport, Header, INTEL_QE_VENDOR_ID, QeCertification, Quote, SignatureData,
};

use super::*;
use crate::runtime_log::RuntimePaths;
use crate::tsm::tests::{Kernel, interface};

const ALG: HashAlgorithm = HashAlgorithm::SHA384;

fn paths(dir: &Path) -> Paths {
    Paths {
        tsm_report: dir.join("report"),
        sev_guest: dir.join("sev-guest"),
        tdx_guest: dir.join("tdx_guest"),
        prot_virt_guest: dir.join("prot_virt_guest"),
        uv: dir.join("uv"),
    }
}

#[test]
fn a_guest_without_tee_gets_an_error_and_nothing_else() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let refused = Attester::detect_at(&paths(dir.path())).expect_err("nothing is there");
    assert!(matches!(refused, AttestError::NoTee { .. }));
    assert!(refused.to_string().contains("SEV-SNP"));
    // A TD's device alone gives no quotes.
    fs::write(dir.path().join("tdx_guest"), b"").expect("writes");
    assert!(matches!(Attester::detect_at(&paths(dir.path())), Err(AttestError::NoTee { .. })));
}

#[test]
fn a_guest_that_seems_to_be_of_two_kinds_is_of_none() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let paths = paths(dir.path());
    let found = |provider: Option<&str>, devices: &[&Path]| {
        for device in [&paths.sev_guest, &paths.tdx_guest, &paths.prot_virt_guest] {
            let _ = fs::remove_file(device);
        }
        for device in devices {
            fs::write(device, b"1\n").expect("writes");
        }
        let kernel = match provider {
            Some(provider) => Kernel { provider: provider.into(), ..Kernel::default() },
            None => Kernel { mkdir: Some(nix::errno::Errno::ENXIO), ..Kernel::default() },
        };
        Attester::detect_with(interface(kernel), &paths).map(|attester| attester.tee())
    };
    let (sev, tdx, se) = (paths.sev_guest.as_path(), paths.tdx_guest.as_path(), paths.prot_virt_guest.as_path());
    for (provider, devices, kind) in [
        (Some("sev_guest"), &[sev][..], TeeType::Snp),
        (Some("sev_guest"), &[], TeeType::Snp),
        (None, &[sev], TeeType::Snp),
        (Some("tdx_guest"), &[tdx], TeeType::Tdx),
        (None, &[se], TeeType::Se),
    ] {
        assert_eq!(found(provider, devices).expect("one kind"), kind, "{provider:?} {devices:?}");
    }
    for (provider, devices) in [
        (Some("sev_guest"), &[tdx][..]),
        (Some("tdx_guest"), &[sev]),
        (Some("sev_guest"), &[sev, tdx]),
        (Some("tdx_guest"), &[sev, tdx]),
        (None, &[sev, tdx]),
        (None, &[se, sev]),
        (None, &[se, tdx]),
        (Some("sev_guest"), &[se]),
        (Some("tdx_guest"), &[se]),
    ] {
        assert!(matches!(found(provider, devices), Err(AttestError::Several { .. })), "{provider:?} {devices:?}");
    }
}

/// A guest of Secure Execution cannot see what it was launched with: it says what it was given, in evidence.
#[test]
fn secure_execution_makes_evidence_of_initdata_and_a_request_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let paths = paths(dir.path());
    fs::write(&paths.prot_virt_guest, b"1\n").expect("writes");
    let guest = Attester::detect_at(&paths).expect("Secure Execution");
    let log = RuntimeLog::open_at(&Place::new().paths()).expect("a new log");
    let evidence = |nonce| guest.evidence(&ReportData::ZERO, nonce, &log).expect_err("no device");
    assert!(matches!(evidence(None), AttestError::Uv(UvError::NoInitdata)));
    guest.launched_with(&[1; 32]).expect("remembered");
    assert!(matches!(guest.launched_with(&[2; 32]), Err(AttestError::Uv(UvError::OtherInitdata))));
    assert!(matches!(evidence(None), AttestError::Uv(UvError::NotAsked)));
    assert!(matches!(evidence(Some("AAAA")), AttestError::Uv(UvError::Challenge(_))));
}

#[test]
fn a_directory_that_is_no_report_interface_is_not_taken_for_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let paths = Paths { tsm_report: dir.path().into(), ..paths(dir.path()) };
    assert!(matches!(Attester::detect_at(&paths), Err(AttestError::Tsm(_))));
    // Nor is anything left behind.
    assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
}

/// A quote of nobody's, over this report data and with these registers.
fn quote(report_data: [u8; 64], rtmr: [[u8; 48]; 4]) -> Vec<u8> {
    let quote = Quote {
        header: Header { version: 4, reserved: [0; 4], qe_vendor_id: INTEL_QE_VENDOR_ID, user_data: [0; 20] },
        body: Body { report_data: ReportData(report_data), rtmr: rtmr.map(TdMeasurement), ..Body::default() },
        signature_data: SignatureData {
            signature: [1; 64],
            attestation_key: [2; 64],
            qe: QeCertification {
                report: EnclaveReport::default(),
                report_signature: [3; 64],
                auth_data: vec![4; 32],
                certification: CertificationData { kind: CertificationDataType::PCK_CERT_CHAIN, data: b"chain".to_vec() },
            },
        },
    };
    quote.to_bytes().expect("serialises")
}

fn td(make: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static, device: &Path) -> Attester {
    let quotes = interface(Kernel { provider: "tdx_guest".into(), make: Some(Box::new(make)), ..Kernel::default() });
    Attester { source: Source::Tdx(Td { quotes, device: device.into() }) }
}

fn report_data(inblob: &[u8]) -> [u8; 64] {
    inblob.try_into().expect("64 bytes")
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    fn paths(&self) -> RuntimePaths {
        RuntimePaths { register: self.0.path().join("rtmr3"), firmware: self.0.path().join("CCEL") }
    }
}

fn replayed(log: &[u8]) -> [[u8; 48]; 4] {
    let values = EventLog::parse(log).expect("parses").replay(Registers::Cc, ALG).expect("replays");
    [1, 2, 3, 4].map(|index| values[&index].clone().try_into().expect("48 bytes"))
}

/// As firmware leaves it: one event for RTMR0, and the rest of its area.
fn firmware_log() -> Vec<u8> {
    let event = encode_event(1, EventType::IPL, EventDigest { algorithm: ALG, bytes: vec![7; 48] }, b"firmware");
    [encode_header(&[ALG]), event, vec![0xff; 4096]].concat()
}

#[test]
fn a_quote_comes_with_the_log_that_replays_to_its_registers() {
    let place = Place::new();
    fs::write(place.paths().firmware, firmware_log()).expect("writes");
    fs::write(place.paths().register, [0; 48]).expect("writes");
    let log = RuntimeLog::open_at(&place.paths()).expect("opens");
    log.record(&Aael::new("kata-cc", "SetPolicy", "{}").expect("well formed")).expect("records");
    let registers = replayed(&log.snapshot().expect("whole"));
    // Something happens between quote and log: it is in neither.
    log.record(&Aael::new("kata-cc", "StartContainer", "{}").expect("well formed")).expect("records");
    let attester = td(move |inblob| quote(report_data(inblob), registers), place.0.path());
    assert_eq!(attester.tee(), TeeType::Tdx);
    let Evidence::Tdx(evidence) = attester.evidence(&ReportData([5; 64]), None, &log).expect("evidence") else { panic!("of a TD") };
    assert_eq!(replayed(evidence.cc_eventlog().expect("a log")), registers);
    assert_eq!(evidence.quote().body.report_data, ReportData([5; 64]));
}

/// Logs of real firmware, if they are there.
fn firmware_logs() -> Vec<Vec<u8>> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let dir = std::env::var_os("KATA_CC_VECTORS").map_or(beside, Into::into);
    let mut logs = vec![firmware_log()];
    if dir.is_dir() {
        let dir = dir.join("confidential-containers/trustee/deps/eventlog/test_data");
        logs.extend(["CCEL_data", "CCEL_data_ovmf", "CCEL_AAEL_alibabacloud"].map(|name| fs::read(dir.join(name)).expect("a vector")));
    } else {
        eprintln!("SKIPPED in part: no vectors at {}; set KATA_CC_VECTORS", dir.display());
    }
    logs
}

#[test]
fn the_verifier_takes_the_log_beside_a_quote_and_reads_the_agents_events_in_it() {
    for firmware in firmware_logs() {
        let place = Place::new();
        let [.., before] = replayed(&firmware);
        fs::write(place.paths().firmware, &firmware).expect("writes");
        fs::write(place.paths().register, before).expect("writes");
        let log = RuntimeLog::open_at(&place.paths()).expect("opens");
        log.record(&Aael::new("kata-cc", "SetPolicy", r#"{"version":1}"#).expect("well formed")).expect("records");
        log.record_for_workload(&Aael::new("example.com", "op", "text").expect("well formed")).expect("records");
        let registers = replayed(&log.snapshot().expect("whole"));
        let attester = td(move |inblob| quote(report_data(inblob), registers), place.0.path());
        let Evidence::Tdx(evidence) = attester.evidence(&ReportData::ZERO, None, &log).expect("evidence") else { panic!("of a TD") };

        let sent = EventLog::parse(evidence.cc_eventlog().expect("a log")).expect("parses");
        let rtmrs = evidence.quote().body.rtmr.map(|register| register.0);
        kata_cc_verifier::eventlog::check_replay(&sent, &rtmrs).expect("replays");
        assert_eq!(sent.events().len(), EventLog::parse(&firmware).expect("parses").events().len() + 2);
        let claims = kata_cc_verifier::eventlog::claims(&sent);
        let events = claims["runtime_events"].as_array().expect("a list");
        let [.., policy, program] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(*policy, serde_json::json!({"domain": "kata-cc", "operation": "SetPolicy", "content": {"version": 1}}));
        assert_eq!(program["domain"], "example.com");
        // Without its last event it is no log of this quote.
        let cut = EventLog::parse(&log.snapshot_at(&before).expect("was so")).expect("parses");
        assert!(kata_cc_verifier::eventlog::check_replay(&cut, &rtmrs).is_err());
    }
}

#[test]
fn a_quote_whose_rtmr3_nobody_can_explain_is_not_given_out() {
    let place = Place::new();
    fs::write(place.paths().register, [0; 48]).expect("writes");
    let log = RuntimeLog::open_at(&place.paths()).expect("opens");
    let attester = td(|inblob| quote(report_data(inblob), [[0; 48], [0; 48], [0; 48], [9; 48]]), place.0.path());
    let refused = attester.evidence(&ReportData::ZERO, None, &log).expect_err("refused");
    assert!(matches!(refused, AttestError::Log(RuntimeLogError::Register { .. })), "{refused}");
}

#[test]
fn where_events_are_in_no_register_the_quote_comes_with_the_firmwares_log_alone() {
    let place = Place::new();
    let log = RuntimeLog::open_at(&place.paths()).expect("opens");
    log.record(&Aael::new("kata-cc", "SetPolicy", "{}").expect("well formed")).expect("records");
    let attester = td(|inblob| quote(report_data(inblob), replayed(&firmware_log())), place.0.path());
    let cc_eventlog = || match attester.evidence(&ReportData::ZERO, None, &log).expect("evidence") {
        Evidence::Tdx(evidence) => evidence.cc_eventlog().map(<[u8]>::to_vec),
        Evidence::Snp(_) | Evidence::Se(_) => panic!("of a TD"),
    };
    assert_eq!(cc_eventlog(), None);
    fs::write(place.paths().firmware, firmware_log()).expect("writes");
    let sent = cc_eventlog().expect("a log");
    assert_eq!((replayed(&sent), sent.ends_with(b"firmware")), (replayed(&firmware_log()), true));
    fs::write(place.paths().firmware, b"no log").expect("writes");
    assert!(matches!(attester.evidence(&ReportData::ZERO, None, &log), Err(AttestError::Log(RuntimeLogError::Firmware(_)))));
}

#[test]
fn quotes_over_other_data_and_what_is_no_quote_are_refused() {
    let place = Place::new();
    let log = RuntimeLog::open_at(&place.paths()).expect("opens");
    let other = td(|_| quote([6; 64], [[0; 48]; 4]), place.0.path());
    assert!(matches!(other.evidence(&ReportData([5; 64]), None, &log), Err(AttestError::ReportData { .. })));
    let none = td(|_| Vec::new(), place.0.path());
    assert!(matches!(none.evidence(&ReportData([5; 64]), None, &log), Err(AttestError::NoQuote)));
    let none = td(|_| b"no quote".to_vec(), place.0.path());
    assert!(matches!(none.evidence(&ReportData([5; 64]), None, &log), Err(AttestError::Evidence(MalformedEvidence::Tdx(_)))));
}

#[test]
fn a_td_that_cannot_say_what_it_was_launched_with_does_not_go_on() {
    let place = Place::new();
    let attester = td(|inblob| quote(report_data(inblob), [[0; 48]; 4]), &place.0.path().join("tdx_guest"));
    assert!(matches!(attester.launched_with(&[7; 48]), Err(AttestError::TdxGuest(TdxGuestError::Open(_)))));
}

#[test]
fn serialised_evidence_is_its_kinds_own_form() {
    let place = Place::new();
    let log = RuntimeLog::open_at(&place.paths()).expect("opens");
    let attester = td(|inblob| quote(report_data(inblob), [[0; 48]; 4]), place.0.path());
    let json = serde_json::to_value(attester.evidence(&ReportData::ZERO, None, &log).expect("evidence")).expect("serialises");
    assert_eq!(json.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>()), Some(vec!["cc_eventlog".into(), "quote".into()]));
}
