//! The VM save area (VMSA): the register state a vCPU starts with, one measured page each.
//!
//! Layout: AMD 24593 (APM volume 2), appendix B, table B-4. Values: what KVM leaves after a reset, as each VMM sets it.
//! Everything not named here is zero.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha384};

use super::CpuSignature;
use crate::footer::PAGE_LEN;

/// Where the boot vCPU starts: the x86 reset vector.
pub(super) const BSP_RESET: u32 = 0xffff_fff0;

/// Who starts the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Vmm {
    /// QEMU with KVM.
    #[default]
    Qemu,
    /// Amazon EC2.
    Ec2,
    /// Google Compute Engine.
    Gce,
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "qemu",
            Self::Ec2 => "ec2",
            Self::Gce => "gce",
        })
    }
}

/// A VMM whose initial register state is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown VMM {found:?}; expected qemu, ec2 or gce")]
pub struct UnknownVmm {
    found: String,
}

impl FromStr for Vmm {
    type Err = UnknownVmm;

    fn from_str(text: &str) -> Result<Self, UnknownVmm> {
        match text {
            "qemu" | "QEMU" => Ok(Self::Qemu),
            "ec2" => Ok(Self::Ec2),
            "gce" => Ok(Self::Gce),
            other => Err(UnknownVmm { found: other.chars().take(64).collect() }),
        }
    }
}

/// What VMMs disagree on.
struct Differences {
    cs: u16,
    ss: u16,
    tr: u16,
    pat: u64,
    rdx: u64,
    mxcsr: u32,
    fcw: u16,
}

fn differences(eip: u32, vmm: Vmm, cpu: CpuSignature) -> Differences {
    /// PAT after reset: AMD 24593, section 7.8.
    const PAT: u64 = 0x0007_0406_0007_0406;
    match vmm {
        Vmm::Qemu => Differences { cs: 0x9b, ss: 0x93, tr: 0x8b, pat: PAT, rdx: u64::from(cpu.value()), mxcsr: 0x1f80, fcw: 0x37f },
        Vmm::Ec2 => {
            let cs = if eip == BSP_RESET { 0x9a } else { 0x9b };
            Differences { cs, ss: 0x92, tr: 0x83, pat: PAT, rdx: 0x600, mxcsr: 0, fcw: 0 }
        }
        Vmm::Gce => Differences { cs: 0x9b, ss: 0x93, tr: 0x8b, pat: 0x0007_0106, rdx: 0x600, mxcsr: 0, fcw: 0 },
    }
}

/// A page under construction. Offsets are constants of table B-4, all well inside the page.
struct Page([u8; PAGE_LEN]);

impl Page {
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        self.0[offset..offset + N].copy_from_slice(&bytes);
    }

    fn u64(&mut self, offset: usize, value: u64) {
        self.put(offset, value.to_le_bytes());
    }

    /// Selector, attributes, limit, base. All limits are 64 KiB: real mode.
    fn segment(&mut self, offset: usize, selector: u16, attributes: u16, base: u64) {
        self.put(offset, selector.to_le_bytes());
        self.put(offset + 2, attributes.to_le_bytes());
        self.put(offset + 4, 0xffff_u32.to_le_bytes());
        self.u64(offset + 8, base);
    }
}

/// The page of a vCPU that starts at `eip`.
fn page(eip: u32, vmm: Vmm, cpu: CpuSignature, features: u64) -> [u8; PAGE_LEN] {
    let own = differences(eip, vmm, cpu);
    let mut page = Page([0; PAGE_LEN]);
    page.segment(0x000, 0, 0x93, 0); // ES
    page.segment(0x010, 0xf000, own.cs, u64::from(eip & 0xffff_0000)); // CS
    page.segment(0x020, 0, own.ss, 0); // SS
    page.segment(0x030, 0, 0x93, 0); // DS
    page.segment(0x040, 0, 0x93, 0); // FS
    page.segment(0x050, 0, 0x93, 0); // GS
    page.segment(0x060, 0, 0, 0); // GDTR
    page.segment(0x070, 0, 0x82, 0); // LDTR
    page.segment(0x080, 0, 0, 0); // IDTR
    page.segment(0x090, 0, own.tr, 0); // TR
    page.u64(0x0d0, 0x1000); // EFER: KVM sets SVME
    page.u64(0x148, 0x40); // CR4: KVM sets MCE
    page.u64(0x158, 0x10); // CR0
    page.u64(0x160, 0x400); // DR7
    page.u64(0x168, 0xffff_0ff0); // DR6
    page.u64(0x170, 0x2); // RFLAGS
    page.u64(0x178, u64::from(eip & 0xffff)); // RIP
    page.u64(0x268, own.pat); // G_PAT
    page.u64(0x310, own.rdx); // RDX
    page.u64(0x3b0, features); // SEV_FEATURES
    page.u64(0x3e8, 0x1); // XCR0
    page.put(0x408, own.mxcsr.to_le_bytes()); // MXCSR
    page.put(0x410, own.fcw.to_le_bytes()); // x87 FCW
    page.0
}

/// SHA-384 of that page.
pub(super) fn page_hash(eip: u32, vmm: Vmm, cpu: CpuSignature, features: u64) -> [u8; 48] {
    Sha384::digest(page(eip, vmm, cpu, features)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_qemu_lets_the_cpu_model_into_the_measurement() {
        let (a, b) = (CpuSignature::new(1), CpuSignature::new(2));
        assert_ne!(page(BSP_RESET, Vmm::Qemu, a, 1), page(BSP_RESET, Vmm::Qemu, b, 1));
        assert_eq!(page(BSP_RESET, Vmm::Ec2, a, 1), page(BSP_RESET, Vmm::Ec2, b, 1));
        assert_eq!(page(BSP_RESET, Vmm::Gce, a, 1), page(BSP_RESET, Vmm::Gce, b, 1));
    }

    #[test]
    fn start_address_is_split_between_code_segment_and_instruction_pointer() {
        let page = page(0x0080_b004, Vmm::Qemu, CpuSignature::new(0), 0);
        assert_eq!(page[0x18..0x20], 0x0080_0000_u64.to_le_bytes());
        assert_eq!(page[0x178..0x180], 0xb004_u64.to_le_bytes());
    }

    #[test]
    fn refuses_a_vmm_it_does_not_know() {
        assert_eq!("qemu".parse(), Ok(Vmm::Qemu));
        assert!("cloud-hypervisor".parse::<Vmm>().is_err());
    }
}
