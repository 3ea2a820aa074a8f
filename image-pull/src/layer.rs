//! One layer: from the registry's bytes to an unpacked directory of known diffID.
//!
//! ```text
//!              task         thread 1                            thread 2
//!  plain:      download ──▶ blob digest ▶ decompress ─────────▶ diffID ▶ unpack into tmp/
//!
//!  encrypted:  download ──▶ size, blob digest, MAC ▶ spool                              first, to the end
//!                           spool ▶ decrypt ▶ decompress ─────▶ diffID ▶ unpack         and only then
//! ```
//! Bounded channels lie between, so memory is a few buffers a layer whatever its size, and for an encrypted one its ciphertext, which [`crate::spool`] holds
//! back. A plain layer is seen by decompressor and archive reader before its digest is known: it holds nothing the registry does not know, goes to a directory
//! that is removed unless every check is right, and those readers are memory-safe and bounded.
//!
//! **Invariant:** nothing of an encrypted layer is decrypted before size, blob digest and MAC of the whole of it were right, so what this guest does while it
//! downloads tells host and registry nothing about plaintext.
//! **Invariant:** every byte the registry sends is under the blob digest and the MAC, also those after a decoder's end, and also when a decoder fails: an
//! altered layer is reported as altered, not as whatever its garbage looked like.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as sync_mpsc;

use bytes::{Buf, BytesMut};
use tokio::sync::{mpsc, watch};

use crate::compress::{self, Compression};
use crate::digest::{Digest, Hasher};
use crate::limits::Limits;
use crate::ocicrypt::{LayerKey, OcicryptError};
use crate::registry::{BlobReader, RegistryError};
use crate::spool::{Authenticated, Spool};
use crate::store::{Pending, StoreError};
use crate::unpack::{self, Ownership, UnpackError, Unpacked};

