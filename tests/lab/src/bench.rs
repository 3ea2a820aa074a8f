//! The start bench: an attested pod, from RunPodSandbox to its first line, against a bare boot of the same kernel in the same VMM.
//!
//! The two alternate, so that both see the machine in the same mood; what is printed is medians and their ratio, never a verdict.

mod boot;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

pub(crate) use boot::boot;

use crate::demo::start_pod;
use crate::world::{KERNEL_PARAMS, Recipe, World};

/// Ratio that the design allows (design note 001, budgets).
const BUDGET: f64 = 1.5;
/// What the bare init prints (`tests/bare-init`).
const BARE_LINE: &str = "kata-cc bare init runs";

/// What the bench found.
#[derive(Debug, Serialize)]
pub(crate) struct StartReport {
    schema: &'static str,
    pairs: usize,
    attested_ms: Spread,
    bare_ms: Spread,
    ratio_of_medians: f64,
    budget: f64,
    timeline_median_ms: BTreeMap<String, f64>,
    sizes_bytes: BTreeMap<&'static str, u64>,
    resident_kib: BTreeMap<&'static str, u64>,
}

/// Minimum, median, maximum.
#[derive(Debug, Serialize, Clone, Copy)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        Spread { min: at(0), median: at(sorted.len() / 2), max: at(sorted.len().saturating_sub(1)) }
    }
}

/// Runs `pairs` pairs.
pub(crate) async fn start(world: &World, pairs: usize) -> Result<StartReport> {
    let script =
        "echo first; grep -E '^(MemTotal|MemAvailable)' /proc/meminfo; echo last; trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
    let (mut attested, mut bare) = (Vec::new(), Vec::new());
    let mut phases: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut resident: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let mut cri = world.cri().await?;
    for pair in 0..=pairs {
        let bare_ms = bare_boot(world)?.ms;
        let pod = world.pod(&Recipe::script(&format!("bench-{pair}"), script))?;
        let start = Instant::now();
        let running = start_pod(&mut cri, &pod).await?;
        cri.wait_log(&pod, &running.container, "first\n", Duration::from_secs(60)).await?;
        let attested_ms = start.elapsed().as_secs_f64() * 1e3;
        let log = cri.wait_log(&pod, &running.container, "last\n", Duration::from_secs(60)).await?;
        // The first pair warms caches and is not counted.
        if pair > 0 {
            bare.push(bare_ms);
            attested.push(attested_ms);
            for phase in world.timeline(&running.sandbox)? {
                phases.entry(phase.phase).or_default().push(phase.ms);
            }
            for (what, program) in [("shim", "containerd-shim-kata-cc-v2"), ("qemu", "qemu-system"), ("vsock helper", "vhost-device-vsock")]
            {
                resident.entry(what).or_default().push(rss_kib(program)? as f64);
            }
            resident.entry("guest in use, workload included").or_default().push(guest_in_use(&log)? as f64);
        }
        cri.stop_and_remove(&running.container, 5).await?;
        cri.remove_sandbox(&running.sandbox).await?;
        world.say(&format!("pair {pair}: attested {attested_ms:.0} ms, bare {bare_ms:.0} ms{}", if pair == 0 { " (warm-up)" } else { "" }));
    }
    let (attested, bare) = (Spread::of(&attested), Spread::of(&bare));
    let artifacts = world.artifacts();
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).with_context(|| format!("no {}", path.display()));
    Ok(StartReport {
        schema: "kata-cc/bench-start-1",
        pairs,
        attested_ms: attested,
        bare_ms: bare,
        ratio_of_medians: attested.median / bare.median,
        budget: BUDGET,
        timeline_median_ms: phases.into_iter().map(|(name, values)| (name, Spread::of(&values).median)).collect(),
        sizes_bytes: BTreeMap::from([
            ("agent", size(&artifacts.agent())?),
            ("initrd, production", size(&artifacts.production_initrd())?),
            ("initrd, simulation", size(&artifacts.initrd())?),
            ("kernel", size(&artifacts.kernel())?),
            ("shim", size(&artifacts.bin("containerd-shim-kata-cc-v2"))?),
        ]),
        resident_kib: resident.into_iter().map(|(name, values)| (name, Spread::of(&values).median as u64)).collect(),
    })
}

