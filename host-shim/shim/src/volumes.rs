//! What becomes of a container's mounts: nothing is shared with the host, so files are copied into the guest and memory is the guest's own.
//!
//! - file systems of the kernel's (proc, sysfs, tmpfs, …) pass as they are;
//! - `/dev/shm` becomes a tmpfs;
//! - an emptyDir becomes a directory of the guest that the pod's containers share;
//! - any other bind of a file or directory is copied once, link targets in place of links, confined to the directory itself.
//!
//! The sandbox container has no root file system to bind anything into: its binds are dropped.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use kata_cc_agent_protocol::rpc::agent::{CopyFileRequest, Storage};
use kata_cc_agent_protocol::{COPY_FILE_CHUNK, DRIVER_EPHEMERAL, DRIVER_LOCAL, SHARED_DIR};

use nix::fcntl::OFlag;

use crate::agent::Agent;
use crate::error::Error;
use crate::host_file;
use crate::kind::Kind;
use crate::oci::Mount;

/// Where volumes of the pod live in the guest.
const POD_VOLUMES: &str = "/run/kata-containers/sandbox";
/// kubelet's directory name for emptyDirs.
const EMPTY_DIR: &str = "/kubernetes.io~empty-dir/";
/// Files and directories of one mount.
const MAX_ENTRIES: usize = 4096;
/// Bytes of one mount: it ends in the guest's memory.
const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// Levels of directories.
const MAX_DEPTH: usize = 32;

/// Why a mount cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The source.
    #[error("mount {destination}: cannot read {path}: {source}", path = path.display())]
    Read {
        /// Where it was to be.
        destination: String,
        /// What could not be read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither file nor directory.
    #[error("mount {destination}: {path} is a {kind}; a confidential pod shares nothing with its host, so only files and directories can be mounted, as copies", path = path.display())]
    Unsupported {
        /// Where it was to be.
        destination: String,
        /// The source.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// More than fits.
    #[error("mount {destination}: {path} has more than {MAX_ENTRIES} entries, {MAX_BYTES} bytes or {MAX_DEPTH} levels; it is copied into the guest's memory", path = path.display())]
    TooLarge {
        /// Where it was to be.
        destination: String,
        /// The source.
        path: PathBuf,
    },
}

/// What is to be done for a container's mounts, and what the guest is told of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Volumes {
    /// The mounts with sources of the guest.
    pub(crate) mounts: Vec<Mount>,
    /// Volumes the guest makes.
    pub(crate) storages: Vec<LocalVolume>,
    /// What is to be copied.
    pub(crate) copies: Vec<Copy>,
}

/// A volume the guest makes for the pod.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LocalVolume {
    memory: bool,
    path: String,
}

/// One tree to be copied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    destination: String,
    from: PathBuf,
    to: String,
}

impl LocalVolume {
    /// The form the agent takes.
    pub(crate) fn to_wire(&self) -> Storage {
        let (driver, kind) = if self.memory { (DRIVER_EPHEMERAL, "tmpfs") } else { (DRIVER_LOCAL, "local") };
        Storage {
            driver: driver.into(),
            source: kind.into(),
            fstype: kind.into(),
            mount_point: self.path.clone(),
            shared: true,
            ..Default::default()
        }
    }
}

/// Sorts a container's mounts. `unique` yields sixteen hexadecimal digits that no other mount of the pod has.
pub(crate) fn plan(
    kind: &Kind,
    container: &str,
    mounts: &[Mount],
    mut unique: impl FnMut() -> String,
    is_memory: impl Fn(&str) -> bool,
) -> Volumes {
    let mut volumes = Volumes::default();
    for mount in mounts {
        let bind = mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind");
        if !bind {
            volumes.mounts.push(mount.clone());
            continue;
        }
        if *kind == Kind::Sandbox {
            continue;
        }
        if mount.destination == "/dev/shm" {
            let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"].map(str::to_owned).to_vec();
            volumes.mounts.push(Mount { destination: mount.destination.clone(), source: "shm".into(), kind: "tmpfs".into(), options });
            continue;
        }
        let source = if let Some((_, name)) = mount.source.split_once(EMPTY_DIR) {
            // The name is one component of a path of the host's; a subdirectory of it stays one.
            let memory = is_memory(&mount.source);
            let path = format!("{POD_VOLUMES}/{}/{name}", if memory { "ephemeral" } else { "local" });
            if !volumes.storages.iter().any(|volume| volume.path == path) {
                volumes.storages.push(LocalVolume { memory, path: path.clone() });
            }
            path
        } else {
            let name = Path::new(&mount.destination).file_name().and_then(|name| name.to_str()).unwrap_or("root");
            let to = format!("{SHARED_DIR}/{container}-{}-{name}", unique());
            volumes.copies.push(Copy { destination: mount.destination.clone(), from: mount.source.clone().into(), to: to.clone() });
            to
        };
        volumes.mounts.push(Mount { source, ..mount.clone() });
    }
    volumes
}

