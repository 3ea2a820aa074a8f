//! Debian packages of the machine's own release.
//!
//! Invariant: no service is started or stopped by installing them. Debian asks `policy-rc.d` before it touches one;
//! where there is none, one that says no stands in while packages are installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::context::Context;
use crate::process;

/// A package and what it is for.
pub(crate) struct Package {
    /// Debian's name.
    pub(crate) name: &'static str,
    /// What for.
    pub(crate) why: &'static str,
    /// A program that will do, wherever it came from: installing over it could remove what the machine has.
    instead: Option<&'static str>,
}

const fn package(name: &'static str, why: &'static str) -> Package {
    Package { name, why, instead: None }
}

const fn unless(program: &'static str, name: &'static str, why: &'static str) -> Package {
    Package { name, why, instead: Some(program) }
}

/// Package with the kernel's source; see [`crate::kernel`].
pub(crate) const LINUX_SOURCE: &str = "linux-source-6.12";

const PACKAGES: &[Package] = &[
    package("protobuf-compiler", "builds the gRPC bindings of containerd's interfaces"),
    package(LINUX_SOURCE, "source of the guest kernel"),
    package("build-essential", "builds the guest kernel"),
    package("flex", "builds the guest kernel"),
    package("bison", "builds the guest kernel"),
    package("bc", "builds the guest kernel"),
    package("libelf-dev", "builds the guest kernel"),
    package("libssl-dev", "builds the guest kernel"),
    package("lz4", "compresses the guest kernel"),
    package("xz-utils", "unpacks the kernel's source"),
    package("patch", "changes the kernel's source"),
    package("zstd", "unpacks Debian packages of other releases"),
    package("pigz", "decompresses in the pull bench's bound, and for containerd there"),
    package("cpio", "lets a person look into an initrd"),
    package("qemu-system-x86", "runs the virtual machines"),
    package("qemu-system-data", "has qboot, the simulation's firmware"),
    unless("containerd", "containerd", "what Kubernetes talks to; the tests run one of their own"),
    unless("runc", "runc", "the plain runtime that benches compare with"),
    package("docker-registry", "the registry of the tests"),
    package("skopeo", "copies and encrypts test images"),
    package("umoci", "builds test images"),
    package("busybox-static", "content of test images"),
    package("containernetworking-plugins", "pod networks of the tests"),
    package("iproute2", "network namespaces of the tests"),
    package("iptables", "used by the network plugins"),
    package("openssl", "makes the test broker's certificates"),
    package("curl", "reads the test broker's metrics"),
    package("postgresql", "the database that brokers of the tests share; each test runs one of its own"),
    package("softhsm2", "an HSM in software, for the broker's keys; each test has tokens of its own"),
    package("opensc", "makes keys in that HSM (pkcs11-tool)"),
    package("gcc-s390x-linux-gnu", "builds tests for s390x"),
    package("libc6-dev-s390x-cross", "the C library of tests for s390x"),
    package("qemu-user-static", "runs tests for s390x"),
    package("python3-venv", "has sev-snp-measure, which launch digests are compared with, and OpenBao"),
];

/// Packages that are not there.
pub(crate) fn missing() -> Result<Vec<&'static Package>> {
    let installed = process::output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status} ${Package}\n"]))
        .context("this prepares Debian machines only; elsewhere install the programs that `cargo xtask setup` names by hand")?;
    let is_installed = |name: &str| installed.lines().any(|line| line.strip_prefix("installed ") == Some(name));
    Ok(PACKAGES.iter().filter(|p| !is_installed(p.name) && !p.instead.is_some_and(on_path)).collect())
}

/// The version of an installed package.
pub(crate) fn version_of(package: &str) -> Result<String> {
    let version = process::output(Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]))
        .with_context(|| format!("Debian package {package} is not installed; run `cargo xtask setup`"))?;
    Ok(version.trim().to_owned())
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Installs what is missing.
pub(crate) fn install(cx: &Context) -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("These Debian packages are missing and will be installed:");
    for package in &missing {
        eprintln!("  {:<28} {}", package.name, package.why);
    }
    let names: Vec<_> = missing.iter().map(|p| p.name).collect();
    if !nix::unistd::geteuid().is_root() {
        bail!("installing packages needs root; run as root: apt-get install --no-install-recommends {}", names.join(" "));
    }
    let _policy = NoServices::ensure()?;
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8").args(["-q", "-y"]).args(args);
        apt
    };
    cx.run.logged("apt-get update", &mut apt(&["update"]))?;
    let mut install = apt(&["install", "--no-install-recommends"]);
    cx.run.logged("apt-get install", install.args(names))?;
    Ok(())
}

/// Stands in for a policy that keeps services as they are, for as long as it lives.
struct NoServices {
    made: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn ensure() -> Result<Self> {
        if Path::new(POLICY).exists() {
            // The machine's own policy decides; we neither replace nor question it.
            return Ok(Self { made: false });
        }
        fs::write(POLICY, "#!/bin/sh\n# Made by `cargo xtask setup`; gone when it ends. 101: action forbidden.\nexit 101\n")
            .with_context(|| format!("cannot write {POLICY}"))?;
        let made = Self { made: true };
        fs::set_permissions(POLICY, PermissionsExt::from_mode(0o755)).with_context(|| format!("cannot make {POLICY} executable"))?;
        Ok(made)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.made
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("cannot remove {POLICY}: {error}; remove it by hand, or no service will start when a package is installed");
        }
    }
}
