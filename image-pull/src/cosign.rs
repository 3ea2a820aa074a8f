//! Signatures by key, as cosign makes them: a manifest under the tag `sha256-<hex>.sig` of the same repository, one layer a signature.
//!
//! Checked in this order, so that nothing unsigned is parsed for what it says: the payload blob's digest, the signature over the payload, then the payload's type, image
//! digest and name. The signature manifest itself is found by tag and signed by nobody; it can only offer signatures, never vouch for one.
//!
//! Formats: cosign signature specification; containers-signature(5) "simple signing" payload. Keys: ECDSA P-256, SHA-256.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::Deserialize;

use crate::digest::Digest;
use crate::identity::SignedIdentity;
use crate::limits::Limits;
use crate::manifest::{Descriptor, OCI_MANIFEST};
use crate::policy::{KeySource, Requirement, SignaturePolicy};
use crate::reference::{Reference, ReferenceError};
use crate::registry::{Registry, RegistryError, Version, small_blob};
use crate::secret::{Secret, SecretError, Secrets};

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const PAYLOAD_TYPE: &str = "cosign container image signature";
const PAYLOAD_LIMIT: u64 = 64 << 10;

/// Why an image is not allowed by the signature policy.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The policy rejects it.
    #[error("the signature policy rejects {0}")]
    Rejected(String),
    /// The policy asks for something that cannot be checked here.
    #[error("the signature policy for {image} asks for {what}, which is not supported yet; use sigstoreSigned with a key")]
    Unsupported {
        /// The image.
        image: String,
        /// What it asks for.
        what: &'static str,
    },
    /// There is none.
    #[error("{image} is not signed: expected a cosign signature, found no {tag} in its repository")]
    Unsigned {
        /// The image.
        image: String,
        /// The tag its signatures would have.
        tag: String,
    },
    /// There are some, and none counts.
    #[error("no signature of {image} satisfies the signature policy: {}", .reasons.join("; "))]
    NoneCounts {
        /// The image.
        image: String,
        /// Why not, for each.
        reasons: Vec<String>,
    },
    /// The signature manifest is malformed.
    #[error("the signature manifest of {image}: {what}")]
    Manifest {
        /// The image.
        image: String,
        /// What is wrong.
        what: String,
    },
    /// A public key is not to be had.
    #[error("public key {uri} of the signature policy")]
    KeyResource {
        /// Its name.
        uri: String,
        /// Why not.
        #[source]
        source: SecretError,
    },
    /// A key is not of the kind we know.
    #[error("{0}: expected a PEM key for ECDSA on P-256")]
    Key(&'static str),
    /// The registry failed.
    #[error("looking for signatures")]
    Registry(#[from] RegistryError),
}

/// An ECDSA P-256 public key.
pub(crate) struct PublicKey(Vec<u8>);

/// SubjectPublicKeyInfo of id-ecPublicKey on prime256v1, up to the uncompressed point (RFC 5480).
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00,
];

impl PublicKey {
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, SignatureError> {
        let wrong = || SignatureError::Key("public key of the signature policy");
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| wrong())?;
        let point = spki.as_ref().strip_prefix(&P256_SPKI).filter(|point| point.len() == 65).ok_or_else(wrong)?;
        Ok(Self(point.to_vec()))
    }

    fn verifies(&self, payload: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.0).verify(payload, signature).is_ok()
    }
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Image,
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    #[serde(rename = "docker-reference")]
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SignatureManifest {
    schema_version: u32,
    layers: Vec<Descriptor>,
}

