//! Another sealing key: everything sealed is opened with the old one and sealed with the new one, in one transaction.
//!
//! ```text
//! make FILE.new ──> seal all anew, commit ──> rename FILE.new to FILE
//! ```
//! With an HSM, FILE has the store's key as the HSM's key has wrapped it; that one stays the same. Where this is cut off, FILE.new is left, no broker starts, and doing it again finds out which of the two keys the database has.
//!
//! **Invariant:** there is no moment at which the key that the database is sealed with is in no file.

use super::{PostgresError, StoreError, postgres, sqlite};
use crate::config::{self, KeySource};
use crate::seal::{SealError, Sealer, is_there, new_file};
use std::path::Path;

/// Why the key was not changed.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The store could not do its part. It has the former key.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] SealError),
    /// What is configured cannot be a database.
    #[error(transparent)]
    Configuration(#[from] PostgresError),
    /// There is nothing to change.
    #[error("there is no key in {0} yet: a first start makes it")]
    NoKey(String),
    /// Nobody says where the new key is.
    #[error("`store.key_env` is configured: name the variable that has the new key, by --new-store-key-env")]
    NoNewVariable,
    /// A variable for a key that is in a file.
    #[error("the key is in the file {0}, where the new one is put too: --new-store-key-env is for brokers with `store.key_env`")]
    Variable(String),
    /// The key files could not be exchanged.
    #[error("cannot put {} into its place; do this again", .0.display())]
    Rename(std::path::PathBuf, #[source] std::io::Error),
}

/// Something that can be sealed anew.
pub(super) enum Backend<'a> {
    Sqlite(&'a Path),
    Postgres(Box<postgres::Target>),
}

impl Backend<'_> {
    /// Whether this key opens what there is.
    async fn is_sealed_with(&self, sealer: &Sealer) -> Result<bool, StoreError> {
        match self {
            Self::Sqlite(dir) => sqlite::rotate::is_sealed_with(dir, sealer),
            Self::Postgres(target) => postgres::rotate::is_sealed_with(target, sealer).await,
        }
    }

    async fn reseal(&self, old: &Sealer, new: &Sealer) -> Result<u64, StoreError> {
        match self {
            Self::Sqlite(dir) => sqlite::rotate::reseal(dir, old, new),
            Self::Postgres(target) => postgres::rotate::reseal(target, old, new).await,
        }
    }
}

