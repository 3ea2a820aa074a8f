//! A containerd of the lab's own, with the CRI plugin, our snapshotter and one runtime handler per shim configuration.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::artifacts::Artifacts;
use crate::namespaces::{BRIDGE, SUBNET};
use crate::process::{Ready, Service};
use crate::registry::Registry;

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Version {
    /// Debian 12's own.
    #[value(name = "1.6")]
    V1_6,
    /// Debian 13's package, unpacked.
    #[value(name = "1.7")]
    V1_7,
    /// Debian sid's package, unpacked.
    #[value(name = "2.1")]
    V2_1,
}

impl Version {
    fn binary(self, artifacts: &Artifacts) -> PathBuf {
        match self {
            Version::V1_6 => PathBuf::from("/usr/bin/containerd"),
            Version::V1_7 => artifacts.debian("containerd-1.7/usr/bin/containerd"),
            Version::V2_1 => artifacts.debian("containerd-2.1/usr/bin/containerd"),
        }
    }
}

/// A runtime handler: its name and the shim's configuration file.
#[derive(Debug, Clone)]
pub(crate) struct Handler {
    /// Name, as a RuntimeClass's `handler`.
    pub(crate) name: String,
    /// TOML file of the shim.
    pub(crate) config: PathBuf,
}

/// containerd and the snapshotter beside it.
#[derive(Debug)]
pub(crate) struct Containerd {
    containerd: Service,
    node: Service,
    version: Version,
    work: PathBuf,
    artifacts: Artifacts,
}

const RUN: &str = "/run/kcc-lab";

impl Containerd {
    /// Its socket.
    pub(crate) fn socket() -> PathBuf {
        PathBuf::from(RUN).join("containerd.sock")
    }

    /// Writes the configuration and starts `kata-cc-node` and containerd.
    pub(crate) fn start(artifacts: &Artifacts, work: &Path, version: Version, handlers: &[Handler]) -> Result<Self> {
        fs::create_dir_all(RUN)?;
        let work = work.join(format!("containerd-{version:?}"));
        fs::create_dir_all(work.join("cni"))?;
        fs::write(work.join("cni/10-lab.conflist"), cni(&work)?)?;
        let certs = work.join("certs.d").join(Registry::address());
        fs::create_dir_all(&certs)?;
        fs::write(
            certs.join("hosts.toml"),
            format!("server = \"http://{0}\"\n[host.\"http://{0}\"]\n  capabilities = [\"pull\", \"resolve\"]\n", Registry::address()),
        )?;
        let config = match version {
            Version::V1_6 | Version::V1_7 => config_v2(&work, version, handlers)?,
            Version::V2_1 => config_v3(&work, handlers)?,
        };
        fs::write(work.join("config.toml"), config)?;
        let node = start_node(artifacts, &work)?;
        let containerd = start_containerd(artifacts, &work, version)?;
        Ok(Containerd { containerd, node, version, work, artifacts: artifacts.clone() })
    }

    /// Kills containerd as a crash would and starts it again.
    pub(crate) fn crash_and_restart(&mut self) -> Result<()> {
        self.containerd.crash()?;
        self.containerd = start_containerd(&self.artifacts, &self.work, self.version)?;
        Ok(())
    }

    /// Kills the snapshotter as a crash would and starts it again.
    pub(crate) fn crash_and_restart_node(&mut self) -> Result<()> {
        self.node.crash()?;
        self.node = start_node(&self.artifacts, &self.work)?;
        Ok(())
    }

    /// Process ids of the two, for the list of what may run.
    pub(crate) fn pids(&self) -> [u32; 2] {
        [self.containerd.pid(), self.node.pid()]
    }

