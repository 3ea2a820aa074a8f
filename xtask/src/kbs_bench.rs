//! The broker's bench: builds broker, command line and bench as they are shipped, and runs the bench. Needs no root and no virtual machine.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::context::Context;

/// What is passed on to the bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Further arguments for the bench, after `--` (`-- --help` lists them)
    #[arg(last = true)]
    further: Vec<String>,
}

/// Builds and runs.
pub(crate) fn run(cx: &Context, args: &Args) -> Result<ExitCode> {
    let mut cargo = cx.cargo();
    cargo.args(["build", "--locked", "--release", "-p", "kata-cc-kbs", "-p", "kata-cc-cli", "-p", "kata-cc-kbs-bench"]);
    cx.run.logged("build broker and bench (release)", &mut cargo)?;
    let bin = cx.target().join("release");
    let mut bench = Command::new(bin.join("kata-cc-kbs-bench"));
    bench.arg("--bin").arg(&bin);
    if let Some(json) = &args.json {
        bench.arg("--json").arg(std::path::absolute(json)?);
    }
    let status = cx.run.shown("bench kbs", bench.args(&args.further))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
