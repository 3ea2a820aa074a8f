//! The keys a broker encrypts resources to: what clients of CoCo's protocol send as `tee-pubkey` (RFC 7518 sections 4.3, 4.6 and 6).
//!
//! | key | a content key is wrapped by |
//! |---|---|
//! | EC P-256, P-521 | `ECDH-ES+A256KW`: a fresh key on the same curve, the Concat KDF, AES key wrap |
//! | RSA, 2048 to 4096 bits | `RSA-OAEP-256` |
//!
//! `RSA1_5`, which the protocol knows too, is refused: its padding is what Bleichenbacher's attack is about. Not in the guest.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::elliptic_curve::rand_core::OsRng;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use ring::agreement::{self, ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey};
use ring::rand::SystemRandom;
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, Oaep, RsaPublicKey};

use crate::jwe::{Epk, JweError, Kek, concat_kdf};
use crate::jwk::{self, ALGORITHM, Jwk, P_256};
use crate::random::RandomError;

/// The other curve.
const P_521: &str = "P-521";
/// RSA with OAEP, SHA-256 and MGF1 with SHA-256.
pub(crate) const RSA_OAEP_256: &str = "RSA-OAEP-256";
/// Sizes of moduli, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;
/// F4. Smaller exponents have met attacks of their own.
const MIN_EXPONENT: u32 = 65_537;

/// Why a JWK is not a key this side can encrypt to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// Another curve or algorithm.
    #[error(
        "tee-pubkey must be of kty \"EC\", crv \"{P_256}\" or \"{P_521}\" and alg \"{ALGORITHM}\", or of kty \"RSA\" and alg \"{RSA_OAEP_256}\""
    )]
    Unsupported,
    /// Coordinates are not a point of the curve.
    #[error("tee-pubkey: x and y are not the base64url coordinates of a point on {curve}")]
    NotOnCurve {
        /// The curve.
        curve: &'static str,
    },
    /// Not a modulus and an exponent, or weak ones.
    #[error("tee-pubkey: n and e are not the base64url modulus, of 2048 to 4096 bits, and the odd exponent, 65537 or more, of an RSA key")]
    NotRsa,
}

/// Public key of a guest: known to be a point on its curve, or of a size and exponent that will do.
#[derive(Clone, PartialEq, Eq)]
pub struct TeePublicKey(Kind);

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    P256(p256::PublicKey),
    P521(Box<p521::PublicKey>),
    Rsa(Box<RsaPublicKey>),
}

impl TeePublicKey {
    /// JWK form.
    #[must_use]
    pub fn to_jwk(&self) -> Jwk {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.0 {
            Kind::P256(key) => {
                let (x, y) = jwk::coordinates(key);
                Jwk::Ec { crv: P_256.into(), alg: ALGORITHM.into(), x, y }
            }
            Kind::P521(key) => {
                let (x, y) = p521_coordinates(key);
                Jwk::Ec { crv: P_521.into(), alg: ALGORITHM.into(), x, y }
            }
            Kind::Rsa(key) => Jwk::Rsa { alg: RSA_OAEP_256.into(), n: encode(&key.n().to_bytes_be()), e: encode(&key.e().to_bytes_be()) },
        }
    }

    /// How a content key gets to this guest.
    pub(crate) fn kek(&self) -> Result<Recipient<'_>, JweError> {
        match &self.0 {
            Kind::P256(key) => by_p256(key),
            Kind::P521(key) => by_p521(key),
            Kind::Rsa(key) => Ok(Recipient::Rsa(key)),
        }
    }
}

/// What wraps a content key.
pub(crate) enum Recipient<'a> {
    /// A key-encryption key, and the public key that lets the guest agree on it.
    Agreed(Epk, Kek),
    /// RSA-OAEP.
    Rsa(&'a RsaPublicKey),
}

/// Encrypts a content key.
pub(crate) fn encrypt_oaep(key: &RsaPublicKey, content_key: &[u8]) -> Result<Vec<u8>, JweError> {
    // The key's size was checked: what is left to fail is randomness.
    key.encrypt(&mut OsRng, Oaep::new::<rsa::sha2::Sha256>(), content_key).map_err(|_| JweError::Random(RandomError))
}

/// By ring, which takes a tenth of the time of plain curve arithmetic: a broker does this for every secret.
fn by_p256(key: &p256::PublicKey) -> Result<Recipient<'static>, JweError> {
    let no_key = |_| JweError::Random(RandomError);
    let ephemeral = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new()).map_err(no_key)?;
    let public = ephemeral.compute_public_key().map_err(no_key)?;
    let epk = Epk::from_point(P_256, public.as_ref()).ok_or(JweError::Malformed { part: "epk" })?;
    let peer = UnparsedPublicKey::new(&ECDH_P256, key.to_encoded_point(false));
    // The recipient's point is on the curve, so that nothing is left to refuse.
    let kek = agreement::agree_ephemeral(ephemeral, &peer, |shared| concat_kdf::<32>(shared, ALGORITHM, &[], &[]))
        .map_err(|_| JweError::Malformed { part: "epk" })?;
    Ok(Recipient::Agreed(epk, kek))
}

