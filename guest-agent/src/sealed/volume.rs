//! Volumes with sealed secrets in them, and the container's own copy in which they are open.
//!
//! The host copies volumes below [`SHARED_DIR`], may do so again, and names the same one for several containers. So secrets are not opened
//! in place: a second container that is given the first one's volume would find them open. The copy is below [`SECRETS_DIR`], in the
//! guest's memory, where the host can neither write nor have anything mounted from, and it goes with its container.
//!
//! Containers may have written into a copied volume, and may do so while it is read. Each name is opened in the directory that it was found
//! in and never by way of a link; a link is copied as one, to be followed in the container and nowhere else.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use kata_cc_agent_protocol::SHARED_DIR;
use kata_cc_agent_protocol::rpc::oci;
use kata_cc_kbs_protocol::SecretBytes;
use kata_cc_kbs_protocol::sealed::{MAX_SEALED, PREFIX, is_sealed};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{Found, Target};
use crate::container::ContainerId;

/// Where opened volumes are: `<container>/<number>`.
pub(crate) const SECRETS_DIR: &str = "/run/kata-cc/secrets";

/// Bounds on a volume that is copied because there is a sealed secret in it. A Secret of Kubernetes has 1 MiB at most.
const MAX_ENTRIES: usize = 4096;
const MAX_BYTES: usize = 16 << 20;

/// How deep directories may lie in each other. Those of Kubernetes have two levels.
const MAX_DEPTH: usize = 64;

/// Permission bits without set-user-ID and set-group-ID, as for anything copied in.
const PERMISSIONS: u32 = 0o1_777;

/// Files of the pod's that the host makes, in which nothing is looked for. What is in the termination log the host reads back.
const NOT_LOOKED_INTO: [&str; 5] =
    ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log", "/var/run/secrets/kubernetes.io/serviceaccount"];