/// A payload and a signature said to be over it.
struct Offered {
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// The tag under which signatures of a digest are.
#[must_use]
pub fn signature_tag(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// What the policy says without asking anybody: a refusal costs no request, and a registry learns nothing of it.
///
/// # Errors
/// If the policy rejects the image or asks for what cannot be checked.
pub fn preflight(policy: &SignaturePolicy, image: &Reference) -> Result<(), SignatureError> {
    for requirement in policy.requirements(image) {
        match requirement {
            Requirement::Reject => return Err(SignatureError::Rejected(image.to_string())),
            Requirement::Unsupported(what) => return Err(SignatureError::Unsupported { image: image.to_string(), what }),
            Requirement::Accept | Requirement::Sigstore { .. } => {}
        }
    }
    Ok(())
}

/// Whether the policy allows the image asked for by `image`, whose manifest has one of `digests`: that of the index it was found through, if any, and its own.
///
/// # Errors
/// If it does not, or that cannot be found out.
pub async fn check(
    policy: &SignaturePolicy,
    image: &Reference,
    digests: &[Digest],
    registry: &dyn Registry,
    secrets: &dyn Secrets,
    limits: &Limits,
) -> Result<(), SignatureError> {
    preflight(policy, image)?;
    for requirement in policy.requirements(image) {
        if let Requirement::Sigstore { keys, identity } = requirement {
            sigstore(keys, identity, image, digests, registry, secrets, limits).await?;
        }
    }
    Ok(())
}

async fn sigstore(
    keys: &[KeySource],
    identity: &SignedIdentity,
    image: &Reference,
    digests: &[Digest],
    registry: &dyn Registry,
    secrets: &dyn Secrets,
    limits: &Limits,
) -> Result<(), SignatureError> {
    let mut public = Vec::new();
    for key in keys {
        public.push(match key {
            KeySource::Pem(pem) => PublicKey::from_pem(pem)?,
            KeySource::Resource(uri) => {
                let pem = secrets.resource(uri).await.map_err(|source| SignatureError::KeyResource { uri: uri.to_string(), source })?;
                PublicKey::from_pem(pem.expose())?
            }
        });
    }
    let mut reasons = Vec::new();
    for digest in digests {
        for offered in offered(image, digest, registry, limits).await? {
            match counts(&offered, &public, identity, image, digest) {
                Ok(()) => return Ok(()),
                Err(reason) => reasons.push(reason),
            }
        }
    }
    Err(match digests.first() {
        Some(digest) if reasons.is_empty() => SignatureError::Unsigned { image: image.to_string(), tag: signature_tag(digest) },
        _ => SignatureError::NoneCounts { image: image.to_string(), reasons },
    })
}

fn counts(offered: &Offered, keys: &[PublicKey], identity: &SignedIdentity, image: &Reference, digest: &Digest) -> Result<(), String> {
    if !keys.iter().any(|key| key.verifies(&offered.payload, &offered.signature)) {
        return Err("a signature by none of the policy's keys".to_owned());
    }
    let Payload { critical } = serde_json::from_slice(&offered.payload)
        .map_err(|e| format!("a signature over something that is no simple-signing payload ({e})"))?;
    if critical.r#type != PAYLOAD_TYPE {
        return Err(format!("a signature of type {:?}, expected {PAYLOAD_TYPE:?}", critical.r#type));
    }
    if critical.image.digest != *digest {
        return Err(format!("a signature for the digest {}, expected {digest}", critical.image.digest));
    }
    let name = critical.identity.docker_reference;
    let signed: Reference = name.parse().map_err(|e: ReferenceError| format!("a signature for the name {name:?} ({e})"))?;
    if !identity.matches(image, &signed) {
        return Err(format!("a signature for the name {signed}, asked for was {image}"));
    }
    Ok(())
}

async fn offered(image: &Reference, digest: &Digest, registry: &dyn Registry, limits: &Limits) -> Result<Vec<Offered>, SignatureError> {
    let Some(raw) = registry.manifest(image, Version::Tag(&signature_tag(digest)), limits.manifest_bytes).await? else {
        return Ok(Vec::new());
    };
    let wrong = |what: String| SignatureError::Manifest { image: image.to_string(), what };
    let manifest: SignatureManifest = serde_json::from_slice(&raw.bytes).map_err(|e| wrong(format!("not of the expected form: {e}")))?;
    if manifest.schema_version != 2 {
        return Err(wrong(format!("schema version {}", manifest.schema_version)));
    }
    if manifest.layers.len() > limits.signatures {
        return Err(wrong(format!("{} signatures, at most {} are looked at", manifest.layers.len(), limits.signatures)));
    }
    let mut found = Vec::new();
    for layer in &manifest.layers {
        let Some(signature) = layer.annotations.get(SIGNATURE_ANNOTATION).filter(|_| layer.media_type == SIMPLE_SIGNING) else { continue };
        let signature = BASE64.decode(signature).map_err(|_| wrong("a signature that is not base64".to_owned()))?;
        let payload = small_blob(registry, image, &layer.digest, PAYLOAD_LIMIT, "a signature's payload").await?;
        found.push(Offered { payload, signature });
    }
    Ok(found)
}

/// A signature ready to be put beside an image.
pub struct Signed {
    /// The payload blob.
    pub payload: Vec<u8>,
    /// The configuration blob the signature manifest names.
    pub config: Vec<u8>,
    /// The signature manifest, to be put under [`signature_tag`].
    pub manifest: Vec<u8>,
}

/// Signs a digest under the image's name (without tag, as cosign does) with a PEM PKCS#8 key. `existing` is the signature manifest that is already there; its
/// signatures are kept.
///
/// # Errors
/// If the key is not an ECDSA P-256 key in PKCS#8, or `existing` is malformed.
pub fn sign(image: &Reference, digest: &Digest, key_pem: &Secret, existing: Option<&[u8]>) -> Result<Signed, SignatureError> {
    let wrong = || SignatureError::Key("signing key (PKCS#8, not encrypted)");
    let random = ring::rand::SystemRandom::new();
    let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(key_pem.expose()).map_err(|_| wrong())?;
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.secret_pkcs8_der(), &random).map_err(|_| wrong())?;
    let payload = serde_json::json!({
        "critical": {
            "identity": {"docker-reference": image.name()},
            "image": {"docker-manifest-digest": digest},
            "type": PAYLOAD_TYPE,
        },
        "optional": null,
    })
    .to_string()
    .into_bytes();
    let signature = key.sign(&random, &payload).map_err(|_| wrong())?;
    let mut layers = match existing {
        None => Vec::new(),
        Some(existing) => {
            let bad = |what: &str| SignatureError::Manifest { image: image.to_string(), what: what.to_owned() };
            let value: serde_json::Value = serde_json::from_slice(existing).map_err(|_| bad("not JSON"))?;
            value.get("layers").and_then(|layers| layers.as_array()).cloned().ok_or_else(|| bad("no layers"))?
        }
    };
    layers.push(serde_json::json!({
        "mediaType": SIMPLE_SIGNING,
        "digest": Digest::of(&payload),
        "size": payload.len(),
        "annotations": {SIGNATURE_ANNOTATION: BASE64.encode(signature)},
    }));
    let diff_ids: Vec<_> = layers.iter().filter_map(|layer| layer.get("digest")).collect();
    let config = serde_json::json!({"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
        "layers": layers,
    });
    Ok(Signed { payload, config, manifest: manifest.to_string().into_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by cosign 2.5.0, `cosign sign --key … --tlog-upload=false`, against a registry on the loopback.
    const PAYLOAD: &str = r#"{"critical":{"identity":{"docker-reference":"127.0.0.1:5533/team/app"},"image":{"docker-manifest-digest":"sha256:ad0315ff8bf4ba8a9fa33b196b95364011232c8498801910e6ca3ae5e61d01c5"},"type":"cosign container image signature"},"optional":null}"#;
    const SIGNATURE: &str = "MEQCIAaWax2mPMgAQLjYEtxPB8CHmNZuvJYi4QKFzf/C9FZ3AiAve3FtjcJHs0PvS7ZAUG323TR46/iIx74nlkT6sp94dQ==";
    const KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqrhgVlHITV4Sh0qK7f1OYd4/9R5A
jRZPDHk3HrSxfg0o7bWvF8352jYi5seSsxQqoAnYDsk+qWcX5hNun0skIA==
-----END PUBLIC KEY-----
";

    #[test]
    fn a_signature_made_by_cosign_counts_and_every_alteration_of_it_does_not() {
        let key = [PublicKey::from_pem(KEY.as_bytes()).unwrap()];
        let digest: Digest = PAYLOAD.split('"').find(|part| part.starts_with("sha256:")).unwrap().parse().unwrap();
        let image = Reference::at_digest(&"127.0.0.1:5533/team/app".parse().unwrap(), digest);
        let good = || Offered { payload: PAYLOAD.as_bytes().to_vec(), signature: BASE64.decode(SIGNATURE).unwrap() };
        let verdict = |offered: &Offered| counts(offered, &key, &SignedIdentity::RepoDigestOrExact, &image, &digest);
        verdict(&good()).unwrap();
        for at in 0..PAYLOAD.len() {
            let mut offered = good();
            offered.payload[at] ^= 1;
            assert!(verdict(&offered).is_err(), "byte {at} of the payload");
        }
        for at in 0..good().signature.len() {
            let mut offered = good();
            offered.signature[at] ^= 1;
            assert!(verdict(&offered).is_err(), "byte {at} of the signature");
        }
        let other = Digest::of(b"other");
        assert!(counts(&good(), &key, &SignedIdentity::RepoDigestOrExact, &image.at_digest(other), &other).is_err());
    }
}
