//! A firmware image checked to be one that QEMU can launch as a TD.
//!
//! Format: TDVF descriptor, version 1 (Intel TDX Virtual Firmware Design Guide 344991, section 11), found by the footer table of
//! [`crate::footer`]. The image is mapped so that it ends at 4 GiB, where the processor starts.
//!
//! Invariant: every section of a [`TdxFirmware`] is whole pages below 4 GiB, of a kind that QEMU launches, and overlaps no other.
//! Invariant: what the TD starts with is measured: a boot firmware volume that ends at 4 GiB is there, and each of them is extended.

use crate::footer::{Footer, FooterError, PAGE, TDX_METADATA};
use crate::measure::sections::{FOUR_GIB, Form, TableError, check_size, u32_at};

/// OVMF has 2 MiB. Each page costs hashes, and an image may be anyone's.
const MAX_SECTION_BYTES: u64 = 64 * 1024 * 1024;

const TABLE: Form = Form { tee: "TDX", signature: "TDVF", descriptor_len: 32 };

/// Bit of a section's attributes: its content is extended into MRTD.
const MR_EXTEND: u32 = 1;

/// What a section is for. Others that the guide has (permanent memory, payload, TD information) QEMU refuses to launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionKind {
    /// Boot firmware volume: code, measured.
    BootVolume,
    /// Configuration firmware volume: the variable store. The firmware extends it into RTMR0.
    ConfigurationVolume,
    /// Where QEMU writes what memory there is. The firmware extends it into RTMR0.
    TdHob,
    /// Memory the firmware uses before it can accept any.
    TemporaryMemory,
}

impl SectionKind {
    const fn from_wire(kind: u32) -> Option<Self> {
        Some(match kind {
            0 => Self::BootVolume,
            1 => Self::ConfigurationVolume,
            2 => Self::TdHob,
            3 => Self::TemporaryMemory,
            _ => return None,
        })
    }

    /// Its number in the image.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::BootVolume => 0,
            Self::ConfigurationVolume => 1,
            Self::TdHob => 2,
            Self::TemporaryMemory => 3,
        }
    }

    /// Whether its content is in the image; else it is zeros, or QEMU's.
    const fn has_content(self) -> bool {
        matches!(self, Self::BootVolume | Self::ConfigurationVolume)
    }
}

/// Pages that are there when the TD starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    kind: SectionKind,
    gpa: u64,
    size: u64,
    content: Option<&'a [u8]>,
    extended: bool,
}

impl<'a> Section<'a> {
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

    /// Its bytes, `size` of them, where they are in the image.
    #[must_use]
    pub const fn content(&self) -> Option<&'a [u8]> {
        self.content
    }

    /// The bytes that are extended into MRTD. Of other sections only the addresses of the pages are measured.
    #[must_use]
    pub const fn measured(&self) -> Option<&'a [u8]> {
        if self.extended { self.content } else { None }
    }

    const fn end(&self) -> u64 {
        self.gpa + self.size
    }
}

/// A checked image.
#[derive(Debug, Clone)]
pub struct TdxFirmware<'a> {
    sections: Vec<Section<'a>>,
    td_hob: Section<'a>,
}

impl<'a> TdxFirmware<'a> {
    /// Checks an image.
    ///
    /// # Errors
    /// When QEMU could not launch it, when what it starts with would not be measured, or when the metadata is not understood.
    pub fn parse(image: &'a [u8]) -> Result<Self, TdxFirmwareError> {
        check_size(image)?;
        let from_end = Footer::read(image)?.get_u32(TDX_METADATA).ok_or(TdxFirmwareError::NoMetadata)?;
        let sections = sections(image, from_end)?;
        let of = |kind| sections.iter().filter(move |section: &&Section<'_>| section.kind == kind);
        if !of(SectionKind::BootVolume).any(|volume| volume.end() == FOUR_GIB) {
            return Err(TdxFirmwareError::NoResetVector);
        }
        let count = |kind, found, expected| if found == expected { Ok(()) } else { Err(TdxFirmwareError::Count { kind, found }) };
        let volumes = of(SectionKind::ConfigurationVolume).count();
        count(SectionKind::ConfigurationVolume, volumes, volumes.min(1))?;
        count(SectionKind::TdHob, of(SectionKind::TdHob).count(), 1)?;
        let td_hob = *of(SectionKind::TdHob).next().ok_or(TdxFirmwareError::Count { kind: SectionKind::TdHob, found: 0 })?;
        Ok(Self { sections, td_hob })
    }

    /// What is there when the TD starts, in the order of measurement.
    #[must_use]
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// Where QEMU writes what memory there is.
    #[must_use]
    pub const fn td_hob(&self) -> Section<'a> {
        self.td_hob
    }

    /// The variable store, where the image has one.
    #[must_use]
    pub fn configuration(&self) -> Option<&'a [u8]> {
        self.sections.iter().find(|section| section.kind == SectionKind::ConfigurationVolume)?.content
    }
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

fn sections(image: &[u8], from_end: u32) -> Result<Vec<Section<'_>>, TdxFirmwareError> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    let mut total = 0_u64;
    for (number, descriptor) in TABLE.descriptors(image, from_end)?.enumerate() {
        let section = section(image, number, descriptor)?;
        // Neither addition can overflow: sizes end below 4 GiB, and there are at most 64.
        total += section.size;
        if total > MAX_SECTION_BYTES {
            return Err(TdxFirmwareError::TooMuch { number });
        }
        if sections.iter().any(|other| section.gpa < other.end() && other.gpa < section.end()) {
            return Err(TdxFirmwareError::Overlap { number, gpa: section.gpa });
        }
        sections.push(section);
    }
    Ok(sections)
}

