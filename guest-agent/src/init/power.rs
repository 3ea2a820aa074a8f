//! The way out. PID 1 must not return: the kernel would panic instead of telling the host that the pod is over.

use nix::sys::reboot::{RebootMode, reboot};

/// Powers the guest off. What tmpfs held is gone with the guest's memory.
pub(crate) fn off() -> ! {
    nix::unistd::sync();
    // Only comes back when the caller lacks the right to, which PID 1 of the first namespace does not.
    let failed = reboot(RebootMode::RB_POWER_OFF);
    tracing::error!(?failed, "cannot power off");
    std::process::abort()
}
