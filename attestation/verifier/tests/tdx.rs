//! A made-up Intel under a simulated root, and one mutation for every check of a quote: each must be refused for its own reason.

mod tdx_world;

use kata_cc_evidence::eventlog::{EventDigest, EventLog, EventType, HashAlgorithm, Registers, encode_event, encode_header};
use kata_cc_evidence::tdx::{CertificationDataType, Evidence, Extension15, Extension15Ex, TdAttributes};
use kata_cc_evidence::{MrConfigId, ReportData, TdMeasurement, TeeType};
use kata_cc_verifier::checks::{Checks, Outcome};
use kata_cc_verifier::collateral::{Collateral, Item};
use kata_cc_verifier::tdx::{CertError, Part, Piece, RootError, RootSet, TcbStatus, TdxError, TdxTrust};
use kata_cc_verifier::{Expected, Trust, Verifiers, VerifyError};
use serde_json::{Value, json};
use tdx_world::*;

/// What a world bent so is refused for.
#[track_caller]
fn refused(bend: impl FnOnce(&mut World)) -> TdxError {
    let mut world = World::new();
    bend(&mut world);
    world.check().map(|_| ()).expect_err("refused")
}

/// The claims and status of a world bent so.
#[track_caller]
fn accepted(bend: impl FnOnce(&mut World)) -> (Value, TcbStatus) {
    let mut world = World::new();
    bend(&mut world);
    let verified = world.check().unwrap_or_else(|error| panic!("refused: {error}"));
    (verified.claims(), verified.tcb().status)
}

#[test]
fn a_quote_under_the_simulated_root_verifies_and_says_so() {
    let world = World::new();
    let mut checks = Checks::default();
    let verified = world.check_all(&world.quote(), &world.collateral(), world.roots(), &mut checks).expect("verifies");
    assert_eq!((verified.root_name(), verified.simulated_root()), ("lab", Some("lab")));
    let names: Vec<_> = checks.all().iter().map(|check| (check.name, check.outcome)).collect();
    let expected = [
        "quote",
        "QE vendor",
        "PCK chain",
        "PCK extensions",
        "QE report",
        "attestation key",
        "quote signature",
        "collateral",
        "root CRL",
        "PCK CRL",
        "PCK revocation",
        "TCB info",
        "QE identity",
        "TCB evaluation",
        "quoting enclave",
        "TCB info's platform",
        "TDX module",
        "TCB status",
        "debugging",
        "TD attributes",
        "SEPT_VE_DISABLE",
        "report data",
        "MRCONFIGID",
    ];
    assert_eq!(names[..expected.len()], expected.map(|name| (name, Outcome::Pass)));
    assert_eq!(names[expected.len()..], [("event log", Outcome::NotCompared)]);

    let claims = verified.claims();
    for (name, value) in [
        ("simulated", json!(true)),
        ("root", json!("lab")),
        ("tcb_status", json!("UpToDate")),
        ("tcb_date", json!("2026-07-01T00:00:00Z")),
        ("advisory_ids", json!([])),
        ("collateral_expiration_status", json!("0")),
        ("mr_td", json!("21".repeat(48))),
        ("rtmr_1", json!("31".repeat(48))),
        ("init_data", json!(format!("{}{}", "52".repeat(32), "00".repeat(16)))),
        ("fmspc", json!(FMSPC)),
        ("pce_svn", json!(11)),
        ("smt_enabled", json!(true)),
        ("tcb_evaluation_data_number", json!(20)),
        // The root's list is the first to run out.
        ("collateral_valid_until", json!(NOW + 20 * DAY)),
        ("mr_service_td", Value::Null),
    ] {
        assert_eq!(claims[name], value, "{name}");
    }
    assert_eq!(claims["quote"]["header"]["tee_type"], "81000000");
    assert_eq!(claims["quote"]["body"]["mr_td"], claims["mr_td"]);
    assert_eq!(claims["td_attributes"]["septve_disable"], true);
}

fn extension(svn: [u8; 3], more: Option<Extension15Ex>) -> Extension15 {
    let mut tee_tcb_svn2 = [0; 16];
    tee_tcb_svn2[..3].copy_from_slice(&svn);
    Extension15 { tee_tcb_svn2, mr_service_td: TdMeasurement([9; 48]), more }
}

#[test]
fn quotes_of_version_5_verify_with_each_body() {
    let more = Extension15Ex {
        vm_id: 0,
        td_id: [1; 32],
        dev_info: TdMeasurement::ZERO,
        init_service_td_hash: TdMeasurement::ZERO,
        init_service_td_attributes: [0; 8],
        init_cpu_svn: [2; 16],
        init_tee_tcb_svn: [3; 16],
        init_tee_fmspc: [4; 12],
        cur_service_td_hash: TdMeasurement([5; 48]),
        cur_service_td_attributes: [0; 8],
    };
    for (body, kind) in [(None, "0200"), (Some(extension([5, 1, 5], None)), "0300"), (Some(extension([5, 1, 5], Some(more))), "0400")] {
        let (claims, _) = accepted(|world| (world.header.version, world.body.extension) = (5, body));
        assert_eq!(claims["quote"]["type"], kind);
        assert_eq!(claims["mr_service_td"], body.map_or(Value::Null, |_| "09".repeat(48).into()));
        assert_eq!(claims["cur_service_td_hash"].is_string(), kind == "0400");
    }
}

