//! Encrypts the layers of an image in a layout directory, for the pod owner's CLI.
//!
//! Every layer gets a key and a nonce of its own, so no two ciphertexts share a key stream; the keys are wrapped by one key-encryption key, which the broker will
//! release to attested guests. The configuration stays as it is, as in every ocicrypt tool: put no secret there.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::{Map, Value, json};

use crate::digest::{Digest, Hasher};
use crate::layout::{Layout, LayoutError, descriptor};
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::ocicrypt::{MEDIA_TYPE_SUFFIX, OcicryptError, Sealing};
use crate::secret::{ResourceUri, Secret};

/// Why an image could not be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum EncryptError {
    /// Reading or writing a layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The cipher or the key.
    #[error(transparent)]
    Cipher(#[from] OcicryptError),
    /// The image is not one that can be encrypted.
    #[error("cannot encrypt this image: {0}")]
    Image(String),
    /// Reading a layer.
    #[error("reading layer {digest}")]
    Read {
        /// Digest of the layer's blob.
        digest: Digest,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// One layer before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptedLayer {
    /// Digest of the plain blob.
    pub plain: Digest,
    /// Digest of the encrypted one.
    pub encrypted: Digest,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encrypted {
    /// Digest of the new manifest, or index if the source was one.
    pub digest: Digest,
    /// All layers of all its images.
    pub layers: Vec<EncryptedLayer>,
}

/// Encrypts the image `name` (or the only one) of `source` into `target`, where it gets the same name. The guest will ask the broker for `kid` to get `kek`.
///
/// # Errors
/// If the image is malformed, already encrypted, or a file cannot be read or written.
pub fn encrypt_layout(
    source: &Layout,
    target: &Layout,
    name: Option<&str>,
    kek: &Secret,
    kid: &ResourceUri,
) -> Result<Encrypted, EncryptError> {
    let mut layers = Vec::new();
    let mut work = Work { source, target, kek, kid, done: BTreeMap::new(), layers: &mut layers };
    let new = work.image(source.image(name)?, true)?;
    target.name_image(new.clone(), name)?;
    Ok(Encrypted { digest: descriptor(target, &new)?.0, layers })
}

struct Work<'a> {
    source: &'a Layout,
    target: &'a Layout,
    kek: &'a Secret,
    kid: &'a ResourceUri,
    /// Layers that several images of an index share are encrypted once.
    done: BTreeMap<Digest, (Digest, u64, BTreeMap<String, String>)>,
    layers: &'a mut Vec<EncryptedLayer>,
}

fn wrong<T>(what: impl Into<String>) -> Result<T, EncryptError> {
    Err(EncryptError::Image(what.into()))
}

impl Work<'_> {
    /// Encrypts what a descriptor names and returns the descriptor of the result.
    fn image(&mut self, old: Value, index_allowed: bool) -> Result<Value, EncryptError> {
        let (digest, _) = descriptor(self.source, &old)?;
        let bytes = self.source.small_blob(&digest)?;
        let Ok(Value::Object(mut document)) = serde_json::from_slice(&bytes) else { return wrong(format!("{digest} is no JSON object")) };
        let media_type = match (document.contains_key("manifests"), document.contains_key("layers")) {
            (true, false) if index_allowed => {
                self.index(&mut document)?;
                OCI_INDEX
            }
            (false, true) => {
                self.manifest(&mut document)?;
                OCI_MANIFEST
            }
            _ => return wrong(format!("{digest} is neither an image nor an index of images")),
        };
        document.insert("mediaType".to_owned(), media_type.into());
        let bytes = Value::Object(document).to_string().into_bytes();
        let new = self.target.put(&bytes)?;
        let mut descriptor = json!({"mediaType": media_type, "digest": new, "size": bytes.len()});
        if let (Some(platform), Some(descriptor)) = (old.get("platform"), descriptor.as_object_mut()) {
            descriptor.insert("platform".to_owned(), platform.clone());
        }
        Ok(descriptor)
    }

    fn index(&mut self, document: &mut Map<String, Value>) -> Result<(), EncryptError> {
        let Some(Value::Array(manifests)) = document.remove("manifests") else { return wrong("`manifests` is no list") };
        let mut new = Vec::new();
        for manifest in manifests {
            let media_type = manifest.get("mediaType").and_then(Value::as_str).unwrap_or_default();
            if matches!(media_type, OCI_INDEX | DOCKER_INDEX) {
                return wrong("an index within an index");
            }
            // Build attestations speak of the plain image's digests; they would be wrong beside the encrypted one.
            if manifest.pointer("/platform/os").and_then(Value::as_str) == Some("unknown")
                || !matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
            {
                continue;
            }
            new.push(self.image(manifest, false)?);
        }
        if new.is_empty() {
            return wrong("an index without images");
        }
        document.insert("manifests".to_owned(), Value::Array(new));
        Ok(())
    }

    fn manifest(&mut self, document: &mut Map<String, Value>) -> Result<(), EncryptError> {
        let Some(config) = document.get_mut("config").filter(|config| config.is_object()) else {
            return wrong("a manifest without a configuration");
        };
        let (digest, _) = descriptor(self.source, config)?;
        self.target.put(&self.source.small_blob(&digest)?)?;
        if let Some(config) = config.as_object_mut() {
            config.insert("mediaType".to_owned(), "application/vnd.oci.image.config.v1+json".into());
        }
        let Some(Value::Array(layers)) = document.get_mut("layers") else { return wrong("`layers` is no list") };
        for layer in layers {
            let media_type = match layer.get("mediaType").and_then(Value::as_str) {
                Some("application/vnd.docker.image.rootfs.diff.tar.gzip") => "application/vnd.oci.image.layer.v1.tar+gzip",
                Some("application/vnd.docker.image.rootfs.diff.tar") => "application/vnd.oci.image.layer.v1.tar",
                Some(
                    plain @ ("application/vnd.oci.image.layer.v1.tar"
                    | "application/vnd.oci.image.layer.v1.tar+gzip"
                    | "application/vnd.oci.image.layer.v1.tar+zstd"),
                ) => plain,
                Some(other) if other.ends_with(MEDIA_TYPE_SUFFIX) => return wrong("a layer is encrypted already"),
                other => return wrong(format!("a layer of type {other:?}")),
            };
            let media_type = format!("{media_type}{MEDIA_TYPE_SUFFIX}");
            let (plain, size) = descriptor(self.source, layer)?;
            let (encrypted, new_size, annotations) = self.layer(plain, size)?;
            let Some(layer) = layer.as_object_mut() else { return wrong("a layer is no object") };
            layer.insert("mediaType".to_owned(), media_type.into());
            layer.insert("digest".to_owned(), encrypted.to_string().into());
            layer.insert("size".to_owned(), new_size.into());
            // What else was said of the plain blob (a digest of its parts, say) no longer holds.
            layer.insert("annotations".to_owned(), json!(annotations));
        }
        Ok(())
    }

    fn layer(&mut self, plain: Digest, size: u64) -> Result<(Digest, u64, BTreeMap<String, String>), EncryptError> {
        if let Some(done) = self.done.get(&plain) {
            return Ok(done.clone());
        }
        let mut file = self.source.open_blob(&plain)?;
        let mut writer = self.target.writer()?;
        let mut sealing = Sealing::new()?;
        let mut hasher = Hasher::new();
        let mut piece = vec![0u8; 1 << 20];
        let mut read_in_all = 0u64;
        loop {
            let read = file.read(&mut piece).map_err(|source| EncryptError::Read { digest: plain, source })?;
            let Some(bytes) = piece.get_mut(..read).filter(|bytes| !bytes.is_empty()) else { break };
            hasher.update(bytes);
            sealing.apply(bytes);
            writer.write(bytes)?;
            read_in_all += read as u64;
        }
        if hasher.finish() != plain || read_in_all != size {
            return wrong(format!("the layer {plain} holds other bytes than its digest says"));
        }
        let annotations = sealing.finish(self.kid, self.kek)?;
        let (encrypted, size) = writer.finish()?;
        self.layers.push(EncryptedLayer { plain, encrypted });
        self.done.insert(plain, (encrypted, size, annotations.clone()));
        Ok((encrypted, size, annotations))
    }
}
