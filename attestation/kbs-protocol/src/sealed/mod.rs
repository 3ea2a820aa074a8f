//! Sealed secrets of Confidential Containers: `sealed.<header>.<payload>.<signature>`, a JWS in compact form (RFC 7515) with a prefix.
//!
//! They travel by way of Kubernetes: in environment variables and in Secret volumes, where the control plane and the host read and change
//! them at will. So what they hold is a pointer to a secret at the broker (`vault`), or a secret encrypted under a key at the broker
//! (`envelope`), and a signature says that their owner made them.
//!
//! ```text
//! text --parse--> UnverifiedSecret --verify(key named by kid)--> SealedSecret --open(resource at the broker)--> the secret
//! ```
//!
//! | part | what is taken | what CoCo takes besides |
//! |---|---|---|
//! | header | `alg` ES256; `kid` `kbs:///repository/type/tag`; `b64`, `crit` and `typ` where they change nothing | a file name as `kid`; made-up headers, with a switch |
//! | payload | version 0.1.0; provider `kbs`; no settings | aliyun, aws, ehsm |
//! | signature | by the P-256 key whose public half is at `kid`, as JWK | a JWK with its private half; none, with a switch |
//!
//! The envelope's key is wrapped as CoCo wraps the keys of image layers: AES-256-GCM under a key of 32 bytes at the broker, tag at the end, nonce
//! and algorithm in `annotations` (`iv`, `wrap_type`). CoCo leaves the form to the provider, and has none for `kbs`.
//!
//! **Invariant:** nothing of a payload can be read before its signature was verified. There is no way around it: a secret without a
//! signature is a pointer that the host wrote.
//!
//! **Invariant:** no error holds a value out of a header, payload or secret, but names of providers, versions and keys.

mod key;
mod payload;
mod seal;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

pub use key::{SigningKey, VerifyingKey};
pub use payload::SealedSecret;
pub use seal::{seal_envelope, seal_vault};

use crate::random::RandomError;
use crate::resource::{ResourcePath, ResourcePathError};

/// How a sealed secret begins.
pub const PREFIX: &str = "sealed.";

/// Longest sealed secret taken: what Kubernetes takes for a whole Secret.
pub const MAX_SEALED: usize = 1 << 20;

/// Length of an ES256 signature (RFC 7518, section 3.4).
const SIGNATURE: usize = 64;

/// Length of the key at the broker that an envelope's key is wrapped with.
pub const KEY_BYTES: usize = 32;

/// Why a sealed secret is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealedError {
    /// Too long.
    #[error("sealed secret has {found} bytes, at most {MAX_SEALED} are taken")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// Not three parts of base64url after the prefix.
    #[error("sealed secret: expected {PREFIX}<header>.<payload>.<signature>, each base64url without padding; {what}")]
    Form {
        /// What is wrong.
        what: &'static str,
    },
    /// The header is not one of JWS, which is what the made-up headers of older instructions are not.
    #[error(
        "sealed secret: its header is not JSON with alg \"ES256\" and kid \"kbs:///…\"; unsigned secrets are not taken, sign it with `kata-cc secret seal`"
    )]
    Header,
    /// Another algorithm.
    #[error("sealed secret: expected alg \"ES256\", found another")]
    Algorithm,
    /// The header demands what is not understood.
    #[error("sealed secret: its header demands an extension (`crit`, or `b64` of false) that is not supported")]
    Critical,
    /// The key's name is not that of a resource.
    #[error("sealed secret: its kid is not a resource of the key broker (files of CoCo's `[[credentials]]` are not supported)")]
    KeyId(#[source] ResourcePathError),
    /// What is at `kid` is not a public key.
    #[error("key of sealed secrets: expected a JWK with kty \"EC\", crv \"P-256\" and, where given, alg \"ES256\" and use \"sig\"")]
    Key,
    /// What is at `kid` has its private half with it.
    #[error(
        "key of sealed secrets: the JWK has its private half (`d`), by which whoever may read it could sign; store the public half, which `kata-cc secret public-key` prints"
    )]
    PrivateKey,
    /// The private key is not one.
    #[error(
        "signing key: expected a JWK with kty \"EC\", crv \"P-256\" and d, x and y that belong to each other; make one with `kata-cc secret keygen`"
    )]
    SigningKey,
    /// Not signed by the key.
    #[error("sealed secret: its signature was not made by the key named in its kid")]
    Signature,
    /// The payload is not of the format.
    #[error("sealed secret: its payload is not the JSON of a vault or envelope secret: {what}")]
    Payload {
        /// What is wrong.
        what: &'static str,
    },
    /// Another version.
    #[error("sealed secret: expected version \"0.1.0\", found {found:?}")]
    Version {
        /// What it says, cut to 32 characters.
        found: String,
    },
    /// Another provider.
    #[error("sealed secret: provider {found:?} is not supported, expected \"kbs\"")]
    Provider {
        /// What it says, cut to 32 characters.
        found: String,
    },
    /// The resource's name is not one.
    #[error("sealed secret: its {field} is not a resource of the key broker")]
    Resource {
        /// `name` or `key_id`.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: ResourcePathError,
    },
    /// Another algorithm for wrapping.
    #[error("sealed secret: {field} is not supported, expected \"A256GCM\"")]
    WrapType {
        /// `wrap_type` or `annotations.wrap_type`.
        field: &'static str,
    },
    /// The key at the broker is not one.
    #[error("sealed secret: the key at the broker has {found} bytes, expected {KEY_BYTES}")]
    KeyLength {
        /// Its length.
        found: usize,
    },
    /// It does not open.
    #[error("sealed secret: its {what} does not open: the key is another, or it was changed")]
    Open {
        /// `encrypted_key` or `encrypted_data`.
        what: &'static str,
    },
    /// Our own message does not serialise.
    #[error("sealed secret could not be written")]
    Write,
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Whether a value is meant to be a sealed secret.
#[must_use]
pub fn is_sealed(value: &[u8]) -> bool {
    value.starts_with(PREFIX.as_bytes())
}

