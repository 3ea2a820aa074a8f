//! The host's configuration: one TOML file per runtime class.
//!
//! Read once, checked as a whole, then passed by reference. Keys nobody knows are errors, so that a misspelt protection never reads as "off".
//! Nothing in this file is trusted by the guest: what matters of it (firmware, kernel, initrd, command line, processors) is measured at launch.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::cpu_model::CpuModel;
use crate::cpus::Vcpus;
use crate::tee::TeeKind;
use crate::tee::se::Se;
use crate::tee::sim::SimulatedTee;
use crate::tee::snp::Snp;
use crate::tee::snp::id_block::{IdBlockFileError, SignedIdBlock};
use crate::tee::tdx::Tdx;

/// Where the configuration is looked for when nobody names a file.
pub const DEFAULT_PATH: &str = "/etc/kata-cc/config.toml";
/// Names the configuration file; wins over the runtime options.
pub const PATH_VARIABLE: &str = "KATA_CC_CONFIG";
/// Far more than any configuration needs.
const MAX_CONFIG_BYTES: u64 = 256 * 1024;
/// The guest console, an immediate end on panic (with `-no-reboot` the machine stops), and no chatter: each line costs start-up time.
pub const DEFAULT_KERNEL_PARAMS: &str = "console=ttyS0 reboot=k panic=-1 quiet";

/// Everything the host side of one runtime class needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The protection every pod of this class boots under: `snp`, `tdx`, `se`, or `sim` for the simulated TEE. No default: choosing it is the point.
    pub tee: TeeKind,
    /// The QEMU binary. Default: `/usr/bin/qemu-system-s390x` for `se`, `/usr/bin/qemu-system-x86_64` otherwise.
    pub qemu: Option<PathBuf>,
    /// Guest firmware; measured. Required for every TEE but `se`.
    pub firmware: Option<PathBuf>,
    /// Guest kernel; measured. For `se` the sealed image.
    pub kernel: PathBuf,
    /// Guest initrd, which holds the agent; measured. Required for every TEE but `se`.
    pub initrd: Option<PathBuf>,
    /// The whole kernel command line; measured, so it is fixed for the class and no pod can change it.
    #[serde(default = "default_kernel_params")]
    pub kernel_params: String,
    /// CPU model QEMU gives the guest, one of [`CpuModel::all`]. Default: `EPYC-v4` for `snp`; `host` for `tdx` and `se` and `max` for `sim`, which
    /// know no other.
    pub cpu_model: Option<String>,
    /// Processors every pod gets besides its limits: a whole number, or a fraction in quotes (`"0.25"`). Sums are rounded up once, to at least one.
    #[serde(default = "default_vcpus")]
    pub default_vcpus: Vcpus,
    /// The largest machine a pod may ask for, in processors.
    #[serde(default = "default_max_vcpus")]
    pub max_vcpus: u32,
    /// Memory every pod gets besides its limits, in MiB. With `se` the sealed image's `swiotlb` comes on top.
    #[serde(default = "default_memory_mib")]
    pub default_memory_mib: u32,
    /// The largest machine a pod may ask for, in MiB.
    #[serde(default = "default_max_memory_mib")]
    pub max_memory_mib: u32,
    /// Suffixes of `io.katacontainers.config.hypervisor.` annotations a pod may set. Known: `default_vcpus`, `default_memory`.
    /// `cc_init_data` needs no permission: it is the pod owner's own, it is measured, and it does not affect the host.
    #[serde(default)]
    pub allowed_annotations: Vec<AllowedAnnotation>,
    /// Holds one directory (0700) per running pod.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// Where to leave each pod's timeline as JSON lines, one file per pod. None are written without it.
    pub timeline_dir: Option<PathBuf>,
    /// The `vhost-device-vsock` binary, used where `/dev/vhost-vsock` is missing.
    #[serde(default = "default_vhost_device_vsock")]
    pub vhost_device_vsock: PathBuf,
    /// How the guest's vsock is carried.
    #[serde(default)]
    pub vsock: VsockMode,
    /// The unix socket on which `kata-cc-node` serves blobs (`--blobs-socket`), for guests whose vsock is carried by a process. Where the kernel carries it,
    /// guests reach the node's vsock port without this.
    pub node_blobs: Option<PathBuf>,
    /// Whether the machine joins the pod's cgroup on the host and is counted as the pod's.
    #[serde(default = "default_true")]
    pub pod_cgroup: bool,
    /// Whether to start QEMU with its seccomp filter.
    #[serde(default = "default_true")]
    pub seccomp: bool,
    /// Only with `tee = "sim"`, and required there.
    pub simulation: Option<SimulationConfig>,
    /// Only with `tee = "snp"`.
    pub snp: Option<Snp>,
    /// Only with `tee = "tdx"`.
    pub tdx: Option<Tdx>,
    /// Only with `tee = "se"`.
    pub se: Option<Se>,
    /// How long to wait for the guest.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// A pod annotation that affects the host and may be permitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllowedAnnotation {
    /// `io.katacontainers.config.hypervisor.default_vcpus`
    DefaultVcpus,
    /// `io.katacontainers.config.hypervisor.default_memory`, in MiB
    DefaultMemory,
}

