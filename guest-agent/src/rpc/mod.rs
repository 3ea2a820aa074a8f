//! The agent's RPC interface: every method, with the policy in front of it.
//!
//! [`service!`] writes one method for each line of its table: the request goes through the gate and comes out as `Allowed`, which
//! is what the handlers in the sibling files take. A handler cannot be reached otherwise, and a new one cannot forget to ask.
//! Handlers take what they need from [`Guest`], and know nothing of ttRPC.
//!
//! A request that was allowed is carried out to its end, in a task of its own: the deadline in a request is the host's word, and a
//! disconnect is the host's deed, and neither may stop a removal between the container's end and the policy's knowing of it. Only
//! requests that do nothing but wait end with their client. For those that make, start and remove containers the policy's state
//! changes when the agent has done what was asked (see [`Gate::decide`](kata_cc_policy::Gate::decide)); the others are at once.
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
use kata_cc_policy::request::Cause;
use kata_cc_policy::{Allowed, Denied, PolicyRequest};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use crate::copy_file::CopyFile;
use crate::errors::{RpcError, at};
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

    fn allowed<R: PolicyRequest>(&self, request: R) -> Result<(Arc<Guest>, Allowed<R>), ttrpc::Error> {
        let guest = self.guest()?;
        Ok((Arc::clone(guest), guest.gate.check(request).map_err(denied)?))
    }

    /// As [`Self::allowed`], with the policy's state changes left to the handler.
    fn decided<R: PolicyRequest>(&self, request: R) -> Result<(Arc<Guest>, Allowed<R>), ttrpc::Error> {
        let guest = self.guest()?;
        Ok((Arc::clone(guest), guest.gate.decide(request).map_err(denied)?))
    }
}

fn denied(denied: Denied) -> ttrpc::Error {
    tracing::warn!(rule = %denied.rule, "request denied by policy");
    RpcError::from(denied).into()
}

/// Carries a request out, whether or not anybody waits for the answer.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T, RpcError>> + Send + 'static) -> Result<T, RpcError> {
    let interrupted = |error| Err(at("carrying out the request")(std::io::Error::other(error)));
    tokio::spawn(work).await.unwrap_or_else(interrupted)
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

/// One request by its handler, in one of three ways:
/// - `run`: to its end;
/// - `late`: to its end, and the handler commits the policy's state changes;
/// - `wait`: for as long as the client does. It changes nothing, and what it waits for may never come.
macro_rules! carry_out {
    (run $service:ident $request:ident $handler:expr) => {{
        let (guest, request) = $service.allowed($request)?;
        to_the_end(async move { $handler(&guest, request).await }).await
    }};
    (late $service:ident $request:ident $handler:expr) => {{
        let (guest, request) = $service.decided($request)?;
        to_the_end(async move { $handler(&guest, request).await }).await
    }};
    (wait $service:ident $request:ident $handler:expr) => {{
        let (guest, request) = $service.allowed($request)?;
        $handler(&guest, request).await
    }};
}

