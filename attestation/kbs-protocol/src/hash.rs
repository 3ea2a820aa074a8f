//! Binding of runtime data into evidence: canonical JSON (RFC 8785), hashed, placed in REPORT_DATA.

use std::fmt;
use std::str::FromStr;

use kata_cc_evidence::ReportData;
use ring::digest;
use serde::Serialize;

/// Hash algorithms of the protocol this implementation offers and accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HashAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384, what the protocol uses where nothing else is agreed.
    #[default]
    Sha384,
    /// SHA-512.
    Sha512,
}

/// A hash algorithm this implementation does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown hash algorithm {found:?}: expected sha256, sha384 or sha512")]
pub struct UnknownHash {
    /// What was found, cut to 32 characters.
    pub found: String,
}

impl HashAlgorithm {
    /// All, weakest first.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// Name on the wire and in initdata.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Digest of bytes.
    #[must_use]
    pub fn digest(self, bytes: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        };
        digest::digest(algorithm, bytes).as_ref().to_vec()
    }

    /// REPORT_DATA that binds `runtime_data`: the digest of its canonical JSON, zero padded.
    ///
    /// # Errors
    /// When the value has no canonical JSON form.
    pub fn bind<T: Serialize>(self, runtime_data: &T) -> Result<ReportData, serde_json::Error> {
        Ok(ReportData::from_digest(&self.digest(&serde_json_canonicalizer::to_vec(runtime_data)?)))
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for HashAlgorithm {
    type Err = UnknownHash;

    fn from_str(text: &str) -> Result<Self, UnknownHash> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownHash { found: text.chars().take(32).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binding_does_not_depend_on_the_order_of_keys() {
        let one: serde_json::Value = serde_json::from_str(r#"{"b": 1, "a": "x"}"#).expect("parses");
        let two: serde_json::Value = serde_json::from_str(r#"{ "a":"x","b":1}"#).expect("parses");
        let bound = HashAlgorithm::Sha384.bind(&one).expect("binds");
        assert_eq!(bound, HashAlgorithm::Sha384.bind(&two).expect("binds"));
        assert_eq!(bound.0[..48], HashAlgorithm::Sha384.digest(br#"{"a":"x","b":1}"#));
        assert_eq!(bound.0[48..], [0; 16]);
    }

    #[test]
    fn digests_have_the_standards_values() {
        let abc = hex::encode(HashAlgorithm::Sha256.digest(b"abc"));
        assert_eq!(abc, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(HashAlgorithm::Sha512.digest(b"").len(), 64);
    }

    #[test]
    fn names_parse_in_any_case_and_unknown_ones_are_refused() {
        assert_eq!("SHA384".parse(), Ok(HashAlgorithm::Sha384));
        assert!("sm3".parse::<HashAlgorithm>().is_err());
    }
}
