//! Requests on their way through the policy: [`PolicyRequest`] before, [`Allowed`] or [`Denied`] after.
//!
//! **Invariant:** `Allowed` has no constructor outside this crate, so a handler that takes one cannot be called unchecked.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::gate::Pending;

/// Something the host asks for that a policy decides on.
///
/// Every serialisable protobuf message is one: its rule is the message's name and its input the JSON form. Where the policy is to
/// see something else (no file contents, a derived file type), wrap the message in a type of its own and implement this for it:
/// `CopyFileRequest`, `WriteStreamRequest` and `SetPolicyRequest` carry bulk data that has no place in a policy's input.
pub trait PolicyRequest {
    /// Name of the rule in package `agent_policy`: the message's name.
    const RULE: &'static str;

    /// What the policy sees as `input`. Anything but a JSON object is denied.
    fn policy_input(&self) -> Value;
}

impl<M: protobuf::Message + Serialize> PolicyRequest for M {
    const RULE: &'static str = M::NAME;

    fn policy_input(&self) -> Value {
        // Null is no object, and so denied.
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
}

/// A request that the policy in place has allowed.
///
/// The state changes that the policy asked for are in effect if it came from [`crate::Gate::check`]. From [`crate::Gate::decide`] they
/// are with it, for whoever carries it out to commit: see [`Self::into_parts`].
pub struct Allowed<R> {
    request: R,
    policy_version: u64,
    pending: Pending,
}

impl<R> Allowed<R> {
    pub(crate) fn new(request: R, policy_version: u64, pending: Pending) -> Self {
        Self { request, policy_version, pending }
    }

    /// The request.
    #[must_use]
    pub fn get(&self) -> &R {
        &self.request
    }

    /// The request, giving up the proof, and changes of the state that were not committed.
    #[must_use]
    pub fn into_inner(self) -> R {
        self.request
    }

    /// The request, and the state changes that are to be committed when it was carried out.
    pub fn into_parts(self) -> (R, Pending) {
        (self.request, self.pending)
    }

    /// Version of the policy that allowed it.
    #[must_use]
    pub fn policy_version(&self) -> u64 {
        self.policy_version
    }
}

impl<R: PolicyRequest> fmt::Debug for Allowed<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allowed").field("rule", &R::RULE).finish_non_exhaustive()
    }
}

/// Why a request was denied, in words that carry nothing of the request itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// No policy has been installed.
    NoPolicy,
    /// The policy has no such rule.
    NoRule,
    /// The rule is there but undefined for this input.
    Undefined,
    /// The rule is false, or `{allowed: false}`.
    False,
    /// The rule's value is neither a boolean nor `{allowed, ops}`.
    NotADecision,
    /// The request's input is not an object, or over the size limits.
    Input(&'static str),
    /// Evaluation failed. The engine's message is left out: it may quote the input.
    Failed,
    /// Evaluation took longer than its budget.
    Budget,
    /// The state changes the rule asked for could not be made.
    Ops(&'static str),
    /// The engine is out of order after an internal failure.
    Broken,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPolicy => "no policy is in place",
            Self::NoRule => "the policy has no such rule",
            Self::Undefined => "the rule is undefined for this request",
            Self::False => "the rule is false for this request",
            Self::NotADecision => "the rule's value is neither a boolean nor {allowed: boolean, ops: [patch]}",
            Self::Input(what) => what,
            Self::Failed => "the rule could not be evaluated",
            Self::Budget => "the rule was not evaluated within the time allowed",
            Self::Ops(what) => what,
            Self::Broken => "the policy engine is out of order",
        })
    }
}

/// A request was denied. Says which rule, why, and what to do; never what the request contained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Denied {
    /// The rule that was asked.
    pub rule: Cow<'static, str>,
    /// Version of the policy in place, if any.
    pub policy_version: Option<u64>,
    /// Why.
    pub reason: Cause,
    /// Names of the policy's `reasons` that hold, each a literal of the policy's text.
    pub details: Vec<String>,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} denied: {}", self.rule, self.reason)?;
        if !self.details.is_empty() {
            write!(f, " ({})", self.details.join("; "))?;
        }
        match self.policy_version {
            None => f.write_str(". The pod's initdata must carry a signed policy, and the agent must have installed it"),
            Some(version) => write!(
                f,
                ". Agent policy version {version} is in force: if the pod's owner wants this, they allow it in rule \
                 `{}` of package agent_policy and sign the policy again with a higher version",
                self.rule
            ),
        }
    }
}
