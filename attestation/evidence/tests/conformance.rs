//! Our SNP report, raw and JSON, against the `virtee/sev` library, whose serde form CoCo made its wire format.

use kata_cc_evidence::snp::{
    CertEntry, CertKind, CertTable, Cpuid, Evidence, FirmwareVersion, Guid, KeyInfo, PlatformInfo, Policy, Report, Signature, TcbVersion,
};
use kata_cc_evidence::{HostData, LaunchDigest, ReportData};
use serde_json::Value;
use sev::firmware::guest::AttestationReport;
use sev::firmware::host::CertTableEntry;
use sev::parser::ByteParser as _;

fn report(version: u32, family: u8) -> Report {
    let tcb = |seed| TcbVersion {
        fmc: (family == 0x1a).then_some(seed),
        bootloader: seed + 1,
        tee: seed + 2,
        snp: seed + 3,
        microcode: seed + 4,
    };
    Report {
        version,
        guest_svn: 0x0102_0304,
        policy: Policy(0x3_001f),
        family_id: std::array::from_fn(|i| i as u8),
        image_id: std::array::from_fn(|i| 0x20 + i as u8),
        vmpl: 1,
        current_tcb: tcb(10),
        platform_info: PlatformInfo(0x27),
        key_info: KeyInfo(4),
        report_data: ReportData(std::array::from_fn(|i| i as u8)),
        measurement: LaunchDigest([0x32; 48]),
        host_data: HostData([0x33; 32]),
        id_key_digest: [0x34; 48],
        author_key_digest: [0x35; 48],
        report_id: [0x36; 32],
        report_id_ma: [0x37; 32],
        reported_tcb: tcb(20),
        cpuid: (version > 2).then_some(Cpuid { family, model: 1, stepping: 2 }),
        chip_id: if family == 0x1a { std::array::from_fn(|i| if i < 8 { 9 } else { 0 }) } else { [0x38; 64] },
        committed_tcb: tcb(30),
        current: FirmwareVersion { major: 1, minor: 55, build: 29 },
        committed: FirmwareVersion { major: 1, minor: 54, build: 28 },
        launch_tcb: tcb(40),
        launch_mit_vector: (version == 5).then_some(5),
        current_mit_vector: (version == 5).then_some(6),
        signature: Signature { r: [0x41; 72], s: [0x42; 72] },
        ..Report::default()
    }
}

#[test]
fn raw_and_json_forms_are_those_of_the_sev_library() {
    for version in [2, 3, 5] {
        for family in [0x19, 0x1a] {
            let ours = Evidence::new(report(version, family), None).expect("well formed");
            let theirs = AttestationReport::from_bytes(&ours.report_bytes()).expect("the library parses ours");
            let their_json = serde_json::to_value(theirs).expect("serialises");
            let our_json = serde_json::to_value(&ours).expect("serialises");
            assert_eq!(our_json["attestation_report"], their_json, "version {version} family {family:#x}");

            let back: Evidence =
                serde_json::from_value(serde_json::json!({"attestation_report": their_json, "cert_chain": null})).expect("we parse theirs");
            assert_eq!(back, ours);
        }
    }
}

#[test]
fn certificate_tables_are_those_of_the_sev_library() {
    if cfg!(target_endian = "big") {
        eprintln!("SKIPPED: the sev library reads AMD's little-endian tables in the byte order of its machine");
        return;
    }
    let table = CertTable {
        entries: vec![
            CertEntry { kind: CertKind::Vcek, data: vec![1; 10] },
            CertEntry { kind: CertKind::Ask, data: vec![2; 20] },
            CertEntry { kind: CertKind::Ark, data: vec![3; 30] },
            CertEntry { kind: CertKind::Vlek, data: vec![4; 40] },
            CertEntry { kind: CertKind::Crl, data: vec![5; 50] },
            CertEntry { kind: CertKind::Other(Guid([0xab; 16])), data: vec![6; 60] },
        ],
    };
    let evidence = Evidence::new(Report::default(), Some(table)).expect("well formed");
    let json = serde_json::to_value(&evidence).expect("serialises");
    let theirs: Vec<CertTableEntry> = serde_json::from_value(json["cert_chain"].clone()).expect("the library parses ours");
    assert_eq!(serde_json::to_value(&theirs).expect("serialises"), json["cert_chain"]);
    // The raw table, written by the library and read by us.
    let raw = CertTableEntry::cert_table_to_vec_bytes(&theirs).expect("serialises");
    let back = Evidence::from_raw(&evidence.report_bytes(), &raw).expect("parses");
    let sorted = |evidence: &Evidence| {
        let mut entries: Vec<Value> = serde_json::to_value(evidence).expect("serialises")["cert_chain"].as_array().expect("array").clone();
        entries.sort_by_key(ToString::to_string);
        entries
    };
    assert_eq!(sorted(&back), sorted(&evidence));
}
