//! The images of the cases: made once, kept in the registry's storage and in `images.json` beside it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use kata_cc_image_pull::digest::{Digest, Hasher};
use kata_cc_image_pull::layout::Layout;
use kata_cc_image_pull::registry::http::{HttpConfig, HttpRegistry};
use kata_cc_image_pull::{Reference, Secret, encrypt, publish};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::content::{self, Shape};
use crate::measure::Interrupt;
use crate::ours::{KEK, KEY_ID};
use crate::registry::Registry;

/// Which images: raised when what is made here changes.
const EDITION: &str = "1";

/// A kind of image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// One layer of 300 MB in 10,000 files, gzip
    One,
    /// Eight layers of 60 MB, gzip
    Several,
    /// The same eight layers, zstd
    Zstd,
    /// The image of `several`, encrypted
    Encrypted,
    /// One layer of 100,000 small files, gzip
    Small,
}

impl Case {
    pub(crate) const ALL: &[Self] = &[Self::One, Self::Several, Self::Zstd, Self::Encrypted, Self::Small];

    fn shapes(self) -> Vec<Shape> {
        match self {
            Self::One => vec![Shape { files: 10_000, bytes: 300_000_000, per_directory: 20 }],
            Self::Several | Self::Zstd | Self::Encrypted => vec![Shape { files: 2_500, bytes: 60_000_000, per_directory: 20 }; 8],
            Self::Small => vec![Shape { files: 100_000, bytes: 100_000_000, per_directory: 50 }],
        }
    }

    /// Whether containerd's budget for one layer holds, not that for several.
    pub(crate) fn is_one_layer(self) -> bool {
        matches!(self, Self::One | Self::Small)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "one",
            Self::Several => "several",
            Self::Zstd => "zstd",
            Self::Encrypted => "encrypted",
            Self::Small => "small",
        })
    }
}

/// An image in the registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Image {
    /// Which.
    pub(crate) case: Case,
    /// Digest of its manifest.
    pub(crate) digest: String,
    /// Digests of its layers' blobs.
    pub(crate) layers: Vec<String>,
    /// Bytes of the blobs.
    pub(crate) compressed: u64,
    /// Bytes of the archives.
    pub(crate) unpacked: u64,
    /// Files and links, without directories.
    pub(crate) files: u64,
}

impl Image {
    /// The image in this registry, by tag.
    pub(crate) fn tagged(&self, registry: &Registry) -> String {
        format!("{}/bench/{}:{EDITION}", registry.address(), self.case)
    }

    /// The image in this registry, by digest.
    pub(crate) fn pinned(&self, registry: &Registry) -> String {
        format!("{}/bench/{}@{}", registry.address(), self.case, self.digest)
    }

    /// Where the registry has the blob of a layer.
    pub(crate) fn blob_url(&self, registry: &Registry, layer: &str) -> String {
        format!("http://{}/v2/bench/{}/blobs/{layer}", registry.address(), self.case)
    }
}

/// What was made so far.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Made {
    edition: String,
    images: BTreeMap<Case, Image>,
}

/// The images of these cases; those that are not there yet are made.
pub(crate) fn prepare(work: &Path, registry: &Registry, cases: &[Case], interrupt: &Interrupt) -> Result<Vec<Image>> {
    let list = work.join("images.json");
    let mut made: Made = fs::read(&list).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    if made.edition != EDITION {
        made = Made { edition: EDITION.to_owned(), images: BTreeMap::new() };
    }
    let mut images = Vec::new();
    for case in cases {
        if !made.images.contains_key(case) {
            let start = Instant::now();
            eprintln!("making the image of case {case} …");
            let image = make(work, registry, *case, interrupt).with_context(|| format!("cannot make the image of case {case}"))?;
            eprintln!("making the image of case {case}: {:.0} s", start.elapsed().as_secs_f64());
            made.images.insert(*case, image);
            fs::write(&list, serde_json::to_string_pretty(&made)?).with_context(|| format!("cannot write {}", list.display()))?;
        }
        images.extend(made.images.get(case).cloned());
    }
    Ok(images)
}

struct Blob {
    diff_id: Digest,
    digest: Digest,
    size: u64,
    written: content::Written,
}

