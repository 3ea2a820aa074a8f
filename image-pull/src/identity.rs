//! Whether the name a signature was made for is the name the image is asked for by: `signedIdentity` of containers-policy.json(5).

use crate::reference::Reference;

/// How the signed name must relate to the asked one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SignedIdentity {
    /// The same repository and tag; a reference without tag never matches.
    Exact,
    /// The same repository and tag when asked by tag alone, the same repository when asked by digest. The default.
    RepoDigestOrExact,
    /// The same repository, whatever the tag.
    Repository,
    /// This very reference, whatever was asked.
    ExactReference(Reference),
    /// This very repository, whatever was asked.
    ExactRepository(Reference),
}

impl SignedIdentity {
    /// Whether a signature for `signed` counts for `asked`.
    pub(crate) fn matches(&self, asked: &Reference, signed: &Reference) -> bool {
        let repository = |a: &Reference, b: &Reference| a.registry() == b.registry() && a.repository() == b.repository();
        let exact = |a: &Reference, b: &Reference| repository(a, b) && a.tag().is_some() && a.tag() == b.tag();
        match self {
            Self::Exact => exact(asked, signed),
            // The digest is compared anyway, and it says more than any tag.
            Self::RepoDigestOrExact if asked.digest().is_some() => repository(asked, signed),
            Self::RepoDigestOrExact => exact(asked, signed),
            Self::Repository => repository(asked, signed),
            Self::ExactReference(wanted) => {
                repository(wanted, signed) && wanted.tag() == signed.tag() && wanted.digest() == signed.digest()
            }
            Self::ExactRepository(wanted) => repository(wanted, signed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn r(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn follows_the_table_of_containers_policy() {
        use SignedIdentity::{Exact, ExactReference, ExactRepository, RepoDigestOrExact, Repository};
        let pinned = r(&format!("r.io/a/b@{}", Digest::of(b"m")));
        let both = r(&format!("r.io/a/b:1@{}", Digest::of(b"m")));
        for (identity, asked, signed, expected) in [
            (Exact, r("r.io/a/b:1"), "r.io/a/b:1", true),
            (Exact, r("r.io/a/b:1"), "r.io/a/b:2", false),
            (Exact, pinned.clone(), "r.io/a/b", false),
            (RepoDigestOrExact, r("r.io/a/b:1"), "r.io/a/b", false),
            (RepoDigestOrExact, pinned.clone(), "r.io/a/b", true),
            (RepoDigestOrExact, both, "r.io/a/b:2", true),
            (RepoDigestOrExact, pinned.clone(), "r.io/a/c", false),
            (RepoDigestOrExact, pinned.clone(), "evil.io/a/b", false),
            (Repository, r("r.io/a/b:1"), "r.io/a/b:9", true),
            (Repository, r("r.io/a/b:1"), "r.io/a/b/c:1", false),
            (ExactReference(r("o.io/x:1")), pinned.clone(), "o.io/x:1", true),
            (ExactReference(r("o.io/x:1")), pinned.clone(), "o.io/x", false),
            (ExactRepository(r("o.io/x")), pinned.clone(), "o.io/x:7", true),
            (ExactRepository(r("o.io/x")), pinned, "r.io/a/b", false),
        ] {
            assert_eq!(identity.matches(&asked, &r(signed)), expected, "{identity:?} {asked} {signed}");
        }
    }
}
