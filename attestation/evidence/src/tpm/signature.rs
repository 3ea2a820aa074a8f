//! The signature over a quote: TPMT_SIGNATURE, or bare where the algorithm is agreed on.

use super::ALG_SHA256;
use crate::cursor::{Cursor, FormError};

/// TPM_ALG_RSASSA: PKCS#1 v1.5.
const ALG_RSASSA: u16 = 0x0014;

/// RSASSA-PKCS1-v1_5 with SHA-256: the one scheme CoCo's attesters ask a TPM for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RsaSignature(Vec<u8>);

impl RsaSignature {
    /// Largest, in bytes: of a key of 4096 bits.
    pub const MAX: usize = 512;

    /// From the signature's own bytes.
    ///
    /// # Errors
    /// When there are more than of a key of 4096 bits.
    pub fn from_bare(bytes: &[u8]) -> Result<Self, FormError> {
        if bytes.len() > Self::MAX {
            return Err(FormError::TooLarge { what: "TPM signature", found: bytes.len(), limit: Self::MAX });
        }
        Ok(Self(bytes.to_vec()))
    }

    /// Parses exactly one TPMT_SIGNATURE.
    ///
    /// # Errors
    /// When it is of another scheme or hash, or not whole.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormError> {
        let mut cursor = Cursor::new(bytes, "TPM signature");
        let wrong = |field, found: u16, expected| Err(FormError::Field { field, found: found.into(), expected });
        match cursor.u16()? {
            ALG_RSASSA => {}
            found => return wrong("scheme of the TPM signature", found, "0x14: RSASSA"),
        }
        match cursor.u16()? {
            ALG_SHA256 => {}
            found => return wrong("hash of the TPM signature", found, "0xb: SHA-256"),
        }
        let signature = cursor.sized_u16(Self::MAX)?.to_vec();
        cursor.end()?;
        Ok(Self(signature))
    }

    /// The signature's own bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The TPMT_SIGNATURE.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Bounded when it was made.
        let len = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
        [ALG_RSASSA.to_be_bytes(), ALG_SHA256.to_be_bytes(), len.to_be_bytes()].concat().into_iter().chain(self.0.iter().copied()).collect()
    }
}
