//! Reference manifests, by name. Of one name the highest serial number ever taken is remembered, also when the manifest is deleted.
//!
//! **Invariant:** a lower serial number, or other content under the same one, replaces nothing unless that was asked for.

use super::StoreError;
use kata_cc_policy::VerifiedManifest;
use kata_cc_policy::reference::Kind;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Names of manifests that there may be, deleted ones included.
pub(super) const MAX_MANIFESTS: i64 = 1000;

/// What is kept of a manifest beside its envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptManifest {
    /// See [`kata_cc_policy::Manifest::name`].
    pub name: String,
    /// See [`kata_cc_policy::Manifest::release`].
    pub release: String,
    /// See [`kata_cc_policy::Manifest::serial`].
    pub serial: u64,
    /// See [`kata_cc_policy::Manifest::kind`].
    pub kind: Kind,
    /// Unix time.
    pub not_before: u64,
    /// Unix time.
    pub expires: u64,
    /// Id of the key that signed it.
    pub signer: String,
    /// SHA-256 of what was signed.
    pub sha256: String,
    /// When it was taken, Unix time.
    pub put_at: u64,
    /// Which administrator brought it.
    pub put_by: String,
    /// Its values.
    pub values: BTreeMap<String, Vec<Value>>,
}

impl KeptManifest {
    /// Of a manifest that was admitted.
    pub fn new(verified: &VerifiedManifest, put_at: u64, put_by: String) -> Self {
        let manifest = verified.manifest();
        Self {
            name: manifest.name.clone(),
            release: manifest.release.clone(),
            serial: manifest.serial,
            kind: manifest.kind,
            not_before: manifest.not_before,
            expires: manifest.expires,
            signer: verified.signer().to_string(),
            sha256: verified.digest().to_string(),
            put_at,
            put_by,
            values: manifest.values(),
        }
    }
}

/// What became of a manifest that was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// It is the first of its name.
    New,
    /// It took the place of the one with this serial number, or of a deleted one.
    Replaced {
        /// The serial number of the one before; none where that was deleted.
        before: Option<u64>,
    },
    /// It was there already.
    Same,
    /// It was not taken: this serial number or a higher one of that name was here before.
    NotNewer {
        /// The highest.
        highest: u64,
    },
}

/// What there is of a name.
#[derive(Debug)]
pub(super) struct Before {
    /// The highest serial number that there ever was.
    pub(super) highest: i64,
    /// The manifest, where it was not deleted.
    pub(super) kept: Option<KeptManifest>,
}

/// What is to become of a manifest, and the highest serial number afterwards.
pub(super) fn decide(kept: &KeptManifest, before: Option<Before>, allow_rollback: bool) -> Result<(Put, i64), StoreError> {
    let serial = i64::try_from(kept.serial).map_err(|_| StoreError::Corrupt("serial number"))?;
    let Some(Before { highest, kept: before }) = before else { return Ok((Put::New, serial)) };
    if before.as_ref().is_some_and(|before| before.sha256 == kept.sha256) {
        return Ok((Put::Same, highest));
    }
    if serial <= highest && !allow_rollback {
        return Ok((Put::NotNewer { highest: u64::try_from(highest).unwrap_or_default() }, highest));
    }
    Ok((Put::Replaced { before: before.map(|before| before.serial) }, highest.max(serial)))
}

impl KeptManifest {
    /// As it is stored.
    pub(super) fn to_text(&self) -> Result<String, StoreError> {
        serde_json::to_string(self).map_err(|_| StoreError::Corrupt("reference manifest"))
    }

    /// As it was stored.
    pub(super) fn from_text(text: &[u8]) -> Result<Self, StoreError> {
        serde_json::from_slice(text).map_err(|_| StoreError::Corrupt("reference manifest"))
    }
}
