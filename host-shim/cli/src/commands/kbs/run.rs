//! `kata-cc kbs run --dev`: a complete broker on this machine, in one command.
//!
//! Invariants: it listens on loopback alone; when this command ends by itself, SIGINT or SIGTERM, the broker has ended, and what was made is gone
//! unless it was to be kept.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::broker::Connection;
use super::dev::Folder;
use super::policy;
use crate::output::{self, Format, Outcome, show};

/// The broker's program.
const PROGRAM: &str = "kata-cc-kbs";
/// A broker that does not listen after this long never will: it makes a key and a database first.
const START: Duration = Duration::from_secs(30);
/// For requests under way when it ends; the broker's own limit is below that.
const END: Duration = Duration::from_secs(15);
/// Most of the broker's log that an error shows.
const TAIL: usize = 2000;
/// What a broker with a simulated root appraises by.
const SIMULATED_POLICY: &str = include_str!("../../../../../attestation/kbs/policies/simulated-attestation.rego");

/// Arguments of `kbs run`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// For development: certificate, keys and configuration are made. There is no other way yet; in production run kata-cc-kbs itself.
    #[arg(long, required = true)]
    dev: bool,
    /// Folder for everything it makes; one that an earlier run kept is used again. Default: a temporary one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Port on 127.0.0.1; 0 is any that is free.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// Trust this simulated TEE: the folder that `kata-cc-tee-sim init` filled, or its root certificate. The policy for simulations is set.
    #[arg(long, value_name = "PATH")]
    tee_sim: Option<PathBuf>,
    /// Keep what was made when it ends.
    #[arg(long)]
    keep: bool,
    /// The broker's program. Default: kata-cc-kbs beside this one, or in PATH.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

pub(super) async fn run(args: Args, format: Format) -> anyhow::Result<Outcome> {
    // Before anything is made: a signal that comes early must not leave it behind.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let folder = Folder::open(args.dir.as_deref(), args.port, args.tee_sim.as_deref())?;
    let outcome = match Running::start(&program(args.program.as_deref()), &folder) {
        Err(error) => Err(error),
        Ok(mut broker) => {
            let served = tokio::select! {
                served = broker.serve(&folder, args.keep, format) => served,
                _ = interrupt.recv() => Ok(()),
                _ = terminate.recv() => Ok(()),
            };
            let ended = broker.end().await;
            served.and(ended)
        }
    };
    // After the broker: what is removed must not be written to any more. The first failure is the one to report.
    let cleaned = if args.keep { Ok(()) } else { folder.remove() };
    outcome.and(cleaned)?;
    let kept = if args.keep { format!("; kept {}: run it again with --dir", folder.path().display()) } else { String::new() };
    output::note(format, format!("the broker has ended{kept}"));
    Ok(Outcome::Done)
}

/// The program to run.
fn program(given: Option<&Path>) -> PathBuf {
    let beside = || std::env::current_exe().ok()?.parent().map(|dir| dir.join(PROGRAM)).filter(|path| path.is_file());
    given.map(Path::to_owned).or_else(beside).unwrap_or_else(|| PROGRAM.into())
}

