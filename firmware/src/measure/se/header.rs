//! The Secure Execution header, version 1.
//!
//! ```text
//! magic (8) | version (4) | size of all (4) | IV (12) | 0 (4) | key slots n (8) | encrypted size (8)
//! pages (8) | plaintext control flags (8)
//! customer public key on P-521, X and Y (160) | digests of pages, addresses, tweaks (64 each) | n key slots (80 each)
//! encrypted part | tag (16)
//! ```
//! Everything before the encrypted part is authenticated by the tag.

use kata_cc_evidence::se::{FormError, ImageTags, KeySlot};
use p521::PublicKey;

use super::PAGE;

const MAGIC: u64 = u64::from_be_bytes(*b"IBMSecEx");
const VERSION_1: u32 = 0x100;
/// Everything in front of the key slots.
const FIXED: usize = 64 + Point::LEN + 3 * 64;
const SLOT: usize = 80;
const TAG: usize = 16;

/// A public key on P-521 as the ultravisor has it: X and Y, each padded to 80 bytes. Checked to be a point of the curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    bytes: [u8; Self::LEN],
    key: PublicKey,
}

impl Point {
    /// Size in bytes.
    pub const LEN: usize = 160;

    /// From X and Y.
    ///
    /// # Errors
    /// When they are not those of a point, or the padding is not zero.
    pub fn from_coordinates(bytes: [u8; Self::LEN]) -> Result<Self, NotAPoint> {
        let (x, y) = bytes.split_at(Self::LEN / 2);
        let (Some((x_padding, x)), Some((y_padding, y))) = (x.split_at_checked(14), y.split_at_checked(14)) else { return Err(NotAPoint) };
        if x_padding.iter().chain(y_padding).any(|byte| *byte != 0) {
            return Err(NotAPoint);
        }
        let key = PublicKey::from_sec1_bytes(&[&[4], x, y].concat()).map_err(|_| NotAPoint)?;
        Ok(Self { bytes, key })
    }

    /// X and Y.
    #[must_use]
    pub const fn coordinates(&self) -> &[u8; Self::LEN] {
        &self.bytes
    }

    pub(super) const fn key(&self) -> &PublicKey {
        &self.key
    }
}

/// Coordinates that no public key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("160 bytes that are not X and Y of a point on P-521, each padded with zeros to 80 bytes")]
pub struct NotAPoint;

/// Plaintext control flags. Bit 0 is the most significant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaintextFlags(pub u64);

impl PlaintextFlags {
    /// Bit 34: the host may dump the guest's memory, encrypted to the image's owner.
    pub const DUMPING: Self = Self(1 << 29);
    /// Bit 35: the pages are not encrypted.
    pub const PLAIN_PAGES: Self = Self(1 << 28);
    /// Bits 56, 57 and 58: the guest may have keys of DEA, AES and ECC wrapped by the machine. What pvimg sets if nothing is said.
    pub const WRAPPED_KEYS: Self = Self(0b111 << 5);

    /// True when all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Why bytes are not a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not its form.
    #[error("not a Secure Execution header")]
    Form(#[from] FormError),
    /// The customer public key is none.
    #[error("the header's customer public key is none")]
    CustomerKey(#[from] NotAPoint),
    /// What the ultravisor takes of host keys and encrypted part has no room for more.
    #[error("the header would have {found} bytes, at most {} are possible; it has {slots} key slots, give fewer host keys", Header::MAX)]
    TooLarge {
        /// Bytes it would have.
        found: usize,
        /// Its slots.
        slots: usize,
    },
    /// Encrypted to nobody.
    #[error("no host key: nobody could start the image")]
    NoHostKey,
}

/// The plain part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub(super) iv: [u8; 12],
    pub(super) pages: u64,
    pub(super) flags: PlaintextFlags,
    pub(super) customer_key: Point,
    pub(super) digests: Digests,
    pub(super) slots: Vec<KeySlot>,
}

/// SHA-512 of the pages' contents, of their addresses and of their tweaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Page list digest: contents, as they are in the image.
    pub pld: [u8; 64],
    /// Address list digest: eight bytes for each page.
    pub ald: [u8; 64],
    /// Tweak list digest: sixteen bytes for each page.
    pub tld: [u8; 64],
}

