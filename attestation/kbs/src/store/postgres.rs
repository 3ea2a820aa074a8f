//! The store that several brokers share: a PostgreSQL database.
//!
//! **Invariant:** what is secret, and what decides over releases, is sealed here before it goes to the database. Whoever has the database
//! without the key can read names, serial numbers and the audit log, and can delete rows or put back older ones; they cannot read secrets or
//! make policies, reference values, keys or sessions.

mod audit;
mod connection;
pub(super) mod rotate;
mod schema;
mod session;

pub use connection::PostgresError;
pub(crate) use connection::Target;

use super::manifest::{Before, KeptManifest, MAX_MANIFESTS, Put, decide};
use super::{AppraisalInput, AuditQuery, MAX_REFERENCE_IDS, MAX_RESOURCES, PolicyName, ReferenceValues, Registered, StoreError};
use crate::audit::Decision;
use crate::config::KeySource;
use crate::seal::{SealError, Sealer};
use axum::body::Bytes;
use connection::{Lease, Pool};
use kata_cc_kbs_protocol::ResourcePath;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::Value;
use std::sync::Arc;
use tokio_postgres::Row;
use zeroize::Zeroizing;

/// The key that says whether a broker has the sealing key of the others: any bytes, sealed with it.
const CHECK: &str = "check";

/// Handle to the database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Postgres {
    pool: Pool,
    sealer: Arc<Sealer>,
    log: audit::Log,
    sessions: Arc<session::Known>,
}

impl Postgres {
    /// Connects, makes or renews the tables, and compares the key. Needs a runtime, which the audit log's task then runs on.
    pub(super) async fn open(target: Target, key: &KeySource) -> Result<Self, StoreError> {
        let pool = Pool::new(target);
        let mut lease = pool.get().await?;
        schema::migrate(&mut lease).await?;
        // A new key for an old database would make every secret in it unreadable, one error at a time.
        if !crate::seal::is_there(key) && sealed_key(&mut lease, CHECK).await?.is_some() {
            return Err(StoreError::KeyLost(key.to_string()));
        }
        drop(lease);
        let sealer = Arc::new(Sealer::load(key)?);
        let store = Self { log: audit::Log::start(pool.clone()), pool, sealer, sessions: Arc::default() };
        let make = || {
            let mut check = Zeroizing::new(vec![0; 16]);
            SystemRandom::new().fill(&mut check).map_err(|_| SealError::Random)?;
            Ok(check)
        };
        match store.key_or(CHECK, make).await {
            Err(StoreError::Seal(SealError::Open)) => Err(StoreError::OtherKey(key.to_string())),
            other => other.map(|_| store),
        }
    }

    pub(super) async fn ready(&self) -> Result<(), StoreError> {
        self.pool.get().await?.query("SELECT 1", &[]).await.map(drop)
    }

