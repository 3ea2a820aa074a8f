//! Where things are, and that only one `cargo xtask` works on them at a time.
//!
//! Invariant: the cache directory is locked for as long as a [`Context`] lives.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::process::Runner;

/// The checkout, the cache and the means to run programs.
pub(crate) struct Context {
    root: PathBuf,
    cache: PathBuf,
    /// Runs programs so that Ctrl-C ends them.
    pub(crate) run: Runner,
    _lock: Flock<File>,
}

impl Context {
    /// Finds the checkout and locks the cache, waiting for another `cargo xtask` to end.
    pub(crate) fn open() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?.to_owned();
        if !root.join("Cargo.lock").is_file() {
            bail!("the checkout this was built in, {}, is gone; run `cargo xtask` from a checkout", root.display());
        }
        let cache = match std::env::var_os("KATA_CC_CACHE") {
            Some(dir) if !dir.is_empty() => std::path::absolute(dir)?,
            _ => root.join(".kata-cc-cache"),
        };
        fs::create_dir_all(cache.join("logs")).with_context(|| format!("cannot make the cache {}", cache.display()))?;
        let lock = lock(&cache.join("lock"))?;
        let run = Runner::new(cache.join("logs"))?;
        Ok(Self { root, cache, run, _lock: lock })
    }

    /// The checkout.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A place in the cache.
    pub(crate) fn cache(&self, path: &str) -> PathBuf {
        self.cache.join(path)
    }

    /// `cargo`, in the checkout. Variables that this program's own build left behind would make Cargo rebuild things.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root);
        let inherited = std::env::vars_os().map(|(name, _)| name);
        for name in inherited.filter(|n| n.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n == "CARGO_MANIFEST_DIR")) {
            cargo.env_remove(name);
        }
        cargo
    }

    /// Cargo's target directory for host builds.
    pub(crate) fn target(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), |dir| self.root.join(dir))
    }
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let file = File::options().create(true).append(true).open(path).with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => {
            eprintln!("waiting for another `cargo xtask` that uses {}", path.parent().unwrap_or(path).display());
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).context("cannot lock the cache")
        }
        Err((_, e)) => Err(e).context("cannot lock the cache"),
    }
}

/// A name for what is made of these inputs.
pub(crate) fn key(inputs: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        // With the length, so that no two lists of inputs run together.
        hash.update((input.len() as u64).to_le_bytes());
        hash.update(input);
    }
    let mut name = hex::encode(hash.finalize());
    name.truncate(16);
    name
}

/// SHA-256 of a file, and its length.
pub(crate) fn sha256_of(path: &Path) -> Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let length = std::io::copy(&mut file, &mut hash).with_context(|| format!("cannot read {}", path.display()))?;
    Ok((hex::encode(hash.finalize()), length))
}

/// Writes a file so that it is there whole or not at all.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let dir = path.parent().context("a file lies in a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    std::io::Write::write_all(&mut file, content)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode)?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Copies a file whole or not at all, unless an equal one is there (so that what depends on its time stays fresh).
pub(crate) fn copy_whole(from: &Path, to: &Path) -> Result<()> {
    if to.is_file() && sha256_of(from)? == sha256_of(to)? {
        return Ok(());
    }
    let dir = to.parent().context("a file lies in a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let temporary = tempfile::NamedTempFile::new_in(dir)?.into_temp_path();
    fs::copy(from, &temporary).with_context(|| format!("cannot copy {}", from.display()))?;
    temporary.persist(to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_lists_apart() {
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_ne!(key(&[b"ab"]), key(&[b"ab", b""]));
        assert_eq!(key(&[b"x"]).len(), 16);
    }
}
