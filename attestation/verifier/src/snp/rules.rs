//! What is asked of a platform beyond genuine signatures: its generation, its kind of key, the age of its firmware.
//!
//! Checked on signed fields only. The attestation policy may ask the same and more by the claims; these rules hold whatever the policy says.

use kata_cc_evidence::snp::{Generation, Report, TcbVersion};

use super::SnpError;
use super::chain::LeafKind;
use crate::checks::Checks;

/// Rules for all SNP evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnpRules {
    /// Refuse where no current revocation list of the root is at hand. Default: record that it was not compared.
    pub require_crl: bool,
    /// Accept reports signed by a VLEK, which names its cloud provider and no chip. Default: yes.
    pub allow_vlek: bool,
    /// Generations that are refused.
    pub deny_generations: Vec<Generation>,
    /// Lowest TCB of a generation, each part by itself. Generations without one have no floor here.
    pub minimum_tcb: Vec<(Generation, TcbVersion)>,
}

impl Default for SnpRules {
    fn default() -> Self {
        Self { require_crl: false, allow_vlek: true, deny_generations: Vec::new(), minimum_tcb: Vec::new() }
    }
}

impl SnpRules {
    /// Checks a report whose signature was verified.
    pub(super) fn check(
        &self,
        report: &Report,
        kind: LeafKind,
        generation: Option<Generation>,
        checks: &mut Checks,
    ) -> Result<(), SnpError> {
        if !self.allow_vlek {
            let outcome = if kind == LeafKind::Vlek { Err(SnpError::VlekDenied) } else { Ok(()) };
            checks.record("kind of key", kind.name(), "VCEK", outcome)?;
        }
        if self.deny_generations.is_empty() && self.minimum_tcb.is_empty() {
            return Ok(());
        }
        // A simulated root with a report of version 2 says nothing about its generation: which rule is for it cannot be known.
        let named = generation.map_or("unknown", Generation::name);
        let generation =
            checks.record("known generation", named, "one that rules can be applied to", generation.ok_or(SnpError::UnknownGeneration))?;
        if !self.deny_generations.is_empty() {
            let denied = self.deny_generations.iter().map(|generation| generation.name()).collect::<Vec<_>>().join(", ");
            let outcome = if self.deny_generations.contains(&generation) { Err(SnpError::GenerationDenied { generation }) } else { Ok(()) };
            checks.record("allowed generation", generation.name(), format_args!("none of {denied}"), outcome)?;
        }
        for (_, floor) in self.minimum_tcb.iter().filter(|(of, _)| *of == generation) {
            // REPORTED_TCB is what the key was derived for, and never above COMMITTED_TCB. What launched the guest counts as well: firmware
            // that is patched under a running guest cannot make its launch measurement true.
            for (name, which, found) in
                [("minimum TCB", "REPORTED_TCB", report.reported_tcb), ("minimum TCB at launch", "LAUNCH_TCB", report.launch_tcb)]
            {
                let below = SnpError::TcbBelowMinimum { which, generation, found, floor: *floor };
                checks.record(name, found, format_args!("at least {floor}"), found.at_least(*floor).then_some(()).ok_or(below))?;
            }
        }
        Ok(())
    }
}
