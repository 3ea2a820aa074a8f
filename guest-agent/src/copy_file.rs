//! Files the host copies into the guest: configuration, secrets as Kubernetes volumes, `/etc/hosts` and its like.
//!
//! Everything happens beneath one directory, whose every component is resolved by `openat2(2)` beneath it and through no
//! symbolic link at all (AC-24, CVE-2026-41326): a link that an earlier request made is never followed by a later one. Contents
//! grow in a temporary file beside the final one and appear under the final name when complete.
//!
//! Symbolic links are made as Kubernetes volumes need them: relative, inside one copied tree, and never as its top.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use kata_cc_agent_protocol::SHARED_DIR;
use kata_cc_agent_protocol::rpc::agent::CopyFileRequest;
use kata_cc_policy::PolicyRequest;
use pathrs::error::ErrorKind;
use pathrs::flags::{OpenFlags, RenameFlags, ResolverFlags};
use pathrs::{InodeType, Root};
use serde_json::{Value, json};
use thiserror::Error;

/// The largest file that can be copied. It lies in memory, and the host decides how many there are.
const MAX_FILE: i64 = 1 << 30;

/// Suffix of a file that is not complete.
const PARTIAL: &str = ".tmp";

const FORMAT_MASK: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
/// Permission bits without set-user-ID and set-group-ID: a file of the host's gives nobody another identity.
const PERMISSIONS: u32 = 0o1_777;

/// What is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileType {
    Regular,
    Directory,
    Symlink,
    Unknown,
}

impl FileType {
    fn of(mode: u32) -> Self {
        match mode & FORMAT_MASK {
            REGULAR => Self::Regular,
            DIRECTORY => Self::Directory,
            SYMLINK => Self::Symlink,
            _ => Self::Unknown,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Regular => "Regular",
            Self::Directory => "Directory",
            Self::Symlink => "Symlink",
            Self::Unknown => "Unknown",
        }
    }
}

/// A request to copy a file, as policies see it: everything but the contents, and the target of a link in words.
#[derive(Debug)]
pub(crate) struct CopyFile(pub CopyFileRequest);

impl PolicyRequest for CopyFile {
    const RULE: &'static str = "CopyFileRequest";

    fn policy_input(&self) -> Value {
        let request = &self.0;
        let file_type = FileType::of(request.file_mode);
        let target = match file_type {
            FileType::Symlink => String::from_utf8_lossy(&request.data).into_owned(),
            _ => String::new(),
        };
        json!({
            "path": request.path,
            "file_type": file_type.name(),
            "symlink_target": target,
            "file_size": request.file_size,
            "file_mode": request.file_mode,
            "dir_mode": request.dir_mode,
            "uid": request.uid,
            "gid": request.gid,
            "offset": request.offset,
        })
    }
}

