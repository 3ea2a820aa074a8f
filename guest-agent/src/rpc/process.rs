//! Processes: execute, signal, wait, and their streams.

use std::path::PathBuf;
use std::sync::Arc;

use kata_cc_agent_protocol::rpc::{Empty, agent};
use kata_cc_policy::Allowed;
use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::WriteStream;
use crate::container::cgroup::Group;
use crate::container::helper::{PROCESS_FILE, Verb};
use crate::container::io::Output;
use crate::container::process::Process;
use crate::container::{Container, ContainerError, ContainerId, Kind, State, spec};
use crate::errors::{RpcError, at};
use crate::guest::Guest;
use crate::measure;
use crate::reaper::ended;

/// Directory in a bundle for what belongs to executed processes.
const EXEC_DIR: &str = "exec";

/// The process meant by a request.
fn find(guest: &Guest, container: &str, exec_id: &str) -> Result<Arc<Process>, RpcError> {
    Ok(guest.containers.get(container)?.process(exec_id)?)
}

pub(super) async fn exec(guest: &Arc<Guest>, request: Allowed<agent::ExecProcessRequest>) -> Result<Empty, RpcError> {
    let request = request.into_inner();
    let container = guest.containers.get(&request.container_id)?;
    let exec_id: ContainerId = request.exec_id.parse()?;
    if container.is_first(exec_id.as_str()) {
        return Err(RpcError::Invalid("an executed process needs a name other than its container's".to_owned()));
    }
    if request.string_user.is_some() {
        return Err(RpcError::Invalid("users are given by number".to_owned()));
    }
    let process = request.process.as_ref().ok_or(RpcError::Spec(spec::SpecError::Missing("process")))?;
    let adapted = match container.secrets.get() {
        Some(secrets) => spec::adapt_process(&secrets.in_process(process)?)?,
        None => spec::adapt_process(process)?,
    };
    // The container may not be removed while a process enters its namespaces (AC-33).
    let state = container.steps.lock().await;
    expect(&container, *state, State::Started)?;
    if matches!(container.kind, Kind::Sandbox { .. }) {
        return Err(RpcError::State("the sandbox container runs nothing"));
    }
    // The helper finds the container's namespaces by the number of its first process. Once that has ended the number may be that of
    // anything else, another container's program or one of the agent's own helpers.
    let first = container.process("")?;
    if first.has_ended() {
        return Err(RpcError::Ended);
    }
    if container.has_live_process(exec_id.as_str()) {
        return Err(ContainerError::ProcessExists(container.id.clone(), request.exec_id).into());
    }
    if let Some(identity) = container.identity.get() {
        measure::exec(guest.attester.log(), identity, &process.Args)?;
    }
    let directory = container.id.bundle().join(EXEC_DIR).join(exec_id.as_str());
    let result = launch(guest, &container, &directory, &adapted, process.Terminal).await;
    // Whether or not it runs now, what was needed to start it is not needed any more.
    let cleaned = std::fs::remove_dir_all(&directory);
    let started = result?;
    if first.has_ended() {
        // It ended meanwhile. With it the kernel has ended all that joined its namespaces; what lives on is somewhere else.
        let _ = guest.runtime.reaper().kill(started.pid, Signal::SIGKILL);
        return Err(RpcError::Ended);
    }
    cleaned.map_err(at("removing what the process was started from"))?;
    if process.Terminal
        && let Some(size) = process.ConsoleSize.as_ref()
        && let (Ok(rows), Ok(columns)) = (size.Height.try_into(), size.Width.try_into())
        && rows > 0
    {
        started.streams.resize(rows, columns).map_err(at("sizing the terminal"))?;
    }
    container.add_process(exec_id.as_str(), Arc::new(started))?;
    Ok(Empty::default())
}

async fn launch(
    guest: &Guest,
    container: &Container,
    directory: &PathBuf,
    process: &oci_spec::runtime::Process,
    terminal: bool,
) -> Result<Process, RpcError> {
    let text = serde_json::to_vec(process).map_err(|error| at("writing the process")(std::io::Error::other(error)))?;
    std::fs::create_dir_all(directory).map_err(at("making the process's directory"))?;
    std::fs::write(directory.join(PROCESS_FILE), text).map_err(at("writing the process"))?;
    Ok(guest.runtime.launch(Verb::Exec, &container.id, directory, terminal).await?)
}

/// Refuses unless the container is in a state.
pub(super) fn expect(container: &Container, found: State, expected: State) -> Result<(), RpcError> {
    if found == expected {
        return Ok(());
    }
    Err(ContainerError::State { id: container.id.clone(), found: found.name(), expected: expected.name() }.into())
}

