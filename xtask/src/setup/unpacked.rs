//! Packages of other Debian releases: downloaded and unpacked into the cache, never installed.
//!
//! The machine's package manager does the fetching, with directories of its own, so that the machine's lists, cache
//! and configuration stay as they are; signatures are checked with Debian's keyring. The mirror is the machine's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context as _, Result, bail};
use kata_cc_firmware::ready::{READY, ReadyFirmware};

use crate::context::{Context, write_whole};
use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Written last: a directory with it is complete.
const STAMP: &str = "kata-cc-package.txt";

/// A package to unpack.
pub(crate) struct Package {
    /// Directory below the artifacts' `debian/`; ends with the version that is wanted.
    pub(crate) directory: &'static str,
    /// Debian's name.
    pub(crate) package: &'static str,
    /// Which release.
    pub(crate) suite: &'static str,
    /// Which version.
    pub(crate) version: Version,
    /// What for.
    pub(crate) why: &'static str,
    /// Without it only some tests cannot run.
    optional: bool,
    /// What is unpacked with it.
    with: With,
}

/// Which versions will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// Those that start so.
    Starts(&'static str),
    /// This one: something is known of its very bytes.
    Is(&'static str),
}

impl Version {
    fn fits(self, version: &str) -> bool {
        match self {
            Self::Starts(start) => version.starts_with(start),
            Self::Is(exactly) => version == exactly,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starts(start) => write!(f, "version {start}…"),
            Self::Is(exactly) => write!(f, "version {exactly}"),
        }
    }
}

/// What is unpacked with a package.
#[derive(Clone, Copy)]
enum With {
    /// Nothing: the machine's own libraries serve it.
    Nothing,
    /// These packages, and everything they all depend on: programs of another release need its loader and libraries ([`Package::place`] is
    /// then like a root directory of that release).
    Dependencies(&'static [&'static str]),
}

/// A package that has a row in the table of ready firmware.
const fn firmware(directory: &'static str, package: &'static str, version: &'static str, suite: &'static str) -> Package {
    let version = Version::Is(version);
    Package { directory, package, suite, version, why: "check of the ready firmware it has", optional: true, with: With::Nothing }
}

/// All of them.
pub(crate) const PACKAGES: &[Package] = &[
    Package {
        directory: "cosign-2.5",
        package: "cosign",
        suite: "trixie",
        version: Version::Starts("2.5"),
        why: "signs test images as users do",
        optional: false,
        with: With::Nothing,
    },
    Package {
        directory: "containerd-1.7",
        package: "containerd",
        suite: "trixie",
        version: Version::Starts("1.7"),
        why: "tests with containerd 1.7",
        optional: true,
        with: With::Nothing,
    },
    Package {
        directory: "containerd-2.1",
        package: "containerd",
        suite: "sid",
        version: Version::Starts("2.1"),
        why: "tests with containerd 2.1",
        optional: true,
        with: With::Nothing,
    },
    Package {
        directory: "qemu-10",
        package: "qemu-system-x86",
        suite: "trixie",
        version: Version::Starts("1:10."),
        why: "launch plans before QEMU 10",
        optional: true,
        with: With::Dependencies(&["qemu-system-s390x"]),
    },
    Package {
        directory: "qemu-11",
        package: "qemu-system-x86",
        suite: "sid",
        version: Version::Starts("1:11."),
        why: "launch plans before QEMU 11",
        optional: true,
        with: With::Dependencies(&["qemu-system-s390x"]),
    },
    firmware("firmware-amdsev-2026.08", "ovmf-amdsev", "2026.08+ds-2", "sid"),
    firmware("firmware-inteltdx-2026.08", "ovmf-inteltdx", "2026.08+ds-2", "sid"),
    firmware("firmware-ovmf-2025.02", "ovmf", "2025.02-8+deb13u1", "trixie"),
    firmware("firmware-ovmf-2022.11", "ovmf", "2022.11-6+deb12u2", "bookworm"),
];

impl Package {
    /// Where it is unpacked.
    pub(crate) fn place(&self, cx: &Context) -> PathBuf {
        cx.cache("debian").join(self.directory)
    }

    /// Whether it is there.
    pub(crate) fn is_there(&self, cx: &Context) -> bool {
        self.place(cx).join(STAMP).is_file()
    }
}

/// Each build of the table of ready firmware, with the package that has it.
pub(crate) fn ready_firmware() -> impl Iterator<Item = (&'static Package, &'static ReadyFirmware)> {
    let package_of = |build: &ReadyFirmware| {
        PACKAGES.iter().find(|p| p.package == build.package && p.suite == build.suite && p.version == Version::Is(build.version))
    };
    READY.iter().filter_map(move |build| Some((package_of(build)?, build)))
}

/// Those that are not there.
pub(crate) fn missing(cx: &Context) -> Vec<&'static Package> {
    PACKAGES.iter().filter(|p| !p.is_there(cx)).collect()
}

