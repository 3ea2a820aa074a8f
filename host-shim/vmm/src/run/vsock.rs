//! Connections to the guest through the vsock helper, and the helper's readiness.
//!
//! Host to guest: connect to the helper's socket, write `CONNECT <port>\n`, read `OK <n>\n`, then raw bytes. Guest to host: the helper connects to
//! the socket's path with `_<port>` appended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;

use crate::plan::{READY_PORT, guest_port_socket};

/// Longest answer to `CONNECT`: `OK ` and a 32-bit number.
const MAX_ANSWER: usize = 16;
/// Between binding and listening a helper refuses connections for some microseconds, and nothing tells when that is over.
const LISTEN_RETRY: Duration = Duration::from_millis(1);

/// Waits for the appearance of a helper's socket. Made before the helper is started, so that nothing is missed.
#[derive(Debug)]
pub(super) struct SocketWatch {
    inotify: AsyncFd<OwnedFd>,
}

#[expect(unsafe_code, reason = "tokio cannot know that a type always names the same descriptor")]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names one open descriptor for as long as it lives, and AsyncFd keeps it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

impl SocketWatch {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(dir, AddWatchFlags::IN_CREATE)?;
        Ok(Self { inotify: register(inotify.into())? })
    }

    /// Connects to `socket` as soon as it is there.
    pub(super) async fn connect(&self, socket: &Path) -> io::Result<OwnedFd> {
        loop {
            match StdUnixStream::connect(socket) {
                Ok(stream) => return Ok(stream.into()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => tokio::time::sleep(LISTEN_RETRY).await,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let mut guard = self.inotify.readable().await?;
                    // The events' content does not matter: look again.
                    let _ = nix::unistd::read(guard.get_inner(), &mut [0; 4096]);
                    guard.clear_ready();
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Listens for the agent's first sign of life.
#[derive(Debug)]
pub struct ReadyListener(UnixListener);

impl ReadyListener {
    /// Made before the machine is started, so that nothing is missed.
    pub fn bind(vsock_socket: &Path) -> io::Result<Self> {
        UnixListener::bind(guest_port_socket(vsock_socket, READY_PORT)).map(Self)
    }

    /// Waits until the agent has connected. Nothing is read: the connection is a hint, not a message.
    pub async fn ready(&self) -> io::Result<()> {
        self.0.accept().await.map(drop)
    }
}

/// Ends each of the guest's connections to a port of the host at once. Where nobody listens, vhost-device-vsock 0.3 gives the guest no answer at all, and
/// it would wait.
#[derive(Debug)]
pub struct Refusing(AbortHandle);

impl Refusing {
    /// Refuses until dropped.
    pub fn bind(vsock_socket: &Path, port: u32) -> io::Result<Self> {
        let listener = UnixListener::bind(guest_port_socket(vsock_socket, port))?;
        // An error ends it: the guest waits then, and no longer than it waits for anything of the host's.
        let refuse = async move { while listener.accept().await.is_ok() {} };
        Ok(Self(tokio::spawn(refuse).abort_handle()))
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connects to a port of the guest. A guest that does not listen (yet) is `ConnectionRefused`.
pub async fn connect(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the line belongs to the caller.
    loop {
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) if answer.len() < MAX_ANSWER => answer.push(byte),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "vsock helper: expected `OK <n>`, found a longer answer")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(io::ErrorKind::ConnectionRefused.into()),
            Err(error) => return Err(error),
        }
    }
    if answer.starts_with(b"OK ") {
        Ok(stream)
    } else {
        let found = String::from_utf8_lossy(&answer).escape_debug().to_string();
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("vsock helper: expected `OK <n>`, found {found:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answering(answer: &'static [u8]) -> io::Result<UnixStream> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"CONNECT 1024\n");
            stream.write_all(answer).await.unwrap();
        });
        let result = connect(&path, 1024).await;
        server.await.unwrap();
        result
    }

    #[tokio::test]
    async fn leaves_the_bytes_after_the_answer_to_the_caller() {
        let mut rest = Vec::new();
        answering(b"OK 7\nhello").await.unwrap().read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"hello");
    }

    #[tokio::test]
    async fn tells_a_guest_that_does_not_listen_from_a_helper_that_lies() {
        assert_eq!(answering(b"").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(answering(b"NO\n").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(answering(&[b'O'; 64]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_refused_port_ends_every_connection_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock.sock");
        let refusing = Refusing::bind(&socket, 1022).unwrap();
        for _ in 0..3 {
            let mut stream = UnixStream::connect(guest_port_socket(&socket, 1022)).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.is_empty());
        }
        drop(refusing);
        while UnixStream::connect(guest_port_socket(&socket, 1022)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn connects_as_soon_as_a_socket_appears() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("late.sock");
        let watch = SocketWatch::new(dir.path()).unwrap();
        let late = path.clone();
        let (connected, listener) = tokio::join!(watch.connect(&path), async move {
            tokio::task::yield_now().await;
            UnixListener::bind(late).unwrap()
        });
        connected.unwrap();
        drop(listener);
    }
}
