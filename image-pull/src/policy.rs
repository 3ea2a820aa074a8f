//! The signature policy: which images may be run at all, and whose signature they need. containers-policy.json(5), the part that makes sense here.
//!
//! As strict as the reference reader: unknown and repeated keys, empty requirement lists and unknown types are errors. What we cannot check (GPG
//! `signedBy`, Fulcio, Rekor, PKI) is read, and refuses the images it applies to. There is no policy for "no policy": the caller must have one.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::identity::SignedIdentity;
use crate::reference::Reference;
use crate::secret::ResourceUri;

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not JSON of the expected form.
    #[error("signature policy: not of the form of containers-policy.json")]
    Json(#[from] serde_json::Error),
    /// Well-formed but wrong.
    #[error("signature policy, {scope}: {what}")]
    Requirement {
        /// Where in the policy.
        scope: String,
        /// What is wrong.
        what: String,
    },
    /// Larger than any honest one.
    #[error("signature policy of {0} bytes: at most 1 MiB is allowed")]
    Large(usize),
}

/// Where a public key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeySource {
    Pem(Vec<u8>),
    Resource(ResourceUri),
}

/// One thing an image must satisfy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Requirement {
    Accept,
    Reject,
    Sigstore {
        keys: Vec<KeySource>,
        identity: SignedIdentity,
    },
    /// Something we cannot check, so nothing satisfies it.
    Unsupported(&'static str),
}

/// A checked policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignaturePolicy {
    default: Vec<Requirement>,
    docker: BTreeMap<String, Vec<Requirement>>,
}

