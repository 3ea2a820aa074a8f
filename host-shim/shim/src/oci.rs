//! The parts of an OCI runtime specification that mean something inside the guest, and their form on the agent's wire.
//!
//! What is read here comes from containerd and is passed on for the guest to judge; the shim checks nothing but that it can be read. What names
//! something of the host's (namespace paths, host devices, device cgroups, LSM labels, the host's seccomp profile) is left out: it has no
//! meaning in the guest. Specification: OCI runtime-spec 1.2, `config.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use kata_cc_agent_protocol::rpc::oci as wire;
use protobuf::MessageField;
use serde::Deserialize;

/// containerd's own limit for a container's spec is far below this.
const MAX_SPEC_BYTES: u64 = 8 * 1024 * 1024;

/// Why a bundle cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// The file.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its size.
    #[error("{0} is larger than {MAX_SPEC_BYTES} bytes")]
    TooLarge(String),
    /// Its form.
    #[error("{what} is not an OCI specification: {source}")]
    Parse {
        /// Which.
        what: String,
        /// What serde said. It names positions and types, never values of environment variables.
        source: serde_json::Error,
    },
}

/// `config.json`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spec {
    oci_version: String,
    pub(crate) process: Option<Process>,
    root: Option<Root>,
    hostname: String,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) annotations: BTreeMap<String, String>,
    hooks: Option<BTreeMap<String, Vec<serde_json::Value>>>,
    pub(crate) linux: Linux,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Root {
    readonly: bool,
}

