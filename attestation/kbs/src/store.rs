//! Everything the broker keeps: secrets, policies, reference values, its own keys, the audit log. One SQLite file, one thread.
//!
//! [`Db`] is the synchronous database; [`Store`] is the handle the server uses: it sends work to the thread that owns the database and
//! waits for the answer without blocking the runtime.
//!
//! **Invariant:** secret values are in the file only as [`crate::seal`] made them.

use crate::audit::Decision;
use crate::seal::{SealError, Sealer};
use kata_cc_kbs_protocol::ResourcePath;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

const SCHEMA_VERSION: i64 = 1;
/// Work that may wait for the database thread; more makes callers wait, not memory grow.
const QUEUE: usize = 256;
/// Rows the audit log keeps.
const AUDIT_ROWS: i64 = 10_000;
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
    #[error("{} is missing, and the database's secrets are sealed with it: restore it, or start with an empty directory", .0.display())]
    KeyLost(PathBuf),
    /// SQLite failed.
    #[error("database error")]
    Sqlite(#[from] rusqlite::Error),
    /// Sealing or opening failed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The file was written by another version.
    #[error("the database has schema version {found}, expected {SCHEMA_VERSION}")]
    Schema {
        /// What the file says.
        found: i64,
    },
    /// A stored value is not what it should be.
    #[error("a stored {0} cannot be read back")]
    Corrupt(&'static str),
    /// A table is full.
    #[error("the store holds as many {0} as it may")]
    Full(&'static str),
    /// The database thread is gone.
    #[error("the database thread has ended")]
    Closed,
}

/// Policies the store keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// The database. Blocking; owned by one thread.
#[derive(Debug)]
pub struct Db {
    sqlite: Connection,
    sealer: Sealer,
}

impl Db {
    /// Opens `kbs.sqlite` in `dir`, or makes it.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| StoreError::Directory { path: dir.into(), source })?;
        let (key, file) = (dir.join("store.key"), dir.join("kbs.sqlite"));
        // A new key for an old database would make every secret in it unreadable, one error at a time.
        if file.exists() && !key.exists() {
            return Err(StoreError::KeyLost(key));
        }
        let sealer = Sealer::from_file(&key)?;
        let sqlite = Connection::open(file)?;
        sqlite.pragma_update(None, "journal_mode", "wal")?;
        sqlite.pragma_update(None, "synchronous", "full")?;
        sqlite.pragma_update(None, "secure_delete", "on")?;
        let found: i64 = sqlite.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match found {
            0 => {
                sqlite.execute_batch(
                    "BEGIN;
                     CREATE TABLE IF NOT EXISTS resources (path TEXT PRIMARY KEY, sealed BLOB NOT NULL) STRICT;
                     CREATE TABLE IF NOT EXISTS keys (name TEXT PRIMARY KEY, sealed BLOB NOT NULL) STRICT;
                     CREATE TABLE IF NOT EXISTS policies (name TEXT PRIMARY KEY, rego TEXT NOT NULL) STRICT;
                     CREATE TABLE IF NOT EXISTS reference_values (id TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
                     CREATE TABLE IF NOT EXISTS audit (id INTEGER PRIMARY KEY AUTOINCREMENT, decision TEXT NOT NULL) STRICT;
                     PRAGMA user_version = 1;
                     COMMIT;",
                )?;
            }
            SCHEMA_VERSION => {}
            found => return Err(StoreError::Schema { found }),
        }
        Ok(Self { sqlite, sealer })
    }

    /// A secret, or `None`.
    pub fn resource(&self, path: &ResourcePath) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = path.to_string();
        let sealed: Option<Vec<u8>> =
            self.sqlite.query_row("SELECT sealed FROM resources WHERE path = ?1", [&path], |row| row.get(0)).optional()?;
        sealed.map(|sealed| Ok(self.sealer.open(&format!("resource:{path}"), &sealed)?)).transpose()
    }

    /// Stores a secret. Whether there was one before.
    pub fn put_resource(&mut self, path: &ResourcePath, value: &[u8]) -> Result<bool, StoreError> {
        let path = path.to_string();
        let sealed = self.sealer.seal(&format!("resource:{path}"), value)?;
        let tx = self.sqlite.transaction()?;
        let existed = tx.execute("UPDATE resources SET sealed = ?2 WHERE path = ?1", params![path, sealed])? > 0;
        if !existed {
            let rows: i64 = tx.query_row("SELECT count(*) FROM resources", [], |row| row.get(0))?;
            if rows >= MAX_RESOURCES {
                return Err(StoreError::Full("resources"));
            }
            tx.execute("INSERT INTO resources (path, sealed) VALUES (?1, ?2)", params![path, sealed])?;
        }
        tx.commit()?;
        Ok(existed)
    }

    /// Deletes a secret. Whether there was one.
    pub fn delete_resource(&mut self, path: &ResourcePath) -> Result<bool, StoreError> {
        Ok(self.sqlite.execute("DELETE FROM resources WHERE path = ?1", [path.to_string()])? > 0)
    }

    /// One of the broker's own keys; `make` makes it the first time.
    pub fn key_or<E: From<StoreError>>(
        &mut self,
        name: &str,
        make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, E>,
    ) -> Result<Zeroizing<Vec<u8>>, E> {
        let place = format!("key:{name}");
        let sealed: Option<Vec<u8>> = self
            .sqlite
            .query_row("SELECT sealed FROM keys WHERE name = ?1", [name], |row| row.get(0))
            .optional()
            .map_err(StoreError::from)?;
        if let Some(sealed) = sealed {
            return Ok(self.sealer.open(&place, &sealed).map_err(StoreError::from)?);
        }
        let key = make()?;
        let sealed = self.sealer.seal(&place, &key).map_err(StoreError::from)?;
        self.sqlite.execute("INSERT INTO keys (name, sealed) VALUES (?1, ?2)", params![name, sealed]).map_err(StoreError::from)?;
        Ok(key)
    }

    /// A policy an administrator has set, or `None`.
    pub fn policy(&self, name: &PolicyName) -> Result<Option<String>, StoreError> {
        Ok(self.sqlite.query_row("SELECT rego FROM policies WHERE name = ?1", [name.key()], |row| row.get(0)).optional()?)
    }

    /// Sets a policy.
    pub fn put_policy(&mut self, name: &PolicyName, rego: &str) -> Result<(), StoreError> {
        self.sqlite.execute("INSERT OR REPLACE INTO policies (name, rego) VALUES (?1, ?2)", params![name.key(), rego])?;
        Ok(())
    }

    /// All reference values: what one appraisal sees.
    pub fn reference_values(&self) -> Result<ReferenceValues, StoreError> {
        let mut statement = self.sqlite.prepare("SELECT id, value FROM reference_values")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        let mut all = ReferenceValues::new();
        for row in rows {
            let (id, value) = row?;
            all.insert(id, serde_json::from_str(&value).map_err(|_| StoreError::Corrupt("reference value"))?);
        }
        Ok(all)
    }

    /// Registers reference values, replacing those of the same ids; an empty list removes the id. All or none.
    pub fn put_reference_values(&mut self, values: &ReferenceValues) -> Result<(), StoreError> {
        let tx = self.sqlite.transaction()?;
        for (id, value) in values {
            if value.as_array().is_some_and(Vec::is_empty) {
                tx.execute("DELETE FROM reference_values WHERE id = ?1", [id])?;
            } else {
                tx.execute("INSERT OR REPLACE INTO reference_values (id, value) VALUES (?1, ?2)", params![id, value.to_string()])?;
            }
        }
        let rows: i64 = tx.query_row("SELECT count(*) FROM reference_values", [], |row| row.get(0))?;
        if rows > MAX_REFERENCE_IDS {
            return Err(StoreError::Full("reference values"));
        }
        tx.commit()?;
        Ok(())
    }

    /// Appends to the audit log and drops what is too old.
    pub fn record(&mut self, decision: &Decision) -> Result<(), StoreError> {
        let json = serde_json::to_string(decision).map_err(|_| StoreError::Corrupt("decision"))?;
        self.sqlite.execute("INSERT INTO audit (decision) VALUES (?1)", [json])?;
        let newest = self.sqlite.last_insert_rowid();
        self.sqlite.execute("DELETE FROM audit WHERE id <= ?1", [newest.saturating_sub(AUDIT_ROWS)])?;
        Ok(())
    }

    /// The newest decisions, newest first.
    pub fn decisions(&self, limit: u32) -> Result<Vec<serde_json::Value>, StoreError> {
        let mut statement = self.sqlite.prepare("SELECT id, decision FROM audit ORDER BY id DESC LIMIT ?1")?;
        let rows = statement.query_map([limit], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
        let mut all = Vec::new();
        for row in rows {
            let (id, json) = row?;
            let mut value: serde_json::Value = serde_json::from_str(&json).map_err(|_| StoreError::Corrupt("decision"))?;
            if let Some(object) = value.as_object_mut() {
                object.insert("id".into(), id.into());
            }
            all.push(value);
        }
        Ok(all)
    }
}

type Job = Box<dyn FnOnce(&mut Db) + Send>;

/// Handle to the database thread. Cheap to clone; the thread ends with the last handle.
#[derive(Debug, Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
}

impl Store {
    /// Gives the database a thread of its own.
    pub fn start(mut db: Db) -> Result<Self, std::io::Error> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new().name("store".into()).spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                job(&mut db);
            }
        })?;
        Ok(Self { jobs })
    }

    /// Runs `work` on the database thread.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Db) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move |db| {
            let _ = answer.send(work(db));
        });
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn path(text: &str) -> ResourcePath {
        text.parse().unwrap()
    }

    fn db() -> (tempfile::TempDir, Db) {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(dir.path()).unwrap();
        (dir, db)
    }

    #[test]
    fn secrets_come_back_after_reopening_and_are_not_in_the_file() {
        let (dir, mut db) = db();
        assert!(!db.put_resource(&path("repo/type/tag"), b"CANARY-SECRET-BYTES").unwrap());
        assert!(db.put_resource(&path("repo/type/tag"), b"CANARY-SECRET-BYTES").unwrap());
        drop(db);
        let mut db = Db::open(dir.path()).unwrap();
        assert_eq!(db.resource(&path("repo/type/tag")).unwrap().unwrap().as_slice(), b"CANARY-SECRET-BYTES");
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(13).any(|w| w == b"CANARY-SECRET"));
        }
        assert!(db.delete_resource(&path("repo/type/tag")).unwrap());
        assert!(!db.delete_resource(&path("repo/type/tag")).unwrap());
        assert!(db.resource(&path("repo/type/tag")).unwrap().is_none());
    }

    #[test]
    fn rows_exchanged_in_the_file_do_not_open() {
        let (_dir, mut db) = db();
        db.put_resource(&path("a/b/c"), b"one").unwrap();
        db.put_resource(&path("a/b/d"), b"two").unwrap();
        db.sqlite
            .execute("UPDATE resources SET sealed = (SELECT sealed FROM resources WHERE path = 'a/b/d') WHERE path = 'a/b/c'", [])
            .unwrap();
        assert!(matches!(db.resource(&path("a/b/c")), Err(StoreError::Seal(SealError::Open))));
    }

    #[test]
    fn another_key_file_opens_nothing() {
        let (dir, mut db) = db();
        db.put_resource(&path("a/b/c"), b"one").unwrap();
        drop(db);
        std::fs::remove_file(dir.path().join("store.key")).unwrap();
        assert!(matches!(Db::open(dir.path()), Err(StoreError::KeyLost(_))));
        crate::seal::write_new_private(&dir.path().join("store.key"), &[3; 32]).unwrap();
        let db = Db::open(dir.path()).unwrap();
        assert!(db.resource(&path("a/b/c")).is_err());
    }

    #[test]
    fn keys_are_made_once() {
        let (dir, mut db) = db();
        let make = |value: u8| move || Ok::<_, StoreError>(Zeroizing::new(vec![value]));
        assert_eq!(db.key_or("token", make(1)).unwrap().as_slice(), [1]);
        drop(db);
        let mut db = Db::open(dir.path()).unwrap();
        assert_eq!(db.key_or("token", make(2)).unwrap().as_slice(), [1]);
    }

    #[test]
    fn reference_values_replace_and_vanish() {
        let (_dir, mut db) = db();
        let set = |value| ReferenceValues::from([("m".to_string(), value)]);
        db.put_reference_values(&set(json!(["a", "b"]))).unwrap();
        db.put_reference_values(&set(json!(["c"]))).unwrap();
        assert_eq!(db.reference_values().unwrap(), set(json!(["c"])));
        db.put_reference_values(&set(json!([]))).unwrap();
        assert!(db.reference_values().unwrap().is_empty());
    }

    #[test]
    fn refuses_a_database_of_another_version() {
        let (dir, db) = db();
        db.sqlite.pragma_update(None, "user_version", 7).unwrap();
        drop(db);
        assert!(matches!(Db::open(dir.path()), Err(StoreError::Schema { found: 7 })));
    }
}
