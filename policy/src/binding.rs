//! What a policy's signature covers besides the policy: every other document of the initdata that carries it.
//!
//! Initdata comes through the host. Were the policy alone signed, the host could put the owner's key and the owner's signed policy
//! beside documents of its own making: another broker, another registry for the owner's credentials, a lower `min_version`. To
//! whoever asks only which keys sign, that is the owner's initdata. So the signed payload lists the other documents by digest.
//!
//! **Invariant:** a [`BoundPolicy`] exists only if the documents under the signature are exactly those of the initdata: none changed,
//! none more, none less. The envelope itself is left out, as it cannot hold its own digest; its signature speaks for it.
//!
//! Not here: the frame of initdata (order, spelling, digest algorithm), which means nothing and which the hardware's digest holds.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::envelope::VerifiedPolicy;
use crate::guest_config::POLICY_DSSE;
use crate::initdata::{Initdata, MAX_ENTRIES, is_plain_name};

/// Most differences that an error spells out: it travels to whoever looks at the pod.
const MAX_SHOWN: usize = 8;

/// SHA-256 of a document's text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DocumentDigest([u8; 32]);

impl DocumentDigest {
    /// Digest of a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }
}

impl fmt::Display for DocumentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for DocumentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DocumentDigest({self})")
    }
}

impl FromStr for DocumentDigest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).map_err(|_| "expected a SHA-256 digest: 64 hexadecimal digits")?;
        Ok(Self(digest))
    }
}

/// Documents by name, each with its digest; at least one, and never the envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct DocumentDigests(BTreeMap<String, DocumentDigest>);

impl DocumentDigests {
    /// The documents of initdata that a signature must cover: all but the envelope.
    #[must_use]
    pub fn of(initdata: &Initdata) -> Self {
        let others = initdata.documents().filter(|(name, _)| *name != POLICY_DSSE);
        Self(others.map(|(name, text)| (name.to_owned(), DocumentDigest::of(text))).collect())
    }

    /// Names and digests, in order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, DocumentDigest)> {
        self.0.iter().map(|(name, digest)| (name.as_str(), *digest))
    }

    /// Compares what was signed (`self`) with what is there. For command lines: it proves nothing, [`VerifiedPolicy::bind`] does.
    ///
    /// # Errors
    /// When they differ.
    pub fn compare(&self, found: &Self) -> Result<(), BindError> {
        let mut differences = Vec::new();
        for (name, expected) in &self.0 {
            match found.0.get(name) {
                Some(found) if found == expected => {}
                Some(found) => {
                    differences.push(Difference::Changed { document: name.clone(), expected: *expected, found: *found });
                }
                None => differences.push(Difference::Removed { document: name.clone(), expected: *expected }),
            }
        }
        let added = found.0.iter().filter(|(name, _)| !self.0.contains_key(*name));
        differences.extend(added.map(|(name, found)| Difference::Added { document: name.clone(), found: *found }));
        if differences.is_empty() { Ok(()) } else { Err(BindError { differences }) }
    }
}

impl TryFrom<BTreeMap<String, String>> for DocumentDigests {
    type Error = String;

    fn try_from(map: BTreeMap<String, String>) -> Result<Self, String> {
        if map.is_empty() || map.len() > MAX_ENTRIES {
            return Err(format!("documents: expected 1 to {MAX_ENTRIES} names with digests, found {}", map.len()));
        }
        let mut digests = BTreeMap::new();
        for (name, digest) in map {
            if !is_plain_name(&name) {
                return Err("documents: expected plain file names of initdata documents".to_owned());
            }
            if name == POLICY_DSSE {
                return Err(format!("documents: {POLICY_DSSE} is the envelope, which cannot hold its own digest"));
            }
            let digest = digest.parse().map_err(|expected| format!("documents: {name}: {expected}"))?;
            digests.insert(name, digest);
        }
        Ok(Self(digests))
    }
}

impl From<DocumentDigests> for BTreeMap<String, String> {
    fn from(digests: DocumentDigests) -> Self {
        digests.0.into_iter().map(|(name, digest)| (name, digest.to_string())).collect()
    }
}

/// One document that is not as it was when the owner signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Its text is another.
    Changed {
        /// Its name.
        document: String,
        /// Digest under the signature.
        expected: DocumentDigest,
        /// Digest of what is there.
        found: DocumentDigest,
    },
    /// It is there, but was not signed.
    Added {
        /// Its name.
        document: String,
        /// Digest of what is there.
        found: DocumentDigest,
    },
    /// It was signed, but is not there.
    Removed {
        /// Its name.
        document: String,
        /// Digest under the signature.
        expected: DocumentDigest,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { document, expected, found } => {
                write!(f, "`{document}` was changed (expected sha256 {expected}, found {found})")
            }
            Self::Added { document, found } => write!(f, "`{document}` was added (expected no such document, found sha256 {found})"),
            Self::Removed { document, expected } => write!(f, "`{document}` is missing (expected sha256 {expected}, found none)"),
        }
    }
}

/// The documents are not those that were signed.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "the documents of initdata are not those the policy was signed with: {}; if they are as the owner wants them, sign the policy for \
     them (`kata-cc policy sign --initdata …`)",
    list(.differences)
)]
pub struct BindError {
    differences: Vec<Difference>,
}

impl BindError {
    /// What differs; never empty.
    #[must_use]
    pub fn differences(&self) -> &[Difference] {
        &self.differences
    }
}

fn list(differences: &[Difference]) -> String {
    let mut text = differences.iter().take(MAX_SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if differences.len() > MAX_SHOWN {
        text.push_str(&format!(", and {} more", differences.len() - MAX_SHOWN));
    }
    text
}

/// A verified policy, signed together with the documents it came with. Only [`VerifiedPolicy::bind`] makes one for the outside.
///
/// What a trusted key signed is not enough to open the gate:
/// ```compile_fail,E0308
/// fn open(gate: &kata_cc_policy::Gate, policy: kata_cc_policy::VerifiedPolicy) {
///     let _ = gate.install(policy);
/// }
/// ```
#[derive(Debug)]
pub struct BoundPolicy(VerifiedPolicy);

impl BoundPolicy {
    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &VerifiedPolicy {
        &self.0
    }
}

impl VerifiedPolicy {
    /// Holds the initdata that carries the policy against what was signed with it. An unbound policy opens nothing.
    ///
    /// # Errors
    /// When a document was changed, added or taken out. The error names each.
    pub fn bind(self, initdata: &Initdata) -> Result<BoundPolicy, BindError> {
        self.bind_to(&DocumentDigests::of(initdata))
    }

    /// The same against documents that were bound before: those of a running pod.
    pub(crate) fn bind_to(self, found: &DocumentDigests) -> Result<BoundPolicy, BindError> {
        self.documents().compare(found)?;
        Ok(BoundPolicy(self))
    }
}

#[cfg(test)]
#[path = "binding_tests.rs"]
mod tests;
