//! The OCI specification as the host sent it, made into one for this guest.
//!
//! The policy has seen what the host sent and allowed it. What is decided here is what no policy can widen: the root file system
//! is the one the agent mounted, sources of mounts lie where the agent put files, the pod's namespaces are the guest's, and
//! there are no hooks. What names something of the host that does not exist in the guest (security profiles of its kernel
//! modules, CPU numbers, device rules) is left out; where leaving it out would mean less than was asked for, the container is
//! refused instead.
//!
//! `CAP_MKNOD` is always taken away: device rules of control groups are not enforced in this guest, and with that capability a
//! container could make itself the device that asks the TEE for evidence (AC-35). Nodes a container needs are made for it.
//!
//! Field meanings: OCI runtime specification 1.2, `config.md` and `config-linux.md`.

use kata_cc_agent_protocol::rpc::oci;
use oci_spec::runtime::{Process, Spec};
use serde_json::{Map, Value, json};
use std::path::Path;
use thiserror::Error;

use crate::init::cgroup::CONTAINERS;

/// Version of the specification written for libcontainer.
const OCI_VERSION: &str = "1.2.0";

/// A capability no container gets.
const WITHHELD: &str = "CAP_MKNOD";

/// Where the source of a bind mount may lie. Storages and copied files end up there, and nothing else does.
pub(crate) const SOURCE_DIRS: [&str; 2] = [kata_cc_agent_protocol::SHARED_DIR, SANDBOX_STORAGE_DIR];

/// Where storages shared by the containers of the pod are mounted.
pub(crate) const SANDBOX_STORAGE_DIR: &str = "/run/kata-containers/sandbox";

/// Character devices a container may ask for, by path and number. Those every container has are made anyway.
const DEVICES: [(&str, i64, i64); 8] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
    ("/dev/fuse", 10, 229),
    ("/dev/net/tun", 10, 200),
];

/// Paths that may be hidden from a container, all of them the kernel's: what containerd and the kubelet hide by default.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// One for each processor: `/sys/devices/system/cpu/cpu<N>/thermal_throttle`.
const MASKED_OF_CPU: (&str, &str) = ("/sys/devices/system/cpu/cpu", "/thermal_throttle");

/// Paths that may be made read-only, likewise.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where Kubernetes has a container leave its last words, which the host may read.
pub(crate) const TERMINATION_LOG: &str = "/dev/termination-log";

/// How the names of the copied files for it end.
const TERMINATION_LOG_NAME: &str = "-termination-log";

/// Why a specification was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum SpecError {
    /// A part that must be there.
    #[error("OCI specification: {0} is missing")]
    Missing(&'static str),
    /// Something this guest does not do.
    #[error("OCI specification: {what} is not supported in a confidential guest ({why})")]
    Unsupported {
        /// What.
        what: String,
        /// Why, or what to do instead.
        why: &'static str,
    },
    /// A mount that does not fit.
    #[error("OCI specification: mount at {destination:?}: {why}")]
    Mount {
        /// Where it should go.
        destination: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not a specification. The values are left out of the message.
    #[error("OCI specification: a field has a value that libcontainer does not know")]
    Malformed,
}

/// Where the parts of a container are in the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The container's name.
    pub(crate) id: &'a str,
    /// Its root file system, mounted.
    pub(crate) rootfs: &'a Path,
}

fn unsupported(what: impl Into<String>, why: &'static str) -> SpecError {
    SpecError::Unsupported { what: what.into(), why }
}

