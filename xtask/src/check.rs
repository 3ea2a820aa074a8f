//! Formatting, lints and the whole test run.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::artifacts::{Artifacts, Profile};
use crate::context::Context;
use crate::setup::unpacked;
use crate::summary::{Outcome, Summary, read_closing_line, read_test_log};
use crate::{fuzz, lab, manifest, oracle, repro, s390x, sbom, setup};

/// What of the test run to leave out.
#[derive(Debug, clap::Args)]
pub(crate) struct TestOptions {
    /// Only what is quick and needs neither guest image nor virtual machine: format, lints, unit tests, launch digests
    #[arg(long)]
    quick: bool,
}

/// Random launches compared in a test run.
const ORACLE_CASES: u32 = 200;

/// Versions of containerd besides the machine's own, and where each is unpacked.
const FURTHER_CONTAINERD: &[(&str, &str)] = &[("1.7", "containerd-1.7"), ("2.1", "containerd-2.1")];

/// Formats.
pub(crate) fn fmt(cx: &Context) -> Result<()> {
    cx.run.logged("format", cx.cargo().args(["fmt", "--all"])).map(drop)
}

/// Lints.
pub(crate) fn clippy(cx: &Context) -> Result<()> {
    let mut cargo = cx.cargo();
    cx.run.logged("clippy", cargo.args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"])).map(drop)
}

/// The fuzz targets are a workspace of their own, whose lock file nobody remembers: a stale one is told now and not in half an hour.
fn fuzz_lock(cx: &Context) -> Result<()> {
    let mut cargo = cx.cargo();
    cargo.args(["metadata", "--locked", "--format-version", "1", "--manifest-path", "tests/fuzz/Cargo.toml"]);
    let stale = "tests/fuzz/Cargo.lock does not fit the manifests: run cargo update --workspace in tests/fuzz";
    cx.run.logged("lock file of the fuzz targets", &mut cargo).map(drop).context(stale)
}

/// Everything; goes on after a failure, so that one run tells all.
pub(crate) fn test(cx: &Context, profile: Profile, options: &TestOptions) -> Result<ExitCode> {
    setup::all(cx)?;
    let mut summary = Summary::default();
    step(cx, &mut summary, "format", |_| {
        cx.run.logged("format check", cx.cargo().args(["fmt", "--all", "--check"]))?;
        Ok(Outcome::Passed(1))
    })?;
    step(cx, &mut summary, "lints", |_| {
        fuzz_lock(cx)?;
        clippy(cx).map(|()| Outcome::Passed(1))
    })?;
    step(cx, &mut summary, "unit tests", |summary| unit_tests(cx, summary))?;
    step(cx, &mut summary, "unit tests on s390x, emulated", |_| s390x_tests(cx))?;
    step(cx, &mut summary, "brokers on PostgreSQL", |_| postgres(cx))?;
    step(cx, &mut summary, "store keys in an HSM", |_| hsm(cx))?;
    step(cx, &mut summary, "resources in a Vault", |_| vault(cx))?;
    step(cx, &mut summary, "launch plans on QEMU", |_| qemu(cx, "qemu_accepts"))?;
    step(cx, &mut summary, "CPU models of QEMU", |_| qemu(cx, "qemu_cpus"))?;
    step(cx, &mut summary, "ready firmware", |summary| ready_firmware(cx, summary))?;
    step(cx, &mut summary, "launch digests against sev-snp-measure", |_| {
        Ok(match oracle::prepare(cx)? {
            Err(why) => Outcome::Skipped(why),
            Ok(_) => {
                println!("{}", oracle::run(cx, None, ORACLE_CASES)?);
                Outcome::Passed(ORACLE_CASES.into())
            }
        })
    })?;
    step(cx, &mut summary, "measurements of TDs against a second implementation", |summary| {
        if Command::new("python3").arg("--version").output().is_err() {
            return Ok(Outcome::Skipped("no python3".into()));
        }
        let compared = oracle::tdx::run(cx, oracle::seed_or_new(None)?, ORACLE_CASES)?;
        println!("{}", compared.text);
        compared.without.into_iter().for_each(|why| summary.skip(why));
        Ok(Outcome::Passed(compared.launches))
    })?;
    if options.quick {
        summary.skip("--quick: fuzz targets, guest image, reproducibility, end-to-end tests".into());
    } else {
        step(cx, &mut summary, "fuzz targets", |_| fuzz::smoke(cx).map(Outcome::Passed))?;
        let mut built = None;
        step(cx, &mut summary, "build", |_| {
            built = Some(lab::prepare(cx, profile)?);
            Ok(Outcome::Passed(1))
        })?;
        if let Some(artifacts) = built {
            step(cx, &mut summary, "reproducible image", |_| repro::check(cx).map(|()| Outcome::Passed(1)))?;
            step(cx, &mut summary, "SBOM against CycloneDX's schema", |_| sbom_schema(cx, &artifacts))?;
            step(cx, &mut summary, "end to end", |_| end_to_end(cx, &artifacts, "end to end", &[]))?;
            for (version, directory) in FURTHER_CONTAINERD {
                let name = format!("end to end, containerd {version}");
                step(cx, &mut summary, &name, |_| {
                    if !unpacked::PACKAGES.iter().any(|p| p.directory == *directory && p.is_there(cx)) {
                        return Ok(Outcome::Skipped(format!("Debian's containerd {version} could not be fetched")));
                    }
                    end_to_end(cx, &artifacts, &name, &["--short", "--containerd", version])
                })?;
            }
        }
    }
    print!("{summary}");
    Ok(if summary.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn step(cx: &Context, summary: &mut Summary, name: &str, work: impl FnOnce(&mut Summary) -> Result<Outcome>) -> Result<()> {
    let started = Instant::now();
    let outcome = match work(summary) {
        Ok(outcome) => outcome,
        // A person who pressed Ctrl-C wants the end, not the next step.
        Err(error) if cx.run.is_interrupted() => return Err(error),
        Err(error) => Outcome::Failed(0, 1, format!("{error:#}")),
    };
    summary.add(name, outcome, started.elapsed());
    Ok(())
}

fn unit_tests(cx: &Context, summary: &mut Summary) -> Result<Outcome> {
    // Shown output, because tests say there what they had to skip.
    let (outcome, skipped) = rust_tests(cx, "unit tests", &["--workspace", "--no-fail-fast", "--", "--show-output"], &[])?;
    // Those that are ignored here are what steps of their own run, or say that they skip.
    skipped.into_iter().filter(|what| !what.ends_with(" ignored tests")).for_each(|what| summary.skip(what));
    Ok(outcome)
}

/// Parsers, codecs and launch plans on a big-endian machine.
fn s390x_tests(cx: &Context) -> Result<Outcome> {
    match s390x::tests(cx)? {
        Err(why) => Ok(Outcome::Skipped(why)),
        Ok(tests) => rust_tests(cx, "unit tests on s390x", &tests.arguments, &tests.environment).map(|(outcome, _)| outcome),
    }
}

/// Tests that start PostgreSQL; `cargo test` alone leaves them out.
fn postgres(cx: &Context) -> Result<Outcome> {
    let is_there = std::env::var_os("KATA_CC_POSTGRES").is_some()
        || fs::read_dir("/usr/lib/postgresql").is_ok_and(|versions| versions.flatten().any(|v| v.path().join("bin/postgres").is_file()));
    if !is_there {
        let why = "no PostgreSQL: install Debian's package postgresql, or name its programs' directory in KATA_CC_POSTGRES";
        return Ok(Outcome::Skipped(why.into()));
    }
    ignored_tests(cx, "postgres", &[])
}

/// Tests that keep keys in SoftHSM.
fn hsm(cx: &Context) -> Result<Outcome> {
    let needed = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/bin/softhsm2-util", "/usr/bin/pkcs11-tool"];
    if let Some(missing) = needed.iter().find(|path| !Path::new(path).is_file()) {
        return Ok(Outcome::Skipped(format!("no {missing}: install Debian's packages softhsm2 and opensc")));
    }
    ignored_tests(cx, "pkcs11", &[])
}

/// Tests that start OpenBao.
fn vault(cx: &Context) -> Result<Outcome> {
    const PROGRAM: &str = "KATA_CC_BAO";
    if std::env::var_os(PROGRAM).is_some() {
        return ignored_tests(cx, "vault", &[]);
    }
    match setup::python::openbao(cx)? {
        Ok(program) => ignored_tests(cx, "vault", &[(PROGRAM, &program)]),
        Err(why) => Ok(Outcome::Skipped(format!("{why}; or name OpenBao's program in {PROGRAM}"))),
    }
}

/// Tests before the QEMU binaries of other releases.
fn qemu(cx: &Context, name: &str) -> Result<Outcome> {
    let mut trees = Vec::new();
    for package in unpacked::PACKAGES.iter().filter(|package| package.directory.starts_with("qemu-")) {
        if !package.is_there(cx) {
            return Ok(Outcome::Skipped(format!("Debian {}'s {} could not be fetched", package.suite, package.package)));
        }
        trees.push(package.place(cx));
    }
    let trees = std::env::join_paths(trees).context("the cache's path contains ':'")?;
    ignored_tests(cx, name, &[("KATA_CC_QEMU_TREES", Path::new(&trees))])
}

/// The table of firmware builds before the files of the packages that have them.
fn ready_firmware(cx: &Context, summary: &mut Summary) -> Result<Outcome> {
    let mut trees = Vec::new();
    for (package, build) in unpacked::ready_firmware() {
        if package.is_there(cx) {
            trees.push(package.place(cx));
        } else {
            summary.skip(format!("ready firmware: {build}: the package could not be fetched in that version"));
        }
    }
    if trees.is_empty() {
        return Ok(Outcome::Skipped("none of the packages with ready firmware could be fetched".into()));
    }
    let trees = std::env::join_paths(trees).context("the cache's path contains ':'")?;
    ignored_tests(cx, "ready_firmware", &[("KATA_CC_FIRMWARE_TREES", Path::new(&trees))])
}

/// What the image says it is made of, by the makers of that format.
fn sbom_schema(cx: &Context, artifacts: &Artifacts) -> Result<Outcome> {
    Ok(match sbom::validate(cx, &artifacts.guest().join(manifest::SBOM))? {
        Ok(()) => Outcome::Passed(1),
        Err(why) => Outcome::Skipped(why),
    })
}

/// The ignored tests of one file.
fn ignored_tests(cx: &Context, name: &str, environment: &[(&str, &Path)]) -> Result<Outcome> {
    // By the whole workspace, as the unit tests were built: with one crate alone its dependencies would have other features, and be built again.
    let (outcome, _) = rust_tests(cx, name, &["--workspace", "--test", name, "--", "--ignored"], environment)?;
    if outcome == Outcome::Passed(0) {
        return Ok(Outcome::Failed(0, 1, "no test ran: are they still marked as ignored?".into()));
    }
    Ok(outcome)
}

/// What came of tests, and what they skipped.
fn rust_tests(cx: &Context, name: &str, arguments: &[&str], environment: &[(&str, &Path)]) -> Result<(Outcome, Vec<String>)> {
    let mut cargo = cx.cargo();
    cargo.args(["test", "--locked"]).args(arguments).envs(environment.iter().copied());
    let (status, log) = cx.run.tried(name, &mut cargo)?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let (passed, failed, skipped) = read_test_log(&text);
    if status.success() && failed == 0 {
        return Ok((Outcome::Passed(passed), skipped));
    }
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED")).collect();
    let why = if names.is_empty() { "did not build".to_owned() } else { names.join(", ") };
    Ok((Outcome::Failed(passed, failed.max(1), format!("{why}; the whole log is {}", log.display())), skipped))
}

fn end_to_end(cx: &Context, artifacts: &Artifacts, name: &str, arguments: &[&str]) -> Result<Outcome> {
    let (status, log) = cx.run.tried(name, lab::command(artifacts, "e2e").args(arguments))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    print!("{text}");
    let (passed, failed) = read_closing_line(&text).unwrap_or((0, 0));
    if status.success() && failed == 0 && passed > 0 {
        return Ok(Outcome::Passed(passed));
    }
    Ok(Outcome::Failed(passed, failed.max(1), format!("{status}; its output is above and in {}", log.display())))
}
