//! What is trusted of Secure Execution, from files: host-key documents with everything they are verified by, and headers of images.
//!
//! **Invariant:** files that cannot be used never replace those that can. **Invariant:** the key that seals requests is the store's, so a broker that
//! was restarted, or another with the same store, knows the answers to them.

use crate::config::{ConfigError, Se, read_bytes};
use crate::follow::follow;
use kata_cc_evidence::se::{FormError, ImageTags};
use kata_cc_verifier::se::{CurrentTrust, Documents, File, HostKeyError, SeTrust, SealingKey};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tokio::signal::unix::Signal;

const MAX_CERTIFICATES: u64 = 64 * 1024;
/// IBM's list has kilobytes, a certificate authority's may have grown.
const MAX_LIST: u64 = 4 * 1024 * 1024;
/// Two pages: what the boot loader reads.
const MAX_HEADER: u64 = 8 * 1024;
/// A request has so many key slots.
const MAX_HOST_KEYS: usize = 255;
/// Of each other kind. Evidence is tried with each image.
const MAX_FILES: usize = 64;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// One could not be read.
    #[error(transparent)]
    Read(#[from] ConfigError),
    /// A certificate, list or document is not what it should be, or one is missing.
    #[error("se: {0}")]
    Documents(#[from] HostKeyError),
    /// A header that is none.
    #[error("se.images: {}: {source}; take it out of the image with pvextract-hdr", path.display())]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        source: FormError,
    },
    /// Too many files, or a directory without any.
    #[error("se.{table} names {found} files, expected {expected}")]
    Count {
        /// Which list.
        table: &'static str,
        /// How many.
        found: usize,
        /// How many may be.
        expected: String,
    },
    /// All documents are refused.
    #[error("no host key of `se.host_keys` is trusted now; why is said of each above")]
    NoHostKey,
}

/// The files, read and parsed. Which host keys are trusted is a matter of time.
#[derive(Debug)]
pub struct Files {
    documents: Documents,
    images: Vec<ImageTags>,
}

impl Files {
    /// Reads them.
    ///
    /// # Errors
    /// When one is not to be had or not what it should be.
    pub fn read(config: &Se) -> Result<Self, FilesError> {
        let roots = contents("roots", &config.roots, 1..=MAX_FILES, MAX_CERTIFICATES)?;
        let certificates = contents("certificates", &config.certificates, 1..=MAX_FILES, MAX_CERTIFICATES)?;
        let lists = contents("revocation_lists", &config.revocation_lists, 0..=MAX_FILES, MAX_LIST)?;
        let host_keys = contents("host_keys", &config.host_keys, 1..=MAX_HOST_KEYS, MAX_CERTIFICATES)?;
        let documents = Documents::parse(&named(&roots), &named(&certificates), &named(&lists), &named(&host_keys))?;
        let image = |(path, _, bytes): &(PathBuf, String, Vec<u8>)| {
            ImageTags::from_header(bytes).map_err(|source| FilesError::Image { path: path.clone(), source })
        };
        let images = contents("images", &config.images, 1..=MAX_FILES, MAX_HEADER)?.iter().map(image).collect::<Result<_, _>>()?;
        Ok(Self { documents, images })
    }

    /// Says of each host-key document whether it is trusted now, in seconds since the epoch, and which images may run.
    ///
    /// # Errors
    /// When no document is.
    pub fn tell(&self, now: u64) -> Result<(), FilesError> {
        let mut trusted = 0_usize;
        for (document, outcome) in self.documents.verify(now) {
            match outcome {
                Ok(key) => {
                    trusted = trusted.saturating_add(1);
                    tracing::info!(document, phkh = %hex::encode(key.phkh()), root = key.root(), "a host key of Secure Execution is trusted");
                }
                Err(error) => tracing::warn!(document, %error, "a host key of Secure Execution is not trusted"),
            }
        }
        for image in &self.images {
            tracing::info!(tag = %hex::encode(image.tag), "an image of Secure Execution is known");
        }
        if trusted == 0 { Err(FilesError::NoHostKey) } else { Ok(()) }
    }
}