/// Makes a specification for this guest.
///
/// # Errors
/// When it asks for something a container here cannot have.
pub(crate) fn adapt(spec: &oci::Spec, place: Place<'_>) -> Result<Spec, SpecError> {
    let process = spec.Process.as_ref().ok_or(SpecError::Missing("process"))?;
    let linux = spec.Linux.as_ref().ok_or(SpecError::Missing("linux"))?;
    refuse_hooks(spec)?;
    // Shallow ones first, as container runtimes do by themselves: one over the directory that another is in would hide that other, and
    // the container would not have what its policy demands. Those of a depth stay in their order.
    let mut order: Vec<&oci::Mount> = spec.Mounts.iter().collect();
    order.sort_by_key(|mount| mount.destination.split('/').filter(|name| !name.is_empty()).count());
    let mounts = order.into_iter().map(mount).collect::<Result<Vec<_>, _>>()?;
    let value = json!({
        "ociVersion": OCI_VERSION,
        "process": process_json(process)?,
        "root": { "path": place.rootfs, "readonly": spec.Root.Readonly },
        "mounts": mounts,
        "linux": linux_json(linux, place.id)?,
    });
    serde_json::from_value(value).map_err(|_| SpecError::Malformed)
}

/// Makes the process of an `exec` for this guest.
///
/// # Errors
/// When it asks for something a process here cannot have.
pub(crate) fn adapt_process(process: &oci::Process) -> Result<Process, SpecError> {
    serde_json::from_value(process_json(process)?).map_err(|_| SpecError::Malformed)
}

fn refuse_hooks(spec: &oci::Spec) -> Result<(), SpecError> {
    let hooks = &spec.Hooks;
    let lists = [&hooks.Prestart, &hooks.Poststart, &hooks.Poststop, &hooks.CreateRuntime, &hooks.CreateContainer, &hooks.StartContainer];
    if lists.iter().any(|list| !list.is_empty()) {
        return Err(unsupported("hooks", "they would run programs outside of the container"));
    }
    Ok(())
}

fn process_json(process: &oci::Process) -> Result<Value, SpecError> {
    if process.Args.is_empty() {
        return Err(SpecError::Missing("process.args"));
    }
    if !process.Cwd.starts_with('/') {
        return Err(unsupported("a relative working directory", "give an absolute one"));
    }
    if process.Env.iter().any(|variable| is_sealed(variable)) {
        // They are opened before this (see `crate::sealed`). Never start with the sealed text: the program would take it for the secret.
        return Err(unsupported("a sealed secret in the environment that was not opened", "this is a fault of the agent's"));
    }
    let user = &process.User;
    let mut value = json!({
        "terminal": process.Terminal,
        "user": { "uid": user.UID, "gid": user.GID, "additionalGids": user.AdditionalGids },
        "args": process.Args,
        "env": process.Env,
        "cwd": process.Cwd,
        "noNewPrivileges": process.NoNewPrivileges,
        "oomScoreAdj": process.OOMScoreAdj,
        "rlimits": process.Rlimits.iter().map(|limit| json!({
            "type": limit.Type, "hard": limit.Hard, "soft": limit.Soft,
        })).collect::<Vec<_>>(),
    });
    if let Some(caps) = process.Capabilities.as_ref() {
        let list = |caps: &[String]| -> Vec<String> { caps.iter().filter(|cap| *cap != WITHHELD).cloned().collect() };
        value["capabilities"] = json!({
            "bounding": list(&caps.Bounding),
            "effective": list(&caps.Effective),
            "inheritable": list(&caps.Inheritable),
            "permitted": list(&caps.Permitted),
            "ambient": list(&caps.Ambient),
        });
    } else {
        // No list means none, not all.
        value["capabilities"] = json!({
            "bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": [],
        });
    }
    if process.Terminal
        && let Some(size) = process.ConsoleSize.as_ref()
    {
        value["consoleSize"] = json!({ "height": size.Height, "width": size.Width });
    }
    Ok(value)
}

fn is_sealed(variable: &str) -> bool {
    variable.split_once('=').is_some_and(|(_, value)| value.starts_with("sealed."))
}

