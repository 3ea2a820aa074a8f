//! ID blocks made and signed here, with each part bent in turn.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};

use super::*;

fn key() -> IdKey {
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    IdKey::from_pkcs8(document.as_ref()).unwrap()
}

pub(crate) fn signed(policy: u64, with_author: bool) -> SignedIdBlock {
    let block = IdBlock { launch_digest: [0xd1; 48], family_id: [0xfa; 16], image_id: [0x1a; 16], guest_svn: 7, policy };
    SignedIdBlock::sign(&block, &key(), with_author.then(key).as_ref()).unwrap()
}

/// A block, and authentication information by keys that are made for it.
fn parts(policy: u64, with_author: bool) -> ([u8; BLOCK_SIZE], Vec<u8>) {
    let signed = signed(policy, with_author);
    (signed.block, signed.auth)
}

#[test]
fn a_block_is_laid_out_as_amd_has_it() {
    let (block, auth) = parts(0x0102_0304_0506_0708, false);
    let expected = [&[0xd1; 48][..], &[0xfa; 16], &[0x1a; 16], &[1, 0, 0, 0, 7, 0, 0, 0], &[8, 7, 6, 5, 4, 3, 2, 1]].concat();
    assert_eq!(block, expected[..]);
    assert_eq!((&auth[..8], &auth[0x240..0x244]), (&[1, 0, 0, 0, 0, 0, 0, 0][..], &[2, 0, 0, 0][..]));
    // Numbers are 48 bytes, with the highest last, and what is behind them is zero.
    for at in [0x40, 0x88, 0x244, 0x28c] {
        assert!(auth[at..at + 48].iter().any(|&byte| byte != 0) && auth[at + 48..at + 72] == [0; 24], "{at:#x}");
    }
    assert_eq!(auth[0x680..], [0; 0x980]);
}

