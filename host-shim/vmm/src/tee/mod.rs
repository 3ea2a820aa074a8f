//! The protections a machine can boot under, one file each.
//!
//! A file says what its TEE adds to the QEMU command line. There is no variant for "none": a confidential class never boots unprotected.

pub mod se;
pub mod sim;
pub mod snp;
pub mod tdx;

use std::ffi::OsString;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::LaunchPlan;

/// Which protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TeeKind {
    /// The simulated TEE: a measured boot whose report is signed in software. Development only.
    Sim,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// IBM Secure Execution.
    Se,
}

impl TeeKind {
    /// The QEMU binary when the configuration names none.
    #[must_use]
    pub fn default_qemu(self) -> &'static str {
        match self {
            Self::Sim | Self::Snp | Self::Tdx => "/usr/bin/qemu-system-x86_64",
            Self::Se => "/usr/bin/qemu-system-s390x",
        }
    }
}

impl fmt::Display for TeeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sim => "sim",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
            Self::Se => "se",
        })
    }
}

/// A protection with all its parameters, as part of a launch plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Tee {
    /// The simulated TEE.
    Sim(sim::Sim),
    /// AMD SEV-SNP.
    Snp(snp::Snp),
    /// Intel TDX.
    Tdx(tdx::Tdx),
    /// IBM Secure Execution.
    Se(se::Se),
}

impl Tee {
    /// Which protection this is.
    #[must_use]
    pub fn kind(&self) -> TeeKind {
        match self {
            Self::Sim(_) => TeeKind::Sim,
            Self::Snp(_) => TeeKind::Snp,
            Self::Tdx(_) => TeeKind::Tdx,
            Self::Se(_) => TeeKind::Se,
        }
    }

    /// `-machine`, `-cpu` and memory arguments, and the protection object.
    pub(crate) fn arguments(&self, plan: &LaunchPlan) -> Vec<OsString> {
        match self {
            Self::Sim(sim) => sim.arguments(plan),
            Self::Snp(snp) => snp.arguments(plan),
            Self::Tdx(tdx) => tdx.arguments(plan),
            Self::Se(se) => se.arguments(plan),
        }
    }

    /// What every virtio device needs under this protection: DMA only through memory the guest chose to share.
    pub(crate) fn virtio_options(&self) -> &'static str {
        match self {
            Self::Sim(_) => "",
            // Without the legacy interface, which knows no IOMMU: QEMU turns it off by itself only beside a protection object.
            Self::Snp(_) | Self::Tdx(_) => ",disable-legacy=on,iommu_platform=on",
            Self::Se(_) => ",iommu_platform=on",
        }
    }
}

/// Builds an argument list from string pieces.
pub(crate) fn strings<const N: usize>(arguments: [String; N]) -> Vec<OsString> {
    arguments.into_iter().map(OsString::from).collect()
}