/// A broker that was started.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(program: &Path, folder: &Folder) -> anyhow::Result<Self> {
        let log = folder.entry("kbs.log");
        let child = Command::new(program)
            .arg("--config")
            .arg(folder.entry("kbs.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).with_context(|| format!("cannot write {}", log.display()))?)
            // A group of its own: Ctrl-C is for us, and we end it in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}; give --program, or install {PROGRAM} beside kata-cc", program.display()))?;
        Ok(Self { child, log })
    }

    /// Says where it is and what to do with it, and goes on until it ends by itself, which is an error.
    async fn serve(&mut self, folder: &Folder, keep: bool, format: Format) -> anyhow::Result<()> {
        let stdout = self.child.stdout.take().context("the broker has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let url = match tokio::time::timeout(START, lines.next_line()).await {
            Ok(Ok(Some(url))) => url,
            Ok(_) => {
                let status = self.child.wait().await?;
                return Err(self.failed("did not start", Some(status)));
            }
            Err(_) => return Err(self.failed("does not listen", None)),
        };
        if folder.simulated() {
            let connection = Connection::to(url.clone(), folder.entry("ca.pem"), folder.entry("data").join("admin.key"));
            policy::put_attestation(&connection.administrator()?, SIMULATED_POLICY.as_bytes(), "default_cpu").await?;
        }
        let result = json!({
            "url": url,
            "ca": folder.entry("ca.pem"),
            "admin_key": folder.entry("data").join("admin.key"),
            "reference_key": folder.entry("reference.key"),
            "log": self.log,
            "dir": folder.path(),
            "simulated": folder.simulated(),
            "pid": self.child.id(),
        });
        show(format, "kbs.run", &result, || told(&url, folder))?;
        let end = if keep { "ends it" } else { "ends it and removes the folder" };
        output::note(format, format!("a broker for development; its log is {}; Ctrl-C {end}", self.log.display()));
        // The pipe stays open: the broker may write to it.
        let status = self.child.wait().await?;
        drop(lines);
        Err(self.failed("ended by itself", Some(status)))
    }

    fn failed(&self, what: &str, status: Option<ExitStatus>) -> anyhow::Error {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(log.get(log.len().saturating_sub(TAIL)..).unwrap_or_default()).trim().to_owned();
        let status = status.map(|status| format!(" ({status})")).unwrap_or_default();
        anyhow::anyhow!("{tail}").context(format!("the broker {what}{status}"))
    }

    /// Lets it finish what it is at, and ends it in any case.
    async fn end(&mut self) -> anyhow::Result<()> {
        // None: it has been waited for.
        let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else { return Ok(()) };
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot end the broker")?;
        if tokio::time::timeout(END, self.child.wait()).await.is_err() {
            self.child.kill().await.context("cannot kill the broker")?;
        }
        Ok(())
    }
}

/// What to type next.
fn told(url: &str, folder: &Folder) -> String {
    let path = |name: &str| shell(&folder.entry(name));
    let kind = if folder.simulated() { "simulation" } else { "production" };
    format!(
        "export KATA_CC_KBS_URL={url} KATA_CC_KBS_CA={ca} KATA_CC_KBS_ADMIN_KEY={admin}\n\
         kata-cc kbs whoami\n\
         kata-cc kbs set-resource default/key/app FILE\n\
         kata-cc measure snp --ovmf FILE --kernel FILE --initrd FILE --append TEXT --vcpus 4 --range \\\n    \
             --sign {key} --name guest --release 1 --serial 1 --kind {kind} --out guest.json\n\
         kata-cc kbs set-reference-manifest guest.json\n\
         kata-cc measure values --file policy_trusted_keys=owner/policy.pub \\\n    \
             --sign {key} --name owner --release 1 --serial 1 --kind {kind} --out owner.json\n\
         kata-cc kbs set-reference-manifest owner.json\n\
         kata-cc kbs audit\n",
        ca = path("ca.pem"),
        admin = shell(&folder.entry("data").join("admin.key")),
        key = path("reference.key"),
    )
}

/// A path as a shell takes it.
fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-_.".contains(&b)) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_a_shell_would_take_them_apart() {
        assert_eq!(shell(Path::new("/tmp/a-b_c.d")), "/tmp/a-b_c.d");
        assert_eq!(shell(Path::new("/tmp/it's a $b")), r"'/tmp/it'\''s a $b'");
    }

    #[test]
    fn a_program_that_is_given_is_taken_and_else_found() {
        assert_eq!(program(Some(Path::new("/x/y"))), Path::new("/x/y"));
        assert!(program(None).ends_with(PROGRAM));
    }
}
