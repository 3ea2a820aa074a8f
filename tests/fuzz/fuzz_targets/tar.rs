//! A layer's archive, compressed or not by its first byte: no panic, no entry beyond the limits, and an end.
#![no_main]

use std::io::{BufReader, Read};

use kata_cc_image_pull::Limits;
use kata_cc_image_pull::compress::{Compression, decoder};
use kata_cc_image_pull::tar::Archive;
use libfuzzer_sys::fuzz_target;

/// More than this out of one input only costs time.
const UNPACKED: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let compression = match first % 3 {
        0 => Compression::None,
        1 => Compression::Gzip,
        _ => Compression::Zstd,
    };
    let limits = Limits { extension_bytes: 1 << 14, ..Limits::default() };
    let mut archive = Archive::new(BufReader::new(decoder(compression, rest).take(UNPACKED)), &limits);
    while let Ok(Some(entry)) = archive.next_entry() {
        assert!(entry.path.as_bytes().len() <= limits.path_bytes);
        while let Ok(piece) = archive.body() {
            let length = piece.len();
            if length == 0 {
                break;
            }
            archive.consume(length);
        }
    }
});
