//! AMD SEV-SNP (QEMU 9.1 or newer; QEMU's `sev-snp-guest` object).

use std::ffi::OsString;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::strings;
use crate::plan::LaunchPlan;

/// Parameters of an SNP launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snp {
    /// Guest policy bits.
    pub policy: u64,
    /// Position of the C-bit.
    pub cbitpos: u8,
    /// Physical address bits lost to encryption.
    pub reduced_phys_bits: u8,
}

impl Snp {
    pub(crate) fn arguments(&self, plan: &LaunchPlan) -> Vec<OsString> {
        let host_data = STANDARD.encode(plan.initdata_digest.padded::<32>());
        strings([
            "-machine".into(),
            "q35,accel=kvm,kernel_irqchip=split,memory-backend=mem,confidential-guest-support=snp,smm=off,usb=off,vmport=off".into(),
            "-cpu".into(),
            plan.cpu_model.clone(),
            "-m".into(),
            format!("{}M", plan.memory_mib),
            "-object".into(),
            format!("memory-backend-ram,id=mem,size={}M", plan.memory_mib),
            "-object".into(),
            // kernel-hashes puts kernel, initrd and command line into the measurement; without it the firmware alone would be measured.
            format!(
                "sev-snp-guest,id=snp,cbitpos={},reduced-phys-bits={},kernel-hashes=on,policy={:#x},host-data={host_data}",
                self.cbitpos, self.reduced_phys_bits, self.policy
            ),
        ])
    }
}
