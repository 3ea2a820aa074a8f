//! Writes a layer's archive into an empty directory, as the upper or lower directory of an overlay.
//!
//! Not a judge of the archive's form ([`crate::tar`] is) nor of its digest ([`crate::layer`] is). It holds that everything lands beneath the directory, that
//! whiteouts mean what the image specification says, and that nothing an image author writes can pass for overlayfs's own marks.
//!
//! Whiteouts (OCI image-spec "layer.md"): `.wh.name` becomes the character device 0/0, `.wh..wh..opq` the attribute `trusted.overlay.opaque`. They
//! apply to lower layers only, so an entry of the same layer with that name stays, whichever comes first.
//!
//! **Invariant:** every object is made and changed through a descriptor of the directory it is in ([`crate::beneath`]).
//! **Invariant:** the attributes `trusted.*` and character devices 0/0 come from whiteouts only, never from an entry.
//! **Invariant:** no entry makes a device other than the harmless ones of [`DEVICES`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::beneath::{self, Tree, is_whiteout, name};
use crate::limits::Limits;
use crate::tar::{Archive, Entry, EntryPath, Kind, TarError};

/// Whose the unpacked files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// As the image says. Needs privilege; without it unpacking fails.
    FromImage,
    /// The caller's, whatever the image says. For looking at images without privilege, not for running them.
    Caller,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is malformed.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// An entry is refused.
    #[error("layer entry {path:?}: {what}")]
    Entry {
        /// Where it was to be.
        path: String,
        /// Why it is refused.
        what: String,
    },
    /// The system refused.
    #[error("layer entry {path:?}: {what}")]
    System {
        /// Where it was to be.
        path: String,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        source: Errno,
    },
    /// More entries than allowed.
    #[error("the image has more than {0} entries")]
    Entries(u64),
}

/// What was unpacked, beyond the files themselves.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Directories that the archive used but did not describe. They must take owner, mode and time from the layer below that has them.
    pub implied: BTreeSet<Vec<u8>>,
    /// How many entries there were.
    pub entries: u64,
}

/// How and how much to unpack.
pub struct Options<'a> {
    /// Bounds.
    pub limits: &'a Limits,
    /// Whose the files are.
    pub ownership: Ownership,
    /// Entries so far in all layers of the image.
    pub entries: &'a AtomicU64,
}

impl Options<'_> {
    /// One more thing that is made.
    fn count(&self) -> Result<(), UnpackError> {
        if self.entries.fetch_add(1, Ordering::Relaxed) >= self.limits.entries {
            return Err(UnpackError::Entries(self.limits.entries));
        }
        Ok(())
    }
}

struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

const IMPLIED: Meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() };

/// Unpacks the whole archive beneath `root`, which must be an empty directory, up to its end and the end of the source.
///
/// # Errors
/// If the archive is malformed, an entry is refused, or the system fails. The directory then holds some part and must be removed.
pub fn unpack<R: BufRead>(source: R, root: &Path, options: &Options<'_>) -> Result<Unpacked, UnpackError> {
    let tree =
        Tree::open(root).map_err(|source| UnpackError::System { path: String::new(), what: "opening the layer's directory", source })?;
    let mut layer = Layer {
        tree,
        options,
        directories: BTreeMap::new(),
        implied: BTreeSet::new(),
        caller: (rustix::process::geteuid(), rustix::process::getegid()),
    };
    let mut archive = Archive::new(source, options.limits);
    let mut entries = 0u64;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        options.count()?;
        layer.entry(entry, &mut archive)?;
    }
    layer.finish()?;
    Ok(Unpacked { implied: layer.implied, entries })
}

struct Layer<'a> {
    tree: Tree,
    options: &'a Options<'a>,
    /// Owner, mode and times of directories are set at the end: entries in them would change the times, and a read-only mode would keep entries out.
    directories: BTreeMap<Vec<u8>, Meta>,
    implied: BTreeSet<Vec<u8>>,
    caller: (Uid, Gid),
}

