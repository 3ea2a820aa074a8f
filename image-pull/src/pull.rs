//! The pull itself: the order of the steps, and what passes between them.
//!
//! ```text
//! reference ─▶ policy (no request) ─▶ manifest by digest ─▶ signature ─▶ configuration ─▶ layer keys ─▶ layers ─▶ implied directories
//! ```
//! **Invariant:** no key is asked for before the signature policy is satisfied, no layer is asked for before its key is there, and nothing of a pull that
//! failed is in the store, except whole layers that were verified before it did.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oci_spec::image::ImageConfiguration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::blob_cache::{BlobCache, Patience, PullCache};
use crate::cosign::{self, SignatureError};
use crate::digest::Digest;
use crate::layer::{self, Budget, Job, LayerError};
use crate::limits::Limits;
use crate::manifest::{self, CheckedConfig, ImageManifest, LayerDescriptor, Manifest, ManifestError, Platform};
use crate::ocicrypt::{LayerKey, OcicryptError};
use crate::overlay;
use crate::policy::SignaturePolicy;
use crate::reference::Reference;
use crate::registry::auth::Credentials;
use crate::registry::http::{HttpConfig, HttpRegistry};
use crate::registry::{RawManifest, Registry, RegistryError, Version, pinned_manifest, small_blob};
use crate::secret::{Secret, SecretError, Secrets};
use crate::store::{LayerStore, Pending, StoreError, Stored, chain};
use crate::unpack::{Ownership, UnpackError, Unpacked};

/// How to pull. The defaults are the strict ones.
#[derive(Debug, Clone)]
pub struct PullConfig {
    /// `host:port` of registries with which plain HTTP is spoken. Digests pin every byte all the same; no login is sent to them.
    pub insecure_registries: Vec<String>,
    /// Further certificate authorities, PEM.
    pub extra_ca: Vec<String>,
    /// Whether the public certificate authorities are trusted.
    pub public_ca: bool,
    /// A Docker `config.json` with logins.
    pub credentials: Option<Secret>,
    /// Bounds on one image.
    pub limits: Limits,
    /// Layers under way at once. Each takes two threads and a few MiB.
    pub parallel_layers: usize,
    /// Whether a reference must name a digest. Without one the registry decides what is run.
    pub require_digest: bool,
    /// Whose the unpacked files are.
    pub ownership: Ownership,
    /// What the image must be made for.
    pub platform: Platform,
}

impl Default for PullConfig {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            extra_ca: Vec::new(),
            public_ca: true,
            credentials: None,
            limits: Limits::default(),
            parallel_layers: 3,
            require_digest: true,
            ownership: Ownership::FromImage,
            platform: Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None },
        }
    }
}

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No digest in the reference.
    #[error("{0}: the reference names no digest; name the image as <name>@sha256:<digest>")]
    NoDigest(String),
    /// No digest and no tag.
    #[error("{0}: the reference names neither tag nor digest")]
    NoVersion(String),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The manifest or configuration is refused.
    #[error("{image}")]
    Manifest {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The signature policy is not satisfied.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The key of a layer is not to be had.
    #[error("key {kid} of layer {index}")]
    Key {
        /// Which layer, from 0.
        index: usize,
        /// The key's name.
        kid: String,
        /// Why.
        #[source]
        source: SecretError,
    },
    /// The key of a layer does not open it.
    #[error("layer {index}")]
    Unwrap {
        /// Which layer, from 0.
        index: usize,
        /// Why.
        #[source]
        source: OcicryptError,
    },
    /// A layer is refused.
    #[error("layer {index} ({digest}) of {image}")]
    Layer {
        /// The image.
        image: String,
        /// Which layer, from 0.
        index: usize,
        /// Digest of its blob.
        digest: Digest,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The last step failed.
    #[error("taking over the metadata of implied directories")]
    Implied(#[source] UnpackError),
    /// A task of ours panicked.
    #[error("internal error: a task of the pull panicked")]
    Panicked,
}

/// A step of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Manifest and index.
    Manifest,
    /// Signature policy, and beside it the download of the configuration.
    Signature,
    /// Keys of encrypted layers.
    Key,
    /// Layers, from the first byte asked for to the last directory settled.
    Layers,
}

/// A step has ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineEvent {
    /// Which.
    pub phase: Phase,
    /// How long it took.
    pub took: Duration,
}

