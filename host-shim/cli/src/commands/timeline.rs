//! `kata-cc timeline FILE`: what a pod's start spent its time on.
//!
//! Reads the JSON lines the shim leaves in its `timeline_dir`: its own phases (`phase`, `begin_ms`, `duration_ms`, from the moment it
//! was asked for the pod) and what the agent told it (`entry` with `phase`, `end_ms`, `took_ms`, from the agent's first instruction).
//! The two axes meet where the agent serves: the end of the shim's boot phase is the agent's `serving`. The agent's part is the guest's
//! own word and, like the shim's, no evidence of anything.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::output::{Format, Outcome, show};

/// Width of the chart.
const WIDTH: usize = 40;
/// Longest name shown.
const NAME: usize = 40;
/// More phases than any pod has.
const MAX_PHASES: usize = 100_000;
/// The shim's phase that ends when the agent serves.
const BOOT: &str = "firmware+kernel+agent";
/// The agent's entry for the same moment.
const SERVING: &str = "serving";

/// Arguments of `timeline`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The pod's timeline (`-`: stdin).
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// A line of the file. Fields we do not know are left alone, since shim and agent may add some.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Shim { phase: String, begin_ms: f64, duration_ms: f64 },
    Agent { entry: Entry },
}

/// A step of the agent; without `took_ms` it began where the step before it ended.
#[derive(Deserialize)]
struct Entry {
    phase: String,
    end_ms: f64,
    took_ms: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Shim,
    Agent,
}

/// A phase with its place on the pod's axis.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Phase {
    side: Side,
    phase: String,
    begin_ms: f64,
    ms: f64,
}

impl Phase {
    fn end(&self) -> f64 {
        self.begin_ms + self.ms
    }
}

pub(crate) fn run(args: &Args, format: Format) -> anyhow::Result<Outcome> {
    let text = files::read_text(&args.file)?;
    let phases = read(&text).with_context(|| format!("{} is not a timeline", args.file.display()))?;
    let total = phases.iter().map(Phase::end).fold(0.0, f64::max);
    let result = serde_json::json!({ "total_ms": total, "phases": phases });
    show(format, "timeline", &result, || chart(&phases, total))?;
    Ok(Outcome::Done)
}

fn read(text: &str) -> anyhow::Result<Vec<Phase>> {
    let mut phases: Vec<Phase> = Vec::new();
    let mut entries: Vec<Entry> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line: Line = serde_json::from_str(line)
            .with_context(|| format!("line {}: expected `phase`, `begin_ms` and `duration_ms`, or an agent's `entry`", number + 1))?;
        match line {
            Line::Shim { phase, begin_ms, duration_ms } => {
                phases.push(Phase { side: Side::Shim, phase, begin_ms, ms: duration_ms });
            }
            Line::Agent { entry } => entries.push(entry),
        }
        if phases.len() + entries.len() > MAX_PHASES {
            bail!("more than {MAX_PHASES} phases");
        }
    }
    // Without a common moment the agent's steps begin where its machine did.
    let served = phases.iter().find(|p| p.phase == BOOT).map(Phase::end);
    let serving = entries.iter().find(|e| e.phase == SERVING).map(|e| e.end_ms);
    let shift = match (served, serving) {
        (Some(served), Some(serving)) => served - serving,
        _ => 0.0,
    };
    let mut before = 0.0;
    for entry in entries {
        let begin = entry.took_ms.map_or(before, |took| entry.end_ms - took);
        phases.push(Phase { side: Side::Agent, phase: entry.phase, begin_ms: begin + shift, ms: entry.end_ms - begin });
        before = entry.end_ms;
    }
    if phases.is_empty() {
        bail!("no phase in it; expected one JSON object a line");
    }
    if let Some(wrong) = phases.iter().find(|p| !(p.begin_ms.is_finite() && p.ms.is_finite() && p.ms >= 0.0)) {
        bail!("phase {:?} lasts {} ms; expected a number that is not negative", wrong.phase, wrong.ms);
    }
    phases.sort_by(|a, b| a.begin_ms.total_cmp(&b.begin_ms));
    Ok(phases)
}