impl Copy {
    /// Sends the tree to the agent.
    pub(crate) async fn send(&self, agent: &Agent) -> Result<(), Error> {
        let entries = {
            let (from, to, destination) = (self.from.clone(), self.to.clone(), self.destination.clone());
            // Walking a directory of the host's may block.
            let walk = tokio::task::spawn_blocking(move || walk(&from, &to, &destination));
            walk.await.map_err(|error| Error::Guest(format!("copying was interrupted: {error}")))??
        };
        for entry in entries {
            self.send_entry(agent, entry).await?;
        }
        Ok(())
    }

    async fn send_entry(&self, agent: &Agent, entry: Entry) -> Result<(), Error> {
        let mut request = CopyFileRequest {
            path: entry.to,
            file_size: i64::try_from(entry.size).unwrap_or(i64::MAX),
            file_mode: entry.mode,
            dir_mode: libc::S_IFDIR | 0o755,
            uid: i32::try_from(entry.uid).unwrap_or_default(),
            gid: i32::try_from(entry.gid).unwrap_or_default(),
            ..Default::default()
        };
        let Some(path) = entry.from else {
            agent.client().copy_file(agent.context(), &request).await?;
            return Ok(());
        };
        let failed = |source| VolumeError::Read { destination: self.destination.clone(), path: path.clone(), source };
        // The walk's paths are canonical: a link in one was put there since, perhaps by another pod that shares the volume.
        let mut file = host_file::open(&path, OFlag::O_RDONLY).map_err(failed)?;
        let mut sent = 0_u64;
        loop {
            let mut data = Vec::new();
            let room = entry.size.saturating_sub(sent).min(COPY_FILE_CHUNK as u64);
            (&mut file).take(room).read_to_end(&mut data).map_err(failed)?;
            if (data.len() as u64) < room {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the file shrank while it was copied");
                return Err(failed(source).into());
            }
            request.offset = i64::try_from(sent).unwrap_or(i64::MAX);
            sent += room;
            request.data = data;
            agent.client().copy_file(agent.context(), &request).await?;
            if sent >= entry.size {
                return Ok(());
            }
        }
    }
}

/// One file (`from` is some) or directory to make.
#[derive(Debug)]
struct Entry {
    from: Option<PathBuf>,
    to: String,
    size: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

struct Walk<'a> {
    root: PathBuf,
    destination: &'a str,
    entries: Vec<Entry>,
    bytes: u64,
}

fn walk(from: &Path, to: &str, destination: &str) -> Result<Vec<Entry>, VolumeError> {
    let failed = |source| VolumeError::Read { destination: destination.to_owned(), path: from.to_owned(), source };
    let root = fs::canonicalize(from).map_err(failed)?;
    let mut walk = Walk { root: root.clone(), destination, entries: Vec::new(), bytes: 0 };
    walk.add(&root, to, 0)?;
    Ok(walk.entries)
}

impl Walk<'_> {
    fn failed(&self, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
        let (destination, path) = (self.destination.to_owned(), path.to_owned());
        move |source| VolumeError::Read { destination, path, source }
    }

    fn add(&mut self, path: &Path, to: &str, depth: usize) -> Result<(), VolumeError> {
        let metadata = fs::symlink_metadata(path).map_err(self.failed(path))?;
        let size = if metadata.is_file() { metadata.len() } else { 0 };
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > MAX_BYTES || self.entries.len() >= MAX_ENTRIES || depth > MAX_DEPTH {
            return Err(VolumeError::TooLarge { destination: self.destination.to_owned(), path: self.root.clone() });
        }
        if let Some(kind) = unsupported(&metadata) {
            return Err(VolumeError::Unsupported { destination: self.destination.to_owned(), path: path.to_owned(), kind });
        }
        let from = metadata.is_file().then(|| path.to_owned());
        self.entries.push(Entry { from, to: to.to_owned(), size, mode: metadata.mode(), uid: metadata.uid(), gid: metadata.gid() });
        if metadata.is_dir() {
            self.add_children(path, to, depth)?;
        }
        Ok(())
    }

    fn add_children(&mut self, dir: &Path, to: &str, depth: usize) -> Result<(), VolumeError> {
        for child in fs::read_dir(dir).map_err(self.failed(dir))? {
            let child = child.map_err(self.failed(dir))?;
            let name = child.file_name();
            let Some(name) = name.to_str() else { continue };
            // kubelet keeps a projected volume's versions under such names, behind links that are followed below.
            if name.starts_with("..") {
                continue;
            }
            let target = fs::canonicalize(child.path()).map_err(self.failed(&child.path()))?;
            // A link out of the volume would copy files of the host's into the pod.
            if !target.starts_with(&self.root) {
                let source = io::Error::new(io::ErrorKind::PermissionDenied, "it links out of the volume");
                return Err(self.failed(&child.path())(source));
            }
            self.add(&target, &format!("{to}/{name}"), depth + 1)?;
        }
        Ok(())
    }
}

