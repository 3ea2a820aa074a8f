//! Where verified layers are: a directory with one directory a layer, named by diffID.
//!
//! ```text
//! <root>/tmp/<n>                  being unpacked; not yet believed. Files without a name there hold the ciphertext of encrypted layers
//! <root>/layers/<diffID hex>      verified: the archive that was unpacked here had this diffID
//! <root>/layers/<chain id hex>    the same for a layer whose implied directories depend on the layers below
//! <root>/l/<n>                    short links to them, since mount(2) takes one page of options
//! ```
//!
//! **Invariant:** only [`Pending::commit`] puts something under `layers/`, and what this process did not put there itself is not used: the store begins empty.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};

use crate::beneath;
use crate::digest::Digest;

/// The file system under the store failed.
#[derive(Debug, thiserror::Error)]
#[error("layer store: {what} {path}")]
pub struct StoreError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn io_error<'p>(what: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> StoreError + 'p {
    move |source| StoreError { what, path: path.to_path_buf(), source }
}

/// A layer that is in the store.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) path: PathBuf,
    pub(crate) link: PathBuf,
    /// Directories that take owner, mode and time from below; see [`crate::overlay`].
    pub(crate) implied: Arc<BTreeSet<Vec<u8>>>,
    /// Chain of the layers that lay below when it was unpacked.
    pub(crate) below: Option<Digest>,
}

impl Stored {
    /// Whether the directory as it is may lie on this chain.
    fn fits(&self, below: Option<Digest>) -> bool {
        self.implied.is_empty() || self.below == below
    }
}

struct Inner {
    root: PathBuf,
    /// The directory `tmp`.
    tmp: OwnedFd,
    next: AtomicU64,
    layers: Mutex<HashMap<Digest, Vec<Stored>>>,
    /// One lock a diffID, so that two containers that need a layer pull it once.
    locks: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while implied directories are given their owner and mode.
    settling: tokio::sync::Mutex<()>,
}

/// A store of layers. Clones are the same store.
#[derive(Clone)]
pub struct LayerStore(Arc<Inner>);

impl std::fmt::Debug for LayerStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerStore").field("root", &self.0.root).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps behind these locks are changed by single calls, so a panic elsewhere leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LayerStore {
    /// Opens a store at `root`, making the directory if need be. **Removes** what is under its `tmp`, `layers` and `l`: nobody can say whether layers of an
    /// earlier process were written to the end.
    ///
    /// # Errors
    /// If the directories cannot be made or emptied.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        let root = root.into();
        fs::create_dir_all(&root).map_err(io_error("making", &root))?;
        for part in ["tmp", "layers", "l"] {
            let path = root.join(part);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("emptying", &path)(error)),
                _ => {}
            }
            fs::DirBuilder::new().mode(0o700).create(&path).map_err(io_error("making", &path))?;
        }
        let tmp = root.join("tmp");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let tmp = rustix::fs::open(&tmp, flags, Mode::empty()).map_err(|e| io_error("opening", &tmp)(e.into()))?;
        Ok(Self(Arc::new(Inner {
            root,
            tmp,
            next: AtomicU64::new(0),
            layers: Mutex::default(),
            locks: Mutex::default(),
            settling: tokio::sync::Mutex::new(()),
        })))
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// The lock to hold while looking for a layer and, if it is not there, unpacking it.
    pub(crate) fn layer_lock(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(lock(&self.0.locks).entry(*diff_id).or_default())
    }

    pub(crate) fn settling(&self) -> &tokio::sync::Mutex<()> {
        &self.0.settling
    }

    /// A verified layer that may lie on the chain `below`.
    pub(crate) fn find(&self, diff_id: &Digest, below: Option<Digest>) -> Option<Stored> {
        lock(&self.0.layers).get(diff_id)?.iter().find(|stored| stored.fits(below)).cloned()
    }

    /// A new empty directory to unpack into. It is removed again unless committed.
    pub(crate) fn pending(&self) -> Result<Pending, StoreError> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        let path = self.0.root.join("tmp").join(self.0.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::DirBuilder::new().mode(0o755).create(&path).map_err(io_error("making", &path))?;
        let pending = Pending { store: self.clone(), path: Some(path.clone()) };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(io_error("setting the mode of", &path))?;
        Ok(pending)
    }
}

