//! Host keys on the certificates of s390-tools, requests against its request, and one refusal for each check of evidence.
//!
//! The ultravisor here is a function: it knows the measurement key because the test opens the broker's box. That a machine with the host key can know
//! it is what [`the_machine_of_a_host_key_can_open_the_request`] shows; that a real one measures the same bytes, only hardware can.

use std::path::{Path, PathBuf};

use kata_cc_evidence::se::{Additional, Challenge, Evidence, Flags, ImageTags};
use kata_cc_evidence::{ReportData, TeeType};
use p521::{PublicKey, SecretKey, ecdh};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::{digest, hmac};

use super::cert::Contents;
use super::host_key::coordinates;
use super::request::{Ephemeral, build};
use super::seal::Secrets;
use super::{CertError, Documents, File, HostKey, HostKeyError, SeError, SeExpected, SeTrust, SealingKey, challenge, verify};
use crate::checks::{Checks, Outcome};
use crate::vectors::{read, vectors};
use crate::{Expected, Trust, Verifiers};

const ASSETS: &str = "ibm-s390-linux/s390-tools/rust/pv/tests/assets";
/// 2026-01-01.
const NOW: u64 = 1_767_225_600;
const LISTS: [&str; 3] = ["ibm.crl", "inter_ca.crl", "root_ca.crl"];

fn documents(dir: &Path, root: &str, certs: &[&str], lists: &[&str], host_keys: &[&str]) -> Result<Documents, HostKeyError> {
    let load = |names: &[&str]| -> Vec<(String, Vec<u8>)> {
        names.iter().map(|name| ((*name).to_owned(), read(dir, &format!("{ASSETS}/cert/{name}")))).collect()
    };
    fn files(loaded: &[(String, Vec<u8>)]) -> Vec<File<'_>> {
        loaded.iter().map(|(name, bytes)| File { name, bytes }).collect()
    }
    Documents::parse(&files(&load(&[root])), &files(&load(certs)), &files(&load(lists)), &files(&load(host_keys)))
}

/// One host key by one chain.
fn host_key(dir: &Path, certs: &[&str], lists: &[&str], host_key: &str) -> Result<HostKey, HostKeyError> {
    at(dir, certs, lists, host_key, NOW)
}

fn at(dir: &Path, certs: &[&str], lists: &[&str], host_key: &str, now: u64) -> Result<HostKey, HostKeyError> {
    documents(dir, "root_ca.crt", certs, lists, &[host_key])?.verify(now).remove(0).1
}

#[test]
fn accepts_host_keys_of_either_place_and_any_order_of_names() {
    let Some(dir) = vectors() else { return };
    for (signing, list, document) in [
        ("ibm.crt", "ibm.crl", "host.crt"),
        ("ibm.crt", "der.crl", "host2.crt"),
        ("der.crt", "ibm.crl", "host.crt"),
        ("ibm_armonk.crt", "ibm.crl", "host.crt"),
        ("ibm_armonk.crt", "ibm_armonk.crl", "host.crt"),
        ("ibm_armonk.crt", "ibm_armonk.crl", "host_armonk.crt"),
    ] {
        let key = host_key(&dir, &[signing, "inter_ca.crt"], &[list, "inter_ca.crl", "root_ca.crl"], document);
        assert_eq!(key.map(|key| key.root().to_owned()), Ok("root_ca.crt".into()), "{signing} {list} {document}");
    }
    // Lists may stand beside the certificates.
    let chained = documents(&dir, "root_ca.chained.crt", &["ibm.chained.crt", "inter_ca.chained.crt"], &[], &["host.crt"]);
    assert!(chained.expect("parses").verify(NOW)[0].1.is_ok());
}

