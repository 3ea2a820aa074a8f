//! Signed policies: a DSSE envelope (secure-systems-lab/dsse, protocol v1.0) around a version, the Rego text, its data, and the digests
//! of all documents that go with it in initdata.
//!
//! The payload is not looked into before a trusted key's signature over it was found good. [`VerifiedPolicy`] is the proof of that;
//! only [`SignedPolicy::verify`] makes one. Whether the documents are those that were signed is asked by [`VerifiedPolicy::bind`].
//!
//! Fields of the envelope other than the three of the protocol are ignored, as it demands: they are not authenticated.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::binding::DocumentDigests;
use crate::keys::{KeyError, KeyId, SigningKey, TrustId, TrustedKeys};

/// Payload type of an agent policy.
pub const PAYLOAD_TYPE: &str = "application/vnd.kata-cc.agent-policy.v2+json";

/// The type of the format before, whose signature said nothing about the documents that go with the policy.
const FORMER_PAYLOAD_TYPE: &str = "application/vnd.kata-cc.agent-policy.v1+json";

/// Largest envelope: initdata, which carries it, has 1 MiB; the CLI and `SetPolicy` get the same limit.
pub const MAX_ENVELOPE: usize = 1 << 20;

/// Most signatures looked at.
const MAX_SIGNATURES: usize = 16;

/// Why an envelope was refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Too large.
    #[error("the signed policy has {found} bytes, at most {MAX_ENVELOPE} are taken")]
    TooLarge {
        /// Its size.
        found: usize,
    },
    /// Not an envelope.
    #[error("the signed policy is not a DSSE envelope (JSON with payloadType, payload and signatures): {0}")]
    Envelope(String),
    /// Of another type.
    #[error("the signed policy has payloadType {found:?}, expected {PAYLOAD_TYPE:?}")]
    PayloadType {
        /// What the envelope says.
        found: String,
    },
    /// Of the format before.
    #[error(
        "the signed policy has payloadType {FORMER_PAYLOAD_TYPE:?}, whose signature does not cover initdata; expected {PAYLOAD_TYPE:?}: \
         sign the policy again (`kata-cc policy sign --initdata …`, or `kata-cc initdata build --sign-with …`)"
    )]
    FormerFormat,
    /// Not base64.
    #[error("the signed policy's {0} is not base64")]
    Base64(&'static str),
    /// No signature by a trusted key is good.
    #[error(
        "no good signature by a trusted key: expected one of [{}], found [{}]; sign the policy with a trusted key, or name its key in initdata",
        list(.expected), list(.found)
    )]
    Untrusted {
        /// The trusted keys.
        expected: Vec<KeyId>,
        /// What each signature says about itself and what came of it.
        found: Vec<Tried>,
    },
    /// Too many signatures.
    #[error("the signed policy has {found} signatures, at most {MAX_SIGNATURES} are taken")]
    Signatures {
        /// How many.
        found: usize,
    },
    /// The payload, though signed, is not a policy.
    #[error("the signed payload is not a policy (JSON with version, rego, documents and optionally data): {0}")]
    Payload(String),
    /// Older than allowed.
    #[error("the signed policy has version {found}, expected at least {minimum}; sign it again with a higher version")]
    Version {
        /// Its version.
        found: u64,
        /// The lowest accepted.
        minimum: u64,
    },
    /// Signing failed.
    #[error("the policy could not be signed")]
    Sign(#[source] KeyError),
}

/// One signature that did not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// It names a key that is not trusted.
    OtherKey(String),
    /// It names a trusted key, but is not good.
    BadSignature(KeyId),
    /// It names no key, and is good under no trusted key.
    Unnamed,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherKey(id) => write!(f, "{id} (not trusted)"),
            Self::BadSignature(id) => write!(f, "{id} (signature is wrong)"),
            Self::Unnamed => f.write_str("a signature without keyid (not by a trusted key)"),
        }
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload_type: String,
    payload: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    #[serde(default)]
    keyid: Option<String>,
    sig: String,
}

/// What is signed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyPayload {
    /// Version, at least 1. A policy in force is only replaced by one with a higher version.
    pub version: u64,
    /// The policy's text.
    pub rego: String,
    /// Data for the policy, found under `data`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub data: Map<String, Value>,
    /// The other documents of the initdata it is signed for. Not optional: a policy signed for no initdata would fit the host's.
    pub documents: DocumentDigests,
}

/// A policy that a trusted key signed, of a version that is accepted. Private fields: only [`SignedPolicy::verify`] makes one.
/// It opens no door before it is bound to the initdata it came with ([`VerifiedPolicy::bind`]).
pub struct VerifiedPolicy {
    payload: PolicyPayload,
    key: KeyId,
    trust: TrustId,
}

impl fmt::Debug for VerifiedPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedPolicy").field("version", &self.payload.version).field("key", &self.key).finish_non_exhaustive()
    }
}

