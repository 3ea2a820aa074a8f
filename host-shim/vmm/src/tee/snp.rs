//! AMD SEV-SNP (QEMU 9.1 or newer; QEMU's `sev-snp-guest` object).

pub mod id_block;

use std::ffi::OsString;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::strings;
use crate::plan::LaunchPlan;

/// Parameters of an SNP launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Snp {
    /// What the guest may be, and must have, to be launched. Default: SMT allowed, nothing else.
    pub policy: GuestPolicy,
    /// Position of the C-bit, CPUID 8000001F EBX\[5:0\]; 51 on every processor with SNP so far.
    pub cbitpos: u8,
    /// Physical address bits that a guest loses to encryption: at most one, whatever CPUID 8000001F EBX\[11:6\] says of the host.
    pub reduced_phys_bits: u8,
    /// The ID block: the measurement that the owner expects, without which the firmware finishes no launch. Only with `id_auth`.
    pub id_block: Option<PathBuf>,
    /// The ID block's signature and keys. Only with `id_block`.
    pub id_auth: Option<PathBuf>,
}

impl Default for Snp {
    fn default() -> Self {
        Self { policy: GuestPolicy::default(), cbitpos: 51, reduced_phys_bits: 1, id_block: None, id_auth: None }
    }
}

/// The guest policy (AMD 56860, section 4.3, table 9), by AMD's names: the firmware launches no guest against it, and it is in every report.
///
/// There is no key for `DEBUG` or `MIGRATE_MA`: the first would let the host read the guest, the second hand it to an agent of the host's.
/// Neither bit can be set by a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "AMD's bits")]
pub struct GuestPolicy {
    /// Lowest major version of the firmware's ABI.
    pub abi_major: u8,
    /// Lowest minor version of the firmware's ABI.
    pub abi_minor: u8,
    /// Whether two threads of a core may be on, which can tell each other's secrets apart. On by default, since most hosts have it on.
    pub smt: bool,
    /// Whether the guest must run on one socket.
    pub single_socket: bool,
    /// Whether memory behind CXL is allowed.
    pub cxl_allow: bool,
    /// Whether memory must be encrypted by AES-256-XTS.
    pub mem_aes_256_xts: bool,
    /// Whether the processor's power meter, which can tell secrets, must be off.
    pub rapl_dis: bool,
    /// Whether the host must be kept from reading the memory's ciphertext.
    pub ciphertext_hiding_dram: bool,
    /// Whether the host may not swap the guest's pages.
    pub page_swap_disable: bool,
}

impl Default for GuestPolicy {
    fn default() -> Self {
        Self {
            abi_major: 0,
            abi_minor: 0,
            smt: true,
            single_socket: false,
            cxl_allow: false,
            mem_aes_256_xts: false,
            rapl_dis: false,
            ciphertext_hiding_dram: false,
            page_swap_disable: false,
        }
    }
}

impl GuestPolicy {
    /// The policy as the launch takes it.
    #[must_use]
    pub fn bits(self) -> u64 {
        /// Must be one.
        const RESERVED: u64 = 1 << 17;
        let flag = |set: bool, bit: u32| u64::from(set) << bit;
        u64::from(self.abi_minor)
            | u64::from(self.abi_major) << 8
            | flag(self.smt, 16)
            | RESERVED
            | flag(self.single_socket, 20)
            | flag(self.cxl_allow, 21)
            | flag(self.mem_aes_256_xts, 22)
            | flag(self.rapl_dis, 23)
            | flag(self.ciphertext_hiding_dram, 24)
            | flag(self.page_swap_disable, 25)
    }
}

impl Snp {
    pub(crate) fn arguments(&self, plan: &LaunchPlan) -> Vec<OsString> {
        let host_data = STANDARD.encode(plan.initdata_digest.padded::<32>());
        let id_block = plan.id_block.as_ref().map(|signed| format!(",{}", signed.properties())).unwrap_or_default();
        strings([
            "-machine".into(),
            "q35,accel=kvm,kernel_irqchip=split,memory-backend=mem,confidential-guest-support=snp,smm=off,usb=off,vmport=off".into(),
            "-cpu".into(),
            // No performance counters: they would be the host's to set up.
            format!("{},pmu=off", plan.cpu_model),
            "-m".into(),
            format!("{}M", plan.memory_mib),
            "-object".into(),
            format!("memory-backend-ram,id=mem,size={}M", plan.memory_mib),
            "-object".into(),
            // kernel-hashes puts kernel, initrd and command line into the measurement; without it the firmware alone would be measured.
            format!(
                "sev-snp-guest,id=snp,cbitpos={},reduced-phys-bits={},kernel-hashes=on,policy={:#x},host-data={host_data}{id_block}",
                self.cbitpos,
                self.reduced_phys_bits,
                self.policy.bits()
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_the_bit_of_amds_table() {
        assert_eq!(GuestPolicy::default().bits(), 0x3_0000);
        let one = |text: &str| toml::from_str::<GuestPolicy>(text).unwrap().bits() ^ 0x3_0000;
        for (text, bits) in [
            ("abi_minor = 58", 58),
            ("abi_major = 1", 1 << 8),
            ("smt = false", 1 << 16),
            ("single_socket = true", 1 << 20),
            ("cxl_allow = true", 1 << 21),
            ("mem_aes_256_xts = true", 1 << 22),
            ("rapl_dis = true", 1 << 23),
            ("ciphertext_hiding_dram = true", 1 << 24),
            ("page_swap_disable = true", 1 << 25),
        ] {
            assert_eq!(one(text), bits, "{text}");
        }
    }

    #[test]
    fn ac_08_no_class_can_ask_for_a_guest_that_may_be_debugged_or_migrated() {
        for text in ["debug = true", "debug = false", "migrate_ma = true", "policy = 0xb0000"] {
            assert!(toml::from_str::<GuestPolicy>(text).is_err(), "{text}");
        }
        let all = GuestPolicy {
            abi_major: u8::MAX,
            abi_minor: u8::MAX,
            smt: true,
            single_socket: true,
            cxl_allow: true,
            mem_aes_256_xts: true,
            rapl_dis: true,
            ciphertext_hiding_dram: true,
            page_swap_disable: true,
        };
        assert_eq!(all.bits() & (1 << 18 | 1 << 19), 0);
    }
}
