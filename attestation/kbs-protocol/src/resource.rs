//! Resource paths: `repository/type/tag`, and the `kbs:///` form of the same.
//!
//! **Invariant:** a [`ResourcePath`] has exactly three segments of a narrow alphabet, so that it needs no escaping in a URL and cannot
//! leave its place in any store.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why text is not a resource path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourcePathError {
    /// Not three segments.
    #[error("resource path has {found} segments, expected \"repository/type/tag\"")]
    Segments {
        /// How many there were.
        found: usize,
    },
    /// A segment is empty, too long, dots only, or has a character outside the alphabet.
    #[error("resource path: the {which} must be 1 to 128 of A-Z a-z 0-9 . _ - and must not start with a dot")]
    Segment {
        /// `repository`, `type` or `tag`.
        which: &'static str,
    },
    /// A resource URI that names a host, has a query or is of another scheme.
    #[error("resource URI must be \"kbs:///repository/type/tag\", without host and query")]
    Uri,
}

/// The name of a secret in a broker.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourcePath {
    repository: String,
    kind: String,
    tag: String,
}

impl ResourcePath {
    const MAX_SEGMENT: usize = 128;

    /// Builds from segments.
    ///
    /// # Errors
    /// When a segment is not of the alphabet.
    pub fn new(repository: &str, kind: &str, tag: &str) -> Result<Self, ResourcePathError> {
        for (which, segment) in [("repository", repository), ("type", kind), ("tag", tag)] {
            let sane = !segment.is_empty()
                && segment.len() <= Self::MAX_SEGMENT
                && !segment.starts_with('.')
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
            if !sane {
                return Err(ResourcePathError::Segment { which });
            }
        }
        Ok(Self { repository: repository.into(), kind: kind.into(), tag: tag.into() })
    }

    /// Parses the `kbs:///repository/type/tag` form.
    ///
    /// # Errors
    /// When the scheme is another, or a host or query is given: which broker is asked is decided by initdata alone.
    pub fn from_uri(uri: &str) -> Result<Self, ResourcePathError> {
        uri.strip_prefix("kbs:///").ok_or(ResourcePathError::Uri)?.parse()
    }

    /// The `kbs:///repository/type/tag` form.
    #[must_use]
    pub fn to_uri(&self) -> String {
        format!("kbs:///{self}")
    }

    /// First segment.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Second segment.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Third segment.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl FromStr for ResourcePath {
    type Err = ResourcePathError;

    /// Parses `repository/type/tag`. For the URI form see [`ResourcePath::from_uri`].
    fn from_str(text: &str) -> Result<Self, ResourcePathError> {
        let mut segments = text.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some(repository), Some(kind), Some(tag), None) => Self::new(repository, kind, tag),
            _ => Err(ResourcePathError::Segments { found: text.split('/').count() }),
        }
    }
}

impl fmt::Display for ResourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.repository, self.kind, self.tag)
    }
}

impl fmt::Debug for ResourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResourcePath({self})")
    }
}

impl Serialize for ResourcePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ResourcePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_round_trip() {
        let path: ResourcePath = "default/image-key/v1.2_a".parse().expect("valid");
        assert_eq!(ResourcePath::from_uri(&path.to_uri()), Ok(path.clone()));
        assert_eq!((path.repository(), path.kind(), path.tag()), ("default", "image-key", "v1.2_a"));
    }

    #[test]
    fn refuses_paths_that_could_lead_elsewhere() {
        for bad in [
            "",
            "a",
            "a/b",
            "a/b/c/d",
            "/a/b",
            "a//c",
            "a/b/",
            "../b/c",
            "a/../c",
            "a/b/..",
            "a/b/.",
            ".a/b/c",
            "a/b/c?x=1",
            "a/b/c#x",
            "a/b/c%2f",
            "a/b/c d",
            "a\\b/c/d",
            "a/b/\u{e9}",
            "a/b/c\n",
            "a/b/c\0",
        ] {
            assert!(bad.parse::<ResourcePath>().is_err(), "{bad:?}");
        }
        assert!(format!("a/b/{}", "x".repeat(129)).parse::<ResourcePath>().is_err());
    }

    #[test]
    fn refuses_uris_with_host_or_of_another_scheme() {
        for bad in ["kbs://evil.example/a/b/c", "http:///a/b/c", "a/b/c", "kbs:////a/b/c", "KBS:///a/b/c", "kbs:///a/b/c?x"] {
            assert!(ResourcePath::from_uri(bad).is_err(), "{bad:?}");
        }
    }
}
