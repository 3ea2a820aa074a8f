//! One machine: launched by a plan, brought up until its agent serves the pod, and removed with every trace of it.
//!
//! plan → launch → agent → network → CreateSandbox → the pod's own container. Whatever fails while launching leaves nothing behind; after that
//! the machine is its owner's ([`crate::sandbox`]) to remove.

use std::path::PathBuf;
use std::time::Instant;

use kata_cc_agent_protocol::rpc::agent::{
    ARPNeighbors, AddARPNeighborsRequest, CreateContainerRequest, CreateSandboxRequest, Routes, StartContainerRequest,
    UpdateInterfaceRequest, UpdateRoutesRequest,
};
use kata_cc_policy::initdata::Initdata;
use kata_cc_vmm::config::Config;
use kata_cc_vmm::plan::{BLOBS_PORT, INITDATA_ANNOTATION, LaunchPlan, Vsock, guest_port_socket, plan};
use kata_cc_vmm::request::{CpuLimit, Host, InitdataDigest, PodRequest, SandboxId};
use kata_cc_vmm::run::{Inherited, Qemu, ReadyListener, Refusing, VmExit, Vmm as _, reserve_vsock, vhost_net};
use kata_cc_vmm::run_dir::RunDir;
use protobuf::MessageField;

use crate::agent::Agent;
use crate::cgroup::PodCgroup;
use crate::error::Error;
use crate::kind::{Kind, pod_limits};
use crate::network::PodNetwork;
use crate::oci::Spec;
use crate::timeline::Timeline;
use crate::volumes::resolver_lines;

/// How much of the guest's console an error quotes when the guest did not come up.
const CONSOLE_QUOTE: usize = 1024;

/// What a pod's machine is made from. Kept, since a machine may have to be started once more.
#[derive(Debug)]
pub(crate) struct Order {
    /// The runtime class.
    pub(crate) config: Config,
    /// The pod.
    pub(crate) id: SandboxId,
    /// What the container is that owns the machine.
    pub(crate) kind: Kind,
    /// Its specification.
    pub(crate) spec: Spec,
    /// The pod's own container, which is made and started with the machine; a container without a pod is not.
    pub(crate) own_container: Option<CreateContainerRequest>,
}

/// A machine that was launched.
#[derive(Debug)]
pub(crate) struct Machine {
    vm: Qemu,
    plan: LaunchPlan,
    ready: Option<ReadyListener>,
    network: Option<PodNetwork>,
    traces: Traces,
}

/// What a machine leaves on the host beside its processes.
#[derive(Debug, Default)]
struct Traces {
    dir: Option<RunDir>,
    network: Option<PodNetwork>,
    cgroup: PodCgroup,
    /// Of a pod whose class names no blob cache.
    no_blobs: Option<Refusing>,
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

impl Machine {
    /// Plans and launches. The guest has not run a single instruction of ours when this returns.
    pub(crate) async fn launch(order: &Order, timeline: &Timeline) -> Result<Self, Error> {
        let mut traces = Traces::default();
        match Self::launch_with(order, timeline, &mut traces).await {
            Ok((vm, plan, ready, network)) => Ok(Self { vm, plan, ready, network, traces }),
            Err(error) => {
                traces.remove().await;
                Err(error)
            }
        }
    }

