//! Which platforms are trusted: by their keys, in the form of CoCo's and Veraison's trust-anchor store.

use super::error::CcaError;
use super::signed::Point;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// A platform and its attestation key (CPAK).
#[derive(Clone, Debug)]
pub(super) struct Anchor {
    pub(super) implementation_id: [u8; 32],
    pub(super) instance_id: [u8; 33],
    pub(super) key: Point,
}

/// What is trusted of CCA. No maker's root exists, so each machine is named.
#[derive(Clone, Debug, Default)]
pub struct CcaTrust {
    pub(super) anchors: Vec<Anchor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Wire {
    pkey: Jwk,
    implementation_id: String,
    instance_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

impl CcaTrust {
    /// Most platforms of one store.
    const MAX: usize = 4096;

    /// From a trust-anchor store: a JSON array of `{"implementation-id":"<hex>","instance-id":"<hex>","pkey":{a JWK of P-384}}`.
    ///
    /// # Errors
    /// When it is none, a platform is there twice, or there are too many.
    pub fn from_store(json: &[u8]) -> Result<Self, CcaError> {
        let refused = |reason: String| CcaError::Anchor { reason };
        let store: Vec<Wire> = serde_json::from_slice(json).map_err(|error| refused(format!("not a store: {error}")))?;
        if store.len() > Self::MAX {
            return Err(refused(format!("{} platforms, at most {} are accepted", store.len(), Self::MAX)));
        }
        let mut anchors: Vec<Anchor> = Vec::with_capacity(store.len());
        for wire in &store {
            let anchor = Anchor::of(wire)?;
            if anchors.iter().any(|known| known.instance_id == anchor.instance_id) {
                return Err(refused(format!("the instance {} is there twice", wire.instance_id)));
            }
            anchors.push(anchor);
        }
        Ok(Self { anchors })
    }

    /// Whether no platform is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }
}

impl Anchor {
    fn of(wire: &Wire) -> Result<Self, CcaError> {
        let refused = |what: &str| CcaError::Anchor { reason: format!("{what} of the instance {:.66}", wire.instance_id) };
        if wire.pkey.kty != "EC" || wire.pkey.crv != "P-384" {
            return Err(refused("a key that is not of P-384,"));
        }
        let number = |text: &str| URL_SAFE_NO_PAD.decode(text).ok().filter(|number| number.len() == 48);
        let (x, y) = number(&wire.pkey.x).zip(number(&wire.pkey.y)).ok_or_else(|| refused("coordinates that are not 48 bytes,"))?;
        Ok(Self {
            implementation_id: bytes(&wire.implementation_id).ok_or_else(|| refused("an implementation id that is not 32 bytes,"))?,
            instance_id: bytes(&wire.instance_id).ok_or_else(|| refused("an id that is not 33 bytes,"))?,
            key: [[4].as_slice(), &x, &y].concat().try_into().map_err(|_| refused("a key of another size,"))?,
        })
    }
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    hex::decode(text).ok()?.try_into().ok()
}
