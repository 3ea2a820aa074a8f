//! Containers of the pod: what each is, what state it is in, and who may touch it.
//!
//! There is no lock around all containers while anything slow happens: [`Containers`] maps names to [`Container`]s and is held
//! for a look-up only, each container has a lock of its own for steps that must not overlap (create, start, remove), and
//! signals, streams and waiting take no lock of that kind at all. A stuck container therefore never blocks another one's end.

pub(crate) mod cgroup;
pub(crate) mod helper;
pub(crate) mod io;
pub(crate) mod oom;
pub(crate) mod process;
pub(crate) mod rootfs;
pub(crate) mod runtime;
pub(crate) mod spec;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use thiserror::Error;
use tokio::sync::watch;

use crate::measure::Identity;
use crate::reaper::{Exit, ExitCode};
use crate::sealed::Opened;
use process::Process;

/// Bound on containers of a pod, sandbox included.
const MAX_CONTAINERS: usize = 256;

/// Bound on names of containers in the life of a pod. A container that is restarted every five minutes has that many in half a year.
const MAX_NAMES: usize = 1 << 16;

/// Bound on processes the host may have started in one container and not yet seen the end of.
const MAX_PROCESSES: usize = 256;

/// Longest name of a container or process. The names of containerd have 64 characters.
const MAX_ID: usize = 128;

/// Where bundles are kept: `<id>/config.json` and what helpers report.
pub(crate) const BUNDLE_DIR: &str = "/run/kata-cc/bundles";

/// What is in [`kata_cc_agent_protocol::CONTAINER_DIR`] beside containers: images, volumes, copied files. A container of such a name
/// would mount its root file system among them, and its removal would delete them.
const TAKEN: [&str; 3] = ["image", "sandbox", "shared"];

/// A container's or process's name, fit to be part of a path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ContainerId(String);

/// Why a name was refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "not a name for a container or process: expected 1 to {MAX_ID} letters, digits, '_', '-' or '.', beginning with a letter or digit, other than {}",
    TAKEN.join(", ")
)]
pub(crate) struct InvalidId;

impl FromStr for ContainerId {
    type Err = InvalidId;

    fn from_str(id: &str) -> Result<Self, InvalidId> {
        let fits = id.len() <= MAX_ID
            && id.starts_with(|c: char| c.is_ascii_alphanumeric())
            && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
            && !TAKEN.contains(&id);
        fits.then(|| Self(id.to_owned())).ok_or(InvalidId)
    }
}

impl ContainerId {
    /// The name.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Where this container's bundle is.
    #[must_use]
    pub(crate) fn bundle(&self) -> PathBuf {
        PathBuf::from(BUNDLE_DIR).join(&self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a container or a process of one cannot be used as asked.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum ContainerError {
    /// Bad name.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// There is one of that name.
    #[error("container {0} exists already")]
    Exists(ContainerId),
    /// There is none of that name.
    #[error("no container {0}")]
    NotFound(ContainerId),
    /// The container has no such process.
    #[error("container {0} has no process {1:?}")]
    NoProcess(ContainerId, String),
    /// The container has such a process.
    #[error("container {0} has a process {1:?} already")]
    ProcessExists(ContainerId, String),
    /// Not in the state for it.
    #[error("container {id} is {found}, expected {expected}")]
    State {
        /// Which.
        id: ContainerId,
        /// Its state.
        found: &'static str,
        /// The state needed.
        expected: &'static str,
    },
    /// The name belonged to another one.
    #[error("there has been a container {0} in this pod: expected a name that was not used before")]
    Used(ContainerId),
    /// A bound was reached.
    #[error("no more than {0} of these in one pod")]
    TooMany(usize),
}

/// How far a container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its name is taken; image and process are being prepared.
    Creating,
    /// The process waits for the word to begin.
    Created,
    /// The process was told to begin. It may have ended since.
    Started,
    /// Telling it to begin failed, or the policy no longer wanted it. What it may have become was killed.
    Failed,
    /// Being taken down; what failed of that can be tried again.
    Ending,
    /// Gone, and its name with it.
    Removed,
}

impl State {
    /// In words.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Started => "started",
            Self::Failed => "not started, since its start failed",
            Self::Ending => "being removed",
            Self::Removed => "removed",
        }
    }
}

