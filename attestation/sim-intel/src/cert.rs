//! Certificates and revocation lists, in the shape of Intel's ("SGX PCK Certificate and Certificate Revocation List Profile Specification").

use std::str::FromStr as _;
use std::time::Duration;

use der::asn1::{GeneralizedTime, ObjectIdentifier, OctetString, UtcTime};
use der::{DateTime, Encode as _, EncodePem as _};
use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::BasicConstraints;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::time::{Time, Validity};

use super::key::Key;

/// Seconds from the epoch to 2050-01-01, from where RFC 5280 §4.1.2.5 wants GeneralizedTime.
const YEAR_2050: u64 = 2_524_608_000;

/// An object identifier that is written in this source.
#[must_use]
pub fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new(text).expect("an object identifier")
}

fn name(common_name: &str) -> Name {
    Name::from_str(&format!("CN={common_name},O=Simulated TEE without security")).expect("words without special characters")
}

/// ECDSA on P-256 with SHA-256.
#[must_use]
pub fn ecdsa() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: oid("1.2.840.10045.4.3.2"), parameters: None }
}

fn time(seconds: u64) -> Time {
    let at = DateTime::from_unix_duration(Duration::from_secs(seconds)).expect("before the year 10000");
    match UtcTime::from_date_time(at) {
        Ok(time) if seconds < YEAR_2050 => Time::UtcTime(time),
        _ => Time::GeneralTime(GeneralizedTime::from_date_time(at)),
    }
}

/// An extension of this value in DER.
#[must_use]
pub fn extension(id: &str, critical: bool, value: Vec<u8>) -> Extension {
    Extension { extn_id: oid(id), critical, extn_value: OctetString::new(value).expect("short") }
}

/// Basic constraints.
#[must_use]
pub fn constraints(ca: bool) -> Extension {
    extension("2.5.29.19", true, BasicConstraints { ca, path_len_constraint: None }.to_der().expect("short"))
}

/// Key usage: for an authority, to sign certificates and lists; else signatures.
fn usage(ca: bool) -> Extension {
    extension("2.5.29.15", true, if ca { vec![3, 2, 1, 6] } else { vec![3, 2, 6, 0xc0] })
}

/// A certificate to be.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    /// Common name of whose it is.
    pub subject: &'a str,
    /// Common name of who signs it.
    pub issuer: &'a str,
    /// Serial number.
    pub serial: u8,
    /// First second.
    pub not_before: u64,
    /// Last second.
    pub not_after: u64,
    /// Extensions.
    pub extensions: Vec<Extension>,
    /// Signature algorithm that it names.
    pub algorithm: AlgorithmIdentifierOwned,
}

impl<'a> Draft<'a> {
    /// A certificate with the extensions of an authority, or of one that is none.
    #[must_use]
    pub fn new(subject: &'a str, issuer: &'a str, serial: u8, ca: bool, not_before: u64, not_after: u64) -> Self {
        Self { subject, issuer, serial, not_before, not_after, extensions: vec![constraints(ca), usage(ca)], algorithm: ecdsa() }
    }

    /// Of this key, signed by that one.
    #[must_use]
    pub fn signed(&self, key: &Key, issuer: &Key) -> Certificate {
        let tbs_certificate = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(&[self.serial]).expect("one byte"),
            signature: self.algorithm.clone(),
            issuer: name(self.issuer),
            validity: Validity { not_before: time(self.not_before), not_after: time(self.not_after) },
            subject: name(self.subject),
            subject_public_key_info: key.spki(),
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(self.extensions.clone()),
        };
        let signature = issuer.asn1(&tbs_certificate.to_der().expect("made of encodable parts"));
        Certificate { tbs_certificate, signature_algorithm: self.algorithm.clone(), signature }
    }
}

/// Certificates one after the other, PEM.
#[must_use]
pub fn pem(certs: &[&Certificate]) -> Vec<u8> {
    let texts = certs.iter().map(|cert| cert.to_pem(der::pem::LineEnding::LF).expect("made of encodable parts"));
    texts.collect::<String>().into_bytes()
}

/// A revocation list to be.
#[derive(Clone, Debug)]
pub struct List<'a> {
    /// Common name of who signs it.
    pub issuer: &'a str,
    /// Serial numbers on it.
    pub revoked: Vec<u8>,
    /// First second.
    pub this_update: u64,
    /// Last second.
    pub next_update: Option<u64>,
}

impl List<'_> {
    /// Signed by this key, DER.
    #[must_use]
    pub fn signed(&self, key: &Key) -> Vec<u8> {
        let entry = |serial: &u8| RevokedCert {
            serial_number: SerialNumber::new(&[*serial]).expect("one byte"),
            revocation_date: time(self.this_update),
            crl_entry_extensions: None,
        };
        // RFC 5280 §5.1.2.6: without any, the field is absent.
        let revoked: Vec<_> = self.revoked.iter().map(entry).collect();
        let tbs_cert_list = TbsCertList {
            version: Version::V2,
            signature: ecdsa(),
            issuer: name(self.issuer),
            this_update: time(self.this_update),
            next_update: self.next_update.map(time),
            revoked_certificates: (!revoked.is_empty()).then_some(revoked),
            crl_extensions: None,
        };
        let signature = key.asn1(&tbs_cert_list.to_der().expect("made of encodable parts"));
        let list = CertificateList { tbs_cert_list, signature_algorithm: ecdsa(), signature };
        list.to_der().expect("made of encodable parts")
    }
}