/// How the guest's vsock is carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VsockMode {
    /// By `vhost-device-vsock`, a process of this pod. It shares the guest's memory, so it is not offered for real TEEs.
    VhostUser,
    /// By the host kernel's `/dev/vhost-vsock`.
    Kernel,
    /// The kernel's for a real TEE, the process's for the simulated one.
    #[default]
    Auto,
}

/// The simulated TEE.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulationConfig {
    /// The `kata-cc-tee-sim` binary.
    #[serde(default = "default_tee_sim")]
    pub tee_sim: PathBuf,
    /// Its key directory, as made by `kata-cc-tee-sim init`.
    pub keys: PathBuf,
    /// Which TEE is simulated: `snp` or `tdx`. Default: `snp`.
    #[serde(default)]
    pub tee: SimulatedTee,
    /// The processor the launch digest is computed for.
    #[serde(default = "default_sim_vcpu_type")]
    pub vcpu_type: String,
    /// The guest features of the launch digest.
    #[serde(default = "default_guest_features")]
    pub guest_features: u64,
}

/// How long to wait for the guest, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From the machine's start to an agent that answers.
    pub boot_seconds: u32,
    /// For creating one container; includes pulling its image in the guest.
    pub create_container_seconds: u32,
    /// For any other request to the agent.
    pub request_seconds: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { boot_seconds: 60, create_container_seconds: 600, request_seconds: 30 }
    }
}

impl Timeouts {
    /// From the machine's start to an agent that answers.
    #[must_use]
    pub fn boot(&self) -> Duration {
        Duration::from_secs(self.boot_seconds.into())
    }
    /// For creating one container.
    #[must_use]
    pub fn create_container(&self) -> Duration {
        Duration::from_secs(self.create_container_seconds.into())
    }
    /// For any other request to the agent.
    #[must_use]
    pub fn request(&self) -> Duration {
        Duration::from_secs(self.request_seconds.into())
    }
}

fn default_kernel_params() -> String {
    DEFAULT_KERNEL_PARAMS.into()
}
fn default_vcpus() -> Vcpus {
    Vcpus::whole(1)
}
fn default_max_vcpus() -> u32 {
    64
}
fn default_memory_mib() -> u32 {
    512
}
fn default_max_memory_mib() -> u32 {
    256 * 1024
}
fn default_run_dir() -> PathBuf {
    "/run/kata-cc".into()
}
fn default_vhost_device_vsock() -> PathBuf {
    "/usr/bin/vhost-device-vsock".into()
}
fn default_tee_sim() -> PathBuf {
    "/usr/bin/kata-cc-tee-sim".into()
}
fn default_sim_vcpu_type() -> String {
    "EPYC-v4".into()
}
fn default_guest_features() -> u64 {
    1
}
fn default_true() -> bool {
    true
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}; name another with {PATH_VARIABLE}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Far too large.
    #[error("the configuration {} is larger than {MAX_CONFIG_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("the configuration does not parse")]
    Parse(#[from] toml::de::Error),
    /// Parses, but contradicts itself.
    #[error("configuration key `{key}`: {problem}")]
    Value {
        /// The key at fault.
        key: &'static str,
        /// What was expected, what was found.
        problem: String,
    },
}

fn value_error(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, problem: problem.into() }
}

