//! The launch plan: everything about one pod's machine as a plain value, made before anything is started.
//!
//! [`plan`] is pure. It reads no file and asks no kernel; whatever it needs to know of the host comes in the request.
//! **Invariant:** pod annotations choose no binary, no file and no kernel parameter, ever; sizes only where the configuration permits it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{AllowedAnnotation, Config};
use crate::cpu_model::{CpuModel, UnknownCpuModel};
use crate::cpus::{Vcpus, VcpusError};
use crate::request::{CpuLimit, Host, InitdataDigest, Mac, PodRequest, SandboxId};
use crate::tee::snp::id_block::SignedIdBlock;
use crate::tee::{Tee, TeeKind, sim};

/// Annotations with this prefix ask something of the runtime.
pub const ANNOTATION_PREFIX: &str = "io.katacontainers.config.";
/// Annotations with this prefix ask something of the machine.
pub const HYPERVISOR_PREFIX: &str = "io.katacontainers.config.hypervisor.";
/// The pod's initdata: base64(gzip(TOML)).
pub const INITDATA_ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// The vsock port the agent serves its RPCs on.
pub const AGENT_PORT: u32 = 1024;
/// The host-side vsock port the agent connects to when it begins to serve: readiness as an event. Nothing is read from it.
pub const READY_PORT: u32 = 1023;
/// The host-side vsock port on which the node's blob cache is, for guests that look for one.
pub const BLOBS_PORT: u32 = 1022;
/// The address of a guest whose vsock is carried by a process of its own: unique per process, so it may be constant.
pub const VHOST_USER_CID: u32 = 3;
/// Below this, kernel and agent do not come up.
pub const MIN_MEMORY_MIB: u32 = 128;
/// `sun_path` holds 108 bytes with its NUL.
const MAX_SOCKET_PATH: usize = 107;
const MIB: u64 = 1024 * 1024;

/// How the guest's vsock is carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "transport", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Vsock {
    /// By a helper process: QEMU connects to `device_socket`; host-side connections go through `socket`.
    VhostUser {
        /// The guest's address.
        cid: u32,
        /// The helper's binary.
        helper: PathBuf,
        /// Between QEMU and the helper.
        device_socket: PathBuf,
        /// `CONNECT <port>` here; the guest's own connections to port P arrive at this path with `_P` appended.
        socket: PathBuf,
        /// Where the guest's connections to [`BLOBS_PORT`] are to arrive: the socket of the node's blob cache. Without it they are refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node_blobs: Option<PathBuf>,
    },
    /// By the host kernel, through an inherited `/dev/vhost-vsock` descriptor.
    Kernel {
        /// The guest's address.
        cid: u32,
    },
}

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its serial number in the guest.
    pub id: String,
    /// The raw image or block device.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// A network interface of the guest: a tap whose descriptor QEMU inherits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Its address: that of the pod's interface.
    pub mac: Mac,
    /// Whether an inherited `/dev/vhost-net` descriptor carries the packets.
    pub vhost: bool,
}

/// Everything about one pod's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchPlan {
    /// The pod.
    pub sandbox_id: SandboxId,
    /// The QEMU binary.
    pub qemu: PathBuf,
    /// The protection and its parameters.
    pub tee: Tee,
    /// CPU model, without the flags that its TEE gives it; its signature is measured by SNP.
    pub cpu_model: CpuModel,
    /// Number of processors; measured by SNP.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Measured firmware.
    pub firmware: Option<PathBuf>,
    /// Measured kernel.
    pub kernel: PathBuf,
    /// Measured initrd.
    pub initrd: Option<PathBuf>,
    /// Measured kernel command line.
    pub cmdline: String,
    /// Goes into the launch: HOST_DATA, MRCONFIGID, or the simulated equivalent.
    pub initdata_digest: InitdataDigest,
    /// What the owner has signed of the launch; SNP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_block: Option<SignedIdBlock>,
    /// How the guest's vsock is carried.
    pub vsock: Vsock,
    /// Disks, in order.
    pub disks: Vec<Disk>,
    /// Interfaces, in order.
    pub nics: Vec<Nic>,
    /// Where the guest's console is kept (bounded).
    pub console_log: PathBuf,
    /// Whether QEMU runs under its seccomp filter.
    pub seccomp: bool,
}

