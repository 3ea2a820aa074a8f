//! Tests of pulls with a cache of the host's beside the registry: what is asked of it, what is given to it, and that its lies cost time and nothing else.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::SignaturePolicy;
use crate::blob_cache::{BlobCache, CacheError, Filling, Patience, PullCache};
use crate::digest::Digest;
use crate::pull::{PullError, PulledImage};
use crate::reference::Reference;
use crate::registry::{BlobReader, Registry, RegistryError};
use crate::testing::{Bench, KEK, Layer, MemoryRegistry, Pieces, Tar, chain_of, entries, gzip};

/// What a cache answers to a question for a blob it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    /// Nobody is there, and that is said.
    Absent,
    /// Nobody is there, and nothing is said.
    Nowhere,
    /// Gone when it is asked for a blob.
    Refuses,
    /// An answer that is none.
    Fails,
    /// No answer at all.
    Silent,
    /// The first bytes, and then nothing more.
    Stalls,
    /// The first bytes, and then an error.
    Breaks,
    /// A byte at a time, for ever.
    Trickles,
    /// A byte changed.
    Alters,
    Cuts,
    Lengthens,
    /// Well-formed gzip of another archive.
    Swaps,
    /// Something that unpacks to more than any image may have.
    Bomb,
}

struct MemoryCache {
    manner: Manner,
    blobs: Mutex<HashMap<Digest, Vec<u8>>>,
    asked: Mutex<Vec<Digest>>,
    puts: AtomicUsize,
    /// Whether it takes nothing of what it is given, until told.
    holds: Option<Arc<Notify>>,
    put_over: Notify,
    broke: AtomicBool,
    /// Bytes given to it, whole or not.
    given: AtomicUsize,
}

impl MemoryCache {
    fn new(manner: Manner) -> Self {
        Self {
            manner,
            blobs: Mutex::default(),
            asked: Mutex::default(),
            puts: AtomicUsize::new(0),
            holds: None,
            put_over: Notify::new(),
            broke: AtomicBool::new(false),
            given: AtomicUsize::new(0),
        }
    }

    fn with(manner: Manner, layers: &[Layer]) -> Arc<Self> {
        let cache = Self::new(manner);
        cache.blobs.lock().unwrap().extend(layers.iter().map(|layer| (Digest::of(&layer.blob), layer.blob.clone())));
        Arc::new(cache)
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn has(&self, layer: &Layer) -> bool {
        self.blobs.lock().unwrap().contains_key(&Digest::of(&layer.blob))
    }
}

/// Some bytes, and then the rest of the manner.
struct Then(Bytes, Manner);

#[async_trait::async_trait]
impl BlobReader for Then {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        match self.1 {
            Manner::Trickles => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok(Some(self.0.split_to(1)).filter(|byte| !byte.is_empty()))
            }
            _ if !self.0.is_empty() => Ok(Some(self.0.split_to(self.0.len()))),
            Manner::Breaks => Err(RegistryError::Connection { url: "cache".to_owned(), reason: "broke".to_owned() }),
            _ => std::future::pending().await,
        }
    }
}

#[async_trait::async_trait]
impl BlobCache for MemoryCache {
    async fn reach(&self) -> Result<(), CacheError> {
        match self.manner {
            Manner::Absent => Err(CacheError::Unreachable(std::io::ErrorKind::ConnectionReset.into())),
            Manner::Nowhere => std::future::pending().await,
            _ => Ok(()),
        }
    }

    async fn get(&self, digest: &Digest) -> Result<Option<Box<dyn BlobReader>>, CacheError> {
        self.asked.lock().unwrap().push(*digest);
        let blob = self.blobs.lock().unwrap().get(digest).cloned();
        match self.manner {
            Manner::Refuses => return Err(CacheError::Unreachable(std::io::ErrorKind::ConnectionReset.into())),
            Manner::Fails => return Err(CacheError::Status(500)),
            Manner::Silent => std::future::pending().await,
            _ => {}
        }
        let Some(mut blob) = blob else { return Ok(None) };
        let middle = blob.len() / 2;
        match self.manner {
            Manner::Alters => blob[middle] ^= 1,
            Manner::Cuts => blob.truncate(middle),
            Manner::Lengthens => blob.push(0),
            Manner::Swaps => blob = gzip(&Tar::default().file("etc/a", b"another").end()),
            Manner::Bomb => blob = gzip(&Tar::default().file("etc/a", &vec![0; 3 << 20]).end()),
            Manner::Stalls | Manner::Breaks => return Ok(Some(Box::new(Then(blob[..middle].to_vec().into(), self.manner)))),
            Manner::Trickles => return Ok(Some(Box::new(Then(vec![0; 1 << 20].into(), self.manner)))),
            _ => {}
        }
        Ok(Some(Box::new(Pieces(blob.into()))))
    }

