//! The audit log in PostgreSQL. What it keeps: [`crate::store::audit`].
//!
//! A task of its own writes, so that what comes while the disk is busy is written together. Each broker counts repetitions in rows of its
//! own and trims what it has added to, so quotas hold to within some rows for each broker.

use super::connection::Pool;
use crate::audit::{Class, Decision};
use crate::store::StoreError;
use crate::store::audit::{AuditQuery, COALESCE_SECONDS, MAX_BATCH, MAX_REPEATED, Repeated, SLACK, integer, quota, repeated, shown};
use std::collections::HashMap;
use tokio::sync::{mpsc, oneshot};

/// Decisions that may wait; more makes callers wait, not memory grow.
const QUEUE: usize = 256;

type Answer = oneshot::Sender<Result<(), StoreError>>;
type Job = (Decision, Answer);

/// Takes decisions. The task ends with the last of these.
#[derive(Debug, Clone)]
pub(super) struct Log(mpsc::Sender<Job>);

impl Log {
    /// Starts the task.
    pub(super) fn start(pool: Pool) -> Self {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        tokio::spawn(async move {
            let mut writer = Writer { pool, repeated: HashMap::new(), added: HashMap::new() };
            let mut batch = Vec::new();
            while queue.recv_many(&mut batch, MAX_BATCH).await > 0 {
                let (decisions, answers): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
                writer.write(&decisions, answers).await;
            }
        });
        Self(jobs)
    }

    pub(super) async fn record(&self, decision: Decision) -> Result<(), StoreError> {
        let (answer, result) = oneshot::channel();
        self.0.send((decision, answer)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}

/// A row to be, or one that is there and counts more.
#[derive(Debug, PartialEq)]
struct Row<'a> {
    decision: &'a Decision,
    times: i64,
    last_at: u64,
    kind: Option<Repeated>,
}

/// What is to be written for some decisions.
#[derive(Debug, Default, PartialEq)]
struct Plan<'a> {
    rows: Vec<Row<'a>>,
    /// Times and last time to add, by row.
    counted: HashMap<i64, (i64, u64)>,
}

/// `known` has the row and the time of the first of each kind.
fn plan<'a>(decisions: &'a [Decision], known: &HashMap<Repeated, (i64, u64)>) -> Plan<'a> {
    let mut plan = Plan::default();
    for decision in decisions {
        let kind = repeated(decision);
        let is_recent = |first: u64| decision.at < first.saturating_add(COALESCE_SECONDS);
        if let Some(kind) = &kind {
            if let Some((id, _)) = known.get(kind).filter(|(_, first)| is_recent(*first)) {
                let (times, last) = plan.counted.entry(*id).or_default();
                *times = times.saturating_add(1);
                *last = decision.at.max(*last);
                continue;
            }
            let before = plan.rows.iter_mut().rev().find(|row| row.kind.as_ref() == Some(kind));
            if let Some(row) = before.filter(|row| is_recent(row.decision.at)) {
                row.times = row.times.saturating_add(1);
                row.last_at = decision.at.max(row.last_at);
                continue;
            }
        }
        plan.rows.push(Row { decision, times: 1, last_at: decision.at, kind });
    }
    plan
}

struct Writer {
    pool: Pool,
    repeated: HashMap<Repeated, (i64, u64)>,
    /// Rows added to each class since it was trimmed.
    added: HashMap<&'static str, i64>,
}

impl Writer {
    /// Keeps decisions together. Where it is a decision that does not go in, each by itself: it must not take others with it.
    async fn write(&mut self, decisions: &[Decision], answers: Vec<Answer>) {
        let together = self.try_write(decisions).await;
        for (decision, answer) in decisions.iter().zip(answers) {
            let result = match &together {
                Ok(()) => Ok(()),
                Err(StoreError::Unavailable(why)) => Err(StoreError::Unavailable(why.clone())),
                Err(_) => self.try_write(std::slice::from_ref(decision)).await,
            };
            let _ = answer.send(result);
        }
        if let Err(error) = self.trim().await {
            tracing::warn!(%error, "the audit log was not trimmed; it will be tried again");
        }
    }

