//! Running other programs: a log for each, signs of life, and Ctrl-C that ends them all.
//!
//! Each program is the leader of a process group. SIGINT and SIGTERM are handled, not blocked: what we start would
//! inherit blocked signals, its own children too, and none of them could be ended by SIGTERM. The group of what runs
//! then gets SIGTERM, and SIGKILL when it does not end or on a second Ctrl-C.
//!
//! Invariants: when a method returns, no process it started is left in that process group; no logged program runs
//! longer than [`LIMIT`].

use std::fs::{self, File};
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long a program may take to end by itself after Ctrl-C. The lab has virtual machines to stop.
const GRACE: Duration = Duration::from_secs(15);
/// Longest that a logged program may run: twice what the slowest takes on two cores. One that hangs is to be named,
/// not to use up all the time there is.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Between signs of life where nobody watches a terminal.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);
/// How much of a log is shown when a program fails.
const TAIL_LINES: usize = 40;

enum Event {
    Exited(std::io::Result<ExitStatus>),
    Interrupted,
}

/// Who is to be told of Ctrl-C; and whether it has happened.
#[derive(Default)]
struct Listener {
    to: Option<Sender<Event>>,
    interrupted: bool,
}

/// Runs programs.
pub(crate) struct Runner {
    logs: PathBuf,
    listener: Arc<Mutex<Listener>>,
}

/// What is shown of a program's output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    /// Nothing but signs of life; all of it goes to the log.
    Logged,
    /// All of it.
    Shown,
}

impl Runner {
    /// SIGINT and SIGTERM are ours from here on.
    pub(crate) fn new(logs: PathBuf) -> Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot handle signals")?;
        let listener = Arc::new(Mutex::new(Listener::default()));
        let told = Arc::clone(&listener);
        thread::spawn(move || {
            for _ in &mut signals {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                let again = std::mem::replace(&mut told.interrupted, true);
                match &told.to {
                    Some(to) => drop(to.send(Event::Interrupted)),
                    // Between two programs: the next one is not started, and what has to be put back is.
                    None if !again => eprintln!("\ninterrupted: ending after this step (again to end at once)"),
                    None => std::process::exit(130),
                }
            }
        });
        Ok(Self { logs, listener })
    }

    /// Runs a program, its output going to a log. Shows signs of life, and the end of the log when it fails.
    pub(crate) fn logged(&self, what: &str, command: &mut Command) -> Result<PathBuf> {
        let log = self.log_of(what);
        let status = self.to_end(what, command, Output::Logged)?;
        if !status.success() {
            eprintln!("{}", tail(&log, TAIL_LINES));
            bail!("{what} failed ({status}); the whole log is {}", log.display());
        }
        Ok(log)
    }

    /// As [`Self::logged`] where failing is an answer: the status, and the log.
    pub(crate) fn tried(&self, what: &str, command: &mut Command) -> Result<(ExitStatus, PathBuf)> {
        let status = self.to_end(what, command, Output::Logged)?;
        Ok((status, self.log_of(what)))
    }

    /// Runs a program whose output is for whoever runs us.
    pub(crate) fn shown(&self, what: &str, command: &mut Command) -> Result<ExitStatus> {
        self.to_end(what, command, Output::Shown)
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).interrupted
    }

    fn log_of(&self, what: &str) -> PathBuf {
        let name: String = what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        self.logs.join(format!("{name}.log"))
    }

    fn to_end(&self, what: &str, command: &mut Command, output: Output) -> Result<ExitStatus> {
        eprintln!("==> {what}");
        let started = Instant::now();
        let log = self.log_of(what);
        if output == Output::Logged {
            let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
            command.stdout(file.try_clone()?).stderr(file);
        }
        let (to, events) = mpsc::channel();
        {
            let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
            if listener.interrupted {
                bail!("interrupted");
            }
            listener.to = Some(to.clone());
        }
        let spawned = command.stdin(Stdio::null()).process_group(0).spawn();
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = spawned.with_context(|| format!("cannot start {program}; `cargo xtask setup` installs what is needed"))?;
        let group = Pid::from_raw(i32::try_from(child.id()).context("a process id")?);
        thread::spawn(move || to.send(Event::Exited(child.wait())));

        let terminal = std::io::stderr().is_terminal() && output == Output::Logged;
        let mut deadline = None;
        let status = loop {
            let wait = match deadline {
                Some(at) => Instant::saturating_duration_since(&at, Instant::now()),
                None if terminal => Duration::from_secs(1),
                None => SIGN_OF_LIFE,
            };
            match events.recv_timeout(wait) {
                Ok(Event::Exited(status)) => break status.with_context(|| format!("cannot wait for {program}"))?,
                Ok(Event::Interrupted) if deadline.is_none() => {
                    eprintln!("\ninterrupted: ending {what} (again to end it at once)");
                    let _ = killpg(group, Signal::SIGTERM);
                    deadline = Some(Instant::now() + GRACE);
                }
                Ok(Event::Interrupted) => deadline = Some(Instant::now()),
                Err(RecvTimeoutError::Timeout) if deadline.is_some() => {
                    let _ = killpg(group, Signal::SIGKILL);
                    deadline = Some(Instant::now() + GRACE);
                }
                Err(RecvTimeoutError::Timeout) if output == Output::Shown => {}
                Err(RecvTimeoutError::Timeout) if started.elapsed() > LIMIT => {
                    eprintln!("    {what}: not done after {}; ending it. Its last words are: {}", elapsed(started), tail(&log, 1).trim());
                    let _ = killpg(group, Signal::SIGTERM);
                    deadline = Some(Instant::now() + GRACE);
                }
                Err(RecvTimeoutError::Timeout) => sign_of_life(what, started, &log, terminal),
                Err(RecvTimeoutError::Disconnected) => bail!("lost track of {program}"),
            }
        };
        // Whatever the leader left behind in its group; mostly there is none.
        let _ = killpg(group, Signal::SIGKILL);
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        listener.to = None;
        if terminal {
            eprint!("\r\x1b[K");
        }
        if listener.interrupted {
            bail!("interrupted");
        }
        eprintln!("    {what}: {} in {}", if status.success() { "done" } else { "failed" }, elapsed(started));
        Ok(status)
    }
}

/// Standard output of a short program; it fails with what the program said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed something that is not UTF-8"))
}

/// Minutes and seconds since then.
pub(crate) fn elapsed(since: Instant) -> String {
    let all = since.elapsed();
    if all < Duration::from_secs(60) {
        format!("{:.1} s", all.as_secs_f64())
    } else {
        format!("{} min {:02} s", all.as_secs() / 60, all.as_secs() % 60)
    }
}

fn sign_of_life(what: &str, started: Instant, log: &Path, terminal: bool) {
    let last: String = tail(log, 1).chars().filter(|c| !c.is_control()).take(100).collect();
    if terminal {
        eprint!("\r\x1b[K    {what}: {} … {last}", elapsed(started));
        let _ = std::io::stderr().flush();
    } else {
        eprintln!("    {what}: {} … {last}", elapsed(started));
    }
}

/// The last lines of a file.
fn tail(path: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = fs::metadata(path)?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024)))?;
        let mut bytes = Vec::new();
        file.take(16 * 1024).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_takes_the_last_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "a\nb\nc\n").unwrap();
        assert_eq!(tail(file.path(), 2), "b\nc");
        assert_eq!(tail(Path::new("/nonexistent"), 2), "");
    }
}
