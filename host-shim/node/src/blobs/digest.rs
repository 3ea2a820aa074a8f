//! The name of a blob.

use std::str::FromStr;

/// A SHA-256 digest, written `sha256:` and 64 lower-case hexadecimal digits (OCI image-spec, "descriptor.md#digests").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlobDigest([u8; 32]);

/// Not a digest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected sha256: and 64 lower-case hexadecimal digits")]
pub(crate) struct NotADigest;

impl BlobDigest {
    pub(crate) const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digits alone, which is what its file is called.
    pub(crate) fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The inverse of [`Self::hex`].
    pub(crate) fn from_hex(text: &str) -> Result<Self, NotADigest> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NotADigest)?;
        // One name a blob: upper case would be another.
        Some(Self(bytes)).filter(|digest| digest.hex() == text).ok_or(NotADigest)
    }
}

impl FromStr for BlobDigest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        Self::from_hex(text.strip_prefix("sha256:").ok_or(NotADigest)?)
    }
}

impl std::fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}
