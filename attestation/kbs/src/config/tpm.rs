//! `[tpm]`: whose quotes count. TPMs have no maker's root here, so each machine's key is named.
//!
//! ```toml
//! [tpm]
//! attestation_keys = ["/etc/kata-cc-kbs/tpm/rack7.pem"]
//! ```

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// Most attestation keys.
const MAX_KEYS: usize = 1024;

/// Trusted TPMs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tpm {
    /// Public keys (SubjectPublicKeyInfo, PEM) that the machines' TPMs sign quotes with. Their paths are the claim `attestation_key`.
    #[serde(default)]
    pub attestation_keys: Vec<PathBuf>,
}

impl Tpm {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match self.attestation_keys.len() {
            found if found > MAX_KEYS => {
                Err(ConfigError::Invalid(format!("`tpm.attestation_keys` has {found} entries, at most {MAX_KEYS} are accepted")))
            }
            _ => Ok(()),
        }
    }
}
