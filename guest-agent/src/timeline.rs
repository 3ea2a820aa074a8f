//! What the agent did when: the guest's part of a pod's timeline.
//!
//! Entries are names and milliseconds since the agent's first instruction, nothing about content. The host can read them through
//! `GetDiagnosticData` (`log_type = "timeline"`), if the policy allows, and one line goes to the console when the agent serves.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// Bound on entries, since the host decides how many containers it asks for.
const MAX_ENTRIES: usize = 1024;

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Entry {
    /// What was done: a fixed word, and the container it was done for, if any.
    pub(crate) phase: String,
    /// Milliseconds since the agent began, when the step was over.
    pub(crate) end_ms: f64,
    /// How long it took, if its beginning is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) took_ms: Option<f64>,
}

/// The timeline of this guest.
#[derive(Debug)]
pub(crate) struct Timeline {
    start: Instant,
    entries: Mutex<Vec<Entry>>,
}

impl Timeline {
    /// Begins at `start`, the agent's first instruction as near as it can be told.
    #[must_use]
    pub(crate) fn starting(start: Instant) -> Self {
        Self { start, entries: Mutex::new(Vec::new()) }
    }

    /// Notes that a step is over.
    pub(crate) fn mark(&self, phase: impl Into<String>) {
        self.push(phase.into(), None);
    }

    /// Notes that a step that began at `began` is over.
    pub(crate) fn since(&self, phase: impl Into<String>, began: Instant) {
        self.push(phase.into(), Some(began.elapsed().as_secs_f64() * 1e3));
    }

    /// Notes a step whose duration was measured by somebody else.
    pub(crate) fn took(&self, phase: impl Into<String>, took: std::time::Duration) {
        self.push(phase.into(), Some(took.as_secs_f64() * 1e3));
    }

    fn push(&self, phase: String, took_ms: Option<f64>) {
        let end_ms = round(self.start.elapsed().as_secs_f64() * 1e3);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() < MAX_ENTRIES {
            entries.push(Entry { phase, end_ms, took_ms: took_ms.map(round) });
        }
    }

    /// All entries so far.
    #[must_use]
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All entries as one JSON array.
    #[must_use]
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(&self.entries()).unwrap_or_else(|_| "[]".to_owned())
    }

    /// `phase=ms` for each entry, on one line.
    #[must_use]
    pub(crate) fn line(&self) -> String {
        let words: Vec<String> = self.entries().iter().map(|entry| format!("{}={}", entry.phase, entry.end_ms)).collect();
        words.join(" ")
    }
}

/// Tenths of milliseconds say all that can be said under an emulator.
fn round(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_order_and_are_bounded() {
        let timeline = Timeline::starting(Instant::now());
        timeline.mark("mounts");
        timeline.since("attest", Instant::now());
        let entries = timeline.entries();
        assert_eq!(entries[0].phase, "mounts");
        assert!(entries[0].took_ms.is_none() && entries[1].took_ms.is_some());
        assert!(timeline.json().starts_with("[{\"phase\":\"mounts\""));
        for _ in 0..2 * MAX_ENTRIES {
            timeline.mark("x");
        }
        assert_eq!(timeline.entries().len(), MAX_ENTRIES);
    }
}
