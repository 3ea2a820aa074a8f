//! Kernel parameters of the pod, as its sandbox container asks for them.
//!
//! Only those that Kubernetes knows as namespaced are taken, and the guest is the namespace. Anything else could change what the
//! measured guest is (`kernel.core_pattern` runs programs).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Parameters by name, and by prefix.
const NAMES: [&str; 4] = ["kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni"];
const PREFIXES: [&str; 4] = ["net.", "fs.mqueue.", "kernel.msg", "kernel.shm_rmid_forced"];

/// Why a parameter was not set.
#[derive(Debug, Error)]
pub(crate) enum SysctlError {
    /// Not one a pod may set.
    #[error("sysctl {0:?} is not one of a pod: expected net.*, fs.mqueue.*, kernel.msg*, kernel.sem or kernel.shm*")]
    Refused(String),
    /// The kernel refused.
    #[error("sysctl {name:?}: {source}")]
    Write {
        /// Which.
        name: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Sets parameters. None is set unless all of them may be.
///
/// # Errors
/// When one may not be set, or the kernel refuses.
pub(crate) fn apply(parameters: &BTreeMap<String, String>) -> Result<(), SysctlError> {
    let files: Vec<_> = parameters.iter().map(|(name, value)| Ok((name, file(name)?, value))).collect::<Result<_, SysctlError>>()?;
    for (name, file, value) in files {
        fs::write(file, value).map_err(|source| SysctlError::Write { name: name.clone(), source })?;
    }
    Ok(())
}

fn file(name: &str) -> Result<PathBuf, SysctlError> {
    let refused = || SysctlError::Refused(name.to_owned());
    let known = NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let plain = name.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)));
    if !known || !plain {
        return Err(refused());
    }
    Ok(name.split('.').fold(Path::new("/proc/sys").to_owned(), |path, part| path.join(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_a_pod_have_files() {
        assert_eq!(file("net.ipv4.ip_unprivileged_port_start").unwrap(), Path::new("/proc/sys/net/ipv4/ip_unprivileged_port_start"));
    }

    #[test]
    fn refuses_parameters_of_the_guest_and_names_that_are_paths() {
        for name in ["kernel.core_pattern", "vm.swappiness", "net/../kernel/core_pattern", "net..x", "net.", "net.a/b", ""] {
            assert!(matches!(file(name), Err(SysctlError::Refused(_))), "{name}");
        }
    }
}
