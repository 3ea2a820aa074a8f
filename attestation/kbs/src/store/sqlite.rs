//! The store of one broker alone: one SQLite file, and one thread that owns it.
//!
//! [`Db`] is the synchronous database; [`Sqlite`] sends work to the thread that owns it and waits for the answer without blocking the
//! runtime. Sessions are in memory: nobody else could answer for them.

mod audit;
mod manifest;
mod queue;
pub(super) mod rotate;
mod rules;

use super::audit::AuditQuery;
use super::manifest::{KeptManifest, Put};
use super::{MAX_REFERENCE_IDS, MAX_RESOURCES, PolicyName, ReferenceValues, Registered, StoreError};
use crate::audit::Decision;
use crate::config::KeySource;
use crate::seal::Sealer;
use crate::session::{SessionError, Sessions};
use axum::body::Bytes;
use kata_cc_kbs_protocol::{AttestedSession, AwaitAttest, ResourcePath, SessionId};
use queue::{Job, Release};
use rules::Rules;
use rusqlite::{Connection, OptionalExtension, params};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

const SCHEMA_VERSION: i64 = 3;

/// The database. Blocking; owned by one thread.
#[derive(Debug)]
struct Db {
    sqlite: Connection,
    sealer: Sealer,
    audit: audit::Ledger,
}

impl Db {
    /// Opens `kbs.sqlite` in `dir`, or makes it.
    fn open(dir: &Path, key: &KeySource) -> Result<Self, StoreError> {
        let file = dir.join("kbs.sqlite");
        // A new key for an old database would make every secret in it unreadable, one error at a time.
        if file.exists() && !crate::seal::is_there(key) {
            return Err(StoreError::KeyLost(key.to_string()));
        }
        let sealer = Sealer::load(key)?;
        let sqlite = Connection::open(file)?;
        sqlite.pragma_update(None, "journal_mode", "wal")?;
        sqlite.pragma_update(None, "synchronous", "full")?;
        sqlite.pragma_update(None, "secure_delete", "on")?;
        migrate(&sqlite)?;
        let audit = audit::Ledger::open(&sqlite)?;
        Ok(Self { sqlite, sealer, audit })
    }

    #[cfg(test)]
    fn beside_key(dir: &Path) -> Result<Self, StoreError> {
        Self::open(dir, &crate::config::Store::default().key(dir))
    }

