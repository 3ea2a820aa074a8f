//! Reference manifests, by name. Of one name the highest serial number ever taken is remembered, also when the manifest is deleted.
//!
//! **Invariant:** a lower serial number, or other content under the same one, replaces nothing unless that was asked for.

use super::{Db, StoreError};
use kata_cc_policy::VerifiedManifest;
use kata_cc_policy::reference::Kind;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Names of manifests that there may be, deleted ones included.
const MAX_MANIFESTS: i64 = 1000;

pub(super) const SCHEMA_3: &str = "BEGIN;
    CREATE TABLE IF NOT EXISTS manifests (name TEXT PRIMARY KEY, highest INTEGER NOT NULL, kept TEXT, envelope TEXT) STRICT;
    PRAGMA user_version = 3;
    COMMIT;";

/// What is kept of a manifest beside its envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptManifest {
    /// See [`kata_cc_policy::Manifest::name`].
    pub name: String,
    /// See [`kata_cc_policy::Manifest::release`].
    pub release: String,
    /// See [`kata_cc_policy::Manifest::serial`].
    pub serial: u64,
    /// See [`kata_cc_policy::Manifest::kind`].
    pub kind: Kind,
    /// Unix time.
    pub not_before: u64,
    /// Unix time.
    pub expires: u64,
    /// Id of the key that signed it.
    pub signer: String,
    /// SHA-256 of what was signed.
    pub sha256: String,
    /// When it was taken, Unix time.
    pub put_at: u64,
    /// Which administrator brought it.
    pub put_by: String,
    /// Its values.
    pub values: BTreeMap<String, Vec<Value>>,
}

impl KeptManifest {
    /// Of a manifest that was admitted.
    pub fn new(verified: &VerifiedManifest, put_at: u64, put_by: String) -> Self {
        let manifest = verified.manifest();
        Self {
            name: manifest.name.clone(),
            release: manifest.release.clone(),
            serial: manifest.serial,
            kind: manifest.kind,
            not_before: manifest.not_before,
            expires: manifest.expires,
            signer: verified.signer().to_string(),
            sha256: verified.digest().to_string(),
            put_at,
            put_by,
            values: manifest.values(),
        }
    }
}

/// What became of a manifest that was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// It is the first of its name.
    New,
    /// It took the place of the one with this serial number, or of a deleted one.
    Replaced {
        /// The serial number of the one before; none where that was deleted.
        before: Option<u64>,
    },
    /// It was there already.
    Same,
    /// It was not taken: this serial number or a higher one of that name was here before.
    NotNewer {
        /// The highest.
        highest: u64,
    },
}