impl Config {
    /// Reads and checks a configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read_error = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(read_error)?;
        file.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text).map_err(read_error)?;
        if text.len() as u64 > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge(path.to_owned()));
        }
        Self::parse(&text)
    }

    /// Parses and checks a configuration.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let tee = self.tee;
        let snp = self.snp.as_ref();
        let paths: [(&'static str, Option<&PathBuf>); 12] = [
            ("qemu", self.qemu.as_ref()),
            ("firmware", self.firmware.as_ref()),
            ("kernel", Some(&self.kernel)),
            ("initrd", self.initrd.as_ref()),
            ("run_dir", Some(&self.run_dir)),
            ("timeline_dir", self.timeline_dir.as_ref()),
            ("snp.id_block", snp.and_then(|snp| snp.id_block.as_ref())),
            ("snp.id_auth", snp.and_then(|snp| snp.id_auth.as_ref())),
            ("vhost_device_vsock", Some(&self.vhost_device_vsock)),
            ("node_blobs", self.node_blobs.as_ref()),
            ("simulation.tee_sim", self.simulation.as_ref().map(|simulation| &simulation.tee_sim)),
            ("simulation.keys", self.simulation.as_ref().map(|simulation| &simulation.keys)),
        ];
        for (key, path) in paths {
            if let Some(path) = path
                && !path.is_absolute()
            {
                return Err(value_error(key, format!("expected an absolute path, found {}", path.display())));
            }
        }
        let required = [("firmware", self.firmware.is_some()), ("initrd", self.initrd.is_some())];
        for (key, present) in required {
            match (tee, present) {
                (TeeKind::Se, true) => {
                    return Err(value_error(key, "does not apply to tee = \"se\", whose sealed kernel image holds everything"));
                }
                (TeeKind::Se, false) | (_, true) => {}
                (_, false) => return Err(value_error(key, format!("required with tee = \"{tee}\""))),
            }
        }
        let sections = [
            ("simulation", self.simulation.is_some(), TeeKind::Sim),
            ("snp", self.snp.is_some(), TeeKind::Snp),
            ("tdx", self.tdx.is_some(), TeeKind::Tdx),
            ("se", self.se.is_some(), TeeKind::Se),
        ];
        for (key, present, owner) in sections {
            if present && tee != owner {
                return Err(value_error(key, format!("applies to tee = \"{owner}\" only, found tee = \"{tee}\"")));
            }
        }
        if let Some(snp) = snp
            && snp.id_block.is_some() != snp.id_auth.is_some()
        {
            return Err(value_error("snp.id_block", "expected with id_auth, and id_auth with id_block, found one alone"));
        }
        if tee == TeeKind::Sim && self.simulation.is_none() {
            return Err(value_error("simulation", "required with tee = \"sim\"; it names the keys made by `kata-cc-tee-sim init`"));
        }
        if tee != TeeKind::Sim && self.vsock == VsockMode::VhostUser {
            return Err(value_error("vsock", "\"vhost-user\" shares the guest's memory with a process and is only for tee = \"sim\""));
        }
        if self.node_blobs.is_some() && !self.vsock_by_process() {
            let problem = "applies where a process carries the guest's vsock; the kernel brings guests to the node's own port (`kata-cc-node --blobs-vsock`)";
            return Err(value_error("node_blobs", problem));
        }
        if let Some(Err(error)) = self.cpu_model.as_deref().map(|name| CpuModel::named(tee, name)) {
            return Err(value_error("cpu_model", error.to_string()));
        }
        if self.kernel_params.bytes().any(|byte| byte == 0 || byte == b'\n') {
            return Err(value_error("kernel_params", "expected one line without NUL"));
        }
        if self.max_vcpus == 0 {
            return Err(value_error("max_vcpus", "expected at least 1"));
        }
        let aside = self.memory_set_aside_mib();
        if self.default_memory_mib > self.max_memory_mib.saturating_sub(aside) {
            let of_it = if aside == 0 { String::new() } else { format!(" less the {aside} of [se] swiotlb_mib") };
            return Err(value_error("default_memory_mib", format!("expected at most max_memory_mib = {}{of_it}", self.max_memory_mib)));
        }
        for (key, seconds) in [
            ("timeouts.boot_seconds", self.timeouts.boot_seconds),
            ("timeouts.create_container_seconds", self.timeouts.create_container_seconds),
            ("timeouts.request_seconds", self.timeouts.request_seconds),
        ] {
            if seconds == 0 {
                return Err(value_error(key, "expected at least 1"));
            }
        }
        Ok(())
    }

    /// Reads the ID block that the class names, for [`crate::request::PodRequest::id_block`].
    ///
    /// # Errors
    ///
    /// Files that cannot be read or are not a signed ID block.
    pub fn read_id_block(&self) -> Result<Option<SignedIdBlock>, IdBlockFileError> {
        match &self.snp {
            Some(Snp { id_block: Some(block), id_auth: Some(auth), .. }) => SignedIdBlock::read(block, auth).map(Some),
            _ => Ok(None),
        }
    }

    /// What the guest's kernel sets aside of its memory before anything can use it, in MiB. Elsewhere than with Secure Execution it is a share of
    /// the memory, which Linux chooses.
    #[must_use]
    pub fn memory_set_aside_mib(&self) -> u32 {
        if self.tee == TeeKind::Se { self.se.clone().unwrap_or_default().swiotlb_mib.mib() } else { 0 }
    }

    /// Whether a process carries the guest's vsock, and not the kernel.
    #[must_use]
    pub fn vsock_by_process(&self) -> bool {
        match self.vsock {
            VsockMode::VhostUser => true,
            VsockMode::Kernel => false,
            VsockMode::Auto => self.tee == TeeKind::Sim,
        }
    }

    /// The QEMU binary.
    #[must_use]
    pub fn effective_qemu(&self) -> PathBuf {
        self.qemu.clone().unwrap_or_else(|| self.tee.default_qemu().into())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SIM: &str = r#"
tee = "sim"
firmware = "/usr/share/kata-cc/sim.fd"
kernel = "/usr/share/kata-cc/vmlinuz"
initrd = "/usr/share/kata-cc/initrd"
default_vcpus = 0
default_memory_mib = 256
[simulation]
keys = "/var/lib/kata-cc/tee-sim"
"#;

    #[test]
    fn parses_a_minimal_configuration_of_each_tee() {
        Config::parse(SIM).unwrap();
        for tee in ["snp", "tdx"] {
            Config::parse(&format!("tee = \"{tee}\"\nfirmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"\n")).unwrap();
        }
        Config::parse("tee = \"se\"\nkernel = \"/k\"\n").unwrap();
    }

    #[test]
    fn ac_07_flags_and_models_beyond_the_list_are_refused_by_the_tees_own_list() {
        let class = |tee: &str, model: &str| {
            let files = if tee == "se" { "" } else { "firmware = \"/f\"\ninitrd = \"/i\"\n" };
            Config::parse(&format!("tee = \"{tee}\"\nkernel = \"/k\"\n{files}cpu_model = \"{model}\"\n"))
        };
        for (tee, right, wrong, names) in [
            ("snp", "EPYC-Genoa-v2", "EPYC-v4,pmu=off", "expected one of EPYC, EPYC-v1,"),
            ("tdx", "host", "host,pmu=off", "expected host with tee = \"tdx\", found \"host,pmu=off\""),
            ("se", "host", "max", "expected host with tee = \"se\", found \"max\""),
        ] {
            class(tee, right).unwrap();
            let error = class(tee, wrong).unwrap_err().to_string();
            assert!(error.contains("`cpu_model`") && error.contains(names), "{error}");
        }
        Config::parse(&format!("cpu_model = \"max\"\n{SIM}")).unwrap();
        refused(&format!("cpu_model = \"EPYC-v4\"\n{SIM}"), "expected max with tee = \"sim\"");
    }

    #[test]
    fn default_file_parses() {
        let text = include_str!("../../shim/config.toml.example");
        Config::parse(text).unwrap();
    }

    #[track_caller]
    fn refused(text: &str, names: &str) {
        let error = Config::parse(text).unwrap_err();
        let full = format!("{error} {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default());
        assert!(full.contains(names), "{full}");
    }

    #[test]
    fn refuses_unknown_keys_and_contradictions() {
        refused(&SIM.replace("default_vcpus", "default_vcpu"), "default_vcpu");
        refused(&SIM.replace("tee = \"sim\"", ""), "tee");
        refused(&SIM.replace("\"sim\"", "\"none\""), "none");
        refused(&SIM.replace("\"sim\"", "\"snp\""), "simulation");
        refused(&SIM.replace("firmware = \"/usr/share/kata-cc/sim.fd\"", ""), "firmware");
        refused(&SIM.replace("\"/usr/share/kata-cc/vmlinuz\"", "\"vmlinuz\""), "absolute");
        refused(&SIM.replace("default_vcpus = 0", "default_vcpus = 0.5"), "in quotes");
        refused(&format!("allowed_annotations = [\"kernel\"]\n{SIM}"), "kernel");
        refused("tee = \"snp\"\nfirmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"\nvsock = \"vhost-user\"", "vsock");
        let kernel = "tee = \"snp\"\nfirmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"\nnode_blobs = \"/b\"";
        refused(kernel, "--blobs-vsock");
        refused(&format!("vsock = \"kernel\"\nnode_blobs = \"/b\"\n{SIM}"), "--blobs-vsock");
        refused(&format!("node_blobs = \"b\"\n{SIM}"), "absolute");
        refused("tee = \"se\"\nkernel = \"/k\"\n[se]\nswiotlb_mib = 500", "power of two");
        refused("tee = \"se\"\nkernel = \"/k\"\nmax_memory_mib = 1023", "less the 512 of [se] swiotlb_mib");
        Config::parse("tee = \"se\"\nkernel = \"/k\"\nmax_memory_mib = 1024").unwrap();
        for key in ["id_block", "id_auth"] {
            let snp = "tee = \"snp\"\nfirmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"\n[snp]\n";
            refused(&format!("{snp}{key} = \"/x\""), "found one alone");
            refused(
                &format!("{snp}id_block = \"/x\"\nid_auth = \"/x\"").replace(&format!("{key} = \"/"), &format!("{key} = \"")),
                "absolute",
            );
        }
        refused(&format!("{SIM}\n[se]"), "tee = \"se\" only");
        refused("tee = \"se\"\nfirmware = \"/f\"\nkernel = \"/k\"\n", "firmware");
        refused(
            &format!("default_memory_mib = 1\nmax_memory_mib = 0\n{}", SIM.replace("default_memory_mib = 256", "")),
            "default_memory_mib",
        );
    }
}
