//! The unix sockets containerd and guests connect to.
//!
//! Invariants: only this user can open it from the first instant on, and a socket another service answers on is never taken away.
//! A service manager may hold the socket instead (`LISTEN_FDS`, sd_listen_fds(3)): then containerd's calls wait during a restart of
//! this service, where they would otherwise fail until gRPC's reconnection delay is over.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, bail};
use nix::sys::stat::{Mode, umask};

/// Binds the socket that `option` names, replacing one nobody listens on any more. To be called before any other thread runs (the umask is the process's).
pub(crate) fn bind(path: &Path, option: &str) -> anyhow::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{} exists and is not a socket; choose another path for {option}", path.display())
        }
        Ok(_) => {
            if UnixStream::connect(path).is_ok() {
                bail!("another service answers on {}; stop it or choose another path for {option}", path.display());
            }
            std::fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {}", path.display()))?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            }
        }
        Err(e) => return Err(e).with_context(|| format!("cannot look at {}", path.display())),
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.with_context(|| format!("cannot listen on {} (a socket path has at most 107 bytes)", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The socket a service manager handed over, if it did. To be called once, before anything else opens a file.
pub(crate) fn inherited() -> anyhow::Result<Option<UnixListener>> {
    /// First descriptor of sd_listen_fds(3).
    const FIRST: i32 = 3;
    let meant_for_us = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let Ok(count) = std::env::var("LISTEN_FDS") else { return Ok(None) };
    if !meant_for_us {
        return Ok(None);
    }
    if count != "1" {
        bail!("the service manager handed over {count} sockets; expected one (ListenStream= once in the socket unit)");
    }
    let name = nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(FIRST)
        .context("LISTEN_FDS is set, but descriptor 3 is not a unix socket")?;
    #[expect(unsafe_code, reason = "the service manager names an inherited descriptor by number; there is no safe way to take it")]
    // SAFETY: `FromRawFd` wants an open descriptor nobody else owns. The kernel just answered for it, so it is open. LISTEN_PID says that it was
    // opened for this very process; this is called once, first thing in `main`, before anything could have opened or taken a
    // descriptor of that number.
    let fd = unsafe { OwnedFd::from_raw_fd(FIRST) };
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    tracing::debug!(?name, "socket taken over from the service manager");
    Ok(Some(listener))
}

/// Tells a service manager that calls are answered from now on, if one asked for it (`NOTIFY_SOCKET`, sd_notify(3)).
pub(crate) fn notify_ready() {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        match address.as_bytes().strip_prefix(b"@") {
            Some(name) => socket.send_to_addr(b"READY=1", &std::os::unix::net::SocketAddr::from_abstract_name(name)?),
            None => socket.send_to(b"READY=1", &address),
        }
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "the service manager could not be told that this service is ready");
    }
}