#[test]
fn ac_55_refuses_host_keys_that_are_revoked_expired_or_anybody_elses() {
    let Some(dir) = vectors() else { return };
    let refused = |document| host_key(&dir, &["ibm.crt", "inter_ca.crt"], &LISTS, document).map(|_| ());
    assert!(matches!(refused("host_rev.crt"), Err(HostKeyError::Revoked { .. })));
    assert!(matches!(refused("host_crt_expired.crt"), Err(HostKeyError::NotInTime { .. })));
    assert!(matches!(refused("host_invalid_signing_key.crt"), Err(HostKeyError::Issuer { .. })));
    assert!(matches!(refused("fake_host.crt"), Err(HostKeyError::AuthorityKey { .. })));
    assert!(matches!(refused("ibm.chained.crt"), Err(HostKeyError::Issuer { .. })));
    assert!(matches!(at(&dir, &["ibm.crt", "inter_ca.crt"], &LISTS, "host.crt", 0), Err(HostKeyError::NotInTime { .. })));

    // The last byte is of the signature.
    let load = |name: &str| read(&dir, &format!("{ASSETS}/cert/{name}"));
    let mut der = der(&dir, "host.crt");
    *der.last_mut().expect("not empty") ^= 1;
    let (root, signing, inter) = (load("root_ca.crt"), load("ibm.crt"), load("inter_ca.crt"));
    let lists = LISTS.map(load);
    let file = |bytes| File { name: "a file", bytes };
    let documents = Documents::parse(
        &[file(&root)],
        &[file(&signing), file(&inter)],
        &[file(&lists[0]), file(&lists[1]), file(&lists[2])],
        &[file(&der)],
    );
    assert!(matches!(documents.expect("parses").verify(NOW)[0].1, Err(HostKeyError::Signature { .. })));
    // And a key that machines do not have is none, whoever signs it.
    let rsa = Contents::parse(&read(&dir, &format!("{ASSETS}/keys/rsa3072.crt"))).expect("a certificate");
    assert!(rsa.certs[0].p521_key().is_none());
}

#[test]
fn refuses_host_keys_without_current_revocation_lists() {
    let Some(dir) = vectors() else { return };
    let reason = |lists: &[&str]| match host_key(&dir, &["ibm.crt", "inter_ca.crt"], lists, "host.crt") {
        Err(HostKeyError::RevocationList { reason, .. }) => reason,
        other => panic!("{lists:?}: {other:?}"),
    };
    let (none, forged, stale) =
        ("there is none", "what there is has not been signed by its key", "what there is is past its time, or not in it yet");
    assert_eq!(reason(&["inter_ca.crl", "root_ca.crl"]), none);
    assert_eq!(reason(&["ibm.crl", "root_ca.crl"]), none);
    assert_eq!(reason(&["ibm.crl", "inter_ca.crl"]), none);
    assert_eq!(reason(&["ibm_wrong_issuer.crl", "inter_ca.crl", "root_ca.crl"]), none);
    assert_eq!(reason(&["ibm_wrong_subject.crl", "inter_ca.crl", "root_ca.crl"]), none);
    assert_eq!(reason(&["ibm_outdated_early.crl", "inter_ca.crl", "root_ca.crl"]), stale);
    assert_eq!(reason(&["ibm_outdated_late.crl", "inter_ca.crl", "root_ca.crl"]), stale);
    assert_eq!(reason(&["ibm_invalid_hash.crl", "inter_ca.crl", "root_ca.crl"]), forged);
    assert_eq!(reason(&["fake_ibm.crl", "inter_ca.crl", "root_ca.crl"]), forged);
    assert_eq!(reason(&["ibm.crl", "inter_ca.invalid_date.crl", "root_ca.crl"]), stale);
    assert_eq!(reason(&["ibm.crl", "inter_ca.invalid_signer.crl", "root_ca.crl"]), forged);
    assert_eq!(reason(&["ibm.crl", "inter_ca.crl", "fake_root_ca.crl"]), forged);
}

