//! `kata-cc firmware`: which builds are known, and what a file of firmware says of itself.
//!
//! Nothing is measured here; `kata-cc measure` does, and looks at the same tables.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use kata_cc_firmware::footer::Footer;
use kata_cc_firmware::measure::snp::{FirmwareError, SnpFirmware};
use kata_cc_firmware::measure::tdx::{TdxFirmware, TdxFirmwareError};
use kata_cc_firmware::ready::{READY, ReadyFirmware};
use serde_json::{Value, json};

use crate::files;
use crate::output::{self, Format, Outcome, line, show};

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List the builds that are known: Debian package, version, what they can be measured for, SHA-256.
    List,
    /// Tell which build a file is, and what its metadata offers SEV-SNP and TDX. An unknown build is no error.
    Identify(Identify),
}

/// Arguments of `firmware identify`.
#[derive(clap::Args)]
pub(crate) struct Identify {
    /// Firmware image (`-`: stdin).
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<Outcome> {
    match command {
        Command::List => list(format),
        Command::Identify(args) => identify(args, format),
    }
}

fn list(format: Format) -> anyhow::Result<Outcome> {
    let builds: Vec<Value> = READY.iter().map(described).collect();
    show(format, "firmware.list", &json!({ "builds": builds }), table)?;
    output::note(format, "SNP: with the hashes of kernel, initrd and command line; compare a file: kata-cc firmware identify FILE");
    Ok(Outcome::Done)
}

fn table() -> String {
    let yes = |holds| if holds { "yes" } else { "no" };
    let row = |[file, package, version, suite, snp, tdx, sha256]: [&str; 7]| {
        format!("{file:<21} {package:<14} {version:<18} {suite:<9} {snp:<4} {tdx:<4} {sha256}\n")
    };
    let mut out = row(["FILE", "PACKAGE", "VERSION", "SUITE", "SNP", "TDX", "SHA256"]);
    for build in READY {
        out += &row([build.file(), build.package, build.version, build.suite, yes(build.snp), yes(build.tdx), build.sha256]);
    }
    out
}

fn described(build: &ReadyFirmware) -> Value {
    json!({
        "file": build.file(),
        "path": build.path,
        "package": build.package,
        "version": build.version,
        "suite": build.suite,
        "sha256": build.sha256,
        "snp": build.snp,
        "tdx": build.tdx,
        "note": build.note,
    })
}

/// What a file is and says.
struct Image<'a> {
    sha256: String,
    bytes: usize,
    build: Option<&'static ReadyFirmware>,
    snp: Result<SnpFirmware, FirmwareError>,
    tdx: Result<TdxFirmware<'a>, TdxFirmwareError>,
}

fn identify(args: &Identify, format: Format) -> anyhow::Result<Outcome> {
    let bytes = files::read(&args.file)?;
    Footer::read(&bytes).with_context(|| format!("{} is no firmware for SEV-SNP or TDX", args.file.display()))?;
    let sha256 = files::sha256(&bytes);
    let image = Image {
        sha256: hex::encode(sha256),
        bytes: bytes.len(),
        build: ReadyFirmware::by_sha256(&sha256),
        snp: SnpFirmware::parse(&bytes),
        tdx: TdxFirmware::parse(&bytes),
    };
    show(format, "firmware.identify", &image.to_json(), || image.to_text())?;
    match image.build {
        Some(build) => output::note(format, format!("note: {}", build.note)),
        None => output::note(format, "no known build (kata-cc firmware list): whether to trust it is between you and whoever built it"),
    }
    Ok(Outcome::Done)
}

impl Image<'_> {
    fn to_json(&self) -> Value {
        let snp = match &self.snp {
            Err(why) => json!({ "measurable": false, "why_not": why.to_string(), "checks_kernel": false }),
            Ok(firmware) => {
                let sections = firmware.sections().iter();
                json!({
                    "measurable": true,
                    "checks_kernel": firmware.checks_kernel(),
                    "why_kernel_unchecked": firmware.hash_table_offset().err().map(|why| why.to_string()),
                    "ap_reset": format!("{:#x}", firmware.ap_reset()),
                    "sections": sections.map(|s| section(&format!("{:?}", s.kind()), s.gpa(), s.size())).collect::<Vec<_>>(),
                })
            }
        };
        let tdx = match &self.tdx {
            Err(why) => json!({ "measurable": false, "why_not": why.to_string() }),
            Ok(firmware) => {
                let mut sections = Vec::new();
                for s in firmware.sections() {
                    let mut described = section(&format!("{:?}", s.kind()), s.gpa(), s.size());
                    described["measured"] = s.measured().is_some().into();
                    sections.push(described);
                }
                json!({ "measurable": true, "sections": sections })
            }
        };
        json!({ "sha256": self.sha256, "bytes": self.bytes, "build": self.build.map(described), "snp": snp, "tdx": tdx })
    }

    fn to_text(&self) -> String {
        let mut out = match self.build {
            Some(build) => line("build", build),
            None => line("build", "unknown"),
        };
        out += &line("sha256", &self.sha256);
        out += &line("bytes", self.bytes);
        match &self.snp {
            Err(why) => out += &line("SEV-SNP", format_args!("cannot be measured: {why}")),
            Ok(firmware) => {
                out += &line("SEV-SNP", "can be measured");
                out += &match firmware.hash_table_offset() {
                    Ok(_) => line("  kernel hashes", "checked by the firmware"),
                    Err(why) => line("  kernel hashes", format_args!("not checked: {why}")),
                };
                out += &line("  reset vector", format_args!("{:#x} (of vCPUs but the first)", firmware.ap_reset()));
                for s in firmware.sections() {
                    out += &line("  section", format_args!("{:?} at {:#x}, {:#x} bytes", s.kind(), s.gpa(), s.size()));
                }
            }
        }
        match &self.tdx {
            Err(why) => out += &line("TDX", format_args!("cannot be measured: {why}")),
            Ok(firmware) => {
                out += &line("TDX", "can be measured");
                for s in firmware.sections() {
                    let measured = if s.measured().is_some() { ", in MRTD" } else { "" };
                    out += &line("  section", format_args!("{:?} at {:#x}, {:#x} bytes{measured}", s.kind(), s.gpa(), s.size()));
                }
            }
        }
        out
    }
}

fn section(kind: &str, gpa: u64, size: u64) -> Value {
    json!({ "kind": kind, "gpa": format!("{gpa:#x}"), "size": format!("{size:#x}") })
}
