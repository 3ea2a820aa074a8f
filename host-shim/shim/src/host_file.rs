//! Files of the host that pods can have a say in: opened so that no path component is a symbolic link.
//!
//! The shim is root. A pod's owner may control directories that the shim reads from or writes to (a volume shared with another
//! pod, a mount they named), and could put a link where a directory was a moment ago.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

/// Opens a regular file whose path holds no symbolic link.
///
/// # Errors
/// When a component is a link, or it is not a regular file.
pub(crate) fn open(path: &Path, flags: OFlag) -> io::Result<File> {
    let how = OpenHow::new().flags(flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let file = File::from(openat2(AT_FDCWD, path, how)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")) }
}

/// The kubelet's own file for a container's last words, `…/pods/UID/containers/NAME/ID`, if that is what a mount's source is.
/// The kubelet's directory itself may be a link the node's administrator made; what is below it may not.
pub(crate) fn kubelet_termination_log(source: &Path, pod_uid: Option<&str>) -> Option<PathBuf> {
    let parts: Vec<&str> = source.to_str()?.split('/').collect();
    let [root @ .., "pods", uid, "containers", name, id] = parts.as_slice() else { return None };
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !root.first()?.is_empty() || ![*uid, *name, *id].into_iter().all(plain) || pod_uid.is_some_and(|expected| expected != *uid) {
        return None;
    }
    let root = std::fs::canonicalize(root.join("/")).ok()?;
    Some(root.join("pods").join(uid).join("containers").join(name).join(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_nothing_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("d")).unwrap();
        std::fs::write(root.join("d/f"), "x").unwrap();
        std::os::unix::fs::symlink("d", root.join("l")).unwrap();
        assert!(open(&root.join("d/f"), OFlag::O_RDONLY).is_ok());
        assert!(open(&root.join("l/f"), OFlag::O_RDONLY).is_err(), "a directory that is a link");
        assert!(open(&root.join("d"), OFlag::O_RDONLY).is_err(), "not a file");
    }

    #[test]
    fn takes_only_the_kubelets_file_for_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let good = root.join("pods/u/containers/c/0123");
        assert_eq!(kubelet_termination_log(&good, Some("u")), Some(good.clone()));
        assert_eq!(kubelet_termination_log(&good, None), Some(good.clone()));
        assert_eq!(kubelet_termination_log(&good, Some("other")), None);
        for other in ["/etc/shadow", "/srv/authorized_keys", "pods/u/containers/c/0", "/pods/../containers/c/0", "/pods/u/containers/c/.."]
        {
            assert_eq!(kubelet_termination_log(Path::new(other), None), None, "{other}");
        }
    }
}
