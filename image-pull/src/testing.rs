//! What the tests of this crate share: archives written byte by byte, images in memory, a registry that serves them and tells what it was asked, secrets from a map.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::SignaturePolicy;
use crate::digest::Digest;
use crate::manifest::{OCI_INDEX, OCI_MANIFEST};
use crate::ocicrypt::Sealing;
use crate::pull::{PullConfig, PullError, PulledImage, Puller};
use crate::reference::Reference;
use crate::registry::{BlobReader, RawManifest, Registry, RegistryError, Version};
use crate::secret::{ResourceUri, Secret, SecretError, Secrets};
use crate::store::LayerStore;
use crate::unpack::Ownership;

pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const KID: &str = "kbs:///default/image-key/1";

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// True if the test may go on; otherwise says loudly that it did not run.
pub(crate) fn needs_root(test: &str) -> bool {
    if !is_root() {
        eprintln!("SKIPPED: {test} needs root (devices and trusted attributes)");
    }
    is_root()
}

/// Writes archives, honest and otherwise.
#[derive(Default, Clone)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn header(name: &[u8], kind: u8, size: u64, link: &[u8], mode: u32) -> [u8; 512] {
        let mut block = [0u8; 512];
        block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[136..147].copy_from_slice(format!("{:011o}", 1_700_000_000).as_bytes());
        block[156] = kind;
        block[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[329..336].copy_from_slice(b"0000000");
        block[337..344].copy_from_slice(b"0000000");
        Self::seal(&mut block);
        block
    }

    pub(crate) fn seal(block: &mut [u8; 512]) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    pub(crate) fn raw(mut self, header: [u8; 512], body: &[u8]) -> Self {
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, body: &[u8]) -> Self {
        self.raw(Self::header(name.as_bytes(), b'0', body.len() as u64, b"", 0o644), body)
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.raw(Self::header(name.as_bytes(), b'5', 0, b"", mode), b"")
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.raw(Self::header(name.as_bytes(), b'2', 0, target.as_bytes(), 0o777), b"")
    }

    pub(crate) fn hard(self, name: &str, target: &str) -> Self {
        self.raw(Self::header(name.as_bytes(), b'1', 0, target.as_bytes(), 0o644), b"")
    }

    pub(crate) fn device(self, name: &str, kind: u8, major: u32, minor: u32) -> Self {
        let mut header = Self::header(name.as_bytes(), kind, 0, b"", 0o600);
        header[329..336].copy_from_slice(format!("{major:07o}").as_bytes());
        header[337..344].copy_from_slice(format!("{minor:07o}").as_bytes());
        Self::seal(&mut header);
        self.raw(header, b"")
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.raw(Self::header(b"pax", b'x', body.len() as u64, b"", 0o644), &body)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One layer as a registry has it.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) media_type: String,
    pub(crate) blob: Vec<u8>,
    pub(crate) diff_id: Digest,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Layer {
    pub(crate) fn gzip(archive: &[u8]) -> Self {
        Self { media_type: GZIP.to_owned(), blob: gzip(archive), diff_id: Digest::of(archive), annotations: BTreeMap::new() }
    }

    pub(crate) fn plain(archive: &[u8]) -> Self {
        Self { media_type: PLAIN.to_owned(), blob: archive.to_vec(), diff_id: Digest::of(archive), annotations: BTreeMap::new() }
    }

    pub(crate) fn encrypted(mut self, kek: &[u8]) -> Self {
        let mut sealing = Sealing::new().unwrap();
        sealing.apply(&mut self.blob);
        self.annotations = sealing.finish(&KID.parse().unwrap(), &Secret::new(kek.to_vec())).unwrap();
        self.media_type.push_str("+encrypted");
        self
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": Digest::of(&self.blob), "size": self.blob.len(), "annotations": self.annotations})
    }
}

pub(crate) fn config_of(layers: &[Layer]) -> Value {
    let ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/x"]}, "rootfs": {"type": "layers", "diff_ids": ids}})
}

/// A manifest's bytes and the type it is served with.
pub(crate) type Served = (Vec<u8>, Option<String>);

/// Answers from maps, and keeps a list of what it was asked.
#[derive(Default)]
pub(crate) struct MemoryRegistry {
    pub(crate) manifests: Mutex<HashMap<String, Served>>,
    pub(crate) blobs: Mutex<HashMap<Digest, Vec<u8>>>,
    pub(crate) asked: Mutex<Vec<String>>,
    /// Whether it is one that wants a login.
    pub(crate) private: AtomicBool,
}

