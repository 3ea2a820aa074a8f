//! Revocation lists: whose word counts, for how long, and what happens without.

mod world;

use kata_cc_evidence::TeeType;
use kata_cc_evidence::snp::{CertEntry, CertKind, Evidence, Report};
use kata_cc_verifier::checks::{Check, Checks, Outcome};
use kata_cc_verifier::collateral::{Item, Need, Source};
use kata_cc_verifier::snp::{ChainPart, RevocationGap, RootError, RootSet, SnpError, SnpExpected, SnpRules, SnpTrust, verify};
use kata_cc_verifier::{Trust, Verifiers};
use world::{DAY, HOST_DATA, ListDraft, NOW, REPORT_DATA, World, extension, refusal, rsa};

/// Where a verifier looks for the list of the made-up report's root: by the generation the report states.
fn need() -> Need {
    Need { source: Source::AmdKds, path: "vcek/v1/Milan/crl".into() }
}

/// A world in which that list was fetched.
fn fetched(list: &ListDraft) -> World {
    World::bent(|w| {
        let body = list.signed_by(&w.root_key);
        w.collateral.insert(need(), Item { body, ..Item::default() });
    })
}

/// The recorded check of revocation.
fn recorded(world: &World) -> Check {
    let expected = SnpExpected { report_data: Some(&REPORT_DATA), host_data: Some(&HOST_DATA), now_unix: NOW };
    let trust = SnpTrust { rules: world.rules.clone(), ..world.roots().into() };
    let mut checks = Checks::default();
    let _ = verify(&world.evidence(), &expected, &trust, &world.collateral, &mut checks);
    checks.all().iter().find(|check| check.name == "revocation").expect("recorded").clone()
}

fn strict(mut world: World) -> World {
    world.rules = SnpRules { require_crl: true, ..SnpRules::default() };
    world
}

#[track_caller]
fn gap(world: World) -> RevocationGap {
    let lax = recorded(&world);
    assert!(world.check().is_ok());
    let SnpError::RevocationList { root, gap } = strict(world).check().map(|_| ()).expect_err("refused") else { panic!("another refusal") };
    assert_eq!(root, "lab");
    // What is a refusal where the rules ask for a list is on record where they do not, and never as passed.
    assert_eq!((lax.outcome, lax.found), (Outcome::NotCompared, gap.to_string()));
    gap
}

#[test]
fn ac_53_refuses_an_intermediate_that_a_fetched_list_names() {
    assert_eq!(fetched(&ListDraft::of(&[2])).check().map(|_| ()), Err(SnpError::Revoked { part: ChainPart::Intermediate }));
    assert_eq!(fetched(&ListDraft::of(&[9, 2])).check().map(|_| ()), Err(SnpError::Revoked { part: ChainPart::Intermediate }));
    assert_eq!(fetched(&ListDraft::of(&[1])).check().map(|_| ()), Err(SnpError::Revoked { part: ChainPart::Root }));
}

#[test]
fn a_current_list_without_the_intermediate_passes_and_says_so() {
    let world = strict(fetched(&ListDraft::of(&[3])));
    assert!(world.check().is_ok());
    let check = recorded(&world);
    assert_eq!((check.outcome, check.found.as_str()), (Outcome::Pass, "02 under 01"));
    assert!(check.expected.contains("2027-01-14"), "{}", check.expected);
    assert!(strict(fetched(&ListDraft::of(&[]))).check().is_ok());
}

#[test]
fn a_list_that_is_not_there_is_on_record_or_refused() {
    assert_eq!(gap(World::new()), RevocationGap::Missing);
}

#[test]
fn a_list_out_of_its_time_is_on_record_or_refused() {
    let (old, future) = (NOW - 9 * DAY, NOW + DAY);
    let of = |this_update, next_update| gap(fetched(&ListDraft { this_update, next_update, ..ListDraft::of(&[3]) }));
    let not_current = |this_update, next_update| RevocationGap::NotCurrent { this_update, next_update, now: NOW };
    assert_eq!(of(old, Some(NOW - 1)), not_current(old, Some(NOW - 1)));
    assert_eq!(of(future, Some(NOW + 9 * DAY)), not_current(future, Some(NOW + 9 * DAY)));
    assert_eq!(of(old, None), not_current(old, None));
    // To the second.
    assert!(strict(fetched(&ListDraft { this_update: NOW, next_update: Some(NOW), ..ListDraft::of(&[3]) })).check().is_ok());
}

