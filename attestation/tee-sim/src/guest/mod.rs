//! The guest half: `/init` of the simulation initrd.
//!
//! ```text
//! PID 1: mount /dev /proc /sys configfs ──> start the server ──> wait for its byte ──> exec /sbin/kata-cc-agent (still PID 1)
//!                                               │                      ▲
//!                                               └─ mount FUSE over /sys/kernel/config/tsm/report, answer INIT ─┘ then serve
//! ```
//! As the kernel command line says `tee_sim=tdx`, which the kernel hands to its first program in the environment, the guest is a TD: besides, the
//! server answers at `/dev/tdx_guest`, and the event log of the launch is where ACPI would show it. Else it is an SNP guest.
//!
//! The agent that follows finds these file systems mounted and a report interface that looks like the kernel's; it has no code that
//! knows the difference. A production initrd does not contain this program, and so measures differently.

pub mod device;
pub mod fs;
pub mod tsm;
mod vsock;

use nix::mount::{MsFlags, mount};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tsm::Provider;

/// Where the kernel has its report interface, and where ours is mounted over it.
pub const REPORT_DIR: &str = "/sys/kernel/config/tsm/report";
/// Where the TDX driver has its device, and where ours is mounted.
pub const TDX_GUEST: &str = "/dev/tdx_guest";
/// Where ACPI shows the tables that others point to, CCEL among them.
const ACPI_DATA: &str = "/sys/firmware/acpi/tables/data";
/// Which TEE is simulated: a variable in the environment.
const TEE: &str = "tee_sim";
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
    /// The command line names a TEE that is not simulated.
    #[error("kernel command line: {TEE}={}: expected snp (as without it) or tdx", found.to_string_lossy())]
    Tee {
        /// What it names.
        found: OsString,
    },
    /// A file that stands for one of the kernel's could not be made.
    #[error("cannot make {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The host did not give the event log.
    #[error("no event log from the host")]
    EventLog(#[from] crate::wire::WireError),
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

/// The driver whose TEE is simulated.
fn provider(tee: Option<OsString>) -> Result<Provider, GuestError> {
    match tee {
        None => Ok(Provider::SevGuest),
        Some(tee) if tee == "snp" => Ok(Provider::SevGuest),
        Some(tee) if tee == "tdx" => Ok(Provider::TdxGuest),
        Some(found) => Err(GuestError::Tee { found }),
    }
}

/// PID 1 of the simulation initrd. Comes back only with an error.
pub fn init(agent: &Path, args: Vec<OsString>) -> GuestError {
    match provider(std::env::var_os(TEE)).and_then(prepare) {
        Ok(()) => {
            let source = Command::new(agent).args(args).env_remove(TEE).exec();
            GuestError::Exec { agent: agent.into(), source }
        }
        Err(e) => e,
    }
}

fn prepare(provider: Provider) -> Result<(), GuestError> {
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_once("devtmpfs", "/dev", MsFlags::MS_NOSUID)?;
    mount_once("proc", "/proc", hardened)?;
    mount_once("sysfs", "/sys", hardened)?;
    mount_once("configfs", "/sys/kernel/config", hardened)?;
    if !Path::new(REPORT_DIR).is_dir() {
        return Err(GuestError::NoReportDir);
    }
    // A process of its own rather than a fork: it shares nothing with PID 1 and survives PID 1's exec.
    let mut server = Command::new("/proc/self/exe");
    server.arg("guest-serve").arg(REPORT_DIR);
    if provider == Provider::TdxGuest {
        // To be mounted over: devtmpfs takes any file.
        let made = std::fs::File::create(TDX_GUEST);
        made.map_err(|source| GuestError::File { path: TDX_GUEST.into(), source })?;
        server.arg("--tdx-guest").arg(TDX_GUEST);
        show_event_log()?;
    }
    let mut server = server.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(GuestError::Spawn)?;
    let mut ready = [0u8; 1];
    let mut stdout = server.stdout.take().ok_or(GuestError::ServerEnded)?;
    match stdout.read_exact(&mut ready) {
        Ok(()) if ready == [READY] => Ok(()),
        _ => Err(GuestError::ServerEnded),
    }
}

/// Puts the event log of the launch where ACPI would show it. A kernel without ACPI shows none.
fn show_event_log() -> Result<(), GuestError> {
    if !Path::new(ACPI_DATA).is_dir() {
        return Ok(());
    }
    let log = vsock::event_log()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(Some("tmpfs"), ACPI_DATA, Some("tmpfs"), flags, Some("size=1m,mode=0755"));
    mounted.map_err(|errno| GuestError::Mount { kind: "tmpfs", target: ACPI_DATA.into(), source: errno.into() })?;
    let path = Path::new(ACPI_DATA).join("CCEL");
    std::fs::write(&path, log).map_err(|source| GuestError::File { path, source })
}

/// The server process: mounts the report interface at `at` and, of a TD, the device at `tdx_guest`, writes one byte to stdout when both answer, and
/// serves until unmounted.
pub fn serve(at: &Path, tdx_guest: Option<&Path>) -> Result<(), GuestError> {
    let provider = if tdx_guest.is_some() { Provider::TdxGuest } else { Provider::SevGuest };
    if let Some(device) = tdx_guest {
        serve_device(device, vsock::HostTee)?;
    }
    serve_from(at, vsock::HostTee, provider, || {
        let mut stdout = std::io::stdout();
        stdout.write_all(&[READY]).and_then(|()| stdout.flush())
    })
}

/// Mounts the device on the file `at` and serves it in a thread of its own, for as long as the process lives.
pub fn serve_device<T: device::TdReports + Send + Sync + 'static>(at: &Path, reports: T) -> Result<(), GuestError> {
    let fail = |source| GuestError::Session { at: at.into(), source };
    let session = fuser::Session::new(device::TdxGuest::new(reports), at, &mount_config()).map_err(fail)?;
    let serve = move || {
        if let Err(e) = session.run() {
            eprintln!("kata-cc-tee-sim: the device is gone: {e}");
        }
    };
    std::thread::Builder::new().name("tdx_guest".into()).spawn(serve).map(drop).map_err(GuestError::Spawn)
}

fn mount_config() -> fuser::Config {
    let mut config = fuser::Config::default();
    config.mount_options = vec![fuser::MountOption::FSName("kata-cc-tee-sim".into()), fuser::MountOption::NoExec];
    config
}

/// As [`serve`] without a device, with reports of `provider` from `hardware`; calls `ready` when the mount answers.
pub fn serve_from<H: tsm::Hardware + Send + 'static>(
    at: &Path,
    hardware: H,
    provider: Provider,
    ready: impl FnOnce() -> std::io::Result<()>,
) -> Result<(), GuestError> {
    let fail = |source| GuestError::Session { at: at.into(), source };
    // `Session::new` returns when the kernel's INIT is answered: from then on every request to the mount is queued for `run`.
    let session = fuser::Session::new(fs::ReportFs::new(hardware, provider), at, &mount_config()).map_err(fail)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_which_tee_and_no_other_is_taken_for_one() {
        let of = |tee: Option<&str>| provider(tee.map(Into::into));
        assert!(matches!((of(None), of(Some("snp"))), (Ok(Provider::SevGuest), Ok(Provider::SevGuest))));
        assert!(matches!(of(Some("tdx")), Ok(Provider::TdxGuest)));
        for other in ["", "TDX", "se"] {
            assert!(matches!(of(Some(other)), Err(GuestError::Tee { .. })), "{other}");
        }
    }
}