impl VerifiedPolicy {
    /// Its version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.payload.version
    }

    /// Its text.
    #[must_use]
    pub fn rego(&self) -> &str {
        &self.payload.rego
    }

    /// Its data.
    #[must_use]
    pub fn data(&self) -> &Map<String, Value> {
        &self.payload.data
    }

    /// The documents it was signed with.
    #[must_use]
    pub fn documents(&self) -> &DocumentDigests {
        &self.payload.documents
    }

    /// The key whose signature counted.
    #[must_use]
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// The set of trusted keys it was verified against.
    #[must_use]
    pub fn trust(&self) -> TrustId {
        self.trust
    }
}

/// A policy in its envelope.
pub struct SignedPolicy;

impl SignedPolicy {
    /// Verifies an envelope: size, type, a signature by a trusted key, then the payload and its version, in that order.
    ///
    /// # Errors
    /// When any of these does not hold.
    pub fn verify(bytes: &[u8], trusted: &TrustedKeys) -> Result<VerifiedPolicy, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE {
            return Err(EnvelopeError::TooLarge { found: bytes.len() });
        }
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| EnvelopeError::Envelope(e.to_string()))?;
        if envelope.payload_type == FORMER_PAYLOAD_TYPE {
            return Err(EnvelopeError::FormerFormat);
        }
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(EnvelopeError::PayloadType { found: envelope.payload_type.chars().take(128).collect() });
        }
        if envelope.signatures.len() > MAX_SIGNATURES {
            return Err(EnvelopeError::Signatures { found: envelope.signatures.len() });
        }
        let payload = base64(&envelope.payload).ok_or(EnvelopeError::Base64("payload"))?;
        let key = find_signer(&pae(PAYLOAD_TYPE, &payload), &envelope.signatures, trusted)?;
        let payload: PolicyPayload = serde_json::from_slice(&payload).map_err(|e| EnvelopeError::Payload(e.to_string()))?;
        let minimum = trusted.min_version().max(1);
        if payload.version < minimum {
            return Err(EnvelopeError::Version { found: payload.version, minimum });
        }
        Ok(VerifiedPolicy { payload, key, trust: trusted.trust() })
    }

    /// Signs a policy with one or more keys. The result is the envelope's JSON text.
    ///
    /// # Errors
    /// When the version is 0, no document is listed, the result would be too large to be accepted, or the system's random source fails.
    pub fn sign(payload: &PolicyPayload, keys: &[&SigningKey]) -> Result<Vec<u8>, EnvelopeError> {
        if payload.version == 0 {
            return Err(EnvelopeError::Version { found: 0, minimum: 1 });
        }
        let body = serde_json::to_vec(payload).map_err(|e| EnvelopeError::Payload(e.to_string()))?;
        // What a reader would refuse is not signed.
        serde_json::from_slice::<PolicyPayload>(&body).map_err(|e| EnvelopeError::Payload(e.to_string()))?;
        let message = pae(PAYLOAD_TYPE, &body);
        let mut signatures = Vec::with_capacity(keys.len());
        for key in keys {
            let sig = STANDARD.encode(key.sign(&message).map_err(EnvelopeError::Sign)?);
            signatures.push(Signature { keyid: Some(key.public_key().id().to_string()), sig });
        }
        if signatures.is_empty() || signatures.len() > MAX_SIGNATURES {
            return Err(EnvelopeError::Signatures { found: signatures.len() });
        }
        let envelope = Envelope { payload_type: PAYLOAD_TYPE.to_owned(), payload: STANDARD.encode(body), signatures };
        let text = serde_json::to_vec(&envelope).map_err(|e| EnvelopeError::Envelope(e.to_string()))?;
        if text.len() > MAX_ENVELOPE { Err(EnvelopeError::TooLarge { found: text.len() }) } else { Ok(text) }
    }
}

/// Pre-authentication encoding: what is signed (DSSE protocol, "Signature Definition").
fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Both alphabets are allowed by the protocol.
fn base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

/// The first trusted key with a good signature. A `keyid` is only a hint, and is not authenticated.
fn find_signer(message: &[u8], signatures: &[Signature], trusted: &TrustedKeys) -> Result<KeyId, EnvelopeError> {
    let mut found = Vec::with_capacity(signatures.len());
    for signature in signatures {
        let bytes = base64(&signature.sig).ok_or(EnvelopeError::Base64("signature"))?;
        match signature.keyid.as_deref().filter(|id| !id.is_empty()) {
            None => match trusted.all().find(|key| key.verifies(message, &bytes)) {
                Some(key) => return Ok(key.id()),
                None => found.push(Tried::Unnamed),
            },
            Some(text) => match text.parse().ok().and_then(|id| trusted.get(&id)) {
                Some(key) if key.verifies(message, &bytes) => return Ok(key.id()),
                Some(key) => found.push(Tried::BadSignature(key.id())),
                None => found.push(Tried::OtherKey(text.chars().filter(|c| !c.is_control()).take(64).collect())),
            },
        }
    }
    Err(EnvelopeError::Untrusted { expected: trusted.ids().collect(), found })
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
