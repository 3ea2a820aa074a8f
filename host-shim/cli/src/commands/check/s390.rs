//! What IBM Secure Execution needs of machine and kernel (IBM SC34-7721).

use super::host::{Host, Seen};
use super::{Check, Tee};

pub(super) fn checks(host: &Host<'_>, tee: Option<Tee>) -> Vec<Check> {
    [cpu(host), protected(host)].into_iter().map(|check| check.needed(tee == Some(Tee::Se))).collect()
}

/// Facility 158 is the ultravisor call facility.
fn cpu(host: &Host<'_>) -> Check {
    let facility = host.cpu("facilities", "158");
    let hint = "needs a z15, LinuxONE III or later with feature code 115, and Linux in an LPAR, not under a hypervisor";
    Check::when(facility == Seen::Is(true), "se-cpu", format!("facility 158: {}", facility.words()), hint)
}

fn protected(host: &Host<'_>) -> Check {
    const NAME: &str = "se-host";
    const FILE: &str = "/sys/firmware/uv/prot_virt_host";
    const HINT: &str = "add prot_virt=1 to the kernel's parameters (/etc/zipl.conf), run zipl and start anew";
    match host.text(FILE) {
        Seen::Is(text) => Check::when(text == "1", NAME, format!("prot_virt_host is {text:?} (expected \"1\")"), HINT),
        Seen::Absent => Check::fail(NAME, format!("{FILE} is missing"), HINT),
        Seen::Unreadable(why) => Check::fail(NAME, format!("{FILE}: {why}"), HINT),
    }
}
