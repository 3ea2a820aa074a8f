//! Another sealing key for the database. See [`crate::store::rotate`].

use super::connection::{Lease, Pool, Target};
use super::{CHECK, schema, sealed_key};
use crate::seal::{SealError, Sealer};
use crate::store::StoreError;

/// A table with sealed values.
struct Table {
    names: &'static str,
    value: &'static str,
    change: &'static str,
    /// First word of each value's place.
    word: &'static str,
}

macro_rules! table {
    ($table:literal, $name:literal, $word:literal) => {
        Table {
            names: concat!("SELECT ", $name, " FROM ", $table, " WHERE sealed IS NOT NULL"),
            value: concat!("SELECT sealed FROM ", $table, " WHERE ", $name, " = $1"),
            change: concat!("UPDATE ", $table, " SET sealed = $2 WHERE ", $name, " = $1"),
            word: $word,
        }
    };
}

const SEALED: [Table; 5] = [
    table!("kbs_keys", "name", "key"),
    table!("kbs_resources", "path", "resource"),
    table!("kbs_policies", "name", "policy"),
    table!("kbs_reference_values", "id", "reference"),
    table!("kbs_manifests", "name", "manifest"),
];

async fn connect(target: &Target) -> Result<Lease, StoreError> {
    let mut lease = Pool::new(target.clone().named("kata-cc-kbs --rotate-store-key")).get().await?;
    schema::migrate(&mut lease).await?;
    Ok(lease)
}

pub(in crate::store) async fn is_sealed_with(target: &Target, sealer: &Sealer) -> Result<bool, StoreError> {
    let mut lease = connect(target).await?;
    let Some(row) = sealed_key(&mut lease, CHECK).await? else { return Ok(false) };
    match sealer.open(&format!("key:{CHECK}"), row.try_get(0)?) {
        Ok(_) => Ok(true),
        Err(SealError::Open) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

pub(in crate::store) async fn reseal(target: &Target, old: &Sealer, new: &Sealer) -> Result<u64, StoreError> {
    let mut lease = connect(target).await?;
    lease.begin().await?;
    // A broker that starts meanwhile waits here for the schema's lock, and then has the wrong key.
    lease.query("SELECT pg_advisory_xact_lock($1)", &[&schema::LOCK_SCHEMA]).await?;
    let others = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'kata-cc-kbs' AND datname = current_database()";
    if lease.touched(others, &[]).await? {
        return Err(StoreError::InUse);
    }
    // Nobody's any more: guests attest again.
    lease.batch("TRUNCATE kbs_waiting, kbs_attested").await?;
    let mut values = 0_u64;
    for Table { names, value, change, word } in SEALED {
        for row in lease.query(names, &[]).await? {
            let name: String = row.try_get(0)?;
            let row = lease.row(value, &[&name]).await?.ok_or(StoreError::InUse)?;
            let place = format!("{word}:{name}");
            let sealed = new.seal(&place, &old.open(&place, row.try_get(0)?)?)?;
            lease.query(change, &[&name, &sealed]).await?;
            values = values.saturating_add(1);
        }
    }
    lease.commit().await?;
    Ok(values)
}
