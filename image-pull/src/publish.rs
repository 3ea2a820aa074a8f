//! Between layouts and registries, for the pod owner's CLI: fetch an image into a layout, push one out of it, put a signature beside one.
//!
//! Blobs travel as they are. What the guest relies on is checked there; here digests are compared so that a mistake shows where it was made.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::cosign::{self, SignatureError};
use crate::digest::Digest;
use crate::layout::{Layout, LayoutError, descriptor};
use crate::limits::Limits;
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::registry::http::{HttpRegistry, Request, expect, location, protocol, shown};
use crate::registry::{Registry, RegistryError, Version, pinned_manifest};
use crate::secret::Secret;

/// Why an image could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The signature.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The reference.
    #[error("{0}: neither tag nor digest is named")]
    NoVersion(String),
    /// A document that is none.
    #[error("{0} is neither an image nor an index of images")]
    Document(Digest),
}

/// Digest and size.
type Named = (Digest, u64);

/// The manifests and the blobs a document names.
fn parts(layout: &Layout, digest: Digest, bytes: &[u8]) -> Result<(Vec<Named>, Vec<Named>), PublishError> {
    let document: Value = serde_json::from_slice(bytes).map_err(|_| PublishError::Document(digest))?;
    let list = |key: &str| -> Result<Vec<(Digest, u64)>, PublishError> {
        let items = document.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        Ok(items.iter().map(|item| descriptor(layout, item)).collect::<Result<_, _>>()?)
    };
    match (document.get("manifests"), document.get("layers"), document.get("config")) {
        (Some(_), None, None) => Ok((list("manifests")?, Vec::new())),
        (None, Some(_), Some(config)) => {
            let mut blobs = vec![descriptor(layout, config)?];
            blobs.extend(list("layers")?);
            Ok((Vec::new(), blobs))
        }
        _ => Err(PublishError::Document(digest)),
    }
}

fn media_type_of(bytes: &[u8]) -> &'static str {
    let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let index = document.get("manifests").is_some();
    match document.get("mediaType").and_then(Value::as_str) {
        Some(DOCKER_INDEX) => DOCKER_INDEX,
        Some(DOCKER_MANIFEST) => DOCKER_MANIFEST,
        _ if index => OCI_INDEX,
        _ => OCI_MANIFEST,
    }
}

/// Fetches an image, or all images of an index, into a layout under `name`. Returns the digest of what the reference named.
///
/// # Errors
/// If the registry or the layout fails, or bytes are not those their digests say.
pub async fn fetch_layout(
    registry: &dyn Registry,
    reference: &Reference,
    layout: &Layout,
    name: Option<&str>,
) -> Result<Digest, PublishError> {
    let limits = Limits::default();
    let raw = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => pinned_manifest(registry, reference, digest, limits.manifest_bytes).await?,
        (None, tag) => {
            let tag = tag.ok_or_else(|| PublishError::NoVersion(reference.to_string()))?;
            let raw = registry.manifest(reference, Version::Tag(tag), limits.manifest_bytes).await?;
            raw.ok_or_else(|| RegistryError::Absent { what: "the manifest", reference: reference.to_string() })?
        }
    };
    let top = Digest::of(&raw.bytes);
    let mut documents = vec![(top, raw.bytes.clone())];
    while let Some((digest, bytes)) = documents.pop() {
        let (manifests, blobs) = parts(layout, digest, &bytes)?;
        layout.put(&bytes)?;
        for (digest, _) in manifests {
            documents.push((digest, pinned_manifest(registry, reference, &digest, limits.manifest_bytes).await?.bytes));
        }
        for (digest, size) in blobs {
            if layout.blob_path(&digest).exists() {
                continue;
            }
            let mut reader = registry.blob(reference, &digest).await?;
            let mut writer = layout.writer()?;
            let mut seen = 0u64;
            while let Some(bytes) = reader.next().await? {
                seen += bytes.len() as u64;
                if seen > size {
                    return Err(RegistryError::TooLarge { url: format!("blob {digest}"), limit: size }.into());
                }
                writer.write(&bytes)?;
            }
            let (found, _) = writer.finish()?;
            if found != digest {
                // What was received is a sound blob under its own name; it is only not the one that was asked for.
                return Err(RegistryError::Digest { what: "a blob", reference: reference.to_string(), expected: digest, found }.into());
            }
        }
    }
    layout.name_image(json!({"mediaType": media_type_of(&raw.bytes), "digest": top, "size": raw.bytes.len()}), name)?;
    Ok(top)
}