    fn open_sealed(&self, place: &str, row: &Row, column: usize) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        Ok(self.sealer.open(place, row.try_get(column)?)?)
    }

    pub(super) async fn resource(&self, path: &ResourcePath) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = path.to_string();
        let row = self.pool.get().await?.row("SELECT sealed FROM kbs_resources WHERE path = $1", &[&path]).await?;
        row.map(|row| self.open_sealed(&format!("resource:{path}"), &row, 0)).transpose()
    }

    pub(super) async fn release<T>(
        &self,
        path: &ResourcePath,
        decision: Decision,
        meanwhile: impl FnOnce(Option<Zeroizing<Vec<u8>>>) -> T,
    ) -> Result<T, StoreError> {
        let found = self.resource(path).await?;
        let kept = self.record(decision.of_found(found.is_some()));
        let (kept, made) = tokio::join!(kept, async { meanwhile(found) });
        kept.map(|()| made)
    }

    pub(super) async fn put_resource(&self, path: &ResourcePath, value: Bytes) -> Result<bool, StoreError> {
        let path = path.to_string();
        let sealed = self.sealer.seal(&format!("resource:{path}"), &value)?;
        // `xmax` of a row that was inserted is zero; of one that was updated it is this transaction.
        let sql = "INSERT INTO kbs_resources (path, sealed) SELECT $1, $2
            WHERE EXISTS (SELECT 1 FROM kbs_resources WHERE path = $1) OR (SELECT count(*) FROM kbs_resources) < $3
            ON CONFLICT (path) DO UPDATE SET sealed = excluded.sealed RETURNING xmax <> 0";
        let row = self.pool.get().await?.row(sql, &[&path, &sealed, &MAX_RESOURCES]).await?;
        Ok(row.ok_or(StoreError::Full("resources"))?.try_get(0)?)
    }

    pub(super) async fn delete_resource(&self, path: &ResourcePath) -> Result<bool, StoreError> {
        self.pool.get().await?.touched("DELETE FROM kbs_resources WHERE path = $1 RETURNING 1", &[&path.to_string()]).await
    }

    pub(super) async fn resource_names(&self) -> Result<Vec<String>, StoreError> {
        let rows = self.pool.get().await?.query("SELECT path FROM kbs_resources ORDER BY path", &[]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    pub(super) async fn key_or(
        &self,
        name: &'static str,
        make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, StoreError>,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let place = format!("key:{name}");
        let mut lease = self.pool.get().await?;
        if let Some(row) = sealed_key(&mut lease, name).await? {
            return self.open_sealed(&place, &row, 0);
        }
        let made = self.sealer.seal(&place, &make()?)?;
        lease.query("INSERT INTO kbs_keys (name, sealed) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING", &[&name, &made]).await?;
        // Ours, or that of a broker that was faster.
        let row = sealed_key(&mut lease, name).await?.ok_or(StoreError::Corrupt("key"))?;
        self.open_sealed(&place, &row, 0)
    }

    pub(super) async fn policy(&self, name: PolicyName) -> Result<Option<String>, StoreError> {
        let name = name.key();
        let row = self.pool.get().await?.row("SELECT sealed FROM kbs_policies WHERE name = $1", &[&name]).await?;
        row.map(|row| self.open_policy(&name, &row, 0)).transpose()
    }

    pub(super) async fn resource_policy(&self) -> Result<Option<Arc<str>>, StoreError> {
        Ok(self.policy(PolicyName::Resource).await?.map(Arc::from))
    }

    fn open_policy(&self, name: &str, row: &Row, column: usize) -> Result<String, StoreError> {
        let rego = self.open_sealed(&format!("policy:{name}"), row, column)?;
        String::from_utf8(rego.to_vec()).map_err(|_| StoreError::Corrupt("policy"))
    }

    pub(super) async fn put_policy(&self, name: PolicyName, rego: String) -> Result<(), StoreError> {
        let name = name.key();
        let sealed = self.sealer.seal(&format!("policy:{name}"), rego.as_bytes())?;
        let sql = "INSERT INTO kbs_policies (name, sealed) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed";
        self.pool.get().await?.query(sql, &[&name, &sealed]).await.map(drop)
    }

    pub(super) async fn delete_policy(&self, name: PolicyName) -> Result<bool, StoreError> {
        self.pool.get().await?.touched("DELETE FROM kbs_policies WHERE name = $1 RETURNING 1", &[&name.key()]).await
    }

    /// One statement: one way to the database and back, and all as it was at one moment.
    pub(super) async fn appraisal_input(&self, policy: PolicyName) -> Result<AppraisalInput, StoreError> {
        let name = policy.key();
        let sql = "SELECT 1 AS what, name, sealed FROM kbs_policies WHERE name = $1
            UNION ALL SELECT 2, id, sealed FROM kbs_reference_values
            UNION ALL SELECT 3, name, sealed FROM kbs_manifests WHERE sealed IS NOT NULL ORDER BY what, name";
        let rows = self.pool.get().await?.query(sql, &[&name]).await?;
        let (mut policy, mut registered) = (None, Registered::default());
        for row in &rows {
            let id: String = row.try_get(1)?;
            match row.try_get::<_, i32>(0)? {
                1 => policy = Some(self.open_policy(&name, row, 2)?.into()),
                2 => _ = registered.unsigned.insert(id.clone(), self.open_value(&id, row)?),
                _ => registered.manifests.push(self.open_manifest(&id, row.try_get(2)?)?),
            }
        }
        Ok(AppraisalInput { policy, registered: Arc::new(registered) })
    }

    fn open_value(&self, id: &str, row: &Row) -> Result<Value, StoreError> {
        let value = self.open_sealed(&format!("reference:{id}"), row, 2)?;
        serde_json::from_slice(&value).map_err(|_| StoreError::Corrupt("reference value"))
    }

    fn open_manifest(&self, name: &str, sealed: &[u8]) -> Result<KeptManifest, StoreError> {
        KeptManifest::from_text(&self.sealer.open(&format!("manifest:{name}"), sealed)?)
    }

    pub(super) async fn registered(&self) -> Result<Arc<Registered>, StoreError> {
        Ok(self.appraisal_input(PolicyName::Resource).await?.registered)
    }

    pub(super) async fn put_reference_values(&self, values: ReferenceValues) -> Result<(), StoreError> {
        let mut lease = self.administer().await?;
        for (id, value) in &values {
            if value.as_array().is_some_and(Vec::is_empty) {
                lease.query("DELETE FROM kbs_reference_values WHERE id = $1", &[id]).await?;
            } else {
                let sealed = self.sealer.seal(&format!("reference:{id}"), value.to_string().as_bytes())?;
                let sql = "INSERT INTO kbs_reference_values (id, sealed) VALUES ($1, $2)
                    ON CONFLICT (id) DO UPDATE SET sealed = excluded.sealed";
                lease.query(sql, &[id, &sealed]).await?;
            }
        }
        if count(&mut lease, "SELECT count(*) FROM kbs_reference_values").await? > MAX_REFERENCE_IDS {
            return Err(StoreError::Full("reference values"));
        }
        lease.commit().await
    }

    pub(super) async fn delete_reference_value(&self, id: String) -> Result<bool, StoreError> {
        if is_no_text(&id) {
            return Ok(false);
        }
        self.pool.get().await?.touched("DELETE FROM kbs_reference_values WHERE id = $1 RETURNING 1", &[&id]).await
    }

    pub(super) async fn manifest_envelope(&self, name: String) -> Result<Option<String>, StoreError> {
        if is_no_text(&name) {
            return Ok(None);
        }
        let sql = "SELECT envelope FROM kbs_manifests WHERE name = $1 AND envelope IS NOT NULL";
        let row = self.pool.get().await?.row(sql, &[&name]).await?;
        row.map(|row| Ok(row.try_get(0)?)).transpose()
    }

    pub(super) async fn put_manifest(&self, kept: KeptManifest, envelope: String, allow_rollback: bool) -> Result<Put, StoreError> {
        let sealed = self.sealer.seal(&format!("manifest:{}", kept.name), kept.to_text()?.as_bytes())?;
        let mut lease = self.administer().await?;
        let row = lease.row("SELECT highest, sealed FROM kbs_manifests WHERE name = $1", &[&kept.name]).await?;
        let before = match row {
            None => None,
            Some(row) => {
                let sealed: Option<&[u8]> = row.try_get(1)?;
                let before = sealed.map(|sealed| self.open_manifest(&kept.name, sealed)).transpose()?;
                Some(Before { highest: row.try_get(0)?, kept: before })
            }
        };
        let (put, highest) = decide(&kept, before, allow_rollback)?;
        match put {
            Put::Same | Put::NotNewer { .. } => {
                lease.commit().await?;
                return Ok(put);
            }
            Put::New if count(&mut lease, "SELECT count(*) FROM kbs_manifests").await? >= MAX_MANIFESTS => {
                return Err(StoreError::Full("reference manifests"));
            }
            Put::New | Put::Replaced { .. } => {}
        }
        let sql = "INSERT INTO kbs_manifests (name, highest, sealed, envelope) VALUES ($1, $2, $3, $4)
            ON CONFLICT (name) DO UPDATE SET highest = excluded.highest, sealed = excluded.sealed, envelope = excluded.envelope";
        lease.query(sql, &[&kept.name, &highest, &sealed, &envelope]).await?;
        lease.commit().await?;
        Ok(put)
    }

    pub(super) async fn delete_manifest(&self, name: String) -> Result<bool, StoreError> {
        if is_no_text(&name) {
            return Ok(false);
        }
        let sql = "UPDATE kbs_manifests SET sealed = NULL, envelope = NULL WHERE name = $1 AND sealed IS NOT NULL RETURNING 1";
        self.pool.get().await?.touched(sql, &[&name]).await
    }

    pub(super) async fn record(&self, decision: Decision) -> Result<(), StoreError> {
        self.log.record(decision).await
    }

    pub(super) async fn decisions(&self, query: AuditQuery) -> Result<Vec<Value>, StoreError> {
        audit::decisions(&self.pool, &query).await
    }

    /// A transaction that looks and then writes: one at a time over all brokers.
    async fn administer(&self) -> Result<Lease, StoreError> {
        let mut lease = self.pool.get().await?;
        lease.begin().await?;
        lease.query("SELECT pg_advisory_xact_lock($1)", &[&schema::LOCK_ADMINISTRATION]).await?;
        Ok(lease)
    }
}

async fn sealed_key(lease: &mut Lease, name: &str) -> Result<Option<Row>, StoreError> {
    lease.row("SELECT sealed FROM kbs_keys WHERE name = $1", &[&name]).await
}

async fn count(lease: &mut Lease, sql: &'static str) -> Result<i64, StoreError> {
    Ok(lease.row(sql, &[]).await?.ok_or(StoreError::Corrupt("count"))?.try_get(0)?)
}

/// PostgreSQL's text has no NUL, so nothing is stored under such a name.
fn is_no_text(name: &str) -> bool {
    name.contains('\0')
}
