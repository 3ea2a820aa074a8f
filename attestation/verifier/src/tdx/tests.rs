//! Real quotes and collateral of public test suites: every recorded outcome is reproduced here.
//!
//! Quotes with collateral of their time come from Phala-Network/dcap-qvl (`sample/`).

use std::path::Path;

use super::*;
use crate::checks::Outcome;
use crate::collateral::Item;
use crate::vectors::{read, vectors};
use kata_cc_evidence::tdx::BodyType;

const TRUSTEE: &str = "confidential-containers/trustee/deps/verifier/test_data";
const GO: &str = "google/go-tdx-guest/testing/testdata";
const DCAP: &str = "Phala-Network/dcap-qvl/sample";

/// 2025-06-25 and 2026-02-20: within the times of the collateral in dcap-qvl's samples.
const IN_JUNE_2025: u64 = 1_750_800_000;
const IN_FEBRUARY_2026: u64 = 1_771_550_000;
/// 2026-10-20, for the newest of them.
const IN_OCTOBER_2026: u64 = 1_792_450_000;

fn trust() -> TdxTrust {
    RootSet::intel().into()
}

fn at(now_unix: u64) -> TdxExpected<'static> {
    TdxExpected { report_data: None, mr_config_id: None, now_unix }
}

/// Names of the checks that passed, and the error.
fn refused(evidence: &Evidence, now: u64, collateral: &Collateral) -> (Vec<&'static str>, TdxError) {
    let mut checks = Checks::default();
    let error = verify(evidence, &at(now), &trust(), collateral, &mut checks).map(|_| ()).expect_err("refused");
    let passed = checks.all().iter().filter(|check| check.outcome == Outcome::Pass).map(|check| check.name).collect();
    (passed, error)
}

const BY_ITSELF: [&str; 7] = ["quote", "QE vendor", "PCK chain", "PCK extensions", "QE report", "attestation key", "quote signature"];

