//! The one directory that everything is built into, and that the lab works with: `bin/` host programs and the vsock
//! helper, `guest/` the image, `debian/` packages merely unpacked.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::context::{Context, copy_whole};
use crate::setup::{tools, unpacked};

/// How host programs are built.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Profile {
    /// Build host programs unoptimised: sooner done, but not for measuring
    #[arg(long)]
    dev: bool,
}

/// Package and program of everything that runs on a host.
const HOST: &[(&str, &str)] = &[
    ("kata-cc-cli", "kata-cc"),
    ("kata-cc-kbs", "kata-cc-kbs"),
    ("kata-cc-shim", "containerd-shim-kata-cc-v2"),
    ("kata-cc-node", "kata-cc-node"),
    ("kata-cc-tee-sim", "kata-cc-tee-sim"),
    ("kata-cc-lab", "kata-cc-lab"),
];

/// The directory.
pub(crate) struct Artifacts {
    root: PathBuf,
}

impl Artifacts {
    /// That of a checkout.
    pub(crate) fn of(cx: &Context) -> Self {
        Self { root: cx.cache("artifacts") }
    }

    /// Its root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the image is.
    pub(crate) fn guest(&self) -> PathBuf {
        self.root.join("guest")
    }

    /// A program.
    pub(crate) fn bin(&self, name: &str) -> PathBuf {
        self.root.join("bin").join(name)
    }

    /// Copies the image to where a person wants it.
    pub(crate) fn copy_guest(&self, to: &Path) -> Result<()> {
        for entry in fs::read_dir(self.guest())? {
            let from = entry?.path();
            let name = from.file_name().context("a directory's entry has a name")?;
            copy_whole(&from, &to.join(name))?;
        }
        println!("{}", to.display());
        Ok(())
    }

    /// Puts what [`crate::setup`] fetched where the lab expects it.
    pub(crate) fn link_tools(&self, cx: &Context) -> Result<()> {
        copy_whole(&tools::vsock_helper(cx), &self.bin(tools::CRATE))?;
        let debian = self.root.join("debian");
        fs::create_dir_all(&debian)?;
        for package in unpacked::PACKAGES {
            let link = debian.join(package.directory);
            if fs::symlink_metadata(&link).is_ok() {
                fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
            }
            if package.is_there(cx) {
                symlink(package.place(cx), &link).with_context(|| format!("cannot link {}", link.display()))?;
            }
        }
        Ok(())
    }
}

/// Builds the host programs.
pub(crate) fn host(cx: &Context, profile: Profile) -> Result<()> {
    let mut cargo = cx.cargo();
    cargo.args(["build", "--locked"]);
    for (package, program) in HOST {
        cargo.args(["-p", package, "--bin", program]);
    }
    let folder = if profile.dev {
        "debug"
    } else {
        cargo.arg("--release");
        "release"
    };
    cx.run.logged(&format!("build host programs ({folder})"), &mut cargo)?;
    let artifacts = Artifacts::of(cx);
    for (_, program) in HOST {
        copy_whole(&cx.target().join(folder).join(program), &artifacts.bin(program))?;
    }
    eprintln!("    host programs are in {}", artifacts.bin("").display());
    Ok(())
}
