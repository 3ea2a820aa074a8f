//! Real reports and certificates of public test suites: every recorded outcome is reproduced here.

use der::Encode as _;
use kata_cc_evidence::snp::{CertEntry, CertKind, CertTable, TcbVersion};
use x509_cert::Certificate;

use super::cert::common_name;
use super::*;
use crate::vectors::{read, vectors};

/// 2024-06-01, when every certificate of the vectors but the VLEK was valid.
const IN_2024: u64 = 1_717_200_000;
/// 2025-01-01, within the VLEK's year.
const IN_2025: u64 = 1_735_689_600;

const TRUSTEE: &str = "confidential-containers/trustee/deps/verifier/test_data/snp";

fn evidence(report: &[u8], kind: CertKind, cert: Vec<u8>) -> Evidence {
    let table = CertTable { entries: vec![CertEntry { kind, data: cert }] };
    Evidence::from_raw(report, &table.to_bytes().expect("fits")).expect("well formed")
}

fn check(evidence: &Evidence, now_unix: u64) -> Result<VerifiedSnp, SnpError> {
    check_with(evidence, &RootSet::amd().into(), &Collateral::none(), now_unix)
}

fn check_with(evidence: &Evidence, trust: &SnpTrust, collateral: &Collateral, now_unix: u64) -> Result<VerifiedSnp, SnpError> {
    let expected = SnpExpected { report_data: None, host_data: None, now_unix };
    verify(evidence, &expected, trust, collateral, &mut Checks::default())
}

#[test]
fn milan_report_of_trustee_verifies() {
    let Some(dir) = vectors() else { return };
    let report = read(&dir, &format!("{TRUSTEE}/test-report.bin"));
    let vcek = read(&dir, &format!("{TRUSTEE}/test-vcek.der"));
    let evidence = evidence(&report, CertKind::Vcek, vcek);
    assert_eq!(evidence.report_bytes().as_slice(), report);
    let verified = check(&evidence, IN_2024).expect("verifies");
    assert_eq!((verified.root_name(), verified.simulated_root(), verified.generation()), ("AMD Milan", None, Some(Generation::Milan)));
    let claims = verified.claims();
    assert!(claims["measurement"].as_str().expect("text").starts_with("a1f3930413247bb3"));
    assert_eq!((&claims["guest_svn"], &claims["policy_abi_minor"], &claims["simulated"]), (&4.into(), &0x1f.into(), &false.into()));
    assert!(claims["chip_id"].as_str().expect("text").starts_with("c38427a3"));
}

#[test]
fn milan_report_survives_cocos_json() {
    let Some(dir) = vectors() else { return };
    let report = read(&dir, &format!("{TRUSTEE}/test-report.bin"));
    let original = evidence(&report, CertKind::Vcek, read(&dir, &format!("{TRUSTEE}/test-vcek.der")));
    let json = serde_json::to_string(&original).expect("serialises");
    let again: Evidence = serde_json::from_str(&json).expect("parses");
    assert_eq!(again.report_bytes().as_slice(), report);
    assert!(check(&again, IN_2024).is_ok());
}

#[test]
fn ac_53_recorded_tampers_of_the_milan_report_fail_as_recorded() {
    let Some(dir) = vectors() else { return };
    let report = read(&dir, &format!("{TRUSTEE}/test-report.bin"));
    let vcek = read(&dir, &format!("{TRUSTEE}/test-vcek.der"));
    let with = |offset: usize, cert: Vec<u8>| {
        let mut bytes = report.clone();
        bytes[offset] = bytes[offset].wrapping_add(1);
        check(&evidence(&bytes, CertKind::Vcek, cert), IN_2024).map(|_| ())
    };
    assert_eq!(with(42, vcek.clone()), Err(SnpError::ReportSignature));
    assert!(matches!(with(384, vcek.clone()), Err(SnpError::Tcb { .. })));

    let mut cert = vcek;
    cert[42] = cert[42].wrapping_add(1);
    let refused = check(&evidence(&report, CertKind::Vcek, cert), IN_2024).map(|_| ());
    assert!(
        matches!(refused, Err(SnpError::ChainSignature { part: ChainPart::Leaf } | SnpError::Certificate { part: ChainPart::Leaf, .. })),
        "{refused:?}"
    );
}

