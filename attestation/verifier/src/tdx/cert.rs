//! Certificates and revocation lists of Intel's SGX hierarchy: strict DER, ECDSA on P-256 with SHA-256 throughout.
//!
//! Intel, "SGX PCK Certificate and Certificate Revocation List Profile Specification", sections 2 and 3. RFC 5280 path validation at large is
//! not here: the hierarchy has exactly three levels and no names worth constraining. A critical extension that is not looked at here is refused.

use der::oid::ObjectIdentifier;
use der::{Decode as _, Encode as _};
use ring::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;

const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");

/// Longest chain that is looked at: leaf, intermediate, root, and one that should not be there.
const MAX_CHAIN: usize = 4;

/// Why bytes are not a certificate or revocation list we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// Not DER, or not in its one canonical form.
    #[error("not an X.509 certificate in DER or PEM")]
    Malformed,
    /// Not a revocation list in DER.
    #[error("not an X.509 revocation list in DER (or that in hexadecimal)")]
    MalformedList,
    /// Another signature algorithm.
    #[error("signed with {found}, expected ECDSA with SHA-256")]
    SignatureAlgorithm {
        /// The algorithm's object identifier.
        found: String,
    },
    /// The key is not on P-256.
    #[error("key is not an EC key on P-256")]
    NotP256,
    /// A critical extension without meaning here.
    #[error("extension {oid} is critical and not known here")]
    CriticalExtension {
        /// Which.
        oid: String,
    },
    /// An extension Intel always writes is missing, repeated or malformed.
    #[error("extension {oid} ({what}) is missing, repeated or malformed")]
    Extension {
        /// Which.
        oid: String,
        /// What it holds.
        what: &'static str,
    },
    /// A file does not hold the certificates it should.
    #[error("expected {expected}, found {found} certificates")]
    Count {
        /// What should be there.
        expected: &'static str,
        /// How many there are.
        found: usize,
    },
}

/// A parsed certificate with the exact bytes its signature is over.
#[derive(Clone, Debug)]
pub(super) struct Cert {
    inner: Certificate,
    signed: Vec<u8>,
}

impl Cert {
    fn from_parsed(inner: Certificate) -> Result<Self, CertError> {
        let algorithm = inner.signature_algorithm.oid;
        if algorithm != ECDSA_WITH_SHA256 || inner.tbs_certificate.signature != inner.signature_algorithm {
            return Err(CertError::SignatureAlgorithm { found: algorithm.to_string() });
        }
        let critical = inner.tbs_certificate.extensions.iter().flatten().filter(|extension| extension.critical);
        if let Some(unknown) = critical.map(|extension| extension.extn_id).find(|oid| !matches!(*oid, KEY_USAGE | BASIC_CONSTRAINTS)) {
            return Err(CertError::CriticalExtension { oid: unknown.to_string() });
        }
        let signed = inner.tbs_certificate.to_der().map_err(|_| CertError::Malformed)?;
        let cert = Self { inner, signed };
        cert.key()?;
        Ok(cert)
    }

    /// Parses all certificates of a PEM text; padding by zeros after it is what quoting enclaves write.
    ///
    /// The signature is checked over the re-encoded inner part, which for a certificate that is not canonical DER is not what was signed.
    pub(super) fn parse_pem(text: &[u8]) -> Result<Vec<Self>, CertError> {
        let chain = crate::pem::certificates(text).ok_or(CertError::Malformed)?;
        if chain.len() > MAX_CHAIN {
            return Err(CertError::Count { expected: "1 to 4", found: chain.len() });
        }
        chain.into_iter().map(Self::from_parsed).collect()
    }

    pub(super) fn subject(&self) -> &Name {
        &self.inner.tbs_certificate.subject
    }

    pub(super) fn issuer(&self) -> &Name {
        &self.inner.tbs_certificate.issuer
    }

    pub(super) fn serial(&self) -> &[u8] {
        self.inner.tbs_certificate.serial_number.as_bytes()
    }

    pub(super) fn not_before(&self) -> u64 {
        self.inner.tbs_certificate.validity.not_before.to_unix_duration().as_secs()
    }

    pub(super) fn not_after(&self) -> u64 {
        self.inner.tbs_certificate.validity.not_after.to_unix_duration().as_secs()
    }

    /// Same name and same key.
    pub(super) fn is_same_issuer_as(&self, other: &Self) -> bool {
        let key = |cert: &Self| cert.inner.tbs_certificate.subject_public_key_info.clone();
        self.subject() == other.subject() && key(self) == key(other)
    }

