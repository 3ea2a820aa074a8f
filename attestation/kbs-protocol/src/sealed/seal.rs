//! Making sealed secrets, on the owner's workstation.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::aead::{Aad, Nonce};
use serde_json::{Map, json};
use zeroize::Zeroizing;

use super::payload::{Kind, NONCE, PROVIDER, Payload, VERSION, WRAP_TYPE, gcm};
use super::{KEY_BYTES, MAX_SEALED, PREFIX, SealedError, SigningKey};
use crate::random;
use crate::resource::ResourcePath;

/// A pointer to a secret that is at the broker.
///
/// # Errors
/// When there is no randomness.
pub fn seal_vault(name: &ResourcePath, kid: &ResourcePath, key: &SigningKey) -> Result<String, SealedError> {
    sign(&Payload { name: Some(name.to_uri()), ..empty(Kind::Vault) }, kid, key)
}

/// A secret, encrypted under a key of [`KEY_BYTES`] bytes that is at the broker as `key_id`.
///
/// # Errors
/// When the key has another length, the secret is too long to be carried, or there is no randomness.
pub fn seal_envelope(
    secret: &[u8],
    wrapping_key: &[u8],
    key_id: &ResourcePath,
    kid: &ResourcePath,
    key: &SigningKey,
) -> Result<String, SealedError> {
    let data_key = Zeroizing::new(random::array::<KEY_BYTES>()?);
    let (key_iv, encrypted_key) = wrap(wrapping_key, data_key.as_slice())?;
    let (iv, encrypted_data) = wrap(data_key.as_slice(), secret)?;
    let mut annotations = Map::new();
    annotations.insert("iv".into(), STANDARD.encode(key_iv).into());
    annotations.insert("wrap_type".into(), WRAP_TYPE.into());
    let payload = Payload {
        key_id: Some(key_id.to_uri()),
        encrypted_key: Some(STANDARD.encode(encrypted_key)),
        encrypted_data: Some(STANDARD.encode(encrypted_data)),
        wrap_type: Some(WRAP_TYPE.into()),
        iv: Some(STANDARD.encode(iv)),
        annotations,
        ..empty(Kind::Envelope)
    };
    sign(&payload, kid, key)
}

fn empty(kind: Kind) -> Payload {
    Payload {
        version: VERSION.into(),
        kind,
        name: None,
        key_id: None,
        encrypted_key: None,
        encrypted_data: None,
        wrap_type: None,
        iv: None,
        provider: PROVIDER.into(),
        provider_settings: Map::new(),
        annotations: Map::new(),
    }
}

fn wrap(key: &[u8], plain: &[u8]) -> Result<([u8; NONCE], Vec<u8>), SealedError> {
    let iv = random::array::<NONCE>()?;
    let cipher = gcm(key)?;
    // Encrypted where it lies, and only then given away.
    let mut bytes = Zeroizing::new(Vec::with_capacity(plain.len() + cipher.algorithm().tag_len()));
    bytes.extend_from_slice(plain);
    cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut *bytes).map_err(|_| SealedError::Write)?;
    Ok((iv, std::mem::take(&mut *bytes)))
}

fn sign(payload: &Payload, kid: &ResourcePath, key: &SigningKey) -> Result<String, SealedError> {
    let header = json!({ "alg": "ES256", "kid": kid.to_uri() });
    let payload = serde_json::to_vec(payload).map_err(|_| SealedError::Write)?;
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(payload));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())?);
    let text = format!("{PREFIX}{signed}.{signature}");
    if text.len() > MAX_SEALED {
        return Err(SealedError::TooLong { found: text.len() });
    }
    Ok(text)
}
