//! Reference manifests: what a guest image measures to, and what it was made from, under a signature.
//!
//! ```text
//! kata-cc measure --range ──> Manifest ──sign──> DSSE envelope ──> broker: verify ──> VerifiedManifest ──> reference values
//! ```
//! A manifest has a name and a serial number: of one name, a broker takes only ever higher ones. It says from when to when it holds, and
//! whether the image is for production; what is not never passes for it by being signed.
//!
//! **Invariant:** a [`VerifiedManifest`] exists only if a trusted key signed it as a reference manifest (never as anything else), and it
//! passed every check of [`Manifest::check`]. **Invariant:** no clock here; whoever asks says what time it is.

mod entry;

pub use entry::{Digest, Entry, Features, KernelInputs, SeEntry, SnpDigests, SnpEntry, SnpInputs, TdxEntry, TdxInputs, ValuesEntry};

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::dsse::{self, DsseError};
use crate::keys::{KeyId, SigningKey, TrustedKeys};

/// Payload type of a reference manifest. A change of the format changes the number in it.
pub const PAYLOAD_TYPE: &str = "application/vnd.kata-cc.reference-manifest.v1+json";

/// Longest name, release or model.
const MAX_TEXT: usize = 128;
/// Most entries of one manifest.
const MAX_ENTRIES: usize = 64;
/// Most digests and other values of one manifest. All vCPU counts of a large machine for all CPU models are about 2,000.
const MAX_VALUES: usize = 6000;

/// Why a manifest was refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not an envelope of a reference manifest that a trusted key signed; or it could not be signed.
    #[error("{}", told(.0))]
    Dsse(DsseError),
    /// Not the document of this version.
    #[error("not a reference manifest of version 1: {0}")]
    Document(String),
    /// A part has no sense.
    #[error("the reference manifest's {field}: expected {expected}, found {found}")]
    Field {
        /// Which part.
        field: &'static str,
        /// What would do.
        expected: String,
        /// What is there.
        found: String,
    },
}

fn told(error: &DsseError) -> String {
    match error {
        DsseError::Untrusted { .. } => format!("{error}; sign the manifest with a trusted key, or make its signer's key a trusted one"),
        other => format!("the reference manifest: {other}"),
    }
}

impl From<DsseError> for ManifestError {
    fn from(error: DsseError) -> Self {
        Self::Dsse(error)
    }
}

impl ManifestError {
    fn field(field: &'static str, expected: impl Into<String>, found: impl fmt::Display) -> Self {
        Self::Field { field, expected: expected.into(), found: found.to_string().chars().take(MAX_TEXT).collect() }
    }
}

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// May have secrets of value.
    Production,
    /// Lets somebody look into it, such as by a console that takes input. Only for brokers that were told to.
    Debug,
    /// Measured and signed for by a simulated TEE. Only for brokers that were told to.
    Simulation,
}

impl Kind {
    /// As in the document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Debug => "debug",
            Self::Simulation => "simulation",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Production, Self::Debug, Self::Simulation]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| "expected production, debug or simulation".into())
    }
}

/// Whether a manifest holds at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Its time has not come.
    NotYet,
    /// It holds.
    Valid,
    /// Its time is over.
    Expired,
}

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What it is about, such as `kata-cc-guest`: letters, digits, `-`, `_`, `.`. A manifest replaces the one of the same name.
    pub name: String,
    /// The image's version, as people call it.
    pub release: String,
    /// At least 1. Of one name, a higher one replaces a lower one and never the other way round.
    pub serial: u64,
    /// What the image is for.
    pub kind: Kind,
    /// Unix time in seconds from which on it holds.
    pub not_before: u64,
    /// Unix time in seconds from which on it holds no more.
    pub expires: u64,
    /// What was measured; at least one entry.
    pub entries: Vec<Entry>,
}