/// What a container is made of.
#[derive(Debug)]
pub(crate) enum Kind {
    /// The pod's own: the guest itself holds the namespaces, so there is nothing to run. Ends when it is told to.
    Sandbox {
        /// Set once, by a signal or removal.
        end: watch::Sender<Option<ExitCode>>,
    },
    /// One with an image and processes.
    Workload,
}

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its name.
    pub(crate) id: ContainerId,
    /// What it is made of.
    pub(crate) kind: Kind,
    /// Held during steps that must not overlap.
    pub(crate) steps: tokio::sync::Mutex<State>,
    /// The file with its last words, if it has one.
    pub(crate) termination_log: OnceLock<PathBuf>,
    /// What the event log calls it, once its image is there.
    pub(crate) identity: OnceLock<Identity>,
    /// Its sealed secrets, once they are open.
    pub(crate) secrets: OnceLock<Opened>,
    processes: Mutex<HashMap<String, Arc<Process>>>,
    /// The name the host gave the first process, besides the empty one and the container's.
    first: String,
}

impl Container {
    /// A container of which nothing exists yet but the name.
    #[must_use]
    pub(crate) fn new(id: ContainerId, kind: Kind, first: &str) -> Self {
        Self {
            id,
            kind,
            steps: tokio::sync::Mutex::new(State::Creating),
            termination_log: OnceLock::new(),
            identity: OnceLock::new(),
            secrets: OnceLock::new(),
            processes: Mutex::default(),
            first: first.to_owned(),
        }
    }

    fn processes(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `exec_id` means the container's first process.
    #[must_use]
    pub(crate) fn is_first(&self, exec_id: &str) -> bool {
        exec_id.is_empty() || exec_id == self.id.as_str() || exec_id == self.first
    }

    fn key<'a>(&self, exec_id: &'a str) -> &'a str {
        if self.is_first(exec_id) { "" } else { exec_id }
    }

    /// A process by the name the host gave it.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>, ContainerError> {
        self.processes().get(self.key(exec_id)).cloned().ok_or_else(|| ContainerError::NoProcess(self.id.clone(), exec_id.to_owned()))
    }

    /// Adds a process. One that has ended gives its name free.
    ///
    /// # Errors
    /// When the name is in use or there are too many.
    pub(crate) fn add_process(&self, exec_id: &str, process: Arc<Process>) -> Result<(), ContainerError> {
        let mut processes = self.processes();
        if processes.len() >= MAX_PROCESSES {
            processes.retain(|name, process| name.is_empty() || !process.has_ended());
        }
        if processes.len() >= MAX_PROCESSES {
            return Err(ContainerError::TooMany(MAX_PROCESSES));
        }
        match processes.entry(self.key(exec_id).to_owned()) {
            Entry::Occupied(old) if !old.get().has_ended() => Err(ContainerError::ProcessExists(self.id.clone(), exec_id.to_owned())),
            Entry::Occupied(mut old) => {
                old.insert(process);
                Ok(())
            }
            Entry::Vacant(free) => {
                free.insert(process);
                Ok(())
            }
        }
    }

    /// Whether a process of that name is there and has not ended.
    #[must_use]
    pub(crate) fn has_live_process(&self, exec_id: &str) -> bool {
        self.processes().get(self.key(exec_id)).is_some_and(|process| !process.has_ended())
    }

    /// The exit of a process; for the sandbox container that of its placeholder.
    ///
    /// # Errors
    /// When there is no such process.
    pub(crate) fn exit(&self, exec_id: &str) -> Result<Exit, ContainerError> {
        match &self.kind {
            Kind::Sandbox { end } if self.is_first(exec_id) => Ok(end.subscribe()),
            Kind::Sandbox { .. } => Err(ContainerError::NoProcess(self.id.clone(), exec_id.to_owned())),
            Kind::Workload => Ok(self.process(exec_id)?.exit.clone()),
        }
    }
}

/// All containers of the pod.
///
/// **Invariant:** a name means one container for the life of the pod. The policy answers by name, and what it has answered may be
/// carried out a moment later; were a name given twice in between, the answer for the one would be carried out on the other.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    map: HashMap<ContainerId, Arc<Container>>,
    used: HashSet<ContainerId>,
}