/// Why a pod cannot be planned. Each says what to change.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Not a usable identifier.
    #[error("sandbox id {0:?}: expected letters, digits, '.', '_' and '-', at most 76 of them")]
    Id(String),
    /// Not an Ethernet address.
    #[error("interface address {0:?}: expected six hexadecimal bytes joined by ':'")]
    Mac(String),
    /// Not a digest.
    #[error("initdata digest: expected 32, 48 or 64 bytes, found {0}")]
    DigestLength(usize),
    /// A simulated class without its section.
    #[error("the class has tee = \"sim\" and no [simulation]; it names the keys made by `kata-cc-tee-sim init`")]
    NoSimulation,
    /// A CPU model that the class's TEE does not have.
    #[error("`cpu_model`: {0}")]
    CpuModel(#[from] UnknownCpuModel),
    /// No initdata.
    #[error(
        "the pod has no initdata: set the annotation {INITDATA_ANNOTATION} (made by `kata-cc initdata`), and let containerd pass it on \
         (`pod_annotations = [\"io.katacontainers.*\"]` of the runtime)"
    )]
    NoInitdata,
    /// An annotation that affects the host.
    #[error(
        "annotation {name} affects the host and is not permitted for this runtime class; remove it, or add it to `allowed_annotations`"
    )]
    AnnotationRefused {
        /// The annotation.
        name: String,
    },
    /// An annotation nobody knows.
    #[error("annotation {name} is not supported; known are default_vcpus, default_memory and cc_init_data under {HYPERVISOR_PREFIX}")]
    AnnotationUnknown {
        /// The annotation.
        name: String,
    },
    /// An annotation with a value of the wrong kind.
    #[error("annotation {name}: {problem}")]
    AnnotationValue {
        /// The annotation.
        name: String,
        /// What was expected.
        problem: String,
    },
    /// CPU limits that do not add up.
    #[error(transparent)]
    Vcpus(#[from] VcpusError),
    /// Too many processors.
    #[error("the pod needs {needed} processors, this runtime class allows {allowed} (`max_vcpus`)")]
    TooManyVcpus {
        /// Default plus limits, rounded up.
        needed: u32,
        /// The bound.
        allowed: u32,
    },
    /// Too much memory.
    #[error("the pod needs {needed} MiB of memory, this runtime class allows {allowed} (`max_memory_mib`)")]
    TooMuchMemory {
        /// Default plus limits, and what the guest's kernel sets aside.
        needed: u64,
        /// The bound.
        allowed: u32,
    },
    /// The host has no vsock device.
    #[error("tee = \"{0}\" needs /dev/vhost-vsock, which this host does not have; load the module vhost_vsock")]
    NoKernelVsock(TeeKind),
    /// An ID block for another guest policy.
    #[error(
        "the ID block is signed for the guest policy {signed:#x} and the class has {class:#x}; change [snp.policy], or sign another ID block"
    )]
    IdBlockPolicy {
        /// That of the ID block.
        signed: u64,
        /// That of the class.
        class: u64,
    },
    /// An ID block that was not read, or that nobody named.
    #[error("the class {} an ID block and the planner was given {}", if *named { "names" } else { "does not name" }, if *named { "none" } else { "one" })]
    IdBlock {
        /// Whether the class names one.
        named: bool,
    },
    /// A socket path that no socket can have.
    #[error("socket path {} is longer than {MAX_SOCKET_PATH} bytes; choose a shorter `run_dir`", .0.display())]
    SocketPath(PathBuf),
    /// A path QEMU cannot be told.
    #[error("path {} must be UTF-8", .0.display())]
    NotUtf8(PathBuf),
    /// A path with a character QEMU takes as its own.
    #[error("path {} must not contain a comma: QEMU would read an option behind it", .0.display())]
    Comma(PathBuf),
}

