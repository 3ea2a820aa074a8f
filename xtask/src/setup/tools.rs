//! The vsock helper: `vhost-device-vsock` of rust-vmm, built into the cache.

use anyhow::{Context as _, Result};

use crate::context::Context;

/// Its crate.
pub(crate) const CRATE: &str = "vhost-device-vsock";
/// Which version.
pub(crate) const VERSION: &str = "0.3.0";
/// What for.
pub(crate) const WHY: &str = "vsock between host and guest where the host kernel has none";

/// Where it is.
pub(crate) fn vsock_helper(cx: &Context) -> std::path::PathBuf {
    cx.cache("tools").join(format!("{CRATE}-{VERSION}")).join("bin").join(CRATE)
}

/// Whether it has to be built.
pub(crate) fn is_missing(cx: &Context) -> bool {
    !vsock_helper(cx).is_file()
}

/// Builds it.
pub(crate) fn install(cx: &Context) -> Result<()> {
    if is_missing(cx) {
        let root = cx.cache("tools").join(format!("{CRATE}-{VERSION}"));
        let mut cargo = cx.cargo();
        cargo.args(["install", CRATE, "--version", VERSION, "--locked", "--root"]).arg(root);
        // A target directory in the cache: a build that was interrupted goes on where it was.
        cargo.env("CARGO_TARGET_DIR", cx.cache("tools/target"));
        cx.run.logged(&format!("build {CRATE} {VERSION}"), &mut cargo)?;
        std::fs::remove_dir_all(cx.cache("tools/target")).context("cannot remove the build directory of the vsock helper")?;
    }
    Ok(())
}
