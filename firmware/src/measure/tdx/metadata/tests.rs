//! Descriptors that are refused, each for one thing, and the one image that is not.

use super::*;
use crate::footer::PAGE_LEN;
use crate::measure::sections::MAX_FIRMWARE_BYTES;
use crate::measure::sections::tests::put_footer;

/// Offset and length in the image, address, size, kind, attributes.
type Descriptor = (u32, u32, u64, u64, u32, u32);

const BOOT: Descriptor = (0x1000, 0x1000, 0xffff_f000, 0x1000, 0, 1);
const CONFIGURATION: Descriptor = (0, 0x1000, 0xffff_e000, 0x1000, 1, 0);
const HOB: Descriptor = (0, 0, 0x3000, 0x2000, 2, 0);
const MEMORY: Descriptor = (0, 0, 0x1000, 0x2000, 3, 0);

/// An image of two pages with these sections, metadata at its start.
fn image(sections: &[Descriptor]) -> Vec<u8> {
    let descriptor = |(offset, length, gpa, size, kind, attributes): &Descriptor| {
        let wide = [*gpa, *size].map(u64::to_le_bytes).concat();
        [[*offset, *length].map(u32::to_le_bytes).concat(), wide, [*kind, *attributes].map(u32::to_le_bytes).concat()].concat()
    };
    let table = TABLE.build(&sections.iter().map(descriptor).collect::<Vec<_>>());
    crate::measure::sections::tests::image(&table, TDX_METADATA, &[])
}

#[track_caller]
fn refuses(image: &[u8], expected: impl Into<TdxFirmwareError>) {
    assert_eq!(TdxFirmware::parse(image).unwrap_err(), expected.into());
}

#[test]
fn reads_sections_in_table_order() {
    let image = image(&[MEMORY, BOOT, HOB, CONFIGURATION]);
    let firmware = TdxFirmware::parse(&image).unwrap();
    let kinds: Vec<_> = firmware.sections().iter().map(Section::kind).collect();
    assert_eq!(kinds, [SectionKind::TemporaryMemory, SectionKind::BootVolume, SectionKind::TdHob, SectionKind::ConfigurationVolume]);
    assert_eq!(kinds.iter().map(|kind| kind.to_wire()).collect::<Vec<_>>(), [3, 0, 2, 1]);
    assert_eq!(firmware.sections()[1].measured(), Some(&image[0x1000..]));
    assert_eq!(firmware.sections()[3].measured(), None, "there, but not extended");
    assert_eq!(firmware.configuration(), Some(&image[..0x1000]));
    assert_eq!((firmware.td_hob().gpa(), firmware.td_hob().size(), firmware.td_hob().content()), (0x3000, 0x2000, None));
}

#[test]
fn an_image_needs_no_configuration_volume() {
    let image = image(&[BOOT, HOB]);
    assert_eq!(TdxFirmware::parse(&image).unwrap().configuration(), None);
}

#[test]
fn refuses_images_that_are_not_whole_pages() {
    for found in [0, 1, 4095, 4097, MAX_FIRMWARE_BYTES + PAGE_LEN] {
        refuses(&vec![0; found], TableError::ImageSize { found });
    }
}

#[test]
fn refuses_an_image_that_is_not_for_tdx() {
    refuses(&vec![0; PAGE_LEN], TdxFirmwareError::Footer(FooterError::Absent));
    let mut other = vec![0; PAGE_LEN];
    put_footer(&mut other, &[(crate::footer::SEV_METADATA, &4096_u32.to_le_bytes())]);
    refuses(&other, TdxFirmwareError::NoMetadata);
    put_footer(&mut other, &[(TDX_METADATA, &[0, 16, 0])]);
    refuses(&other, TdxFirmwareError::NoMetadata);
}

#[test]
fn refuses_metadata_outside_the_image() {
    for from_end in [8193_u32, u32::MAX] {
        let mut image = image(&[BOOT, HOB]);
        put_footer(&mut image, &[(TDX_METADATA, &from_end.to_le_bytes())]);
        refuses(&image, TableError::Outside { tee: "TDX", from_end });
    }
    let mut cut = image(&[BOOT, HOB]);
    put_footer(&mut cut, &[(TDX_METADATA, &4_u32.to_le_bytes())]);
    cut[8188..].copy_from_slice(b"TDVF");
    refuses(&cut, TableError::Outside { tee: "TDX", from_end: 4 });
    let header = [*b"TDVF", (16 + 32_u32).to_le_bytes(), 1_u32.to_le_bytes(), 1_u32.to_le_bytes()].concat();
    put_footer(&mut cut, &[(TDX_METADATA, &16_u32.to_le_bytes())]);
    cut[8176..].copy_from_slice(&header);
    refuses(&cut, TableError::Outside { tee: "TDX", from_end: 16 });
}

#[test]
fn refuses_another_signature_version_or_size() {
    let good = image(&[BOOT, HOB]);
    let with = |offset: usize, value: u8| {
        let mut bad = good.clone();
        bad[offset] = value;
        bad
    };
    refuses(&with(0, b'S'), TableError::Signature { tee: "TDX", expected: "TDVF" });
    refuses(&with(8, 2), TableError::Version { tee: "TDX", found: 2 });
    refuses(&with(4, 81), TableError::Size { tee: "TDX", size: 81, count: 2, descriptor_len: 32 });
    refuses(&with(12, 3), TableError::Size { tee: "TDX", size: 80, count: 3, descriptor_len: 32 });
    refuses(&with(15, 0xff), TableError::Size { tee: "TDX", size: 80, count: 0xff00_0002, descriptor_len: 32 });
    refuses(&image(&[MEMORY; 65]), TableError::Size { tee: "TDX", size: 16 + 65 * 32, count: 65, descriptor_len: 32 });
}

