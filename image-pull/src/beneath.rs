//! A directory tree that is only ever reached through descriptors of its directories, never through path names.
//!
//! Every directory is opened by `openat2(2)` beneath the root, with symbolic links refused, and every object is made relative to such a descriptor. So no
//! entry of an archive can make a later one land elsewhere, whatever links were planted before.
//!
//! **Invariant:** no function here takes a path of more than one part except to open directories with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
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

/// Removes whatever is under this name, directories with all they hold.
///
/// # Errors
/// Whatever the system says; what was removed by then stays removed.
pub fn remove(directory: impl AsFd, entry: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(&directory, name(entry), AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    // Depth is bounded by the length of a path, and only what an archive entry made is here; still a loop, not a recursion.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut stack = vec![(rustix::fs::openat(&directory, name(entry), flags, Mode::empty())?, entry.to_vec())];
    while let Some((here, _)) = stack.last() {
        let mut deeper = None;
        for child in rustix::fs::Dir::read_from(here)? {
            let child = child?;
            let child_name = child.file_name().to_bytes();
            if child_name == b"." || child_name == b".." {
                continue;
            }
            match rustix::fs::unlinkat(here, name(child_name), AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::ISDIR) => {
                    deeper = Some((rustix::fs::openat(here, name(child_name), flags, Mode::empty())?, child_name.to_vec()));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(next) = deeper {
            stack.push(next);
            continue;
        }
        let Some((_, done)) = stack.pop() else { break };
        match stack.last() {
            Some((parent, _)) => rustix::fs::unlinkat(parent, name(&done), AtFlags::REMOVEDIR)?,
            None => rustix::fs::unlinkat(&directory, name(&done), AtFlags::REMOVEDIR)?,
        }
    }
    Ok(())
}
