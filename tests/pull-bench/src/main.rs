//! How fast images are pulled and unpacked, on this machine, into one file system, from a real registry on loopback.
//!
//! ```text
//! images      made here, always the same bytes; kept in the work directory for the next time
//! contenders  ours as the guest uses it · containerd · skopeo and umoci · curl | pigz | tar, the bound
//! runs        for each run, each image, each contender: an empty ext4, sync(2), the pull, a count of what came out
//! ```
//! Every contender is a process of its own, ours too, so that time and memory are counted alike. Not a test of time: whatever the ratios are, it succeeds;
//! it fails if something could not be measured that should have been.

mod contender;
mod content;
mod images;
mod measure;
mod ours;
mod registry;
mod report;
mod scratch;
mod service;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use contender::Contender;
use images::{Case, Image};
use measure::{Interrupt, Sample};
use registry::Registry;
use report::{Entry, Report};
use scratch::Scratch;

#[derive(Debug, Parser)]
#[command(about, version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure
    Run(Args),
    /// One pull by our library: what the bench starts and measures
    #[command(hide = true)]
    Ours(ours::Args),
}

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory for images, of which a GiB or so stays there, and for the file systems that are pulled into
    #[arg(long, value_name = "DIR")]
    work: PathBuf,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Runs of each
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Only this case (repeatable)
    #[arg(long, value_enum, value_name = "CASE")]
    only: Vec<Case>,
    /// Only this contender (repeatable)
    #[arg(long, value_enum, value_name = "NAME")]
    contender: Vec<Contender>,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Ours(args) => ours::pull(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chosen<T: Copy>(asked: &[T], all: &[T]) -> Vec<T> {
    if asked.is_empty() { all.to_vec() } else { asked.to_vec() }
}

fn run(args: &Args) -> Result<()> {
    let interrupt = Interrupt::catch()?;
    let cases = chosen(&args.only, Case::ALL);
    let contenders = chosen(&args.contender, Contender::ALL);
    if !nix::unistd::geteuid().is_root() {
        bail!("run as root: owners of files are set as the images say, and containerd mounts what it unpacks");
    }
    contender::check_programs(&contenders)?;
    scratch::own_mounts()?;
    std::fs::create_dir_all(&args.work).with_context(|| format!("cannot make {}", args.work.display()))?;
    let work = args.work.canonicalize()?;
    let registry = Registry::start(&work)?;
    let images = images::prepare(&work, &registry, &cases, &interrupt)?;
    let destinations = tempfile::Builder::new().prefix("destinations-").tempdir_in(&work)?;

    let mut entries: Vec<Entry> = Vec::new();
    for image in &images {
        entries.extend(contenders.iter().map(|contender| Entry::new(image.case, *contender, contender.cannot(image))));
    }
    let start = Instant::now();
    for run in 1..=args.runs {
        for image in &images {
            for contender in &contenders {
                let entry = entries.iter_mut().find(|e| e.case == image.case && e.contender == *contender);
                let Some(entry) = entry.filter(|entry| entry.failure.is_none()) else { continue };
                let outcome = once(*contender, image, &registry, destinations.path(), &interrupt);
                interrupt.check()?;
                let progress =
                    format!("[{:>5.0} s] run {run} of {}, case {}, {contender}", start.elapsed().as_secs_f64(), args.runs, image.case);
                match outcome {
                    Ok(sample) => {
                        eprintln!("{progress}: {sample}");
                        entry.samples.push(sample);
                    }
                    Err(error) if *contender == Contender::Ours => return Err(error.context(progress)),
                    // The comparison goes on without it, and the report says so.
                    Err(error) => {
                        eprintln!("{progress}: FAILED, left out from here on: {error:#}");
                        entry.failure = Some(format!("{error:#}"));
                    }
                }
            }
        }
    }
    let report = Report::new(args.runs, images, entries);
    print!("{report}");
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// One pull into an empty file system, and a look at what came out.
fn once(contender: Contender, image: &Image, registry: &Registry, destinations: &Path, interrupt: &Interrupt) -> Result<Sample> {
    let destination = Scratch::new(destinations)?;
    let mut plan = contender.plan(image, registry, destination.path())?;
    // What earlier runs left to be written is not this run's to wait for.
    nix::unistd::sync();
    let sample = measure::measure(&mut plan, interrupt)?;
    let found = contender::count_files(&plan.unpacked)?;
    drop(plan);
    if found != image.files {
        bail!("{contender} unpacked {found} files where the image has {}", image.files);
    }
    Ok(sample)
}
