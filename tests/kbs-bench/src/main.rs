//! How fast the key broker is: the real binary in a process of its own, on loopback, with evidence whose signatures are real.
//!
//! ```text
//! sequential   one client, one connection: latency of auth, attest and resource, and the broker's CPU time of a handshake
//! parallel     many clients, a connection each: handshakes and resource reads per second
//! memory       idle, with sessions that wait for evidence, and after it all
//! ```
//! What is the cryptography of the evidence and what is ours is told apart by verifying the same evidence in this process.

mod broker;
mod connection;
mod driver;
mod evidence;
mod exchange;
mod measure;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use evidence::Kind;

/// Arguments.
#[derive(Debug, Parser)]
#[command(about, version)]
struct Args {
    /// Folder with `kata-cc-kbs` and `kata-cc`
    #[arg(long, value_name = "DIR")]
    bin: PathBuf,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Kinds of evidence; all without any
    #[arg(long, value_enum)]
    evidence: Vec<Kind>,
    /// Handshakes of the sequential part
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    handshakes: u32,
    /// Clients of the parallel part
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=512))]
    clients: u16,
    /// Seconds of each measurement of the parallel part
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: u16,
    /// Sessions left waiting for the memory part
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let kinds = if args.evidence.is_empty() { Kind::ALL } else { &args.evidence };
    let mut measured = Vec::new();
    for kind in kinds {
        eprintln!("==> {kind}");
        measured.push(measure::measure(args, *kind).with_context(|| format!("bench with {kind} evidence"))?);
    }
    let report = report::Report::new(args, measured);
    print!("{report}");
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
