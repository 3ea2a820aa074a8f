//! File descriptors that tokio watches, made in one place.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime watch a non-blocking descriptor.
///
/// # Errors
/// When it is of a kind that cannot be watched.
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "the runtime cannot know that a type keeps its descriptor")]
    // SAFETY: an `OwnedFd` is open and names one file description for as long as it lives, and it lives in the result.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    Ok(watched?)
}
