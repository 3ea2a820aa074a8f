//! X.509 certificates of the simulated key hierarchy, in the shape of AMD's (AMD 57230 "VCEK Certificate and KDS Interface", §3).
//!
//! RSA-4096 root and intermediate, RSASSA-PSS with SHA-384 throughout, P-384 chip key whose certificate carries the TCB version and the
//! hardware id as private extensions. This module only encodes and signs; which keys and values go in is [`crate::identity`]'s business.

use der::asn1::{BitString, GeneralizedTime, Ia5StringRef, ObjectIdentifier, OctetString, UtcTime};
use der::{DateTime, Encode};
use rand_core::OsRng;
use rsa::pss::SigningKey;
use rsa::sha2::Sha384;
use rsa::signature::{RandomizedSigner, SignatureEncoding};
use rsa::{RsaPrivateKey, RsaPublicKey};
use std::str::FromStr;
use std::time::Duration;
use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, BasicConstraints, KeyUsage, KeyUsages, SubjectKeyIdentifier};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{DynSignatureAlgorithmIdentifier, EncodePublicKey, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

/// AMD's arc for certificate extensions.
const STRUCT_VERSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.1");
const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
const SPL_BOOTLOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const SPL_TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SPL_SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
/// Reserved SPLs 4 to 7: AMD always writes them, as zero.
const SPL_RESERVED: [ObjectIdentifier; 4] = [
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.4"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.5"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.6"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.7"),
];
const SPL_MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
const HWID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
const OID_SUBJECT_KEY_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.14");
const OID_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const OID_BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const OID_AUTHORITY_KEY_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.35");

/// Seconds from the epoch to 2050-01-01, from where RFC 5280 §4.1.2.5 wants GeneralizedTime.
const YEAR_2050: u64 = 2_524_608_000;

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// DER encoding failed: a value does not fit its ASN.1 type.
    #[error("cannot encode the certificate")]
    Der(#[from] der::Error),
    /// A public key could not be put into SubjectPublicKeyInfo form.
    #[error("cannot encode the public key")]
    Spki(#[from] x509_cert::spki::Error),
    /// The RSA signature failed.
    #[error("cannot sign the certificate")]
    Sign(#[from] rsa::signature::Error),
}

/// The names of the simulated hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Root, in the place of AMD's ARK.
    Ark,
    /// Intermediate, in the place of AMD's ASK.
    Ask,
    /// Chip key, in the place of AMD's VCEK.
    Vcek,
}

impl Role {
    /// `hierarchy` keeps apart the roots of several simulations that one broker trusts.
    fn name(self, hierarchy: &str) -> Result<Name, der::Error> {
        let cn = match self {
            Self::Ark => "SIM-ARK",
            Self::Ask => "SIM-ASK",
            Self::Vcek => "SIM-VCEK",
        };
        Name::from_str(&format!("CN={cn},O=Simulated TEE without security,OU=Development {hierarchy}"))
    }
}

/// What all certificates of a hierarchy have in common. Times are seconds of Unix time.
#[derive(Debug, Clone, Copy)]
pub struct Hierarchy<'a> {
    /// A short random word, part of every name.
    pub name: &'a str,
    /// First second.
    pub not_before: u64,
    /// Last second.
    pub not_after: u64,
}

/// What the chip key's certificate says about the chip.
#[derive(Debug, Clone)]
pub struct ChipClaims<'a> {
    /// Product and stepping, for example `Milan-B1`.
    pub product: &'a str,
    /// Security patch levels.
    pub bootloader: u8,
    /// TEE (PSP OS) patch level.
    pub tee: u8,
    /// SNP firmware patch level.
    pub snp: u8,
    /// Microcode patch level.
    pub microcode: u8,
    /// The chip's identity.
    pub hwid: &'a [u8; 64],
}

/// The self-signed simulated root.
pub fn root(key: &RsaPrivateKey, common: Hierarchy<'_>) -> Result<Vec<u8>, CertError> {
    let spki = SubjectPublicKeyInfoOwned::from_key(RsaPublicKey::from(key))?;
    let extensions = vec![
        extension(OID_KEY_USAGE, true, &KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign))?,
        extension(OID_SUBJECT_KEY_ID, false, &SubjectKeyIdentifier(key_id(&spki)?))?,
        extension(OID_BASIC_CONSTRAINTS, true, &BasicConstraints { ca: true, path_len_constraint: None })?,
    ];
    sign(key, Role::Ark, Role::Ark, &[1, 0, 0], common, spki, extensions)
}

