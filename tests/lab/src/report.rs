//! What the demo found, as a table for people and as JSON for programs (`kata-cc/demo-1`).

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// The result of the main job and of the attacks on it.
#[derive(Debug, Serialize)]
pub(crate) struct DemoReport {
    /// Always `kata-cc/demo-1`.
    pub(crate) schema: &'static str,
    /// The pod that must run.
    pub(crate) pod: PodReport,
    /// The pods and calls that must not.
    pub(crate) refused: Vec<Refusal>,
    /// The good pod's phases in order.
    pub(crate) timeline: Vec<Phase>,
    /// What is left on the machine after the last pod is gone: nothing, one hopes.
    pub(crate) leftovers: Vec<String>,
}

/// The main job.
#[derive(Debug, Serialize)]
pub(crate) struct PodReport {
    pub(crate) exit_code: i32,
    pub(crate) output: String,
    /// Attestations that the broker counted for this pod.
    pub(crate) attestations: u64,
    pub(crate) layers_encrypted: usize,
}

/// One attack.
#[derive(Debug, Serialize, Clone)]
pub(crate) struct Refusal {
    pub(crate) case: String,
    pub(crate) refused: bool,
    /// What the CRI caller was told, or what happened instead of a refusal.
    pub(crate) error: String,
}

/// One phase of the pod's way.
#[derive(Debug, Serialize, Clone)]
pub(crate) struct Phase {
    pub(crate) phase: String,
    pub(crate) ms: f64,
}

impl DemoReport {
    /// Whether everything is as it must be.
    pub(crate) fn passed(&self) -> bool {
        self.pod.exit_code == 0 && self.pod.attestations == 1 && self.refused.iter().all(|r| r.refused) && self.leftovers.is_empty()
    }

    /// Prints the tables.
    pub(crate) fn print(&self) {
        println!("\nThe pod printed:");
        for line in self.pod.output.lines() {
            println!("  | {line}");
        }
        println!(
            "exit code {}, attestations {}, encrypted layers {}",
            self.pod.exit_code, self.pod.attestations, self.pod.layers_encrypted
        );
        println!("\nAttacks:");
        for refusal in &self.refused {
            println!("  {} {}", if refusal.refused { "refused" } else { "NOT REFUSED" }, refusal.case);
            for line in wrap(&refusal.error, 110) {
                println!("          {line}");
            }
        }
        println!("\nTimeline of the pod:");
        for phase in &self.timeline {
            println!("  {:<26}{:>9.1} ms", phase.phase, phase.ms);
        }
        if self.leftovers.is_empty() {
            println!("\nLeft behind: nothing");
        } else {
            println!("\nLEFT BEHIND:");
            for leftover in &self.leftovers {
                println!("  {leftover}");
            }
        }
    }

    /// Writes the JSON.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_string_pretty(self)? + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let full = lines.last().is_some_and(|line| !line.is_empty() && line.len() + word.len() + 1 > width);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
