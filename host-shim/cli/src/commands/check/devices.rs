//! What every pod needs of the kernel, whatever protects it: KVM, vsock, tun, cgroup, memory, and a kernel that is not too old.
//!
//! `/dev/vhost-vsock` and `/dev/net/tun` are looked at and not opened: opening them makes the kernel load their modules.

use kata_cc_vmm::config::{Config, VsockMode};

use super::host::{Host, Seen, parse_version};
use super::{Check, Tee};

pub(super) fn checks(host: &Host<'_>, tee: Option<Tee>, config: Option<&Config>) -> Vec<Check> {
    vec![kernel(host, tee), kvm(host, tee), vsock(host, tee, config), tun(host), cgroup(host), memory(host)]
}

fn kernel(host: &Host<'_>, tee: Option<Tee>) -> Check {
    const NAME: &str = "kernel";
    const FILE: &str = "/proc/sys/kernel/osrelease";
    // KVM launches SNP guests since 6.11, TDs since 6.16.
    let need = match tee {
        Some(Tee::Snp) => Some((6, 11)),
        Some(Tee::Tdx) => Some((6, 16)),
        Some(Tee::Se | Tee::Sim) | None => None,
    };
    let release = match host.text(FILE) {
        Seen::Is(text) => text,
        Seen::Absent => return Check::fail(NAME, format!("{FILE} is missing"), "mount /proc").fix("mount -t proc proc /proc"),
        Seen::Unreadable(why) => return Check::fail(NAME, format!("{FILE}: {why}"), "let this user read /proc"),
    };
    match (parse_version(&release), need) {
        (Some(_), None) => Check::pass(NAME, release),
        (Some(found), Some(need)) => {
            let hint = format!("install Linux {}.{} or later, the first whose KVM launches such guests, and start it", need.0, need.1);
            Check::when(found >= need, NAME, format!("{release} (expected at least {}.{})", need.0, need.1), hint)
        }
        (None, _) => Check::fail(NAME, format!("{FILE} says {release:?}, which holds no version"), "use a kernel that tells its version"),
    }
}

fn kvm(host: &Host<'_>, tee: Option<Tee>) -> Check {
    const NAME: &str = "kvm";
    let check = match host.opens("/dev/kvm") {
        Seen::Is(()) => Check::pass(NAME, "/dev/kvm can be opened"),
        Seen::Unreadable(why) => {
            let hint = "run as root, as the shim does, or become a member of the device's group and log in anew";
            Check::fail(NAME, format!("/dev/kvm is there but cannot be opened: {why}"), hint).fix("usermod -aG kvm \"$USER\"")
        }
        Seen::Absent => {
            let missing = "/dev/kvm is missing";
            let module = [("svm", "kvm_amd"), ("vmx", "kvm_intel")].into_iter().find(|(flag, _)| host.cpu("flags", flag) == Seen::Is(true));
            match module {
                Some((_, module)) => {
                    Check::fail(NAME, missing, format!("load the kernel module {module}")).fix(format!("modprobe {module}"))
                }
                None if host.is_s390x() => Check::fail(NAME, missing, "load the kernel module kvm").fix("modprobe kvm"),
                None => Check::fail(
                    NAME,
                    "/dev/kvm is missing, and the processor shows neither svm nor vmx",
                    "turn virtualisation on in the machine's firmware; a VM needs nested virtualisation, and no TEE works in it",
                ),
            }
        }
    };
    // The simulated TEE runs without, only slower.
    check.needed(matches!(tee, Some(Tee::Snp | Tee::Tdx | Tee::Se)))
}

/// Hardware TEEs use the kernel's; the simulated one a process of the pod's, unless its class says `vsock = "kernel"`.
fn vsock(host: &Host<'_>, tee: Option<Tee>, config: Option<&Config>) -> Check {
    const NAME: &str = "vsock";
    const DEVICE: &str = "/dev/vhost-vsock";
    const INSTALL: &str = "cargo install vhost-device-vsock --version 0.3.0 --locked";
    let device = host.there(DEVICE);
    let helper = match config {
        Some(config) => Some(host.at(&config.vhost_device_vsock)).filter(|file| file.is_file()),
        None => host.program("vhost-device-vsock"),
    };
    let by_process = tee == Some(Tee::Sim) && config.is_none_or(|c| c.vsock != VsockMode::Kernel);
    match (device, helper) {
        (_, Some(helper)) if by_process => Check::pass(NAME, helper.display().to_string()),
        (_, None) if by_process => {
            Check::fail(NAME, "no vhost-device-vsock", "install vhost-device-vsock, by which the simulated TEE's guest is reached")
                .fix(INSTALL)
        }
        (Seen::Is(()), _) => Check::pass(NAME, DEVICE),
        (_, Some(helper)) if tee.is_none() => Check::pass(NAME, format!("no {DEVICE}; {} serves the simulated TEE", helper.display())),
        (device, _) => {
            let why = if let Seen::Unreadable(why) = device { why } else { "missing".to_owned() };
            Check::fail(NAME, format!("{DEVICE}: {why}"), "load the kernel module vhost_vsock").fix("modprobe vhost_vsock")
        }
    }
}

fn tun(host: &Host<'_>) -> Check {
    const NAME: &str = "network";
    let hint = "load the kernel module tun";
    match host.there("/dev/net/tun") {
        Seen::Is(()) => Check::pass(NAME, "/dev/net/tun"),
        Seen::Absent => Check::fail(NAME, "/dev/net/tun is missing", hint).fix("modprobe tun"),
        Seen::Unreadable(why) => Check::fail(NAME, format!("/dev/net/tun: {why}"), hint).fix("modprobe tun"),
    }
}

fn cgroup(host: &Host<'_>) -> Check {
    const NAME: &str = "cgroup";
    if host.there("/sys/fs/cgroup/cgroup.controllers") == Seen::Is(()) {
        Check::pass(NAME, "version 2")
    } else if host.there("/sys/fs/cgroup/memory") == Seen::Is(()) {
        Check::pass(NAME, "version 1")
    } else {
        Check::fail(NAME, "nothing mounted at /sys/fs/cgroup", "mount cgroup2 there").fix("mount -t cgroup2 none /sys/fs/cgroup")
    }
}

fn memory(host: &Host<'_>) -> Check {
    const NAME: &str = "memory";
    /// A small pod: 256 MiB of guest, QEMU and the shim.
    const NEED_MIB: u64 = 512;
    let available = |text: String| {
        text.lines().find_map(|l| l.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse::<u64>().ok()).map(|kib| kib / 1024)
    };
    match host.text("/proc/meminfo").map(available) {
        Seen::Is(Some(mib)) => {
            let found = format!("{mib} MiB available (expected at least {NEED_MIB})");
            Check::when(mib >= NEED_MIB, NAME, found, "free memory for at least one pod")
        }
        Seen::Is(None) => Check::fail(NAME, "/proc/meminfo names no MemAvailable", "use Linux 3.14 or later"),
        Seen::Absent => Check::fail(NAME, "/proc/meminfo is missing", "mount /proc").fix("mount -t proc proc /proc"),
        Seen::Unreadable(why) => Check::fail(NAME, format!("/proc/meminfo: {why}"), "let this user read /proc"),
    }
}
