//! `[store]`: where the broker keeps things, and the key that its secrets are sealed with.
//!
//! ```toml
//! [store]
//! postgres_url_file = "/etc/kata-cc-kbs/postgres"      # one line: postgresql://kbs:password@db.example/kbs, or host=… user=…
//! postgres_ca = "/etc/kata-cc-kbs/postgres-ca.pem"
//! key_env = "KBS_STORE_KEY"                             # or key_file; the same at all brokers
//! ```
//! Without this table everything is in `data_dir`, for one broker alone. The key may also be wrapped by one in an HSM:
//!
//! ```toml
//! [store.pkcs11]
//! module = "/usr/lib/softhsm/libsofthsm2.so"            # the PKCS#11 library of the HSM's maker
//! token = "kbs"                                         # its label
//! key = "kbs-store"                                     # label of an AES key of 256 bits that cannot leave the token
//! pin_file = "/etc/kata-cc-kbs/pin"                     # the user's PIN, in a file that its owner alone may read
//! wrapped_key_file = "/etc/kata-cc-kbs/store.key.wrapped"   # `store.key.wrapped` in `data_dir` where nothing is said
//! ```

use super::ConfigError;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Longest label of a token (PKCS#11 v3.1, CK_TOKEN_INFO).
const MAX_TOKEN_LABEL: usize = 32;
/// Longest label of a key. PKCS#11 sets no limit.
const MAX_KEY_LABEL: usize = 255;

/// Most connections to the database. It has some hundred for everybody.
const MAX_CONNECTIONS: usize = 64;

/// The store.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Which PostgreSQL, without a password: `postgresql://…` or `host=… user=…`.
    pub postgres: Option<String>,
    /// A file with that, where it has a password.
    pub postgres_url_file: Option<PathBuf>,
    /// Certificates (PEM) of whoever vouches for the database. Needed where it is on another host.
    pub postgres_ca: Option<PathBuf>,
    /// Connections to the database at a time.
    pub postgres_connections: usize,
    /// The key that secrets are sealed with: a file of 32 bytes. `store.key` in `data_dir` where nothing is said.
    pub key_file: Option<PathBuf>,
    /// The same in an environment variable of this name, as base64.
    pub key_env: Option<String>,
    /// The same, wrapped by a key in an HSM.
    pub pkcs11: Option<Pkcs11>,
}

/// A key in an HSM that wraps the store's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pkcs11 {
    /// The library of the HSM's maker. It runs in the broker's process.
    pub module: PathBuf,
    /// Label of the token.
    pub token: String,
    /// Label of the key.
    pub key: String,
    /// A file with the PIN of the token's user.
    pub pin_file: PathBuf,
    /// The store's key as the HSM's key has wrapped it. `store.key.wrapped` in `data_dir` where nothing is said.
    pub wrapped_key_file: Option<PathBuf>,
}

impl Pkcs11 {
    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        // A bare name would be looked for wherever the environment says.
        if !self.module.is_absolute() {
            return invalid(format!("`store.pkcs11.module` is {}: expected an absolute path", self.module.display()));
        }
        for (name, label, max) in [("token", &self.token, MAX_TOKEN_LABEL), ("key", &self.key, MAX_KEY_LABEL)] {
            if label.is_empty() || label.len() > max || label.chars().any(char::is_control) {
                return invalid(format!("`store.pkcs11.{name}` is {label:?}: expected a label of 1 to {max} bytes"));
            }
        }
        Ok(())
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            postgres: None,
            postgres_url_file: None,
            postgres_ca: None,
            postgres_connections: 8,
            key_file: None,
            key_env: None,
            pkcs11: None,
        }
    }
}

/// Where the key is that secrets are sealed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// In a file of 32 bytes, which is made at a first start.
    File(PathBuf),
    /// In an environment variable of this name, as base64.
    Environment(String),
    /// In a file, wrapped by a key in an HSM. Made at a first start.
    Pkcs11 {
        /// That key.
        hsm: Pkcs11,
        /// The file.
        wrapped: PathBuf,
    },
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::Pkcs11 { hsm, wrapped } => {
                write!(f, "{} (wrapped by the key {:?} of the token {:?})", wrapped.display(), hsm.key, hsm.token)
            }
        }
    }
}

impl Store {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        if self.postgres.is_some() && self.postgres_url_file.is_some() {
            return invalid("`store.postgres` and `store.postgres_url_file` say the same: remove one".into());
        }
        if !self.is_postgres() && self.postgres_ca.is_some() {
            return invalid(
                "`store.postgres_ca` without `store.postgres` or `store.postgres_url_file`: there is no database to ask".into(),
            );
        }
        if !(1..=MAX_CONNECTIONS).contains(&self.postgres_connections) {
            return invalid(format!("`store.postgres_connections` is {}, expected 1 to {MAX_CONNECTIONS}", self.postgres_connections));
        }
        if self.key_file.is_some() && self.key_env.is_some() {
            return invalid("`store.key_file` and `store.key_env` say the same: remove one".into());
        }
        if self.key_env.as_ref().is_some_and(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return invalid("`store.key_env` is no name of an environment variable".into());
        }
        if let Some(hsm) = &self.pkcs11 {
            if self.key_file.is_some() || self.key_env.is_some() {
                return invalid("`store.pkcs11` and `store.key_file` or `store.key_env` say the same: remove one".into());
            }
            hsm.check()?;
        }
        Ok(())
    }

    /// Whether a database is configured.
    pub fn is_postgres(&self) -> bool {
        self.postgres.is_some() || self.postgres_url_file.is_some()
    }

    /// Where the key is.
    pub fn key(&self, data_dir: &Path) -> KeySource {
        if let Some(hsm) = &self.pkcs11 {
            let wrapped = hsm.wrapped_key_file.clone().unwrap_or_else(|| data_dir.join("store.key.wrapped"));
            return KeySource::Pkcs11 { hsm: hsm.clone(), wrapped };
        }
        match (&self.key_env, &self.key_file) {
            (Some(name), _) => KeySource::Environment(name.clone()),
            (None, Some(path)) => KeySource::File(path.clone()),
            (None, None) => KeySource::File(data_dir.join("store.key")),
        }
    }
}