    async fn put(&self, digest: &Digest, size: u64, mut bytes: Filling) -> Result<(), CacheError> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        if let Some(holds) = &self.holds {
            holds.notified().await;
        }
        let mut whole = Vec::new();
        while let Some(more) = bytes.next().await {
            whole.extend_from_slice(&more);
        }
        self.given.store(whole.len(), Ordering::SeqCst);
        if whole.len() as u64 == size {
            self.blobs.lock().unwrap().insert(*digest, whole);
        } else {
            self.broke.store(true, Ordering::SeqCst);
        }
        self.put_over.notify_one();
        Ok(())
    }
}

/// Bytes no compression makes smaller, so that every part of a blob matters.
fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed + 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn layers() -> Vec<Layer> {
    let one = Tar::default().dir("etc", 0o755).file("etc/a", &noise(1, 300_000)).end();
    let two = Tar::default().dir("etc", 0o755).file("etc/b", &noise(2, 300_000)).end();
    vec![Layer::gzip(&one), Layer::gzip(&two).encrypted(&KEK)]
}

/// Long for what comes, short for what does not. No test is right or wrong by how long something took.
const PATIENCE: Patience = Patience {
    reach: Duration::from_secs(60),
    answer: Duration::from_millis(200),
    window: Duration::from_millis(200),
    ..Patience::DEFAULT
};

async fn pull(bench: &Bench, cache: &Arc<MemoryCache>, image: &Reference) -> Result<PulledImage, PullError> {
    let puller = bench.puller().with_cache(cache.clone()).with_patience(PATIENCE);
    puller.pull(image, &SignaturePolicy::insecure_accept_anything(), &bench.store, &|_| {}).await
}

#[track_caller]
fn is_right(bench: &Bench, image: &PulledImage) {
    assert_eq!(std::fs::read(image.layers[0].path.join("etc/a")).unwrap(), noise(1, 300_000));
    assert_eq!(std::fs::read(image.layers[1].path.join("etc/b")).unwrap(), noise(2, 300_000));
    assert_eq!(entries(&bench.dir.path().join("tmp")), 0, "something stayed in tmp");
    assert_eq!(entries(&bench.dir.path().join("layers")), 2, "something else is in layers");
}

fn blob_requests(bench: &Bench, layers: &[Layer]) -> Vec<usize> {
    layers.iter().map(|layer| bench.registry.asked_for(&format!("blob {}", Digest::of(&layer.blob)))).collect()
}

#[tokio::test]
async fn layers_that_the_cache_has_are_not_asked_of_the_registry_and_nothing_else_is_asked_of_the_cache() {
    let (bench, layers) = (Bench::new(), layers());
    let cache = MemoryCache::with(Manner::Honest, &layers);
    let image = pull(&bench, &cache, &bench.registry.image(&layers)).await.unwrap();
    is_right(&bench, &image);
    assert_eq!(blob_requests(&bench, &layers), [0, 0]);
    let mut asked = cache.asked.lock().unwrap().clone();
    let mut expected: Vec<Digest> = layers.iter().map(|layer| Digest::of(&layer.blob)).collect();
    asked.sort_by_key(Digest::hex);
    expected.sort_by_key(Digest::hex);
    assert_eq!(asked, expected, "manifest or configuration was asked of the cache");
    assert_eq!(cache.puts.load(Ordering::SeqCst), 0);
    let size: usize = layers.iter().map(|layer| layer.blob.len()).sum();
    assert_eq!((image.timings.cached, image.timings.downloaded), (size as u64, 0));
}

#[tokio::test]
async fn what_a_pull_downloads_fills_the_cache_for_the_next() {
    let layers = layers();
    let cache = MemoryCache::with(Manner::Honest, &[]);
    let bench = Bench::new();
    let image = pull(&bench, &cache, &bench.registry.image(&layers)).await.unwrap();
    is_right(&bench, &image);
    assert_eq!(blob_requests(&bench, &layers), [1, 1]);
    while !layers.iter().all(|layer| cache.has(layer)) {
        cache.put_over.notified().await;
    }
    let bench = Bench::new();
    let image = pull(&bench, &cache, &bench.registry.image(&layers)).await.unwrap();
    is_right(&bench, &image);
    assert_eq!(blob_requests(&bench, &layers), [0, 0]);
}