/// The intermediate, signed by the root.
pub fn intermediate(root: &RsaPrivateKey, key: &RsaPrivateKey, common: Hierarchy<'_>) -> Result<Vec<u8>, CertError> {
    let spki = SubjectPublicKeyInfoOwned::from_key(RsaPublicKey::from(key))?;
    let issuer = SubjectPublicKeyInfoOwned::from_key(RsaPublicKey::from(root))?;
    let authority =
        AuthorityKeyIdentifier { key_identifier: Some(key_id(&issuer)?), authority_cert_issuer: None, authority_cert_serial_number: None };
    let extensions = vec![
        extension(OID_SUBJECT_KEY_ID, false, &SubjectKeyIdentifier(key_id(&spki)?))?,
        extension(OID_AUTHORITY_KEY_ID, false, &authority)?,
        extension(OID_BASIC_CONSTRAINTS, true, &BasicConstraints { ca: true, path_len_constraint: Some(0) })?,
        extension(OID_KEY_USAGE, true, &KeyUsage(KeyUsages::KeyCertSign.into()))?,
    ];
    sign(root, Role::Ark, Role::Ask, &[1, 0, 1], common, spki, extensions)
}

/// The chip key's certificate, signed by the intermediate.
pub fn chip(ask: &RsaPrivateKey, key: &p384::PublicKey, claims: &ChipClaims<'_>, common: Hierarchy<'_>) -> Result<Vec<u8>, CertError> {
    let der = key.to_public_key_der()?;
    let spki = <SubjectPublicKeyInfoOwned as der::Decode>::from_der(der.as_bytes())?;
    let mut extensions = vec![
        extension(STRUCT_VERSION, false, &0u8)?,
        extension(PRODUCT_NAME, false, &Ia5StringRef::new(claims.product)?)?,
        extension(SPL_BOOTLOADER, false, &claims.bootloader)?,
        extension(SPL_TEE, false, &claims.tee)?,
        extension(SPL_SNP, false, &claims.snp)?,
    ];
    for oid in SPL_RESERVED {
        extensions.push(extension(oid, false, &0u8)?);
    }
    extensions.push(extension(SPL_MICROCODE, false, &claims.microcode)?);
    // AMD puts the hardware id into the extension raw, without an OCTET STRING of its own around it.
    extensions.push(Extension { extn_id: HWID, critical: false, extn_value: OctetString::new(claims.hwid.as_slice())? });
    sign(ask, Role::Ask, Role::Vcek, &[0], common, spki, extensions)
}

fn sign(
    key: &RsaPrivateKey,
    issuer: Role,
    subject: Role,
    serial: &[u8],
    common: Hierarchy<'_>,
    subject_public_key_info: SubjectPublicKeyInfoOwned,
    extensions: Vec<Extension>,
) -> Result<Vec<u8>, CertError> {
    let signer = SigningKey::<Sha384>::new(key.clone());
    let algorithm = signer.signature_algorithm_identifier()?;
    let tbs_certificate = TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(serial)?,
        signature: algorithm.clone(),
        issuer: issuer.name(common.name)?,
        validity: Validity { not_before: time(common.not_before)?, not_after: time(common.not_after)? },
        subject: subject.name(common.name)?,
        subject_public_key_info,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions),
    };
    let signature = signer.try_sign_with_rng(&mut OsRng, &tbs_certificate.to_der()?)?;
    let certificate =
        Certificate { tbs_certificate, signature_algorithm: algorithm, signature: BitString::from_bytes(&signature.to_bytes())? };
    Ok(certificate.to_der()?)
}

fn extension(extn_id: ObjectIdentifier, critical: bool, value: &impl Encode) -> Result<Extension, der::Error> {
    Ok(Extension { extn_id, critical, extn_value: OctetString::new(value.to_der()?)? })
}

/// RFC 7093 §2 method 1: the leftmost 160 bits of SHA-256 of the public key. An identifier only, nothing rests on it.
fn key_id(spki: &SubjectPublicKeyInfoOwned) -> Result<OctetString, der::Error> {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(spki.subject_public_key.raw_bytes());
    OctetString::new(&digest[..20])
}

fn time(unix: u64) -> Result<Time, der::Error> {
    let at = DateTime::from_unix_duration(Duration::from_secs(unix))?;
    Ok(if unix < YEAR_2050 { Time::UtcTime(UtcTime::from_date_time(at)?) } else { Time::GeneralTime(GeneralizedTime::from_date_time(at)) })
}