/// A JSON object whose keys must differ: readers do not agree on which of two wins.
#[derive(Debug)]
struct Distinct<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Distinct<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = Distinct<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = access.next_entry::<String, T>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format!("the key {key:?} twice")));
                    }
                    map.insert(key, value);
                }
                Ok(Distinct(map))
            }
        }
        deserializer.deserialize_map(Keys(PhantomData))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    default: Vec<RawRequirement>,
    transports: Option<Distinct<Distinct<Vec<RawRequirement>>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRequirement {
    r#type: String,
    key_type: Option<IgnoredAny>,
    key_path: Option<String>,
    key_paths: Option<Vec<String>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<IgnoredAny>,
    pki: Option<IgnoredAny>,
    rekor_public_key_path: Option<IgnoredAny>,
    rekor_public_key_paths: Option<IgnoredAny>,
    rekor_public_key_data: Option<IgnoredAny>,
    rekor_public_key_datas: Option<IgnoredAny>,
    signed_identity: Option<RawIdentity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawIdentity {
    r#type: String,
    docker_reference: Option<String>,
    docker_repository: Option<String>,
    prefix: Option<IgnoredAny>,
    signed_prefix: Option<IgnoredAny>,
}

impl RawIdentity {
    fn check(self) -> Result<Result<SignedIdentity, &'static str>, String> {
        let parse = |text: Option<String>, key: &str| -> Result<Reference, String> {
            text.ok_or_else(|| format!("{} without {key}", self.r#type))?.parse().map_err(|e| format!("{key}: {e}"))
        };
        if self.r#type == "remapIdentity" {
            return Ok(Err("signedIdentity of type remapIdentity"));
        }
        let allowed = match self.r#type.as_str() {
            "exactReference" => (true, false),
            "exactRepository" => (false, true),
            _ => (false, false),
        };
        if (self.docker_reference.is_some() && !allowed.0)
            || (self.docker_repository.is_some() && !allowed.1)
            || self.prefix.is_some()
            || self.signed_prefix.is_some()
        {
            return Err(format!("signedIdentity of type {:?} with a key it does not have", self.r#type));
        }
        Ok(Ok(match self.r#type.as_str() {
            "matchExact" => SignedIdentity::Exact,
            "matchRepoDigestOrExact" => SignedIdentity::RepoDigestOrExact,
            "matchRepository" => SignedIdentity::Repository,
            "exactReference" => {
                let reference = parse(self.docker_reference, "dockerReference")?;
                if reference.tag().is_none() && reference.digest().is_none() {
                    return Err("exactReference: dockerReference names no tag and no digest".to_owned());
                }
                SignedIdentity::ExactReference(reference)
            }
            "exactRepository" => {
                let repository = parse(self.docker_repository, "dockerRepository")?;
                if repository.tag().is_some() || repository.digest().is_some() {
                    return Err("exactRepository: dockerRepository names a tag or digest".to_owned());
                }
                SignedIdentity::ExactRepository(repository)
            }
            other => return Err(format!("unknown signedIdentity type {other:?}")),
        }))
    }
}

impl RawRequirement {
    fn keys(&self) -> Result<Vec<KeySource>, String> {
        let given = [self.key_path.is_some(), self.key_paths.is_some(), self.key_data.is_some(), self.key_datas.is_some()];
        if given.iter().filter(|given| **given).count() != 1 {
            return Err("expected exactly one of keyPath, keyPaths, keyData, keyDatas".to_owned());
        }
        let path = |path: &String| {
            let uri = path
                .parse()
                .map_err(|_| format!("key path {path:?}: expected kbs:///<repository>/<type>/<tag>; the guest has no key files"))?;
            Ok(KeySource::Resource(uri))
        };
        let data =
            |data: &String| BASE64.decode(data).map(KeySource::Pem).map_err(|_| "keyData: not base64 of a PEM public key".to_owned());
        let keys: Vec<KeySource> = if let Some(paths) = self.key_paths.as_ref() {
            paths.iter().map(path).collect::<Result<_, String>>()?
        } else if let Some(datas) = self.key_datas.as_ref() {
            datas.iter().map(data).collect::<Result<_, String>>()?
        } else {
            let paths = self.key_path.iter().map(path);
            paths.chain(self.key_data.iter().map(data)).collect::<Result<_, String>>()?
        };
        if keys.is_empty() || keys.len() > 16 {
            return Err(format!("{} keys: expected 1 to 16", keys.len()));
        }
        Ok(keys)
    }

    fn check(self) -> Result<Requirement, String> {
        let bare = self.key_type.is_none()
            && self.key_path.is_none()
            && self.key_paths.is_none()
            && self.key_data.is_none()
            && self.key_datas.is_none()
            && self.signed_identity.is_none();
        let transparency = self.rekor_public_key_path.is_some()
            || self.rekor_public_key_paths.is_some()
            || self.rekor_public_key_data.is_some()
            || self.rekor_public_key_datas.is_some();
        let keyless = self.fulcio.is_some() || self.pki.is_some() || transparency;
        match self.r#type.as_str() {
            kind @ ("insecureAcceptAnything" | "reject") => {
                if !bare || keyless {
                    return Err(format!("{kind} with a key it does not have"));
                }
                Ok(if kind == "reject" { Requirement::Reject } else { Requirement::Accept })
            }
            "signedBy" => Ok(Requirement::Unsupported("type signedBy (GPG signatures)")),
            "sigstoreSigned" => {
                if self.key_type.is_some() {
                    return Err("sigstoreSigned with a keyType".to_owned());
                }
                // An entry in the transparency log was asked for: to ignore that would be to accept less than was asked.
                if keyless {
                    return Ok(Requirement::Unsupported("sigstoreSigned with fulcio, pki or a Rekor key"));
                }
                let keys = self.keys()?;
                match self.signed_identity.map_or(Ok(Ok(SignedIdentity::RepoDigestOrExact)), RawIdentity::check)? {
                    Ok(identity) => Ok(Requirement::Sigstore { keys, identity }),
                    Err(unsupported) => Ok(Requirement::Unsupported(unsupported)),
                }
            }
            other => Err(format!("unknown type {other:?}")),
        }
    }
}

fn requirements(scope: &str, raw: Vec<RawRequirement>) -> Result<Vec<Requirement>, PolicyError> {
    let wrong = |what: String| PolicyError::Requirement { scope: scope.to_owned(), what };
    if raw.is_empty() {
        return Err(wrong("an empty list of requirements: say reject or insecureAcceptAnything".to_owned()));
    }
    raw.into_iter().map(|raw| raw.check().map_err(wrong)).collect()
}

impl SignaturePolicy {
    /// Reads a policy. Only the transport `docker` is of use here; others are checked in form and left aside.
    ///
    /// # Errors
    /// If it is malformed or means nothing.
    pub fn parse(json: &[u8]) -> Result<Self, PolicyError> {
        if json.len() > 1 << 20 {
            return Err(PolicyError::Large(json.len()));
        }
        let raw: RawPolicy = serde_json::from_slice(json)?;
        let default = requirements("default", raw.default)?;
        let mut docker = BTreeMap::new();
        for (transport, scopes) in raw.transports.map(|t| t.0).unwrap_or_default() {
            for (scope, list) in scopes.0 {
                let list = requirements(&format!("transport {transport}, scope {scope:?}"), list)?;
                if transport == "docker" {
                    docker.insert(scope, list);
                }
            }
        }
        Ok(Self { default, docker })
    }

    /// A policy that accepts every image, signed or not. For those who pin digests in the agent policy and say so.
    #[must_use]
    pub fn insecure_accept_anything() -> Self {
        Self { default: vec![Requirement::Accept], docker: BTreeMap::new() }
    }

