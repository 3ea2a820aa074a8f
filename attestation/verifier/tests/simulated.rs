//! A made-up hierarchy under a simulated root, and one mutation for every check: each must be refused for its own reason (AC-53).

mod world;

use der::Encode as _;
use der::asn1::{Any, OctetString};
use kata_cc_evidence::snp::{CertKind, Cpuid, Evidence, KeyInfo, Report, Signature, TcbVersion};
use kata_cc_evidence::{HostData, TeeType};
use kata_cc_verifier::checks::{Checks, Outcome};
use kata_cc_verifier::collateral::Collateral;
use kata_cc_verifier::snp::{CertError, ChainPart, RootError, RootSet, SnpError, SnpExpected, verify};
use kata_cc_verifier::{Expected, Trust, Verifiers, VerifyError};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING};
use x509_cert::spki::AlgorithmIdentifierOwned;

use world::{AMD, Draft, NOW, REPORT_DATA, World, authority, ec_key, ec_spki, extension, oid, pem, refusal, rsa, rsa_spki};

#[test]
fn evidence_under_a_configured_simulated_root_verifies_and_is_marked() {
    let world = World::new();
    let verified = world.check().expect("verifies");
    assert_eq!((verified.root_name(), verified.simulated_root()), ("lab", Some("lab")));
    let claims = verified.claims();
    assert_eq!(claims["simulated"], true);
    assert_eq!(claims["root"], "lab");
    assert_eq!(claims["measurement"], "53".repeat(48));
    assert_eq!(claims["init_data"], "52".repeat(32));
    assert_eq!(claims["reported_tcb_microcode"], 219);
    assert_eq!(claims["launch_tcb_snp"], 24);
    assert_eq!(claims["policy_debug_allowed"], false);
    assert_eq!(claims["generation"], "Milan");
}

#[test]
fn each_check_is_recorded_with_what_was_found_and_expected() {
    let world = World::new();
    let (trust, mut checks) = (world.roots().into(), Checks::default());
    let expected = SnpExpected { report_data: Some(&REPORT_DATA), host_data: None, now_unix: NOW };
    verify(&world.evidence(), &expected, &trust, &Collateral::none(), &mut checks).expect("verifies");
    let told: Vec<_> = checks.all().iter().map(|check| (check.name, check.outcome)).collect();
    let names = ["report", "signing key", "endorsement", "root", "chain", "validity", "revocation", "generation", "TCB", "chip"];
    let names: Vec<_> = names.into_iter().chain(["report signature", "VMPL", "debugging", "report data", "host data"]).collect();
    let outcome = |name| if matches!(name, "revocation" | "host data") { Outcome::NotCompared } else { Outcome::Pass };
    assert_eq!(told, names.into_iter().map(|name| (name, outcome(name))).collect::<Vec<_>>());
    for check in checks.all().iter().filter(|check| check.outcome == Outcome::Pass) {
        assert!(!check.found.is_empty() && !check.expected.is_empty(), "{check:?}");
    }
    let of = |name| checks.all().iter().find(|check| check.name == name).expect("recorded");
    assert_eq!(of("chain").found, "SIM-VCEK < SIM-ASK < SIM-ARK");
    assert_eq!(of("validity").expected, "covers 2027-01-15T08:00:00Z");
    assert_eq!((of("chip").found.as_str(), of("chip").expected.as_str()), ("61".repeat(64).as_str(), "61".repeat(64).as_str()));
}

#[test]
fn the_same_evidence_is_refused_where_the_root_is_not_configured() {
    let world = World::new();
    let refused = world.check_evidence(&world.evidence(), &RootSet::amd()).map(|_| ()).expect_err("refused");
    let SnpError::UnknownRoot { found, trusted } = refused else { panic!("{refused}") };
    assert_eq!(found, "SIM-ARK");
    assert!(trusted.contains("AMD Milan") && !trusted.contains("lab"));
}