/// What is trusted now, and how to read it anew.
#[derive(Debug)]
pub struct SecureExecution {
    config: Se,
    sealing_key: SealingKey,
    max_age: u64,
    current: CurrentTrust,
}

impl SecureExecution {
    /// Reads the files. `max_age`, in seconds, is how long a request may be answered.
    ///
    /// # Errors
    /// As [`Files::read`]. That no host key is trusted is a warning: a later revocation list may change it.
    pub fn load(config: Se, sealing_key: SealingKey, max_age: u64, now: u64) -> Result<Self, FilesError> {
        let trust = trust(&config, &sealing_key, max_age, now)?;
        Ok(Self { config, sealing_key, max_age, current: trust.into() })
    }

    /// For the verifier; it follows [`Self::follow`].
    pub fn current(&self) -> CurrentTrust {
        self.current.clone()
    }

    /// Reads all files again. On an error, what there was stays.
    pub fn reload(&self, now: u64) -> Result<(), FilesError> {
        self.current.replace(trust(&self.config, &self.sealing_key, self.max_age, now)?);
        Ok(())
    }

    /// Reloads when a file has changed, came or went, or `nudge` says so, for ever.
    pub async fn follow(self, nudge: Signal, clock: impl Fn() -> u64) {
        follow("host keys and images of Secure Execution", nudge, || self.changed_at(), || self.reload(clock())).await;
    }

    fn changed_at(&self) -> Vec<(Option<SystemTime>, PathBuf)> {
        let Se { roots, certificates, revocation_lists, host_keys, images } = &self.config;
        let entries = [roots, certificates, revocation_lists, host_keys, images].into_iter().flatten();
        let changed_at = |path: &PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let files = entries.flat_map(|entry| files(entry).unwrap_or_default());
        files.map(|path| (changed_at(&path), path)).collect()
    }
}

fn trust(config: &Se, sealing_key: &SealingKey, max_age: u64, now: u64) -> Result<SeTrust, FilesError> {
    let files = Files::read(config)?;
    if let Err(error) = files.tell(now) {
        tracing::warn!(%error, "guests of Secure Execution are refused");
    }
    Ok(SeTrust { documents: files.documents, images: files.images, sealing_key: sealing_key.clone(), max_age })
}

/// A file itself, or the files in a directory by their names' order. Hidden ones and directories in it are left out.
fn files(entry: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let fail = |source| ConfigError::Read { path: entry.into(), source };
    if !std::fs::metadata(entry).map_err(fail)?.is_dir() {
        return Ok(vec![entry.into()]);
    }
    let mut files = Vec::new();
    for file in std::fs::read_dir(entry).map_err(fail)? {
        let path = file.map_err(fail)?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        // Links are followed: that is how a mounted ConfigMap has its files.
        if !hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Path, name and bytes of all files of a list.
fn contents(
    table: &'static str,
    entries: &[PathBuf],
    allowed: std::ops::RangeInclusive<usize>,
    max: u64,
) -> Result<Vec<(PathBuf, String, Vec<u8>)>, FilesError> {
    let mut paths = Vec::new();
    for entry in entries {
        paths.extend(files(entry)?);
    }
    if !allowed.contains(&paths.len()) {
        return Err(FilesError::Count { table, found: paths.len(), expected: format!("{} to {}", allowed.start(), allowed.end()) });
    }
    let read = |path: PathBuf| {
        let bytes = read_bytes(&path, max)?;
        let name = path.file_name().unwrap_or(OsStr::new("?")).to_string_lossy().into_owned();
        Ok((path, name, bytes))
    };
    paths.into_iter().map(read).collect()
}

fn named(contents: &[(PathBuf, String, Vec<u8>)]) -> Vec<File<'_>> {
    contents.iter().map(|(_, name, bytes)| File { name, bytes }).collect()
}
