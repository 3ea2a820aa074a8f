//! What a request asks the ultravisor to add to the measurement, and the additional data that came of it.

use crate::cursor::{Cursor, FormError};

/// Plaintext attestation flags of a request. Bit 0 is the most significant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flags(pub u64);

impl Flags {
    /// Bit 1: the request holds a nonce.
    pub const NONCE: Self = Self(1 << 62);
    /// Bit 2: add the hash of the host key that unpacked the image.
    pub const IMAGE_PHKH: Self = Self(1 << 61);
    /// Bit 3: add the hash of the host key that unpacked the request.
    pub const ATTESTATION_PHKH: Self = Self(1 << 60);
    /// What our requests ask for, and CoCo's: nonce and both host-key hashes.
    pub const REQUESTED: Self = Self(Self::NONCE.0 | Self::IMAGE_PHKH.0 | Self::ATTESTATION_PHKH.0);

    /// True when all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Additional data of a request with [`Flags::REQUESTED`]. Parsed, **not verified**.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Additional {
    /// SHA-256 of the public host key whose private half unpacked the image.
    pub image_phkh: [u8; 32],
    /// SHA-256 of the public host key whose private half unpacked the request.
    pub attestation_phkh: [u8; 32],
}

impl Additional {
    /// Size in bytes.
    pub const LEN: usize = 64;

    /// Parses all of `bytes`.
    ///
    /// # Errors
    /// When there are more or fewer.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormError> {
        let mut cursor = Cursor::new(bytes, "additional data");
        let additional = Self { image_phkh: cursor.array()?, attestation_phkh: cursor.array()? };
        cursor.end()?;
        Ok(additional)
    }

    /// The bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.image_phkh, self.attestation_phkh].concat()
    }
}