#[test]
fn every_signed_byte_of_the_milan_report_counts() {
    let Some(dir) = vectors() else { return };
    let report = read(&dir, &format!("{TRUSTEE}/test-report.bin"));
    let vcek = read(&dir, &format!("{TRUSTEE}/test-vcek.der"));
    for offset in 0..Report::LEN {
        let mut bytes = report.clone();
        bytes[offset] ^= 0x80;
        let table = CertTable { entries: vec![CertEntry { kind: CertKind::Vcek, data: vcek.clone() }] };
        let Ok(evidence) = Evidence::from_raw(&bytes, &table.to_bytes().expect("fits")) else { continue };
        assert!(check(&evidence, IN_2024).is_err(), "byte {offset:#x} does not matter");
    }
}

#[test]
fn ac_53_certificates_of_other_chips_and_tcbs_do_not_fit_the_milan_report() {
    let Some(dir) = vectors() else { return };
    let report = read(&dir, &format!("{TRUSTEE}/test-report.bin"));
    for name in ["test-vcek-invalid-legacy.der", "test-vcek-invalid-new.der"] {
        let cert = read(&dir, &format!("{TRUSTEE}/{name}"));
        let parsed = Cert::parse(&cert).expect("parses");
        // Both encodings of the hardware id, raw and as OCTET STRING, read the same.
        assert_eq!(parsed.hwid().expect("there")[..8], [0, 1, 2, 3, 4, 5, 6, 7], "{name}");
        let refused = check(&evidence(&report, CertKind::Vcek, cert), IN_2024).map(|_| ());
        assert!(matches!(refused, Err(SnpError::Tcb { .. } | SnpError::ChipId { .. } | SnpError::ChainSignature { .. })), "{refused:?}");
    }
    let go = read(&dir, "google/go-sev-guest/verify/testdata/vcek.testcer");
    assert!(matches!(check(&evidence(&report, CertKind::Vcek, go), IN_2024), Err(SnpError::Tcb { .. } | SnpError::ChipId { .. })));
}

#[test]
fn report_of_a_vlek_verifies_up_to_its_privilege_level() {
    let Some(dir) = vectors() else { return };
    let report = read(&dir, &format!("{TRUSTEE}/test-vlek-report.bin"));
    let vlek = read(&dir, &format!("{TRUSTEE}/test-vlek.der"));
    let evidence = evidence(&report, CertKind::Vlek, vlek);
    // All signatures hold; what fails is that the report is for VMPL 1.
    assert_eq!(check(&evidence, IN_2025).map(|_| ()), Err(SnpError::Vmpl { found: 1 }));
    // 2026-01-01: the VLEK expired on 2025-12-10.
    assert!(matches!(check(&evidence, 1_767_225_600), Err(SnpError::Expired { part: ChainPart::Leaf, .. })));
    assert!(matches!(check(&evidence, IN_2024), Err(SnpError::NotYetValid { part: ChainPart::Leaf, .. })));
}

#[test]
fn ac_53_vlek_and_vcek_do_not_pass_for_each_other() {
    let Some(dir) = vectors() else { return };
    let vlek_report = read(&dir, &format!("{TRUSTEE}/test-vlek-report.bin"));
    let vlek = read(&dir, &format!("{TRUSTEE}/test-vlek.der"));
    let vcek = read(&dir, &format!("{TRUSTEE}/test-vcek.der"));
    // In the wrong slot of the table it is not found.
    assert!(matches!(check(&evidence(&vlek_report, CertKind::Vcek, vlek.clone()), IN_2025), Err(SnpError::NoEndorsement { .. })));
    // In the right slot it is recognised for what it is.
    assert!(matches!(check(&evidence(&vlek_report, CertKind::Vlek, vcek), IN_2025), Err(SnpError::LeafKind { expected: "VLEK", .. })));
    let vcek_report = read(&dir, &format!("{TRUSTEE}/test-report.bin"));
    assert!(matches!(check(&evidence(&vcek_report, CertKind::Vcek, vlek), IN_2025), Err(SnpError::LeafKind { expected: "VCEK", .. })));
}

#[test]
fn azures_report_verifies_with_its_certificate() {
    let Some(dir) = vectors() else { return };
    let base = "confidential-containers/trustee/deps/verifier/test_data/az-snp-vtpm";
    let hcl = read(&dir, &format!("{base}/hcl-report.bin"));
    let pem = read(&dir, &format!("{base}/vcek.pem"));
    // The file holds the whole chain; the first certificate is the VCEK.
    let certs = Certificate::load_pem_chain(&pem).expect("PEM");
    let vcek = certs[0].to_der().expect("DER");
    assert!(check(&evidence(&hcl[32..32 + Report::LEN], CertKind::Vcek, vcek), IN_2024).is_ok());
}