/// `process`; also what `exec` brings.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Process {
    pub(crate) terminal: bool,
    console_size: Option<ConsoleSize>,
    user: User,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    capabilities: Option<Capabilities>,
    rlimits: Vec<Rlimit>,
    no_new_privileges: bool,
    oom_score_adj: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ConsoleSize {
    height: u32,
    width: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct User {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
    username: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Capabilities {
    bounding: Vec<String>,
    effective: Vec<String>,
    inheritable: Vec<String>,
    permitted: Vec<String>,
    ambient: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Rlimit {
    #[serde(rename = "type")]
    kind: String,
    hard: u64,
    soft: u64,
}

/// One entry of `mounts`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Mount {
    pub(crate) destination: String,
    pub(crate) source: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) options: Vec<String>,
}

/// `linux`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Linux {
    uid_mappings: Vec<IdMapping>,
    gid_mappings: Vec<IdMapping>,
    sysctl: BTreeMap<String, String>,
    pub(crate) resources: Resources,
    cgroups_path: String,
    pub(crate) namespaces: Vec<Namespace>,
    devices: Vec<Device>,
    rootfs_propagation: String,
    masked_paths: Vec<String>,
    readonly_paths: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct IdMapping {
    #[serde(rename = "hostID")]
    host_id: u32,
    #[serde(rename = "containerID")]
    container_id: u32,
    size: u32,
}

/// One of `linux.namespaces`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) path: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Device {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    major: i64,
    minor: i64,
    file_mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// `linux.resources`; also what `update` brings.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Resources {
    memory: Option<Memory>,
    cpu: Option<Cpu>,
    pids: Option<Pids>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Memory {
    limit: Option<i64>,
    reservation: Option<i64>,
    swap: Option<i64>,
    swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    disable_oom_killer: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Cpu {
    shares: Option<u64>,
    quota: Option<i64>,
    period: Option<u64>,
    realtime_runtime: Option<i64>,
    realtime_period: Option<u64>,
    cpus: String,
    mems: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Pids {
    limit: i64,
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, SpecError> {
    serde_json::from_slice(bytes).map_err(|source| SpecError::Parse { what: what.to_owned(), source })
}

impl Spec {
    /// Reads a bundle's `config.json`.
    pub(crate) fn load(bundle: &Path) -> Result<Self, SpecError> {
        let path = bundle.join("config.json");
        let shown = path.display().to_string();
        let read_error = |source| SpecError::Read { path: shown.clone(), source };
        let mut bytes = Vec::new();
        File::open(&path).map_err(read_error)?.take(MAX_SPEC_BYTES + 1).read_to_end(&mut bytes).map_err(read_error)?;
        if bytes.len() as u64 > MAX_SPEC_BYTES {
            return Err(SpecError::TooLarge(shown));
        }
        parse(&bytes, &shown)
    }

    /// The container's cgroup on the host.
    pub(crate) fn cgroups_path(&self) -> &str {
        &self.linux.cgroups_path
    }

    /// The container's host name.
    pub(crate) fn hostname(&self) -> &str {
        &self.hostname
    }

    /// The namespace of a kind, when the specification has one.
    pub(crate) fn namespace(&self, kind: &str) -> Option<&Namespace> {
        self.linux.namespaces.iter().find(|namespace| namespace.kind == kind)
    }

    /// The CPU limit, when there is one: quota and period.
    pub(crate) fn cpu_limit(&self) -> Option<(i64, u64)> {
        let cpu = self.linux.resources.cpu.as_ref()?;
        Some((cpu.quota.filter(|&quota| quota > 0)?, cpu.period.filter(|&period| period > 0)?))
    }

    /// The memory limit in bytes, when there is one.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        let limit = self.linux.resources.memory.as_ref()?.limit?;
        u64::try_from(limit).ok().filter(|&limit| limit > 0)
    }

    /// The form the agent takes, with `mounts` in place of its own: their sources are the guest's.
    pub(crate) fn to_wire(&self, mounts: &[Mount]) -> wire::Spec {
        wire::Spec {
            Version: self.oci_version.clone(),
            Process: self.process.as_ref().map(Process::to_wire).into(),
            Root: MessageField::some(wire::Root {
                Path: "rootfs".into(),
                Readonly: self.root.as_ref().is_some_and(|root| root.readonly),
                ..Default::default()
            }),
            Hostname: self.hostname.clone(),
            Mounts: mounts.iter().map(Mount::to_wire).collect(),
            // Passed on for the agent to refuse: dropping them here would start a container that is not what was asked for.
            Hooks: self.hooks.as_ref().filter(|hooks| hooks.values().any(|list| !list.is_empty())).map(|_| refused_hooks()).into(),
            Annotations: self.annotations.clone(),
            Linux: MessageField::some(self.linux.to_wire()),
            ..Default::default()
        }
    }
}

fn refused_hooks() -> wire::Hooks {
    let hook = wire::Hook { Path: "/host-hook".into(), ..Default::default() };
    wire::Hooks { Prestart: vec![hook], ..Default::default() }
}

impl Process {
    /// What `exec` brings, as JSON.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, SpecError> {
        parse(json, "the process to execute")
    }

    /// The form the agent takes.
    pub(crate) fn to_wire(&self) -> wire::Process {
        let capabilities = self.capabilities.as_ref().map(|sets| wire::LinuxCapabilities {
            Bounding: sets.bounding.clone(),
            Effective: sets.effective.clone(),
            Inheritable: sets.inheritable.clone(),
            Permitted: sets.permitted.clone(),
            Ambient: sets.ambient.clone(),
            ..Default::default()
        });
        let limit =
            |limit: &Rlimit| wire::POSIXRlimit { Type: limit.kind.clone(), Hard: limit.hard, Soft: limit.soft, ..Default::default() };
        wire::Process {
            Terminal: self.terminal,
            ConsoleSize: self
                .console_size
                .as_ref()
                .map(|size| wire::Box { Height: size.height, Width: size.width, ..Default::default() })
                .into(),
            User: MessageField::some(wire::User {
                UID: self.user.uid,
                GID: self.user.gid,
                AdditionalGids: self.user.additional_gids.clone(),
                Username: self.user.username.clone(),
                ..Default::default()
            }),
            Args: self.args.clone(),
            Env: self.env.clone(),
            Cwd: self.cwd.clone(),
            Capabilities: capabilities.into(),
            Rlimits: self.rlimits.iter().map(limit).collect(),
            NoNewPrivileges: self.no_new_privileges,
            OOMScoreAdj: self.oom_score_adj.unwrap_or_default(),
            ..Default::default()
        }
    }
}

impl Mount {
    fn to_wire(&self) -> wire::Mount {
        wire::Mount {
            destination: self.destination.clone(),
            source: self.source.clone(),
            type_: self.kind.clone(),
            options: self.options.clone(),
            ..Default::default()
        }
    }
}

impl Linux {
    fn to_wire(&self) -> wire::Linux {
        let mapping = |mapping: &IdMapping| wire::LinuxIDMapping {
            HostID: mapping.host_id,
            ContainerID: mapping.container_id,
            Size: mapping.size,
            ..Default::default()
        };
        let device = |device: &Device| wire::LinuxDevice {
            Path: device.path.clone(),
            Type: device.kind.clone(),
            Major: device.major,
            Minor: device.minor,
            FileMode: device.file_mode.unwrap_or_default(),
            UID: device.uid.unwrap_or_default(),
            GID: device.gid.unwrap_or_default(),
            ..Default::default()
        };
        // The pod's network is the guest's own, and its cgroups are the agent's; paths name namespaces of the host.
        let namespaces = self.namespaces.iter().filter(|namespace| !matches!(namespace.kind.as_str(), "network" | "cgroup"));
        wire::Linux {
            UIDMappings: self.uid_mappings.iter().map(mapping).collect(),
            GIDMappings: self.gid_mappings.iter().map(mapping).collect(),
            Sysctl: self.sysctl.clone(),
            Resources: MessageField::some(self.resources.to_wire()),
            CgroupsPath: self.cgroups_path.clone(),
            Namespaces: namespaces.map(|namespace| wire::LinuxNamespace { Type: namespace.kind.clone(), ..Default::default() }).collect(),
            Devices: self.devices.iter().map(device).collect(),
            RootfsPropagation: self.rootfs_propagation.clone(),
            MaskedPaths: self.masked_paths.clone(),
            ReadonlyPaths: self.readonly_paths.clone(),
            ..Default::default()
        }
    }
}

impl Resources {
    /// What `update` brings, as JSON.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, SpecError> {
        parse(json, "the resources to update")
    }

    /// The form the agent takes.
    pub(crate) fn to_wire(&self) -> wire::LinuxResources {
        let memory = self.memory.as_ref().map(|memory| wire::LinuxMemory {
            Limit: memory.limit.unwrap_or_default(),
            Reservation: memory.reservation.unwrap_or_default(),
            Swap: memory.swap.unwrap_or_default(),
            Swappiness: memory.swappiness.unwrap_or_default(),
            DisableOOMKiller: memory.disable_oom_killer,
            ..Default::default()
        });
        let cpu = self.cpu.as_ref().map(|cpu| wire::LinuxCPU {
            Shares: cpu.shares.unwrap_or_default(),
            Quota: cpu.quota.unwrap_or_default(),
            Period: cpu.period.unwrap_or_default(),
            RealtimeRuntime: cpu.realtime_runtime.unwrap_or_default(),
            RealtimePeriod: cpu.realtime_period.unwrap_or_default(),
            Cpus: cpu.cpus.clone(),
            Mems: cpu.mems.clone(),
            ..Default::default()
        });
        let pids = self.pids.as_ref().map(|pids| wire::LinuxPids { Limit: pids.limit, ..Default::default() });
        wire::LinuxResources { Memory: memory.into(), CPU: cpu.into(), Pids: pids.into(), ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"ociVersion":"1.1.0","process":{"user":{"uid":7,"gid":8,"additionalGids":[9]},"args":["/bin/sh"],"env":["A=b"],"cwd":"/",
      "capabilities":{"bounding":["CAP_CHOWN"]},"rlimits":[{"type":"RLIMIT_NOFILE","hard":1,"soft":1}],"apparmorProfile":"host-profile"},
      "root":{"path":"/host/rootfs","readonly":true},"hostname":"h","mounts":[{"destination":"/proc","type":"proc","source":"proc"}],
      "annotations":{"k":"v"},"linux":{"resources":{"devices":[{"allow":false}],"memory":{"limit":1048576},"cpu":{"quota":5,"period":10}},
      "namespaces":[{"type":"network","path":"/var/run/netns/x"},{"type":"ipc","path":"/proc/1/ns/ipc"},{"type":"mount"}],
      "seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}}"#;

    #[test]
    fn keeps_what_means_something_in_the_guest_and_drops_the_hosts() {
        let spec: Spec = parse(CONFIG.as_bytes(), "test").unwrap();
        assert_eq!((spec.cpu_limit(), spec.memory_limit()), (Some((5, 10)), Some(1_048_576)));
        let wire = spec.to_wire(&[]);
        assert_eq!(wire.Process.Args, ["/bin/sh"]);
        assert_eq!((wire.Process.User.UID, wire.Process.User.AdditionalGids.as_slice()), (7, [9].as_slice()));
        assert_eq!(wire.Process.ApparmorProfile, "");
        assert_eq!((wire.Root.Path.as_str(), wire.Root.Readonly), ("rootfs", true));
        let namespaces: Vec<_> = wire.Linux.Namespaces.iter().map(|namespace| (namespace.Type.as_str(), namespace.Path.as_str())).collect();
        assert_eq!(namespaces, [("ipc", ""), ("mount", "")]);
        assert!(wire.Linux.Seccomp.is_none() && wire.Linux.Resources.Devices.is_empty() && wire.Hooks.is_none());
        assert_eq!(wire.Annotations.get("k").map(String::as_str), Some("v"));
    }

    #[test]
    fn hooks_reach_the_agent_for_it_to_refuse() {
        let spec: Spec = parse(br#"{"hooks":{"prestart":[{"path":"/x"}]}}"#, "test").unwrap();
        assert!(spec.to_wire(&[]).Hooks.is_some());
        let spec: Spec = parse(br#"{"hooks":{"prestart":[]}}"#, "test").unwrap();
        assert!(spec.to_wire(&[]).Hooks.is_none());
    }

    #[test]
    fn errors_do_not_repeat_the_content() {
        let error = Process::parse(br#"{"env":["TOKEN=hunter2"],"cwd":7}"#).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
