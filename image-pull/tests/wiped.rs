//! That no layer key is left in memory that was given back: an allocator that looks at every block before it is freed.

#![expect(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use kata_cc_image_pull::Secret;
use kata_cc_image_pull::ocicrypt::{PROVIDER, PROVIDER_PREFIX, PUBLIC_OPTIONS, Sealed};
use ring::aead;
use serde_json::json;

const KEK: [u8; 32] = [0x4b; 32];
/// The layer's key: bytes that nothing else has in this order.
const KEY: [u8; 32] = [
    0xd3, 0x91, 0xfe, 0x8a, 0xc7, 0xb2, 0x9d, 0xe4, 0x86, 0xf1, 0xaa, 0xcd, 0x97, 0xe8, 0xb5, 0x83, 0xdc, 0xa9, 0xf6, 0x9b, 0xc2, 0x8f,
    0xeb, 0xb4, 0xd8, 0xa1, 0xfd, 0x94, 0xc6, 0x8b, 0xe7, 0xb9,
];

static LOOKING: AtomicBool = AtomicBool::new(false);
static FOUND: AtomicUsize = AtomicUsize::new(0);

/// Whether the first bytes of the key are there, side by side or at equal distances as in a list of larger values.
fn shows_the_key(block: &[u8]) -> bool {
    const FIRST: usize = 8;
    (1..=64).any(|distance| {
        let span = distance * (FIRST - 1);
        block.len() > span && (0..block.len() - span).any(|at| (0..FIRST).all(|n| block[at + n * distance] == KEY[n]))
    })
}

struct Looking;

// SAFETY: everything is left to the system's allocator, between whose calls nothing is changed.
unsafe impl GlobalAlloc for Looking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Zeroed, so that looking at what was never written is looking at something.
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if LOOKING.load(Ordering::Relaxed) {
            // SAFETY: the block has this size by the caller's promise, is still the caller's, and was filled when it was made.
            if shows_the_key(unsafe { std::slice::from_raw_parts(pointer, layout.size()) }) {
                FOUND.fetch_add(1, Ordering::Relaxed);
            }
        }
        // SAFETY: the caller's promise about pointer and layout is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Looking = Looking;

fn annotations(symkey: &serde_json::Value) -> BTreeMap<String, String> {
    let nonce = [7u8; 16];
    let private = json!({"symkey": symkey, "digest": format!("sha256:{}", "00".repeat(32)), "cipheroptions": {"nonce": nonce}});
    let mut wrapped = private.to_string().into_bytes();
    let key = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, &KEK).expect("32 bytes"));
    key.seal_in_place_append_tag(aead::Nonce::assume_unique_for_key([1; 12]), aead::Aad::empty(), &mut wrapped).expect("a short text");
    let packet = json!({"kid": "kbs:///default/key/1", "wrapped_data": wrapped, "iv": vec![1; 12], "wrap_type": "A256GCM"});
    let public = json!({"cipher": "AES_256_CTR_HMAC_SHA256", "hmac": vec![0; 32], "cipheroptions": {}});
    BTreeMap::from([
        (format!("{PROVIDER_PREFIX}{PROVIDER}"), BASE64.encode(packet.to_string())),
        (PUBLIC_OPTIONS.to_owned(), BASE64.encode(public.to_string())),
    ])
}

/// How often the key was seen in what was freed while `act` ran.
fn seen(act: impl FnOnce()) -> usize {
    FOUND.store(0, Ordering::Relaxed);
    LOOKING.store(true, Ordering::Relaxed);
    act();
    LOOKING.store(false, Ordering::Relaxed);
    FOUND.load(Ordering::Relaxed)
}

// One test: the allocator is everybody's.
#[test]
fn no_copy_of_a_layer_key_is_left_behind_however_it_is_written() {
    assert_eq!(seen(|| drop(std::hint::black_box(KEY.to_vec()))), 1, "the allocator sees a key that is not wiped");
    let kek = Secret::new(KEK.to_vec());
    for symkey in [json!(KEY), json!(BASE64.encode(KEY))] {
        let annotations = annotations(&symkey);
        let sealed = Sealed::from_annotations(&annotations).unwrap();
        let left = seen(|| drop(sealed.unwrap(&sealed.packets()[0], &kek).unwrap()));
        assert_eq!(left, 0, "copies of a key written as {symkey}");
    }
    // Longer than the first buffer: refused, but read before.
    let long: Vec<u8> = KEY.iter().copied().cycle().take(1000).collect();
    let annotations = annotations(&json!(long));
    let sealed = Sealed::from_annotations(&annotations).unwrap();
    assert_eq!(seen(|| assert!(sealed.unwrap(&sealed.packets()[0], &kek).is_err())), 0);
}
