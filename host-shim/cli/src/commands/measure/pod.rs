//! `kata-cc measure pod`: what the machine of a pod will measure to, by its plan.
//!
//! The plan is turned into the arguments of the command that measures its TEE, and that command is shown: nothing is measured here that cannot
//! be measured by hand.

use std::ffi::OsString;

use anyhow::bail;
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
    let words = words(&args.class.plan()?)?;
    let shown: Vec<String> = words.iter().map(|word| word.display().to_string()).collect();
    output::note(format, format!("kata-cc measure {}", plan::shell(&shown)));
    super::run(&Measure::try_parse_from(words)?.command, format)
}

/// The words after `kata-cc measure` that measure a plan.
fn words(plan: &LaunchPlan) -> anyhow::Result<Vec<OsString>> {
    let mut words = Vec::<OsString>::new();
    let add = |words: &mut Vec<OsString>, name: &str, value: OsString| words.extend([OsString::from(name), value]);
    let firmware = |option: &str, words: &mut Vec<OsString>| match &plan.firmware {
        Some(firmware) => {
            words.extend([OsString::from(option), firmware.into()]);
            Ok(())
        }
        None => bail!("the plan has no firmware to measure"),
    };
    match &plan.tee {
        Tee::Snp(_) => {
            words.push("snp".into());
            firmware("--ovmf", &mut words)?;
            // What follows the model are features, which the measurement has not.
            let model = plan.cpu_model.split(',').next().unwrap_or_default();
            add(&mut words, "--vcpu-type", model.into());
        }
        Tee::Sim(sim) if sim.simulated == SimulatedTee::Snp => {
            words.push("snp".into());
            firmware("--ovmf", &mut words)?;
            add(&mut words, "--vcpu-type", sim.vcpu_type.clone().into());
            add(&mut words, "--guest-features", format!("{:#x}", sim.guest_features).into());
        }
        Tee::Sim(_) => bail!("a simulated TD is measured by the simulation: `kata-cc-tee-sim measure-td`"),
        Tee::Tdx(_) => {
            words.push("tdx".into());
            firmware("--firmware", &mut words)?;
            add(&mut words, "--memory", plan.memory_mib.to_string().into());
        }
        Tee::Se(_) => {
            words.extend(["se".into(), plan.kernel.clone().into()]);
            return Ok(words);
        }
    }
    if words.first().is_some_and(|tee| tee == "snp") {
        add(&mut words, "--vcpus", plan.vcpus.to_string().into());
    }
    add(&mut words, "--kernel", plan.kernel.clone().into());
    if let Some(initrd) = &plan.initrd {
        add(&mut words, "--initrd", initrd.into());
    }
    add(&mut words, "--append", plan.cmdline.clone().into());
    Ok(words)
}
