//! The guest's vsock: the host's connections and nobody else's, and ours to the host, with writes kept small.
//!
//! A program in the pod can open a vsock to this guest too where the kernel has a loopback transport, and then it would be heard as the
//! host is, who may for example end containers. The peer's address is the kernel's word: only the host has the one of the host.
//!
//! Since Linux 6.12.42 a write of more than about 32 KiB becomes a packet in several pieces of memory. Devices built on rust-vmm's
//! `virtio-vsock` (up to 0.10 at least) take a header and one piece, drop anything else, and the connection stands still for ever.
//! A write that is kept below that is one piece on every kernel, and costs nothing that could be measured.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use kata_cc_agent_protocol::rpc::ttrpc::r#async::transport::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// The largest write.
const MAX_WRITE: usize = 16 * 1024;

/// A stream whose writes are at most [`MAX_WRITE`] long.
struct SmallWrites<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for SmallWrites<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SmallWrites<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let part = buf.get(..MAX_WRITE).unwrap_or(buf);
        Pin::new(&mut self.0).poll_write(cx, part)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Listens on a port, for the host.
///
/// # Errors
/// When the guest has no vsock device.
pub(crate) fn listen(port: u32) -> io::Result<Listener> {
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?;
    Ok(Listener::new(connections(listener)))
}

/// Connects to a port of the host.
///
/// # Errors
/// When nobody listens there, or the guest has no vsock device.
pub(crate) async fn connect(port: u32) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
    VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await.map(SmallWrites)
}

fn connections(listener: VsockListener) -> impl Stream<Item = io::Result<impl AsyncRead + AsyncWrite + Send + Sync + 'static>> + Send {
    futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((_, peer)) if !is_host(peer) => tracing::warn!(cid = peer.cid(), "a peer that is not the host was dropped"),
                accepted => return Some((accepted.map(|(stream, _)| SmallWrites(stream)), listener)),
            }
        }
    })
}

fn is_host(peer: VsockAddr) -> bool {
    peer.cid() == VMADDR_CID_HOST
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn only_the_host_is_heard() {
        // The hypervisor, this guest by itself, this guest and others by number, and anybody.
        for cid in [0, tokio_vsock::VMADDR_CID_LOCAL, 3, 4711, VMADDR_CID_ANY] {
            assert!(!is_host(VsockAddr::new(cid, 1024)), "{cid}");
        }
        assert!(is_host(VsockAddr::new(2, 1024)));
    }

    #[tokio::test]
    async fn writes_are_cut_and_nothing_is_lost() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut near = SmallWrites(near);
        let data: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        assert_eq!(near.write(&data).await.unwrap(), MAX_WRITE);
        near.write_all(&data[MAX_WRITE..]).await.unwrap();
        drop(near);
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert!(received == data);
    }
}