impl Head {
    /// Key slots: which host keys the image is for.
    #[must_use]
    pub fn slots(&self) -> &[KeySlot] {
        &self.slots
    }

    /// Number of measured pages.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Plaintext control flags.
    #[must_use]
    pub const fn flags(&self) -> PlaintextFlags {
        self.flags
    }

    /// The digests over the pages.
    #[must_use]
    pub const fn digests(&self) -> &Digests {
        &self.digests
    }

    /// The bytes that the tag authenticates beside the encrypted part, which has `encrypted` bytes.
    pub(super) fn to_bytes(&self, encrypted: usize) -> Result<Vec<u8>, HeaderError> {
        let slots = self.slots.len();
        if slots == 0 {
            return Err(HeaderError::NoHostKey);
        }
        let found = slots.saturating_mul(SLOT).saturating_add(encrypted).saturating_add(FIXED + TAG);
        let too_large = HeaderError::TooLarge { found, slots };
        if found > Header::MAX {
            return Err(too_large);
        }
        let wide = |len: usize| u64::try_from(len).map_err(|_| too_large.clone());
        let mut bytes = Vec::with_capacity(found);
        bytes.extend(MAGIC.to_be_bytes());
        bytes.extend(VERSION_1.to_be_bytes());
        bytes.extend(u32::try_from(found).map_err(|_| too_large.clone())?.to_be_bytes());
        bytes.extend(self.iv);
        bytes.extend([0; 4]);
        for field in [wide(slots)?, wide(encrypted)?, self.pages, self.flags.0] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend(self.customer_key.coordinates());
        for digest in [&self.digests.pld, &self.digests.ald, &self.digests.tld] {
            bytes.extend(digest);
        }
        for slot in &self.slots {
            bytes.extend(slot.phkh);
            bytes.extend(slot.wrapped_key);
            bytes.extend(slot.tag);
        }
        Ok(bytes)
    }
}

/// A header. Its tag is not verified by anybody but the ultravisor, who has the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub(super) head: Head,
    pub(super) encrypted: Vec<u8>,
    pub(super) tag: [u8; TAG],
}

impl Header {
    /// Two pages: what the ultravisor takes.
    pub const MAX: usize = 2 * PAGE;
    /// Size of the encrypted part without optional items, of which none are defined.
    pub const ENCRYPTED: usize = 128;

    /// Size of a header with so many key slots.
    ///
    /// # Errors
    /// When there are none, or more than fit.
    pub const fn size(slots: usize) -> Result<usize, HeaderError> {
        let found = slots.saturating_mul(SLOT).saturating_add(FIXED + Self::ENCRYPTED + TAG);
        match slots {
            0 => Err(HeaderError::NoHostKey),
            _ if found > Self::MAX => Err(HeaderError::TooLarge { found, slots }),
            _ => Ok(found),
        }
    }

