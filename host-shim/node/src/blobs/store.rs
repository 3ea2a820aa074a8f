//! Blobs in a directory, by digest, up to a total size.
//!
//! ```text
//! <state>/blobs/<64 hex digits>   a blob that had this digest when it was written; its time is that of its last use
//! <state>/blobs/<n>.tmp           one that is being written
//! ```
//! **Invariant:** a file has its final name only if its bytes had that digest. **Invariant:** what is kept and what is being written is never more than the
//! capacity; room is made by removing what was used the longest time ago and is not being read. **Invariant:** room is taken as bytes arrive, never ahead, so
//! that an announcement costs nobody anything.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, watch};

use super::digest::BlobDigest;

/// How much is read or written at a time.
const PIECE: usize = 256 << 10;
/// Threads that blobs may keep busy with the disk. The snapshot service has some of its own.
const DISK_THREADS: usize = 4;

/// Why a blob is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    /// Larger than any may be.
    #[error("the blob has {size} bytes; this node keeps none of more than {largest} (--blobs-max)")]
    TooLarge {
        /// As announced.
        size: u64,
        /// The bound.
        largest: u64,
    },
    /// Nothing more can be removed for it.
    #[error("there is no room for the blob: everything else is being read or written, or the disk is full")]
    NoRoom,
    /// Fewer or more bytes than announced.
    #[error("expected {expected} bytes, found {found}")]
    Length {
        /// As announced.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Other bytes.
    #[error("expected the digest {expected}, found {found}")]
    Digest {
        /// What it was given as.
        expected: BlobDigest,
        /// What it is.
        found: BlobDigest,
    },
    /// The disk.
    #[error("cannot {action} a blob's file")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn at(action: &'static str) -> impl FnOnce(io::Error) -> PutError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PutError::NoRoom,
        _ => PutError::Io { action, source },
    }
}

struct Blob {
    size: u64,
    /// Larger is later.
    used: u64,
    /// One more than there are readers.
    readers: Arc<()>,
}

#[derive(Default)]
struct State {
    blobs: HashMap<BlobDigest, Blob>,
    /// What is being written, by the number of its file. Several guests may give the same blob at once; none of them can hold up another.
    fills: HashMap<u64, Joinable>,
    /// Of everything kept and being written.
    bytes: u64,
    clock: u64,
    next: u64,
}

struct Joinable {
    digest: BlobDigest,
    size: u64,
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
}

/// How far a blob has been written.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    bytes: u64,
    /// All of it, and of the right digest.
    good: bool,
}

struct Inner {
    dir: PathBuf,
    capacity: u64,
    largest: u64,
    state: Mutex<State>,
    disk: Semaphore,
}

/// The blobs of this node. Clones are the same store.
#[derive(Clone)]
pub(crate) struct BlobStore(Arc<Inner>);