/// Makes the plan of a pod's machine, or says why there cannot be one.
pub fn plan(config: &Config, request: &PodRequest) -> Result<LaunchPlan, PlanError> {
    let sizes = annotated_sizes(config, &request.annotations)?;
    let vcpus = vcpus(config, sizes.vcpus.unwrap_or(config.default_vcpus), &request.cpu_limits)?;
    let memory_mib = memory(config, sizes.memory_mib.unwrap_or(config.default_memory_mib), &request.memory_limits)?;
    let initdata_digest = request.initdata_digest.clone().ok_or(PlanError::NoInitdata)?;
    let dir = config.run_dir.join(request.sandbox_id.as_str());
    let vsock = vsock(config, request.host, &dir)?;
    let plan = LaunchPlan {
        sandbox_id: request.sandbox_id.clone(),
        qemu: config.effective_qemu(),
        tee: tee(config, &dir)?,
        cpu_model: cpu_model(config)?,
        vcpus,
        memory_mib,
        firmware: config.firmware.clone(),
        kernel: config.kernel.clone(),
        initrd: config.initrd.clone(),
        cmdline: cmdline(config),
        initdata_digest,
        id_block: id_block(config, request.id_block.as_ref())?,
        vsock,
        disks: vec![Disk { id: "initdata".into(), path: dir.join("initdata.img"), read_only: true }],
        nics: request.nics.iter().map(|&mac| Nic { mac, vhost: request.host.vhost_net && vhost_net(config.tee) }).collect(),
        console_log: dir.join("console.log"),
        seccomp: config.seccomp,
    };
    check_paths(&plan)?;
    Ok(plan)
}

fn cpu_model(config: &Config) -> Result<CpuModel, PlanError> {
    Ok(match &config.cpu_model {
        Some(name) => CpuModel::named(config.tee, name)?,
        None => CpuModel::default_of(config.tee),
    })
}

#[derive(Default)]
struct AnnotatedSizes {
    vcpus: Option<Vcpus>,
    memory_mib: Option<u32>,
}

fn annotated_sizes(config: &Config, annotations: &BTreeMap<String, String>) -> Result<AnnotatedSizes, PlanError> {
    let mut sizes = AnnotatedSizes::default();
    for (name, value) in annotations.range(ANNOTATION_PREFIX.to_owned()..).take_while(|(name, _)| name.starts_with(ANNOTATION_PREFIX)) {
        let known = match name.strip_prefix(HYPERVISOR_PREFIX) {
            Some("cc_init_data") => continue,
            Some("default_vcpus") => AllowedAnnotation::DefaultVcpus,
            Some("default_memory") => AllowedAnnotation::DefaultMemory,
            _ => return Err(PlanError::AnnotationUnknown { name: name.clone() }),
        };
        if !config.allowed_annotations.contains(&known) {
            return Err(PlanError::AnnotationRefused { name: name.clone() });
        }
        let invalid = |problem: String| PlanError::AnnotationValue { name: name.clone(), problem };
        match known {
            AllowedAnnotation::DefaultVcpus => sizes.vcpus = Some(value.parse().map_err(|error: VcpusError| invalid(error.to_string()))?),
            AllowedAnnotation::DefaultMemory => {
                sizes.memory_mib = Some(value.parse().map_err(|_| invalid("expected a whole number of MiB".into()))?);
            }
        }
    }
    Ok(sizes)
}

fn vcpus(config: &Config, base: Vcpus, limits: &[CpuLimit]) -> Result<u32, PlanError> {
    let mut total = base;
    for limit in limits {
        total = total.checked_add(Vcpus::from_quota(limit.quota, limit.period)?)?;
    }
    let needed = total.round_up()?;
    if needed > config.max_vcpus { Err(PlanError::TooManyVcpus { needed, allowed: config.max_vcpus }) } else { Ok(needed) }
}

/// Whether the host's kernel carries packets where it can. Not under Secure Execution, where Kata's classes have it off as well, and not for
/// the simulation, which needs nothing of a host's kernel.
fn vhost_net(tee: TeeKind) -> bool {
    match tee {
        TeeKind::Snp | TeeKind::Tdx => true,
        TeeKind::Se | TeeKind::Sim => false,
    }
}

