//! Real programs as children of the lab: one-shot commands whose output is checked, and services that live until the lab stops.
//!
//! Invariant: a [`Service`] that is dropped is no longer running, and what it printed is in its log file.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Runs a command to its end and gives its standard output; a failure carries what it said on standard error.
pub(crate) fn run<I, S>(program: impl AsRef<OsStr>, args: I) -> Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    run_with(Command::new(program).args(args))
}

/// As [`run`], for a command that needs an environment or a working directory of its own.
pub(crate) fn run_with(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!(
            "{:?} {} ended with {}:\n{}{}",
            command.get_program(),
            command.get_args().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What says that a service is ready.
#[derive(Debug)]
pub(crate) enum Ready {
    /// A unix socket accepts.
    Unix(PathBuf),
    /// A TCP address accepts.
    Tcp(SocketAddr),
}

impl Ready {
    fn holds(&self) -> bool {
        match self {
            Ready::Unix(path) => UnixStream::connect(path).is_ok(),
            Ready::Tcp(address) => TcpStream::connect_timeout(address, Duration::from_millis(200)).is_ok(),
        }
    }
}

/// A program that runs until the lab ends it.
#[derive(Debug)]
pub(crate) struct Service {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Service {
    /// Starts `command` with its output in `log` and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started, ends early (its last lines are in the error), or is not ready within 20 s.
    pub(crate) fn start(name: &'static str, command: &mut Command, log: PathBuf, ready: &Ready) -> Result<Self> {
        let out = File::options().create(true).append(true).open(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // A process group of its own: Ctrl-C in the terminal reaches the lab alone, which then ends its services in order.
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}: {:?}", command.get_program()))?;
        let mut service = Service { name, child, log };
        let start = Instant::now();
        while !ready.holds() {
            if let Some(status) = service.child.try_wait()? {
                bail!("{name} ended with {status} before it was ready ({ready:?}); its last words:\n{}", service.tail());
            }
            if start.elapsed() > Duration::from_secs(20) {
                bail!("{name} was not ready within 20 s ({ready:?}); its last words:\n{}", service.tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(service)
    }

    /// Its process id in the lab's PID namespace.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once, as a crash would.
    pub(crate) fn crash(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop, and ends it when it does not within 5 s.
    pub(crate) fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
        tracing_line(self.name, "stopped");
    }
}

fn tracing_line(name: &str, what: &str) {
    if std::env::var_os("KATA_CC_LAB_VERBOSE").is_some() {
        eprintln!("    {name}: {what}");
    }
}
