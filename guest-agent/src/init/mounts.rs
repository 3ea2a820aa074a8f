//! The file systems of the guest, as a table, and how one entry is mounted.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use thiserror::Error;

/// One file system the guest needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planned {
    /// Its type, which serves as its source too.
    pub(crate) kind: &'static str,
    /// Where it goes.
    pub(crate) target: &'static str,
    /// Mount flags.
    pub(crate) flags: MsFlags,
    /// Options of the file system.
    pub(crate) data: &'static str,
}

const fn planned(kind: &'static str, target: &'static str, flags: MsFlags, data: &'static str) -> Planned {
    Planned { kind, target, flags, data }
}

const NOSUID_NOEXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
const STRICT: MsFlags = NOSUID_NOEXEC.union(MsFlags::MS_NODEV);

/// Everything, in order: a target's parent comes before it.
///
/// `/run/kata-containers` holds images and root file systems, so it may not be `nosuid` or `noexec`: set-user-ID programs of an image
/// are part of it. It is `nodev`, and so is what is bound into containers from there; root file systems are mounts of their own, which
/// [`crate::container::rootfs`] makes `nodev`: no container may make a device, and none may find one in its image (AC-35). Its size
/// is a bound on images in memory: nine tenths of RAM rather than the usual half, because in this guest hardly anything else is
/// in memory.
pub(crate) const PLAN: &[Planned] = &[
    planned("proc", "/proc", STRICT, ""),
    planned("sysfs", "/sys", STRICT, ""),
    planned("devtmpfs", "/dev", NOSUID_NOEXEC, "mode=0755"),
    planned("devpts", "/dev/pts", NOSUID_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"),
    planned("tmpfs", "/dev/shm", STRICT, "mode=1777"),
    planned("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=0755"),
    planned("tmpfs", "/run/kata-containers", MsFlags::MS_NODEV, "mode=0700,size=90%"),
    planned("tmpfs", "/tmp", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    planned("cgroup2", "/sys/fs/cgroup", STRICT, ""),
    planned("configfs", "/sys/kernel/config", STRICT, ""),
];

/// Why a file system is missing.
#[derive(Debug, Error)]
pub(crate) enum MountError {
    /// Mounting or making its directory failed.
    #[error("cannot mount {kind} on {target}; the guest kernel must support it")]
    Mount {
        /// File system type.
        kind: &'static str,
        /// Where.
        target: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// One of the customary links in `/dev`.
    #[error("cannot make {0}")]
    Link(&'static str, #[source] io::Error),
}

impl Planned {
    /// Mounts it, unless something is mounted there already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn mount(&self) -> Result<(), MountError> {
        self.try_mount().map_err(|source| MountError::Mount { kind: self.kind, target: self.target, source })
    }

    fn try_mount(&self) -> io::Result<()> {
        if is_mount_point(Path::new(self.target))? {
            return Ok(());
        }
        // In sysfs and configfs directories cannot be made, and are there.
        if !Path::new(self.target).is_dir() {
            fs::create_dir_all(self.target)?;
        }
        let data = Some(self.data).filter(|data| !data.is_empty());
        mount(Some(self.kind), self.target, Some(self.kind), self.flags, data)?;
        Ok(())
    }
}

/// Whether something is mounted on `path`: it then is on another device than its parent.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let (Some(parent), Ok(own)) = (path.parent(), fs::metadata(path)) else {
        return Ok(false);
    };
    Ok(own.dev() != fs::metadata(parent)?.dev())
}

/// `/dev/fd` and its like, which programs expect.
pub(super) fn link_standard_descriptors() -> Result<(), MountError> {
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(MountError::Link(link, error)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_children() {
        for (index, planned) in PLAN.iter().enumerate() {
            for later in &PLAN[index + 1..] {
                assert!(!Path::new(planned.target).starts_with(later.target), "{} is mounted before {}", planned.target, later.target);
            }
        }
    }

    #[test]
    fn tells_mount_points_from_directories() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/etc")).unwrap());
        assert!(!is_mount_point(Path::new("/no/such/place")).unwrap());
    }
}
