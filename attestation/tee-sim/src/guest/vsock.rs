//! Reports from the host's `kata-cc-tee-sim serve`, over vsock: the wire that in hardware is the guest-request channel to the PSP.

use super::device::TdReports;
use super::tsm::{Hardware, Refusal};
use crate::wire::{Blobs, ReportRequest, Request, WireError, read_response};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, VsockAddr, connect, setsockopt, socket, sockopt::ReceiveTimeout, sockopt::SendTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

/// The host's well-known context id.
const HOST_CID: u32 = 2;
/// Port of the simulated TEE.
const PORT: u32 = 4051;
/// A report takes milliseconds; a host that does not answer must not hang the guest for ever.
const TIMEOUT_SECONDS: i64 = 30;
/// How often to connect: the kernel gives up on a vsock connection after 2 s, which a starved host helper can exceed.
const CONNECTS: usize = 3;

/// The simulated security processor at the other end of the vsock.
#[derive(Debug)]
pub(super) struct HostTee;

impl Hardware for HostTee {
    fn report(&mut self, report_data: &[u8; 64], vmpl: u8) -> Result<Blobs, Refusal> {
        logged(&Request::Report(ReportRequest { report_data: *report_data, vmpl }))
    }
}

impl TdReports for HostTee {
    fn td_report(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, Refusal> {
        Ok(logged(&Request::TdReport(*report_data))?.outblob)
    }
}

/// The event log of this TD's launch.
pub(super) fn event_log() -> Result<Vec<u8>, WireError> {
    Ok(exchange(&Request::EventLog)?.outblob)
}

fn logged(request: &Request) -> Result<Blobs, Refusal> {
    exchange(request).map_err(|e| {
        let cause = std::error::Error::source(&e).map(|c| format!(": {c}")).unwrap_or_default();
        eprintln!("kata-cc-tee-sim: no report from the host (vsock {HOST_CID}:{PORT}): {e}{cause}");
        Refusal::Io
    })
}

fn exchange(request: &Request) -> Result<Blobs, WireError> {
    let mut stream = File::from(connected()?);
    request.write_to(&mut stream)?;
    read_response(&mut stream)
}

fn connected() -> std::io::Result<OwnedFd> {
    let mut tries = CONNECTS;
    loop {
        let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let timeout = TimeVal::seconds(TIMEOUT_SECONDS);
        setsockopt(&socket, ReceiveTimeout, &timeout)?;
        setsockopt(&socket, SendTimeout, &timeout)?;
        tries -= 1;
        match connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, PORT)) {
            Ok(()) => return Ok(socket),
            Err(Errno::ETIMEDOUT) if tries > 0 => {}
            Err(error) => return Err(error.into()),
        }
    }
}
