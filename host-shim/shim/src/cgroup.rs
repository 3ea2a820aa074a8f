//! The pod's cgroup on the host: the shim moves into it, so that the machine and its helpers are born there and counted as the pod's.
//!
//! The limits are those Kubernetes put on the pod's own cgroup above; none are set here. Both cgroup versions; a path in systemd's form is expanded to
//! the directories systemd would use. Not being able to do this is a warning: it concerns the node's accounting, never the guest's protection.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

const ROOT: &str = "/sys/fs/cgroup";
/// Version 1: the hierarchies that count or limit something here. `cpuset` is left out: an empty one cannot be joined.
const V1_CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];

/// How often to look whether a crashed shim's cgroup is empty: 3 s together.
const REMOVE_TRIES: u32 = 150;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// The cgroup of a running pod.
#[derive(Debug, Default)]
pub(crate) struct PodCgroup {
    /// Directories made or joined, with where we came from.
    joined: Vec<(PathBuf, PathBuf)>,
}

impl PodCgroup {
    /// Moves this process into the cgroup of a specification's `cgroupsPath`.
    pub(crate) fn join(cgroups_path: &str) -> Self {
        let mut cgroup = Self::default();
        let Some(relative) = relative(cgroups_path) else {
            if !cgroups_path.is_empty() {
                tracing::warn!(path = cgroups_path, "cgroup path is not understood; the machine is not counted as the pod's");
            }
            return cgroup;
        };
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        for (root, from) in hierarchies(Path::new(ROOT), &own) {
            let dir = root.join(&relative);
            match enter(&dir) {
                Ok(()) => cgroup.joined.push((dir, from)),
                Err(error) => tracing::warn!(%error, dir = %dir.display(), "cannot join the pod's cgroup"),
            }
        }
        cgroup
    }

    /// Moves this process back to where it came from and removes the cgroup. May be repeated.
    pub(crate) fn leave(&self) {
        for (dir, from) in &self.joined {
            // Gone with the pod's own cgroup, or not empty yet because somebody else put something there: theirs to remove.
            let _ = enter(from);
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Removes the cgroup a crashed shim left.
///
/// Its processes have been killed by then, but the kernel keeps a cgroup busy until they are reaped, and version 1 has no event for it: so this looks
/// again for a while, off every pod's start path.
pub(crate) async fn remove(cgroups_path: &str) {
    let Some(relative) = relative(cgroups_path) else { return };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for (root, _) in hierarchies(Path::new(ROOT), &own) {
        let dir = root.join(&relative);
        for _ in 0..REMOVE_TRIES {
            match fs::remove_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => tokio::time::sleep(REMOVE_PAUSE).await,
                _ => break,
            }
        }
    }
}

fn enter(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("cgroup.procs"), std::process::id().to_string())
}

/// Each hierarchy's root, and the directory this process is in.
fn hierarchies(root: &Path, own: &str) -> Vec<(PathBuf, PathBuf)> {
    // hierarchy:controllers:path, see cgroups(7)
    let lines = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        Some((fields.next()?, fields.next()?, fields.next()?.trim_start_matches('/')))
    });
    if root.join("cgroup.controllers").exists() {
        return lines.filter(|(number, ..)| *number == "0").map(|(_, _, path)| (root.to_owned(), root.join(path))).collect();
    }
    let mut found: Vec<(PathBuf, PathBuf)> = Vec::new();
    for (_, controllers, path) in lines {
        let Some(controller) = controllers.split(',').find(|controller| V1_CONTROLLERS.contains(controller)) else { continue };
        // `cpu` and `cpuacct` are usually one hierarchy under several names.
        if let Ok(hierarchy) = fs::canonicalize(root.join(controller)) {
            found.push((hierarchy.clone(), hierarchy.join(path)));
        }
    }
    found
}

/// The directory of a `cgroupsPath` beneath a hierarchy's root; `None` when it is empty or not a plain path.
fn relative(cgroups_path: &str) -> Option<PathBuf> {
    let parts: Vec<_> = cgroups_path.split(':').collect();
    let path = match parts.as_slice() {
        [path] => PathBuf::from(path.trim_start_matches('/')),
        [_, prefix, name] if prefix.contains('/') || name.contains('/') => return None,
        [slice, prefix, name] => {
            slice_path(slice)?.join(if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") })
        }
        _ => return None,
    };
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    (plain && path.components().next().is_some()).then_some(path)
}

/// `a-b.slice` is in `a.slice/a-b.slice`, see systemd.slice(5).
fn slice_path(slice: &str) -> Option<PathBuf> {
    let stem = slice.strip_suffix(".slice")?;
    let mut path = PathBuf::new();
    let mut name = String::new();
    for part in stem.split('-') {
        if part.is_empty() {
            return None;
        }
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(part);
        path.push(format!("{name}.slice"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_directory_of_a_cgroup_path() {
        let table = [
            ("/kubepods/burstable/podu/c", Some("kubepods/burstable/podu/c")),
            (
                "kubepods-burstable-podu.slice:cri-containerd:c",
                Some("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podu.slice/cri-containerd-c.scope"),
            ),
            ("system.slice::c", Some("system.slice/c.scope")),
            ("", None),
            ("/", None),
            ("/a/../b", None),
            ("a--b.slice:p:c", None),
            ("a:b", None),
            ("x.slice:p:../c", None),
        ];
        for (path, expected) in table {
            assert_eq!(relative(path), expected.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn finds_the_hierarchies_of_both_versions() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("memory")).unwrap();
        let own = "5:cpuset:/x\n4:memory:/system.slice\n0::/unified\n";
        let root_path = fs::canonicalize(root.path()).unwrap();
        assert_eq!(hierarchies(&root_path, own), [(root_path.join("memory"), root_path.join("memory/system.slice"))]);
        fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(hierarchies(&root_path, own), [(root_path.clone(), root_path.join("unified"))]);
    }
}