#[test]
fn refuses_signing_keys_without_a_chain_to_a_root() {
    let Some(dir) = vectors() else { return };
    let refused = |certs: &[&str]| host_key(&dir, certs, &LISTS, "host.crt").map(|_| ());
    assert!(matches!(refused(&["ibm_rev.crt", "inter_ca.crt"]), Err(HostKeyError::Revoked { .. })));
    assert!(matches!(refused(&["ibm_expired.crt", "inter_ca.crt"]), Err(HostKeyError::NotInTime { .. })));
    assert!(matches!(refused(&["ibm_wrong_subject.crt", "inter_ca.crt"]), Err(HostKeyError::NoSigningKey)));
    assert!(matches!(refused(&["ibm.crt", "ibm_rev.crt", "inter_ca.crt"]), Err(HostKeyError::ManySigningKeys { found: 2 })));
    assert!(matches!(refused(&["ibm.crt", "fake_inter_ca.crt"]), Err(HostKeyError::NoIssuer { .. })));
    assert!(matches!(refused(&["ibm.crt"]), Err(HostKeyError::NoIssuer { .. })));
    // A list where a certificate should be.
    assert!(matches!(refused(&["inter_ca.crt", "ibm_outdated_early.crl"]), Err(HostKeyError::NoSigningKey)));
    let other_root = documents(&dir, "fake_root_ca.crt", &["ibm.crt", "inter_ca.crt"], &LISTS, &["host.crt"]);
    assert!(matches!(other_root.expect("parses").verify(NOW)[0].1, Err(HostKeyError::NoIssuer { .. })));
}

#[test]
fn refuses_files_that_are_not_what_they_should_be() {
    let Some(dir) = vectors() else { return };
    let parse = |root, certs: &[&str], lists: &[&str], host_keys: &[&str]| documents(&dir, root, certs, lists, host_keys).map(|_| ());
    let signing = ["ibm.crt", "inter_ca.crt"];
    assert!(matches!(parse("ibm.crl", &signing, &LISTS, &["host.crt"]), Err(HostKeyError::Count { found: 0, .. })));
    assert!(matches!(parse("root_ca.crt", &signing, &["host.crt"], &["host.crt"]), Err(HostKeyError::Count { found: 1, .. })));
    assert!(matches!(parse("root_ca.crt", &signing, &LISTS, &["ibm.crl"]), Err(HostKeyError::Count { found: 0, .. })));
    for bytes in [b"".as_slice(), b"text", b"-----BEGIN CERTIFICATE-----", b"-----BEGIN X-----\nQQ==\n-----END X-----\n"] {
        assert_eq!(Contents::parse(bytes).map(|_| ()), Err(CertError::Malformed));
    }
}

/// The one DER object in a PEM file.
fn der(dir: &Path, name: &str) -> Vec<u8> {
    let text = String::from_utf8(read(dir, &format!("{ASSETS}/cert/{name}"))).expect("PEM");
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).expect("base64")
}

/// With the last byte of each of these sequences, as many as wanted, changed to another.
fn with(der: &[u8], sequence: &[u8], last: u8, times: usize) -> Vec<u8> {
    let mut changed = der.to_vec();
    let found: Vec<_> = der.windows(sequence.len()).enumerate().filter(|(_, window)| *window == sequence).map(|(at, _)| at).collect();
    assert!(found.len() >= times);
    for at in &found[..times] {
        changed[at + sequence.len() - 1] = last;
    }
    changed
}

#[test]
fn refuses_critical_extensions_and_algorithms_it_does_not_know() {
    let Some(dir) = vectors() else { return };
    let (cert, list) = (der(&dir, "host.crt"), der(&dir, "ibm.crl"));
    assert!(Contents::parse(&cert).is_ok() && Contents::parse(&list).is_ok());
    // Key usage becomes an extension nobody has heard of, and it is critical.
    let unknown = Contents::parse(&with(&cert, &[0x55, 0x1d, 0x0f], 0x63, 1)).map(|_| ());
    assert_eq!(unknown, Err(CertError::CriticalExtension { oid: "2.5.29.99".into() }));
    // SHA-512 becomes SHA-1: in both places, or in what is signed alone.
    let sha512_with_rsa = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d];
    for object in [&cert, &list] {
        for times in [1, 2] {
            let refused = Contents::parse(&with(object, &sha512_with_rsa, 5, times)).map(|_| ());
            assert_eq!(refused, Err(CertError::SignatureAlgorithm { found: "1.2.840.113549.1.1.5".into() }));
        }
    }
    // Bytes after the object, and the object cut off.
    for object in [&cert, &list] {
        assert!(Contents::parse(&[object.as_slice(), &[0]].concat()).is_err());
        assert!(Contents::parse(&object[..object.len() - 1]).is_err());
    }
}

