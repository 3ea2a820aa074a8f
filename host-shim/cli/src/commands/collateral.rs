//! `kata-cc collateral`: what evidence needs beside itself, and fetching that for verification without a network.
//!
//! Nothing that is fetched is verified here: `verify evidence` and the broker do that, each time.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Subcommand;
use kata_cc_collateral::{BaseUrl, Collector, Directory, Sources, directory};
use kata_cc_evidence::TeeType;
use kata_cc_verifier::collateral::{Collateral, Need, Source};
use kata_cc_verifier::{Trust, Verifiers};
use serde_json::{Value, json};

use super::verify::read_evidence;
use crate::output::{Format, Outcome, show};

/// AMD's service.
const AMD_KDS: &str = "https://kdsintf.amd.com";
/// Intel's service.
const INTEL_PCS: &str = "https://api.trustedservices.intel.com";

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show what evidence needs, and under which file names it is looked for in a directory.
    Needs(EvidenceArgs),
    /// Fetch it into a directory, for `verify evidence --collateral` and the broker's `[collateral] directory`.
    Fetch(FetchArgs),
}

/// Which evidence.
#[derive(clap::Args)]
pub(crate) struct EvidenceArgs {
    /// Kind of TEE, by its name in the key-broker protocol, such as tdx.
    #[arg(long, value_name = "KIND")]
    tee: TeeType,
    /// Evidence: CoCo's JSON form, or the raw report or quote (`-`: stdin).
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
}

/// Arguments of `collateral fetch`.
#[derive(clap::Args)]
pub(crate) struct FetchArgs {
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// Directory to put it into; made if it is not there.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    services: Services,
}

/// Where services are.
#[derive(clap::Args)]
pub(crate) struct Services {
    /// AMD's key distribution service, or a mirror.
    #[arg(long, value_name = "URL", default_value = AMD_KDS)]
    amd_kds: BaseUrl,
    /// Intel's provisioning certification service, or a PCCS.
    #[arg(long, value_name = "URL", default_value = INTEL_PCS)]
    intel_pcs: BaseUrl,
}

impl EvidenceArgs {
    fn needs(&self) -> anyhow::Result<Vec<Need>> {
        let verifiers = Verifiers::new(Trust::hardware());
        let verifier = verifiers.get(self.tee)?;
        let needs = verifier.needs(&read_evidence(&self.evidence, verifier)?);
        if needs.is_empty() {
            bail!("{} needs nothing that can be fetched: it is malformed, or brings all there is", self.evidence.display());
        }
        Ok(needs)
    }
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<Outcome> {
    match command {
        Command::Needs(args) => {
            let needs = args.needs()?;
            let rows: Vec<Value> = needs.iter().map(|need| json!({"address": address(need), "file": directory::file_name(need)})).collect();
            show(format, "collateral.needs", &rows, || {
                needs.iter().map(|need| format!("{}\n    {}\n", address(need), directory::file_name(need).unwrap_or_default())).collect()
            })?;
            Ok(Outcome::when(true))
        }
        Command::Fetch(args) => fetch(args, format),
    }
}

/// Where its maker serves it.
fn address(need: &Need) -> String {
    let base = match need.source {
        Source::AmdKds => AMD_KDS,
        Source::IntelPcs => INTEL_PCS,
    };
    format!("{base}/{}", need.path)
}

fn fetch(args: &FetchArgs, format: Format) -> anyhow::Result<Outcome> {
    let needs = args.evidence.needs()?;
    std::fs::create_dir_all(&args.to).with_context(|| format!("cannot make {}", args.to.display()))?;
    let Services { amd_kds, intel_pcs } = &args.services;
    let sources = Sources { amd_kds: Some(amd_kds.clone()), intel_pcs: Some(intel_pcs.clone()), ..Sources::default() };
    let collector = Collector::new(sources)?;
    let found = collect(&collector, &needs)?;
    let directory = Directory::new(args.to.clone());
    let mut rows = Vec::new();
    let mut text = String::new();
    for need in &needs {
        match found.get(need) {
            Some(item) => {
                let file = directory.put(need, item).with_context(|| format!("cannot write to {}", args.to.display()))?;
                text += &format!("fetched  {need} -> {file}\n");
                rows.push(json!({"need": need.to_string(), "file": file}));
            }
            None => {
                let why = collector.why_not(need).unwrap_or_default();
                text += &format!("MISSING  {need}: {why}\n");
                rows.push(json!({"need": need.to_string(), "file": Value::Null, "error": why}));
            }
        }
    }
    show(format, "collateral.fetch", &rows, || text)?;
    Ok(Outcome::when(needs.iter().all(|need| found.get(need).is_some())))
}

/// Collects, as of now.
pub(super) fn collect(collector: &Collector, needs: &[Need]) -> anyhow::Result<Collateral> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    super::block_on(async { Ok(collector.collect(needs, now).await) })
}
