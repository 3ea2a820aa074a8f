//! What Intel TDX needs of processor, kernel and the quote generation service.
//!
//! The kernel's CPU flag `tdx_host_platform` says that the machine's firmware turned TDX on; KVM's parameter, that the TDX module runs.

use kata_cc_vmm::config::Config;
use kata_cc_vmm::tee::tdx::QuoteService;

use super::host::{Host, Seen};
use super::{Check, Tee};

pub(super) fn checks(host: &Host<'_>, tee: Option<Tee>, config: Option<&Config>) -> Vec<Check> {
    let service = config.and_then(|c| c.tdx.clone()).unwrap_or_default().quote_generation_socket;
    let checks = [cpu(host), kvm(host), keys(host), quotes(host, &service)];
    checks.into_iter().map(|check| check.needed(tee == Some(Tee::Tdx))).collect()
}

fn cpu(host: &Host<'_>) -> Check {
    let flag = host.cpu("flags", "tdx_host_platform");
    let hint =
        "needs a Xeon with TDX, turned on in the machine's firmware together with TME-MT and SEAM, and a kernel with CONFIG_INTEL_TDX_HOST";
    Check::when(flag == Seen::Is(true), "tdx-cpu", format!("CPU flag tdx_host_platform: {}", flag.words()), hint)
}

fn kvm(host: &Host<'_>) -> Check {
    const NAME: &str = "tdx-kvm";
    const ON: &str = "modprobe -r kvm_intel && modprobe kvm_intel tdx=1";
    match (host.parameter("kvm_intel", "tdx"), host.there("/sys/module/kvm_intel")) {
        (Seen::Is(true), _) => Check::pass(NAME, "kvm_intel tdx: yes"),
        (Seen::Absent, Seen::Absent) => {
            Check::fail(NAME, "kvm_intel is not loaded", "load the kernel module kvm_intel with TDX").fix("modprobe kvm_intel tdx=1")
        }
        (Seen::Absent, _) => {
            Check::fail(NAME, "kvm_intel has no parameter tdx", "install a kernel of 6.16 or later with CONFIG_KVM_INTEL_TDX")
        }
        (parameter, _) => {
            let hint = "stop all VMs and load kvm_intel with TDX; if it stays off, look for tdx in the kernel's log";
            Check::fail(NAME, format!("kvm_intel tdx: {}", parameter.words()), hint).fix(ON)
        }
    }
}

fn keys(host: &Host<'_>) -> Check {
    const NAME: &str = "tdx-keys";
    match host.capacity("tdx") {
        Seen::Is(Some(count)) if count > 0 => Check::pass(NAME, format!("{count} TDs at once")),
        Seen::Is(_) => Check::fail(NAME, "no key for TDs in misc.capacity", "give TDX a share of the key IDs in the machine's firmware"),
        Seen::Absent => Check::skip(NAME, "not known: no /sys/fs/cgroup/misc.capacity"),
        Seen::Unreadable(why) => Check::fail(NAME, format!("misc.capacity: {why}"), "read /sys/fs/cgroup/misc.capacity as root and see"),
    }
}

fn quotes(host: &Host<'_>, service: &QuoteService) -> Check {
    const NAME: &str = "tdx-quotes";
    let QuoteService::Unix(path) = service else {
        return Check::skip(NAME, format!("the configuration has {service}, which is not called here"));
    };
    match host.there(path) {
        Seen::Is(()) => Check::pass(NAME, path.clone()),
        Seen::Absent => {
            let hint = "install Intel's quote generation service (package tdx-qgs) and start it; without it a TD has no evidence";
            Check::fail(NAME, format!("{path} is missing"), hint).fix("systemctl start qgsd")
        }
        Seen::Unreadable(why) => Check::fail(NAME, format!("{path}: {why}"), "let this user see the directory of the socket"),
    }
}
