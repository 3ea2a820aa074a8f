//! Reference manifests in SQLite. What may replace what: [`crate::store::manifest`].

use super::Db;
use crate::store::StoreError;
use crate::store::manifest::{Before, KeptManifest, MAX_MANIFESTS, Put, decide};
use rusqlite::{OptionalExtension, params};

pub(super) const SCHEMA_3: &str = "BEGIN;
    CREATE TABLE IF NOT EXISTS manifests (name TEXT PRIMARY KEY, highest INTEGER NOT NULL, kept TEXT, envelope TEXT) STRICT;
    PRAGMA user_version = 3;
    COMMIT;";

impl Db {
    /// All manifests that are there, whether they count or not, in order of their names.
    pub(super) fn manifests(&self) -> Result<Vec<KeptManifest>, StoreError> {
        let mut statement = self.sqlite.prepare_cached("SELECT kept FROM manifests WHERE kept IS NOT NULL ORDER BY name")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|row| KeptManifest::from_text(row?.as_bytes())).collect()
    }

    /// The envelope of a manifest as it was put, or `None`.
    pub(super) fn manifest_envelope(&self, name: &str) -> Result<Option<String>, StoreError> {
        let mut statement = self.sqlite.prepare_cached("SELECT envelope FROM manifests WHERE name = ?1 AND envelope IS NOT NULL")?;
        Ok(statement.query_row([name], |row| row.get(0)).optional()?)
    }

    /// Puts a manifest in the place of the one of its name.
    pub(super) fn put_manifest(&mut self, kept: &KeptManifest, envelope: &str, allow_rollback: bool) -> Result<Put, StoreError> {
        let text = kept.to_text()?;
        let tx = self.sqlite.transaction()?;
        let before: Option<(i64, Option<String>)> = tx
            .query_row("SELECT highest, kept FROM manifests WHERE name = ?1", [&kept.name], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let before = before
            .map(|(highest, kept)| {
                let kept = kept.map(|text| KeptManifest::from_text(text.as_bytes())).transpose()?;
                Ok::<_, StoreError>(Before { highest, kept })
            })
            .transpose()?;
        let (put, highest) = decide(kept, before, allow_rollback)?;
        match put {
            Put::Same | Put::NotNewer { .. } => return Ok(put),
            Put::New => {
                let rows: i64 = tx.query_row("SELECT count(*) FROM manifests", [], |row| row.get(0))?;
                if rows >= MAX_MANIFESTS {
                    return Err(StoreError::Full("reference manifests"));
                }
            }
            Put::Replaced { .. } => {}
        }
        tx.execute(
            "INSERT OR REPLACE INTO manifests (name, highest, kept, envelope) VALUES (?1, ?2, ?3, ?4)",
            params![kept.name, highest, text, envelope],
        )?;
        tx.commit()?;
        Ok(put)
    }

    /// Deletes a manifest; its name and serial number are remembered. Whether there was one.
    pub(super) fn delete_manifest(&mut self, name: &str) -> Result<bool, StoreError> {
        let sql = "UPDATE manifests SET kept = NULL, envelope = NULL WHERE name = ?1 AND kept IS NOT NULL";
        Ok(self.sqlite.execute(sql, [name])? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_policy::reference::Kind;
    use serde_json::Value;
    use std::collections::BTreeMap;

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
        let mut db = Db::beside_key(dir.path()).unwrap();
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
        let mut db = Db::beside_key(dir.path()).unwrap();
        assert_eq!(db.manifests().unwrap(), [kept("b", 1, "x")]);
        assert_eq!(db.manifest_envelope("a").unwrap(), None);
        assert_eq!(db.put_manifest(&kept("a", 7, "z"), "{}", false).unwrap(), Put::NotNewer { highest: 7 });
        assert_eq!(db.put_manifest(&kept("a", 8, "z"), "{}", false).unwrap(), Put::Replaced { before: None });
    }

    #[test]
    fn there_are_only_so_many_names() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = Db::beside_key(dir.path()).unwrap();
        let tx = db.sqlite.transaction().unwrap();
        for i in 0..MAX_MANIFESTS {
            tx.execute("INSERT INTO manifests (name, highest) VALUES (?1, 1)", [format!("n{i}")]).unwrap();
        }
        tx.commit().unwrap();
        assert!(matches!(db.put_manifest(&kept("new", 1, "x"), "{}", false), Err(StoreError::Full(_))));
        assert!(db.put_manifest(&kept("n1", 2, "x"), "{}", false).is_ok());
    }
}
