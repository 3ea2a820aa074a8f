//! Which configuration file, and where a later clean-up finds the pod's directory.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::CodedInputStream;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use kata_cc_vmm::config::{DEFAULT_PATH, PATH_VARIABLE};

use crate::error::Error;

/// containerd's options for runtimes it knows nothing of.
const OPTIONS: &str = "runtimeoptions.v1.Options";
/// `config_path` in them.
const CONFIG_PATH_FIELD: u32 = 2;
const NOTE: &str = "kata-cc.run-dir";

/// The configuration file: the environment's, containerd's, or the default.
pub(crate) fn path(options: Option<&Any>) -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let named = options.filter(|any| any.type_url.rsplit('/').next() == Some(OPTIONS)).map(|any| config_path(&any.value)).transpose()?;
    Ok(named.filter(|path| !path.is_empty()).map_or_else(|| DEFAULT_PATH.into(), PathBuf::from))
}

fn config_path(message: &[u8]) -> Result<String, Error> {
    let invalid = |_| Error::Invalid(format!("containerd's runtime options: expected a {OPTIONS} message"));
    let mut stream = CodedInputStream::from_bytes(message);
    let mut found = String::new();
    while let Some(tag) = stream.read_raw_tag_or_eof().map_err(invalid)? {
        // All its fields are strings or bytes (wire type 2).
        let bytes = if tag & 7 == 2 { stream.read_bytes().map_err(invalid)? } else { return Err(invalid(protobuf_error())) };
        if tag >> 3 == CONFIG_PATH_FIELD {
            found =
                String::from_utf8(bytes).map_err(|_| Error::Invalid("containerd's runtime options: config_path is not UTF-8".into()))?;
        }
    }
    Ok(found)
}

fn protobuf_error() -> containerd_shim_protos::protobuf::Error {
    io::Error::from(io::ErrorKind::InvalidData).into()
}

/// Leaves a note in the bundle: after a crash, containerd starts a clean-up that knows the bundle only.
pub(crate) fn remember_run_dir(bundle: &Path, run_dir: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut note = options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(bundle.join(NOTE))?;
    note.write_all(run_dir.as_os_str().as_bytes())
}

/// Reads the note; `None` where a pod never got that far.
pub(crate) fn recall_run_dir(bundle: &Path) -> io::Result<Option<PathBuf>> {
    /// Paths are shorter.
    const MAX: u64 = 4096;
    let mut bytes = Vec::new();
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(bundle.join(NOTE)) {
        Ok(note) => note.take(MAX).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
    if path.is_absolute() { Ok(Some(path)) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "expected an absolute path")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_configuration_in_containerds_options() {
        // type_url = "t", config_path = "/c"
        assert_eq!(config_path(&[0x0a, 1, b't', 0x12, 2, b'/', b'c']).unwrap(), "/c");
        assert_eq!(config_path(&[]).unwrap(), "");
        assert!(config_path(&[0x12, 200, b'/']).is_err());
        assert!(config_path(&[0x08, 1]).is_err());
    }

    #[test]
    fn remembers_the_run_directory_across_a_crash() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(recall_run_dir(bundle.path()).unwrap(), None);
        remember_run_dir(bundle.path(), Path::new("/run/kata-cc")).unwrap();
        assert_eq!(recall_run_dir(bundle.path()).unwrap(), Some("/run/kata-cc".into()));
    }
}