fn mount(mount: &oci::Mount) -> Result<Value, SpecError> {
    let refuse = |why| Err(SpecError::Mount { destination: mount.destination.clone(), why });
    if !is_plain(&mount.destination) || !is_beneath(&mount.destination, "/") {
        return refuse("expected an absolute path other than the root, without `.` and `..`");
    }
    let has = |option: &str| mount.options.iter().any(|found| found == option);
    if mount.options.iter().any(|option| option.contains("idmap")) {
        return refuse("mounts with mapped ids are not supported");
    }
    if (has("ro") || has("rro")) && ["rw", "rrw", "defaults"].into_iter().any(has) {
        return refuse("its options ask for read-only and for writable; whichever is last would count, whatever the policy looked for");
    }
    let source = match mount.type_.as_str() {
        "bind" | "" => &mount.source,
        _ if has("bind") || has("rbind") => &mount.source,
        "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" | "cgroup" => {
            return Ok(json!({
                "destination": mount.destination,
                "type": mount.type_,
                "source": mount.type_,
                "options": mount.options,
            }));
        }
        "cgroup2" => {
            return Ok(json!({
                "destination": mount.destination, "type": "cgroup", "source": "cgroup", "options": mount.options,
            }));
        }
        _ => return refuse("expected bind, proc, sysfs, tmpfs, devpts, mqueue or cgroup as its type"),
    };
    if (mount.destination == TERMINATION_LOG) != is_termination_log(source) {
        return refuse("a termination log is a copied file named …-termination-log, and such a file is mounted as nothing else");
    }
    if !is_source(source) {
        return refuse("its source must be a file or directory that was copied as a whole, or one of the pod's storages");
    }
    Ok(json!({
        "destination": mount.destination,
        "type": "bind",
        "source": source,
        "options": mount.options,
    }))
}

/// Whether a path is that of something copied in, or of a storage, and of nothing in one: what is in it belongs to the containers that
/// have it, and may be a link by the time it is mounted.
fn is_source(path: &str) -> bool {
    let copied = Path::new(path).strip_prefix(kata_cc_agent_protocol::SHARED_DIR).is_ok_and(|rest| rest.components().count() == 1);
    is_plain(path) && (copied || crate::storage::is_place(path))
}

/// Whether a path is that of a file for last words, by its name. The host reads what is in it back, so it must be no container's volume.
pub(crate) fn is_termination_log(path: &str) -> bool {
    let Ok(rest) = Path::new(path).strip_prefix(kata_cc_agent_protocol::SHARED_DIR) else {
        return false;
    };
    let mut names = rest.components();
    names.next().is_some_and(|name| name.as_os_str().as_encoded_bytes().ends_with(TERMINATION_LOG_NAME.as_bytes()))
        && names.next().is_none()
}

/// Whether a path is absolute and means what it says.
pub(crate) fn is_plain(path: &str) -> bool {
    // Not by `Path::components`, which drops `.` in silence.
    path.starts_with('/') && !path.contains('\0') && path.split('/').all(|part| part != "." && part != "..")
}

/// Whether a plain path lies beneath a directory, and is not the directory itself.
pub(crate) fn is_beneath(path: &str, directory: &str) -> bool {
    Path::new(path).strip_prefix(directory).is_ok_and(|rest| rest.components().next().is_some())
}

fn linux_json(linux: &oci::Linux, id: &str) -> Result<Value, SpecError> {
    if !linux.UIDMappings.is_empty() || !linux.GIDMappings.is_empty() {
        return Err(unsupported("a user namespace", "unset hostUsers in the pod"));
    }
    if !linux.Sysctl.is_empty() {
        return Err(unsupported("a container's own sysctl", "sysctls belong to the pod and are taken from its sandbox container"));
    }
    if linux.IntelRdt.is_some() {
        return Err(unsupported("intelRdt", "cache allocation belongs to the host"));
    }
    // Hiding a file of the image's would change what the program finds.
    if let Some(path) = linux.MaskedPaths.iter().find(|path| !may_be_masked(path)) {
        return Err(unsupported(format!("masked path {path:?}"), "only those that container runtimes mask by default can be"));
    }
    if let Some(path) = linux.ReadonlyPaths.iter().find(|path| !READONLY.contains(&path.as_str())) {
        return Err(unsupported(format!("read-only path {path:?}"), "only those that container runtimes set so by default can be"));
    }
    Ok(json!({
        "cgroupsPath": format!("/{CONTAINERS}/{id}"),
        "namespaces": namespaces(&linux.Namespaces)?,
        "devices": devices(&linux.Devices)?,
        "resources": linux.Resources.as_ref().map_or_else(|| json!({}), resources),
        "rootfsPropagation": propagation(&linux.RootfsPropagation)?,
        "maskedPaths": linux.MaskedPaths,
        "readonlyPaths": linux.ReadonlyPaths,
    }))
}

