//! The Secure Execution header of a boot image, of which attestation needs the tags: they are the image's identity.

use crate::cursor::{Cursor, FormError};

/// `IBMSecEx`.
const MAGIC: u64 = 0x4942_4d53_6563_4578;
const VERSION_1: u32 = 0x100;
/// Two pages: what the ultravisor takes.
const MAX_HEADER: usize = 8192;
const PUBLIC_KEY: usize = 160;
const KEY_SLOT: u64 = 80;

/// What of an image's header goes into the measurement. As bytes: the fields in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageTags {
    /// Page list digest: SHA-512 of the encrypted pages.
    pub pld: [u8; 64],
    /// Address list digest: SHA-512 of where the pages go.
    pub ald: [u8; 64],
    /// Tweak list digest: SHA-512 of the pages' tweaks.
    pub tld: [u8; 64],
    /// The header's own authentication tag. It differs for each build of an image, even of the same content: key and IV are made anew.
    pub tag: [u8; 16],
}

impl ImageTags {
    /// Size in bytes.
    pub const LEN: usize = 208;

    /// Parses all of `bytes`.
    ///
    /// # Errors
    /// When there are more or fewer.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormError> {
        let mut cursor = Cursor::new(bytes, "image header tags");
        let tags = Self { pld: cursor.array()?, ald: cursor.array()?, tld: cursor.array()?, tag: cursor.array()? };
        cursor.end()?;
        Ok(tags)
    }

    /// Reads the tags from a header, version 1, as `pvextract-hdr` takes it out of an image. What follows the header is not looked at: the file
    /// is usually padded to a page.
    ///
    /// # Errors
    /// When it is not such a header.
    pub fn from_header(bytes: &[u8]) -> Result<Self, FormError> {
        let mut cursor = Cursor::new(bytes, "Secure Execution header");
        expect("header magic", cursor.u64()?, MAGIC, "0x49424d5365634578, which is IBMSecEx")?;
        expect("header version", cursor.u32()?.into(), VERSION_1.into(), "0x100")?;
        let size = cursor.u32()?;
        // IV and a reserved word.
        cursor.take(16)?;
        let (slots, encrypted) = (cursor.u64()?, cursor.u64()?);
        // Pages and plaintext control flags.
        cursor.take(16)?;
        cursor.take(PUBLIC_KEY)?;
        let (pld, ald, tld) = (cursor.array()?, cursor.array()?, cursor.array()?);
        let len = |len: Option<u64>| len.and_then(|len| usize::try_from(len).ok()).filter(|len| *len <= MAX_HEADER);
        let too_large = |field, found| FormError::Field { field, found, expected: "what fits two pages" };
        let slots_len = len(slots.checked_mul(KEY_SLOT)).ok_or_else(|| too_large("number of key slots", slots))?;
        cursor.take(slots_len)?;
        cursor.take(len(Some(encrypted)).ok_or_else(|| too_large("size of the encrypted part", encrypted))?)?;
        let tag = cursor.array()?;
        let read = bytes.len().saturating_sub(cursor.left());
        if usize::try_from(size) != Ok(read) {
            return Err(FormError::Field { field: "header size", found: size.into(), expected: "the size of its parts" });
        }
        Ok(Self { pld, ald, tld, tag })
    }

    /// The bytes that are measured.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.pld.as_slice(), &self.ald, &self.tld, &self.tag].concat()
    }
}

const fn expect(field: &'static str, found: u64, wanted: u64, expected: &'static str) -> Result<(), FormError> {
    if found == wanted { Ok(()) } else { Err(FormError::Field { field, found, expected }) }
}
