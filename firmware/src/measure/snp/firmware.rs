//! A firmware image checked to be one that SEV-SNP can launch, with its pages hashed.
//!
//! Format: edk2 OvmfPkg/ResetVector/X64/OvmfSevMetadata (`ASEV`, version 1), found by the footer table of
//! [`crate::footer`]. The image is mapped so that it ends at 4 GiB.
//!
//! Invariant: every section of a [`SnpFirmware`] is whole pages, below the image, of a known kind, and overlaps no other.
//! Invariant: a kernel is measured only with a firmware that QEMU gives its hashes to, and that wants them measured.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::MeasureError;
use super::chain::{Chain, LaunchDigest};
use super::hashes::PADDED_TABLE_LEN;
use crate::footer::{Footer, FooterError, PAGE, PAGE_LEN, SEV_ES_RESET, SEV_HASH_TABLE, SEV_METADATA};
use crate::measure::sections::{FOUR_GIB, Form, MAX_FIRMWARE_BYTES, TableError, check_size, u32_at};

/// Sections are a few hundred KiB in OVMF. Each page costs a hash, and an image may be anyone's.
const MAX_SECTION_BYTES: u64 = 256 * 1024 * 1024;

const TABLE: Form = Form { tee: "SEV", signature: "ASEV", descriptor_len: 12 };

/// What a section of memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionKind {
    /// Memory the firmware uses before it can accept any.
    SecMem,
    /// The page with the keys for talking to the security processor.
    Secrets,
    /// The page with CPUID values the security processor checked.
    Cpuid,
    /// Calling area of a secure VM service module.
    SvsmCaa,
    /// The page with the hashes of kernel, initrd and command line.
    KernelHashes,
}

impl SectionKind {
    const fn from_wire(kind: u32) -> Option<Self> {
        Some(match kind {
            1 => Self::SecMem,
            2 => Self::Secrets,
            3 => Self::Cpuid,
            4 => Self::SvsmCaa,
            0x10 => Self::KernelHashes,
            _ => return None,
        })
    }

    /// Its number in the image.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::SecMem => 1,
            Self::Secrets => 2,
            Self::Cpuid => 3,
            Self::SvsmCaa => 4,
            Self::KernelHashes => 0x10,
        }
    }
}

/// Pages the firmware wants to have at launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    kind: SectionKind,
    gpa: u64,
    size: u64,
}

impl Section {
    /// What for.
    #[must_use]
    pub const fn kind(&self) -> SectionKind {
        self.kind
    }

    /// Guest physical address of the first page.
    #[must_use]
    pub const fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Bytes; whole pages.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    const fn end(&self) -> u64 {
        self.gpa + self.size
    }
}

/// A checked image. Holds the digest of its pages, not the pages.
#[derive(Debug, Clone)]
pub struct SnpFirmware {
    image_digest: LaunchDigest,
    sections: Vec<Section>,
    ap_reset: u32,
    hash_table: Result<u64, HashTableError>,
}

impl SnpFirmware {
    /// Checks an image and hashes its pages.
    ///
    /// # Errors
    /// When SEV-SNP could not launch it, or the metadata is not understood.
    pub fn parse(image: &[u8]) -> Result<Self, FirmwareError> {
        let base = base_of(image)?;
        let mut chain = Chain::new();
        chain.normal(base, image);
        Self::with_image_digest(image, chain.digest())
    }

    /// As [`Self::parse`], but the digest of the pages is known from elsewhere and the image is read for its metadata
    /// only (what other tools call the OVMF hash).
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn with_image_digest(image: &[u8], image_digest: LaunchDigest) -> Result<Self, FirmwareError> {
        let base = base_of(image)?;
        let footer = Footer::read(image)?;
        let ap_reset = footer.get_u32(SEV_ES_RESET).ok_or(FirmwareError::NoResetBlock)?;
        let hash_table = hash_table(&footer);
        // An image without metadata is launched without sections, as VMMs do; it then takes no kernel hashes.
        let sections = match footer.get_u32(SEV_METADATA) {
            None => Vec::new(),
            Some(from_end) => sections(image, base, from_end)?,
        };
        Ok(Self { image_digest, sections, ap_reset, hash_table })
    }