fn by_p521(key: &p521::PublicKey) -> Result<Recipient<'static>, JweError> {
    let ephemeral = p521::ecdh::EphemeralSecret::random(&mut OsRng);
    let epk =
        Epk::from_point(P_521, ephemeral.public_key().to_encoded_point(false).as_bytes()).ok_or(JweError::Malformed { part: "epk" })?;
    let shared = ephemeral.diffie_hellman(key);
    Ok(Recipient::Agreed(epk, concat_kdf::<32>(shared.raw_secret_bytes().as_slice(), ALGORITHM, &[], &[])))
}

fn p521_coordinates(key: &p521::PublicKey) -> (String, String) {
    let point = key.to_encoded_point(false);
    let encode = |part: Option<&p521::FieldBytes>| URL_SAFE_NO_PAD.encode(part.map(|bytes| bytes.as_slice()).unwrap_or_default());
    (encode(point.x()), encode(point.y()))
}

fn p521_point(x: &str, y: &str) -> Option<p521::PublicKey> {
    let decode = |text: &str| -> Option<[u8; 66]> { URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok() };
    p521::PublicKey::from_sec1_bytes(&[[4].as_slice(), &decode(x)?, &decode(y)?].concat()).ok()
}

fn rsa_key(n: &str, e: &str) -> Option<RsaPublicKey> {
    let decode = |text: &str| -> Option<Vec<u8>> {
        // Longer than any key that is taken.
        (text.len() <= 1024).then(|| URL_SAFE_NO_PAD.decode(text).ok())?
    };
    let (n, e) = (BigUint::from_bytes_be(&decode(n)?), BigUint::from_bytes_be(&decode(e)?));
    let odd = |number: &BigUint| number.to_bytes_be().last().is_some_and(|byte| byte % 2 == 1);
    let fits = RSA_BITS.contains(&n.bits()) && odd(&n) && odd(&e) && e >= BigUint::from(MIN_EXPONENT);
    fits.then(|| RsaPublicKey::new(n, e).ok())?
}

impl TryFrom<&Jwk> for TeePublicKey {
    type Error = JwkError;

    fn try_from(jwk: &Jwk) -> Result<Self, JwkError> {
        let kind = match jwk {
            Jwk::Ec { crv, alg, x, y } if alg == ALGORITHM && crv == P_256 => {
                Kind::P256(jwk::point_from_coordinates(x, y).ok_or(JwkError::NotOnCurve { curve: P_256 })?)
            }
            Jwk::Ec { crv, alg, x, y } if alg == ALGORITHM && crv == P_521 => {
                Kind::P521(Box::new(p521_point(x, y).ok_or(JwkError::NotOnCurve { curve: P_521 })?))
            }
            Jwk::Rsa { alg, n, e } if alg == RSA_OAEP_256 => Kind::Rsa(Box::new(rsa_key(n, e).ok_or(JwkError::NotRsa)?)),
            _ => return Err(JwkError::Unsupported),
        };
        Ok(Self(kind))
    }
}

