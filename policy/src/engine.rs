//! The policy engine of one pod: a verified and bound policy, its state, and the only place where [`Allowed`] is made.

use std::sync::Mutex;

use serde_json::Value;

use crate::binding::{BoundPolicy, DocumentDigests};
use crate::evaluate::{Budget, LoadError, Rules, Yes};
use crate::gate::Pending;
use crate::keys::TrustId;
use crate::request::{Allowed, Cause, Denied, PolicyRequest};
use crate::state::Difference;

/// The state before a policy: it can decide nothing, only be opened.
#[derive(Debug, Default)]
pub struct ClosedDoor {
    budget: Budget,
}

impl ClosedDoor {
    /// A closed door with the default limits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A closed door with other limits for evaluation.
    #[must_use]
    pub fn with_budget(budget: Budget) -> Self {
        Self { budget }
    }

    /// Opens with a verified policy that is bound to the pod's initdata.
    ///
    /// # Errors
    /// When the policy cannot be used.
    pub fn open(self, policy: BoundPolicy) -> Result<PolicyEngine, LoadError> {
        let policy = policy.policy();
        let rules = Rules::load(policy.rego(), policy.data(), self.budget)?;
        let documents = policy.documents().clone();
        Ok(PolicyEngine { version: policy.version(), trust: policy.trust(), documents, rules: Mutex::new(rules) })
    }
}

/// Decides on requests by a verified policy.
#[derive(Debug)]
pub struct PolicyEngine {
    version: u64,
    trust: TrustId,
    documents: DocumentDigests,
    rules: Mutex<Rules>,
}

impl PolicyEngine {
    /// Version of the policy.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Which set of trusted keys it was verified against.
    #[must_use]
    pub fn trust(&self) -> TrustId {
        self.trust
    }

    /// The documents of the pod's initdata.
    #[must_use]
    pub fn documents(&self) -> &DocumentDigests {
        &self.documents
    }

    /// Asks the policy. On a yes, the state changes the rule asked for are in effect when this returns; on a no, nothing changed.
    ///
    /// # Errors
    /// Whenever the rule is not exactly true, for whatever cause.
    pub fn check<R: PolicyRequest>(&self, request: R) -> Result<Allowed<R>, Denied> {
        let input = request.policy_input();
        let yes = self.decide(R::RULE, &input)?;
        self.make(R::RULE, &yes)?;
        Ok(Allowed::new(request, self.version, Pending::none()))
    }

    fn denied(&self, rule: &'static str, reason: Cause, details: Vec<String>) -> Denied {
        Denied { rule: rule.into(), policy_version: Some(self.version), reason, details }
    }

    fn with_rules<T>(&self, rule: &'static str, work: impl FnOnce(&mut Rules) -> Result<T, (Cause, Vec<String>)>) -> Result<T, Denied> {
        let mut rules = self.rules.lock().map_err(|_| self.denied(rule, Cause::Broken, Vec::new()))?;
        work(&mut rules).map_err(|(cause, details)| self.denied(rule, cause, details))
    }

    /// Asks the policy. The changes for after the request was carried out are left to [`Self::make`].
    pub(crate) fn decide(&self, rule: &'static str, input: &Value) -> Result<Yes, Denied> {
        self.with_rules(rule, |rules| rules.decide(rule, input))
    }

    /// The decision, if the state is still the one it was made upon, or a new one.
    pub(crate) fn renew(&self, rule: &'static str, input: &Value, yes: &mut Yes) -> Result<(), Denied> {
        self.with_rules(rule, |rules| {
            if !rules.is_current(yes) {
                *yes = rules.decide(rule, input)?;
            }
            Ok(())
        })
    }

    /// Makes the changes of a decision that is current.
    pub(crate) fn make(&self, rule: &'static str, yes: &Yes) -> Result<Difference, Denied> {
        self.with_rules(rule, |rules| rules.make(yes).map_err(|cause| (cause, Vec::new())))
    }

    /// Takes changes back. Tells whether it could.
    pub(crate) fn take_back(&self, difference: &Difference) -> bool {
        self.rules.lock().is_ok_and(|mut rules| rules.take_back(difference))
    }

    /// The engine for the next policy, with this one's state.
    pub(crate) fn successor(&self, policy: BoundPolicy, budget: Budget) -> Result<Self, LoadError> {
        let state = self.rules.lock().map_err(|_| LoadError::Broken)?.state();
        let next = ClosedDoor::with_budget(budget).open(policy)?;
        next.rules.lock().map_err(|_| LoadError::Broken)?.set_state(state)?;
        Ok(next)
    }
}
