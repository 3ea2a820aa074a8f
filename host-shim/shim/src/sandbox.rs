//! One pod's machine: from its plan to an agent that serves, and back to nothing.
//!
//! plan → launch → ready → network → CreateSandbox; whatever fails on the way leaves nothing behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kata_cc_agent_protocol::rpc::agent::{
    ARPNeighbors, AddARPNeighborsRequest, CreateSandboxRequest, GetDiagnosticDataRequest, Routes, UpdateInterfaceRequest,
    UpdateRoutesRequest,
};
use kata_cc_policy::initdata::Initdata;
use kata_cc_vmm::config::Config;
use kata_cc_vmm::plan::{CpuLimit, Host, INITDATA_ANNOTATION, InitdataDigest, LaunchPlan, PodRequest, SandboxId, Vsock, plan};
use kata_cc_vmm::run::{Inherited, Qemu, ReadyListener, VmExit, Vmm as _, reserve_vsock, vhost_net};
use kata_cc_vmm::run_dir::RunDir;
use protobuf::MessageField;

use crate::agent::{Agent, within};
use crate::cgroup::PodCgroup;
use crate::error::Error;
use crate::kind::{Kind, pod_limits};
use crate::network::PodNetwork;
use crate::oci::Spec;
use crate::timeline::Timeline;
use crate::volumes::resolver_lines;

/// How much of the guest's console an error quotes when the guest did not come up.
const CONSOLE_QUOTE: usize = 1024;
/// The agent's answer is a kindness at this point, not a condition.
const TIMELINE_GRACE: Duration = Duration::from_secs(1);

/// How often a machine is started. `vhost-device-vsock` 0.3 sometimes stands still from its first packet on (one start in a hundred
/// or so, never later mended), and then nothing in the guest can reach anybody. A guest that refuses its pod does reach the host, so it
/// is not started again.
const STARTS: u32 = 3;

/// A running pod.
pub(crate) struct Sandbox {
    id: SandboxId,
    config: Config,
    dir: RunDir,
    vm: Qemu,
    network: Option<PodNetwork>,
    cgroup: PodCgroup,
    agent: Agent,
    timeline: Timeline,
}

/// Removes the pod's traces unless the start succeeded.
#[derive(Default)]
struct Traces {
    dir: Option<RunDir>,
    network: Option<PodNetwork>,
    cgroup: PodCgroup,
}

impl Traces {
    async fn remove(&mut self) {
        if let Some(network) = self.network.take() {
            network.detach().await;
        }
        self.cgroup.leave();
        if let Some(dir) = self.dir.take()
            && let Err(error) = dir.remove()
        {
            tracing::warn!(%error, "cannot remove the pod's directory");
        }
    }
}

impl Sandbox {
    /// Starts the machine of a pod. `spec` is that of the container which owns it.
    pub(crate) async fn start(config: Config, id: SandboxId, kind: &Kind, spec: &Spec) -> Result<Arc<Self>, Error> {
        let mut left = STARTS;
        loop {
            let mut traces = Traces::default();
            let error = match Self::start_with(config.clone(), id.clone(), kind, spec, &mut traces).await {
                Ok(sandbox) => return Ok(Arc::new(sandbox)),
                Err(error) => error,
            };
            traces.remove().await;
            left -= 1;
            if left == 0 || !matches!(error, Error::Silent(_)) {
                return Err(error);
            }
            tracing::warn!(%error, "nothing in the machine ever reached the host; starting it once more");
        }
    }

