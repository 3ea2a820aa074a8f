//! Kill, delete, shutdown: the ways to the end. Each can be repeated, and none waits for a guest that does not answer.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task::TaskDelete;
use containerd_shim_protos::shim::shim::{DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest};
use kata_cc_agent_protocol::rpc::agent::{RemoveContainerRequest, SignalProcessRequest};
use protobuf::MessageField;

use super::pid;
use crate::agent::{Agent, within};
use crate::error::Error;
use crate::pod::Pod;
use crate::process::{ExitInfo, STATUS_KILLED, State};

/// How long a guest may take to answer a request to end something, before its machine is ended instead.
const GRACE: Duration = Duration::from_secs(5);

/// Sends a signal.
pub(super) async fn kill(pod: Arc<Pod>, request: KillRequest) -> Result<(), Error> {
    let container = pod.container(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let gone = || Error::NotFound(format!("process {:?} of container {} (it has ended)", request.exec_id, request.id));
    if let State::Stopped(_) = process.state() {
        return Err(gone());
    }
    // Nothing runs in the guest yet that could be told.
    if process.stopped_before_start(ExitInfo::now(STATUS_KILLED)) {
        pod.publish_exit(&process).await;
        return Ok(());
    }
    let fatal = request.signal == u32::from_ne_bytes(libc::SIGKILL.to_ne_bytes());
    let Some(agent) = container.sandbox.agent_now() else {
        // Only the pod's own container runs before its agent serves, and every signal by which containerd ends a pod means the machine then.
        if container.kind.owns_machine() {
            container.sandbox.stop().await;
        }
        return Ok(());
    };
    let question = SignalProcessRequest {
        container_id: request.id.clone(),
        exec_id: request.exec_id.clone(),
        signal: request.signal,
        ..Default::default()
    };
    let ends_machine = fatal && request.exec_id.is_empty() && container.kind.owns_machine();
    match within(GRACE, agent.client().signal_process(agent.context(), &question)).await {
        // The guest's yes is its word: a pod that is to die does so within the grace, or its machine is ended.
        Some(Ok(_)) if ends_machine => {
            if within(GRACE, process.wait()).await.is_none() {
                container.sandbox.stop().await;
            }
            Ok(())
        }
        Some(Ok(_)) => Ok(()),
        // It ended in the meantime.
        Some(Err(_)) if matches!(process.state(), State::Stopped(_)) => Err(gone()),
        Some(Err(error)) if !(fatal && container.kind.owns_machine()) => Err(error.into()),
        None if !(fatal && container.kind.owns_machine()) => {
            Err(Error::Guest(format!("the agent did not answer within {} s", GRACE.as_secs())))
        }
        // A pod that is to die dies, whether or not its guest agrees.
        _ => {
            container.sandbox.stop().await;
            Ok(())
        }
    }
}

/// Removes a process that has ended; with the container that owns it, the machine.
pub(super) async fn delete(pod: Arc<Pod>, request: DeleteRequest) -> Result<DeleteResponse, Error> {
    let container = pod.container(&request.id)?;
    let process = container.process(&request.exec_id)?;
    process.stopped_before_start(ExitInfo::now(STATUS_KILLED));
    let State::Stopped(exit) = process.state() else {
        return Err(Error::State(format!("process {:?} of container {} is still running", request.exec_id, request.id)));
    };
    if request.exec_id.is_empty() {
        if container.kind.owns_machine() {
            container.sandbox.write_timeline().await;
            pod.stop_sandbox().await;
        } else {
            // Without an agent the guest is gone, and the container with it.
            if let Some(agent) = container.sandbox.agent_now() {
                remove_in_guest(&agent, &container.id).await;
            }
        }
        pod.remove(&request.id);
    } else {
        container.remove_exec(&request.exec_id);
    }
    let event = TaskDelete {
        container_id: request.id.clone(),
        pid: pid(),
        exit_status: exit.status,
        exited_at: MessageField::some(exit.at.clone()),
        id: request.exec_id,
        ..Default::default()
    };
    pod.events.publish(event);
    Ok(DeleteResponse { pid: pid(), exit_status: exit.status, exited_at: MessageField::some(exit.at), ..Default::default() })
}

/// Takes a container away in the guest. A guest that does not answer takes it along when the pod ends.
pub(super) async fn remove_in_guest(agent: &Agent, container: &str) {
    let question = RemoveContainerRequest { container_id: container.to_owned(), ..Default::default() };
    match within(GRACE, agent.client().remove_container(agent.context(), &question)).await {
        Some(Ok(_)) => {}
        Some(Err(error)) => tracing::warn!(%error, container, "the agent did not remove the container"),
        None => tracing::warn!(container, "the agent did not answer the removal of the container"),
    }
}

/// Ends the shim once nothing is left, or at once when asked to.
pub(super) async fn shutdown(pod: Arc<Pod>, request: ShutdownRequest) -> Result<(), Error> {
    if request.now || pod.containers().is_empty() {
        pod.stop_sandbox().await;
        pod.exit.notify_one();
    }
    Ok(())
}