fn make(work: &Path, registry: &Registry, case: Case, interrupt: &Interrupt) -> Result<Image> {
    let scratch = tempfile::Builder::new().prefix("making-").tempdir_in(work)?;
    let layout = Layout::create(scratch.path().join("plain"))?;
    let shapes = case.shapes();
    let next = Mutex::new(0..shapes.len());
    let done: Mutex<Vec<Option<Blob>>> = Mutex::new(shapes.iter().map(|_| None).collect());
    let work_through = || -> Result<()> {
        loop {
            let number = next.lock().map_err(|_| anyhow!("another layer's thread died"))?.next();
            let Some(number) = number else { return Ok(()) };
            interrupt.check()?;
            let blob = layer(&layout, scratch.path(), case, shapes[number], number)?;
            done.lock().map_err(|_| anyhow!("another layer's thread died"))?[number] = Some(blob);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..crate::measure::cores()).map(|_| scope.spawn(work_through)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread died"))?)
    })?;
    let blobs = done.into_inner().map_err(|_| anyhow!("a thread died"))?.into_iter().collect::<Option<Vec<_>>>();
    let blobs = blobs.context("a layer was not made")?;
    let media_type = format!("application/vnd.oci.image.layer.v1.tar+{}", if case == Case::Zstd { "zstd" } else { "gzip" });
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/none"]},
        "rootfs": {"type": "layers", "diff_ids": blobs.iter().map(|b| b.diff_id).collect::<Vec<_>>()},
        "history": blobs.iter().map(|_| json!({"created_by": "bench"})).collect::<Vec<_>>(),
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": layout.put(&config)?, "size": config.len()},
        "layers": blobs.iter().map(|b| json!({"mediaType": media_type, "digest": b.digest, "size": b.size})).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    let descriptor = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": layout.put(&manifest)?, "size": manifest.len(),
    });
    layout.name_image(descriptor, None)?;
    let (layout, layers) = if case == Case::Encrypted {
        let sealed = Layout::create(scratch.path().join("sealed"))?;
        let encrypted = encrypt::encrypt_layout(&layout, &sealed, None, &Secret::new(KEK.to_vec()), &KEY_ID.parse()?)?;
        (sealed, encrypted.layers.iter().map(|layer| layer.encrypted.to_string()).collect())
    } else {
        (layout, blobs.iter().map(|b| b.digest.to_string()).collect())
    };
    let mut image = Image {
        case,
        digest: String::new(),
        layers,
        compressed: blobs.iter().map(|b| b.size).sum(),
        unpacked: blobs.iter().map(|b| b.written.bytes).sum(),
        files: blobs.iter().map(|b| b.written.files).sum(),
    };
    let reference: Reference = image.tagged(registry).parse()?;
    image.digest = push(registry, &layout, &reference)?.to_string();
    Ok(image)
}

fn push(registry: &Registry, layout: &Layout, reference: &Reference) -> Result<Digest> {
    crate::ours::install_cryptography();
    let insecure_registries = [registry.address()].into_iter().collect();
    let client = HttpRegistry::new(HttpConfig { insecure_registries, ..HttpConfig::default() })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(publish::push_layout(&client, layout, None, reference))?)
}

/// Makes one layer and puts its blob into the layout.
fn layer(layout: &Layout, scratch: &Path, case: Case, shape: Shape, number: usize) -> Result<Blob> {
    let archive = scratch.join(format!("{number}.tar"));
    let compressed = scratch.join(format!("{number}.blob"));
    let mut out = Hashed { to: BufWriter::with_capacity(1 << 20, File::create(&archive)?), hasher: Hasher::new() };
    let written = content::write(shape, number as u64, &mut out)?;
    out.flush()?;
    let diff_id = out.hasher.finish();
    compress(case, &archive, &compressed)?;
    let mut writer = layout.writer()?;
    let mut blob = File::open(&compressed)?;
    let mut piece = vec![0u8; 1 << 20];
    loop {
        let read = blob.read(&mut piece)?;
        let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        writer.write(bytes)?;
    }
    let (digest, size) = writer.finish()?;
    fs::remove_file(&archive)?;
    fs::remove_file(&compressed)?;
    Ok(Blob { diff_id, digest, size, written })
}

fn compress(case: Case, archive: &Path, to: &PathBuf) -> Result<()> {
    if case == Case::Zstd {
        // Level 3: what builders take unless told otherwise.
        let status = Command::new("zstd").args(["-q", "-3", "-T1", "-o"]).arg(to).arg(archive).stdin(Stdio::null()).status();
        let status = status.context("cannot start zstd; `cargo xtask setup` installs it")?;
        if !status.success() {
            bail!("zstd failed ({status})");
        }
        return Ok(());
    }
    let mut encoder = flate2::write::GzEncoder::new(File::create(to)?, flate2::Compression::default());
    let mut archive = File::open(archive)?;
    let mut piece = vec![0u8; 1 << 20];
    loop {
        let read = archive.read(&mut piece)?;
        let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        encoder.write_all(bytes)?;
    }
    encoder.finish()?;
    Ok(())
}

struct Hashed<W> {
    to: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