#[test]
fn certificates_of_virtee_and_google_hang_from_the_compiled_in_roots() {
    let Some(dir) = vectors() else { return };
    for (path, product) in [
        ("virtee/sev/tests/certs_data/vcek_milan.der", "Milan"),
        ("virtee/sev/tests/certs_data/vcek_turin.der", "Turin"),
        ("google/go-sev-guest/verify/testdata/vcek.testcer", "Milan"),
    ] {
        let leaf = Cert::parse(&read(&dir, path)).expect("parses");
        assert_eq!(leaf.product(), Some(product), "{path}");
        let empty = Evidence::new(Report::default(), None).expect("well formed");
        let trust = RootSet::amd().into();
        let now = leaf.not_before() + 1;
        let root =
            chain::verify(&leaf, LeafKind::Vcek, &empty, &trust, &Collateral::none(), now, &mut Checks::default()).expect("chain holds");
        assert_eq!(root.name, format!("AMD {product}"));
        assert_eq!(leaf.tcb().expect("there").fmc.is_some(), product == "Turin");
        assert!(leaf.hwid().is_ok());
    }
    let mut broken = read(&dir, "virtee/sev/tests/certs_data/vcek_milan.der");
    broken[40] ^= 0xff;
    if let Ok(leaf) = Cert::parse(&broken) {
        let empty = Evidence::new(Report::default(), None).expect("well formed");
        let trust = RootSet::amd().into();
        assert!(
            chain::verify(&leaf, LeafKind::Vcek, &empty, &trust, &Collateral::none(), leaf.not_before() + 1, &mut Checks::default())
                .is_err()
        );
    }
}

#[test]
fn a_known_endorsement_serves_evidence_that_comes_without() {
    let Some(dir) = vectors() else { return };
    let report = read(&dir, &format!("{TRUSTEE}/test-report.bin"));
    let bare = Evidence::from_raw(&report, &[]).expect("well formed");
    let known = vec![
        read(&dir, "google/go-sev-guest/verify/testdata/vcek.testcer"),
        read(&dir, &format!("{TRUSTEE}/test-vlek.der")),
        b"nonsense".to_vec(),
        read(&dir, &format!("{TRUSTEE}/test-vcek.der")),
    ];
    let with = |endorsements: &[Vec<u8>]| {
        let trust = SnpTrust { endorsements: endorsements.to_vec(), ..RootSet::amd().into() };
        check_with(&bare, &trust, &Collateral::none(), IN_2024).map(|_| ())
    };
    assert_eq!(with(&known), Ok(()));
    assert!(matches!(with(&known[..3]), Err(SnpError::NoEndorsement { kind: "VCEK", .. })));
}

#[test]
fn a_fetched_endorsement_serves_a_real_report_that_comes_without() {
    let Some(dir) = vectors() else { return };
    let bare = Evidence::from_raw(&read(&dir, &format!("{TRUSTEE}/test-report.bin")), &[]).expect("well formed");
    let needs = kds::needs(&bare);
    // Version 2 does not state the generation: where the certificate is served is one of two places.
    assert_eq!(needs.len(), 4);
    assert!(needs[0].path.starts_with("vcek/v1/Milan/c38427a3") && needs[0].path.ends_with("?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115"));
    let with = |file: &str| {
        let mut collateral = Collateral::none();
        let body = read(&dir, file);
        collateral.insert(needs[0].clone(), crate::collateral::Item { body, ..Default::default() });
        check_with(&bare, &RootSet::amd().into(), &collateral, IN_2024).map(|_| ())
    };
    assert_eq!(with(&format!("{TRUSTEE}/test-vcek.der")), Ok(()));
    assert!(matches!(with("google/go-sev-guest/verify/testdata/vcek.testcer"), Err(SnpError::Tcb { .. } | SnpError::ChipId { .. })));
}