/// The customer's key of the s390-tools' tests, published there: its scalar.
fn published_key() -> SecretKey {
    let scalar = hex::decode(format!("0001{}", "88".repeat(64))).expect("hexadecimal");
    SecretKey::from_slice(&scalar).expect("a scalar")
}

#[test]
fn makes_the_very_request_of_s390_tools() {
    let Some(dir) = vectors() else { return };
    let host = Contents::parse(&read(&dir, &format!("{ASSETS}/keys/host.pem.crt"))).expect("a certificate");
    let host = HostKey::unverified(host.certs[0].p521_key().expect("on P-521"));
    assert_eq!(coordinates(&published_key().public_key()).as_slice(), read(&dir, &format!("{ASSETS}/keys/public_cust.bin")));
    let ephemeral = Ephemeral { iv: [0x55; 12], key: published_key(), protection_key: [0x17; 32].into() };
    let secrets = Secrets { issued_at: 0, measurement_key: [0x77; 64], nonce: [0xab; 16] };
    let request = build(&[host], Flags::REQUESTED, &secrets, &ephemeral).expect("one host key");
    assert_eq!(request.to_bytes().expect("writes"), read(&dir, &format!("{ASSETS}/exp/arcb.bin")));
}

#[test]
fn the_machine_of_a_host_key_can_open_the_request() {
    let machine = published_key();
    let other = Ephemeral::generate().expect("random").key;
    let host_keys = [&other, &machine].map(|key| HostKey::unverified(key.public_key()));
    let secrets = Secrets { issued_at: 0, measurement_key: [0x77; 64], nonce: [0xab; 16] };
    let request = build(&host_keys, Flags::REQUESTED, &secrets, &Ephemeral::generate().expect("random")).expect("two host keys");

    let head = &request.head;
    let slot = head.slots.iter().find(|slot| slot.phkh == host_keys[1].phkh()).expect("a slot for the machine");
    let point = [&[4], &head.public_key[14..80], &head.public_key[94..]].concat();
    let peer = PublicKey::from_sec1_bytes(&point).expect("a point");
    let shared = ecdh::diffie_hellman(machine.to_nonzero_scalar(), peer.as_affine());
    let agreed = digest::digest(&digest::SHA256, &[shared.raw_secret_bytes().as_slice(), &[0, 0, 0, 1]].concat());
    let open = |key: &[u8], iv, aad: &[u8], text: &[u8], tag: &[u8]| {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes"));
        let mut text = [text, tag].concat();
        key.open_in_place(Nonce::assume_unique_for_key(iv), Aad::from(aad), &mut text).map(|text| text.to_vec())
    };
    let key = open(agreed.as_ref(), [0; 12], &[], &slot.wrapped_key, &slot.tag).expect("unwraps");
    let aad = head.to_bytes().expect("writes");
    let opened = open(&key, head.iv, &aad, &request.encrypted, &request.tag).expect("decrypts");
    assert_eq!(opened, [[0x77; 64].as_slice(), &[0xab; 16]].concat());
    let mut changed = aad;
    changed[48] ^= 1;
    assert!(open(&key, head.iv, &changed, &request.encrypted, &request.tag).is_err(), "flags are authenticated");
}

struct World {
    dir: PathBuf,
    trust: SeTrust,
}

const REPORT_DATA: ReportData = ReportData([0x5a; 64]);
const INITDATA: [u8; 32] = [0x1d; 32];