fn unsupported(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_socket() {
        Some("socket")
    } else if kind.is_block_device() {
        Some("block device")
    } else if kind.is_char_device() {
        Some("character device")
    } else if kind.is_fifo() {
        Some("named pipe")
    } else {
        None
    }
}

/// Whether a directory of the host's is memory (an emptyDir with `medium: Memory`).
pub(crate) fn is_tmpfs(path: &str) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|statfs| statfs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

/// Sixteen random hexadecimal digits.
pub(crate) fn random_hex() -> io::Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex::encode(bytes))
}

/// The lines of a container's `/etc/resolv.conf`, for the guest's own resolver.
pub(crate) fn resolver_lines(mounts: &[Mount]) -> Vec<String> {
    /// A resolv.conf has a handful of lines.
    const MAX: u64 = 64 * 1024;
    let Some(mount) = mounts.iter().find(|mount| mount.destination == "/etc/resolv.conf") else { return Vec::new() };
    let mut text = String::new();
    let read = File::open(&mount.source).and_then(|file| file.take(MAX).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(destination: &str, source: &str) -> Mount {
        Mount { destination: destination.into(), source: source.into(), kind: "bind".into(), options: vec!["rbind".into(), "ro".into()] }
    }

    fn planned(kind: &Kind, mounts: &[Mount]) -> Volumes {
        plan(kind, "c1", mounts, || "0123456789abcdef".into(), |path| path.ends_with("memory"))
    }

    #[test]
    fn sorts_mounts_by_what_can_be_had_in_the_guest() {
        let proc = Mount { destination: "/proc".into(), source: "proc".into(), kind: "proc".into(), options: Vec::new() };
        let empty_dir = bind("/cache", "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache");
        let memory = bind("/fast", "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/memory");
        let mounts = [proc.clone(), bind("/etc/hosts", "/host/hosts"), bind("/dev/shm", "/host/shm"), empty_dir, memory];
        let volumes = planned(&Kind::Single, &mounts);
        assert_eq!(volumes.mounts[0], proc);
        assert_eq!(volumes.mounts[1].source, format!("{SHARED_DIR}/c1-0123456789abcdef-hosts"));
        assert_eq!(volumes.mounts[1].options, ["rbind", "ro"]);
        assert_eq!((volumes.mounts[2].kind.as_str(), volumes.mounts[2].source.as_str()), ("tmpfs", "shm"));
        assert_eq!(volumes.mounts[3].source, "/run/kata-containers/sandbox/local/cache");
        assert_eq!(volumes.mounts[4].source, "/run/kata-containers/sandbox/ephemeral/memory");
        assert_eq!((volumes.copies.len(), volumes.storages.len()), (1, 2));
        assert_eq!(volumes.storages[1].to_wire().driver, DRIVER_EPHEMERAL);
    }

    #[test]
    fn the_sandbox_container_gets_no_binds() {
        let volumes = planned(&Kind::Sandbox, &[bind("/dev/shm", "/host/shm"), bind("/etc/resolv.conf", "/host/resolv.conf")]);
        assert_eq!(volumes, Volumes::default());
    }

    #[test]
    fn walks_projected_volumes_through_their_links_but_not_out_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("..2024/sub")).unwrap();
        fs::write(volume.join("..2024/key"), b"value").unwrap();
        std::os::unix::fs::symlink("..2024", volume.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/key", volume.join("key")).unwrap();
        let entries = walk(&volume, "/guest", "/etc/config").unwrap();
        let names: Vec<_> = entries.iter().map(|entry| (entry.to.as_str(), entry.size)).collect();
        assert_eq!(names, [("/guest", 0), ("/guest/key", 5)]);
        std::os::unix::fs::symlink("/etc/passwd", volume.join("leak")).unwrap();
        assert!(walk(&volume, "/guest", "/etc/config").unwrap_err().to_string().contains("links out of the volume"));
    }

    #[test]
    fn refuses_sockets_and_devices_by_name() {
        let error = walk(Path::new("/dev/null"), "/guest", "/x").unwrap_err().to_string();
        assert!(error.contains("character device") && error.contains("/x"), "{error}");
    }
}