    /// Parses all of `bytes`.
    ///
    /// # Errors
    /// When they are not one header of version 1, or go on behind it.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let (header, rest) = Self::parse_first(bytes)?;
        if rest.is_empty() { Ok(header) } else { Err(FormError::Excess { what: WHAT, found: rest.len() }.into()) }
    }

    /// Parses the header at the start of `bytes`, and returns what follows it.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse_first(bytes: &[u8]) -> Result<(Self, &[u8]), HeaderError> {
        let mut rest = Rest(bytes);
        expect("header magic", rest.u64()?, MAGIC, "0x49424d5365634578, which is IBMSecEx")?;
        expect("header version", rest.u32()?.into(), VERSION_1.into(), "0x100")?;
        let size = rest.u32()?;
        let iv = rest.array()?;
        expect("reserved word at 28", rest.u32()?.into(), 0, "0")?;
        let (slots, encrypted, pages, flags) = (rest.u64()?, rest.u64()?, rest.u64()?, PlaintextFlags(rest.u64()?));
        let slots_len = bounded("number of key slots", slots, 1, (Self::MAX - FIXED - Self::ENCRYPTED - TAG) / SLOT)?;
        let encrypted_len = bounded("size of the encrypted part", encrypted, Self::ENCRYPTED, Self::MAX - FIXED - SLOT - TAG)?;
        let whole = FIXED + slots_len * SLOT + encrypted_len + TAG;
        bounded("size of the parts", u64::try_from(whole).unwrap_or(u64::MAX), 0, Self::MAX)?;
        if usize::try_from(size) != Ok(whole) {
            return Err(FormError::Field { field: "header size", found: size.into(), expected: "the size of its parts" }.into());
        }
        if pages == 0 {
            return Err(FormError::Field { field: "number of pages", found: 0, expected: "at least one" }.into());
        }
        let customer_key = Point::from_coordinates(rest.array()?)?;
        let digests = Digests { pld: rest.array()?, ald: rest.array()?, tld: rest.array()? };
        let slot =
            |rest: &mut Rest<'_>| Ok::<_, FormError>(KeySlot { phkh: rest.array()?, wrapped_key: rest.array()?, tag: rest.array()? });
        let slots = (0..slots_len).map(|_| slot(&mut rest)).collect::<Result<_, _>>()?;
        let encrypted = rest.take(encrypted_len)?.to_vec();
        let tag = rest.array()?;
        Ok((Self { head: Head { iv, pages, flags, customer_key, digests, slots }, encrypted, tag }, rest.0))
    }

    /// The bytes.
    ///
    /// # Errors
    /// When it has more key slots than possible, or none. What was parsed or made has not.
    pub fn to_bytes(&self) -> Result<Vec<u8>, HeaderError> {
        let mut bytes = self.head.to_bytes(self.encrypted.len())?;
        bytes.extend(&self.encrypted);
        bytes.extend(self.tag);
        Ok(bytes)
    }

    /// The plain part.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// What of it goes into an attestation's measurement.
    #[must_use]
    pub const fn tags(&self) -> ImageTags {
        let Digests { pld, ald, tld } = self.head.digests;
        ImageTags { pld, ald, tld, tag: self.tag }
    }
}

const WHAT: &str = "Secure Execution header";

fn expect(field: &'static str, found: u64, wanted: u64, expected: &'static str) -> Result<(), FormError> {
    if found == wanted { Ok(()) } else { Err(FormError::Field { field, found, expected }) }
}

