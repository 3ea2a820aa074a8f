//! Files that are measured without being held.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Hands on the bytes of a file, a piece at a time. Initrds have hundreds of MiB.
pub(super) fn stream(path: &Path, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => take(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
