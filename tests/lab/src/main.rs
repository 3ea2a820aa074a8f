//! `kata-cc-lab`: the demo, the end-to-end tests and the start bench, in namespaces of their own, with real parts only.
//!
//! Not a product: it is what `cargo xtask` runs once everything is built.

mod aml;
mod artifacts;
mod bench;
mod blobs;
mod broker;
mod cgroup;
mod containerd;
mod cri;
mod demo;
mod e2e;
mod leftovers;
mod namespaces;
mod process;
mod registry;
mod report;
mod secrets;
mod single;
mod world;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

/// Runs kata-cc for real: containerd, registry, broker and virtual machines, all in namespaces of their own.
#[derive(Debug, Parser)]
#[command(name = "kata-cc-lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The main job and ten attacks on it.
    Demo(DemoArgs),
    /// The end-to-end tests; ends with a line "N passed, N failed".
    E2e(E2eArgs),
    /// The start bench: an attested pod against a bare boot.
    Bench(BenchArgs),
    /// The boot bench: QEMU to an agent that serves, by phase, against a bare boot; bytes that are measured.
    BenchBoot(BootArgs),
    /// What the lab starts as the first process of its namespaces.
    #[command(hide = true)]
    Init {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// What every command needs.
#[derive(Debug, Args)]
struct Common {
    /// Directory with everything that `cargo xtask` built: bin/, guest/, debian/.
    #[arg(long)]
    artifacts: PathBuf,
    /// Keep the lab's files (logs, configurations) afterwards and say where they are.
    #[arg(long)]
    keep: bool,
    /// Which containerd.
    #[arg(long, value_enum, default_value = "1.6")]
    containerd: containerd::Version,
}

#[derive(Debug, Args)]
struct DemoArgs {
    #[command(flatten)]
    common: Common,
    /// Write the report as JSON (schema kata-cc/demo-1) to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct E2eArgs {
    #[command(flatten)]
    common: Common,
    /// Only what every supported containerd must do, not the crash matrix and the attacks.
    #[arg(long)]
    short: bool,
}

#[derive(Debug, Args)]
struct BenchArgs {
    #[command(flatten)]
    common: Common,
    /// Pairs that count, after one that does not.
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// Write the report as JSON (schema kata-cc/bench-start-1) to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct BootArgs {
    #[command(flatten)]
    common: Common,
    /// Runs that count, after one that does not.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(5..=1000))]
    runs: u16,
    /// Write the report as JSON (schema kata-cc/bench-boot-1) to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Init { args } => namespaces::init(&args),
        Command::Demo(args) => in_namespaces(args.common.keep, || demo(&args)),
        Command::Bench(args) => in_namespaces(args.common.keep, || bench(&args)),
        Command::BenchBoot(args) => in_namespaces(args.common.keep, || bench_boot(&args)),
        Command::E2e(args) => in_namespaces(args.common.keep, || e2e(&args)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs `work` when already inside the lab's namespaces, else this program again inside fresh ones.
fn in_namespaces(keep: bool, work: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    if namespaces::is_inside() {
        return work();
    }
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let dir = tempfile::Builder::new().prefix("kata-cc-lab-").tempdir().context("cannot make a work directory")?;
    namespaces::run_inside(&args, dir, keep)
}

fn work_dir() -> Result<PathBuf> {
    Ok(PathBuf::from(std::env::var_os("KATA_CC_LAB_WORK").context("KATA_CC_LAB_WORK is not set: start the lab by its commands")?))
}

fn demo(args: &DemoArgs) -> Result<ExitCode> {
    let artifacts = artifacts::Artifacts::at(&args.common.artifacts)?;
    let work = work_dir()?;
    let mut world = world::World::set_up(&artifacts, &work, args.common.containerd)?;
    let report = interruptible(demo::run(&mut world))?;
    report.print();
    if let Some(path) = &args.json {
        report.write(path)?;
    }
    drop(world);
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn bench(args: &BenchArgs) -> Result<ExitCode> {
    let artifacts = artifacts::Artifacts::at(&args.common.artifacts)?;
    let world = world::World::set_up(&artifacts, &work_dir()?, args.common.containerd)?;
    let report = interruptible(bench::start(&world, args.pairs))?;
    report.print();
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn bench_boot(args: &BootArgs) -> Result<ExitCode> {
    let artifacts = artifacts::Artifacts::at(&args.common.artifacts)?;
    let world = world::World::set_up(&artifacts, &work_dir()?, args.common.containerd)?;
    let report = interruptible(bench::boot(&world, args.runs.into()))?;
    report.print();
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn e2e(args: &E2eArgs) -> Result<ExitCode> {
    let artifacts = artifacts::Artifacts::at(&args.common.artifacts)?;
    let mut world = world::World::set_up(&artifacts, &work_dir()?, args.common.containerd)?;
    let mut tally = e2e::Tally::default();
    let all = async { if args.short { e2e::run_short(&mut world, &mut tally).await } else { e2e::run_all(&mut world, &mut tally).await } };
    interruptible(all)?;
    Ok(if tally.close() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs to the end or to Ctrl-C; after either, dropping the world stops all services, and the end of the namespaces does the rest.
fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = work => result,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted; everything the lab started is being ended"),
            _ = terminate.recv() => anyhow::bail!("asked to end; everything the lab started is being ended"),
        }
    })
}
