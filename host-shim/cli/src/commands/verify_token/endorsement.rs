//! Whether the key in a token's header is one to trust: its certificates (`x5c` in the JWK, RFC 7517 section 4.7) lead to a configured root.
//!
//! The paths are `webpki`'s (RFC 5280): certificates in any order, signatures, names, validity, CA flags, path lengths, name constraints. What it
//! leaves out is here: key usage (section 4.2.1.3), the root's own validity, and certificates that are configured themselves. Purposes of extended
//! key usage are not asked for: there is none for attestation tokens, and CoCo's verifier asks for none.

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kata_cc_verifier::checks::Checks;
use kata_cc_verifier::pem;
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use serde_json::Value;
use std::time::Duration;
use webpki::{EndEntityCert, KeyPurposeIdIter, VerifiedPath, anchor_from_trusted_cert};
use x509_cert::Certificate;
use x509_cert::der::asn1::{ObjectIdentifier, SequenceOf, UintRef};
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::{KeyUsage, KeyUsages};

/// Most certificates in a header. CoCo's and ours have one to three.
const MAX_CERTIFICATES: usize = 8;
/// Most roots in a file: those of a public trust store are some 150.
const MAX_ROOTS: usize = 1024;

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");

/// How certificates may be signed: SHA-2, ECDSA, RSA of 2048 bits and more, Ed25519.
const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::ED25519,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512,
    webpki::ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Certificates that are trusted because somebody named them.
pub(super) struct Roots(Vec<CertificateDer<'static>>);

impl Roots {
    /// From a file of certificates in PEM.
    pub(super) fn from_pem(text: &[u8]) -> anyhow::Result<Self> {
        let certificates = pem::certificates(text).context("expected certificates in PEM and nothing else")?;
        if certificates.len() > MAX_ROOTS {
            bail!("holds {} certificates, at most {MAX_ROOTS} are taken", certificates.len());
        }
        let der = certificates.iter().map(|certificate| certificate.to_der().map(CertificateDer::from));
        Ok(Self(der.collect::<Result<_, _>>().context("a certificate is not in DER")?))
    }

    /// Those that are in their time.
    fn valid_at(&self, now: u64) -> Vec<&CertificateDer<'static>> {
        self.0.iter().filter(|der| Certificate::from_der(der).is_ok_and(|root| is_valid_at(&root, now))).collect()
    }
}

/// Holds the key of a token's header against roots. What was compared is recorded; the error says what was not as it should be.
pub(super) fn endorse(jwk: &Value, roots: &Roots, now: u64, checks: &mut Checks) -> Result<(), String> {
    let wanted = format!("1 to {MAX_CERTIFICATES}, the key's own first");
    let chain = certificates(jwk);
    let found = chain.as_ref().map_or_else(Clone::clone, |chain| format!("{} in x5c of the header's jwk", chain.len()));
    let chain = checks.record("certificates", found, wanted, chain)?;
    let (first, others) = chain.split_first().ok_or("no certificate")?;
    let leaf = Certificate::from_der(first).map_err(|_| "the first certificate of x5c is malformed")?;

    let (certified, named) = (certified_key(&leaf), named_key(jwk));
    let shown = |key: &Option<Vec<u8>>| key.as_deref().map_or("no key that is known here (EC P-256, RSA)".to_owned(), fingerprint);
    let same = (certified.is_some() && certified == named).then_some(());
    let same = same.ok_or("the first certificate of x5c is of another key than the header's jwk");
    checks.record("certificate key", shown(&certified), shown(&named), same)?;

    let usage = may(&leaf, KeyUsages::DigitalSignature);
    let found = if usage { "digital signature, or no restriction" } else { "other uses" };
    checks.record("key usage", found, "digital signature", usage.then_some(()).ok_or("the first certificate of x5c is not for signing"))?;

    let valid = roots.valid_at(now);
    let path = path(first, &leaf, others, &valid, now);
    let found = path.as_ref().map_or_else(Clone::clone, |path| path.join(" < ").escape_debug().to_string());
    let left = roots.0.len() - valid.len();
    let expected =
        format!("one of {} roots{}", valid.len(), if left > 0 { format!(" ({left} more are not valid now)") } else { String::new() });
    let reached = path.map_err(|why| format!("the certificates of the token's key lead to none of the roots: {why}"));
    checks.record("certificate chain", found, expected, reached.map(drop))
}