/// Why a file was not copied.
#[derive(Debug, Error)]
pub(crate) enum CopyError {
    /// Not a path we write to.
    #[error("copying to {0:?}: expected a plain path beneath {SHARED_DIR}")]
    Path(String),
    /// Not a kind of file we make.
    #[error("copying to {path:?}: expected a regular file, a directory or a symbolic link, found mode {mode:#o}")]
    Type {
        /// Where to.
        path: String,
        /// What was asked for.
        mode: u32,
    },
    /// Numbers that do not fit each other.
    #[error("copying to {path:?}: size {size}, offset {offset} and {length} bytes do not fit (at most {MAX_FILE} bytes)")]
    Extent {
        /// Where to.
        path: String,
        /// Size of the whole.
        size: i64,
        /// Offset of this piece.
        offset: i64,
        /// Length of this piece.
        length: usize,
    },
    /// An owner that is none.
    #[error("copying to {0:?}: owner and group must not be negative")]
    Owner(String),
    /// A link that could lead elsewhere.
    #[error("copying to {0:?}: expected a relative link that stays in its own tree and is not the top of it")]
    Link(String),
    /// Resolving or creating failed.
    #[error("copying to {path:?}: {step}")]
    Resolve {
        /// Where to.
        path: String,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: pathrs::error::Error,
    },
    /// Writing failed.
    #[error("copying to {path:?}: {step}")]
    Io {
        /// Where to.
        path: String,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Carries a request out beneath [`SHARED_DIR`].
///
/// # Errors
/// When it is not as it must be, or the file system refuses.
pub(crate) fn copy(request: &CopyFileRequest) -> Result<(), CopyError> {
    std::fs::create_dir_all(SHARED_DIR).map_err(|source| CopyError::Io {
        path: request.path.clone(),
        step: "making the directory of copied files",
        source,
    })?;
    copy_beneath(Path::new(SHARED_DIR), request)
}

fn copy_beneath(shared: &Path, request: &CopyFileRequest) -> Result<(), CopyError> {
    let name = relative(&request.path).ok_or_else(|| CopyError::Path(request.path.clone()))?;
    let resolve = |step| {
        let path = request.path.clone();
        move |source| CopyError::Resolve { path, step, source }
    };
    let root =
        Root::open(shared).map_err(resolve("opening the directory of copied files"))?.with_resolver_flags(ResolverFlags::NO_SYMLINKS);
    if let Some(parent) = name.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let mode = match request.dir_mode & PERMISSIONS {
            0 => 0o750,
            mode => mode,
        };
        root.mkdir_all(parent, &Permissions::from_mode(mode)).map_err(resolve("making its directories"))?;
    }
    match FileType::of(request.file_mode) {
        FileType::Regular => regular(&root, &name, request),
        FileType::Directory => directory(&root, &name, request),
        FileType::Symlink => symlink(&root, &name, request),
        FileType::Unknown => Err(CopyError::Type { path: request.path.clone(), mode: request.file_mode }),
    }
}

/// The part of a path after [`SHARED_DIR`], if it is nothing but names.
fn relative(path: &str) -> Option<PathBuf> {
    let rest = path.strip_prefix(SHARED_DIR)?.strip_prefix('/')?;
    // `components()` would silently drop what is refused here: empty names, `.`, a slash at the end.
    let plain = rest.split('/').all(|name| !name.is_empty() && name != "." && name != ".." && !name.contains('\0'));
    plain.then(|| PathBuf::from(rest))
}

fn owner(request: &CopyFileRequest) -> Result<(u32, u32), CopyError> {
    match (u32::try_from(request.uid), u32::try_from(request.gid)) {
        (Ok(uid), Ok(gid)) => Ok((uid, gid)),
        _ => Err(CopyError::Owner(request.path.clone())),
    }
}

fn regular(root: &Root, name: &Path, request: &CopyFileRequest) -> Result<(), CopyError> {
    let length = i64::try_from(request.data.len()).unwrap_or(i64::MAX);
    let end = request.offset.checked_add(length);
    let fits = (0..=MAX_FILE).contains(&request.file_size) && request.offset >= 0 && end.is_some_and(|end| end <= request.file_size);
    let (true, Ok(offset), Some(end)) = (fits, u64::try_from(request.offset), end) else {
        return Err(CopyError::Extent {
            path: request.path.clone(),
            size: request.file_size,
            offset: request.offset,
            length: request.data.len(),
        });
    };
    let (uid, gid) = owner(request)?;
    let io = |step| {
        let path = request.path.clone();
        move |source| CopyError::Io { path, step, source }
    };
    let resolve = |step| {
        let path = request.path.clone();
        move |source| CopyError::Resolve { path, step, source }
    };
    let mut partial = name.as_os_str().to_owned();
    partial.push(PARTIAL);
    let partial = PathBuf::from(partial);
    if request.offset == 0 {
        // What an earlier attempt left, whatever it is, is not written into.
        remove(root, &partial).map_err(resolve("removing an incomplete file"))?;
    }
    let flags = OpenFlags::O_WRONLY | OpenFlags::O_NOFOLLOW | OpenFlags::O_CLOEXEC;
    let file = if request.offset == 0 {
        root.create_file(&partial, flags | OpenFlags::O_EXCL, &Permissions::from_mode(0o600))
    } else {
        root.open_subpath(&partial, flags)
    }
    .map_err(resolve("opening the incomplete file"))?;
    file.write_all_at(&request.data, offset).map_err(io("writing"))?;
    if end < request.file_size {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(request.file_mode & PERMISSIONS)).map_err(io("setting its permissions"))?;
    fchown(&file, Some(uid), Some(gid)).map_err(io("setting its owner"))?;
    root.rename(&partial, name, RenameFlags::empty()).map_err(resolve("giving it its name"))
}

fn directory(root: &Root, name: &Path, request: &CopyFileRequest) -> Result<(), CopyError> {
    let (uid, gid) = owner(request)?;
    let resolve = |step| {
        let path = request.path.clone();
        move |source| CopyError::Resolve { path, step, source }
    };
    let io = |step| {
        let path = request.path.clone();
        move |source| CopyError::Io { path, step, source }
    };
    let mode = match request.file_mode & PERMISSIONS {
        0 => request.dir_mode & PERMISSIONS,
        mode => mode,
    };
    let directory = root
        .mkdir_all(name, &Permissions::from_mode(mode))
        .map_err(resolve("making the directory"))?
        .reopen(OpenFlags::O_RDONLY | OpenFlags::O_DIRECTORY | OpenFlags::O_CLOEXEC)
        .map_err(resolve("opening the directory"))?;
    directory.set_permissions(Permissions::from_mode(mode)).map_err(io("setting its permissions"))?;
    fchown(&directory, Some(uid), Some(gid)).map_err(io("setting its owner"))
}

fn symlink(root: &Root, name: &Path, request: &CopyFileRequest) -> Result<(), CopyError> {
    let refuse = || CopyError::Link(request.path.clone());
    let target = std::str::from_utf8(&request.data).map_err(|_| refuse())?;
    if !stays_inside(name, target) {
        return Err(refuse());
    }
    let resolve = |step| {
        let path = request.path.clone();
        move |source| CopyError::Resolve { path, step, source }
    };
    // Kubernetes swaps a volume's contents by replacing a link, so an existing one must give way at once.
    let mut partial = name.as_os_str().to_owned();
    partial.push(PARTIAL);
    let partial = PathBuf::from(partial);
    remove(root, &partial).map_err(resolve("removing an incomplete link"))?;
    root.create(&partial, &InodeType::Symlink(PathBuf::from(target))).map_err(resolve("making the link"))?;
    root.rename(&partial, name, RenameFlags::empty()).map_err(resolve("giving it its name"))
}

/// Whether a link called `name` with that target leads to somewhere in the same top directory.
fn stays_inside(name: &Path, target: &str) -> bool {
    let depth = name.components().count();
    if target.is_empty() || target.contains('\0') || depth < 2 {
        return false;
    }
    // Directories between the link's top directory and the link.
    let mut above = depth - 2;
    for part in Path::new(target).components() {
        match part {
            Component::Normal(_) => above += 1,
            Component::CurDir => {}
            Component::ParentDir => match above.checked_sub(1) {
                Some(next) => above = next,
                None => return false,
            },
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

fn remove(root: &Root, name: &Path) -> Result<(), pathrs::error::Error> {
    match root.remove_file(name) {
        Err(error) if error.kind() == ErrorKind::OsError(Some(nix::errno::Errno::ENOENT as i32)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "copy_file_tests.rs"]
mod tests;
