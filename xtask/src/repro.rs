//! Whether the image depends on the source alone: initrds, SBOM and manifests, made again from a copy of the checkout in another place, with
//! other build directories, must be the same bytes. The kernel, which takes longer than all else, is asked for by itself.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::artifacts::Artifacts;
use crate::context::Context;
use crate::{guest, kernel, manifest, process};

/// Builds everything but the kernel a second time and compares it with what is in the artifact directory.
pub(crate) fn check(cx: &Context) -> Result<()> {
    // Another name and another length: either could leak into a program.
    let elsewhere = cx.cache("build/a-copy-of-the-checkout");
    remove(&elsewhere)?;
    let files =
        process::output(Command::new("git").current_dir(cx.root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))
            .context("the list of source files comes from git")?;
    for file in files.split_terminator('\0') {
        let (from, to) = (cx.root().join(file), elsewhere.join(file));
        // Deleted, but not yet committed.
        if !from.exists() {
            continue;
        }
        fs::create_dir_all(to.parent().context("a file lies in a directory")?)?;
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let target = elsewhere.join("other-target");
    let again = guest::contents(cx, &elsewhere, &target)?;
    let artifacts = Artifacts::of(cx);
    for (name, bytes) in again {
        // Not built again, but taken from where the first one was.
        if name == manifest::KERNEL {
            continue;
        }
        let path = artifacts.guest().join(name);
        if fs::read(&path).with_context(|| format!("cannot read {}", path.display()))? != bytes {
            let kept = cx.cache("build").join(format!("other-{name}"));
            fs::write(&kept, bytes)?;
            bail!("{name} is not reproducible: {} and {} differ", path.display(), kept.display());
        }
        eprintln!("    {name}: the same bytes from another place");
    }
    remove(&elsewhere)
}

/// Builds the kernel a second time and compares it with what is in the artifact directory.
pub(crate) fn check_kernel(cx: &Context) -> Result<()> {
    let other = kernel::again(cx)?;
    let image = Artifacts::of(cx).guest().join(manifest::KERNEL);
    let read = |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    if read(&image)? != read(&other)? {
        bail!("{} is not reproducible: {} and {} differ", manifest::KERNEL, image.display(), other.display());
    }
    eprintln!("    {}: the same bytes from another place", manifest::KERNEL);
    remove(&other.with_file_name(""))
}

fn remove(dir: &PathBuf) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}
