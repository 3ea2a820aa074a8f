//! `kata-cc verify manifest`: a manifest of reference values as the broker will read it.
//!
//! Invariant: nothing of a manifest is shown before a given key's signature over it was found good.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use kata_cc_policy::reference::{Entry, KernelInputs, SignedManifest, Validity, VerifiedManifest};
use serde_json::json;

use super::policy::trusted_keys;
use crate::files;
use crate::output::{Format, Outcome, line, show};

/// Arguments of `verify manifest`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The manifest, as `kata-cc measure … --sign` wrote it (`-`: stdin).
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Public key (PEM) that must have signed it; may be given several times, one of which must have.
    #[arg(long, value_name = "PUB", required = true)]
    key: Vec<PathBuf>,
    /// Ask whether it holds at this time, such as 2026-01-31T12:00:00Z. Default: now.
    #[arg(long, value_name = "RFC3339", value_parser = parse_time)]
    now: Option<SystemTime>,
    /// List every value, one a line: its id and the value.
    #[arg(long)]
    values: bool,
}

fn parse_time(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339_weak(text).map_err(|_| format!("expected a UTC time such as 2026-01-31T12:00:00Z, found {text:?}"))
}

pub(crate) fn run(args: &Args, format: Format) -> anyhow::Result<Outcome> {
    let verified = match SignedManifest::verify(&files::read(&args.file)?, &trusted_keys(&args.key, 0)?) {
        Ok(verified) => verified,
        Err(error) => {
            show(format, "verify.manifest", &json!({ "verified": false, "error": error.to_string() }), || format!("refused: {error}"))?;
            return Ok(Outcome::No);
        }
    };
    let now = args.now.unwrap_or_else(SystemTime::now).duration_since(UNIX_EPOCH).context("the time is before 1970")?.as_secs();
    let validity = verified.manifest().validity(now);
    let result = json!({
        "verified": true,
        "digest": verified.digest().to_string(),
        "signer": verified.signer().to_string(),
        "validity": match validity {
            Validity::NotYet => "not-yet",
            Validity::Valid => "valid",
            Validity::Expired => "expired",
        },
        "manifest": verified.manifest(),
    });
    show(format, "verify.manifest", &result, || if args.values { values(&verified) } else { text(&verified, validity) })?;
    Ok(Outcome::when(validity == Validity::Valid))
}

fn values(verified: &VerifiedManifest) -> String {
    let mut out = String::new();
    for (id, values) in verified.manifest().values() {
        for value in values {
            out.push_str(&format!("{id} {}\n", value.as_str().map_or_else(|| value.to_string(), |text| text.escape_debug().to_string())));
        }
    }
    out
}

fn text(verified: &VerifiedManifest, validity: Validity) -> String {
    let manifest = verified.manifest();
    let mut out = line("signed by", verified.signer());
    out.push_str(&line("sha256", verified.digest()));
    out.push_str(&line("name", format_args!("{} {}, serial {}", manifest.name, manifest.release, manifest.serial)));
    out.push_str(&line("kind", manifest.kind));
    let holds = match validity {
        Validity::NotYet => "NOT YET",
        Validity::Valid => "valid",
        Validity::Expired => "EXPIRED",
    };
    out.push_str(&line("holds", format_args!("{} to {}: {holds}", shown(manifest.not_before), shown(manifest.expires))));
    for entry in &manifest.entries {
        match entry {
            Entry::Snp(snp) => {
                out.push_str(&line(
                    "SNP",
                    format_args!("launched by {}, guest features {:#x}", snp.inputs.vmm, snp.inputs.guest_features.0),
                ));
                out.push_str(&line("  firmware sha256", snp.inputs.firmware));
                snp.inputs.boot.iter().for_each(|inputs| boot(inputs, &mut out));
                for cpu in &snp.cpus {
                    let models = if cpu.cpu_models.is_empty() { "any CPU".to_owned() } else { cpu.cpu_models.join(", ") };
                    out.push_str(&line("  digests", format_args!("1 to {} vCPUs of {models}", cpu.launch_digests.len())));
                }
            }
            Entry::Tdx(tdx) => {
                out.push_str(&line("TDX", format_args!("launched by {}", tdx.inputs.vmm)));
                out.push_str(&line("  firmware sha256", tdx.inputs.firmware));
                tdx.inputs.boot.iter().for_each(|inputs| boot(inputs, &mut out));
                let counts = [&tdx.mr_td, &tdx.rtmr_0, &tdx.rtmr_1, &tdx.rtmr_2].map(Vec::len);
                out.push_str(&line(
                    "  digests",
                    format_args!("{} MRTD, {} RTMR0, {} RTMR1, {} RTMR2", counts[0], counts[1], counts[2], counts[3]),
                ));
            }
            Entry::Se(se) => {
                out.push_str(&line("Secure Execution", format_args!("{} tags, {} host keys", se.tags.len(), se.image_phkh.len())));
                boot(&se.inputs, &mut out);
            }
            Entry::Values(entry) => {
                out.push_str(&line("values", entry.values.keys().map(String::as_str).collect::<Vec<_>>().join(", ")));
            }
        }
    }
    out
}

fn boot(inputs: &KernelInputs, out: &mut String) {
    out.push_str(&line("  kernel sha256", inputs.kernel));
    if let Some(initrd) = inputs.initrd {
        out.push_str(&line("  initrd sha256", initrd));
    }
    out.push_str(&line("  command line", format_args!("{:?}", inputs.cmdline)));
}

/// Years beyond 9999 cannot be written.
fn shown(unix: u64) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix.min(253_402_300_799)))
}
