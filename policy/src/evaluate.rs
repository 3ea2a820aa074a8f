//! Evaluation of a policy on one request: package `agent_policy`, one rule per message name, state under `data.pstate`.
//!
//! This gives verdicts, not proofs: the agent uses it through [`crate::engine`] only; command lines and tests use it directly.
//!
//! A rule allows by being exactly `true` or an object `{allowed: true, ops: […], before: […]}`, where `ops` and `before` are JSON
//! patches (RFC 6902: add, replace, remove, test) on paths below `/pstate`. Requests that the agent may fail to carry out (start and
//! removal of a container) have their `ops` made once they were carried out; what must be on record even if they fail, as that it was
//! tried, is in `before`. For all others both are made at the yes, `before` first.
//!
//! An optional rule `reasons` (a set of strings, or an object of such sets by rule name) explains a denial.
//!
//! **Invariant:** evaluation ends. Input, state and policy are bounded in size, evaluation in time; recursion is an error.
//!
//! **Invariant:** what `print` writes is discarded, and a reason is passed on only if it is a literal of the policy's own text, so
//! that neither can carry a request's values out of the guest.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use regorus::utils::limits::{ExecutionTimerConfig, PolicyLengthConfig};
use regorus::{Engine, LimitError};
use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::request::Cause;
use crate::state::{Difference, Op, PolicyState};

/// Package of the policy.
pub const PACKAGE: &str = "agent_policy";

/// Name under which the engine knows the policy's text; it shows in error messages.
const SOURCE: &str = "agent_policy.rego";

/// Rule that makes other agents carry out what the policy denies.
const FAIL_OPEN_RULE: &str = "AllowRequestsFailingPolicy";

/// Largest policy text.
pub const MAX_REGO: usize = 1 << 20;

/// Largest data document of a policy, as JSON.
pub const MAX_DATA: usize = 1 << 20;

/// Generated policies carry long lines of data.
const MAX_COLUMN: u32 = 1 << 16;

const MAX_LINES: usize = 100_000;

/// Deepest nesting of an input. The deepest message of the agent protocol has 7 levels.
const MAX_DEPTH: usize = 32;

/// How many reasons a denial carries at most, and how long each is.
const MAX_REASONS: usize = 16;
const MAX_REASON: usize = 200;

/// What one evaluation may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Wall-clock time. A guard against runaway rules only: generous, since guests may be slow.
    pub time: Duration,
    /// Size of the input: bytes of all strings and keys.
    pub input_bytes: usize,
    /// Size of the input: values of any kind.
    pub input_values: usize,
    /// Size of `data.pstate` as JSON.
    pub state_bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { time: Duration::from_secs(5), input_bytes: 1 << 20, input_values: 1 << 16, state_bytes: 1 << 18 }
    }
}

/// Why a policy cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadError {
    /// Text or data too large.
    #[error("the policy's {what} has {found} bytes, at most {limit} are taken")]
    TooLarge {
        /// `text` or `data`.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The text does not compile.
    #[error("the policy is not valid Rego (v1): {0}")]
    Rego(String),
    /// Another package.
    #[error("the policy is in package {found:?}, expected `package {PACKAGE}`")]
    Package {
        /// What the text says.
        found: String,
    },
    /// The fail-open switch.
    #[error(
        "the policy mentions `{FAIL_OPEN_RULE}`, by which other agents carry out denied requests; this agent never does. \
         Take the rule out, or have only `default {FAIL_OPEN_RULE} := false`"
    )]
    FailOpen,
    /// The data document would shadow what belongs to rules or to the engine.
    #[error("the policy's data has the key {0:?}, which is reserved; use another name")]
    ReservedData(&'static str),
    /// The state of the policy before does not fit.
    #[error("the state of the policy in place could not be carried over")]
    State,
    /// An internal failure earlier on.
    #[error("the policy engine is out of order")]
    Broken,
}