#[test]
fn real_quotes_verify_up_to_their_missing_collateral() {
    let Some(dir) = vectors() else { return };
    for (path, fmspc) in [
        (format!("{TRUSTEE}/tdx_quote_4.dat"), ""),
        (format!("{TRUSTEE}/tdx_quote_6.dat"), ""),
        (format!("{TRUSTEE}/az-tdx-vtpm/td-quote.bin"), ""),
        (format!("{GO}/tdx_prod_quote_SPR_E4.dat"), "50806f000000"),
    ] {
        let evidence = Evidence::from_raw(&read(&dir, &path), None).expect("well formed");
        let (passed, error) = refused(&evidence, IN_JUNE_2025, &Collateral::none());
        assert_eq!(passed, BY_ITSELF, "{path}: {error}");
        let TdxError::Missing(missing) = &error else { panic!("{path}: {error}") };
        assert_eq!(missing.needs().len(), 4);
        let text = error.to_string();
        for part in [
            &format!("https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc={fmspc}"),
            "https://api.trustedservices.intel.com/tdx/certification/v4/qe/identity",
            "https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
            "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        // What is asked for before anything is verified is the same.
        let verifier = TdxVerifier { trust: trust() };
        let json = serde_json::to_value(&evidence).expect("serialises");
        assert_eq!(verifier.needs(&json), missing.needs());
    }
}

#[test]
fn every_signed_byte_of_a_real_quote_counts() {
    let Some(dir) = vectors() else { return };
    let raw = read(&dir, &format!("{TRUSTEE}/tdx_quote_4.dat"));
    for offset in 0..raw.len() {
        let mut bytes = raw.clone();
        bytes[offset] ^= 0x80;
        let Ok(evidence) = Evidence::from_raw(&bytes, None) else { continue };
        let (passed, _) = refused(&evidence, IN_JUNE_2025, &Collateral::none());
        // The root in the chain is compared by name and key, since it is ours that counts; what follows the PEM is padding.
        let before_padding = offset < raw.len() - 3;
        assert!(!(passed.len() == BY_ITSELF.len() && before_padding) || is_of_brought_root(&raw, offset), "byte {offset} does not matter");
    }
}

/// Within the third certificate of the chain, or in a line break.
fn is_of_brought_root(raw: &[u8], offset: usize) -> bool {
    let starts: Vec<usize> = raw.windows(11).enumerate().filter(|(_, window)| window == b"-----BEGIN ").map(|(start, _)| start).collect();
    offset >= starts[2] || raw[offset] == b'\n'
}

#[test]
fn collateral_of_a_public_suite_is_read_and_judged_as_recorded() {
    let Some(dir) = vectors() else { return };
    let raw = read(&dir, &format!("{GO}/tdx_prod_quote_SPR_E4.dat"));
    let evidence = Evidence::from_raw(&raw, None).expect("well formed");
    let (leaf, ..) = chain::read_pck(certification(evidence.quote()).expect("a chain")).expect("reads");
    let platform = Platform::of(&leaf).expect("a platform");
    assert_eq!((hex::encode(platform.fmspc), platform.pce_id), ("50806f000000".into(), [0, 0]));

    let bytes = read(&dir, &format!("{GO}/sample_tcbInfo_response"));
    let document = signed_json::SignedJson::tcb_info(&bytes).expect("reads");
    let info: tcb_info::TcbInfo = serde_json::from_str(document.body).expect("reads");
    assert_eq!(info.check_is_for(&platform), Ok(()));
    assert_eq!(info.check_module(&evidence.quote().body), Ok(()));
    let judged = info.judge(&platform, &evidence.quote().body.tee_tcb_svn);
    assert!(matches!(&judged, Err(TdxError::NoTcbLevel { what: "platform", .. })), "{judged:?}");

    let bytes = read(&dir, &format!("{GO}/sample_qeIdentity_response"));
    let document = signed_json::SignedJson::enclave_identity(&bytes).expect("reads");
    let identity: qe_identity::QeIdentity = serde_json::from_str(document.body).expect("reads");
    let report = &evidence.quote().signature_data.qe.report;
    assert_eq!((identity.check_form(), identity.check(report)), (Ok(()), Ok(())));
    assert_eq!(identity.judge(report).map(|judged| judged.status), Ok(TcbStatus::UpToDate));

    for path in [format!("{GO}/sample_tcbinfo_response_v5"), format!("{TRUSTEE}/tcbInfo.json")] {
        let bytes = read(&dir, &path);
        let document = signed_json::SignedJson::tcb_info(&bytes).expect("reads");
        let info: tcb_info::TcbInfo = serde_json::from_str(document.body).expect("reads");
        assert!(matches!(info.check_is_for(&platform), Err(TdxError::TcbInfoPlatform { .. })), "{path}");
    }
}

#[test]
fn intels_revocation_lists_are_signed_by_the_certificates_of_real_quotes() {
    let Some(dir) = vectors() else { return };
    let raw = read(&dir, &format!("{GO}/tdx_prod_quote_SPR_E4.dat"));
    let evidence = Evidence::from_raw(&raw, None).expect("well formed");
    let (leaf, intermediate, ..) = chain::read_pck(certification(evidence.quote()).expect("a chain")).expect("reads");
    let root_crl = cert::RevocationList::parse(&read(&dir, &format!("{GO}/rootcrl.der"))).expect("reads");
    let intel = RootSet::intel();
    let root = &intel.issuer_of(&intermediate).expect("Intel's").cert;
    assert!(root_crl.is_signed_by(root) && !root_crl.is_signed_by(&intermediate) && !root_crl.revokes(&intermediate));
    let pck_crl = cert::RevocationList::parse(&read(&dir, &format!("{GO}/pckcrl"))).expect("reads");
    assert!(pck_crl.is_signed_by(&intermediate) && !pck_crl.is_signed_by(root) && !pck_crl.revokes(&leaf));
    // As a caching service gives the root's.
    let hexadecimal = hex::encode(read(&dir, &format!("{GO}/rootcrl.der")));
    assert!(cert::RevocationList::parse(hexadecimal.as_bytes()).expect("reads").is_signed_by(root));
}

#[test]
fn every_truncation_of_a_revocation_list_is_refused_without_panic() {
    let Some(dir) = vectors() else { return };
    let list = read(&dir, &format!("{GO}/pckcrl"));
    for len in 0..list.len() {
        assert!(cert::RevocationList::parse(&list[..len]).is_err());
    }
}

/// A quote with the collateral of its time.
fn sample(dir: &Path, name: &str) -> Option<(Evidence, Collateral)> {
    if !dir.join(DCAP).is_dir() {
        eprintln!("SKIPPED: no quotes with collateral at {DCAP} of the vectors");
        return None;
    }
    let evidence = Evidence::from_raw(&read(dir, &format!("{DCAP}/{name}")), None).expect("well formed");
    let file: Value = serde_json::from_slice(&read(dir, &format!("{DCAP}/{name}_collateral.json"))).expect("JSON");
    let text = |field: &str| file[field].as_str().expect("text").to_owned();
    let signed = |name: &str, body: &str| Item {
        body: format!("{{\"{name}\":{},\"signature\":\"{}\"}}", text(body), text(&format!("{body}_signature"))).into_bytes(),
        issuer_chain: text(&format!("{body}_issuer_chain")).into_bytes(),
    };
    let (leaf, _, ca, _) = chain::read_pck(certification(evidence.quote()).expect("a chain")).expect("reads");
    let needs = Needs::of(&Platform::of(&leaf).expect("a platform"), ca);
    let mut collateral = Collateral::none();
    let list = |field| Item { body: hex::decode(text(field)).expect("hexadecimal"), issuer_chain: Vec::new() };
    collateral.insert(needs.tcb_info, signed("tcbInfo", "tcb_info"));
    collateral.insert(needs.qe_identity, signed("enclaveIdentity", "qe_identity"));
    collateral.insert(needs.pck_crl, list("pck_crl"));
    collateral.insert(needs.root_crl, list("root_ca_crl"));
    Some((evidence, collateral))
}

#[test]
fn real_quotes_with_collateral_of_their_time_verify_under_intels_root() {
    let Some(dir) = vectors() else { return };
    for (name, kind, now) in [("tdx_quote", BodyType::Td10, IN_JUNE_2025), ("tdx_quote_td15ex", BodyType::Td15Ex, IN_OCTOBER_2026)] {
        let Some((evidence, collateral)) = sample(&dir, name) else { return };
        assert_eq!(evidence.quote().body_type(), kind, "{name}");
        let mut checks = Checks::default();
        let verified = verify(&evidence, &at(now), &trust(), &collateral, &mut checks).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((verified.root_name(), verified.simulated_root()), ("Intel SGX Root CA", None));
        assert_eq!(verified.tcb().status, TcbStatus::UpToDate, "{name}: {:?}", verified.tcb());
        assert_eq!(verified.claims()["simulated"], false);
        let open: Vec<_> = checks.all().iter().filter(|check| check.outcome == Outcome::NotCompared).map(|check| check.name).collect();
        assert_eq!(open, ["report data", "MRCONFIGID"], "{name}");
        // The same a year later: nothing of it is in its time any more.
        let (_, error) = refused(&evidence, now + 365 * 86_400, &collateral);
        assert!(matches!(error, TdxError::CollateralTime { .. } | TdxError::Time { .. }), "{name}: {error}");
    }
}

#[test]
fn a_real_platform_below_every_level_is_refused() {
    let Some(dir) = vectors() else { return };
    let Some((evidence, collateral)) = sample(&dir, "tdx_quote_outdated") else { return };
    assert_eq!(evidence.quote().body_type(), BodyType::Td15);
    let (passed, error) = refused(&evidence, IN_FEBRUARY_2026, &collateral);
    assert!(matches!(error, TdxError::NoTcbLevel { what: "platform", .. }), "{error}");
    assert_eq!(passed.last(), Some(&"TDX module"));
}

/// The claims that Trustee has, all but those of its event log.
#[test]
fn claims_are_those_that_trustee_recorded() {
    let Some(dir) = vectors() else { return };
    let raw = read(&dir, &format!("{TRUSTEE}/tdx_quote_4.dat"));
    let evidence = Evidence::from_raw(&raw, None).expect("well formed");
    let (leaf, ..) = chain::read_pck(certification(evidence.quote()).expect("a chain")).expect("reads");
    // A debug TD, which does not verify: claims of it are made here and nowhere else.
    let made = VerifiedTdx {
        quote: evidence.quote().clone(),
        platform: Platform::of(&leaf).expect("a platform"),
        root_name: "none".into(),
        simulated: false,
        tcb: Judgement { status: TcbStatus::UpToDate, date: String::new(), advisories: std::collections::BTreeSet::new() },
        tcb_evaluation_data_number: 0,
        collateral_valid_until: 0,
        event_log_claims: None,
    };
    let ours = made.claims();
    let theirs: Value = serde_json::from_slice(&read(&dir, &format!("{TRUSTEE}/parse_tdx_claims_expected.json"))).expect("JSON");
    assert_eq!(ours["quote"], theirs["quote"]);
    assert_eq!((&ours["report_data"], &ours["init_data"]), (&theirs["report_data"], &theirs["init_data"]));
    for (name, value) in theirs["td_attributes"].as_object().expect("an object") {
        assert_eq!(&ours["td_attributes"][name], value, "{name}");
    }
    assert_eq!(ours["platform_instance_id"], "82548d228d94d5e204a95b354dc61a02");
}

#[test]
fn ac_54_a_log_of_another_boot_is_refused() {
    let Some(dir) = vectors() else { return };
    let evidence = Evidence::from_raw(&read(&dir, &format!("{TRUSTEE}/tdx_quote_4.dat")), None).expect("well formed");
    let log = read(&dir, "confidential-containers/trustee/deps/eventlog/test_data/CCEL_data");
    let claims = |log: Option<&[u8]>| event_log::claims(log, &evidence.quote().body, &mut Checks::default());
    assert_eq!(claims(None), Ok(None));
    let refused = claims(Some(&log)).expect_err("refused");
    assert!(matches!(&refused, TdxError::EventLog { reason } if reason.contains("RTMR0")), "{refused}");
    assert_eq!(refused.rule(), "event-log");
    for malformed in [&b""[..], &log[..20], &[0xff; 64]] {
        assert!(matches!(claims(Some(malformed)), Err(TdxError::EventLog { .. })));
    }
}
