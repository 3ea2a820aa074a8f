//! Our log: into containerd's pipe, which it copies into its own.
//!
//! The pipe is opened both ways and never blocks: containerd may be restarted, and the pod must not wait for it. Lines it cannot take are lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;

/// The pipe's name in the bundle, our working directory.
const PIPE: &str = "log";

#[derive(Clone)]
struct Pipe(Arc<File>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match (&*self.0).write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(bytes.len()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins to log; without a pipe (started by hand) to standard error.
pub(crate) fn init(debug: bool) {
    let filter = EnvFilter::new(if debug { "debug,netlink_proto=info" } else { "info" });
    let pipe = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(PIPE);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_target(false);
    match pipe {
        Ok(pipe) if pipe.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo()) => {
            let pipe = Pipe(Arc::new(pipe));
            builder.with_writer(move || pipe.clone()).init();
        }
        _ => builder.with_writer(io::stderr).init(),
    }
}