#[tokio::test]
async fn a_cache_that_lies_breaks_or_stalls_is_caught_and_the_registry_asked_once() {
    use Manner::*;
    for manner in [Stalls, Breaks, Trickles, Alters, Cuts, Lengthens, Swaps] {
        let (bench, layers) = (Bench::new(), layers());
        let cache = MemoryCache::with(manner, &layers);
        let image = pull(&bench, &cache, &bench.registry.image(&layers)).await.unwrap();
        is_right(&bench, &image);
        assert_eq!(blob_requests(&bench, &layers), [1, 1], "{manner:?}");
        assert_eq!(image.timings.cached, 0, "{manner:?}");
    }
}

#[tokio::test]
async fn where_no_cache_is_none_is_asked_or_given_anything() {
    for manner in [Manner::Absent, Manner::Nowhere] {
        let (bench, layers) = (Bench::new(), layers());
        let cache = MemoryCache::with(manner, &layers);
        let reach = if manner == Manner::Nowhere { Duration::from_millis(50) } else { PATIENCE.reach };
        let puller = bench.puller().with_cache(cache.clone()).with_patience(Patience { reach, ..PATIENCE });
        let policy = SignaturePolicy::insecure_accept_anything();
        let image = puller.pull(&bench.registry.image(&layers), &policy, &bench.store, &|_| {}).await.unwrap();
        is_right(&bench, &image);
        assert_eq!((cache.asked(), cache.puts.load(Ordering::SeqCst)), (0, 0), "{manner:?}");
    }
}

#[tokio::test]
async fn a_cache_that_is_gone_fails_or_is_silent_is_not_asked_again_in_this_pull() {
    for manner in [Manner::Refuses, Manner::Fails, Manner::Silent] {
        let (mut bench, layers) = (Bench::new(), layers());
        bench.config.parallel_layers = 1;
        let cache = MemoryCache::with(manner, &layers);
        let image = pull(&bench, &cache, &bench.registry.image(&layers)).await.unwrap();
        is_right(&bench, &image);
        assert_eq!(cache.asked(), 1, "{manner:?}");
        assert_eq!(cache.puts.load(Ordering::SeqCst), 0, "{manner:?}: what does not answer is given nothing");
        // Another pull tries again.
        let bench = Bench::new();
        pull(&bench, &cache, &bench.registry.image(&layers)).await.unwrap();
        assert!(cache.asked() > 1, "{manner:?}");
    }
}

#[tokio::test]
async fn a_discarded_attempt_is_not_counted_against_the_images_limits() {
    let (mut bench, layers) = (Bench::new(), layers());
    // Enough for the image, and for neither image and attempts, nor a bomb.
    bench.config.limits.unpacked_bytes = 800_000;
    bench.config.limits.entries = 5;
    for manner in [Manner::Alters, Manner::Bomb] {
        let cache = MemoryCache::with(manner, &layers);
        let image = pull(&bench, &cache, &bench.registry.image(&layers)).await.unwrap();
        is_right(&bench, &image);
        bench = Bench { config: bench.config.clone(), ..Bench::new() };
    }
    // What the cache gave rightly does count.
    bench.config.limits.unpacked_bytes = 400_000;
    let cache = MemoryCache::with(Manner::Honest, &layers);
    let error = pull(&bench, &cache, &bench.registry.image(&layers)).await.unwrap_err();
    assert!(chain_of(&error).contains("decompress to more than 400000 bytes"), "{}", chain_of(&error));
    bench = Bench { config: bench.config.clone(), ..Bench::new() };
    bench.config.limits.unpacked_bytes = 800_000;
    bench.config.limits.entries = 3;
    let error = pull(&bench, &cache, &bench.registry.image(&layers)).await.unwrap_err();
    assert!(chain_of(&error).contains("more than 3 entries"), "{}", chain_of(&error));
}