/// The outcome of one evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evaluation {
    /// The rule allowed the request; its state changes are in effect.
    Allowed,
    /// Anything else; nothing changed.
    Denied {
        /// Why.
        cause: Cause,
        /// The policy's own reasons.
        details: Vec<String>,
    },
}

/// What a rule may evaluate to, apart from a plain boolean.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    allowed: bool,
    #[serde(default)]
    ops: Vec<Op>,
    #[serde(default)]
    before: Vec<Op>,
}

/// A yes whose state changes are still to be made.
#[derive(Debug, Clone)]
pub(crate) struct Yes {
    /// To be made when the request has been carried out.
    ops: Vec<Op>,
    /// What the state was when it was said, see [`Rules::changes`].
    changes: u64,
}

/// A loaded policy with its state.
pub struct Rules {
    engine: Engine,
    text: String,
    data: Map<String, Value>,
    state: PolicyState,
    budget: Budget,
    /// Counts changes of the state, those by predecessors included.
    changes: u64,
    /// Set when the engine's data could not be put back; every evaluation is denied from then on.
    broken: bool,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("budget", &self.budget).field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Rules {
    /// Compiles a policy.
    ///
    /// # Errors
    /// When it is too large, does not compile, is in another package, is fail-open, or its data uses a reserved name.
    pub fn load(rego: &str, data: &Map<String, Value>, budget: Budget) -> Result<Self, LoadError> {
        limit("text", rego.len(), MAX_REGO)?;
        limit("data", serde_json::to_vec(data).map_or(usize::MAX, |json| json.len()), MAX_DATA)?;
        for reserved in ["pstate", PACKAGE] {
            if data.contains_key(reserved) {
                return Err(LoadError::ReservedData(reserved));
            }
        }
        refuse_fail_open(rego)?;

        let mut engine = Engine::new();
        engine.set_gather_prints(true);
        engine.set_policy_length_config(PolicyLengthConfig {
            max_col: NonZeroU32::new(MAX_COLUMN).expect("not zero"),
            max_file_bytes: NonZeroUsize::new(MAX_REGO).expect("not zero"),
            max_lines: NonZeroUsize::new(MAX_LINES).expect("not zero"),
        });
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: budget.time,
            check_interval: NonZeroU32::new(64).expect("not zero"),
        });
        engine.add_policy(SOURCE.to_owned(), rego.to_owned()).map_err(|e| LoadError::Rego(shorten(&e.to_string())))?;
        for package in engine.get_policy_package_components().map_err(|e| LoadError::Rego(shorten(&e.to_string())))? {
            if package.components != [PACKAGE] {
                return Err(LoadError::Package { found: shorten(&package.components.join(".")) });
            }
        }
        crate::recursion::refuse(&mut engine, rego, NonZeroU32::new(MAX_COLUMN).expect("not zero")).map_err(LoadError::Rego)?;
        let mut rules =
            Self { engine, text: rego.to_owned(), data: data.clone(), state: PolicyState::default(), budget, changes: 0, broken: false };
        rules.put_data().map_err(LoadError::Rego)?;
        // Compiles the whole module, so that a mistake in any rule shows now and not at the first request that needs it.
        rules.engine.set_input(regorus::Value::new_object());
        if let Err(error) = rules.engine.eval_query("true".to_owned(), false) {
            return Err(LoadError::Rego(shorten(&error.to_string())));
        }
        Ok(rules)
    }

    /// Evaluates the rule for an input. State changes are made only if the outcome is `Allowed`.
    pub fn evaluate(&mut self, rule: &str, input: &Value) -> Evaluation {
        let outcome = self.decide(rule, input).and_then(|yes| match self.make(&yes) {
            Ok(_) => Ok(()),
            Err(cause) => Err((cause, Vec::new())),
        });
        match outcome {
            Ok(()) => Evaluation::Allowed,
            Err((cause, details)) => Evaluation::Denied { cause, details },
        }
    }

    /// Evaluates the rule and makes those changes that come before the request is carried out. The others are known to fit the
    /// state as it is, and are made by [`Self::make`].
    pub(crate) fn decide(&mut self, rule: &str, input: &Value) -> Result<Yes, (Cause, Vec<String>)> {
        let result = self.judge(rule, input);
        let details = match result {
            Err(Cause::False | Cause::Undefined) => self.reasons(rule),
            _ => Vec::new(),
        };
        self.forget_input();
        result.map_err(|cause| (cause, details))
    }

    /// Whether the state is still the one that was decided upon.
    pub(crate) fn is_current(&self, yes: &Yes) -> bool {
        self.changes == yes.changes
    }

    /// Makes the changes of a decision. What they did can be taken back.
    pub(crate) fn make(&mut self, yes: &Yes) -> Result<Difference, Cause> {
        let next = self.patched(&self.state, &yes.ops)?;
        let difference = self.state.difference(&next);
        self.adopt(next)?;
        Ok(difference)
    }

    /// Takes a change back, unless something of it has been changed again since.
    pub(crate) fn take_back(&mut self, difference: &Difference) -> bool {
        match self.state.without(difference) {
            Some(before) => self.adopt(before).is_ok(),
            None => false,
        }
    }

    /// The state and the count of its changes, for a successor.
    pub(crate) fn state(&self) -> (PolicyState, u64) {
        (self.state.clone(), self.changes)
    }

    /// Takes over the state of a predecessor. What was decided there is no longer current.
    pub(crate) fn set_state(&mut self, (state, changes): (PolicyState, u64)) -> Result<(), LoadError> {
        if state.size() > self.budget.state_bytes {
            return Err(LoadError::State);
        }
        self.state = state;
        self.changes = changes + 1;
        self.put_data().map_err(|_| LoadError::State)
    }

    fn patched(&self, state: &PolicyState, ops: &[Op]) -> Result<PolicyState, Cause> {
        let next = state.apply(ops).map_err(Cause::Ops)?;
        if next.size() > self.budget.state_bytes {
            return Err(Cause::Ops("the state the rule asked for is too large"));
        }
        Ok(next)
    }

    fn adopt(&mut self, next: PolicyState) -> Result<(), Cause> {
        if next == self.state {
            return Ok(());
        }
        self.state = next;
        self.changes += 1;
        self.put_data().map_err(|_| Cause::Broken)
    }

    fn judge(&mut self, rule: &str, input: &Value) -> Result<Yes, Cause> {
        if self.broken {
            return Err(Cause::Broken);
        }
        check_input(input, &self.budget)?;
        if !self.has_rule(rule) {
            return Err(Cause::NoRule);
        }
        let input = regorus::Value::from_json_str(&input.to_string()).map_err(|_| Cause::Input("the request cannot be represented"))?;
        self.engine.set_input(input);
        let decision = match self.query(rule)? {
            regorus::Value::Bool(true) => Decision { allowed: true, ops: Vec::new(), before: Vec::new() },
            regorus::Value::Bool(false) => return Err(Cause::False),
            regorus::Value::Undefined => return Err(Cause::Undefined),
            value @ regorus::Value::Object(_) => {
                let json = value.to_json_str().map_err(|_| Cause::NotADecision)?;
                serde_json::from_str(&json).map_err(|_| Cause::NotADecision)?
            }
            _ => return Err(Cause::NotADecision),
        };
        if !decision.allowed {
            return Err(Cause::False);
        }
        // Both are tried before either is made.
        let before = self.patched(&self.state, &decision.before)?;
        self.patched(&before, &decision.ops)?;
        self.adopt(before)?;
        Ok(Yes { ops: decision.ops, changes: self.changes })
    }

    fn query(&mut self, rule: &str) -> Result<regorus::Value, Cause> {
        let result = self.engine.eval_rule(format!("data.{PACKAGE}.{rule}"));
        // Prints are evaluated, since policies of others are full of them, and dropped unseen.
        let _ = self.engine.take_prints();
        result.map_err(|error| if error.downcast_ref::<LimitError>().is_some() { Cause::Budget } else { Cause::Failed })
    }

    fn has_rule(&self, rule: &str) -> bool {
        let plain = !rule.is_empty() && rule.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        plain && self.engine.has_declared_rule_rooted_at(SOURCE, rule).unwrap_or(false)
    }

    /// The policy's reasons for the input that is set.
    fn reasons(&mut self, rule: &str) -> Vec<String> {
        if !self.has_rule("reasons") {
            return Vec::new();
        }
        let Some(value) = self.query("reasons").ok().and_then(|v| v.to_json_str().ok()) else { return Vec::new() };
        let found = match serde_json::from_str(&value) {
            Ok(Value::Array(all)) => all,
            Ok(Value::Object(mut by_rule)) => match by_rule.remove(rule) {
                Some(Value::Array(all)) => all,
                _ => return Vec::new(),
            },
            _ => return Vec::new(),
        };
        let mut reasons: Vec<String> =
            found.iter().filter_map(Value::as_str).filter(|reason| self.is_literal(reason)).map(str::to_owned).collect();
        reasons.truncate(MAX_REASONS);
        reasons
    }

    /// Whether the text stands in the policy as a string. A reason put together from the input does not.
    fn is_literal(&self, reason: &str) -> bool {
        let plain = (1..=MAX_REASON).contains(&reason.len()) && !reason.contains(['"', '\\', '`']) && !reason.contains(char::is_control);
        plain && self.text.contains(&format!("\"{reason}\""))
    }

    fn forget_input(&mut self) {
        self.engine.set_input(regorus::Value::Undefined);
    }

    /// Gives the engine its data anew: the policy's own and the state.
    fn put_data(&mut self) -> Result<(), String> {
        let mut data = self.data.clone();
        data.insert("pstate".to_owned(), self.state.as_value());
        let result = regorus::Value::from_json_str(&Value::Object(data).to_string()).and_then(|value| {
            self.engine.clear_data();
            self.engine.add_data(value)
        });
        // Fail closed: with the data gone, `not`-rules could come true.
        self.broken |= result.is_err();
        result.map_err(|error| shorten(&error.to_string()))
    }
}

