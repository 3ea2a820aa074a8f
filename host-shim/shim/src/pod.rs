//! The containers of one pod, and the machine they share.
//!
//! Locks are held for look-ups only; a request that waits for the guest never holds one, so killing a container never waits for another (AC-20).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use kata_cc_agent_protocol::rpc::agent::{GetDiagnosticDataRequest, GetOOMEventRequest, WaitProcessRequest};
use tokio::sync::Notify;

use nix::fcntl::OFlag;

use crate::agent::{Agent, within};
use crate::error::Error;
use crate::events::Events;
use crate::host_file;
use crate::kind::Kind;
use crate::process::{ExitInfo, Process, STATUS_KILLED, STATUS_UNKNOWN};
use crate::sandbox::Sandbox;
use crate::stdio::Stdio;

/// One container.
pub(crate) struct Container {
    /// Its name.
    pub(crate) id: String,
    /// Its bundle.
    pub(crate) bundle: PathBuf,
    /// Its part of the pod.
    pub(crate) kind: Kind,
    /// Its machine.
    pub(crate) sandbox: Arc<Sandbox>,
    /// Its first process.
    pub(crate) init: Arc<Process>,
    /// Where Kubernetes looks for its last words, on the host.
    pub(crate) last_words: Option<PathBuf>,
    paused: Mutex<bool>,
    execs: Mutex<BTreeMap<String, Arc<Process>>>,
}

impl Container {
    pub(crate) fn new(id: String, bundle: PathBuf, kind: Kind, sandbox: Arc<Sandbox>, init: Process, last_words: Option<PathBuf>) -> Self {
        Self { id, bundle, kind, sandbox, init: Arc::new(init), last_words, paused: Mutex::new(false), execs: Mutex::new(BTreeMap::new()) }
    }

    /// One of its processes; the first has the empty name.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>, Error> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.get(exec).cloned().ok_or_else(|| Error::NotFound(format!("process {exec} of container {}", self.id)))
    }

    /// Adds a process to be executed.
    pub(crate) fn add_exec(&self, process: Process) -> Result<(), Error> {
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        let name = process.id.exec.clone();
        if execs.contains_key(&name) {
            return Err(Error::Exists(format!("process {name} of container {}", self.id)));
        }
        execs.insert(name, Arc::new(process));
        Ok(())
    }

    /// Forgets a process.
    pub(crate) fn remove_exec(&self, exec: &str) {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(exec);
    }

    /// Every process of it.
    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.values().cloned().chain([Arc::clone(&self.init)]).collect()
    }

    /// Whether it is held.
    pub(crate) fn is_paused(&self) -> bool {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that it is held, or not any more.
    pub(crate) fn set_paused(&self, paused: bool) {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = paused;
    }
}

/// Least time between two memory shortages of one pod.
const OOM_PACE: Duration = Duration::from_secs(1);
/// What Kubernetes shows of a container's last words at most.
const MAX_LAST_WORDS: usize = 4096;
/// The exit waits for them.
const LAST_WORDS_GRACE: Duration = Duration::from_secs(1);

/// Brings a container's last words to where Kubernetes looks for them. The guest's text goes into that one file, bounded, and nowhere else.
async fn last_words(container: &Container, path: &Path) {
    let Some(agent) = container.sandbox.agent_now() else { return };
    let request = GetDiagnosticDataRequest { log_type: "termination_log".into(), container_id: container.id.clone(), ..Default::default() };
    let Some(Ok(answer)) = within(LAST_WORDS_GRACE, agent.client().get_diagnostic_data(agent.context(), &request)).await else { return };
    let words = answer.data.as_bytes();
    let words = words.get(..words.len().min(MAX_LAST_WORDS)).unwrap_or_default();
    let written = host_file::open(path, OFlag::O_WRONLY | OFlag::O_TRUNC).and_then(|mut file| file.write_all(words));
    if let Err(error) = written {
        tracing::warn!(%error, path = %path.display(), "cannot write the container's last words");
    }
}

/// Waits for the end of a process, or of the machine.
async fn ended(container: &Container, process: &Process, agent: &Agent) -> ExitInfo {
    let request = WaitProcessRequest { container_id: process.id.container.clone(), exec_id: process.id.exec.clone(), ..Default::default() };
    let status = tokio::select! {
        answer = agent.client().wait_process(agent.waiting_context(), &request) => match answer {
            // A wait status is eight bits; the guest's number is cut to what containerd can show.
            Ok(answer) => u32::from_ne_bytes(answer.status.to_ne_bytes()) & 0xff,
            Err(error) => {
                tracing::warn!(%error, container = %process.id.container, exec = %process.id.exec, "cannot wait for the process");
                STATUS_UNKNOWN
            }
        },
        () = container.sandbox.wait() => STATUS_KILLED,
    };
    ExitInfo::now(status)
}

/// The pod of this shim.
pub(crate) struct Pod {
    /// Where events go.
    pub(crate) events: Events,
    /// Ends the shim.
    pub(crate) exit: Notify,
    sandbox: tokio::sync::Mutex<Option<Arc<Sandbox>>>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
}

