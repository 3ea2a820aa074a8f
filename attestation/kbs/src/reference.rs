//! Which reference values count: manifests that a configured key signed, while they hold; and unsigned ones where the configuration says so.
//!
//! ```text
//! envelope ──admit──> VerifiedManifest ──store──> KeptManifest ──standing, at each appraisal──> reference values
//! ```
//! **Invariant:** what was taken under one configuration does not count under another that would not take it: signer, kind and time are
//! asked again at each appraisal. **Invariant:** no clock; times are passed in.

use crate::config;
use crate::config::{ConfigError, read_bounded};
use crate::rego::Lookup;
use crate::store::{KeptManifest, ReferenceValues, Registered};
use kata_cc_policy::keys::KeyError;
use kata_cc_policy::reference::{Kind, ManifestError, Validity};
use kata_cc_policy::{PublicKey, SignedManifest, TrustedKeys, VerifiedManifest};
use serde_json::Value;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

const MAX_KEY_FILE: u64 = 16 * 1024;

/// Why the configured signers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReferencesError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ConfigError),
    /// A file has no usable key.
    #[error("no usable public key in {}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: KeyError,
    },
    /// The keys make no set.
    #[error("`references.signers`")]
    Signers(#[source] KeyError),
}

/// Why a manifest is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Nobody may sign.
    #[error("this broker takes no manifests: no `signers` are configured in [references]")]
    NoSigners,
    /// Not a manifest that a configured key signed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// For images that may have no secrets of value.
    #[error("the manifest is of kind \"{0}\": expected \"production\", or a kind that `development` in [references] names")]
    Kind(Kind),
    /// It would never count.
    #[error("the manifest expired at {0} (Unix time), and would never count")]
    Expired(u64),
}

/// What a manifest that was taken is worth at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It counts.
    InForce,
    /// It will.
    NotYet,
    /// Its time is over.
    Expired,
    /// Its signer is no longer configured.
    Signer,
    /// Its kind is no longer allowed.
    Kind,
}

impl Standing {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InForce => "in-force",
            Self::NotYet => "not-yet",
            Self::Expired => "expired",
            Self::Signer => "signer-not-configured",
            Self::Kind => "kind-not-allowed",
        }
    }
}

/// What one appraisal compares with.
#[derive(Debug, Default)]
pub struct InForce {
    /// Values by id.
    pub values: Arc<Lookup>,
    /// The manifests they come from, for people.
    pub manifests: Vec<String>,
}

/// The rules. By default nothing counts.
#[derive(Debug, Clone, Default)]
pub struct References {
    signers: Option<TrustedKeys>,
    allow_unsigned: bool,
    development: Vec<Kind>,
}

impl References {
    /// Reads the configured keys.
    pub fn configured(config: &config::References) -> Result<Self, ReferencesError> {
        let read = |path: &PathBuf| -> Result<PublicKey, ReferencesError> {
            let text = read_bounded(path, MAX_KEY_FILE)?;
            PublicKey::from_pem(&text).map_err(|source| ReferencesError::Key { path: path.clone(), source })
        };
        let keys = config.signers.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let signers = if keys.is_empty() { None } else { Some(TrustedKeys::new(keys, 0).map_err(ReferencesError::Signers)?) };
        Ok(Self { signers, allow_unsigned: config.allow_unsigned, development: config.development.clone() })
    }

    /// Takes what nobody signed, and nothing else.
    pub fn unsigned() -> Self {
        Self { allow_unsigned: true, ..Self::default() }
    }

    /// Whether values that nobody signed count.
    pub fn allow_unsigned(&self) -> bool {
        self.allow_unsigned
    }

    /// Kinds besides production.
    pub fn development(&self) -> &[Kind] {
        &self.development
    }

    fn allows(&self, kind: Kind) -> bool {
        kind == Kind::Production || self.development.contains(&kind)
    }

