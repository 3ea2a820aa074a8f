//! The life of one pod's machine.
//!
//! ```text
//!   launch ─▶ Booting ─▶ Serving ─────────────▶ Gone
//!                └─────▶ Failed (reason kept) ──▲
//! ```
//!
//! One task owns the machine and moves it along; everybody else sees where it is and may ask for its end. A pod is "running" for containerd from
//! its launch on: while the guest boots, the kubelet is busy with images and containers, and the first request that needs the agent waits for it.
//! Should the guest not come up, that request is told why, so the reason outlives the machine until somebody has heard it.

use std::sync::Arc;
use std::time::Duration;

use kata_cc_agent_protocol::rpc::agent::GetDiagnosticDataRequest;
use kata_cc_vmm::request::SandboxId;
use tokio::sync::watch;

use crate::agent::{Agent, within};
use crate::error::Error;
use crate::machine::{Machine, Order};
use crate::timeline::Timeline;

/// The agent's answer is a kindness at this point, not a condition.
const TIMELINE_GRACE: Duration = Duration::from_secs(1);

/// How long a pod that failed to start shows as running, for somebody to ask for its agent and be told why there is none. The kubelet asks as soon
/// as it has pulled the first image; a pod that nobody asks for is then over all the same.
const REASON_GRACE: Duration = Duration::from_secs(120);

/// How often a machine is started. `vhost-device-vsock` 0.3 sometimes stands still from its first packet on (one start in a hundred
/// or so, never later mended), and then nothing in the guest can reach anybody. A guest that refuses its pod does reach the host, so it
/// is not started again.
const STARTS: u32 = 3;

/// Where a machine is in its life. It only moves forward.
#[derive(Clone)]
enum Life {
    /// Launched; the agent does not serve yet.
    Booting,
    /// The agent serves and has been handed the pod.
    Serving(Agent),
    /// It never will; the machine is gone, the reason is not.
    Failed(ttrpc::Error),
    /// Nothing of it is left.
    Gone,
}

/// A pod's machine.
pub(crate) struct Sandbox {
    order: Arc<Order>,
    timeline: Arc<Timeline>,
    life: watch::Receiver<Life>,
    /// True once somebody wants its end.
    end: watch::Sender<bool>,
    /// True once somebody was told why it failed.
    told: watch::Sender<bool>,
}

impl Sandbox {
    /// Launches the machine of a pod, and comes back while it boots.
    pub(crate) async fn launch(order: Order) -> Result<Arc<Self>, Error> {
        let (order, timeline) = (Arc::new(order), Arc::new(Timeline::begin()));
        let machine = Machine::launch(&order, &timeline).await?;
        let (life_sender, life) = watch::channel(Life::Booting);
        let (end, told) = (watch::Sender::new(false), watch::Sender::new(false));
        let keeper = Keeper {
            order: Arc::clone(&order),
            timeline: Arc::clone(&timeline),
            life: life_sender,
            end: end.subscribe(),
            told: told.subscribe(),
        };
        tokio::spawn(keeper.keep(machine));
        Ok(Arc::new(Self { order, timeline, life, end, told }))
    }

    /// The pod.
    pub(crate) fn id(&self) -> &SandboxId {
        &self.order.id
    }

    /// The pod's agent, as soon as it serves.
    ///
    /// # Errors
    /// When it does not come up or is no more. Says why.
    pub(crate) async fn agent(&self) -> Result<Agent, Error> {
        match self.beyond(|life| !matches!(life, Life::Booting)).await {
            Life::Serving(agent) => Ok(agent),
            Life::Failed(reason) => {
                self.told.send_replace(true);
                Err(Error::Agent(reason))
            }
            Life::Booting | Life::Gone => Err(Error::State("the pod's machine is not running any more".into())),
        }
    }

    /// The pod's agent, if it serves now. Does not wait and does not ask for a reason.
    pub(crate) fn agent_now(&self) -> Option<Agent> {
        match &*self.life.borrow() {
            Life::Serving(agent) => Some(agent.clone()),
            _ => None,
        }
    }