fn memory(config: &Config, base_mib: u32, limits: &[u64]) -> Result<u32, PlanError> {
    let limits = limits.iter().fold(0_u64, |sum, &bytes| sum.saturating_add(bytes)).div_ceil(MIB);
    // Even, because the guest's memory is mapped in 2 MiB pages.
    let usable = u64::from(base_mib).saturating_add(limits).max(MIN_MEMORY_MIB.into());
    let needed = usable.saturating_add(config.memory_set_aside_mib().into());
    let needed = needed.saturating_add(needed % 2);
    match u32::try_from(needed) {
        Ok(mib) if mib <= config.max_memory_mib => Ok(mib),
        _ => Err(PlanError::TooMuchMemory { needed, allowed: config.max_memory_mib }),
    }
}

fn vsock(config: &Config, host: Host, dir: &Path) -> Result<Vsock, PlanError> {
    if config.vsock_by_process() {
        Ok(Vsock::VhostUser {
            cid: VHOST_USER_CID,
            helper: config.vhost_device_vsock.clone(),
            device_socket: dir.join("vhost.sock"),
            socket: dir.join("vsock.sock"),
            node_blobs: config.node_blobs.clone(),
        })
    } else {
        let cid = host.vsock_cid.ok_or(PlanError::NoKernelVsock(config.tee))?;
        Ok(Vsock::Kernel { cid })
    }
}

/// The path of the host-side listener for the guest's connections to `port`.
#[must_use]
pub fn guest_port_socket(socket: &Path, port: u32) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

fn cmdline(config: &Config) -> String {
    match (config.tee, &config.simulation) {
        (TeeKind::Sim, Some(simulation)) => simulation.tee.cmdline(&config.kernel_params),
        _ => config.kernel_params.clone(),
    }
}

fn tee(config: &Config, dir: &Path) -> Result<Tee, PlanError> {
    Ok(match config.tee {
        TeeKind::Sim => {
            let simulation = config.simulation.as_ref().ok_or(PlanError::NoSimulation)?;
            Tee::Sim(sim::Sim {
                tee_sim: simulation.tee_sim.clone(),
                keys: simulation.keys.clone(),
                simulated: simulation.tee,
                vcpu_type: simulation.vcpu_type.clone(),
                guest_features: simulation.guest_features,
                socket: guest_port_socket(&dir.join("vsock.sock"), sim::REPORT_PORT),
            })
        }
        TeeKind::Snp => Tee::Snp(config.snp.clone().unwrap_or_default()),
        TeeKind::Tdx => Tee::Tdx(config.tdx.clone().unwrap_or_default()),
        TeeKind::Se => Tee::Se(config.se.clone().unwrap_or_default()),
    })
}

/// The ID block goes with the class, and its policy is the class's: the firmware would finish no other launch.
fn id_block(config: &Config, read: Option<&SignedIdBlock>) -> Result<Option<SignedIdBlock>, PlanError> {
    let snp = config.snp.clone().unwrap_or_default();
    let named = config.tee == TeeKind::Snp && snp.id_block.is_some();
    match read {
        Some(signed) if named && signed.policy() != snp.policy.bits() => {
            Err(PlanError::IdBlockPolicy { signed: signed.policy(), class: snp.policy.bits() })
        }
        Some(signed) if named => Ok(Some(signed.clone())),
        None if !named => Ok(None),
        _ => Err(PlanError::IdBlock { named }),
    }
}

fn check_paths(plan: &LaunchPlan) -> Result<(), PlanError> {
    let mut sockets: Vec<&Path> = Vec::new();
    let mut in_options: Vec<&Path> = plan.disks.iter().map(|disk| disk.path.as_path()).collect();
    let longest;
    if let Vsock::VhostUser { device_socket, socket, .. } = &plan.vsock {
        longest = guest_port_socket(socket, sim::REPORT_PORT);
        sockets.extend([device_socket.as_path(), longest.as_path()]);
        in_options.extend([device_socket.as_path(), socket.as_path()]);
    }
    for path in sockets {
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(PlanError::SocketPath(path.to_owned()));
        }
    }
    for path in in_options {
        match path.to_str() {
            None => return Err(PlanError::NotUtf8(path.to_owned())),
            Some(text) if text.contains(',') => return Err(PlanError::Comma(path.to_owned())),
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(crate) mod tests;
