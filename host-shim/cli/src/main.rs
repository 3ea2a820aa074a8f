//! kata-cc: the one command line of the host and the workstation.
//!
//! Wiring only: arguments, output form, exit code. Each command is one file in `commands`; the work is done by the library crates.
//! Invariants: the result goes to stdout, explanation to stderr; nothing is changed on a host or broker that a command was not
//! asked to change; a check that did not pass never exits with 0.

mod commands;
mod files;
mod output;

use std::process::ExitCode;

use clap::Parser;

use crate::output::{Format, Outcome};

/// Confidential pods from the command line: prepare images, policies and initdata, run the key broker, verify evidence, look at hosts.
///
/// Results go to stdout, explanations to stderr. Exit codes: 0 done (or: every check passed), 1 the command failed,
/// 2 wrong arguments, 3 the command worked and the answer is no (a check failed, a request was denied).
#[derive(Parser)]
#[command(name = "kata-cc", version, max_term_width = 120)]
struct Args {
    /// Print the result as one JSON object with a `schema` field; errors become JSON on stderr.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let format = if args.json { Format::Json } else { Format::Text };
    match commands::run(args.command, format) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(3),
        Err(error) if output::reader_went_away(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::explain(&error, format);
            ExitCode::from(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_argument_definitions_are_consistent() {
        super::Args::command().debug_assert();
    }
}
