//! The programs a pod is started by, other than QEMU.

use std::path::Path;

use super::host::{Host, Seen};
use super::{Check, Tee};

pub(super) fn checks(host: &Host<'_>, tee: Option<Tee>, containerd_address: &Path) -> Vec<Check> {
    let mut checks = vec![containerd(host, containerd_address)];
    for (name, binary, hint) in [
        ("shim", "containerd-shim-kata-cc-v2", "put containerd-shim-kata-cc-v2 into a directory on containerd's PATH"),
        ("node", "kata-cc-node", "install kata-cc-node; without it image layers are also pulled to this host"),
    ] {
        checks.push(program(host, name, binary, hint));
    }
    if tee == Some(Tee::Sim) {
        checks.push(program(host, "tee-sim", "kata-cc-tee-sim", "install kata-cc-tee-sim (development only) or choose a hardware TEE"));
    }
    checks
}

fn containerd(host: &Host<'_>, address: &Path) -> Check {
    const NAME: &str = "containerd";
    const NEED: (u32, u32) = (1, 6);
    const HINT: &str = "install containerd 1.6 or later";
    let Some(binary) = host.program("containerd") else {
        return Check::fail(NAME, "no containerd on PATH", HINT);
    };
    let Some(found @ (major, minor)) = host.version(&binary) else {
        return Check::fail(NAME, format!("{} tells no version", binary.display()), HINT);
    };
    if found < NEED {
        return Check::fail(NAME, format!("version {major}.{minor} (expected at least {}.{})", NEED.0, NEED.1), HINT);
    }
    let socket = address.display();
    match host.there(address) {
        Seen::Is(()) => Check::pass(NAME, format!("version {major}.{minor}, socket {socket}")),
        Seen::Absent => Check::fail(
            NAME,
            format!("version {major}.{minor}, but socket {socket} is missing"),
            "start containerd; name its socket with --containerd-address if it is another",
        )
        .fix("systemctl start containerd"),
        Seen::Unreadable(why) => Check::fail(NAME, format!("socket {socket}: {why}"), "run as root, as the shim does"),
    }
}

fn program(host: &Host<'_>, name: &'static str, binary: &str, hint: &str) -> Check {
    match host.program(binary) {
        Some(path) => Check::pass(name, path.display().to_string()),
        None => Check::fail(name, format!("no {binary} on PATH"), hint),
    }
}