#[test]
fn nothing_hangs_from_a_root_that_is_not_configured() {
    let world = World::new();
    let error =
        world.check_all(&world.quote(), &world.collateral(), RootSet::intel(), &mut Checks::default()).map(|_| ()).expect_err("refused");
    assert!(matches!(&error, TdxError::UnknownRoot { part: Part::Pck, found, .. } if found == "Lab Root CA"), "{error}");
    // Another root of the same name, whether the quote brings it or not.
    let other = World::new();
    let quote = other.quote();
    assert!(matches!(world.check_quote(&quote), Err(TdxError::UnknownRoot { part: Part::Pck, .. })));
    let quote = other.quote_with(pem(&[&other.pck_cert(), &other.ca_cert()]));
    assert!(matches!(world.check_quote(&quote), Err(TdxError::ChainSignature { part: Part::PckCa })));
    // The root need not be there.
    assert!(other.check_quote(&quote).is_ok());
}

#[test]
fn a_simulated_root_must_be_one() {
    let world = World::new();
    let with = |file: Vec<u8>| RootSet::intel().with_simulated("lab", &file).map(|_| ());
    assert!(matches!(with(pem(&[&world.ca_cert()])), Err(RootError::NotARoot { .. })));
    assert!(matches!(with(pem(&[&world.root_cert(), &world.ca_cert()])), Err(RootError::NotARoot { .. })));
    let mut world = World::new();
    world.root.extensions = vec![constraints(false)];
    assert!(matches!(with(pem(&[&world.root_cert()])), Err(RootError::NotARoot { .. })));
    let twice = World::new();
    let again = twice.roots().with_simulated("other", &pem(&[&twice.root_cert()])).map(|_| ());
    assert!(matches!(again, Err(RootError::Subject { .. })));
    assert!(matches!(twice.roots().with_simulated("lab", &pem(&[&twice.root_cert()])), Err(RootError::Name { .. })));
}

#[test]
fn another_vendors_quoting_enclave_is_refused() {
    assert!(matches!(refused(|world| world.header.qe_vendor_id[0] ^= 1), TdxError::Vendor { .. }));
}

#[test]
fn a_quote_without_its_pck_chain_is_refused() {
    let world = World::new();
    let mut quote = world.quote();
    quote.signature_data.qe.certification.kind = CertificationDataType(3);
    assert_eq!(world.check_quote(&quote).map(|_| ()), Err(TdxError::CertificationData { found: 3 }));
    let leaf = world.quote_with(pem(&[&world.pck_cert()]));
    assert!(matches!(world.check_quote(&leaf), Err(TdxError::ChainLength { part: Part::Pck, found: 1, .. })));
    let (pck, ca, root) = (world.pck_cert(), world.ca_cert(), world.root_cert());
    let long = world.quote_with(pem(&[&pck, &ca, &root, &root]));
    assert!(matches!(world.check_quote(&long), Err(TdxError::ChainLength { part: Part::Pck, found: 4, .. })));
    let nonsense = world.quote_with(b"no certificates".to_vec());
    assert!(matches!(world.check_quote(&nonsense), Err(TdxError::Certificate { part: Part::Pck, .. })));
    let order = world.quote_with(pem(&[&ca, &pck, &root]));
    assert!(matches!(world.check_quote(&order), Err(TdxError::Role { part: Part::PckCa, .. })));
}

#[test]
fn each_certificate_of_the_chain_must_be_in_its_time() {
    for (part, now) in [(Part::Root, NOW + 501 * DAY), (Part::Root, NOW - 101 * DAY)] {
        assert!(matches!(refused(|world| world.now = now), TdxError::Time { part: found, .. } if found == part));
    }
    assert!(matches!(refused(|world| world.ca.not_after = NOW - 1), TdxError::Time { part: Part::PckCa, .. }));
    assert!(matches!(refused(|world| world.ca.not_before = NOW + 1), TdxError::Time { part: Part::PckCa, .. }));
    assert!(matches!(refused(|world| world.pck.not_after = NOW - 1), TdxError::Time { part: Part::Pck, .. }));
    assert!(matches!(refused(|world| world.pck.not_before = NOW + 1), TdxError::Time { part: Part::Pck, .. }));
    assert!(matches!(refused(|world| world.signer.not_after = NOW - 1), TdxError::Time { part: Part::TcbInfoSigner, .. }));
}

