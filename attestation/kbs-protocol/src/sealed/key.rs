//! Keys of sealed secrets: P-256 as JWK (RFC 7517, RFC 7518 section 6.2), the form CoCo's tool takes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::SecretKey;
use p256::elliptic_curve::sec1::ToEncodedPoint;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use zeroize::Zeroizing;

use super::SealedError;
use crate::jwk::{coordinates, point_from_coordinates};
use crate::random::{self, RandomError};

/// A JWK as it is stored. Members that say what the key is called or may be used for beside signing are of no account here.
#[derive(Deserialize)]
struct Stored {
    kty: String,
    crv: String,
    x: String,
    y: String,
    #[serde(default, deserialize_with = "wiped")]
    d: Option<Zeroizing<String>>,
    alg: Option<String>,
    #[serde(rename = "use")]
    key_use: Option<String>,
}

fn wiped<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Zeroizing::new))
}

impl Stored {
    fn parse(json: &[u8]) -> Option<Self> {
        let jwk: Self = serde_json::from_slice(json).ok()?;
        let is = |found: &Option<String>, expected: &str| found.as_deref().is_none_or(|found| found == expected);
        (jwk.kty == "EC" && jwk.crv == "P-256" && is(&jwk.alg, "ES256") && is(&jwk.key_use, "sig")).then_some(jwk)
    }
}

/// A public key that sealed secrets are verified with.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey(Box<[u8]>);

impl VerifyingKey {
    /// Reads a JWK, as the broker keeps it.
    ///
    /// # Errors
    /// When it is no P-256 key for ES256, or has its private half with it.
    pub fn from_jwk(json: &[u8]) -> Result<Self, SealedError> {
        let jwk = Stored::parse(json).ok_or(SealedError::Key)?;
        if jwk.d.is_some() {
            return Err(SealedError::PrivateKey);
        }
        let point = point_from_coordinates(&jwk.x, &jwk.y).ok_or(SealedError::Key)?;
        Ok(Self(point.to_encoded_point(false).as_bytes().into()))
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifyingKey(P-256)")
    }
}

/// A private key that sealed secrets are signed with. It belongs on the owner's workstation and nowhere else.
pub struct SigningKey {
    secret: SecretKey,
    pair: EcdsaKeyPair,
}

impl SigningKey {
    /// Makes a fresh key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, SealedError> {
        loop {
            let scalar = Zeroizing::new(random::array::<32>()?);
            // Zero and values beyond the group order are refused: less than one in 2^32 draws.
            if let Ok(secret) = SecretKey::from_slice(scalar.as_slice()) {
                return Self::of(secret);
            }
        }
    }

    /// Reads a JWK with its private half.
    ///
    /// # Errors
    /// When it is none, or its halves do not belong to each other.
    pub fn from_jwk(json: &[u8]) -> Result<Self, SealedError> {
        let jwk = Stored::parse(json).ok_or(SealedError::SigningKey)?;
        let scalar = jwk.d.as_ref().and_then(|d| URL_SAFE_NO_PAD.decode(d.as_str()).ok()).map(Zeroizing::new);
        // The library would also take shorter scalars and pad them: a cut-off key file must not become another key.
        let secret = scalar
            .filter(|scalar| scalar.len() == 32)
            .and_then(|scalar| SecretKey::from_slice(&scalar).ok())
            .filter(|secret| coordinates(&secret.public_key()) == (jwk.x.clone(), jwk.y.clone()));
        Self::of(secret.ok_or(SealedError::SigningKey)?)
    }

    fn of(secret: SecretKey) -> Result<Self, SealedError> {
        let point = secret.public_key().to_encoded_point(false);
        let scalar = Zeroizing::new(secret.to_bytes());
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &scalar, point.as_bytes(), &SystemRandom::new())
            .map_err(|_| SealedError::SigningKey)?;
        Ok(Self { secret, pair })
    }

    /// The JWK with its private half, for a file that nobody else reads.
    #[must_use]
    pub fn to_jwk(&self) -> Zeroizing<String> {
        let (x, y) = coordinates(&self.secret.public_key());
        let d = Zeroizing::new(URL_SAFE_NO_PAD.encode(Zeroizing::new(self.secret.to_bytes()).as_slice()));
        let d = d.as_str();
        Zeroizing::new(format!(r#"{{"alg":"ES256","crv":"P-256","d":"{d}","kty":"EC","use":"sig","x":"{x}","y":"{y}"}}"#))
    }

    /// The JWK without it, for the broker.
    #[must_use]
    pub fn public_jwk(&self) -> String {
        let (x, y) = coordinates(&self.secret.public_key());
        json!({ "alg": "ES256", "crv": "P-256", "kty": "EC", "use": "sig", "x": x, "y": y }).to_string()
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RandomError> {
        let signature = self.pair.sign(&SystemRandom::new(), message).map_err(|_| RandomError)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(redacted)")
    }
}
