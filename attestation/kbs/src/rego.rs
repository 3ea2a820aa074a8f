//! Runs policies: Rego text, an input, an answer, within a time limit. What the answers mean is decided by the callers.
//!
//! A policy is read once ([`Policy`]) and kept by its text ([`Policies`]): parsing takes longer than running, and policies change seldom.
//!
//! **Invariant:** a policy that fails, runs too long or answers with anything else than what is asked for is an error, never a yes.

use crate::audit::Comparison;
use crate::pace::Pace;
use crate::release::Disclosure;
use crate::store::ReferenceValues;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest policy an administrator may set.
pub const MAX_POLICY: usize = 256 * 1024;
const TIME_LIMIT: Duration = Duration::from_secs(2);
const CHECK_INTERVAL: NonZeroU32 = NonZeroU32::new(64).expect("64 is not zero");
/// Policies kept read. In force are two; an administrator who tries others must not push those out at once.
const MAX_READ: usize = 8;
/// Most values of one reference value that the audit log shows.
const MAX_SHOWN: usize = 8;
const TRUST_CLAIMS: &str = "data.policy.trust_claims";
const ALLOW: &str = "data.policy.allow";
const DISCLOSE: &str = "data.policy.disclose";
/// Asks a resource policy over one request. Data that were added to the engine would have it prepare the policy anew, which takes many times as
/// long as the answer: so all of the request is in the input, and put where the policy looks for it.
const ASK: &str = r#"package kata_cc_request

import rego.v1

allow := answer if {
	answer := data.policy.allow with input as input.token with data.plugin as input.data.plugin
		with data["resource-path"] as input.data["resource-path"] with data.query as input.data.query
}

disclose := answer if {
	answer := data.policy.disclose with input as input.token with data.plugin as input.data.plugin
		with data["resource-path"] as input.data["resource-path"] with data.query as input.data.query
}
"#;
/// What the engine says of a rule that a policy does not have.
const NO_RULE: &str = "not a valid rule path";

/// Why a policy gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Too long, wrong package or not Rego.
    #[error("not a usable policy: {0}")]
    Invalid(String),
    /// It failed while it ran.
    #[error("the policy failed: {0}")]
    Failed(String),
    /// It answered with something else.
    #[error("the policy answered {found}, expected {expected}")]
    Answer {
        /// Which answer is needed.
        expected: &'static str,
        /// What came.
        found: String,
    },
}

/// An appraisal's answer and what it asked for on the way.
#[derive(Debug, Clone)]
pub struct Appraised {
    /// AR4SI claim names to values.
    pub claims: BTreeMap<String, i64>,
    /// Ids of reference values the policy asked for.
    pub queried: BTreeSet<String>,
}

/// Reference values as policies look them up: a manifest may list thousands of digests, which are put into the engine's form once.
#[derive(Debug, Default)]
pub struct Lookup {
    values: ReferenceValues,
    found: BTreeMap<String, Value>,
}

impl Lookup {
    /// All of them.
    pub fn values(&self) -> &ReferenceValues {
        &self.values
    }

    /// What a policy finds. Where nothing is registered that is an empty list: in it, nothing is found.
    fn find(&self, id: &str) -> Value {
        self.found.get(id).cloned().unwrap_or_else(Value::new_array)
    }
}

impl From<ReferenceValues> for Lookup {
    fn from(values: ReferenceValues) -> Self {
        let found = values.iter().map(|(id, value)| (id.clone(), Value::from(value.clone()))).collect();
        Self { values, found }
    }
}

/// Which kind of policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Must define `trust_claims`.
    Attestation,
    /// Must define `allow`.
    Resource,
}

impl Kind {
    /// What the policy must define.
    const fn rule(self) -> &'static str {
        match self {
            Self::Attestation => TRUST_CLAIMS,
            Self::Resource => ALLOW,
        }
    }
}

/// What a resource policy sees in `data`, all of it each time.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Request<'a> {
    /// `resource`: there is no other plugin.
    pub plugin: &'a str,
    /// Repository, type and tag.
    pub resource_path: [&'a str; 3],
    /// Of the URL.
    pub query: &'a serde_json::Map<String, serde_json::Value>,
}

/// What a resource policy is asked, of [`ASK`].
#[derive(Debug, Clone, Copy)]
enum Question {
    Allow,
    Disclose,
}

impl Question {
    const fn rule(self) -> &'static str {
        match self {
            Self::Allow => "data.kata_cc_request.allow",
            Self::Disclose => "data.kata_cc_request.disclose",
        }
    }
}

