//! The table of ready firmware before the files themselves: that digests are theirs, and that their metadata says what the table says.
//! `cargo xtask oracle` holds their launch digests against another implementation's.
//!
//! `KATA_CC_FIRMWARE_TREES` names directories with unpacked packages, joined by `:` (`cargo xtask test` fetches them).

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::path::{Path, PathBuf};

use kata_cc_firmware::measure::snp::{FirmwareError, MeasureError, SnpFirmware};
use kata_cc_firmware::measure::tdx::TdxFirmware;
use kata_cc_firmware::ready::{READY, ReadyFirmware};
use sha2::{Digest as _, Sha256};

/// What xtask writes into a complete directory: package, version, and more.
const STAMP: &str = "kata-cc-package.txt";

/// A file of the table, and its row.
struct Found {
    image: Vec<u8>,
    build: &'static ReadyFirmware,
}

fn found_in(root: &Path) -> Found {
    let stamp = std::fs::read_to_string(root.join(STAMP)).unwrap();
    let is_from = |build: &&ReadyFirmware| stamp.starts_with(&format!("{} {} ", build.package, build.version));
    let build = READY.iter().find(is_from).unwrap_or_else(|| panic!("no row for {stamp}"));
    Found { image: std::fs::read(root.join(build.path)).unwrap(), build }
}

fn identify(image: &[u8]) -> Option<&'static ReadyFirmware> {
    ReadyFirmware::by_sha256(&Sha256::digest(image).into())
}

fn all() -> Vec<Found> {
    let trees = std::env::var_os("KATA_CC_FIRMWARE_TREES").expect("KATA_CC_FIRMWARE_TREES names none; run this by `cargo xtask test`");
    std::env::split_paths(&trees).map(|root: PathBuf| found_in(&root)).collect()
}

#[test]
#[ignore = "needs firmware of other Debian releases; run by `cargo xtask test`"]
fn each_file_is_identified_until_a_byte_differs() {
    for Found { mut image, build } in all() {
        assert_eq!(identify(&image), Some(build));
        image[0] ^= 1;
        assert_eq!(identify(&image), None, "{build}");
    }
}

#[test]
#[ignore = "needs firmware of other Debian releases; run by `cargo xtask test`"]
fn metadata_says_what_the_table_says() {
    for Found { image, build } in all() {
        let snp = SnpFirmware::parse(&image);
        assert_eq!(snp.as_ref().is_ok_and(SnpFirmware::checks_kernel), build.snp, "{build}: {snp:?}");
        let tdx = TdxFirmware::parse(&image);
        assert_eq!(tdx.is_ok(), build.tdx, "{build}: {tdx:?}");
        // Why not, where it is not.
        match (build.package, snp) {
            ("ovmf-amdsev", Ok(_)) => {}
            ("ovmf-inteltdx", Err(FirmwareError::SectionPlace { size: 0, .. })) => {}
            ("ovmf", Ok(firmware)) => {
                let why = firmware.hash_table_offset();
                assert!(matches!(why, Err(MeasureError::NoKernelHashesSection)), "{build}: {why:?}");
            }
            (_, other) => panic!("{build}: {other:?}"),
        }
    }
}