/// The character devices an image may hold: null, zero, full, random, urandom, tty, console, ptmx. Old base images ship them. Any other would be a way around
/// the capability to make devices, which no container has here: the guest's own device that asks the TEE for evidence could come out of an archive (AC-35).
const DEVICES: [(u32, u32); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn refuse<T>(path: &[u8], what: impl Into<String>) -> Result<T, UnpackError> {
    Err(UnpackError::Entry { path: shown(path), what: what.into() })
}

fn system(path: &[u8], what: &'static str) -> impl FnOnce(Errno) -> UnpackError {
    let path = shown(path);
    move |source| UnpackError::System { path, what, source }
}

fn timestamps((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn join(directory: &[u8], entry: &[u8]) -> Vec<u8> {
    if directory.is_empty() { entry.to_vec() } else { [directory, b"/", entry].concat() }
}

impl Layer<'_> {
    fn entry<R: BufRead>(&mut self, entry: Entry, archive: &mut Archive<'_, R>) -> Result<(), UnpackError> {
        let Entry { path, kind, mode, uid, gid, mtime, xattrs } = entry;
        let meta = Meta { mode, uid, gid, mtime, xattrs };
        let Some((parent, base)) = path.split() else {
            if kind != Kind::Directory {
                return refuse(b"/", "the root can only be a directory");
            }
            self.directories.insert(Vec::new(), meta);
            return Ok(());
        };
        if parent.split(|&b| b == b'/').any(|part| part.starts_with(WHITEOUT)) && !parent.starts_with(WHITEOUT_META) {
            return refuse(path.as_bytes(), "an entry beneath a whiteout name");
        }
        if base == OPAQUE {
            return self.opaque(parent, path.as_bytes());
        }
        // What aufs kept for itself: `.wh..wh.aufs`, `.wh..wh.plnk/…`. Every unpacker leaves it out.
        if base.starts_with(WHITEOUT_META) || parent.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        if let Some(hidden) = base.strip_prefix(WHITEOUT) {
            return self.whiteout(parent, hidden, path.as_bytes());
        }
        let directory = self.parent(parent)?;
        match kind {
            Kind::Directory => self.directory(&directory, &path, base, meta),
            Kind::File(_) => self.file(&directory, &path, base, &meta, archive),
            Kind::Symlink(target) => {
                self.make(&directory, &path, base, "symlink", |d, n| rustix::fs::symlinkat(name(&target), d, n))?;
                self.settle_node(&directory, &path, base, &meta, true)
            }
            Kind::Hardlink(target) => self.hardlink(&directory, &path, base, &target),
            Kind::CharDevice(0, 0) => refuse(path.as_bytes(), "a character device 0/0, which is overlayfs's whiteout"),
            Kind::CharDevice(major, minor) if DEVICES.contains(&(major, minor)) => {
                self.node(&directory, &path, base, &meta, FileType::CharacterDevice, (major, minor))
            }
            Kind::CharDevice(major, minor) => {
                refuse(path.as_bytes(), format!("the character device {major}:{minor}, expected one of {DEVICES:?}"))
            }
            Kind::BlockDevice(major, minor) => refuse(path.as_bytes(), format!("the block device {major}:{minor}: an image can have none")),
            Kind::Fifo => self.node(&directory, &path, base, &meta, FileType::Fifo, (0, 0)),
        }
    }

    /// The directory an entry goes to; made if the archive has not named it.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, UnpackError> {
        if let Some(fd) = self.existing(path)? {
            return Ok(fd);
        }
        let mut directory = self.tree.root();
        let mut length = 0;
        for part in path.split(|&b| b == b'/') {
            length += part.len() + usize::from(length > 0);
            directory = self.step(&directory, part, path.get(..length).unwrap_or_default())?;
        }
        Ok(directory)
    }

    /// The directory, or `None` if it is not there or something else is.
    fn existing(&mut self, path: &[u8]) -> Result<Option<Rc<OwnedFd>>, UnpackError> {
        match self.tree.directory(path) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(system(path, "opening the directory")(error)),
        }
    }

    /// From a directory to the one called `base` in it, whose path is `path`.
    fn step(&mut self, directory: &OwnedFd, base: &[u8], path: &[u8]) -> Result<Rc<OwnedFd>, UnpackError> {
        if let Some(fd) = self.existing(path)? {
            return Ok(fd);
        }
        // One archive entry may imply hundreds of these.
        self.options.count()?;
        match beneath::stat(directory, base).map_err(system(path, "looking it up"))? {
            Some(stat) if is_whiteout(&stat) => {
                rustix::fs::unlinkat(directory, name(base), AtFlags::empty()).map_err(system(path, "removing the whiteout"))?;
                self.mkdir(directory, base, path)?;
                self.mark_opaque(path)?;
            }
            // Not followed, although it would stay beneath the root: tools that scan layers do not agree on where such an entry lands.
            Some(_) => return refuse(path, "a directory on the way is a link or a file in this layer"),
            None => self.mkdir(directory, base, path)?,
        }
        self.implied.insert(path.to_vec());
        self.directories.insert(path.to_vec(), IMPLIED);
        self.tree.directory(path).map_err(system(path, "opening the directory"))
    }

    fn mkdir(&self, directory: &OwnedFd, base: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        rustix::fs::mkdirat(directory, name(base), Mode::RWXU).map_err(system(path, "making the directory"))
    }

    /// Makes an object; what an earlier entry left under the name gives way, as in every unpacker.
    fn make<T>(
        &mut self,
        directory: &OwnedFd,
        path: &EntryPath,
        base: &[u8],
        what: &'static str,
        create: impl Fn(&OwnedFd, &std::ffi::OsStr) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        match create(directory, name(base)) {
            Err(Errno::EXIST) => {
                self.clear(directory, path.as_bytes(), base)?;
                create(directory, name(base)).map_err(system(path.as_bytes(), what))
            }
            other => other.map_err(system(path.as_bytes(), what)),
        }
    }

    fn clear(&mut self, directory: &OwnedFd, path: &[u8], base: &[u8]) -> Result<(), UnpackError> {
        beneath::remove(directory, base).map_err(system(path, "replacing what an earlier entry made"))?;
        self.tree.forget();
        let beneath = [path, b"/"].concat();
        self.directories.retain(|known, _| known != path && !known.starts_with(&beneath));
        self.implied.retain(|known| known != path && !known.starts_with(&beneath));
        Ok(())
    }

    fn directory(&mut self, directory: &OwnedFd, path: &EntryPath, base: &[u8], meta: Meta) -> Result<(), UnpackError> {
        let bytes = path.as_bytes();
        match rustix::fs::mkdirat(directory, name(base), Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => match beneath::stat(directory, base).map_err(system(bytes, "looking it up"))? {
                Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
                Some(_) => {
                    self.clear(directory, bytes, base)?;
                    self.mkdir(directory, base, bytes)?;
                    // Whatever it was, file, link or whiteout, it hid what lower layers have under this name, and that must not come back.
                    self.mark_opaque(bytes)?;
                }
                None => self.mkdir(directory, base, bytes)?,
            },
            Err(error) => return Err(system(bytes, "making the directory")(error)),
        }
        self.implied.remove(bytes);
        self.directories.insert(bytes.to_vec(), meta);
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        directory: &OwnedFd,
        path: &EntryPath,
        base: &[u8],
        meta: &Meta,
        archive: &mut Archive<'_, R>,
    ) -> Result<(), UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = self.make(directory, path, base, "making the file", |d, n| rustix::fs::openat(d, n, flags, Mode::RUSR | Mode::WUSR))?;
        loop {
            let bytes = archive.body()?;
            if bytes.is_empty() {
                break;
            }
            let written = match rustix::io::write(&file, bytes) {
                Err(Errno::INTR) => 0,
                other => other.map_err(system(path.as_bytes(), "writing the file"))?,
            };
            archive.consume(written);
        }
        self.settle(&file, path.as_bytes(), meta)
    }

    fn hardlink(&mut self, directory: &OwnedFd, path: &EntryPath, base: &[u8], target: &EntryPath) -> Result<(), UnpackError> {
        let bytes = path.as_bytes();
        if target == path {
            return refuse(bytes, "a hard link to itself");
        }
        let Some((above, target_base)) = target.split() else { return refuse(bytes, "a hard link to the root") };
        if target.as_bytes().split(|&b| b == b'/').any(|part| part.starts_with(WHITEOUT)) {
            return refuse(bytes, "a hard link to a whiteout name");
        }
        let from = match self.tree.directory(above) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return refuse(bytes, "a hard link to something that is not in this layer"),
            Err(error) => return Err(system(bytes, "opening the target's directory")(error)),
        };
        match beneath::stat(&*from, target_base).map_err(system(bytes, "looking up the target"))? {
            None => return refuse(bytes, "a hard link to something that is not in this layer"),
            Some(stat) if is_whiteout(&stat) => return refuse(bytes, "a hard link to a whiteout"),
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return refuse(bytes, "a hard link to a directory");
            }
            Some(_) => {}
        }
        self.make(directory, path, base, "linking", |d, n| rustix::fs::linkat(&*from, name(target_base), d, n, AtFlags::empty()))
    }

    fn node(
        &mut self,
        directory: &OwnedFd,
        path: &EntryPath,
        base: &[u8],
        meta: &Meta,
        file_type: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), UnpackError> {
        let device = rustix::fs::makedev(major, minor);
        self.make(directory, path, base, "making the special file", |d, n| {
            rustix::fs::mknodat(d, n, file_type, Mode::RUSR | Mode::WUSR, device)
        })?;
        self.settle_node(directory, path, base, meta, false)
    }

    /// Owner, mode, attributes and times of something open.
    fn settle(&self, file: &OwnedFd, path: &[u8], meta: &Meta) -> Result<(), UnpackError> {
        if let Some((uid, gid)) = self.owner(meta) {
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(system(path, "setting the owner"))?;
        }
        // After the owner: changing that clears set-user-id and capabilities.
        rustix::fs::fchmod(file, Mode::from_raw_mode(meta.mode)).map_err(system(path, "setting the mode"))?;
        for (key, value) in &meta.xattrs {
            self.xattr(file, path, key, value)?;
        }
        rustix::fs::futimens(file, &timestamps(meta.mtime)).map_err(system(path, "setting the time"))
    }

    /// The same for what cannot be opened: links and special files. They were just made, in a directory nobody else knows.
    fn settle_node(&self, directory: &OwnedFd, path: &EntryPath, base: &[u8], meta: &Meta, link: bool) -> Result<(), UnpackError> {
        let bytes = path.as_bytes();
        if !meta.xattrs.is_empty() {
            return refuse(bytes, "extended attributes on a link or special file");
        }
        if let Some((uid, gid)) = self.owner(meta) {
            rustix::fs::chownat(directory, name(base), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(system(bytes, "setting the owner"))?;
        }
        if !link {
            rustix::fs::chmodat(directory, name(base), Mode::from_raw_mode(meta.mode), AtFlags::empty())
                .map_err(system(bytes, "setting the mode"))?;
        }
        rustix::fs::utimensat(directory, name(base), &timestamps(meta.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(system(bytes, "setting the time"))
    }

    /// The owner to set, if it is not already so.
    fn owner(&self, meta: &Meta) -> Option<(Uid, Gid)> {
        let wanted = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
        (self.options.ownership == Ownership::FromImage && wanted != self.caller).then_some(wanted)
    }

    fn xattr(&self, file: &OwnedFd, path: &[u8], key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        let what = match key {
            b"security.capability" if self.options.ownership == Ownership::Caller => return Ok(()),
            b"security.capability" => "setting the file's capabilities",
            // Labels of a security module this guest does not have; every host writes its own.
            b"security.selinux" | b"security.ima" | b"security.evm" => return Ok(()),
            _ if key.starts_with(b"user.") && !key.starts_with(b"user.overlay.") => "setting an attribute",
            _ => return refuse(path, format!("the extended attribute {:?}: only user.* and security.capability are allowed", shown(key))),
        };
        rustix::fs::fsetxattr(file, name(key), value, XattrFlags::empty()).map_err(system(path, what))
    }

    fn whiteout(&mut self, parent: &[u8], hidden: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return refuse(path, "a whiteout of no name");
        }
        let directory = self.parent(parent)?;
        let target = join(parent, hidden);
        match beneath::stat(&*directory, hidden).map_err(system(&target, "looking it up"))? {
            // This layer's own directory of that name stays; only what is below it is hidden.
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => self.mark_opaque(&target),
            Some(_) => Ok(()),
            None => rustix::fs::mknodat(&*directory, name(hidden), FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(system(path, "making a whiteout (a character device 0/0)")),
        }
    }

    fn opaque(&mut self, parent: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        // Overlayfs does not look for the mark on a layer's root: everything the image's author deleted would be there again.
        if parent.is_empty() {
            return refuse(
                path,
                "an opaque whiteout of the root, which an overlay of layers cannot express: delete the files one by one, or begin from scratch",
            );
        }
        self.parent(parent)?;
        self.mark_opaque(parent)
    }

    fn mark_opaque(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let directory = self.tree.directory(path).map_err(system(path, "opening the directory"))?;
        // Without the mark what the image's author deleted would be there again, so this must not be skipped.
        rustix::fs::fsetxattr(directory.as_fd(), "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .map_err(system(path, "marking the directory opaque (trusted.overlay.opaque)"))
    }

    fn finish(&mut self) -> Result<(), UnpackError> {
        let directories = std::mem::take(&mut self.directories);
        // Children before their parents: a parent's mode may shut us out.
        for (path, meta) in directories.iter().rev() {
            let fd = self.tree.directory(path).map_err(system(path, "opening the directory"))?;
            self.settle(&fd, path, meta)?;
        }
        Ok(())
    }
}
