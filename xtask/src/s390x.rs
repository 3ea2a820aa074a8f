//! Whatever reads bytes of others, on a big-endian machine: cross-built for s390x and run in QEMU's user-mode emulation.
//!
//! No s390x machine and no Secure Execution is needed or shown by it. What the emulation lacks is left out by name.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::context::Context;
use crate::process;

const TARGET: &str = "s390x-unknown-linux-gnu";
const LINKER: &str = "/usr/bin/s390x-linux-gnu-gcc";
const EMULATOR: &str = "/usr/bin/qemu-s390x-static";
/// The emulator, and where the C library of the tests is.
const RUNNER: &str = "/usr/bin/qemu-s390x-static -L /usr/s390x-linux-gnu";

/// The parsers and codecs, and the launch plans.
const CRATES: &[&str] =
    &["kata-cc-evidence", "kata-cc-attester", "kata-cc-kbs-protocol", "kata-cc-agent-protocol", "kata-cc-firmware", "kata-cc-vmm"];

/// Tests that the emulation cannot show: it answers an unknown ioctl by ENOSYS, whatever the file is; a kernel says ENOTTY.
const LEFT_OUT: &[&str] = &["a_file_that_is_no_device_is_refused"];

/// What `cargo test` is told, and the variables it needs.
pub(crate) struct Tests {
    /// Arguments after `cargo test --locked`.
    pub(crate) arguments: Vec<&'static str>,
    /// Environment.
    pub(crate) environment: [(&'static str, &'static Path); 2],
}

/// The tests, or why they cannot be had.
pub(crate) fn tests(cx: &Context) -> Result<Result<Tests, String>> {
    for (program, package) in [(LINKER, "gcc-s390x-linux-gnu"), (EMULATOR, "qemu-user-static")] {
        if !Path::new(program).is_file() {
            return Ok(Err(format!("no {program}: install Debian's package {package}")));
        }
    }
    if !has_target()? {
        let (added, _) = cx.run.tried("standard library for s390x", Command::new("rustup").args(["target", "add", TARGET]))?;
        if !added.success() {
            return Ok(Err(format!("no standard library for {TARGET}, and `rustup target add {TARGET}` failed")));
        }
    }
    let mut arguments = vec!["--no-fail-fast", "--target", TARGET];
    arguments.extend(CRATES.iter().flat_map(|name| ["--package", name]));
    // Shown output, because tests say there what they had to skip.
    arguments.extend(["--", "--show-output"]);
    arguments.extend(LEFT_OUT.iter().flat_map(|name| ["--skip", name]));
    let environment = [
        ("CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_LINKER", Path::new(LINKER)),
        ("CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_RUNNER", Path::new(RUNNER)),
    ];
    Ok(Ok(Tests { arguments, environment }))
}

fn has_target() -> Result<bool> {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let libraries = process::output(rustc.args(["--print", "target-libdir", "--target", TARGET]))?;
    Ok(Path::new(libraries.trim()).is_dir())
}