impl Db {
    /// All manifests that are there, whether they count or not, in order of their names.
    pub fn manifests(&self) -> Result<Vec<KeptManifest>, StoreError> {
        let mut statement = self.sqlite.prepare_cached("SELECT kept FROM manifests WHERE kept IS NOT NULL ORDER BY name")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|row| serde_json::from_str(&row?).map_err(|_| StoreError::Corrupt("reference manifest"))).collect()
    }

    /// The envelope of a manifest as it was put, or `None`.
    pub fn manifest_envelope(&self, name: &str) -> Result<Option<String>, StoreError> {
        let mut statement = self.sqlite.prepare_cached("SELECT envelope FROM manifests WHERE name = ?1 AND envelope IS NOT NULL")?;
        Ok(statement.query_row([name], |row| row.get(0)).optional()?)
    }

    /// Puts a manifest in the place of the one of its name.
    pub fn put_manifest(&mut self, kept: &KeptManifest, envelope: &str, allow_rollback: bool) -> Result<Put, StoreError> {
        let serial = i64::try_from(kept.serial).map_err(|_| StoreError::Corrupt("serial number"))?;
        let text = serde_json::to_string(kept).map_err(|_| StoreError::Corrupt("reference manifest"))?;
        let tx = self.sqlite.transaction()?;
        let before: Option<(i64, Option<String>)> = tx
            .query_row("SELECT highest, kept FROM manifests WHERE name = ?1", [&kept.name], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (highest, put) = match before {
            None => {
                let rows: i64 = tx.query_row("SELECT count(*) FROM manifests", [], |row| row.get(0))?;
                if rows >= MAX_MANIFESTS {
                    return Err(StoreError::Full("reference manifests"));
                }
                (serial, Put::New)
            }
            Some((highest, before)) => {
                let before: Option<KeptManifest> =
                    before.map(|text| serde_json::from_str(&text).map_err(|_| StoreError::Corrupt("reference manifest"))).transpose()?;
                if before.as_ref().is_some_and(|before| before.sha256 == kept.sha256) {
                    return Ok(Put::Same);
                }
                if serial <= highest && !allow_rollback {
                    return Ok(Put::NotNewer { highest: u64::try_from(highest).unwrap_or_default() });
                }
                (highest.max(serial), Put::Replaced { before: before.map(|before| before.serial) })
            }
        };
        tx.execute(
            "INSERT OR REPLACE INTO manifests (name, highest, kept, envelope) VALUES (?1, ?2, ?3, ?4)",
            params![kept.name, highest, text, envelope],
        )?;
        tx.commit()?;
        Ok(put)
    }

    /// Deletes a manifest; its name and serial number are remembered. Whether there was one.
    pub fn delete_manifest(&mut self, name: &str) -> Result<bool, StoreError> {
        let sql = "UPDATE manifests SET kept = NULL, envelope = NULL WHERE name = ?1 AND kept IS NOT NULL";
        Ok(self.sqlite.execute(sql, [name])? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str, serial: u64, sha256: &str) -> KeptManifest {
        KeptManifest {
            name: name.into(),
            release: "1".into(),
            serial,
            kind: Kind::Production,
            not_before: 0,
            expires: 10,
            signer: "aa".into(),
            sha256: sha256.into(),
            put_at: 5,
            put_by: "key x as admin".into(),
            values: BTreeMap::from([("snp_launch_measurement".to_owned(), vec![Value::from(sha256)])]),
        }
    }

    #[test]
    fn serial_numbers_of_a_name_only_rise_also_over_a_deletion_and_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = Db::open(dir.path()).unwrap();
        let mut put = |serial, sha256, rollback| db.put_manifest(&kept("a", serial, sha256), "{}", rollback).unwrap();
        assert_eq!(put(5, "x", false), Put::New);
        assert_eq!(put(5, "x", false), Put::Same);
        assert_eq!(put(5, "y", false), Put::NotNewer { highest: 5 });
        assert_eq!(put(4, "w", false), Put::NotNewer { highest: 5 });
        assert_eq!(put(7, "z", false), Put::Replaced { before: Some(5) });
        assert_eq!(put(6, "u", true), Put::Replaced { before: Some(7) });
        assert_eq!(put(7, "v", false), Put::NotNewer { highest: 7 });
        assert_eq!(db.put_manifest(&kept("b", 1, "x"), "{}", false).unwrap(), Put::New);
        assert!(db.delete_manifest("a").unwrap() && !db.delete_manifest("a").unwrap() && !db.delete_manifest("c").unwrap());
        drop(db);
        let mut db = Db::open(dir.path()).unwrap();
        assert_eq!(db.manifests().unwrap(), [kept("b", 1, "x")]);
        assert_eq!(db.manifest_envelope("a").unwrap(), None);
        assert_eq!(db.put_manifest(&kept("a", 7, "z"), "{}", false).unwrap(), Put::NotNewer { highest: 7 });
        assert_eq!(db.put_manifest(&kept("a", 8, "z"), "{}", false).unwrap(), Put::Replaced { before: None });
    }

    #[test]
    fn there_are_only_so_many_names() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = Db::open(dir.path()).unwrap();
        let tx = db.sqlite.transaction().unwrap();
        for i in 0..MAX_MANIFESTS {
            tx.execute("INSERT INTO manifests (name, highest) VALUES (?1, 1)", [format!("n{i}")]).unwrap();
        }
        tx.commit().unwrap();
        assert!(matches!(db.put_manifest(&kept("new", 1, "x"), "{}", false), Err(StoreError::Full(_))));
        assert!(db.put_manifest(&kept("n1", 2, "x"), "{}", false).is_ok());
    }
}
