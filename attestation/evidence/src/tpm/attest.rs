//! TPMS_ATTEST of a quote: what the TPM signed.

use super::selection::PcrSelection;
use crate::cursor::{Cursor, FormError};

/// TPM_GENERATED_VALUE. No restricted key signs other data that begin with it, so nobody but the TPM made them.
const TPM_GENERATED: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_QUOTE.
const ST_ATTEST_QUOTE: u16 = 0x8018;

/// TPMS_CLOCK_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds the TPM has been on.
    pub clock: u64,
    /// How often it was reset.
    pub reset_count: u32,
    /// How often it was resumed since.
    pub restart_count: u32,
    /// Whether no greater value of `clock` was given out before.
    pub safe: bool,
}

/// A quote as the TPM signed it. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attest {
    raw: Vec<u8>,
    extra_data: Vec<u8>,
    clock: ClockInfo,
    firmware_version: u64,
    selection: PcrSelection,
    pcr_digest: [u8; 32],
}

impl Attest {
    /// Largest that is accepted, in bytes. One bank with the longest name and extra data has under 300.
    pub const MAX: usize = 512;
    /// Largest TPM2B_NAME and TPM2B_DATA: an algorithm's number and the longest hash.
    const MAX_NAME: usize = 66;

    /// Parses exactly one.
    ///
    /// # Errors
    /// When it is no quote, over another bank than SHA-256's, or not whole.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormError> {
        if bytes.len() > Self::MAX {
            return Err(FormError::TooLarge { what: "TPM quote", found: bytes.len(), limit: Self::MAX });
        }
        let mut cursor = Cursor::new(bytes, "TPM quote");
        expect("magic of the TPM quote", cursor.u32()?.into(), TPM_GENERATED.into(), "0xff544347: made by a TPM")?;
        expect("type of the TPM quote", cursor.u16()?.into(), ST_ATTEST_QUOTE.into(), "0x8018: a quote")?;
        cursor.sized_u16(Self::MAX_NAME)?;
        let extra_data = cursor.sized_u16(Self::MAX_NAME)?.to_vec();
        let clock = ClockInfo {
            clock: cursor.u64()?,
            reset_count: cursor.u32()?,
            restart_count: cursor.u32()?,
            safe: match cursor.array()? {
                [0] => false,
                [1] => true,
                [found] => return Err(FormError::Field { field: "safe of the TPM's clock", found: found.into(), expected: "0 or 1" }),
            },
        };
        let firmware_version = cursor.u64()?;
        let selection = PcrSelection::read(&mut cursor)?;
        expect("size of the PCR digest", cursor.u16()?.into(), 32, "0x20: SHA-256")?;
        let pcr_digest = cursor.array()?;
        cursor.end()?;
        Ok(Self { raw: bytes.to_vec(), extra_data, clock, firmware_version, selection, pcr_digest })
    }

    /// The bytes it was parsed from: what is signed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// What the caller wanted said: at most 66 bytes, which ought to be the report data.
    #[must_use]
    pub fn extra_data(&self) -> &[u8] {
        &self.extra_data
    }

    /// The TPM's clock.
    #[must_use]
    pub const fn clock(&self) -> ClockInfo {
        self.clock
    }

    /// Version of the TPM's firmware, in its maker's own form.
    #[must_use]
    pub const fn firmware_version(&self) -> u64 {
        self.firmware_version
    }

    /// Which PCRs it is over.
    #[must_use]
    pub const fn selection(&self) -> PcrSelection {
        self.selection
    }

    /// SHA-256 over the selected PCRs, in order.
    #[must_use]
    pub const fn pcr_digest(&self) -> &[u8; 32] {
        &self.pcr_digest
    }
}

fn expect(field: &'static str, found: u64, wanted: u64, expected: &'static str) -> Result<(), FormError> {
    if found == wanted { Ok(()) } else { Err(FormError::Field { field, found, expected }) }
}
