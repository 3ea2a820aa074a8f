//! The certificate table that travels beside an extended report (`auxblob` of configfs-tsm).
//!
//! AMD 56421 (GHCB), "SNP Extended Guest Request": entries of GUID, offset and length (24 bytes, little-endian numbers, GUID in
//! the order of its text), closed by an entry of zeros; offsets are from the start of the table. The host writes this table,
//! so every number in it is hostile.

use std::fmt;

/// Why bytes are not a certificate table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertTableError {
    /// More bytes than any host needs to send.
    #[error("certificate table of {found} bytes: at most {max} are accepted", max = CertTable::MAX_LEN)]
    TooLarge {
        /// How many bytes there were.
        found: usize,
    },
    /// No closing entry within the bytes or within the accepted number of entries.
    #[error("certificate table has no closing entry of zeros within {max} entries", max = CertTable::MAX_ENTRIES)]
    NotClosed,
    /// An entry points outside the table.
    #[error("certificate table entry {index} covers bytes {offset} to {offset}+{length}, the table has {total}")]
    OutOfBounds {
        /// Which entry, from zero.
        index: usize,
        /// Its offset.
        offset: u32,
        /// Its length.
        length: u32,
        /// Size of the table.
        total: usize,
    },
    /// A GUID in text form is malformed.
    #[error("not a GUID: expected 8-4-4-4-12 hexadecimal digits")]
    Guid,
}

/// A GUID in the byte order of its text, which is how the table stores it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

impl std::str::FromStr for Guid {
    type Err = CertTableError;

    fn from_str(text: &str) -> Result<Self, CertTableError> {
        let groups_right = text.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
        let mut bytes = [0; 16];
        if !groups_right || hex::decode_to_slice(text.replace('-', ""), &mut bytes).is_err() {
            return Err(CertTableError::Guid);
        }
        Ok(Self(bytes))
    }
}

/// What a table entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CertKind {
    /// Versioned Chip Endorsement Key certificate.
    Vcek,
    /// Versioned Loaded Endorsement Key certificate.
    Vlek,
    /// AMD SEV signing key (ASK) or, for a VLEK, the ASVK.
    Ask,
    /// AMD root key.
    Ark,
    /// Revocation list.
    Crl,
    /// Anything else, by its GUID.
    Other(Guid),
}

impl CertKind {
    const VCEK: Guid = Guid([0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd]);
    const VLEK: Guid = Guid([0xa8, 0x07, 0x4b, 0xc2, 0xa2, 0x5a, 0x48, 0x3e, 0xaa, 0xe6, 0x39, 0xc0, 0x45, 0xa0, 0xb8, 0xa1]);
    const ASK: Guid = Guid([0x4a, 0xb7, 0xb3, 0x79, 0xbb, 0xac, 0x4f, 0xe4, 0xa0, 0x2f, 0x05, 0xae, 0xf3, 0x27, 0xc7, 0x82]);
    const ARK: Guid = Guid([0xc0, 0xb4, 0x06, 0xa4, 0xa8, 0x03, 0x49, 0x52, 0x97, 0x43, 0x3f, 0xb6, 0x01, 0x4c, 0xd0, 0xae]);
    const CRL: Guid = Guid([0x92, 0xf8, 0x1b, 0xc3, 0x58, 0x11, 0x4d, 0x3d, 0x97, 0xff, 0xd1, 0x9f, 0x88, 0xdc, 0x67, 0xea]);

    /// The GUID of this kind.
    #[must_use]
    pub const fn guid(self) -> Guid {
        match self {
            Self::Vcek => Self::VCEK,
            Self::Vlek => Self::VLEK,
            Self::Ask => Self::ASK,
            Self::Ark => Self::ARK,
            Self::Crl => Self::CRL,
            Self::Other(guid) => guid,
        }
    }

    /// The kind a GUID stands for.
    #[must_use]
    pub fn from_guid(guid: Guid) -> Self {
        [Self::Vcek, Self::Vlek, Self::Ask, Self::Ark, Self::Crl].into_iter().find(|kind| kind.guid() == guid).unwrap_or(Self::Other(guid))
    }
}

/// One certificate (or list) of the table, as DER or whatever the host put there.
#[derive(Clone, PartialEq, Eq)]
pub struct CertEntry {
    /// What it is said to be.
    pub kind: CertKind,
    /// Its bytes.
    pub data: Vec<u8>,
}

impl fmt::Debug for CertEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertEntry({:?}, {} bytes)", self.kind, self.data.len())
    }
}

/// The certificates of an extended report, in the order of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertTable {
    /// The entries.
    pub entries: Vec<CertEntry>,
}

impl CertTable {
    /// Largest table accepted: four times what the Linux host driver takes.
    pub const MAX_LEN: usize = 64 * 1024;
    /// Most entries accepted; AMD defines five kinds.
    pub const MAX_ENTRIES: usize = 16;
    const ENTRY_LEN: usize = 24;