#[test]
fn each_certificate_of_the_chain_must_be_signed_by_the_one_above() {
    let world = World::new();
    let (pck, ca, root) = (world.pck_cert(), world.ca_cert(), world.root_cert());
    let stray = Key::new();
    let forged = world.ca.signed(&world.ca_key, &stray);
    let quote = world.quote_with(pem(&[&pck, &forged, &root]));
    assert_eq!(world.check_quote(&quote).map(|_| ()), Err(TdxError::ChainSignature { part: Part::PckCa }));
    let mut other = World::new();
    other.ca_key = stray;
    let quote = world.quote_with(pem(&[&other.pck_cert(), &ca, &root]));
    assert_eq!(world.check_quote(&quote).map(|_| ()), Err(TdxError::ChainSignature { part: Part::Pck }));
    // Right key, wrong name of the issuer.
    assert!(matches!(refused(|world| world.pck.issuer = "Lab PCK Processor CA"), TdxError::ChainSignature { part: Part::Pck }));
}

#[test]
fn certificates_must_have_their_role() {
    let role = |part: Part, bend: fn(&mut World)| {
        let error = refused(bend);
        assert!(matches!(error, TdxError::Role { part: found, .. } if found == part), "{error}");
    };
    role(Part::PckCa, |world| world.ca.extensions = vec![constraints(true)]);
    role(Part::PckCa, |world| world.ca.extensions.retain(|e| e.extn_id != constraints(true).extn_id));
    role(Part::PckCa, |world| (world.ca.subject, world.pck.issuer) = ("Lab CA", "Lab CA"));
    role(Part::Pck, |world| world.pck.extensions = vec![constraints(true)]);
    role(Part::TcbInfoSigner, |world| world.signer.subject = "Lab PCK Certificate");
    role(Part::TcbInfoSigner, |world| world.signer.extensions = vec![constraints(true)]);
}

#[test]
fn a_pck_ca_does_not_sign_tcb_infos() {
    let world = World::new();
    let mut item = world.signed("tcbInfo", &world.tcb_info);
    // Signed by the PCK CA's key, with its certificate as the signer's.
    let body = world.tcb_info.to_string();
    let signature = hex::encode(world.ca_key.fixed(body.as_bytes()));
    item.body = format!("{{\"tcbInfo\":{body},\"signature\":\"{signature}\"}}").into_bytes();
    item.issuer_chain = pem(&[&world.ca_cert(), &world.root_cert()]);
    assert!(matches!(with_piece(&world, TCB_INFO, item), TdxError::Role { part: Part::TcbInfoSigner, .. }));
}

#[test]
fn unknown_critical_extensions_and_algorithms_are_refused() {
    let error = refused(|world| world.pck.extensions.push(tdx_world::extension("1.2.3.4", true, vec![5, 0])));
    assert!(
        matches!(&error, TdxError::Certificate { part: Part::Pck, source: CertError::CriticalExtension { oid } } if oid == "1.2.3.4"),
        "{error}"
    );
    assert!(accepted(|world| world.pck.extensions.push(tdx_world::extension("1.2.3.4", false, vec![5, 0]))).0.is_object());
    let error = refused(|world| world.ca.algorithm.oid = oid("1.2.840.10045.4.3.3"));
    assert!(matches!(error, TdxError::Certificate { source: CertError::SignatureAlgorithm { .. }, .. }), "{error}");
}

#[test]
fn pck_certificates_must_say_each_part_of_their_platform_once() {
    for arcs in [".2", ".2.1", ".2.16", ".2.17", ".2.18", ".3", ".4"] {
        let error = refused(|world| world.platform.without = Some(arcs));
        assert!(matches!(error, TdxError::Certificate { part: Part::Pck, source: CertError::Extension { .. } }), "{arcs}: {error}");
        let error = refused(|world| world.platform.twice = Some(arcs));
        assert!(matches!(error, TdxError::Certificate { part: Part::Pck, source: CertError::Extension { .. } }), "{arcs}: {error}");
    }
    for (arcs, claim) in [(".6", "platform_instance_id"), (".7", "smt_enabled"), (".7.1", "dynamic_platform"), (".7.2", "cached_keys")] {
        assert_eq!(accepted(|world| world.platform.without = Some(arcs)).0[claim], Value::Null, "{arcs}");
        let error = refused(|world| world.platform.twice = Some(arcs));
        assert!(matches!(error, TdxError::Certificate { part: Part::Pck, source: CertError::Extension { .. } }), "{arcs}: {error}");
    }
}