impl Pod {
    pub(crate) fn new(events: Events) -> Self {
        Self { events, exit: Notify::new(), sandbox: tokio::sync::Mutex::new(None), containers: Mutex::new(BTreeMap::new()) }
    }

    /// One of its containers.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.get(id).cloned().ok_or_else(|| Error::NotFound(format!("container {id}")))
    }

    /// Every container.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Adds a container; its name must be new.
    pub(crate) fn add(&self, container: Container) -> Result<Arc<Container>, Error> {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        if containers.contains_key(&container.id) {
            return Err(Error::Exists(format!("container {}", container.id)));
        }
        let container = Arc::new(container);
        containers.insert(container.id.clone(), Arc::clone(&container));
        Ok(container)
    }

    /// Forgets a container.
    pub(crate) fn remove(&self, id: &str) {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The machine, for a container that joins it.
    pub(crate) async fn sandbox(&self) -> Result<Arc<Sandbox>, Error> {
        self.sandbox.lock().await.clone().ok_or_else(|| Error::State("the pod's machine is not running".into()))
    }

    /// The machine's place. Locked while it is being started, so that there is never a second one.
    pub(crate) async fn sandbox_place(&self) -> tokio::sync::MutexGuard<'_, Option<Arc<Sandbox>>> {
        self.sandbox.lock().await
    }

    /// Ends the machine, when there is one.
    pub(crate) async fn stop_sandbox(&self) {
        let sandbox = self.sandbox.lock().await.take();
        if let Some(sandbox) = sandbox {
            sandbox.stop().await;
        }
    }

    /// Watches a machine that has just been started: its end ends every process, and its memory shortages are passed on.
    pub(crate) fn watch(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let (pod, machine) = (Arc::clone(self), Arc::clone(sandbox));
        tokio::spawn(async move {
            machine.wait().await;
            pod.machine_ended().await;
        });
        let (pod, machine) = (Arc::clone(self), Arc::clone(sandbox));
        tokio::spawn(async move {
            let Some(agent) = machine.serving().await else { return };
            let request = GetOOMEventRequest::default();
            loop {
                let event = tokio::select! {
                    event = agent.client().get_oom_event(agent.waiting_context(), &request) => event,
                    () = machine.wait() => return,
                };
                let Ok(event) = event else { return };
                // The guest names a container; only one of this pod's counts (AC-37).
                if pod.container(&event.container_id).is_ok() {
                    pod.events.publish(TaskOOM { container_id: event.container_id, ..Default::default() });
                }
                // The guest sets the pace of this loop, and containerd works for each turn: no more than one a second is taken (AC-38).
                tokio::select! {
                    () = tokio::time::sleep(OOM_PACE) => {}
                    () = machine.wait() => return,
                }
            }
        });
    }

    async fn machine_ended(&self) {
        for container in self.containers() {
            for process in container.processes() {
                // Processes in flight are ended by whoever waits for them, with their streams; those not started have nobody else.
                if process.stopped_before_start(ExitInfo::now(STATUS_KILLED)) {
                    self.publish_exit(&process).await;
                }
            }
        }
    }

    /// Carries the streams of a started process, waits for its end, then for the rest of its output, then tells containerd.
    pub(crate) fn reap(self: &Arc<Self>, container: &Arc<Container>, process: &Arc<Process>, agent: Agent, stdio: Stdio) {
        let pumps = stdio.start(&agent, &process.id);
        process.set_close_stdin(pumps.close_stdin());
        let (pod, container, process) = (Arc::clone(self), Arc::clone(container), Arc::clone(process));
        tokio::spawn(async move {
            let exit = ended(&container, &process, &agent).await;
            pumps.drain().await;
            if process.id.exec.is_empty()
                && let Some(path) = &container.last_words
            {
                last_words(&container, path).await;
            }
            if process.stopped(exit) {
                pod.publish_exit(&process).await;
            }
        });
    }

    /// Waits for the end of the pod's own container, which began with the machine, then tells containerd.
    pub(crate) fn reap_own(self: &Arc<Self>, container: &Arc<Container>) {
        let (pod, container) = (Arc::clone(self), Arc::clone(container));
        tokio::spawn(async move {
            let exit = match container.sandbox.serving().await {
                Some(agent) => ended(&container, &container.init, &agent).await,
                None => {
                    container.sandbox.wait().await;
                    ExitInfo::now(STATUS_KILLED)
                }
            };
            if container.init.stopped(exit) {
                pod.publish_exit(&container.init).await;
            }
        });
    }

    /// Tells containerd of the end of a process.
    pub(crate) async fn publish_exit(&self, process: &Process) {
        let exit = process.wait().await;
        let name = if process.id.exec.is_empty() { &process.id.container } else { &process.id.exec };
        let event = TaskExit {
            container_id: process.id.container.clone(),
            id: name.clone(),
            pid: std::process::id(),
            exit_status: exit.status,
            exited_at: Some(exit.at).into(),
            ..Default::default()
        };
        self.events.publish(event);
    }
}
