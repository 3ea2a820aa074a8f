//! `kata-cc verify evidence`: the broker's verification, on the workstation, without a broker, of every kind that has a verifier.
//!
//! The verdict and the checks are `kata_cc_verifier`'s alone; this file reads files and shows. Invariant: what was not compared is shown
//! as "not compared", never as passed, and what comes after a failed check is not shown at all.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Subcommand;
use kata_cc_collateral::{BaseUrl, Collector, Sources};
use kata_cc_evidence::{LaunchDigest, ReportData, TeeType};
use kata_cc_policy::Initdata;
use kata_cc_verifier::cca::CcaTrust;
use kata_cc_verifier::checks::{self, Checks};
use kata_cc_verifier::snp::{RootSet, SnpTrust};
use kata_cc_verifier::tdx::{self, TdxRules, TdxTrust};
use kata_cc_verifier::{Expected, Trust, Verified, Verifier, Verifiers};
use serde_json::Value;

use super::collateral::collect;
use crate::files;
use crate::output::{Format, Outcome, show};

/// Largest certificate or revocation list read from --certs.
const MAX_CERTIFICATE: u64 = 1 << 20;
/// Most files read from --certs.
const MAX_CERTIFICATES: usize = 256;

/// What to verify.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Verify a hardware report and show each check with the value compared.
    Evidence(Box<Args>),
    /// Show what an event log says, replay it, and hold it against registers.
    Eventlog(super::verify_eventlog::Args),
    /// Verify a manifest of reference values and show what is in it.
    Manifest(super::verify_manifest::Args),
    /// Verify an attestation token for somebody who relies on it, and show each check with the value compared.
    Token(super::verify_token::Args),
}

/// Arguments of `verify evidence`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kind of TEE, by its name in the key-broker protocol, such as snp.
    #[arg(long, value_name = "KIND")]
    tee: TeeType,
    /// Evidence: CoCo's JSON form, or the raw report or quote as the hardware hands it out (`-`: stdin).
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
    /// Directory with endorsement certificates (VCEK, VLEK; .der, .pem, .crt) and revocation lists (.crl) for evidence that brings none.
    #[arg(long, value_name = "DIR")]
    certs: Option<PathBuf>,
    /// Directory with collateral, as `kata-cc collateral fetch` fills it.
    #[arg(long, value_name = "DIR")]
    collateral: Option<PathBuf>,
    /// Fetch what is missing from AMD's key distribution service at this URL, such as https://kdsintf.amd.com.
    #[arg(long, value_name = "URL")]
    amd_kds: Option<BaseUrl>,
    /// Fetch what is missing from Intel's provisioning certification service or a PCCS at this URL.
    #[arg(long, value_name = "URL")]
    intel_pcs: Option<BaseUrl>,
    /// Attestation key of a TPM that is trusted, a public key in DER or PEM; may be given more than once. Of kind tpm no evidence verifies
    /// without.
    #[arg(long, value_name = "FILE")]
    attestation_key: Vec<PathBuf>,
    /// Trust anchors of CCA platforms, a store as CoCo and Veraison have it. Of kind cca no evidence verifies without.
    #[arg(long, value_name = "FILE")]
    cca_trust_anchors: Option<PathBuf>,
    /// Certificate of Hygon's root key (HRK). Of kind csv no evidence verifies without.
    #[arg(long, value_name = "FILE")]
    csv_root: Option<PathBuf>,
    /// Certificates of a Hygon chip (HSK and CEK in one file), for evidence that brings none; may be given more than once.
    #[arg(long, value_name = "FILE")]
    csv_chip: Vec<PathBuf>,
    /// NVIDIA's device identity CA, PEM. Of kind nvidia no evidence verifies without.
    #[arg(long, value_name = "FILE")]
    nvidia_root: Option<PathBuf>,
    /// Accept TDs without SEPT_VE_DISABLE, into which the host can inject exceptions: those of Azure are launched so.
    #[arg(long)]
    allow_sept_ve: bool,
    /// What the guest must have put into the report: 64 bytes in hex.
    #[arg(long, value_name = "HEX")]
    report_data: Option<ReportData>,
    /// Digest of the initdata the guest must have been launched with: 32, 48 or 64 bytes in hex.
    #[arg(long, value_name = "HEX", value_parser = parse_digest, conflicts_with = "initdata")]
    host_data: Option<Digest>,
    /// The same, as the initdata whose digest it must be.
    #[arg(long, value_name = "FILE")]
    initdata: Option<PathBuf>,
    /// Launch digest to expect: 48 bytes in hex (`kata-cc measure snp`); several may be given, one of which must match.
    #[arg(long, value_name = "HEX", num_args = 1..)]
    measurement: Vec<LaunchDigest>,
    /// Trust a simulated root as well: a name for it and its PEM file. What it vouches for is marked, and is no hardware.
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_root)]
    simulated_root: Vec<(String, PathBuf)>,
    /// Verify as of this time, such as 2026-01-31T12:00:00Z. Default: now.
    #[arg(long, value_name = "RFC3339", value_parser = parse_time)]
    now: Option<SystemTime>,
}