#[test]
fn every_signature_of_the_quote_counts() {
    let world = World::new();
    let mut quote = world.quote();
    quote.signature_data.qe.report_signature[0] ^= 1;
    assert_eq!(world.check_quote(&quote).map(|_| ()), Err(TdxError::QeReportSignature));
    let mut quote = world.quote();
    quote.signature_data.qe.report.isv_svn += 1;
    assert_eq!(world.check_quote(&quote).map(|_| ()), Err(TdxError::QeReportSignature));

    // A genuine report for another attestation key.
    let mut quote = world.quote();
    let other = Key::new();
    quote.signature_data.attestation_key = other.raw();
    quote.signature_data.signature = other.fixed(&quote.signed_bytes().expect("fits"));
    assert!(matches!(world.check_quote(&quote), Err(TdxError::AttestationKey { .. })));
    let mut quote = world.quote();
    quote.signature_data.qe.auth_data[0] ^= 1;
    assert!(matches!(world.check_quote(&quote), Err(TdxError::AttestationKey { .. })));
    // The right digest with something behind it.
    let mut quote = world.quote();
    let report = &mut quote.signature_data.qe.report;
    report.report_data[63] = 1;
    quote.signature_data.qe.report_signature = world.pck_key.fixed(&report.to_bytes());
    assert!(matches!(world.check_quote(&quote), Err(TdxError::AttestationKey { .. })));

    let mut quote = world.quote();
    quote.body.mr_td.0[0] ^= 1;
    assert_eq!(world.check_quote(&quote).map(|_| ()), Err(TdxError::QuoteSignature));
    let mut quote = world.quote();
    quote.header.user_data[0] ^= 1;
    assert_eq!(world.check_quote(&quote).map(|_| ()), Err(TdxError::QuoteSignature));
    let mut quote = world.quote();
    quote.signature_data.signature[63] ^= 1;
    assert_eq!(world.check_quote(&quote).map(|_| ()), Err(TdxError::QuoteSignature));
}

/// What a world with this piece in place of its own is refused for.
#[track_caller]
fn with_piece(world: &World, path: &str, item: Item) -> TdxError {
    let mut collateral = world.collateral();
    collateral.insert(need(path), item);
    world.check_all(&world.quote(), &collateral, world.roots(), &mut Checks::default()).map(|_| ()).expect_err("refused")
}

fn body(bytes: &[u8]) -> Item {
    Item { body: bytes.to_vec(), issuer_chain: Vec::new() }
}

#[test]
fn each_piece_of_collateral_is_missed_by_name() {
    let world = World::new();
    for path in [TCB_INFO, QE_IDENTITY, PCK_CRL, ROOT_CRL] {
        let pieces = world.pieces().into_iter().filter(|(found, _)| *found != path).collect();
        let error =
            world.check_all(&world.quote(), &collateral(pieces), world.roots(), &mut Checks::default()).map(|_| ()).expect_err("refused");
        let TdxError::Missing(missing) = &error else { panic!("{error}") };
        assert_eq!(missing.needs(), [need(path)]);
        assert!(error.to_string().contains(path) && error.to_string().contains("(curl "), "{error}");
    }
    let error =
        world.check_all(&world.quote(), &Collateral::none(), world.roots(), &mut Checks::default()).map(|_| ()).expect_err("refused");
    assert!(matches!(&error, TdxError::Missing(missing) if missing.needs().len() == 4), "{error}");
}

#[test]
fn the_processor_ca_has_its_own_list() {
    let name = "Lab PCK Processor CA";
    let error = refused(|world| (world.ca.subject, world.pck.issuer) = (name, name));
    let TdxError::Missing(missing) = &error else { panic!("{error}") };
    assert_eq!(missing.needs(), [need("sgx/certification/v4/pckcrl?ca=processor&encoding=der")]);
}

#[test]
fn revoked_certificates_are_refused_each_by_its_list() {
    assert_eq!(refused(|world| world.root_crl.revoked.push(2)), TdxError::Revoked { part: Part::PckCa });
    assert_eq!(refused(|world| world.pck_crl.revoked.push(3)), TdxError::Revoked { part: Part::Pck });
    assert_eq!(refused(|world| world.root_crl.revoked.push(4)), TdxError::Revoked { part: Part::TcbInfoSigner });
    // Numbers are the issuer's: the other list says nothing about them.
    assert!(accepted(|world| world.pck_crl.revoked.extend([2, 4])).0.is_object());
    assert!(accepted(|world| world.root_crl.revoked.push(3)).0.is_object());
}

