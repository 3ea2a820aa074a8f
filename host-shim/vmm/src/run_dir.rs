//! One directory per running pod, readable by root alone, that holds every file and socket of its machine.
//!
//! It also records the processes started for the pod, so that another process can end them after a crash of the shim: by number *and* start
//! time, because numbers are reused. **Invariant:** removing it, and ending what it records, can be repeated at any time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::request::SandboxId;

const PROCESSES: &str = "processes";
/// A record is some forty bytes, a pod has three processes.
const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// A pod's directory.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
}

fn context(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
}

impl RunDir {
    /// Makes the directory. What a crashed predecessor of the same pod left there is ended and removed first.
    pub fn create(base: &Path, id: &SandboxId) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(base).map_err(|error| context("create", base, &error))?;
        let metadata = fs::symlink_metadata(base).map_err(|error| context("inspect", base, &error))?;
        // A directory somebody else prepared would let them put sockets and files under our names.
        if !metadata.is_dir() || metadata.uid() != nix::unistd::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
            return Err(io::Error::other(format!("{}: expected a directory of this user that nobody else can write to", base.display())));
        }
        Self::remove_leftovers(base, id)?;
        let path = base.join(id.as_str());
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| context("create", &path, &error))?;
        Ok(Self { path })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file of the pod, 0600, which must not exist yet.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<PathBuf> {
        let path = self.join(name);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(|error| context("create", &path, &error))?;
        file.write_all(content).map_err(|error| context("write", &path, &error))?;
        Ok(path)
    }

    /// Makes a symbolic link to something outside that is not the pod's and stays when the directory goes. The name must not exist yet.
    pub fn link(&self, link: &Path, target: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(target, link).map_err(|error| context("create", link, &error))
    }

    /// Records a process started for the pod.
    pub fn record_process(&self, name: &str, pid: u32) -> io::Result<()> {
        let Some(start) = start_time(pid) else { return Ok(()) };
        let path = self.join(PROCESSES);
        let mut file =
            OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(|error| context("open", &path, &error))?;
        file.write_all(format!("{pid} {start} {name}\n").as_bytes()).map_err(|error| context("write", &path, &error))
    }

    /// Removes the directory and everything in it.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.path)
    }

    /// Ends the recorded processes of a pod whose shim is gone, and removes its directory. Nothing there is success.
    pub fn remove_leftovers(base: &Path, id: &SandboxId) -> io::Result<()> {
        let path = base.join(id.as_str());
        let mut text = String::new();
        match File::open(path.join(PROCESSES)) {
            Ok(file) => {
                file.take(MAX_RECORD_BYTES).read_to_string(&mut text).map_err(|error| context("read", &path, &error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(context("open the process record in", &path, &error)),
        }
        for (pid, start) in text.lines().filter_map(parse_record) {
            if start_time(pid) == Some(start)
                && let Ok(pid) = i32::try_from(pid)
            {
                // Gone in the meantime is as good.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        remove_tree(&path)
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(context("remove", path, &error)),
        _ => Ok(()),
    }
}

fn parse_record(line: &str) -> Option<(u32, u64)> {
    let mut words = line.split(' ');
    Some((words.next()?.parse().ok().filter(|&pid| pid > 1)?, words.next()?.parse().ok()?))
}

/// When a process was started, in clock ticks since boot (proc(5), field 22 of `stat`).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything, so count from the last parenthesis.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Stdio};

    fn id() -> SandboxId {
        "pod-1".parse().unwrap()
    }

    #[test]
    fn makes_private_directories_and_removes_them_repeatedly() {
        let base = tempfile::tempdir().unwrap();
        let dir = RunDir::create(&base.path().join("run"), &id()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
        dir.write("a", b"b").unwrap();
        assert!(dir.write("a", b"b").is_err());
        let outside = base.path().join("outside");
        fs::write(&outside, "stays").unwrap();
        dir.link(&dir.join("link"), &outside).unwrap();
        assert!(dir.link(&dir.join("link"), &outside).is_err());
        assert_eq!(fs::read(dir.join("link")).unwrap(), b"stays");
        dir.remove().unwrap();
        assert_eq!(fs::read(&outside).unwrap(), b"stays");
        dir.remove().unwrap();
        RunDir::remove_leftovers(&base.path().join("run"), &id()).unwrap();
    }

    #[test]
    fn ends_recorded_processes_of_a_crashed_shim_but_not_their_successors() {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let dir = RunDir::create(base.path(), &id()).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let mut bystander = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        dir.record_process("qemu", child.id()).unwrap();
        let reused = format!("{} 1 qemu\n", bystander.id());
        OpenOptions::new().append(true).open(dir.join(PROCESSES)).unwrap().write_all(reused.as_bytes()).unwrap();
        RunDir::remove_leftovers(base.path(), &id()).unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(bystander.try_wait().unwrap().is_none());
        drop(bystander.stdin.take());
        bystander.wait().unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn ac_67_refuses_a_directory_others_can_write_to() {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(RunDir::create(base.path(), &id()).is_err());
        let link = base.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(RunDir::create(&link, &id()).is_err());
    }
}
