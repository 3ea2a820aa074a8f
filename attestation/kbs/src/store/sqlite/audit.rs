//! The table of the audit log in SQLite. What it keeps: [`crate::store::audit`].

use super::Db;
use crate::audit::{Class, Decision};
use crate::store::StoreError;
use crate::store::audit::{AuditQuery, COALESCE_SECONDS, MAX_REPEATED, Repeated, SLACK, integer, quota, repeated, shown};
use rusqlite::{Connection, params, params_from_iter, types::Value as Parameter};
use std::collections::HashMap;

/// Columns to choose and count by, and the index that finds the oldest of a class.
pub(super) const SCHEMA_2: &str = "BEGIN;
    ALTER TABLE audit ADD COLUMN class TEXT NOT NULL DEFAULT '';
    ALTER TABLE audit ADD COLUMN at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE audit ADD COLUMN action TEXT NOT NULL DEFAULT '';
    ALTER TABLE audit ADD COLUMN allowed INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE audit ADD COLUMN times INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE audit ADD COLUMN last_at INTEGER NOT NULL DEFAULT 0;
    UPDATE audit SET at = decision ->> '$.at', last_at = decision ->> '$.at', action = decision ->> '$.action',
        allowed = decision ->> '$.allowed',
        class = CASE
            WHEN decision ->> '$.action' = 'read-resource' AND decision ->> '$.allowed' THEN 'release'
            WHEN decision ->> '$.action' = 'attest' AND decision ->> '$.allowed' THEN 'affirmed'
            WHEN decision ->> '$.action' = 'attest' AND decision ->> '$.outcome' = 'refused' THEN 'unauthenticated'
            WHEN decision ->> '$.action' IN ('attest', 'read-resource') THEN 'denied'
            WHEN decision ->> '$.action' = 'admin-refused' THEN 'unauthenticated'
            ELSE 'administration' END;
    CREATE INDEX audit_by_class ON audit (class, id);
    PRAGMA user_version = 2;
    COMMIT;";

/// What is known about the table without asking it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    rows: HashMap<&'static str, i64>,
    repeated: HashMap<Repeated, (i64, u64)>,
}

impl Ledger {
    pub(super) fn open(sqlite: &Connection) -> Result<Self, StoreError> {
        let mut rows = HashMap::new();
        for class in Class::ALL {
            let count = sqlite.query_row("SELECT count(*) FROM audit WHERE class = ?1", [class.as_str()], |row| row.get(0))?;
            rows.insert(class.as_str(), count);
        }
        Ok(Self { rows, repeated: HashMap::new() })
    }
}

impl Db {
    /// Appends to the audit log. All or none, and one write to the disk however many they are.
    pub(super) fn record(&mut self, decisions: &[Decision]) -> Result<(), StoreError> {
        self.sqlite.execute_batch("BEGIN IMMEDIATE")?;
        let written = decisions.iter().try_for_each(|decision| self.append(decision));
        let written = written.and_then(|()| Ok(self.sqlite.execute_batch("COMMIT")?));
        if written.is_err() {
            // Fails where the transaction is over already.
            let _ = self.sqlite.execute_batch("ROLLBACK");
            self.audit = Ledger::open(&self.sqlite)?;
        }
        written
    }

    /// Appends one, or counts a repetition, and drops what is too old of the same class.
    fn append(&mut self, decision: &Decision) -> Result<(), StoreError> {
        let class = decision.class();
        let kind = repeated(decision);
        if let Some(kind) = &kind
            && self.count_repetition(kind, decision.at)?
        {
            return Ok(());
        }
        let json = serde_json::to_string(decision).map_err(|_| StoreError::Corrupt("decision"))?;
        let mut insert = self
            .sqlite
            .prepare_cached("INSERT INTO audit (decision, class, at, last_at, action, allowed) VALUES (?1, ?2, ?3, ?3, ?4, ?5)")?;
        let at = integer(decision.at);
        let id = insert.insert(params![json, class.as_str(), at, decision.action.as_str(), decision.allowed])?;
        drop(insert);
        if let Some(kind) = kind {
            if self.audit.repeated.len() >= MAX_REPEATED {
                self.audit.repeated.clear();
            }
            self.audit.repeated.insert(kind, (id, decision.at));
        }
        self.drop_oldest(class)
    }

