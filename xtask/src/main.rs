//! `cargo xtask`: the only build tool a person types. CI calls the same commands.
//!
//! It prepares a machine, builds guest image and host binaries into one directory, and runs the demo, the benches and
//! the tests on that. Everything it makes is below the cache directory (`.kata-cc-cache`, or KATA_CC_CACHE) and the
//! target directories; the only thing it changes elsewhere is to install Debian packages that are missing, after
//! saying which.

mod artifacts;
mod check;
mod context;
mod fuzz;
mod guest;
mod kbs_bench;
mod kernel;
mod lab;
mod manifest;
mod oracle;
mod process;
mod pull_bench;
mod repro;
mod s390x;
mod sbom;
mod setup;
mod summary;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use artifacts::Profile;
use context::Context;

/// Builds and tests kata-cc.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prepare this machine: Debian packages, unpacked tools, the vsock helper. No service is started or stopped
    Setup {
        /// Say what is missing and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Build the guest: kernel, agent, initrds, firmware of the simulation, SBOM, manifests with kind and digest of each
    Image {
        /// Copy the result here as well
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Build everything but the kernel twice, in two places, and compare byte for byte: initrds, SBOM, manifests
        #[arg(long)]
        verify: bool,
        /// Build the kernel a second time too, which takes longer than all else, and compare
        #[arg(long)]
        verify_kernel: bool,
    },
    /// Build the host binaries
    Build {
        #[command(flatten)]
        profile: Profile,
    },
    /// The main job and ten attacks on it, for real, on this machine
    Demo {
        #[command(flatten)]
        profile: Profile,
        #[command(flatten)]
        lab: lab::Args,
    },
    /// Measure
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    /// Everything that must hold before a change lands; ends with a table
    Test {
        #[command(flatten)]
        profile: Profile,
        #[command(flatten)]
        options: check::TestOptions,
    },
    /// The compiler's and clippy's opinion, warnings being errors
    Check,
    /// Format the source
    Fmt,
    /// Throw inputs at every parser of untrusted bytes
    Fuzz(fuzz::Args),
    /// Compare launch digests with those of sev-snp-measure, and measurements of TDs with a second implementation, on random launches
    Oracle {
        /// Repeat a run
        #[arg(long)]
        seed: Option<u64>,
        /// How many launches
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        cases: u32,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Start of an attested pod against a bare boot of the same kernel
    Start {
        #[command(flatten)]
        profile: Profile,
        #[command(flatten)]
        lab: lab::Args,
    },
    /// Boot of the simulated guest, by phase, from QEMU's start to an agent that serves, against a bare boot; and the bytes measured on the way
    Boot {
        #[command(flatten)]
        profile: Profile,
        /// Boots that count, at least 5
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(5..=1000))]
        runs: u16,
        #[command(flatten)]
        lab: lab::Args,
    },
    /// Key broker: latency and throughput with real evidence, its CPU time and memory
    Kbs(kbs_bench::Args),
    /// Image pull and unpack against containerd, skopeo with umoci, and a pipeline of tools: wall and CPU time, memory
    Pull(pull_bench::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let cx = Context::open()?;
    match command {
        Command::Setup { dry_run: true } => setup::report(&cx)?,
        Command::Setup { dry_run: false } => setup::all(&cx)?,
        Command::Image { out, verify, verify_kernel } => {
            let artifacts = guest::image(&cx)?;
            if verify {
                repro::check(&cx)?;
            }
            if verify_kernel {
                repro::check_kernel(&cx)?;
            }
            if let Some(out) = out {
                artifacts.copy_guest(&out)?;
            }
        }
        Command::Build { profile } => artifacts::host(&cx, profile)?,
        Command::Demo { profile, lab } => return lab::run(&cx, profile, "demo", &lab),
        Command::Bench { bench: Bench::Start { profile, lab } } => return lab::run(&cx, profile, "bench", &lab),
        Command::Bench { bench: Bench::Boot { profile, runs, lab } } => {
            return lab::run(&cx, profile, "bench-boot", &lab.with("--runs", runs.to_string()));
        }
        Command::Bench { bench: Bench::Kbs(args) } => return kbs_bench::run(&cx, &args),
        Command::Bench { bench: Bench::Pull(args) } => return pull_bench::run(&cx, &args),
        Command::Test { profile, options } => return check::test(&cx, profile, &options),
        Command::Check => check::clippy(&cx)?,
        Command::Fmt => check::fmt(&cx)?,
        Command::Fuzz(args) => println!("{} fuzz targets found nothing", fuzz::run(&cx, &args)?),
        Command::Oracle { seed, cases } => {
            println!("{}", oracle::run(&cx, seed, cases)?);
            let compared = oracle::tdx::run(&cx, oracle::seed_or_new(seed)?, cases)?;
            println!("{}", compared.text);
            compared.without.into_iter().for_each(|why| println!("SKIPPED: {why}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