pub(super) async fn signal(guest: &Arc<Guest>, request: Allowed<agent::SignalProcessRequest>) -> Result<Empty, RpcError> {
    let request = request.get();
    let container = guest.containers.get(&request.container_id)?;
    let number = i32::try_from(request.signal).unwrap_or(-1);
    let signal =
        Signal::try_from(number).map_err(|_| RpcError::Invalid(format!("signal {} is not known; expected 1 to 31", request.signal)))?;
    if let Kind::Sandbox { end } = &container.kind {
        // What a program that does nothing would do on these signals: it would end.
        if matches!(signal, Signal::SIGKILL | Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) {
            end.send_if_modified(|code| {
                let first = code.is_none();
                code.get_or_insert(128 + number);
                first
            });
        }
        return Ok(Empty::default());
    }
    if request.exec_id.is_empty() && signal == Signal::SIGKILL {
        // Everything in the container, whatever process namespace or session it hides in.
        Group::of(&container.id).kill().map_err(at("killing the container"))?;
        return Ok(Empty::default());
    }
    let process = container.process(&request.exec_id)?;
    match guest.runtime.reaper().kill(process.pid, signal) {
        Ok(()) => Ok(Empty::default()),
        Err(Errno::ESRCH) => Err(RpcError::Ended),
        Err(errno) => Err(at("sending the signal")(errno)),
    }
}

pub(super) async fn wait(guest: &Arc<Guest>, request: Allowed<agent::WaitProcessRequest>) -> Result<agent::WaitProcessResponse, RpcError> {
    let request = request.get();
    let exit = guest.containers.get(&request.container_id)?.exit(&request.exec_id)?;
    Ok(agent::WaitProcessResponse { status: ended(&exit).await, ..Default::default() })
}

pub(super) async fn read(
    guest: &Arc<Guest>,
    request: Allowed<agent::ReadStreamRequest>,
    output: Output,
) -> Result<agent::ReadStreamResponse, RpcError> {
    let request = request.get();
    let container = guest.containers.get(&request.container_id)?;
    if let Kind::Sandbox { .. } = container.kind {
        // It never says anything; tell so when it ends, as a silent program would.
        ended(&container.exit(&request.exec_id)?).await;
        return Ok(agent::ReadStreamResponse::default());
    }
    let process = container.process(&request.exec_id)?;
    let length = usize::try_from(request.len).unwrap_or(usize::MAX);
    let data = process.streams.read(output, length, &process.exit).await.map_err(at("reading the process's output"))?;
    Ok(agent::ReadStreamResponse { data, ..Default::default() })
}

/// How much of what nobody may read is taken at a time.
const DISCARDED: usize = 64 * 1024;

/// Takes a process's output until its end and keeps nothing of it, while a client waits that may not have it.
///
/// This is no request that was allowed: the policy has said that the host is to get nothing, and that is what it gets.
pub(super) async fn discard(guest: &Guest, container: &str, exec_id: &str, output: Output) {
    let Ok(process) = find(guest, container, exec_id) else {
        return;
    };
    while process.streams.read(output, DISCARDED, &process.exit).await.is_ok_and(|data| !data.is_empty()) {}
}

pub(super) async fn write_stdin(guest: &Arc<Guest>, request: Allowed<WriteStream>) -> Result<agent::WriteStreamResponse, RpcError> {
    let WriteStream(request) = request.into_inner();
    let process = find(guest, &request.container_id, &request.exec_id)?;
    match process.streams.write(&request.data, &process.exit).await {
        Ok(()) => Ok(agent::WriteStreamResponse { len: u32::try_from(request.data.len()).unwrap_or(u32::MAX), ..Default::default() }),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(RpcError::Ended),
        Err(error) => Err(at("writing to the process")(error)),
    }
}

pub(super) async fn close_stdin(guest: &Arc<Guest>, request: Allowed<agent::CloseStdinRequest>) -> Result<Empty, RpcError> {
    let request = request.get();
    let container = guest.containers.get(&request.container_id)?;
    if let Kind::Workload = container.kind {
        container.process(&request.exec_id)?.streams.close_input().await;
    }
    Ok(Empty::default())
}

pub(super) async fn resize(guest: &Arc<Guest>, request: Allowed<agent::TtyWinResizeRequest>) -> Result<Empty, RpcError> {
    let request = request.get();
    let process = find(guest, &request.container_id, &request.exec_id)?;
    match (u16::try_from(request.row), u16::try_from(request.column)) {
        (Ok(rows), Ok(columns)) => process.streams.resize(rows, columns).map_err(at("sizing the terminal"))?,
        _ => return Err(RpcError::Invalid("a terminal has at most 65535 rows and columns".to_owned())),
    }
    Ok(Empty::default())
}
