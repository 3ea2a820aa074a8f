//! kata-cc-node: the per-node service. It is the containerd proxy snapshotter that keeps image layers off the host, and the cache by which guests of this node
//! download a layer once.
//!
//! It is not trusted: the guest pulls, verifies and decrypts images itself and looks at nothing this service says. What it gives is
//! economy: without it containerd would download and unpack every image a second time, on the host, in plain sight; and each guest would download what
//! the one before it has downloaded.
//! Wiring only; see `store` for what is kept of snapshots, `service` for that interface, and `blobs` for the cache.

mod blobs;
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
use clap::{ArgGroup, Parser};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

/// How long calls in flight may take after a request to stop.
const GRACE: Duration = Duration::from_secs(5);

/// containerd proxy snapshotter that keeps image layers off the host, and cache of layer blobs for this node's guests.
///
/// Tell containerd about it in config.toml:
///
///   [proxy_plugins.kata-cc]
///     type = "snapshot"
///     address = "/run/kata-cc/node.sock"
///
/// and name it as the snapshotter of the kata-cc runtime (containerd 1.7 and later: `snapshotter = "kata-cc"` in the runtime's
/// section; 1.6: for the whole CRI plugin).
///
/// The cache is on with --blobs-vsock, for guests whose vsock the kernel carries, and with --blobs-socket, for classes that name
/// the socket as `node_blobs`. Logs go to stderr, filtered by RUST_LOG.
#[derive(Parser)]
#[command(name = "kata-cc-node", version, verbatim_doc_comment)]
#[command(group = ArgGroup::new("blobs").args(["blobs_socket", "blobs_vsock"]).multiple(true))]
struct Args {
    /// Unix socket to serve containerd's snapshot API on; created with mode 0600. Not to be given when a service manager hands over
    /// the socket (LISTEN_FDS), which makes restarts of this service invisible to containerd.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Directory for this service's own state; created when missing. Must survive reboots as containerd's root directory does.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Unix socket to serve blobs on, for guests whose vsock is carried by a process; created with mode 0600.
    #[arg(long, value_name = "PATH")]
    blobs_socket: Option<PathBuf>,
    /// Vsock port to serve blobs on, for guests whose vsock the kernel carries. They ask on port 1022.
    #[arg(long, value_name = "PORT")]
    blobs_vsock: Option<u32>,
    /// What all blobs together may take of the disk (KiB, MiB, GiB, TiB).
    #[arg(long, value_name = "BYTES", value_parser = blobs::size::parse, default_value = "10GiB", requires = "blobs")]
    blobs_size: u64,
    /// The largest blob that is kept. Default: half of --blobs-size.
    #[arg(long, value_name = "BYTES", value_parser = blobs::size::parse, requires = "blobs")]
    blobs_max: Option<u64>,
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
        (None, Some(path)) => socket::bind(path, "--socket")?,
        (Some(_), Some(_)) => anyhow::bail!("a service manager handed over a socket and --socket was given; remove one of them"),
        (None, None) => anyhow::bail!("no socket to serve on; give --socket PATH"),
    };
    let blobs = args.blobs_socket.as_deref().map(|path| socket::bind(path, "--blobs-socket")).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(12).enable_all().build()?;
    let served = runtime.block_on(async {
        serve_blobs(args, blobs, &state)?;
        serve(listener, store, &state).await
    });
    runtime.shutdown_timeout(GRACE);
    for path in args.socket.iter().chain(&args.blobs_socket) {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(%error, socket = %path.display(), "socket left behind");
        }
    }
    served
}

/// Serves blobs beside everything else, where that is asked for. To be called once the state directory is locked.
fn serve_blobs(args: &Args, socket: Option<std::os::unix::net::UnixListener>, state: &std::path::Path) -> anyhow::Result<()> {
    if socket.is_none() && args.blobs_vsock.is_none() {
        return Ok(());
    }
    let dir = blobs::store::directory(state);
    let largest = args.blobs_max.unwrap_or(args.blobs_size / 2);
    let store = blobs::store::BlobStore::open(dir.clone(), args.blobs_size, largest)
        .with_context(|| format!("cannot open the blobs in {}", dir.display()))?;
    let (count, bytes) = store.totals();
    tracing::info!(blobs = count, bytes, capacity = args.blobs_size, largest, "serving blobs");
    let server = blobs::listen::Server::new(store, blobs::listen::Bounds::DEFAULT);
    if let Some(socket) = socket {
        tokio::spawn(server.clone().unix(tokio::net::UnixListener::from_std(socket)?));
    }
    if let Some(port) = args.blobs_vsock {
        let listener = blobs::listen::vsock(port)
            .with_context(|| format!("cannot listen on vsock port {port}; load the module vhost_vsock, or leave out --blobs-vsock"))?;
        tokio::spawn(server.vsock(listener));
    }
    Ok(())
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
