//! Tables, and how an older database comes by them. One broker at a time: an advisory lock keeps the others waiting.

use super::connection::Lease;
use crate::store::StoreError;

/// Version of the tables.
const VERSION: i32 = 1;
/// The locks that brokers take against each other, and nobody else; any numbers that are no other program's.
pub(super) const LOCK_SCHEMA: i64 = 0x6b62_7300;
pub(super) const LOCK_ADMINISTRATION: i64 = 0x6b62_7301;

/// What is sealed is so with its place. What decides over releases is sealed too: whoever can write to the database but has not the key can
/// delete it or bring back what was there before, and cannot make policies or reference values. Sessions need not outlive a crash.
const VERSION_1: &str = "
    CREATE TABLE kbs_keys (name text PRIMARY KEY, sealed bytea NOT NULL);
    CREATE TABLE kbs_resources (path text COLLATE \"C\" PRIMARY KEY, sealed bytea NOT NULL);
    CREATE TABLE kbs_policies (name text COLLATE \"C\" PRIMARY KEY, sealed bytea NOT NULL);
    CREATE TABLE kbs_reference_values (id text COLLATE \"C\" PRIMARY KEY, sealed bytea NOT NULL);
    CREATE TABLE kbs_manifests (name text COLLATE \"C\" PRIMARY KEY, highest bigint NOT NULL, sealed bytea, envelope text);
    CREATE TABLE kbs_audit (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, decision text NOT NULL, class text NOT NULL,
        action text NOT NULL, allowed boolean NOT NULL, at bigint NOT NULL, last_at bigint NOT NULL, times bigint NOT NULL);
    CREATE INDEX kbs_audit_by_class ON kbs_audit (class, id);
    CREATE UNLOGGED TABLE kbs_waiting (id bytea PRIMARY KEY, sealed bytea NOT NULL, expires_at bigint NOT NULL);
    CREATE UNLOGGED TABLE kbs_attested (id bytea PRIMARY KEY, sealed bytea NOT NULL, expires_at bigint NOT NULL);";

/// Brings the database to this version, or refuses it.
pub(super) async fn migrate(lease: &mut Lease) -> Result<(), StoreError> {
    lease.begin().await?;
    lease.query("SELECT pg_advisory_xact_lock($1)", &[&LOCK_SCHEMA]).await?;
    let there = lease.touched("SELECT 1 WHERE to_regclass('kbs_schema') IS NOT NULL", &[]).await?;
    if !there {
        lease.batch("CREATE TABLE kbs_schema (version integer NOT NULL); INSERT INTO kbs_schema VALUES (0)").await?;
    }
    let rows = lease.query("SELECT version FROM kbs_schema", &[]).await?;
    let found = match rows.as_slice() {
        [row] => row.try_get::<_, i32>(0)?,
        _ => return Err(StoreError::Corrupt("schema version")),
    };
    if !(0..=VERSION).contains(&found) {
        return Err(StoreError::Schema { found: found.into(), expected: VERSION.into() });
    }
    if found < 1 {
        lease.batch(VERSION_1).await?;
        lease.batch("UPDATE kbs_schema SET version = 1").await?;
    }
    lease.commit().await
}
