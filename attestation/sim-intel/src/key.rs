//! P-256 keys: all of Intel's are.

use der::asn1::{Any, BitString};
use der::pem::LineEnding;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::cert::oid;

const LABEL: &str = "PRIVATE KEY";

/// A private key.
pub struct Key(Vec<u8>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Default for Key {
    fn default() -> Self {
        Self::new()
    }
}

impl Key {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        Self(pkcs8.expect("the kernel gives random bytes").as_ref().to_vec())
    }

    /// From PKCS#8 in PEM; `None` when it is none, or of another curve.
    #[must_use]
    pub fn from_pem(text: &[u8]) -> Option<Self> {
        let (label, der) = der::pem::decode_vec(text).ok()?;
        let fits = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &SystemRandom::new()).is_ok();
        (label == LABEL && fits).then_some(Self(der))
    }

    /// As PKCS#8 in PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        der::pem::encode_string(LABEL, LineEnding::LF, &self.0).expect("bytes have a PEM form")
    }

    fn pair(&self, algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
        EcdsaKeyPair::from_pkcs8(algorithm, &self.0, &SystemRandom::new()).expect("checked when the key came to be")
    }

    fn sign(&self, algorithm: &'static EcdsaSigningAlgorithm, message: &[u8]) -> Vec<u8> {
        self.pair(algorithm).sign(&SystemRandom::new(), message).expect("the kernel gives random bytes").as_ref().to_vec()
    }

    /// Signature as R ‖ S, big-endian.
    #[must_use]
    pub fn fixed(&self, message: &[u8]) -> [u8; 64] {
        self.sign(&ECDSA_P256_SHA256_FIXED_SIGNING, message).try_into().expect("R and S have 32 bytes each")
    }

    /// Signature as certificates have it.
    pub(super) fn asn1(&self, message: &[u8]) -> BitString {
        BitString::from_bytes(&self.sign(&ECDSA_P256_SHA256_ASN1_SIGNING, message)).expect("short")
    }

    fn point(&self) -> Vec<u8> {
        self.pair(&ECDSA_P256_SHA256_FIXED_SIGNING).public_key().as_ref().to_vec()
    }

    /// Public key as X ‖ Y, big-endian.
    #[must_use]
    pub fn raw(&self) -> [u8; 64] {
        self.point().last_chunk().copied().expect("a point has one byte and X and Y")
    }

    pub(super) fn spki(&self) -> SubjectPublicKeyInfoOwned {
        let curve = Any::encode_from(&oid("1.2.840.10045.3.1.7")).expect("short");
        SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned { oid: oid("1.2.840.10045.2.1"), parameters: Some(curve) },
            subject_public_key: BitString::from_bytes(&self.point()).expect("short"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_file() {
        let key = Key::new();
        assert_eq!(Key::from_pem(key.to_pem().as_bytes()).expect("a key").raw(), key.raw());
        assert!(Key::from_pem(b"no key").is_none());
        assert!(Key::from_pem(key.to_pem().replace("PRIVATE KEY", "CERTIFICATE").as_bytes()).is_none());
        assert_eq!(format!("{key:?}"), "Key(..)");
    }
}
