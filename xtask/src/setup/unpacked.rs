//! Packages of other Debian releases: downloaded and unpacked into the cache, never installed.
//!
//! The machine's package manager does the fetching, with directories of its own, so that the machine's lists, cache
//! and configuration stay as they are; signatures are checked with Debian's keyring. The mirror is the machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

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
    /// What its version must start with.
    version: &'static str,
    /// What for.
    pub(crate) why: &'static str,
    /// Without it only some tests cannot run.
    optional: bool,
}

/// All of them.
pub(crate) const PACKAGES: &[Package] = &[
    Package {
        directory: "cosign-2.5",
        package: "cosign",
        suite: "trixie",
        version: "2.5",
        why: "signs test images as users do",
        optional: false,
    },
    Package {
        directory: "containerd-1.7",
        package: "containerd",
        suite: "trixie",
        version: "1.7",
        why: "tests with containerd 1.7",
        optional: true,
    },
    Package {
        directory: "containerd-2.1",
        package: "containerd",
        suite: "sid",
        version: "2.1",
        why: "tests with containerd 2.1",
        optional: true,
    },
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
    cx.run.logged(&format!("download {what}"), apt().args(["download", package.package]))?;
    let result = unpack(cx, package, &download);
    // Packages are large, and the unpacked tree is what is kept.
    fs::remove_dir_all(&private).with_context(|| format!("cannot remove {}", private.display()))?;
    result
}

fn unpack(cx: &Context, package: &Package, download: &Path) -> Result<()> {
    let files: Vec<PathBuf> = fs::read_dir(download)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    let [file] = files.as_slice() else { bail!("expected one downloaded package, found {}", files.len()) };
    let field = |name: &str| process::output(Command::new("dpkg-deb").arg("-f").arg(file).arg(name)).map(|v| v.trim().to_owned());
    let version = field("Version")?;
    if !version.starts_with(package.version) {
        bail!("expected version {}…, found {version}: Debian {} has moved on", package.version, package.suite);
    }
    let place = package.place(cx);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;
    cx.run.logged(&format!("unpack {} {version}", package.package), Command::new("dpkg-deb").arg("-x").arg(file).arg(&place))?;
    let sha256 = crate::context::sha256_of(file)?.0;
    write_whole(&place.join(STAMP), format!("{} {version} {} sha256:{sha256}\n", package.package, field("Architecture")?).as_bytes())
}