#[test]
fn a_root_brought_along_must_be_the_trusted_one() {
    let mut world = World::new();
    let roots = world.roots();
    assert!(world.check_evidence(&world.evidence(), &roots).is_ok());
    world.with_ark = false;
    assert!(world.check_evidence(&world.evidence(), &roots).is_ok());
    world.with_ark = true;

    // The same names, another key: what an attacker can make.
    world.root_key = rsa("intermediate");
    world.root.spki = rsa_spki(&world.root_key);
    assert!(matches!(world.check_evidence(&world.evidence(), &roots), Err(SnpError::UnknownRoot { .. })));
    world.with_ark = false;
    let refused = world.check_evidence(&world.evidence(), &roots).map(|_| ());
    assert_eq!(refused, Err(SnpError::ChainSignature { part: ChainPart::Intermediate }));
}

#[test]
fn a_simulated_root_cannot_take_an_amd_name_or_an_existing_one() {
    let world = World::new();
    let der = world.root_der();
    assert!(matches!(world.roots().with_simulated("lab", pem(&der).as_bytes()), Err(RootError::Name { .. })));
    assert!(matches!(world.roots().with_simulated("lab2", pem(&der).as_bytes()), Err(RootError::Subject { .. })));
    let leaf = world.leaf.signed_by(&world.ask_key);
    assert!(matches!(RootSet::amd().with_simulated("lab", pem(&leaf).as_bytes()), Err(RootError::NotARoot { .. })));
    let no_authority = Draft { extensions: vec![], ..world.root.clone() }.signed_by(&world.root_key);
    assert!(matches!(RootSet::amd().with_simulated("lab", pem(&no_authority).as_bytes()), Err(RootError::NotARoot { .. })));
    let not_self_signed = world.root.signed_by(&world.ask_key);
    assert!(matches!(RootSet::amd().with_simulated("lab", pem(&not_self_signed).as_bytes()), Err(RootError::NotARoot { .. })));
}

#[test]
fn refuses_report_for_another_nonce_or_key() {
    assert!(matches!(refusal(|w| w.report.report_data.0[63] ^= 1), SnpError::ReportData { .. }));
}

#[test]
fn refuses_guest_launched_with_other_initdata() {
    assert!(matches!(refusal(|w| w.report.host_data.0[31] ^= 1), SnpError::HostData { .. }));
    assert!(matches!(refusal(|w| w.report.host_data = HostData::ZERO), SnpError::HostData { .. }));
}

#[test]
fn ac_09_refuses_report_of_another_privilege_level() {
    for vmpl in [1, 2, 3, u32::MAX] {
        assert_eq!(refusal(|w| w.report.vmpl = vmpl), SnpError::Vmpl { found: vmpl });
    }
}

#[test]
fn refuses_guest_that_the_host_may_debug() {
    assert_eq!(refusal(|w| w.report.policy.0 |= 1 << 19), SnpError::Debug);
}

#[test]
fn refuses_other_signature_algorithms_and_signing_keys() {
    assert_eq!(refusal(|w| w.report.signature_algo = 0), SnpError::SignatureAlgorithm { found: 0 });
    assert_eq!(refusal(|w| w.report.signature_algo = 2), SnpError::SignatureAlgorithm { found: 2 });
    assert!(matches!(refusal(|w| w.report.key_info = KeyInfo(7 << 2)), SnpError::SigningKey { .. }));
    assert!(matches!(refusal(|w| w.report.key_info = KeyInfo(2 << 2)), SnpError::SigningKey { .. }));
    assert_eq!(refusal(|w| w.report.key_info = KeyInfo(2)), SnpError::Unsigned);
}

#[test]
fn ac_53_refuses_endorsement_key_of_another_tcb() {
    let bends: [fn(&mut TcbVersion); 4] = [|t| t.bootloader -= 1, |t| t.tee += 1, |t| t.snp -= 1, |t| t.microcode -= 1];
    for bend in bends {
        assert!(matches!(refusal(|w| bend(&mut w.report.reported_tcb)), SnpError::Tcb { .. }));
    }
}

#[test]
fn ac_53_refuses_endorsement_key_of_another_chip() {
    assert!(matches!(refusal(|w| w.report.chip_id[63] ^= 1), SnpError::ChipId { .. }));
    // A platform that masks the chip id cannot be told from another.
    assert!(matches!(refusal(|w| w.report.chip_id = [0; 64]), SnpError::ChipId { .. }));
}