#[tokio::test]
async fn a_plain_layer_of_a_private_image_is_neither_given_to_the_cache_nor_asked_of_it() {
    let (bench, layers) = (Bench::new(), layers());
    bench.registry.private.store(true, Ordering::Relaxed);
    let cache = MemoryCache::with(Manner::Honest, &[]);
    let image = pull(&bench, &cache, &bench.registry.image(&layers)).await.unwrap();
    is_right(&bench, &image);
    while !cache.has(&layers[1]) {
        cache.put_over.notified().await;
    }
    assert_eq!(*cache.asked.lock().unwrap(), [Digest::of(&layers[1].blob)]);
    assert_eq!(cache.puts.load(Ordering::SeqCst), 1, "the plain layer was given to the host");
    assert!(!cache.has(&layers[0]));
}

/// Breaks in the middle, and is taken up again with a login.
struct LoginLater(Pieces, Arc<MemoryRegistry>, usize);

#[async_trait::async_trait]
impl BlobReader for LoginLater {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        self.2 += 1;
        if self.2 == 3 {
            self.1.private.store(true, Ordering::Relaxed);
        }
        self.0.next().await
    }
}

#[tokio::test]
async fn a_download_that_took_a_login_half_way_is_not_given_on() {
    for encrypted in [false, true] {
        let bench = Bench::new();
        let registry: Arc<dyn Registry> = bench.registry.clone();
        let cache = MemoryCache::with(Manner::Honest, &[]);
        let pull = PullCache::new(Some(cache.clone()), PATIENCE, &registry, &"r.io/a".parse().unwrap());
        let blob = noise(3, 5000);
        let from = LoginLater(Pieces(blob.clone().into()), bench.registry.clone(), 0);
        let mut teed = pull.tee(Digest::of(&blob), 5000, encrypted, Box::new(from));
        let mut read = 0;
        while let Some(bytes) = teed.next().await.unwrap() {
            read += bytes.len();
        }
        assert_eq!(read, 5000);
        cache.put_over.notified().await;
        assert_eq!(cache.blobs.lock().unwrap().contains_key(&Digest::of(&blob)), encrypted);
    }
}

#[tokio::test]
async fn a_cache_that_takes_nothing_does_not_hold_the_pull() {
    let bench = Bench::new();
    // More than may wait for the cache.
    let large = Tar::default().file("etc", &noise(4, 12 << 20)).end();
    let layer = Layer::plain(&large);
    let release = Arc::new(Notify::new());
    let cache = Arc::new(MemoryCache { holds: Some(release.clone()), ..MemoryCache::new(Manner::Honest) });
    let image = pull(&bench, &cache, &bench.registry.image(std::slice::from_ref(&layer))).await.unwrap();
    assert_eq!(image.timings.downloaded, layer.blob.len() as u64);
    // What it gets when it wakes up is cut, and no more of it was kept than may wait.
    release.notify_one();
    cache.put_over.notified().await;
    assert!(cache.broke.load(Ordering::SeqCst) && !cache.has(&layer));
}

/// Gives a blob in pieces of a mebibyte.
struct Large(Bytes);

#[async_trait::async_trait]
impl BlobReader for Large {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let length = self.0.len().min(1 << 20);
        Ok((length > 0).then(|| self.0.split_to(length)))
    }
}

#[tokio::test]
async fn what_waits_for_a_slow_cache_is_bounded_in_bytes() {
    let bench = Bench::new();
    let registry: Arc<dyn Registry> = bench.registry.clone();
    let release = Arc::new(Notify::new());
    let cache = Arc::new(MemoryCache { holds: Some(release.clone()), ..MemoryCache::new(Manner::Honest) });
    let pull = PullCache::new(Some(cache.clone()), PATIENCE, &registry, &"r.io/a".parse().unwrap());
    let blob = Bytes::from(vec![0; 12 << 20]);
    let mut teed = pull.tee(Digest::of(&blob), 12 << 20, false, Box::new(Large(blob)));
    while teed.next().await.unwrap().is_some() {}
    release.notify_one();
    cache.put_over.notified().await;
    assert_eq!(cache.given.load(Ordering::SeqCst), 8 << 20);
    assert!(cache.broke.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_cache_that_keeps_up_in_the_end_gets_all_of_a_small_layer() {
    let bench = Bench::new();
    let layers = layers();
    let release = Arc::new(Notify::new());
    let cache = Arc::new(MemoryCache { holds: Some(release.clone()), ..MemoryCache::new(Manner::Honest) });
    let image = bench.registry.image(&layers[..1]);
    pull(&bench, &cache, &image).await.unwrap();
    release.notify_one();
    cache.put_over.notified().await;
    assert!(cache.has(&layers[0]));
}