fn limit(what: &'static str, found: usize, limit: usize) -> Result<(), LoadError> {
    if found > limit { Err(LoadError::TooLarge { what, found, limit }) } else { Ok(()) }
}

/// The switch is never consulted, but whoever sets it expects something this agent does not do: better to say so.
fn refuse_fail_open(rego: &str) -> Result<(), LoadError> {
    let harmless = |line: &str| {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        matches!(words.as_slice(), ["default", FAIL_OPEN_RULE, ":=" | "=", "false"])
    };
    let mentions = |line: &&str| line.contains(FAIL_OPEN_RULE) && !line.trim_start().starts_with('#');
    if rego.lines().filter(mentions).all(harmless) { Ok(()) } else { Err(LoadError::FailOpen) }
}

fn check_input(input: &Value, budget: &Budget) -> Result<(), Cause> {
    if !input.is_object() {
        return Err(Cause::Input("the request's input is not a JSON object"));
    }
    let (mut bytes, mut values) = (0_usize, 0_usize);
    let mut todo = vec![(input, 0_usize)];
    while let Some((value, depth)) = todo.pop() {
        values += 1;
        match value {
            Value::String(text) => bytes = bytes.saturating_add(text.len()),
            Value::Array(items) => todo.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(map) => {
                bytes = map.keys().fold(bytes, |sum, key| sum.saturating_add(key.len()));
                todo.extend(map.values().map(|item| (item, depth + 1)));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        if bytes > budget.input_bytes || values > budget.input_values || depth > MAX_DEPTH {
            return Err(Cause::Input("the request is too large for the policy"));
        }
    }
    Ok(())
}

/// The engine's messages quote the policy's text; a few lines of that are enough.
fn shorten(message: &str) -> String {
    message.chars().take(600).collect()
}

#[cfg(test)]
#[path = "evaluate_tests.rs"]
mod tests;
