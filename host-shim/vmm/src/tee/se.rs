//! IBM Secure Execution (s390x): the kernel is a sealed image that holds initrd and command line, so neither is passed.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use super::strings;
use crate::plan::LaunchPlan;

/// Secure Execution has no launch parameters; the initdata digest is checked by the agent against user data of the attestation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Se {}

impl Se {
    pub(crate) fn arguments(&self, plan: &LaunchPlan) -> Vec<OsString> {
        strings([
            "-machine".into(),
            "s390-ccw-virtio,accel=kvm,memory-backend=mem,confidential-guest-support=pv0".into(),
            "-cpu".into(),
            plan.cpu_model.to_string(),
            "-m".into(),
            format!("{}M", plan.memory_mib),
            "-object".into(),
            format!("memory-backend-ram,id=mem,size={}M", plan.memory_mib),
            "-object".into(),
            "s390-pv-guest,id=pv0".into(),
        ])
    }
}
