//! The guest's control group hierarchy (version 2 only): the agent in a leaf of its own, containers beneath [`CONTAINERS`].

use std::fs;
use std::io;
use std::path::Path;

/// Where the hierarchy is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// The group that holds one group per container, relative to [`ROOT`].
pub(crate) const CONTAINERS: &str = "kata-cc";

/// Hands every controller down to the containers' group. The agent stays in the root group, which is exempt from limits.
///
/// # Errors
/// When the hierarchy is not there or cannot be written.
pub(crate) fn prepare(root: &Path) -> io::Result<()> {
    enable_all(root)?;
    let containers = root.join(CONTAINERS);
    fs::create_dir_all(&containers)?;
    enable_all(&containers)
}

/// Enables for the children of `group` every controller it has.
///
/// In one write where possible: each one waits for all processors to have left the kernel once, which is most of the time it
/// takes. One by one only if that is refused, so that a controller that cannot be enabled stops no other.
fn enable_all(group: &Path) -> io::Result<()> {
    let controllers = fs::read_to_string(group.join("cgroup.controllers"))?;
    let control = group.join("cgroup.subtree_control");
    let all: Vec<String> = controllers.split_ascii_whitespace().map(|controller| format!("+{controller}")).collect();
    if fs::write(&control, all.join(" ")).is_ok() {
        return Ok(());
    }
    for controller in all {
        if let Err(error) = fs::write(&control, &controller) {
            tracing::warn!(controller, %error, "controller not enabled");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_is_handed_down() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(CONTAINERS)).unwrap();
        for group in [root.path().to_owned(), root.path().join(CONTAINERS)] {
            fs::write(group.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        }
        prepare(root.path()).unwrap();
        for group in [root.path().to_owned(), root.path().join(CONTAINERS)] {
            let enabled = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap();
            assert_eq!(enabled, "+cpu +memory +pids");
        }
    }
}
