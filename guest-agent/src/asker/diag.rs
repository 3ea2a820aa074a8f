//! The kernel's word about a socket of this guest: `sock_diag(7)`, one exact question at a time.
//!
//! Layouts: `linux/netlink.h` (`nlmsghdr`, `nlattr`), `linux/inet_diag.h` (`inet_diag_req_v2`, `inet_diag_msg`). The control group has
//! been among the attributes since Linux 5.9, where the kernel has `CONFIG_SOCK_CGROUP_DATA`; answers to exact questions need
//! `CONFIG_INET_DIAG`.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, send, socket};
use thiserror::Error;
use tokio::net::TcpStream;

/// The device of connections within the guest.
const DEVICE: &str = "lo";

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;

/// `NLM_F_REQUEST`, without `NLM_F_DUMP`: one socket.
const REQUEST: u16 = 1;

/// `NLMSG_ERROR`.
const ERROR: u16 = 2;

/// `INET_DIAG_CGROUP_ID`.
const CGROUP_ID: u16 = 21;

/// Lengths of `nlmsghdr`, `inet_diag_msg`, and `nlattr`.
const HEADER: usize = 16;
const MESSAGE: usize = 72;
const ATTRIBUTE: usize = 4;

/// States of TCP in which the peer of a connection still has its socket, closed for writing or not.
const ESTABLISHED: u8 = 1;
const FIN_WAIT: [u8; 2] = [4, 5];

/// State in which our own end is when the peer will write no more.
const CLOSE_WAIT: u8 = 8;

/// Why the kernel does not say whose a socket is.
#[derive(Debug, Error)]
pub(crate) enum DiagError {
    /// It cannot be asked.
    #[error("cannot ask the kernel about a socket: {step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// What it said. `ENOENT`: there is no such socket, or the kernel has no `CONFIG_INET_DIAG`.
        #[source]
        source: io::Error,
    },
    /// Not a connection over IPv4.
    #[error("expected a connection over IPv4")]
    Address,
    /// An answer of another form, or about another socket.
    #[error("the kernel's answer about a socket is not of the form expected")]
    Answer,
    /// The peer is gone, or has never been there.
    #[error("the connection is not there any more")]
    Gone,
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> DiagError {
    move |source| DiagError::Io { step, source: source.into() }
}

/// Number of the control group that the socket at the other end of a connection was made in.
///
/// # Errors
/// When the connection is not there any more, or the kernel does not say.
pub(super) fn peers_group(stream: &TcpStream) -> Result<u64, DiagError> {
    let (own, peer) = match (stream.local_addr().map_err(at("its address"))?, stream.peer_addr().map_err(at("its peer's address"))?) {
        (SocketAddr::V4(own), SocketAddr::V4(peer)) => (own, peer),
        _ => return Err(DiagError::Address),
    };
    let theirs = ask(peer, own)?;
    // After the answer: had the peer been exchanged before it, this end would have been told.
    let ours = ask(own, peer)?;
    let peer_is_there = theirs.state == ESTABLISHED || FIN_WAIT.contains(&theirs.state);
    if !peer_is_there || ![ESTABLISHED, CLOSE_WAIT].contains(&ours.state) {
        return Err(DiagError::Gone);
    }
    theirs.group.ok_or(DiagError::Answer)
}

/// What the kernel said.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    state: u8,
    group: Option<u64>,
}

fn ask(local: SocketAddrV4, remote: SocketAddrV4) -> Result<Answer, DiagError> {
    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, SockProtocol::NetlinkSockDiag)
            .map_err(at("making a socket"))?;
    // A socket that is bound to the device is only found by it; one that is not is found by it too.
    let device = if_nametoindex(DEVICE).map_err(at("finding the loopback device"))?;
    let request = request(local, remote, device);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty()).map_err(at("sending"))?;
    // The kernel answers within `send`: what is not there now will not come.
    let mut buffer = [0; 4096];
    let (length, sender) = recvfrom::<NetlinkAddr>(netlink.as_raw_fd(), &mut buffer).map_err(at("receiving"))?;
    // Zero is the kernel itself; another program in the guest may send to this socket too.
    if sender.is_none_or(|sender| sender.pid() != 0) {
        return Err(DiagError::Answer);
    }
    parse(buffer.get(..length).unwrap_or_default(), local, remote)
}

