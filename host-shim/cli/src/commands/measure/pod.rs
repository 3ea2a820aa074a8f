//! `kata-cc measure pod`: what the machine of a pod will measure to, by its plan.
//!
//! The plan is turned into the arguments of the command that measures its TEE, and that command is shown: nothing is measured here that cannot
//! be measured by hand.

use std::ffi::OsString;

use anyhow::{Context as _, bail};
use clap::Parser;
use kata_cc_vmm::plan::LaunchPlan;
use kata_cc_vmm::tee::Tee;
use kata_cc_vmm::tee::sim::SimulatedTee;

use super::Command;
use crate::commands::plan::{self, Class};
use crate::output::{self, Format, Outcome};

/// Arguments of `measure pod`.
#[derive(clap::Args)]
pub(crate) struct Pod {
    #[command(flatten)]
    class: Class,
}

/// A command of `measure`, read from words.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct Measure {
    #[command(subcommand)]
    command: Command,
}

pub(super) fn run(args: &Pod, format: Format) -> anyhow::Result<Outcome> {
    let plan = args.class.plan()?;
    plan::warn_of_simulation(&plan, format);
    let words = words(&plan)?;
    let shown: Vec<String> = words.iter().map(|word| word.display().to_string()).collect();
    output::note(format, format!("kata-cc measure {}", plan::shell(&shown)));
    super::run(&Measure::try_parse_from(words)?.command, format)
}

/// The words after `kata-cc measure` that measure a plan.
fn words(plan: &LaunchPlan) -> anyhow::Result<Vec<OsString>> {
    let firmware = || plan.firmware.clone().context("the plan has no firmware to measure");
    let snp = |model: &str| -> anyhow::Result<Vec<OsString>> {
        Ok(vec![
            "snp".into(),
            "--ovmf".into(),
            firmware()?.into(),
            "--vcpus".into(),
            plan.vcpus.to_string().into(),
            "--vcpu-type".into(),
            model.into(),
        ])
    };
    let mut words = match &plan.tee {
        Tee::Snp(_) => snp(plan.cpu_model.as_str())?,
        Tee::Sim(sim) if sim.simulated == SimulatedTee::Snp => {
            let mut words = snp(&sim.vcpu_type)?;
            words.extend(["--guest-features".into(), format!("{:#x}", sim.guest_features).into()]);
            words
        }
        Tee::Sim(_) => bail!("a simulated TD is measured by the simulation: `kata-cc-tee-sim measure-td`"),
        Tee::Tdx(_) => {
            vec!["tdx".into(), "--firmware".into(), firmware()?.into(), "--memory".into(), plan.memory_mib.to_string().into()]
        }
        // A sealed image holds all of it.
        Tee::Se(_) => return Ok(vec!["se".into(), plan.kernel.clone().into()]),
    };
    words.extend(["--kernel".into(), plan.kernel.clone().into()]);
    if let Some(initrd) = &plan.initrd {
        words.extend(["--initrd".into(), initrd.into()]);
    }
    words.extend(["--append".into(), plan.cmdline.clone().into()]);
    // SNP starts a guest with an ID block only if it measures to what the block says.
    if let Some(block) = &plan.id_block {
        words.extend(["--expect".into(), hex::encode(block.launch_digest()).into()]);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kata_cc_firmware::measure::snp::CpuModel as Measured;
    use kata_cc_vmm::cpu_model::CpuModel;
    use kata_cc_vmm::tee::TeeKind;

    /// A class can have no model that nobody can measure, and there is none that can be measured and no class can have.
    #[test]
    fn ac_07_models_of_a_class_are_those_that_can_be_measured() {
        let planned: BTreeSet<&str> = CpuModel::all(TeeKind::Snp).iter().map(|model| model.as_str()).collect();
        let measured: BTreeSet<&str> = Measured::NAMES.iter().map(|(name, _)| *name).collect();
        assert_eq!(planned, measured);
        assert_eq!((planned.len(), measured.len()), (CpuModel::all(TeeKind::Snp).len(), Measured::NAMES.len()), "a name is there twice");
    }
}
