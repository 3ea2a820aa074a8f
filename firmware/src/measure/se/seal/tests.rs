//! What is sealed is what IBM's own tools seal, and opens for whom it was sealed to.

use std::convert::Infallible;

use super::*;
use crate::measure::se::header::Digests;

/// A header that a test of pvimg expects to come of the keys and values below (s390-tools,
/// rust/pvimg/src/pv_utils/se_hdr/builder.rs, `builder_test`).
const PVIMG: &[u8] = include_bytes!("../../../../tests/se/pvimg.hdr");

/// Of bytes that count up from `seed`.
pub(crate) fn secrets(seed: u8) -> Secrets {
    let mut next = seed;
    let fill = |bytes: &mut [u8]| {
        for byte in bytes {
            *byte = next;
            next = next.wrapping_mul(5).wrapping_add(113);
        }
        Ok::<_, Infallible>(())
    };
    Secrets::draw(fill).unwrap()
}

fn key(byte: u8) -> SecretKey {
    let mut scalar = [byte; SCALAR];
    scalar[0] = 0;
    SecretKey::from_slice(&scalar).unwrap()
}

fn host_key(byte: u8) -> Point {
    point(&key(byte).public_key()).unwrap()
}

fn measured() -> Measured {
    Measured { pages: 1, digests: Digests { pld: [2; 64], ald: [1; 64], tld: [3; 64] } }
}

#[test]
fn seals_to_the_bytes_that_pvimg_makes() {
    let theirs = Header::parse(PVIMG).unwrap();
    assert_eq!(theirs.head.digests, measured().digests);
    let mut secrets = secrets(1);
    secrets.communication_key.fill(49);
    secrets.component_key.fill(3);
    secrets.protection_key.fill(50);
    let confidential = confidential(&secrets, Psw { mask: 5678, address: 1234 });
    let ours = seal_parts(theirs.head.clone(), &confidential, &secrets.protection_key).unwrap();
    assert_eq!(hex::encode(ours.to_bytes().unwrap()), hex::encode(PVIMG));
}

/// The slot was made by IBM's crate `s390_pv` 0.12.0 (`Keyslot::encrypt`, OpenSSL 3.0) of these three keys. It is not a dependency: it
/// needs OpenSSL.
#[test]
fn wraps_to_the_slot_that_s390_pv_makes() {
    let mut secrets = secrets(1);
    secrets.protection_key.fill(0x33);
    secrets.customer_key = key(0x11);
    let host_key = host_key(0x22);
    let slot = wrap(&host_key, phkh(&host_key), &secrets).unwrap();
    let theirs = [
        "1168c2b30940781f558e9f2a0b466ee5c17226fbe385982e25523069e7672b3e",
        "e6c61b9311ceb93ea85bdbeefb81ca636922f41400f35746f371463064f69072",
        "2f750ace5e882a4f4e5685cbf52f1706",
    ];
    assert_eq!([hex::encode(slot.phkh), hex::encode(slot.wrapped_key), hex::encode(slot.tag)], theirs);
}

#[test]
fn the_same_secrets_make_the_same_header_and_others_another() {
    let make = |seed| seal(&measured(), &[host_key(0x22)], PlaintextFlags(0), Psw::at(0x15000), &secrets(seed)).unwrap();
    assert_eq!(make(1), make(1));
    assert_ne!(make(1).tag, make(2).tag);
    assert_ne!(make(1).encrypted, make(2).encrypted);
}

#[test]
fn each_host_key_has_one_slot() {
    let seal = |keys: &[Point]| seal(&measured(), keys, PlaintextFlags(0), Psw::at(0), &secrets(1));
    let header = seal(&[host_key(0x22), host_key(0x33)]).unwrap();
    let slots: Vec<_> = header.head().slots().iter().map(|slot| slot.phkh).collect();
    assert_eq!(slots, [phkh(&host_key(0x22)), phkh(&host_key(0x33))]);
    assert!(matches!(seal(&[host_key(0x22), host_key(0x33), host_key(0x22)]), Err(SealError::SameHostKey { .. })));
    assert_eq!(seal(&[]), Err(HeaderError::NoHostKey.into()));
}

#[test]
fn more_slots_than_fit_two_pages_are_refused() {
    let header = Header::parse(PVIMG).unwrap();
    let slots = |n| {
        let mut head = header.head.clone();
        head.slots = vec![header.head.slots[0]; n];
        seal_parts(head, &[0; Header::ENCRYPTED], &[0; KEY])
    };
    let most = slots(95).unwrap().to_bytes().unwrap();
    assert_eq!(Header::size(95), Ok(most.len()));
    assert_eq!(Header::parse(&most).unwrap().to_bytes().unwrap(), most);
    assert_eq!(slots(96), Err(HeaderError::TooLarge { found: 8240, slots: 96 }.into()));
    assert_eq!(Header::size(96), Err(HeaderError::TooLarge { found: 8240, slots: 96 }));
}

#[test]
fn what_is_not_random_makes_no_secrets() {
    let constant = Secrets::draw(|bytes: &mut [u8]| {
        bytes.fill(7);
        Ok::<_, Infallible>(())
    });
    assert!(matches!(constant, Err(SecretsError::NotRandom)));
    let mut calls = 0;
    let fails_late = Secrets::draw(|bytes: &mut [u8]| {
        calls += 1;
        bytes.iter_mut().zip(1..).for_each(|(byte, value)| *byte = value);
        if calls == 8 { Err(std::io::Error::other("none left")) } else { Ok(()) }
    });
    assert!(matches!(fails_late, Err(SecretsError::Random(_))));
    // Never a scalar below the order.
    let too_large = Secrets::draw(|bytes: &mut [u8]| {
        bytes.fill(0xff);
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        Ok::<_, Infallible>(())
    });
    assert!(matches!(too_large, Err(SecretsError::NotRandom)));
}

#[test]
fn secrets_are_not_shown() {
    assert_eq!(format!("{:?}", secrets(1)), "Secrets(..)");
}