/// Where the time of a pull went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// [`Phase::Manifest`].
    pub manifest: Duration,
    /// [`Phase::Signature`].
    pub signature: Duration,
    /// [`Phase::Key`].
    pub key: Duration,
    /// [`Phase::Layers`].
    pub layers: Duration,
    /// Bytes of the layers downloaded from the registry.
    pub downloaded: u64,
    /// Bytes of the layers that the node's blob cache had.
    pub cached: u64,
    /// Bytes of the layers unpacked.
    pub unpacked: u64,
}

/// One layer of a pulled image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDir {
    /// The directory.
    pub path: PathBuf,
    /// A short name of the same directory, for mount options.
    pub link: PathBuf,
    /// Digest of the archive that was unpacked there.
    pub diff_id: Digest,
    /// Digest of the blob it came in.
    pub digest: Digest,
    /// Whether this image has it encrypted.
    pub encrypted: bool,
    /// Whether it was there already.
    pub reused: bool,
}

/// An image whose every byte was checked, unpacked.
#[derive(Debug, Clone)]
pub struct PulledImage {
    /// What was asked for.
    pub reference: Reference,
    /// Digest of the image's own manifest: that of the reference, unless that is an index.
    pub manifest_digest: Digest,
    /// The image configuration. Plain data from the image's author: what of it may be used is the agent policy's matter.
    pub config: ImageConfiguration,
    /// The layers, the lowest first.
    pub layers: Vec<LayerDir>,
    /// Where the time went.
    pub timings: Timings,
}

/// Pulls images. One for a guest; it may pull several at once.
#[derive(Clone)]
pub struct Puller {
    config: Arc<PullConfig>,
    limits: Arc<Limits>,
    registry: Arc<dyn Registry>,
    secrets: Arc<dyn Secrets>,
    cache: Option<Arc<dyn BlobCache>>,
    patience: Patience,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("config", &self.config).finish_non_exhaustive()
    }
}

struct Clock<'t> {
    last: Instant,
    timeline: &'t (dyn Fn(TimelineEvent) + Send + Sync),
}

impl Clock<'_> {
    fn end(&mut self, phase: Phase) -> Duration {
        let now = Instant::now();
        let took = now.duration_since(std::mem::replace(&mut self.last, now));
        (self.timeline)(TimelineEvent { phase, took });
        took
    }
}

impl Puller {
    /// A puller that asks registries over the network.
    ///
    /// # Errors
    /// If certificates or credentials are malformed.
    pub fn new(config: PullConfig, secrets: Arc<dyn Secrets>) -> Result<Self, RegistryError> {
        let registry = HttpRegistry::new(HttpConfig {
            insecure_registries: config.insecure_registries.iter().cloned().collect(),
            extra_ca: config.extra_ca.clone(),
            public_ca: config.public_ca,
            credentials: config.credentials.as_ref().map_or(Ok(Credentials::default()), Credentials::parse)?,
        })?;
        Ok(Self::with_registry(config, secrets, Arc::new(registry)))
    }

    /// A puller that asks this registry, whatever the references say.
    #[must_use]
    pub fn with_registry(config: PullConfig, secrets: Arc<dyn Secrets>, registry: Arc<dyn Registry>) -> Self {
        let limits = Arc::new(config.limits.clone());
        Self { limits, config: Arc::new(config), registry, secrets, cache: None, patience: Patience::DEFAULT }
    }

    /// The same, asking this cache for layers before the registry. Manifests, configurations and signatures never come from it.
    #[must_use]
    pub fn with_cache(self, cache: Arc<dyn BlobCache>) -> Self {
        Self { cache: Some(cache), ..self }
    }

