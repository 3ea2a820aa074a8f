//! The SEV-SNP launch digest of a guest started by QEMU (or by Amazon EC2 or Google Compute Engine).
//!
//! The digest is a chain: 48 zero bytes, then for each page given to the guest before its first instruction
//! `SHA-384(PAGE_INFO)`, where PAGE_INFO holds the digest so far (AMD 56860, SEV-SNP firmware ABI, section 8.17.2).
//! The order is the VMM's: firmware pages, the sections of the firmware's SEV metadata, then one VMSA page per vCPU.
//!
//! This file composes; [`firmware`] reads images, [`hashes`] makes the kernel hash page, [`vmsa`] the initial register
//! state, [`chain`] the digest, [`cpu`] names CPU models, [`range`] makes many digests of one image. Memory size, disks and network are not part of the measurement.
//!
//! Invariant: an image the hardware could not launch as described is refused, not measured to something plausible.

pub mod chain;
pub mod cpu;
pub mod firmware;
pub mod hashes;
pub mod range;
pub mod vmsa;

use std::path::{Path, PathBuf};

pub use chain::LaunchDigest;
pub use cpu::{CpuModel, CpuSignature, UnknownCpuModel};
pub use firmware::{FirmwareError, HashTableError, SectionKind, SnpFirmware};
pub use hashes::KernelHashes;
pub use range::CpuDigests;
pub use vmsa::{UnknownVmm, Vmm};

use crate::footer::PAGE;
use chain::{Chain, PageType};

/// More vCPUs than this no VMM gives to one guest (KVM's own limit on x86 is 4096).
pub const MAX_VCPUS: u32 = 4096;

/// Everything that enters the launch digest of an SEV-SNP guest.
#[derive(Debug, Clone)]
pub struct SnpLaunch<'a> {
    /// The firmware image, byte for byte as it is given to the VMM.
    pub firmware: &'a [u8],
    /// Hashes of kernel, initrd and command line when the VMM is started with `kernel-hashes=on`; `None` when the
    /// firmware finds its own next stage.
    pub kernel: Option<KernelHashes>,
    /// Number of vCPUs at launch. Each adds a page to the measurement.
    pub vcpus: u32,
    /// The virtual CPU's model. Only QEMU lets it into the measurement.
    pub vcpu_type: CpuModel,
    /// SEV_FEATURES of the VMSA: bit 0 is SNPActive, bit 5 DebugSwap.
    pub guest_features: u64,
    /// Who starts the guest; the initial register state differs.
    pub vmm: Vmm,
}

impl SnpLaunch<'_> {
    /// The launch digest.
    ///
    /// # Errors
    /// When the image has no usable SEV metadata, or cannot be launched with these parameters.
    pub fn digest(&self) -> Result<LaunchDigest, MeasureError> {
        SnpFirmware::parse(self.firmware)?.digest(&SnpVcpus {
            kernel: self.kernel.as_ref(),
            vcpus: self.vcpus,
            vcpu_type: self.vcpu_type,
            guest_features: self.guest_features,
            vmm: self.vmm,
        })
    }
}

/// [`SnpLaunch`] without the firmware: for many digests of one image, whose pages are then hashed once.
#[derive(Debug, Clone)]
pub struct SnpVcpus<'a> {
    /// See [`SnpLaunch::kernel`].
    pub kernel: Option<&'a KernelHashes>,
    /// See [`SnpLaunch::vcpus`].
    pub vcpus: u32,
    /// See [`SnpLaunch::vcpu_type`].
    pub vcpu_type: CpuModel,
    /// See [`SnpLaunch::guest_features`].
    pub guest_features: u64,
    /// See [`SnpLaunch::vmm`].
    pub vmm: Vmm,
}

impl SnpFirmware {
    /// The launch digest of a guest with this firmware.
    ///
    /// # Errors
    /// As [`SnpLaunch::digest`].
    pub fn digest(&self, launch: &SnpVcpus<'_>) -> Result<LaunchDigest, MeasureError> {
        let mut last = None;
        self.each_digest(launch, |_, digest| last = Some(digest))?;
        last.ok_or(MeasureError::VcpuCount { found: launch.vcpus })
    }

    /// The launch digests for 1, 2, … `launch.vcpus` vCPUs, in that order. Costs one VMSA page each, since every
    /// digest continues the one before: a reference manifest that lists all sizes of a pod is as cheap as the largest.
    ///
    /// # Errors
    /// As [`SnpLaunch::digest`].
    pub fn digests_per_vcpu_count(&self, launch: &SnpVcpus<'_>) -> Result<Vec<LaunchDigest>, MeasureError> {
        let mut all = Vec::new();
        self.each_digest(launch, |_, digest| all.push(digest))?;
        Ok(all)
    }

    fn each_digest(&self, launch: &SnpVcpus<'_>, mut each: impl FnMut(u32, LaunchDigest)) -> Result<(), MeasureError> {
        if launch.vcpus == 0 || launch.vcpus > MAX_VCPUS {
            return Err(MeasureError::VcpuCount { found: launch.vcpus });
        }
        if launch.vcpus > 1 && self.ap_reset() == 0 {
            return Err(MeasureError::NoApReset { vcpus: launch.vcpus });
        }
        let mut chain = Chain::continued(self.image_digest());
        self.add_sections(&mut chain, launch)?;
        let state = |eip| vmsa::page_hash(eip, launch.vmm, launch.vcpu_type.signature(), launch.guest_features);
        let boot = state(vmsa::BSP_RESET);
        let others = if launch.vcpus > 1 { state(self.ap_reset()) } else { boot };
        for n in 1..=launch.vcpus {
            chain.vmsa(if n == 1 { &boot } else { &others });
            each(n, chain.digest());
        }
        Ok(())
    }

