//! The node's cache of layer blobs, as a puller uses it: who is asked when, how long it is waited for, and what may be given to it.
//!
//! The cache is the host's. It may be away, slow, or give other bytes; then the registry is asked as if it were not there. How it is reached is the
//! caller's matter ([`BlobCache`]).
//!
//! **Invariant:** a plain layer of a repository to which a login was sent is neither given to the cache nor asked of it: the host may not know its bytes, nor
//! which layer it is. What else is given is ciphertext, or what anybody gets from the registry.
//! **Invariant:** a pull waits for the cache only as [`Patience`] says, and for what it gives to the cache not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::digest::Digest;
use crate::reference::Reference;
use crate::registry::{BlobReader, Registry, RegistryError};

/// Why the cache did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Nobody is there.
    #[error("nobody answers")]
    Unreachable(#[source] std::io::Error),
    /// The exchange broke off, or was not of the form it has to have.
    #[error("{0}")]
    Protocol(String),
    /// Another answer than the expected one.
    #[error("it answers {0}")]
    Status(u16),
}

/// Keeps blobs by digest, on the other side of some boundary. Believed in nothing: callers compare every digest.
#[async_trait::async_trait]
pub trait BlobCache: Send + Sync {
    /// Whether anybody is there. Asked when a pull begins, so that the answer is there when the layers are due: a host may also give none, and a connection takes
    /// seconds to fail then.
    ///
    /// # Errors
    /// If nobody is.
    async fn reach(&self) -> Result<(), CacheError>;

    /// A blob from its beginning, or `None` if it is not there.
    ///
    /// # Errors
    /// If the cache cannot be asked.
    async fn get(&self, digest: &Digest) -> Result<Option<Box<dyn BlobReader>>, CacheError>;

    /// Gives a blob of `size` bytes. Where `bytes` ends before, it was given up, and the cache must not take it for whole.
    ///
    /// # Errors
    /// If the cache does not take it.
    async fn put(&self, digest: &Digest, size: u64, bytes: Filling) -> Result<(), CacheError>;
}

/// How long the cache is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For somebody to be there at all, from the beginning of the pull.
    pub(crate) reach: Duration,
    /// For the beginning of an answer.
    pub(crate) answer: Duration,
    /// For the next [`Self::progress`] bytes of a blob, or its end. Only waiting counts, not what the pull does with the bytes meanwhile.
    pub(crate) window: Duration,
    /// What has to come within [`Self::window`], so that a trickle does not hold a pull.
    pub(crate) progress: usize,
    /// For the cache to take the rest of a blob when the download is over.
    pub(crate) linger: Duration,
}

impl Patience {
    /// A registry is asked after three seconds at most, and ten seconds after a blob has come to a standstill. Manifest, signature and keys take longer than
    /// [`Self::reach`] most of the time, so that a node without a cache costs nothing.
    pub(crate) const DEFAULT: Self = Self {
        reach: Duration::from_millis(250),
        answer: Duration::from_secs(3),
        window: Duration::from_secs(10),
        progress: 1 << 20,
        linger: Duration::from_secs(30),
    };
}

/// Bytes of one layer that wait for the cache. A cache that is further behind the download gets no more of it.
const AHEAD: usize = 8 << 20;
/// Pieces of one layer that wait, each of which costs something beside its bytes.
const PIECES_AHEAD: usize = 4096;

/// The cache for the time of one pull.
#[derive(Clone)]
pub(crate) struct PullCache {
    cache: Option<Arc<dyn BlobCache>>,
    patience: Patience,
    registry: Arc<dyn Registry>,
    repository: Reference,
    /// Cleared by the first failure that a further question would only meet again.
    asked: Arc<AtomicBool>,
    /// Whether somebody is there, once that is known.
    there: watch::Receiver<Option<bool>>,
    begin: Instant,
}

impl PullCache {
    /// For a pull that begins now.
    pub(crate) fn new(cache: Option<Arc<dyn BlobCache>>, patience: Patience, registry: &Arc<dyn Registry>, repository: &Reference) -> Self {
        let (tell, there) = watch::channel(None);
        if let Some(cache) = cache.clone() {
            tokio::spawn(async move {
                let reached = tokio::select! {
                    reached = cache.reach() => reached,
                    () = tell.closed() => return, // the pull is over
                };
                if let Err(error) = &reached {
                    // What a node without a cache looks like: not worth a warning.
                    tracing::debug!(%error, "no blob cache on this node");
                }
                let _ = tell.send(Some(reached.is_ok()));
            });
        }
        Self {
            cache,
            patience,
            registry: Arc::clone(registry),
            repository: repository.clone(),
            asked: Arc::new(AtomicBool::new(true)),
            there,
            begin: Instant::now(),
        }
    }

    /// Whether the host may see this layer.
    fn may_see(&self, encrypted: bool) -> bool {
        encrypted || !self.registry.sent_login(&self.repository)
    }

    fn usable(&self, encrypted: bool) -> Option<&Arc<dyn BlobCache>> {
        self.cache.as_ref().filter(|_| self.asked.load(Ordering::Relaxed) && self.may_see(encrypted))
    }

    async fn is_there(&self) -> bool {
        let mut there = self.there.clone();
        let left = self.patience.reach.saturating_sub(self.begin.elapsed());
        let told = tokio::time::timeout(left, there.wait_for(Option::is_some)).await;
        matches!(told, Ok(Ok(answer)) if *answer == Some(true))
    }

