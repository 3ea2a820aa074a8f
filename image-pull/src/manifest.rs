//! Manifests, indexes and configurations: bytes of known digest in, checked values out.
//!
//! Strict where two readers could see two images (both `layers` and `manifests`, a media type that contradicts the content, a key given twice or
//! in other letters) and where a layer could come from elsewhere (`urls`, foreign and non-distributable layers).
//!
//! Format: OCI image-spec 1.1 "manifest.md", "image-index.md", "config.md"; Docker image manifest V2, schema 2.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::compress::Compression;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::ocicrypt;
use crate::registry::RawManifest;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const MANIFEST_TYPES: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];
const CONFIG_TYPES: [&str; 2] = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Why a manifest or configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON of the expected form.
    #[error("{what}: not of the expected form")]
    Json {
        /// Manifest or configuration.
        what: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// It is well-formed but not acceptable.
    #[error("image manifest: {0}")]
    Refused(String),
    /// An index without the platform.
    #[error("image index: no image for {wanted}; it has {found:?}")]
    Platform {
        /// What runs here.
        wanted: String,
        /// What is offered.
        found: Vec<String>,
    },
    /// The configuration does not fit.
    #[error("image configuration: {0}")]
    Config(String),
    /// A layer's encryption annotations.
    #[error("layer {index}")]
    Encryption {
        /// Which layer, from 0.
        index: usize,
        /// What is wrong.
        #[source]
        source: ocicrypt::OcicryptError,
    },
}

fn refused<T>(what: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError::Refused(what.into()))
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) urls: Vec<String>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) platform: Option<Platform>,
}

/// The platform of an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// Operating system, as Go names it.
    pub os: String,
    /// Architecture, as Go names it.
    pub architecture: String,
    /// Variant of the architecture.
    pub variant: Option<String>,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// Every key that decides what a document is. Both kinds in one, so that a document of both is seen.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Keys that mean something to a reader of manifests.
const KEYS: [&str; 17] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "fsLayers",
    "digest",
    "size",
    "urls",
    "annotations",
    "data",
    "subject",
    "platform",
    "os",
    "architecture",
    "variant",
];

/// A key as Go's `encoding/json`, which registries and other runtimes read manifests with, compares it: in any letters, and with the two letters beyond ASCII
/// that have an ASCII one for a lower or upper case.
fn folded(key: &str) -> String {
    let fold = |letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).collect()
}

/// Goes through a document and fails where two readers could see two: at a key given twice, and at a known one in other letters.
struct Unambiguous {
    /// Within `annotations` keys are the author's own.
    own_keys: bool,
}

impl<'de> DeserializeSeed<'de> for Unambiguous {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !self.own_keys
                && let Some(known) = KEYS.iter().find(|&&known| known != key && folded(known) == folded(&key))
            {
                return Err(A::Error::custom(format_args!("the key {key:?}, which some readers take for {known:?}")));
            }
            map.next_value_seed(Self { own_keys: key == "annotations" })?;
            if let Some(key) = seen.replace(key) {
                return Err(A::Error::custom(format_args!("the key {key:?} twice")));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Self { own_keys: self.own_keys })?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A layer as the manifest describes it.
#[derive(Clone)]
pub(crate) struct LayerDescriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) compression: Compression,
    pub(crate) sealed: Option<ocicrypt::Sealed>,
}

/// A checked manifest of one image.
pub(crate) struct ImageManifest {
    pub(crate) config: Digest,
    pub(crate) config_size: u64,
    pub(crate) layers: Vec<LayerDescriptor>,
}

/// A manifest or an index.
pub(crate) enum Manifest {
    Image(ImageManifest),
    Index(Vec<Descriptor>),
}

fn document(raw: &RawManifest) -> Result<(Document, bool), ManifestError> {
    let json = |source| ManifestError::Json { what: "image manifest", source };
    let document: Document = serde_json::from_slice(&raw.bytes).map_err(json)?;
    // The end of the document was looked for above.
    Unambiguous { own_keys: false }.deserialize(&mut serde_json::Deserializer::from_slice(&raw.bytes)).map_err(json)?;
    if document.schema_version != 2 || document.fs_layers.is_some() {
        return refused(format!("schema version {}: only 2 is supported", document.schema_version));
    }
    let index = match (&document.manifests, &document.layers, &document.config) {
        (Some(_), None, None) => true,
        (None, Some(_), Some(_)) => false,
        (Some(_), _, _) => return refused("both an index (`manifests`) and an image (`layers` or `config`): it means two things"),
        _ => return refused("neither an image (`config` and `layers`) nor an index (`manifests`)"),
    };
    let fits = |media_type: &str| {
        if index { matches!(media_type, OCI_INDEX | DOCKER_INDEX) } else { matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST) }
    };
    for (where_from, media_type) in [("its mediaType", &document.media_type), ("the registry's Content-Type", &raw.content_type)] {
        if let Some(media_type) = media_type
            && !fits(media_type)
        {
            return refused(format!(
                "{where_from} is {media_type:?}, but the content is that of {}",
                if index { "an index" } else { "an image" }
            ));
        }
    }
    if document.media_type.is_none() && raw.content_type.is_none() {
        return refused("it names no mediaType and the registry gave no Content-Type");
    }
    Ok((document, index))
}