fn section<'a>(image: &'a [u8], number: usize, descriptor: &[u8]) -> Result<Section<'a>, TdxFirmwareError> {
    let (Some(offset), Some(length), Some(gpa), Some(size), Some(kind), Some(attributes)) = (
        u32_at(descriptor, 0),
        u32_at(descriptor, 4),
        u64_at(descriptor, 8),
        u64_at(descriptor, 16),
        u32_at(descriptor, 24),
        u32_at(descriptor, 28),
    ) else {
        return Err(TdxFirmwareError::Kind { number, found: u32::MAX }); // cannot be: descriptors are of exactly this size
    };
    let kind = SectionKind::from_wire(kind).ok_or(TdxFirmwareError::Kind { number, found: kind })?;
    // PAGE.AUG among what is refused: by the guide such pages are not added, and QEMU adds them.
    let extended = attributes & MR_EXTEND != 0;
    let expected = match kind {
        SectionKind::BootVolume => attributes == MR_EXTEND,
        SectionKind::ConfigurationVolume => attributes & !MR_EXTEND == 0,
        // What QEMU writes there would be in MRTD, and no image would have one.
        SectionKind::TdHob | SectionKind::TemporaryMemory => attributes == 0,
    };
    if !expected {
        return Err(TdxFirmwareError::Attributes { number, kind, found: attributes });
    }
    let end = gpa.checked_add(size).filter(|end| *end <= FOUR_GIB);
    if end.is_none() || !gpa.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) || size == 0 {
        return Err(TdxFirmwareError::Place { number, kind, gpa, size });
    }
    let content = if kind.has_content() {
        let data = usize::try_from(offset).ok().and_then(|offset| image.get(offset..)?.get(..usize::try_from(length).ok()?));
        Some(data.filter(|_| u64::from(length) == size).ok_or(TdxFirmwareError::Content { number, kind, offset, length, size })?)
    } else if offset != 0 || length != 0 {
        return Err(TdxFirmwareError::Content { number, kind, offset, length, size });
    } else {
        None
    };
    Ok(Section { kind, gpa, size, content, extended })
}

/// Why QEMU cannot launch an image as a TD, or why nobody should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TdxFirmwareError {
    /// Its size, or its table of sections.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The footer table cannot be read.
    #[error(transparent)]
    Footer(#[from] FooterError),
    /// The table does not say where the metadata is.
    #[error("the footer table has no TDX metadata entry; the firmware is not built for TDX (OVMF: OvmfPkgX64 of 2 MiB, or IntelTdxX64)")]
    NoMetadata,
    /// A section whose meaning is not known, or which QEMU does not launch.
    #[error("section {number} of the TDX metadata is of kind {found:#x}; expected one that QEMU launches: 0 to 3")]
    Kind {
        /// Which section, from zero.
        number: usize,
        /// Its number.
        found: u32,
    },
    /// Attributes that are not known, or which a section of its kind must not have.
    #[error(
        "section {number} of the TDX metadata ({kind:?}) has the attributes {found:#x}; expected 1 (extended) of a boot volume, \
         0 or 1 of a configuration volume, 0 of others"
    )]
    Attributes {
        /// Which section, from zero.
        number: usize,
        /// What for.
        kind: SectionKind,
        /// Its attributes.
        found: u32,
    },
    /// Not whole pages below 4 GiB.
    #[error("section {number} of the TDX metadata ({kind:?}) at {gpa:#x}, {size:#x} bytes: expected whole pages below 4 GiB")]
    Place {
        /// Which section, from zero.
        number: usize,
        /// What for.
        kind: SectionKind,
        /// Where.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// The image does not have the content of a section, or content of one that has none.
    #[error(
        "section {number} of the TDX metadata ({kind:?}, {size:#x} bytes) has {length:#x} bytes at {offset:#x} of the image; \
         expected all of a volume, and none of other sections (code and variables must be in one image)"
    )]
    Content {
        /// Which section, from zero.
        number: usize,
        /// What for.
        kind: SectionKind,
        /// Where in the image.
        offset: u32,
        /// Bytes in the image.
        length: u32,
        /// Bytes in memory.
        size: u64,
    },
    /// More pages than any known firmware has.
    #[error("the sections of the TDX metadata up to section {number} are larger than {MAX_SECTION_BYTES} bytes")]
    TooMuch {
        /// Which section was too much, from zero.
        number: usize,
    },
    /// The TDX module adds a page only once.
    #[error("section {number} of the TDX metadata, at {gpa:#x}, overlaps another")]
    Overlap {
        /// Which section, from zero.
        number: usize,
        /// Where.
        gpa: u64,
    },
    /// Nothing measured is where the processor starts.
    #[error("the TDX metadata has no boot firmware volume that ends at 4 GiB, where the TD starts")]
    NoResetVector,
    /// Sections of a kind that is there once.
    #[error("the TDX metadata has {found} sections for {kind:?}; expected one TdHob and at most one ConfigurationVolume")]
    Count {
        /// What for.
        kind: SectionKind,
        /// How many.
        found: usize,
    },
}

#[cfg(test)]
mod tests;
