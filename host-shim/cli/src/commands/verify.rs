//! `kata-cc verify evidence`: the broker's verification, on the workstation, without a broker.
//!
//! The verdict is `kata_cc_verifier`'s alone; this file shows which checks were made, with what, and which one failed. Invariant:
//! what was not compared is shown as "not compared", never as passed.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use kata_cc_evidence::snp::{Evidence, Report, SigningKey};
use kata_cc_evidence::{HostData, LaunchDigest, ReportData};
use kata_cc_policy::Initdata;
use kata_cc_verifier::snp::{ChainPart, RootSet, SnpError, SnpOptions, VerifiedSnp, verify};
use serde::Serialize;

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
    Evidence(Args),
    /// Show what an event log says, replay it, and hold it against registers.
    Eventlog(super::verify_eventlog::Args),
}

/// Arguments of `verify evidence`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kind of TEE.
    #[arg(long, value_enum)]
    tee: Tee,
    /// Evidence: CoCo's JSON form, or the raw report of 1184 bytes (`-`: stdin).
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
    /// Directory with endorsement certificates (VCEK, VLEK; .der, .pem, .crt) and revocation lists (.crl) for evidence that brings none.
    #[arg(long, value_name = "DIR")]
    certs: Option<PathBuf>,
    /// What the guest must have put into the report: 64 bytes in hex.
    #[arg(long, value_name = "HEX")]
    report_data: Option<ReportData>,
    /// What the guest must have been launched with: 32 bytes in hex.
    #[arg(long, value_name = "HEX", conflicts_with = "initdata")]
    host_data: Option<HostData>,
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

/// Kinds of TEE that can be verified.
#[derive(Clone, Copy, ValueEnum)]
enum Tee {
    /// AMD SEV-SNP.
    Snp,
}

fn parse_root(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("expected NAME=FILE, such as lab=sim/ark.pem")?;
    Ok((name.to_owned(), file.into()))
}