impl Manifest {
    /// Whether everything in it has a sense.
    ///
    /// # Errors
    /// Which part has none.
    pub fn check(&self) -> Result<(), ManifestError> {
        if !is_name(&self.name) {
            return Err(ManifestError::field("name", format!("1 to {MAX_TEXT} letters, digits, '-', '_', '.'"), &self.name));
        }
        if !is_text(&self.release) {
            return Err(ManifestError::field("release", format!("1 to {MAX_TEXT} printable characters"), self.release.escape_debug()));
        }
        if self.serial == 0 || i64::try_from(self.serial).is_err() {
            return Err(ManifestError::field("serial", format!("1 to {}", i64::MAX), self.serial));
        }
        // Some databases have no larger numbers.
        if self.expires <= self.not_before || i64::try_from(self.expires).is_err() {
            return Err(ManifestError::field("expires", format!("a time after not_before, {}", self.not_before), self.expires));
        }
        if self.entries.is_empty() || self.entries.len() > MAX_ENTRIES {
            return Err(ManifestError::field("entries", format!("1 to {MAX_ENTRIES}"), self.entries.len()));
        }
        self.entries.iter().try_for_each(Entry::check)?;
        let values: usize = self.values().values().map(Vec::len).sum();
        if values > MAX_VALUES {
            return Err(ManifestError::field("entries", format!("at most {MAX_VALUES} values in all"), values));
        }
        Ok(())
    }

    /// The reference values in it, by the ids that attestation policies ask for. Each once, in order.
    #[must_use]
    pub fn values(&self) -> BTreeMap<String, Vec<Value>> {
        let mut all: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for entry in &self.entries {
            for (id, values) in entry.values() {
                all.entry(id).or_default().extend(values);
            }
        }
        for values in all.values_mut() {
            let mut seen = std::collections::BTreeSet::new();
            values.retain(|value| seen.insert(value.to_string()));
        }
        all
    }

    /// Whether it holds at a Unix time.
    #[must_use]
    pub fn validity(&self, now: u64) -> Validity {
        if now < self.not_before {
            Validity::NotYet
        } else if now < self.expires {
            Validity::Valid
        } else {
            Validity::Expired
        }
    }
}

/// A manifest that a trusted key signed and that passed its checks. Private fields: only [`SignedManifest::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedManifest {
    manifest: Manifest,
    signer: KeyId,
    digest: Digest<32>,
}

impl VerifiedManifest {
    /// What was signed.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The key whose signature counted.
    #[must_use]
    pub fn signer(&self) -> KeyId {
        self.signer
    }

    /// SHA-256 of the signed bytes: what the manifest is known by. Not of the envelope, parts of which anybody can change.
    #[must_use]
    pub fn digest(&self) -> Digest<32> {
        self.digest
    }
}

/// A manifest in its envelope.
pub struct SignedManifest;

impl SignedManifest {
    /// Opens an envelope: size, type, a signature by a trusted key, then the document and its checks, in that order. Whether it holds now
    /// and whether its kind will do is for the caller to ask.
    ///
    /// # Errors
    /// When any of these does not hold.
    pub fn verify(bytes: &[u8], trusted: &TrustedKeys) -> Result<VerifiedManifest, ManifestError> {
        let (payload, signer) = dsse::verify(bytes, PAYLOAD_TYPE, trusted)?;
        let manifest: Manifest = serde_json::from_slice(&payload).map_err(|e| ManifestError::Document(e.to_string()))?;
        manifest.check()?;
        Ok(VerifiedManifest { manifest, signer, digest: Digest::new(Sha256::digest(&payload).into()) })
    }

    /// Signs a manifest with one or more keys. The result is the envelope's JSON text.
    ///
    /// # Errors
    /// When it would not be accepted, or the system's random source fails.
    pub fn sign(manifest: &Manifest, keys: &[&SigningKey]) -> Result<Vec<u8>, ManifestError> {
        manifest.check()?;
        let body = serde_json::to_vec(manifest).map_err(|e| ManifestError::Document(e.to_string()))?;
        Ok(dsse::sign(&body, PAYLOAD_TYPE, keys)?)
    }
}

fn is_name(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !matches!(text, "." | "..")
}

fn is_text(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests;