/// The certificates in a JWK.
fn certificates(jwk: &Value) -> Result<Vec<CertificateDer<'static>>, String> {
    let x5c = jwk.get("x5c").ok_or("none: the header's jwk has no x5c")?.as_array().ok_or("x5c is not a list")?;
    if x5c.is_empty() || x5c.len() > MAX_CERTIFICATES {
        return Err(format!("{} in x5c", x5c.len()));
    }
    let decode = |entry: &Value| entry.as_str().and_then(|text| STANDARD.decode(text).ok()).map(CertificateDer::from);
    let chain: Option<Vec<CertificateDer<'static>>> = x5c.iter().map(decode).collect();
    let chain = chain.ok_or("an entry of x5c is not DER in standard base64 (RFC 7515, section 4.1.6)")?;
    let is_certificate = chain.first().is_some_and(|first| Certificate::from_der(first).is_ok());
    if is_certificate { Ok(chain) } else { Err("the first entry of x5c is no certificate".into()) }
}

/// Names from the token's key to the root, or why there is no such path.
fn path(
    first: &CertificateDer<'_>,
    leaf: &Certificate,
    others: &[CertificateDer<'_>],
    roots: &[&CertificateDer<'_>],
    now: u64,
) -> Result<Vec<String>, String> {
    // Whoever names this very certificate trusts its key, whoever issued it.
    if roots.contains(&first) {
        return Ok(vec![format!("{} (named itself)", leaf.tbs_certificate.subject)]);
    }
    let anchors: Vec<TrustAnchor<'_>> = roots.iter().filter_map(|root| anchor_from_trusted_cert(root).ok()).collect();
    let end = EndEntityCert::try_from(first).map_err(|error| error.to_string())?;
    let usages = |path: &VerifiedPath<'_>| {
        let issuers = path.intermediate_certificates().map(|issuer| Certificate::from_der(&issuer.der()));
        let all = issuers.into_iter().all(|issuer| issuer.is_ok_and(|issuer| may(&issuer, KeyUsages::KeyCertSign)));
        if all { Ok(()) } else { Err(webpki::Error::UnknownIssuer) }
    };
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let path = end.verify_for_usage(ALGORITHMS, &anchors, others, time, AnyPurpose, None, Some(&usages));
    let path = path.map_err(|error| error.to_string())?;
    let mut names = vec![leaf.tbs_certificate.subject.to_string()];
    names.extend(path.intermediate_certificates().filter_map(|issuer| subject(&issuer.der())));
    let root = roots.iter().find(|root| anchor_from_trusted_cert(root).is_ok_and(|anchor| anchor == *path.anchor()));
    names.push(root.and_then(|root| subject(root)).unwrap_or_default());
    Ok(names)
}

fn subject(der: &CertificateDer<'_>) -> Option<String> {
    Certificate::from_der(der).ok().map(|certificate| certificate.tbs_certificate.subject.to_string())
}

/// Takes certificates for whatever purpose.
struct AnyPurpose;

impl webpki::ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn is_valid_at(certificate: &Certificate, now: u64) -> bool {
    let validity = &certificate.tbs_certificate.validity;
    (validity.not_before.to_unix_duration().as_secs()..=validity.not_after.to_unix_duration().as_secs()).contains(&now)
}

/// Whether a key may be used for this: where nothing is said of its uses, it may.
fn may(certificate: &Certificate, wanted: KeyUsages) -> bool {
    let mut said = certificate.tbs_certificate.extensions.iter().flatten().filter(|extension| extension.extn_id == KEY_USAGE);
    said.all(|extension| KeyUsage::from_der(extension.extn_value.as_bytes()).is_ok_and(|usage| usage.0.contains(wanted)))
}

/// The key that a certificate is of, as its bits are there: a point, or modulus and exponent.
fn certified_key(certificate: &Certificate) -> Option<Vec<u8>> {
    let spki = &certificate.tbs_certificate.subject_public_key_info;
    let curve = || spki.algorithm.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
    let known = match spki.algorithm.oid {
        EC_PUBLIC_KEY => curve() == Some(SECP256R1),
        RSA => true,
        _ => false,
    };
    known.then(|| spki.subject_public_key.as_bytes()).flatten().map(<[u8]>::to_vec)
}

/// The key that a JWK names, as a certificate would have its bits.
fn named_key(jwk: &Value) -> Option<Vec<u8>> {
    let number = |name: &str| URL_SAFE_NO_PAD.decode(jwk.get(name)?.as_str()?).ok();
    match (jwk.get("kty")?.as_str()?, jwk.get("crv").and_then(Value::as_str)) {
        ("EC", Some("P-256")) => {
            let (x, y) = (number("x")?, number("y")?);
            (x.len() == 32 && y.len() == 32).then(|| [&[4], &x[..], &y].concat())
        }
        ("RSA", None) => {
            let (n, e) = (number("n")?, number("e")?);
            let mut key = SequenceOf::<UintRef<'_>, 2>::new();
            key.add(UintRef::new(&n).ok()?).ok()?;
            key.add(UintRef::new(&e).ok()?).ok()?;
            key.to_der().ok()
        }
        _ => None,
    }
}

fn fingerprint(key: &[u8]) -> String {
    format!("SHA-256 {}", hex::encode(digest(&SHA256, key)))
}
