//! Everything the broker keeps: secrets, policies, reference values, its own keys, the audit log, sessions.
//!
//! ```text
//! Store ──┬─> Sqlite: one file and one thread; sessions in memory
//!         └─> Postgres: a database that several brokers share; sessions in it
//! ```
//! **Invariant:** secret values are in a database only as [`crate::seal`] made them.

mod audit;
mod manifest;
mod postgres;
pub mod rotate;
mod sqlite;

pub use audit::AuditQuery;
pub use manifest::{KeptManifest, Put};
pub use postgres::{Postgres, PostgresError};
pub use sqlite::Sqlite;

use crate::audit::Decision;
use crate::config;
use crate::seal::SealError;
use crate::session::SessionError;
use axum::body::Bytes;
use kata_cc_kbs_protocol::{AttestedSession, AwaitAttest, ResourcePath, SessionId};
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Limits against a careless administrator rather than an attacker: only administrators write.
const MAX_RESOURCES: i64 = 100_000;
const MAX_REFERENCE_IDS: i64 = 10_000;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data directory could not be made.
    #[error("cannot create {}", path.display())]
    Directory {
        /// Which directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is a database but not the key that its secrets are sealed with.
    #[error(
        "{0} is missing, and the database's secrets are sealed with it: restore it (a key file goes over to an HSM by --wrap-store-key), or start with an empty store"
    )]
    KeyLost(String),
    /// The database's secrets are sealed with another key.
    #[error("the database's secrets are sealed with another key than that in {0}: put there the one that its other brokers have")]
    OtherKey(String),
    /// SQLite failed.
    #[error("database error")]
    Sqlite(#[from] rusqlite::Error),
    /// PostgreSQL failed.
    #[error("database error")]
    Postgres(#[from] tokio_postgres::Error),
    /// What is configured cannot be a database.
    #[error(transparent)]
    Configuration(#[from] PostgresError),
    /// PostgreSQL does not answer, or not now.
    #[error("the database does not answer: {0}")]
    Unavailable(String),
    /// Sealing or opening failed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The database was written by another version.
    #[error("the database has schema version {found}, expected {expected}")]
    Schema {
        /// What the database says.
        found: i64,
        /// What this broker knows.
        expected: i64,
    },
    /// A stored value is not what it should be.
    #[error("a stored {0} cannot be read back")]
    Corrupt(&'static str),
    /// A table is full.
    #[error("the store holds as many {0} as it may")]
    Full(&'static str),
    /// Somebody else has the database open.
    #[error("a broker uses the database: stop all that do")]
    InUse,
    /// No thread for the database.
    #[error("cannot start the database thread")]
    Thread(#[source] std::io::Error),
    /// The database thread is gone.
    #[error("the database thread has ended")]
    Closed,
}

/// Policies the store keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PolicyName {
    /// The one that decides over resources.
    Resource,
    /// The one of this id that appraises evidence.
    Attestation(String),
}

impl PolicyName {
    fn key(&self) -> String {
        match self {
            Self::Resource => "resource".into(),
            Self::Attestation(id) => format!("attestation:{id}"),
        }
    }
}

/// Reference values by id. A value is what the administrator registered: a list, or a scalar where a policy compares with one.
pub type ReferenceValues = BTreeMap<String, serde_json::Value>;

/// All reference values there are, whether they count or not.
#[derive(Debug, Default)]
pub struct Registered {
    /// Those that nobody signed.
    pub unsigned: ReferenceValues,
    /// Manifests, in order of their names.
    pub manifests: Vec<KeptManifest>,
}

/// What one appraisal is made with, as it was at one moment.
#[derive(Debug, Default)]
pub struct AppraisalInput {
    /// The policy, where an administrator has set one.
    pub policy: Option<Arc<str>>,
    /// The reference values.
    pub registered: Arc<Registered>,
}

/// Calls the same method of whatever the store is.
macro_rules! on {
    ($store:ident.$method:ident($($argument:expr),*)) => {
        match $store {
            Store::Sqlite(store) => store.$method($($argument),*).await,
            Store::Postgres(store) => store.$method($($argument),*).await,
        }
    };
}

/// Handle to what is kept. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Store {
    /// In a file of this broker alone.
    Sqlite(Sqlite),
    /// In a database that several brokers share.
    Postgres(Postgres),
}

impl Store {
    /// Opens what is configured. Within a runtime, on which it goes on working.
    ///
    /// # Errors
    /// When it cannot be used, or its secrets could not be opened.
    pub async fn configured(config: &config::Store, data_dir: &Path) -> Result<Self, StoreError> {
        make_private(data_dir)?;
        let key = config.key(data_dir);
        Ok(match postgres::Target::configured(config)? {
            Some(target) => Self::Postgres(Postgres::open(target, &key).await?),
            None => Self::Sqlite(Sqlite::open(data_dir, &key)?),
        })
    }

    /// Looks at what [`Self::configured`] would need before it asks a database.
    ///
    /// # Errors
    /// As there.
    pub fn check(config: &config::Store, data_dir: &Path) -> Result<(), StoreError> {
        postgres::Target::configured(config)?;
        Ok(crate::seal::check(&config.key(data_dir))?)
    }

    /// Opens `kbs.sqlite` in `dir`, or makes it, with the key beside it.
    ///
    /// # Errors
    /// When the file cannot be used, or its secrets could not be opened.
    pub fn sqlite(dir: &Path) -> Result<Self, StoreError> {
        make_private(dir)?;
        Ok(Self::Sqlite(Sqlite::open(dir, &config::Store::default().key(dir))?))
    }

    /// Whether it answers.
    pub async fn ready(&self) -> Result<(), StoreError> {
        on!(self.ready())
    }

    /// Makes something of a secret that may be released, or of `None`, while this decision over it is being kept; what is made is given out once
    /// it is. What is not there makes its outcome `not-found`.
    pub async fn release<T>(
        &self,
        path: &ResourcePath,
        decision: Decision,
        meanwhile: impl FnOnce(Option<Zeroizing<Vec<u8>>>) -> T,
    ) -> Result<T, StoreError> {
        on!(self.release(path, decision, meanwhile))
    }

    /// A secret, or `None`.
    pub async fn resource(&self, path: &ResourcePath) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        on!(self.resource(path))
    }

    /// Stores a secret. Whether there was one before.
    pub async fn put_resource(&self, path: &ResourcePath, value: Bytes) -> Result<bool, StoreError> {
        on!(self.put_resource(path, value))
    }

    /// Deletes a secret. Whether there was one.
    pub async fn delete_resource(&self, path: &ResourcePath) -> Result<bool, StoreError> {
        on!(self.delete_resource(path))
    }

    /// Names of all secrets, in order.
    pub async fn resource_names(&self) -> Result<Vec<String>, StoreError> {
        on!(self.resource_names())
    }

    /// One of the broker's own keys; `make` makes it the first time. Brokers that share a store and start at once get the same.
    pub async fn key_or(
        &self,
        name: &'static str,
        make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, StoreError> + Send + 'static,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        on!(self.key_or(name, make))
    }

    /// A policy an administrator has set, or `None`.
    pub async fn policy(&self, name: PolicyName) -> Result<Option<String>, StoreError> {
        on!(self.policy(name))
    }

    /// Sets a policy.
    pub async fn put_policy(&self, name: PolicyName, rego: String) -> Result<(), StoreError> {
        on!(self.put_policy(name, rego))
    }

    /// Takes back a policy. Whether there was one.
    pub async fn delete_policy(&self, name: PolicyName) -> Result<bool, StoreError> {
        on!(self.delete_policy(name))
    }

    /// The policy over resources that an administrator has set, or `None`.
    pub async fn resource_policy(&self) -> Result<Option<Arc<str>>, StoreError> {
        on!(self.resource_policy())
    }

    /// What an appraisal under this policy is made with.
    pub async fn appraisal_input(&self, policy: PolicyName) -> Result<AppraisalInput, StoreError> {
        on!(self.appraisal_input(policy))
    }

    /// All reference values.
    pub async fn registered(&self) -> Result<Arc<Registered>, StoreError> {
        on!(self.registered())
    }

    /// Registers reference values, replacing those of the same ids; an empty list removes the id. All or none.
    pub async fn put_reference_values(&self, values: ReferenceValues) -> Result<(), StoreError> {
        on!(self.put_reference_values(values))
    }

    /// Deletes a reference value that nobody signed. Whether there was one.
    pub async fn delete_reference_value(&self, id: String) -> Result<bool, StoreError> {
        on!(self.delete_reference_value(id))
    }

    /// The envelope of a manifest as it was put, or `None`.
    pub async fn manifest_envelope(&self, name: String) -> Result<Option<String>, StoreError> {
        on!(self.manifest_envelope(name))
    }

    /// Puts a manifest in the place of the one of its name.
    pub async fn put_manifest(&self, kept: KeptManifest, envelope: String, allow_rollback: bool) -> Result<Put, StoreError> {
        on!(self.put_manifest(kept, envelope, allow_rollback))
    }

    /// Deletes a manifest; its name and serial number are remembered. Whether there was one.
    pub async fn delete_manifest(&self, name: String) -> Result<bool, StoreError> {
        on!(self.delete_manifest(name))
    }

    /// Keeps a decision; it is on the disk when this returns.
    pub async fn record(&self, decision: Decision) -> Result<(), StoreError> {
        on!(self.record(decision))
    }

    /// Decisions, newest first.
    pub async fn decisions(&self, query: AuditQuery) -> Result<Vec<serde_json::Value>, StoreError> {
        on!(self.decisions(query))
    }

    /// Holds a session that waits for evidence.
    pub async fn open_session(&self, session: AwaitAttest, now: u64) -> Result<(), SessionError> {
        on!(self.open_session(session, now))
    }

    /// Takes a waiting session out: its nonce is answered once, whatever comes of it.
    pub async fn take_waiting(&self, id: &SessionId, now: u64) -> Result<AwaitAttest, SessionError> {
        on!(self.take_waiting(id, now))
    }

    /// Holds a session that has its token.
    pub async fn keep_attested(&self, session: AttestedSession, now: u64) -> Result<(), StoreError> {
        on!(self.keep_attested(session, now))
    }

    /// The token of an attested session, or `None`.
    pub async fn session_token(&self, id: &SessionId, now: u64) -> Result<Option<String>, StoreError> {
        on!(self.session_token(id, now))
    }

    /// How many sessions there are.
    pub async fn session_count(&self) -> Result<usize, StoreError> {
        on!(self.session_count())
    }
}

fn make_private(dir: &Path) -> Result<(), StoreError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| StoreError::Directory { path: dir.into(), source })
}
