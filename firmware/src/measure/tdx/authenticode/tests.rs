//! Digests of made-up images, each refusal, and what signers of real images computed.

use sha2::{Digest as _, Sha256};

use super::*;
use crate::measure::tdx::register::sha384;

const OPTIONAL: usize = 0x98;
const CERTIFICATES_AT: usize = OPTIONAL + 112 + 32;
const TABLE: usize = OPTIONAL + 112 + 16 * 8;
const HEADERS: usize = 0x200;

fn put(image: &mut [u8], at: usize, value: u32) {
    image[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// A PE32+ image with headers of 0x200 bytes, sections at 0x200 and 0x300 (the later one first in the table), one without bytes, and this
/// behind them; where `signatures` is not 0, that many bytes at the end are signatures.
fn image(behind: usize, signatures: usize) -> Vec<u8> {
    let mut image: Vec<u8> = (0..0x400 + behind + signatures).map(|n| (n % 251) as u8).collect();
    image[..2].copy_from_slice(b"MZ");
    put(&mut image, PE_AT, 0x80);
    image[0x80..0x84].copy_from_slice(b"PE\0\0");
    image[0x86..0x88].copy_from_slice(&3_u16.to_le_bytes());
    image[0x94..0x96].copy_from_slice(&(112 + 16 * 8_u16).to_le_bytes());
    image[OPTIONAL..OPTIONAL + 2].copy_from_slice(&[0x0b, 0x02]);
    put(&mut image, OPTIONAL + HEADERS_SIZE_AT, HEADERS as u32);
    put(&mut image, OPTIONAL + 108, 16);
    for (n, (size, from)) in [(0x100, 0x300), (0, 0x9999), (0x100, 0x200)].into_iter().enumerate() {
        put(&mut image, TABLE + n * SECTION_LEN + 16, size);
        put(&mut image, TABLE + n * SECTION_LEN + 20, from);
    }
    put(&mut image, CERTIFICATES_AT, if signatures == 0 { 0 } else { (0x400 + behind) as u32 });
    put(&mut image, CERTIFICATES_AT + 4, signatures as u32);
    image
}

/// Of an image without gaps it is all of the file but three places.
fn naive(image: &[u8], signatures: usize) -> Digest {
    let checksum = OPTIONAL + CHECKSUM_AT;
    let parts = [&image[..checksum], &image[checksum + 4..CERTIFICATES_AT], &image[CERTIFICATES_AT + 8..image.len() - signatures]];
    sha384(&parts)
}

#[test]
fn covers_all_but_checksum_and_signatures() {
    let plain = image(16, 0);
    let unsigned = authenticode(&plain).unwrap();
    assert_eq!(unsigned, naive(&plain, 0));
    let mut signed = image(16, 64);
    assert_eq!(authenticode(&signed).unwrap(), naive(&signed, 64));
    assert_eq!(authenticode(&signed).unwrap(), unsigned, "signing changes nothing");
    for at in [OPTIONAL + CHECKSUM_AT, OPTIONAL + CHECKSUM_AT + 3, 0x410, 0x44f] {
        signed[at] ^= 1;
        assert_eq!(authenticode(&signed).unwrap(), unsigned, "{at:#x}");
    }
    for at in [2, OPTIONAL + CHECKSUM_AT - 1, CERTIFICATES_AT - 1, CERTIFICATES_AT + 8, HEADERS - 1, HEADERS, 0x3ff, 0x400, 0x40f] {
        let mut changed = plain.clone();
        changed[at] ^= 1;
        assert_ne!(authenticode(&changed), Ok(unsigned), "{at:#x}");
    }
}

#[track_caller]
fn refuses(image: &[u8], part: &str) {
    assert_eq!(authenticode(image).unwrap_err().part, part);
}

#[test]
fn refuses_what_is_no_pe_image() {
    refuses(b"", "DOS header");
    refuses(&[0; 0x400], "DOS header");
    let with = |at: usize, value: u32| {
        let mut bad = image(0, 0);
        put(&mut bad, at, value);
        bad
    };
    refuses(&image(4, 0), "length");
    refuses(&with(PE_AT, 0x90), "PE header");
    refuses(&with(PE_AT, u32::MAX), "PE header");
    refuses(&with(OPTIONAL, 0x107), "optional header");
    refuses(&with(OPTIONAL + 108, 4), "data directories");
    let mut short = image(0, 0);
    short[0x94..0x96].copy_from_slice(&(112 + 4 * 8 + 7_u16).to_le_bytes());
    refuses(&short, "data directories");
}

#[test]
fn refuses_sections_that_are_not_one_behind_the_other() {
    let with = |at: usize, value: u32| {
        let mut bad = image(0, 0);
        put(&mut bad, at, value);
        bad
    };
    refuses(&with(TABLE + 20, 0x308), "sections");
    refuses(&with(TABLE + 20, 0x2f8), "sections");
    refuses(&with(TABLE + 16, 0x108), "section");
    refuses(&with(TABLE + 16, u32::MAX), "section");
    refuses(&with(OPTIONAL + HEADERS_SIZE_AT, 0x1f8), "sections");
    refuses(&with(OPTIONAL + HEADERS_SIZE_AT, 0x408), "sections");
    refuses(&with(OPTIONAL + HEADERS_SIZE_AT, (TABLE + 3 * SECTION_LEN - 1) as u32), "sections");
    for count in [0_u16, 97, u16::MAX] {
        let mut bad = image(0, 0);
        bad[0x86..0x88].copy_from_slice(&count.to_le_bytes());
        refuses(&bad, "sections");
    }
}

#[test]
fn refuses_signatures_that_are_not_at_the_end() {
    for (at, size) in [(0x408, 64), (0x400, 63), (0x3f8, 72), (0, 64), (u32::MAX, 64), (0x400, u32::MAX)] {
        let mut bad = image(0, 64);
        put(&mut bad, CERTIFICATES_AT, at);
        put(&mut bad, CERTIFICATES_AT + 4, size);
        refuses(&bad, "signatures");
    }
}

#[test]
fn every_cut_and_every_changed_byte_of_the_headers_is_survived() {
    let good = image(8, 64);
    for length in 0..good.len() {
        let _ = authenticode(&good[..length]);
    }
    for at in 0..HEADERS {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            let _ = authenticode(&bad);
        }
    }
}

/// A signature holds the digest that its maker's tools computed, in SHA-256. Signed images are those of Debian's shim-signed and of an
/// installed kernel; `KATA_CC_SIGNED_IMAGES` names more, separated by colons.
#[test]
fn agrees_with_the_signers_of_installed_images() {
    let more = std::env::var("KATA_CC_SIGNED_IMAGES").unwrap_or_default();
    let mut paths: Vec<std::path::PathBuf> = more.split(':').filter(|path| !path.is_empty()).map(Into::into).collect();
    paths.push("/usr/lib/shim/shimx64.efi.signed".into());
    let boot = std::fs::read_dir("/boot").into_iter().flatten().flatten().map(|entry| entry.path());
    paths.extend(boot.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))));
    let mut checked = 0;
    for path in paths {
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let found: [u8; 32] = digest::<Sha256>(&bytes).unwrap().into();
        let pe = Image(&bytes).size("", PE_AT).unwrap();
        let at = Image(&bytes).size("", pe + 24 + 112 + 32).unwrap();
        if at == 0 {
            continue; // not signed
        }
        assert!(bytes[at..].windows(32).any(|window| window == found), "{}", path.display());
        assert_ne!(found, <[u8; 32]>::from(Sha256::digest(&bytes)));
        checked += 1;
    }
    if checked == 0 {
        eprintln!("SKIPPED: agrees_with_the_signers_of_installed_images: no signed image (shim-signed or a kernel) is installed");
    }
}
