//! The boot bench: from the start of QEMU to an agent that serves, by phase, against a bare boot of the same kernel; and the bytes that are
//! measured on the way.
//!
//! What boots is the simulation's guest, by the shim, with one pod, its initdata and its report. The shim starts the helpers of vsock and
//! of the simulation right before QEMU, and the guest's init is the simulation's, which becomes the agent: both are in the time until the
//! agent, and a bare boot has neither. Phases of the agent are its own word. Nothing here passes or fails by time.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::{Spread, bare_boot};
use crate::demo::start_pod;
use crate::world::{KERNEL_PARAMS, Recipe, World};

/// The shim's phases, by `kata-cc timeline`: helpers and QEMU started, QEMU answering; from there to the agent's answer.
const LAUNCH: &str = "vmm";
const BOOT: &str = "firmware+kernel+agent";
/// The agent's first step, and its last.
const FIRST: &str = "init";
const LAST: &str = "serving";

/// How long, and how often, to look for a pod's timeline.
const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(50);

/// What the bench found.
#[derive(Debug, Serialize)]
pub(crate) struct BootReport {
    schema: &'static str,
    runs: usize,
    bare_ms: BTreeMap<&'static str, Spread>,
    agent_ms: BTreeMap<&'static str, Spread>,
    agent_phases_ms: Vec<(String, Spread)>,
    /// In each run: agent serving by bare init.
    ratio: Spread,
    measured_bytes: BTreeMap<&'static str, u64>,
    measured_bytes_total: u64,
    beside_bytes: BTreeMap<&'static str, u64>,
}

/// One boot of a pod's machine, in ms.
#[derive(Debug, PartialEq)]
struct Boot {
    /// Until helpers and QEMU are started and QEMU answers; the guest runs by then.
    started: f64,
    until_agent: f64,
    until_serving: f64,
    /// The agent's steps up to serving, in order.
    steps: Vec<(String, f64)>,
}

impl Boot {
    /// From the phases of `kata-cc --json timeline`.
    fn of(timeline: &Value) -> Result<Self> {
        let phases = timeline["phases"].as_array().context("the timeline has no phases")?;
        let number = |phase: &Value, field: &str| phase[field].as_f64().with_context(|| format!("a phase without {field}: {phase}"));
        let find = |side: &str, name: &str| {
            let is_it = |phase: &&Value| phase["side"] == side && phase["phase"] == name;
            phases.iter().find(is_it).with_context(|| format!("the {side}'s timeline has no phase {name:?}"))
        };
        let (launch, boot) = (find("shim", LAUNCH)?, find("shim", BOOT)?);
        let (start, started) = (number(launch, "begin_ms")?, number(launch, "ms")?);
        let served = number(boot, "begin_ms")? + number(boot, "ms")?;
        let began = number(find("agent", FIRST)?, "begin_ms")?;
        let last = number(find("agent", LAST)?, "begin_ms")?;
        let mut steps = Vec::new();
        for phase in phases.iter().filter(|phase| phase["side"] == "agent") {
            if number(phase, "begin_ms")? <= last {
                steps.push((phase["phase"].as_str().context("a phase without a name")?.to_owned(), number(phase, "ms")?));
            }
        }
        Ok(Self { started, until_agent: began - start, until_serving: served - start, steps })
    }
}