impl Containers {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name, so that a second request for it fails while the first is under way (AC-27), and ever after.
    ///
    /// # Errors
    /// When it is taken, was taken, or there are too many.
    pub(crate) fn reserve(&self, container: Container) -> Result<Arc<Container>, ContainerError> {
        let Inner { map, used } = &mut *self.inner();
        if map.contains_key(&container.id) {
            return Err(ContainerError::Exists(container.id));
        }
        if used.contains(&container.id) {
            return Err(ContainerError::Used(container.id));
        }
        if map.len() >= MAX_CONTAINERS {
            return Err(ContainerError::TooMany(MAX_CONTAINERS));
        }
        if used.len() >= MAX_NAMES {
            return Err(ContainerError::TooMany(MAX_NAMES));
        }
        let (id, container) = (container.id.clone(), Arc::new(container));
        used.insert(id.clone());
        map.insert(id, Arc::clone(&container));
        Ok(container)
    }

    /// A container by name.
    ///
    /// # Errors
    /// When the name is not one, or there is no such container.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        let id: ContainerId = id.parse()?;
        self.inner().map.get(&id).cloned().ok_or(ContainerError::NotFound(id))
    }

    /// Takes a container that is gone out.
    pub(crate) fn forget(&self, id: &ContainerId) {
        self.inner().map.remove(id);
    }

    /// All of them.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        self.inner().map.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str) -> Container {
        let end = watch::channel(None).0;
        Container::new(id.parse().unwrap(), Kind::Sandbox { end }, "")
    }

    #[test]
    fn refuses_names_that_could_be_paths() {
        for id in ["", ".", "..", "a/b", "../a", "a\0b", "-a", ".a", "a b", &"a".repeat(129)] {
            assert_eq!(id.parse::<ContainerId>(), Err(InvalidId), "{id:?}");
        }
        assert_eq!("a.B-1_c".parse::<ContainerId>().unwrap().as_str(), "a.B-1_c");
    }

    #[test]
    fn refuses_names_of_the_agents_own_directories() {
        for id in TAKEN {
            assert_eq!(id.parse::<ContainerId>(), Err(InvalidId), "{id:?}");
        }
        // The list is what the agent has there.
        for path in [crate::image::STORE, spec::SANDBOX_STORAGE_DIR, kata_cc_agent_protocol::SHARED_DIR] {
            let rest = std::path::Path::new(path).strip_prefix(kata_cc_agent_protocol::CONTAINER_DIR).unwrap();
            assert!(TAKEN.iter().any(|name| rest.starts_with(name)), "{path}");
        }
        assert!("images".parse::<ContainerId>().is_ok());
    }

    #[test]
    fn refuses_a_second_container_of_the_same_name() {
        // AC-27
        let containers = Containers::default();
        containers.reserve(sandbox("a")).unwrap();
        assert!(matches!(containers.reserve(sandbox("a")), Err(ContainerError::Exists(_))));
    }

    #[test]
    fn a_name_is_given_once_in_the_life_of_the_pod() {
        // AC-27: what the policy said of the first must not be carried out on a second.
        let containers = Containers::default();
        containers.reserve(sandbox("a")).unwrap();
        containers.forget(&"a".parse().unwrap());
        assert!(matches!(containers.get("a"), Err(ContainerError::NotFound(_))));
        assert!(matches!(containers.reserve(sandbox("a")), Err(ContainerError::Used(_))));
        containers.reserve(sandbox("b")).unwrap();
    }

    #[test]
    fn refuses_more_containers_than_a_pod_may_have() {
        let containers = Containers::default();
        for index in 0..MAX_CONTAINERS {
            containers.reserve(sandbox(&format!("c{index}"))).unwrap();
        }
        assert_eq!(containers.reserve(sandbox("one-more")).unwrap_err(), ContainerError::TooMany(MAX_CONTAINERS));
    }

    #[test]
    fn the_sandbox_has_one_process_that_can_be_waited_for() {
        let sandbox = sandbox("s");
        assert!(sandbox.exit("").is_ok() && sandbox.exit("s").is_ok());
        assert!(matches!(sandbox.exit("other"), Err(ContainerError::NoProcess(..))));
    }
}
