//! The yardstick of the benches: an init that says one line, with the kernel's clock, and powers off.
//!
//! The same kernel with this init is the least that a VM on this machine can take; an attested pod is measured against it.

use std::io::Write;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use nix::time::{ClockId, clock_gettime};

/// What the bench waits for on the console.
const LINE: &str = "kata-cc bare init runs";

fn main() {
    // PID 1 gets the kernel's console as its standard output when the initrd holds /dev/console.
    let mut out = std::io::stdout();
    // Milliseconds since the kernel began to count: what is before that, on the host's clock, is the VMM's and the firmware's.
    let clock = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(f64::NAN, |now| Duration::from(now).as_secs_f64() * 1e3);
    let _ = writeln!(out, "{LINE} at {clock:.1} ms");
    let _ = out.flush();
    // Only fails without CAP_SYS_BOOT, that is, when somebody starts this on a running system; then there is nothing to do.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}
