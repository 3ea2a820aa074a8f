//! Collateral for the verifier: from a directory, else from a cache, else from its maker's service where a base URL is configured.
//!
//! ```text
//! needs(evidence) ──> directory ──> memory ──> cache on disk ──> AMD KDS | Intel PCS ──> Collateral
//! ```
//! Nothing here is a check: whatever comes back is verified like evidence, and what does not come back is simply not there. Not here
//! either: which evidence needs what; the verifiers say that.
//!
//! **Invariant:** without a base URL nothing touches the network. **Invariant:** evidence, which asks before anything of it is verified,
//! decides neither host nor how often somebody is asked: bodies, time, and requests in a time are bounded, and a failure is remembered.

pub mod directory;
mod expiry;
mod service;
mod store;

pub use directory::Directory;
pub use service::{BaseUrl, BaseUrlError};

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kata_cc_verifier::collateral::{Collateral, Item, Need, Source};
use service::{Budget, Service};
use store::{Fresh, Store};

/// Largest piece of collateral. The largest known, Intel's TCB info and revocation lists, have some ten thousand bytes.
pub(crate) const MAX_BODY: usize = 1024 * 1024;
/// Most pieces looked for at once; no evidence needs more.
const MAX_NEEDS: usize = 12;
/// How long a failure is remembered, seconds.
const FAILURE_SECONDS: u64 = 60;
/// Most failures remembered. Where there are more at a time, nothing new is asked for.
const MAX_FAILURES: usize = 4096;

/// Where collateral comes from. The default is nowhere.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Files put there by an administrator (see [`directory`]).
    pub directory: Option<PathBuf>,
    /// AMD's key distribution service, or a mirror.
    pub amd_kds: Option<BaseUrl>,
    /// Intel's provisioning certification service, or a PCCS.
    pub intel_pcs: Option<BaseUrl>,
    /// What was fetched outlives the process here.
    pub cache_directory: Option<PathBuf>,
}

/// Why nothing can be collected as configured.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A directory is not one.
    #[error("{what} {} is not a directory that can be read", path.display())]
    Directory {
        /// Which setting.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The HTTP client cannot be made.
    #[error("cannot set up HTTPS")]
    Client(#[source] reqwest::Error),
}

/// Collects collateral. Cheap to clone; clones share cache and limits.
#[derive(Clone)]
pub struct Collector {
    inner: Arc<Inner>,
}

struct Inner {
    directory: Option<Directory>,
    services: HashMap<Source, Service>,
    store: Store,
    /// What failed, and is not asked for again for a while.
    failures: Mutex<HashMap<Need, Failure>>,
    /// One lock for each need being fetched: whoever comes second waits and finds what the first brought.
    flights: Mutex<HashMap<Need, Arc<tokio::sync::Mutex<()>>>>,
    budget: Mutex<HashMap<Source, Budget>>,
}

struct Failure {
    /// Seconds since the epoch.
    until: u64,
    why: String,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Collector(..)")
    }
}

impl Collector {
    /// One that finds nothing.
    #[must_use]
    pub fn nowhere() -> Self {
        Self::with(None, HashMap::new(), Store::new(None))
    }

    /// One for these sources.
    ///
    /// # Errors
    /// When a directory is not there, or HTTPS cannot be set up.
    pub fn new(sources: Sources) -> Result<Self, SetupError> {
        for (what, path) in [("directory", &sources.directory), ("cache_directory", &sources.cache_directory)] {
            if let Some(path) = path {
                std::fs::read_dir(path).map_err(|source| SetupError::Directory { what, path: path.clone(), source })?;
            }
        }
        let mut services = HashMap::new();
        for (source, base) in [(Source::AmdKds, sources.amd_kds), (Source::IntelPcs, sources.intel_pcs)] {
            if let Some(base) = base {
                services.insert(source, Service::new(base).map_err(SetupError::Client)?);
            }
        }
        Ok(Self::with(sources.directory.map(Directory::new), services, Store::new(sources.cache_directory)))
    }