#[test]
fn what_an_old_list_names_stays_revoked() {
    let stale = ListDraft { this_update: NOW - 9 * DAY, next_update: Some(NOW - 8 * DAY), ..ListDraft::of(&[2]) };
    let mut world = fetched(&ListDraft::of(&[3]));
    let roots = world.roots().with_revocation_list(&stale.signed_by(&world.root_key)).expect("genuine");
    assert_eq!(world.check_evidence(&world.evidence(), &roots).map(|_| ()), Err(SnpError::Revoked { part: ChainPart::Intermediate }));
    world.rules.require_crl = true;
    assert!(world.check_evidence(&world.evidence(), &world.roots()).is_ok());
}

#[test]
fn a_list_counts_only_by_the_signature_of_the_root() {
    let with = |body: Vec<u8>| World::bent(|w| w.collateral.insert(need(), Item { body, ..Item::default() }));
    let key = rsa("root");
    let good = ListDraft::of(&[3]).signed_by(&key);
    assert!(strict(with(good.clone())).check().is_ok());
    assert_eq!(gap(with(ListDraft::of(&[3]).signed_by(&rsa("intermediate")))), RevocationGap::NotGenuine);
    assert_eq!(gap(with(ListDraft { issuer: "SIM-ASK", ..ListDraft::of(&[3]) }.signed_by(&key))), RevocationGap::NotGenuine);
    assert_eq!(gap(with(b"nonsense".to_vec())), RevocationGap::NotGenuine);
    assert_eq!(gap(with(Vec::new())), RevocationGap::NotGenuine);
    for at in [30, good.len() / 2, good.len() - 1] {
        let mut changed = good.clone();
        changed[at] ^= 1;
        assert_eq!(gap(with(changed)), RevocationGap::NotGenuine);
    }
    let mut longer = good;
    longer.push(0);
    assert_eq!(gap(with(longer)), RevocationGap::NotGenuine);
}

#[test]
fn a_list_with_a_critical_extension_is_not_understood() {
    // deltaCRLIndicator: such a list names only what changed since another.
    let mut delta = extension("2.5.29.27", vec![2, 1, 1]);
    delta.critical = true;
    assert_eq!(gap(fetched(&ListDraft { extensions: vec![delta.clone()], ..ListDraft::of(&[3]) })), RevocationGap::NotGenuine);
    delta.critical = false;
    assert!(strict(fetched(&ListDraft { extensions: vec![delta], ..ListDraft::of(&[3]) })).check().is_ok());
}

#[test]
fn configured_lists_and_those_in_the_evidence_count_as_well() {
    let world = strict(World::new());
    let configured = |serial: u8| {
        let roots = world.roots().with_revocation_list(&ListDraft::of(&[serial]).signed_by(&world.root_key)).expect("genuine");
        world.check_evidence(&world.evidence(), &roots).map(|_| ())
    };
    assert_eq!(configured(2), Err(SnpError::Revoked { part: ChainPart::Intermediate }));
    assert_eq!(configured(3), Ok(()));
    let forged = ListDraft::of(&[3]).signed_by(&world.ask_key);
    assert!(matches!(world.roots().with_revocation_list(&forged), Err(RootError::RevocationList)));

    let brought = |serial: u8| {
        let good = world.evidence();
        let mut table = good.certs().cloned().expect("there");
        table.entries.push(CertEntry { kind: CertKind::Crl, data: ListDraft::of(&[serial]).signed_by(&world.root_key) });
        let evidence = Evidence::new(good.report().clone(), Some(table)).expect("well formed");
        world.check_evidence(&evidence, &world.roots()).map(|_| ())
    };
    assert_eq!(brought(2), Err(SnpError::Revoked { part: ChainPart::Intermediate }));
    assert_eq!(brought(3), Ok(()));
}