/// Why a layer was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The registry failed.
    #[error("downloading the layer")]
    Registry(#[from] RegistryError),
    /// The registry sent less or more than the manifest says.
    #[error("the layer blob has {found} bytes{} where the manifest says {expected}", if *.more { " or more" } else { "" })]
    Size {
        /// By the manifest.
        expected: u64,
        /// What came.
        found: u64,
        /// Whether reading stopped there.
        more: bool,
    },
    /// The blob is another one.
    #[error("the layer blob has the digest {found} where the manifest says {expected}")]
    BlobDigest {
        /// By the manifest.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The archive is another one.
    #[error("the layer's archive has the digest {found} where the image configuration says {expected} (diffID)")]
    DiffId {
        /// By the image configuration.
        expected: Digest,
        /// What was unpacked.
        found: Digest,
    },
    /// Decryption or its check failed.
    #[error(transparent)]
    Decrypt(#[from] OcicryptError),
    /// An encrypted layer could not be held back until its check.
    #[error("encrypted layer: {what}")]
    Spool {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Decompression failed.
    #[error("decompressing the layer")]
    Decompress(#[source] io::Error),
    /// Too much came out of too little.
    #[error("the layer decompresses to more than {ratio} times its {blob} bytes")]
    Ratio {
        /// The limit.
        ratio: u64,
        /// Size of the blob.
        blob: u64,
    },
    /// The image is too large.
    #[error("the image's layers decompress to more than {0} bytes")]
    Unpacked(u64),
    /// Unpacking failed.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Given up because another layer failed.
    #[error("given up because another layer of the image failed")]
    Cancelled,
    /// A thread of ours panicked.
    #[error("internal error: a thread at work on the layer panicked")]
    Panicked,
}

/// What all layers of one image share.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    pub(crate) unpacked: AtomicU64,
    pub(crate) entries: AtomicU64,
}

impl Budget {
    /// A copy for one attempt at a layer, which may be thrown away with it. An attempt may use what is left now; attempts side by side do not see each other,
    /// so that bytes nobody vouches for take nothing from the image's other layers.
    pub(crate) fn attempt(&self) -> (Self, Spent) {
        let (unpacked, entries) = (self.unpacked.load(Ordering::Relaxed), self.entries.load(Ordering::Relaxed));
        (Self { unpacked: unpacked.into(), entries: entries.into() }, Spent { unpacked, entries })
    }

    /// Counts an attempt that succeeded, and says whether the image is still within its limits.
    pub(crate) fn count(&self, attempt: &Self, before: Spent, limits: &Limits) -> Result<(), LayerError> {
        let add = |to: &AtomicU64, from: &AtomicU64, before: u64| {
            let more = from.load(Ordering::Relaxed).saturating_sub(before);
            to.fetch_add(more, Ordering::Relaxed).saturating_add(more)
        };
        if add(&self.unpacked, &attempt.unpacked, before.unpacked) > limits.unpacked_bytes {
            return Err(LayerError::Unpacked(limits.unpacked_bytes));
        }
        if add(&self.entries, &attempt.entries, before.entries) > limits.entries {
            return Err(UnpackError::Entries(limits.entries).into());
        }
        Ok(())
    }
}

/// What of a [`Budget`] was spent at some time.
#[derive(Clone, Copy)]
pub(crate) struct Spent {
    unpacked: u64,
    entries: u64,
}

/// What is to be done for one layer.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) compression: Compression,
    pub(crate) key: Option<LayerKey>,
    pub(crate) diff_id: Digest,
    pub(crate) limits: Arc<Limits>,
    pub(crate) ownership: Ownership,
    pub(crate) budget: Arc<Budget>,
}

/// Enough that a hand-over between threads is rare, little enough that several lie in the cache.
pub(crate) const PIECE: usize = 256 << 10;
const PIECES_UNDER_WAY: usize = 8;

enum Download {
    Bytes(BytesMut),
    End,
}

enum Piece {
    Bytes(Vec<u8>, usize),
    End,
}

/// Downloads and unpacks one layer into `pending`, and gives it back once all checks are right. On failure it is removed by the time this returns.
pub(crate) async fn fetch(
    blob: Box<dyn BlobReader>,
    job: Job,
    pending: Pending,
    cancelled: watch::Receiver<bool>,
) -> Result<(Pending, Unpacked), LayerError> {
    let (download_tx, download_rx) = mpsc::channel(PIECES_UNDER_WAY);
    let tally = Tally::expecting(job.size, job.digest);
    let Some(key) = &job.key else {
        let feed = feed(blob, download_tx, cancelled);
        let ((), unpacked) = tokio::join!(feed, decode_and_unpack(Blob::new(download_rx, tally), job, pending));
        return unpacked;
    };
    let spool = Spool::new(pending.spool_file()?, tally, key);
    let spooler = tokio::task::spawn_blocking(move || keep(download_rx, spool));
    let ((), authenticated) = tokio::join!(feed(blob, download_tx, cancelled.clone()), spooler);
    let authenticated = authenticated.map_err(|_| LayerError::Panicked).flatten()?;
    decode_and_unpack(authenticated.open(cancelled), job, pending).await
}

/// Keeps an encrypted layer until all of it is there, and says whether it is authentic.
fn keep(mut from: mpsc::Receiver<Result<Download, LayerError>>, mut spool: Spool) -> Result<Authenticated, LayerError> {
    loop {
        match from.blocking_recv() {
            Some(Ok(Download::Bytes(piece))) => spool.take(&piece)?,
            Some(Ok(Download::End)) => return spool.authenticate(),
            Some(Err(error)) => return Err(error),
            None => return Err(LayerError::Cancelled),
        }
    }
}

/// Threads 1 and 2.
async fn decode_and_unpack(source: impl Source, job: Job, pending: Pending) -> Result<(Pending, Unpacked), LayerError> {
    let (piece_tx, piece_rx) = sync_mpsc::sync_channel(PIECES_UNDER_WAY);
    let (spare_tx, spare_rx) = sync_mpsc::channel();
    let diff_id = job.diff_id;
    let (limits, ownership, budget) = (Arc::clone(&job.limits), job.ownership, Arc::clone(&job.budget));

    let decoder = tokio::task::spawn_blocking(move || decode(source, &job, &piece_tx, &spare_rx));
    let unpacker = tokio::task::spawn_blocking(move || {
        let mut pieces =
            Pieces { from: piece_rx, spare: spare_tx, hasher: Hasher::new(), piece: Vec::new(), filled: 0, at: 0, ended: false };
        let options = unpack::Options { limits: &limits, ownership, entries: &budget.entries };
        let unpacked = unpack::unpack(&mut pieces, pending.path(), &options)?;
        let found = pieces.hasher.finish();
        if found != diff_id {
            return Err(LayerError::DiffId { expected: diff_id, found });
        }
        Ok::<_, LayerError>((pending, unpacked))
    });
    let (decoded, unpacked) = tokio::join!(decoder, unpacker);
    let decoded = decoded.map_err(|_| LayerError::Panicked).flatten();
    let unpacked = unpacked.map_err(|_| LayerError::Panicked).flatten();
    match (decoded, unpacked) {
        (Ok(()), unpacked) => unpacked,
        (Err(error), unpacked) => {
            // Removing a directory tree is work for a thread; the caller may rely on its being gone.
            let _ = tokio::task::spawn_blocking(move || drop(unpacked)).await;
            Err(error)
        }
    }
}

/// Carries the registry's bytes to a thread, in larger pieces than the network gives.
async fn feed(mut blob: Box<dyn BlobReader>, to: mpsc::Sender<Result<Download, LayerError>>, mut cancelled: watch::Receiver<bool>) {
    let mut gathered = BytesMut::with_capacity(PIECE);
    loop {
        let next = tokio::select! {
            next = blob.next() => Some(next),
            // Also when the sender is gone: then the whole pull was given up.
            _ = cancelled.wait_for(|cancelled| *cancelled) => None,
        };
        let Some(next) = next else {
            let _ = to.send(Err(LayerError::Cancelled)).await;
            return;
        };
        match next {
            Ok(Some(mut bytes)) => {
                while bytes.has_remaining() {
                    let room = (PIECE - gathered.len()).min(bytes.len());
                    gathered.extend_from_slice(&bytes.split_to(room));
                    if gathered.len() == PIECE {
                        let full = std::mem::replace(&mut gathered, BytesMut::with_capacity(PIECE));
                        if to.send(Ok(Download::Bytes(full))).await.is_err() {
                            return;
                        }
                    }
                }
            }
            Ok(None) => {
                if to.send(Ok(Download::Bytes(gathered))).await.is_ok() {
                    let _ = to.send(Ok(Download::End)).await;
                }
                return;
            }
            Err(error) => {
                let _ = to.send(Err(error.into())).await;
                return;
            }
        }
    }
}

/// Counts and hashes a blob's bytes, and holds them against what the manifest says.
pub(crate) struct Tally {
    expected_size: u64,
    expected_digest: Digest,
    seen: u64,
    hasher: Hasher,
}

impl Tally {
    pub(crate) fn expecting(size: u64, digest: Digest) -> Self {
        Self { expected_size: size, expected_digest: digest, seen: 0, hasher: Hasher::new() }
    }

    /// Takes the next bytes. Fails once there are more than the manifest says.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.seen += bytes.len() as u64;
        if self.seen > self.expected_size {
            return Err(LayerError::Size { expected: self.expected_size, found: self.seen, more: true });
        }
        self.hasher.update(bytes);
        Ok(())
    }

    /// Whether this was the blob that was asked for; its size if so.
    pub(crate) fn finish(self) -> Result<u64, LayerError> {
        if self.seen != self.expected_size {
            return Err(LayerError::Size { expected: self.expected_size, found: self.seen, more: false });
        }
        let found = self.hasher.finish();
        if found != self.expected_digest {
            return Err(LayerError::BlobDigest { expected: self.expected_digest, found });
        }
        Ok(self.seen)
    }
}

/// What thread 1 reads.
pub(crate) trait Source: BufRead + Send + 'static {
    /// Reads what the decoder left, then says whether all of it was what it should be.
    fn finish(self) -> Result<(), LayerError>;
}

