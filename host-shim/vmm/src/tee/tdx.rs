//! Intel TDX (QEMU 10.1 or newer; QEMU's `tdx-guest` object).

use std::ffi::OsString;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::strings;
use crate::plan::{LaunchPlan, PlanError};

/// Parameters of a TDX launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tdx {
    /// Unix socket of the quote generation service.
    pub quote_generation_socket: PathBuf,
}

impl Tdx {
    pub(crate) fn arguments(&self, plan: &LaunchPlan) -> Result<Vec<OsString>, PlanError> {
        let socket = self.quote_generation_socket.to_str().ok_or_else(|| PlanError::NotUtf8(self.quote_generation_socket.clone()))?;
        // JSON, because the socket address is a nested object.
        let object = serde_json::json!({
            "qom-type": "tdx-guest",
            "id": "tdx",
            // The host must not be able to take pages away and have the guest's exception handler run in its stead.
            "sept-ve-disable": true,
            "mrconfigid": STANDARD.encode(plan.initdata_digest.padded::<48>()),
            "quote-generation-socket": {"type": "unix", "path": socket},
        });
        Ok(strings([
            "-machine".into(),
            "q35,accel=kvm,kernel_irqchip=split,memory-backend=mem,confidential-guest-support=tdx,smm=off,usb=off,vmport=off".into(),
            "-cpu".into(),
            plan.cpu_model.clone(),
            "-m".into(),
            format!("{}M", plan.memory_mib),
            "-object".into(),
            format!("memory-backend-ram,id=mem,size={}M", plan.memory_mib),
            "-object".into(),
            object.to_string(),
        ]))
    }
}
