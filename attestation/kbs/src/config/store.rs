//! `[store]`: where the broker keeps things, and the key that its secrets are sealed with.
//!
//! ```toml
//! [store]
//! postgres_url_file = "/etc/kata-cc-kbs/postgres"      # one line: postgresql://kbs:password@db.example/kbs, or host=… user=…
//! postgres_ca = "/etc/kata-cc-kbs/postgres-ca.pem"
//! key_env = "KBS_STORE_KEY"                             # or key_file; the same at all brokers
//! ```
//! Without this table everything is in `data_dir`, for one broker alone.

use super::ConfigError;
use serde::Deserialize;
use std::path::{Path, PathBuf};

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
}

impl Default for Store {
    fn default() -> Self {
        Self { postgres: None, postgres_url_file: None, postgres_ca: None, postgres_connections: 8, key_file: None, key_env: None }
    }
}

/// Where the key is that secrets are sealed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// In a file of 32 bytes, which is made at a first start.
    File(PathBuf),
    /// In an environment variable of this name, as base64.
    Environment(String),
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
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
        Ok(())
    }

    /// Whether a database is configured.
    pub fn is_postgres(&self) -> bool {
        self.postgres.is_some() || self.postgres_url_file.is_some()
    }

    /// Where the key is.
    pub fn key(&self, data_dir: &Path) -> KeySource {
        match (&self.key_env, &self.key_file) {
            (Some(name), _) => KeySource::Environment(name.clone()),
            (None, Some(path)) => KeySource::File(path.clone()),
            (None, None) => KeySource::File(data_dir.join("store.key")),
        }
    }
}
