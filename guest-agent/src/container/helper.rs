//! The short-lived helper in which libcontainer runs.
//!
//! libcontainer forks, changes directory and expects to be alone in its process; the agent has threads. So the agent executes
//! itself with [`ARGUMENT`], and what runs then is this: one operation on one container, single-threaded, its standard streams
//! being those of the process to start. It reports by files in the bundle: `pid`, and `error` if it failed. Its exit code says
//! which of the two to read.
//!
//! No log subscriber is set in here: libcontainer logs specifications, and they hold what must not leave the guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;

/// First argument of a helper.
pub(crate) const ARGUMENT: &str = "container-helper";

/// Where libcontainer keeps its state.
pub(crate) const STATE_DIR: &str = "/run/kata-cc/state";

/// File in the bundle with the number of the process that was started.
pub(crate) const PID_FILE: &str = "pid";

/// File in the bundle that says what went wrong.
pub(crate) const ERROR_FILE: &str = "error";

/// File in the working directory with the process to execute.
pub(crate) const PROCESS_FILE: &str = "process.json";

/// The socket in the working directory on which the agent receives the terminal.
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";

/// What a helper can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Make the container, up to the point where its process waits to begin.
    Create,
    /// Let it begin.
    Start,
    /// Run another process in it.
    Exec,
    /// Take away what is left of it.
    Delete,
}

impl Verb {
    const ALL: [Self; 4] = [Self::Create, Self::Start, Self::Exec, Self::Delete];

    /// As an argument.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Exec => "exec",
            Self::Delete => "delete",
        }
    }
}

/// Runs as a helper: `<verb> <container> <working directory> [console]`.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let [verb, id, directory, rest @ ..] = arguments else {
        return ExitCode::from(2);
    };
    let directory = PathBuf::from(directory);
    let Some(verb) = Verb::ALL.into_iter().find(|known| known.name() == verb) else {
        return ExitCode::from(2);
    };
    let console = (rest == ["console"]).then(|| directory.join(CONSOLE_SOCKET));
    match run(verb, id, &directory, console) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If this cannot be written the agent says that the reason is not known.
            let _ = fs::write(directory.join(ERROR_FILE), chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb, id: &str, directory: &Path, console: Option<PathBuf>) -> Result<(), LibcontainerError> {
    let builder = || {
        ContainerBuilder::new(id.to_owned(), SyscallType::default())
            .with_console_socket(console)
            .with_root_path(STATE_DIR)?
            .with_pid_file(Some(directory.join(PID_FILE)))?
            .validate_id()
    };
    let load = || Container::load(Path::new(STATE_DIR).join(id));
    match verb {
        Verb::Create => {
            builder()?.as_init(directory).with_systemd(false).with_detach(true).build()?;
        }
        Verb::Start => load()?.start()?,
        Verb::Exec => {
            builder()?.as_tenant().with_process(Some(directory.join(PROCESS_FILE))).with_detach(true).build()?;
        }
        Verb::Delete => load()?.delete(true)?,
    }
    Ok(())
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