    #[cfg(test)]
    pub(crate) fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Pulls an image into the store and says where its layers are. `timeline` is told of each step as it ends.
    ///
    /// # Errors
    /// If anything is not as the reference, the manifest, the signature policy and the keys say. What was unpacked of a refused layer is gone by then.
    pub async fn pull(
        &self,
        reference: &Reference,
        policy: &SignaturePolicy,
        store: &LayerStore,
        timeline: &(dyn Fn(TimelineEvent) + Send + Sync),
    ) -> Result<PulledImage, PullError> {
        let mut clock = Clock { last: Instant::now(), timeline };
        let mut timings = Timings::default();
        let refused = |source| PullError::Manifest { image: reference.to_string(), source };

        if self.config.require_digest && reference.digest().is_none() {
            return Err(PullError::NoDigest(reference.to_string()));
        }
        cosign::preflight(policy, reference)?;
        let cache = PullCache::new(self.cache.clone(), self.patience, &self.registry, reference);
        let (digests, manifest) = self.manifest(reference).await?;
        timings.manifest = clock.end(Phase::Manifest);

        // The policy is asked for this reference even if all of the image is in the store: what another reference was allowed says nothing of this one.
        let check = cosign::check(policy, reference, &digests, &*self.registry, &*self.secrets, &self.limits);
        let limit = manifest.config_size;
        let config = small_blob(&*self.registry, reference, &manifest.config, limit, "the configuration");
        let (checked, config) = tokio::join!(check, config);
        checked?;
        let CheckedConfig { configuration, diff_ids } =
            manifest::config(&config?, manifest.layers.len(), &self.config.platform).map_err(refused)?;
        timings.signature = clock.end(Phase::Signature);

        let keys = self.keys(&manifest.layers).await?;
        timings.key = clock.end(Phase::Key);

        let budget = Arc::new(Budget::default());
        let came = Arc::new(Came::default());
        let stored = self.layers(reference, &manifest.layers, &diff_ids, keys, store, &cache, &budget, &came).await?;
        self.settle(&stored, store).await?;
        timings.layers = clock.end(Phase::Layers);
        timings.downloaded = came.downloaded.load(Ordering::Relaxed);
        timings.cached = came.cached.load(Ordering::Relaxed);
        timings.unpacked = budget.unpacked.load(Ordering::Relaxed);

        let layers = manifest.layers.iter().zip(diff_ids).zip(stored).map(|((layer, diff_id), (stored, reused))| LayerDir {
            path: stored.path,
            link: stored.link,
            diff_id,
            digest: layer.digest,
            encrypted: layer.sealed.is_some(),
            reused,
        });
        let manifest_digest = *digests.last().expect("the manifest's own digest is always in the list");
        Ok(PulledImage { reference: reference.clone(), manifest_digest, config: configuration, layers: layers.collect(), timings })
    }