#[test]
fn ac_54_expired_collateral_is_refused_each_piece_by_name() {
    let old = |piece: Piece, bend: &dyn Fn(&mut World)| {
        let error = refused(bend);
        assert!(matches!(error, TdxError::CollateralTime { piece: found, .. } if found == piece), "{error}");
    };
    old(Piece::RootCrl, &|world| world.root_crl.next_update = Some(NOW - 1));
    old(Piece::RootCrl, &|world| world.root_crl.this_update = NOW + 1);
    old(Piece::RootCrl, &|world| world.root_crl.next_update = None);
    old(Piece::PckCrl, &|world| world.pck_crl.next_update = Some(NOW - 1));
    old(Piece::PckCrl, &|world| world.pck_crl.this_update = NOW + 1);
    old(Piece::PckCrl, &|world| world.pck_crl.next_update = None);
    old(Piece::TcbInfo, &|world| world.tcb_info["nextUpdate"] = "2027-01-15T07:59:59Z".into());
    old(Piece::TcbInfo, &|world| world.tcb_info["issueDate"] = "2027-01-15T08:00:01Z".into());
    old(Piece::QeIdentity, &|world| world.qe_identity["nextUpdate"] = "2027-01-15T07:59:59Z".into());
    old(Piece::QeIdentity, &|world| world.qe_identity["issueDate"] = "2027-01-15T08:00:01Z".into());
    // On the second it is still good.
    assert!(accepted(|world| world.tcb_info["nextUpdate"] = "2027-01-15T08:00:00Z".into()).0.is_object());
}

#[test]
fn ac_54_rolled_back_collateral_is_refused() {
    let rolled = |piece: Piece, bend: fn(&mut World)| {
        let error = refused(|world| {
            world.rules.minimum_tcb_evaluation_data_number = 20;
            bend(world);
        });
        assert_eq!(error, TdxError::Evaluation { piece, found: 19, minimum: 20 });
    };
    rolled(Piece::TcbInfo, |world| world.tcb_info["tcbEvaluationDataNumber"] = 19.into());
    rolled(Piece::QeIdentity, |world| world.qe_identity["tcbEvaluationDataNumber"] = 19.into());
    assert!(accepted(|world| world.rules.minimum_tcb_evaluation_data_number = 20).0.is_object());
}

#[test]
fn collateral_must_be_signed_by_the_one_who_makes_it() {
    let (world, other) = (World::new(), World::new());
    for (path, piece) in [(PCK_CRL, Piece::PckCrl), (ROOT_CRL, Piece::RootCrl)] {
        let stranger = other.pieces().into_iter().find(|(found, _)| *found == path).expect("there").1;
        assert_eq!(with_piece(&world, path, stranger), TdxError::CollateralSignature { piece });
    }
    // One list for the other.
    let root_crl = world.pieces().into_iter().find(|(found, _)| *found == ROOT_CRL).expect("there").1;
    assert_eq!(with_piece(&world, PCK_CRL, root_crl), TdxError::CollateralSignature { piece: Piece::PckCrl });

    for (path, name, value, part, piece) in [
        (TCB_INFO, "tcbInfo", &world.tcb_info, Part::TcbInfoSigner, Piece::TcbInfo),
        (QE_IDENTITY, "enclaveIdentity", &world.qe_identity, Part::QeIdentitySigner, Piece::QeIdentity),
    ] {
        let error = with_piece(&world, path, other.signed(name, value));
        assert!(matches!(error, TdxError::OtherRoot { part: found, .. } if found == part), "{error}");
        let mut bare = other.signed(name, value);
        bare.issuer_chain = pem(&[&other.signer_cert()]);
        assert_eq!(with_piece(&world, path, bare), TdxError::ChainSignature { part });
        let mut none = world.signed(name, value);
        none.issuer_chain.clear();
        assert!(matches!(with_piece(&world, path, none), TdxError::Certificate { part: found, .. } if found == part));

        // Any change after signing, a space too.
        let good = world.signed(name, value);
        let text = String::from_utf8(good.body.clone()).expect("text");
        for (from, to) in [("\"version\":", "\"version\": "), ("2027-01", "2027-00"), ("20,", "21,")] {
            let bent = Item { body: text.replacen(from, to, 1).into_bytes(), ..good.clone() };
            assert_eq!(with_piece(&world, path, bent), TdxError::CollateralSignature { piece }, "{from}");
        }
    }
}

#[test]
fn malformed_collateral_is_refused_without_panic() {
    let world = World::new();
    for (path, piece) in
        [(PCK_CRL, Piece::PckCrl), (ROOT_CRL, Piece::RootCrl), (TCB_INFO, Piece::TcbInfo), (QE_IDENTITY, Piece::QeIdentity)]
    {
        let good = world.pieces().into_iter().find(|(found, _)| *found == path).expect("there").1;
        for bytes in [&b""[..], b"x", b"{}", b"[]", &good.body[..good.body.len() - 1], &[0x30; 2_000_000]] {
            let error = with_piece(&world, path, Item { body: bytes.to_vec(), ..good.clone() });
            assert!(matches!(error, TdxError::Malformed { piece: found, .. } if found == piece), "{error}");
        }
    }
    assert!(matches!(with_piece(&world, TCB_INFO, body(b"{}")), TdxError::Certificate { part: Part::TcbInfoSigner, .. }));
    // Signed, and still not what it must be.
    for bend in [
        |info: &mut Value| info["tcbLevels"][0]["tcbStatus"] = "Fine".into(),
        |info: &mut Value| info["tcbLevels"][0]["tcb"]["pcesvn"] = (-1).into(),
        |info: &mut Value| info["tcbLevels"][0]["tcb"]["sgxtcbcomponents"].as_array_mut().expect("array").truncate(15),
        |info: &mut Value| info["issueDate"] = "today".into(),
        |info: &mut Value| info["fmspc"] = "00".into(),
        |info: &mut Value| info["tdxModule"] = Value::Null,
    ] {
        let error = refused(|world| bend(&mut world.tcb_info));
        assert!(matches!(error, TdxError::Malformed { piece: Piece::TcbInfo, .. }), "{error}");
    }
}

