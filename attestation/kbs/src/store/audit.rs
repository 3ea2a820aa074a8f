//! What is common to the audit logs of all stores: how many rows each class keeps, and what counts as a repetition.
//!
//! **Invariant:** rows of one class are dropped only for newer rows of the same class. **Invariant:** what anybody can cause without
//! evidence that verifies takes at most [`quota`] rows, and one row a minute for each kind of it.

use super::StoreError;
use crate::audit::{Action, Class, Decision};
use serde_json::Value;

/// Most decisions written at once.
pub(super) const MAX_BATCH: usize = 64;
/// Repetitions within so many seconds of the first are counted in its row.
pub(super) const COALESCE_SECONDS: u64 = 60;
/// Rows above the quota that are put up with before the oldest are dropped, so that not every insert deletes.
pub(super) const SLACK: i64 = 64;
/// Kinds of repetition that are remembered. They are made of our own words, so there are far fewer.
pub(super) const MAX_REPEATED: usize = 1024;

/// Rows that a class keeps.
pub(super) fn quota(class: Class) -> i64 {
    match class {
        Class::Release | Class::Administration => 10_000,
        Class::Affirmed | Class::Denied => 5_000,
        Class::Unauthenticated => 2_000,
    }
}

/// Which decisions to list.
#[derive(Debug, Clone, Default)]
pub struct AuditQuery {
    /// At most so many, the newest.
    pub limit: u32,
    /// Not older than this, Unix time. Of repetitions, the last counts.
    pub since: Option<u64>,
    /// With numbers below this: the page before.
    pub before: Option<i64>,
    /// This one alone.
    pub id: Option<i64>,
    /// Of this action alone.
    pub action: Option<Action>,
    /// Allowed or refused ones alone.
    pub allowed: Option<bool>,
}

/// What makes two decisions of strangers the same. No part of it is the stranger's own text.
pub(super) type Repeated = (Action, String, String, Option<String>);

/// Which repetition a decision may be; `None` where each is kept.
pub(super) fn repeated(decision: &Decision) -> Option<Repeated> {
    (decision.class() == Class::Unauthenticated)
        .then(|| (decision.action, decision.outcome.clone(), decision.rule.clone(), decision.tee.clone()))
}

/// A row as it is shown.
pub(super) fn shown(id: i64, json: &str, times: i64, last_at: i64) -> Result<Value, StoreError> {
    let mut value: Value = serde_json::from_str(json).map_err(|_| StoreError::Corrupt("decision"))?;
    if let Some(object) = value.as_object_mut() {
        object.insert("id".into(), id.into());
        if times > 1 {
            object.insert("times".into(), times.into());
            object.insert("last_at".into(), last_at.into());
        }
    }
    Ok(value)
}

/// A number as databases have it. What does not fit is as good as never.
pub(super) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