/// Pushes the image `name` (or the only one) of a layout. Returns its digest.
///
/// # Errors
/// If the layout or the registry fails.
pub async fn push_layout(
    registry: &HttpRegistry,
    layout: &Layout,
    name: Option<&str>,
    reference: &Reference,
) -> Result<Digest, PublishError> {
    let (top, _) = descriptor(layout, &layout.image(name)?)?;
    // Depth first: a registry takes a manifest only when it has what it names.
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    let mut open = vec![top];
    while let Some(digest) = open.pop() {
        let bytes = layout.small_blob(&digest)?;
        let (manifests, blobs) = parts(layout, digest, &bytes)?;
        for (digest, size) in blobs {
            if seen.insert(digest) {
                registry.push_blob(reference, &digest, size, BlobSource::File(layout.open_blob(&digest)?)).await?;
            }
        }
        open.extend(manifests.iter().map(|(digest, _)| *digest));
        order.push((digest, bytes));
    }
    while let Some((digest, bytes)) = order.pop() {
        let version = if digest == top { reference.tag() } else { None };
        let version = version.map_or_else(|| digest.to_string(), str::to_owned);
        registry.push_manifest(reference, &version, media_type_of(&bytes), bytes).await?;
    }
    Ok(top)
}

/// Signs `digest` under the name of `reference` with a PEM PKCS#8 ECDSA P-256 key and puts the signature beside the image, where cosign looks for it.
///
/// # Errors
/// If the key is of another kind or the registry fails.
pub async fn sign_image(registry: &HttpRegistry, reference: &Reference, digest: &Digest, key_pem: &Secret) -> Result<(), PublishError> {
    let tag = cosign::signature_tag(digest);
    let existing = registry.manifest(reference, Version::Tag(&tag), Limits::default().manifest_bytes).await?;
    let signed = cosign::sign(reference, digest, key_pem, existing.as_ref().map(|raw| &raw.bytes[..]))?;
    for blob in [signed.payload, signed.config] {
        registry.push_blob(reference, &Digest::of(&blob), blob.len() as u64, BlobSource::Bytes(blob.into())).await?;
    }
    registry.push_manifest(reference, &tag, OCI_MANIFEST, signed.manifest).await?;
    Ok(())
}

enum BlobSource {
    File(std::fs::File),
    Bytes(Bytes),
}

impl HttpRegistry {
    async fn push_blob(&self, image: &Reference, digest: &Digest, size: u64, source: BlobSource) -> Result<(), RegistryError> {
        let request = |method, url| Request { image, method, url, write: true, headers: HeaderMap::new(), body: None };
        let there = self.send(request(Method::HEAD, self.url(image, &format!("blobs/{digest}"))?)).await?;
        if there.status() == StatusCode::OK {
            return Ok(());
        }
        let url = self.url(image, "blobs/uploads/")?;
        let mut start = request(Method::POST, url.clone());
        start.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let started = expect(self.send(start).await?, &[StatusCode::ACCEPTED])?;
        let mut upload = location(&url, &started)?;
        self.may_go(&url, &upload)?;
        upload.query_pairs_mut().append_pair("digest", &digest.to_string());
        let place = shown(&upload);
        let body = match source {
            BlobSource::Bytes(bytes) => reqwest::Body::from(bytes),
            BlobSource::File(file) => reqwest::Body::wrap(FileBody::new(file, size)),
        };
        let sent = self
            .once(image, Method::PUT, upload, &url)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, size)
            .body(body)
            .send()
            .await
            .map_err(|error| RegistryError::Connection {
                url: place,
                reason: if error.is_timeout() { "timed out".into() } else { "the upload broke".into() },
            })?;
        expect(sent, &[StatusCode::CREATED, StatusCode::NO_CONTENT]).map(|_| ())
    }

    async fn push_manifest(
        &self,
        image: &Reference,
        version: &str,
        media_type: &'static str,
        bytes: Vec<u8>,
    ) -> Result<Digest, RegistryError> {
        let url = self.url(image, &format!("manifests/{version}"))?;
        let digest = Digest::of(&bytes);
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media_type))]);
        let put = Request { image, method: Method::PUT, url: url.clone(), write: true, headers, body: Some(bytes.into()) };
        let answer = expect(self.send(put).await?, &[StatusCode::CREATED, StatusCode::OK])?;
        let stored = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        if stored.is_some_and(|stored| stored != digest.to_string()) {
            return Err(protocol(&url, "the registry stored the manifest under another digest"));
        }
        Ok(digest)
    }
}

/// A file as a request's body, read on a thread of its own.
struct FileBody {
    from: mpsc::Receiver<Bytes>,
    left: u64,
}

impl FileBody {
    fn new(mut file: std::fs::File, size: u64) -> Self {
        let (to, from) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            loop {
                let mut piece = vec![0u8; 256 << 10];
                // A read that fails ends the body short of its announced length, which the request then fails by.
                let Ok(read @ 1..) = file.read(&mut piece) else { return };
                piece.truncate(read);
                if to.blocking_send(piece.into()).is_err() {
                    return;
                }
            }
        });
        Self { from, left: size }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.from.poll_recv(context).map(|piece| {
            piece.map(|piece| {
                self.left = self.left.saturating_sub(piece.len() as u64);
                Ok(Frame::data(piece))
            })
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