#[test]
fn tcb_info_must_be_for_tdx_and_for_this_platform() {
    assert!(matches!(refused(|world| world.tcb_info["id"] = "SGX".into()), TdxError::TcbInfoForm { .. }));
    assert!(matches!(refused(|world| world.tcb_info["version"] = 4.into()), TdxError::TcbInfoForm { .. }));
    assert!(matches!(refused(|world| world.tcb_info["tcbType"] = 1.into()), TdxError::TcbInfoForm { .. }));
    assert!(matches!(refused(|world| world.tcb_info["fmspc"] = "50806f000001".into()), TdxError::TcbInfoPlatform { .. }));
    assert!(matches!(refused(|world| world.tcb_info["pceId"] = "0001".into()), TdxError::TcbInfoPlatform { .. }));
}

#[test]
fn ac_54_another_quoting_enclave_is_refused_by_the_field_that_differs() {
    let differs = |name: &str, bend: fn(&mut World)| {
        let error = refused(bend);
        assert!(matches!(&error, TdxError::QeIdentity { field, .. } if *field == name), "{error}");
    };
    differs("MRSIGNER", |world| world.report.mr_signer[0] ^= 1);
    differs("ISVPRODID", |world| world.report.isv_prod_id = 1);
    differs("MISCSELECT", |world| world.report.misc_select = 1);
    // DEBUG of an SGX enclave.
    differs("ATTRIBUTES", |world| world.report.attributes[0] |= 2);
    // A bit outside the mask.
    assert!(accepted(|world| world.report.attributes[0] ^= 4).0.is_object());
    assert!(accepted(|world| world.report.attributes[8] = 0xe7).0.is_object());
    assert!(matches!(refused(|world| world.qe_identity["id"] = "QE".into()), TdxError::QeIdentityForm { .. }));
    assert!(matches!(refused(|world| world.qe_identity["version"] = 3.into()), TdxError::QeIdentityForm { .. }));
}

#[test]
fn ac_54_old_quoting_enclaves_are_judged_by_their_level() {
    let (claims, status) = accepted(|world| world.report.isv_svn = 3);
    assert_eq!((status, &claims["advisory_ids"]), (TcbStatus::OutOfDate, &json!(["INTEL-SA-5"])));
    assert_eq!(claims["tcb_date"], "2025-07-01T00:00:00Z");
    assert_eq!(refused(|world| world.report.isv_svn = 2), TdxError::TcbRevoked { advisories: "INTEL-SA-6".into() });
    assert!(matches!(refused(|world| world.report.isv_svn = 1), TdxError::NoTcbLevel { what: "quoting enclave", .. }));
}

#[test]
fn ac_54_platforms_are_judged_by_the_first_level_they_reach() {
    let judged = |first: u8| accepted(|world| world.platform.components[0] = first);
    for (first, expected, advisories) in [
        (6, TcbStatus::UpToDate, json!([])),
        (5, TcbStatus::UpToDate, json!([])),
        (4, TcbStatus::SwHardeningNeeded, json!(["INTEL-SA-1"])),
        (3, TcbStatus::ConfigurationNeeded, json!(["INTEL-SA-2"])),
        (2, TcbStatus::OutOfDate, json!(["INTEL-SA-3"])),
    ] {
        let (claims, status) = judged(first);
        assert_eq!((status, &claims["advisory_ids"]), (expected, &advisories), "{first}");
        assert_eq!(claims["tcb_status"], expected.as_str());
    }
    assert_eq!(refused(|world| world.platform.components[0] = 1), TdxError::TcbRevoked { advisories: "INTEL-SA-4".into() });
    assert!(matches!(refused(|world| world.platform.components[0] = 0), TdxError::NoTcbLevel { what: "platform", .. }));
    assert!(matches!(refused(|world| world.platform.components[2] = 1), TdxError::NoTcbLevel { what: "platform", .. }));
    // PCESVN and TEE_TCB_SVN count as well.
    assert_eq!(refused(|world| world.platform.pce_svn = 10), TdxError::TcbRevoked { advisories: "INTEL-SA-4".into() });
    assert_eq!(accepted(|world| world.body.tee_tcb_svn[2] = 4).1, TcbStatus::OutOfDate);
    assert!(matches!(refused(|world| world.body.tee_tcb_svn[2] = 3), TdxError::NoTcbLevel { what: "platform", .. }));
}