fn bounded(field: &'static str, found: u64, least: usize, most: usize) -> Result<usize, FormError> {
    let value = usize::try_from(found).ok().filter(|value| (least..=most).contains(value));
    value.ok_or(FormError::Field { field, found, expected: "at least one slot, 128 encrypted bytes, and no more than fits two pages" })
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FormError> {
        let truncated = FormError::Truncated { what: WHAT, expected: len, found: self.0.len() };
        let (taken, rest) = self.0.split_at_checked(len).ok_or(truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormError> {
        let truncated = FormError::Truncated { what: WHAT, expected: N, found: self.0.len() };
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, FormError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, FormError> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PVIMG: &[u8] = include_bytes!("../../../tests/se/pvimg.hdr");

    fn form(bytes: &[u8]) -> FormError {
        match Header::parse(bytes).unwrap_err() {
            HeaderError::Form(error) => error,
            other => panic!("{other:?}"),
        }
    }

    /// With the value put in at an offset.
    fn with(at: usize, value: &[u8]) -> Vec<u8> {
        let mut bytes = PVIMG.to_vec();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    }

    #[test]
    fn every_field_is_where_it_belongs() {
        let header = Header::parse(PVIMG).unwrap();
        assert_eq!(header.head.iv, [51; 12]);
        assert_eq!((header.head.pages, header.head.flags.0), (1, 0));
        assert_eq!(header.head.digests, Digests { pld: [2; 64], ald: [1; 64], tld: [3; 64] });
        assert_eq!(header.head.slots.len(), 1);
        assert_eq!((header.head.slots[0].phkh[0], header.head.slots[0].tag[15]), (PVIMG[416], PVIMG[495]));
        assert_eq!((&header.encrypted[..], &header.tag[..]), (&PVIMG[496..624], &PVIMG[624..]));
        assert_eq!(header.to_bytes().unwrap(), PVIMG);
        assert_eq!(header.tags(), ImageTags::from_header(PVIMG).unwrap());
    }

    /// No byte is without meaning: one that is changed makes it no header, or another one, which is written back as it was read.
    #[test]
    fn a_changed_byte_is_refused_or_kept() {
        let header = Header::parse(PVIMG).unwrap();
        for (at, byte) in PVIMG.iter().enumerate() {
            for flip in [1, 0x80] {
                let bytes = with(at, &[byte ^ flip]);
                if let Ok(other) = Header::parse(&bytes) {
                    assert_ne!(other, header, "byte {at}");
                    assert_eq!(other.to_bytes().unwrap(), bytes, "byte {at}");
                    assert!((16..28).contains(&at) || (48..64).contains(&at) || at >= 224, "byte {at} was taken");
                }
            }
        }
    }

    #[test]
    fn every_length_but_its_own_is_refused() {
        for len in 0..PVIMG.len() {
            assert!(matches!(form(&PVIMG[..len]), FormError::Truncated { .. }), "{len} bytes");
        }
        let padded = [PVIMG, &[0; 3]].concat();
        assert_eq!(form(&padded), FormError::Excess { what: WHAT, found: 3 });
        assert_eq!(Header::parse_first(&padded).map(|(_, rest)| rest.len()), Ok(3));
    }

    #[test]
    fn each_field_is_bounded_by_name() {
        let cases: [(usize, &[u8], &str); 11] = [
            (0, b"J", "header magic"),
            (8, &0x200_u32.to_be_bytes(), "header version"),
            (12, &641_u32.to_be_bytes(), "header size"),
            (12, &u32::MAX.to_be_bytes(), "header size"),
            (28, &1_u32.to_be_bytes(), "reserved word at 28"),
            (32, &0_u64.to_be_bytes(), "number of key slots"),
            (32, &96_u64.to_be_bytes(), "number of key slots"),
            (32, &u64::MAX.to_be_bytes(), "number of key slots"),
            (40, &127_u64.to_be_bytes(), "size of the encrypted part"),
            (40, &u64::MAX.to_be_bytes(), "size of the encrypted part"),
            (48, &0_u64.to_be_bytes(), "number of pages"),
        ];
        for (at, value, name) in cases {
            let error = form(&with(at, value));
            assert!(matches!(error, FormError::Field { field, .. } if field == name), "{at}: {error}");
        }
        // Each by itself would fit.
        let mut both = with(32, &90_u64.to_be_bytes());
        both[40..48].copy_from_slice(&4096_u64.to_be_bytes());
        assert!(matches!(form(&both), FormError::Field { field: "size of the parts", .. }));
    }

    #[test]
    fn a_customer_key_off_the_curve_or_with_padding_is_refused() {
        for at in [64, 78, 143, 144, 158, 223] {
            assert_eq!(Header::parse(&with(at, &[PVIMG[at] ^ 1])), Err(NotAPoint.into()), "byte {at}");
        }
    }

    #[test]
    fn flags_are_numbered_from_the_left() {
        let bit = |n: u32| 1_u64 << (63 - n);
        assert_eq!(PlaintextFlags::DUMPING.0, bit(34));
        assert_eq!(PlaintextFlags::PLAIN_PAGES.0, bit(35));
        assert_eq!(PlaintextFlags::WRAPPED_KEYS.0, bit(56) | bit(57) | bit(58));
        assert!(!PlaintextFlags::WRAPPED_KEYS.contains(PlaintextFlags::DUMPING));
    }
}
