//! A supervised child process: dies with us, is recorded for the clean-up after a crash, keeps its last words.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use crate::run_dir::RunDir;

/// How much of a process's standard error is kept to explain its end.
const LAST_WORDS: usize = 4096;
/// Longest line passed on to our log.
const MAX_LINE: u64 = 4096;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Its status, when the system told.
    pub status: Option<ExitStatus>,
    /// The end of its standard error.
    pub last_words: String,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}")?,
            None => f.write_str("unknown status")?,
        }
        let words = self.last_words.trim();
        if words.is_empty() { Ok(()) } else { write!(f, ": {}", words.escape_debug()) }
    }
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    pid: u32,
    exit: watch::Receiver<Option<Exit>>,
    kill: mpsc::Sender<()>,
}

impl Process {
    /// Starts `program` in a session of its own, with `inherited` descriptors under the given numbers.
    ///
    /// Must be called from a thread that lives as long as we do: the kernel ends the child when the thread that made it is gone.
    pub fn spawn(
        name: &'static str,
        program: &Path,
        arguments: Vec<OsString>,
        inherited: Vec<(OwnedFd, RawFd)>,
        dir: &RunDir,
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).current_dir("/");
        prepare(&mut command, inherited.iter().map(|(fd, number)| (fd.as_raw_fd(), *number)).collect())?;
        let mut child =
            command.spawn().map_err(|error| io::Error::new(error.kind(), format!("cannot start {}: {error}", program.display())))?;
        drop(inherited);
        let pid = child.id().ok_or_else(|| io::Error::other(format!("{} ended before it could be recorded", program.display())))?;
        dir.record_process(name, pid)?;
        let words = Arc::new(Mutex::new(String::new()));
        let reader = child.stderr.take().map(|stderr| tokio::spawn(keep_last_words(name, stderr, Arc::clone(&words))));
        let (exit_sender, exit) = watch::channel(None);
        let (kill, kill_receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let status = reap(child, kill_receiver).await;
            if let Some(reader) = reader {
                // The pipe closes with the process (it has no children: the seccomp filter and its nature forbid them).
                let _ = reader.await;
            }
            let last_words = words.lock().unwrap_or_else(PoisonError::into_inner).clone();
            exit_sender.send_replace(Some(Exit { status, last_words }));
        });
        Ok(Self { name, pid, exit, kill })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its name in logs and records.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Waits for its end. May be called by any number of waiters, before or after.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_else(|| Exit { status: None, last_words: String::new() }),
            Err(_) => Exit { status: None, last_words: String::new() },
        }
    }

    /// Kills it; [`Process::wait`] tells when it is gone.
    pub fn kill(&self) {
        // Full means a kill is already on its way.
        let _ = self.kill.try_send(());
    }
}

async fn reap(mut child: Child, mut kill: mpsc::Receiver<()>) -> Option<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status.ok(),
        // Asked to, or our handle was dropped.
        _ = kill.recv() => {}
    }
    let _ = child.start_kill();
    child.wait().await.ok()
}

async fn keep_last_words(name: &'static str, stderr: impl AsyncRead + Unpin, words: Arc<Mutex<String>>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!((&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await, Ok(1..)) {
        let text = String::from_utf8_lossy(&line);
        tracing::warn!(process = name, line = %text.trim_end().escape_debug(), "standard error");
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.push_str(&text);
        if words.len() > LAST_WORDS {
            let cut = (words.len() - LAST_WORDS..words.len()).find(|&at| words.is_char_boundary(at)).unwrap_or(words.len());
            words.drain(..cut);
        }
        line.clear();
    }
}

#[expect(unsafe_code, reason = "a new session, the parent-death signal and descriptor numbers can only be set between fork and exec")]
fn prepare(command: &mut Command, inherited: Vec<(RawFd, RawFd)>) -> io::Result<()> {
    if let Some((fd, number)) = inherited.iter().find(|(fd, number)| fd >= number || *fd >= crate::qemu::FIRST_FD) {
        return Err(io::Error::other(format!(
            "descriptor {fd} would be overwritten while passing descriptor {number}; too many open files"
        )));
    }
    let parent = nix::unistd::getpid();
    let setup = move || -> io::Result<()> {
        nix::unistd::setsid()?;
        // SAFETY: prctl with PR_SET_PDEATHSIG takes a signal number and touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before the signal was armed.
        if nix::unistd::getppid() != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for &(fd, number) in &inherited {
            // SAFETY: both are plain numbers; `fd` is open (owned by the caller until spawn returns), `number` is free to be replaced. The copy
            // has no close-on-exec flag, which is the purpose.
            if unsafe { libc::dup2(fd, number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs in the forked child and calls only async-signal-safe functions (setsid, prctl, getppid, dup2) and allocates nothing.
    unsafe { command.pre_exec(setup) };
    Ok(())
}