fn may_be_masked(path: &str) -> bool {
    let (before, after) = MASKED_OF_CPU;
    let cpu = path.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    MASKED.contains(&path) || cpu.is_some_and(|n| (1..=4).contains(&n.len()) && n.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Namespaces of the container: its own for processes, mounts and control groups. Network, IPC and host name are the pod's, and
/// the pod is the guest: what the host calls their path is meaningless here.
fn namespaces(asked: &[oci::LinuxNamespace]) -> Result<Value, SpecError> {
    let find = |kind: &str| asked.iter().find(|namespace| namespace.Type == kind);
    for namespace in asked {
        if !["pid", "network", "ipc", "uts", "mount", "cgroup"].contains(&namespace.Type.as_str()) {
            return Err(unsupported(
                format!("a namespace of type {:?}", namespace.Type),
                "expected pid, network, ipc, uts, mount or cgroup",
            ));
        }
    }
    match find("pid") {
        None => return Err(unsupported("the host's process namespace", "unset hostPID in the pod")),
        Some(pid) if !pid.Path.is_empty() => {
            return Err(unsupported("a process namespace shared by containers", "unset shareProcessNamespace in the pod"));
        }
        Some(_) => {}
    }
    Ok(json!([{ "type": "pid" }, { "type": "mount" }, { "type": "cgroup" }]))
}

fn devices(asked: &[oci::LinuxDevice]) -> Result<Value, SpecError> {
    asked
        .iter()
        .map(|device| {
            let known = DEVICES
                .iter()
                .any(|(path, major, minor)| device.Path == *path && device.Major == *major && device.Minor == *minor && device.Type == "c");
            if !known {
                return Err(unsupported(
                    format!("device {:?}", device.Path),
                    "device numbers of the host mean something else in the guest",
                ));
            }
            Ok(json!({
                "path": device.Path, "type": "c", "major": device.Major, "minor": device.Minor,
                "fileMode": device.FileMode, "uid": device.UID, "gid": device.GID,
            }))
        })
        .collect()
}

fn propagation(asked: &str) -> Result<&'static str, SpecError> {
    match asked {
        "" | "slave" | "rslave" => Ok("slave"),
        "private" | "rprivate" => Ok("private"),
        _ => Err(unsupported("mount propagation out of the container", "set mountPropagation to None or HostToContainer")),
    }
}

/// Resources. Protocol buffers cannot tell zero from absent; zero is taken for absent, as the kernel's default is meant by it.
/// CPU numbers and device rules are the host's and left out.
fn resources(resources: &oci::LinuxResources) -> Value {
    let mut value = Map::new();
    let object = |entries: Vec<(&str, Value, bool)>| -> Map<String, Value> {
        entries.into_iter().filter(|(.., there)| *there).map(|(name, value, _)| (name.to_owned(), value)).collect()
    };
    if let Some(memory) = resources.Memory.as_ref() {
        let memory = object(vec![
            ("limit", memory.Limit.into(), memory.Limit != 0),
            ("reservation", memory.Reservation.into(), memory.Reservation != 0),
        ]);
        value.insert("memory".into(), memory.into());
    }
    if let Some(cpu) = resources.CPU.as_ref() {
        let cpu = object(vec![
            ("shares", cpu.Shares.into(), cpu.Shares != 0),
            ("quota", cpu.Quota.into(), cpu.Quota != 0),
            ("period", cpu.Period.into(), cpu.Period != 0),
        ]);
        value.insert("cpu".into(), cpu.into());
    }
    if let Some(pids) = resources.Pids.as_ref()
        && pids.Limit > 0
    {
        value.insert("pids".into(), json!({ "limit": pids.Limit }));
    }
    value.into()
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
