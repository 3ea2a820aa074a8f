//! Requests, headers and evidence of IBM Secure Execution: on the vectors of s390-tools, and on changed bytes.

mod vectors;

use kata_cc_evidence::se::{Additional, AuthenticatedHead, Challenge, Evidence, Flags, ImageTags, KeySlot, Request};
use vectors::read;

const ASSETS: &str = "ibm-s390-linux/s390-tools/rust/pv/tests/assets";

fn request() -> Request {
    let slot = |n| KeySlot { phkh: [n; 32], wrapped_key: [0x22; 32], tag: [0x33; 16] };
    let head = AuthenticatedHead { iv: [0x55; 12], flags: Flags::REQUESTED, public_key: [7; 160], slots: vec![slot(1), slot(2)] };
    Request { head, encrypted: [9; 80], tag: [8; 16] }
}

fn tags() -> ImageTags {
    ImageTags { pld: [1; 64], ald: [2; 64], tld: [3; 64], tag: [4; 16] }
}

fn evidence() -> Evidence {
    Evidence {
        measurement: [1; 64],
        additional: Additional { image_phkh: [2; 32], attestation_phkh: [3; 32] },
        user_data: vec![4; 64],
        cuid: [5; 16],
        sealed_key: vec![6; 120],
        sealed_nonce: Vec::new(),
        image_tags: tags(),
    }
}

#[test]
fn a_request_reads_back_and_no_prefix_of_it_does() {
    let bytes = request().to_bytes().expect("two slots");
    assert_eq!(bytes.len(), Request::MIN + 80);
    assert_eq!(Request::parse(&bytes), Ok(request()));
    for len in 0..bytes.len() {
        assert!(Request::parse(&bytes[..len]).is_err(), "{len} bytes");
    }
    assert!(Request::parse(&[bytes.as_slice(), &[0]].concat()).is_err());
}

/// Whatever byte changes: it is refused, or it is another request that writes those very bytes.
#[test]
fn parsing_loses_nothing() {
    let bytes = request().to_bytes().expect("two slots");
    for at in 0..bytes.len() {
        for flip in [1, 0x80] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            if let Ok(parsed) = Request::parse(&changed) {
                assert_eq!(parsed.to_bytes().as_deref(), Ok(changed.as_slice()), "byte {at}");
            }
        }
    }
}

#[test]
fn a_request_needs_host_keys_and_a_nonce() {
    let mut none = request();
    none.head.slots.clear();
    assert!(none.to_bytes().is_err());
    let mut many = request();
    many.head.slots = vec![many.head.slots[0]; 256];
    assert!(many.to_bytes().is_err());
    many.head.slots.truncate(255);
    assert_eq!(many.to_bytes().map(|bytes| bytes.len()), Ok(Request::MAX));
    let mut no_nonce = request();
    no_nonce.head.flags = Flags::IMAGE_PHKH;
    assert!(Request::parse(&no_nonce.to_bytes().expect("writes")).is_err());
}

#[test]
fn reads_the_request_and_the_header_of_s390_tools() {
    let Some(dir) = vectors::vectors() else { return };
    let bytes = read(&dir, &format!("{ASSETS}/exp/arcb.bin"));
    let request = Request::parse(&bytes).expect("parses");
    assert_eq!(request.head.flags, Flags::REQUESTED);
    assert_eq!((request.head.iv, request.head.slots.len()), ([0x55; 12], 1));
    assert_eq!(request.to_bytes().as_deref(), Ok(bytes.as_slice()));
    let slot = read(&dir, &format!("{ASSETS}/exp/keyslot.bin"));
    assert_eq!(slot[..32], request.head.slots[0].phkh);

    let header = read(&dir, &format!("{ASSETS}/exp/secure_guest.hdr"));
    let tags = ImageTags::from_header(&header).expect("a header");
    assert_eq!(hex::encode(tags.tag), "92309d4589b9a85b427f8753171d1520");
    assert_eq!(hex::encode(tags.pld)[..8], *"be94b5ea");
    assert_eq!(ImageTags::parse(&tags.to_bytes()), Ok(tags));
    assert!(ImageTags::from_header(&[header.as_slice(), &[0; 100]].concat()).is_ok(), "padded");
    for len in 0..header.len() {
        assert!(ImageTags::from_header(&header[..len]).is_err(), "{len} bytes");
    }
    // Magic, version, size, numbers of slots and of encrypted bytes.
    for at in (0..16).chain(32..48) {
        let mut changed = header.clone();
        changed[at] ^= 1;
        assert!(ImageTags::from_header(&changed).is_err(), "byte {at}");
    }
}

#[test]
fn challenge_and_evidence_travel_as_json() {
    let challenge = Challenge { request: request(), sealed_key: vec![6; 120], sealed_nonce: vec![1], image_tags: tags() };
    let json = serde_json::to_value(&challenge).expect("serialises");
    assert_eq!(json["measurement_size"], 64);
    assert_eq!(serde_json::from_value::<Challenge>(json).expect("parses"), challenge);
    let json = serde_json::to_value(evidence()).expect("serialises");
    assert_eq!(json["cuid"], "BQUFBQUFBQUFBQUFBQUFBQ==");
    assert_eq!(serde_json::from_value::<Evidence>(json).expect("parses"), evidence());
}

#[test]
fn refuses_fields_that_are_missing_too_long_too_short_or_no_base64() {
    let json = serde_json::to_value(evidence()).expect("serialises");
    for field in json.as_object().expect("an object").keys() {
        let mut without = json.clone();
        without.as_object_mut().expect("an object").remove(field);
        assert!(serde_json::from_value::<Evidence>(without).is_err(), "without {field}");
        for (value, what) in [("A".repeat(4096), "too long"), ("?".into(), "no base64"), ("QUFB\n".into(), "with a line break")] {
            let mut changed = json.clone();
            changed[field] = value.into();
            assert!(serde_json::from_value::<Evidence>(changed).is_err(), "{field} {what}");
        }
    }
    for field in ["measurement", "additional_data", "cuid", "image_hdr_tags"] {
        let mut changed = json.clone();
        changed[field] = "QUFB".into();
        assert!(serde_json::from_value::<Evidence>(changed).is_err(), "{field} too short");
    }
}

/// The order and the lengths of IBM's definition, byte by byte.
#[test]
fn measures_what_the_ultravisor_measures() {
    let evidence = evidence();
    let measured = evidence.measured_bytes(&tags(), &[8; 16]);
    let expected =
        [tags().to_bytes(), vec![5; 16], vec![0, 64, 0, 0, 0, 0, 0, 64], vec![4; 64], vec![8; 16], vec![2; 32], vec![3; 32]].concat();
    assert_eq!(measured, expected);
}
