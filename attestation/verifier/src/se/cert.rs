//! Certificates and revocation lists around IBM's host keys: strict DER, RSA PKCS #1 v1.5 with SHA-2 throughout.
//!
//! RFC 5280 path validation at large is not here: the hierarchy is root, at most two intermediates, IBM's signing key, host key. A critical
//! extension that is not looked at here is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::oid::ObjectIdentifier;
use der::{Decode as _, Encode as _};
use p521::PublicKey;
use ring::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaParameters, UnparsedPublicKey,
};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::ext::Extensions;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use x509_cert::name::Name;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const SHA256_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const SHA384_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const SHA512_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP521R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
const SUBJECT_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.14");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const AUTHORITY_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.35");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");

/// Why bytes are not certificates or revocation lists we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// Neither, or not in its one canonical form.
    #[error("not an X.509 certificate or revocation list in DER or PEM")]
    Malformed,
    /// Another signature algorithm.
    #[error("signed with {found}, expected RSA PKCS #1 v1.5 with SHA-256, SHA-384 or SHA-512")]
    SignatureAlgorithm {
        /// The algorithm's object identifier.
        found: String,
    },
    /// A critical extension without meaning here.
    #[error("extension {oid} is critical and not known here")]
    CriticalExtension {
        /// Which.
        oid: String,
    },
}

/// A parsed certificate with the exact bytes its signature is over.
#[derive(Clone, Debug)]
pub(super) struct Cert {
    inner: Certificate,
    signed: Vec<u8>,
}

/// A parsed revocation list, not yet known to be anybody's.
#[derive(Clone, Debug)]
pub(super) struct RevocationList {
    inner: CertificateList,
    signed: Vec<u8>,
}

/// What a file holds: IBM and DigiCert publish certificates and lists one by one, people put them together.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    pub(super) certs: Vec<Cert>,
    pub(super) lists: Vec<RevocationList>,
}

impl Contents {
    /// Parses a file: one DER object, or any number of them in PEM.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CertError> {
        let mut contents = Self::default();
        match std::str::from_utf8(bytes).ok().filter(|text| text.contains("-----BEGIN ")) {
            Some(text) => {
                for (label, der) in pem_blocks(text)? {
                    match label {
                        "CERTIFICATE" => contents.certs.push(Cert::parse(&der)?),
                        "X509 CRL" => contents.lists.push(RevocationList::parse(&der)?),
                        _ => return Err(CertError::Malformed),
                    }
                }
            }
            None => match Cert::parse(bytes) {
                Err(CertError::Malformed) => contents.lists.push(RevocationList::parse(bytes)?),
                cert => contents.certs.push(cert?),
            },
        }
        Ok(contents)
    }
}

/// Label and bytes of each PEM block; text around them is commentary.
fn pem_blocks(text: &str) -> Result<Vec<(&str, Vec<u8>)>, CertError> {
    let mut blocks = Vec::new();
    for part in text.split("-----BEGIN ").skip(1) {
        let (label, rest) = part.split_once("-----").ok_or(CertError::Malformed)?;
        let (body, rest) = rest.split_once("-----END ").ok_or(CertError::Malformed)?;
        if rest.split_once("-----").map(|(end, _)| end) != Some(label) {
            return Err(CertError::Malformed);
        }
        let body: String = body.split_ascii_whitespace().collect();
        blocks.push((label, STANDARD.decode(body).map_err(|_| CertError::Malformed)?));
    }
    Ok(blocks)
}

fn parameters(oid: ObjectIdentifier) -> Result<&'static RsaParameters, CertError> {
    match oid {
        SHA256_WITH_RSA => Ok(&RSA_PKCS1_2048_8192_SHA256),
        SHA384_WITH_RSA => Ok(&RSA_PKCS1_2048_8192_SHA384),
        SHA512_WITH_RSA => Ok(&RSA_PKCS1_2048_8192_SHA512),
        _ => Err(CertError::SignatureAlgorithm { found: oid.to_string() }),
    }
}

fn no_unknown_critical(extensions: Option<&Extensions>, known: &[ObjectIdentifier]) -> Result<(), CertError> {
    let mut critical = extensions.into_iter().flatten().filter(|extension| extension.critical);
    match critical.find(|extension| !known.contains(&extension.extn_id)) {
        Some(unknown) => Err(CertError::CriticalExtension { oid: unknown.extn_id.to_string() }),
        None => Ok(()),
    }
}

/// The extension's value, when it is there exactly once.
fn extension(extensions: Option<&Extensions>, oid: ObjectIdentifier) -> Option<&[u8]> {
    let mut found = extensions.into_iter().flatten().filter(|extension| extension.extn_id == oid);
    let first = found.next()?;
    found.next().is_none().then(|| first.extn_value.as_bytes())
}

/// True unless the extensions name another key than `issuer`'s as that which signed.
fn names_key_of(extensions: Option<&Extensions>, issuer: &Cert) -> bool {
    let Some(value) = extension(extensions, AUTHORITY_KEY) else { return true };
    let Ok(authority) = AuthorityKeyIdentifier::from_der(value) else { return false };
    let subject = extension(issuer.extensions(), SUBJECT_KEY).and_then(|value| SubjectKeyIdentifier::from_der(value).ok());
    match (authority.key_identifier, subject) {
        (Some(named), Some(subject)) => named == subject.0,
        _ => true,
    }
}

