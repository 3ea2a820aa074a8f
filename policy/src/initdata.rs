//! Initdata: the text a pod's owner attaches to a pod, whose digest the hardware puts into every report.
//!
//! The form is that of Confidential Containers: TOML with `version`, `algorithm` and a string table `[data]`. The digest is taken
//! over the exact bytes, so those are kept as they came and never written anew. Two carriers exist: the pod annotation
//! (base64 of gzip) and a read-only disk (magic, length, gzip, zero padding to sectors).
//!
//! **Invariant:** both carriers come from the host. Inflating is bounded by [`MAX_TOML`], and nothing may follow the data.
//!
//! Not here: comparing the digest with a report (the agent does), and what the documents inside mean ([`crate::guest_config`]).

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use thiserror::Error;

/// Largest initdata text: what fits into a pod annotation with room to spare, and little against the guest's memory.
pub const MAX_TOML: usize = 1 << 20;

/// Largest compressed form. Gzip of incompressible text grows by far less than this allowance.
const MAX_GZIP: usize = MAX_TOML + (1 << 16);

/// First bytes of the initdata disk.
pub const DISK_MAGIC: &[u8; 8] = b"initdata";

/// Magic and length.
const DISK_HEADER: usize = 16;

/// The disk is padded to whole sectors of this size.
pub const DISK_SECTOR: usize = 512;

/// Largest initdata disk.
pub const MAX_DISK: usize = (DISK_HEADER + MAX_GZIP).next_multiple_of(DISK_SECTOR);

/// Most entries in `[data]`.
pub(crate) const MAX_ENTRIES: usize = 64;

/// The only version of the format there is.
pub const VERSION: &str = "0.1.0";

/// The annotation of a pod that carries its initdata.
pub const ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// Why initdata was refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InitdataError {
    /// The text is larger than this implementation handles.
    #[error("initdata is larger than {MAX_TOML} bytes; take out what is not needed")]
    TooLarge,
    /// The text is not UTF-8.
    #[error("initdata is not UTF-8 text (first bad byte at offset {0})")]
    NotText(usize),
    /// The text is not the TOML expected.
    #[error("initdata is not TOML with `version`, `algorithm` and a string table [data]: {0}")]
    Syntax(String),
    /// Another version of the format.
    #[error("initdata has version {found:?}, expected {VERSION:?}")]
    Version {
        /// What the text says.
        found: String,
    },
    /// Not a digest algorithm we take.
    #[error("initdata has algorithm {found:?}, expected one of \"sha256\", \"sha384\", \"sha512\"")]
    Algorithm {
        /// What the text says.
        found: String,
    },
    /// Too many entries in `[data]`.
    #[error("initdata has {found} entries in [data], at most {MAX_ENTRIES} are taken")]
    Entries {
        /// How many there are.
        found: usize,
    },
    /// A name in `[data]` that is no plain file name.
    #[error("[data] key {found:?} is not a plain file name (letters, digits, `.`, `_`, `-`; at most 128; no leading dot)")]
    Name {
        /// The name.
        found: String,
    },
    /// The annotation is not base64.
    #[error("the initdata annotation is not standard base64")]
    Base64,
    /// The compressed data is damaged, truncated, or followed by something.
    #[error("initdata is not one complete gzip member with nothing after it")]
    Gzip,
    /// The disk does not begin with the magic.
    #[error("not an initdata disk: it does not begin with the magic `initdata`")]
    Magic,
    /// The length in the header is wrong.
    #[error("the initdata disk of {disk} bytes says that it holds {claimed} bytes of compressed data")]
    Length {
        /// Size of the disk.
        disk: usize,
        /// Length field.
        claimed: u64,
    },
    /// Bytes other than zero after the data.
    #[error("the initdata disk holds bytes other than zero after its data")]
    Trailing,
}

/// The digest algorithms of the format that we take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// SHA-256: fits HOST_DATA exactly.
    #[default]
    Sha256,
    /// SHA-384: fits MRCONFIGID exactly; truncated in HOST_DATA.
    Sha384,
    /// SHA-512: truncated in HOST_DATA.
    Sha512,
}

impl Algorithm {
    /// The name used in the text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }
}

impl FromStr for Algorithm {
    type Err = InitdataError;

