//! containerd's task service: each request is a few lines here and a file of its own where it is more.
//!
//! Requests that change something run to their end even when containerd stops waiting for the answer: a half-made machine would have no owner.

mod create;
mod end;
mod start;

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::Status;
use containerd_shim_protos::events::task::{TaskExecAdded, TaskPaused, TaskResumed};
use containerd_shim_protos::protobuf::EnumOrUnknown;
use containerd_shim_protos::shim::shim as api;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::types::empty::Empty;
use containerd_shim_protos::types::task::ProcessInfo;
use kata_cc_agent_protocol::rpc::agent::{
    PauseContainerRequest, ResumeContainerRequest, StatsContainerRequest, TtyWinResizeRequest, UpdateContainerRequest,
};
use protobuf::MessageField;
use ttrpc::Result as TtrpcResult;
use ttrpc::r#async::TtrpcContext;

use crate::error::Error;
use crate::kind::Kind;
use crate::oci;
use crate::pod::Pod;
use crate::process::{Process, State};
use crate::stats;
use crate::stdio::{ProcessId, StdioPaths};

/// Answers containerd.
#[derive(Clone)]
pub(crate) struct Service {
    pod: Arc<Pod>,
}

impl Service {
    /// For the pod of this shim.
    pub(crate) fn new(pod: Arc<Pod>) -> Self {
        Self { pod }
    }
}

/// Every process of the pod shows as the shim: the real ones are the guest's and have no number here.
fn pid() -> u32 {
    std::process::id()
}

/// Runs a request to its end, whether or not anybody waits for the answer.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> TtrpcResult<T> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(|error| {
            let error = ttrpc::Error::from(error);
            match &error {
                ttrpc::Error::RpcStatus(status) => {
                    tracing::warn!(code = ?status.code(), message = %status.message.escape_debug(), "request failed")
                }
                other => tracing::warn!(error = %other, "request failed"),
            }
            error
        }),
        Err(error) => Err(Error::State(format!("the request was interrupted: {error}")).into()),
    }
}

impl Service {
    async fn try_exec(&self, request: api::ExecProcessRequest) -> Result<(), Error> {
        let container = self.pod.container(&request.id)?;
        let spec = oci::Process::parse(&request.spec.value)?;
        let stdio = StdioPaths { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
        let id = ProcessId { container: request.id.clone(), exec: request.exec_id.clone() };
        if id.exec.is_empty() {
            return Err(Error::Invalid("a process to execute needs a name".into()));
        }
        container.add_exec(Process::new(id, stdio, Some(spec)))?;
        let event = TaskExecAdded { container_id: request.id, exec_id: request.exec_id, ..Default::default() };
        self.pod.events.publish(event);
        Ok(())
    }

    fn try_state(&self, request: &api::StateRequest) -> Result<api::StateResponse, Error> {
        let container = self.pod.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let (status, exit) = match process.state() {
            State::Created | State::Starting => (Status::CREATED, None),
            State::Running if container.is_paused() => (Status::PAUSED, None),
            State::Running => (Status::RUNNING, None),
            State::Stopped(exit) => (Status::STOPPED, Some(exit)),
        };
        Ok(api::StateResponse {
            id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            bundle: container.bundle.display().to_string(),
            pid: pid(),
            status: EnumOrUnknown::new(status),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status: exit.as_ref().map(|exit| exit.status).unwrap_or_default(),
            exited_at: exit.map(|exit| exit.at).into(),
            ..Default::default()
        })
    }

    async fn try_stats(&self, request: api::StatsRequest) -> Result<api::StatsResponse, Error> {
        let container = self.pod.container(&request.id)?;
        // The pod's own container has no process and so no statistics; containerd asks for them all the same.
        let answer = match container.kind {
            Kind::Sandbox => Default::default(),
            Kind::Container(_) | Kind::Single => {
                let agent = container.sandbox.agent().await?;
                let question = StatsContainerRequest { container_id: request.id, ..Default::default() };
                agent.client().stats_container(agent.context(), &question).await?
            }
        };
        Ok(api::StatsResponse { stats: MessageField::some(stats::to_any(&answer)), ..Default::default() })
    }

    async fn try_update(&self, request: api::UpdateTaskRequest) -> Result<(), Error> {
        let container = self.pod.container(&request.id)?;
        let resources = oci::Resources::parse(&request.resources.value)?;
        // The pod's own container has no cgroup; the machine's size is fixed at its launch and measured.
        if container.kind == Kind::Sandbox {
            return Ok(());
        }
        let agent = container.sandbox.agent().await?;
        let question =
            UpdateContainerRequest { container_id: request.id, resources: MessageField::some(resources.to_wire()), ..Default::default() };
        agent.client().update_container(agent.context(), &question).await?;
        Ok(())
    }

    async fn try_set_paused(&self, id: String, paused: bool) -> Result<(), Error> {
        let container = self.pod.container(&id)?;
        let agent = container.sandbox.agent().await?;
        if paused {
            let request = PauseContainerRequest { container_id: id.clone(), ..Default::default() };
            agent.client().pause_container(agent.context(), &request).await?;
            container.set_paused(true);
            self.pod.events.publish(TaskPaused { container_id: id, ..Default::default() });
        } else {
            let request = ResumeContainerRequest { container_id: id.clone(), ..Default::default() };
            agent.client().resume_container(agent.context(), &request).await?;
            container.set_paused(false);
            self.pod.events.publish(TaskResumed { container_id: id, ..Default::default() });
        }
        Ok(())
    }

    async fn try_resize(&self, request: api::ResizePtyRequest) -> Result<(), Error> {
        let container = self.pod.container(&request.id)?;
        container.process(&request.exec_id)?;
        let agent = container.sandbox.agent().await?;
        let question = TtyWinResizeRequest {
            container_id: request.id,
            exec_id: request.exec_id,
            row: request.height,
            column: request.width,
            ..Default::default()
        };
        agent.client().tty_win_resize(agent.context(), &question).await?;
        Ok(())
    }
}

#[async_trait]
impl Task for Service {
    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> TtrpcResult<api::StateResponse> {
        Ok(self.try_state(&request)?)
    }

