//! Kernel parameters of the pod, as its sandbox container asks for them.
//!
//! Only those that Kubernetes calls safe are taken, each by its name, and the guest is their namespace. Anything else could change
//! what the measured guest is (`kernel.core_pattern` runs programs), or who reaches into it: `net.ipv4.conf.*.route_localnet` lets
//! the network talk to 127.0.0.1, where the pod's secrets are served. So there are no prefixes here, and nothing of `net.*.conf`.
//!
//! The list is the one of the policy template (`policy/src/template.rego`, `pod_sysctls`); a policy can narrow it and not widen it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Parameters by name: the safe set of Kubernetes 1.32.
const NAMES: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Longest value: that of a list of ports.
const MAX_VALUE: usize = 256;

/// Why a parameter was not set.
#[derive(Debug, Error)]
pub(crate) enum SysctlError {
    /// Not one a pod may set.
    #[error("sysctl {0:?} is not one a pod may set: expected one that Kubernetes calls safe ({list})", list = NAMES.join(", "))]
    Refused(String),
    /// Not a value of one.
    #[error("sysctl {0:?}: expected numbers, at most {MAX_VALUE} characters of them")]
    Value(String),
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
    let files: Vec<_> = parameters.iter().map(|(name, value)| Ok((name, file(name, value)?, value))).collect::<Result<_, SysctlError>>()?;
    for (name, file, value) in files {
        fs::write(file, value).map_err(|source| SysctlError::Write { name: name.clone(), source })?;
    }
    Ok(())
}

fn file(name: &str, value: &str) -> Result<PathBuf, SysctlError> {
    if !NAMES.contains(&name) {
        return Err(SysctlError::Refused(name.to_owned()));
    }
    let plain = value.bytes().all(|b| b.is_ascii_digit() || b" \t,-".contains(&b));
    if value.is_empty() || value.len() > MAX_VALUE || !plain {
        return Err(SysctlError::Value(name.to_owned()));
    }
    Ok(name.split('.').fold(Path::new("/proc/sys").to_owned(), |path, part| path.join(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_a_pod_have_files() {
        let port = file("net.ipv4.ip_unprivileged_port_start", "0").unwrap();
        assert_eq!(port, Path::new("/proc/sys/net/ipv4/ip_unprivileged_port_start"));
        assert!(file("net.ipv4.ping_group_range", "0 2147483647").is_ok());
    }

    #[test]
    fn refuses_parameters_of_the_guest_and_names_that_are_paths() {
        for name in ["kernel.core_pattern", "vm.swappiness", "net/../kernel/core_pattern", "net..x", "net.", "net.a/b", ""] {
            assert!(matches!(file(name, "1"), Err(SysctlError::Refused(_))), "{name}");
        }
    }

    #[test]
    fn refuses_parameters_that_open_the_loopback_to_the_network() {
        // AC-31: 127.0.0.1:8006 would answer the host.
        for name in [
            "net.ipv4.conf.all.route_localnet",
            "net.ipv4.conf.default.route_localnet",
            "net.ipv4.conf.eth0.route_localnet",
            "net.ipv4.conf.all.accept_local",
            "net.ipv4.ip_forward",
            "net.ipv6.conf.all.forwarding",
            "net.core.somaxconn",
        ] {
            assert!(matches!(file(name, "1"), Err(SysctlError::Refused(_))), "{name}");
        }
    }

    #[test]
    fn the_list_is_the_policy_templates() {
        let template = include_str!("../../policy/src/template.rego");
        let (_, rest) = template.split_once("pod_sysctls := {").unwrap();
        let listed: Vec<&str> = rest.split_once('}').unwrap().0.split('"').skip(1).step_by(2).collect();
        assert_eq!(listed, NAMES);
    }

    #[test]
    fn refuses_values_that_are_not_numbers() {
        for value in ["", "1\n2", "x", &"1".repeat(MAX_VALUE + 1)] {
            assert!(matches!(file("net.ipv4.tcp_syncookies", value), Err(SysctlError::Value(_))), "{value:?}");
        }
    }
}
