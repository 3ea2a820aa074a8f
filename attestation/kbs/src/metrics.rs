//! Counters in Prometheus' text format. Labels are outcomes and TEE types only: a label with a resource path would publish its name.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The broker's counters.
#[derive(Debug, Default)]
pub struct Metrics {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    attestations: BTreeMap<(&'static str, &'static str), u64>,
    reads: BTreeMap<&'static str, u64>,
    rate_limited: u64,
}

impl Metrics {
    /// One attestation of a TEE type with an outcome.
    pub fn attestation(&self, tee: &'static str, outcome: &'static str) {
        *self.counts().attestations.entry((tee, outcome)).or_default() += 1;
    }

    /// One request for a secret.
    pub fn resource_read(&self, outcome: &'static str) {
        *self.counts().reads.entry(outcome).or_default() += 1;
    }

    /// One session refused because its address opens too many.
    pub fn rate_limited(&self) {
        self.counts().rate_limited += 1;
    }

    /// The text for a scrape; `sessions` is how many there are, where that is known.
    pub fn render(&self, sessions: Option<usize>) -> String {
        let counts = self.counts();
        let mut text = String::from("# HELP kbs_attestations_total Evidence looked at.\n# TYPE kbs_attestations_total counter\n");
        for ((tee, outcome), n) in &counts.attestations {
            let _ = writeln!(text, "kbs_attestations_total{{tee=\"{tee}\",outcome=\"{outcome}\"}} {n}");
        }
        text.push_str("# HELP kbs_resource_reads_total Requests for secrets.\n# TYPE kbs_resource_reads_total counter\n");
        for (outcome, n) in &counts.reads {
            let _ = writeln!(text, "kbs_resource_reads_total{{outcome=\"{outcome}\"}} {n}");
        }
        text.push_str("# HELP kbs_rate_limited_total Sessions refused to addresses that open too many.\n");
        let _ = writeln!(text, "# TYPE kbs_rate_limited_total counter\nkbs_rate_limited_total {}", counts.rate_limited);
        if let Some(sessions) = sessions {
            let _ = writeln!(text, "# HELP kbs_sessions Sessions held.\n# TYPE kbs_sessions gauge\nkbs_sessions {sessions}");
        }
        text
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counters are never half-written; a panic elsewhere does not spoil them.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_label() {
        let metrics = Metrics::default();
        metrics.attestation("snp", "affirming");
        metrics.attestation("snp", "affirming");
        metrics.resource_read("denied");
        let text = metrics.render(Some(3));
        assert!(text.contains("kbs_attestations_total{tee=\"snp\",outcome=\"affirming\"} 2\n"));
        assert!(text.contains("kbs_resource_reads_total{outcome=\"denied\"} 1\n"));
        assert!(text.contains("kbs_sessions 3\n"));
    }
}