#[test]
fn platform_and_quoting_enclave_are_judged_together() {
    let (claims, status) = accepted(|world| (world.platform.components[0], world.report.isv_svn) = (3, 3));
    assert_eq!(status, TcbStatus::OutOfDateConfigurationNeeded);
    assert_eq!(claims["advisory_ids"], json!(["INTEL-SA-2", "INTEL-SA-5"]));
}

#[test]
fn tdx_modules_are_judged_by_their_identity() {
    let (claims, status) = accepted(|world| world.body.tee_tcb_svn[0] = 4);
    assert_eq!((status, &claims["advisory_ids"]), (TcbStatus::OutOfDate, &json!(["INTEL-SA-7"])));
    assert_eq!(refused(|world| world.body.tee_tcb_svn[0] = 2), TdxError::TcbRevoked { advisories: "INTEL-SA-8".into() });
    assert!(matches!(refused(|world| world.body.tee_tcb_svn[0] = 1), TdxError::NoTcbLevel { what: "TDX module", .. }));
    assert_eq!(refused(|world| world.body.tee_tcb_svn[1] = 2), TdxError::UnknownModule { id: "TDX_02".into() });
    // Without a major version, the first two components are judged by the platform's levels.
    assert_eq!(accepted(|world| world.body.tee_tcb_svn[..2].copy_from_slice(&[0, 0])).1, TcbStatus::OutOfDate);

    assert!(matches!(refused(|world| world.body.mr_signer_seam.0[0] = 1), TdxError::ModuleSigner { .. }));
    assert!(matches!(refused(|world| world.body.seam_attributes[7] = 1), TdxError::ModuleAttributes { .. }));
    // Outside the mask nothing is expected, and so nothing may be set.
    let error = refused(|world| {
        world.tcb_info["tdxModuleIdentities"][0]["attributesMask"] = "00".repeat(8).into();
        world.body.seam_attributes[7] = 1;
    });
    assert!(matches!(error, TdxError::ModuleAttributes { .. }), "{error}");
}

#[test]
fn what_runs_now_is_judged_beside_what_launched_the_td() {
    let with = |launch: u8, now: u8| {
        move |world: &mut World| {
            (world.header.version, world.body.extension) = (5, Some(extension([now, 1, 5], None)));
            world.body.tee_tcb_svn[0] = launch;
        }
    };
    assert_eq!(accepted(with(5, 5)).1, TcbStatus::UpToDate);
    assert_eq!(accepted(with(4, 5)).1, TcbStatus::OutOfDate);
    assert_eq!(accepted(with(5, 4)).1, TcbStatus::OutOfDate);
    assert!(matches!(refused(with(5, 2)), TdxError::TcbRevoked { .. }));
}

#[test]
fn ac_54_debug_tds_are_refused() {
    for bit in 0..8 {
        let error = refused(|world| world.body.td_attributes = TdAttributes(0x1000_0000 | 1 << bit));
        assert!(matches!(error, TdxError::Debug { .. }), "bit {bit}: {error}");
    }
}

#[test]
fn td_attributes_nobody_knows_are_refused() {
    for bit in [8, 23, 32, 61] {
        let error = refused(|world| world.body.td_attributes = TdAttributes(0x1000_0000 | 1 << bit));
        assert!(matches!(error, TdxError::ReservedAttributes { .. }), "bit {bit}: {error}");
    }
}

#[test]
fn tds_without_sept_ve_disable_are_refused_unless_configured() {
    assert!(matches!(refused(|world| world.body.td_attributes = TdAttributes(0)), TdxError::SeptVe { .. }));
    let mut world = World::new();
    world.body.td_attributes = TdAttributes(0);
    world.rules.require_sept_ve_disable = false;
    let mut checks = Checks::default();
    let verified = world.check_all(&world.quote(), &world.collateral(), world.roots(), &mut checks).expect("verifies");
    assert_eq!(verified.claims()["td_attributes"]["septve_disable"], false);
    assert!(checks.all().iter().any(|check| check.name == "SEPT_VE_DISABLE" && check.outcome == Outcome::NotCompared));
}

#[test]
fn quotes_for_another_exchange_are_refused() {
    let error = refused(|world| world.body.report_data = ReportData([0x50; 64]));
    assert!(matches!(error, TdxError::ReportData { .. }), "{error}");
}

#[test]
fn ac_54_other_initdata_is_refused_and_none_too() {
    let error = refused(|world| world.body.mr_config_id.0[0] ^= 1);
    assert!(matches!(error, TdxError::MrConfigId { .. }) && error.to_string().contains("other initdata"), "{error}");
    let error = refused(|world| world.body.mr_config_id = MrConfigId::ZERO);
    assert!(matches!(error, TdxError::MrConfigId { .. }) && error.to_string().contains("no initdata at all"), "{error}");
    // What pads the digest counts.
    assert!(matches!(refused(|world| world.body.mr_config_id.0[47] = 1), TdxError::MrConfigId { .. }));
}

