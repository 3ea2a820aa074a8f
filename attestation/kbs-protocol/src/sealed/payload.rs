//! What is in a sealed secret, once its signature was verified.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{KEY_BYTES, SealedError};
use crate::resource::ResourcePath;
use crate::secret::SecretBytes;

/// Version of the format.
pub(super) const VERSION: &str = "0.1.0";

/// The one provider.
pub(super) const PROVIDER: &str = "kbs";

/// The one algorithm.
pub(super) const WRAP_TYPE: &str = "A256GCM";

/// Length of a nonce of AES-GCM.
pub(super) const NONCE: usize = 12;

/// The JSON of both kinds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Payload {
    pub(super) version: String,
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) encrypted_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) encrypted_data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) wrap_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) iv: Option<String>,
    pub(super) provider: String,
    pub(super) provider_settings: Map<String, Value>,
    #[serde(default)]
    pub(super) annotations: Map<String, Value>,
}

/// Which of the two it is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Vault,
    Envelope,
}

/// A sealed secret that its owner signed.
pub struct SealedSecret(Content);

enum Content {
    Vault { name: ResourcePath },
    Envelope(Box<Envelope>),
}

struct Envelope {
    key_id: ResourcePath,
    encrypted_key: Vec<u8>,
    key_iv: [u8; NONCE],
    encrypted_data: Vec<u8>,
    iv: [u8; NONCE],
}

fn short(text: &str) -> String {
    text.chars().take(32).collect()
}

fn payload(what: &'static str) -> SealedError {
    SealedError::Payload { what }
}

fn resource(field: &'static str, uri: Option<String>) -> Result<ResourcePath, SealedError> {
    let uri = uri.ok_or(payload("the name of its resource is missing"))?;
    ResourcePath::from_uri(&uri).map_err(|source| SealedError::Resource { field, source })
}

fn base64(text: Option<&str>) -> Result<Vec<u8>, SealedError> {
    STANDARD.decode(text.ok_or(payload("a field of an envelope is missing"))?).map_err(|_| payload("a field is not base64"))
}

fn nonce(text: Option<&str>) -> Result<[u8; NONCE], SealedError> {
    base64(text)?.try_into().map_err(|_| payload("an iv has another length than 12 bytes"))
}

impl SealedSecret {
    pub(super) fn from_payload(json: &[u8]) -> Result<Self, SealedError> {
        let found: Payload = serde_json::from_slice(json).map_err(|_| payload("a field is missing, not known, or of another type"))?;
        if found.version != VERSION {
            return Err(SealedError::Version { found: short(&found.version) });
        }
        if found.provider != PROVIDER {
            return Err(SealedError::Provider { found: short(&found.provider) });
        }
        if !found.provider_settings.is_empty() {
            return Err(payload("provider_settings: the provider \"kbs\" has none"));
        }
        match found.kind {
            Kind::Vault => {
                let of_envelopes = [&found.key_id, &found.encrypted_key, &found.encrypted_data, &found.wrap_type, &found.iv];
                if of_envelopes.into_iter().any(Option::is_some) || !found.annotations.is_empty() {
                    return Err(payload("a vault secret of the provider \"kbs\" has a name and nothing else"));
                }
                Ok(Self(Content::Vault { name: resource("name", found.name)? }))
            }
            Kind::Envelope => {
                if found.name.is_some() {
                    return Err(payload("an envelope has a key_id and no name"));
                }
                let annotation = |name| found.annotations.get(name).and_then(Value::as_str);
                if found.annotations.keys().any(|name| !matches!(name.as_str(), "iv" | "wrap_type")) {
                    return Err(payload("annotations: expected iv and wrap_type"));
                }
                if found.wrap_type.as_deref() != Some(WRAP_TYPE) {
                    return Err(SealedError::WrapType { field: "wrap_type" });
                }
                if annotation("wrap_type") != Some(WRAP_TYPE) {
                    return Err(SealedError::WrapType { field: "annotations.wrap_type" });
                }
                Ok(Self(Content::Envelope(Box::new(Envelope {
                    encrypted_key: base64(found.encrypted_key.as_deref())?,
                    key_iv: nonce(annotation("iv"))?,
                    encrypted_data: base64(found.encrypted_data.as_deref())?,
                    iv: nonce(found.iv.as_deref())?,
                    key_id: resource("key_id", found.key_id)?,
                }))))
            }
        }
    }

    /// `vault` or `envelope`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.0 {
            Content::Vault { .. } => "vault",
            Content::Envelope(_) => "envelope",
        }
    }

    /// What is needed from the broker to open it: the secret itself, or the key of the envelope.
    #[must_use]
    pub fn resource(&self) -> &ResourcePath {
        match &self.0 {
            Content::Vault { name } => name,
            Content::Envelope(envelope) => &envelope.key_id,
        }
    }

    /// Opens it with what [`Self::resource`] names.
    ///
    /// # Errors
    /// When the envelope's key is no key, or does not fit.
    pub fn open(self, resource: SecretBytes) -> Result<SecretBytes, SealedError> {
        let envelope = match self.0 {
            Content::Vault { .. } => return Ok(resource),
            Content::Envelope(envelope) => envelope,
        };
        let key = unwrap(resource.expose(), envelope.key_iv, envelope.encrypted_key, "encrypted_key")?;
        Ok(unwrap(&key, envelope.iv, envelope.encrypted_data, "encrypted_data")?.into())
    }
}

/// AES-256-GCM, tag at the end, no further data.
fn unwrap(key: &[u8], iv: [u8; NONCE], sealed: Vec<u8>, what: &'static str) -> Result<Zeroizing<Vec<u8>>, SealedError> {
    let mut sealed = Zeroizing::new(sealed);
    let opened = gcm(key)?
        .open_in_place(Nonce::assume_unique_for_key(iv), Aad::empty(), sealed.as_mut_slice())
        .map(|opened| opened.len())
        .map_err(|_| SealedError::Open { what })?;
    sealed.truncate(opened);
    Ok(sealed)
}

/// The cipher under a key.
pub(super) fn gcm(key: &[u8]) -> Result<LessSafeKey, SealedError> {
    // The length is checked by the library too; here for the message.
    let error = SealedError::KeyLength { found: key.len() };
    if key.len() != KEY_BYTES {
        return Err(error);
    }
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| error)
}

impl fmt::Debug for SealedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedSecret({} by {})", self.kind(), self.resource())
    }
}
