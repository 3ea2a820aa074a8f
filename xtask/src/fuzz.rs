//! Fuzzing: the targets of `tests/fuzz`, built with coverage instrumentation by the toolchain that is there.
//!
//! The test run takes the seeds in `tests/fuzz/corpus` and a fixed number of inputs made from them with a fixed seed: it prints the same verdict each
//! time. Finding something new takes hours: `cargo xtask fuzz --seconds 36000 tar`. What is found is kept in the cache, and named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::context::Context;

/// What `cargo fuzz` passes too, for libFuzzer's coverage. No sanitizer: those need another toolchain, and the code is safe Rust.
const INSTRUMENTATION: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Build scripts and macros run on the host and are not instrumented when a target is named.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Longest input, in bytes. Longer ones find little that shorter ones do not.
const MAX_INPUT: u32 = 16 * 1024;
/// Memory of one run, in MiB: a parser that takes more for so small an input is broken.
const MEMORY: u32 = 1024;
/// Time for one input, in seconds.
const INPUT_SECONDS: u32 = 10;
/// Inputs for each target in the test run, seeds included.
const SMOKE_RUNS: u32 = 200_000;

/// What to fuzz, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Targets; all without any
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// Fuzzes for as long as asked, going on from what earlier runs kept; says how many targets passed.
pub(crate) fn run(cx: &Context, args: &Args) -> Result<u64> {
    let known = targets(cx)?;
    if let Some(unknown) = args.targets.iter().find(|name| !known.contains(name)) {
        bail!("there is no fuzz target {unknown:?}; there are {}", known.join(", "));
    }
    let chosen = if args.targets.is_empty() { &known } else { &args.targets };
    each(cx, chosen, &cx.cache("fuzz").join("corpus"), &[format!("-max_total_time={}", args.seconds)])
}

/// Every target on its seeds and the same inputs each time; says how many targets passed.
pub(crate) fn smoke(cx: &Context) -> Result<u64> {
    let corpus = cx.target().join("fuzz/smoke");
    if corpus.exists() {
        fs::remove_dir_all(&corpus).with_context(|| format!("cannot remove {}", corpus.display()))?;
    }
    each(cx, &targets(cx)?, &corpus, &["-seed=1".into(), format!("-runs={SMOKE_RUNS}")])
}

/// Runs targets; what they keep goes below `corpus`.
fn each(cx: &Context, chosen: &[String], corpus: &Path, limits: &[String]) -> Result<u64> {
    let built = build(cx)?;
    let mut passed = 0;
    for name in chosen {
        let (corpus, found) = (corpus.join(name), cx.cache("fuzz").join("found").join(name));
        for dir in [&corpus, &found] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let mut fuzz = Command::new(built.join(name));
        fuzz.arg(&corpus);
        let seeds = cx.root().join("tests/fuzz/corpus").join(name);
        if seeds.is_dir() {
            fuzz.arg(seeds);
        }
        fuzz.arg(format!("-artifact_prefix={}/", found.display()))
            .args(limits)
            .args([format!("-max_len={MAX_INPUT}"), format!("-rss_limit_mb={MEMORY}"), format!("-timeout={INPUT_SECONDS}")])
            .arg("-print_final_stats=1");
        cx.run.logged(&format!("fuzz {name}"), &mut fuzz).with_context(|| {
            format!("fuzz target {name} found an input, which lies in {}; run the target on that file to see it again", found.display())
        })?;
        passed += 1;
    }
    Ok(passed)
}

/// Names of the targets.
fn targets(cx: &Context) -> Result<Vec<String>> {
    let dir = cx.root().join("tests/fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if let Some(name) = path.file_stem().filter(|_| path.extension().is_some_and(|e| e == "rs")) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn build(cx: &Context) -> Result<PathBuf> {
    let target_dir = cx.target().join("fuzz");
    let mut cargo = cx.cargo();
    cargo
        .args(["build", "--release", "--locked", "--target", TARGET, "--manifest-path", "tests/fuzz/Cargo.toml", "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"));
    cx.run.logged("build the fuzz targets", &mut cargo)?;
    Ok(target_dir.join(TARGET).join("release"))
}
