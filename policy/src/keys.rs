//! Keys that sign policies: ECDSA on P-256 with SHA-256, and Ed25519.
//!
//! Public keys are SubjectPublicKeyInfo (RFC 5480, RFC 8410) in PEM, private keys PKCS#8 in PEM. A key's id is the SHA-256 of its
//! SubjectPublicKeyInfo.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey,
};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::pem;

const PUBLIC_LABEL: &str = "PUBLIC KEY";
const PRIVATE_LABEL: &str = "PRIVATE KEY";

/// SubjectPublicKeyInfo of an uncompressed P-256 point, up to and including the octet 0x04 of the point (RFC 5480, sections 2.1.1, 2.2).
const P256_SPKI: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00, 0x04,
];

/// SubjectPublicKeyInfo of an Ed25519 key, up to the key (RFC 8410, section 4).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Most keys trusted at a time.
pub const MAX_TRUSTED: usize = 16;

/// What is wrong with a key.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// Not one PEM block with the label.
    #[error("expected one PEM block `{expected}`; make keys with `kata-cc policy keygen` or `openssl genpkey`")]
    Pem {
        /// Label expected.
        expected: &'static str,
    },
    /// A key of another kind.
    #[error("expected an uncompressed P-256 or an Ed25519 public key; other kinds of key are not taken")]
    Kind,
    /// A private key of another kind, or a damaged one.
    #[error("expected a P-256 or an Ed25519 private key in PKCS#8 with its public part")]
    Private,
    /// No key at all.
    #[error("no trusted key is given, so that no policy could ever be accepted; add the public key that signs the policy")]
    NoneTrusted,
    /// Too many keys.
    #[error("{found} trusted keys are given, at most {MAX_TRUSTED} are taken")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// A key twice.
    #[error("the trusted key {0} is given twice")]
    Twice(KeyId),
    /// Not a key id.
    #[error("expected a key id: 64 hexadecimal digits")]
    Id,
    /// The random source of the system failed.
    #[error("the system's random source failed")]
    Random,
}

/// SHA-256 of a key's SubjectPublicKeyInfo.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 32]);

impl KeyId {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id).map_err(|_| KeyError::Id)?;
        Ok(Self(id))
    }
}

/// Kinds of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyKind {
    /// ECDSA on P-256 with SHA-256, signatures in DER.
    #[default]
    P256,
    /// Ed25519.
    Ed25519,
}

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    kind: KeyKind,
    /// What follows the algorithm in the SubjectPublicKeyInfo: an uncompressed point, or the 32 bytes of an Ed25519 key.
    key: Vec<u8>,
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?}, {})", self.kind, self.id())
    }
}

impl PublicKey {
    /// Reads a PEM block `PUBLIC KEY`.
    ///
    /// # Errors
    /// When it is not one, or the key is of a kind we do not take.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        Self::from_spki(&pem::decode(text, PUBLIC_LABEL).ok_or(KeyError::Pem { expected: PUBLIC_LABEL })?)
    }

    /// Reads a SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// When the key is of a kind we do not take.
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        if let Some(xy) = der.strip_prefix(&P256_SPKI)
            && xy.len() == 64
        {
            return Ok(Self { kind: KeyKind::P256, key: [&[0x04], xy].concat() });
        }
        match der.strip_prefix(&ED25519_SPKI) {
            Some(key) if key.len() == 32 => Ok(Self { kind: KeyKind::Ed25519, key: key.to_vec() }),
            _ => Err(KeyError::Kind),
        }
    }

    /// The SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn to_spki(&self) -> Vec<u8> {
        match self.kind {
            KeyKind::P256 => [&P256_SPKI[..26], &self.key].concat(),
            KeyKind::Ed25519 => [ED25519_SPKI.as_slice(), &self.key].concat(),
        }
    }

    /// A PEM block `PUBLIC KEY`.
    #[must_use]
    pub fn to_pem(&self) -> String {
        String::clone(&pem::encode(PUBLIC_LABEL, &self.to_spki()))
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        KeyId(Sha256::digest(self.to_spki()).into())
    }

    /// Whether the signature over the message is this key's.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self.kind {
            KeyKind::P256 => UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.key).verify(message, signature).is_ok(),
            KeyKind::Ed25519 => UnparsedPublicKey::new(&ED25519, &self.key).verify(message, signature).is_ok(),
        }
    }
}

enum Pair {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// A private key. Not for the guest: only owners sign.
pub struct SigningKey {
    pair: Pair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {:?})", self.public_key())
    }
}