fn parse_time(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339(text).map_err(|_| format!("expected a UTC time such as 2026-01-31T12:00:00Z, found {text:?}"))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    Pass,
    Fail,
    NotCompared,
    NotReached,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    expected: String,
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<Outcome> {
    let args = match command {
        Command::Evidence(args) => args,
        Command::Eventlog(args) => return super::verify_eventlog::run(args, format),
    };
    match args.tee {
        Tee::Snp => snp(args, format),
    }
}

fn snp(args: &Args, format: Format) -> anyhow::Result<Outcome> {
    let evidence = read_evidence(&args.evidence)?;
    let (endorsements, lists) = args.certs.as_deref().map(read_certs).transpose()?.unwrap_or_default();
    let mut roots = RootSet::amd();
    for (name, path) in &args.simulated_root {
        roots = roots.with_simulated(name, &files::read(path)?)?;
    }
    for (path, list) in lists {
        roots = roots.with_revocation_list(&list).with_context(|| format!("cannot use {}", path.display()))?;
    }
    let host_data = expected_host_data(args)?;
    let now = args.now.unwrap_or_else(SystemTime::now).duration_since(UNIX_EPOCH).context("the time is before 1970")?.as_secs();
    // Comparing the report with itself makes no claim; the check is shown as not compared.
    let report_data = args.report_data.unwrap_or(evidence.report().report_data);
    let options = SnpOptions { roots: &roots, now_unix: now, endorsements: &endorsements };
    let verdict = verify(&evidence, &report_data, host_data.as_ref(), &options);
    report(args, &evidence, host_data, now, verdict, format)
}

fn expected_host_data(args: &Args) -> anyhow::Result<Option<HostData>> {
    let Some(path) = &args.initdata else { return Ok(args.host_data) };
    let initdata = Initdata::parse(&files::read(path)?).with_context(|| format!("{} is not usable initdata", path.display()))?;
    Ok(Some(HostData(initdata.host_data())))
}

fn report(
    args: &Args,
    evidence: &Evidence,
    host_data: Option<HostData>,
    now: u64,
    verdict: Result<VerifiedSnp, SnpError>,
    format: Format,
) -> anyhow::Result<Outcome> {
    let measurement = &evidence.report().measurement;
    let mut checks = checks(evidence.report(), args.report_data, host_data, now, &verdict);
    checks.push(Check {
        name: "measurement",
        status: match &verdict {
            Err(_) => Status::NotReached,
            Ok(_) if args.measurement.is_empty() => Status::NotCompared,
            Ok(_) if args.measurement.contains(measurement) => Status::Pass,
            Ok(_) => Status::Fail,
        },
        found: measurement.to_string(),
        expected: args.measurement.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
    });
    let passed = checks.iter().all(|c| matches!(c.status, Status::Pass | Status::NotCompared));
    let error = verdict.as_ref().err().map(ToString::to_string);
    let simulated = verdict.as_ref().ok().and_then(VerifiedSnp::simulated_root);
    let result = serde_json::json!({
        "tee": "snp",
        "verified": passed,
        "simulated_root": simulated,
        "error": error,
        "checks": checks,
        "claims": verdict.as_ref().ok().map(VerifiedSnp::claims),
    });
    show(format, "verify.evidence", &result, || text(&checks, error.as_deref(), simulated, passed))?;
    Ok(Outcome::when(passed))
}

/// The verifier's checks in its order, each with what it looked at. The verifier stops at the first failure: those before passed.
fn checks(
    report: &Report,
    report_data: Option<ReportData>,
    host_data: Option<HostData>,
    now: u64,
    verdict: &Result<VerifiedSnp, SnpError>,
) -> Vec<Check> {
    let failed = verdict.as_ref().err().map(step);
    let signer = match report.key_info.signing_key() {
        SigningKey::Vcek => "VCEK".to_owned(),
        SigningKey::Vlek => "VLEK".to_owned(),
        other => format!("{other:?}"),
    };
    let root = verdict.as_ref().map(|v| format!("to {}, ", v.root_name())).unwrap_or_default();
    let generation = verdict.as_ref().ok().and_then(VerifiedSnp::generation).or(report.generation());
    let chip = hex::encode(report.chip_id);
    let yes = |set: bool| if set { "yes" } else { "no" };
    let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(now));
    let hex_of = |value: Option<String>| value.unwrap_or_default();
    let rows: [(&'static str, String, String, bool); 12] = [
        (
            "report",
            format!("version {}, signature algorithm {}", report.version, report.signature_algo),
            "version 2, 3 or 5, algorithm 1".into(),
            true,
        ),
        ("signing key", signer, "VCEK or VLEK".into(), true),
        ("endorsement", "a certificate for that key".into(), "one that can be read".into(), true),
        ("chain", format!("{root}valid at {time}"), "a trusted root".into(), true),
        ("generation", generation.map_or("not stated".into(), |g| g.name().to_owned()), "the same in report and certificates".into(), true),
        ("TCB", tcb(report), "that of the certificate".into(), true),
        ("chip", chip, "that of the certificate (VCEK)".into(), true),
        ("report signature", "ECDSA P-384".into(), "by the endorsement key".into(), true),
        ("VMPL", report.vmpl.to_string(), "0".into(), true),
        ("debugging", yes(report.policy.debug_allowed()).into(), "no".into(), true),
        ("report data", report.report_data.to_string(), hex_of(report_data.map(|d| d.to_string())), report_data.is_some()),
        ("host data", report.host_data.to_string(), hex_of(host_data.map(|d| d.to_string())), host_data.is_some()),
    ];
    let status = |at: usize, compared: bool| match failed {
        Some(failed) if at == failed => Status::Fail,
        Some(failed) if at > failed => Status::NotReached,
        _ if compared => Status::Pass,
        _ => Status::NotCompared,
    };
    rows.into_iter()
        .enumerate()
        .map(|(at, (name, found, expected, compared))| Check { name, status: status(at, compared), found, expected })
        .collect()
}

fn tcb(report: &Report) -> String {
    let tcb = report.reported_tcb;
    let fmc = tcb.fmc.map(|fmc| format!("FMC {fmc}, ")).unwrap_or_default();
    format!("{fmc}boot loader {}, TEE {}, SNP {}, microcode {}", tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode)
}

/// Which row of [`checks`] an error belongs to.
fn step(error: &SnpError) -> usize {
    match error {
        SnpError::Report(_) | SnpError::SignatureAlgorithm { .. } => 0,
        SnpError::SigningKey { .. } | SnpError::Unsigned => 1,
        SnpError::NoEndorsement { .. } | SnpError::Certificate { part: ChainPart::Leaf, .. } => 2,
        SnpError::Generation { .. } => 4,
        SnpError::Tcb { .. } => 5,
        SnpError::ChipId { .. } => 6,
        SnpError::ReportSignature => 7,
        SnpError::Vmpl { .. } => 8,
        SnpError::Debug => 9,
        SnpError::ReportData { .. } => 10,
        SnpError::HostData { .. } => 11,
        // Whatever else there is, or comes to be, concerns the chain.
        _ => 3,
    }
}

fn text(checks: &[Check], error: Option<&str>, simulated: Option<&str>, passed: bool) -> String {
    let mut out = String::new();
    for check in checks {
        let (mark, note) = match check.status {
            Status::Pass => ("pass", if check.expected.is_empty() { String::new() } else { format!(" (expected {})", check.expected) }),
            Status::Fail => ("FAIL", format!(" (expected {})", check.expected)),
            Status::NotCompared => ("    ", " (not compared)".to_owned()),
            Status::NotReached => ("    ", " (not reached)".to_owned()),
        };
        out += &format!("{mark}  {:<17} {}{note}\n", check.name, check.found);
    }
    if let Some(error) = error {
        out += &format!("refused: {error}\n");
    }
    if let Some(name) = simulated {
        out += &format!("SIMULATED: signed under the simulated root {name:?}; no hardware vouches for this guest\n");
    }
    let open: Vec<&str> = checks.iter().filter(|c| c.status == Status::NotCompared).map(|c| c.name).collect();
    out += &match (passed, open.is_empty()) {
        (true, true) => "verified\n".to_owned(),
        (true, false) => format!("verified as a genuine report; nothing was said about what to expect of: {}\n", open.join(", ")),
        (false, _) => "not verified\n".to_owned(),
    };
    out
}

fn read_evidence(path: &Path) -> anyhow::Result<Evidence> {
    let bytes = files::read(path)?;
    if bytes.len() == Report::LEN && !bytes.starts_with(b"{") {
        return Evidence::from_raw(&bytes, &[]).with_context(|| format!("{} is not a report", path.display()));
    }
    serde_json::from_slice(&bytes).with_context(|| {
        format!(
            "{} is neither a raw report ({} bytes; it has {}) nor evidence in JSON ({{\"attestation_report\": …, \"cert_chain\": …}})",
            path.display(),
            Report::LEN,
            bytes.len()
        )
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
