//! Quotes: what the quoting enclave would make of a TD report.

use kata_cc_evidence::ReportData;
use kata_cc_evidence::tdx::{
    Body, CertificationData, CertificationDataType, EnclaveReport, Header, QeCertification, Quote, QuoteError, SignatureData,
};
use ring::digest::{SHA256, digest};

use super::key::Key;

/// What signs quotes.
#[derive(Clone, Copy, Debug)]
pub struct Signer<'a> {
    /// The quoting enclave; its report data are filled in.
    pub enclave: &'a EnclaveReport,
    /// Its key.
    pub attestation_key: &'a Key,
    /// The platform's key, which certifies that one.
    pub pck_key: &'a Key,
    /// The certificates of the platform's key, PEM.
    pub chain: &'a [u8],
}

/// A quote over this body.
///
/// # Errors
/// When header and body do not fit each other.
pub fn quote(header: Header, body: Body, signer: &Signer<'_>) -> Result<Quote, QuoteError> {
    let auth_data: Vec<u8> = (0..32).collect();
    let bound = [signer.attestation_key.raw().as_slice(), &auth_data].concat();
    let mut report = signer.enclave.clone();
    report.report_data = ReportData::from_digest(digest(&SHA256, &bound).as_ref()).0;
    let qe = QeCertification {
        report_signature: signer.pck_key.fixed(&report.to_bytes()),
        report,
        auth_data,
        certification: CertificationData { kind: CertificationDataType::PCK_CERT_CHAIN, data: signer.chain.to_vec() },
    };
    let attestation_key = signer.attestation_key.raw();
    let mut quote = Quote { header, body, signature_data: SignatureData { signature: [0; 64], attestation_key, qe } };
    quote.signature_data.signature = signer.attestation_key.fixed(&quote.signed_bytes()?);
    Ok(quote)
}
