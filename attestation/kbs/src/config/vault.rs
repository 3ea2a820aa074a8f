//! `[vault]`: resources are in a HashiCorp Vault or OpenBao, not in the store.
//!
//! ```toml
//! [vault]
//! address = "https://vault.example:8200"
//! mount = "secret"                                  # a KV secrets engine, version 2
//! prefix = "kbs"                                    # nothing where all of the mount is the broker's
//! token_file = "/etc/kata-cc-kbs/vault-token"       # read again whenever it is needed
//! ca = "/etc/kata-cc-kbs/vault-ca.pem"              # the system's authorities where nothing is said
//! namespace = "team-a"
//! ```

use super::ConfigError;
use kata_cc_collateral::BaseUrl;
use serde::{Deserialize, Deserializer};
use std::path::PathBuf;

const MAX_PATH: usize = 512;

/// A Vault.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    /// https, or http on a loopback address.
    #[serde(deserialize_with = "url")]
    pub address: BaseUrl,
    /// Where the secrets engine is mounted.
    #[serde(default = "default_mount")]
    pub mount: String,
    /// Under which path of the mount the resources are.
    #[serde(default)]
    pub prefix: String,
    /// A file with the broker's token.
    pub token_file: PathBuf,
    /// Certificates (PEM) of whoever vouches for the Vault. No others do then.
    pub ca: Option<PathBuf>,
    /// The namespace of the mount.
    pub namespace: Option<String>,
}

fn default_mount() -> String {
    "secret".into()
}

fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BaseUrl, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

impl Vault {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let namespace = self.namespace.as_deref();
        for (name, path, may_be_empty) in
            [("mount", Some(self.mount.as_str()), false), ("prefix", Some(self.prefix.as_str()), true), ("namespace", namespace, false)]
        {
            let Some(path) = path else { continue };
            // These become parts of a URL or a header as they are.
            let segment = |segment: &str| {
                !segment.is_empty()
                    && !segment.starts_with('.')
                    && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            };
            let sane = path.len() <= MAX_PATH && path.split('/').all(segment);
            if !(sane || path.is_empty() && may_be_empty) {
                return Err(ConfigError::Invalid(format!(
                    "`vault.{name}` is {path:?}: expected A-Z a-z 0-9 . _ - in segments between single slashes, none at an end"
                )));
            }
        }
        Ok(())
    }
}
