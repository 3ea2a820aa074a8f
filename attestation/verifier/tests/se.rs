//! Secure Execution from a root to a measurement: a machine that opens requests by its host key, and each link of the chain broken.
//!
//! Against the certificates of s390-tools and its request, see the module's own tests; here the vendor is made up, so that anything can be bent.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use kata_cc_evidence::ReportData;
use kata_cc_evidence::se::ImageTags;
use kata_cc_sim_uv::{Draft, List, Machine, Unanswered, Vendor, signing_service};
use kata_cc_verifier::checks::Checks;
use kata_cc_verifier::se::{CurrentTrust, Documents, File, HostKeyError, SeError, SeExpected, SeTrust, SealingKey, challenge, verify};
use rsa::{RsaPrivateKey, RsaPublicKey};
use std::sync::LazyLock;

const NOW: u64 = 1_800_000_000;
const YEAR: u64 = 365 * 24 * 3600;
const IMAGE: ImageTags = ImageTags { pld: [1; 64], ald: [2; 64], tld: [3; 64], tag: [4; 16] };
const REPORT_DATA: ReportData = ReportData([0x5a; 64]);

static VENDOR: LazyLock<Vendor> = LazyLock::new(|| Vendor::new(NOW));
static OTHER: LazyLock<RsaPrivateKey> = LazyLock::new(|| RsaPrivateKey::new(&mut rand_core::OsRng, 2048).unwrap());

fn documents(root: &str, certificates: &[&str], lists: &str, host_keys: &[&str]) -> Documents {
    fn files<'a>(texts: &[&'a str]) -> Vec<File<'a>> {
        texts.iter().map(|text| File { name: "a file", bytes: text.as_bytes() }).collect()
    }
    Documents::parse(&files(&[root]), &files(certificates), &files(&[lists]), &files(host_keys)).unwrap()
}

fn trust(documents: Documents) -> SeTrust {
    SeTrust { documents, images: vec![IMAGE], sealing_key: SealingKey::new([7; 32]), max_age: 300 }
}

fn of(machine: &Machine) -> SeTrust {
    let document = VENDOR.document(machine, 10);
    trust(documents(&VENDOR.root(), &[&VENDOR.signing_service()], &VENDOR.lists(&[]), &[&document]))
}

#[test]
fn the_machine_of_a_host_key_answers_by_that_key_alone() {
    let (machine, other) = (Machine::new(), Machine::new());
    let trust = of(&machine);
    let asked = challenge(&trust, NOW).unwrap();
    assert_eq!(other.answer(&asked, &IMAGE, REPORT_DATA.as_bytes()).unwrap_err(), Unanswered::NotForUs);
    let mut changed = asked.clone();
    changed.request.encrypted[0] ^= 1;
    assert_eq!(machine.answer(&changed, &IMAGE, REPORT_DATA.as_bytes()).unwrap_err(), Unanswered::Changed);

    let evidence = machine.answer(&asked, &IMAGE, REPORT_DATA.as_bytes()).unwrap();
    let expected = SeExpected { report_data: Some(&REPORT_DATA), initdata_digest: None, now_unix: NOW + 1 };
    let verified = verify(&evidence, &expected, &trust, &mut Checks::default()).unwrap();
    assert_eq!((verified.image(), verified.claims()["attestation_phkh"].as_str()), (&IMAGE, Some(&*hex::encode(machine.phkh()))));

    let stranger = ImageTags { tag: [5; 16], ..IMAGE };
    let evidence = machine.answer(&asked, &stranger, REPORT_DATA.as_bytes()).unwrap();
    assert!(matches!(verify(&evidence, &expected, &trust, &mut Checks::default()), Err(SeError::Measurement { .. })));
}