impl fmt::Debug for TeePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TeePublicKey({:?})", self.to_jwk())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwe::Jwe;
    use crate::jwk::TeeKey;
    use aes_kw::KekAes256;
    use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    use rsa::RsaPrivateKey;
    use serde_json::Value;

    fn decode(text: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(text).expect("base64url")
    }

    fn header(jwe: &Jwe) -> Value {
        serde_json::from_slice(&decode(&jwe.protected)).expect("JSON")
    }

    /// What a client does once it has the content key (RFC 7516 section 5.2).
    fn decrypt(jwe: &Jwe, content_key: &[u8]) -> Vec<u8> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, content_key).expect("a key"));
        let iv = Nonce::try_assume_unique_for_key(&decode(&jwe.iv)).expect("an IV");
        let mut text = [decode(&jwe.ciphertext), decode(&jwe.tag)].concat();
        key.open_in_place(iv, Aad::from(jwe.protected.as_bytes()), &mut text).expect("authentic").to_vec()
    }

    #[test]
    fn keys_of_all_kinds_come_back_from_their_jwk() {
        let p521 = p521::SecretKey::random(&mut OsRng).public_key();
        let rsa = RsaPrivateKey::new(&mut OsRng, 2048).expect("a key").to_public_key();
        for key in [
            TeePublicKey::try_from(&TeeKey::generate().expect("random").to_jwk()).expect("P-256"),
            TeePublicKey(Kind::P521(Box::new(p521))),
            TeePublicKey(Kind::Rsa(Box::new(rsa))),
        ] {
            assert_eq!(TeePublicKey::try_from(&key.to_jwk()), Ok(key));
        }
    }

    #[test]
    fn a_client_with_a_key_on_p_521_opens_what_is_sealed_to_it() {
        let secret = p521::SecretKey::random(&mut OsRng);
        let jwe = Jwe::seal(b"layer key", &TeePublicKey(Kind::P521(Box::new(secret.public_key())))).expect("seals");
        let header = header(&jwe);
        assert_eq!((&header["alg"], &header["epk"]["crv"]), (&ALGORITHM.into(), &P_521.into()));
        let coordinate = |name: &str| header["epk"][name].as_str().expect("text").to_owned();
        let peer = p521_point(&coordinate("x"), &coordinate("y")).expect("on the curve");
        let shared = p521::ecdh::diffie_hellman(secret.to_nonzero_scalar(), peer.as_affine());
        let kek = concat_kdf::<32>(shared.raw_secret_bytes().as_slice(), ALGORITHM, &[], &[]);
        let mut content_key = [0; 32];
        KekAes256::from(*kek).unwrap(&decode(&jwe.encrypted_key), &mut content_key).expect("wrapped for us");
        assert_eq!(decrypt(&jwe, &content_key), b"layer key");
    }

    #[test]
    fn a_client_with_an_rsa_key_opens_what_is_sealed_to_it() {
        let secret = RsaPrivateKey::new(&mut OsRng, 2048).expect("a key");
        let jwe = Jwe::seal(b"layer key", &TeePublicKey(Kind::Rsa(Box::new(secret.to_public_key())))).expect("seals");
        let header = header(&jwe);
        assert_eq!((&header["alg"], header.get("epk")), (&RSA_OAEP_256.into(), None));
        let content_key = secret.decrypt(Oaep::new::<rsa::sha2::Sha256>(), &decode(&jwe.encrypted_key)).expect("for us");
        assert_eq!(decrypt(&jwe, &content_key), b"layer key");
    }

    #[test]
    fn refuses_other_algorithms_and_points_off_the_curve() {
        let good = TeeKey::generate().expect("random").to_jwk();
        let changed = |field: &str, value: &str| {
            let mut json = serde_json::to_value(&good).expect("serialises");
            json[field] = value.into();
            TeePublicKey::try_from(&serde_json::from_value::<Jwk>(json).expect("of the form"))
        };
        for (field, value) in [("crv", "P-384"), ("alg", "ECDH-ES"), ("alg", RSA_OAEP_256)] {
            assert_eq!(changed(field, value), Err(JwkError::Unsupported), "{field}={value}");
        }
        let Jwk::Ec { y, .. } = &good else { panic!("an EC key") };
        for (field, value) in [("x", y.as_str()), ("x", ""), ("y", &"A".repeat(43)), ("y", "=")] {
            assert_eq!(changed(field, value), Err(JwkError::NotOnCurve { curve: P_256 }), "{field}={value}");
        }
        // 32 bytes are no coordinate on the larger curve.
        assert_eq!(changed("crv", P_521), Err(JwkError::NotOnCurve { curve: P_521 }));
    }

    #[test]
    fn refuses_weak_rsa_keys_and_legacy_padding() {
        let good = RsaPrivateKey::new(&mut OsRng, 2048).expect("a key").to_public_key();
        let (n, e) = (URL_SAFE_NO_PAD.encode(good.n().to_bytes_be()), URL_SAFE_NO_PAD.encode(good.e().to_bytes_be()));
        let of = |alg: &str, n: &str, e: &str| TeePublicKey::try_from(&Jwk::Rsa { alg: alg.into(), n: n.into(), e: e.into() });
        assert!(of(RSA_OAEP_256, &n, &e).is_ok());
        for alg in ["RSA1_5", "RSA-OAEP", ALGORITHM] {
            assert_eq!(of(alg, &n, &e), Err(JwkError::Unsupported), "{alg}");
        }
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut even = good.n().to_bytes_be();
        *even.last_mut().expect("long") &= 0xfe;
        for (n, e) in [
            (number(&[0xff; 255]), e.clone()),
            (number(&[0xff; 513]), e.clone()),
            (number(&even), e.clone()),
            (String::new(), e.clone()),
            (n.clone(), number(&[3])),
            (n.clone(), number(&[1, 0, 2])),
            (n.clone(), String::new()),
            (n.clone(), "!".into()),
            (n.clone(), number(&[0xff; 200])),
        ] {
            assert_eq!(of(RSA_OAEP_256, &n, &e), Err(JwkError::NotRsa), "{n} {e}");
        }
    }
}