/// Seals everything with a new key; how many values those were. No broker may use the store meanwhile.
///
/// # Errors
/// When something does not open, a broker runs, or the files cannot be changed. Then the former key is in force.
pub async fn rotate(config: &config::Store, data_dir: &Path, new_variable: Option<&str>) -> Result<u64, RotateError> {
    let backend = match postgres::Target::configured(config)? {
        Some(target) => Backend::Postgres(Box::new(target)),
        None => Backend::Sqlite(data_dir),
    };
    let key = config.key(data_dir);
    if !is_there(&key) {
        return Err(RotateError::NoKey(key.to_string()));
    }
    let load = |path: &Path| match &key {
        KeySource::Pkcs11 { hsm, .. } => Sealer::from_wrapped(hsm, path),
        KeySource::File(_) | KeySource::Environment(_) => Sealer::from_file(path),
    };
    let path = match (&key, new_variable) {
        (KeySource::Environment(_), None) => return Err(RotateError::NoNewVariable),
        (KeySource::Environment(_), Some(name)) => {
            let new = Sealer::load(&KeySource::Environment(name.into()))?;
            return Ok(backend.reseal(&Sealer::load(&key)?, &new).await?);
        }
        (KeySource::File(path) | KeySource::Pkcs11 { wrapped: path, .. }, Some(_)) => {
            return Err(RotateError::Variable(path.display().to_string()));
        }
        (KeySource::File(path) | KeySource::Pkcs11 { wrapped: path, .. }, None) => path,
    };
    let next = new_file(path);
    let old = load(path)?;
    let interrupted = next.exists();
    let new = load(&next)?;
    let values = if interrupted && backend.is_sealed_with(&new).await? {
        0
    } else {
        let resealed = backend.reseal(&old, &new).await;
        // Refused before anything was written, so the next key is nobody's. Other errors may have come with the commit.
        if !interrupted && matches!(resealed, Err(StoreError::InUse | StoreError::Seal(_))) {
            let _ = std::fs::remove_file(&next);
        }
        resealed?
    };
    let exchanged = std::fs::rename(&next, path).and_then(|()| match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => std::fs::File::open(dir)?.sync_all(),
        _ => Ok(()),
    });
    exchanged.map_err(|source| RotateError::Rename(next, source))?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::write_new_private;
    use crate::store::Store;
    use zeroize::Zeroizing;

    struct Fixture {
        dir: tempfile::TempDir,
        runtime: tokio::runtime::Runtime,
    }

    impl Fixture {
        /// A store with a secret and a key of its own, closed.
        fn new() -> Self {
            let fixture = Self {
                dir: tempfile::tempdir().unwrap(),
                runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            };
            let store = fixture.open().unwrap();
            fixture.runtime.block_on(async {
                store.put_resource(&"a/b/c".parse().unwrap(), "secret".into()).await.unwrap();
                store.key_or("token", || Ok(Zeroizing::new(vec![5]))).await.unwrap();
            });
            fixture.close(store);
            fixture
        }

        fn open(&self) -> Result<Store, StoreError> {
            self.runtime.block_on(Store::configured(&config::Store::default(), self.dir.path()))
        }

        /// The thread closes the file when it has seen that nobody is left.
        fn close(&self, store: Store) {
            drop(store);
            while self.dir.path().join("kbs.sqlite-wal").exists() {
                std::thread::yield_now();
            }
        }

        fn rotate(&self) -> Result<u64, RotateError> {
            self.runtime.block_on(rotate(&config::Store::default(), self.dir.path(), None))
        }

        fn key(&self) -> Vec<u8> {
            std::fs::read(self.dir.path().join("store.key")).unwrap()
        }

        #[track_caller]
        fn is_whole(&self) {
            let store = self.open().unwrap();
            self.runtime.block_on(async {
                assert_eq!(store.resource(&"a/b/c".parse().unwrap()).await.unwrap().unwrap().as_slice(), b"secret");
                assert_eq!(store.key_or("token", || Ok(Zeroizing::new(vec![6]))).await.unwrap().as_slice(), [5]);
            });
            self.close(store);
        }
    }

    #[test]
    fn everything_is_sealed_with_another_key() {
        let fixture = Fixture::new();
        let before = fixture.key();
        assert_eq!(fixture.rotate().unwrap(), 2);
        assert_ne!(fixture.key(), before);
        assert!(!fixture.dir.path().join("store.key.new").exists());
        fixture.is_whole();
        std::fs::write(fixture.dir.path().join("store.key"), before).unwrap();
        let store = fixture.open().unwrap();
        assert!(fixture.runtime.block_on(store.resource(&"a/b/c".parse().unwrap())).is_err(), "the former key opens nothing");
    }

    #[test]
    fn what_was_cut_off_is_finished_and_no_broker_starts_before() {
        // Before the commit: the database has the former key.
        let fixture = Fixture::new();
        let next = fixture.dir.path().join("store.key.new");
        write_new_private(&next, &[9; 32]).unwrap();
        assert!(matches!(fixture.open(), Err(StoreError::Seal(SealError::Interrupted(_)))));
        assert_eq!(fixture.rotate().unwrap(), 2);
        assert_eq!(fixture.key(), [9; 32]);
        fixture.is_whole();
        // After it: the database has the next one.
        std::fs::rename(fixture.dir.path().join("store.key"), &next).unwrap();
        write_new_private(&fixture.dir.path().join("store.key"), &[8; 32]).unwrap();
        assert_eq!(fixture.rotate().unwrap(), 0);
        assert_eq!(fixture.key(), [9; 32]);
        fixture.is_whole();
    }

    #[test]
    fn not_while_a_broker_runs_and_not_with_a_wrong_key() {
        let fixture = Fixture::new();
        let store = fixture.open().unwrap();
        assert!(matches!(fixture.rotate(), Err(RotateError::Store(StoreError::InUse))));
        fixture.close(store);
        fixture.is_whole();
        let before = fixture.key();
        std::fs::write(fixture.dir.path().join("store.key"), [1; 32]).unwrap();
        assert!(matches!(fixture.rotate(), Err(RotateError::Store(StoreError::Seal(SealError::Open)))));
        std::fs::write(fixture.dir.path().join("store.key"), before).unwrap();
        fixture.is_whole();
        let empty = tempfile::tempdir().unwrap();
        let none = fixture.runtime.block_on(rotate(&config::Store::default(), empty.path(), None));
        assert!(matches!(none, Err(RotateError::NoKey(_))));
    }
}
