//! The sockets of the cache: a unix socket, to which each pod's vsock helper connects in its guest's name, and a vsock port for guests whose vsock the kernel
//! carries.
//!
//! **Invariant:** a connection ends when nothing moves on it, when its head is too long or too slow, and after one request; one too many is closed at once, and
//! its guest asks the registry.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};

use super::idle::Idle;
use super::service;
use super::store::BlobStore;

/// What clients may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Connections at once, over all sockets.
    pub(crate) connections: usize,
    /// How long nothing may move on one.
    pub(crate) silence: Duration,
    /// How long a request's head may take.
    pub(crate) head: Duration,
}

impl Bounds {
    /// Three layers at a time of some eighty guests. A guest gives up earlier than any of these times.
    pub(crate) const DEFAULT: Self = Self { connections: 256, silence: Duration::from_secs(30), head: Duration::from_secs(10) };
}

/// Bytes of a request's head; ours are some 120.
const HEAD_BYTES: usize = 8 << 10;
/// Headers of a request; ours are three.
const HEADERS: usize = 32;
/// What is read ahead of a body.
const READ_AHEAD: usize = 128 << 10;
/// After a connection could not be accepted: most likely there are too many files, which does not change at once.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves blobs on whatever it is given to listen on.
#[derive(Clone)]
pub(crate) struct Server {
    store: BlobStore,
    bounds: Bounds,
    room: Arc<Semaphore>,
}

impl Server {
    pub(crate) fn new(store: BlobStore, bounds: Bounds) -> Self {
        Self { store, bounds, room: Arc::new(Semaphore::new(bounds.connections)) }
    }

    /// Serves on a unix socket until dropped.
    pub(crate) async fn unix(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.admit(stream),
                Err(error) => pause(&error).await,
            }
        }
    }

    /// Serves guests on a vsock port until dropped.
    pub(crate) async fn vsock(self, listener: VsockListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) if is_guest(peer) => self.admit(stream),
                Ok((_, peer)) => tracing::warn!(cid = peer.cid(), "a peer that is no guest was dropped"),
                Err(error) => pause(&error).await,
            }
        }
    }

    fn admit<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(&self, stream: S) {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            tracing::debug!("too many connections; one was closed");
            return;
        };
        let server = self.clone();
        tokio::spawn(async move {
            server.connection(stream).await;
            drop(place);
        });
    }

    /// Serves one connection to its end.
    pub(super) async fn connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(&self, stream: S) {
        let service = service_fn(|request: Request<Incoming>| {
            let store = self.store.clone();
            async move { Ok::<_, std::convert::Infallible>(service::answer(store, request).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.bounds.head)
            .keep_alive(false)
            .max_headers(HEADERS)
            .max_header_size(HEAD_BYTES)
            .max_buf_size(READ_AHEAD)
            .serve_connection(TokioIo::new(Idle::new(stream, self.bounds.silence)), service);
        if let Err(error) = served.await {
            tracing::debug!(%error, "connection ended");
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a connection for blobs could not be accepted");
    tokio::time::sleep(PAUSE).await;
}

/// Listens on a vsock port, for guests.
///
/// # Errors
/// Where the host has no vsock, or somebody listens there.
pub(crate) fn vsock(port: u32) -> io::Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
}

/// Programs of the host reach the port too where its kernel has a loopback transport: any user's. The address is the kernel's word.
fn is_guest(peer: VsockAddr) -> bool {
    peer.cid() > VMADDR_CID_HOST && peer.cid() != VMADDR_CID_ANY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_guests_are_served_on_vsock() {
        for cid in [0, tokio_vsock::VMADDR_CID_LOCAL, VMADDR_CID_HOST, VMADDR_CID_ANY] {
            assert!(!is_guest(VsockAddr::new(cid, 4711)), "{cid}");
        }
        assert!(is_guest(VsockAddr::new(3, 4711)));
    }
}