    /// Waits until the agent serves, or never will.
    pub(crate) async fn serving(&self) -> Option<Agent> {
        self.beyond(|life| !matches!(life, Life::Booting)).await;
        self.agent_now()
    }

    /// The pod's timeline.
    pub(crate) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Waits until nothing of the machine is left.
    pub(crate) async fn wait(&self) {
        self.beyond(|life| matches!(life, Life::Gone)).await;
    }

    /// Ends the machine and removes every trace of it. May be repeated.
    pub(crate) async fn stop(&self) {
        self.end.send_replace(true);
        self.wait().await;
    }

    /// Writes the pod's timeline where the configuration asks for it.
    pub(crate) async fn write_timeline(&self) {
        let Some(dir) = &self.order.config.timeline_dir else { return };
        let mut entries = None;
        if let Some(agent) = self.agent_now() {
            let request = GetDiagnosticDataRequest { log_type: "timeline".into(), ..Default::default() };
            let answer = within(TIMELINE_GRACE, agent.client().get_diagnostic_data(agent.context(), &request)).await;
            entries = answer.and_then(Result::ok).map(|answer| answer.data);
        }
        if let Err(error) = self.timeline.write(dir, self.id().as_str(), entries.as_deref()) {
            tracing::warn!(%error, dir = %dir.display(), "cannot write the timeline");
        }
    }

    async fn beyond(&self, there: impl FnMut(&Life) -> bool) -> Life {
        // A keeper that is no more has taken the machine with it: its processes die with their handles.
        self.life.clone().wait_for(there).await.map_or(Life::Gone, |life| life.clone())
    }
}

/// Waits until it is true; also when nobody is left who could say so, which is an end too.
async fn wanted(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|flag| *flag).await;
}

/// Owns the machine.
struct Keeper {
    order: Arc<Order>,
    timeline: Arc<Timeline>,
    life: watch::Sender<Life>,
    end: watch::Receiver<bool>,
    told: watch::Receiver<bool>,
}

impl Keeper {
    /// Keeps a machine until its end, and says where it is.
    async fn keep(mut self, machine: Machine) {
        if let Err(error) = self.run(machine).await {
            let reason = ttrpc::Error::from(error);
            tracing::warn!(sandbox = %self.order.id, error = %reason.to_string().escape_debug(), "the pod's machine did not come up");
            self.life.send_replace(Life::Failed(reason));
            tokio::select! {
                () = wanted(&mut self.told) => {}
                () = wanted(&mut self.end) => {}
                () = tokio::time::sleep(REASON_GRACE) => {}
            }
        }
        self.life.send_replace(Life::Gone);
    }

    /// Brings a machine up, anew if need be, and watches it. When this returns it is gone; an error says that it never served.
    async fn run(&mut self, mut machine: Machine) -> Result<(), Error> {
        let mut left = STARTS;
        loop {
            let brought_up = tokio::select! {
                brought_up = machine.bring_up(&self.order, &self.timeline) => Some(brought_up),
                () = wanted(&mut self.end) => None,
            };
            left -= 1;
            match brought_up {
                None => {
                    machine.remove().await;
                    return Ok(());
                }
                Some(Ok(agent)) => {
                    self.watch(machine, agent).await;
                    return Ok(());
                }
                Some(Err(error)) => {
                    machine.remove().await;
                    if left == 0 || !matches!(error, Error::Silent(_)) {
                        return Err(error);
                    }
                    tracing::warn!(%error, "nothing in the machine ever reached the host; starting it once more");
                    machine = Machine::launch(&self.order, &self.timeline).await?;
                }
            }
        }
    }

    async fn watch(&mut self, machine: Machine, agent: Agent) {
        self.life.send_replace(Life::Serving(agent));
        tokio::select! {
            end = machine.wait() => {
                tracing::info!(sandbox = %self.order.id, process = end.name, exit = %end.exit, stopped = ?end.stopped, "the machine ended");
            }
            () = wanted(&mut self.end) => {}
        }
        machine.remove().await;
    }
}
