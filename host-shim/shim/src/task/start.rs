//! Start: of a container's first process, or of one to be executed in it.

use std::sync::Arc;
use std::time::Instant;

use containerd_shim_protos::events::task::{TaskExecStarted, TaskStart};
use containerd_shim_protos::shim::shim::StartRequest;
use kata_cc_agent_protocol::rpc::agent::{ExecProcessRequest, StartContainerRequest};
use protobuf::MessageField;

use super::pid;
use crate::agent::Agent;
use crate::error::Error;
use crate::kind::Kind;
use crate::pod::{Container, Pod};
use crate::process::{ExitInfo, Process, STATUS_UNKNOWN};
use crate::stdio::Stdio;

/// Starts a process.
pub(super) async fn start(pod: Arc<Pod>, request: StartRequest) -> Result<(), Error> {
    let container = pod.container(&request.id)?;
    let process = container.process(&request.exec_id)?;
    if !process.claim_start() {
        return Err(Error::State(format!("process {:?} of container {} was started or stopped before", request.exec_id, request.id)));
    }
    let begin = Instant::now();
    // The pod's own container begins with the machine, which may still be booting.
    let own = container.kind == Kind::Sandbox && request.exec_id.is_empty();
    let started = if own { Ok(None) } else { start_in_guest(&container, &process).await.map(Some) };
    let started = match started {
        Ok(started) => started,
        Err(error) => {
            // It never ran, so there is no exit to tell of; containerd deletes it next.
            process.stopped(ExitInfo::now(STATUS_UNKNOWN));
            return Err(error);
        }
    };
    process.running();
    // Before the wait begins, so that containerd never hears of the end first.
    if request.exec_id.is_empty() {
        pod.events.publish(TaskStart { container_id: request.id.clone(), pid: pid(), ..Default::default() });
    } else {
        let event =
            TaskExecStarted { container_id: request.id.clone(), exec_id: request.exec_id.clone(), pid: pid(), ..Default::default() };
        pod.events.publish(event);
    }
    match started {
        Some((agent, stdio)) => pod.reap(&container, &process, agent, stdio),
        None => pod.reap_own(&container),
    }
    if request.exec_id.is_empty() && !own {
        container.sandbox.timeline().record(format!("start container {}", request.id), begin);
        let sandbox = Arc::clone(&container.sandbox);
        tokio::spawn(async move { sandbox.write_timeline().await });
    }
    Ok(())
}

async fn start_in_guest(container: &Container, process: &Process) -> Result<(Agent, Stdio), Error> {
    // Opened first: a process whose output has nowhere to go is not started.
    let stdio = Stdio::open(&process.stdio)?;
    let agent = container.sandbox.agent().await?;
    match &process.spec {
        None => {
            let request = StartContainerRequest { container_id: container.id.clone(), ..Default::default() };
            agent.client().start_container(agent.context(), &request).await?;
        }
        Some(spec) => {
            let request = ExecProcessRequest {
                container_id: container.id.clone(),
                exec_id: process.id.exec.clone(),
                process: MessageField::some(spec.to_wire()),
                ..Default::default()
            };
            agent.client().exec_process(agent.context(), &request).await?;
        }
    }
    Ok((agent, stdio))
}