    fn from_str(name: &str) -> Result<Self, InitdataError> {
        match name {
            "sha256" => Ok(Self::Sha256),
            "sha384" => Ok(Self::Sha384),
            "sha512" => Ok(Self::Sha512),
            other => Err(InitdataError::Algorithm { found: shorten(other) }),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Digest of initdata, by the algorithm the text itself names.
#[derive(Clone, PartialEq, Eq)]
pub struct InitdataDigest {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl InitdataDigest {
    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// All bytes of the digest (32, 48 or 64).
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The digest cut or zero-padded to a hardware field of `N` bytes: 32 for HOST_DATA of SNP, 48 for MRCONFIGID of TDX.
    #[must_use]
    pub fn field<const N: usize>(&self) -> [u8; N] {
        let mut field = [0; N];
        for (to, from) in field.iter_mut().zip(&self.bytes) {
            *to = *from;
        }
        field
    }
}

impl fmt::Display for InitdataDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, hex::encode(&self.bytes))
    }
}

impl fmt::Debug for InitdataDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InitdataDigest({self})")
    }
}

/// Initdata that parsed: exact bytes, algorithm, and the documents of `[data]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Initdata {
    raw: Vec<u8>,
    algorithm: Algorithm,
    data: BTreeMap<String, String>,
}

// The documents may hold what the owner regards as private: only their names are shown.
impl fmt::Debug for Initdata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initdata")
            .field("digest", &self.digest())
            .field("names", &self.data.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: String,
    algorithm: String,
    data: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct TextOut<'a> {
    version: &'a str,
    algorithm: &'a str,
    data: &'a BTreeMap<String, String>,
}

impl Initdata {
    /// Parses the text. The bytes are kept exactly, since the digest is over them.
    ///
    /// # Errors
    /// When the text is too large, not UTF-8, not the TOML expected, or of another version or algorithm.
    pub fn parse(toml_bytes: &[u8]) -> Result<Self, InitdataError> {
        if toml_bytes.len() > MAX_TOML {
            return Err(InitdataError::TooLarge);
        }
        let text = std::str::from_utf8(toml_bytes).map_err(|e| InitdataError::NotText(e.valid_up_to()))?;
        // Only the parser's own words: its full message would quote the text.
        let parsed: Text = toml::from_str(text).map_err(|e| InitdataError::Syntax(shorten(e.message())))?;
        if parsed.version != VERSION {
            return Err(InitdataError::Version { found: shorten(&parsed.version) });
        }
        let algorithm = parsed.algorithm.parse()?;
        check_names(&parsed.data)?;
        Ok(Self { raw: toml_bytes.to_vec(), algorithm, data: parsed.data })
    }

    /// The exact text.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The digest algorithm the text names.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Digest over the exact text.
    #[must_use]
    pub fn digest(&self) -> InitdataDigest {
        InitdataDigest { algorithm: self.algorithm, bytes: self.algorithm.digest(&self.raw) }
    }

    /// What HOST_DATA of an SNP report must be: the digest cut or zero-padded to 32 bytes.
    #[must_use]
    pub fn host_data(&self) -> [u8; 32] {
        self.digest().field()
    }