impl SigningKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the system's random source fails.
    pub fn generate(kind: KeyKind) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let pkcs8 = match kind {
            KeyKind::P256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random),
            KeyKind::Ed25519 => Ed25519KeyPair::generate_pkcs8(&random),
        };
        Self::from_pkcs8(pkcs8.map_err(|_| KeyError::Random)?.as_ref())
    }

    /// Reads a PEM block `PRIVATE KEY`.
    ///
    /// # Errors
    /// When it is not one, or the key is of a kind we do not take.
    pub fn from_pkcs8_pem(text: &str) -> Result<Self, KeyError> {
        Self::from_pkcs8(&pem::decode(text, PRIVATE_LABEL).ok_or(KeyError::Pem { expected: PRIVATE_LABEL })?)
    }

    /// Reads PKCS#8 in DER.
    ///
    /// # Errors
    /// When the key is of a kind we do not take.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &random)
            .map(Pair::P256)
            // OpenSSL writes Ed25519 keys without the public part, which ring calls unchecked.
            .or_else(|_| Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(Pair::Ed25519))
            .map_err(|_| KeyError::Private)?;
        Ok(Self { pair, pkcs8: Zeroizing::new(der.to_vec()) })
    }

    /// A PEM block `PRIVATE KEY`. Write it where only its owner can read it.
    #[must_use]
    pub fn to_pkcs8_pem(&self) -> Zeroizing<String> {
        pem::encode(PRIVATE_LABEL, &self.pkcs8)
    }

    /// The public part.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        match &self.pair {
            Pair::P256(pair) => PublicKey { kind: KeyKind::P256, key: pair.public_key().as_ref().to_vec() },
            Pair::Ed25519(pair) => PublicKey { kind: KeyKind::Ed25519, key: pair.public_key().as_ref().to_vec() },
        }
    }

    /// Signs a message.
    ///
    /// # Errors
    /// When the system's random source fails.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::P256(pair) => pair.sign(&SystemRandom::new(), message).map(|s| s.as_ref().to_vec()).map_err(|_| KeyError::Random),
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }
}

/// Names a set of trusted keys with its lowest version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustId([u8; 32]);

/// The keys whose policies are accepted, and the lowest version that is. Comes from measured initdata.
#[derive(Debug, Clone)]
pub struct TrustedKeys {
    keys: BTreeMap<KeyId, PublicKey>,
    min_version: u64,
}

impl TrustedKeys {
    /// A set of at least one key.
    ///
    /// # Errors
    /// When there is none, one is given twice, or there are too many.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>, min_version: u64) -> Result<Self, KeyError> {
        let mut by_id = BTreeMap::new();
        for key in keys {
            let id = key.id();
            if by_id.insert(id, key).is_some() {
                return Err(KeyError::Twice(id));
            }
        }
        match by_id.len() {
            0 => Err(KeyError::NoneTrusted),
            found if found > MAX_TRUSTED => Err(KeyError::TooMany { found }),
            _ => Ok(Self { keys: by_id, min_version }),
        }
    }

    /// The ids of the keys.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.keys().copied()
    }

    /// The lowest version accepted.
    #[must_use]
    pub fn min_version(&self) -> u64 {
        self.min_version
    }

    /// Names this set.
    #[must_use]
    pub fn trust(&self) -> TrustId {
        let mut hash = Sha256::new();
        hash.update(self.min_version.to_be_bytes());
        for id in self.keys.keys() {
            hash.update(id.as_bytes());
        }
        TrustId(hash.finalize().into())
    }

    pub(crate) fn get(&self, id: &KeyId) -> Option<&PublicKey> {
        self.keys.get(id)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.values()
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyError, KeyKind, PublicKey, SigningKey, TrustedKeys};

    #[test]
    fn keys_survive_pem_and_verify_what_they_signed() {
        for kind in [KeyKind::P256, KeyKind::Ed25519] {
            let key = SigningKey::generate(kind).unwrap();
            let again = SigningKey::from_pkcs8_pem(&key.to_pkcs8_pem()).unwrap();
            let public = PublicKey::from_pem(&key.public_key().to_pem()).unwrap();
            assert_eq!(public, again.public_key());
            assert_eq!(public.kind(), kind);
            let signature = again.sign(b"message").unwrap();
            assert!(public.verifies(b"message", &signature));
            assert!(!public.verifies(b"Message", &signature));
            assert_eq!(public.id().to_string().parse(), Ok(public.id()));
        }
    }

    /// RFC 8410, section 10: the form without the public part, as OpenSSL writes it.
    #[test]
    fn takes_private_keys_without_their_public_part() {
        let ed =
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let ed_public =
            "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        assert_eq!(SigningKey::from_pkcs8_pem(ed).unwrap().public_key().to_pem(), ed_public);
    }

    #[test]
    fn rejects_what_is_no_key() {
        let pem = SigningKey::generate(KeyKind::P256).unwrap().public_key().to_pem();
        for bad in [pem.replace("PUBLIC", "PRIVATE"), format!("x{pem}"), format!("{pem}{pem}"), pem.replace("MFkw", "MFkx"), String::new()]
        {
            assert!(PublicKey::from_pem(&bad).is_err(), "{bad}");
        }
        assert!(SigningKey::from_pkcs8_pem(&pem).is_err());
    }

    #[test]
    fn trusted_keys_are_at_least_one_and_distinct() {
        let key = SigningKey::generate(KeyKind::Ed25519).unwrap().public_key();
        assert_eq!(TrustedKeys::new([], 1).unwrap_err(), KeyError::NoneTrusted);
        assert_eq!(TrustedKeys::new([key.clone(), key.clone()], 1).unwrap_err(), KeyError::Twice(key.id()));
        let other = TrustedKeys::new([key.clone()], 2).unwrap();
        assert_ne!(TrustedKeys::new([key], 1).unwrap().trust(), other.trust());
    }

    #[test]
    fn debug_shows_no_private_key() {
        let key = SigningKey::generate(KeyKind::P256).unwrap();
        let pem = key.to_pkcs8_pem();
        let shown = format!("{key:?}");
        assert!(pem.lines().filter(|line| !line.starts_with('-')).all(|line| !shown.contains(line)));
    }
}