#[test]
fn what_is_trusted_can_be_replaced_and_a_request_that_is_out_stays_good() {
    let machine = Machine::new();
    let current = CurrentTrust::from(of(&machine));
    let clone = current.clone();
    let asked = challenge(&clone.get(), NOW).unwrap();
    let evidence = machine.answer(&asked, &IMAGE, REPORT_DATA.as_bytes()).unwrap();
    let expected = SeExpected { report_data: Some(&REPORT_DATA), initdata_digest: None, now_unix: NOW };
    current.replace(of(&machine));
    assert!(verify(&evidence, &expected, &clone.get(), &mut Checks::default()).is_ok());
    current.replace(of(&Machine::new()));
    assert!(matches!(verify(&evidence, &expected, &clone.get(), &mut Checks::default()), Err(SeError::HostKey { .. })));
    // The list of a later day has the document on it.
    let document = VENDOR.document(&machine, 10);
    current.replace(trust(documents(&VENDOR.root(), &[&VENDOR.signing_service()], &VENDOR.lists(&[10]), &[&document])));
    assert!(matches!(challenge(&clone.get(), NOW), Err(SeError::NoHostKey { first: Some((_, HostKeyError::Revoked { .. })) })));
}

const ROOT: &str = "CN=Simulated root without security";

fn draft<'a>(subject: &'a str, issuer: &'a str, serial: u8, authority: bool) -> Draft<'a> {
    VENDOR.draft(subject, issuer, serial, authority)
}

fn list(issuer: &str, key: &RsaPrivateKey) -> String {
    List { issuer, revoked: &[], this_update: NOW, next_update: NOW + YEAR }.signed(key)
}

/// The signing service under so many intermediates, all of the same key; with the revocation list of each.
fn chain(intermediates: u8, authority: bool) -> (Vec<String>, String) {
    let mut lists = VENDOR.lists(&[]);
    let mut certificates = Vec::new();
    let (mut issuer, mut key) = (ROOT.to_owned(), VENDOR.root_key());
    for n in 1..=intermediates {
        let name = format!("CN=Intermediate {n}");
        certificates.push(draft(&name, &issuer, n + 20, authority).signed(&RsaPublicKey::from(&*OTHER), key));
        lists += &list(&name, &OTHER);
        (issuer, key) = (name, &OTHER);
    }
    certificates.push(draft(signing_service(), &issuer, 2, false).signed(&RsaPublicKey::from(VENDOR.signing_key()), key));
    (certificates, lists)
}

fn outcome(certificates: &[String], lists: &str, document: &str) -> Result<(), HostKeyError> {
    let certificates: Vec<&str> = certificates.iter().map(String::as_str).collect();
    let documents = documents(&VENDOR.root(), &certificates, lists, &[document]);
    documents.verify(NOW).remove(0).1.map(|_| ())
}

#[test]
fn a_chain_has_at_most_two_intermediates_and_each_may_issue() {
    let document = VENDOR.document(&Machine::new(), 10);
    for good in 0..=2 {
        let (certificates, lists) = chain(good, true);
        assert_eq!(outcome(&certificates, &lists, &document), Ok(()), "{good}");
    }
    let (certificates, lists) = chain(3, true);
    assert_eq!(outcome(&certificates, &lists, &document), Err(HostKeyError::TooLong));
    // A certificate that the root signed, but for no authority: say, a host key's.
    let (certificates, lists) = chain(1, false);
    assert!(matches!(outcome(&certificates, &lists, &document), Err(HostKeyError::NoIssuer { .. })));
}

#[test]
fn a_root_outside_its_time_is_none() {
    let document = VENDOR.document(&Machine::new(), 10);
    let early = draft(ROOT, ROOT, 1, true);
    for root in [Draft { not_before: NOW + 1, ..early }, Draft { not_after: NOW - 1, ..early }] {
        let root = root.signed(&RsaPublicKey::from(VENDOR.root_key()), VENDOR.root_key());
        let documents = documents(&root, &[&VENDOR.signing_service()], &VENDOR.lists(&[]), &[&document]);
        assert!(matches!(documents.verify(NOW)[0].1, Err(HostKeyError::NotInTime { .. })));
    }
}

#[test]
fn what_the_signing_service_signed_is_a_host_key_only_on_p_521() {
    let (certificates, lists) = chain(0, true);
    let of = |key: &dyn Fn(&Draft<'_>) -> String| key(&draft("CN=Simulated host key", signing_service(), 10, false));
    let rsa = of(&|draft| draft.signed(&RsaPublicKey::from(&*OTHER), VENDOR.signing_key()));
    assert_eq!(outcome(&certificates, &lists, &rsa), Err(HostKeyError::NotP521));
    let good = of(&|draft| draft.signed(Machine::new().public_key(), VENDOR.signing_key()));
    assert_eq!(outcome(&certificates, &lists, &good), Ok(()));
}
