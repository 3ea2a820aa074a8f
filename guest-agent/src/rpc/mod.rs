//! The agent's RPC interface: every method, with the policy in front of it.
//!
//! [`service!`] writes one method for each line of its table: the request goes through the gate and comes out as `Allowed`, which
//! is what the handlers in the sibling files take. A handler cannot be reached otherwise, and a new one cannot forget to ask.
//! Handlers take what they need from [`Guest`], and know nothing of ttRPC.
//!
//! The two methods of `grpc.Health` are the only ones that ask no policy: they tell whether the agent serves, and its version.

mod container;
mod health;
mod observe;
mod process;
mod sandbox;

use std::sync::Arc;

use async_trait::async_trait;
use kata_cc_agent_protocol::rpc::agent_ttrpc::{AgentService, create_agent_service};
use kata_cc_agent_protocol::rpc::health_ttrpc::create_health;
use kata_cc_agent_protocol::rpc::ttrpc::r#async::transport::Socket;
use kata_cc_agent_protocol::rpc::ttrpc::r#async::{Server, TtrpcContext};
use kata_cc_agent_protocol::rpc::ttrpc::{self, Code};
use kata_cc_agent_protocol::rpc::{Empty, agent, csi, types};
use kata_cc_agent_protocol::{AGENT_VSOCK_PORT, READY_VSOCK_PORT};
use kata_cc_policy::{Allowed, PolicyRequest};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use crate::copy_file::CopyFile;
use crate::errors::RpcError;
use crate::guest::Guest;
use crate::vsock;

/// The agent as its peers see it: a guest, or the reason why there is none.
#[derive(Debug)]
pub(crate) enum Service {
    /// Serves.
    Ready(Arc<Guest>),
    /// Answers every request with why this guest will not run a pod.
    Refused {
        /// Why. Only what the host may know.
        reason: String,
        /// Told when somebody has heard it.
        told: Notify,
    },
}

impl Service {
    fn guest(&self) -> Result<&Arc<Guest>, ttrpc::Error> {
        match self {
            Self::Ready(guest) => Ok(guest),
            Self::Refused { reason, told } => {
                told.notify_one();
                Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                    Code::FAILED_PRECONDITION,
                    format!("the guest refuses to run this pod: {reason}"),
                )))
            }
        }
    }

    fn allowed<R: PolicyRequest>(&self, request: R) -> Result<(&Arc<Guest>, Allowed<R>), ttrpc::Error> {
        let guest = self.guest()?;
        match guest.gate.check(request) {
            Ok(allowed) => Ok((guest, allowed)),
            Err(denied) => {
                tracing::warn!(rule = %denied.rule, "request denied by policy");
                Err(RpcError::from(denied).into())
            }
        }
    }
}

/// What the policy sees of input for a process: whose and how much, not what.
#[derive(Debug)]
pub(crate) struct WriteStream(agent::WriteStreamRequest);

impl PolicyRequest for WriteStream {
    const RULE: &'static str = "WriteStreamRequest";

    fn policy_input(&self) -> serde_json::Value {
        let request = &self.0;
        serde_json::json!({
            "container_id": request.container_id, "exec_id": request.exec_id, "size": request.data.len(),
        })
    }
}

/// What the policy sees of a request to replace it. The rule decides whether that may be asked at all; the signature decides
/// whether it happens.
#[derive(Debug)]
pub(crate) struct SetPolicy(agent::SetPolicyRequest);

impl PolicyRequest for SetPolicy {
    const RULE: &'static str = "SetPolicyRequest";

    fn policy_input(&self) -> serde_json::Value {
        serde_json::json!({ "size": self.0.policy.len() })
    }
}

/// Writes the implementation of the service. Each line: method, request, what the policy sees, response, handler.
macro_rules! service {
    ($($method:ident: $request:ty $(as $seen:path)? => $response:ty, $handler:expr;)*) => {
        #[async_trait]
        impl AgentService for Service {
            $(async fn $method(&self, _: &TtrpcContext, request: $request) -> ttrpc::Result<$response> {
                $(let request = $seen(request);)?
                let (guest, request) = self.allowed(request)?;
                let result: Result<$response, RpcError> = $handler(guest, request).await;
                result.map_err(|error| {
                    tracing::info!(method = stringify!($method), code = ?error.code(), "request failed");
                    error.into()
                })
            })*

            // Output that the policy keeps in the guest looks empty, so that a client that only wants logs does not fail.
            async fn read_stdout(
                &self, _: &TtrpcContext, request: agent::ReadStreamRequest,
            ) -> ttrpc::Result<agent::ReadStreamResponse> {
                self.read(request, crate::container::io::Output::Stdout).await
            }

            async fn read_stderr(
                &self, _: &TtrpcContext, request: agent::ReadStreamRequest,
            ) -> ttrpc::Result<agent::ReadStreamResponse> {
                self.read(request, crate::container::io::Output::Stderr).await
            }
        }
    };
}

