//! The simulated TEE: an ordinary machine under TCG, with a report service beside it that signs what was launched.
//!
//! The guest's memory is shared with the vsock helper, which is why this file alone offers it.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::strings;
use crate::plan::LaunchPlan;

/// The TEE that is simulated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SimulatedTee {
    /// AMD SEV-SNP.
    #[default]
    Snp,
    /// Intel TDX.
    Tdx,
}

impl SimulatedTee {
    /// A kernel command line that tells the simulation's half in the guest. In front: what comes behind `--` is for the agent.
    pub(crate) fn cmdline(self, params: &str) -> String {
        match self {
            Self::Snp => params.to_owned(),
            Self::Tdx => format!("tee_sim=tdx {params}").trim_end().to_owned(),
        }
    }
}

/// Parameters of the simulated TEE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sim {
    /// The `kata-cc-tee-sim` binary.
    pub tee_sim: PathBuf,
    /// Its key directory.
    pub keys: PathBuf,
    /// Which TEE is simulated.
    #[serde(default)]
    pub simulated: SimulatedTee,
    /// The processor the launch digest is computed for.
    pub vcpu_type: String,
    /// The guest features of the launch digest.
    pub guest_features: u64,
    /// Where the report service listens: the vsock helper carries the guest's connections to port 4051 there.
    pub socket: PathBuf,
}

/// The vsock port of the simulated report service.
pub const REPORT_PORT: u32 = 4051;

impl Sim {
    pub(crate) fn arguments(&self, plan: &LaunchPlan) -> Vec<OsString> {
        strings([
            "-machine".into(),
            // No SMM: SEV-SNP and TDX have none, and it costs start-up time.
            "q35,accel=tcg,memory-backend=mem,smm=off,usb=off,vmport=off".into(),
            "-cpu".into(),
            plan.cpu_model.to_string(),
            "-m".into(),
            format!("{}M", plan.memory_mib),
            "-object".into(),
            format!("memory-backend-memfd,id=mem,size={}M,share=on", plan.memory_mib),
        ])
    }

    /// The report service's command line. It reads the launched bytes itself, as the hardware would.
    #[must_use]
    pub fn service_arguments(&self, plan: &LaunchPlan) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["serve".into()];
        let mut add = |name: &str, value: OsString| arguments.extend([OsString::from(name), value]);
        add("--keys", self.keys.clone().into());
        add("--socket", self.socket.clone().into());
        add("--ovmf", plan.firmware.clone().unwrap_or_default().into());
        add("--kernel", plan.kernel.clone().into());
        add("--initrd", plan.initrd.clone().unwrap_or_default().into());
        add("--append", plan.cmdline.clone().into());
        add("--vcpus", plan.vcpus.to_string().into());
        match self.simulated {
            SimulatedTee::Snp => {
                add("--vcpu-type", self.vcpu_type.clone().into());
                add("--guest-features", format!("{:#x}", self.guest_features).into());
                add("--host-data", hex::encode(plan.initdata_digest.padded::<32>()).into());
            }
            SimulatedTee::Tdx => {
                add("--tee", "tdx".into());
                add("--mr-config-id", hex::encode(plan.initdata_digest.padded::<48>()).into());
            }
        }
        arguments
    }
}
