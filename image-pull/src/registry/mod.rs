//! What is asked of a registry, and nothing of how. The real one is [`http`]; tests have one in memory.
//!
//! A registry is believed in nothing: callers compare every digest. [`pinned_manifest`] is the one way to a manifest's bytes.

pub mod auth;
pub mod http;
#[cfg(test)]
mod http_tests;

use bytes::Bytes;

use crate::digest::Digest;
use crate::reference::Reference;

/// Why a registry did not give what was asked. No variant carries a credential, a token or a URL's query.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The connection failed.
    #[error("{url}: {reason}")]
    Connection {
        /// Where, without query.
        url: String,
        /// What failed.
        reason: String,
    },
    /// An answer other than the expected one.
    #[error("{url}: the registry answers {status}{}", hint(*.status))]
    Status {
        /// Where, without query.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// More than allowed or announced.
    #[error("{url}: the answer is larger than the {limit} bytes allowed")]
    TooLarge {
        /// Where, without query.
        url: String,
        /// How much would have been taken.
        limit: u64,
    },
    /// The answer is not of the form the protocol asks for.
    #[error("{url}: {what}")]
    Protocol {
        /// Where, without query.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// The registry sends us to where we will not go.
    #[error("{url}: the registry redirects to {to}, which is refused: {why}")]
    Redirect {
        /// Where, without query.
        url: String,
        /// Whither.
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// A login would go where everybody on the way reads it.
    #[error(
        "{url}: a login is asked for, and there is one for this image, but no login is sent over plain HTTP: take the registry off the list of insecure ones, \
         or its login out of the credentials"
    )]
    LoginInClear {
        /// Where it would go or who asks for it, without query.
        url: String,
    },
    /// The bytes are not those asked for.
    #[error("{what} of {reference}: expected the digest {expected}, found {found}")]
    Digest {
        /// Manifest or configuration.
        what: &'static str,
        /// The image.
        reference: String,
        /// Asked for.
        expected: Digest,
        /// Received.
        found: Digest,
    },
    /// It is not there.
    #[error("{what} of {reference} is not in the registry")]
    Absent {
        /// What.
        what: &'static str,
        /// The image.
        reference: String,
    },
    /// What was given to talk to it with is unusable.
    #[error("registry configuration: {0}")]
    Configuration(String),
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => ": no or wrong credentials for this repository",
        404 => ": not found",
        429 => ": too many requests",
        _ => "",
    }
}

/// Which manifest of a repository.
#[derive(Debug, Clone, Copy)]
pub enum Version<'a> {
    /// The one a tag names now.
    Tag(&'a str),
    /// The one of this digest.
    Digest(&'a Digest),
}

impl std::fmt::Display for Version<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A manifest as it was sent.
#[derive(Debug, Clone)]
pub struct RawManifest {
    /// The very bytes.
    pub bytes: Bytes,
    /// The type the registry gave it, if any.
    pub content_type: Option<String>,
}

/// A blob under way.
#[async_trait::async_trait]
pub trait BlobReader: Send {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// If the download fails for good.
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError>;
}

/// Something that keeps manifests and blobs by repository. Only the repository part of the references counts.
#[async_trait::async_trait]
pub trait Registry: Send + Sync {
    /// A manifest of at most `limit` bytes, or `None` if there is none.
    ///
    /// # Errors
    /// If the registry cannot be asked.
    async fn manifest(&self, repository: &Reference, version: Version<'_>, limit: u64) -> Result<Option<RawManifest>, RegistryError>;

    /// A blob, from its beginning.
    ///
    /// # Errors
    /// If there is none or the registry cannot be asked.
    async fn blob(&self, repository: &Reference, digest: &Digest) -> Result<Box<dyn BlobReader>, RegistryError>;

    /// Whether a login was used for this repository, ever: then what came from there is not for everybody. A token that a token service gives to anybody is no
    /// login.
    fn sent_login(&self, repository: &Reference) -> bool;
}

/// The manifest of exactly this digest.
///
/// # Errors
/// If it is absent or the registry sends other bytes.
pub async fn pinned_manifest(
    registry: &dyn Registry,
    repository: &Reference,
    digest: &Digest,
    limit: u64,
) -> Result<RawManifest, RegistryError> {
    let reference = || repository.at_digest(*digest).to_string();
    let raw = registry
        .manifest(repository, Version::Digest(digest), limit)
        .await?
        .ok_or_else(|| RegistryError::Absent { what: "the manifest", reference: reference() })?;
    let found = Digest::of(&raw.bytes);
    if found != *digest {
        return Err(RegistryError::Digest { what: "the manifest", reference: reference(), expected: *digest, found });
    }
    Ok(raw)
}

/// A small blob, whole: a configuration or a signature's payload.
///
/// # Errors
/// If it is absent, larger than `limit`, or of another digest.
pub async fn small_blob(
    registry: &dyn Registry,
    repository: &Reference,
    digest: &Digest,
    limit: u64,
    what: &'static str,
) -> Result<Vec<u8>, RegistryError> {
    let mut reader = registry.blob(repository, digest).await?;
    let mut bytes = Vec::new();
    while let Some(more) = reader.next().await? {
        if (bytes.len() + more.len()) as u64 > limit {
            return Err(RegistryError::TooLarge { url: format!("{what} of {}", repository.name()), limit });
        }
        bytes.extend_from_slice(&more);
    }
    let found = Digest::of(&bytes);
    if found != *digest {
        return Err(RegistryError::Digest { what, reference: repository.name(), expected: *digest, found });
    }
    Ok(bytes)
}
