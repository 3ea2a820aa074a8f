//! The record of a verification: each check with what was found and what was expected, in the order made.
//!
//! It explains a verdict; it never is one. What was not compared is recorded as not compared, never as passed.

use std::fmt::Display;

use serde::Serialize;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As expected.
    Pass,
    /// Not as expected: the verification ended here.
    Fail,
    /// Found, but the caller said nothing about what to expect.
    NotCompared,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name, as users see it.
    pub name: &'static str,
    /// How it ended.
    #[serde(rename = "status")]
    pub outcome: Outcome,
    /// What the evidence says.
    pub found: String,
    /// What it should say.
    pub expected: String,
}

/// The checks so far.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    all: Vec<Check>,
}

impl Checks {
    /// All of them, in order.
    #[must_use]
    pub fn all(&self) -> &[Check] {
        &self.all
    }

    /// Records a check and passes its outcome on: `checks.record("TCB", found, expected, check_tcb(..))?`.
    ///
    /// # Errors
    /// The outcome's.
    pub fn record<T, E>(&mut self, name: &'static str, found: impl Display, expected: impl Display, outcome: Result<T, E>) -> Result<T, E> {
        let outcome_is = if outcome.is_ok() { Outcome::Pass } else { Outcome::Fail };
        self.all.push(Check { name, outcome: outcome_is, found: found.to_string(), expected: expected.to_string() });
        outcome
    }

    /// Records something that the caller gave nothing to compare with.
    pub fn not_compared(&mut self, name: &'static str, found: impl Display) {
        self.all.push(Check { name, outcome: Outcome::NotCompared, found: found.to_string(), expected: String::new() });
    }
}