fn chart(phases: &[Phase], total: f64) -> String {
    let name = |phase: &Phase| -> String {
        let side = if phase.side == Side::Agent { "  " } else { "" };
        format!("{side}{}", phase.phase).chars().filter(|c| !c.is_control()).take(NAME).collect()
    };
    let widest = phases.iter().map(|p| name(p).chars().count()).max().unwrap_or(0);
    let column = |ms: f64| if total > 0.0 { ((ms / total) * WIDTH as f64).round().clamp(0.0, WIDTH as f64) as usize } else { 0 };
    let mut out = String::new();
    for phase in phases {
        let from = column(phase.begin_ms).min(WIDTH - 1);
        let to = column(phase.end()).max(from + 1);
        let bar = format!("{}{}", " ".repeat(from), "#".repeat(to - from));
        out += &format!("{:<widest$}  {:>9.1} ms  |{bar:<WIDTH$}|\n", name(phase), phase.ms);
    }
    out += &format!("{:<widest$}  {total:>9.1} ms\n", "total");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(side: Side, phase: &str, begin_ms: f64, ms: f64) -> Phase {
        Phase { side, phase: phase.to_owned(), begin_ms, ms }
    }

    #[test]
    fn shim_and_agent_meet_where_the_agent_serves() {
        let text = concat!(
            "{\"sandbox\":\"p\",\"side\":\"shim\",\"phase\":\"plan\",\"begin_ms\":0.0,\"duration_ms\":2.0}\n",
            "{\"sandbox\":\"p\",\"side\":\"shim\",\"phase\":\"firmware+kernel+agent\",\"begin_ms\":10.0,\"duration_ms\":1090.0}\n\n",
            "{\"sandbox\":\"p\",\"side\":\"shim\",\"phase\":\"network\",\"begin_ms\":1100.0,\"duration_ms\":20.0}\n",
            "{\"sandbox\":\"p\",\"side\":\"agent\",\"entry\":{\"phase\":\"init\",\"end_ms\":40.0}}\n",
            "{\"sandbox\":\"p\",\"side\":\"agent\",\"entry\":{\"phase\":\"serving\",\"end_ms\":100.0}}\n",
            "{\"sandbox\":\"p\",\"side\":\"agent\",\"entry\":{\"phase\":\"attest\",\"end_ms\":400.0,\"took_ms\":250.0}}\n",
        );
        let expected = [
            phase(Side::Shim, "plan", 0.0, 2.0),
            phase(Side::Shim, "firmware+kernel+agent", 10.0, 1090.0),
            phase(Side::Agent, "init", 1000.0, 40.0),
            phase(Side::Agent, "serving", 1040.0, 60.0),
            phase(Side::Shim, "network", 1100.0, 20.0),
            phase(Side::Agent, "attest", 1150.0, 250.0),
        ];
        assert_eq!(read(text).unwrap(), expected);
    }

    #[test]
    fn refuses_lines_that_are_no_phases() {
        let negative = "{\"phase\":\"x\",\"begin_ms\":1,\"duration_ms\":-1}";
        for bad in ["", "[]", "x", "{\"phase\":\"x\"}", "{\"begin_ms\":1,\"duration_ms\":1}", "{\"entry\":{\"phase\":\"x\"}}", negative] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_chart_keeps_its_width_whatever_the_guest_called_its_phases() {
        let long = "x\n".repeat(200);
        let phases = [phase(Side::Shim, "plan", 0.0, 1.0), phase(Side::Agent, &long, 1.0, 99.0)];
        let text = chart(&phases, 100.0);
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().take(2).all(|l| l.ends_with('|') && l.chars().count() < NAME + WIDTH + 20), "{text}");
        assert!(!chart(&[phase(Side::Shim, "x", 0.0, 0.0)], 0.0).is_empty());
    }
}
