//! What the host's kernel offers a machine: its vsock and its packet path.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// `VHOST_VSOCK_SET_GUEST_CID`, linux/vhost.h: _IOW(0xAF, 0x60, u64).
const SET_GUEST_CID: libc::c_ulong = 0x4008_AF60;
/// Addresses 0 to 2 are reserved.
const FIRST_CID: u32 = 3;
/// Collisions are rare among four thousand million addresses; many in a row mean something else is wrong.
const ATTEMPTS: u32 = 64;

/// Reserves a guest address at `/dev/vhost-vsock`. `None` where the host has no such device.
pub fn reserve_vsock() -> io::Result<Option<(u32, OwnedFd)>> {
    let device = match OpenOptions::new().read(true).write(true).open("/dev/vhost-vsock") {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut random = File::open("/dev/urandom")?;
    for _ in 0..ATTEMPTS {
        let mut bytes = [0; 4];
        io::Read::read_exact(&mut random, &mut bytes)?;
        let cid = u32::from_ne_bytes(bytes) & 0x7fff_ffff;
        if cid < FIRST_CID {
            continue;
        }
        match set_guest_cid(&device, cid) {
            Ok(()) => return Ok(Some((cid, device.into()))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no free guest address at /dev/vhost-vsock"))
}

#[expect(unsafe_code, reason = "an ioctl without a wrapper")]
fn set_guest_cid(device: &File, cid: u32) -> io::Result<()> {
    let value = u64::from(cid);
    // SAFETY: the request reads one u64 through the pointer, which is valid for the duration of the call; the descriptor is open.
    if unsafe { libc::ioctl(device.as_raw_fd(), SET_GUEST_CID, &raw const value) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens `/dev/vhost-net`. `None` where the host has no such device.
pub fn vhost_net() -> io::Result<Option<OwnedFd>> {
    match OpenOptions::new().read(true).write(true).open("/dev/vhost-net") {
        Ok(device) => Ok(Some(device.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
