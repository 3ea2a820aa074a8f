//! The table of sections in an OVMF-style image: the firmware tells whoever launches it which memory it wants to have. SEV's (edk2 OvmfPkg/ResetVector,
//! `ASEV`) and TDX's (`TDVF`) have one form, version 1, found by the footer table of [`crate::footer`]:
//!
//! ```text
//! signature (4) | bytes of all (4) | version (4) | number n (4) | n descriptors of a size that the signature tells
//! ```
//! What a descriptor says is none of this file's business.

use crate::footer::PAGE_LEN;

/// Firmware is mapped up to here.
pub(super) const FOUR_GIB: u64 = 1 << 32;
/// Largest image accepted: QEMU maps at most 8 MiB of flash below 4 GiB by default; twice that is generous.
pub const MAX_FIRMWARE_BYTES: usize = 16 * 1024 * 1024;
/// OVMF has about ten for SEV, six for TDX.
const MAX_SECTIONS: u32 = 64;
const HEADER_LEN: u32 = 16;

/// One of the tables.
#[derive(Debug)]
pub(super) struct Form {
    /// Whose, for messages.
    pub(super) tee: &'static str,
    /// What it starts with.
    pub(super) signature: &'static str,
    /// Bytes of a descriptor.
    pub(super) descriptor_len: u32,
}

impl Form {
    /// The descriptors in the table that starts so many bytes before the image's end: each whole, and no byte left over.
    pub(super) fn descriptors<'a>(&self, image: &'a [u8], from_end: u32) -> Result<std::slice::ChunksExact<'a, u8>, TableError> {
        let Self { tee, signature, descriptor_len } = *self;
        let outside = TableError::Outside { tee, from_end };
        let start = usize::try_from(from_end).ok().and_then(|n| image.len().checked_sub(n)).ok_or(outside.clone())?;
        let table = image.get(start..).ok_or(outside.clone())?;
        if !table.starts_with(signature.as_bytes()) {
            return Err(TableError::Signature { tee, expected: signature });
        }
        let (Some(size), Some(version), Some(count)) = (u32_at(table, 4), u32_at(table, 8), u32_at(table, 12)) else {
            return Err(outside);
        };
        if version != 1 {
            return Err(TableError::Version { tee, found: version });
        }
        if count > MAX_SECTIONS || size != HEADER_LEN + count * descriptor_len {
            return Err(TableError::Size { tee, size, count, descriptor_len });
        }
        let descriptors = table.get(HEADER_LEN as usize..size as usize).ok_or(outside)?;
        Ok(descriptors.chunks_exact(descriptor_len as usize))
    }

    /// The table of these descriptors.
    #[cfg(test)]
    pub(super) fn build(&self, descriptors: &[Vec<u8>]) -> Vec<u8> {
        let count = descriptors.len() as u32;
        let words = [HEADER_LEN + count * self.descriptor_len, 1, count].map(u32::to_le_bytes).concat();
        [self.signature.as_bytes(), &words, &descriptors.concat()].concat()
    }
}

/// Whether an image is of whole pages, and not too many.
pub(super) fn check_size(image: &[u8]) -> Result<(), TableError> {
    let found = image.len();
    if found == 0 || found > MAX_FIRMWARE_BYTES || !found.is_multiple_of(PAGE_LEN) {
        return Err(TableError::ImageSize { found });
    }
    Ok(())
}

/// A little-endian number.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

/// Why an image's table cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Not whole pages, or too large.
    #[error("expected an image of whole 4 KiB pages and at most {MAX_FIRMWARE_BYTES} bytes, found {found} bytes")]
    ImageSize {
        /// Its length; one more than the limit stands for any larger.
        found: usize,
    },
    /// The table is not inside the image.
    #[error("the footer table places the {tee} metadata {from_end} bytes before the end, where it does not fit the image")]
    Outside {
        /// Whose.
        tee: &'static str,
        /// Where.
        from_end: u32,
    },
    /// Something else is where the table belongs.
    #[error("expected the signature {expected} at the start of the {tee} metadata")]
    Signature {
        /// Whose.
        tee: &'static str,
        /// What should be there.
        expected: &'static str,
    },
    /// A version of the table that is not understood.
    #[error("expected {tee} metadata version 1, found {found}")]
    Version {
        /// Whose.
        tee: &'static str,
        /// Its version.
        found: u32,
    },
    /// Length and number of sections contradict each other, or are too large.
    #[error(
        "the {tee} metadata claims {count} sections in {size} bytes (expected at most {MAX_SECTIONS}, of {descriptor_len} bytes after a header of \
         {HEADER_LEN})"
    )]
    Size {
        /// Whose.
        tee: &'static str,
        /// Bytes it claims.
        size: u32,
        /// Sections it claims.
        count: u32,
        /// Bytes of one.
        descriptor_len: u32,
    },
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::footer::{Footer, Guid};

    /// An image of two pages with this table at its start, and a footer with these entries and where the table is.
    pub(crate) fn image(table: &[u8], place: Guid, entries: &[(Guid, &[u8])]) -> Vec<u8> {
        let mut image = vec![0x90; 2 * PAGE_LEN];
        image[..table.len()].copy_from_slice(table);
        put_footer(&mut image, &[entries, &[(place, &8192_u32.to_le_bytes())]].concat());
        image
    }

    pub(crate) fn put_footer(image: &mut [u8], entries: &[(Guid, &[u8])]) {
        let table = Footer::build(entries);
        let place = Footer::place(image.len(), &table).unwrap();
        image[place].copy_from_slice(&table);
    }

    const FORM: Form = Form { tee: "X", signature: "XTAB", descriptor_len: 8 };

    #[test]
    fn reads_what_it_builds_and_nothing_behind_it() {
        let table = [FORM.build(&[vec![1; 8], vec![2; 8]]), vec![9; 40]].concat();
        let descriptors: Vec<_> = FORM.descriptors(&table, table.len() as u32).unwrap().collect();
        assert_eq!(descriptors, [[1; 8], [2; 8]]);
        assert_eq!(FORM.descriptors(&FORM.build(&[]), 16).unwrap().count(), 0);
    }
}
