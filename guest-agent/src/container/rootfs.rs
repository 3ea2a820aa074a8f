//! A container's root file system: verified layers below, a writable one on top, in memory that only this guest can read.
//!
//! **Invariant:** no device can be opened through it (`nodev`). Containers have no `CAP_MKNOD`, and a node that came in with the image, or by way of whatever may
//! still write to the upper layer, must not undo that (AC-35). What a container needs of `/dev` is on a file system of its own.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    move_mount, unmount,
};
use thiserror::Error;

use super::ContainerId;

/// Why a root file system could not be mounted or taken away.
#[derive(Debug, Error)]
#[error("root file system: {step}")]
pub(crate) struct RootfsError {
    step: &'static str,
    #[source]
    source: io::Error,
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> RootfsError {
    move |source| RootfsError { step, source: source.into() }
}

/// Where a container's own files are.
#[must_use]
pub(crate) fn directory(id: &ContainerId) -> PathBuf {
    Path::new(kata_cc_agent_protocol::CONTAINER_DIR).join(id.as_str())
}

/// Where its root file system is mounted.
#[must_use]
pub(crate) fn mount_point(id: &ContainerId) -> PathBuf {
    directory(id).join("rootfs")
}

/// Mounts `layers`, lowest first, under a fresh writable layer.
///
/// The layers are named to the kernel one by one, since all of them together may be longer than the page that the options of
/// `mount(2)` fit in.
///
/// # Errors
/// When the kernel refuses; what was made until then is taken away.
pub(crate) fn mount(id: &ContainerId, layers: &[PathBuf]) -> Result<PathBuf, RootfsError> {
    let target = mount_point(id);
    let result = try_mount(&directory(id), &target, layers);
    if result.is_err() {
        // The first failure is the one to report.
        let _ = fs::remove_dir_all(directory(id));
    }
    result.map(|()| target)
}

fn try_mount(directory: &Path, target: &Path, layers: &[PathBuf]) -> Result<(), RootfsError> {
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    for path in [target, &upper, &work] {
        fs::create_dir_all(path).map_err(at("making its directories"))?;
    }
    if let Some(lowest) = layers.last() {
        copy_root_mode(lowest, &upper).map_err(at("taking over the mode of the image's root"))?;
    }
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(at("opening overlay"))?;
    // The kernel wants the uppermost first, and each directory once; what a layer hides is hidden by its uppermost place.
    let mut seen = BTreeSet::new();
    for layer in layers.iter().rev().filter(|layer| seen.insert(*layer)) {
        fsconfig_set_string(&overlay, "lowerdir+", layer).map_err(at("adding a layer"))?;
    }
    // Files come from where the archive put them, and not from where an attribute in a layer points to.
    for (option, value) in [("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow")] {
        fsconfig_set_string(&overlay, option, value).map_err(at("setting overlay options"))?;
    }
    fsconfig_set_string(&overlay, "upperdir", &upper).map_err(at("adding the writable layer"))?;
    fsconfig_set_string(&overlay, "workdir", &work).map_err(at("adding the work directory"))?;
    fsconfig_create(&overlay).map_err(at("creating the overlay"))?;
    let mounted = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV).map_err(at("mounting the overlay"))?;
    move_mount(&mounted, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(at("attaching the overlay"))
}

/// The root of an overlay has the mode and owner of its writable layer, which the image knows nothing about.
fn copy_root_mode(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let root = fs::metadata(from)?;
    fs::set_permissions(to, root.permissions())?;
    std::os::unix::fs::chown(to, Some(root.uid()), Some(root.gid()))
}

/// Unmounts and deletes it. Deleting what is not there is no error.
///
/// # Errors
/// When something of it stays.
pub(crate) fn remove(id: &ContainerId) -> Result<(), RootfsError> {
    let target = mount_point(id);
    if target.exists() {
        // Nothing of the container runs any more; detaching only spares us a race with the kernel's own clean-up.
        match unmount(&target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(at("unmounting")(errno)),
        }
    }
    match fs::remove_dir_all(directory(id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("deleting its directories")(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use rustix::fs::{CWD, FileType, Mode};

    /// What `test` says in a mount namespace of its own with an empty file system on `directory`, as the guest has it; `None` where that takes more rights.
    fn apart<T: Send + 'static>(directory: PathBuf, test: impl FnOnce(PathBuf) -> T + Send + 'static) -> Option<T> {
        // On a thread of its own, which takes the namespace with it.
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).ok()?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).ok()?;
            mount(Some("tmpfs"), &directory, Some("tmpfs"), MsFlags::MS_NODEV, None::<&str>).ok()?;
            Some(test(directory))
        });
        thread.join().unwrap()
    }

    #[test]
    fn ac35_no_device_of_an_image_or_of_the_writable_layer_can_be_opened() {
        let place = tempfile::tempdir().unwrap();
        let outcome = apart(place.path().to_owned(), |place| {
            let (low, high, own) = (place.join("low"), place.join("high"), place.join("own"));
            for path in [&low, &high, &low.join("d")] {
                fs::create_dir(path).unwrap();
            }
            let null = rustix::fs::makedev(1, 3);
            let node = |path: &Path, device| rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device);
            node(&low.join("null"), null).unwrap();
            fs::write(low.join("hidden"), "x").unwrap();
            fs::write(low.join("f"), "x").unwrap();
            node(&high.join("hidden"), 0).unwrap();
            let target = own.join("rootfs");
            try_mount(&own, &target, &[low, high]).unwrap();
            node(&target.join("own"), null).unwrap();
            let refusals = ["null", "own"].map(|name| fs::File::open(target.join(name)).err().and_then(|error| error.raw_os_error()));
            let rest = (fs::read(target.join("f")).unwrap(), target.join("hidden").exists(), target.join("d").is_dir());
            (refusals, rest)
        });
        let Some((refusals, rest)) = outcome else {
            eprintln!("SKIPPED: ac35_no_device_of_an_image_or_of_the_writable_layer_can_be_opened needs a mount namespace and devices");
            return;
        };
        assert_eq!(refusals, [Some(rustix::io::Errno::ACCESS.raw_os_error()); 2]);
        assert_eq!(rest, (b"x".to_vec(), false, true), "files and whiteouts are what they were");
    }
}
