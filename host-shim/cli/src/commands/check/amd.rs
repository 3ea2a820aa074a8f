//! What AMD SEV-SNP needs of processor, firmware and kernel.
//!
//! The processor has the feature (CPUID 8000001F, AMD 24594 appendix E) whether or not the machine's firmware turns it on; the kernel's
//! CPU flag `sev_snp` says that an RMP table is set up. KVM's parameter says that the security processor was initialised with it.

use super::host::{Host, Seen};
use super::{Check, Tee};

/// Encrypted memory of AMD: features, position of the C-bit, numbers of guests.
const ENCRYPTED_MEMORY: u32 = 0x8000_001f;

/// What CPUID 8000001F says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EncryptedMemory {
    /// EAX bit 4.
    pub(super) snp: bool,
    /// EBX\[5:0\]: position of the C-bit.
    pub(super) cbitpos: u8,
    /// EBX\[11:6\]: physical address bits lost.
    pub(super) reduced_phys_bits: u8,
    /// ECX: encrypted guests at once.
    pub(super) guests: u32,
}

impl EncryptedMemory {
    pub(super) fn of(host: &Host<'_>) -> Option<Self> {
        let [eax, ebx, ecx, _] = (host.cpuid)(ENCRYPTED_MEMORY)?;
        let [cbitpos, reduced_phys_bits] = [ebx & 0x3f, ebx >> 6 & 0x3f].map(|bits| bits as u8);
        Some(Self { snp: eax >> 4 & 1 == 1, cbitpos, reduced_phys_bits, guests: ecx })
    }
}

pub(super) fn checks(host: &Host<'_>, tee: Option<Tee>) -> Vec<Check> {
    [cpu(host), kvm(host), device(host), asids(host)].into_iter().map(|check| check.needed(tee == Some(Tee::Snp))).collect()
}

fn cpu(host: &Host<'_>) -> Check {
    const NAME: &str = "snp-cpu";
    let flag = host.cpu("flags", "sev_snp");
    match EncryptedMemory::of(host) {
        Some(EncryptedMemory { snp: true, cbitpos, reduced_phys_bits, guests }) => {
            let found =
                format!("CPU flag sev_snp: {}, C-bit {cbitpos}, {reduced_phys_bits} address bits lost, {guests} guests", flag.words());
            let hint = "the processor has SEV-SNP but the kernel cannot use it: turn on SME, SEV-SNP, the RMP table and the IOMMU in the \
                        machine's firmware, and look for SEV-SNP and RMP in the kernel's log";
            Check::when(flag == Seen::Is(true), NAME, found, hint)
        }
        Some(_) => Check::fail(NAME, "CPUID 8000001F EAX bit 4 is 0", "SEV-SNP needs an EPYC 7003 or later, and no VM"),
        None => Check::fail(NAME, "no CPUID leaf 8000001F", "SEV-SNP needs an EPYC 7003 or later, and no VM"),
    }
}

fn kvm(host: &Host<'_>) -> Check {
    const NAME: &str = "snp-kvm";
    let found = |parameter: &Seen<bool>| format!("kvm_amd sev_snp: {}", parameter.words());
    match (host.parameter("kvm_amd", "sev_snp"), host.there("/sys/module/kvm_amd")) {
        (parameter @ Seen::Is(true), _) => Check::pass(NAME, found(&parameter)),
        (Seen::Absent, Seen::Absent) => {
            Check::fail(NAME, "kvm_amd is not loaded", "load the kernel module kvm_amd").fix("modprobe kvm_amd")
        }
        (Seen::Absent, _) => {
            Check::fail(NAME, "kvm_amd has no parameter sev_snp", "install a kernel of 6.11 or later with CONFIG_KVM_AMD_SEV")
        }
        (parameter @ Seen::Is(false), _) if host.cpu("flags", "sev_snp") != Seen::Is(true) => {
            Check::fail(NAME, found(&parameter), "comes by itself when the processor's SEV-SNP is usable (see snp-cpu)")
        }
        (parameter, _) => {
            let hint = "stop all VMs and load kvm_amd with it; remove options against it from /etc/modprobe.d";
            Check::fail(NAME, found(&parameter), hint).fix("modprobe -r kvm_amd && modprobe kvm_amd sev=1 sev_es=1 sev_snp=1")
        }
    }
}

fn device(host: &Host<'_>) -> Check {
    const NAME: &str = "snp-device";
    match host.opens("/dev/sev") {
        Seen::Is(()) => Check::pass(NAME, "/dev/sev can be opened"),
        Seen::Absent => Check::fail(NAME, "/dev/sev is missing", "load the driver of the security processor").fix("modprobe ccp"),
        Seen::Unreadable(why) => Check::fail(NAME, format!("/dev/sev cannot be opened: {why}"), "run as root, as the shim does"),
    }
}

/// Guests of SEV-SNP take identifiers of those for SEV-ES.
fn asids(host: &Host<'_>) -> Check {
    const NAME: &str = "snp-asids";
    match host.capacity("sev_es") {
        Seen::Is(Some(count)) if count > 0 => Check::pass(NAME, format!("{count} SEV-ES/SNP guests at once")),
        Seen::Is(_) => {
            let hint = "raise the minimum SEV ASID without SEV-ES (\"SEV-ES ASID space limit\") in the machine's firmware";
            Check::fail(NAME, "no ASID for SEV-ES/SNP guests in misc.capacity", hint)
        }
        Seen::Absent => Check::skip(NAME, "not known: no /sys/fs/cgroup/misc.capacity"),
        Seen::Unreadable(why) => Check::fail(NAME, format!("misc.capacity: {why}"), "read /sys/fs/cgroup/misc.capacity as root and see"),
    }
}