    /// True when the certificate may issue others and their revocation lists.
    pub(super) fn is_authority(&self) -> bool {
        let constraints = self.extension(BASIC_CONSTRAINTS).and_then(|value| BasicConstraints::from_der(value).ok());
        let usage = self.extension(KEY_USAGE).and_then(|value| KeyUsage::from_der(value).ok());
        constraints.is_some_and(|constraints| constraints.ca) && usage.is_some_and(|usage| usage.key_cert_sign() && usage.crl_sign())
    }

    /// True when it is marked as one that issues certificates, whatever else it is.
    pub(super) fn claims_authority(&self) -> bool {
        self.extension(BASIC_CONSTRAINTS).is_some_and(|value| BasicConstraints::from_der(value).map_or(true, |constraints| constraints.ca))
    }

    /// True when `issuer` is named as this certificate's issuer and its key made the signature.
    pub(super) fn is_signed_by(&self, issuer: &Self) -> bool {
        self.issuer() == issuer.subject()
            && self.inner.signature.as_bytes().is_some_and(|signature| issuer.verify_asn1(&self.signed, signature))
    }

    /// The public key as an uncompressed point.
    fn key(&self) -> Result<&[u8], CertError> {
        let spki = &self.inner.tbs_certificate.subject_public_key_info;
        let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        if spki.algorithm.oid != EC_PUBLIC_KEY || curve != Some(SECP256R1) {
            return Err(CertError::NotP256);
        }
        spki.subject_public_key.as_bytes().ok_or(CertError::NotP256)
    }

    fn verify_asn1(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key().is_ok_and(|key| UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(message, signature).is_ok())
    }

    /// True when this key made the signature, given as big-endian R ‖ S.
    pub(super) fn verify_fixed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.key().is_ok_and(|key| UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message, signature).is_ok())
    }

    /// The extension's value, when it is there exactly once.
    pub(super) fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let mut found = self.inner.tbs_certificate.extensions.iter().flatten().filter(|extension| extension.extn_id == oid);
        let first = found.next()?;
        found.next().is_none().then(|| first.extn_value.as_bytes())
    }
}

/// True when the key, given as X ‖ Y, made the signature, given as R ‖ S.
pub(super) fn verify_raw_key(key: &[u8; 64], message: &[u8], signature: &[u8; 64]) -> bool {
    let point = [&[0x04], key.as_slice()].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
}

/// A parsed revocation list, not yet known to be anybody's.
#[derive(Clone, Debug)]
pub(super) struct RevocationList {
    inner: CertificateList,
    signed: Vec<u8>,
}

impl RevocationList {
    /// Parses a list, in DER or, as a caching service gives the root's, in hexadecimal.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CertError> {
        let decoded = hex::decode(bytes.trim_ascii()).ok();
        let bytes = decoded.as_deref().unwrap_or(bytes);
        let inner = CertificateList::from_der(bytes).map_err(|_| CertError::MalformedList)?;
        if inner.to_der().map_err(|_| CertError::MalformedList)? != bytes {
            return Err(CertError::MalformedList);
        }
        let algorithm = inner.signature_algorithm.oid;
        if algorithm != ECDSA_WITH_SHA256 || inner.tbs_cert_list.signature != inner.signature_algorithm {
            return Err(CertError::SignatureAlgorithm { found: algorithm.to_string() });
        }
        let signed = inner.tbs_cert_list.to_der().map_err(|_| CertError::MalformedList)?;
        Ok(Self { inner, signed })
    }

    pub(super) fn is_signed_by(&self, issuer: &Cert) -> bool {
        self.inner.tbs_cert_list.issuer == *issuer.subject()
            && self.inner.signature.as_bytes().is_some_and(|signature| issuer.verify_asn1(&self.signed, signature))
    }

    pub(super) fn this_update(&self) -> u64 {
        self.inner.tbs_cert_list.this_update.to_unix_duration().as_secs()
    }

    /// End of its validity. A list that names none has none here: it would be valid for ever.
    pub(super) fn next_update(&self) -> u64 {
        self.inner.tbs_cert_list.next_update.map_or(0, |time| time.to_unix_duration().as_secs())
    }

    pub(super) fn revokes(&self, cert: &Cert) -> bool {
        self.inner.tbs_cert_list.revoked_certificates.iter().flatten().any(|entry| entry.serial_number.as_bytes() == cert.serial())
    }
}

/// Common name of a distinguished name, or all of it where there is none. For messages and to tell kinds of certificates apart.
pub(super) fn common_name(name: &Name) -> String {
    let attributes = name.0.iter().flat_map(|set| set.0.iter());
    let text = attributes
        .filter(|attribute| attribute.oid == COMMON_NAME)
        .find_map(|attribute| std::str::from_utf8(attribute.value.value()).ok().map(str::to_owned));
    text.unwrap_or_else(|| name.to_string()).chars().filter(|c| !c.is_control()).take(128).collect()
}