fn image(n: u8) -> ImageTags {
    ImageTags { pld: [n; 64], ald: [n; 64], tld: [n; 64], tag: [n; 16] }
}

impl World {
    fn new() -> Option<Self> {
        let dir = vectors()?;
        let documents = documents(&dir, "root_ca.crt", &["ibm.crt", "inter_ca.crt"], &LISTS, &["host_rev.crt", "host.crt", "host2.crt"]);
        let trust = SeTrust {
            documents: documents.expect("parses"),
            images: vec![image(1), image(2)],
            sealing_key: SealingKey::new([0x42; 32]),
            max_age: 300,
        };
        Some(Self { dir, trust })
    }

    fn host_key(&self, name: &str) -> HostKey {
        host_key(&self.dir, &["ibm.crt", "inter_ca.crt"], &LISTS, name).expect("trusted")
    }

    /// What a guest of image 2 answers on the machine of `host.crt`.
    fn answer(&self, challenge: &Challenge, user_data: &[u8]) -> Evidence {
        let mut evidence = Evidence {
            measurement: [0; 64],
            additional: Additional { image_phkh: [3; 32], attestation_phkh: self.host_key("host.crt").phkh() },
            user_data: user_data.to_vec(),
            cuid: [5; 16],
            sealed_key: challenge.sealed_key.clone(),
            sealed_nonce: challenge.sealed_nonce.clone(),
            image_tags: challenge.image_tags,
        };
        self.measure(&mut evidence);
        evidence
    }

    fn measure(&self, evidence: &mut Evidence) {
        let secrets = Secrets::open(&self.trust.sealing_key, &evidence.sealed_key).expect("ours");
        let key = hmac::Key::new(hmac::HMAC_SHA512, &secrets.measurement_key);
        let mac = hmac::sign(&key, &evidence.measured_bytes(&image(2), &secrets.nonce));
        evidence.measurement.copy_from_slice(mac.as_ref());
    }

    fn good(&self) -> Evidence {
        let challenge = challenge(&self.trust, NOW).expect("a challenge");
        self.answer(&challenge, &[REPORT_DATA.0.as_slice(), &INITDATA].concat())
    }

    fn verify(&self, evidence: &Evidence) -> Result<(), SeError> {
        self.verify_at(evidence, NOW + 10)
    }

    fn verify_at(&self, evidence: &Evidence, now_unix: u64) -> Result<(), SeError> {
        let expected = SeExpected { report_data: Some(&REPORT_DATA), initdata_digest: Some(&INITDATA), now_unix };
        verify(evidence, &expected, &self.trust, &mut Checks::default()).map(|_| ())
    }
}

#[test]
fn good_evidence_is_verified_and_says_which_image_and_which_host_key() {
    let Some(world) = World::new() else { return };
    let challenge = challenge(&world.trust, NOW).expect("a challenge");
    let slots: Vec<_> = challenge.request.head.slots.iter().map(|slot| slot.phkh).collect();
    assert_eq!(slots, ["host.crt", "host2.crt"].map(|name| world.host_key(name).phkh()), "the revoked one has none");

    let evidence = world.answer(&challenge, &[REPORT_DATA.0.as_slice(), &INITDATA].concat());
    let expected = SeExpected { report_data: Some(&REPORT_DATA), initdata_digest: Some(&INITDATA), now_unix: NOW };
    let mut checks = Checks::default();
    let verified = verify(&evidence, &expected, &world.trust, &mut checks).expect("good");
    assert_eq!((verified.image(), verified.root_name()), (&image(2), "root_ca.crt"));
    let claims = verified.claims();
    assert_eq!(claims["tag"], "02".repeat(16));
    assert_eq!(claims["attestation_phkh"], hex::encode(world.host_key("host.crt").phkh()));
    assert_eq!((&claims["report_data"], &claims["init_data"]), (&"5a".repeat(64).into(), &"1d".repeat(32).into()));
    let names: Vec<_> = checks.all().iter().map(|check| check.name).collect();
    assert_eq!(names, ["measurement key", "request age", "measurement", "host key", "report data", "initdata"]);
    assert!(checks.all().iter().all(|check| check.outcome == Outcome::Pass));
}