/// Why a volume is not copied.
#[derive(Debug, Error)]
pub(crate) enum VolumeError {
    /// Too much.
    #[error(
        "volume at {0:?}: it has sealed secrets, so this container gets a copy, of at most {MAX_ENTRIES} files, {MAX_BYTES} bytes and {MAX_DEPTH} levels; there is more"
    )]
    TooLarge(PathBuf),
    /// Something else than files.
    #[error("volume at {0:?}: it has sealed secrets; expected files, directories and links besides, found something else")]
    Kind(PathBuf),
    /// The kernel refused.
    #[error("volume at {destination:?}: {step}")]
    Io {
        /// Where in the container.
        destination: PathBuf,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Where opened volumes of a container are.
#[must_use]
pub(crate) fn directory(id: &ContainerId) -> PathBuf {
    Path::new(SECRETS_DIR).join(id.as_str())
}

/// Takes a container's opened volumes away. What is not there is no error.
///
/// # Errors
/// When something of them stays.
pub(crate) fn remove(id: &ContainerId) -> io::Result<()> {
    match fs::remove_dir_all(directory(id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Something in a volume.
struct Entry {
    /// Below the volume; empty for the volume itself.
    path: PathBuf,
    mode: u32,
    owner: (u32, u32),
    kind: Kind,
}

enum Kind {
    Directory,
    Link(OsString),
    File(Zeroizing<Vec<u8>>),
    /// Text that begins as a sealed secret does.
    Sealed(Zeroizing<String>),
}

/// A volume with sealed secrets in it.
pub(super) struct Volume {
    source: PathBuf,
    destination: PathBuf,
    /// Directories before what is in them.
    entries: Vec<Entry>,
}

impl Volume {
    /// A mount's volume, if there is a sealed secret in it.
    pub(super) fn find(mount: &oci::Mount) -> Result<Option<Self>, VolumeError> {
        let copied = Path::new(&mount.source).strip_prefix(SHARED_DIR).is_ok();
        if !copied || NOT_LOOKED_INTO.contains(&mount.destination.as_str()) {
            return Ok(None);
        }
        Self::at(Path::new(&mount.source), Path::new(&mount.destination))
    }

    fn at(source: &Path, destination: &Path) -> Result<Option<Self>, VolumeError> {
        // Two walks: most volumes have nothing sealed, and nothing of them is read but the first bytes of each file.
        let mut walk = Walk { destination, entries: None, bytes: 0, sealed: false };
        walk.entry(CWD, source.as_os_str(), PathBuf::new(), 0)?;
        if !walk.sealed {
            return Ok(None);
        }
        let mut walk = Walk { destination, entries: Some(Vec::new()), bytes: 0, sealed: false };
        walk.entry(CWD, source.as_os_str(), PathBuf::new(), 0)?;
        // It may have been exchanged between the two; what counts is what was read.
        let (source, destination) = (source.to_owned(), destination.to_owned());
        Ok(Some(Self { source, destination, entries: walk.entries.unwrap_or_default() }))
    }

    fn sealed_texts(&self) -> impl Iterator<Item = (&Path, &Zeroizing<String>)> {
        self.entries.iter().filter_map(|entry| match &entry.kind {
            Kind::Sealed(text) => Some((entry.path.as_path(), text)),
            _ => None,
        })
    }

    /// How many sealed secrets are in it.
    pub(super) fn sealed(&self) -> usize {
        self.sealed_texts().count()
    }

    /// They, in order.
    pub(super) fn found(&self) -> impl Iterator<Item = Found> {
        self.sealed_texts().map(|(path, text)| {
            // Joining an empty path would end the name with a slash.
            let place = if path.as_os_str().is_empty() { self.destination.clone() } else { self.destination.join(path) };
            Found { target: Target::File(place.to_string_lossy().into_owned()), text: text.clone() }
        })
    }

    /// The volume with `contents` in place of the sealed secrets, in order.
    pub(super) fn with(self, contents: Vec<SecretBytes>) -> Open {
        Open { volume: self, contents }
    }
}

struct Walk<'a> {
    destination: &'a Path,
    /// What is there, if all of it is to be read.
    entries: Option<Vec<Entry>>,
    bytes: usize,
    sealed: bool,
}

impl Walk<'_> {
    fn at<E: Into<io::Error>>(&self, step: &'static str) -> impl FnOnce(E) -> VolumeError {
        let destination = self.destination.to_owned();
        move |source| VolumeError::Io { destination, step, source: source.into() }
    }

    fn push(&mut self, path: PathBuf, stat: &Stat, kind: Kind) -> Result<(), VolumeError> {
        let entry = Entry { path, mode: stat.st_mode & PERMISSIONS, owner: (stat.st_uid, stat.st_gid), kind };
        if let Some(entries) = &mut self.entries {
            if entries.len() >= MAX_ENTRIES {
                return Err(VolumeError::TooLarge(self.destination.to_owned()));
            }
            entries.push(entry);
        }
        Ok(())
    }

    /// Looks at `name` in a directory, and at all that is in it.
    fn entry(&mut self, directory: impl std::os::fd::AsFd + Copy, name: &OsStr, path: PathBuf, depth: usize) -> Result<(), VolumeError> {
        // Neither waits for a pipe's other end nor follows a link.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = match openat(directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::LOOP) => return self.link(directory, name, path),
            // A socket, or gone meanwhile.
            Err(rustix::io::Errno::NXIO | rustix::io::Errno::NOENT) if self.entries.is_none() => return Ok(()),
            Err(errno) => return Err(self.at("opening what is in it")(errno)),
        };
        let stat = fstat(&file).map_err(self.at("looking at what is in it"))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.directory(&file, &stat, path, depth),
            FileType::RegularFile => self.file(file, &stat, path),
            _ if self.entries.is_none() => Ok(()),
            _ => Err(VolumeError::Kind(self.destination.to_owned())),
        }
    }

    fn link(&mut self, directory: impl std::os::fd::AsFd, name: &OsStr, path: PathBuf) -> Result<(), VolumeError> {
        if self.entries.is_none() {
            return Ok(());
        }
        let target = readlinkat(&directory, name, Vec::new()).map_err(self.at("reading a link in it"))?;
        let stat =
            rustix::fs::statat(&directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map_err(self.at("looking at a link in it"))?;
        self.push(path, &stat, Kind::Link(OsString::from_vec(target.into_bytes())))
    }

    fn directory(&mut self, file: &OwnedFd, stat: &Stat, path: PathBuf, depth: usize) -> Result<(), VolumeError> {
        if depth >= MAX_DEPTH {
            // Unread, it could hold a sealed secret that would then not be opened.
            return Err(VolumeError::TooLarge(self.destination.to_owned()));
        }
        self.push(path.clone(), stat, Kind::Directory)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(file).map_err(self.at("listing a directory in it"))? {
            let name = OsString::from_vec(entry.map_err(self.at("listing a directory in it"))?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort();
        names.into_iter().try_for_each(|name| self.entry(file, &name, path.join(&name), depth + 1))
    }

    fn file(&mut self, file: OwnedFd, stat: &Stat, path: PathBuf) -> Result<(), VolumeError> {
        let mut file = fs::File::from(file);
        if self.entries.is_none() {
            let mut start = Vec::with_capacity(PREFIX.len());
            (&mut file).take(PREFIX.len() as u64).read_to_end(&mut start).map_err(self.at("reading a file in it"))?;
            self.sealed |= is_sealed(&start);
            return Ok(());
        }
        let left = MAX_BYTES.saturating_sub(self.bytes);
        let mut content = Zeroizing::new(Vec::new());
        // One byte more than may be, so that a longer one is noticed and not cut.
        (&mut file).take(left as u64 + 1).read_to_end(&mut content).map_err(self.at("reading a file in it"))?;
        if content.len() > left {
            return Err(VolumeError::TooLarge(self.destination.to_owned()));
        }
        self.bytes += content.len();
        if !is_sealed(&content) {
            return self.push(path, stat, Kind::File(content));
        }
        self.sealed = true;
        if content.len() > MAX_SEALED {
            return Err(VolumeError::TooLarge(self.destination.to_owned()));
        }
        // What is no text is no sealed secret either; said by whoever parses it.
        let text = String::from_utf8_lossy(&content).trim_end_matches(['\n', '\r']).to_owned();
        self.push(path, stat, Kind::Sealed(Zeroizing::new(text)))
    }
}

/// A volume whose secrets were opened, to be written.
pub(super) struct Open {
    volume: Volume,
    contents: Vec<SecretBytes>,
}

impl Open {
    /// Whether a mount of the container's is of this volume.
    pub(super) fn is_of(&self, mount: &oci_spec::runtime::Mount) -> bool {
        mount.source().as_deref() == Some(self.volume.source.as_path()) && *mount.destination() == self.volume.destination
    }

    /// Writes it, and tells the path.
    pub(super) fn write(&self, place: &Path) -> Result<PathBuf, VolumeError> {
        let at = |step| {
            let destination = self.volume.destination.clone();
            move |source| VolumeError::Io { destination, step, source }
        };
        if let Some(parent) = place.parent() {
            // For the agent alone; a container has what is mounted into it.
            DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(at("making the directory of its copy"))?;
        }
        let mut secrets = self.contents.iter();
        for entry in &self.volume.entries {
            let path = if entry.path.as_os_str().is_empty() { place.to_owned() } else { place.join(&entry.path) };
            let content: &[u8] = match &entry.kind {
                Kind::Directory => {
                    DirBuilder::new().mode(0o700).create(&path).map_err(at("making a directory of its copy"))?;
                    continue;
                }
                Kind::Link(target) => {
                    symlink(target, &path).map_err(at("making a link of its copy"))?;
                    continue;
                }
                Kind::File(content) => content,
                // There is one for each: a sealed secret that was not opened is no file.
                Kind::Sealed(_) => secrets.next().ok_or_else(|| at("opening its secrets")(io::ErrorKind::InvalidData.into()))?.expose(),
            };
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(at("making a file of its copy"))?;
            file.write_all(content).map_err(at("writing its copy"))?;
        }
        // Owners and modes from the inside out, so that no directory is closed to us before its contents are done.
        for entry in self.volume.entries.iter().rev().filter(|entry| !matches!(entry.kind, Kind::Link(_))) {
            let path = if entry.path.as_os_str().is_empty() { place.to_owned() } else { place.join(&entry.path) };
            chown(&path, Some(entry.owner.0), Some(entry.owner.1)).map_err(at("setting an owner in its copy"))?;
            fs::set_permissions(&path, Permissions::from_mode(entry.mode)).map_err(at("setting a mode in its copy"))?;
        }
        Ok(place.to_owned())
    }
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
