//! MRTD of real firmware, against another implementation and against recorded digests.
//!
//! The vectors are not part of the repository. `KATA_CC_VECTORS` names their folder; without it, `shared/vectors` beside
//! the checkout is tried. Debian's firmware is used where its package `ovmf` is installed.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::path::{Path, PathBuf};

use kata_cc_firmware::footer::{Footer, TDX_METADATA};
use kata_cc_firmware::measure::tdx::{PageOrder, TdxFirmware};
use sha2::{Digest, Sha256, Sha384};

/// The file, or `None` after saying so.
fn read(test: &str, path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path);
    if bytes.is_err() {
        eprintln!("SKIPPED: {test}: no {}", path.display());
    }
    bytes.ok()
}

fn vectors() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    std::env::var_os("KATA_CC_VECTORS").map_or_else(beside, PathBuf::from)
}

/// MRTD written down from the specification, without the checks: finds the descriptor by its signature and length, makes a list of all
/// the operations and hashes it at the end. Shares nothing with the other one but SHA-384.
fn naive_mrtd(image: &[u8], adds_all_first: bool) -> String {
    let number = |at: usize, length: usize| image[at..at + length].iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
    let at = (0..image.len() - 16)
        .find(|at| image[*at..].starts_with(b"TDVF") && number(at + 4, 4) == 16 + 32 * number(at + 12, 4))
        .expect("a TDVF descriptor");
    let mut hashed: Vec<u8> = Vec::new();
    for section in 0..number(at + 12, 4) as usize {
        let field = |offset, length| number(at + 16 + 32 * section + offset, length);
        let (offset, gpa, size, extends) = (field(0, 4) as usize, field(8, 8), field(16, 8), field(28, 4) & 1 == 1);
        let mut operations: Vec<(&str, u64)> = Vec::new();
        for page in 0..size / 4096 {
            operations.push(("MEM.PAGE.ADD", 4096 * page));
            operations.extend((0..16).filter(|_| extends).map(|chunk| ("MR.EXTEND", 4096 * page + 256 * chunk)));
        }
        if adds_all_first {
            // Stable: the order among those of one name stays.
            operations.sort_by_key(|(name, _)| *name == "MR.EXTEND");
        }
        for (name, from) in operations {
            let start = hashed.len();
            hashed.extend(name.bytes());
            hashed.resize(start + 16, 0);
            hashed.extend((gpa + from).to_le_bytes());
            hashed.resize(start + 128, 0);
            if name == "MR.EXTEND" {
                hashed.extend(&image[offset + from as usize..][..256]);
            }
        }
    }
    hex::encode(Sha384::digest(&hashed))
}

#[track_caller]
fn check(image: &[u8], sha256: &str, qemu8: &str, qemu9: &str) {
    assert_eq!(hex::encode(Sha256::digest(image)), sha256, "another build of it");
    let firmware = TdxFirmware::parse(image).unwrap();
    let mrtd = |order| firmware.mrtd(order).to_string();
    assert_eq!((mrtd(PageOrder::Qemu8).as_str(), mrtd(PageOrder::Qemu9).as_str()), (qemu8, qemu9));
    assert_eq!((naive_mrtd(image, true).as_str(), naive_mrtd(image, false).as_str()), (qemu8, qemu9));
}

/// Recorded from a third one, forty lines of Python with hashlib and struct.
#[test]
fn mrtd_of_a_tdvf_is_the_recorded_one_in_both_page_orders() {
    let path = vectors().join("virtee/tdx/tests/data/OVMF.inteltdx.fd");
    let Some(image) = read("mrtd_of_a_tdvf_is_the_recorded_one_in_both_page_orders", &path) else { return };
    check(
        &image,
        "11fe83527f079a4d8e25bca4fe66ea0bfd0cc4bda7ed462bf1d9f6fa6d181244",
        "307c9a6831bdd6e6f56d9305f9598d238d42e864a9144f11c0a46ee42e62ed81eb9845511a80fa77b200743d85d977e3",
        "88c63708f207ab01a46b4d9424ea92ab11f8826be30d208afbb58f174f2a19cdcfafb2b12a6a2c98be0740b808894d55",
    );
}