    /// Reads and parses a file.
    ///
    /// # Errors
    /// When it cannot be read, is too large, or as [`Self::parse`].
    pub fn read(path: &Path) -> Result<Self, MeasureError> {
        let fail = |source| MeasureError::Read { path: path.to_owned(), source };
        let mut image = Vec::new();
        let file = File::open(path).map_err(fail)?;
        file.take(MAX_FIRMWARE_BYTES as u64 + 1).read_to_end(&mut image).map_err(fail)?;
        Ok(Self::parse(&image)?)
    }

    /// Digest of the image's pages alone: other tools call it the OVMF hash.
    #[must_use]
    pub const fn image_digest(&self) -> LaunchDigest {
        self.image_digest
    }

    /// What the firmware wants to have at launch, in the order of measurement.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Whether the firmware checks kernel, initrd and command line against measured hashes. [`Self::hash_table_offset`] says why not.
    #[must_use]
    pub fn checks_kernel(&self) -> bool {
        self.hash_table_offset().is_ok()
    }

    /// Where in the page of kernel hashes the VMM's table begins, in bytes.
    ///
    /// # Errors
    /// When a VMM could not launch the image with kernel hashes, or the image would boot any kernel.
    pub fn hash_table_offset(&self) -> Result<usize, MeasureError> {
        let mut pages = self.sections.iter().filter(|section| section.kind == SectionKind::KernelHashes).peekable();
        if pages.peek().is_none() {
            return Err(MeasureError::NoKernelHashesSection);
        }
        let table = self.hash_table.clone()?;
        let mut offset = 0;
        for &Section { gpa: section, size, .. } in pages {
            offset = table
                .checked_sub(section)
                .and_then(|offset| usize::try_from(offset).ok())
                .filter(|offset| size == PAGE && *offset <= PAGE_LEN - PADDED_TABLE_LEN)
                .ok_or(MeasureError::HashTableOutside { table, section, size })?;
        }
        Ok(offset)
    }

    /// Where further vCPUs start, as a guest physical address; 0 is nowhere.
    #[must_use]
    pub const fn ap_reset(&self) -> u32 {
        self.ap_reset
    }
}

/// Where an image of this length is mapped.
fn base_of(image: &[u8]) -> Result<u64, FirmwareError> {
    check_size(image)?;
    Ok(FOUR_GIB - image.len() as u64)
}

/// Where the firmware expects the table of kernel hashes. QEMU (`sev_add_kernel_loader_hashes`) refuses an address of 0 and an area
/// that its padded table does not fit; it does not look at the entry's length, so that with another it would read something else.
fn hash_table(footer: &Footer<'_>) -> Result<u64, HashTableError> {
    let entry = footer.get(SEV_HASH_TABLE).ok_or(HashTableError::Absent)?;
    let &[g0, g1, g2, g3, s0, s1, s2, s3] = entry else { return Err(HashTableError::Entry { found: entry.len() }) };
    let (gpa, size) = (u32::from_le_bytes([g0, g1, g2, g3]), u32::from_le_bytes([s0, s1, s2, s3]));
    if gpa == 0 {
        return Err(HashTableError::NoAddress);
    }
    if (size as usize) < PADDED_TABLE_LEN {
        return Err(HashTableError::Small { size });
    }
    Ok(gpa.into())
}

fn sections(image: &[u8], base: u64, from_end: u32) -> Result<Vec<Section>, FirmwareError> {
    let mut sections: Vec<Section> = Vec::new();
    let mut total = 0_u64;
    for descriptor in TABLE.descriptors(image, from_end)? {
        let (Some(gpa), Some(size), Some(kind)) = (u32_at(descriptor, 0), u32_at(descriptor, 4), u32_at(descriptor, 8)) else {
            continue; // cannot be: chunks are of exactly this size
        };
        let kind = SectionKind::from_wire(kind).ok_or(FirmwareError::SectionKind { found: kind })?;
        let section = Section { kind, gpa: u64::from(gpa), size: u64::from(size) };
        let one_page = matches!(kind, SectionKind::Secrets | SectionKind::Cpuid);
        let whole = section.gpa.is_multiple_of(PAGE) && section.size.is_multiple_of(PAGE) && section.size > 0;
        total += section.size;
        if !whole || one_page && section.size != PAGE || section.end() > base || total > MAX_SECTION_BYTES {
            return Err(FirmwareError::SectionPlace { kind, gpa: section.gpa, size: section.size });
        }
        if sections.iter().any(|other| section.gpa < other.end() && other.gpa < section.end()) {
            return Err(FirmwareError::Overlap { gpa: section.gpa });
        }
        sections.push(section);
    }
    Ok(sections)
}

