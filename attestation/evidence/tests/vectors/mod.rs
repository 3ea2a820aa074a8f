//! Real evidence of public projects: in `KATA_CC_VECTORS`, or `shared/vectors` beside the workspace. Tests say loudly when it is not there.

use std::path::{Path, PathBuf};

/// The folder, if it is there.
pub(crate) fn vectors() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let dir = std::env::var_os("KATA_CC_VECTORS").map_or(beside, PathBuf::from);
    if !dir.is_dir() {
        eprintln!("SKIPPED: no vectors at {}; set KATA_CC_VECTORS", dir.display());
        return None;
    }
    Some(dir)
}

/// One of its files.
pub(crate) fn read(dir: &Path, path: &str) -> Vec<u8> {
    std::fs::read(dir.join(path)).unwrap_or_else(|error| panic!("vector {path}: {error}"))
}
