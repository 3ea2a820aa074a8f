//! Image references: `registry[:port]/repository[:tag][@sha256:digest]`, in the normal form of the `distribution/reference` grammar.
//!
//! A short name means what it means to containerd and Docker: `nginx` is `docker.io/library/nginx`. There is no search list.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// Longest reference, in bytes, as written and in normal form.
const MAX_LEN: usize = 512;

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Longer than any registry allows.
    #[error("image reference of {0} bytes, registry and `library/` of a short name included: at most {MAX_LEN} are allowed")]
    Long(usize),
    /// The part before the first `/` is no host.
    #[error("image reference: {0:?} is not a registry host[:port]")]
    Registry(String),
    /// The repository part is malformed.
    #[error("image reference: {0:?} is not a repository name (lower case letters, digits, separators . _ __ - and /)")]
    Repository(String),
    /// The tag is malformed.
    #[error("image reference: {0:?} is not a tag")]
    Tag(String),
    /// The digest is malformed.
    #[error("image reference")]
    Digest(#[from] crate::digest::DigestError),
}

/// A checked image reference in normal form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Registry host with port if any, as written (`docker.io` for short names).
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository within the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `registry/repository`: what the image is called, whichever version.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag, if one was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository at this digest, without a tag.
    #[must_use]
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The host that serves the registry's interface; Docker Hub's differs from its name.
    #[must_use]
    pub fn api_host(&self) -> &str {
        if self.registry == "docker.io" { "registry-1.docker.io" } else { &self.registry }
    }
}

fn registry_is_sound(registry: &str) -> bool {
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        (None, after.strip_prefix(':').map_or(if after.is_empty() { Ok(None) } else { Err(()) }, |p| Ok(Some(p))))
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Ok(Some(port))),
            None => (Some(registry), Ok(None)),
        }
    };
    let host_sound = host.is_none_or(|host| {
        !host.is_empty()
            && host.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            })
    });
    let port_sound = match port {
        Ok(None) => true,
        Ok(Some(port)) => port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p != 0),
        Err(()) => false,
    };
    host_sound && port_sound
}

fn component_is_sound(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alnum(first) || !alnum(last) {
        return false;
    }
    // Between the alphanumeric runs: one dot, one or two underscores, or any number of dashes.
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|sep| sep.is_empty() || sep == "." || sep == "_" || sep == "__" || sep.bytes().all(|b| b == b'-'))
}

fn tag_is_sound(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128 && tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_LEN {
            return Err(ReferenceError::Long(text.len()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // The tag's colon is the one after the last slash; an earlier colon belongs to a port.
        let (name, tag) = match rest.rfind(':') {
            Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..])),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !tag_is_sound(tag)
        {
            return Err(ReferenceError::Tag(tag.to_owned()));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first.starts_with('[') || first == "localhost" => (first, rest.to_owned()),
            _ => ("docker.io", name.to_owned()),
        };
        if !registry_is_sound(registry) {
            return Err(ReferenceError::Registry(registry.to_owned()));
        }
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let repository = if registry == "docker.io" && !repository.contains('/') { format!("library/{repository}") } else { repository };
        if !repository.split('/').all(component_is_sound) || repository == "library/" {
            return Err(ReferenceError::Repository(repository));
        }
        let reference = Self { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest };
        // A short name grows: what is accepted must be accepted again in the form that it is passed on in.
        let length = reference.to_string().len();
        if length > MAX_LEN { Err(ReferenceError::Long(length)) } else { Ok(reference) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, normal: &str) {
        assert_eq!(text.parse::<Reference>().map(|r| r.to_string()), Ok(normal.to_owned()));
    }

    #[test]
    fn reads_every_shape_into_its_normal_form() {
        let d = Digest::of(b"d");
        check("nginx", "docker.io/library/nginx");
        check("nginx:1.27", "docker.io/library/nginx:1.27");
        check("library/nginx", "docker.io/library/nginx");
        check("index.docker.io/a/b", "docker.io/a/b");
        check(&format!("ghcr.io/a/b__c@{d}"), &format!("ghcr.io/a/b__c@{d}"));
        check(&format!("127.0.0.1:5000/a:t@{d}"), &format!("127.0.0.1:5000/a:t@{d}"));
        check("localhost/a", "localhost/a");
        check("[::1]:5000/a/b:t", "[::1]:5000/a/b:t");
    }

    #[test]
    fn the_longest_reference_is_as_long_in_normal_form() {
        let prefix = "docker.io/library/";
        let longest = "a".repeat(MAX_LEN - prefix.len());
        check(&longest, &format!("{prefix}{longest}"));
        check(&format!("{prefix}{longest}"), &format!("{prefix}{longest}"));
        assert_eq!(format!("{longest}a").parse::<Reference>(), Err(ReferenceError::Long(MAX_LEN + 1)));
        assert_eq!("a".repeat(MAX_LEN + 1).parse::<Reference>(), Err(ReferenceError::Long(MAX_LEN + 1)));
    }

    #[test]
    fn refuses_what_the_grammar_does_not_know() {
        for bad in [
            "",
            "/a",
            "a/",
            "A/b",
            "ghcr.io/",
            "ghcr.io/../x",
            "ghcr.io/a//b",
            "ghcr.io:0/a",
            "ghcr.io:99999/a",
            "ghcr.io/a:",
            "ghcr.io/a:-x",
            "ghcr.io/a@sha256:00",
            "ghcr.io/a..b",
            "ghcr.io/a___b",
            "ghcr.io/-a",
            "user@ghcr.io/a",
            "ghcr.io/a?b",
            "ghcr.io/a b",
            "[::1/a",
            "-x.io/a",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        assert!("a".repeat(600).parse::<Reference>().is_err());
    }
}