#[test]
fn accepts_both_encodings_of_the_hardware_id() {
    let wrapped = OctetString::new(vec![0x61; 64]).expect("octets").to_der().expect("encodes");
    let world = World::bent(|w| {
        *w.leaf.extensions.last_mut().expect("there") = extension(&format!("{AMD}.4"), wrapped);
    });
    assert!(world.check().is_ok());
}

#[test]
fn refuses_endorsement_certificates_with_missing_repeated_or_malformed_extensions() {
    for index in 1..6 {
        let gone = refusal(|w| drop(w.leaf.extensions.remove(index)));
        assert!(matches!(gone, SnpError::Certificate { part: ChainPart::Leaf, source: CertError::Extension { .. } }), "{gone}");
        let twice = refusal(|w| w.leaf.extensions.push(w.leaf.extensions[index].clone()));
        assert!(matches!(twice, SnpError::Certificate { part: ChainPart::Leaf, source: CertError::Extension { .. } }), "{twice}");
    }
    for bad in [vec![], vec![1], vec![0; 63], vec![4, 64], vec![4, 1, 7]] {
        let refused = refusal(|w| *w.leaf.extensions.last_mut().expect("there") = extension(&format!("{AMD}.4"), bad));
        assert!(matches!(refused, SnpError::Certificate { part: ChainPart::Leaf, .. }), "{refused}");
    }
    // An FMC level on a certificate for a processor that has none.
    let fmc = refusal(|w| w.leaf.extensions.push(extension(&format!("{AMD}.3.9"), 1_u8.to_der().expect("encodes"))));
    assert!(matches!(fmc, SnpError::Tcb { .. }));
}

#[test]
fn refuses_report_and_certificate_of_different_generations() {
    assert!(matches!(refusal(|w| w.report.cpuid = Some(Cpuid { family: 0x19, model: 0x11, stepping: 1 })), SnpError::Generation { .. }));
}

#[test]
fn refuses_changed_or_missing_report_signature() {
    let world = World::new();
    let good = world.evidence();
    let with = |signature| {
        let report = Report { signature, ..good.report().clone() };
        let evidence = Evidence::new(report, good.certs().cloned()).expect("well formed");
        world.check_evidence(&evidence, &world.roots()).map(|_| ())
    };
    let signature = good.report().signature;
    assert_eq!(with(signature), Ok(()));
    let mut changed = signature;
    changed.r[0] ^= 1;
    assert_eq!(with(changed), Err(SnpError::ReportSignature));
    let mut long = signature;
    long.s[71] = 1;
    assert_eq!(with(long), Err(SnpError::ReportSignature));
    assert_eq!(with(Signature::default()), Err(SnpError::ReportSignature));
    assert_eq!(with(Signature { r: signature.s, s: signature.r }), Err(SnpError::ReportSignature));
}

#[test]
fn refuses_report_signed_by_another_key() {
    assert_eq!(refusal(|w| w.leaf_key = ec_key(&ECDSA_P384_SHA384_FIXED_SIGNING)), SnpError::ReportSignature);
    let p256 = refusal(|w| {
        w.leaf_key = ec_key(&ECDSA_P256_SHA256_FIXED_SIGNING);
        w.leaf.spki = ec_spki(&w.leaf_key, "1.2.840.10045.3.1.7");
    });
    assert_eq!(p256, SnpError::Certificate { part: ChainPart::Leaf, source: CertError::NotP384 });
}

#[test]
fn refuses_certificates_out_of_their_time() {
    type Pick = fn(&mut World) -> &mut Draft;
    let pick: [(ChainPart, Pick); 3] =
        [(ChainPart::Root, |w| &mut w.root), (ChainPart::Intermediate, |w| &mut w.ask), (ChainPart::Leaf, |w| &mut w.leaf)];
    for (part, draft) in pick {
        assert_eq!(refusal(|w| draft(w).not_after = NOW - 1), SnpError::Expired { part, not_after: NOW - 1, now: NOW });
        assert_eq!(refusal(|w| draft(w).not_before = NOW + 1), SnpError::NotYetValid { part, not_before: NOW + 1, now: NOW });
    }
}

