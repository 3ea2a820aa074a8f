//! A firmware for tests that measure.

use kata_cc_firmware::footer::{Footer, SEV_ES_RESET, SEV_HASH_TABLE, SEV_METADATA};

/// The smallest firmware that SNP can launch with kernel hashes.
pub(crate) fn smallest() -> Vec<u8> {
    let mut image = vec![0x90; 8192];
    let metadata: Vec<u32> = vec![16 + 12, 1, 1, 0x1000, 0x1000, 0x10];
    image[..4].copy_from_slice(b"ASEV");
    for (i, word) in metadata.iter().enumerate() {
        image[4 + 4 * i..8 + 4 * i].copy_from_slice(&word.to_le_bytes());
    }
    let table = Footer::build(&[
        (SEV_HASH_TABLE, &[0x1000_u32.to_le_bytes(), 0x400_u32.to_le_bytes()].concat()),
        (SEV_METADATA, &8192_u32.to_le_bytes()),
        (SEV_ES_RESET, &0x10_u32.to_le_bytes()),
    ]);
    let place = Footer::place(image.len(), &table).unwrap();
    image[place].copy_from_slice(&table);
    image
}
