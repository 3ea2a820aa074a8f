//! The guest's ephemeral key pair, and public keys as JWK (RFC 7517, RFC 7518 section 6).
//!
//! Our guest has one curve, P-256, and one use, `ECDH-ES+A256KW`: the strongest the protocol has that every counterpart can do. What else a broker
//! encrypts to is in `recipient`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::elliptic_curve::sec1::{FromEncodedPoint, ToEncodedPoint};
use p256::{EncodedPoint, PublicKey, SecretKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::random::{self, RandomError};

/// The key agreement the protocol uses with EC keys.
pub const ALGORITHM: &str = "ECDH-ES+A256KW";
/// The curve of our keys.
pub(crate) const P_256: &str = "P-256";

/// A public key in JWK form, as sent in `tee-pubkey`. Unchecked until it becomes a `TeePublicKey`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kty", deny_unknown_fields)]
pub enum Jwk {
    /// A point on an elliptic curve.
    #[serde(rename = "EC")]
    Ec {
        /// Curve.
        crv: String,
        /// Algorithm it is meant for.
        alg: String,
        /// X, base64url.
        x: String,
        /// Y, base64url.
        y: String,
    },
    /// An RSA key.
    #[serde(rename = "RSA")]
    Rsa {
        /// Algorithm it is meant for.
        alg: String,
        /// Modulus, base64url.
        n: String,
        /// Exponent, base64url.
        e: String,
    },
}

/// The guest's private key. It never leaves the process; its public half is bound into evidence.
pub struct TeeKey(SecretKey);

impl TeeKey {
    /// Makes a fresh key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, RandomError> {
        loop {
            let scalar = Zeroizing::new(random::array::<32>()?);
            // Zero and values beyond the group order are refused: less than one in 2^32 draws.
            if let Ok(key) = SecretKey::from_slice(scalar.as_slice()) {
                return Ok(Self(key));
            }
        }
    }

    pub(crate) fn secret(&self) -> &SecretKey {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn from_secret(secret: SecretKey) -> Self {
        Self(secret)
    }

    /// Public half, in JWK form.
    #[must_use]
    pub fn to_jwk(&self) -> Jwk {
        let (x, y) = coordinates(&self.0.public_key());
        Jwk::Ec { crv: P_256.into(), alg: ALGORITHM.into(), x, y }
    }
}

impl fmt::Debug for TeeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TeeKey(redacted)")
    }
}

/// Base64url coordinates of a point.
pub(crate) fn coordinates(key: &PublicKey) -> (String, String) {
    let point = key.to_encoded_point(false);
    let encode = |part: Option<&p256::FieldBytes>| URL_SAFE_NO_PAD.encode(part.map(|bytes| bytes.as_slice()).unwrap_or_default());
    (encode(point.x()), encode(point.y()))
}

/// The point with these base64url coordinates, when it is one.
pub(crate) fn point_from_coordinates(x: &str, y: &str) -> Option<PublicKey> {
    let decode = |text: &str| -> Option<[u8; 32]> { URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok() };
    let point = EncodedPoint::from_affine_coordinates(&decode(x)?.into(), &decode(y)?.into(), false);
    Option::from(PublicKey::from_encoded_point(&point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_key_is_the_point_of_the_private_one() {
        let key = TeeKey::generate().expect("random");
        let Jwk::Ec { crv, x, y, .. } = key.to_jwk() else { panic!("an EC key") };
        assert_eq!((crv.as_str(), point_from_coordinates(&x, &y)), (P_256, Some(key.secret().public_key())));
    }

    #[test]
    fn both_kinds_of_keys_are_told_apart_and_others_refused() {
        let parse = |text: &str| serde_json::from_str::<Jwk>(text);
        let ec = r#"{"kty":"EC","crv":"P-521","alg":"a","x":"x","y":"y"}"#;
        assert!(matches!(parse(ec), Ok(Jwk::Ec { .. })));
        assert_eq!(
            serde_json::to_string(&parse(ec).expect("parses")).expect("serialises"),
            ec,
            "what a digest is over comes back as it was"
        );
        assert!(matches!(parse(r#"{"kty":"RSA","alg":"a","n":"n","e":"e"}"#), Ok(Jwk::Rsa { .. })));
        for bad in [
            r#"{"kty":"oct","k":"k"}"#,
            r#"{"crv":"P-256","alg":"a","x":"x","y":"y"}"#,
            r#"{"kty":"EC","crv":"P-256","alg":"a","x":"x"}"#,
            r#"{"kty":"EC","crv":"P-256","alg":"a","x":"x","y":"y","d":"d"}"#,
            r#"{"kty":"RSA","alg":"a","n":"n","e":"e","crv":"P-256"}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn private_key_is_not_printed() {
        let key = TeeKey::generate().expect("random");
        let secret = hex::encode(key.secret().to_bytes());
        assert!(!format!("{key:?}").contains(&secret));
    }
}