    async fn create(&self, _: &TtrpcContext, request: api::CreateTaskRequest) -> TtrpcResult<api::CreateTaskResponse> {
        to_the_end(create::create(Arc::clone(&self.pod), request)).await?;
        Ok(api::CreateTaskResponse { pid: pid(), ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> TtrpcResult<api::StartResponse> {
        to_the_end(start::start(Arc::clone(&self.pod), request)).await?;
        Ok(api::StartResponse { pid: pid(), ..Default::default() })
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> TtrpcResult<Empty> {
        let service = self.clone();
        to_the_end(async move { service.try_exec(request).await }).await?;
        Ok(Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> TtrpcResult<Empty> {
        to_the_end(end::kill(Arc::clone(&self.pod), request)).await?;
        Ok(Empty::default())
    }

    async fn delete(&self, _: &TtrpcContext, request: api::DeleteRequest) -> TtrpcResult<api::DeleteResponse> {
        to_the_end(end::delete(Arc::clone(&self.pod), request)).await
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> TtrpcResult<api::WaitResponse> {
        let process = self.pod.container(&request.id)?.process(&request.exec_id)?;
        let exit = process.wait().await;
        Ok(api::WaitResponse { exit_status: exit.status, exited_at: MessageField::some(exit.at), ..Default::default() })
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> TtrpcResult<api::PidsResponse> {
        self.pod.container(&request.id)?;
        Ok(api::PidsResponse { processes: vec![ProcessInfo { pid: pid(), ..Default::default() }], ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> TtrpcResult<Empty> {
        self.try_set_paused(request.id, true).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> TtrpcResult<Empty> {
        self.try_set_paused(request.id, false).await?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> TtrpcResult<Empty> {
        self.try_resize(request).await?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> TtrpcResult<Empty> {
        let process = self.pod.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> TtrpcResult<Empty> {
        self.try_update(request).await?;
        Ok(Empty::default())
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> TtrpcResult<api::StatsResponse> {
        Ok(self.try_stats(request).await?)
    }

    async fn connect(&self, _: &TtrpcContext, request: api::ConnectRequest) -> TtrpcResult<api::ConnectResponse> {
        tracing::debug!(id = %request.id, "containerd connected");
        Ok(api::ConnectResponse { shim_pid: pid(), task_pid: pid(), version: env!("CARGO_PKG_VERSION").into(), ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> TtrpcResult<Empty> {
        to_the_end(end::shutdown(Arc::clone(&self.pod), request)).await?;
        Ok(Empty::default())
    }
}
