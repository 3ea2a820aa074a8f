//! The GUIDed table at the end of an OVMF-style firmware image (edk2 OvmfPkg/ResetVector): reader and writer.
//!
//! The table ends 32 bytes before the image does, with a footer entry, and is read backwards: each entry is
//! `data ‖ u16 length of the whole entry ‖ GUID`. What the entries mean is none of this file's business.
//!
//! Invariant: the reader refuses a table that is not made of whole entries; it never guesses.

use std::fmt;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// The same for slices.
pub(crate) const PAGE_LEN: usize = 4096;

/// Bytes between the end of the table and the end of the image: the reset vector's own.
const TAIL: usize = 32;
/// Length and GUID that end every entry.
const ENTRY_HEADER: usize = 18;
/// No known image comes near; a bound because the image may be anyone's.
const MAX_ENTRIES: usize = 64;

/// A GUID in its little-endian form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid([u8; 16]);

impl Guid {
    /// From the groups of its text form, `aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee`.
    #[must_use]
    pub const fn new(a: u32, b: u16, c: u16, d: u16, e: u64) -> Self {
        let (a, b, c, d, e) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes(), e.to_be_bytes());
        Self([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], e[2], e[3], e[4], e[5], e[6], e[7]])
    }

    /// Its bytes in memory.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, d @ .., e0, e1, e2, e3, e4, e5] = self.0;
        let (a, b, c) = (u32::from_le_bytes([a0, a1, a2, a3]), u16::from_le_bytes([b0, b1]), u16::from_le_bytes([c0, c1]));
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{}-{}", hex::encode(d), hex::encode([e0, e1, e2, e3, e4, e5]))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The entry that ends the table; its length is the whole table's.
const FOOTER: Guid = Guid::new(0x96b5_82de, 0x1fb2, 0x45f7, 0xbaea, 0xa366_c55a_082d);
/// Where further vCPUs start under SEV-ES (u32).
pub const SEV_ES_RESET: Guid = Guid::new(0x00f7_71de, 0x1a7e, 0x4fcb, 0x890e, 0x68c7_7e2f_b44e);
/// Where the SEV metadata is: bytes before the end of the image (u32).
pub const SEV_METADATA: Guid = Guid::new(0xdc88_6566, 0x984a, 0x4798, 0xa75e, 0x5585_a7bf_67cc);
/// Where the firmware expects the hash table: address and size (u32 each).
pub const SEV_HASH_TABLE: Guid = Guid::new(0x7255_371f, 0x3a3b, 0x4b04, 0x927b, 0x1da6_efa8_d454);
/// Where the TDX metadata is: bytes before the end of the image (u32).
pub const TDX_METADATA: Guid = Guid::new(0xe47a_6535, 0x984a, 0x4798, 0x865e, 0x4685_a7bf_8ec2);

/// The entries of an image's table.
#[derive(Debug, Clone)]
pub struct Footer<'a>(Vec<(Guid, &'a [u8])>);

impl<'a> Footer<'a> {
    /// Reads the table of an image.
    ///
    /// # Errors
    /// When there is none, or it is cut short or does not consist of whole entries.
    pub fn read(image: &'a [u8]) -> Result<Self, FooterError> {
        let end = image.len().checked_sub(TAIL).ok_or(FooterError::Absent)?;
        let area = image.get(..end).ok_or(FooterError::Absent)?;
        let (guid, size, _) = split_entry(area).ok_or(FooterError::Absent)?;
        if guid != FOOTER {
            return Err(FooterError::Absent);
        }
        let mut table = area
            .len()
            .checked_sub(size)
            .and_then(|start| area.get(start..area.len() - ENTRY_HEADER))
            .ok_or(FooterError::TableSize { size, image: image.len() })?;
        let mut entries = Vec::new();
        while !table.is_empty() {
            let (guid, size, before) = split_entry(table).ok_or(FooterError::Entry { left: table.len() })?;
            let data =
                table.len().checked_sub(size).and_then(|start| before.get(start..)).ok_or(FooterError::Entry { left: table.len() })?;
            if entries.iter().any(|(seen, _)| *seen == guid) {
                // Two readers could pick different ones, and then measure differently from what boots.
                return Err(FooterError::Twice { guid });
            }
            if entries.len() == MAX_ENTRIES {
                return Err(FooterError::TooMany);
            }
            entries.push((guid, data));
            table = &table[..table.len() - size];
        }
        Ok(Self(entries))
    }

