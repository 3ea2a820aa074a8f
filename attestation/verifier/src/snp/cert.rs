//! One certificate of AMD's hierarchy: strict DER, RSASSA-PSS with SHA-384, and the private extensions of VCEK and VLEK.
//!
//! AMD 57230, "VCEK Certificate and KDS Interface Specification", section 3. RFC 5280 path validation at large is not here: AMD's chains
//! have exactly three certificates and no names worth constraining.

use der::asn1::{Ia5StringRef, OctetStringRef};
use der::oid::ObjectIdentifier;
use der::{Decode as _, Encode as _};
use kata_cc_evidence::snp::{Generation, TcbVersion};
use ring::signature::{ECDSA_P384_SHA384_FIXED, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::ext::pkix::BasicConstraints;
use x509_cert::name::Name;

use super::crl::RevocationList;

const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
const SPL_BOOTLOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const SPL_TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SPL_SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
const SPL_MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
const SPL_FMC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
const HWID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");

/// Why bytes are not a certificate we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// Not a DER (or PEM) certificate, or not in its one canonical form.
    #[error("not an X.509 certificate in DER or PEM")]
    Malformed,
    /// Another signature algorithm than RSASSA-PSS.
    #[error("signed with {found}, expected RSASSA-PSS")]
    SignatureAlgorithm {
        /// The algorithm's object identifier.
        found: String,
    },
    /// An extension AMD always writes is missing, double or malformed.
    #[error("extension {oid} ({what}) is missing, repeated or malformed")]
    Extension {
        /// Which.
        oid: String,
        /// What it holds.
        what: &'static str,
    },
    /// The key is not on P-384.
    #[error("key is not an EC key on P-384")]
    NotP384,
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
pub(crate) struct Cert {
    inner: Certificate,
    signed: Vec<u8>,
}

impl Cert {
    /// Parses one certificate, DER or PEM.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CertError> {
        if bytes.starts_with(b"-----BEGIN") {
            let mut certs = Self::parse_pem(bytes)?;
            let found = certs.len();
            return certs.pop().filter(|_| found == 1).ok_or(CertError::Count { expected: "one certificate", found });
        }
        let inner = Certificate::from_der(bytes).map_err(|_| CertError::Malformed)?;
        // The signature is checked over the re-encoded inner part. That part is the one in `bytes` only if all of it re-encodes to
        // the same, which DER promises and a forger might not.
        if inner.to_der().map_err(|_| CertError::Malformed)? != bytes {
            return Err(CertError::Malformed);
        }
        let algorithm = inner.signature_algorithm.oid;
        if algorithm != RSASSA_PSS || inner.tbs_certificate.signature != inner.signature_algorithm {
            return Err(CertError::SignatureAlgorithm { found: algorithm.to_string() });
        }
        let signed = inner.tbs_certificate.to_der().map_err(|_| CertError::Malformed)?;
        Ok(Self { inner, signed })
    }

    /// Parses all certificates of a PEM text.
    pub(crate) fn parse_pem(text: &[u8]) -> Result<Vec<Self>, CertError> {
        let chain = crate::pem::certificates(text).ok_or(CertError::Malformed)?;
        chain.iter().map(|cert| Self::parse(&cert.to_der().map_err(|_| CertError::Malformed)?)).collect()
    }

    pub(crate) fn subject(&self) -> &Name {
        &self.inner.tbs_certificate.subject
    }

    pub(crate) fn issuer(&self) -> &Name {
        &self.inner.tbs_certificate.issuer
    }

    pub(crate) fn is_self_issued(&self) -> bool {
        self.subject() == self.issuer()
    }

    /// Same name and same key. Certificates may differ all the same: AMD has reissued some, and PSS signatures are random.
    pub(crate) fn is_same_issuer_as(&self, other: &Self) -> bool {
        let key = |cert: &Self| cert.inner.tbs_certificate.subject_public_key_info.clone();
        self.subject() == other.subject() && key(self) == key(other)
    }

    pub(crate) fn not_before(&self) -> u64 {
        self.inner.tbs_certificate.validity.not_before.to_unix_duration().as_secs()
    }

    pub(crate) fn not_after(&self) -> u64 {
        self.inner.tbs_certificate.validity.not_after.to_unix_duration().as_secs()
    }

    /// True when the certificate may issue others.
    pub(crate) fn is_authority(&self) -> bool {
        self.extension(BASIC_CONSTRAINTS).and_then(|value| BasicConstraints::from_der(value).ok()).is_some_and(|constraints| constraints.ca)
    }

    /// True when `issuer`'s key made this certificate's signature (RSASSA-PSS, SHA-384, salt of 48 bytes; all of AMD's are so).
    pub(crate) fn is_signed_by(&self, issuer: &Self) -> bool {
        self.inner.signature.as_bytes().is_some_and(|signature| issuer.verify_pss(&self.signed, signature))
    }

    fn verify_pss(&self, message: &[u8], signature: &[u8]) -> bool {
        let Some(key) = self.inner.tbs_certificate.subject_public_key_info.subject_public_key.as_bytes() else { return false };
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, key).verify(message, signature).is_ok()
    }

    /// True when this P-384 key made the signature, given as big-endian R ‖ S.
    pub(crate) fn verify_p384(&self, message: &[u8], signature: &[u8; 96]) -> Result<bool, CertError> {
        let spki = &self.inner.tbs_certificate.subject_public_key_info;
        let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        if spki.algorithm.oid != EC_PUBLIC_KEY || curve != Some(SECP384R1) {
            return Err(CertError::NotP384);
        }
        let key = spki.subject_public_key.as_bytes().ok_or(CertError::NotP384)?;
        Ok(UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key).verify(message, signature).is_ok())
    }

    /// The extension's value, when it is there exactly once.
    fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let mut found = self.inner.tbs_certificate.extensions.iter().flatten().filter(|extension| extension.extn_id == oid);
        let first = found.next()?;
        found.next().is_none().then(|| first.extn_value.as_bytes())
    }

    fn has(&self, oid: ObjectIdentifier) -> bool {
        self.inner.tbs_certificate.extensions.iter().flatten().any(|extension| extension.extn_id == oid)
    }

    fn spl(&self, oid: ObjectIdentifier, what: &'static str) -> Result<u8, CertError> {
        self.extension(oid).and_then(|value| u8::from_der(value).ok()).ok_or(CertError::Extension { oid: oid.to_string(), what })
    }

    /// The TCB this endorsement key was derived for.
    pub(crate) fn tcb(&self) -> Result<TcbVersion, CertError> {
        Ok(TcbVersion {
            fmc: if self.has(SPL_FMC) { Some(self.spl(SPL_FMC, "fmcSPL")?) } else { None },
            bootloader: self.spl(SPL_BOOTLOADER, "blSPL")?,
            tee: self.spl(SPL_TEE, "teeSPL")?,
            snp: self.spl(SPL_SNP, "snpSPL")?,
            microcode: self.spl(SPL_MICROCODE, "ucodeSPL")?,
        })
    }

    /// The chip this VCEK is for, in the 64-byte form of a report's CHIP_ID.
    ///
    /// AMD writes 64 bytes, eight from Turin on; raw in older certificates, wrapped in an OCTET STRING in newer ones.
    pub(crate) fn hwid(&self) -> Result<[u8; 64], CertError> {
        let bad = || CertError::Extension { oid: HWID.to_string(), what: "hwID" };
        let value = self.extension(HWID).ok_or_else(bad)?;
        let id = match value.len() {
            8 | 64 => value,
            _ => OctetStringRef::from_der(value).map_err(|_| bad())?.as_bytes(),
        };
        if !matches!(id.len(), 8 | 64) {
            return Err(bad());
        }
        let mut chip = [0; 64];
        chip.iter_mut().zip(id).for_each(|(to, from)| *to = *from);
        Ok(chip)
    }

    /// `Milan`, `Genoa`, `Turin`, …: the product name up to the stepping.
    pub(crate) fn product(&self) -> Option<&str> {
        let name = Ia5StringRef::from_der(self.extension(PRODUCT_NAME)?).ok()?.as_str();
        Some(name.split_once('-').map_or(name, |(product, _stepping)| product))
    }

    /// The generation its product name stands for, if it is one of those known.
    pub(crate) fn generation(&self) -> Option<Generation> {
        Generation::ALL.into_iter().find(|generation| self.product() == Some(generation.name()))
    }

    /// The revocation list `bytes` in DER, when this certificate's key signed it and all of it is understood.
    pub(super) fn revocation_list(&self, bytes: &[u8]) -> Option<RevocationList> {
        let list = CertificateList::from_der(bytes).ok().filter(|list| list.to_der().is_ok_and(|again| again == bytes))?;
        let signed = list.tbs_cert_list.to_der().ok()?;
        let genuine = list.signature_algorithm.oid == RSASSA_PSS
            && list.tbs_cert_list.issuer == *self.subject()
            && self.verify_pss(&signed, list.signature.as_bytes()?);
        // A critical extension changes what the list means: a delta, or a list of some certificates only (RFC 5280, section 5.2).
        let partial = list.tbs_cert_list.crl_extensions.iter().flatten().any(|extension| extension.critical);
        (genuine && !partial).then(|| RevocationList {
            this_update: list.tbs_cert_list.this_update.to_unix_duration().as_secs(),
            next_update: list.tbs_cert_list.next_update.map(|time| time.to_unix_duration().as_secs()),
            serials: list
                .tbs_cert_list
                .revoked_certificates
                .into_iter()
                .flatten()
                .map(|entry| entry.serial_number.as_bytes().to_vec())
                .collect(),
        })
    }

    pub(crate) fn serial(&self) -> &[u8] {
        self.inner.tbs_certificate.serial_number.as_bytes()
    }
}

/// Common name of a distinguished name, or all of it where there is none.
pub(crate) fn common_name(name: &Name) -> String {
    let attributes = name.0.iter().flat_map(|set| set.0.iter());
    let text = attributes.filter(|attribute| attribute.oid == COMMON_NAME).find_map(|attribute| {
        // Every string type AMD and others use here is ASCII in practice; anything else is shown as the whole name.
        std::str::from_utf8(attribute.value.value()).ok().map(str::to_owned)
    });
    text.unwrap_or_else(|| name.to_string()).chars().filter(|c| !c.is_control()).take(128).collect()
}

/// A time for people; what is beyond X.509's range is shown as seconds.
pub(crate) fn utc(seconds: u64) -> String {
    der::DateTime::from_unix_duration(std::time::Duration::from_secs(seconds)).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}
