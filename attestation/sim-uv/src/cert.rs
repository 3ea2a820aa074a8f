//! Certificates and revocation lists in the shape of those around IBM's host keys: RSA PKCS #1 v1.5 with SHA-512.

use std::str::FromStr as _;
use std::time::Duration;

use der::asn1::{BitString, GeneralizedTime, Null, ObjectIdentifier, OctetString, UtcTime};
use der::{DateTime, Encode as _, EncodePem as _};
use rsa::RsaPrivateKey;
use rsa::pkcs1v15::SigningKey;
use rsa::sha2::Sha512;
use rsa::signature::{SignatureEncoding as _, Signer as _};
use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, EncodePublicKey, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

const SHA512_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
/// Seconds from the epoch to 2050-01-01, from where RFC 5280 §4.1.2.5 wants GeneralizedTime.
const YEAR_2050: u64 = 2_524_608_000;

/// The name that the key signing service must have, with a unit that says it is none.
#[must_use]
pub fn signing_service() -> &'static str {
    "CN=International Business Machines Corporation,C=US,ST=New York,L=Armonk,O=International Business Machines Corporation,\
     OU=Simulated Key Signing Service"
}

fn name(text: &str) -> Name {
    Name::from_str(text).expect("a name that is written in a test")
}

fn time(seconds: u64) -> Time {
    let at = DateTime::from_unix_duration(Duration::from_secs(seconds)).expect("before the year 10000");
    match UtcTime::from_date_time(at) {
        Ok(time) if seconds < YEAR_2050 => Time::UtcTime(time),
        _ => Time::GeneralTime(GeneralizedTime::from_date_time(at)),
    }
}

fn algorithm() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: SHA512_WITH_RSA, parameters: Some(Null.into()) }
}

fn sign(key: &RsaPrivateKey, message: &[u8]) -> BitString {
    let signature = SigningKey::<Sha512>::new(key.clone()).sign(message);
    BitString::from_bytes(&signature.to_bytes()).expect("short")
}

fn extension(extn_id: ObjectIdentifier, value: Vec<u8>) -> Extension {
    Extension { extn_id, critical: true, extn_value: OctetString::new(value).expect("short") }
}

/// A certificate to be.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// Whose it is.
    pub subject: &'a str,
    /// Who signs it.
    pub issuer: &'a str,
    /// Serial number.
    pub serial: u8,
    /// First second.
    pub not_before: u64,
    /// Last second.
    pub not_after: u64,
    /// Whether it may issue others and their revocation lists.
    pub authority: bool,
}

impl Draft<'_> {
    /// Of this public key, signed by that private one; PEM.
    #[must_use]
    pub fn signed(&self, key: &impl EncodePublicKey, issuer: &RsaPrivateKey) -> String {
        let spki = key.to_public_key_der().expect("a public key");
        let usage = KeyUsage(if self.authority { KeyUsages::KeyCertSign | KeyUsages::CRLSign } else { KeyUsages::KeyAgreement.into() });
        let constraints = BasicConstraints { ca: self.authority, path_len_constraint: None };
        let tbs_certificate = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(&[self.serial]).expect("one byte"),
            signature: algorithm(),
            issuer: name(self.issuer),
            validity: Validity { not_before: time(self.not_before), not_after: time(self.not_after) },
            subject: name(self.subject),
            subject_public_key_info: <SubjectPublicKeyInfoOwned as der::Decode>::from_der(spki.as_bytes()).expect("a public key"),
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(vec![
                extension(BASIC_CONSTRAINTS, constraints.to_der().expect("short")),
                extension(KEY_USAGE, usage.to_der().expect("short")),
            ]),
        };
        let signature = sign(issuer, &tbs_certificate.to_der().expect("made of encodable parts"));
        let certificate = Certificate { tbs_certificate, signature_algorithm: algorithm(), signature };
        certificate.to_pem(der::pem::LineEnding::LF).expect("made of encodable parts")
    }
}

/// A revocation list to be.
#[derive(Clone, Debug)]
pub struct List<'a> {
    /// Who signs it.
    pub issuer: &'a str,
    /// Serial numbers on it.
    pub revoked: &'a [u8],
    /// First second.
    pub this_update: u64,
    /// Last second.
    pub next_update: u64,
}

impl List<'_> {
    /// Signed by this key; PEM.
    #[must_use]
    pub fn signed(&self, key: &RsaPrivateKey) -> String {
        let entry = |serial: &u8| RevokedCert {
            serial_number: SerialNumber::new(&[*serial]).expect("one byte"),
            revocation_date: time(self.this_update),
            crl_entry_extensions: None,
        };
        let revoked: Vec<_> = self.revoked.iter().map(entry).collect();
        let tbs_cert_list = TbsCertList {
            version: Version::V2,
            signature: algorithm(),
            issuer: name(self.issuer),
            this_update: time(self.this_update),
            next_update: Some(time(self.next_update)),
            // RFC 5280 §5.1.2.6: without any, the field is absent.
            revoked_certificates: (!revoked.is_empty()).then_some(revoked),
            crl_extensions: None,
        };
        let signature = sign(key, &tbs_cert_list.to_der().expect("made of encodable parts"));
        let list = CertificateList { tbs_cert_list, signature_algorithm: algorithm(), signature };
        let list = list.to_der().expect("made of encodable parts");
        // RFC 7468 §6. The type itself names no label.
        der::pem::encode_string("X509 CRL", der::pem::LineEnding::LF, &list).expect("a label of letters")
    }
}