service! {
    create_container: agent::CreateContainerRequest => Empty, container::create;
    start_container: agent::StartContainerRequest => Empty, container::start;
    remove_container: agent::RemoveContainerRequest => Empty, container::remove;
    update_container: agent::UpdateContainerRequest => Empty, container::update;
    pause_container: agent::PauseContainerRequest => Empty, container::pause;
    resume_container: agent::ResumeContainerRequest => Empty, container::resume;
    stats_container: agent::StatsContainerRequest => agent::StatsContainerResponse, observe::stats;
    exec_process: agent::ExecProcessRequest => Empty, process::exec;
    signal_process: agent::SignalProcessRequest => Empty, process::signal;
    wait_process: agent::WaitProcessRequest => agent::WaitProcessResponse, process::wait;
    write_stdin: agent::WriteStreamRequest as WriteStream => agent::WriteStreamResponse, process::write_stdin;
    close_stdin: agent::CloseStdinRequest => Empty, process::close_stdin;
    tty_win_resize: agent::TtyWinResizeRequest => Empty, process::resize;
    create_sandbox: agent::CreateSandboxRequest => Empty, sandbox::create;
    destroy_sandbox: agent::DestroySandboxRequest => Empty, sandbox::destroy;
    copy_file: agent::CopyFileRequest as CopyFile => Empty, sandbox::copy_file;
    set_policy: agent::SetPolicyRequest as SetPolicy => Empty, sandbox::set_policy;
    online_cpu_mem: agent::OnlineCPUMemRequest => Empty, sandbox::online;
    reseed_random_dev: agent::ReseedRandomDevRequest => Empty, sandbox::reseed;
    update_interface: agent::UpdateInterfaceRequest => types::Interface, sandbox::update_interface;
    update_routes: agent::UpdateRoutesRequest => agent::Routes, sandbox::update_routes;
    add_arp_neighbors: agent::AddARPNeighborsRequest => Empty, sandbox::add_neighbours;
    list_interfaces: agent::ListInterfacesRequest => agent::Interfaces, sandbox::list_interfaces;
    list_routes: agent::ListRoutesRequest => agent::Routes, sandbox::list_routes;
    get_guest_details: agent::GuestDetailsRequest => agent::GuestDetailsResponse, observe::guest_details;
    get_metrics: agent::GetMetricsRequest => agent::Metrics, observe::metrics;
    get_diagnostic_data: agent::GetDiagnosticDataRequest => agent::GetDiagnosticDataResponse, observe::diagnostic_data;
    get_oom_event: agent::GetOOMEventRequest => agent::OOMEvent, observe::oom_event;
    // A clock the host could set by request would decide which certificates have expired (AC-72).
    set_guest_date_time: agent::SetGuestDateTimeRequest => Empty, unimplemented("SetGuestDateTime");
    update_ephemeral_mounts: agent::UpdateEphemeralMountsRequest => Empty, unimplemented("UpdateEphemeralMounts");
    remove_stale_virtiofs_share_mounts: agent::RemoveStaleVirtiofsShareMountsRequest => Empty,
        unimplemented("RemoveStaleVirtiofsShareMounts");
    get_ip_tables: agent::GetIPTablesRequest => agent::GetIPTablesResponse, unimplemented("GetIPTables");
    set_ip_tables: agent::SetIPTablesRequest => agent::SetIPTablesResponse, unimplemented("SetIPTables");
    mem_agent_memcg_set: agent::MemAgentMemcgConfig => Empty, unimplemented("MemAgentMemcgSet");
    mem_agent_compact_set: agent::MemAgentCompactConfig => Empty, unimplemented("MemAgentCompactSet");
    mem_hotplug_by_probe: agent::MemHotplugByProbeRequest => Empty, unimplemented("MemHotplugByProbe");
    // Swap would put memory where the host can read it.
    add_swap: agent::AddSwapRequest => Empty, unimplemented("AddSwap");
    add_swap_path: agent::AddSwapPathRequest => Empty, unimplemented("AddSwapPath");
    get_volume_stats: agent::VolumeStatsRequest => csi::VolumeStatsResponse, unimplemented("GetVolumeStats");
    resize_volume: agent::ResizeVolumeRequest => Empty, unimplemented("ResizeVolume");
}

/// A handler for a method that exists in the protocol and not here.
fn unimplemented<R, T>(method: &'static str) -> impl FnOnce(&Arc<Guest>, Allowed<R>) -> std::future::Ready<Result<T, RpcError>> {
    move |_, _| std::future::ready(Err(RpcError::Unimplemented(method)))
}

impl Service {
    async fn read(
        &self,
        request: agent::ReadStreamRequest,
        output: crate::container::io::Output,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
        let guest = self.guest()?;
        let Ok(request) = guest.gate.check(request) else {
            return Ok(agent::ReadStreamResponse::default());
        };
        Ok(process::read(guest, request, output).await?)
    }
}

/// Serves on vsock, and tells the host so.
///
/// # Errors
/// When the guest has no vsock device.
pub(crate) async fn serve(service: Arc<Service>) -> ttrpc::Result<Server> {
    let listener = vsock::listen(AGENT_VSOCK_PORT)
        .map_err(|error| ttrpc::Error::Others(format!("cannot listen on vsock port {AGENT_VSOCK_PORT}: {error}")))?;
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(create_agent_service(Arc::clone(&service) as _))
        .register_service(create_health(service));
    server.start().await?;
    tokio::spawn(tell_ready());
    Ok(server)
}

/// How often to try to say so: the kernel gives up on a vsock connection after 2 s, which a starved host can exceed.
const READY_TRIES: usize = 8;

/// Writes one byte to the host's readiness port. Nothing of ours depends on it, so its failure is not one of ours.
async fn tell_ready() {
    for _ in 0..READY_TRIES {
        if let Ok(mut host) = Socket::connect(format!("vsock://2:{READY_VSOCK_PORT}")).await {
            let _ = host.write_all(&[1]).await;
            let _ = host.shutdown().await;
            return;
        }
    }
}

#[cfg(test)]
mod tests;
