//! One process that the host may talk to: the first of a container, or one executed in it.

use nix::unistd::Pid;

use super::io::Streams;
use crate::reaper::Exit;

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its number in the guest.
    pub(crate) pid: Pid,
    /// How it ended, once it has.
    pub(crate) exit: Exit,
    /// Its standard streams.
    pub(crate) streams: Streams,
}

impl Process {
    /// Whether it has ended.
    #[must_use]
    pub(crate) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }
}
