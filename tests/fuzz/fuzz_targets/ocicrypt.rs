//! The annotations of an encrypted layer, one `name=value` a line: no panic, and no key comes out under a key that wrapped none.
#![no_main]

use std::collections::BTreeMap;

use kata_cc_image_pull::Secret;
use kata_cc_image_pull::ocicrypt::{KeyPacket, Sealed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = KeyPacket::parse(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let annotations: BTreeMap<String, String> =
        text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    if let Ok(layer) = Sealed::from_annotations(&annotations) {
        for packet in layer.packets() {
            assert!(layer.unwrap(packet, &Secret::new(vec![7; 32])).is_err());
        }
    }
});