    /// The image's manifest, and the digests a signature may be for: that of the index, if there is one, and its own last.
    async fn manifest(&self, reference: &Reference) -> Result<(Vec<Digest>, ImageManifest), PullError> {
        let refused = |source| PullError::Manifest { image: reference.to_string(), source };
        let (digest, raw) = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => (*digest, pinned_manifest(&*self.registry, reference, digest, self.limits.manifest_bytes).await?),
            (None, Some(tag)) => {
                let raw = self.registry.manifest(reference, Version::Tag(tag), self.limits.manifest_bytes).await?;
                let raw = raw.ok_or_else(|| RegistryError::Absent { what: "the manifest", reference: reference.to_string() })?;
                (Digest::of(&raw.bytes), raw)
            }
            (None, None) => return Err(PullError::NoVersion(reference.to_string())),
        };
        match Manifest::parse(&raw, &self.limits).map_err(refused)? {
            Manifest::Image(manifest) => Ok((vec![digest], manifest)),
            Manifest::Index(manifests) => {
                let chosen = manifest::select(&manifests, &self.config.platform).map_err(refused)?;
                let raw = pinned_manifest(&*self.registry, reference, &chosen.digest, self.limits.manifest_bytes).await?;
                // The index says the type too; with it an index cannot hide behind a manifest's entry.
                let raw = RawManifest { content_type: raw.content_type.or_else(|| Some(chosen.media_type.clone())), ..raw };
                match Manifest::parse(&raw, &self.limits).map_err(refused)? {
                    Manifest::Image(manifest) => Ok((vec![digest, chosen.digest], manifest)),
                    Manifest::Index(_) => Err(refused(ManifestError::Refused("an index within an index".to_owned()))),
                }
            }
        }
    }

    async fn keys(&self, layers: &[LayerDescriptor]) -> Result<Vec<Option<LayerKey>>, PullError> {
        let mut keks: HashMap<String, Secret> = HashMap::new();
        let mut keys = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            let Some(sealed) = &layer.sealed else {
                keys.push(None);
                continue;
            };
            let mut opened = None;
            let mut failed = None;
            for packet in sealed.packets().iter().take(8) {
                let kid = packet.kid().to_string();
                let kek = match keks.get(&kid) {
                    Some(kek) => Ok(kek.clone()),
                    None => self.secrets.resource(packet.kid()).await,
                };
                match kek {
                    Err(source) => failed = failed.or(Some(PullError::Key { index, kid, source })),
                    Ok(kek) => {
                        keks.insert(kid, kek.clone());
                        match sealed.unwrap(packet, &kek) {
                            Ok(key) => {
                                opened = Some(key);
                                break;
                            }
                            Err(source) => failed = failed.or(Some(PullError::Unwrap { index, source })),
                        }
                    }
                }
            }
            match (opened, failed) {
                (Some(key), _) => keys.push(Some(key)),
                (None, Some(error)) => return Err(error),
                (None, None) => {
                    let source = OcicryptError::NoProviderKey { found: Vec::new() };
                    return Err(PullError::Unwrap { index, source });
                }
            }
        }
        Ok(keys)
    }

    #[expect(clippy::too_many_arguments, reason = "the values of one pull, used here only")]
    async fn layers(
        &self,
        reference: &Reference,
        layers: &[LayerDescriptor],
        diff_ids: &[Digest],
        keys: Vec<Option<LayerKey>>,
        store: &LayerStore,
        cache: &PullCache,
        budget: &Arc<Budget>,
        came: &Arc<Came>,
    ) -> Result<Vec<(Stored, bool)>, PullError> {
        let (cancel, cancelled) = watch::channel(false);
        let permits = Arc::new(Semaphore::new(self.config.parallel_layers.max(1)));
        let mut tasks = JoinSet::new();
        let mut below = None;
        for (index, ((layer, diff_id), key)) in layers.iter().zip(diff_ids).zip(keys).enumerate() {
            let task = LayerTask {
                registry: Arc::clone(&self.registry),
                cache: cache.clone(),
                reference: reference.clone(),
                store: store.clone(),
                permits: Arc::clone(&permits),
                cancelled: cancelled.clone(),
                below,
                came: Arc::clone(came),
            };
            let job = Job {
                digest: layer.digest,
                size: layer.size,
                compression: layer.compression,
                key,
                diff_id: *diff_id,
                limits: Arc::clone(&self.limits),
                ownership: self.config.ownership,
                budget: Arc::clone(budget),
            };
            let digest = layer.digest;
            tasks.spawn(async move { (index, digest, task.run(job).await) });
            below = Some(chain(below, diff_id));
        }
        let mut done: Vec<Option<(Stored, bool)>> = vec![None; layers.len()];
        let mut failure = None;
        // All are waited for, also after a failure: when this returns nothing is being written any more.
        while let Some(joined) = tasks.join_next().await {
            match joined {
                Ok((index, _, Ok(stored))) => {
                    if let Some(slot) = done.get_mut(index) {
                        *slot = Some(stored);
                    }
                }
                Ok((index, digest, Err(source))) => {
                    let _ = cancel.send(true);
                    if !matches!(source, LayerError::Cancelled) {
                        failure.get_or_insert(PullError::Layer { image: reference.to_string(), index, digest, source });
                    }
                }
                Err(_) => {
                    let _ = cancel.send(true);
                    failure.get_or_insert(PullError::Panicked);
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None => done.into_iter().collect::<Option<Vec<_>>>().ok_or(PullError::Panicked),
        }
    }

    async fn settle(&self, stored: &[(Stored, bool)], store: &LayerStore) -> Result<(), PullError> {
        if stored.iter().all(|(layer, _)| layer.implied.is_empty()) {
            return Ok(());
        }
        let _held = store.settling().lock().await;
        let layers: Vec<(PathBuf, Arc<BTreeSet<Vec<u8>>>)> =
            stored.iter().map(|(layer, _)| (layer.path.clone(), Arc::clone(&layer.implied))).collect();
        let ownership = self.config.ownership;
        let settled = tokio::task::spawn_blocking(move || overlay::settle_implied(&layers, ownership)).await;
        settled.map_err(|_| PullError::Panicked)?.map_err(PullError::Implied)
    }
}

/// Where the bytes of an image's layers came from.
#[derive(Default)]
struct Came {
    downloaded: AtomicU64,
    cached: AtomicU64,
}

struct LayerTask {
    registry: Arc<dyn Registry>,
    cache: PullCache,
    reference: Reference,
    store: LayerStore,
    permits: Arc<Semaphore>,
    cancelled: watch::Receiver<bool>,
    below: Option<Digest>,
    came: Arc<Came>,
}

impl LayerTask {
    async fn run(self, job: Job) -> Result<(Stored, bool), LayerError> {
        // The layer's lock first, then a permit: who holds a permit waits for nobody.
        let lock = self.store.layer_lock(&job.diff_id);
        let _held = lock.lock().await;
        if let Some(stored) = self.store.find(&job.diff_id, self.below) {
            return Ok((stored, true));
        }
        let _permit = self.permits.acquire().await.map_err(|_| LayerError::Cancelled)?;
        if *self.cancelled.borrow() {
            return Err(LayerError::Cancelled);
        }
        let (diff_id, size) = (job.diff_id, job.size);
        let (pending, unpacked) = match self.cached(&job).await? {
            Some(fetched) => {
                self.came.cached.fetch_add(size, Ordering::Relaxed);
                fetched
            }
            None => {
                let blob = self.registry.blob(&self.reference, &job.digest).await?;
                let blob = self.cache.tee(job.digest, size, job.key.is_some(), blob);
                let fetched = layer::fetch(blob, job, self.store.pending()?, self.cancelled).await?;
                self.came.downloaded.fetch_add(size, Ordering::Relaxed);
                fetched
            }
        };
        Ok((pending.commit(diff_id, unpacked.implied, self.below)?, false))
    }

    /// The layer from the node's cache: `None` if it is not there, or is not what it has to be, of which nothing is left then.
    async fn cached(&self, job: &Job) -> Result<Option<(Pending, Unpacked)>, LayerError> {
        let Some(blob) = self.cache.open(&job.digest, job.key.is_some()).await else { return Ok(None) };
        let (attempt, before) = job.budget.attempt();
        let attempt = Arc::new(attempt);
        let copy = Job { budget: Arc::clone(&attempt), ..job.clone() };
        match layer::fetch(blob, copy, self.store.pending()?, self.cancelled.clone()).await {
            Ok(fetched) => {
                job.budget.count(&attempt, before, &job.limits)?;
                Ok(Some(fetched))
            }
            // Not the cache's doing.
            Err(error @ (LayerError::Cancelled | LayerError::Store(_) | LayerError::Spool { .. })) => Err(error),
            Err(error) => {
                tracing::warn!(digest = %job.digest, %error, "the node's blob cache gave bytes that are not the layer; pulling it from the registry");
                Ok(None)
            }
        }
    }
}