/// `inet_diag_sockid` up to the device: ports and addresses in network byte order.
fn sockid(local: SocketAddrV4, remote: SocketAddrV4) -> [u8; 36] {
    let mut id = [0; 36];
    let (ports, addresses) = id.split_at_mut(4);
    let (source, destination) = addresses.split_at_mut(16);
    for (to, from) in ports.iter_mut().zip([local.port().to_be_bytes(), remote.port().to_be_bytes()].as_flattened()) {
        *to = *from;
    }
    for (to, from) in source.iter_mut().zip(local.ip().octets()).chain(destination.iter_mut().zip(remote.ip().octets())) {
        *to = from;
    }
    id
}

fn request(local: SocketAddrV4, remote: SocketAddrV4, device: u32) -> Vec<u8> {
    let mut body = vec![libc::AF_INET as u8, libc::IPPROTO_TCP as u8, 0, 0];
    // Any state: whether it is one that is expected is told by the answer.
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(sockid(local, remote));
    body.extend(device.to_ne_bytes());
    // INET_DIAG_NOCOOKIE
    body.extend([0xff; 8]);
    let length = u32::try_from(HEADER + body.len()).unwrap_or_default();
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Sequence and port: this socket asks once.
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn array<const N: usize>(bytes: &[u8], from: usize) -> Option<[u8; N]> {
    bytes.get(from..from.checked_add(N)?)?.try_into().ok()
}

/// Reads an answer about the socket that was asked for.
fn parse(message: &[u8], local: SocketAddrV4, remote: SocketAddrV4) -> Result<Answer, DiagError> {
    let header = || Some((u32::from_ne_bytes(array(message, 0)?), u16::from_ne_bytes(array(message, 4)?)));
    let (length, kind) = header().ok_or(DiagError::Answer)?;
    let body = usize::try_from(length).ok().and_then(|length| message.get(HEADER..length)).ok_or(DiagError::Answer)?;
    if kind == ERROR {
        let code = array(body, 0).map(i32::from_ne_bytes).ok_or(DiagError::Answer)?;
        return Err(at("its answer")(io::Error::from_raw_os_error(code.saturating_neg())));
    }
    // A listening socket is found where there is no connection; it has no remote end.
    if kind != BY_FAMILY || array::<36>(body, 4) != Some(sockid(local, remote)) && !is_mapped(body, local, remote) {
        return Err(DiagError::Answer);
    }
    let state = *body.get(1).ok_or(DiagError::Answer)?;
    let mut rest = body.get(MESSAGE..).ok_or(DiagError::Answer)?;
    let mut group = None;
    while let (Some(length), Some(kind)) = (array(rest, 0).map(u16::from_ne_bytes), array(rest, 2).map(u16::from_ne_bytes)) {
        let length = usize::from(length);
        let value = rest.get(ATTRIBUTE..length).ok_or(DiagError::Answer)?;
        if kind == CGROUP_ID {
            group = Some(u64::from_ne_bytes(value.try_into().map_err(|_| DiagError::Answer)?));
        }
        rest = rest.get(length.next_multiple_of(ATTRIBUTE)..).unwrap_or_default();
    }
    Ok(Answer { state, group })
}

/// Whether it is a socket of IPv6 that talks IPv4: its addresses are `::ffff:` and the others.
fn is_mapped(body: &[u8], local: SocketAddrV4, remote: SocketAddrV4) -> bool {
    let mapped = |address: &SocketAddrV4| address.ip().to_ipv6_mapped().octets();
    array(body, 4) == Some(local.port().to_be_bytes())
        && array(body, 6) == Some(remote.port().to_be_bytes())
        && array(body, 8) == Some(mapped(&local))
        && array(body, 24) == Some(mapped(&remote))
}

#[cfg(test)]
#[path = "diag_tests.rs"]
mod tests;