    /// A layer as the cache has it, if it has it.
    pub(crate) async fn open(&self, digest: &Digest, encrypted: bool) -> Option<Box<dyn BlobReader>> {
        let cache = self.usable(encrypted)?;
        if !self.is_there().await {
            self.asked.store(false, Ordering::Relaxed);
            return None;
        }
        match tokio::time::timeout(self.patience.answer, cache.get(digest)).await {
            Ok(Ok(reader)) => {
                let reader = reader?;
                return Some(Box::new(Paced {
                    reader,
                    patience: self.patience,
                    waited: Duration::ZERO,
                    came: 0,
                    asked: Arc::clone(&self.asked),
                }));
            }
            Ok(Err(error)) => tracing::warn!(%error, "the node's blob cache fails, going on without it"),
            Err(_) => tracing::warn!(waited = ?self.patience.answer, "no answer from the node's blob cache, going on without it"),
        }
        self.asked.store(false, Ordering::Relaxed);
        None
    }

    /// The same download, of which the cache gets a copy if the host may see it.
    pub(crate) fn tee(&self, digest: Digest, size: u64, encrypted: bool, from: Box<dyn BlobReader>) -> Box<dyn BlobReader> {
        let Some(cache) = self.usable(encrypted).map(Arc::clone) else { return from };
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        let (over_tx, over) = oneshot::channel::<()>();
        let ahead = Arc::new(AtomicUsize::new(0));
        let filling = Filling { from: receiver, ahead: Arc::clone(&ahead), last: 0 };
        let linger = self.patience.linger;
        tokio::spawn(async move {
            let given_up = async {
                let _ = over.await; // an error is the news: the download is over
                tokio::time::sleep(linger).await;
            };
            tokio::select! {
                given = cache.put(&digest, size, filling) => if let Err(error) = given {
                    tracing::debug!(%digest, %error, "the node's blob cache did not take a layer");
                },
                () = given_up => tracing::debug!(%digest, "the node's blob cache is too slow for a layer"),
            }
        });
        Box::new(Teed { from, to: Some(Tap { sender, ahead, _over: over_tx }), cache: self.clone(), encrypted })
    }
}

/// What the cache is given of one blob: its bytes, in order, as they are downloaded.
#[derive(Debug)]
pub struct Filling {
    from: mpsc::Receiver<Bytes>,
    ahead: Arc<AtomicUsize>,
    /// Length of what was taken last: it waits until more is asked for.
    last: usize,
}

impl Filling {
    /// These pieces and then the end: for the tests of a cache.
    #[must_use]
    pub fn of(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let (sender, from) = mpsc::channel(PIECES_AHEAD);
        let ahead = Arc::new(AtomicUsize::new(0));
        for piece in pieces {
            ahead.fetch_add(piece.len(), Ordering::Relaxed);
            // More than there is room for are left out, as they are for a cache that is too slow.
            if sender.try_send(piece).is_err() {
                break;
            }
        }
        Self { from, ahead, last: 0 }
    }

    /// The next bytes; `None` at the end, and also when the download was given up.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.ahead.fetch_sub(std::mem::take(&mut self.last), Ordering::Relaxed);
        let bytes = self.from.recv().await?;
        self.last = bytes.len();
        Some(bytes)
    }
}

/// The other end of a [`Filling`].
struct Tap {
    sender: mpsc::Sender<Bytes>,
    ahead: Arc<AtomicUsize>,
    _over: oneshot::Sender<()>,
}

impl Tap {
    /// Whether there was room. Never waits.
    fn offer(&self, bytes: Bytes) -> bool {
        let before = self.ahead.fetch_add(bytes.len(), Ordering::Relaxed);
        // One piece is always let through: a registry's may be larger than all that may wait.
        (before == 0 || before.saturating_add(bytes.len()) <= AHEAD) && self.sender.try_send(bytes).is_ok()
    }
}

/// A download of which the cache gets a copy, as long as it keeps up.
struct Teed {
    from: Box<dyn BlobReader>,
    to: Option<Tap>,
    cache: PullCache,
    encrypted: bool,
}

#[async_trait::async_trait]
impl BlobReader for Teed {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let next = self.from.next().await;
        let more = match (&next, &self.to) {
            // Asked for each piece: a download that broke may have been taken up again with a login.
            (Ok(Some(bytes)), Some(to)) => self.cache.may_see(self.encrypted) && to.offer(bytes.clone()),
            _ => false,
        };
        if !more {
            self.to = None;
        }
        next
    }
}

/// A blob from the cache, given up when it comes to a standstill.
struct Paced {
    reader: Box<dyn BlobReader>,
    patience: Patience,
    /// Waited since [`Patience::progress`] bytes had come the last time.
    waited: Duration,
    came: usize,
    asked: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl BlobReader for Paced {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let begin = Instant::now();
        let Ok(next) = tokio::time::timeout(self.patience.window.saturating_sub(self.waited), self.reader.next()).await else {
            self.asked.store(false, Ordering::Relaxed);
            let reason = format!("{} bytes in {:?}", self.came, self.patience.window);
            return Err(RegistryError::Connection { url: "the node's blob cache".to_owned(), reason });
        };
        self.waited += begin.elapsed();
        if let Ok(Some(bytes)) = &next {
            self.came += bytes.len();
            if self.came >= self.patience.progress {
                (self.waited, self.came) = (Duration::ZERO, 0);
            }
        }
        next
    }
}
