//! The shim's server: one per pod, until containerd shuts it down.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use anyhow::Context as _;
use containerd_shim_protos::shim_async::{Task, create_task};
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service as TtrpcService};

use crate::args::Flags;
use crate::bootstrap::{TTRPC_ADDRESS, remove_address};
use crate::events::Events;
use crate::pod::Pod;
use crate::task::Service;

/// The same service under its name before and after containerd 2.0; the messages did not change.
const TASK_V2: &str = "containerd.task.v2.Task";

/// Serves the pod's tasks on the socket that is our standard input.
pub(crate) async fn serve(flags: &Flags) -> anyhow::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned().context("cannot take over the socket")?;
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true).context("standard input is not a listening socket; this mode is started by `start`")?;
    let events = std::env::var(TTRPC_ADDRESS).with_context(|| format!("{TTRPC_ADDRESS} is not set"))?;
    let (events, delivery) = Events::connect(events, flags.namespace.clone()).await.context("cannot connect to containerd for events")?;
    let pod = Arc::new(Pod::new(events));
    let listener = Listener::try_from(listener).context("cannot serve on the socket")?;
    let mut server = Server::new().add_listener(listener).register_service(services(&pod));
    server.start().await.context("cannot serve")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    tracing::info!(id = %flags.id, version = env!("CARGO_PKG_VERSION"), "serving");
    tokio::select! {
        () = pod.exit.notified() => {}
        _ = terminate.recv() => {}
    }
    pod.stop_sandbox().await;
    // Answers and events on their way are finished.
    let _ = server.shutdown().await;
    delivery.finish().await;
    remove_address(&flags.socket);
    Ok(())
}

fn services(pod: &Arc<Pod>) -> HashMap<String, TtrpcService> {
    let service = |pod: &Arc<Pod>| -> Arc<dyn Task + Send + Sync> { Arc::new(Service::new(Arc::clone(pod))) };
    let mut services = create_task(service(pod));
    services.extend(create_task(service(pod)).into_values().map(|methods| (TASK_V2.to_owned(), methods)));
    services
}
