//! Everything the broker keeps: secrets, policies, reference values, its own keys, the audit log. One SQLite file, one thread.
//!
//! [`Db`] is the synchronous database; [`Store`] is the handle the server uses: it sends work to the thread that owns the database and
//! waits for the answer without blocking the runtime.
//!
//! **Invariant:** secret values are in the file only as [`crate::seal`] made them.

mod audit;
mod manifest;

pub use audit::AuditQuery;
pub use manifest::{KeptManifest, Put};

use crate::audit::Decision;
use crate::seal::{SealError, Sealer};
use kata_cc_kbs_protocol::ResourcePath;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

const SCHEMA_VERSION: i64 = 3;
/// Most decisions written at once.
const MAX_BATCH: usize = 64;
/// Work that may wait for the database thread; more makes callers wait, not memory grow.
const QUEUE: usize = 256;
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
    audit: audit::Ledger,
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
        migrate(&sqlite)?;
        let audit = audit::Ledger::open(&sqlite)?;
        Ok(Self { sqlite, sealer, audit })
    }

    /// A secret, or `None`.
    pub fn resource(&self, path: &ResourcePath) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = path.to_string();
        let sealed: Option<Vec<u8>> =
            self.sqlite.prepare_cached("SELECT sealed FROM resources WHERE path = ?1")?.query_row([&path], |row| row.get(0)).optional()?;
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

    /// Names of all secrets, in order.
    pub fn resource_names(&self) -> Result<Vec<String>, StoreError> {
        let mut statement = self.sqlite.prepare_cached("SELECT path FROM resources ORDER BY path")?;
        let names = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(names)
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
        let mut statement = self.sqlite.prepare_cached("SELECT rego FROM policies WHERE name = ?1")?;
        Ok(statement.query_row([name.key()], |row| row.get(0)).optional()?)
    }

    /// Sets a policy.
    pub fn put_policy(&mut self, name: &PolicyName, rego: &str) -> Result<(), StoreError> {
        self.sqlite.execute("INSERT OR REPLACE INTO policies (name, rego) VALUES (?1, ?2)", params![name.key(), rego])?;
        Ok(())
    }

    /// Takes back a policy. Whether there was one.
    pub fn delete_policy(&mut self, name: &PolicyName) -> Result<bool, StoreError> {
        Ok(self.sqlite.execute("DELETE FROM policies WHERE name = ?1", [name.key()])? > 0)
    }

    /// All reference values: what one appraisal sees.
    pub fn reference_values(&self) -> Result<ReferenceValues, StoreError> {
        let mut statement = self.sqlite.prepare_cached("SELECT id, value FROM reference_values")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        let mut all = ReferenceValues::new();
        for row in rows {
            let (id, value) = row?;
            all.insert(id, serde_json::from_str(&value).map_err(|_| StoreError::Corrupt("reference value"))?);
        }
        Ok(all)
    }

    /// Deletes a reference value. Whether there was one.
    pub fn delete_reference_value(&mut self, id: &str) -> Result<bool, StoreError> {
        Ok(self.sqlite.execute("DELETE FROM reference_values WHERE id = ?1", [id])? > 0)
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
}

/// Brings the file to the schema of this version, or refuses it.
fn migrate(sqlite: &Connection) -> Result<(), StoreError> {
    let found: i64 = sqlite.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if !(0..=SCHEMA_VERSION).contains(&found) {
        return Err(StoreError::Schema { found });
    }
    if found < 1 {
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
    if found < 2 {
        sqlite.execute_batch(audit::SCHEMA_2)?;
    }
    if found < 3 {
        sqlite.execute_batch(manifest::SCHEMA_3)?;
    }
    Ok(())
}

/// What the database thread is asked for.
enum Job {
    /// Anything.
    Work(Box<dyn FnOnce(&mut Db) + Send>),
    /// To keep a decision.
    Record(Box<Decision>, Answer),
}

type Answer = oneshot::Sender<Result<(), StoreError>>;

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
            let mut next = queue.blocking_recv();
            while let Some(job) = next.take() {
                match job {
                    Job::Work(work) => work(&mut db),
                    Job::Record(decision, answer) => {
                        let (mut decisions, mut answers) = (vec![*decision], vec![answer]);
                        // What came meanwhile is written with it: a write to the disk takes as long for many as for one.
                        while decisions.len() < MAX_BATCH {
                            match queue.try_recv() {
                                Ok(Job::Record(decision, answer)) => {
                                    decisions.push(*decision);
                                    answers.push(answer);
                                }
                                Ok(other) => {
                                    next = Some(other);
                                    break;
                                }
                                Err(_) => break,
                            }
                        }
                        record(&mut db, &decisions, answers);
                    }
                }
                if next.is_none() {
                    next = queue.blocking_recv();
                }
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
        let job = Job::Work(Box::new(move |db| {
            let _ = answer.send(work(db));
        }));
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// Keeps a decision; it is on the disk when this returns.
    pub async fn record(&self, decision: Decision) -> Result<(), StoreError> {
        let (answer, result) = oneshot::channel();
        self.jobs.send(Job::Record(Box::new(decision), answer)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}

/// Keeps decisions together. Where that fails, each by itself: one that cannot be kept must not take others with it, and whoever asked is
/// told of its own.
fn record(db: &mut Db, decisions: &[Decision], answers: Vec<Answer>) {
    let together = db.record(decisions);
    for (decision, answer) in decisions.iter().zip(answers) {
        let result = if together.is_ok() { Ok(()) } else { db.record(std::slice::from_ref(decision)) };
        let _ = answer.send(result);
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
