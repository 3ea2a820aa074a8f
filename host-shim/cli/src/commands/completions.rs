//! `kata-cc completions SHELL`: the script by which a shell completes this program's arguments.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::output::{self, Outcome};

/// Arguments of `completions`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Shell to print the script for.
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Args::command(), "kata-cc", &mut script);
    output::raw(&script)?;
    Ok(Outcome::Done)
}
