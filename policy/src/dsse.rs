//! DSSE envelopes (secure-systems-lab/dsse, protocol v1.0): a payload, its type, and signatures over both.
//!
//! The type is under the signature and is asked for by whoever opens an envelope, so that what was signed as one kind of document never
//! passes for another. The payload is not looked into before a trusted key's signature over it was found good.
//!
//! Fields of the envelope other than the three of the protocol are ignored, as it demands: they are not authenticated.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::keys::{KeyError, KeyId, SigningKey, TrustedKeys};

/// Largest envelope: initdata, which carries policies, has 1 MiB; command line, broker and `SetPolicy` have the same limit.
pub const MAX_ENVELOPE: usize = 1 << 20;

/// Most signatures looked at.
const MAX_SIGNATURES: usize = 16;

/// Why an envelope was refused, or not made.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DsseError {
    /// Too large.
    #[error("the envelope has {found} bytes, at most {MAX_ENVELOPE} are taken")]
    TooLarge {
        /// Its size.
        found: usize,
    },
    /// Not an envelope.
    #[error("not a DSSE envelope (JSON with payloadType, payload and signatures): {0}")]
    Envelope(String),
    /// Of another type.
    #[error("the envelope has payloadType {found:?}, expected {expected:?}")]
    PayloadType {
        /// What was asked for.
        expected: &'static str,
        /// What the envelope says.
        found: String,
    },
    /// Not base64.
    #[error("the envelope's {0} is not base64")]
    Base64(&'static str),
    /// No signature by a trusted key is good.
    #[error("no good signature by a trusted key: expected one of [{}], found [{}]", list(.expected), list(.found))]
    Untrusted {
        /// The trusted keys.
        expected: Vec<KeyId>,
        /// What each signature says about itself and what came of it.
        found: Vec<Tried>,
    },
    /// Too many signatures, or none to make.
    #[error("the envelope has {found} signatures, expected 1 to {MAX_SIGNATURES}")]
    Signatures {
        /// How many.
        found: usize,
    },
    /// Signing failed.
    #[error("could not be signed: {0}")]
    Sign(KeyError),
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

/// Opens an envelope: size, type, then a signature by a trusted key. The payload as it was signed, and the key whose signature counted.
///
/// # Errors
/// When any of these does not hold.
pub fn verify(bytes: &[u8], payload_type: &'static str, trusted: &TrustedKeys) -> Result<(Vec<u8>, KeyId), DsseError> {
    if bytes.len() > MAX_ENVELOPE {
        return Err(DsseError::TooLarge { found: bytes.len() });
    }
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| DsseError::Envelope(e.to_string()))?;
    if envelope.payload_type != payload_type {
        return Err(DsseError::PayloadType { expected: payload_type, found: envelope.payload_type.chars().take(128).collect() });
    }
    if envelope.signatures.len() > MAX_SIGNATURES {
        return Err(DsseError::Signatures { found: envelope.signatures.len() });
    }
    let payload = base64(&envelope.payload).ok_or(DsseError::Base64("payload"))?;
    let key = find_signer(&pae(payload_type, &payload), &envelope.signatures, trusted)?;
    Ok((payload, key))
}

/// Puts a payload into an envelope signed with one or more keys. The result is the envelope's JSON text.
///
/// # Errors
/// When there is no key or too many, the result would be too large to be accepted, or the system's random source fails.
pub fn sign(payload: &[u8], payload_type: &'static str, keys: &[&SigningKey]) -> Result<Vec<u8>, DsseError> {
    let message = pae(payload_type, payload);
    let mut signatures = Vec::with_capacity(keys.len());
    for key in keys {
        let sig = STANDARD.encode(key.sign(&message).map_err(DsseError::Sign)?);
        signatures.push(Signature { keyid: Some(key.public_key().id().to_string()), sig });
    }
    if signatures.is_empty() || signatures.len() > MAX_SIGNATURES {
        return Err(DsseError::Signatures { found: signatures.len() });
    }
    let envelope = Envelope { payload_type: payload_type.to_owned(), payload: STANDARD.encode(payload), signatures };
    let text = serde_json::to_vec(&envelope).map_err(|e| DsseError::Envelope(e.to_string()))?;
    if text.len() > MAX_ENVELOPE { Err(DsseError::TooLarge { found: text.len() }) } else { Ok(text) }
}

/// Pre-authentication encoding: what is signed (DSSE protocol, "Signature Definition").
pub(crate) fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Both alphabets are allowed by the protocol.
fn base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

/// The first trusted key with a good signature. A `keyid` is only a hint, and is not authenticated.
fn find_signer(message: &[u8], signatures: &[Signature], trusted: &TrustedKeys) -> Result<KeyId, DsseError> {
    let mut found = Vec::with_capacity(signatures.len());
    for signature in signatures {
        let bytes = base64(&signature.sig).ok_or(DsseError::Base64("signature"))?;
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
    Err(DsseError::Untrusted { expected: trusted.ids().collect(), found })
}
