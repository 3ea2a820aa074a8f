//! How long a piece of collateral is kept, by what it says of itself: until its next update, and never longer than its kind is worth.
//!
//! Not a verification: a piece that lies about its time is refused by the verifier. But what is not even of a known form is not kept, so that an
//! error page in place of a certificate is asked for again.

use der::Decode as _;
use kata_cc_verifier::collateral::Item;
use serde::Deserialize;
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;

use crate::service::FetchError;

/// Lists and TCB levels: makers publish new ones early when they must.
const DAY: u64 = 86_400;
/// Certificates of chips: they change only with the firmware, and then have another path.
const CERTIFICATE: u64 = 30 * DAY;

/// Intel's JSON bodies, as far as their time goes.
#[derive(Deserialize)]
struct Timed {
    #[serde(rename = "tcbInfo", alias = "enclaveIdentity")]
    inner: TimedInner,
}

#[derive(Deserialize)]
struct TimedInner {
    #[serde(rename = "nextUpdate")]
    next_update: String,
}

/// Until when a piece is kept, in seconds since the epoch.
pub(crate) fn of(item: &Item, now: u64) -> Result<u64, FetchError> {
    let body = item.body.as_slice();
    let text = body.trim_ascii();
    let json = || {
        let timed: Timed = serde_json::from_slice(text).ok()?;
        let next = humantime::parse_rfc3339(&timed.inner.next_update).ok()?;
        next.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs())
    };
    let next_update = if text.starts_with(b"{") { json() } else { list(text).or_else(|| list(body)) };
    if let Some(next_update) = next_update {
        return Ok(next_update.min(now.saturating_add(DAY)));
    }
    let ends = |cert: &Certificate| cert.tbs_certificate.validity.not_after.to_unix_duration().as_secs();
    let certificate = Certificate::from_der(body).ok().map(|cert| ends(&cert));
    let chain = || kata_cc_verifier::pem::certificates(text)?.iter().map(ends).min();
    match certificate.or_else(chain) {
        Some(not_after) => Ok(not_after.min(now.saturating_add(CERTIFICATE))),
        None => Err(FetchError::Form { bytes: body.len() }),
    }
}

/// nextUpdate of a revocation list in DER, PEM or (as some PCCS serve them) hexadecimal digits.
fn list(bytes: &[u8]) -> Option<u64> {
    let parse = |der: &[u8]| {
        let list = CertificateList::from_der(der).ok()?;
        list.tbs_cert_list.next_update.map(|time| time.to_unix_duration().as_secs())
    };
    if bytes.starts_with(b"-----BEGIN") {
        let (label, der) = der::pem::decode_vec(bytes).ok()?;
        return if label == "X509 CRL" { parse(&der) } else { None };
    }
    if bytes.iter().all(u8::is_ascii_hexdigit) {
        let digits = std::str::from_utf8(bytes).ok()?;
        let pairs = (0..digits.len()).step_by(2).map(|at| digits.get(at..at.saturating_add(2)));
        let der: Option<Vec<u8>> = pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect();
        return parse(&der?);
    }
    parse(bytes)
}