/// A policy that was read: parsed, of the right package, with the rule that its kind is asked for.
#[derive(Debug)]
pub struct Policy {
    /// Never run itself: each evaluation has a copy, so that nothing of one is seen by the next.
    engine: Engine,
    /// Whether it says what a guest that is refused may know.
    discloses: bool,
    pace: Pace,
}

impl Policy {
    /// Reads a policy of a kind.
    pub fn read(kind: Kind, rego: &str) -> Result<Self, PolicyError> {
        if rego.len() > MAX_POLICY {
            return Err(PolicyError::Invalid(format!("{} bytes, expected at most {MAX_POLICY}", rego.len())));
        }
        let mut engine = Engine::new();
        engine.set_execution_timer_config(ExecutionTimerConfig { limit: TIME_LIMIT, check_interval: CHECK_INTERVAL });
        let package = engine.add_policy("policy.rego".into(), rego.into()).map_err(|e| PolicyError::Invalid(e.to_string()))?;
        if package != "data.policy" {
            return Err(PolicyError::Invalid(format!("package {package}, expected `package policy`")));
        }
        if kind == Kind::Resource {
            engine.add_policy("request.rego".into(), ASK.into()).map_err(|e| PolicyError::Invalid(e.to_string()))?;
        }
        engine.set_input(Value::new_object());
        // Values cannot be judged without an input; that a rule exists can. A policy may well fail on an empty input. That it ran once
        // leaves it prepared.
        let mut has = |rule: &str| !engine.eval_rule(rule.into()).is_err_and(|e| e.to_string().contains(NO_RULE));
        let rule = kind.rule();
        if !has(rule) {
            return Err(PolicyError::Invalid(format!("it does not define {rule}")));
        }
        let discloses = kind == Kind::Resource && has(DISCLOSE);
        Ok(Self { engine, discloses, pace: Pace::default() })
    }

    /// Appraises: `data.policy.trust_claims` over the claims, with `query_reference_value(id)`.
    pub fn trust_claims(&self, input: &serde_json::Value, references: &Arc<Lookup>) -> Result<Appraised, PolicyError> {
        let mut engine = self.engine.clone();
        let queried = add_references(&mut engine, references)?;
        let answer = run(engine, Value::from(input.clone()), TRUST_CLAIMS)?.ok_or_else(|| no_value(TRUST_CLAIMS))?;
        let claims = serde_json::from_value(answer.clone())
            .map_err(|_| PolicyError::Answer { expected: "an object of AR4SI names to whole numbers", found: brief(&answer) })?;
        let queried = queried.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Appraised { claims, queried })
    }

    /// Decides: `data.policy.allow` over a token's claims and the request.
    pub fn allows(&self, token: &Value, request: Request<'_>) -> Result<bool, PolicyError> {
        match self.ask(Question::Allow, token, request)?.ok_or_else(|| no_value(ALLOW))? {
            serde_json::Value::Bool(answer) => Ok(answer),
            other => Err(PolicyError::Answer { expected: "true or false", found: brief(&other) }),
        }
    }

    /// What a guest that is refused may know: `data.policy.disclose`, or the default where the policy has no such rule.
    pub fn disclosure(&self, token: &Value, request: Request<'_>) -> Result<Disclosure, PolicyError> {
        if !self.discloses {
            return Ok(Disclosure::default());
        }
        let value = self.ask(Question::Disclose, token, request)?.ok_or_else(|| no_value(DISCLOSE))?;
        let found = brief(&value);
        serde_json::from_value(value)
            .map_err(|_| PolicyError::Answer { expected: "\"nothing\", \"names\" or \"values\" for data.policy.disclose", found })
    }

    fn ask(&self, question: Question, token: &Value, request: Request<'_>) -> Result<Option<serde_json::Value>, PolicyError> {
        let request = Value::from(serde_json::json!(request));
        let input = BTreeMap::from([(Value::from("token"), token.clone()), (Value::from("data"), request)]);
        self.pace.of(|| run(self.engine.clone(), Value::from(input), question.rule()))
    }
}

/// A rule's value, or `None` where it has none.
fn run(mut engine: Engine, input: Value, rule: &str) -> Result<Option<serde_json::Value>, PolicyError> {
    engine.set_input(input);
    let value = engine.eval_rule(rule.into()).map_err(|e| PolicyError::Failed(e.to_string()))?;
    if value == Value::Undefined {
        return Ok(None);
    }
    serde_json::to_value(&value).map(Some).map_err(|e| PolicyError::Failed(e.to_string()))
}

fn no_value(rule: &str) -> PolicyError {
    PolicyError::Answer { expected: "a value", found: format!("nothing for {rule}") }
}

type ByText = (Kind, Box<str>, Arc<Policy>);

