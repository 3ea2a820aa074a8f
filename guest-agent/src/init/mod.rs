//! From the kernel's hand-over to a guest in which processes can run: mounts, cgroups, loopback, and the way out.
//!
//! This is what a distribution's init would do, cut down to what a pod needs. What is there already is left as it is, since
//! something may have run before us (a measured program that prepares the guest and then becomes the agent).

pub(crate) mod cgroup;
pub(crate) mod mounts;
pub(crate) mod power;

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use thiserror::Error;

/// Why the guest could not be brought up.
#[derive(Debug, Error)]
pub(crate) enum InitError {
    /// A file system is missing.
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    /// The root of the file system cannot be made a place from which containers can pivot.
    #[error("cannot move the initial file system to a mount of its own ({step})")]
    Root {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Control groups are not usable.
    #[error("cannot set up control groups")]
    Cgroup(#[source] io::Error),
}

/// Mounts what the guest needs. Only for PID 1.
///
/// # Errors
/// When any part of it is missing: a guest with half of its isolation is not a guest to run pods in.
pub(crate) fn bring_up() -> Result<(), InitError> {
    leave_the_first_root()?;
    for planned in mounts::PLAN {
        planned.mount()?;
    }
    mounts::link_standard_descriptors()?;
    Ok(())
}

/// Makes control groups usable. Apart from the rest because it mostly waits, and can do so beside the attestation.
///
/// # Errors
/// When the kernel refuses: without them nothing bounds a container.
pub(crate) async fn control_groups() -> Result<(), InitError> {
    tokio::task::spawn_blocking(|| cgroup::prepare(Path::new(cgroup::ROOT)))
        .await
        .unwrap_or_else(|died| Err(io::Error::other(died)))
        .map_err(InitError::Cgroup)
}

/// Puts the initial file system under a mount that has a parent.
///
/// `pivot_root(2)` refuses to put away the first mount of all, and that is the only way for a container to get rid of what is
/// outside of it rather than to stand on top of it. A recursive bind mount of the root, moved over the root, costs nothing.
fn leave_the_first_root() -> Result<(), InitError> {
    const NEW: &str = "/.root";
    let at = |step| move |source| InitError::Root { step, source };
    fs::create_dir_all(NEW).map_err(at("making a directory"))?;
    let none: Option<&str> = None;
    mount(Some("/"), NEW, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(|errno| at("binding")(errno.into()))?;
    std::env::set_current_dir(NEW).map_err(at("entering"))?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).map_err(|errno| at("moving")(errno.into()))?;
    nix::unistd::chroot(".").map_err(|errno| at("changing root")(errno.into()))?;
    std::env::set_current_dir("/").map_err(at("entering the root"))?;
    fs::remove_dir(NEW).map_err(at("removing the directory"))
}
