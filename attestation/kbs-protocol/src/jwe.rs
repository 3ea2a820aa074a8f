//! Encrypted resources: flattened JWE (RFC 7516) with `ECDH-ES+A256KW` (RFC 7518 section 4.6) and `A256GCM`.
//!
//! What is opened is exactly this one combination, on P-256: a message that names another is refused before any key is touched. A broker seals to
//! other keys as well, those of `recipient`.

use aes_kw::KekAes256;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::PublicKey;
use p256::ecdh::diffie_hellman;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::jwk::{self, TeeKey};
#[cfg(feature = "server")]
use crate::random;
use crate::random::RandomError;
#[cfg(feature = "server")]
use crate::recipient::{self, Recipient, TeePublicKey};
use crate::secret::SecretBytes;

const ENC: &str = "A256GCM";

/// A flattened JWE, every part base64url without padding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwe {
    /// Protected header.
    pub protected: String,
    /// The content key, wrapped.
    pub encrypted_key: String,
    /// Additional authenticated data beyond the header, when there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aad: Option<String>,
    /// Initialisation vector.
    pub iv: String,
    /// Ciphertext.
    pub ciphertext: String,
    /// Authentication tag.
    pub tag: String,
}

/// Why a JWE cannot be made or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JweError {
    /// A part is not base64url, or the header is not JSON of the expected form.
    #[error("encrypted resource: part {part:?} is malformed")]
    Malformed {
        /// Which part.
        part: &'static str,
    },
    /// Another algorithm than the one we do.
    #[error("encrypted resource: expected alg \"{}\" and enc \"{ENC}\", and no \"crit\" or \"zip\"", jwk::ALGORITHM)]
    Unsupported,
    /// The content key does not unwrap: the resource was encrypted to another key, or changed.
    #[error("encrypted resource: its content key was not wrapped for this guest's key")]
    KeyUnwrap,
    /// The tag does not match.
    #[error("encrypted resource: authentication failed, it was changed on the way")]
    Authentication,
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The payload is larger than the cipher allows.
    #[error("resource is too large to encrypt in one message")]
    TooLarge,
}

/// Key-encryption key.
pub(crate) type Kek = Zeroizing<[u8; 32]>;

/// The sender's public key of a key agreement.
#[derive(Serialize, Deserialize)]
pub(crate) struct Epk {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

#[cfg(feature = "server")]
impl Epk {
    /// Of an uncompressed point (SEC 1, section 2.3.3).
    pub(crate) fn from_point(crv: &str, point: &[u8]) -> Option<Self> {
        let coordinates = point.strip_prefix(&[4])?;
        let (x, y) = coordinates.split_at_checked(coordinates.len() / 2)?;
        Some(Self { kty: "EC".into(), crv: crv.into(), x: URL_SAFE_NO_PAD.encode(x), y: URL_SAFE_NO_PAD.encode(y) })
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    enc: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epk: Option<Epk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    apu: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    apv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crit: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zip: Option<serde_json::Value>,
}

#[cfg(feature = "server")]
impl Jwe {
    /// Encrypts `plaintext` to a guest's key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn seal(plaintext: &[u8], recipient: &TeePublicKey) -> Result<Self, JweError> {
        let content_key = Zeroizing::new(random::array::<32>()?);
        let iv = random::array::<12>()?;
        match recipient.kek()? {
            Recipient::Agreed(epk, kek) => Self::seal_with(plaintext, epk, &kek, &content_key, iv),
            Recipient::Rsa(key) => {
                let wrapped = recipient::encrypt_oaep(key, content_key.as_slice())?;
                Self::encrypt(plaintext, recipient::RSA_OAEP_256, None, &wrapped, &content_key, iv)
            }
        }
    }

    fn seal_with(plaintext: &[u8], epk: Epk, kek: &[u8; 32], content_key: &[u8; 32], iv: [u8; 12]) -> Result<Self, JweError> {
        let mut wrapped = [0; 40];
        KekAes256::from(*kek).wrap(content_key, &mut wrapped).map_err(|_| JweError::KeyUnwrap)?;
        Self::encrypt(plaintext, jwk::ALGORITHM, Some(epk), &wrapped, content_key, iv)
    }