#[test]
fn keys_of_other_curves_and_one_key_for_both_parts_are_refused() {
    let other = EcdsaKeyPair::generate_pkcs8(&ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    assert_eq!(IdKey::from_pkcs8(other.as_ref()).err(), Some(SignError::Key));
    assert_eq!(IdKey::from_pkcs8(b"").err(), Some(SignError::Key));
    let block = IdBlock { launch_digest: [1; 48], family_id: [0; 16], image_id: [0; 16], guest_svn: 0, policy: 0x3_0000 };
    let key = key();
    assert_eq!(SignedIdBlock::sign(&block, &key, Some(&key)), Err(SignError::OneKey));
}

#[test]
fn a_signed_block_is_read_raw_and_in_base64() {
    for with_author in [false, true] {
        let (block, auth) = parts(0x1_0000_0003_0000, with_author);
        let signed = SignedIdBlock::parse(&block, &auth).unwrap();
        assert_eq!((signed.launch_digest(), signed.policy(), signed.has_author()), (&[0xd1; 48][..], 0x1_0000_0003_0000, with_author));
        // With and without line ends.
        let wrapped: Vec<String> =
            STANDARD.encode(&auth).as_bytes().chunks(76).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
        let text = SignedIdBlock::parse(STANDARD.encode(block).as_bytes(), format!("{}\n", wrapped.join("\n")).as_bytes());
        assert_eq!(text.as_ref(), Ok(&signed));
        let properties = signed.properties();
        assert!(properties.starts_with(&format!("id-block={},id-auth=AQAAA", STANDARD.encode(block))), "{properties}");
        assert!(properties.ends_with(if with_author { ",author-key-enabled=on" } else { ",author-key-enabled=off" }), "{properties}");
    }
}

#[test]
fn a_plan_says_what_is_in_a_block_and_is_not_believed_otherwise() {
    let signed = signed(0x3_0000, true);
    let json = serde_json::to_value(&signed).unwrap();
    assert_eq!(json["launch_digest"], "d1".repeat(48));
    assert_eq!((&json["guest_svn"], &json["policy"], &json["family_id"]), (&7.into(), &"0x30000".into(), &"fa".repeat(16).into()));
    assert_eq!(json["author_key_digest"].as_str().map(str::len), Some(96));
    assert_eq!(serde_json::from_value::<SignedIdBlock>(json.clone()).unwrap(), signed);
    let mut lie = json;
    lie["launch_digest"] = "00".repeat(48).into();
    assert!(serde_json::from_value::<SignedIdBlock>(lie).unwrap_err().to_string().contains("another ID block"));
}

#[test]
fn other_sizes_are_refused_by_name() {
    let (block, auth) = parts(0, false);
    for (block, auth, what, found) in [
        (&block[..95], &auth[..], "ID block", 95),
        (&[&block[..], b"\0"].concat(), &auth, "ID block", 97),
        (b"", &auth, "ID block", 0),
        (STANDARD.encode(&block[..95]).as_bytes(), &auth, "ID block", 128),
        (&block, &auth[..4095], "ID authentication information", 4095),
        (&block, &block, "ID authentication information", 96),
    ] {
        match SignedIdBlock::parse(block, auth) {
            Err(IdBlockError::Size { what: named, found: size, .. }) => assert_eq!((named, size), (what, found)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn ac_10_a_block_that_its_key_did_not_sign_is_refused() {
    let signature = |signature| {
        Err(IdBlockError::Signature {
            signature,
            key: if signature == "ID_BLOCK_SIG" { "ID_KEY" } else { "AUTHOR_KEY" },
            over: if signature == "ID_BLOCK_SIG" { "the ID block" } else { "ID_KEY" },
        })
    };
    let (good, auth) = parts(0x3_0000, true);
    // Each field of the block but the version, which is refused as such.
    for at in [0, 47, 0x30, 0x40, 0x54, 0x58, 0x5f] {
        let mut block = good;
        block[at] ^= 1;
        assert_eq!(SignedIdBlock::parse(&block, &auth), signature("ID_BLOCK_SIG"), "{at:#x}");
    }
    let bent = |at: usize| {
        let mut auth = auth.clone();
        auth[at] ^= 1;
        SignedIdBlock::parse(&good, &auth)
    };
    for at in [ID_SIGNATURE, ID_SIGNATURE + FIELD, ID_KEY + 4, ID_KEY + 4 + FIELD] {
        assert_eq!(bent(at), signature("ID_BLOCK_SIG"), "{at:#x}");
    }
    for at in [AUTHOR_SIGNATURE, AUTHOR_SIGNATURE + FIELD, AUTHOR_KEY + 4, AUTHOR_KEY + 4 + FIELD] {
        assert_eq!(bent(at), signature("ID_KEY_SIG"), "{at:#x}");
    }
    // A key of somebody else's, which signed the block too, under the author's word for the former key.
    let (same, other) = parts(0x3_0000, false);
    assert_eq!(same, good);
    let mut swapped = auth.clone();
    swapped[ID_SIGNATURE..ID_KEY + KEY_SIZE].copy_from_slice(&other[ID_SIGNATURE..ID_KEY + KEY_SIZE]);
    assert_eq!(SignedIdBlock::parse(&good, &swapped), signature("ID_KEY_SIG"));
}

#[test]
fn versions_algorithms_curves_and_reserved_bytes_are_those_that_amd_defines() {
    let (mut good, auth) = parts(0x3_0000, true);
    for (at, what) in [(0, "ID_KEY_ALGO"), (4, "AUTHOR_KEY_ALGO"), (ID_KEY, "CURVE of a key"), (AUTHOR_KEY, "CURVE of a key")] {
        let mut auth = auth.clone();
        auth[at + 1] = 1;
        let error = SignedIdBlock::parse(&good, &auth).unwrap_err();
        // A key with another curve is not the one that the author signed, but that is looked at first.
        assert!(matches!(error, IdBlockError::Field { what: named, .. } if named == what), "{at:#x}: {error}");
    }
    let reserved = [
        0x8,
        0x3f,
        ID_SIGNATURE + NUMBER,
        ID_SIGNATURE + 2 * FIELD,
        ID_KEY - 1,
        ID_KEY + 4 + NUMBER,
        ID_KEY + 4 + 2 * FIELD,
        ID_KEY + KEY_SIZE,
    ];
    for at in reserved.into_iter().chain([AUTHOR_SIGNATURE + 2 * FIELD, AUTHOR_KEY + KEY_SIZE - 1, AUTHOR_KEY + KEY_SIZE, AUTH_SIZE - 1]) {
        let mut auth = auth.clone();
        auth[at] = 1;
        let error = SignedIdBlock::parse(&good, &auth).unwrap_err();
        assert!(matches!(error, IdBlockError::Reserved(_)), "{at:#x}: {error}");
    }
    // An author's key that is there and not in use.
    let mut unused = auth.clone();
    unused[4] = 0;
    assert_eq!(SignedIdBlock::parse(&good, &unused), Err(IdBlockError::Reserved(AUTHOR_SIGNATURE)));
    good[0x50] = 2;
    assert!(matches!(SignedIdBlock::parse(&good, &auth), Err(IdBlockError::Field { what: "VERSION of the ID block", found: 2, .. })));
}
