//! One process of a container, as containerd sees it: created, running, stopped. The state only moves forward.

use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::{Notify, watch};

use crate::oci;
use crate::stdio::{ProcessId, StdioPaths};

/// The status of a process that was killed before it ran, or whose machine went away.
pub(crate) const STATUS_KILLED: u32 = 137;
/// The status when nobody knows.
pub(crate) const STATUS_UNKNOWN: u32 = 255;

/// The time of day, as containerd writes it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
    Timestamp { seconds, nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(), ..Default::default() }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExitInfo {
    pub(crate) status: u32,
    pub(crate) at: Timestamp,
}

impl ExitInfo {
    /// Ended now.
    pub(crate) fn now(status: u32) -> Self {
        Self { status, at: now() }
    }
}

/// Where a process is in its life.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    Created,
    Starting,
    Running,
    Stopped(ExitInfo),
}

/// One process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its names.
    pub(crate) id: ProcessId,
    /// Its streams, as containerd named them.
    pub(crate) stdio: StdioPaths,
    /// What to execute; the container's first process has it in its specification.
    pub(crate) spec: Option<oci::Process>,
    state: watch::Sender<State>,
    close_stdin: Mutex<Option<Arc<Notify>>>,
}

impl Process {
    /// A process that has not been started.
    pub(crate) fn new(id: ProcessId, stdio: StdioPaths, spec: Option<oci::Process>) -> Self {
        Self { id, stdio, spec, state: watch::Sender::new(State::Created), close_stdin: Mutex::new(None) }
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Moves from created to starting; exactly one caller can.
    pub(crate) fn claim_start(&self) -> bool {
        self.state.send_if_modified(|state| {
            let created = *state == State::Created;
            if created {
                *state = State::Starting;
            }
            created
        })
    }

    /// Started. Does nothing when it has been stopped meanwhile.
    pub(crate) fn running(&self) {
        self.state.send_if_modified(|state| {
            let starting = *state == State::Starting;
            if starting {
                *state = State::Running;
            }
            starting
        });
    }

    /// Ended; exactly one caller is told that it was the first to say so.
    pub(crate) fn stopped(&self, exit: ExitInfo) -> bool {
        self.state.send_if_modified(|state| {
            let first = !matches!(state, State::Stopped(_));
            if first {
                *state = State::Stopped(exit);
            }
            first
        })
    }

    /// Ended without ever having run; tells whether that was so.
    pub(crate) fn stopped_before_start(&self, exit: ExitInfo) -> bool {
        self.state.send_if_modified(|state| {
            let created = *state == State::Created;
            if created {
                *state = State::Stopped(exit);
            }
            created
        })
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> ExitInfo {
        let mut state = self.state.subscribe();
        match state.wait_for(|state| matches!(state, State::Stopped(_))).await.as_deref() {
            Ok(State::Stopped(exit)) => exit.clone(),
            _ => ExitInfo::now(STATUS_UNKNOWN),
        }
    }

    /// Remembers how to end its input.
    pub(crate) fn set_close_stdin(&self, notify: Arc<Notify>) {
        *self.close_stdin.lock().unwrap_or_else(PoisonError::into_inner) = Some(notify);
    }

    /// Ends its input.
    pub(crate) fn close_stdin(&self) {
        if let Some(notify) = &*self.close_stdin.lock().unwrap_or_else(PoisonError::into_inner) {
            // A permit is kept when nobody waits right now.
            notify.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process::new(ProcessId { container: "c".into(), exec: String::new() }, StdioPaths::default(), None)
    }

    #[tokio::test]
    async fn moves_forward_only_and_ends_once() {
        let process = process();
        assert!(process.claim_start() && !process.claim_start());
        process.running();
        assert_eq!(process.state(), State::Running);
        assert!(!process.stopped_before_start(ExitInfo::now(1)));
        assert!(process.stopped(ExitInfo::now(7)) && !process.stopped(ExitInfo::now(8)));
        process.running();
        assert_eq!((process.wait().await.status, process.claim_start()), (7, false));
    }

    #[tokio::test]
    async fn a_process_killed_before_it_ran_cannot_be_started() {
        let process = process();
        assert!(process.stopped_before_start(ExitInfo::now(STATUS_KILLED)));
        assert!(!process.claim_start());
        assert_eq!(process.wait().await.status, STATUS_KILLED);
    }
}
