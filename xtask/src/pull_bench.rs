//! The pull bench: builds it as it is shipped and runs it. Needs root (owners of files, containerd's mounts) and no virtual machine.

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
    /// Runs of each
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Only this case (repeatable): one, several, zstd, encrypted, small
    #[arg(long, value_name = "CASE")]
    only: Vec<String>,
    /// Further arguments for the bench, after `--` (`-- --help` lists them)
    #[arg(last = true)]
    further: Vec<String>,
}

/// Builds and runs.
pub(crate) fn run(cx: &Context, args: &Args) -> Result<ExitCode> {
    let mut cargo = cx.cargo();
    cargo.args(["build", "--locked", "--release", "-p", "kata-cc-pull-bench"]);
    cx.run.logged("build pull bench (release)", &mut cargo)?;
    let mut bench = Command::new(cx.target().join("release/kata-cc-pull-bench"));
    bench.args(["run", "--runs", &args.runs.to_string(), "--work"]).arg(cx.cache("pull-bench"));
    if let Some(json) = &args.json {
        bench.arg("--json").arg(std::path::absolute(json)?);
    }
    bench.args(args.only.iter().flat_map(|case| ["--only", case]));
    let status = cx.run.shown("bench pull", bench.args(&args.further))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
