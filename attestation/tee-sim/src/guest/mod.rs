//! The guest half: `/init` of the simulation initrd.
//!
//! ```text
//! PID 1: mount /dev /proc /sys configfs ──> start the server ──> wait for its byte ──> exec /sbin/kata-cc-agent (still PID 1)
//!                                               │                      ▲
//!                                               └─ mount FUSE over /sys/kernel/config/tsm/report, answer INIT ─┘ then serve
//! ```
//! The agent that follows finds these file systems mounted and a report interface that looks like the kernel's; it has no code that
//! knows the difference. A production initrd does not contain this program, and so measures differently.

pub mod fs;
pub mod tsm;
mod vsock;

use nix::mount::{MsFlags, mount};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the kernel has its report interface, and where ours is mounted over it.
pub const REPORT_DIR: &str = "/sys/kernel/config/tsm/report";
/// What becomes PID 1 when the report interface is there.
pub const AGENT: &str = "/sbin/kata-cc-agent";
/// The byte by which the server says that the mount answers.
const READY: u8 = b'1';

/// Why the guest half could not start.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A mount failed.
    #[error("cannot mount {kind} on {}", target.display())]
    Mount {
        /// File system type.
        kind: &'static str,
        /// Mount point.
        target: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel has no configfs-tsm: a mount point is missing.
    #[error("{REPORT_DIR} is missing: the guest kernel needs CONFIG_TSM_REPORTS (the simulation covers it, it does not replace it)")]
    NoReportDir,
    /// The server could not be started.
    #[error("cannot start the report server")]
    Spawn(#[source] std::io::Error),
    /// The server ended before it was ready. Its own words are on the console.
    #[error("the report server ended before its mount answered")]
    ServerEnded,
    /// The FUSE session failed.
    #[error("the FUSE session at {} failed", at.display())]
    Session {
        /// Mount point.
        at: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The agent could not be executed.
    #[error("cannot execute {}", agent.display())]
    Exec {
        /// Which program.
        agent: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// PID 1 of the simulation initrd. Comes back only with an error.
pub fn init(agent: &Path, args: Vec<OsString>) -> GuestError {
    match prepare() {
        Ok(()) => {
            let source = Command::new(agent).args(args).exec();
            GuestError::Exec { agent: agent.into(), source }
        }
        Err(e) => e,
    }
}

fn prepare() -> Result<(), GuestError> {
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_once("devtmpfs", "/dev", MsFlags::MS_NOSUID)?;
    mount_once("proc", "/proc", hardened)?;
    mount_once("sysfs", "/sys", hardened)?;
    mount_once("configfs", "/sys/kernel/config", hardened)?;
    if !Path::new(REPORT_DIR).is_dir() {
        return Err(GuestError::NoReportDir);
    }
    // A process of its own rather than a fork: it shares nothing with PID 1 and survives PID 1's exec.
    let mut server = Command::new("/proc/self/exe")
        .arg("guest-serve")
        .arg(REPORT_DIR)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(GuestError::Spawn)?;
    let mut ready = [0u8; 1];
    let mut stdout = server.stdout.take().ok_or(GuestError::ServerEnded)?;
    match stdout.read_exact(&mut ready) {
        Ok(()) if ready == [READY] => Ok(()),
        _ => Err(GuestError::ServerEnded),
    }
}

/// The server process: mounts the report interface at `at`, writes one byte to stdout when it answers, and serves until unmounted.
pub fn serve(at: &Path) -> Result<(), GuestError> {
    serve_from(at, vsock::HostTee, || {
        let mut stdout = std::io::stdout();
        stdout.write_all(&[READY]).and_then(|()| stdout.flush())
    })
}

/// As [`serve`], with reports from `hardware`; calls `ready` when the mount answers.
pub fn serve_from<H: tsm::Hardware + Send + 'static>(
    at: &Path,
    hardware: H,
    ready: impl FnOnce() -> std::io::Result<()>,
) -> Result<(), GuestError> {
    let fail = |source| GuestError::Session { at: at.into(), source };
    let mut config = fuser::Config::default();
    config.mount_options = vec![fuser::MountOption::FSName("kata-cc-tee-sim".into()), fuser::MountOption::NoExec];
    // `Session::new` returns when the kernel's INIT is answered: from then on every request to the mount is queued for `run`.
    let session = fuser::Session::new(fs::ReportFs::new(hardware), at, &config).map_err(fail)?;
    ready().map_err(fail)?;
    session.run().map_err(fail)
}

/// Mounts unless the very same is mounted there already: the kernel may have mounted devtmpfs itself.
fn mount_once(kind: &'static str, target: &'static str, flags: MsFlags) -> Result<(), GuestError> {
    let fail = |source: std::io::Error| GuestError::Mount { kind, target: target.into(), source };
    if !Path::new(target).is_dir() {
        std::fs::create_dir_all(target).map_err(fail)?;
    }
    match mount(Some(kind), target, Some(kind), flags, None::<&str>) {
        Ok(()) | Err(nix::errno::Errno::EBUSY) => Ok(()),
        Err(errno) => Err(fail(errno.into())),
    }
}