/// A plain blob as it comes: counted and hashed. Its first failure stays.
struct Blob {
    from: mpsc::Receiver<Result<Download, LayerError>>,
    piece: BytesMut,
    tally: Tally,
    ended: bool,
    failure: Option<LayerError>,
}

impl Blob {
    fn new(from: mpsc::Receiver<Result<Download, LayerError>>, tally: Tally) -> Self {
        Self { from, piece: BytesMut::new(), tally, ended: false, failure: None }
    }

    /// The next piece into `self.piece`; false at the end or after a failure.
    fn advance(&mut self) -> bool {
        while self.piece.is_empty() && !self.ended && self.failure.is_none() {
            match self.from.blocking_recv() {
                Some(Ok(Download::Bytes(piece))) => match self.tally.take(&piece) {
                    Ok(()) => self.piece = piece,
                    Err(error) => self.failure = Some(error),
                },
                Some(Ok(Download::End)) => self.ended = true,
                Some(Err(error)) => self.failure = Some(error),
                None => self.failure = Some(LayerError::Cancelled),
            }
        }
        !self.piece.is_empty()
    }
}

impl Source for Blob {
    fn finish(mut self) -> Result<(), LayerError> {
        self.piece.clear();
        while self.advance() {
            self.piece.clear();
        }
        match self.failure {
            Some(error) => Err(error),
            None => self.tally.finish().map(drop),
        }
    }
}

