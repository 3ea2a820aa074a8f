//! `[tdx]`: what is asked of every TD's evidence whatever the attestation policy says, and simulated roots of TDX.
//!
//! ```toml
//! [tdx]
//! require_sept_ve_disable = true
//! minimum_tcb_evaluation_data_number = 20
//! [[tdx.simulated_roots]]
//! name = "lab-tdx"
//! certificate = "/etc/kata-cc-kbs/lab-tdx-root.pem"
//! ```

use super::SimulatedRoot;
use kata_cc_verifier::tdx::TdxRules;
use serde::Deserialize;

/// Settings of TDX.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tdx {
    /// Refuse TDs into which the host can inject exceptions by taking pages away.
    pub require_sept_ve_disable: bool,
    /// Refuse collateral that Intel made before its evaluation of this number.
    pub minimum_tcb_evaluation_data_number: u32,
    /// Roots of simulated TDs. Evidence under them is marked and refused by the default policy.
    pub simulated_roots: Vec<SimulatedRoot>,
}

impl Default for Tdx {
    fn default() -> Self {
        let TdxRules { require_sept_ve_disable, minimum_tcb_evaluation_data_number } = TdxRules::default();
        Self { require_sept_ve_disable, minimum_tcb_evaluation_data_number, simulated_roots: Vec::new() }
    }
}

impl Tdx {
    /// The rules for the verifier.
    pub fn rules(&self) -> TdxRules {
        let Self { require_sept_ve_disable, minimum_tcb_evaluation_data_number, .. } = *self;
        TdxRules { require_sept_ve_disable, minimum_tcb_evaluation_data_number }
    }
}
