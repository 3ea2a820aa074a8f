//! The guest's console: kept in a bounded file and passed to the log, escaped.
//!
//! It is the guest's text, so it is neither trusted nor unbounded: after the bound it is read and dropped, so that the guest is not stopped by it.

use std::fs::File;
use std::io::Write as _;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

/// A boot writes a few KiB; a panic some more.
const MAX_CONSOLE_BYTES: usize = 1024 * 1024;
const MAX_LINE: usize = 1024;

/// Copies the console until the machine closes it.
pub(super) async fn keep(mut console: UnixStream, mut log: File) {
    let mut buffer = vec![0; 4096];
    let mut kept = 0_usize;
    let mut line = Vec::new();
    while let Ok(read @ 1..) = console.read(&mut buffer).await {
        let bytes = buffer.get(..read).unwrap_or_default();
        let room = MAX_CONSOLE_BYTES.saturating_sub(kept).min(read);
        if room == 0 {
            continue;
        }
        kept += room;
        // A full disk must not take the pod down.
        let _ = log.write_all(bytes.get(..room).unwrap_or_default());
        for &byte in bytes {
            if byte == b'\n' || line.len() >= MAX_LINE {
                tracing::debug!(line = %String::from_utf8_lossy(&line).trim_end().escape_debug(), "console");
                line.clear();
            } else {
                line.push(byte);
            }
        }
    }
    // Dropping the log now closes it before anybody is told that the machine is gone.
}