/// A layer being unpacked. Dropping it removes all of it.
pub(crate) struct Pending {
    store: LayerStore,
    path: Option<PathBuf>,
}

impl Pending {
    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new("")) // gone only once `commit` has consumed it
    }

    /// A new empty file without a name, for what must not be seen before it is checked. Gone when it is closed.
    pub(crate) fn spool_file(&self) -> Result<fs::File, StoreError> {
        // EXCL: it cannot be given a name later either.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.store.0.tmp, ".", flags, Mode::RUSR | Mode::WUSR);
        file.map(Into::into).map_err(|e| io_error("making a file without a name in", &self.store.0.root.join("tmp"))(e.into()))
    }

    /// Takes the directory into the store. The caller vouches that the archive unpacked here had this diffID and that every other check was right.
    pub(crate) fn commit(mut self, diff_id: Digest, implied: BTreeSet<Vec<u8>>, below: Option<Digest>) -> Result<Stored, StoreError> {
        let inner = Arc::clone(&self.store.0);
        let mut layers = lock(&inner.layers);
        let known = layers.entry(diff_id).or_default();
        if let Some(stored) = known.iter().find(|stored| stored.fits(below)) {
            return Ok(stored.clone());
        }
        let named = if known.is_empty() { diff_id } else { Digest::of(format!("{diff_id} on {below:?}").as_bytes()) };
        let path = inner.root.join("layers").join(named.hex());
        let number = inner.next.fetch_add(1, Ordering::Relaxed);
        let link = inner.root.join("l").join(number.to_string());
        fs::rename(self.path(), &path).map_err(io_error("taking in", &path))?;
        self.path = None;
        std::os::unix::fs::symlink(Path::new("../layers").join(named.hex()), &link).map_err(io_error("linking", &link))?;
        let stored = Stored { path, link, implied: Arc::new(implied), below };
        known.push(stored.clone());
        Ok(stored)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Not by `std::fs::remove_dir_all`, which keeps a descriptor open for each level: what is removed here is what was refused.
        if let Some(path) = &self.path
            && let Some(name) = path.file_name()
            && let Err(error) = beneath::remove(&self.store.0.tmp, name.as_bytes())
        {
            tracing::error!(path = %path.display(), %error, "a refused layer could not be removed");
        }
    }
}

/// The chain id of a layer on those below (OCI image-spec "config.md#layer-chainid").
pub(crate) fn chain(below: Option<Digest>, diff_id: &Digest) -> Digest {
    below.map_or(*diff_id, |below| Digest::of(format!("{below} {diff_id}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ac50_keeps_nothing_that_was_not_committed_in_this_process() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayerStore::open(dir.path()).unwrap();
        let pending = store.pending().unwrap();
        fs::write(pending.path().join("f"), "x").unwrap();
        drop(pending);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
        let id = Digest::of(b"layer");
        let stored = store.pending().unwrap().commit(id, BTreeSet::new(), None).unwrap();
        assert!(stored.path.is_dir() && stored.link.is_dir());
        assert!(store.find(&id, None).is_some());
        let again = LayerStore::open(dir.path()).unwrap();
        assert!(again.find(&id, None).is_none() && !stored.path.exists());
    }

    #[test]
    fn a_layer_with_implied_directories_is_reused_on_the_same_chain_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayerStore::open(dir.path()).unwrap();
        let id = Digest::of(b"layer");
        let (one, two) = (Some(Digest::of(b"1")), Some(Digest::of(b"2")));
        let implied = BTreeSet::from([b"tmp".to_vec()]);
        let first = store.pending().unwrap().commit(id, implied.clone(), one).unwrap();
        assert!(store.find(&id, two).is_none());
        let second = store.pending().unwrap().commit(id, implied, two).unwrap();
        assert_ne!(first.path, second.path);
        assert_eq!(store.find(&id, one).unwrap().path, first.path);
    }
}