#[test]
fn refuses_kinds_that_qemu_does_not_launch() {
    for found in [4, 5, 6, 7, 8, 0x10, u32::MAX] {
        let mut other = MEMORY;
        other.4 = found;
        refuses(&image(&[BOOT, HOB, other]), TdxFirmwareError::Kind { number: 2, found });
    }
}

#[test]
fn refuses_attributes_that_do_not_go_with_the_kind() {
    for (base, kind, attributes) in [
        // Code that runs first and is in no measurement.
        (BOOT, SectionKind::BootVolume, 0),
        (BOOT, SectionKind::BootVolume, 3),
        (BOOT, SectionKind::BootVolume, 0x8000_0001),
        (CONFIGURATION, SectionKind::ConfigurationVolume, 2),
        (CONFIGURATION, SectionKind::ConfigurationVolume, 5),
        (HOB, SectionKind::TdHob, 1),
        (HOB, SectionKind::TdHob, 2),
        (MEMORY, SectionKind::TemporaryMemory, 1),
        (MEMORY, SectionKind::TemporaryMemory, 2),
    ] {
        let mut bad = base;
        bad.5 = attributes;
        refuses(&image(&[bad]), TdxFirmwareError::Attributes { number: 0, kind, found: attributes });
    }
    let mut extended = CONFIGURATION;
    extended.5 = 1;
    let image = image(&[BOOT, extended, HOB]);
    assert_eq!(TdxFirmware::parse(&image).unwrap().sections()[1].measured(), Some(&image[..0x1000]));
}

#[test]
fn refuses_sections_that_are_not_whole_pages_below_4_gib() {
    for (gpa, size) in [
        (0x1001, 0x1000),
        (0x1000, 0x1001),
        (0x1000, 0),
        (0xffff_f000, 0x2000),
        (0x1_0000_0000, 0x1000),
        (u64::MAX - 0xfff, 0x1000),
        (0x1000, u64::MAX - 0xfff),
    ] {
        let bad = (0, 0, gpa, size, 3, 0);
        refuses(&image(&[BOOT, bad]), TdxFirmwareError::Place { number: 1, kind: SectionKind::TemporaryMemory, gpa, size });
    }
}

#[test]
fn refuses_content_that_is_not_in_the_image_or_has_no_place() {
    for (offset, length, gpa, size, kind, attributes, known) in [
        (0x1001, 0x1000, 0xffff_f000, 0x1000, 0, 1, SectionKind::BootVolume),
        (0x2000, 0x1000, 0xffff_f000, 0x1000, 0, 1, SectionKind::BootVolume),
        (u32::MAX, 0x1000, 0xffff_f000, 0x1000, 0, 1, SectionKind::BootVolume),
        // The rest would be read from behind the content, or be zeros: nobody says which.
        (0, 0x1000, 0xffff_e000, 0x2000, 0, 1, SectionKind::BootVolume),
        (0, 0x2000, 0xffff_f000, 0x1000, 0, 1, SectionKind::BootVolume),
        (0, 0, 0xffff_e000, 0x1000, 1, 0, SectionKind::ConfigurationVolume),
        (0, 0x1000, 0x3000, 0x1000, 2, 0, SectionKind::TdHob),
        (0x1000, 0, 0x3000, 0x1000, 3, 0, SectionKind::TemporaryMemory),
    ] {
        let expected = TdxFirmwareError::Content { number: 0, kind: known, offset, length, size };
        refuses(&image(&[(offset, length, gpa, size, kind, attributes)]), expected);
    }
}

#[test]
fn refuses_sections_that_overlap_or_are_too_many_pages() {
    let mut over = MEMORY;
    over.2 = 0x2000;
    refuses(&image(&[BOOT, HOB, over]), TdxFirmwareError::Overlap { number: 2, gpa: 0x2000 });
    let large = (0, 0, 0x10_0000, MAX_SECTION_BYTES, 3, 0);
    refuses(&image(&[BOOT, HOB, large]), TdxFirmwareError::TooMuch { number: 2 });
}

#[test]
fn refuses_an_image_that_starts_in_nothing_measured() {
    refuses(&image(&[]), TdxFirmwareError::NoResetVector);
    refuses(&image(&[CONFIGURATION, HOB]), TdxFirmwareError::NoResetVector);
    let mut below = BOOT;
    below.2 = 0xffff_d000;
    refuses(&image(&[below, HOB]), TdxFirmwareError::NoResetVector);
}

#[test]
fn refuses_none_or_two_where_one_is_due() {
    refuses(&image(&[BOOT]), TdxFirmwareError::Count { kind: SectionKind::TdHob, found: 0 });
    let second = |mut section: Descriptor, gpa| {
        section.2 = gpa;
        section
    };
    refuses(&image(&[BOOT, HOB, second(HOB, 0x8000)]), TdxFirmwareError::Count { kind: SectionKind::TdHob, found: 2 });
    let two = [BOOT, HOB, CONFIGURATION, second(CONFIGURATION, 0xffff_0000)];
    refuses(&image(&two), TdxFirmwareError::Count { kind: SectionKind::ConfigurationVolume, found: 2 });
}