impl BlobStore {
    /// Opens (or makes) the directory, removes what a crash left half written, and removes blobs until the rest is within `capacity`. The caller holds the lock
    /// of the state directory.
    ///
    /// # Errors
    /// If the directory cannot be made or read.
    pub(crate) fn open(dir: PathBuf, capacity: u64, largest: u64) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).recursive(true).create(&dir)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let metadata = entry.metadata()?;
            let digest = name.to_str().and_then(|name| BlobDigest::from_hex(name).ok());
            match digest {
                Some(digest) if metadata.is_file() => found.push((metadata.modified()?, digest, metadata.len())),
                None if name.to_str().is_some_and(|name| name.ends_with(".tmp")) => fs::remove_file(entry.path())?,
                _ => tracing::warn!(path = %entry.path().display(), "not a blob; left alone, and not counted"),
            }
        }
        found.sort_by_key(|(used, ..)| *used);
        let mut state = State::default();
        for (_, digest, size) in found {
            state.clock += 1;
            state.bytes += size;
            state.blobs.insert(digest, Blob { size, used: state.clock, readers: Arc::default() });
        }
        let store = Self(Arc::new(Inner { dir, capacity, largest, state: state.into(), disk: Semaphore::new(DISK_THREADS) }));
        if !store.0.make_room(&mut store.0.state(), 0) {
            return Err(io::Error::other("cannot remove enough blobs to be within --blobs-size"));
        }
        Ok(store)
    }

    /// Number and bytes of what is kept.
    pub(crate) fn totals(&self) -> (usize, u64) {
        let state = self.0.state();
        (state.blobs.len(), state.bytes)
    }

    /// A blob that is here, or that is arriving.
    pub(crate) async fn get(&self, digest: BlobDigest) -> Option<Reading> {
        let (size, readers) = {
            let mut state = self.0.state();
            state.clock += 1;
            let now = state.clock;
            match state.blobs.get_mut(&digest) {
                Some(blob) => {
                    blob.used = now;
                    (blob.size, Arc::clone(&blob.readers))
                }
                None => return self.join(&state, digest),
            }
        };
        let path = self.0.path(digest);
        let opened = self.0.on_disk(move || {
            let file = File::open(path)?;
            // What was used when outlives a restart; without it the order is only a little wrong.
            let _ = file.set_modified(SystemTime::now());
            let found = file.metadata()?.len();
            if found == size { Ok(file) } else { Err(io::Error::other(format!("expected {size} bytes, found {found}"))) }
        });
        match opened.await {
            Ok(file) => Some(Reading { store: self.clone(), file: Arc::new(file), at: 0, size, source: Source::Kept { _reader: readers } }),
            Err(error) => {
                tracing::warn!(%digest, %error, "a blob is not as it was kept; removing it");
                drop(readers);
                let store = self.clone();
                let removed = move || {
                    store.0.remove(&mut store.0.state(), digest);
                    Ok(())
                };
                let _ = self.0.on_disk(removed).await;
                None
            }
        }
    }

    /// The one that is furthest, so that nobody holds others up by giving slowly.
    fn join(&self, state: &State, digest: BlobDigest) -> Option<Reading> {
        let fills = state.fills.values().filter(|fill| fill.digest == digest);
        let fill = fills.max_by_key(|fill| fill.progress.borrow().bytes)?;
        let source = Source::Arriving(fill.progress.clone());
        Some(Reading { store: self.clone(), file: Arc::clone(&fill.file), at: 0, size: fill.size, source })
    }

    /// Begins to take a blob of `size` bytes.
    pub(crate) async fn put(&self, digest: BlobDigest, size: u64) -> Result<Fill, PutError> {
        let largest = self.0.largest.min(self.0.capacity);
        if size > largest {
            return Err(PutError::TooLarge { size, largest });
        }
        let number = {
            let mut state = self.0.state();
            state.next += 1;
            state.next
        };
        let path = self.0.dir.join(format!("{number}.tmp"));
        let file = {
            let path = path.clone();
            let open = move || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
            Arc::new(self.0.on_disk(open).await.map_err(at("create"))?)
        };
        let (progress, seen) = watch::channel(Progress::default());
        self.0.state().fills.insert(number, Joinable { digest, size, file: Arc::clone(&file), progress: seen });
        let writing = Writing { store: self.clone(), number, path: Some(path), file, hasher: Sha256::new(), taken: 0 };
        Ok(Fill { store: self.clone(), digest, size, gathered: Vec::new(), writing: Some(writing), progress })
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Totals may be off by one blob after a panic; nothing is lost by that.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, digest: BlobDigest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// Runs what touches the disk on a thread for that.
    async fn on_disk<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let _permit = self.disk.acquire().await.map_err(io::Error::other)?;
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    }

    /// Forgets a blob and removes its file.
    fn remove(&self, state: &mut State, digest: BlobDigest) {
        if let Some(blob) = state.blobs.remove(&digest) {
            state.bytes -= blob.size;
            if let Err(error) = fs::remove_file(self.path(digest)) {
                tracing::warn!(%digest, %error, "a blob's file could not be removed");
            }
        }
    }

    /// Whether `more` bytes fit, after removing what is necessary and possible.
    fn make_room(&self, state: &mut State, more: u64) -> bool {
        while state.bytes.saturating_add(more) > self.capacity {
            let unread = state.blobs.iter().filter(|(_, blob)| Arc::strong_count(&blob.readers) == 1);
            let Some((&digest, _)) = unread.min_by_key(|(_, blob)| blob.used) else { return false };
            tracing::debug!(%digest, "removed to make room");
            self.remove(state, digest);
        }
        true
    }
}

enum Source {
    /// Here, and not to be removed meanwhile.
    Kept {
        _reader: Arc<()>,
    },
    Arriving(watch::Receiver<Progress>),
}

/// A blob being read.
pub(crate) struct Reading {
    store: BlobStore,
    file: Arc<File>,
    at: u64,
    size: u64,
    source: Source,
}

impl Reading {
    /// Its length in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// If the disk fails, or whoever was giving the blob did not give all of it, or gave another.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.at == self.size {
            return Ok(None);
        }
        let until = match &mut self.source {
            Source::Kept { .. } => self.size,
            Source::Arriving(progress) => arrived(progress, self.at, self.size).await?,
        };
        let (file, from) = (Arc::clone(&self.file), self.at);
        let length = usize::try_from(until - from).unwrap_or(PIECE).min(PIECE);
        let read = move || {
            let mut piece = vec![0; length];
            file.read_exact_at(&mut piece, from)?;
            Ok(Bytes::from(piece))
        };
        let piece = self.store.0.on_disk(read).await?;
        self.at += piece.len() as u64;
        Ok(Some(piece))
    }
}

