//! `kata-cc check`: whether this host can run confidential pods.
//!
//! It only looks: it starts nothing but `--version` of programs and changes nothing. A host is not trusted, so a green check promises
//! nothing to the owner of a pod; only evidence does. Each check passes, is skipped (not needed for what was asked, or nothing to look
//! at) or fails with a hint and, where one command does it, the command that helps.

mod amd;
mod devices;
mod host;
mod intel;
mod labels;
mod programs;
mod qemu;
mod s390;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf, absolute};

use anyhow::Context;
use clap::ValueEnum;
use kata_cc_vmm::config::DEFAULT_PATH;
use kata_cc_vmm::tee::TeeKind;
use serde::Serialize;

use self::host::Host;
use crate::output::{Format, Outcome, show};

/// Arguments of `check`.
#[derive(clap::Args)]
#[command(
    after_help = "Exit codes: 0 ready (or, with --labels, done), 1 the command failed, 2 wrong arguments, 3 not ready: a check failed."
)]
pub(crate) struct Args {
    /// What the host is to run; `sim` is the simulated TEE for development. Default: what the configuration says. With neither, TEEs
    /// are reported and none is required.
    #[arg(long, value_enum)]
    tee: Option<Tee>,
    /// Configuration of the runtime class; default: /etc/kata-cc/config.toml if it exists.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// QEMU binary; default: the configuration's, or the one for this machine on PATH.
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
    /// containerd's socket.
    #[arg(long, value_name = "PATH", default_value = "/run/containerd/containerd.sock")]
    containerd_address: PathBuf,
    /// Check nothing; print what the host has as `name=value`, in the names of Node Feature Discovery.
    #[arg(long)]
    labels: bool,
}

/// Kinds of TEE a host may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Tee {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// IBM Secure Execution.
    Se,
    /// The simulated TEE.
    Sim,
}

impl Tee {
    const fn kind(self) -> TeeKind {
        match self {
            Self::Snp => TeeKind::Snp,
            Self::Tdx => TeeKind::Tdx,
            Self::Se => TeeKind::Se,
            Self::Sim => TeeKind::Sim,
        }
    }

    const fn of(kind: TeeKind) -> Self {
        match kind {
            TeeKind::Snp => Self::Snp,
            TeeKind::Tdx => Self::Tdx,
            TeeKind::Se => Self::Se,
            TeeKind::Sim => Self::Sim,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Pass,
    Skip,
    Fail,
}

#[derive(Clone, Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    /// What to do about it, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// A command that does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn pass(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Pass, found: found.into(), hint: None, fix: None }
    }

    fn skip(name: &'static str, found: impl Into<String>) -> Self {
        Self { status: Status::Skip, ..Self::pass(name, found) }
    }

    fn fail(name: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: Status::Fail, hint: Some(hint.into()), ..Self::pass(name, found) }
    }

    fn when(holds: bool, name: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        if holds { Self::pass(name, found) } else { Self::fail(name, found, hint) }
    }

    /// Names the command that helps against a failure.
    fn fix(self, command: impl Into<String>) -> Self {
        Self { fix: Some(command.into()), ..self }
    }

    /// A check that is not needed is skipped where it would have failed.
    fn needed(mut self, needed: bool) -> Self {
        if !needed && self.status == Status::Fail {
            self.status = Status::Skip;
        }
        self
    }
}

/// What is known of a host.
#[derive(Debug, Serialize)]
struct Report {
    tee: Option<Tee>,
    ready: bool,
    checks: Vec<Check>,
    labels: BTreeMap<String, String>,
}

impl Report {
    fn of(host: &Host<'_>, args: &Args) -> Self {
        let path = args.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
        let named = args.config.is_some();
        let class = qemu::Class::load(host, path, named);
        let tee = args.tee.or_else(|| class.config().map(|config| Tee::of(config.tee)));
        // A class of another kind says nothing about this one.
        let config = class.config().filter(|config| tee.is_none_or(|tee| tee.kind() == config.tee));
        let mut checks = vec![qemu::version(host, tee, args.qemu.as_deref(), config)];
        checks.extend(devices::checks(host, tee, config));
        checks.extend(amd::checks(host, tee));
        checks.extend(intel::checks(host, tee, config));
        checks.extend(s390::checks(host, tee));
        checks.extend(programs::checks(host, tee, &args.containerd_address));
        checks.extend(qemu::checks(host, tee, &class, path, named));
        let ready = checks.iter().all(|check| check.status != Status::Fail);
        Self { tee, ready, checks, labels: labels::labels(host) }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let mark = match check.status {
                Status::Pass => "pass",
                Status::Skip => "skip",
                Status::Fail => "FAIL",
            };
            text += &format!("{mark}  {:<15} {}\n", check.name, check.found);
            if check.status == Status::Fail {
                text.extend(check.hint.iter().map(|hint| format!("      {:<15} -> {hint}\n", "")));
                text.extend(check.fix.iter().map(|fix| format!("      {:<15} fix: {fix}\n", "")));
            }
        }
        text += &match self.checks.iter().filter(|c| c.status == Status::Fail).count() {
            0 => "ready\n".to_owned(),
            n => format!("not ready: {n} of {} checks failed\n", self.checks.len()),
        };
        text
    }
}

pub(crate) fn run(args: &Args, format: Format) -> anyhow::Result<Outcome> {
    let full = |path: &Path| absolute(path).with_context(|| format!("cannot make {} an absolute path", path.display()));
    let args = Args {
        config: args.config.as_deref().map(full).transpose()?,
        qemu: args.qemu.clone(),
        containerd_address: full(&args.containerd_address)?,
        ..*args
    };
    let host = Host { root: "/".into(), path: std::env::var_os("PATH"), version: &host::version_of, cpuid: &host::cpuid_of };
    if args.labels {
        let labels = labels::labels(&host);
        let text = || labels.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        show(format, "check.labels", &serde_json::json!({ "labels": labels }), text)?;
        return Ok(Outcome::Done);
    }
    let report = Report::of(&host, &args);
    show(format, "check", &report, || report.text())?;
    Ok(Outcome::when(report.ready))
}