    async fn launch_with(
        order: &Order,
        timeline: &Timeline,
        traces: &mut Traces,
    ) -> Result<(Qemu, LaunchPlan, Option<ReadyListener>, Option<PodNetwork>), Error> {
        let Order { config, id, spec, .. } = order;
        let begin = Instant::now();
        let network = match network_namespace(spec)? {
            Some(netns) => Some(PodNetwork::read(&netns).await?),
            None => None,
        };
        let initdata = spec.annotations.get(INITDATA_ANNOTATION).map(|value| Initdata::from_annotation(value)).transpose()?;
        let reserved = reserve_vsock().map_err(Error::host("cannot reserve a guest address at /dev/vhost-vsock"))?;
        let request = request(order, network.as_ref(), initdata.as_ref(), reserved.as_ref().map(|(cid, _)| *cid))?;
        let plan = plan(config, &request)?;
        timeline.record("plan", begin);

        let begin = Instant::now();
        let dir = traces.dir.insert(RunDir::create(&config.run_dir, id).map_err(Error::host("cannot prepare the pod's directory"))?);
        if let Some(initdata) = &initdata {
            dir.write("initdata.img", &initdata.to_disk_image()).map_err(Error::host("cannot write the initdata disk"))?;
        }
        let ready = match &plan.vsock {
            Vsock::VhostUser { socket, node_blobs, .. } => {
                match node_blobs {
                    Some(cache) => dir.link(&guest_port_socket(socket, BLOBS_PORT), cache),
                    None => Refusing::bind(socket, BLOBS_PORT).map(|refusing| traces.no_blobs = Some(refusing)),
                }
                .map_err(Error::host("cannot say where the node's blob cache is"))?;
                Some(ReadyListener::bind(socket).map_err(Error::host("cannot listen for the agent"))?)
            }
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
        Ok((vm, plan, ready, network))
    }

    /// Waits for the agent and hands it the pod: network, names, and the pod's own container. Whoever gives up waiting may drop this.
    pub(crate) async fn bring_up(&self, order: &Order, timeline: &Timeline) -> Result<Agent, Error> {
        let begin = Instant::now();
        let agent = self.connect(&order.config).await?;
        timeline.record("firmware+kernel+agent", begin);
        if let Some(network) = &self.network {
            let begin = Instant::now();
            set_network(&agent, network).await?;
            timeline.record("network", begin);
        }
        let begin = Instant::now();
        let request = CreateSandboxRequest {
            hostname: order.spec.hostname().to_owned(),
            dns: resolver_lines(&order.spec.mounts),
            sandbox_id: order.id.to_string(),
            ..Default::default()
        };
        agent.client().create_sandbox(agent.context(), &request).await?;
        if let Some(request) = &order.own_container {
            agent.client().create_container(agent.context(), request).await?;
            let request = StartContainerRequest { container_id: request.container_id.clone(), ..Default::default() };
            agent.client().start_container(agent.context(), &request).await?;
        }
        timeline.record("sandbox", begin);
        Ok(agent)
    }

    /// Connects to the agent, or explains why there is none.
    async fn connect(&self, config: &Config) -> Result<Agent, Error> {
        let reason = tokio::select! {
            connected = Agent::connect(&self.plan.vsock, self.ready.as_ref(), config.timeouts) => return connected,
            end = self.vm.wait() => format!("the machine stopped before its agent served ({} ended: {})", end.name, end.exit),
            () = tokio::time::sleep(config.timeouts.boot()) => {
                format!("the agent did not serve within {} s (`timeouts.boot_seconds`)", config.timeouts.boot_seconds)
            }
        };
        let console = std::fs::read(&self.plan.console_log).unwrap_or_default();
        let quote = console.get(console.len().saturating_sub(CONSOLE_QUOTE)..).unwrap_or_default();
        let reason = match quote {
            [] => reason,
            quote => format!("{reason}; the end of the guest's console: {:?}", String::from_utf8_lossy(quote)),
        };
        Err(match self.plan.vsock {
            Vsock::VhostUser { .. } => Error::Silent(reason),
            Vsock::Kernel { .. } => Error::Guest(reason),
        })
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> VmExit {
        self.vm.wait().await
    }

    /// Ends it and removes every trace of it.
    pub(crate) async fn remove(mut self) {
        self.vm.stop().await;
        self.traces.remove().await;
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
    Order { config, id, kind, spec, .. }: &Order,
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
        id_block: config.read_id_block()?,
        host: Host { vsock_cid, vhost_net: std::path::Path::new("/dev/vhost-net").exists() },
    })
}

async fn set_network(agent: &Agent, network: &PodNetwork) -> Result<(), Error> {
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
    Ok(())
}

#[cfg(test)]
mod tests {
    /// Host and guest name the same ports: the one crate they share has them, and the planner, which does not know that crate, has them again.
    #[test]
    fn host_and_guest_mean_the_same_ports() {
        use kata_cc_agent_protocol as guest;
        use kata_cc_vmm::plan as host;
        assert_eq!((host::AGENT_PORT, host::READY_PORT), (guest::AGENT_VSOCK_PORT, guest::READY_VSOCK_PORT));
        assert_eq!(host::BLOBS_PORT, guest::BLOBS_VSOCK_PORT);
    }
}
