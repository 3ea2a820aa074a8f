//! The cgroup above those of the lab's pods, made and removed by the lab as the kubelet does it on a node.
//!
//! cgroups are in no namespace, so this is the one thing that the end of the lab's namespaces does not take along.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";
/// Tells the lab inside its namespaces the name that its waiting parent chose.
const NAME: &str = "KATA_CC_LAB_CGROUP";

/// The cgroup, in every hierarchy there is. Dropping it removes it with all that is left in it.
#[derive(Debug)]
pub(crate) struct PodsCgroup {
    name: String,
    dirs: Vec<PathBuf>,
}

impl PodsCgroup {
    /// Makes it, under a name of this process.
    pub(crate) fn make() -> Result<Self> {
        let mut cgroup = PodsCgroup { name: format!("kata-cc-lab-{}", std::process::id()), dirs: Vec::new() };
        for hierarchy in hierarchies(Path::new(ROOT))? {
            let dir = hierarchy.join(&cgroup.name);
            fs::create_dir(&dir).with_context(|| format!("cannot make the cgroup {}", dir.display()))?;
            cgroup.dirs.push(dir);
        }
        Ok(cgroup)
    }

    /// The environment variable that [`parent`] reads.
    pub(crate) fn variable(&self) -> (&'static str, &str) {
        (NAME, &self.name)
    }
}

/// What the kubelet calls the pod's cgroup parent.
pub(crate) fn parent() -> String {
    std::env::var(NAME).map(|name| format!("/{name}")).unwrap_or_default()
}

impl Drop for PodsCgroup {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // The kernel keeps a cgroup busy until the last process in it is reaped, and has no event for that.
            let start = Instant::now();
            while remove(dir).is_err() && start.elapsed() < Duration::from_secs(3) {
                std::thread::sleep(Duration::from_millis(20));
            }
            if dir.exists() {
                eprintln!("warning: cannot remove the cgroup {}", dir.display());
            }
        }
    }
}

/// cgroup v2 has one hierarchy, version 1 one for each directory; several names for one are links.
fn hierarchies(root: &Path) -> Result<Vec<PathBuf>> {
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn remove(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}
