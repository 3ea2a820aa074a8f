//! A directory tree that is only ever reached through descriptors of its directories, never through path names.
//!
//! Every directory is opened by `openat2(2)` beneath the root, with symbolic links refused, and every object is made relative to such a descriptor. So no
//! entry of an archive can make a later one land elsewhere, whatever links were planted before.
//!
//! **Invariant:** no function here takes a path of more than one part except to open directories with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Descriptors of directories used last, so that the common case (the next entry is in the same directory) costs no system call.
const CACHED: usize = 32;

/// The tree, by the descriptor of its root.
pub struct Tree {
    root: Rc<OwnedFd>,
    cache: Vec<(Vec<u8>, Rc<OwnedFd>)>,
}

pub(crate) fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

impl Tree {
    /// Opens the root. Its own path is the caller's to answer for.
    ///
    /// # Errors
    /// Whatever open(2) says.
    pub fn open(root: &Path) -> Result<Self, Errno> {
        let root = rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self { root: Rc::new(root), cache: Vec::new() })
    }

    /// The root itself.
    #[must_use]
    pub fn root(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.root)
    }

    /// Opens a directory.
    ///
    /// # Errors
    /// `ELOOP` if a part of the path is a symbolic link, `ENOTDIR` and `ENOENT` as usual.
    pub fn directory(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        if path.is_empty() {
            return Ok(self.root());
        }
        if let Some(at) = self.cache.iter().rposition(|(known, _)| known == path) {
            // The one used last is asked for first.
            let found = self.cache.remove(at);
            let fd = Rc::clone(&found.1);
            self.cache.push(found);
            return Ok(fd);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let fd = Rc::new(rustix::fs::openat2(self.root.as_fd(), name(path), flags, Mode::empty(), resolve)?);
        if self.cache.len() >= CACHED {
            self.cache.remove(0);
        }
        self.cache.push((path.to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    /// Forgets every descriptor: a directory was removed or renamed.
    pub fn forget(&mut self) {
        self.cache.clear();
    }
}

/// What is there under this name, without following a link; `None` if nothing is.
///
/// # Errors
/// Whatever fstatat(2) says beyond `ENOENT`.
pub fn stat(directory: impl AsFd, entry: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(directory, name(entry), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether this is an overlay whiteout: the character device 0/0.
#[must_use]
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Removes whatever is under this name, directories with all they hold. Nobody else may be changing the tree.
///
/// However deep the tree is, this holds a handful of descriptors and no stack: trees to be removed are mostly those that were refused, and one that could not
/// be taken down again would stay.
///
/// # Errors
/// Whatever the system says; what was removed by then stays removed. `ESTALE` if a directory was moved meanwhile.
pub fn remove(directory: impl AsFd, entry: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(&directory, name(entry), AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let mut here = enter(directory.as_fd(), entry)?;
    // Of each directory above `here`, which it is, and the name in it of the one on the way.
    let mut above = Vec::new();
    loop {
        if let Some(child) = remove_all_but_directories(&here)? {
            let next = enter(here.as_fd(), &child)?;
            above.push((identity(&here)?, child));
            here = next;
            continue;
        }
        let Some((expected, child)) = above.pop() else { break };
        let parent = rustix::fs::openat(&here, "..", DIRECTORY, Mode::empty())?;
        if identity(&parent)? != expected {
            return Err(Errno::STALE);
        }
        rustix::fs::unlinkat(&parent, name(&child), AtFlags::REMOVEDIR)?;
        here = parent;
    }
    rustix::fs::unlinkat(&directory, name(entry), AtFlags::REMOVEDIR)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

fn identity(directory: &OwnedFd) -> Result<(u64, u64), Errno> {
    rustix::fs::fstat(directory).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Opens a directory whose content is to be removed, whatever mode an archive gave it.
fn enter(parent: BorrowedFd<'_>, child: &[u8]) -> Result<OwnedFd, Errno> {
    let open = || rustix::fs::openat(parent, name(child), DIRECTORY, Mode::empty());
    let fd = match open() {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name(child), Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        other => other?,
    };
    // It may be somebody else's, and then the removal says so.
    let _ = rustix::fs::fchmod(&fd, Mode::RWXU);
    Ok(fd)
}

/// Removes what is no directory, and gives the name of the first that is one.
fn remove_all_but_directories(here: &OwnedFd) -> Result<Option<Vec<u8>>, Errno> {
    for child in rustix::fs::Dir::read_from(here)? {
        let child = child?;
        let child = child.file_name().to_bytes();
        if child == b"." || child == b".." {
            continue;
        }
        match rustix::fs::unlinkat(here, name(child), AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR) => return Ok(Some(child.to_vec())),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_a_tree_deeper_than_descriptors_or_stack_would_do_for() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("kept"), "x").unwrap();
        let mut here = root.try_clone().unwrap();
        for level in 0..1500 {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            if level % 100 == 0 {
                rustix::fs::mkdirat(&here, "side", Mode::RWXU).unwrap();
                rustix::fs::symlinkat(outside.path(), &here, "link").unwrap();
            }
            here = rustix::fs::openat(&here, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        remove(&root, b"d").unwrap();
        assert!(!dir.path().join("d").exists() && outside.path().join("kept").exists());
        // What std's way of doing it could not have removed must not be left to it by this test either.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn removes_directories_that_an_archive_locked() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/f"), "x").unwrap();
        for path in ["a/b", "a"] {
            std::fs::set_permissions(dir.path().join(path), std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
        }
        remove(&root, b"a").unwrap();
        assert!(!dir.path().join("a").exists());
    }
}