impl StartReport {
    /// Prints it.
    pub(crate) fn print(&self) {
        println!("start, {} pairs, in ms (min / median / max)", self.pairs);
        for (name, spread) in [("attested pod", self.attested_ms), ("bare boot", self.bare_ms)] {
            println!("  {name:<14}{:>8.0} /{:>8.0} /{:>8.0}", spread.min, spread.median, spread.max);
        }
        println!("  ratio of the medians {:.2} (budget {:.1})", self.ratio_of_medians, self.budget);
        println!("phases, median ms");
        for (name, ms) in &self.timeline_median_ms {
            println!("  {name:<18}{ms:>9.1}");
        }
        println!("sizes, bytes");
        for (name, bytes) in &self.sizes_bytes {
            println!("  {name:<22}{bytes:>12}");
        }
        println!("resident, KiB (median)");
        for (name, kib) in &self.resident_kib {
            println!("  {name:<34}{kib:>9}");
        }
    }
}

/// A bare boot.
#[derive(Debug, Clone, Copy)]
struct Bare {
    /// From the start of QEMU to the first line of an init that does nothing else.
    ms: f64,
    /// What the kernel's clock says then; it runs from the kernel's first steps.
    kernel_ms: f64,
}

fn bare_boot(world: &World) -> Result<Bare> {
    let artifacts = world.artifacts();
    let start = Instant::now();
    let mut child = Command::new("/usr/bin/qemu-system-x86_64")
        .args(["-machine", "q35,accel=tcg,smm=off", "-cpu", "max", "-smp", "1", "-m", "256", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-vga", "none", "-no-reboot", "-serial", "stdio", "-append", KERNEL_PARAMS, "-bios"])
        .arg(artifacts.firmware())
        .arg("-kernel")
        .arg(artifacts.kernel())
        .arg("-initrd")
        .arg(artifacts.bare_initrd())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start QEMU")?;
    let out = child.stdout.take().context("QEMU without a standard output")?;
    let mut elapsed = None;
    for line in BufReader::new(out).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if let Some((_, said)) = line.split_once(BARE_LINE) {
            let ms = start.elapsed().as_secs_f64() * 1e3;
            let kernel_ms = clock(said).with_context(|| format!("the bare init does not say the kernel's clock: {line:?}"))?;
            elapsed = Some(Bare { ms, kernel_ms });
            break;
        }
    }
    let _ = child.kill();
    child.wait()?;
    match elapsed {
        Some(bare) => Ok(bare),
        None => bail!("the bare boot ended without the line {BARE_LINE:?}"),
    }
}

/// What follows the bare init's line: ` at 123.4 ms`.
fn clock(said: &str) -> Option<f64> {
    said.trim_end().strip_prefix(" at ")?.strip_suffix(" ms")?.parse().ok()
}

fn rss_kib(program: &str) -> Result<u64> {
    let mut sum = 0;
    for pid in crate::e2e::pids_of(program)? {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        sum += status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|kib| kib.parse::<u64>().ok())
            .unwrap_or_default();
    }
    Ok(sum)
}

fn guest_in_use(log: &str) -> Result<u64> {
    let value = |name: &str| -> Result<u64> {
        log.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|kib| kib.parse().ok())
            .with_context(|| format!("{name} is not in the workload's output"))
    };
    Ok(value("MemTotal:")? - value("MemAvailable:")?)
}

#[cfg(test)]
mod tests {
    use super::clock;

    #[test]
    fn reads_the_kernels_clock() {
        assert_eq!(clock(" at 123.4 ms\r"), Some(123.4));
        assert_eq!((clock(""), clock(" at ms"), clock("at 1 ms")), (None, None, None));
    }
}