#[test]
fn an_event_log_that_does_not_parse_is_refused() {
    let world = World::new();
    let evidence = Evidence::from_raw(&world.quote().to_bytes().expect("serialises"), Some(b"log")).expect("well formed");
    let (claims, _) = through_the_trait(&world, &serde_json::to_value(&evidence).expect("serialises"));
    let error = claims.expect_err("refused");
    assert!(matches!(&error, VerifyError::Tdx(TdxError::EventLog { reason }) if reason.contains("header")), "{error}");
}

#[test]
fn a_quote_without_an_event_log_makes_no_claims_of_events() {
    let world = World::new();
    let evidence = Evidence::from_raw(&world.quote().to_bytes().expect("serialises"), None).expect("well formed");
    let (claims, checks) = through_the_trait(&world, &serde_json::to_value(&evidence).expect("serialises"));
    assert_eq!(claims.expect("verifies").get("uefi_event_logs"), None);
    assert!(checks.all().iter().any(|check| check.name == "event log" && check.outcome == Outcome::NotCompared));
}

fn through_the_trait(world: &World, evidence: &Value) -> (Result<Value, VerifyError>, Checks) {
    let trust = Trust { tdx: TdxTrust::from(world.roots()), ..Trust::hardware() };
    let verifiers = Verifiers::new(trust);
    let verifier = verifiers.get(TeeType::Tdx).expect("listed");
    let expected = Expected { report_data: Some(&REPORT_DATA), initdata_digest: Some(&INITDATA_DIGEST), now_unix: NOW };
    let mut checks = Checks::default();
    let verified = verifier.verify(evidence, &expected, &world.collateral(), &mut checks);
    (verified.map(|verified| verified.claims().clone()), checks)
}

#[test]
fn verifiers_take_raw_quotes_and_ask_for_their_collateral() {
    let world = World::new();
    let trust = Trust { tdx: TdxTrust::from(world.roots()), ..Trust::hardware() };
    let verifiers = Verifiers::new(trust);
    let verifier = verifiers.get(TeeType::Tdx).expect("listed");
    let evidence = verifier.parse_raw(&world.quote().to_bytes().expect("serialises")).expect("a quote");
    assert_eq!(verifier.needs(&evidence), [TCB_INFO, QE_IDENTITY, PCK_CRL, ROOT_CRL].map(need));
    let claims = through_the_trait(&world, &evidence).0.expect("verifies");
    assert_eq!(verifier.measurement(&claims), Some("21".repeat(48).as_str()));

    assert!(matches!(verifier.parse_raw(b"no quote"), Err(VerifyError::Raw { tee: TeeType::Tdx, .. })));
    for malformed in [Value::Null, json!({}), json!({"quote": "AAAA"})] {
        assert_eq!(verifier.needs(&malformed), []);
        let error = through_the_trait(&world, &malformed).0.expect_err("refused");
        assert!(matches!(&error, VerifyError::Malformed { tee: TeeType::Tdx, .. }) && error.rule() == "evidence-form", "{error}");
    }
}

/// Digests in RTMR3, as a guest measured them.
fn runtime_log(digests: &[u8]) -> Vec<u8> {
    let mut log = encode_header(&[HashAlgorithm::SHA384]);
    for byte in digests {
        let digest = EventDigest { algorithm: HashAlgorithm::SHA384, bytes: vec![*byte; 48] };
        log.extend(encode_event(4, EventType(0x0d), digest, b"event"));
    }
    log
}

#[test]
fn ac_54_rtmr_log_truncated_reordered_or_longer_is_refused() {
    let measured = runtime_log(&[1, 2, 3]);
    let replayed = EventLog::parse(&measured).expect("parses").replay(Registers::Cc, HashAlgorithm::SHA384).expect("replays");
    let check = |log: Vec<u8>| {
        let mut world = World::new();
        for (register, value) in world.body.rtmr.iter_mut().zip(replayed.values()) {
            register.0.copy_from_slice(value);
        }
        world.check_evidence(&world.quote(), Some(&log), &world.collateral(), world.roots(), &mut Checks::default())
    };
    let verified = check(measured.clone()).expect("verifies");
    assert_eq!(verified.claims()["uefi_event_logs"].as_array().map(Vec::len), Some(3));
    for other in [&[1, 2][..], &[], &[1, 3, 2], &[1, 2, 3, 4], &[1, 2, 4]] {
        let error = check(runtime_log(other)).map(|_| ()).expect_err("refused");
        assert!(matches!(&error, TdxError::EventLog { reason } if reason.contains("RTMR3")), "{other:?}: {error}");
    }
}
