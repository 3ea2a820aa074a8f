//! The agent's side of the helper: starts it, waits for it, and takes over what it started.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use thiserror::Error;

use super::ContainerId;
use super::helper::{ARGUMENT, CONSOLE_SOCKET, ERROR_FILE, PID_FILE, STATE_DIR, Verb};
use super::io::{ChildEnds, Streams};
use super::process::Process;
use crate::reaper::{Helper, Reaper};

/// The most of a helper's error that is passed on.
const MAX_ERROR: usize = 2048;

/// Why a container operation failed.
#[derive(Debug, Error)]
pub(crate) enum RuntimeError {
    /// The helper could not be run, or its result not be read.
    #[error("cannot {verb} the container: {step}")]
    Io {
        /// Operation.
        verb: &'static str,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The container runtime refused.
    #[error("cannot {verb} the container: {reason}")]
    Refused {
        /// Operation.
        verb: &'static str,
        /// In the runtime's words.
        reason: String,
    },
}

/// Runs containers.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    reaper: Arc<Reaper>,
    /// Starts nothing: the helper is this program, which in a test is the test.
    #[cfg(test)]
    mute: bool,
}

impl Runtime {
    /// A runtime whose processes are reaped by `reaper`.
    #[must_use]
    pub(crate) fn new(reaper: Arc<Reaper>) -> Self {
        Self {
            reaper,
            #[cfg(test)]
            mute: false,
        }
    }

    /// A runtime that fails whatever it is asked for.
    #[cfg(test)]
    pub(crate) fn mute() -> Self {
        Self { reaper: Arc::default(), mute: true }
    }

    /// The reaper that knows this runtime's processes.
    #[must_use]
    pub(crate) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// Starts the first process of a container (`Verb::Create`) or another one (`Verb::Exec`). `directory` is the bundle, or the
    /// directory of the process to execute.
    ///
    /// # Errors
    /// When it could not be started.
    pub(crate) async fn launch(&self, verb: Verb, id: &ContainerId, directory: &Path, terminal: bool) -> Result<Process, RuntimeError> {
        let at = |step| move |source| RuntimeError::Io { verb: verb.name(), step, source };
        fs::create_dir_all(STATE_DIR).map_err(at("making the state directory"))?;
        let (pipes, console, helper) = if terminal {
            let console = UnixListener::bind(directory.join(CONSOLE_SOCKET)).map_err(at("listening for its terminal"))?;
            console.set_nonblocking(true).map_err(at("listening for its terminal"))?;
            (None, Some(console), self.spawn(verb, id, directory, None, true)?)
        } else {
            let (ours, theirs) = Streams::pipes().map_err(at("making its pipes"))?;
            (Some(ours), None, self.spawn(verb, id, directory, Some(theirs), false)?)
        };
        finished(&helper, verb, directory).await?;
        let pid = fs::read_to_string(directory.join(PID_FILE)).map_err(at("reading its process number"))?;
        let pid = pid.trim().parse().map_err(|_| at("reading its process number")(io::ErrorKind::InvalidData.into()))?;
        let exit = self.reaper.claim(Pid::from_raw(pid));
        drop(helper);
        let streams = match (pipes, console) {
            (Some(pipes), _) => pipes,
            (None, Some(console)) => receive_terminal(&console).and_then(Streams::terminal).map_err(at("receiving its terminal"))?,
            (None, None) => return Err(at("setting up its streams")(io::ErrorKind::Unsupported.into())),
        };
        Ok(Process { pid: Pid::from_raw(pid), exit, streams })
    }

    /// Lets a created container begin, or takes away what is left of one.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub(crate) async fn run(&self, verb: Verb, id: &ContainerId, directory: &Path) -> Result<(), RuntimeError> {
        let helper = self.spawn(verb, id, directory, None, false)?;
        finished(&helper, verb, directory).await
    }

    fn spawn(
        &self,
        verb: Verb,
        id: &ContainerId,
        directory: &Path,
        ends: Option<ChildEnds>,
        console: bool,
    ) -> Result<Helper, RuntimeError> {
        #[cfg(test)]
        if self.mute {
            let source = io::ErrorKind::Unsupported.into();
            return Err(RuntimeError::Io { verb: verb.name(), step: "starting a helper", source });
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).arg(verb.name()).arg(id.as_str()).arg(directory).env_clear().current_dir("/");
        match ends {
            Some(ends) => command.stdin(ends.stdin).stdout(ends.stdout).stderr(ends.stderr),
            None => command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()),
        };
        if console {
            command.arg("console");
        }
        // `command` owns the process's ends of the pipes and goes out of scope here: from now on only the process has them.
        self.reaper.spawn(&mut command).map_err(|source| RuntimeError::Io { verb: verb.name(), step: "starting a helper", source })
    }
}

async fn finished(helper: &Helper, verb: Verb, directory: &Path) -> Result<(), RuntimeError> {
    let code = helper.ended().await;
    if code == 0 {
        return Ok(());
    }
    let file = directory.join(ERROR_FILE);
    let reason = match fs::read(&file) {
        Ok(text) => {
            // So that a later operation in the same directory cannot be explained by this one's failure.
            let _ = fs::remove_file(&file);
            String::from_utf8_lossy(text.get(..MAX_ERROR).unwrap_or(&text)).into_owned()
        }
        Err(_) => format!("its helper ended with code {code} and gave no reason"),
    };
    Err(RuntimeError::Refused { verb: verb.name(), reason })
}

/// Receives the controlling side of a terminal, which the process sent before its helper ended.
fn receive_terminal(console: &UnixListener) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let (socket, _) = console.accept()?;
    let mut byte = [0; 16];
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let [fd] = fds[..]
        {
            #[expect(unsafe_code, reason = "a received descriptor arrives as a number")]
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
