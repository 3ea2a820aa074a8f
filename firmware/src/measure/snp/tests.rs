//! What a host would change of a launch, and what becomes of the prediction. Attack cases by their numbers.

use super::firmware::tests::{image_with, image_with_entry};
use super::*;

/// Kind of the section with the kernel hashes.
const KERNEL_HASHES: u32 = 0x10;

fn firmware(sections: &[(u32, u32, u32)], hash_table: Option<u32>) -> SnpFirmware {
    SnpFirmware::parse(&image_with(sections, hash_table)).unwrap()
}

fn direct_boot(hashes: &KernelHashes) -> SnpVcpus<'_> {
    let vcpu_type = "EPYC-v4".parse().unwrap();
    SnpVcpus { kernel: Some(hashes), vcpus: 1, vcpu_type, guest_features: 1, vmm: Vmm::Qemu }
}

#[test]
fn ac_01_ac_06_each_byte_of_kernel_initrd_and_command_line_is_in_the_digest() {
    let firmware = firmware(&[(0x3000, 0x1000, KERNEL_HASHES)], Some(0x3c00));
    let digest = |kernel: &[u8], initrd: &[u8], append: &str| {
        firmware.digest(&direct_boot(&KernelHashes::of(kernel, Some(initrd), append))).unwrap()
    };
    let mut seen = vec![digest(b"kernel", b"initrd", "quiet")];
    for at in 0..6 {
        let flipped = |bytes: &[u8; 6]| {
            let mut bytes = *bytes;
            bytes[at] ^= 1;
            bytes
        };
        seen.push(digest(&flipped(b"kernel"), b"initrd", "quiet"));
        seen.push(digest(b"kernel", &flipped(b"initrd"), "quiet"));
    }
    // More of it, less, at the end, and what a terminating NUL could hide.
    for append in ["", "quie", "quiet ", "quiet agent.debug_console", "quiet\0 init=/bin/sh", "Quiet"] {
        seen.push(digest(b"kernel", b"initrd", append));
    }
    let all = seen.len();
    seen.sort_unstable_by_key(|digest| *digest.as_bytes());
    seen.dedup();
    assert_eq!(seen.len(), all);
}

#[test]
fn ac_02_the_table_names_kernel_initrd_and_command_line_also_where_they_are_empty() {
    // OVMF starts a blob whose entry is missing unchecked, so all three must be there, whatever there is to hash.
    for hashes in [KernelHashes::of(b"", None, ""), KernelHashes::of(b"k", Some(b"i"), "a")] {
        let page = hashes.page(0).unwrap();
        for guid in hashes::ENTRIES {
            let bytes = guid.to_bytes();
            assert_eq!(page.windows(bytes.len()).filter(|window| *window == bytes).count(), 1);
        }
    }
}

#[test]
fn ac_03_a_firmware_that_would_check_no_kernel_is_not_measured_with_one() {
    let hashes = KernelHashes::of(b"k", None, "");
    let measured = |sections: &[(u32, u32, u32)], hash_table| {
        let firmware = firmware(sections, hash_table);
        (firmware.checks_kernel(), firmware.digest(&direct_boot(&hashes)))
    };
    let (checks, whole) = measured(&[(0x3000, 0x1000, KERNEL_HASHES)], Some(0x3c00));
    assert!(checks && whole.is_ok());
    let (checks, no_section) = measured(&[(0x3000, 0x1000, 1)], Some(0x3c00));
    assert!(!checks && matches!(no_section, Err(MeasureError::NoKernelHashesSection)), "{no_section:?}");
    let (checks, no_pointer) = measured(&[(0x3000, 0x1000, KERNEL_HASHES)], None);
    assert!(!checks && matches!(no_pointer, Err(MeasureError::HashTable(HashTableError::Absent))), "{no_pointer:?}");
}

#[test]
fn ac_04_a_table_that_does_not_fit_its_page_is_not_measured() {
    let hashes = KernelHashes::of(b"k", None, "");
    // Before the page, behind it, and over its end.
    for table in [0x2ff0, 0x4000, 0x3ff0, u32::MAX] {
        let refused = firmware(&[(0x3000, 0x1000, KERNEL_HASHES)], Some(table)).digest(&direct_boot(&hashes));
        assert!(matches!(refused, Err(MeasureError::HashTableOutside { .. })), "{table:#x}: {refused:?}");
    }
}

#[test]
fn ac_04_an_area_that_qemu_could_not_fill_is_not_measured_with_a_kernel() {
    let hashes = KernelHashes::of(b"k", None, "");
    let entry = |gpa: u32, size: u32| [gpa, size].map(u32::to_le_bytes).concat();
    let measured = |entry: &[u8]| {
        let image = image_with_entry(&[(0x3000, 0x1000, KERNEL_HASHES)], Some(entry));
        let firmware = SnpFirmware::parse(&image).unwrap();
        // Without a kernel nothing is written there, and the image can be launched.
        assert!(firmware.digest(&SnpVcpus { kernel: None, ..direct_boot(&hashes) }).is_ok());
        let digest = firmware.digest(&direct_boot(&hashes));
        assert_eq!(firmware.checks_kernel(), digest.is_ok());
        digest
    };
    for size in [176, 0x400] {
        assert!(measured(&entry(0x3c00, size)).is_ok(), "{size}");
    }
    let refuses = |bytes: &[u8], expected: HashTableError| match measured(bytes) {
        Err(MeasureError::HashTable(found)) => assert_eq!(found, expected),
        other => panic!("{bytes:?}: {other:?}"),
    };
    for size in [0, 168, 175] {
        refuses(&entry(0x3c00, size), HashTableError::Small { size });
    }
    refuses(&entry(0, 0x400), HashTableError::NoAddress);
    for found in [0, 4, 7, 9, 12] {
        let bytes: Vec<u8> = entry(0x3c00, 0x400).into_iter().chain([0; 4]).take(found).collect();
        refuses(&bytes, HashTableError::Entry { found });
    }
}

#[test]
fn ac_04_every_page_of_kernel_hashes_must_hold_the_table() {
    let hashes = KernelHashes::of(b"k", None, "");
    let two = firmware(&[(0x3000, 0x1000, KERNEL_HASHES), (0x5000, 0x1000, KERNEL_HASHES)], Some(0x3c00));
    let refused = two.digest(&direct_boot(&hashes));
    assert!(matches!(refused, Err(MeasureError::HashTableOutside { section: 0x5000, .. })), "{refused:?}");
    let large = firmware(&[(0x3000, 0x2000, KERNEL_HASHES)], Some(0x3c00));
    let refused = large.digest(&direct_boot(&hashes));
    assert!(matches!(refused, Err(MeasureError::HashTableOutside { size: 0x2000, .. })), "{refused:?}");
}

#[test]
fn ac_07_count_model_and_features_of_vcpus_are_in_the_digest() {
    let firmware = firmware(&[(0x3000, 0x1000, KERNEL_HASHES)], Some(0x3c00));
    let hashes = KernelHashes::of(b"k", None, "");
    let launch = direct_boot(&hashes);
    let digest = |launch: SnpVcpus<'_>| firmware.digest(&launch).unwrap();
    let first = digest(launch.clone());
    assert_ne!(digest(SnpVcpus { vcpus: 2, ..launch.clone() }), first);
    assert_ne!(digest(SnpVcpus { vcpu_type: "EPYC-Genoa".parse().unwrap(), ..launch.clone() }), first);
    assert_ne!(digest(SnpVcpus { guest_features: 0x21, ..launch.clone() }), first);
    assert!(firmware.digest(&SnpVcpus { vcpus: 0, ..launch }).is_err());
}