    /// A document of `[data]`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.data.get(name).map(String::as_str)
    }

    /// The names in `[data]`, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.data.keys().map(String::as_str)
    }

    /// The documents of `[data]`: name and text, in order of the names.
    pub fn documents(&self) -> impl Iterator<Item = (&str, &str)> {
        self.data.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Reads the value of the annotation [`ANNOTATION`]: base64 of gzip of the text.
    ///
    /// # Errors
    /// When the carrier is damaged or inflates to more than [`MAX_TOML`], and as [`Initdata::parse`].
    pub fn from_annotation(value: &str) -> Result<Self, InitdataError> {
        if value.len() > MAX_GZIP.div_ceil(3) * 4 {
            return Err(InitdataError::TooLarge);
        }
        let gzip = STANDARD.decode(value.trim_ascii()).map_err(|_| InitdataError::Base64)?;
        Self::parse(&inflate(&gzip)?)
    }

    /// The value of the annotation [`ANNOTATION`].
    #[must_use]
    pub fn to_annotation(&self) -> String {
        STANDARD.encode(deflate(&self.raw))
    }

    /// Reads the disk that carries initdata into the guest.
    ///
    /// # Errors
    /// When the disk is not one written by [`Initdata::to_disk_image`]'s rules, and as [`Initdata::parse`].
    pub fn from_disk_image(disk: &[u8]) -> Result<Self, InitdataError> {
        let (magic, rest) = disk.split_first_chunk::<8>().ok_or(InitdataError::Magic)?;
        if magic != DISK_MAGIC {
            return Err(InitdataError::Magic);
        }
        let wrong_length = |claimed| InitdataError::Length { disk: disk.len(), claimed };
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(|| wrong_length(0))?;
        let claimed = u64::from_le_bytes(*length);
        if claimed > MAX_GZIP as u64 {
            return Err(InitdataError::TooLarge);
        }
        let length = usize::try_from(claimed).map_err(|_| wrong_length(claimed))?;
        let (gzip, padding) = rest.split_at_checked(length).ok_or_else(|| wrong_length(claimed))?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(InitdataError::Trailing);
        }
        Self::parse(&inflate(gzip)?)
    }

    /// The disk that carries initdata into the guest: magic, length (u64, little endian), gzip, zeros up to a whole sector.
    #[must_use]
    pub fn to_disk_image(&self) -> Vec<u8> {
        let gzip = deflate(&self.raw);
        let mut disk = Vec::with_capacity((DISK_HEADER + gzip.len()).next_multiple_of(DISK_SECTOR));
        disk.extend_from_slice(DISK_MAGIC);
        disk.extend_from_slice(&(gzip.len() as u64).to_le_bytes());
        disk.extend_from_slice(&gzip);
        disk.resize(disk.len().next_multiple_of(DISK_SECTOR), 0);
        disk
    }
}

/// Puts initdata together, for the command line.
#[derive(Clone, Default)]
pub struct InitdataBuilder {
    algorithm: Algorithm,
    data: BTreeMap<String, String>,
}

impl InitdataBuilder {
    /// An empty one, with SHA-256.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the digest algorithm.
    #[must_use]
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Adds or replaces a document of `[data]`.
    #[must_use]
    pub fn document(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.data.insert(name.into(), text.into());
        self
    }

    /// Takes a document of `[data]` out, if it is there.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.data.remove(name);
        self
    }

    /// Writes the text and parses it again, so that what is handed out is what any reader will see.
    ///
    /// # Errors
    /// As [`Initdata::parse`].
    pub fn build(self) -> Result<Initdata, InitdataError> {
        let out = TextOut { version: VERSION, algorithm: self.algorithm.name(), data: &self.data };
        let text = toml::to_string_pretty(&out).map_err(|e| InitdataError::Syntax(shorten(&e.to_string())))?;
        Initdata::parse(text.as_bytes())
    }
}

/// Starts from initdata that exists: same algorithm, same documents.
impl From<&Initdata> for InitdataBuilder {
    fn from(initdata: &Initdata) -> Self {
        Self { algorithm: initdata.algorithm, data: initdata.data.clone() }
    }
}

/// A name may become a file's name in other implementations.
pub(crate) fn is_plain_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn check_names(data: &BTreeMap<String, String>) -> Result<(), InitdataError> {
    if data.len() > MAX_ENTRIES {
        return Err(InitdataError::Entries { found: data.len() });
    }
    match data.keys().find(|name| !is_plain_name(name)) {
        Some(name) => Err(InitdataError::Name { found: shorten(name) }),
        None => Ok(()),
    }
}

fn inflate(gzip: &[u8]) -> Result<Vec<u8>, InitdataError> {
    let mut decoder = GzDecoder::new(gzip);
    let mut text = Vec::new();
    // One byte over the limit is enough to know; a bomb is not inflated any further.
    decoder.by_ref().take(MAX_TOML as u64 + 1).read_to_end(&mut text).map_err(|_| InitdataError::Gzip)?;
    if text.len() > MAX_TOML {
        return Err(InitdataError::TooLarge);
    }
    if decoder.into_inner().is_empty() { Ok(text) } else { Err(InitdataError::Gzip) }
}

fn deflate(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text).and_then(|()| encoder.finish()).expect("writing to a vector does not fail")
}

/// Text from outside, cut for an error message.
fn shorten(text: &str) -> String {
    const KEEP: usize = 160;
    if text.chars().count() <= KEEP { text.to_owned() } else { text.chars().take(KEEP).chain("…".chars()).collect() }
}

#[cfg(test)]
#[path = "initdata_tests.rs"]
mod tests;
