//! The chain of a GPU's certificate (RFC 5280, RFC 5480): P-384 and SHA-384 throughout, the root a configured one.

use super::error::NvidiaError;
use der::oid::ObjectIdentifier;
use der::{Decode as _, Encode as _};
use ring::signature::{ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED, UnparsedPublicKey, VerificationAlgorithm};
use x509_cert::Certificate;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};

const ECDSA_WITH_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
/// Firmware id of the device (TCG, "DICE Attestation Architecture").
const FWID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.1");
/// Header of an OCTET STRING of 48 bytes: a SHA-384 hash.
const HASH_HEADER: [u8; 2] = [0x04, 0x30];
/// Most certificates of a chain, and fewest.
const LENGTH: std::ops::RangeInclusive<usize> = 2..=8;

/// A parsed certificate with the exact bytes its signature is over.
#[derive(Clone, Debug)]
pub(super) struct Cert {
    inner: Certificate,
    signed: Vec<u8>,
}

/// All certificates of a PEM text, the device's first.
pub(super) fn parse(pem: &[u8]) -> Result<Vec<Cert>, NvidiaError> {
    let chain = crate::pem::certificates(pem).ok_or(NvidiaError::Length { found: 0 })?;
    if !LENGTH.contains(&chain.len()) {
        return Err(NvidiaError::Length { found: chain.len() });
    }
    chain
        .into_iter()
        .enumerate()
        .map(|(index, inner)| Cert::new(inner).map_err(|reason| NvidiaError::Certificate { index, reason }))
        .collect()
}

impl Cert {
    fn new(inner: Certificate) -> Result<Self, &'static str> {
        let signed = inner.tbs_certificate.to_der().map_err(|_| "not in DER")?;
        if inner.signature_algorithm.oid != ECDSA_WITH_SHA384 || inner.tbs_certificate.signature != inner.signature_algorithm {
            return Err("not signed by ECDSA with SHA-384");
        }
        let known = |extension: &&Extension| !extension.critical || [KEY_USAGE, BASIC_CONSTRAINTS].contains(&extension.extn_id);
        if !inner.tbs_certificate.extensions.iter().flatten().all(|extension| known(&extension)) {
            return Err("has a critical extension that is not known here");
        }
        Ok(Self { inner, signed })
    }

    /// A root: one certificate, PEM, that signed itself.
    pub(super) fn root(pem: &[u8]) -> Result<Self, NvidiaError> {
        let refused = |reason| NvidiaError::Certificate { index: 0, reason };
        let mut certs = crate::pem::certificates(pem).ok_or_else(|| refused("not in PEM"))?.into_iter();
        let (Some(root), None) = (certs.next(), certs.next()) else { return Err(refused("not one certificate")) };
        let root = Self::new(root).map_err(refused)?;
        if root.may_issue(usize::MAX) && root.is_signed_by(&root) { Ok(root) } else { Err(refused("not a root")) }
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.inner == other.inner
    }

    /// The key, an uncompressed point of P-384.
    fn key(&self) -> Option<&[u8]> {
        let spki = &self.inner.tbs_certificate.subject_public_key_info;
        let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let is_p384 = spki.algorithm.oid == EC_PUBLIC_KEY && curve == Some(SECP384R1);
        is_p384.then(|| spki.subject_public_key.as_bytes()).flatten()
    }

    fn has_signed(&self, algorithm: &'static dyn VerificationAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        self.key().is_some_and(|key| UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok())
    }

    /// Whether this key made a report's signature, r and s.
    pub(super) fn has_signed_report(&self, message: &[u8], signature: &[u8; 96]) -> bool {
        self.has_signed(&ECDSA_P384_SHA384_FIXED, message, signature)
    }

    fn is_signed_by(&self, issuer: &Self) -> bool {
        let named = self.inner.tbs_certificate.issuer == issuer.inner.tbs_certificate.subject;
        let signature = self.inner.signature.as_bytes();
        named && signature.is_some_and(|signature| issuer.has_signed(&ECDSA_P384_SHA384_ASN1, &self.signed, signature))
    }

    /// The extension's value, when it is there exactly once.
    fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let mut found = self.inner.tbs_certificate.extensions.iter().flatten().filter(|extension| extension.extn_id == oid);
        let first = found.next()?;
        found.next().is_none().then(|| first.extn_value.as_bytes())
    }

    fn usage(&self) -> Option<KeyUsage> {
        KeyUsage::from_der(self.extension(KEY_USAGE)?).ok()
    }

    /// Whether it may issue certificates with so many authorities between itself and the device. `usize::MAX`: whatever that number.
    fn may_issue(&self, between: usize) -> bool {
        let constraints = self.extension(BASIC_CONSTRAINTS).and_then(|value| BasicConstraints::from_der(value).ok());
        let allowed = constraints.is_some_and(|constraints| {
            constraints.ca && constraints.path_len_constraint.is_none_or(|most| between == usize::MAX || between <= usize::from(most))
        });
        allowed && self.usage().is_some_and(|usage| usage.key_cert_sign())
    }

    fn is_valid_at(&self, now: u64) -> bool {
        let validity = &self.inner.tbs_certificate.validity;
        (validity.not_before.to_unix_duration().as_secs()..=validity.not_after.to_unix_duration().as_secs()).contains(&now)
    }

    /// Id of the firmware that this key was derived for: a hash, the last part of its extension.
    pub(super) fn firmware(&self) -> Option<&[u8; 48]> {
        let (before, hash) = self.extension(FWID)?.split_last_chunk::<48>()?;
        before.ends_with(&HASH_HEADER).then_some(hash)
    }
}

/// Checks every step from the device's certificate to the root.
pub(super) fn verify(chain: &[Cert], now: u64) -> Result<(), NvidiaError> {
    let refused = |index, reason| Err(NvidiaError::Certificate { index, reason });
    for (index, cert) in chain.iter().enumerate() {
        if !cert.is_valid_at(now) {
            return refused(index, "not valid now");
        }
        match index.checked_sub(1) {
            None if !cert.usage().is_some_and(|usage| usage.digital_signature()) => return refused(index, "may not sign reports"),
            Some(between) if !cert.may_issue(between) => return refused(index, "may not issue certificates"),
            _ => {}
        }
        // The last one is a configured root, which was checked when it was configured.
        if chain.get(index.saturating_add(1)).is_some_and(|issuer| !cert.is_signed_by(issuer)) {
            return refused(index, "not signed by the next");
        }
    }
    Ok(())
}