/// A digest of initdata.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Digest(Vec<u8>);

fn parse_digest(text: &str) -> Result<Digest, String> {
    let bytes = hex::decode(text).ok().filter(|bytes| matches!(bytes.len(), 32 | 48 | 64));
    bytes.map(Digest).ok_or_else(|| format!("expected 32, 48 or 64 bytes in hex, found {} characters", text.chars().count()))
}

fn parse_root(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("expected NAME=FILE, such as lab=sim/ark.pem")?;
    Ok((name.to_owned(), file.into()))
}

pub(super) fn parse_time(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339(text).map_err(|_| format!("expected a UTC time such as 2026-01-31T12:00:00Z, found {text:?}"))
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<Outcome> {
    let args = match command {
        Command::Evidence(args) => args,
        Command::Eventlog(args) => return super::verify_eventlog::run(args, format),
        Command::Manifest(args) => return super::verify_manifest::run(args, format),
        Command::Token(args) => return super::verify_token::run(args, format),
    };
    let told = verify(args)?;
    show(format, "verify.evidence", &told.json(), || told.text())?;
    Ok(Outcome::when(told.passed()))
}

/// What became of the evidence.
struct Told {
    tee: TeeType,
    checks: Checks,
    /// There for evidence that is genuine, even where it is not what was wanted.
    verified: Option<Verified>,
    error: Option<String>,
}

fn verify(args: &Args) -> anyhow::Result<Told> {
    let verifiers = Verifiers::new(trust(args)?);
    let verifier = verifiers.get(args.tee)?;
    let evidence = read_evidence(&args.evidence, verifier)?;
    let initdata_digest = initdata_digest(args)?;
    let now_unix = args.now.unwrap_or_else(SystemTime::now).duration_since(UNIX_EPOCH).context("the time is before 1970")?.as_secs();
    let expected = Expected {
        report_data: args.report_data.as_ref(),
        initdata_digest: initdata_digest.as_ref().map(|digest| digest.0.as_slice()),
        now_unix,
    };
    let sources = Sources {
        directory: args.collateral.clone(),
        amd_kds: args.amd_kds.clone(),
        intel_pcs: args.intel_pcs.clone(),
        cache_directory: None,
    };
    let collateral = collect(&Collector::new(sources)?, &verifier.needs(&evidence))?;
    let mut checks = Checks::default();
    let (verified, mut error) = match verifier.verify(&evidence, &expected, &collateral, &mut checks) {
        Ok(verified) => (Some(verified), None),
        Err(error) => (None, Some(error.to_string())),
    };
    if let Some(verified) = &verified {
        error = check_measurement(verifier.measurement(verified.claims()), &args.measurement, &mut checks).err();
    }
    Ok(Told { tee: args.tee, checks, verified, error })
}

fn trust(args: &Args) -> anyhow::Result<Trust> {
    let (endorsements, lists) = args.certs.as_deref().map(read_certs).transpose()?.unwrap_or_default();
    let (mut roots, mut tdx_roots) = (RootSet::amd(), tdx::RootSet::intel());
    for (name, path) in &args.simulated_root {
        let pem = files::read(path)?;
        match args.tee {
            TeeType::Tdx | TeeType::AzTdxVtpm => tdx_roots = tdx_roots.with_simulated(name, &pem)?,
            _ => roots = roots.with_simulated(name, &pem)?,
        }
    }
    for (path, list) in lists {
        roots = roots.with_revocation_list(&list).with_context(|| format!("cannot use {}", path.display()))?;
    }
    let rules = TdxRules { require_sept_ve_disable: !args.allow_sept_ve, ..TdxRules::default() };
    Ok(Trust { snp: SnpTrust { endorsements, ..roots.into() }, tdx: TdxTrust { roots: tdx_roots, rules }, ..registered(args)? })
}

/// What has no maker's root, so that the owner names each machine or root.
fn registered(args: &Args) -> anyhow::Result<Trust> {
    let missing = match args.tee {
        TeeType::Tpm if args.attestation_key.is_empty() => Some(("TPM", "the machine's attestation key by --attestation-key")),
        TeeType::Cca if args.cca_trust_anchors.is_none() => Some(("CCA platform", "the store of their keys by --cca-trust-anchors")),
        TeeType::Csv if args.csv_root.is_none() => Some(("Hygon chip", "the certificate of Hygon's root by --csv-root")),
        TeeType::Nvidia if args.nvidia_root.is_none() => Some(("GPU", "NVIDIA's device identity CA by --nvidia-root")),
        _ => None,
    };
    if let Some((what, how)) = missing {
        bail!("no {what} is trusted by itself: name {how} FILE");
    }
    let unusable = |path: &Path| format!("cannot use {}", path.display());
    let mut trust = Trust::hardware();
    for path in &args.attestation_key {
        trust.tpm = trust.tpm.with_key(&path.display().to_string(), &files::read(path)?).with_context(|| unusable(path))?;
    }
    if let Some(path) = &args.cca_trust_anchors {
        trust.cca = CcaTrust::from_store(&files::read(path)?).with_context(|| unusable(path))?;
    }
    if let Some(path) = &args.csv_root {
        trust.csv = trust.csv.with_root("HRK", &files::read(path)?).with_context(|| unusable(path))?;
    }
    for path in &args.csv_chip {
        trust.csv = trust.csv.with_chip(&files::read(path)?).with_context(|| unusable(path))?;
    }
    if let Some(path) = &args.nvidia_root {
        trust.nvidia = trust.nvidia.with_root("NVIDIA", &files::read(path)?).with_context(|| unusable(path))?;
    }
    Ok(trust)
}

fn initdata_digest(args: &Args) -> anyhow::Result<Option<Digest>> {
    let Some(path) = &args.initdata else { return Ok(args.host_data.clone()) };
    let initdata = Initdata::parse(&files::read(path)?).with_context(|| format!("{} is not usable initdata", path.display()))?;
    Ok(Some(Digest(initdata.digest().as_bytes().to_vec())))
}

fn check_measurement(found: Option<&str>, wanted: &[LaunchDigest], checks: &mut Checks) -> Result<(), String> {
    let found = found.unwrap_or("none");
    if wanted.is_empty() {
        checks.not_compared("measurement", found);
        return Ok(());
    }
    let expected = wanted.iter().map(ToString::to_string).collect::<Vec<_>>();
    let outcome = expected.iter().any(|wanted| wanted == found).then_some(());
    let outcome = outcome.ok_or_else(|| format!("the launch measurement is {found}, which is none of those expected"));
    checks.record("measurement", found, expected.join(" or "), outcome)
}

impl Told {
    /// Whether everything that was compared was as expected.
    fn passed(&self) -> bool {
        self.error.is_none()
    }

    fn simulated_root(&self) -> Option<&str> {
        self.verified.as_ref().and_then(Verified::simulated_root)
    }

    fn json(&self) -> Value {
        serde_json::json!({
            "tee": self.tee,
            "verified": self.passed(),
            "simulated_root": self.simulated_root(),
            "error": self.error,
            "checks": self.checks.all(),
            "claims": self.verified.as_ref().map(Verified::claims),
        })
    }

    fn text(&self) -> String {
        let mut out = text_of(&self.checks);
        if let Some(name) = self.simulated_root() {
            out += &format!("SIMULATED: signed under the simulated root {name:?}; no hardware vouches for this guest\n");
        }
        if let Some(error) = &self.error {
            out += &format!("refused: {error}\nnot verified; checks after the failed one were not reached\n");
            return out;
        }
        let open = self.checks.all().iter().filter(|check| check.outcome == checks::Outcome::NotCompared);
        let open: Vec<&str> = open.map(|check| check.name).collect();
        out += &match open.as_slice() {
            [] => "verified\n".to_owned(),
            open => format!("verified as genuine; not compared: {}\n", open.join(", ")),
        };
        out
    }
}

/// One line for each check.
pub(super) fn text_of(checks: &Checks) -> String {
    let mut out = String::new();
    for check in checks.all() {
        let (mark, note) = match check.outcome {
            checks::Outcome::Pass => ("pass", format!(" (expected {})", check.expected)),
            checks::Outcome::Fail => ("FAIL", format!(" (expected {})", check.expected)),
            checks::Outcome::NotCompared => ("    ", " (not compared)".to_owned()),
        };
        out += &format!("{mark}  {:<17} {}{note}\n", check.name, check.found);
    }
    out
}

/// Evidence as JSON, or as raw bytes that the kind makes JSON of. No report or quote begins like a JSON object.
pub(super) fn read_evidence(path: &Path, verifier: &dyn Verifier) -> anyhow::Result<Value> {
    let bytes = files::read(path)?;
    if bytes.trim_ascii_start().starts_with(b"{") {
        return serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()));
    }
    verifier.parse_raw(&bytes).with_context(|| {
        format!("{} ({} bytes) is neither evidence in JSON nor raw evidence of kind \"{}\"", path.display(), bytes.len(), verifier.tee())
    })
}

/// Certificates, and revocation lists with their names.
type Certs = (Vec<Vec<u8>>, Vec<(PathBuf, Vec<u8>)>);

fn read_certs(dir: &Path) -> anyhow::Result<Certs> {
    let (mut certificates, mut lists) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        if !path.is_file() || !matches!(extension.as_str(), "der" | "pem" | "crt" | "cer" | "crl") {
            continue;
        }
        let mut bytes = Vec::new();
        let file = fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        file.take(MAX_CERTIFICATE + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
        if bytes.len() as u64 > MAX_CERTIFICATE {
            bail!("{} is larger than {MAX_CERTIFICATE} bytes, which no certificate is", path.display());
        }
        if certificates.len() + lists.len() == MAX_CERTIFICATES {
            bail!("{} holds more than {MAX_CERTIFICATES} certificates; give a directory with those that are needed", dir.display());
        }
        if extension == "crl" { lists.push((path, bytes)) } else { certificates.push(bytes) }
    }
    if certificates.is_empty() && lists.is_empty() {
        bail!("{} holds no .der, .pem, .crt, .cer or .crl file", dir.display());
    }
    Ok((certificates, lists))
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