/// Writes the implementation of the service. Each line: method, request, what the policy sees, response, how, handler.
macro_rules! service {
    ($($method:ident: $request:ty $(as $seen:path)? => $response:ty, $how:ident $handler:expr;)*) => {
        #[async_trait]
        impl AgentService for Service {
            $(async fn $method(&self, _: &TtrpcContext, request: $request) -> ttrpc::Result<$response> {
                $(let request = $seen(request);)?
                let result: Result<$response, RpcError> = carry_out!($how self request $handler);
                result.map_err(|error| {
                    tracing::info!(method = stringify!($method), code = ?error.code(), "request failed");
                    error.into()
                })
            })*

            // Output that the policy keeps in the guest looks empty, so that a client that only wants logs does not fail; and as long as
            // it waits for them they are thrown away, so that a program whose pipe nobody empties does not stand still.
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
    create_container: agent::CreateContainerRequest => Empty, late container::create;
    start_container: agent::StartContainerRequest => Empty, late container::start;
    remove_container: agent::RemoveContainerRequest => Empty, late container::remove;
    update_container: agent::UpdateContainerRequest => Empty, run container::update;
    pause_container: agent::PauseContainerRequest => Empty, run container::pause;
    resume_container: agent::ResumeContainerRequest => Empty, run container::resume;
    stats_container: agent::StatsContainerRequest => agent::StatsContainerResponse, run observe::stats;
    exec_process: agent::ExecProcessRequest => Empty, run process::exec;
    signal_process: agent::SignalProcessRequest => Empty, run process::signal;
    wait_process: agent::WaitProcessRequest => agent::WaitProcessResponse, wait process::wait;
    write_stdin: agent::WriteStreamRequest as WriteStream => agent::WriteStreamResponse, run process::write_stdin;
    close_stdin: agent::CloseStdinRequest => Empty, run process::close_stdin;
    tty_win_resize: agent::TtyWinResizeRequest => Empty, run process::resize;
    create_sandbox: agent::CreateSandboxRequest => Empty, run sandbox::create;
    destroy_sandbox: agent::DestroySandboxRequest => Empty, run sandbox::destroy;
    copy_file: agent::CopyFileRequest as CopyFile => Empty, run sandbox::copy_file;
    set_policy: agent::SetPolicyRequest as SetPolicy => Empty, run sandbox::set_policy;
    online_cpu_mem: agent::OnlineCPUMemRequest => Empty, run sandbox::online;
    reseed_random_dev: agent::ReseedRandomDevRequest => Empty, run sandbox::reseed;
    update_interface: agent::UpdateInterfaceRequest => types::Interface, run sandbox::update_interface;
    update_routes: agent::UpdateRoutesRequest => agent::Routes, run sandbox::update_routes;
    add_arp_neighbors: agent::AddARPNeighborsRequest => Empty, run sandbox::add_neighbours;
    list_interfaces: agent::ListInterfacesRequest => agent::Interfaces, run sandbox::list_interfaces;
    list_routes: agent::ListRoutesRequest => agent::Routes, run sandbox::list_routes;
    get_guest_details: agent::GuestDetailsRequest => agent::GuestDetailsResponse, run observe::guest_details;
    get_metrics: agent::GetMetricsRequest => agent::Metrics, run observe::metrics;
    get_diagnostic_data: agent::GetDiagnosticDataRequest => agent::GetDiagnosticDataResponse, run observe::diagnostic_data;
    get_oom_event: agent::GetOOMEventRequest => agent::OOMEvent, wait observe::oom_event;
    // A clock the host could set by request would decide which certificates have expired (AC-72).
    set_guest_date_time: agent::SetGuestDateTimeRequest => Empty, run unimplemented("SetGuestDateTime");
    update_ephemeral_mounts: agent::UpdateEphemeralMountsRequest => Empty, run unimplemented("UpdateEphemeralMounts");
    remove_stale_virtiofs_share_mounts: agent::RemoveStaleVirtiofsShareMountsRequest => Empty,
        run unimplemented("RemoveStaleVirtiofsShareMounts");
    get_ip_tables: agent::GetIPTablesRequest => agent::GetIPTablesResponse, run unimplemented("GetIPTables");
    set_ip_tables: agent::SetIPTablesRequest => agent::SetIPTablesResponse, run unimplemented("SetIPTables");
    mem_agent_memcg_set: agent::MemAgentMemcgConfig => Empty, run unimplemented("MemAgentMemcgSet");
    mem_agent_compact_set: agent::MemAgentCompactConfig => Empty, run unimplemented("MemAgentCompactSet");
    mem_hotplug_by_probe: agent::MemHotplugByProbeRequest => Empty, run unimplemented("MemHotplugByProbe");
    // Swap would put memory where the host can read it.
    add_swap: agent::AddSwapRequest => Empty, run unimplemented("AddSwap");
    add_swap_path: agent::AddSwapPathRequest => Empty, run unimplemented("AddSwapPath");
    get_volume_stats: agent::VolumeStatsRequest => csi::VolumeStatsResponse, run unimplemented("GetVolumeStats");
    resize_volume: agent::ResizeVolumeRequest => Empty, run unimplemented("ResizeVolume");
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
        let (container, exec_id) = (request.container_id.clone(), request.exec_id.clone());
        match guest.gate.check(request) {
            Ok(request) => Ok(process::read(guest, request, output).await?),
            Err(denied) => {
                // Only for a plain no: output must not be lost because the policy could not be asked.
                if matches!(denied.reason, Cause::False | Cause::Undefined | Cause::NoRule) {
                    process::discard(guest, &container, &exec_id, output).await;
                }
                Ok(agent::ReadStreamResponse::default())
            }
        }
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