/// The policies that were read last. By their text, not by their names: what an administrator sets on another broker that shares the store
/// counts here from the next request on.
#[derive(Debug, Default)]
pub struct Policies {
    /// Most lately used first.
    read: Mutex<Vec<ByText>>,
}

impl Policies {
    /// The policy with this text, if it was read and answers quickly.
    pub fn quick(&self, kind: Kind, rego: &str) -> Option<Arc<Policy>> {
        self.find(kind, rego).filter(|policy| policy.pace.is_quick())
    }

    /// The policy with this text.
    pub fn get(&self, kind: Kind, rego: &str) -> Result<Arc<Policy>, PolicyError> {
        if let Some(policy) = self.find(kind, rego) {
            return Ok(policy);
        }
        // Without the lock: it takes long. Two that come at once both read it, and one copy is dropped in time.
        let policy = Arc::new(Policy::read(kind, rego)?);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.insert(0, (kind, rego.into(), Arc::clone(&policy)));
        read.truncate(MAX_READ);
        Ok(policy)
    }

    fn find(&self, kind: Kind, rego: &str) -> Option<Arc<Policy>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let at = read.iter().position(|(its_kind, text, _)| *its_kind == kind && **text == *rego)?;
        read.get_mut(..=at)?.rotate_right(1);
        read.first().map(|(_, _, policy)| Arc::clone(policy))
    }
}

/// What a policy compared, for the audit log: each reference value it asked for beside the claim that is named like it.
/// `claims` are the TEE's, `input` is all that the policy saw.
pub fn comparisons(
    queried: &BTreeSet<String>,
    references: &Lookup,
    claims: &serde_json::Value,
    input: &serde_json::Value,
) -> Vec<Comparison> {
    let none = serde_json::Value::Array(Vec::new());
    let compare = |id: &String| {
        let found = claim_for(id, claims, input);
        let expected = references.values.get(id).unwrap_or(&none);
        Comparison { claim: id.clone(), expected: shown(expected, &found), found }
    };
    queried.iter().map(compare).collect()
}

/// A manifest may list thousands of digests, and every decision is kept: of a long list, what was found and some others.
fn shown(expected: &serde_json::Value, found: &serde_json::Value) -> serde_json::Value {
    let serde_json::Value::Array(list) = expected else { return expected.clone() };
    if list.len() <= MAX_SHOWN {
        return expected.clone();
    }
    let matching = list.iter().filter(|value| *value == found).take(1);
    let mut short: Vec<_> = matching.chain(list.iter().filter(|value| *value != found)).take(MAX_SHOWN).cloned().collect();
    short.push(format!("and {} more", list.len() - short.len()).into());
    short.into()
}

/// Reference value ids of the default policies and the claims they are about.
fn claim_for(id: &str, claims: &serde_json::Value, input: &serde_json::Value) -> serde_json::Value {
    let of_initdata = |pointer| input.pointer(pointer).cloned().unwrap_or_default();
    let name = match id {
        "init_data" => return of_initdata("/init_data"),
        "policy_trusted_keys" => return of_initdata("/init_data_claims/kata-cc.toml/policy/trusted_keys"),
        "policy_min_version" => return of_initdata("/init_data_claims/policy.dsse.json/version"),
        "snp_launch_measurement" => "measurement",
        "snp_bootloader" => "reported_tcb_bootloader",
        "snp_tee_svn" => "reported_tcb_tee",
        "snp_snp_svn" => "reported_tcb_snp",
        "snp_microcode" => "reported_tcb_microcode",
        // TDX's are named like their claims, those of other TEEs have the TEE's name before it.
        other if claims.get(other).is_some() => other,
        other => other.split_once('_').map_or(other, |(_, name)| name),
    };
    claims.get(name).cloned().unwrap_or(serde_json::Value::Null)
}

fn add_references(engine: &mut Engine, references: &Arc<Lookup>) -> Result<Arc<Mutex<BTreeSet<String>>>, PolicyError> {
    let queried = Arc::new(Mutex::new(BTreeSet::new()));
    let log = Arc::clone(&queried);
    let references = Arc::clone(references);
    let extension = move |arguments: Vec<Value>| -> anyhow::Result<Value> {
        let id = arguments.first().map(Value::as_string).transpose()?.map(ToString::to_string).unwrap_or_default();
        let value = references.find(&id);
        log.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        Ok(value)
    };
    engine.add_extension("query_reference_value".into(), 1, Box::new(extension)).map_err(|e| PolicyError::Failed(e.to_string()))?;
    Ok(queried)
}

fn brief(value: &serde_json::Value) -> String {
    value.to_string().chars().take(100).collect()
}

#[cfg(test)]
mod tests;