#[test]
fn rules_hold_for_real_reports() {
    let Some(dir) = vectors() else { return };
    let report = read(&dir, &format!("{TRUSTEE}/test-report.bin"));
    let evidence = evidence(&report, CertKind::Vcek, read(&dir, &format!("{TRUSTEE}/test-vcek.der")));
    let with = |rules: SnpRules| {
        let trust = SnpTrust { rules, ..RootSet::amd().into() };
        check_with(&evidence, &trust, &Collateral::none(), IN_2024).map(|_| ())
    };
    // The generation is the root's: the report's version does not say.
    let denied = with(SnpRules { deny_generations: vec![Generation::Milan], ..SnpRules::default() });
    assert_eq!(denied, Err(SnpError::GenerationDenied { generation: Generation::Milan }));
    let own = evidence.report().reported_tcb;
    let floor = |tcb| with(SnpRules { minimum_tcb: vec![(Generation::Milan, tcb)], ..SnpRules::default() });
    assert_eq!(floor(own), Ok(()));
    assert!(matches!(floor(TcbVersion { microcode: 116, ..own }), Err(SnpError::TcbBelowMinimum { which: "REPORTED_TCB", .. })));
    let crl = with(SnpRules { require_crl: true, ..SnpRules::default() });
    assert_eq!(crl, Err(SnpError::RevocationList { root: "AMD Milan".into(), gap: RevocationGap::Missing }));
}

#[test]
fn amds_chains_in_other_projects_are_those_compiled_in() {
    let Some(dir) = vectors() else { return };
    let trust = "google/go-sev-guest/verify/trust";
    let builtin = "virtee/sev/src/certs/snp/builtin";
    let trustee = "confidential-containers/trustee/deps/verifier/src/snp";
    let mut files = vec![
        ("google/go-sev-guest/verify/testdata/milan.testcer".to_owned(), "Milan"),
        ("google/go-sev-guest/verify/testdata/milanvlek.testcer".to_owned(), "Milan"),
        (format!("{trust}/ask_ark_milan.pem"), "Milan"),
        (format!("{trust}/ask_ark_milan_vlek.pem"), "Milan"),
        (format!("{trust}/ask_ark_genoa.pem"), "Genoa"),
        (format!("{trust}/ask_ark_genoa_vlek.pem"), "Genoa"),
        (format!("{trust}/ask_ark_turin_vcek.pem"), "Turin"),
        (format!("{trust}/ask_ark_turin_vlek.pem"), "Turin"),
        ("virtee/sev/tests/certs_data/cert_chain_milan".to_owned(), "Milan"),
        ("virtee/sev/tests/certs_data/cert_chain_turin".to_owned(), "Turin"),
    ];
    for (product, name) in [("milan", "Milan"), ("genoa", "Genoa"), ("turin", "Turin")] {
        files.push((format!("{builtin}/{product}/ark.pem"), name));
        files.push((format!("{builtin}/{product}/ask.pem"), name));
        files.push((format!("{trustee}/{product}_ask_ark_asvk.pem"), name));
    }
    let roots = RootSet::amd();
    for (file, product) in files {
        let root = roots.iter().find(|root| root.name == format!("AMD {product}")).expect("compiled in");
        let certs = Cert::parse_pem(&read(&dir, &file)).expect("parses");
        assert!(!certs.is_empty());
        for cert in certs {
            let known = [&root.ark].into_iter().chain(&root.intermediates).any(|known| known.is_same_issuer_as(&cert));
            assert!(known && cert.is_signed_by(&root.ark) && cert.is_authority(), "{file}");
        }
    }
}

#[test]
fn every_prefix_of_a_certificate_is_refused_without_panic() {
    let Some(dir) = vectors() else { return };
    let cert = read(&dir, &format!("{TRUSTEE}/test-vcek.der"));
    for len in 0..cert.len() {
        assert!(Cert::parse(&cert[..len]).is_err());
    }
    for offset in 0..cert.len() {
        let mut bytes = cert.clone();
        bytes[offset] ^= 0xff;
        let _ = Cert::parse(&bytes).map(|cert| (cert.tcb(), cert.hwid(), common_name(cert.subject())));
    }
}

#[test]
fn urls_of_the_key_distribution_service_follow_the_generation() {
    let mut report = Report::default();
    report.chip_id[..2].copy_from_slice(&[0xab, 0xcd]);
    report.reported_tcb.microcode = 0xdb;
    let url = vcek_url(&report, Generation::Milan);
    assert!(url.starts_with("https://kdsintf.amd.com/vcek/v1/Milan/abcd0000"));
    assert!(url.ends_with("?blSPL=00&teeSPL=00&snpSPL=00&ucodeSPL=219"));
    report.reported_tcb.fmc = Some(1);
    assert!(vcek_url(&report, Generation::Turin).contains("/Turin/abcd000000000000?fmcSPL=01&blSPL=00"));
}
