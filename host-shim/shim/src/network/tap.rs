//! A tap beside an interface, and every packet redirected between the two.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Handle, LinkUnspec};

use super::{Interface, NetworkError};

/// tc's handle of an ingress queue (`ffff:`).
const INGRESS: u32 = 0xffff_0000;
/// `ETH_P_ALL` in network order, as tc carries protocols.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

fn step(step: &'static str) -> impl Fn(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink { step, source }
}

/// Makes the tap and joins it with the interface.
pub(super) async fn attach(handle: &Handle, number: usize, interface: &Interface) -> Result<OwnedFd, NetworkError> {
    let name = format!("tap{number}_kata");
    let failed = |source| NetworkError::Tap { name: name.clone(), source };
    let tap = create(&name).map_err(failed)?;
    let index = nix::net::if_::if_nametoindex(name.as_str()).map_err(|errno| failed(errno.into()))?;
    // The tap is a wire, not an interface of the namespace: it must not speak for itself. Kernels without IPv6 have no such file.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let change = LinkUnspec::new_with_index(index).mtu(interface.mtu).up().build();
    handle.link().set(change).execute().await.map_err(step("cannot bring the tap up"))?;
    for end in [index, interface.index] {
        handle.qdisc().replace(signed(end)?).ingress().execute().await.map_err(step("cannot add an ingress queue"))?;
    }
    for (from, to) in [(index, interface.index), (interface.index, index)] {
        let filter = handle.traffic_filter(signed(from)?).add().parent(INGRESS).protocol(ALL_PROTOCOLS);
        let filter = filter.redirect(to).map_err(step("cannot redirect packets"))?;
        filter.execute().await.map_err(step("cannot redirect packets (the kernel needs cls_u32 and act_mirred)"))?;
    }
    Ok(tap)
}

/// Removes the interface's ingress queue, and with it the redirection.
pub(super) async fn detach(handle: &Handle, interface: &Interface) {
    if let Ok(index) = signed(interface.index) {
        let mut request = handle.qdisc().del(index);
        request.message_mut().header.parent = TcHandle::INGRESS;
        let _ = request.execute().await;
    }
}

fn signed(index: u32) -> Result<i32, NetworkError> {
    i32::try_from(index).map_err(|_| NetworkError::Tap { name: index.to_string(), source: io::ErrorKind::InvalidInput.into() })
}

#[expect(unsafe_code, reason = "an ioctl without a wrapper")]
fn create(name: &str) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain old data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // With packet headers, so that checksums and segmentation are left to whoever can do them best.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq through the pointer, which is valid for the duration of the call; the descriptor is open.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device.into())
}
