//! Secrets and where they come from: the one door through which this crate asks the key broker for anything.
//!
//! The agent implements [`Secrets`] over its attested session. This crate does the unwrapping itself, so a layer's key never crosses that
//! interface: only the key-encryption key named by a [`ResourceUri`] does.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// Bytes that are wiped when dropped and never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for the one use they were asked for.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why a resource was not to be had, as the implementation of [`Secrets`] tells it. Must carry no secret.
pub type SecretError = Box<dyn std::error::Error + Send + Sync>;

/// Reads resources of the key broker.
#[async_trait::async_trait]
pub trait Secrets: Send + Sync {
    /// The bytes of the resource, or why not. An absent resource is an error.
    ///
    /// # Errors
    /// Whatever keeps the resource from being released.
    async fn resource(&self, uri: &ResourceUri) -> Result<Secret, SecretError>;
}

/// Why a text does not name a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a resource of the form kbs:///<repository>/<type>/<tag>, found {0:?}")]
pub struct ResourceUriError(String);

/// `kbs:///repository/type/tag`, checked: three parts, each of letters, digits, `-`, `_`, `.` and none of them a dot name.
///
/// A host part is refused: which broker is asked is the pod owner's decision, not that of whoever wrote the annotation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceUri {
    path: String,
}

impl ResourceUri {
    /// `repository/type/tag`, as the broker's resource interface takes it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for ResourceUri {
    type Err = ResourceUriError;

    fn from_str(text: &str) -> Result<Self, ResourceUriError> {
        let wrong = || ResourceUriError(text.chars().take(120).collect());
        let path = text.strip_prefix("kbs:///").ok_or_else(wrong)?;
        let parts: Vec<&str> = path.split('/').collect();
        let sound = |part: &&str| {
            !part.is_empty()
                && part.len() <= 128
                && *part != "."
                && *part != ".."
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        if parts.len() != 3 || !parts.iter().all(sound) {
            return Err(wrong());
        }
        Ok(Self { path: path.to_owned() })
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kbs:///{}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_only_three_plain_parts_and_no_host() {
        assert_eq!("kbs:///default/key/app-1.0".parse::<ResourceUri>().map(|u| u.path().to_owned()), Ok("default/key/app-1.0".to_owned()));
        for bad in [
            "kbs:///../key/x",
            "kbs:///a/../b",
            "kbs:///a/b",
            "kbs:///a/b/c/d",
            "kbs:///a//c",
            "kbs://host/a/b/c",
            "kbs:///a/b/c?x=1",
            "kbs:///a/b/%2e%2e",
            "file:///a/b/c",
            "a/b/c",
            "",
        ] {
            assert!(bad.parse::<ResourceUri>().is_err(), "{bad}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", Secret::new(b"hunter2".to_vec())), "Secret(..)");
    }
}
