//! Hash algorithms by their TPM numbers (TCG Algorithm Registry, table 3).

use std::fmt;

use ring::digest;

/// A hash algorithm, by its `TPM_ALG_ID`. Any number is one: logs may bring algorithms that nobody here knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HashAlgorithm(pub u16);

impl HashAlgorithm {
    /// SHA-1.
    pub const SHA1: Self = Self(0x0004);
    /// SHA-256.
    pub const SHA256: Self = Self(0x000b);
    /// SHA-384.
    pub const SHA384: Self = Self(0x000c);
    /// SHA-512.
    pub const SHA512: Self = Self(0x000d);
    /// SM3-256.
    pub const SM3: Self = Self(0x0012);

    /// Length of its digests in bytes, where it is known.
    #[must_use]
    pub const fn digest_len(self) -> Option<usize> {
        match self {
            Self::SHA1 => Some(20),
            Self::SHA256 | Self::SM3 => Some(32),
            Self::SHA384 => Some(48),
            Self::SHA512 => Some(64),
            _ => None,
        }
    }

    /// Its name, as in CoCo's claims.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::SHA1 => Some("SHA-1"),
            Self::SHA256 => Some("SHA-256"),
            Self::SHA384 => Some("SHA-384"),
            Self::SHA512 => Some("SHA-512"),
            Self::SM3 => Some("SM3"),
            _ => None,
        }
    }

    /// The digest of `parts`, one after the other. `None` for SM3 and algorithms not known, which cannot be computed here.
    #[must_use]
    pub fn hash(self, parts: &[&[u8]]) -> Option<Vec<u8>> {
        let algorithm = match self {
            Self::SHA1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::SHA256 => &digest::SHA256,
            Self::SHA384 => &digest::SHA384,
            Self::SHA512 => &digest::SHA512,
            _ => return None,
        };
        let mut context = digest::Context::new(algorithm);
        parts.iter().for_each(|part| context.update(part));
        Some(context.finish().as_ref().to_vec())
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "algorithm {:#06x}", self.0),
        }
    }
}

impl fmt::Debug for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