    /// Where the node has its blobs.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.work.join("node/blobs")
    }

    /// The socket of the node's blob cache.
    pub(crate) fn blobs_socket() -> PathBuf {
        PathBuf::from(RUN).join("blobs.sock")
    }

    /// Bytes of layer blobs in containerd's content store: what the host downloaded of what it must not need.
    pub(crate) fn content_bytes(&self) -> Result<u64> {
        let mut sum = 0;
        let blobs = self.work.join("root/io.containerd.content.v1.content/blobs/sha256");
        for entry in fs::read_dir(&blobs).with_context(|| format!("cannot list {}", blobs.display()))? {
            sum += entry?.metadata()?.len();
        }
        Ok(sum)
    }
}

fn start_node(artifacts: &Artifacts, work: &Path) -> Result<Service> {
    let socket = PathBuf::from(RUN).join("node.sock");
    let blobs = Containerd::blobs_socket();
    for left in [&socket, &blobs] {
        let _ = fs::remove_file(left);
    }
    Service::start(
        "kata-cc-node",
        Command::new(artifacts.bin("kata-cc-node"))
            .arg("--socket")
            .arg(&socket)
            .arg("--state")
            .arg(work.join("node"))
            .arg("--blobs-socket")
            .arg(blobs),
        work.join("node.log"),
        &Ready::Unix(socket),
    )
}

fn start_containerd(artifacts: &Artifacts, work: &Path, version: Version) -> Result<Service> {
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", artifacts.bin_dir().display());
    Service::start(
        "containerd",
        Command::new(version.binary(artifacts)).arg("--config").arg(work.join("config.toml")).env("PATH", path),
        work.join("containerd.log"),
        &Ready::Unix(Containerd::socket()),
    )
}

fn cni(work: &Path) -> Result<String> {
    Ok(serde_json::to_string_pretty(&serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": work.join("ipam"),
                "ranges": [[{ "subnet": SUBNET, "rangeStart": "10.88.77.16" }]],
                "routes": [{ "dst": "0.0.0.0/0" }]
            }
        }]
    }))?)
}

fn head(work: &Path, version: u8) -> String {
    format!(
        r#"version = {version}
root = "{root}"
state = "{RUN}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "{RUN}/containerd.sock"

[ttrpc]
  address = "{RUN}/containerd.sock.ttrpc"

[debug]
  level = "debug"

[proxy_plugins.kata-cc]
  type = "snapshot"
  address = "{RUN}/node.sock"
"#,
        root = work.join("root").display()
    )
}

fn config_v2(work: &Path, version: Version, handlers: &[Handler]) -> Result<String> {
    let mut text = head(work, 2);
    write!(
        text,
        r#"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{registry}/kata-cc/pause:pause"
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{certs}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "kata-cc"
    default_runtime_name = "kata-cc"
"#,
        registry = Registry::address(),
        cni = work.join("cni").display(),
        certs = work.join("certs.d").display(),
    )?;
    for handler in handlers {
        write!(
            text,
            r#"    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
      runtime_type = "io.containerd.kata-cc.v2"
      pod_annotations = ["io.katacontainers.*"]
      privileged_without_host_devices = true
{snapshotter}      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
        ConfigPath = "{config}"
"#,
            name = handler.name,
            config = handler.config.display(),
            snapshotter = if version == Version::V1_6 { "" } else { "      snapshotter = \"kata-cc\"\n" },
        )?;
    }
    Ok(text)
}

fn config_v3(work: &Path, handlers: &[Handler]) -> Result<String> {
    let mut text = head(work, 3);
    write!(
        text,
        r#"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "kata-cc"
  use_local_image_pull = true
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{registry}/kata-cc/pause:pause"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{certs}"

[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "kata-cc"
"#,
        registry = Registry::address(),
        cni = work.join("cni").display(),
        certs = work.join("certs.d").display(),
    )?;
    for handler in handlers {
        write!(
            text,
            r#"    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{name}]
      runtime_type = "io.containerd.kata-cc.v2"
      pod_annotations = ["io.katacontainers.*"]
      privileged_without_host_devices = true
      snapshotter = "kata-cc"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{name}.options]
        ConfigPath = "{config}"
"#,
            name = handler.name,
            config = handler.config.display(),
        )?;
    }
    Ok(text)
}
