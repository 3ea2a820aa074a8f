//! Public keys of administrators and identity providers, each with the one algorithm it is used with (RFC 7517, RFC 7518, RFC 8037).
//!
//! **Invariant:** the algorithm belongs to the key, never to the token: a token that names another one is not looked at.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};

/// Most keys in one JWK set.
const MAX_KEYS: usize = 64;
/// Modulus lengths that are taken, in bytes: 2048 to 8192 bits.
const RSA_MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;
const ID_EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ID_ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Signature algorithms that are known (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// ECDSA on P-384 with SHA-384.
    #[serde(rename = "ES384")]
    Es384,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// RSASSA-PSS with SHA-256.
    #[serde(rename = "PS256")]
    Ps256,
}

impl Algorithm {
    /// As in the `alg` of a token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
        }
    }

    fn is_rsa(self) -> bool {
        matches!(self, Self::Rs256 | Self::Ps256)
    }
}

/// Why a file gives no key. The file is named by whoever read it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a public key in PEM.
    #[error("expected one public key in PEM (-----BEGIN PUBLIC KEY-----)")]
    Pem,
    /// Not a JWK set.
    #[error("expected a JWK set, {{\"keys\": [...]}}, with at most {MAX_KEYS} keys")]
    Set,
    /// No key for signatures in it.
    #[error("the JWK set has no key that signatures could be verified with")]
    Empty,
    /// A key of a kind that is not known.
    #[error("key {name}: expected Ed25519, P-256, P-384 or RSA with 2048 to 8192 bits, found {found}")]
    Kind {
        /// Its `kid` or place.
        name: String,
        /// What it says it is.
        found: String,
    },
    /// An RSA key that does not say how it signs.
    #[error("key {name} is RSA and names no algorithm: give `algorithm = \"RS256\"` or \"PS256\" with the identity provider")]
    NoAlgorithm {
        /// Its `kid` or place.
        name: String,
    },
    /// A key that says another algorithm than its kind allows, or than was configured.
    #[error("key {name} is for {kind}, but {given} was given")]
    Mismatch {
        /// Its `kid` or place.
        name: String,
        /// What the key is for.
        kind: &'static str,
        /// What was said.
        given: String,
    },
}

/// A public key and the algorithm it is used with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    algorithm: Algorithm,
    kid: Option<String>,
    material: Material,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    /// What `ring` takes: an Ed25519 key, an uncompressed point, or a PKCS#1 RSAPublicKey.
    Encoded(Vec<u8>),
    /// RSA as a JWK has it.
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

impl VerifyingKey {
    /// An Ed25519 key.
    pub fn ed25519(key: [u8; 32]) -> Self {
        Self { algorithm: Algorithm::EdDsa, kid: None, material: Material::Encoded(key.to_vec()) }
    }

    /// Reads a SubjectPublicKeyInfo in PEM. `algorithm` is needed for RSA, and compared for the others.
    pub fn from_pem(pem: &str, algorithm: Option<Algorithm>) -> Result<Self, KeyError> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| KeyError::Pem)?;
        let info = SubjectPublicKeyInfoRef::try_from(der.as_ref()).map_err(|_| KeyError::Pem)?;
        let key = info.subject_public_key.as_bytes().ok_or(KeyError::Pem)?;
        let name = || "in PEM".to_owned();
        let kind = match (info.algorithm.oid, info.algorithm.parameters_oid().ok()) {
            (ID_ED25519, _) if key.len() == 32 => Algorithm::EdDsa,
            (ID_EC, Some(P256)) if is_point(key, 32) => Algorithm::Es256,
            (ID_EC, Some(P384)) if is_point(key, 48) => Algorithm::Es384,
            (RSA, _) => algorithm.filter(|a| a.is_rsa()).ok_or_else(|| KeyError::NoAlgorithm { name: name() })?,
            (oid, _) => return Err(KeyError::Kind { name: name(), found: oid.to_string() }),
        };
        same(&name(), kind, algorithm.map(Algorithm::as_str))?;
        Ok(Self { algorithm: kind, kid: None, material: Material::Encoded(key.to_vec()) })
    }

    /// Its `kid`, if it came from a JWK set that gave one.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The algorithm it is used with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key itself where it is not RSA of a JWK set: of Ed25519 the 32 bytes.
    pub(super) fn encoded(&self) -> &[u8] {
        match &self.material {
            Material::Encoded(key) => key,
            Material::Rsa { .. } => &[],
        }
    }

    /// Whether this key made the signature, by its own algorithm.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let rsa = if self.algorithm == Algorithm::Ps256 { &RSA_PSS_2048_8192_SHA256 } else { &RSA_PKCS1_2048_8192_SHA256 };
        match &self.material {
            Material::Rsa { n, e } => RsaPublicKeyComponents { n, e }.verify(rsa, message, signature).is_ok(),
            Material::Encoded(key) => {
                let by: &dyn ring::signature::VerificationAlgorithm = match self.algorithm {
                    Algorithm::EdDsa => &ED25519,
                    Algorithm::Es256 => &ECDSA_P256_SHA256_FIXED,
                    Algorithm::Es384 => &ECDSA_P384_SHA384_FIXED,
                    Algorithm::Rs256 | Algorithm::Ps256 => rsa,
                };
                UnparsedPublicKey::new(by, key).verify(message, signature).is_ok()
            }
        }
    }
}

