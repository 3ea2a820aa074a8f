//! PID 1's duty: reap every process that ends, and tell whoever waits for one how it ended.
//!
//! Container processes are started by a short-lived helper (see [`crate::container::helper`]) and become children of PID 1 when
//! the helper ends, so their exits arrive here as those of strangers do. Three rules make that free of races:
//! - processes are started, reaped and signalled under one lock, so that no signal reaches a process that merely reuses a number;
//! - while a helper runs, exits of unknown processes are kept until the helper's result has been read, and then forgotten;
//! - nobody else in the agent waits for a child.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Bound on exits kept for processes nobody has claimed yet.
const MAX_UNCLAIMED: usize = 4096;

/// The exit code as a shell and containerd know it: the code itself, or 128 + the signal.
pub(crate) type ExitCode = i32;

/// A value that appears once the process has ended.
pub(crate) type Exit = watch::Receiver<Option<ExitCode>>;

/// Waits until a process has ended.
pub(crate) async fn ended(exit: &Exit) -> ExitCode {
    let mut exit = exit.clone();
    match exit.wait_for(Option::is_some).await {
        Ok(code) => code.unwrap_or(UNKNOWN),
        // The reaper went away; only at power off.
        Err(_) => UNKNOWN,
    }
}

/// What is told when it cannot be known how a process ended.
const UNKNOWN: ExitCode = 255;

#[derive(Default)]
struct Inner {
    watched: HashMap<i32, watch::Sender<Option<ExitCode>>>,
    unclaimed: HashMap<i32, ExitCode>,
    helpers: usize,
}

/// The reaper. One per agent.
#[derive(Default)]
pub(crate) struct Reaper {
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Reaper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reaper").finish_non_exhaustive()
    }
}

/// A helper that is running, or has ended and whose result is still to be read.
pub(crate) struct Helper {
    exit: Exit,
    reaper: Arc<Reaper>,
}

impl Helper {
    /// Waits for the helper to end.
    pub(crate) async fn ended(&self) -> ExitCode {
        ended(&self.exit).await
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let mut inner = self.reaper.lock();
        inner.helpers = inner.helpers.saturating_sub(1);
        if inner.helpers == 0 {
            inner.unclaimed.clear();
        }
    }
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a helper. Claim what it started before dropping the returned value.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(crate) fn spawn(self: &Arc<Self>, command: &mut Command) -> io::Result<Helper> {
        let mut inner = self.lock();
        let child = command.spawn()?;
        let exit = watch_pid(&mut inner, child.id().cast_signed());
        inner.helpers += 1;
        Ok(Helper { exit, reaper: Arc::clone(self) })
    }

    /// Takes over the exit of a process that a helper started.
    pub(crate) fn claim(&self, pid: Pid) -> Exit {
        let mut inner = self.lock();
        match inner.unclaimed.remove(&pid.as_raw()) {
            Some(code) => watch::channel(Some(code)).1,
            None => watch_pid(&mut inner, pid.as_raw()),
        }
    }

    /// Sends a signal to a process that was claimed, if it has not ended.
    ///
    /// # Errors
    /// `ESRCH` when it has ended, or what `kill(2)` says.
    pub(crate) fn kill(&self, pid: Pid, signal: Signal) -> Result<(), Errno> {
        // Held across kill: while the lock is held nothing is reaped, so the number cannot have a new owner.
        let inner = self.lock();
        if !inner.watched.contains_key(&pid.as_raw()) {
            return Err(Errno::ESRCH);
        }
        kill(pid, signal)
    }

    /// Reaps for ever.
    ///
    /// # Errors
    /// When the signal handler cannot be set up.
    pub(crate) async fn run(self: Arc<Self>) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.reap();
            if children.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// Reaps all that has ended by now. One signal may stand for many exits.
    fn reap(&self) {
        let mut inner = self.lock();
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "cannot reap");
                    return;
                }
            };
            match inner.watched.remove(&pid.as_raw()) {
                Some(sender) => {
                    sender.send_replace(Some(code));
                }
                None if inner.helpers > 0 && inner.unclaimed.len() < MAX_UNCLAIMED => {
                    inner.unclaimed.insert(pid.as_raw(), code);
                }
                None => {}
            }
        }
    }
}

fn watch_pid(inner: &mut Inner, pid: i32) -> Exit {
    let (sender, receiver) = watch::channel(None);
    inner.watched.insert(pid, sender);
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// Starts a helper that leaves a process behind, which ends with code 7 once the pipe `go` is opened for writing.
    fn leave_behind(reaper: &Arc<Reaper>, place: &Path) -> Helper {
        let script = "(: < go; exit 7) & echo $! > pid";
        reaper.spawn(Command::new("sh").args(["-c", script]).current_dir(place)).unwrap()
    }

    fn let_go(place: &Path) {
        drop(fs::OpenOptions::new().write(true).open(place.join("go")).unwrap());
    }

    fn left_behind(place: &Path) -> Pid {
        Pid::from_raw(fs::read_to_string(place.join("pid")).unwrap().trim().parse().unwrap())
    }

    // One test, since a reaper reaps all children of the process it runs in.
    #[tokio::test]
    async fn every_process_is_reaped_once_and_told_to_whom_it_belongs() {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let place = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&place.path().join("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reaper = Arc::new(Reaper::default());
        tokio::spawn(Arc::clone(&reaper).run());

        // Exit codes and signals.
        let failed = reaper.spawn(Command::new("sh").args(["-c", "exit 3"])).unwrap();
        assert_eq!(failed.ended().await, 3);
        let killed = reaper.spawn(Command::new("sh").args(["-c", "kill -9 $$"])).unwrap();
        assert_eq!(killed.ended().await, 137);
        drop((failed, killed));

        // A process that ends after it was claimed.
        let helper = leave_behind(&reaper, place.path());
        assert_eq!(helper.ended().await, 0);
        let pid = left_behind(place.path());
        let exit = reaper.claim(pid);
        drop(helper);
        let_go(place.path());
        assert_eq!(ended(&exit).await, 7);
        // Its number may be another's by now: no signal goes there.
        assert_eq!(reaper.kill(pid, Signal::SIGKILL), Err(Errno::ESRCH));

        // One that ends before it is claimed.
        let helper = leave_behind(&reaper, place.path());
        assert_eq!(helper.ended().await, 0);
        let pid = left_behind(place.path());
        let_go(place.path());
        while !reaper.lock().unclaimed.contains_key(&pid.as_raw()) {
            tokio::task::yield_now().await;
        }
        assert_eq!(ended(&reaper.claim(pid)).await, 7);

        // A stranger that nobody claims is forgotten with the last helper.
        reaper.lock().unclaimed.insert(1, 0);
        drop(helper);
        assert!(reaper.lock().unclaimed.is_empty());
    }
}
