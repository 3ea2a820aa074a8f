//! A measurement register of a TD: 48 bytes of SHA-384.

use std::fmt;

use sha2::{Digest as _, Sha384};

/// A SHA-384 digest of something that was measured.
pub type Digest = [u8; 48];

/// The SHA-384 digest of these bytes, one after the other.
#[must_use]
pub fn sha384(parts: &[&[u8]]) -> Digest {
    let mut hasher = Sha384::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

/// What MRTD or an RTMR holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(Digest);

impl Register {
    /// A register somebody else computed or read.
    #[must_use]
    pub const fn from_bytes(bytes: Digest) -> Self {
        Self(bytes)
    }

    /// An RTMR after these events, by the digest of each, from zeros: `new = SHA-384(old ‖ digest)` (TDX Module base
    /// architecture specification 348549, section 12.2.2).
    #[must_use]
    pub fn extended<'a>(events: impl IntoIterator<Item = &'a Digest>) -> Self {
        Self(events.into_iter().fold([0; 48], |old, digest| sha384(&[&old, digest])))
    }

    /// Its 48 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Register({self})")
    }
}
