//! TPML_PCR_SELECTION: which registers a quote is over.

use super::ALG_SHA256;
use super::quote::PCRS;
use crate::cursor::{Cursor, FormError};

/// Registers of the SHA-256 bank, at least one of them. Bit `i` is PCR `i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcrSelection(u32);

impl PcrSelection {
    /// Most bytes that name registers: a TPM has at most 32 of them.
    const MAX_SELECT: usize = 4;

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, FormError> {
        let wrong = |field, found: u64, expected| Err(FormError::Field { field, found, expected });
        // Several banks would leave open of which one the values are that came beside the quote.
        match cursor.u32()? {
            1 => {}
            banks => return wrong("number of PCR banks", banks.into(), "1: one bank"),
        }
        match cursor.u16()? {
            ALG_SHA256 => {}
            bank => return wrong("hash of the PCR bank", bank.into(), "0xb: SHA-256"),
        }
        let [len] = cursor.array()?;
        if usize::from(len) > Self::MAX_SELECT {
            return wrong("size of the PCR selection", len.into(), "at most 4 bytes");
        }
        let mut mask = [0; Self::MAX_SELECT];
        mask.iter_mut().zip(cursor.take(len.into())?).for_each(|(to, from)| *to = *from);
        match u32::from_le_bytes(mask) {
            0 => wrong("PCR selection", 0, "at least one PCR"),
            mask if mask >> PCRS != 0 => wrong("PCR selection", mask.into(), "none but PCR 0 to 23"),
            mask => Ok(Self(mask)),
        }
    }

    /// Whether the quote is over this register.
    #[must_use]
    pub const fn contains(self, pcr: usize) -> bool {
        pcr < PCRS && (self.0 >> pcr) & 1 == 1
    }
}
