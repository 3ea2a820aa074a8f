//! The lab's own world: mount, network, PID, IPC and UTS namespaces, made by `unshare` of util-linux.
//!
//! Everything the lab starts lives in there. When the first process of the PID namespace ends, for whatever reason, the
//! kernel ends all the others and drops mounts and network devices, so nothing can be left on the machine, not even
//! after SIGKILL. `/run` is a tmpfs of the lab's, so no socket or directory of a containerd of the machine is touched.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, Uid};

use crate::cgroup::PodsCgroup;
use crate::process::run;

/// The lab's bridge, on which registry, broker and pods meet.
pub(crate) const BRIDGE: &str = "kcc0";
/// The address of the lab on its bridge.
pub(crate) const GATEWAY: &str = "10.88.77.1";
/// The network of the bridge.
pub(crate) const SUBNET: &str = "10.88.77.0/24";

/// Runs this program again with `args` inside fresh namespaces, `work` being a directory that is removed afterwards.
pub(crate) fn run_inside(args: &[OsString], work: tempfile::TempDir, keep: bool) -> Result<ExitCode> {
    if !Uid::effective().is_root() {
        bail!("the lab needs root: it makes namespaces, network devices and virtual machines");
    }
    // The child cleans up on Ctrl-C; this process only waits for it, so that the work directory goes last.
    #[expect(unsafe_code, reason = "SIG_IGN for the time of the wait")]
    // SAFETY: ignoring a signal installs no handler function, so nothing can run in signal context.
    unsafe {
        signal(Signal::SIGINT, SigHandler::SigIgn).context("cannot ignore SIGINT")?;
    }
    let cgroup = PodsCgroup::make()?;
    let (variable, name) = cgroup.variable();
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--propagation", "private"])
        .arg(std::env::current_exe()?)
        .arg("init")
        .args(args)
        .env("KATA_CC_LAB_WORK", work.path())
        .env(variable, name)
        .status()
        .context("cannot start unshare (package util-linux)")?;
    if keep {
        eprintln!("kept: {}", work.keep().display());
    }
    Ok(ExitCode::from(status.code().map_or(1, |c| c.clamp(0, 255) as u8)))
}

/// The first process of the PID namespace: starts the lab proper and reaps whatever is left to it.
pub(crate) fn init(args: &[OsString]) -> Result<ExitCode> {
    if std::process::id() != 1 {
        bail!("`init` is what the lab starts in its own PID namespace; use `demo`, `e2e` or `bench`");
    }
    mount_private_run()?;
    network()?;
    // The child must see Ctrl-C, which this process (as PID 1, without a handler) does not.
    let child = {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).env("KATA_CC_LAB_INSIDE", "1");
        #[expect(unsafe_code, reason = "undo the SIG_IGN that is inherited from the waiting parent")]
        // SAFETY: resets a disposition to the default; no handler function is involved.
        unsafe {
            signal(Signal::SIGINT, SigHandler::SigDfl).context("cannot reset SIGINT")?;
        }
        command.spawn().context("cannot start the lab inside its namespaces")?.id()
    };
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == Pid::from_raw(child as i32) => return Ok(ExitCode::from(code.clamp(0, 255) as u8)),
            Ok(WaitStatus::Signaled(pid, sig, _)) if pid == Pid::from_raw(child as i32) => {
                eprintln!("the lab was ended by {sig}");
                return Ok(ExitCode::from(1));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => bail!("waitpid: {error}"),
        }
    }
}

/// Whether this process is the lab inside its namespaces.
pub(crate) fn is_inside() -> bool {
    std::env::var_os("KATA_CC_LAB_INSIDE").is_some()
}

fn mount_private_run() -> Result<()> {
    for dir in ["/run", "/var/lib/cni"] {
        if Path::new(dir).is_dir() {
            mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))
                .with_context(|| format!("cannot mount a private {dir}"))?;
        }
    }
    std::fs::create_dir_all("/run/netns")?;
    Ok(())
}

fn network() -> Result<()> {
    run("ip", ["link", "set", "lo", "up"])?;
    run("ip", ["link", "add", BRIDGE, "type", "bridge"])?;
    run("ip", ["addr", "add", &format!("{GATEWAY}/24"), "dev", BRIDGE])?;
    run("ip", ["link", "set", BRIDGE, "up"])?;
    Ok(())
}