    async fn start_with(config: Config, id: SandboxId, kind: &Kind, spec: &Spec, traces: &mut Traces) -> Result<Self, Error> {
        let timeline = Timeline::begin();
        let begin = Instant::now();
        let network = match network_namespace(spec)? {
            Some(netns) => Some(PodNetwork::read(&netns).await?),
            None => None,
        };
        let initdata = spec.annotations.get(INITDATA_ANNOTATION).map(|value| Initdata::from_annotation(value)).transpose()?;
        let reserved = reserve_vsock().map_err(Error::host("cannot reserve a guest address at /dev/vhost-vsock"))?;
        let request = request(&id, kind, spec, network.as_ref(), initdata.as_ref(), reserved.as_ref().map(|(cid, _)| *cid))?;
        let plan = plan(&config, &request)?;
        timeline.record("plan", begin);

        let begin = Instant::now();
        let dir = traces.dir.insert(RunDir::create(&config.run_dir, &id).map_err(Error::host("cannot prepare the pod's directory"))?);
        if let Some(initdata) = &initdata {
            dir.write("initdata.img", &initdata.to_disk_image()).map_err(Error::host("cannot write the initdata disk"))?;
        }
        let ready = match &plan.vsock {
            Vsock::VhostUser { socket, .. } => Some(ReadyListener::bind(socket).map_err(Error::host("cannot listen for the agent"))?),
            Vsock::Kernel { .. } => None,
        };
        let mut inherited = Inherited { vhost_vsock: reserved.map(|(_, fd)| fd), ..Default::default() };
        if let Some(network) = &network {
            traces.network = Some(network.clone());
            inherited.taps = network.attach().await?;
        }
        for _ in plan.nics.iter().filter(|nic| nic.vhost) {
            let device = vhost_net().map_err(Error::host("cannot open /dev/vhost-net"))?;
            inherited.vhost_net.extend(device);
        }
        timeline.record("prepare", begin);

        if config.pod_cgroup {
            traces.cgroup = PodCgroup::join(spec.cgroups_path());
        }
        let begin = Instant::now();
        let vm = Qemu::launch(&plan, inherited, dir).await?;
        timeline.record("vmm", begin);

        let begin = Instant::now();
        let boot = async {
            let agent = connect(&vm, &plan, ready.as_ref(), &config).await?;
            timeline.record("firmware+kernel+agent", begin);
            prepare_guest(&agent, network.as_ref(), &id, spec, &timeline).await?;
            Ok(agent)
        };
        match boot.await {
            Ok(agent) => {
                let dir = traces.dir.take().ok_or_else(|| Error::State("the pod's directory is gone".into()))?;
                let cgroup = std::mem::take(&mut traces.cgroup);
                Ok(Self { id, config, dir, vm, network, cgroup, agent, timeline })
            }
            Err(error) => {
                vm.stop().await;
                Err(error)
            }
        }
    }

    /// The pod.
    pub(crate) fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The pod's agent.
    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The pod's timeline.
    pub(crate) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Waits for the machine's end.
    pub(crate) async fn wait(&self) -> VmExit {
        self.vm.wait().await
    }

    /// Writes the pod's timeline where the configuration asks for it.
    pub(crate) async fn write_timeline(&self) {
        let Some(dir) = &self.config.timeline_dir else { return };
        let request = GetDiagnosticDataRequest { log_type: "timeline".into(), ..Default::default() };
        let answer = within(TIMELINE_GRACE, self.agent.client().get_diagnostic_data(self.agent.context(), &request)).await;
        let agent = answer.and_then(Result::ok).map(|answer| answer.data);
        if let Err(error) = self.timeline.write(dir, self.id.as_str(), agent.as_deref()) {
            tracing::warn!(%error, dir = %dir.display(), "cannot write the timeline");
        }
    }

    /// Ends the machine and removes every trace of it. May be repeated.
    pub(crate) async fn stop(&self) {
        self.vm.stop().await;
        if let Some(network) = &self.network {
            network.detach().await;
        }
        self.cgroup.leave();
        if let Err(error) = self.dir.remove() {
            tracing::warn!(%error, "cannot remove the pod's directory");
        }
    }
}

