//! What an initrd says it is: no panic, and a label that was read is found again when it is written.
#![no_main]

use kata_cc_firmware::initrd::{Archive, LABEL_PATH, label};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|initrd: &[u8]| {
    let Ok(Some(found)) = label(initrd) else { return };
    let mut archive = Archive::with_base_tree();
    archive.add(LABEL_PATH, found.to_node()).expect("the base tree has the folder");
    assert_eq!(label(archive.to_bytes().as_slice()).expect("ours is well formed"), Some(found));
});
