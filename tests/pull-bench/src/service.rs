//! A program that runs beside a measurement. Dropped, it is no longer running.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest start.
const START: Duration = Duration::from_secs(20);
/// Longest end after SIGTERM.
const END: Duration = Duration::from_secs(5);

/// The program.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
    name: &'static str,
}

impl Service {
    /// Starts it, its output going to `log`, and waits until it is ready.
    pub(crate) fn start(name: &'static str, command: &mut Command, log: PathBuf, ready: impl Fn() -> bool) -> Result<Self> {
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        // A group of its own: Ctrl-C reaches the bench alone, which ends its services itself.
        let child = command.process_group(0).spawn().with_context(|| format!("cannot start {name}"))?;
        let mut service = Self { child, name };
        let start = Instant::now();
        while !ready() {
            if service.child.try_wait()?.is_some() || start.elapsed() > START {
                bail!("{name} did not start: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(service)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let start = Instant::now();
        while start.elapsed() < END {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                _ => return,
            }
        }
        eprintln!("{} did not end on SIGTERM within {END:?}; killing it", self.name);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
