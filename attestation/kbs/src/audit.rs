//! The audit log: every decision with what was asked, what was found, what was expected and which rule decided.
//!
//! For administrators and the broker's own log only; a guest never sees an expected value. Values here are claims and reference values,
//! which are not secret; **invariant:** no secret, token or key is ever part of a [`Decision`].

use crate::admin::Administrator;
use kata_cc_verifier::checks::{Check, Outcome};
use serde::{Deserialize, Serialize};

/// What was decided over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// An administrator put or deleted a manifest of reference values.
    SetReferenceManifest,
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
            Self::SetReferenceManifest => "set-reference-manifest",
            Self::AdminRefused => "admin-refused",
        }
    }
}

/// What a decision is kept among. Each class has rows of its own, so that a flood of one pushes out nothing of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A secret was released.
    Release,
    /// Evidence was affirmed.
    Affirmed,
    /// Evidence that verified, or a token of ours, was not good enough.
    Denied,
    /// Something an administrator did.
    Administration,
    /// Anybody can cause it, with no evidence and no token that is good. Repetitions are counted, not kept.
    Unauthenticated,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Release, Self::Affirmed, Self::Denied, Self::Administration, Self::Unauthenticated];

    /// As in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Affirmed => "affirmed",
            Self::Denied => "denied",
            Self::Administration => "administration",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}

/// Digest of evidence for the audit log: over JSON with sorted keys and without spaces, as RFC 8785 has it for what evidence contains.
pub fn evidence_digest(evidence: &serde_json::Value) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, evidence.to_string().as_bytes()))
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
    /// Which administrator, where it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// TEE type, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tee: Option<String>,
    /// SHA-256 of the evidence in its canonical JSON form, where there was any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence_sha256: Option<String>,
    /// Resource path, policy name, reference value id or manifest name.
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
            by: None,
            tee: None,
            evidence_sha256: None,
            subject: None,
            rule: rule.into(),
            comparisons: Vec::new(),
            claims: serde_json::Value::Null,
            detail: String::new(),
        }
    }

    /// Something an administrator did.
    pub fn by(administrator: &Administrator, at: u64, action: Action, outcome: &str) -> Self {
        Self { by: Some(administrator.described()), ..Self::new(at, action, true, outcome, "administrator's role") }
    }

    /// The decision to release a resource, now that it is known whether there is one.
    #[must_use]
    pub fn of_found(mut self, found: bool) -> Self {
        if !found {
            "not-found".clone_into(&mut self.outcome);
        }
        self
    }

    /// Where it is kept.
    pub fn class(&self) -> Class {
        match (self.action, self.allowed) {
            (Action::ReadResource, true) => Class::Release,
            (Action::Attest, true) => Class::Affirmed,
            // Evidence that did not even verify.
            (Action::Attest, false) if self.outcome == "refused" => Class::Unauthenticated,
            (Action::Attest | Action::ReadResource, false) => Class::Denied,
            (Action::AdminRefused, _) => Class::Unauthenticated,
            (
                Action::WriteResource
                | Action::DeleteResource
                | Action::SetPolicy
                | Action::SetReferenceValue
                | Action::SetReferenceManifest,
                _,
            ) => Class::Administration,
        }
    }

    /// Writes it to the log.
    pub fn log(&self) {
        tracing::info!(
            target: "audit",
            action = self.action.as_str(),
            allowed = self.allowed,
            outcome = %self.outcome,
            by = self.by.as_deref(),
            tee = self.tee.as_deref(),
            evidence_sha256 = self.evidence_sha256.as_deref(),
            subject = self.subject.as_deref(),
            rule = %self.rule,
            comparisons = %serde_json::to_string(&self.comparisons).unwrap_or_default(),
            detail = %self.detail,
            "decision"
        );
    }
}