    /// A secret, or `None`.
    fn resource(&self, path: &ResourcePath) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = path.to_string();
        let sealed: Option<Vec<u8>> =
            self.sqlite.prepare_cached("SELECT sealed FROM resources WHERE path = ?1")?.query_row([&path], |row| row.get(0)).optional()?;
        sealed.map(|sealed| Ok(self.sealer.open(&format!("resource:{path}"), &sealed)?)).transpose()
    }

    /// Stores a secret. Whether there was one before.
    fn put_resource(&mut self, path: &ResourcePath, value: &[u8]) -> Result<bool, StoreError> {
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
    fn delete_resource(&mut self, path: &ResourcePath) -> Result<bool, StoreError> {
        Ok(self.sqlite.execute("DELETE FROM resources WHERE path = ?1", [path.to_string()])? > 0)
    }

    /// Names of all secrets, in order.
    fn resource_names(&self) -> Result<Vec<String>, StoreError> {
        let mut statement = self.sqlite.prepare_cached("SELECT path FROM resources ORDER BY path")?;
        let names = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(names)
    }

    /// One of the broker's own keys; `make` makes it the first time.
    fn key_or(
        &mut self,
        name: &str,
        make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, StoreError>,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let place = format!("key:{name}");
        let sealed: Option<Vec<u8>> =
            self.sqlite.query_row("SELECT sealed FROM keys WHERE name = ?1", [name], |row| row.get(0)).optional()?;
        if let Some(sealed) = sealed {
            return Ok(self.sealer.open(&place, &sealed)?);
        }
        let key = make()?;
        let sealed = self.sealer.seal(&place, &key)?;
        self.sqlite.execute("INSERT INTO keys (name, sealed) VALUES (?1, ?2)", params![name, sealed])?;
        Ok(key)
    }

    /// A policy an administrator has set, or `None`.
    fn policy(&self, name: &PolicyName) -> Result<Option<String>, StoreError> {
        let mut statement = self.sqlite.prepare_cached("SELECT rego FROM policies WHERE name = ?1")?;
        Ok(statement.query_row([name.key()], |row| row.get(0)).optional()?)
    }

    /// Sets a policy.
    fn put_policy(&mut self, name: &PolicyName, rego: &str) -> Result<(), StoreError> {
        self.sqlite.execute("INSERT OR REPLACE INTO policies (name, rego) VALUES (?1, ?2)", params![name.key(), rego])?;
        Ok(())
    }

    /// Takes back a policy. Whether there was one.
    fn delete_policy(&mut self, name: &PolicyName) -> Result<bool, StoreError> {
        Ok(self.sqlite.execute("DELETE FROM policies WHERE name = ?1", [name.key()])? > 0)
    }

    /// All reference values: what one appraisal sees.
    fn reference_values(&self) -> Result<ReferenceValues, StoreError> {
        let mut statement = self.sqlite.prepare_cached("SELECT id, value FROM reference_values")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        let mut all = ReferenceValues::new();
        for row in rows {
            let (id, value) = row?;
            all.insert(id, serde_json::from_str(&value).map_err(|_| StoreError::Corrupt("reference value"))?);
        }
        Ok(all)
    }

    fn registered(&self) -> Result<Registered, StoreError> {
        Ok(Registered { unsigned: self.reference_values()?, manifests: self.manifests()? })
    }

    /// Deletes a reference value. Whether there was one.
    fn delete_reference_value(&mut self, id: &str) -> Result<bool, StoreError> {
        Ok(self.sqlite.execute("DELETE FROM reference_values WHERE id = ?1", [id])? > 0)
    }

    /// Registers reference values, replacing those of the same ids; an empty list removes the id. All or none.
    fn put_reference_values(&mut self, values: &ReferenceValues) -> Result<(), StoreError> {
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
        return Err(StoreError::Schema { found, expected: SCHEMA_VERSION });
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

/// Handle to the database thread. Cheap to clone; the thread ends with the last handle.
#[derive(Debug, Clone)]
pub struct Sqlite {
    jobs: mpsc::Sender<Job>,
    sessions: Arc<Sessions>,
    rules: Arc<Rules>,
}

impl Sqlite {
    pub(super) fn open(dir: &Path, key: &KeySource) -> Result<Self, StoreError> {
        Self::start(Db::open(dir, key)?).map_err(StoreError::Thread)
    }

    /// Gives the database a thread of its own.
    fn start(mut db: Db) -> Result<Self, std::io::Error> {
        let (jobs, queue) = mpsc::channel(queue::LENGTH);
        std::thread::Builder::new().name("store".into()).spawn(move || queue::serve(&mut db, queue))?;
        Ok(Self { jobs, sessions: Arc::default(), rules: Arc::default() })
    }

    /// Runs `work` on the database thread.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&mut Db) -> Result<T, StoreError> + Send + 'static) -> Result<T, StoreError> {
        let (answer, result) = oneshot::channel();
        let job = Job::Work(Box::new(move |db| {
            let _ = answer.send(work(db));
        }));
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    async fn keep(&self, decision: Decision, release: Option<Release>) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        let (to, kept) = oneshot::channel();
        self.jobs.send(Job::Keep(Box::new(decision), release, to)).await.map_err(|_| StoreError::Closed)?;
        Ok(kept)
    }

    /// See [`super::Store`] for this and the following.
    pub(super) async fn record(&self, decision: Decision) -> Result<(), StoreError> {
        self.keep(decision, None).await?.await.map_err(|_| StoreError::Closed)?
    }

    pub(super) async fn release<T>(
        &self,
        path: &ResourcePath,
        decision: Decision,
        meanwhile: impl FnOnce(Option<Zeroizing<Vec<u8>>>) -> T,
    ) -> Result<T, StoreError> {
        let (to, secret) = oneshot::channel();
        let kept = self.keep(decision, Some(Release { path: path.clone(), to })).await?;
        // Where it cannot be read nothing comes, and why not is told as what became of the decision.
        let made = secret.await.map(meanwhile);
        kept.await.map_err(|_| StoreError::Closed)??;
        made.map_err(|_| StoreError::Closed)
    }

    pub(super) async fn ready(&self) -> Result<(), StoreError> {
        self.run(|db| db.decisions(&AuditQuery { limit: 1, ..AuditQuery::default() }).map(drop)).await
    }

    pub(super) async fn resource(&self, path: &ResourcePath) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = path.clone();
        self.run(move |db| db.resource(&path)).await
    }

    pub(super) async fn put_resource(&self, path: &ResourcePath, value: Bytes) -> Result<bool, StoreError> {
        let path = path.clone();
        self.run(move |db| db.put_resource(&path, &value)).await
    }

    pub(super) async fn delete_resource(&self, path: &ResourcePath) -> Result<bool, StoreError> {
        let path = path.clone();
        self.run(move |db| db.delete_resource(&path)).await
    }

    pub(super) async fn resource_names(&self) -> Result<Vec<String>, StoreError> {
        self.run(|db| db.resource_names()).await
    }

    pub(super) async fn key_or(
        &self,
        name: &'static str,
        make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, StoreError> + Send + 'static,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        self.run(move |db| db.key_or(name, make)).await
    }

    pub(super) async fn policy(&self, name: PolicyName) -> Result<Option<String>, StoreError> {
        self.run(move |db| db.policy(&name)).await
    }

    pub(super) async fn put_policy(&self, name: PolicyName, rego: String) -> Result<(), StoreError> {
        self.change(move |db| db.put_policy(&name, &rego)).await
    }

    pub(super) async fn delete_policy(&self, name: PolicyName) -> Result<bool, StoreError> {
        self.change(move |db| db.delete_policy(&name)).await
    }

    pub(super) async fn put_reference_values(&self, values: ReferenceValues) -> Result<(), StoreError> {
        self.change(move |db| db.put_reference_values(&values)).await
    }

    pub(super) async fn delete_reference_value(&self, id: String) -> Result<bool, StoreError> {
        self.change(move |db| db.delete_reference_value(&id)).await
    }

    pub(super) async fn manifest_envelope(&self, name: String) -> Result<Option<String>, StoreError> {
        self.run(move |db| db.manifest_envelope(&name)).await
    }

    pub(super) async fn put_manifest(&self, kept: KeptManifest, envelope: String, allow_rollback: bool) -> Result<Put, StoreError> {
        self.change(move |db| db.put_manifest(&kept, &envelope, allow_rollback)).await
    }

    pub(super) async fn delete_manifest(&self, name: String) -> Result<bool, StoreError> {
        self.change(move |db| db.delete_manifest(&name)).await
    }

    pub(super) async fn decisions(&self, query: AuditQuery) -> Result<Vec<serde_json::Value>, StoreError> {
        self.run(move |db| db.decisions(&query)).await
    }

    pub(super) async fn open_session(&self, session: AwaitAttest, now: u64) -> Result<(), SessionError> {
        self.sessions.open(session, now)
    }

    pub(super) async fn take_waiting(&self, id: &SessionId, now: u64) -> Result<AwaitAttest, SessionError> {
        self.sessions.take_waiting(id, now)
    }

    pub(super) async fn keep_attested(&self, session: AttestedSession, now: u64) -> Result<(), StoreError> {
        self.sessions.attested(session, now);
        Ok(())
    }

    pub(super) async fn session_token(&self, id: &SessionId, now: u64) -> Result<Option<String>, StoreError> {
        Ok(self.sessions.token(id, now))
    }

    pub(super) async fn session_count(&self) -> Result<usize, StoreError> {
        Ok(self.sessions.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::SealError;
    use serde_json::json;

    fn path(text: &str) -> ResourcePath {
        text.parse().unwrap()
    }

    fn db() -> (tempfile::TempDir, Db) {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::beside_key(dir.path()).unwrap();
        (dir, db)
    }

    #[test]
    fn secrets_come_back_after_reopening_and_are_not_in_the_file() {
        let (dir, mut db) = db();
        assert!(!db.put_resource(&path("repo/type/tag"), b"CANARY-SECRET-BYTES").unwrap());
        assert!(db.put_resource(&path("repo/type/tag"), b"CANARY-SECRET-BYTES").unwrap());
        drop(db);
        let mut db = Db::beside_key(dir.path()).unwrap();
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
    fn what_is_made_of_a_secret_is_given_out_only_when_the_decision_is_kept() {
        use crate::audit::Action;
        let (_dir, mut db) = db();
        db.put_resource(&path("a/b/c"), b"one").unwrap();
        db.put_resource(&path("a/b/changed"), b"two").unwrap();
        db.sqlite.execute("UPDATE resources SET sealed = x'00' WHERE path = 'a/b/changed'", []).unwrap();
        let store = Sqlite::start(db).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let release = |name: &str| {
            let decision = Decision::new(1, Action::ReadResource, true, "released", "r");
            let (path, mut made) = (path(name), false);
            let given = runtime.block_on(store.release(&path, decision, |secret| {
                made = true;
                secret.is_some()
            }));
            (given, made)
        };
        assert!(matches!(release("a/b/c"), (Ok(true), true)));
        assert!(matches!(release("a/b/none"), (Ok(false), true)));
        assert!(matches!(release("a/b/changed"), (Err(StoreError::Seal(SealError::Open)), false)));
        let drop_table = |db: &mut Db| Ok(db.sqlite.execute_batch("DROP TABLE audit")?);
        runtime.block_on(store.run(drop_table)).unwrap();
        assert!(matches!(release("a/b/c"), (Err(StoreError::Sqlite(_)), true)));
    }

    #[test]
    fn another_key_file_opens_nothing() {
        let (dir, mut db) = db();
        db.put_resource(&path("a/b/c"), b"one").unwrap();
        drop(db);
        std::fs::remove_file(dir.path().join("store.key")).unwrap();
        assert!(matches!(Db::beside_key(dir.path()), Err(StoreError::KeyLost(_))));
        crate::seal::write_new_private(&dir.path().join("store.key"), &[3; 32]).unwrap();
        let db = Db::beside_key(dir.path()).unwrap();
        assert!(db.resource(&path("a/b/c")).is_err());
    }

    #[test]
    fn keys_are_made_once() {
        let (dir, mut db) = db();
        let make = |value: u8| move || Ok::<_, StoreError>(Zeroizing::new(vec![value]));
        assert_eq!(db.key_or("token", make(1)).unwrap().as_slice(), [1]);
        drop(db);
        let mut db = Db::beside_key(dir.path()).unwrap();
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
        assert!(matches!(Db::beside_key(dir.path()), Err(StoreError::Schema { found: 7, .. })));
    }
}