    /// Opens an envelope: signed by a configured key, of a kind that is allowed, not expired.
    pub fn admit(&self, envelope: &[u8], now: u64) -> Result<VerifiedManifest, NotAdmitted> {
        let signers = self.signers.as_ref().ok_or(NotAdmitted::NoSigners)?;
        let verified = SignedManifest::verify(envelope, signers)?;
        let manifest = verified.manifest();
        if !self.allows(manifest.kind) {
            return Err(NotAdmitted::Kind(manifest.kind));
        }
        match manifest.validity(now) {
            Validity::Expired => Err(NotAdmitted::Expired(manifest.expires)),
            Validity::Valid | Validity::NotYet => Ok(verified),
        }
    }

    /// What a manifest that was taken once is worth now.
    pub fn standing(&self, kept: &KeptManifest, now: u64) -> Standing {
        let signer_is_known = self.signers.as_ref().is_some_and(|keys| keys.ids().any(|id| id.to_string() == kept.signer));
        if !signer_is_known {
            Standing::Signer
        } else if !self.allows(kept.kind) {
            Standing::Kind
        } else if now < kept.not_before {
            Standing::NotYet
        } else if now >= kept.expires {
            Standing::Expired
        } else {
            Standing::InForce
        }
    }

    /// What counts now. Of an id with values from several places, each value counts once; one that was registered as a scalar stays one
    /// while no manifest has that id.
    pub fn in_force(&self, registered: &Registered, now: u64) -> InForce {
        let mut all = if self.allow_unsigned { registered.unsigned.clone() } else { ReferenceValues::new() };
        let mut manifests = Vec::new();
        for kept in registered.manifests.iter().filter(|kept| self.standing(kept, now) == Standing::InForce) {
            manifests.push(format!("{} {} (serial {})", kept.name, kept.release, kept.serial));
            for (id, values) in &kept.values {
                let list = match all.remove(id) {
                    None => values.clone(),
                    Some(Value::Array(before)) => joined(before, values),
                    Some(scalar) => joined(vec![scalar], values),
                };
                all.insert(id.clone(), Value::Array(list));
            }
        }
        InForce { values: Arc::new(all.into()), manifests }
    }
}

/// The last answer of [`References::in_force`], for as long as it would be the same.
#[derive(Debug, Default)]
pub struct Remembered(Mutex<Option<Last>>);

#[derive(Debug)]
struct Last {
    /// Of these. Held, so that no others are ever at their address.
    registered: Arc<Registered>,
    /// The times between which no manifest begins or ends to count.
    during: Range<u64>,
    in_force: Arc<InForce>,
}

impl Remembered {
    /// What counts now of what is registered, under rules that are always the same ones.
    pub fn in_force(&self, rules: &References, registered: &Arc<Registered>, now: u64) -> Arc<InForce> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.as_ref().filter(|last| Arc::ptr_eq(&last.registered, registered) && last.during.contains(&now)) {
            return Arc::clone(&last.in_force);
        }
        let in_force = Arc::new(rules.in_force(registered, now));
        *last = Some(Last { registered: Arc::clone(registered), during: unchanged(registered, now), in_force: Arc::clone(&in_force) });
        in_force
    }
}

/// The times around now at which the same manifests count.
fn unchanged(registered: &Registered, now: u64) -> Range<u64> {
    let turns = registered.manifests.iter().flat_map(|kept| [kept.not_before, kept.expires]);
    turns
        .fold(0..u64::MAX, |during, turn| if turn <= now { during.start.max(turn)..during.end } else { during.start..during.end.min(turn) })
}

fn joined(mut before: Vec<Value>, more: &[Value]) -> Vec<Value> {
    let seen: std::collections::HashSet<String> = before.iter().map(Value::to_string).collect();
    before.extend(more.iter().filter(|value| !seen.contains(&value.to_string())).cloned());
    before
}

#[cfg(test)]
mod tests;