    fn with(directory: Option<Directory>, services: HashMap<Source, Service>, store: Store) -> Self {
        let inner = Inner { directory, services, store, failures: Mutex::default(), flights: Mutex::default(), budget: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Whether nothing will ever be found: nobody need be asked what evidence needs.
    #[must_use]
    pub fn is_nowhere(&self) -> bool {
        self.inner.directory.is_none() && self.inner.services.is_empty()
    }

    /// What is there of `needs`, now being `now_unix`. What cannot be had is left out: whether it can be done without is the verifier's word.
    /// All are looked for at once, so that what takes longest is all that is waited for.
    pub async fn collect(&self, needs: &[Need], now_unix: u64) -> Collateral {
        let mut collateral = Collateral::none();
        let asked = needs.iter().take(MAX_NEEDS).map(|need| async move { (need, self.one(need, now_unix).await) });
        for (need, item) in futures::future::join_all(asked).await {
            if let Some(item) = item {
                collateral.insert(need.clone(), item);
            }
        }
        collateral
    }

    /// Why a piece could not be fetched, if that was tried within the last minute.
    #[must_use]
    pub fn why_not(&self, need: &Need) -> Option<String> {
        locked(&self.inner.failures).get(need).map(|failure| failure.why.clone())
    }

    async fn one(&self, need: &Need, now: u64) -> Option<Item> {
        let (inner, wanted) = (Arc::clone(&self.inner), need.clone());
        // Files are read where blocking does no harm.
        let kept = tokio::task::spawn_blocking(move || match inner.directory.as_ref().and_then(|directory| directory.get(&wanted)) {
            Some(item) => Some(Fresh::Yes(item)),
            None => inner.store.get(&wanted, now),
        })
        .await
        .ok()?;
        match kept {
            Some(Fresh::Yes(item)) => Some(item),
            // What has expired is better than nothing where there is no newer: a list of what was revoked stays true, and the verifier looks
            // at the time itself.
            Some(Fresh::No(item)) => self.fetch(need, now, true).await.or(Some(item)),
            None => self.fetch(need, now, false).await,
        }
    }

    async fn fetch(&self, need: &Need, now: u64, known: bool) -> Option<Item> {
        let service = self.inner.services.get(&need.source)?;
        let flight = Arc::clone(locked(&self.inner.flights).entry(need.clone()).or_default());
        let item = {
            let _first = flight.lock().await;
            match self.inner.store.in_memory(need, now) {
                Some(Fresh::Yes(item)) => Some(item),
                _ if !self.may_ask(need, now, known) => None,
                _ => self.ask(service, need, now).await,
            }
        };
        let mut flights = locked(&self.inner.flights);
        // The map's own and this one: nobody waits.
        if flights.get(need).is_some_and(|flight| Arc::strong_count(flight) <= 2) {
            flights.remove(need);
        }
        item
    }

    /// Not where it has just failed, and not more often than the budget has it. What was answered before is free of the budget: evidence made
    /// up by the thousand must not keep the list of a real root from being renewed.
    fn may_ask(&self, need: &Need, now: u64, known: bool) -> bool {
        let mut failures = locked(&self.inner.failures);
        failures.retain(|_, failure| failure.until > now && failure.until <= now.saturating_add(FAILURE_SECONDS));
        if failures.contains_key(need) || failures.len() >= MAX_FAILURES {
            return false;
        }
        known || locked(&self.inner.budget).entry(need.source).or_default().take(now)
    }

    async fn ask(&self, service: &Service, need: &Need, now: u64) -> Option<Item> {
        let fetched = match service.get(need).await {
            Ok(item) => expiry::of(&item, now).map(|expires| (item, expires)),
            Err(error) => Err(error),
        };
        match fetched {
            Ok((item, expires)) => {
                let (inner, need, kept) = (Arc::clone(&self.inner), need.clone(), item.clone());
                let stored = tokio::task::spawn_blocking(move || inner.store.put(need, kept, expires)).await;
                if stored.is_err() {
                    tracing::warn!("what was fetched could not be kept");
                }
                Some(item)
            }
            Err(error) => {
                tracing::warn!(%need, %error, "collateral could not be fetched; not asked for again for {FAILURE_SECONDS} s");
                let failure = Failure { until: now.saturating_add(FAILURE_SECONDS), why: error.to_string() };
                locked(&self.inner.failures).insert(need.clone(), failure);
                None
            }
        }
    }
}

/// A panic elsewhere does not make these maps wrong: each change to them is one call.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
