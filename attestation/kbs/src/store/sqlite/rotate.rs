//! Another sealing key for the SQLite file. See [`crate::store::rotate`].

use crate::seal::{SealError, Sealer};
use crate::store::StoreError;
use rusqlite::{Connection, OptionalExtension, ffi, params};
use std::path::Path;

/// Tables with sealed values: name, column that says the place, and the place's first word.
const SEALED: [(&str, &str, &str); 2] = [("resources", "path", "resource"), ("keys", "name", "key")];

fn open(dir: &Path) -> Result<Connection, StoreError> {
    let sqlite = Connection::open(dir.join("kbs.sqlite"))?;
    sqlite.pragma_update(None, "synchronous", "full")?;
    sqlite.pragma_update(None, "secure_delete", "on")?;
    super::migrate(&sqlite)?;
    // Refused while anybody else has the file open, in its write-ahead mode; a broker sets that again.
    let mode = sqlite.pragma_update_and_check(None, "journal_mode", "delete", |row| row.get::<_, String>(0));
    match mode {
        Ok(mode) if mode == "delete" => Ok(sqlite),
        Ok(_) => Err(StoreError::InUse),
        Err(rusqlite::Error::SqliteFailure(e, _)) if e.code == ffi::ErrorCode::DatabaseBusy => Err(StoreError::InUse),
        Err(e) => Err(e.into()),
    }
}

pub(in crate::store) fn is_sealed_with(dir: &Path, sealer: &Sealer) -> Result<bool, StoreError> {
    let sqlite = open(dir)?;
    for (table, column, word) in SEALED {
        let sql = format!("SELECT {column}, sealed FROM {table} LIMIT 1");
        let row: Option<(String, Vec<u8>)> = sqlite.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        if let Some((name, sealed)) = row {
            return match sealer.open(&format!("{word}:{name}"), &sealed) {
                Ok(_) => Ok(true),
                Err(SealError::Open) => Ok(false),
                Err(e) => Err(e.into()),
            };
        }
    }
    Ok(false)
}

pub(in crate::store) fn reseal(dir: &Path, old: &Sealer, new: &Sealer) -> Result<u64, StoreError> {
    let mut sqlite = open(dir)?;
    let tx = sqlite.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive)?;
    let mut values = 0_u64;
    for (table, column, word) in SEALED {
        let mut names = tx.prepare(&format!("SELECT {column} FROM {table}"))?;
        let names: Vec<String> = names.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for name in names {
            let place = format!("{word}:{name}");
            let sql = format!("SELECT sealed FROM {table} WHERE {column} = ?1");
            let sealed: Vec<u8> = tx.query_row(&sql, [&name], |row| row.get(0))?;
            let sealed = new.seal(&place, &old.open(&place, &sealed)?)?;
            tx.execute(&format!("UPDATE {table} SET sealed = ?2 WHERE {column} = ?1"), params![name, sealed])?;
            values = values.saturating_add(1);
        }
    }
    tx.commit()?;
    Ok(values)
}