    /// What an image must satisfy, all of it: the list of the narrowest scope that names it.
    pub(crate) fn requirements(&self, image: &Reference) -> &[Requirement] {
        let name = image.name();
        let mut scopes = Vec::new();
        scopes.extend(image.digest().map(|digest| format!("{name}@{digest}")));
        scopes.extend(image.tag().map(|tag| format!("{name}:{tag}")));
        let mut part = name.as_str();
        scopes.push(part.to_owned());
        while let Some((shorter, _)) = part.rsplit_once('/') {
            part = shorter;
            scopes.push(part.to_owned());
        }
        // `*.example.com`, the narrowest first. The port, if any, belongs to the host and stays.
        let mut host = image.registry();
        while let Some((_, parent)) = host.split_once('.') {
            scopes.push(format!("*.{parent}"));
            host = parent;
        }
        scopes.push(String::new());
        scopes.iter().find_map(|scope| self.docker.get(scope)).unwrap_or(&self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    const KEY: &str = "LS0tLS1CRUdJTiBQVUJMSUMgS0VZLS0tLS0K";

    #[test]
    fn the_narrowest_scope_decides() {
        let text = r#"{"default":[{"type":"reject"}],"transports":{"docker":{
            "r.io/a/b:1":[{"type":"insecureAcceptAnything"}],
            "r.io/a":[{"type":"sigstoreSigned","keyPath":"kbs:///default/cosign/key"}],
            "*.w.io":[{"type":"insecureAcceptAnything"}],
            "h.io:5000":[{"type":"insecureAcceptAnything"}]}}}"#;
        let policy = SignaturePolicy::parse(text.as_bytes()).unwrap();
        let kind = |image: &str| policy.requirements(&image.parse().unwrap())[0].clone();
        assert_eq!(kind("r.io/a/b:1"), Requirement::Accept);
        assert_eq!(kind(&format!("r.io/a/b:1@{}", Digest::of(b"x"))), Requirement::Accept);
        assert!(matches!(kind("r.io/a/b:2"), Requirement::Sigstore { .. }));
        assert!(matches!(kind("r.io/a/b/c"), Requirement::Sigstore { .. }));
        assert_eq!(kind("r.io/ab/c"), Requirement::Reject);
        assert_eq!(kind("x.y.w.io/c"), Requirement::Accept);
        assert_eq!(kind("w.io/c"), Requirement::Reject);
        assert_eq!(kind("h.io:5000/c"), Requirement::Accept);
        assert_eq!(kind("h.io/c"), Requirement::Reject);
        assert_eq!(kind("nginx"), Requirement::Reject);
    }

    #[test]
    fn refuses_policies_that_could_mean_two_things_or_nothing() {
        for bad in [
            "",
            "{}",
            r#"{"default":[]}"#,
            r#"{"default":[{"type":"maybe"}]}"#,
            r#"{"default":[{"type":"reject","keyData":"x"}]}"#,
            r#"{"default":[{"type":"reject"}],"extra":1}"#,
            r#"{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}"#,
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"reject"}],"a":[{"type":"insecureAcceptAnything"}]}}}"#,
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[]}}}"#,
            r#"{"default":[{"type":"sigstoreSigned"}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","keyPath":"/etc/key.pub"}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///../a/b"}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","keyDatas":[]}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","keyData":"AAAA","keyPath":"kbs:///a/b/c"}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","keyData":"AAAA","signedIdentity":{"type":"exactReference"}}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","keyData":"AAAA","signedIdentity":{"type":"matchExact","dockerReference":"a:1"}}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","keyData":"AAAA","signedIdentity":{"type":"near"}}]}"#,
        ] {
            assert!(SignaturePolicy::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_checked_is_kept_as_never_satisfied() {
        for text in [
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}"#.to_owned(),
            format!(r#"{{"type":"sigstoreSigned","keyData":"{KEY}","rekorPublicKeyData":"{KEY}"}}"#),
            r#"{"type":"sigstoreSigned","fulcio":{"caPath":"/x"}}"#.to_owned(),
            format!(
                r#"{{"type":"sigstoreSigned","keyData":"{KEY}","signedIdentity":{{"type":"remapIdentity","prefix":"a","signedPrefix":"b"}}}}"#
            ),
        ] {
            let policy = SignaturePolicy::parse(format!(r#"{{"default":[{text}]}}"#).as_bytes()).unwrap();
            assert!(matches!(policy.default.as_slice(), [Requirement::Unsupported(_)]), "{text}");
        }
    }
}