fn is_point(key: &[u8], coordinate: usize) -> bool {
    key.first() == Some(&4) && key.len() == 1 + 2 * coordinate
}

fn same(name: &str, kind: Algorithm, given: Option<&str>) -> Result<(), KeyError> {
    match given {
        Some(given) if given != kind.as_str() => {
            Err(KeyError::Mismatch { name: name.into(), kind: kind.as_str(), given: given.chars().take(32).collect() })
        }
        _ => Ok(()),
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

/// Reads a JWK set. Keys for encryption are passed over; every other one must be of a kind that is known, so that a set is not
/// half of what its owner believes. `fallback` is the algorithm of RSA keys that name none.
pub fn jwk_set(json: &str, fallback: Option<Algorithm>) -> Result<Vec<VerifyingKey>, KeyError> {
    let set: Set = serde_json::from_str(json).map_err(|_| KeyError::Set)?;
    if set.keys.len() > MAX_KEYS {
        return Err(KeyError::Set);
    }
    let for_signatures = set.keys.into_iter().enumerate().filter(|(_, key)| key.usage.as_deref().is_none_or(|usage| usage == "sig"));
    let keys = for_signatures.map(|(place, key)| of_jwk(place, key, fallback)).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err(KeyError::Empty) } else { Ok(keys) }
}

fn of_jwk(place: usize, jwk: Jwk, fallback: Option<Algorithm>) -> Result<VerifyingKey, KeyError> {
    let name = jwk.kid.as_deref().map_or_else(|| format!("number {}", place + 1), |kid| kid.chars().take(64).collect());
    let found = || format!("kty {:?}, crv {:?}", jwk.kty, jwk.crv.as_deref().unwrap_or("none"));
    let malformed = || KeyError::Kind { name: name.clone(), found: found() };
    let bytes = |text: &Option<String>| text.as_ref().and_then(|t| URL_SAFE_NO_PAD.decode(t).ok()).ok_or_else(malformed);
    let point = |coordinate: usize| {
        let point = [&[4u8][..], &bytes(&jwk.x)?, &bytes(&jwk.y)?].concat();
        if is_point(&point, coordinate) { Ok(Material::Encoded(point)) } else { Err(malformed()) }
    };
    let (algorithm, material) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("OKP", Some("Ed25519")) => {
            let key = bytes(&jwk.x)?;
            if key.len() != 32 {
                return Err(malformed());
            }
            (Algorithm::EdDsa, Material::Encoded(key))
        }
        ("EC", Some("P-256")) => (Algorithm::Es256, point(32)?),
        ("EC", Some("P-384")) => (Algorithm::Es384, point(48)?),
        ("RSA", _) => {
            let given = match jwk.alg.as_deref() {
                None => fallback.filter(|a| a.is_rsa()),
                Some("RS256") => Some(Algorithm::Rs256),
                Some("PS256") => Some(Algorithm::Ps256),
                Some(other) => return Err(KeyError::Mismatch { name, kind: "RS256 or PS256", given: other.chars().take(32).collect() }),
            };
            let algorithm = given.ok_or_else(|| KeyError::NoAlgorithm { name: name.clone() })?;
            let (n, e) = (bytes(&jwk.n)?, bytes(&jwk.e)?);
            if !RSA_MODULUS.contains(&n.len()) {
                return Err(malformed());
            }
            (algorithm, Material::Rsa { n, e })
        }
        _ => return Err(malformed()),
    };
    same(&name, algorithm, jwk.alg.as_deref())?;
    Ok(VerifyingKey { algorithm, kid: jwk.kid.clone(), material })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ed25519() -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode([7; 32])})
    }

    fn rsa() -> Value {
        json!({"kty": "RSA", "alg": "RS256", "n": URL_SAFE_NO_PAD.encode([0xc1; 256]), "e": "AQAB"})
    }

    fn read(keys: Value) -> Result<Vec<VerifyingKey>, KeyError> {
        jwk_set(&json!({ "keys": keys }).to_string(), None)
    }

    #[test]
    fn a_set_gives_each_key_its_one_algorithm() {
        let p256 =
            json!({"kty": "EC", "crv": "P-256", "kid": "a", "x": URL_SAFE_NO_PAD.encode([1; 32]), "y": URL_SAFE_NO_PAD.encode([2; 32])});
        let p384 = json!({"kty": "EC", "crv": "P-384", "x": URL_SAFE_NO_PAD.encode([1; 48]), "y": URL_SAFE_NO_PAD.encode([2; 48])});
        let mut pss = rsa();
        pss["alg"] = json!("PS256");
        let keys = read(json!([ed25519(), p256, p384, rsa(), pss])).unwrap();
        let algorithms: Vec<_> = keys.iter().map(VerifyingKey::algorithm).collect();
        assert_eq!(algorithms, [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Es384, Algorithm::Rs256, Algorithm::Ps256]);
        assert_eq!(keys[1].kid(), Some("a"));
    }

    #[test]
    fn keys_for_encryption_are_passed_over_and_a_set_of_nothing_else_is_refused() {
        let mut encryption = ed25519();
        encryption["use"] = json!("enc");
        assert_eq!(read(json!([encryption.clone(), ed25519()])).unwrap().len(), 1);
        assert_eq!(read(json!([encryption])), Err(KeyError::Empty));
        assert_eq!(read(json!([])), Err(KeyError::Empty));
    }

    #[test]
    fn refuses_what_is_not_exactly_a_key_it_knows() {
        let with = |mut key: Value, name: &str, value: Value| {
            key[name] = value;
            read(json!([key])).unwrap_err()
        };
        assert!(matches!(with(ed25519(), "x", json!("AA")), KeyError::Kind { .. }));
        assert!(matches!(with(ed25519(), "crv", json!("Ed448")), KeyError::Kind { .. }));
        assert!(matches!(with(ed25519(), "kty", json!("oct")), KeyError::Kind { .. }));
        assert!(matches!(with(ed25519(), "alg", json!("ES256")), KeyError::Mismatch { .. }));
        assert!(matches!(with(rsa(), "alg", json!("HS256")), KeyError::Mismatch { .. }));
        assert!(matches!(with(rsa(), "alg", Value::Null), KeyError::NoAlgorithm { .. }));
        assert!(matches!(with(rsa(), "n", json!(URL_SAFE_NO_PAD.encode([1; 128]))), KeyError::Kind { .. }));
        assert_eq!(jwk_set("[]", None), Err(KeyError::Set));
        assert_eq!(jwk_set(&json!({"keys": vec![ed25519(); MAX_KEYS + 1]}).to_string(), None), Err(KeyError::Set));
    }

    #[test]
    fn an_rsa_key_without_alg_takes_the_providers_algorithm() {
        let mut key = rsa();
        key["alg"] = Value::Null;
        let set = json!({"keys": [key]}).to_string();
        assert_eq!(jwk_set(&set, Some(Algorithm::Ps256)).unwrap()[0].algorithm(), Algorithm::Ps256);
        assert!(matches!(jwk_set(&set, Some(Algorithm::Es256)), Err(KeyError::NoAlgorithm { .. })));
    }
}