    /// Whether such a decision was there a moment ago; then it is counted.
    fn count_repetition(&mut self, kind: &Repeated, at: u64) -> Result<bool, StoreError> {
        let Some((id, _)) = self.audit.repeated.get(kind).filter(|(_, first)| at < first.saturating_add(COALESCE_SECONDS)) else {
            return Ok(false);
        };
        let last = integer(at);
        let mut update = self.sqlite.prepare_cached("UPDATE audit SET times = times + 1, last_at = max(last_at, ?2) WHERE id = ?1")?;
        // No row: it was dropped, or its insert was rolled back.
        Ok(update.execute(params![id, last])? > 0)
    }

    fn drop_oldest(&mut self, class: Class) -> Result<(), StoreError> {
        let rows = self.audit.rows.entry(class.as_str()).or_default();
        *rows = rows.saturating_add(1);
        let over = rows.saturating_sub(quota(class));
        if over > SLACK {
            self.sqlite.execute(
                "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE class = ?1 ORDER BY id LIMIT ?2)",
                params![class.as_str(), over],
            )?;
            *rows = quota(class);
        }
        Ok(())
    }

    /// Decisions, newest first.
    pub(super) fn decisions(&self, query: &AuditQuery) -> Result<Vec<serde_json::Value>, StoreError> {
        let mut sql = "SELECT id, decision, times, last_at FROM audit WHERE 1".to_owned();
        let mut values: Vec<Parameter> = Vec::new();
        let mut and = |condition: &str, value: Parameter| {
            values.push(value);
            sql.push_str(&format!(" AND {condition} ?{}", values.len()));
        };
        if let Some(id) = query.id {
            and("id =", id.into());
        }
        if let Some(before) = query.before {
            and("id <", before.into());
        }
        if let Some(since) = query.since {
            and("last_at >=", integer(since).into());
        }
        if let Some(action) = query.action {
            and("action =", action.as_str().to_owned().into());
        }
        if let Some(allowed) = query.allowed {
            and("allowed =", i64::from(allowed).into());
        }
        values.push(i64::from(query.limit).into());
        sql.push_str(&format!(" ORDER BY id DESC LIMIT ?{}", values.len()));
        let mut statement = self.sqlite.prepare_cached(&sql)?;
        let rows = statement.query_map(params_from_iter(values), |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?))
        })?;
        let mut all = Vec::new();
        for row in rows {
            let (id, json, times, last_at) = row?;
            all.push(shown(id, &json, times, last_at)?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Action;

    fn db() -> (tempfile::TempDir, Db) {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::beside_key(dir.path()).unwrap();
        (dir, db)
    }

    fn all(db: &Db) -> Vec<serde_json::Value> {
        db.decisions(&AuditQuery { limit: 100_000, ..AuditQuery::default() }).unwrap()
    }

    fn refusal(at: u64, rule: &str) -> Decision {
        Decision::new(at, Action::Attest, false, "refused", rule)
    }

    #[test]
    fn a_flood_of_refusals_pushes_out_no_release() {
        let (_dir, mut db) = db();
        db.sqlite.execute_batch("BEGIN").unwrap();
        db.append(&Decision::new(1, Action::ReadResource, true, "released", "default resource policy")).unwrap();
        // Each an hour after the other, so that none is a repetition; and verified evidence that is denied besides.
        for i in 0..6_000 {
            db.append(&refusal(i * 3600, "report-signature")).unwrap();
            db.append(&Decision::new(i, Action::Attest, false, "contraindicated", "default_cpu")).unwrap();
        }
        db.sqlite.execute_batch("COMMIT").unwrap();
        let kept = all(&db);
        assert_eq!(kept.last().unwrap()["outcome"], "released");
        let count = |outcome: &str| i64::try_from(kept.iter().filter(|d| d["outcome"] == outcome).count()).unwrap();
        assert!((quota(Class::Unauthenticated)..=quota(Class::Unauthenticated) + SLACK).contains(&count("refused")));
        assert!((quota(Class::Denied)..=quota(Class::Denied) + SLACK).contains(&count("contraindicated")));
    }

    #[test]
    fn decisions_are_kept_together_or_not_at_all() {
        let (_dir, mut db) = db();
        let two = [refusal(1, "nonce"), refusal(2, "report-data")];
        db.record(&two).unwrap();
        assert_eq!(all(&db).len(), 2);
        db.sqlite
            .execute_batch("CREATE TRIGGER full BEFORE INSERT ON audit WHEN NEW.at = 9000 BEGIN SELECT RAISE(FAIL, 'full'); END")
            .unwrap();
        assert!(db.record(&[refusal(8000, "nonce"), refusal(9000, "report-data")]).is_err());
        assert_eq!((all(&db).len(), db.audit.rows["unauthenticated"]), (2, 2));
        db.record(&[refusal(8000, "nonce")]).unwrap();
        assert_eq!(all(&db).len(), 3, "what was not kept is no repetition of");
    }

    #[test]
    fn quotas_hold_across_a_restart() {
        let (dir, mut db) = db();
        db.append(&refusal(1, "nonce")).unwrap();
        drop(db);
        let db = Db::beside_key(dir.path()).unwrap();
        assert_eq!(db.audit.rows["unauthenticated"], 1);
    }

    #[test]
    fn repetitions_of_strangers_are_counted_for_a_minute() {
        let (_dir, mut db) = db();
        for at in [100, 101, 159] {
            db.append(&refusal(at, "nonce")).unwrap();
        }
        db.append(&refusal(130, "report-data")).unwrap();
        db.append(&refusal(160, "nonce")).unwrap();
        let kept = all(&db);
        assert_eq!(kept.len(), 3);
        assert_eq!((&kept[2]["times"], &kept[2]["at"], &kept[2]["last_at"]), (&3.into(), &100.into(), &159.into()));
        assert_eq!((&kept[1]["rule"], &kept[1]["times"]), (&"report-data".into(), &serde_json::Value::Null));
        assert_eq!(kept[0]["at"], 160);
    }

    #[test]
    fn the_strangers_own_text_does_not_make_a_row_of_its_own() {
        let (_dir, mut db) = db();
        for i in 0..50 {
            let mut decision = Decision::new(5, Action::AdminRefused, false, "refused", "audit:read");
            decision.subject = Some(format!("/kbs/v0/audit{i}"));
            db.append(&decision).unwrap();
        }
        assert_eq!(all(&db).len(), 1);
        assert_eq!(all(&db)[0]["times"], 50);
    }

    #[test]
    fn what_an_administrator_or_a_verified_guest_did_is_never_folded() {
        let (_dir, mut db) = db();
        for _ in 0..3 {
            db.append(&Decision::new(5, Action::ReadResource, false, "denied", "default resource policy")).unwrap();
            db.append(&Decision::new(5, Action::SetPolicy, true, "set", "r")).unwrap();
        }
        assert_eq!(all(&db).len(), 6);
    }

    #[test]
    fn decisions_are_found_by_time_action_outcome_and_number() {
        let (_dir, mut db) = db();
        db.append(&Decision::new(10, Action::ReadResource, true, "released", "r")).unwrap();
        db.append(&Decision::new(20, Action::ReadResource, false, "denied", "r")).unwrap();
        db.append(&Decision::new(30, Action::SetPolicy, true, "set", "r")).unwrap();
        let find = |query: AuditQuery| {
            let found = db.decisions(&AuditQuery { limit: 10, ..query }).unwrap();
            found.iter().map(|d| d["at"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(find(AuditQuery { since: Some(20), ..AuditQuery::default() }), [30, 20]);
        assert_eq!(find(AuditQuery { action: Some(Action::ReadResource), ..AuditQuery::default() }), [20, 10]);
        assert_eq!(find(AuditQuery { allowed: Some(false), ..AuditQuery::default() }), [20]);
        assert_eq!(find(AuditQuery { id: Some(1), ..AuditQuery::default() }), [10]);
        assert_eq!(find(AuditQuery { before: Some(3), ..AuditQuery::default() }), [20, 10]);
        assert_eq!(find(AuditQuery { action: Some(Action::Attest), ..AuditQuery::default() }), [0_u64; 0]);
    }

    #[test]
    fn the_log_of_the_former_version_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        drop(Db::beside_key(dir.path()).unwrap());
        let sqlite = Connection::open(dir.path().join("kbs.sqlite")).unwrap();
        sqlite
            .execute_batch(
                "DROP INDEX audit_by_class; DROP TABLE audit;
                 CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, decision TEXT NOT NULL) STRICT;
                 PRAGMA user_version = 1;",
            )
            .unwrap();
        let old = serde_json::to_string(&Decision::new(7, Action::ReadResource, true, "released", "r")).unwrap();
        sqlite.execute("INSERT INTO audit (decision) VALUES (?1)", [old]).unwrap();
        drop(sqlite);
        let db = Db::beside_key(dir.path()).unwrap();
        let released =
            AuditQuery { limit: 1, since: Some(7), action: Some(Action::ReadResource), allowed: Some(true), ..AuditQuery::default() };
        assert_eq!(db.decisions(&released).unwrap().len(), 1);
        assert_eq!(db.audit.rows["release"], 1);
    }
}