/// Header of the JWS. Members that are not known are refused: none of them could change what the signature means.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    #[serde(default = "yes")]
    b64: bool,
    #[serde(default)]
    crit: Vec<String>,
    #[serde(default)]
    #[expect(dead_code, reason = "says what kind of JWS it is, and changes nothing")]
    typ: Option<String>,
}

fn yes() -> bool {
    true
}

/// A sealed secret as it came. Nothing may be read from its payload except through [`UnverifiedSecret::verify`].
pub struct UnverifiedSecret {
    kid: ResourcePath,
    /// Header and payload as they stand, which is what was signed.
    signed: Box<[u8]>,
    payload: Box<[u8]>,
    signature: [u8; SIGNATURE],
}

impl UnverifiedSecret {
    /// Parses the form, up to the header.
    ///
    /// # Errors
    /// When it is too long, not of the form, or its header is not one that is supported.
    pub fn parse(text: &str) -> Result<Self, SealedError> {
        if text.len() > MAX_SEALED {
            return Err(SealedError::TooLong { found: text.len() });
        }
        let form = |what| SealedError::Form { what };
        let jws = text.strip_prefix(PREFIX).ok_or(form("it begins otherwise"))?;
        let mut parts = jws.split('.');
        let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(form("it has another number of parts"));
        };
        let signed = jws.get(..header.len() + 1 + payload.len()).ok_or(form("it has another number of parts"))?;
        // The header first: of a made-up one it is to be said that signatures are needed, and not which byte of it is no base64url.
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| SealedError::Header)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| SealedError::Header)?;
        if header.alg != "ES256" {
            return Err(SealedError::Algorithm);
        }
        if !header.b64 || header.crit.iter().any(|name| name != "b64") {
            return Err(SealedError::Critical);
        }
        let kid = ResourcePath::from_uri(&header.kid).map_err(SealedError::KeyId)?;
        let payload_bytes = URL_SAFE_NO_PAD.decode(payload).map_err(|_| form("its payload is not base64url"))?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| form("its signature is not base64url"))?;
        let signature = signature.try_into().map_err(|_| form("its signature has another length than 64 bytes"))?;
        Ok(Self { kid, signed: signed.as_bytes().into(), payload: payload_bytes.into(), signature })
    }

    /// Where the public key is that it says it was signed with.
    #[must_use]
    pub fn kid(&self) -> &ResourcePath {
        &self.kid
    }

    /// Verifies the signature, and only then reads what was signed.
    ///
    /// # Errors
    /// When the key did not sign it, or the payload is not of the format.
    pub fn verify(self, key: &VerifyingKey) -> Result<SealedSecret, SealedError> {
        if !key.verifies(&self.signed, &self.signature) {
            return Err(SealedError::Signature);
        }
        SealedSecret::from_payload(&self.payload)
    }
}

impl fmt::Debug for UnverifiedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnverifiedSecret(kid {}, rest redacted)", self.kid)
    }
}

#[cfg(test)]
mod tests;