/// Why SEV-SNP cannot launch an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirmwareError {
    /// Its size, or its table of sections.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The footer table cannot be read.
    #[error(transparent)]
    Footer(#[from] FooterError),
    /// The table does not say where further vCPUs start.
    #[error("the footer table has no SEV-ES reset block; the firmware is not built for SEV-ES or SEV-SNP")]
    NoResetBlock,
    /// A section whose meaning is not known would be measured wrongly.
    #[error("the SEV metadata has a section of unknown kind {found:#x}")]
    SectionKind {
        /// Its number.
        found: u32,
    },
    /// Not whole pages below the image, or not one page where one is due, or too many in all.
    #[error(
        "the SEV metadata's {kind:?} section at {gpa:#x}, {size:#x} bytes, is not whole pages below the firmware (or not the one page it must be)"
    )]
    SectionPlace {
        /// What for.
        kind: SectionKind,
        /// Where.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// Hardware adds a page only once.
    #[error("the SEV metadata's section at {gpa:#x} overlaps another")]
    Overlap {
        /// Where.
        gpa: u64,
    },
}

/// Why a VMM could not give the hashes of a kernel to an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashTableError {
    /// The footer table does not have the entry.
    #[error("the firmware has a SNP_KERNEL_HASHES section but no SEV_HASH_TABLE_RV entry, so a VMM would not know where to put the hashes")]
    Absent,
    /// The entry is something else than an address and a size.
    #[error("the firmware's SEV_HASH_TABLE_RV entry has {found} bytes; expected 8, an address and a size: a VMM would read other numbers")]
    Entry {
        /// Its length.
        found: usize,
    },
    /// The entry is there, but empty.
    #[error("the firmware's SEV_HASH_TABLE_RV entry has the address 0, which QEMU refuses with kernel-hashes=on")]
    NoAddress,
    /// The table that QEMU writes would not fit.
    #[error(
        "the firmware's SEV_HASH_TABLE_RV entry has room for {size} bytes of kernel hashes; QEMU's table has {PADDED_TABLE_LEN}, \
         so it refuses this firmware with kernel-hashes=on"
    )]
    Small {
        /// Bytes it has room for.
        size: u32,
    },
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::footer::PAGE_LEN;
    use crate::measure::sections::tests::put_footer;

    /// An image with these sections, metadata at its start.
    fn image(sections: &[(u32, u32, u32)]) -> Vec<u8> {
        image_with(sections, None)
    }

    /// The same with a place for the table of kernel hashes, and room for a large one.
    pub(in crate::measure::snp) fn image_with(sections: &[(u32, u32, u32)], hash_table: Option<u32>) -> Vec<u8> {
        let place = hash_table.map(|gpa| [gpa, 0x400].map(u32::to_le_bytes).concat());
        image_with_entry(sections, place.as_deref())
    }

    /// The same with the entry's bytes.
    pub(in crate::measure::snp) fn image_with_entry(sections: &[(u32, u32, u32)], hash_table: Option<&[u8]>) -> Vec<u8> {
        let descriptors = sections.iter().map(|(gpa, size, kind)| [*gpa, *size, *kind].map(u32::to_le_bytes).concat());
        let table = TABLE.build(&descriptors.collect::<Vec<_>>());
        let mut entries = vec![(SEV_ES_RESET, &[0x10, 0, 0, 0][..])];
        entries.extend(hash_table.map(|place| (SEV_HASH_TABLE, place)));
        crate::measure::sections::tests::image(&table, SEV_METADATA, &entries)
    }

    #[track_caller]
    fn refuses(image: &[u8], expected: impl Into<FirmwareError>) {
        assert_eq!(SnpFirmware::parse(image).unwrap_err(), expected.into());
    }

    #[test]
    fn reads_sections_in_table_order() {
        let firmware = SnpFirmware::parse(&image(&[(0x3000, 0x1000, 3), (0x1000, 0x2000, 1), (0x4000, 0x1000, 0x10)])).unwrap();
        let kinds: Vec<_> = firmware.sections().iter().map(Section::kind).collect();
        assert_eq!(kinds, [SectionKind::Cpuid, SectionKind::SecMem, SectionKind::KernelHashes]);
        assert!(!firmware.checks_kernel(), "a section without a pointer into it");
    }

    #[test]
    fn refuses_images_that_are_not_whole_pages() {
        for found in [0, 1, 4095, 4097, MAX_FIRMWARE_BYTES + PAGE_LEN] {
            refuses(&vec![0; found], TableError::ImageSize { found });
        }
    }

    #[test]
    fn refuses_an_image_without_a_reset_block() {
        let mut image = vec![0; PAGE_LEN];
        put_footer(&mut image, &[(SEV_METADATA, &4096_u32.to_le_bytes())]);
        refuses(&image, FirmwareError::NoResetBlock);
    }

    #[test]
    fn refuses_metadata_outside_the_image() {
        for from_end in [8193_u32, u32::MAX] {
            let mut image = image(&[]);
            put_footer(&mut image, &[(SEV_ES_RESET, &[0; 4]), (SEV_METADATA, &from_end.to_le_bytes())]);
            refuses(&image, TableError::Outside { tee: "SEV", from_end });
        }
        let mut cut = image(&[]);
        put_footer(&mut cut, &[(SEV_ES_RESET, &[0; 4]), (SEV_METADATA, &4_u32.to_le_bytes())]);
        cut[8188..].copy_from_slice(b"ASEV");
        refuses(&cut, TableError::Outside { tee: "SEV", from_end: 4 });
    }

    #[test]
    fn refuses_another_signature_version_or_size() {
        let good = image(&[(0x1000, 0x1000, 1)]);
        let with = |offset: usize, value: u8| {
            let mut bad = good.clone();
            bad[offset] = value;
            bad
        };
        refuses(&with(0, b'B'), TableError::Signature { tee: "SEV", expected: "ASEV" });
        refuses(&with(8, 2), TableError::Version { tee: "SEV", found: 2 });
        refuses(&with(4, 40), TableError::Size { tee: "SEV", size: 40, count: 1, descriptor_len: 12 });
        refuses(&with(12, 2), TableError::Size { tee: "SEV", size: 28, count: 2, descriptor_len: 12 });
        refuses(&with(15, 0xff), TableError::Size { tee: "SEV", size: 28, count: 0xff00_0001, descriptor_len: 12 });
    }

    #[test]
    fn refuses_sections_it_cannot_measure() {
        refuses(&image(&[(0x1000, 0x1000, 5)]), FirmwareError::SectionKind { found: 5 });
        for (gpa, size, kind, known) in [
            (0x1001, 0x1000, 1, SectionKind::SecMem),
            (0x1000, 0x1001, 1, SectionKind::SecMem),
            (0x1000, 0, 4, SectionKind::SvsmCaa),
            (0x1000, 0x2000, 2, SectionKind::Secrets),
            (0x1000, 0x2000, 3, SectionKind::Cpuid),
            (0xffff_e000, 0x1000, 0x10, SectionKind::KernelHashes),
            (0xffff_f000, 0xffff_f000, 1, SectionKind::SecMem),
            (0x1000, 0xf000_0000, 1, SectionKind::SecMem),
        ] {
            let expected = FirmwareError::SectionPlace { kind: known, gpa: gpa.into(), size: size.into() };
            refuses(&image(&[(gpa, size, kind)]), expected);
        }
        refuses(&image(&[(0x1000, 0x2000, 1), (0x2000, 0x1000, 2)]), FirmwareError::Overlap { gpa: 0x2000 });
    }
}