    fn encrypt(
        plaintext: &[u8],
        alg: &str,
        epk: Option<Epk>,
        wrapped: &[u8],
        content_key: &[u8; 32],
        iv: [u8; 12],
    ) -> Result<Self, JweError> {
        let header = Header { alg: alg.into(), enc: ENC.into(), epk, apu: None, apv: None, crit: None, zip: None };
        let header = serde_json::to_vec(&header).map_err(|_| JweError::Malformed { part: "protected" })?;
        let protected = URL_SAFE_NO_PAD.encode(header);

        let mut buffer = Zeroizing::new(plaintext.to_vec());
        let tag = gcm_key(content_key)?
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::from(protected.as_bytes()), &mut buffer)
            .map_err(|_| JweError::TooLarge)?;
        Ok(Self {
            encrypted_key: URL_SAFE_NO_PAD.encode(wrapped),
            aad: None,
            iv: URL_SAFE_NO_PAD.encode(iv),
            ciphertext: URL_SAFE_NO_PAD.encode(buffer.as_slice()),
            tag: URL_SAFE_NO_PAD.encode(tag),
            protected,
        })
    }
}

impl Jwe {
    /// Decrypts with the guest's key.
    ///
    /// # Errors
    /// When the message is malformed, of another algorithm, for another key, or was changed.
    pub fn open(&self, key: &TeeKey) -> Result<SecretBytes, JweError> {
        let header: Header =
            serde_json::from_slice(&decode(&self.protected, "protected")?).map_err(|_| JweError::Malformed { part: "protected" })?;
        let epk = header.epk.filter(|epk| epk.kty == "EC" && epk.crv == jwk::P_256);
        let Some(epk) = epk.filter(|_| header.alg == jwk::ALGORITHM && header.enc == ENC && header.crit.is_none() && header.zip.is_none())
        else {
            return Err(JweError::Unsupported);
        };
        let ephemeral = jwk::point_from_coordinates(&epk.x, &epk.y).ok_or(JweError::Malformed { part: "epk" })?;
        let apu = header.apu.map_or(Ok(Vec::new()), |text| decode(&text, "apu"))?;
        let apv = header.apv.map_or(Ok(Vec::new()), |text| decode(&text, "apv"))?;

        let wrapped: [u8; 40] =
            decode(&self.encrypted_key, "encrypted_key")?.try_into().map_err(|_| JweError::Malformed { part: "encrypted_key" })?;
        let kek = agree(key, &ephemeral, &apu, &apv);
        let mut content_key = Zeroizing::new([0; 32]);
        KekAes256::from(*kek).unwrap(&wrapped, content_key.as_mut_slice()).map_err(|_| JweError::KeyUnwrap)?;

        let iv: [u8; 12] = decode(&self.iv, "iv")?.try_into().map_err(|_| JweError::Malformed { part: "iv" })?;
        let tag: [u8; 16] = decode(&self.tag, "tag")?.try_into().map_err(|_| JweError::Malformed { part: "tag" })?;
        let mut aad = self.protected.clone();
        if let Some(extra) = &self.aad {
            // RFC 7516 section 5.1, step 14.
            aad.push('.');
            aad.push_str(extra);
        }
        // Reserved in full at once: a growing vector would leave copies behind that nobody wipes.
        let ciphertext = decode(&self.ciphertext, "ciphertext")?;
        let mut buffer = Zeroizing::new(Vec::with_capacity(ciphertext.len().saturating_add(tag.len())));
        buffer.extend_from_slice(&ciphertext);
        buffer.extend_from_slice(&tag);
        let plain_len = gcm_key(&content_key)?
            .open_in_place(Nonce::assume_unique_for_key(iv), Aad::from(aad.as_bytes()), &mut buffer)
            .map_err(|_| JweError::Authentication)?
            .len();
        buffer.truncate(plain_len);
        Ok(SecretBytes::from(buffer))
    }
}

