//! Wall time, CPU time and memory of commands and of all processes they start.
//!
//! CPU time of commands is what wait(2) accounts for them and their children, to the microsecond; that of a daemon comes from `/proc/PID/stat`, in
//! hundredths of a second. Memory is the sum of resident memory over the processes there are, looked at every few milliseconds.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, killpg};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use serde::Serialize;

use crate::contender::Plan;

/// Between two looks at memory.
const LOOK: Duration = Duration::from_millis(20);
/// Clock ticks a second in `/proc/PID/stat` (proc(5)): fixed on Linux, whatever the kernel was built with.
const TICKS: f64 = 100.0;
/// Bytes of a page on the one architecture this is built for.
const PAGE_KIB: u64 = 4;

/// As many at once.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whether Ctrl-C was pressed.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// SIGINT and SIGTERM are noted from here on instead of ending us at once, so that what was started and made is ended and removed.
    pub(crate) fn catch() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("cannot handle signals")?;
        }
        Ok(Self(flag))
    }

    /// Fails once it was pressed.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_set() { bail!("interrupted") } else { Ok(()) }
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    /// Seconds from start to end.
    pub(crate) wall_s: f64,
    /// Seconds of CPU time, user and system.
    pub(crate) cpu_s: f64,
    /// Peak of resident memory, in KiB: the sum over all processes.
    pub(crate) peak_kib: u64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} s, {:.2} s of CPU, {:.1} MiB", self.wall_s, self.cpu_s, self.peak_kib as f64 / 1024.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a plan.
pub(crate) fn measure(plan: &mut Plan, interrupt: &Interrupt) -> Result<Sample> {
    let daemon = plan.daemon.as_ref().map(super::service::Service::pid);
    let running: Mutex<BTreeSet<u32>> = Mutex::default();
    let (over, peak, said) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(0u64));
    let before = (daemon.map_or(Ok(0.0), cpu_of)?, children_cpu()?);
    let start = Instant::now();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                look(&lock(&running), daemon, &peak, interrupt);
                std::thread::sleep(LOOK);
            }
        });
        let done = plan.steps.iter_mut().try_for_each(|commands| step(commands, &running, plan.says_peak, &said));
        over.store(true, Ordering::Relaxed);
        done
    });
    let wall_s = start.elapsed().as_secs_f64();
    interrupt.check()?;
    outcome?;
    let cpu_s = daemon.map_or(Ok(0.0), cpu_of)? - before.0 + children_cpu()? - before.1;
    let peak_kib = peak.into_inner().max(*lock(&said));
    Ok(Sample { wall_s, cpu_s, peak_kib })
}

/// The commands of a step side by side.
fn step(commands: &mut [Command], running: &Mutex<BTreeSet<u32>>, says_peak: bool, said: &Mutex<u64>) -> Result<()> {
    let next = Mutex::new(commands.iter_mut());
    let work_through = || -> Result<()> {
        loop {
            let command = lock(&next).next();
            let Some(command) = command else { return Ok(()) };
            let program = command.get_program().to_string_lossy().into_owned();
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = command.process_group(0).spawn().with_context(|| format!("cannot start {program}"))?;
            let pid = child.id();
            lock(running).insert(pid);
            let output = child.wait_with_output();
            lock(running).remove(&pid);
            let output = output.with_context(|| format!("cannot wait for {program}"))?;
            if !output.status.success() {
                let text = String::from_utf8_lossy(&output.stderr);
                bail!("{program} failed ({}): {}", output.status, text.lines().last().unwrap_or("it said nothing"));
            }
            if says_peak {
                let text = String::from_utf8_lossy(&output.stdout);
                *lock(said) = text.trim().parse().with_context(|| format!("expected the peak of memory from {program}, found {text:?}"))?;
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores()).map(|_| scope.spawn(work_through)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread died"))?)
    })
}

/// Adds memory up, and ends everything if Ctrl-C was pressed.
fn look(running: &BTreeSet<u32>, daemon: Option<u32>, peak: &AtomicU64, interrupt: &Interrupt) {
    if interrupt.is_set() {
        for pid in running.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let mut open: Vec<u32> = running.iter().copied().chain(daemon).collect();
    let mut sum = 0;
    while let Some(pid) = open.pop() {
        sum += resident_kib(pid);
        open.extend(children(pid));
    }
    peak.fetch_max(sum, Ordering::Relaxed);
}

/// Resident memory of a process; none if it has just ended.
fn resident_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * PAGE_KIB
}

/// Processes that the threads of a process started.
fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// CPU time of all commands that were waited for so far, in seconds.
fn children_cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}

/// CPU time of a process and of the children it waited for, in seconds.
fn cpu_of(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses; utime, stime, cutime and cstime are the 14th to 17th.
    let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
    let ticks = rest.split_whitespace().skip(11).take(4).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / TICKS)
}