    fn add_sections(&self, chain: &mut Chain, launch: &SnpVcpus<'_>) -> Result<(), MeasureError> {
        let page = match launch.kernel {
            None => None,
            Some(hashes) => Some(hashes.page(self.hash_table_offset()?).expect("an offset is one where the table fits")),
        };
        for section in self.sections() {
            let (gpa, size) = (section.gpa(), section.size());
            match section.kind() {
                SectionKind::SecMem if launch.vmm == Vmm::Gce => chain.pages(PageType::Unmeasured, gpa, size),
                SectionKind::SecMem | SectionKind::SvsmCaa => chain.pages(PageType::Zero, gpa, size),
                SectionKind::Secrets => chain.pages(PageType::Secrets, gpa, PAGE),
                // EC2 gives the CPUID page after everything else.
                SectionKind::Cpuid if launch.vmm == Vmm::Ec2 => {}
                SectionKind::Cpuid => chain.pages(PageType::Cpuid, gpa, PAGE),
                SectionKind::KernelHashes => match &page {
                    None => chain.pages(PageType::Zero, gpa, size),
                    Some(page) => chain.normal(gpa, page),
                },
            }
        }
        if launch.vmm == Vmm::Ec2 {
            for section in self.sections().iter().filter(|s| s.kind() == SectionKind::Cpuid) {
                chain.pages(PageType::Cpuid, section.gpa(), PAGE);
            }
        }
        Ok(())
    }
}

/// [`SnpLaunch`] by file names.
#[derive(Debug, Clone)]
pub struct SnpFiles<'a> {
    /// Path of the firmware image.
    pub firmware: &'a Path,
    /// Path of the kernel, if the VMM is started with one.
    pub kernel: Option<&'a Path>,
    /// Path of the initrd; only with a kernel.
    pub initrd: Option<&'a Path>,
    /// Kernel command line, without a trailing NUL; only with a kernel.
    pub append: Option<&'a str>,
    /// See [`SnpLaunch::vcpus`].
    pub vcpus: u32,
    /// See [`SnpLaunch::vcpu_type`].
    pub vcpu_type: CpuModel,
    /// See [`SnpLaunch::guest_features`].
    pub guest_features: u64,
    /// See [`SnpLaunch::vmm`].
    pub vmm: Vmm,
}

/// The launch digest of a guest started from these files. Kernel and initrd are streamed, never held whole.
///
/// # Errors
/// When a file cannot be read, or as [`SnpLaunch::digest`].
pub fn measure_files(files: &SnpFiles<'_>) -> Result<LaunchDigest, MeasureError> {
    let firmware = SnpFirmware::read(files.firmware)?;
    let kernel = match files.kernel {
        Some(kernel) => Some(KernelHashes::of_files(kernel, files.initrd, files.append.unwrap_or(""))?),
        None if files.initrd.is_some() || files.append.is_some_and(|a| !a.is_empty()) => return Err(MeasureError::NothingToHash),
        None => None,
    };
    firmware.digest(&SnpVcpus {
        kernel: kernel.as_ref(),
        vcpus: files.vcpus,
        vcpu_type: files.vcpu_type,
        guest_features: files.guest_features,
        vmm: files.vmm,
    })
}

/// Why there is no launch digest.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The image is not a firmware that SEV-SNP can launch.
    #[error("the firmware image cannot be measured for SEV-SNP")]
    Firmware(#[from] FirmwareError),
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The number of vCPUs makes no sense.
    #[error("expected 1 to {MAX_VCPUS} vCPUs, found {found}")]
    VcpuCount {
        /// What was asked for.
        found: u32,
    },
    /// Further vCPUs would start nowhere.
    #[error(
        "the firmware names no start address for further vCPUs (SEV-ES reset block is 0), but {vcpus} vCPUs were asked for; use 1 vCPU or another firmware"
    )]
    NoApReset {
        /// What was asked for.
        vcpus: u32,
    },
    /// A kernel was given, but nothing in the firmware would check it.
    #[error(
        "Kernel specified but OVMF metadata doesn't include SNP_KERNEL_HASHES section: this firmware would boot any kernel; use the AmdSev build of OVMF"
    )]
    NoKernelHashesSection,
    /// The firmware has the section but no usable pointer into it.
    #[error(transparent)]
    HashTable(#[from] HashTableError),
    /// Pointer and section contradict each other.
    #[error(
        "the firmware's SEV hash table at {table:#x} does not fit the SNP_KERNEL_HASHES section at {section:#x}, {size:#x} bytes (expected one page that holds it)"
    )]
    HashTableOutside {
        /// Guest physical address of the table.
        table: u64,
        /// Guest physical address of the section.
        section: u64,
        /// Bytes of the section.
        size: u64,
    },
    /// Initrd or command line without a kernel would silently not be measured.
    #[error("an initrd or command line is measured only together with a kernel, and none was given")]
    NothingToHash,
}

#[cfg(test)]
mod tests;
