//! Who pulls, and how: each contender turns an image into a plan of commands.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::images::{Case, Image};
use crate::registry::Registry;
use crate::service::Service;

/// Somebody who pulls and unpacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contender {
    /// kata-cc-image-pull
    Ours,
    /// The machine's containerd, its own decompression
    Containerd,
    /// The same containerd with the program `unpigz`, which it uses where it finds it
    ContainerdUnpigz,
    /// skopeo copy, then umoci unpack
    SkopeoUmoci,
    /// curl, pigz or zstd, and tar, a pipeline for each layer and as many at once as there are cores. Checks no digest: the bound
    Pipeline,
}

impl Contender {
    pub(crate) const ALL: &[Self] = &[Self::Ours, Self::Containerd, Self::ContainerdUnpigz, Self::SkopeoUmoci, Self::Pipeline];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Containerd => "containerd",
            Self::ContainerdUnpigz => "containerd + unpigz",
            Self::SkopeoUmoci => "skopeo + umoci",
            Self::Pipeline => "pipeline",
        }
    }

    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Ours => &[],
            Self::Containerd => &["containerd", "ctr", "unshare"],
            Self::ContainerdUnpigz => &["containerd", "ctr", "unshare", "unpigz"],
            Self::SkopeoUmoci => &["skopeo", "umoci"],
            Self::Pipeline => &["bash", "curl", "pigz", "zstd", "tar"],
        }
    }

    /// Why this contender is not to be had for an image, if so.
    pub(crate) fn cannot(self, image: &Image) -> Option<&'static str> {
        match (self, image.case) {
            (Self::Ours, _) => None,
            (_, Case::Encrypted) => Some("has no key provider here; ours is compared with what it did with the plain image"),
            (Self::ContainerdUnpigz, Case::Zstd) => Some("uses unpigz for gzip only"),
            _ => None,
        }
    }

    /// What is to be done. Everything it makes lies below `destination`.
    pub(crate) fn plan(self, image: &Image, registry: &Registry, destination: &Path) -> Result<Plan> {
        match self {
            Self::Ours => ours(image, registry, destination),
            Self::Containerd => containerd(image, registry, destination, false),
            Self::ContainerdUnpigz => containerd(image, registry, destination, true),
            Self::SkopeoUmoci => Ok(skopeo(image, registry, destination)),
            Self::Pipeline => pipeline(image, registry, destination),
        }
    }
}

impl std::fmt::Display for Contender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Commands to be measured.
pub(crate) struct Plan {
    /// A service that does the work, started before anything is measured.
    pub(crate) daemon: Option<Service>,
    /// Steps one after the other; of each the commands side by side, as many at once as there are cores.
    pub(crate) steps: Vec<Vec<Command>>,
    /// Whether the last line of standard output is the peak of memory in KiB.
    pub(crate) says_peak: bool,
    /// Where files will lie.
    pub(crate) unpacked: PathBuf,
}

/// Fails if a program is missing that a contender needs.
pub(crate) fn check_programs(contenders: &[Contender]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let needed = contenders.iter().flat_map(|contender| contender.programs()).chain(&["docker-registry", "mkfs.ext4", "mount", "zstd"]);
    let mut missing: Vec<&str> = needed.copied().filter(|program| !there(program)).collect();
    missing.sort_unstable();
    missing.dedup();
    if !missing.is_empty() {
        bail!("missing: {}; `cargo xtask setup` installs them, or name contenders that do without (--contender)", missing.join(", "));
    }
    Ok(())
}

fn ours(image: &Image, registry: &Registry, destination: &Path) -> Result<Plan> {
    let store = destination.join("store");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["ours", "--reference", &image.pinned(registry), "--registry", &registry.address(), "--store"]).arg(&store);
    Ok(Plan { daemon: None, steps: vec![vec![command]], says_peak: true, unpacked: store.join("layers") })
}

fn containerd(image: &Image, registry: &Registry, destination: &Path, unpigz: bool) -> Result<Plan> {
    let (root, state) = (destination.join("root"), destination.join("state"));
    let socket = state.join("containerd.sock");
    let config = destination.join("config.toml");
    let text = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
         \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n\
         [grpc]\n  address = \"{}\"\n",
        root.display(),
        state.display(),
        socket.display()
    );
    fs::write(&config, text)?;
    // A mount namespace of its own: a mount that is left when it ends is gone with it.
    let mut daemon = Command::new("unshare");
    daemon.args(["--mount", "--propagation", "private", "containerd", "--log-level", "error", "--config"]).arg(&config);
    if !unpigz {
        daemon.env("CONTAINERD_DISABLE_PIGZ", "1");
    }
    let daemon = Service::start("containerd", &mut daemon, destination.join("containerd.log"), || UnixStream::connect(&socket).is_ok())?;
    let mut ctr = Command::new("ctr");
    ctr.arg("--address").arg(&socket).args(["images", "pull", "--plain-http", "--snapshotter", "overlayfs", &image.tagged(registry)]);
    let unpacked = root.join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    Ok(Plan { daemon: Some(daemon), steps: vec![vec![ctr]], says_peak: false, unpacked })
}

fn skopeo(image: &Image, registry: &Registry, destination: &Path) -> Plan {
    let layout = format!("{}:image", destination.join("layout").display());
    let bundle = destination.join("bundle");
    let mut copy = Command::new("skopeo");
    let (from, to) = (format!("docker://{}", image.tagged(registry)), format!("oci:{layout}"));
    copy.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &from, &to]);
    let mut unpack = Command::new("umoci");
    unpack.args(["unpack", "--image", &layout]).arg(&bundle);
    Plan { daemon: None, steps: vec![vec![copy], vec![unpack]], says_peak: false, unpacked: bundle.join("rootfs") }
}

fn pipeline(image: &Image, registry: &Registry, destination: &Path) -> Result<Plan> {
    let unpacked = destination.join("layers");
    fs::create_dir(&unpacked)?;
    let decompress = if image.case == Case::Zstd { "zstd -q -dc" } else { "pigz -dc" };
    let mut commands = Vec::new();
    for (number, layer) in image.layers.iter().enumerate() {
        let directory = unpacked.join(number.to_string());
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
        let mut command = Command::new("bash");
        let script = format!("curl -sSf \"$1\" | {decompress} | tar -x --numeric-owner -p -C \"$2\"");
        command.args(["-o", "pipefail", "-c", &script, "pipeline", &image.blob_url(registry, layer)]).arg(&directory);
        commands.push(command);
    }
    Ok(Plan { daemon: None, steps: vec![commands], says_peak: false, unpacked })
}

/// Files and links below a directory, without directories.
pub(crate) fn count_files(directory: &Path) -> Result<u64> {
    let mut count = 0;
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                count += 1;
            }
        }
    }
    Ok(count)
}
