//! Tests of the order of things within one encrypted layer: what this guest does before the authentication code is known, which must be nothing that depends on
//! plaintext (AC-44).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::watch;

use crate::compress::Compression;
use crate::digest::Digest;
use crate::layer::{Budget, Job, LayerError, fetch};
use crate::limits::Limits;
use crate::ocicrypt::{LayerKey, OcicryptError, Sealed};
use crate::registry::{BlobReader, RegistryError};
use crate::secret::Secret;
use crate::store::LayerStore;
use crate::testing::{KEK, Layer, Tar, entries, is_root};
use crate::unpack::Ownership;

/// Several times what lies between download and unpacker, so that whoever streams has unpacked some of it long before the last piece is asked for.
fn large_layer() -> Layer {
    let body: Vec<u8> = (0..1_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    Layer::plain(&(0..4).fold(Tar::default().dir("d", 0o755), |tar, n| tar.file(&format!("d/{n}"), &body)).end())
}

/// Gives a blob in pieces, and before the last looks at what its reader has done by then.
struct Watching<F> {
    left: Bytes,
    before_last: Option<F>,
}

#[async_trait::async_trait]
impl<F: FnOnce() + Send> BlobReader for Watching<F> {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.left.len() <= 4096
            && let Some(look) = self.before_last.take()
        {
            look();
        }
        let step = self.left.len().min(4096);
        Ok((step > 0).then(|| self.left.split_to(step)))
    }
}

fn key(layer: &Layer) -> LayerKey {
    let sealed = Sealed::from_annotations(&layer.annotations).unwrap();
    sealed.unwrap(&sealed.packets()[0], &Secret::new(KEK.to_vec())).unwrap()
}

fn job(layer: &Layer, blob: &[u8], key: Option<LayerKey>, budget: &Arc<Budget>) -> Job {
    Job {
        digest: Digest::of(blob),
        size: blob.len() as u64,
        compression: Compression::None,
        key,
        diff_id: layer.diff_id,
        limits: Arc::new(Limits::default()),
        ownership: if is_root() { Ownership::FromImage } else { Ownership::Caller },
        budget: Arc::clone(budget),
    }
}

struct Outcome {
    _dir: tempfile::TempDir,
    tmp: PathBuf,
    budget: Arc<Budget>,
    /// Entries of the layer's directory and bytes decoded before the last piece was given.
    before_last: (usize, u64),
    result: Result<(), LayerError>,
}

fn below(tmp: &Path) -> usize {
    std::fs::read_dir(tmp).unwrap().map(|entry| entries(&entry.unwrap().path())).sum()
}

/// Fetches `blob` where `digest` and the key of `layer` are what the manifest says.
async fn fetched(layer: &Layer, blob: Vec<u8>, key: Option<LayerKey>) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let store = LayerStore::open(dir.path()).unwrap();
    let tmp = dir.path().join("tmp");
    let budget = Arc::new(Budget::default());
    let (report, seen) = std::sync::mpsc::channel();
    let look = {
        let (tmp, budget) = (tmp.clone(), Arc::clone(&budget));
        move || report.send((below(&tmp), budget.unpacked.load(Ordering::Relaxed))).unwrap()
    };
    let job = job(layer, &blob, key, &budget);
    let (_cancel, cancelled) = watch::channel(false);
    let reader = Watching { left: blob.into(), before_last: Some(look) };
    let result = fetch(Box::new(reader), job, store.pending().unwrap(), cancelled).await.map(|(pending, _)| {
        assert_eq!(entries(&pending.path().join("d")), 4);
    });
    Outcome { before_last: seen.recv().unwrap(), tmp, budget, result, _dir: dir }
}

#[tokio::test]
async fn ac44_nothing_of_an_encrypted_layer_is_decrypted_while_it_is_downloaded() {
    let plain = large_layer();
    let layer = plain.clone().encrypted(&KEK);
    let outcome = fetched(&layer, layer.blob.clone(), Some(key(&layer))).await;
    assert_eq!(outcome.before_last, (0, 0), "something was unpacked or decoded before the last piece");
    outcome.result.unwrap();
    assert_eq!(outcome.budget.unpacked.load(Ordering::Relaxed), plain.blob.len() as u64);
    // That the test sees what it is meant to see: a plain layer is unpacked on the way.
    let outcome = fetched(&plain, plain.blob.clone(), None).await;
    assert!(outcome.before_last.0 > 0 && outcome.before_last.1 > 0, "{:?}", outcome.before_last);
    outcome.result.unwrap();
}

#[tokio::test]
async fn ac44_a_flipped_bit_leaves_nothing_and_nothing_was_decrypted() {
    let layer = large_layer().encrypted(&KEK);
    for at in [0, 512, layer.blob.len() / 2, layer.blob.len() - 1] {
        let mut blob = layer.blob.clone();
        blob[at] ^= 1;
        // The digest is made to fit: the attacker writes the manifest too.
        let outcome = fetched(&layer, blob, Some(key(&layer))).await;
        assert!(matches!(outcome.result, Err(LayerError::Decrypt(OcicryptError::Mac))), "byte {at}: {:?}", outcome.result);
        assert_eq!(outcome.before_last, (0, 0));
        assert_eq!(entries(&outcome.tmp), 0, "byte {at}: something stayed");
        assert_eq!(outcome.budget.unpacked.load(Ordering::Relaxed), 0, "byte {at}: something was decoded");
        assert_eq!(outcome.budget.entries.load(Ordering::Relaxed), 0, "byte {at}: something was unpacked");
    }
}

#[tokio::test]
async fn ac44_an_encrypted_layer_larger_than_announced_is_not_kept() {
    let layer = large_layer().encrypted(&KEK);
    let dir = tempfile::tempdir().unwrap();
    let store = LayerStore::open(dir.path()).unwrap();
    let pending = store.pending().unwrap();
    let job = Job { size: 5000, ..job(&layer, &layer.blob, Some(key(&layer)), &Arc::default()) };
    let (_cancel, cancelled) = watch::channel(false);
    let reader = Watching { left: layer.blob.into(), before_last: None::<fn()> };
    let result = fetch(Box::new(reader), job, pending, cancelled).await.map(drop);
    assert!(matches!(result, Err(LayerError::Size { expected: 5000, more: true, .. })), "{result:?}");
}

#[tokio::test]
async fn an_encrypted_layer_is_given_up_when_the_pull_is() {
    let layer = large_layer().encrypted(&KEK);
    let dir = tempfile::tempdir().unwrap();
    let store = LayerStore::open(dir.path()).unwrap();
    let pending = store.pending().unwrap();
    let job = job(&layer, &layer.blob, Some(key(&layer)), &Arc::default());
    let (cancel, cancelled) = watch::channel(false);
    let reader = Watching { left: layer.blob.into(), before_last: Some(move || cancel.send(true).unwrap()) };
    let result = fetch(Box::new(reader), job, pending, cancelled).await.map(drop);
    assert!(matches!(result, Err(LayerError::Cancelled)), "{result:?}");
    assert_eq!(entries(&dir.path().join("tmp")), 0);
}