impl Cert {
    fn parse(der: &[u8]) -> Result<Self, CertError> {
        let inner = Certificate::from_der(der).map_err(|_| CertError::Malformed)?;
        // The signature is checked over the re-encoded inner part, which is what was signed only if all of it re-encodes to what it was.
        if inner.to_der().map_err(|_| CertError::Malformed)? != der {
            return Err(CertError::Malformed);
        }
        parameters(inner.signature_algorithm.oid)?;
        if inner.tbs_certificate.signature != inner.signature_algorithm {
            return Err(CertError::SignatureAlgorithm { found: inner.tbs_certificate.signature.oid.to_string() });
        }
        no_unknown_critical(inner.tbs_certificate.extensions.as_ref(), &[KEY_USAGE, BASIC_CONSTRAINTS, EXTENDED_KEY_USAGE])?;
        let signed = inner.tbs_certificate.to_der().map_err(|_| CertError::Malformed)?;
        Ok(Self { inner, signed })
    }

    fn extensions(&self) -> Option<&Extensions> {
        self.inner.tbs_certificate.extensions.as_ref()
    }

    pub(super) fn subject(&self) -> &Name {
        &self.inner.tbs_certificate.subject
    }

    pub(super) fn issuer(&self) -> &Name {
        &self.inner.tbs_certificate.issuer
    }

    pub(super) fn not_before(&self) -> u64 {
        self.inner.tbs_certificate.validity.not_before.to_unix_duration().as_secs()
    }

    pub(super) fn not_after(&self) -> u64 {
        self.inner.tbs_certificate.validity.not_after.to_unix_duration().as_secs()
    }

    /// True when the certificate may issue others and their revocation lists.
    pub(super) fn is_authority(&self) -> bool {
        let value = |oid| extension(self.extensions(), oid);
        value(BASIC_CONSTRAINTS).and_then(|value| BasicConstraints::from_der(value).ok()).is_some_and(|constraints| constraints.ca)
            && value(KEY_USAGE)
                .and_then(|value| KeyUsage::from_der(value).ok())
                .is_some_and(|usage| usage.key_cert_sign() && usage.crl_sign())
    }

    /// True when the key of `issuer` made the signature, and no other key is named. Names are the caller's business.
    pub(super) fn is_signed_by_key_of(&self, issuer: &Self) -> bool {
        names_key_of(self.extensions(), issuer)
            && self
                .inner
                .signature
                .as_bytes()
                .is_some_and(|signature| issuer.verify(self.inner.signature_algorithm.oid, &self.signed, signature))
    }

    /// True when the extension that names the issuer's key names another than `issuer`'s.
    pub(super) fn names_another_key_than(&self, issuer: &Self) -> bool {
        !names_key_of(self.extensions(), issuer)
    }

    fn verify(&self, algorithm: ObjectIdentifier, message: &[u8], signature: &[u8]) -> bool {
        let spki = &self.inner.tbs_certificate.subject_public_key_info;
        let key = spki.subject_public_key.as_bytes().filter(|_| spki.algorithm.oid == RSA);
        let (Some(key), Ok(parameters)) = (key, parameters(algorithm)) else { return false };
        UnparsedPublicKey::new(parameters, key).verify(message, signature).is_ok()
    }

    /// The public key, if it is one on P-521.
    pub(super) fn p521_key(&self) -> Option<PublicKey> {
        let spki = &self.inner.tbs_certificate.subject_public_key_info;
        let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        if spki.algorithm.oid != EC_PUBLIC_KEY || curve != Some(SECP521R1) {
            return None;
        }
        PublicKey::from_sec1_bytes(spki.subject_public_key.as_bytes()?).ok()
    }
}

impl RevocationList {
    fn parse(der: &[u8]) -> Result<Self, CertError> {
        let inner = CertificateList::from_der(der).map_err(|_| CertError::Malformed)?;
        if inner.to_der().map_err(|_| CertError::Malformed)? != der {
            return Err(CertError::Malformed);
        }
        parameters(inner.signature_algorithm.oid)?;
        if inner.tbs_cert_list.signature != inner.signature_algorithm {
            return Err(CertError::SignatureAlgorithm { found: inner.tbs_cert_list.signature.oid.to_string() });
        }
        // A critical extension could make it a partial list, or one of other issuers' certificates.
        no_unknown_critical(inner.tbs_cert_list.crl_extensions.as_ref(), &[])?;
        let signed = inner.tbs_cert_list.to_der().map_err(|_| CertError::Malformed)?;
        Ok(Self { inner, signed })
    }

    pub(super) fn issuer(&self) -> &Name {
        &self.inner.tbs_cert_list.issuer
    }

    pub(super) fn is_signed_by_key_of(&self, issuer: &Cert) -> bool {
        names_key_of(self.inner.tbs_cert_list.crl_extensions.as_ref(), issuer)
            && self
                .inner
                .signature
                .as_bytes()
                .is_some_and(|signature| issuer.verify(self.inner.signature_algorithm.oid, &self.signed, signature))
    }

    pub(super) fn this_update(&self) -> u64 {
        self.inner.tbs_cert_list.this_update.to_unix_duration().as_secs()
    }

    /// End of its validity. A list that names none has none here: it would be valid for ever.
    pub(super) fn next_update(&self) -> u64 {
        self.inner.tbs_cert_list.next_update.map_or(0, |time| time.to_unix_duration().as_secs())
    }

    pub(super) fn revokes(&self, cert: &Cert) -> bool {
        let serial = &cert.inner.tbs_certificate.serial_number;
        self.inner.tbs_cert_list.revoked_certificates.iter().flatten().any(|entry| entry.serial_number == *serial)
    }
}