impl Manifest {
    /// Reads a manifest whose digest the caller has checked.
    pub(crate) fn parse(raw: &RawManifest, limits: &Limits) -> Result<Self, ManifestError> {
        let (document, index) = document(raw)?;
        if index {
            let manifests = document.manifests.unwrap_or_default();
            if manifests.len() > 1000 {
                return refused(format!("an index of {} images", manifests.len()));
            }
            return Ok(Self::Index(manifests));
        }
        if let Some(kind) = document.artifact_type {
            return refused(format!("an artifact of type {kind:?}, not an image"));
        }
        let (Some(config), Some(layers)) = (document.config, document.layers) else { return refused("no configuration or no layers") };
        if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
            return refused(format!("a configuration of type {:?}: not an image", config.media_type));
        }
        if config.size > limits.config_bytes || !config.urls.is_empty() {
            return refused(format!(
                "a configuration of {} bytes (at most {} are allowed) or from another place",
                config.size, limits.config_bytes
            ));
        }
        if layers.is_empty() {
            return refused("no layers: an empty image cannot be run");
        }
        if layers.len() > limits.layers {
            return refused(format!("{} layers, at most {} are allowed", layers.len(), limits.layers));
        }
        let total = layers.iter().try_fold(0u64, |sum, layer| sum.checked_add(layer.size));
        if total.is_none_or(|total| total > limits.download_bytes) {
            return refused(format!("layers of more than {} bytes together", limits.download_bytes));
        }
        let layers = layers.iter().enumerate().map(|(index, layer)| layer_descriptor(index, layer)).collect::<Result<_, _>>()?;
        Ok(Self::Image(ImageManifest { config: config.digest, config_size: config.size, layers }))
    }
}

fn layer_descriptor(index: usize, layer: &Descriptor) -> Result<LayerDescriptor, ManifestError> {
    if !layer.urls.is_empty() {
        return refused(format!("layer {index} is to come from another place (`urls`)"));
    }
    let (plain, encrypted) =
        layer.media_type.strip_suffix(ocicrypt::MEDIA_TYPE_SUFFIX).map_or((layer.media_type.as_str(), false), |plain| (plain, true));
    let compression = match plain {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => Compression::None,
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Compression::Gzip,
        "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd,
        other => return refused(format!("layer {index} is of type {other:?}, which is no layer of a file system")),
    };
    let sealed = if encrypted {
        Some(ocicrypt::Sealed::from_annotations(&layer.annotations).map_err(|source| ManifestError::Encryption { index, source })?)
    } else if layer.annotations.keys().any(|key| key.starts_with("org.opencontainers.image.enc.")) {
        // Plaintext dressed as an encrypted layer, or the other way round: whoever made it meant something else than it is.
        return refused(format!("layer {index} has annotations of an encrypted layer but is not of an encrypted type"));
    } else {
        None
    };
    Ok(LayerDescriptor { digest: layer.digest, size: layer.size, compression, sealed })
}

/// The image for a platform out of an index.
pub(crate) fn select<'m>(manifests: &'m [Descriptor], wanted: &Platform) -> Result<&'m Descriptor, ManifestError> {
    let fits = |descriptor: &&Descriptor| {
        matches!(descriptor.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST)
            && descriptor.platform.as_ref().is_some_and(|p| {
                p.os == wanted.os && p.architecture == wanted.architecture && p.variant.as_deref().is_none_or(|v| v == "v1")
            })
    };
    manifests.iter().find(fits).ok_or_else(|| ManifestError::Platform {
        wanted: wanted.to_string(),
        found: manifests.iter().filter_map(|d| d.platform.as_ref()).map(ToString::to_string).take(20).collect(),
    })
}

/// A checked configuration: the parsed one, and the diffIDs one for each layer.
pub(crate) struct CheckedConfig {
    pub(crate) configuration: ImageConfiguration,
    pub(crate) diff_ids: Vec<Digest>,
}

/// Reads a configuration whose digest the caller has checked.
pub(crate) fn config(bytes: &[u8], layers: usize, wanted: &Platform) -> Result<CheckedConfig, ManifestError> {
    let configuration: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what: "image configuration", source })?;
    let wrong = |what: String| Err(ManifestError::Config(what));
    let found = format!("{}/{}", configuration.os(), configuration.architecture());
    if found != format!("{}/{}", wanted.os, wanted.architecture) {
        return wrong(format!("the image is for {found}, this guest runs {wanted}"));
    }
    if configuration.rootfs().typ() != "layers" {
        return wrong(format!("a root file system of type {:?}", configuration.rootfs().typ()));
    }
    let diff_ids = configuration.rootfs().diff_ids();
    if diff_ids.len() != layers {
        return wrong(format!("{} diffIDs for {layers} layers", diff_ids.len()));
    }
    let diff_ids = diff_ids.iter().map(|id| id.parse()).collect::<Result<Vec<Digest>, _>>();
    match diff_ids {
        Ok(diff_ids) => Ok(CheckedConfig { configuration, diff_ids }),
        Err(error) => wrong(format!("a diffID: {error}")),
    }
}
