//! Volumes made in the guest: in memory (`ephemeral`) or a plain directory (`local`).
//!
//! They go beneath one directory and nowhere else (AC-26): a request cannot mount over the agent, the kernel's file systems or
//! another container. Any other kind of volume is refused rather than taken for one of these.
//!
//! **Invariant:** a place is made once. What a container has put there is there for the next one; a second volume over the first would
//! be an empty one. And no place lies in another, where a container could have put a link.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use kata_cc_agent_protocol::rpc::agent::Storage;
use kata_cc_agent_protocol::{DRIVER_EPHEMERAL, DRIVER_LOCAL};
use nix::mount::{MsFlags, mount};
use thiserror::Error;

use crate::container::spec::{SANDBOX_STORAGE_DIR, is_plain};

/// Why a storage was refused.
#[derive(Debug, Error)]
pub(crate) enum StorageError {
    /// Not a driver we have.
    #[error("storage driver {0:?} is not supported; expected {DRIVER_EPHEMERAL} or {DRIVER_LOCAL}")]
    Driver(String),
    /// Not where storages go.
    #[error("storage at {0:?}: expected one name in {SANDBOX_STORAGE_DIR}, or in its directories local and ephemeral")]
    Place(String),
    /// A file system we do not make.
    #[error("storage at {place:?}: expected file system tmpfs, found {found:?}")]
    FileSystem {
        /// Where.
        place: String,
        /// What was asked for.
        found: String,
    },
    /// An option that is not known.
    #[error("storage at {place:?}: option {option:?} is not known")]
    Option {
        /// Where.
        place: String,
        /// The option.
        option: String,
    },
    /// The kernel refused.
    #[error("storage at {place:?}: {step}")]
    Io {
        /// Where.
        place: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What a checked storage comes to.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    target: PathBuf,
    /// Options of a tmpfs, or `None` for a plain directory.
    memory: Option<String>,
    mode: u32,
    group: Option<u32>,
}

/// Makes a storage. Gives back where it is.
///
/// # Errors
/// When it is not one we make, or the kernel refuses.
pub(crate) fn add(storage: &Storage) -> Result<PathBuf, StorageError> {
    let plan = plan(storage)?;
    let io = |step| {
        let place = storage.mount_point.clone();
        move |source| StorageError::Io { place, step, source }
    };
    if let Some(parent) = plan.target.parent() {
        fs::create_dir_all(parent).map_err(io("making the directory it is in"))?;
    }
    // Fails if there is one: see the invariant.
    fs::create_dir(&plan.target).map_err(io("making its directory"))?;
    if let Some(options) = &plan.memory {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mounted = mount(Some("tmpfs"), &plan.target, Some("tmpfs"), flags, Some(options.as_str()));
        if let Err(errno) = mounted {
            // Empty and never seen by anybody, so it may be tried again.
            let _ = fs::remove_dir(&plan.target);
            return Err(io("mounting")(errno.into()));
        }
    }
    if plan.group.is_some() {
        chown(&plan.target, None, plan.group).map_err(io("giving it to its group"))?;
    }
    fs::set_permissions(&plan.target, fs::Permissions::from_mode(plan.mode)).map_err(io("setting its permissions"))?;
    Ok(plan.target)
}

fn plan(storage: &Storage) -> Result<Plan, StorageError> {
    let place = || storage.mount_point.clone();
    if !is_place(&storage.mount_point) {
        return Err(StorageError::Place(place()));
    }
    let group = storage.fs_group.as_ref().map(|group| group.group_id);
    // A group's volume passes its group on to what is made in it.
    let mut mode = if group.is_some() { 0o2777 } else { 0o777 };
    let mut size = None;
    for option in storage.options.iter().flat_map(|option| option.split(',')) {
        let unknown = || StorageError::Option { place: place(), option: option.to_owned() };
        match option.split_once('=') {
            Some(("mode", value)) => {
                let value = u32::from_str_radix(value, 8).map_err(|_| unknown())?;
                mode = (mode & 0o2000) | (value & 0o1777);
            }
            Some(("size", value)) if is_size(value) => size = Some(value.to_owned()),
            None if matches!(option, "" | "nosuid" | "nodev" | "noexec" | "rw" | "rbind" | "rprivate") => {}
            _ => return Err(unknown()),
        }
    }
    let memory = match storage.driver.as_str() {
        DRIVER_LOCAL => None,
        DRIVER_EPHEMERAL if storage.fstype == "tmpfs" => Some(size.map(|size| format!("size={size}")).unwrap_or_default()),
        DRIVER_EPHEMERAL => {
            return Err(StorageError::FileSystem { place: place(), found: storage.fstype.clone() });
        }
        _ => return Err(StorageError::Driver(storage.driver.clone())),
    };
    Ok(Plan { target: PathBuf::from(&storage.mount_point), memory, mode, group })
}

/// Whether a path is that of a volume, and of nothing in one.
pub(crate) fn is_place(path: &str) -> bool {
    let Ok(rest) = Path::new(path).strip_prefix(SANDBOX_STORAGE_DIR) else {
        return false;
    };
    let names: Vec<&OsStr> = rest.components().map(std::path::Component::as_os_str).collect();
    let directory = |name: &OsStr| name == DRIVER_LOCAL || name == DRIVER_EPHEMERAL;
    is_plain(path)
        && match names[..] {
            [name] => !directory(name),
            [of, _] => directory(of),
            _ => false,
        }
}

fn is_size(text: &str) -> bool {
    let digits = text.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G', '%']).unwrap_or(text);
    !digits.is_empty() && digits.len() < 19 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Unmounts and deletes a storage. One that is not mounted, or gone, is no error.
///
/// # Errors
/// When something stays.
pub(crate) fn remove(target: &Path) -> io::Result<()> {
    match nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH | nix::mount::MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_dir_all(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Storage {
        Storage {
            driver: DRIVER_EPHEMERAL.to_owned(),
            source: "tmpfs".to_owned(),
            fstype: "tmpfs".to_owned(),
            options: vec!["size=64m".to_owned(), "mode=1777".to_owned()],
            mount_point: format!("{SANDBOX_STORAGE_DIR}/shm"),
            ..Default::default()
        }
    }

    #[test]
    fn a_memory_volume_has_its_size_and_mode() {
        let plan = plan(&good()).unwrap();
        assert_eq!(plan.memory.as_deref(), Some("size=64m"));
        assert_eq!(plan.mode, 0o1777);
    }

    #[test]
    fn refuses_places_other_than_the_one_for_storages() {
        // AC-26
        for place in [
            "/",
            "/proc",
            "/run/kata-containers",
            SANDBOX_STORAGE_DIR,
            "/run/kata-containers/sandbox/../c1/rootfs",
            "/run/kata-containers/sandboxes/x",
            "run/kata-containers/sandbox/x",
            // Where a container could have put a link, and over all volumes of a kind.
            "/run/kata-containers/sandbox/local/cache/sub",
            "/run/kata-containers/sandbox/shm/x",
            "/run/kata-containers/sandbox/local",
            "/run/kata-containers/sandbox/ephemeral/",
        ] {
            let storage = Storage { mount_point: place.to_owned(), ..good() };
            assert!(matches!(plan(&storage), Err(StorageError::Place(_))), "{place}");
        }
    }

    #[test]
    fn takes_the_places_that_there_are() {
        for place in ["shm", "local/cache", "ephemeral/fast"] {
            let storage = Storage { mount_point: format!("{SANDBOX_STORAGE_DIR}/{place}"), ..good() };
            assert!(plan(&storage).is_ok(), "{place}");
        }
    }

    #[test]
    fn refuses_other_drivers_file_systems_and_options() {
        for driver in ["blk", "virtio-fs", "image_guest_pull", "nvdimm", ""] {
            let storage = Storage { driver: driver.to_owned(), ..good() };
            assert!(matches!(plan(&storage), Err(StorageError::Driver(_))), "{driver}");
        }
        let storage = Storage { fstype: "ext4".to_owned(), ..good() };
        assert!(matches!(plan(&storage), Err(StorageError::FileSystem { .. })));
        for option in ["size=1m,nr_inodes=1", "size=", "size=1x", "mode=abc", "context=x", "huge=always"] {
            let storage = Storage { options: vec![option.to_owned()], ..good() };
            assert!(matches!(plan(&storage), Err(StorageError::Option { .. })), "{option}");
        }
    }
}
