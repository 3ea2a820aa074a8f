//! The files the lab works with, all made by `cargo xtask` and found below one directory.
//!
//! Layout: `bin/` our binaries and `vhost-device-vsock`; `guest/` kernel, initrds, firmware; `debian/<name>/` packages
//! merely unpacked.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Where things are.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    root: PathBuf,
}

impl Artifacts {
    /// Checks that what every run needs is there, and names what is missing.
    pub(crate) fn at(root: &Path) -> Result<Self> {
        let artifacts = Artifacts { root: root.canonicalize().unwrap_or_else(|_| root.to_owned()) };
        let needed = ["kata-cc", "kata-cc-kbs", "kata-cc-node", "kata-cc-tee-sim", "containerd-shim-kata-cc-v2", "vhost-device-vsock"]
            .map(|name| artifacts.bin(name))
            .into_iter()
            .chain([artifacts.kernel(), artifacts.initrd(), artifacts.firmware(), artifacts.cosign()]);
        let missing: Vec<String> = needed.filter(|path| !path.is_file()).map(|path| path.display().to_string()).collect();
        if !missing.is_empty() {
            bail!("missing in the artifact directory:\n  {}\nrun the lab through `cargo xtask`, which builds them", missing.join("\n  "));
        }
        Ok(artifacts)
    }

    /// One of our binaries, or the vsock helper.
    pub(crate) fn bin(&self, name: &str) -> PathBuf {
        self.root.join("bin").join(name)
    }

    /// The directory of our binaries, for a PATH.
    pub(crate) fn bin_dir(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// The guest kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.root.join("guest/vmlinuz")
    }

    /// The initrd of the simulation.
    pub(crate) fn initrd(&self) -> PathBuf {
        self.root.join("guest/simulation.cpio")
    }

    /// The initrd of production: the agent and nothing of the simulation.
    pub(crate) fn production_initrd(&self) -> PathBuf {
        self.root.join("guest/production.cpio")
    }

    /// The initrd of the start bench's yardstick.
    pub(crate) fn bare_initrd(&self) -> PathBuf {
        self.root.join("guest/bare.cpio")
    }

    /// The agent binary, as it is in the initrds.
    pub(crate) fn agent(&self) -> PathBuf {
        self.root.join("guest/kata-cc-agent")
    }

    /// The firmware of the simulation.
    pub(crate) fn firmware(&self) -> PathBuf {
        self.root.join("guest/firmware-sim.bin")
    }

    /// Debian's cosign, unpacked.
    pub(crate) fn cosign(&self) -> PathBuf {
        self.debian("cosign-2.5/usr/bin/cosign")
    }

    /// A file of a Debian package that is merely unpacked.
    pub(crate) fn debian(&self, path: &str) -> PathBuf {
        self.root.join("debian").join(path)
    }
}
