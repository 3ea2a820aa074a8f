//! The gate in front of every RPC: closed until a verified policy is installed, replaced only by a higher version under the same keys,
//! signed with the same documents.
//!
//! One lock around the engine: evaluation is short and bounded by [`crate::evaluate::Budget`], and decisions must see each other's
//! state changes in order (two requests to create the same container).

use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use crate::binding::{BindError, BoundPolicy};
use crate::engine::{ClosedDoor, PolicyEngine};
use crate::envelope::VerifiedPolicy;
use crate::evaluate::{Budget, LoadError};
use crate::request::{Allowed, Cause, Denied, PolicyRequest};

/// Why a policy was not put in place. The one in place, if any, stays.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GateError {
    /// `install` was called a second time.
    #[error("a policy (version {version}) is already in place; it can only be replaced by a higher version signed by the same keys")]
    AlreadyInstalled {
        /// Version in place.
        version: u64,
    },
    /// `replace` was called before `install`.
    #[error("no policy is in place that could be replaced; the first one comes from initdata")]
    NothingToReplace,
    /// The new policy was verified against other keys than the one in place.
    #[error("the new policy was verified against other trusted keys than the one in place")]
    OtherTrust,
    /// The new policy was signed with other documents than this pod's: it is another pod's, or was meant for other initdata.
    #[error("the new policy was not signed for this pod's initdata")]
    OtherDocuments(#[source] BindError),
    /// The version does not go up.
    #[error("the new policy has version {offered}, expected more than the {current} in place; sign it again with a higher version")]
    Rollback {
        /// Version in place.
        current: u64,
        /// Version offered.
        offered: u64,
    },
    /// The policy cannot be used.
    #[error("the policy cannot be used")]
    Load(#[from] LoadError),
    /// A thread died while it held the gate.
    #[error("the policy engine is out of order; restart the pod")]
    Broken,
}

/// What the agent holds. Share it by reference or `Arc`.
#[derive(Debug, Default)]
pub struct Gate {
    engine: Mutex<Option<PolicyEngine>>,
    budget: Budget,
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A closed gate with other limits for evaluation.
    #[must_use]
    pub fn with_budget(budget: Budget) -> Self {
        Self { engine: Mutex::new(None), budget }
    }

    /// Puts the first policy in place.
    ///
    /// # Errors
    /// When a policy is in place already, or this one cannot be used.
    pub fn install(&self, policy: BoundPolicy) -> Result<(), GateError> {
        let mut slot = self.engine.lock().map_err(|_| GateError::Broken)?;
        if let Some(engine) = slot.as_ref() {
            return Err(GateError::AlreadyInstalled { version: engine.version() });
        }
        *slot = Some(ClosedDoor::with_budget(self.budget).open(policy)?);
        Ok(())
    }

    /// Replaces the policy by a higher version verified against the same trusted keys and signed with the same documents,
    /// so that no other pod's policy can be put in. The state (`data.pstate`) is kept.
    ///
    /// # Errors
    /// When there is none, the keys or the documents differ, the version is not higher, or the new policy cannot be used.
    pub fn replace(&self, policy: VerifiedPolicy) -> Result<(), GateError> {
        let mut slot = self.engine.lock().map_err(|_| GateError::Broken)?;
        let current = slot.as_ref().ok_or(GateError::NothingToReplace)?;
        if policy.trust() != current.trust() {
            return Err(GateError::OtherTrust);
        }
        if policy.version() <= current.version() {
            return Err(GateError::Rollback { current: current.version(), offered: policy.version() });
        }
        let policy = policy.bind_to(current.documents()).map_err(GateError::OtherDocuments)?;
        let next = current.successor(policy, self.budget)?;
        *slot = Some(next);
        Ok(())
    }

    /// Version of the policy in place.
    #[must_use]
    pub fn version(&self) -> Option<u64> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(PolicyEngine::version)
    }

    /// Asks the policy.
    ///
    /// # Errors
    /// When there is no policy or it does not say yes.
    pub fn check<R: PolicyRequest>(&self, request: R) -> Result<Allowed<R>, Denied> {
        let closed = |reason| Denied { rule: R::RULE.into(), policy_version: None, reason, details: Vec::new() };
        let slot = self.engine.lock().map_err(|_| closed(Cause::Broken))?;
        slot.as_ref().ok_or_else(|| closed(Cause::NoPolicy))?.check(request)
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