#[test]
fn refuses_chains_not_signed_step_by_step() {
    // The leaf signed by the root, the intermediate by itself.
    assert_eq!(refusal(|w| w.ask_key = rsa("root")), SnpError::ChainSignature { part: ChainPart::Leaf });
    let world = World::new();
    let mut table = world.evidence().certs().cloned().expect("there");
    table.entries[1].data = world.ask.signed_by(&world.ask_key);
    let evidence = Evidence::new(world.evidence().report().clone(), Some(table)).expect("well formed");
    let refused = world.check_evidence(&evidence, &world.roots()).map(|_| ());
    assert_eq!(refused, Err(SnpError::ChainSignature { part: ChainPart::Intermediate }));
}

#[test]
fn refuses_an_intermediate_that_may_not_issue() {
    assert_eq!(refusal(|w| w.ask.extensions.clear()), SnpError::NotAnAuthority { part: ChainPart::Intermediate });
    assert_eq!(refusal(|w| w.ask.extensions = vec![authority(false)]), SnpError::NotAnAuthority { part: ChainPart::Intermediate });
}

#[test]
fn ac_53_refuses_keys_of_one_kind_passing_for_the_other() {
    let vlek_report = KeyInfo(1 << 2);
    // A VCEK in the VLEK's slot.
    let refused = refusal(|w| {
        w.report.key_info = vlek_report;
        w.kind = CertKind::Vlek;
    });
    assert!(matches!(refused, SnpError::LeafKind { expected: "VLEK", .. }), "{refused}");
    // A VLEK issued by the ASK instead of the ASVK.
    let refused = refusal(|w| {
        w.report.key_info = vlek_report;
        w.kind = CertKind::Vlek;
        w.leaf.subject = "SIM-VLEK";
    });
    assert!(matches!(refused, SnpError::LeafKind { expected: "VLEK", .. }), "{refused}");
    // A VCEK issued by an ASVK.
    let refused = refusal(|w| {
        w.ask.subject = "SIM-VLEK-ASVK";
        w.leaf.issuer = "SIM-VLEK-ASVK";
    });
    assert!(matches!(refused, SnpError::LeafKind { expected: "VCEK", .. }), "{refused}");
}

#[test]
fn refuses_other_certificate_signature_algorithms() {
    let pkcs1 = AlgorithmIdentifierOwned { oid: oid("1.2.840.113549.1.1.12"), parameters: Some(Any::null()) };
    let refused = refusal(|w| w.leaf.algorithm = pkcs1);
    assert!(matches!(refused, SnpError::Certificate { source: CertError::SignatureAlgorithm { .. }, .. }), "{refused}");
}

#[test]
fn evidence_without_certificates_says_where_to_fetch_them() {
    let world = World::new();
    let bare = Evidence::new(world.evidence().report().clone(), None).expect("well formed");
    let refused = world.check_evidence(&bare, &world.roots()).map(|_| ()).expect_err("refused");
    let SnpError::NoEndorsement { kind: "VCEK", fetch: Some(url) } = refused else { panic!("{refused}") };
    assert!(url.starts_with("https://kdsintf.amd.com/vcek/v1/Milan/6161") && url.ends_with("ucodeSPL=219"));
}

#[test]
fn the_verifier_of_the_broker_says_the_same() {
    let world = World::new();
    let verifiers = Verifiers::new(Trust { snp: world.roots().into(), ..Trust::hardware() });
    let json = serde_json::to_value(world.evidence()).expect("serialises");
    let mut digest = [0x52; 48];
    digest[40] = 1;
    let expected = Expected { report_data: Some(&REPORT_DATA), initdata_digest: Some(&digest), now_unix: NOW };
    let verify = |expected: &Expected<'_>| {
        verifiers.get(TeeType::Snp).expect("listed").verify(&json, expected, &Collateral::none(), &mut Checks::default())
    };
    let verified = verify(&expected).expect("verifies");
    assert_eq!((verified.tee(), verified.simulated_root()), (TeeType::Snp, Some("lab")));
    assert_eq!(verified.claims()["simulated"], true);

    let other = [0x53; 32];
    let expected = Expected { initdata_digest: Some(&other), ..expected };
    let refused = verify(&expected).map(|_| ());
    assert!(matches!(refused, Err(VerifyError::Snp(SnpError::HostData { .. }))));
    let expected = Expected { initdata_digest: None, ..expected };
    assert!(verify(&expected).is_ok());
}