#[test]
fn the_fetched_certificate_serves_a_report_that_brings_none() {
    let mut world = World::new();
    let good = world.evidence();
    let bare = Evidence::new(good.report().clone(), None).expect("well formed");
    let pem = [world::pem(&world.root_der()), world::pem(&world.ask.signed_by(&world.root_key))].concat();
    let roots = RootSet::amd().with_simulated("lab", pem.as_bytes()).expect("roots");
    let verifiers = Verifiers::new(Trust { snp: roots.clone().into(), ..Trust::hardware() });
    let needs = verifiers.get(TeeType::Snp).expect("listed").needs(&serde_json::to_value(&bare).expect("serialises"));
    let [vcek, list] = needs.as_slice() else { panic!("{needs:?}") };
    assert_eq!(*list, need());
    assert_eq!(vcek.path, format!("vcek/v1/Milan/{}?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219", "61".repeat(64)));

    assert!(matches!(world.check_evidence(&bare, &roots), Err(SnpError::NoEndorsement { kind: "VCEK", .. })));
    let body = world.leaf.signed_by(&world.ask_key);
    world.collateral.insert(vcek.clone(), Item { body, ..Item::default() });
    assert!(world.check_evidence(&bare, &roots).is_ok());
    // What was fetched is verified like anything else.
    let body = world.leaf.signed_by(&world.root_key);
    world.collateral.insert(vcek.clone(), Item { body, ..Item::default() });
    assert_eq!(world.check_evidence(&bare, &roots).map(|_| ()), Err(SnpError::ChainSignature { part: ChainPart::Leaf }));
    let body = World::bent(|w| w.leaf.subject = "SIM-VLEK").leaf.signed_by(&world.ask_key);
    world.collateral.insert(vcek.clone(), Item { body, ..Item::default() });
    assert!(matches!(world.check_evidence(&bare, &roots), Err(SnpError::LeafKind { .. })));
}

#[test]
fn needs_are_made_of_fixed_words_and_digits() {
    let verifiers = Verifiers::new(Trust::hardware());
    let needs = |report: Report| {
        let evidence = Evidence::new(report, None).expect("well formed");
        let evidence = serde_json::to_value(evidence).expect("serialises");
        verifiers.get(TeeType::Snp).expect("listed").needs(&evidence).into_iter().map(|need| need.path).collect::<Vec<_>>()
    };
    // A report of version 2 does not say which generation it is of: both that it may be of are asked for.
    let chip_id = [7; 64];
    let paths = needs(Report { chip_id, ..Report::default() });
    let tail = format!("{}?blSPL=00&teeSPL=00&snpSPL=00&ucodeSPL=00", "07".repeat(64));
    assert_eq!(
        paths,
        [format!("vcek/v1/Milan/{tail}"), format!("vcek/v1/Genoa/{tail}"), "vcek/v1/Milan/crl".into(), "vcek/v1/Genoa/crl".into()]
    );
    // A masked chip id is nobody's, and AMD serves VLEKs to providers alone.
    assert_eq!(needs(Report::default()), ["vcek/v1/Milan/crl", "vcek/v1/Genoa/crl"]);
    let vlek = Report { chip_id, key_info: kata_cc_evidence::snp::KeyInfo(1 << 2), ..Report::default() };
    assert_eq!(needs(vlek), ["vlek/v1/Milan/crl", "vlek/v1/Genoa/crl"]);
    assert!(verifiers.get(TeeType::Snp).expect("listed").needs(&serde_json::json!({"attestation_report": 1})).is_empty());
}

#[test]
fn a_list_does_not_help_a_chain_that_is_wrong_for_another_reason() {
    let refused = refusal(|w| {
        let body = ListDraft::of(&[3]).signed_by(&w.root_key);
        w.collateral.insert(need(), Item { body, ..Item::default() });
        w.leaf.not_after = NOW - 1;
    });
    assert!(matches!(refused, SnpError::Expired { .. }));
}
