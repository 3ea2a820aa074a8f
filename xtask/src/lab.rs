//! Running the lab: demo, benches and end-to-end tests, on everything built first.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::artifacts::{self, Artifacts, Profile};
use crate::context::Context;
use crate::{guest, setup};

/// What is passed on to the lab.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Further arguments for the lab, after `--`
    #[arg(last = true)]
    further: Vec<String>,
}

impl Args {
    /// With an option that `cargo xtask` knows by itself; what the person gave after `--` comes later and wins.
    pub(crate) fn with(mut self, option: &str, value: String) -> Self {
        self.further.splice(0..0, [option.to_owned(), value]);
        self
    }
}

/// Prepares the machine and builds everything the lab needs.
pub(crate) fn prepare(cx: &Context, profile: Profile) -> Result<Artifacts> {
    setup::all(cx)?;
    let artifacts = guest::image(cx)?;
    artifacts::host(cx, profile)?;
    artifacts.link_tools(cx)?;
    Ok(artifacts)
}

/// The lab's command line.
pub(crate) fn command(artifacts: &Artifacts, subcommand: &str) -> Command {
    let mut lab = Command::new(artifacts.bin("kata-cc-lab"));
    lab.arg(subcommand).arg("--artifacts").arg(artifacts.root());
    lab
}

/// Builds, then runs the lab as a person's command: its output is theirs, its status ours.
pub(crate) fn run(cx: &Context, profile: Profile, subcommand: &str, args: &Args) -> Result<ExitCode> {
    let json = args.json.as_deref().map(std::path::absolute).transpose()?;
    let artifacts = prepare(cx, profile)?;
    let mut lab = command(&artifacts, subcommand);
    if let Some(json) = json {
        lab.arg("--json").arg(json);
    }
    let status = cx.run.shown(subcommand, lab.args(&args.further))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