fn decode(text: &str, part: &'static str) -> Result<Vec<u8>, JweError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| JweError::Malformed { part })
}

fn gcm_key(key: &[u8; 32]) -> Result<LessSafeKey, JweError> {
    // Only a key of another length is refused, and the type fixes the length.
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| JweError::KeyUnwrap)
}

/// Key-encryption key by ECDH and the Concat KDF.
fn agree(own: &TeeKey, peer: &PublicKey, apu: &[u8], apv: &[u8]) -> Kek {
    let shared = diffie_hellman(own.secret().to_nonzero_scalar(), peer.as_affine());
    concat_kdf::<32>(shared.raw_secret_bytes().as_slice(), jwk::ALGORITHM, apu, apv)
}

/// Concat KDF (NIST SP 800-56A) with SHA-256 as RFC 7518 section 4.6.2 uses it. One round gives up to 32 bytes, all we need.
pub(crate) fn concat_kdf<const N: usize>(shared: &[u8], algorithm: &str, apu: &[u8], apv: &[u8]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= 32, "one round of SHA-256 gives 32 bytes") };
    let mut context = Context::new(&SHA256);
    context.update(&1_u32.to_be_bytes());
    context.update(shared);
    for field in [algorithm.as_bytes(), apu, apv] {
        context.update(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
        context.update(field);
    }
    context.update(&(N as u32 * 8).to_be_bytes());
    let mut key = Zeroizing::new([0; N]);
    key.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    key
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use super::*;
    use crate::jwk::Jwk;
    use p256::elliptic_curve::sec1::ToEncodedPoint as _;

    fn public(key: &TeeKey) -> TeePublicKey {
        TeePublicKey::try_from(&key.to_jwk()).expect("a key")
    }

    fn key_from_d(d: &str) -> TeeKey {
        let scalar = URL_SAFE_NO_PAD.decode(d).expect("base64url");
        TeeKey::from_secret(p256::SecretKey::from_slice(&scalar).expect("valid scalar"))
    }

    /// RFC 7518 appendix C: Alice's ephemeral key, Bob's static key, `ECDH-ES` direct to a 128-bit key.
    #[test]
    fn ac_60_concat_kdf_gives_the_key_of_rfc_7518_appendix_c() {
        let alice = key_from_d("0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo");
        let bob = key_from_d("VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw");
        let is = |key: &TeeKey, x: &str, y: &str| matches!(key.to_jwk(), Jwk::Ec { x: a, y: b, .. } if a == x && b == y);
        assert!(is(&alice, "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0", "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps"));
        assert!(is(&bob, "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ", "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck"));
        let shared = diffie_hellman(alice.secret().to_nonzero_scalar(), bob.secret().public_key().as_affine());
        let key = concat_kdf::<16>(shared.raw_secret_bytes().as_slice(), "A128GCM", b"Alice", b"Bob");
        assert_eq!(URL_SAFE_NO_PAD.encode(*key), "VqqN6vgjbSBcIijNcacQGg");
    }

    #[test]
    fn sealed_resource_opens_with_the_right_key_only() {
        let key = TeeKey::generate().expect("random");
        for plaintext in [&b""[..], b"x", &[7; 5000]] {
            let jwe = Jwe::seal(plaintext, &public(&key)).expect("seals");
            assert_eq!(jwe.open(&key).expect("opens").expose(), plaintext);
            let other = TeeKey::generate().expect("random");
            assert_eq!(jwe.open(&other).map(|_| ()), Err(JweError::KeyUnwrap));
        }
    }

    #[test]
    fn two_seals_share_nothing() {
        let key = TeeKey::generate().expect("random");
        let (one, two) = (Jwe::seal(b"same", &public(&key)).expect("seals"), Jwe::seal(b"same", &public(&key)).expect("seals"));
        assert_ne!(one.protected, two.protected);
        assert_ne!(one.encrypted_key, two.encrypted_key);
        assert_ne!(one.iv, two.iv);
        assert_ne!(one.ciphertext, two.ciphertext);
    }

    #[test]
    fn wire_form_is_flattened_jwe() {
        let key = TeeKey::generate().expect("random");
        let json = serde_json::to_value(Jwe::seal(b"data", &public(&key)).expect("seals")).expect("serialises");
        let names: Vec<_> = json.as_object().expect("object").keys().cloned().collect();
        assert_eq!(names, ["ciphertext", "encrypted_key", "iv", "protected", "tag"]);
        let header: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(json["protected"].as_str().expect("text")).expect("base64url")).expect("json");
        assert_eq!((&header["alg"], &header["enc"]), (&"ECDH-ES+A256KW".into(), &"A256GCM".into()));
        assert_eq!((&header["epk"]["kty"], &header["epk"]["crv"]), (&"EC".into(), &"P-256".into()));
    }

    #[test]
    fn ac_59_every_changed_or_short_part_is_refused() {
        let key = TeeKey::generate().expect("random");
        let good = Jwe::seal(b"secret of some length", &public(&key)).expect("seals");
        let flip = |text: &str| {
            let mut bytes = URL_SAFE_NO_PAD.decode(text).expect("base64url");
            bytes[0] ^= 1;
            URL_SAFE_NO_PAD.encode(bytes)
        };
        for bad in [
            Jwe { encrypted_key: flip(&good.encrypted_key), ..good.clone() },
            Jwe { iv: flip(&good.iv), ..good.clone() },
            Jwe { ciphertext: flip(&good.ciphertext), ..good.clone() },
            Jwe { tag: flip(&good.tag), ..good.clone() },
            Jwe { protected: flip(&good.protected), ..good.clone() },
            Jwe { aad: Some("AAAA".into()), ..good.clone() },
            Jwe { tag: String::new(), ..good.clone() },
            Jwe { ciphertext: String::new(), ..good.clone() },
            Jwe { iv: "A".into(), ..good.clone() },
            Jwe { encrypted_key: "AAAA".into(), ..good.clone() },
            Jwe { ciphertext: "!".into(), ..good.clone() },
        ] {
            assert!(bad.open(&key).is_err());
        }
    }

    #[test]
    fn refuses_other_algorithms_and_critical_extensions() {
        let key = TeeKey::generate().expect("random");
        let good = Jwe::seal(b"secret", &public(&key)).expect("seals");
        let header: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&good.protected).expect("b64")).expect("json");
        for (name, value) in [("alg", "ECDH-ES"), ("alg", "RSA1_5"), ("enc", "A128CBC-HS256"), ("crit", "x"), ("zip", "DEF")] {
            let mut changed = header.clone();
            changed[name] = value.into();
            let bad = Jwe { protected: URL_SAFE_NO_PAD.encode(changed.to_string()), ..good.clone() };
            assert_eq!(bad.open(&key).map(|_| ()), Err(JweError::Unsupported), "{name}={value}");
        }
    }

    /// A sample of this release, so that a later one cannot quietly stop reading what this one wrote.
    #[test]
    fn fixed_inputs_give_a_fixed_message_that_opens() {
        let recipient = key_from_d("VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw");
        let ephemeral = key_from_d("0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo");
        let epk = Epk::from_point(jwk::P_256, ephemeral.secret().public_key().to_encoded_point(false).as_bytes()).expect("a point");
        let kek = agree(&ephemeral, &recipient.secret().public_key(), &[], &[]);
        let jwe = Jwe::seal_with(b"fixed", epk, &kek, &[9; 32], [5; 12]).expect("seals");
        let expected: Jwe = serde_json::from_str(include_str!("../tests/jwe-v1.json")).expect("the saved sample parses");
        assert_eq!(jwe, expected);
        assert_eq!(expected.open(&recipient).expect("opens").expose(), b"fixed");
    }
}
