//! The yardstick of the start bench: an init that says one line and powers off.
//!
//! The same kernel with this init is the least that a VM on this machine can take; an attested pod is measured against it.

use std::io::Write;

use nix::sys::reboot::{RebootMode, reboot};

/// What the bench waits for on the console.
const LINE: &str = "kata-cc bare init runs";

fn main() {
    // PID 1 gets the kernel's console as its standard output when the initrd holds /dev/console.
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{LINE}");
    let _ = out.flush();
    // Only fails without CAP_SYS_BOOT, that is, when somebody starts this on a running system; then there is nothing to do.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}
