//! Signed policies: a DSSE envelope ([`crate::dsse`]) around a version, the Rego text, its data, and the digests of all documents that go
//! with it in initdata.
//!
//! The payload is not looked into before a trusted key's signature over it was found good. [`VerifiedPolicy`] is the proof of that;
//! only [`SignedPolicy::verify`] makes one. Whether the documents are those that were signed is asked by [`VerifiedPolicy::bind`].

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::binding::DocumentDigests;
use crate::dsse::{self, DsseError};
use crate::keys::{KeyId, SigningKey, TrustId, TrustedKeys};

/// Payload type of an agent policy.
pub const PAYLOAD_TYPE: &str = "application/vnd.kata-cc.agent-policy.v2+json";

/// The type of the format before, whose signature said nothing about the documents that go with the policy.
const FORMER_PAYLOAD_TYPE: &str = "application/vnd.kata-cc.agent-policy.v1+json";

/// Why a signed policy was refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Not an envelope of an agent policy that a trusted key signed; or it could not be signed.
    #[error("{}", told(.0))]
    Dsse(DsseError),
    /// Of the format before.
    #[error(
        "the signed policy has payloadType {FORMER_PAYLOAD_TYPE:?}, whose signature does not cover initdata; expected {PAYLOAD_TYPE:?}: \
         sign the policy again (`kata-cc policy sign --initdata …`, or `kata-cc initdata build --sign-with …`)"
    )]
    FormerFormat,
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
}

fn told(error: &DsseError) -> String {
    match error {
        DsseError::Untrusted { .. } => format!("{error}; sign the policy with a trusted key, or name its key in initdata"),
        other => format!("the signed policy: {other}"),
    }
}

impl From<DsseError> for EnvelopeError {
    fn from(error: DsseError) -> Self {
        match error {
            DsseError::PayloadType { found, .. } if found == FORMER_PAYLOAD_TYPE => Self::FormerFormat,
            other => Self::Dsse(other),
        }
    }
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
        let (payload, key) = dsse::verify(bytes, PAYLOAD_TYPE, trusted)?;
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
        Ok(dsse::sign(&body, PAYLOAD_TYPE, keys)?)
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