    /// Parses an `auxblob`. No bytes at all is an empty table: the host has no certificates to offer.
    ///
    /// # Errors
    /// When the table is too large, not closed, or an entry points outside it.
    pub fn parse(bytes: &[u8]) -> Result<Self, CertTableError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        if bytes.len() > Self::MAX_LEN {
            return Err(CertTableError::TooLarge { found: bytes.len() });
        }
        let mut entries = Vec::new();
        // One more round than entries are accepted, so that a table of exactly that many can close.
        for (index, raw) in bytes.chunks_exact(Self::ENTRY_LEN).take(Self::MAX_ENTRIES.saturating_add(1)).enumerate() {
            let Some((guid, numbers)) = raw.split_first_chunk::<16>() else { break };
            let Some((offset, length)) = numbers.split_first_chunk::<4>() else { break };
            let Some(length) = length.first_chunk::<4>() else { break };
            let (offset, length) = (u32::from_le_bytes(*offset), u32::from_le_bytes(*length));
            if *guid == [0; 16] {
                return Ok(Self { entries });
            }
            let data = usize::try_from(offset)
                .ok()
                .and_then(|start| bytes.get(start..))
                .and_then(|from| usize::try_from(length).ok().and_then(|len| from.get(..len)))
                .ok_or(CertTableError::OutOfBounds { index, offset, length, total: bytes.len() })?;
            if entries.len() >= Self::MAX_ENTRIES {
                return Err(CertTableError::NotClosed);
            }
            entries.push(CertEntry { kind: CertKind::from_guid(Guid(*guid)), data: data.to_vec() });
        }
        Err(CertTableError::NotClosed)
    }

    /// Builds the bytes of the table: header, closing entry, then the certificates one after the other.
    ///
    /// # Errors
    /// When the entries are more or larger than [`CertTable::parse`] would take.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CertTableError> {
        if self.entries.len() > Self::MAX_ENTRIES {
            return Err(CertTableError::NotClosed);
        }
        let header = self.entries.len().saturating_add(1).saturating_mul(Self::ENTRY_LEN);
        let total = self.entries.iter().fold(header, |sum, entry| sum.saturating_add(entry.data.len()));
        let too_large = CertTableError::TooLarge { found: total };
        if total > Self::MAX_LEN {
            return Err(too_large);
        }
        let mut bytes = Vec::with_capacity(total);
        let mut offset = header;
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.kind.guid().0);
            bytes.extend_from_slice(&u32::try_from(offset).map_err(|_| too_large.clone())?.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(entry.data.len()).map_err(|_| too_large.clone())?.to_le_bytes());
            offset = offset.saturating_add(entry.data.len());
        }
        bytes.resize(header, 0);
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.data);
        }
        Ok(bytes)
    }

    /// The first entry of a kind.
    #[must_use]
    pub fn get(&self, kind: CertKind) -> Option<&[u8]> {
        self.entries.iter().find(|entry| entry.kind == kind).map(|entry| entry.data.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> CertTable {
        CertTable {
            entries: vec![
                CertEntry { kind: CertKind::Vcek, data: vec![1; 1360] },
                CertEntry { kind: CertKind::Ask, data: vec![2; 1600] },
                CertEntry { kind: CertKind::Ark, data: vec![3; 1500] },
                CertEntry { kind: CertKind::Other(Guid([9; 16])), data: vec![] },
            ],
        }
    }

    #[test]
    fn table_round_trips() {
        let bytes = table().to_bytes().expect("fits");
        assert_eq!(CertTable::parse(&bytes), Ok(table()));
        // The kernel hands out whole pages: trailing zeros are no error.
        let mut padded = bytes;
        padded.resize(3 * 4096, 0);
        assert_eq!(CertTable::parse(&padded), Ok(table()));
        assert_eq!(CertTable::parse(&[]), Ok(CertTable::default()));
    }

    #[test]
    fn guids_have_amds_text_form() {
        assert_eq!(CertKind::Vcek.guid().to_string(), "63da758d-e664-4564-adc5-f4b93be8accd");
        assert_eq!(CertKind::Vlek.guid().to_string(), "a8074bc2-a25a-483e-aae6-39c045a0b8a1");
        assert_eq!(CertKind::Ask.guid().to_string(), "4ab7b379-bbac-4fe4-a02f-05aef327c782");
        assert_eq!(CertKind::Ark.guid().to_string(), "c0b406a4-a803-4952-9743-3fb6014cd0ae");
        assert_eq!("63da758d-e664-4564-adc5-f4b93be8accd".parse(), Ok(CertKind::Vcek.guid()));
        assert!("63da758d".parse::<Guid>().is_err());
        assert!("63da758d-e664-4564-adc5-f4b93be8acc\u{e9}".parse::<Guid>().is_err());
    }

    #[test]
    fn refuses_entries_that_point_outside() {
        let good = table().to_bytes().expect("fits");
        for (field, value) in [(16, u32::MAX), (20, u32::MAX), (16, 60_000), (20, 60_000)] {
            let mut bytes = good.clone();
            bytes[field..field + 4].copy_from_slice(&value.to_le_bytes());
            assert!(matches!(CertTable::parse(&bytes), Err(CertTableError::OutOfBounds { index: 0, .. })));
        }
    }

    #[test]
    fn refuses_tables_without_an_end() {
        assert_eq!(CertTable::parse(&[0; 23]), Err(CertTableError::NotClosed));
        let mut endless = Vec::new();
        for _ in 0..100 {
            endless.extend_from_slice(&[7; 16]);
            endless.extend_from_slice(&[0; 8]);
        }
        endless.extend_from_slice(&[0; 24]);
        assert_eq!(CertTable::parse(&endless), Err(CertTableError::NotClosed));
        assert!(matches!(CertTable::parse(&vec![0; CertTable::MAX_LEN + 1]), Err(CertTableError::TooLarge { .. })));
    }

    #[test]
    fn every_prefix_is_parsed_or_refused_without_panic() {
        let good = table().to_bytes().expect("fits");
        for len in 0..good.len() {
            let _ = CertTable::parse(&good[..len]);
        }
    }
}