/// Fetches what is missing.
pub(crate) fn fetch(cx: &Context) -> Result<()> {
    let missing = missing(cx);
    if missing.is_empty() {
        return Ok(());
    }
    let mirror = mirror()?;
    for package in missing {
        match fetch_one(cx, package, &mirror) {
            Ok(()) => {}
            Err(error) if package.optional => {
                eprintln!("MISSING: {} of {}: {error:#}\n  Without it: no {}.", package.package, package.suite, package.why);
            }
            Err(error) => return Err(error.context(format!("cannot fetch {} of Debian {}", package.package, package.suite))),
        }
    }
    Ok(())
}

/// The archive the machine's own packages come from.
fn mirror() -> Result<String> {
    let targets =
        process::output(Command::new("apt-get").args(["indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"]))?;
    let own = targets.lines().find_map(|line| line.strip_prefix("Debian|"));
    own.map(str::to_owned)
        .context("the machine's package sources have no Debian archive; run `apt-get update`, or name one in /etc/apt/sources.list")
}

fn fetch_one(cx: &Context, package: &Package, mirror: &str) -> Result<()> {
    let private = cx.cache("apt").join(package.suite);
    let download = private.join("download");
    for dir in ["lists/partial", "cache/archives/partial", "download"] {
        fs::create_dir_all(private.join(dir)).with_context(|| format!("cannot make {}", private.display()))?;
    }
    write_whole(&private.join("sources.list"), format!("deb [signed-by={KEYRING}] {mirror} {} main\n", package.suite).as_bytes())?;
    write_whole(&private.join("status"), b"")?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        for (option, value) in [
            ("Dir::Etc::SourceList", private.join("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::Etc::Preferences", "/dev/null".into()),
            ("Dir::Etc::PreferencesParts", "/dev/null".into()),
            ("Dir::State::Lists", private.join("lists")),
            ("Dir::State::Status", private.join("status")),
            ("Dir::Cache", private.join("cache")),
            // The cache may lie where the package manager's own user cannot write.
            ("APT::Sandbox::User", "root".into()),
            ("Acquire::Languages", "none".into()),
        ] {
            apt.arg("-o").arg(format!("{option}={}", value.display()));
        }
        apt.env("LC_ALL", "C.UTF-8").arg("-q").current_dir(&download);
        apt
    };
    let what = format!("{} of Debian {}", package.package, package.suite);
    cx.run.logged(&format!("list of packages for {what}"), apt().arg("update"))?;
    let files = match package.with {
        With::Nothing => {
            cx.run.logged(&format!("download {what}"), apt().args(["download", package.package]))?;
            download.clone()
        }
        With::Dependencies(further) => {
            // Against a list of installed packages that is empty, so that nothing is taken from the machine.
            let mut install = apt();
            install.args(["install", "--yes", "--download-only", "--no-install-recommends", package.package]).args(further);
            cx.run.logged(&format!("download {what} and what it needs"), &mut install)?;
            private.join("cache/archives")
        }
    };
    let result = unpack(cx, package, &files);
    // Packages are large, and the unpacked tree is what is kept.
    fs::remove_dir_all(&private).with_context(|| format!("cannot remove {}", private.display()))?;
    result
}

fn unpack(cx: &Context, package: &Package, files: &Path) -> Result<()> {
    let mut files: Vec<PathBuf> = fs::read_dir(files)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "deb"));
    files.sort();
    let own = format!("{}_", package.package);
    let is_own = |file: &&PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&own));
    let Some(file) = files.iter().find(is_own) else { bail!("no package {} among the {} downloaded", package.package, files.len()) };
    let field = |name: &str| process::output(Command::new("dpkg-deb").arg("-f").arg(file).arg(name)).map(|v| v.trim().to_owned());
    let version = field("Version")?;
    if !package.version.fits(&version) {
        bail!("expected {}, found {version}: Debian {} has moved on", package.version, package.suite);
    }
    let place = package.place(cx);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;
    for file in &files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        process::output(Command::new("dpkg-deb").arg("-x").arg(file).arg(&place)).with_context(|| format!("cannot unpack {name}"))?;
    }
    let sha256 = crate::context::sha256_of(file)?.0;
    write_whole(&place.join(STAMP), format!("{} {version} {} sha256:{sha256}\n", package.package, field("Architecture")?).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_each_ready_firmware_is_fetched_in_its_very_version() {
        let fetched: Vec<_> = ready_firmware().map(|(_, build)| build).collect();
        assert_eq!(fetched, READY.iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_later_revision_is_not_the_version() {
        let version = Version::Is("2026.08+ds-2");
        assert!(version.fits("2026.08+ds-2") && !version.fits("2026.08+ds-20") && !version.fits("2026.08+ds-2+b1"));
        assert!(Version::Starts("1:10.").fits("1:10.0.2") && !Version::Starts("1:10.").fits("1:11.0"));
    }
}
