//! When what happened to the pod: the shim's phases, and the agent's as it tells them. Written as JSON lines where the configuration asks for it.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

/// What a guest may add to a file of the host's.
const MAX_AGENT_BYTES: usize = 64 * 1024;

/// A pod's timeline.
#[derive(Debug)]
pub(crate) struct Timeline {
    begin: Instant,
    phases: Mutex<Vec<Phase>>,
}

#[derive(Debug, Clone)]
struct Phase {
    name: String,
    begin: Duration,
    duration: Duration,
}

impl Timeline {
    /// Begins now.
    pub(crate) fn begin() -> Self {
        Self { begin: Instant::now(), phases: Mutex::new(Vec::new()) }
    }

    /// Records a phase that began at `since` and ends now.
    pub(crate) fn record(&self, name: impl Into<String>, since: Instant) {
        let name = name.into();
        let phase = Phase { begin: since.saturating_duration_since(self.begin), duration: since.elapsed(), name };
        tracing::info!(phase = %phase.name, begin_ms = millis(phase.begin), duration_ms = millis(phase.duration), "timeline");
        self.phases.lock().unwrap_or_else(PoisonError::into_inner).push(phase);
    }

    /// The file's content; `agent` is what the agent said of itself.
    fn lines(&self, sandbox: &str, agent: Option<&str>) -> String {
        let phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ours = phases.iter().map(|phase| {
            json!({"sandbox": sandbox, "side": "shim", "phase": phase.name, "begin_ms": millis(phase.begin), "duration_ms": millis(phase.duration)})
        });
        // The agent's word is parsed and written anew, so that it can only ever be values in our lines.
        let theirs = agent.into_iter().filter(|text| text.len() <= MAX_AGENT_BYTES).flat_map(|text| {
            let entries: Vec<serde_json::Value> = match serde_json::from_str(text) {
                Ok(serde_json::Value::Array(entries)) => entries,
                Ok(value) => vec![value],
                Err(_) => text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| line.into())).collect(),
            };
            entries.into_iter().map(|entry| json!({"sandbox": sandbox, "side": "agent", "entry": entry}))
        });
        ours.chain(theirs).map(|line| format!("{line}\n")).collect()
    }

    /// Writes the timeline of a pod, anew each time.
    pub(crate) fn write(&self, dir: &Path, sandbox: &str, agent: Option<&str>) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = dir.join(format!("{sandbox}.json"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)?;
        file.write_all(self.lines(sandbox, agent).as_bytes())
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_our_phases_and_the_agents_as_one_value_a_line() {
        let timeline = Timeline::begin();
        timeline.record("plan", Instant::now());
        for agent in [r#"[{"phase":"policy","ms":3}]"#, "{\"phase\":\"policy\",\"ms\":3}\n"] {
            let lines: Vec<serde_json::Value> =
                timeline.lines("p", Some(agent)).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!((lines.len(), &lines[0]["phase"], &lines[1]["entry"]["ms"]), (2, &json!("plan"), &json!(3)));
        }
        let hostile = timeline.lines("p", Some("\"}\n{\"side\":\"shim\"}"));
        assert!(hostile.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["sandbox"] == "p"));
    }
}