/// The network namespace of the pod; `None` when it has one without a path (nobody set it up).
fn network_namespace(spec: &Spec) -> Result<Option<PathBuf>, Error> {
    match spec.namespace("network") {
        None => Err(Error::Invalid("a confidential pod cannot use the host's network; remove hostNetwork".into())),
        Some(namespace) if namespace.path.is_empty() => Ok(None),
        Some(namespace) => Ok(Some(namespace.path.clone().into())),
    }
}

fn request(
    id: &SandboxId,
    kind: &Kind,
    spec: &Spec,
    network: Option<&PodNetwork>,
    initdata: Option<&Initdata>,
    vsock_cid: Option<u32>,
) -> Result<PodRequest, Error> {
    let (cpu, memory) = match kind {
        Kind::Single => (spec.cpu_limit().map(|(quota, period)| CpuLimit { quota, period }), spec.memory_limit()),
        _ => pod_limits(&spec.annotations)?,
    };
    Ok(PodRequest {
        sandbox_id: id.clone(),
        annotations: spec.annotations.clone(),
        cpu_limits: cpu.into_iter().collect(),
        memory_limits: memory.into_iter().collect(),
        initdata_digest: initdata.map(|initdata| InitdataDigest::new(initdata.digest().as_bytes())).transpose()?,
        nics: network.map(PodNetwork::macs).unwrap_or_default(),
        host: Host { vsock_cid, vhost_net: std::path::Path::new("/dev/vhost-net").exists() },
    })
}

/// Connects to the agent, or explains why there is none.
async fn connect(vm: &Qemu, plan: &LaunchPlan, ready: Option<&ReadyListener>, config: &Config) -> Result<Agent, Error> {
    let reason = tokio::select! {
        connected = Agent::connect(&plan.vsock, ready, config.timeouts) => return connected,
        end = vm.wait() => format!("the machine stopped before its agent served ({} ended: {})", end.name, end.exit),
        () = tokio::time::sleep(config.timeouts.boot()) => {
            format!("the agent did not serve within {} s (`timeouts.boot_seconds`)", config.timeouts.boot_seconds)
        }
    };
    let console = std::fs::read(&plan.console_log).unwrap_or_default();
    let quote = console.get(console.len().saturating_sub(CONSOLE_QUOTE)..).unwrap_or_default();
    let reason = match quote {
        [] => reason,
        quote => format!("{reason}; the end of the guest's console: {:?}", String::from_utf8_lossy(quote)),
    };
    Err(match plan.vsock {
        Vsock::VhostUser { .. } => Error::Silent(reason),
        Vsock::Kernel { .. } => Error::Guest(reason),
    })
}

async fn prepare_guest(agent: &Agent, network: Option<&PodNetwork>, id: &SandboxId, spec: &Spec, timeline: &Timeline) -> Result<(), Error> {
    if let Some(network) = network {
        let begin = Instant::now();
        for interface in network.interfaces() {
            let request = UpdateInterfaceRequest { interface: MessageField::some(interface), ..Default::default() };
            agent.client().update_interface(agent.context(), &request).await?;
        }
        if !network.routes.is_empty() {
            let routes = Routes { Routes: network.routes.clone(), ..Default::default() };
            let request = UpdateRoutesRequest { routes: MessageField::some(routes), ..Default::default() };
            agent.client().update_routes(agent.context(), &request).await?;
        }
        if !network.neighbours.is_empty() {
            let neighbors = ARPNeighbors { ARPNeighbors: network.neighbours.clone(), ..Default::default() };
            let request = AddARPNeighborsRequest { neighbors: MessageField::some(neighbors), ..Default::default() };
            agent.client().add_arp_neighbors(agent.context(), &request).await?;
        }
        timeline.record("network", begin);
    }
    let begin = Instant::now();
    let request = CreateSandboxRequest {
        hostname: spec.hostname().to_owned(),
        dns: resolver_lines(&spec.mounts),
        sandbox_id: id.to_string(),
        ..Default::default()
    };
    agent.client().create_sandbox(agent.context(), &request).await?;
    timeline.record("create sandbox", begin);
    Ok(())
}
