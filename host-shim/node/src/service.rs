//! containerd's snapshot service over the [`Store`]: conversion only.
//!
//! Invariant: every call that touches the disk runs on a blocking thread under the store's one lock; no call holds it across an await.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use containerd_snapshots::api::types::Mount;
use containerd_snapshots::{Info, Snapshotter, Usage};

use crate::error::SnapshotError;
use crate::filter::Filter;
use crate::record::{Kind, Record};
use crate::store::{Bind, Store};

/// The service containerd talks to.
pub(crate) struct Service {
    store: Arc<Mutex<Store>>,
}

impl Service {
    /// A service over an opened store.
    pub(crate) fn new(store: Store) -> Self {
        Service { store: Arc::new(Mutex::new(store)) }
    }

    async fn with<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Store) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let store = Arc::clone(&self.store);
        let task = tokio::task::spawn_blocking(move || {
            // Changes reach memory only after the disk, so a panic in between leaves nothing half done.
            call(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        task.await.map_err(|e| SnapshotError::Internal(e.to_string()))?
    }
}

fn info(record: &Record) -> Info {
    Info {
        kind: match record.kind {
            Kind::View => containerd_snapshots::Kind::View,
            Kind::Active => containerd_snapshots::Kind::Active,
            Kind::Committed => containerd_snapshots::Kind::Committed,
        },
        name: record.name.clone(),
        parent: record.parent.clone(),
        labels: record.labels.clone().into_iter().collect(),
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}

fn mounts(bind: Bind) -> Vec<Mount> {
    let access = if bind.writable { "rw" } else { "ro" };
    vec![Mount {
        r#type: "bind".to_owned(),
        source: bind.source.to_string_lossy().into_owned(),
        target: String::new(),
        options: vec!["bind".to_owned(), access.to_owned()],
    }]
}

#[tonic::async_trait]
impl Snapshotter for Service {
    type Error = SnapshotError;

    async fn stat(&self, key: String) -> Result<Info, SnapshotError> {
        self.with(move |store| store.stat(&key).map(info)).await
    }

    async fn update(&self, wanted: Info, fields: Option<Vec<String>>) -> Result<Info, SnapshotError> {
        let fields = fields.unwrap_or_default();
        self.with(move |store| store.update(&wanted.name, wanted.labels, &fields, SystemTime::now()).map(|r| info(&r))).await
    }

    async fn usage(&self, key: String) -> Result<Usage, SnapshotError> {
        // Nothing of an image is on this node.
        self.with(move |store| store.stat(&key).map(|_| Usage::default())).await
    }

    async fn mounts(&self, key: String) -> Result<Vec<Mount>, SnapshotError> {
        self.with(move |store| store.mounts(&key).map(mounts)).await
    }

    async fn prepare(&self, key: String, parent: String, labels: HashMap<String, String>) -> Result<Vec<Mount>, SnapshotError> {
        let span = tracing::debug_span!("prepare", key, parent);
        let answer = self.with(move |store| store.prepare(&key, &parent, labels, SystemTime::now()).map(mounts)).await;
        span.in_scope(|| match &answer {
            Err(SnapshotError::AlreadyExists(target)) => tracing::debug!(target_snapshot = %target, "left to the guest"),
            Err(error) => tracing::warn!(%error, "refused"),
            Ok(_) => tracing::debug!("done"),
        });
        answer
    }

    async fn view(&self, key: String, parent: String, labels: HashMap<String, String>) -> Result<Vec<Mount>, SnapshotError> {
        self.with(move |store| store.view(&key, &parent, labels, SystemTime::now()).map(mounts)).await
    }

    async fn commit(&self, name: String, key: String, labels: HashMap<String, String>) -> Result<(), SnapshotError> {
        self.with(move |store| store.commit(&name, &key, labels, SystemTime::now())).await
    }

    async fn remove(&self, key: String) -> Result<(), SnapshotError> {
        self.with(move |store| store.remove(&key)).await
    }

    async fn clear(&self) -> Result<(), SnapshotError> {
        self.with(|store| store.sweep()).await
    }

    type InfoStream = futures::stream::Iter<std::vec::IntoIter<Result<Info, SnapshotError>>>;

    async fn list(&self, _snapshotter: String, filters: Vec<String>) -> Result<Self::InfoStream, SnapshotError> {
        let filter = Filter::parse(&filters)?;
        let records = self.with(move |store| Ok(store.list(&filter))).await?;
        let infos: Vec<_> = records.iter().map(|record| Ok(info(record))).collect();
        Ok(futures::stream::iter(infos))
    }
}
