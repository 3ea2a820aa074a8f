//! The gate in front of every RPC: closed until a verified policy is installed, replaced only by a higher version under the same keys,
//! signed with the same documents.
//!
//! One lock around the engine: evaluation is short and bounded by [`crate::evaluate::Budget`], and decisions must see each other's
//! state changes in order (two requests to create the same container).
//!
//! Deciding and committing can be apart. What the state says must be what is: a container whose start failed was not started, one
//! that is still being removed is still there. [`Gate::decide`] therefore leaves the changes to whoever carries the request out, as
//! [`Pending`]. The state may have gone on meanwhile, so [`Pending::commit`] makes the changes of a decision only if nothing has
//! changed since; otherwise the policy is asked again, and both the answer and the changes are the new ones. No change is lost, and
//! none is made upon a state that is no more.
//!
//! What is never committed has not happened.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use thiserror::Error;

use crate::binding::{BindError, BoundPolicy};
use crate::engine::{ClosedDoor, PolicyEngine};
use crate::envelope::VerifiedPolicy;
use crate::evaluate::{Budget, LoadError, Yes};
use crate::request::{Allowed, Cause, Denied, PolicyRequest};
use crate::state::Difference;

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
    engine: Arc<Mutex<Option<PolicyEngine>>>,
    budget: Budget,
}

type Slot<'a> = MutexGuard<'a, Option<PolicyEngine>>;

fn open<'a>(engine: &'a Mutex<Option<PolicyEngine>>, rule: &'static str) -> Result<Slot<'a>, Denied> {
    engine.lock().map_err(|_| closed(rule, Cause::Broken))
}

fn closed(rule: &'static str, reason: Cause) -> Denied {
    Denied { rule: rule.into(), policy_version: None, reason, details: Vec::new() }
}

fn engine<'a>(slot: &'a Slot<'_>, rule: &'static str) -> Result<&'a PolicyEngine, Denied> {
    slot.as_ref().ok_or_else(|| closed(rule, Cause::NoPolicy))
}

/// State changes of an allowed request that are still to be made. Dropped, they are never made.
#[must_use = "the state does not know of the request until this is committed"]
pub struct Pending(Option<Change>);

struct Change {
    engine: Arc<Mutex<Option<PolicyEngine>>>,
    rule: &'static str,
    input: Value,
    yes: Yes,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the input nor the changes: they hold values of the request.
        f.debug_tuple("Pending").field(&self.0.as_ref().map(|change| change.rule)).finish()
    }
}

impl Pending {
    /// For a request whose changes are in effect.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Asks again, if the state has changed since: right before the request is carried out.
    ///
    /// # Errors
    /// When the policy no longer says yes.
    pub fn renew(&mut self) -> Result<(), Denied> {
        let Some(change) = &mut self.0 else {
            return Ok(());
        };
        let slot = open(&change.engine, change.rule)?;
        engine(&slot, change.rule)?.renew(change.rule, &change.input, &mut change.yes)
    }

    /// Makes the changes. If the state has changed since the decision, the policy is asked again first.
    ///
    /// # Errors
    /// When the policy no longer says yes. Nothing was changed then, and what was carried out must not stand.
    pub fn commit(self) -> Result<Undo, Denied> {
        let Some(mut change) = self.0 else {
            return Ok(Undo(None));
        };
        let difference = {
            let slot = open(&change.engine, change.rule)?;
            let engine = engine(&slot, change.rule)?;
            engine.renew(change.rule, &change.input, &mut change.yes)?;
            engine.make(change.rule, &change.yes)?
        };
        Ok(Undo(Some((change.engine, difference))))
    }
}

/// The way back from changes that were committed before the request was carried out.
pub struct Undo(Option<(Arc<Mutex<Option<PolicyEngine>>>, Difference)>);

impl fmt::Debug for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Undo").finish_non_exhaustive()
    }
}

impl Undo {
    /// Takes the changes back: the request failed and nothing of it is left. Tells whether that was so; what others have changed
    /// again since stays as it is, and with it all of these changes, so that what is in doubt goes on counting as done.
    #[must_use]
    pub fn undo(self) -> bool {
        let Some((engine, difference)) = self.0 else {
            return false;
        };
        let slot = engine.lock();
        slot.is_ok_and(|slot| slot.as_ref().is_some_and(|engine| engine.take_back(&difference)))
    }
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
        Self { engine: Arc::default(), budget }
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
        self.replace_after(policy, || Ok(()))
    }

    /// As [`Gate::replace`], and `record` is called when nothing but it stands in the way any more: what is put in force is on record before.
    /// The gate is held meanwhile, so it must not take long.
    ///
    /// # Errors
    /// As [`Gate::replace`], and those of `record`. The policy in place stays.
    pub fn replace_after<E: From<GateError>>(&self, policy: VerifiedPolicy, record: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut slot = self.engine.lock().map_err(|_| GateError::Broken)?;
        let current = slot.as_ref().ok_or(GateError::NothingToReplace)?;
        if policy.trust() != current.trust() {
            return Err(GateError::OtherTrust.into());
        }
        if policy.version() <= current.version() {
            return Err(GateError::Rollback { current: current.version(), offered: policy.version() }.into());
        }
        let policy = policy.bind_to(current.documents()).map_err(GateError::OtherDocuments)?;
        let next = current.successor(policy, self.budget).map_err(GateError::from)?;
        record()?;
        *slot = Some(next);
        Ok(())
    }

    /// Version of the policy in place.
    #[must_use]
    pub fn version(&self) -> Option<u64> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(PolicyEngine::version)
    }

    /// Asks the policy. On a yes the state changes it asked for are in effect when this returns.
    ///
    /// # Errors
    /// When there is no policy or it does not say yes.
    pub fn check<R: PolicyRequest>(&self, request: R) -> Result<Allowed<R>, Denied> {
        let slot = open(&self.engine, R::RULE)?;
        engine(&slot, R::RULE)?.check(request)
    }

    /// Asks the policy, and leaves the state changes for [`Pending::commit`], but those that the rule wants made before.
    ///
    /// # Errors
    /// When there is no policy or it does not say yes.
    pub fn decide<R: PolicyRequest>(&self, request: R) -> Result<Allowed<R>, Denied> {
        let input = request.policy_input();
        let slot = open(&self.engine, R::RULE)?;
        let engine = engine(&slot, R::RULE)?;
        let yes = engine.decide(R::RULE, &input)?;
        let pending = Pending(Some(Change { engine: Arc::clone(&self.engine), rule: R::RULE, input, yes }));
        Ok(Allowed::new(request, engine.version(), pending))
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
