//! Building the guest kernel: Debian's source, our configuration, always the same bytes.
//!
//! A kernel takes minutes to build and rarely changes, so it is kept under a key of everything that goes into it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use kata_cc_firmware::kernel as config;

use crate::context::{Context, key, write_whole};
use crate::process;
use crate::setup::debian::{LINUX_SOURCE, version_of};

/// Changes when the way of building changes in what it results in.
const RECIPE: &str = "2";

/// A built kernel.
pub(crate) struct Kernel {
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// Debian's package and version of the source.
    pub(crate) source: String,
}

/// The kernel for the present configuration, source and compiler; built unless it is in the cache.
pub(crate) fn build(cx: &Context) -> Result<Kernel> {
    let version = version_of(LINUX_SOURCE)?;
    let source = format!("{LINUX_SOURCE} {version}");
    let compiler = process::output(Command::new("gcc").arg("--version"))?;
    let linker = process::output(Command::new("ld").arg("--version"))?;
    let tools = [compiler, linker].map(|text| text.lines().next().unwrap_or_default().to_owned()).join("; ");
    let fixed = [RECIPE, config::X86_64, &source, &tools].into_iter();
    let parts: Vec<_> = fixed.chain(config::PATCHES.iter().map(|(_, patch)| *patch)).map(str::as_bytes).collect();
    let name = key(&parts);
    let place = cx.cache("kernel").join(name);
    let image = place.join("vmlinuz");
    if !image.is_file() {
        eprintln!("building the guest kernel: {source}; {tools}");
        make(cx, &cx.cache("build").join(LINUX_SOURCE), &place)?;
        write_whole(&place.join("made-of.txt"), format!("{source}\n{tools}\nrecipe {RECIPE}\n").as_bytes())?;
    }
    Ok(Kernel { image, source })
}

/// The kernel once more, in a directory of another name and length; where it was left.
pub(crate) fn again(cx: &Context) -> Result<PathBuf> {
    let place = cx.cache("build").join("other-kernel");
    make(cx, &cx.cache("build").join("a-kernel-in-another-place"), &place)?;
    Ok(place.join("vmlinuz"))
}

/// Builds it in `tree`, which is gone afterwards, and leaves kernel and configuration in `place`.
fn make(cx: &Context, tree: &Path, place: &Path) -> Result<()> {
    let archive = PathBuf::from(format!("/usr/src/{LINUX_SOURCE}.tar.xz"));
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    fs::create_dir_all(tree)?;
    let mut tar = Command::new("tar");
    cx.run.logged("unpack the kernel's source", tar.arg("-xJf").arg(&archive).arg("--strip-components=1").arg("-C").arg(tree))?;
    for (name, patch) in config::PATCHES {
        let file = tree.join(name);
        write_whole(&file, patch.as_bytes())?;
        let mut command = Command::new("patch");
        // A patch that fits only roughly would change something else than what was reviewed.
        command.current_dir(tree).args(["--strip=1", "--forward", "--batch", "--fuzz=0", "--input"]).arg(&file);
        cx.run.logged(&format!("apply {name}"), &mut command)?;
    }
    // The configuration this program was built with, not whatever the file says by now: the key names that one.
    let fragment = tree.join("kata-cc.config");
    write_whole(&fragment, config::X86_64.as_bytes())?;
    let kbuild = |target: &str| {
        let mut make = Command::new("make");
        make.current_dir(tree).arg(target);
        // Nothing of the caller's may steer the build, and nothing of this machine or moment may get into it.
        make.env_clear();
        for name in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                make.env(name, value);
            }
        }
        make.envs([
            ("LC_ALL", "C"),
            ("ARCH", "x86_64"),
            ("KBUILD_BUILD_TIMESTAMP", "1970-01-01 00:00:00 UTC"),
            ("KBUILD_BUILD_USER", "kata-cc"),
            ("KBUILD_BUILD_HOST", "kata-cc"),
            ("KBUILD_BUILD_VERSION", "1"),
            ("SOURCE_DATE_EPOCH", "0"),
        ]);
        make
    };
    cx.run.logged("configure the guest kernel", kbuild("allnoconfig").env("KCONFIG_ALLCONFIG", &fragment))?;
    let resulting = fs::read_to_string(tree.join(".config")).context("the kernel's build left no .config")?;
    config::check(config::X86_64, &resulting)?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    cx.run.logged("build the guest kernel", kbuild("bzImage").arg(format!("-j{jobs}")))?;
    let image = fs::read(tree.join("arch/x86/boot/bzImage")).context("the kernel's build left no bzImage")?;
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("the kernel's build left something that is no bzImage");
    }
    write_whole(&place.join("config"), resulting.as_bytes())?;
    write_whole(&place.join("vmlinuz"), &image)?;
    // Gigabytes that nobody needs again.
    fs::remove_dir_all(tree).with_context(|| format!("cannot remove {}", tree.display()))
}
