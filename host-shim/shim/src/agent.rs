//! The connection to the agent: how it is made, and how long each request may take.
//!
//! What comes back is the guest's word. It is bounded by ttRPC's message size, by a deadline for everything that does not wait on purpose, and
//! nothing in it decides about the host.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use kata_cc_agent_protocol::rpc::agent_ttrpc::AgentServiceClient;
use kata_cc_vmm::config::Timeouts;
use kata_cc_vmm::plan::{AGENT_PORT, Vsock};
use kata_cc_vmm::run::{ReadyListener, connect};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{Context, with_duration};

use crate::error::Error;

/// Only for agents that do not announce themselves, and for the kernel's vsock, where the announcement would need a port of the whole host:
/// there is no event then, so the connection is tried again and again.
const RETRY: Duration = Duration::from_millis(100);

/// The pod's agent.
#[derive(Clone)]
pub(crate) struct Agent {
    client: AgentServiceClient,
    timeouts: Timeouts,
}

impl Agent {
    /// Connects as soon as the agent serves. The caller bounds the wait.
    pub(crate) async fn connect(vsock: &Vsock, ready: Option<&ReadyListener>, timeouts: Timeouts) -> Result<Self, Error> {
        let client = match vsock {
            Vsock::VhostUser { socket, .. } => Self::through_helper(socket, ready).await?,
            Vsock::Kernel { cid } => loop {
                if let Ok(client) = Client::connect(&format!("vsock://{cid}:{AGENT_PORT}")).await {
                    break client;
                }
                tokio::time::sleep(RETRY).await;
            },
        };
        Ok(Self { client: AgentServiceClient::new(client), timeouts })
    }

    async fn through_helper(socket: &Path, ready: Option<&ReadyListener>) -> Result<Client, Error> {
        let announced = async {
            match ready {
                Some(ready) => ready.ready().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(announced);
        let mut is_announced = false;
        loop {
            if !is_announced {
                tokio::select! {
                    _ = &mut announced => is_announced = true,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
            match connect(socket, AGENT_PORT).await {
                Ok(stream) => return Ok(Client::new(Socket::new(stream))),
                // The agent announces itself once it serves; if it is not there then, it will not be.
                Err(error) if is_announced => return Err(Error::host("the agent announced itself but does not answer")(error)),
                Err(_) => {}
            }
        }
    }

    /// The generated client.
    pub(crate) fn client(&self) -> &AgentServiceClient {
        &self.client
    }

    /// The deadline of an ordinary request.
    pub(crate) fn context(&self) -> Context {
        with_duration(self.timeouts.request())
    }

    /// The deadline for creating a container, which may pull an image.
    pub(crate) fn create_context(&self) -> Context {
        with_duration(self.timeouts.create_container())
    }

    /// No deadline: for what waits on purpose (an exit, output, an event). The caller gives up when the machine is gone.
    pub(crate) fn waiting_context(&self) -> Context {
        Context::default()
    }
}

/// Bounds a future by a deadline; `None` when it passed.
pub(crate) async fn within<T>(duration: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(duration, future).await.ok()
}
