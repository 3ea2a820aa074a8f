//! What came out of a list of steps: a table, what was skipped, and one closing line.

use std::fmt;
use std::time::Duration;

/// How one step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As it should, with so many checks made.
    Passed(u64),
    /// Not as it should: checks that passed, checks that failed, and why.
    Failed(u64, u64, String),
    /// It could not run here.
    Skipped(String),
}

struct Step {
    name: String,
    outcome: Outcome,
    took: Duration,
}

/// All steps so far.
#[derive(Default)]
pub(crate) struct Summary {
    steps: Vec<Step>,
    skipped: Vec<String>,
}

impl Summary {
    /// Adds a step.
    pub(crate) fn add(&mut self, name: &str, outcome: Outcome, took: Duration) {
        self.steps.push(Step { name: name.to_owned(), outcome, took });
    }

    /// Adds something a step did not check.
    pub(crate) fn skip(&mut self, what: String) {
        if !self.skipped.contains(&what) {
            self.skipped.push(what);
        }
    }

    /// Whether nothing failed.
    pub(crate) fn passed(&self) -> bool {
        !self.steps.iter().any(|step| matches!(step.outcome, Outcome::Failed(..)))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
        let (mut passed, mut failed, mut skipped) = (0, 0, self.skipped.len());
        writeln!(f)?;
        for Step { name, outcome, took } in &self.steps {
            write!(f, "{name:<width$}  {:>7.1} s  ", took.as_secs_f64())?;
            match outcome {
                Outcome::Passed(checks) => {
                    passed += checks;
                    writeln!(f, "passed   {checks}")?;
                }
                Outcome::Failed(good, bad, why) => {
                    passed += good;
                    failed += bad;
                    writeln!(f, "FAILED   {}", why.replace('\n', " "))?;
                }
                Outcome::Skipped(why) => {
                    skipped += 1;
                    writeln!(f, "SKIPPED  {why}")?;
                }
            }
        }
        if !self.skipped.is_empty() {
            writeln!(f, "\nNot checked on this machine:")?;
        }
        for what in &self.skipped {
            writeln!(f, "  SKIPPED: {what}")?;
        }
        writeln!(f, "\n{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// What a log of `cargo test` says: tests passed and failed, and what tests said they skipped.
pub(crate) fn read_test_log(log: &str) -> (u64, u64, Vec<String>) {
    let (mut passed, mut failed, mut skipped) = (0, 0, Vec::new());
    for line in log.lines() {
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |what: &str| {
                let part = result.split([';', '.']).find_map(|part| part.trim().strip_suffix(what));
                part.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0)
            };
            passed += number("passed");
            failed += number("failed");
            if number("ignored") > 0 {
                skipped.push(format!("{} ignored tests", number("ignored")));
            }
        } else if let Some((_, what)) = line.split_once("SKIPPED: ") {
            skipped.push(what.to_owned());
        }
    }
    (passed, failed, skipped)
}

/// Numbers of a closing line "N passed, N failed"; the last one counts.
pub(crate) fn read_closing_line(log: &str) -> Option<(u64, u64)> {
    log.lines().rev().find_map(|line| {
        let (passed, rest) = line.trim().split_once(" passed, ")?;
        let (failed, _) = rest.split_once(" failed")?;
        Some((passed.rsplit(' ').next()?.parse().ok()?, failed.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_cargo_test_prints() {
        let log = "running 2 tests\ntest a ... ok\ntest result: ok. 42 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
                   SKIPPED: x: no vectors\ntest result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured";
        let skipped = vec!["1 ignored tests".to_owned(), "x: no vectors".to_owned()];
        assert_eq!(read_test_log(log), (45, 2, skipped));
    }

    #[test]
    fn reads_a_closing_line_among_others() {
        assert_eq!(read_closing_line("a\n12 passed, 1 failed, 3 skipped\nbye"), Some((12, 1)));
        assert_eq!(read_closing_line("e2e: 5 passed, 0 failed"), Some((5, 0)));
        assert_eq!(read_closing_line("all passed, none failed"), None);
    }

    #[test]
    fn closing_line_counts_checks_and_fails_when_one_did() {
        let mut summary = Summary::default();
        summary.add("a", Outcome::Passed(3), Duration::ZERO);
        assert!(summary.passed());
        summary.add("b", Outcome::Failed(1, 2, "why\nwhere".into()), Duration::ZERO);
        summary.add("c", Outcome::Skipped("no root".into()), Duration::ZERO);
        summary.skip("d".into());
        summary.skip("d".into());
        assert!(!summary.passed());
        assert_eq!(summary.to_string().lines().last(), Some("4 passed, 2 failed, 2 skipped"));
    }
}