/// Runs `runs` times a bare boot and a pod's, in turns.
pub(crate) async fn boot(world: &World, runs: usize) -> Result<BootReport> {
    let mut bare: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let mut agent: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let mut steps: Vec<(String, Vec<f64>)> = Vec::new();
    let mut ratio = Vec::new();
    let mut cri = world.cri().await?;
    for run in 0..=runs {
        let yardstick = bare_boot(world)?;
        let script = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
        let pod = world.pod(&Recipe::script(&format!("boot-{run}"), script))?;
        let running = start_pod(&mut cri, &pod).await?;
        let boot = written(world, &running.sandbox).await?;
        cri.stop_and_remove(&running.container, 5).await?;
        cri.remove_sandbox(&running.sandbox).await?;
        let warm_up = if run == 0 { " (warm-up)" } else { "" };
        world.say(&format!("run {run}: agent serving after {:.0} ms, bare init after {:.0} ms{warm_up}", boot.until_serving, yardstick.ms));
        // The first run warms caches and is not counted.
        if run == 0 {
            continue;
        }
        for (what, ms) in [
            ("1 QEMU and firmware, to the kernel's clock", yardstick.ms - yardstick.kernel_ms),
            ("2 kernel, to init", yardstick.kernel_ms),
            ("all, to init", yardstick.ms),
        ] {
            bare.entry(what).or_default().push(ms);
        }
        for (what, ms) in [
            ("1 helpers and QEMU, started", boot.started),
            ("2 firmware, kernel, until the agent", boot.until_agent - boot.started),
            ("3 agent, until it serves", boot.until_serving - boot.until_agent),
            ("all, to serving", boot.until_serving),
        ] {
            agent.entry(what).or_default().push(ms);
        }
        for (name, ms) in boot.steps {
            match steps.iter_mut().find(|(known, _)| *known == name) {
                Some((_, values)) => values.push(ms),
                None => steps.push((name, vec![ms])),
            }
        }
        ratio.push(boot.until_serving / yardstick.ms);
    }
    let spreads = |all: BTreeMap<&'static str, Vec<f64>>| all.into_iter().map(|(what, values)| (what, Spread::of(&values))).collect();
    let artifacts = world.artifacts();
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).with_context(|| format!("no {}", path.display()));
    let measured = BTreeMap::from([
        ("firmware", size(&artifacts.firmware())?),
        ("kernel", size(&artifacts.kernel())?),
        ("initrd (simulation)", size(&artifacts.initrd())?),
        // With the NUL that ends it.
        ("command line", KERNEL_PARAMS.len() as u64 + 1),
    ]);
    Ok(BootReport {
        schema: "kata-cc/bench-boot-1",
        runs,
        bare_ms: spreads(bare),
        agent_ms: spreads(agent),
        agent_phases_ms: steps.into_iter().map(|(name, values)| (name, Spread::of(&values))).collect(),
        ratio: Spread::of(&ratio),
        measured_bytes_total: measured.values().sum(),
        measured_bytes: measured,
        beside_bytes: BTreeMap::from([
            ("agent, in the initrd", size(&artifacts.agent())?),
            ("initrd (production)", size(&artifacts.production_initrd())?),
        ]),
    })
}

/// A pod's boot, once the shim has written its timeline; it does so some time after the container started.
async fn written(world: &World, sandbox: &str) -> Result<Boot> {
    let mut waited = Duration::ZERO;
    loop {
        match world.timeline_json(sandbox).and_then(|timeline| Boot::of(&timeline)) {
            Err(_) if waited < PATIENCE => tokio::time::sleep(STEP).await,
            result => return result.with_context(|| format!("no whole timeline of the pod after {} s", PATIENCE.as_secs())),
        }
        waited += STEP;
    }
}

impl BootReport {
    /// Prints it.
    pub(crate) fn print(&self) {
        println!("boot, {} runs, in ms (min / median / max)", self.runs);
        let line = |name: &str, s: &Spread| println!("  {name:<44}{:>8.1} /{:>8.1} /{:>8.1}", s.min, s.median, s.max);
        println!(" bare");
        self.bare_ms.iter().for_each(|(name, spread)| line(name, spread));
        println!(" simulated guest of a pod");
        self.agent_ms.iter().for_each(|(name, spread)| line(name, spread));
        println!(" of the agent, by its own word");
        self.agent_phases_ms.iter().for_each(|(name, spread)| line(name, spread));
        let Spread { min, median, max } = self.ratio;
        println!("agent serving by bare init, in the same run: {min:.2} / {median:.2} / {max:.2}");
        println!("measured, bytes");
        for (name, bytes) in &self.measured_bytes {
            println!("  {name:<44}{bytes:>12}");
        }
        println!("  {:<44}{:>12}", "total", self.measured_bytes_total);
        println!("beside, bytes");
        for (name, bytes) in &self.beside_bytes {
            println!("  {name:<44}{bytes:>12}");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn timeline() -> Value {
        json!({ "phases": [
            { "side": "shim", "phase": "plan", "begin_ms": 0.0, "ms": 2.0 },
            { "side": "shim", "phase": LAUNCH, "begin_ms": 10.0, "ms": 50.0 },
            { "side": "shim", "phase": BOOT, "begin_ms": 60.0, "ms": 950.0 },
            { "side": "agent", "phase": FIRST, "begin_ms": 910.0, "ms": 40.0 },
            { "side": "agent", "phase": LAST, "begin_ms": 950.0, "ms": 60.0 },
            { "side": "agent", "phase": "sandbox", "begin_ms": 1010.0, "ms": 5.0 },
        ] })
    }

    #[test]
    fn a_boot_begins_with_qemu_and_ends_with_an_agent_that_serves() {
        let expected =
            Boot { started: 50.0, until_agent: 900.0, until_serving: 1000.0, steps: vec![(FIRST.into(), 40.0), (LAST.into(), 60.0)] };
        assert_eq!(Boot::of(&timeline()).unwrap(), expected);
    }

    #[test]
    fn a_timeline_without_the_agents_part_is_no_boot() {
        for missing in [1, 2, 3, 4] {
            let mut timeline = timeline();
            timeline["phases"].as_array_mut().unwrap().remove(missing);
            assert!(Boot::of(&timeline).is_err(), "{missing}");
        }
        let mut timeline = timeline();
        timeline["phases"][1]["ms"] = "x".into();
        assert!(Boot::of(&timeline).is_err());
    }
}