#[test]
fn two_requests_have_nothing_in_common() {
    let Some(world) = World::new() else { return };
    let [one, two] = [0, 1].map(|_| challenge(&world.trust, NOW).expect("a challenge"));
    assert_ne!(one.request.head.public_key, two.request.head.public_key);
    assert_ne!(one.request.head.iv, two.request.head.iv);
    assert_ne!(one.request.encrypted, two.request.encrypted);
    assert_ne!(one.sealed_key, two.sealed_key);
    assert_ne!(one.request.head.slots[0].wrapped_key, two.request.head.slots[0].wrapped_key);
}

#[test]
fn refuses_a_measurement_key_that_this_broker_did_not_send() {
    let Some(world) = World::new() else { return };
    let good = world.good();
    for at in 0..good.sealed_key.len() {
        let mut changed = good.clone();
        changed.sealed_key[at] ^= 1;
        assert_eq!(world.verify(&changed), Err(SeError::Sealed), "byte {at}");
    }
    for len in [0, 11, 12, 40, good.sealed_key.len() - 1] {
        let mut changed = good.clone();
        changed.sealed_key.truncate(len);
        assert_eq!(world.verify(&changed), Err(SeError::Sealed), "{len} bytes");
    }
    let mut other = World::new().expect("there");
    other.trust.sealing_key = SealingKey::new([0x43; 32]);
    assert_eq!(other.verify(&good), Err(SeError::Sealed));
}

#[test]
fn refuses_requests_that_are_old_or_of_the_future() {
    let Some(world) = World::new() else { return };
    let good = world.good();
    assert_eq!(world.verify_at(&good, NOW + 300), Ok(()));
    assert_eq!(world.verify_at(&good, NOW + 301), Err(SeError::Expired { age: 301, limit: 300 }));
    assert_eq!(world.verify_at(&good, NOW - 1), Err(SeError::Expired { age: -1, limit: 300 }));
    assert!(world.verify_at(&good, u64::MAX).is_err());
}

/// Whatever is measured, changed.
#[test]
fn ac_55_refuses_evidence_of_which_anything_measured_was_changed() {
    let Some(world) = World::new() else { return };
    type Change = fn(&mut Evidence);
    let changes: [(&str, Change); 7] = [
        ("measurement", |evidence| evidence.measurement[63] ^= 1),
        ("user data", |evidence| evidence.user_data[0] ^= 1),
        ("user data's length", |evidence| evidence.user_data.push(0)),
        ("initdata", |evidence| evidence.user_data[64] ^= 1),
        ("configuration id", |evidence| evidence.cuid[0] ^= 1),
        ("image's host key", |evidence| evidence.additional.image_phkh[0] ^= 1),
        ("request's host key", |evidence| evidence.additional.attestation_phkh[31] ^= 1),
    ];
    for (what, change) in changes {
        let mut evidence = world.good();
        change(&mut evidence);
        assert!(matches!(world.verify(&evidence), Err(SeError::Measurement { images: 2, .. })), "{what}");
    }
    // Another request's key, and so another nonce.
    let mut evidence = world.good();
    evidence.sealed_key = world.good().sealed_key;
    assert!(matches!(world.verify(&evidence), Err(SeError::Measurement { .. })));
}

#[test]
fn ac_55_refuses_images_that_are_not_trusted_and_believes_no_tags_of_the_guest() {
    let Some(mut world) = World::new() else { return };
    let mut evidence = world.good();
    evidence.image_tags = image(9);
    assert_eq!(world.verify(&evidence), Ok(()), "what the guest says of its image is not looked at");
    world.trust.images.truncate(1);
    evidence.image_tags = image(2);
    assert!(matches!(world.verify(&evidence), Err(SeError::Measurement { images: 1, .. })));
    for at in [0, 64, 128, 192] {
        let mut bytes = image(2).to_bytes();
        bytes[at] ^= 1;
        world.trust.images = vec![ImageTags::parse(&bytes).expect("tags")];
        assert!(matches!(world.verify(&evidence), Err(SeError::Measurement { .. })), "byte {at}");
    }
    world.trust.images.clear();
    assert!(matches!(challenge(&world.trust, NOW), Err(SeError::NoImage)));
}