impl Read for Blob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let step = self.fill_buf()?.read(buf)?;
        self.consume(step);
        Ok(step)
    }
}

impl BufRead for Blob {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.advance();
        if self.failure.is_some() {
            return Err(io::Error::other("the blob cannot be read on"));
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount.min(self.piece.len()));
    }
}

/// Thread 1. A success means that the source was the right one and the whole archive was handed on, or that the unpacker gave up and will say why.
fn decode(
    mut source: impl Source,
    job: &Job,
    to: &sync_mpsc::SyncSender<Piece>,
    spare: &sync_mpsc::Receiver<Vec<u8>>,
) -> Result<(), LayerError> {
    let decoded = decode_pieces(&mut source, job, to, spare);
    // First whether the bytes were the right ones; what the decoder thought of them matters only then.
    source.finish().and(decoded)
}

fn decode_pieces(
    blob: &mut impl Source,
    job: &Job,
    to: &sync_mpsc::SyncSender<Piece>,
    spare: &sync_mpsc::Receiver<Vec<u8>>,
) -> Result<(), LayerError> {
    let mut source = compress::decoder(job.compression, blob);
    let mut total = 0u64;
    loop {
        let mut piece = spare.try_recv().unwrap_or_else(|_| vec![0u8; PIECE]);
        let mut filled = 0;
        while let Some(room) = piece.get_mut(filled..).filter(|room| !room.is_empty()) {
            match source.read(room) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::Decompress(error)),
            }
        }
        if filled == 0 {
            let _ = to.send(Piece::End);
            return Ok(());
        }
        total += filled as u64;
        if total > job.limits.ratio_floor && total > job.size.saturating_mul(job.limits.ratio) {
            return Err(LayerError::Ratio { ratio: job.limits.ratio, blob: job.size });
        }
        let before = job.budget.unpacked.fetch_add(filled as u64, Ordering::Relaxed);
        if before.saturating_add(filled as u64) > job.limits.unpacked_bytes {
            return Err(LayerError::Unpacked(job.limits.unpacked_bytes));
        }
        if to.send(Piece::Bytes(piece, filled)).is_err() {
            return Ok(()); // the unpacker's error is the one to tell
        }
    }
}

/// The archive as thread 2 reads it, hashed on the way.
struct Pieces {
    from: sync_mpsc::Receiver<Piece>,
    spare: sync_mpsc::Sender<Vec<u8>>,
    hasher: Hasher,
    piece: Vec<u8>,
    filled: usize,
    at: usize,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let step = self.fill_buf()?.read(buf)?;
        self.consume(step);
        Ok(step)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.filled && !self.ended {
            match self.from.recv() {
                Ok(Piece::Bytes(piece, filled)) => {
                    self.hasher.update(piece.get(..filled).unwrap_or_default());
                    let used = std::mem::replace(&mut self.piece, piece);
                    (self.at, self.filled) = (0, filled);
                    if !used.is_empty() {
                        let _ = self.spare.send(used);
                    }
                }
                Ok(Piece::End) => self.ended = true,
                // Not an end: the decoder failed, and what came so far must not pass for a whole archive.
                Err(_) => return Err(io::Error::other("the layer could not be decoded to its end")),
            }
        }
        Ok(self.piece.get(self.at..self.filled).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.filled);
    }
}