    async fn try_write(&mut self, decisions: &[Decision]) -> Result<(), StoreError> {
        let plan = plan(decisions, &self.repeated);
        let mut lease = self.pool.get().await?;
        if !plan.counted.is_empty() {
            lease.begin().await?;
            for (id, (times, last)) in &plan.counted {
                let sql = "UPDATE kbs_audit SET times = times + $2, last_at = greatest(last_at, $3) WHERE id = $1 RETURNING 1";
                if !lease.touched(sql, &[id, times, &integer(*last)]).await? {
                    // The row was dropped meanwhile: what it stood for gets a new one.
                    self.repeated.retain(|_, (known, _)| known != id);
                    drop(lease);
                    return Box::pin(self.try_write(decisions)).await;
                }
            }
        }
        let ids = if plan.rows.is_empty() { Vec::new() } else { insert(&mut lease, &plan.rows).await? };
        if !plan.counted.is_empty() {
            lease.commit().await?;
        }
        for (row, id) in plan.rows.into_iter().zip(ids) {
            // What others left is trimmed with the first.
            let added = self.added.entry(row.decision.class().as_str()).or_insert(SLACK);
            *added = added.saturating_add(1);
            if let Some(kind) = row.kind {
                if self.repeated.len() >= MAX_REPEATED {
                    self.repeated.clear();
                }
                self.repeated.insert(kind, (id, row.decision.at));
            }
        }
        Ok(())
    }

    /// Drops the oldest of classes that got rows.
    async fn trim(&mut self) -> Result<(), StoreError> {
        for class in Class::ALL {
            let Some(added) = self.added.get_mut(class.as_str()).filter(|added| **added > SLACK) else { continue };
            let sql = "DELETE FROM kbs_audit WHERE class = $1 AND id <=
                (SELECT id FROM kbs_audit WHERE class = $1 ORDER BY id DESC OFFSET $2 LIMIT 1)";
            self.pool.get().await?.query(sql, &[&class.as_str(), &quota(class)]).await?;
            *added = 0;
        }
        Ok(())
    }
}

/// One statement however many rows they are; their numbers in the same order.
async fn insert(lease: &mut super::connection::Lease, rows: &[Row<'_>]) -> Result<Vec<i64>, StoreError> {
    let text = |row: &Row<'_>| serde_json::to_string(row.decision).map_err(|_| StoreError::Corrupt("decision"));
    let decisions = rows.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let classes: Vec<&str> = rows.iter().map(|row| row.decision.class().as_str()).collect();
    let actions: Vec<&str> = rows.iter().map(|row| row.decision.action.as_str()).collect();
    let allowed: Vec<bool> = rows.iter().map(|row| row.decision.allowed).collect();
    let at: Vec<i64> = rows.iter().map(|row| integer(row.decision.at)).collect();
    let last_at: Vec<i64> = rows.iter().map(|row| integer(row.last_at)).collect();
    let times: Vec<i64> = rows.iter().map(|row| row.times).collect();
    let sql = "INSERT INTO kbs_audit (decision, class, action, allowed, at, last_at, times)
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::bigint[], $6::bigint[], $7::bigint[]) RETURNING id";
    let returned = lease.query(sql, &[&decisions, &classes, &actions, &allowed, &at, &last_at, &times]).await?;
    returned.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Decisions, newest first.
pub(super) async fn decisions(pool: &Pool, query: &AuditQuery) -> Result<Vec<serde_json::Value>, StoreError> {
    let sql = "SELECT id, decision, times, last_at FROM kbs_audit
        WHERE ($1::bigint IS NULL OR id = $1) AND ($2::bigint IS NULL OR id < $2) AND ($3::bigint IS NULL OR last_at >= $3)
        AND ($4::text IS NULL OR action = $4) AND ($5::boolean IS NULL OR allowed = $5) ORDER BY id DESC LIMIT $6";
    let since = query.since.map(integer);
    let action = query.action.map(crate::audit::Action::as_str);
    let limit = i64::from(query.limit);
    let rows = pool.get().await?.query(sql, &[&query.id, &query.before, &since, &action, &query.allowed, &limit]).await?;
    rows.iter().map(|row| shown(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Action;

    fn refusal(at: u64, rule: &str) -> Decision {
        Decision::new(at, Action::Attest, false, "refused", rule)
    }

    #[test]
    fn repetitions_are_counted_in_a_batch_and_over_batches() {
        let decisions = [refusal(100, "nonce"), refusal(159, "nonce"), refusal(160, "nonce"), refusal(130, "report-data")];
        let fresh = plan(&decisions, &HashMap::new());
        let rows: Vec<_> = fresh.rows.iter().map(|row| (row.decision.at, row.times, row.last_at)).collect();
        assert_eq!(rows, [(100, 2, 159), (160, 1, 160), (130, 1, 130)]);
        let known = HashMap::from([(repeated(&decisions[0]).unwrap(), (7, 100))]);
        let second = plan(&decisions, &known);
        assert_eq!(second.counted, HashMap::from([(7, (2, 159))]));
        assert_eq!(second.rows.len(), 2);
    }

    #[test]
    fn what_an_administrator_or_a_verified_guest_did_is_never_folded() {
        let decisions = [0; 3].map(|_| Decision::new(5, Action::ReadResource, false, "denied", "r"));
        assert_eq!(plan(&decisions, &HashMap::new()).rows.len(), 3);
    }
}
