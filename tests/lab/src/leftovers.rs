//! What a pod must not leave behind: processes, mounts, network devices and namespaces, cgroups, files.
//!
//! A [`Baseline`] is taken when the lab's services run and no pod does; [`Baseline::leftovers`] names whatever is there
//! later and was not there then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::process::run;

/// The state of the world without a pod.
#[derive(Debug)]
pub(crate) struct Baseline {
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    processes: BTreeMap<u32, String>,
    files: BTreeSet<String>,
}

impl Baseline {
    /// Looks now.
    pub(crate) fn take() -> Result<Self> {
        Ok(Baseline { mounts: mounts()?, links: links()?, cgroups: cgroups(), processes: processes()?, files: files() })
    }

    /// What is there now and was not then, each as one line. `allowed` are process ids of services restarted meanwhile.
    ///
    /// Waits up to 5 s for things that are on their way out, since containerd answers RemovePodSandbox before its shim has ended.
    pub(crate) fn leftovers(&self, allowed: &[u32]) -> Result<Vec<String>> {
        let start = Instant::now();
        loop {
            let found = self.compare(allowed)?;
            if found.is_empty() || start.elapsed() > Duration::from_secs(5) {
                return Ok(found);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn compare(&self, allowed: &[u32]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        found.extend(mounts()?.difference(&self.mounts).map(|m| format!("mount {m}")));
        found.extend(links()?.difference(&self.links).map(|l| format!("network device {l}")));
        found.extend(cgroups().difference(&self.cgroups).map(|c| format!("cgroup {c}")));
        found.extend(files().difference(&self.files).map(|f| format!("file {f}")));
        for (pid, command) in processes()? {
            if !self.processes.contains_key(&pid) && !allowed.contains(&pid) {
                found.push(format!("process {pid} {command}"));
            }
        }
        Ok(found)
    }
}

fn mounts() -> Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/self/mounts")?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect())
}

fn links() -> Result<BTreeSet<String>> {
    let text = run("ip", ["-brief", "link"])?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Programs of the lab's own, which come and go with it, are not a pod's.
fn processes() -> Result<BTreeMap<u32, String>> {
    let own = std::process::id();
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)).and_then(|p| p.parse::<u32>().ok());
        if command.is_empty() || pid == own || parent == Some(own) && command.starts_with("ip ") {
            continue;
        }
        all.insert(pid, command.trim().to_owned());
    }
    Ok(all)
}

fn cgroups() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    walk(Path::new("/sys/fs/cgroup"), 3, &mut |path, is_dir| {
        // containerd's name for pods without a parent, and ours; the machine's other cgroups come and go as they like.
        let name = path.display().to_string();
        if is_dir && (name.contains("k8s.io") || name.contains("kata")) {
            found.insert(name);
        }
    });
    found
}

fn files() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in ["/run/kata-cc", "/run/netns", "/run/kata-containers", "/run/vc", "/run/containerd/s"] {
        walk(Path::new(root), 4, &mut |path, _| {
            found.insert(path.display().to_string());
        });
    }
    found
}

fn walk(root: &Path, depth: usize, see: &mut dyn FnMut(&Path, bool)) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        see(&entry.path(), is_dir);
        if is_dir && depth > 1 {
            walk(&entry.path(), depth - 1, see);
        }
    }
}
