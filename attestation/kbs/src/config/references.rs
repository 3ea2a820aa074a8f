//! `[references]`: whose reference values count.
//!
//! ```toml
//! [references]
//! signers = ["/etc/kata-cc-kbs/image-owner.pub"]
//! ```

use super::ConfigError;
use kata_cc_policy::reference::Kind;
use serde::Deserialize;
use std::path::PathBuf;

/// Reference values.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct References {
    /// Public keys (SPKI PEM, P-256 or Ed25519) whose manifests are taken. What others signed is refused, and no longer counts where it was
    /// taken before.
    pub signers: Vec<PathBuf>,
    /// Let administrators register values that nobody signed, and let those count.
    pub allow_unsigned: bool,
    /// Kinds of images besides those for production whose manifests are taken: `simulation`, `debug`. For development alone.
    pub development: Vec<Kind>,
}

impl References {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.development.contains(&Kind::Production) {
            let text = "`references.development` has \"production\", whose manifests are always taken: expected simulation, debug or both";
            return Err(ConfigError::Invalid(text.into()));
        }
        Ok(())
    }
}
