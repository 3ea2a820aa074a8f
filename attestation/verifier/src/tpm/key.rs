//! Attestation keys of TPMs: RSA of 2048 to 4096 bits, from a SubjectPublicKeyInfo (RFC 5280, RFC 8017) or from a JWK's numbers.

use super::error::TpmError;
use der::asn1::UintRef;
use der::oid::ObjectIdentifier;
use der::{Decode as _, Document, Reader as _, SliceReader};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use x509_cert::spki::SubjectPublicKeyInfoRef;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// Bytes of a modulus: 2048 to 4096 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=512;

/// A public key that signs quotes. Two are equal when their numbers are, however they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestationKey {
    /// Big-endian, without leading zeros.
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl AttestationKey {
    /// From a SubjectPublicKeyInfo, DER or PEM.
    ///
    /// # Errors
    /// When it is none, or of another kind of key.
    pub fn from_spki(bytes: &[u8]) -> Result<Self, TpmError> {
        let malformed = || TpmError::Key { reason: "not a public key in DER or PEM" };
        if let Ok(text) = std::str::from_utf8(bytes)
            && text.trim_start().starts_with("-----BEGIN ")
        {
            let (label, document) = Document::from_pem(text.trim()).map_err(|_| malformed())?;
            return if label == "PUBLIC KEY" { Self::from_der(document.as_bytes()) } else { Err(malformed()) };
        }
        Self::from_der(bytes)
    }

    fn from_der(der: &[u8]) -> Result<Self, TpmError> {
        let malformed = |_| TpmError::Key { reason: "not a public key in DER or PEM" };
        let spki = SubjectPublicKeyInfoRef::from_der(der).map_err(malformed)?;
        if spki.algorithm.oid != RSA {
            return Err(TpmError::Key { reason: "not an RSA key" });
        }
        let mut reader = SliceReader::new(spki.subject_public_key.raw_bytes()).map_err(malformed)?;
        let (n, e) = reader.sequence(|inner| Ok((UintRef::decode(inner)?, UintRef::decode(inner)?))).map_err(malformed)?;
        let (n, e) = reader.finish((n, e)).map_err(malformed)?;
        Self::new(n.as_bytes(), e.as_bytes())
    }

    /// From modulus and exponent, big-endian.
    ///
    /// # Errors
    /// When the modulus has not 2048 to 4096 bits, or the exponent more than 32.
    pub(crate) fn new(modulus: &[u8], exponent: &[u8]) -> Result<Self, TpmError> {
        if !MODULUS.contains(&modulus.len()) || modulus.first().is_none_or(|first| *first == 0) {
            return Err(TpmError::Key { reason: "an RSA key whose modulus has not 2048 to 4096 bits" });
        }
        if exponent.is_empty() || exponent.len() > 4 || exponent.first() == Some(&0) {
            return Err(TpmError::Key { reason: "an RSA key whose exponent has not 1 to 32 bits" });
        }
        Ok(Self { modulus: modulus.to_vec(), exponent: exponent.to_vec() })
    }

    /// Whether this is the key's signature, RSASSA-PKCS1-v1_5 with SHA-256.
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = RsaPublicKeyComponents { n: &self.modulus, e: &self.exponent };
        key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
    }
}
