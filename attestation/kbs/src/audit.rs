//! The audit log: every decision with what was asked, what was found, what was expected and which rule decided.
//!
//! For administrators and the broker's own log only; a guest never sees an expected value. Values here are claims and reference values,
//! which are not secret; **invariant:** no secret, token or key is ever part of a [`Decision`].

use kata_cc_verifier::checks::{Check, Outcome};
use serde::Serialize;

/// What was decided over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Evidence was looked at.
    Attest,
    /// A secret was asked for.
    ReadResource,
    /// An administrator stored a secret.
    WriteResource,
    /// An administrator deleted a secret.
    DeleteResource,
    /// An administrator set a policy.
    SetPolicy,
    /// An administrator registered reference values.
    SetReferenceValue,
    /// An administrative call without the right to it.
    AdminRefused,
}

impl Action {
    /// As in the JSON form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attest => "attest",
            Self::ReadResource => "read-resource",
            Self::WriteResource => "write-resource",
            Self::DeleteResource => "delete-resource",
            Self::SetPolicy => "set-policy",
            Self::SetReferenceValue => "set-reference-value",
            Self::AdminRefused => "admin-refused",
        }
    }
}

/// One claim that was compared with something.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Name of the claim or reference value.
    pub claim: String,
    /// What would have been right.
    pub expected: serde_json::Value,
    /// What was there.
    pub found: serde_json::Value,
}

impl From<&Check> for Comparison {
    /// A check of the verifier; what it was given nothing to compare with says so.
    fn from(check: &Check) -> Self {
        let expected = if check.outcome == Outcome::NotCompared { "(not compared)" } else { &check.expected };
        Self { claim: check.name.into(), expected: expected.into(), found: check.found.clone().into() }
    }
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// Unix time.
    pub at: u64,
    /// What was decided over.
    pub action: Action,
    /// Whether it was allowed.
    pub allowed: bool,
    /// The outcome in one word, as in the metrics.
    pub outcome: String,
    /// TEE type, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tee: Option<String>,
    /// Resource path, policy name or reference value id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Which rule, check or policy decided.
    pub rule: String,
    /// What was compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub comparisons: Vec<Comparison>,
    /// All claims of the evidence, where there are any.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub claims: serde_json::Value,
    /// The rest of the story, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Decision {
    /// A decision with the fields that each has; the others are empty.
    pub fn new(at: u64, action: Action, allowed: bool, outcome: &str, rule: impl Into<String>) -> Self {
        Self {
            at,
            action,
            allowed,
            outcome: outcome.into(),
            tee: None,
            subject: None,
            rule: rule.into(),
            comparisons: Vec::new(),
            claims: serde_json::Value::Null,
            detail: String::new(),
        }
    }

    /// Writes it to the log.
    pub fn log(&self) {
        tracing::info!(
            target: "audit",
            action = self.action.as_str(),
            allowed = self.allowed,
            outcome = %self.outcome,
            tee = self.tee.as_deref(),
            subject = self.subject.as_deref(),
            rule = %self.rule,
            comparisons = %serde_json::to_string(&self.comparisons).unwrap_or_default(),
            detail = %self.detail,
            "decision"
        );
    }
}