    /// The data of an entry.
    #[must_use]
    pub fn get(&self, guid: Guid) -> Option<&'a [u8]> {
        self.0.iter().find(|(g, _)| *g == guid).map(|(_, data)| *data)
    }

    /// The first 32-bit number of an entry; every entry we use starts with one. `None` when absent or shorter.
    #[must_use]
    pub fn get_u32(&self, guid: Guid) -> Option<u32> {
        self.get(guid)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// A table of these entries. It is to end 32 bytes before the image does.
    ///
    /// # Panics
    /// When the table would exceed 64 KiB: entries are the program's own.
    #[must_use]
    pub fn build(entries: &[(Guid, &[u8])]) -> Vec<u8> {
        let length = |n: usize| u16::try_from(n).expect("a footer table is a few dozen bytes").to_le_bytes();
        let mut table = Vec::new();
        for (guid, data) in entries {
            table.extend_from_slice(data);
            table.extend(length(data.len() + ENTRY_HEADER));
            table.extend(guid.0);
        }
        let whole = length(table.len() + ENTRY_HEADER);
        table.extend(whole);
        table.extend(FOOTER.0);
        table
    }

    /// Where [`Self::build`]'s table goes in an image of this length. `None` when it does not fit.
    #[must_use]
    pub fn place(image_len: usize, table: &[u8]) -> Option<std::ops::Range<usize>> {
        let end = image_len.checked_sub(TAIL)?;
        Some(end.checked_sub(table.len())?..end)
    }
}

/// GUID and length of the entry that ends here, and all bytes before its header. The length counts the header.
fn split_entry(bytes: &[u8]) -> Option<(Guid, usize, &[u8])> {
    let (rest, guid) = bytes.split_last_chunk::<16>()?;
    let (rest, size) = rest.split_last_chunk::<2>()?;
    let size = usize::from(u16::from_le_bytes(*size));
    (size >= ENTRY_HEADER).then_some((Guid(*guid), size, rest))
}

/// Why an image's table cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// No table where one belongs.
    #[error("expected OVMF's footer GUID {FOOTER} 32 bytes before the end, found none; is this an OVMF image built for SEV or TDX?")]
    Absent,
    /// The table claims more bytes than there are.
    #[error("the footer table claims {size} bytes, in an image of {image}")]
    TableSize {
        /// What it claims.
        size: usize,
        /// What there is.
        image: usize,
    },
    /// The bytes are not whole entries.
    #[error("the footer table's entries do not add up: {left} bytes left that are no entry")]
    Entry {
        /// Bytes that could not be read.
        left: usize,
    },
    /// An entry occurs twice.
    #[error("the footer table has two entries {guid}")]
    Twice {
        /// Which.
        guid: Guid,
    },
    /// More entries than any known image has.
    #[error("the footer table has more than {MAX_ENTRIES} entries")]
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entries: &[(Guid, &[u8])]) -> Vec<u8> {
        let table = Footer::build(entries);
        let mut image = vec![0xcc; 512];
        let place = Footer::place(image.len(), &table).unwrap();
        image[place].copy_from_slice(&table);
        image
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let image = image(&[(SEV_METADATA, &[1, 2, 3, 4]), (SEV_ES_RESET, &5_u32.to_le_bytes())]);
        let footer = Footer::read(&image).unwrap();
        assert_eq!(footer.get(SEV_METADATA), Some(&[1, 2, 3, 4][..]));
        assert_eq!(footer.get_u32(SEV_ES_RESET), Some(5));
        assert_eq!(footer.get(SEV_HASH_TABLE), None);
    }

    #[test]
    fn prints_guids_in_their_text_form() {
        assert_eq!(SEV_ES_RESET.to_string(), "00f771de-1a7e-4fcb-890e-68c77e2fb44e");
    }

    #[test]
    fn refuses_images_without_a_table() {
        for image in [vec![], vec![0; 31], vec![0; 49], vec![0; 4096]] {
            assert_eq!(Footer::read(&image).unwrap_err(), FooterError::Absent);
        }
    }

    #[test]
    fn refuses_a_table_larger_than_the_image() {
        let mut image = image(&[]);
        let at = image.len() - 50;
        image[at..at + 2].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(Footer::read(&image).unwrap_err(), FooterError::TableSize { size: 0xffff, image: 512 });
    }

    #[test]
    fn refuses_entries_that_do_not_add_up() {
        let good = image(&[(SEV_ES_RESET, &[0; 4])]);
        let at = good.len() - 32 - 18 - 18;
        for size in [0_u8, 17, 23, 200] {
            let mut bad = good.clone();
            bad[at] = size;
            assert!(matches!(Footer::read(&bad), Err(FooterError::Entry { .. })), "{size}");
        }
    }

    #[test]
    fn refuses_an_entry_that_occurs_twice() {
        let image = image(&[(SEV_ES_RESET, &[0; 4]), (SEV_ES_RESET, &[1; 4])]);
        assert_eq!(Footer::read(&image).unwrap_err(), FooterError::Twice { guid: SEV_ES_RESET });
    }
}
