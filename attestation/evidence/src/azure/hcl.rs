//! The HCL report: a hardware report and the runtime data whose digest it has.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 32 | header: "HCLA", version, size of all that follows and itself, and fields nothing rests on |
//! | 32 | 1184 | SNP report, or TD report padded with zeros |
//! | 1216 | 20 | size from here on, version, which report, which hash, size of the runtime data |
//! | 1236 | that | runtime data, JSON |
//!
//! What follows is padding up to the size of the TPM's index that it is read from.

use ring::digest::{SHA256, digest};

use crate::cursor::{Cursor, FormError};

/// "HCLA".
const MAGIC: u32 = u32::from_le_bytes(*b"HCLA");
/// Size of the header.
const HEADER: usize = 32;
/// Size of the area with the hardware report.
const REPORT: usize = 1184;
/// Size of what stands before the runtime data.
const RUNTIME_HEADER: u32 = 20;
/// Hash type of SHA-256.
const HASH_SHA256: u32 = 1;

/// Which hardware made the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardwareReport {
    /// An SNP report of 1184 bytes, signed.
    Snp,
    /// A TD report of 1024 bytes, which only a quote makes worth something to others.
    Tdx,
}

/// The report of Azure's host compatibility layer. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HclReport {
    raw: Vec<u8>,
    kind: HardwareReport,
    runtime_len: usize,
}

impl HclReport {
    /// Largest that is accepted, in bytes. Known ones have 2600.
    pub const MAX: usize = 16 * 1024;

    /// Parses one, with the padding behind it.
    ///
    /// # Errors
    /// When it is none, or does not hold together.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormError> {
        if bytes.len() > Self::MAX {
            return Err(FormError::TooLarge { what: "HCL report", found: bytes.len(), limit: Self::MAX });
        }
        let wrong = |field, found: u32, expected| Err(FormError::Field { field, found: found.into(), expected });
        let mut cursor = Cursor::new(bytes, "HCL report");
        match cursor.u32_le()? {
            MAGIC => {}
            found => return wrong("magic of the HCL report", found, "0x414c4348, which is HCLA"),
        }
        match cursor.u32_le()? {
            1 | 2 => {}
            found => return wrong("version of the HCL report", found, "1 or 2"),
        }
        cursor.take(HEADER.saturating_sub(8))?;
        cursor.take(REPORT)?;
        let size = cursor.u32_le()?;
        match cursor.u32_le()? {
            1 => {}
            found => return wrong("version of the runtime data", found, "1"),
        }
        let kind = match cursor.u32_le()? {
            2 => HardwareReport::Snp,
            4 => HardwareReport::Tdx,
            found => return wrong("type of the hardware report", found, "2 (SNP) or 4 (TDX)"),
        };
        match cursor.u32_le()? {
            HASH_SHA256 => {}
            found => return wrong("hash of the runtime data", found, "1: SHA-256"),
        }
        let len = cursor.u32_le()?;
        if size.checked_sub(RUNTIME_HEADER) != Some(len) {
            return wrong("size of the runtime data", len, "20 less than the size before it");
        }
        let runtime_len = usize::try_from(len).unwrap_or(usize::MAX);
        cursor.take(runtime_len)?;
        Ok(Self { raw: bytes.to_vec(), kind, runtime_len })
    }

    /// The bytes it was parsed from.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// Which hardware made the report.
    #[must_use]
    pub const fn kind(&self) -> HardwareReport {
        self.kind
    }

    /// The area with the hardware report: 1184 bytes.
    #[must_use]
    pub fn hardware_report(&self) -> &[u8] {
        self.part(HEADER, REPORT)
    }

    /// The runtime data, JSON: exactly the bytes whose digest the hardware report has.
    #[must_use]
    pub fn runtime_data(&self) -> &[u8] {
        let before = HEADER.saturating_add(REPORT).saturating_add(20);
        self.part(before, self.runtime_len)
    }

    /// SHA-256 of the runtime data, which the report data must begin with.
    #[must_use]
    pub fn runtime_digest(&self) -> [u8; 32] {
        digest(&SHA256, self.runtime_data()).as_ref().try_into().unwrap_or([0; 32])
    }

    /// A part that was there when the report was parsed.
    fn part(&self, at: usize, len: usize) -> &[u8] {
        self.raw.get(at..).and_then(|rest| rest.get(..len)).unwrap_or_default()
    }
}