impl MemoryRegistry {
    pub(crate) fn put_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.blobs.lock().unwrap().insert(digest, bytes.to_vec());
        digest
    }

    pub(crate) fn put_manifest(&self, value: &Value, content_type: &str) -> Digest {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        self.manifests.lock().unwrap().insert(digest.to_string(), (bytes, Some(content_type.to_owned())));
        digest
    }

    pub(crate) fn manifest_value(&self, layers: &[Layer], config: &Value) -> Value {
        let config = config.to_string().into_bytes();
        let config_digest = self.put_blob(&config);
        for layer in layers {
            self.put_blob(&layer.blob);
        }
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
            "layers": layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
        })
    }

    /// Puts an image in and says how to ask for it.
    pub(crate) fn image(&self, layers: &[Layer]) -> Reference {
        let manifest = self.manifest_value(layers, &config_of(layers));
        reference(&self.put_manifest(&manifest, OCI_MANIFEST))
    }

    pub(crate) fn index(&self, manifests: &[Value]) -> Reference {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        reference(&self.put_manifest(&index, OCI_INDEX))
    }

    pub(crate) fn asked_for(&self, part: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }
}

pub(crate) fn reference(digest: &Digest) -> Reference {
    format!("r.io/team/app@{digest}").parse().unwrap()
}

#[async_trait::async_trait]
impl Registry for MemoryRegistry {
    async fn manifest(&self, _: &Reference, version: Version<'_>, limit: u64) -> Result<Option<RawManifest>, RegistryError> {
        self.asked.lock().unwrap().push(format!("manifest {version}"));
        let found = self.manifests.lock().unwrap().get(&version.to_string()).cloned();
        Ok(found.map(|(bytes, content_type)| {
            assert!(bytes.len() as u64 <= limit);
            RawManifest { bytes: bytes.into(), content_type }
        }))
    }

    async fn blob(&self, repository: &Reference, digest: &Digest) -> Result<Box<dyn BlobReader>, RegistryError> {
        self.asked.lock().unwrap().push(format!("blob {digest}"));
        let bytes = self.blobs.lock().unwrap().get(digest).cloned();
        let bytes = bytes.ok_or_else(|| RegistryError::Absent { what: "a blob", reference: repository.to_string() })?;
        Ok(Box::new(Pieces(bytes.into())))
    }

    fn sent_login(&self, _: &Reference) -> bool {
        self.private.load(Ordering::Relaxed)
    }
}

pub(crate) struct Pieces(pub(crate) Bytes);

#[async_trait::async_trait]
impl BlobReader for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let length = self.0.len().min(1000);
        Ok((length > 0).then(|| self.0.split_to(length)))
    }
}

/// Secrets from a map, and which were asked for.
#[derive(Default)]
pub(crate) struct MapSecrets {
    pub(crate) map: HashMap<String, Vec<u8>>,
    pub(crate) asked: Mutex<Vec<String>>,
}

#[async_trait::async_trait]
impl Secrets for MapSecrets {
    async fn resource(&self, uri: &ResourceUri) -> Result<Secret, SecretError> {
        self.asked.lock().unwrap().push(uri.to_string());
        self.map.get(&uri.to_string()).cloned().map(Secret::new).ok_or_else(|| "the broker refuses".into())
    }
}

/// A registry, secrets with one key-encryption key, and an empty store.
pub(crate) struct Bench {
    pub(crate) registry: Arc<MemoryRegistry>,
    pub(crate) secrets: Arc<MapSecrets>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: LayerStore,
    pub(crate) config: PullConfig,
}

pub(crate) const KEK: [u8; 32] = [0x4b; 32];

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ownership = if is_root() { Ownership::FromImage } else { Ownership::Caller };
        Self {
            registry: Arc::default(),
            secrets: Arc::new(MapSecrets { map: HashMap::from([(KID.to_owned(), KEK.to_vec())]), asked: Mutex::default() }),
            store: LayerStore::open(dir.path()).unwrap(),
            dir,
            config: PullConfig { ownership, ..PullConfig::default() },
        }
    }

    pub(crate) fn puller(&self) -> Puller {
        Puller::with_registry(self.config.clone(), self.secrets.clone(), self.registry.clone())
    }

    pub(crate) async fn pull_with(&self, reference: &Reference, policy: &SignaturePolicy) -> Result<PulledImage, PullError> {
        self.puller().pull(reference, policy, &self.store, &|_| {}).await
    }

    pub(crate) async fn pull(&self, reference: &Reference) -> Result<PulledImage, PullError> {
        self.pull_with(reference, &SignaturePolicy::insecure_accept_anything()).await
    }

    /// The error as a person sees it, after making sure that nothing of the layers stayed.
    #[track_caller]
    pub(crate) fn refused(&self, outcome: Result<PulledImage, PullError>) -> String {
        let error = outcome.expect_err("must be refused");
        assert_eq!(entries(&self.dir.path().join("tmp")), 0, "something stayed in tmp after: {error:?}");
        assert_eq!(entries(&self.dir.path().join("layers")), 0, "something stayed in layers after: {error:?}");
        chain_of(&error)
    }
}

pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

pub(crate) fn entries(path: &Path) -> usize {
    std::fs::read_dir(path).unwrap().count()
}
