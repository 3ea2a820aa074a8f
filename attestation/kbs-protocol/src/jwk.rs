//! The guest's ephemeral key pair and its public half as JWK (RFC 7517, RFC 7518 section 6.2).
//!
//! One curve, P-256, and one use, `ECDH-ES+A256KW`: the strongest the protocol has that every counterpart can do.

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

/// Why a JWK is not a key this side can encrypt to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// Another kind of key, curve or algorithm.
    #[error("tee-pubkey must have kty \"EC\", crv \"P-256\" and alg \"{ALGORITHM}\"")]
    Unsupported,
    /// Coordinates are not a point of the curve.
    #[error("tee-pubkey: x and y are not the base64url coordinates of a point on P-256")]
    NotOnCurve,
}

/// An EC public key in JWK form, as sent in `tee-pubkey`. Unchecked until [`TeePublicKey::try_from`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwk {
    /// Key type.
    pub kty: String,
    /// Curve.
    pub crv: String,
    /// Algorithm it is meant for.
    pub alg: String,
    /// X, base64url.
    pub x: String,
    /// Y, base64url.
    pub y: String,
}

/// Public half of a guest's key: a point known to be on the curve.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TeePublicKey(PublicKey);

impl TeePublicKey {
    pub(crate) fn point(&self) -> &PublicKey {
        &self.0
    }

    /// Uncompressed point (SEC 1, section 2.3.3).
    pub(crate) fn to_point(self) -> EncodedPoint {
        self.0.to_encoded_point(false)
    }

    /// JWK form.
    #[must_use]
    pub fn to_jwk(&self) -> Jwk {
        let (x, y) = coordinates(&self.0);
        Jwk { kty: "EC".into(), crv: "P-256".into(), alg: ALGORITHM.into(), x, y }
    }
}

impl TryFrom<&Jwk> for TeePublicKey {
    type Error = JwkError;

    fn try_from(jwk: &Jwk) -> Result<Self, JwkError> {
        if jwk.kty != "EC" || jwk.crv != "P-256" || jwk.alg != ALGORITHM {
            return Err(JwkError::Unsupported);
        }
        point_from_coordinates(&jwk.x, &jwk.y).map(Self).ok_or(JwkError::NotOnCurve)
    }
}

impl fmt::Debug for TeePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TeePublicKey({:?})", self.to_jwk())
    }
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

    /// Public half.
    #[must_use]
    pub fn public(&self) -> TeePublicKey {
        TeePublicKey(self.0.public_key())
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
    fn public_key_round_trips_through_jwk() {
        let public = TeeKey::generate().expect("random").public();
        assert_eq!(TeePublicKey::try_from(&public.to_jwk()), Ok(public));
    }

    #[test]
    fn refuses_other_keys_and_points_off_the_curve() {
        let good = TeeKey::generate().expect("random").public().to_jwk();
        for bad in [
            Jwk { kty: "RSA".into(), ..good.clone() },
            Jwk { crv: "P-521".into(), ..good.clone() },
            Jwk { alg: "ECDH-ES".into(), ..good.clone() },
        ] {
            assert_eq!(TeePublicKey::try_from(&bad), Err(JwkError::Unsupported));
        }
        for bad in [
            Jwk { x: good.y.clone(), ..good.clone() },
            Jwk { x: String::new(), ..good.clone() },
            Jwk { y: "A".repeat(43), ..good.clone() },
            Jwk { y: "=".into(), ..good.clone() },
        ] {
            assert_eq!(TeePublicKey::try_from(&bad), Err(JwkError::NotOnCurve));
        }
    }

    #[test]
    fn private_key_is_not_printed() {
        let key = TeeKey::generate().expect("random");
        let secret = hex::encode(key.secret().to_bytes());
        assert!(!format!("{key:?}").contains(&secret));
    }
}
