//! kata-cc-node: the per-node service. Today it is the containerd proxy snapshotter that keeps image layers off the host.
//!
//! It is not trusted: the guest pulls, verifies and decrypts images itself and looks at nothing this service says. What it gives is
//! economy: without it containerd would download and unpack every image a second time, on the host, in plain sight.
//! Wiring only; see `store` for what is kept and `service` for the interface.

mod error;
mod filter;
mod record;
mod service;
mod socket;
mod store;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

/// How long calls in flight may take after a request to stop.
const GRACE: Duration = Duration::from_secs(5);

/// containerd proxy snapshotter that keeps image layers off the host.
///
/// Tell containerd about it in config.toml:
///
///   [proxy_plugins.kata-cc]
///     type = "snapshot"
///     address = "/run/kata-cc/node.sock"
///
/// and name it as the snapshotter of the kata-cc runtime (containerd 1.7 and later: `snapshotter = "kata-cc"` in the runtime's
/// section; 1.6: for the whole CRI plugin). Logs go to stderr, filtered by RUST_LOG.
#[derive(Parser)]
#[command(name = "kata-cc-node", version, verbatim_doc_comment)]
struct Args {
    /// Unix socket to serve containerd's snapshot API on; created with mode 0600. Not to be given when a service manager hands over
    /// the socket (LISTEN_FDS), which makes restarts of this service invisible to containerd.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Directory for this service's own state; created when missing. Must survive reboots as containerd's root directory does.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Log as JSON lines.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not `Result` from `main`: that would print a backtrace where a sentence is wanted.
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if args.log_json {
        log.json().init()
    } else {
        log.init()
    }

    let inherited = socket::inherited()?;
    let state = std::path::absolute(&args.state).context("cannot make the state path absolute")?;
    // The lock on the state comes first: it decides who may replace the socket.
    let store = store::Store::open(&state)?;
    let listener = match (inherited, &args.socket) {
        (Some(listener), None) => listener,
        (None, Some(path)) => socket::bind(path)?,
        (Some(_), Some(_)) => anyhow::bail!("a service manager handed over a socket and --socket was given; remove one of them"),
        (None, None) => anyhow::bail!("no socket to serve on; give --socket PATH"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(8).enable_all().build()?;
    let served = runtime.block_on(serve(listener, store, &state));
    runtime.shutdown_timeout(GRACE);
    if let Some(path) = &args.socket
        && let Err(error) = std::fs::remove_file(path)
    {
        tracing::warn!(%error, socket = %path.display(), "socket left behind");
    }
    served
}

async fn serve(listener: std::os::unix::net::UnixListener, store: store::Store, state: &std::path::Path) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let snapshots = store.len();
    let service = Arc::new(service::Service::new(store));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder().add_service(containerd_snapshots::server(service)).serve_with_incoming_shutdown(
        UnixListenerStream::new(listener),
        async {
            // An error means that the sender is gone, which also means stop.
            let _ = stopped.await;
        },
    );
    tokio::pin!(server);
    tracing::info!(state = %state.display(), snapshots, "serving");
    socket::notify_ready();
    tokio::select! {
        ended = &mut server => return ended.context("the snapshot service stopped by itself"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    // The receiver lives in `server`, which has not ended.
    let _ = stop.send(());
    match tokio::time::timeout(GRACE, server).await {
        Ok(ended) => ended.context("the snapshot service failed while stopping"),
        Err(_) => {
            tracing::warn!("calls in flight were cut off");
            Ok(())
        }
    }
}