/// Waits until there is more than `at`, and says how much. The last byte is held back until the digest was right: who joins a blob that turns out to be another
/// one sees it break off.
async fn arrived(progress: &mut watch::Receiver<Progress>, at: u64, size: u64) -> io::Result<u64> {
    loop {
        let now = *progress.borrow_and_update();
        let until = if now.good { size } else { now.bytes.min(size.saturating_sub(1)) };
        if until > at {
            return Ok(until);
        }
        if progress.changed().await.is_err() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the blob did not arrive whole"));
        }
    }
}

/// The file of a blob being written. Dropping it removes the file and gives back the room.
struct Writing {
    store: BlobStore,
    number: u64,
    path: Option<PathBuf>,
    file: Arc<File>,
    hasher: Sha256,
    /// Bytes written, for each of which room was made.
    taken: u64,
}

impl Writing {
    fn write(&mut self, piece: &[u8]) -> Result<(), PutError> {
        let more = piece.len() as u64;
        {
            let mut state = self.store.0.state();
            if !self.store.0.make_room(&mut state, more) {
                return Err(PutError::NoRoom);
            }
            state.bytes += more;
        }
        let from = self.taken;
        self.taken += more;
        self.hasher.update(piece);
        self.file.write_all_at(piece, from).map_err(at("write"))
    }

    fn keep(mut self, digest: BlobDigest) -> Result<(), PutError> {
        self.file.sync_data().map_err(at("flush"))?;
        let store = self.store.clone();
        let mut state = store.0.state();
        let Some(path) = self.path.take() else { return Ok(()) };
        if let Err(error) = fs::rename(&path, store.0.path(digest)) {
            self.path = Some(path);
            drop(state); // `drop` below takes it
            return Err(at("rename")(error));
        }
        // Given anew: what was there before, if anything, may have been damaged.
        if let Some(old) = state.blobs.remove(&digest) {
            state.bytes -= old.size;
        }
        state.clock += 1;
        let used = state.clock;
        state.blobs.insert(digest, Blob { size: self.taken, used, readers: Arc::default() });
        state.fills.remove(&self.number);
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        let mut state = self.store.0.state();
        state.bytes -= self.taken;
        state.fills.remove(&self.number);
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "a half-written blob could not be removed");
        }
    }
}

/// A blob being taken. Dropping it leaves nothing of it.
pub(crate) struct Fill {
    store: BlobStore,
    digest: BlobDigest,
    size: u64,
    gathered: Vec<u8>,
    /// Gone after a failure.
    writing: Option<Writing>,
    progress: watch::Sender<Progress>,
}

impl Fill {
    /// Takes the next bytes.
    pub(crate) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), PutError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            bytes = later;
            if self.gathered.len() == PIECE {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), PutError> {
        let piece = std::mem::take(&mut self.gathered);
        let found = self.progress.borrow().bytes + piece.len() as u64;
        let Some(mut writing) = self.writing.take() else { return Err(PutError::NoRoom) };
        if found > self.size {
            return Err(PutError::Length { expected: self.size, found });
        }
        let written = self.store.0.on_disk(move || Ok(writing.write(&piece).map(|()| writing)));
        self.writing = Some(written.await.map_err(at("write"))??);
        self.progress.send_modify(|progress| progress.bytes = found);
        Ok(())
    }

    /// All has been given: keeps the blob if it is the one it was said to be.
    pub(crate) async fn finish(mut self) -> Result<(), PutError> {
        self.flush().await?;
        let found = self.progress.borrow().bytes;
        if found != self.size {
            return Err(PutError::Length { expected: self.size, found });
        }
        let Some(writing) = self.writing.take() else { return Err(PutError::NoRoom) };
        let (expected, found) = (self.digest, BlobDigest::new(writing.hasher.clone().finalize().into()));
        if found != expected {
            return Err(PutError::Digest { expected, found });
        }
        // Before the disk has it: who has joined need not wait for that.
        self.progress.send_modify(|progress| progress.good = true);
        self.store.0.on_disk(move || Ok(writing.keep(expected))).await.map_err(at("keep"))?
    }
}

/// Where blobs are beneath a state directory.
pub(crate) fn directory(state: &Path) -> PathBuf {
    state.join("blobs")
}
