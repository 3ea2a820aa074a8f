//! An OCI image layout directory: blobs by digest and an `index.json`. The author's side of an image, on a workstation.
//!
//! Format: OCI image-spec 1.1 "image-layout.md".

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::digest::{Digest, Hasher};
use crate::manifest::OCI_INDEX;

/// What is wrong with a layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file system.
    #[error("image layout: {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The content.
    #[error("image layout {path}: {what}")]
    Content {
        /// Where.
        path: PathBuf,
        /// What.
        what: String,
    },
}

/// A layout directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const JSON_LIMIT: u64 = 4 << 20;

impl Layout {
    /// Opens an existing layout.
    ///
    /// # Errors
    /// If the directory is no layout of version 1.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let layout = Self { root: root.into() };
        let path = layout.root.join("oci-layout");
        let marker = layout.json(&path)?;
        if marker.get("imageLayoutVersion").and_then(Value::as_str) != Some("1.0.0") {
            return Err(layout.wrong("oci-layout names no version 1.0.0"));
        }
        Ok(layout)
    }

    /// Makes an empty layout, or opens the one that is there.
    ///
    /// # Errors
    /// If the directories cannot be made.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let layout = Self { root: root.into() };
        if layout.root.join("oci-layout").exists() {
            return Self::open(layout.root);
        }
        let blobs = layout.root.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(layout.io("making", &blobs))?;
        layout.replace("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
        layout.replace("index.json", json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).to_string().as_bytes())?;
        Ok(layout)
    }

    fn io<'p>(&self, what: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> LayoutError + use<'p> {
        move |source| LayoutError::Io { what, path: path.to_path_buf(), source }
    }

    pub(crate) fn wrong(&self, what: impl Into<String>) -> LayoutError {
        LayoutError::Content { path: self.root.clone(), what: what.into() }
    }

    fn json(&self, path: &Path) -> Result<Value, LayoutError> {
        let bytes = self.read(path, JSON_LIMIT)?;
        serde_json::from_slice(&bytes).map_err(|e| self.wrong(format!("{}: {e}", path.display())))
    }

    fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, LayoutError> {
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(self.io("opening", path))?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(self.io("reading", path))?;
        if bytes.len() as u64 > limit {
            return Err(self.wrong(format!("{} is larger than {limit} bytes", path.display())));
        }
        Ok(bytes)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), LayoutError> {
        let (path, new) = (self.root.join(name), self.root.join(format!(".{name}.new")));
        fs::write(&new, bytes).map_err(self.io("writing", &new))?;
        fs::rename(&new, &path).map_err(self.io("writing", &path))
    }

    /// Where a blob is, whether or not it is there.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// A small blob, its digest checked.
    ///
    /// # Errors
    /// If it is absent, larger than 4 MiB, or other bytes than its name says.
    pub fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>, LayoutError> {
        let bytes = self.read(&self.blob_path(digest), JSON_LIMIT)?;
        if Digest::of(&bytes) != *digest {
            return Err(self.wrong(format!("the blob {digest} holds other bytes")));
        }
        Ok(bytes)
    }

    /// Opens a blob for reading. The caller checks its digest.
    ///
    /// # Errors
    /// If it is absent.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, LayoutError> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(self.io("opening", &path))
    }

    /// Puts a blob in.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, LayoutError> {
        let mut writer = self.writer()?;
        writer.write(bytes)?;
        Ok(writer.finish()?.0)
    }

    /// Begins a blob whose digest is known only at its end.
    ///
    /// # Errors
    /// If it cannot be begun.
    pub fn writer(&self) -> Result<BlobWriter<'_>, LayoutError> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = self.root.join(format!("blobs/.new-{}-{number}", std::process::id()));
        let file = File::create_new(&path).map_err(self.io("making", &path))?;
        Ok(BlobWriter { layout: self, file, path: Some(path), hasher: Hasher::new(), size: 0 })
    }

    /// The descriptors of `index.json`.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn manifests(&self) -> Result<Vec<Value>, LayoutError> {
        let index = self.json(&self.root.join("index.json"))?;
        index.get("manifests").and_then(Value::as_array).cloned().ok_or_else(|| self.wrong("index.json has no manifests"))
    }

    /// The descriptor of the image of this name, or of the only image.
    ///
    /// # Errors
    /// If there is none, or several and no name was given.
    pub fn image(&self, name: Option<&str>) -> Result<Value, LayoutError> {
        let mut manifests = self.manifests()?;
        if let Some(name) = name {
            manifests.retain(|m| m.pointer("/annotations").and_then(|a| a.get(REF_NAME)).and_then(Value::as_str) == Some(name));
        }
        match (manifests.pop(), manifests.len(), name) {
            (Some(only), 0, _) => Ok(only),
            (None, _, Some(name)) => Err(self.wrong(format!("no image named {name:?} in index.json"))),
            (None, _, None) => Err(self.wrong("no image in index.json")),
            (Some(_), others, _) => Err(self.wrong(format!("{} images fit; name one", others + 1))),
        }
    }

    /// Names an image in `index.json`, in place of one of the same name.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn name_image(&self, mut descriptor: Value, name: Option<&str>) -> Result<(), LayoutError> {
        let mut manifests = self.manifests()?;
        let of = |m: &Value| m.pointer("/annotations").and_then(|a| a.get(REF_NAME)).and_then(Value::as_str).map(str::to_owned);
        manifests.retain(|m| of(m).as_deref() != name);
        if let (Some(name), Some(descriptor)) = (name, descriptor.as_object_mut()) {
            descriptor.insert("annotations".to_owned(), json!({REF_NAME: name}));
        }
        manifests.push(descriptor);
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        self.replace("index.json", index.to_string().as_bytes())
    }
}

/// A blob being written. Dropped before [`Self::finish`] it is removed.
pub struct BlobWriter<'l> {
    layout: &'l Layout,
    file: File,
    path: Option<PathBuf>,
    hasher: Hasher,
    size: u64,
}

impl BlobWriter<'_> {
    /// The next bytes.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), LayoutError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        let path = self.path.as_deref().unwrap_or(Path::new(""));
        self.file.write_all(bytes).map_err(self.layout.io("writing", path))
    }

    /// Gives the blob its name. Returns digest and size.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn finish(mut self) -> Result<(Digest, u64), LayoutError> {
        let digest = std::mem::take(&mut self.hasher).finish();
        let to = self.layout.blob_path(&digest);
        if let Some(path) = self.path.take() {
            fs::rename(&path, &to).map_err(self.layout.io("naming", &to))?;
        }
        Ok((digest, self.size))
    }
}

impl Drop for BlobWriter<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let _ = fs::remove_file(path);
        }
    }
}

/// Digest and size of a descriptor in JSON.
pub(crate) fn descriptor(layout: &Layout, value: &Value) -> Result<(Digest, u64), LayoutError> {
    let digest = value.get("digest").and_then(Value::as_str).and_then(|text| text.parse().ok());
    match (digest, value.get("size").and_then(Value::as_u64)) {
        (Some(digest), Some(size)) => Ok((digest, size)),
        _ => Err(layout.wrong("a descriptor without digest or size")),
    }
}