#[test]
fn refuses_a_host_key_that_is_not_trusted_any_more() {
    let Some(mut world) = World::new() else { return };
    let good = world.good();
    let only = |name| documents(&world.dir, "root_ca.crt", &["ibm.crt", "inter_ca.crt"], &LISTS, &[name]).expect("parses");
    let (host2, revoked) = (only("host2.crt"), only("host_rev.crt"));
    world.trust.documents = host2;
    assert!(matches!(world.verify(&good), Err(SeError::HostKey { .. })));
    world.trust.documents = revoked;
    assert!(matches!(world.verify(&good), Err(SeError::NoHostKey { first: Some((name, _)) }) if name == "host_rev.crt"));
    assert!(matches!(challenge(&world.trust, NOW), Err(SeError::NoHostKey { .. })));
}

#[test]
fn ac_55_refuses_evidence_of_another_exchange_or_other_initdata() {
    let Some(world) = World::new() else { return };
    let challenge = challenge(&world.trust, NOW).expect("a challenge");
    let mut other = REPORT_DATA;
    other.0[63] ^= 1;
    for user_data in [[other.0.as_slice(), &INITDATA].concat(), REPORT_DATA.0[..63].to_vec(), Vec::new()] {
        let refused = world.verify(&world.answer(&challenge, &user_data));
        assert!(matches!(refused, Err(SeError::ReportData { .. })), "{user_data:?}");
    }
    // CoCo's guests measure no initdata: theirs are refused where some were sent.
    for rest in [[].as_slice(), &INITDATA[..31], &[0; 32], &[0x1d; 33]] {
        let refused = world.verify(&world.answer(&challenge, &[REPORT_DATA.0.as_slice(), rest].concat()));
        assert!(matches!(refused, Err(SeError::InitData { .. })), "{rest:?}");
    }
    let evidence = world.answer(&challenge, &REPORT_DATA.0);
    let empty = SeExpected { report_data: Some(&REPORT_DATA), initdata_digest: Some(&[]), now_unix: NOW };
    assert!(matches!(verify(&evidence, &empty, &world.trust, &mut Checks::default()), Err(SeError::InitData { .. })));
}

#[test]
fn is_a_kind_of_evidence_where_it_is_configured() {
    let Some(world) = World::new() else { return };
    let verifiers = Verifiers::new(Trust { se: Some(world.trust.clone().into()), ..Trust::hardware() });
    let verifier = verifiers.get(TeeType::Se).expect("configured");
    let asked = verifier.challenge(NOW).expect("made").expect("needed");
    let challenge: Challenge = serde_json::from_value(asked).expect("a challenge");
    let evidence = world.answer(&challenge, &REPORT_DATA.0);
    let expected = Expected { report_data: Some(&REPORT_DATA), initdata_digest: None, now_unix: NOW };
    let evidence = serde_json::to_value(evidence).expect("serialises");
    let verified = verifier.verify(&evidence, &expected, &crate::collateral::Collateral::none(), &mut Checks::default()).expect("good");
    assert_eq!(verifier.measurement(verified.claims()), Some("02020202020202020202020202020202"));
    assert!(verifiers.get(TeeType::Snp).expect("listed").challenge(NOW).expect("none needed").is_none());
    assert!(Verifiers::new(Trust::hardware()).get(TeeType::Se).is_err());
}

#[test]
fn secrets_do_not_show() {
    assert_eq!(format!("{:?}", SealingKey::new([0x42; 32])), "SealingKey(..)");
}