/// Debian's OVMF.fd has TDX metadata; its split images have the code without the variables, or none.
#[test]
fn mrtd_of_debians_firmware_is_the_recorded_one() {
    let Some(image) = read("mrtd_of_debians_firmware_is_the_recorded_one", Path::new("/usr/share/ovmf/OVMF.fd")) else { return };
    if hex::encode(Sha256::digest(&image)) == "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773" {
        check(
            &image,
            "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773",
            "acccbcc870a381adab0d3919d90a7f268ac3b0364771f202ed4bb4e892d045b33db3b32e6924cba830a724eed443f7e1",
            "4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47",
        );
    } else {
        eprintln!("SKIPPED: the recorded digests: /usr/share/ovmf/OVMF.fd is not that of ovmf 2022.11-6+deb12u2");
        let firmware = TdxFirmware::parse(&image).unwrap();
        assert_eq!(firmware.mrtd(PageOrder::Qemu8).to_string(), naive_mrtd(&image, true));
        assert_eq!(firmware.mrtd(PageOrder::Qemu9).to_string(), naive_mrtd(&image, false));
    }
    if let Some(code) = read("code without variables", Path::new("/usr/share/OVMF/OVMF_CODE.fd")) {
        let refused = TdxFirmware::parse(&code).unwrap_err().to_string();
        assert!(refused.contains("must be in one image") || refused.contains("no TDX metadata"), "{refused}");
    }
}

/// An image of three pages: code, measured variables where asked for, temporary memory and the TD HOB.
fn small(fill: u8, variables_extended: u32, memory: u64) -> Vec<u8> {
    let mut image = vec![fill; 3 * 4096];
    let sections: [(u32, u32, u64, u64, u32, u32); 4] = [
        (4096, 8192, 0xffff_e000, 8192, 0, 1),
        (0, 4096, 0xffff_d000, 4096, 1, variables_extended),
        (0, 0, memory, 8192, 3, 0),
        (0, 0, 0x80_9000, 8192, 2, 0),
    ];
    let mut metadata = [b"TDVF".as_slice(), &[144, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0]].concat();
    for (offset, length, gpa, size, kind, attributes) in sections {
        metadata.extend([offset.to_le_bytes(), length.to_le_bytes()].concat());
        metadata.extend([gpa.to_le_bytes(), size.to_le_bytes()].concat());
        metadata.extend([kind.to_le_bytes(), attributes.to_le_bytes()].concat());
    }
    image[4096..4096 + metadata.len()].copy_from_slice(&metadata);
    let table = Footer::build(&[(TDX_METADATA, &8192_u32.to_le_bytes())]);
    let place = Footer::place(image.len(), &table).unwrap();
    image[place].copy_from_slice(&table);
    image
}

#[test]
fn what_is_measured_changes_mrtd_and_what_is_not_does_not() {
    let of = |image: &[u8], order| {
        let mrtd = TdxFirmware::parse(image).unwrap().mrtd(order).to_string();
        assert_eq!(mrtd, naive_mrtd(image, order == PageOrder::Qemu8));
        mrtd
    };
    for order in PageOrder::ALL {
        let base = of(&small(0x90, 0, 0x80_0000), order);
        assert_ne!(base, of(&small(0x91, 0, 0x80_0000), order), "code");
        assert_ne!(base, of(&small(0x90, 1, 0x80_0000), order), "variables become measured");
        assert_ne!(base, of(&small(0x90, 0, 0x80_1000), order), "where memory is");
        let mut variables = small(0x90, 0, 0x80_0000);
        variables[10] ^= 1;
        assert_eq!(base, of(&variables, order), "variables are for RTMR0");
        let mut code = small(0x90, 0, 0x80_0000);
        code[3 * 4096 - 1] ^= 1;
        assert_ne!(base, of(&code, order), "the last byte");
    }
    let image = small(0x90, 0, 0x80_0000);
    assert_ne!(of(&image, PageOrder::Qemu8), of(&image, PageOrder::Qemu9));
}
