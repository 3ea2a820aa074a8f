//! What signs a quote: the attestation key's signature, the quoting enclave's report over that key, and what certifies the enclave.

use super::cursor::Cursor;
use super::enclave::EnclaveReport;
use super::quote::QuoteError;

/// Kind of certification data (quoting library API, table "Certification Data Types"). Unknown ones are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CertificationDataType(pub u16);

impl CertificationDataType {
    /// The chain of the platform's PCK certificate, PEM, leaf first.
    pub const PCK_CERT_CHAIN: Self = Self(5);
    /// The quoting enclave's report with its own certification data.
    pub const QE_REPORT: Self = Self(6);
}

/// Signature data of ECDSA with P-256, the one form of attestation key in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureData {
    /// The attestation key's signature over header and body, R ‖ S, big-endian.
    pub signature: [u8; 64],
    /// The attestation key, X ‖ Y, big-endian.
    pub attestation_key: [u8; 64],
    /// Why that key may be trusted.
    pub qe: QeCertification,
}

/// Certification data of type [`CertificationDataType::QE_REPORT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QeCertification {
    /// The quoting enclave's report.
    pub report: EnclaveReport,
    /// The PCK key's signature over it, R ‖ S, big-endian.
    pub report_signature: [u8; 64],
    /// QE authentication data: covered by the report data beside the attestation key.
    pub auth_data: Vec<u8>,
    /// What certifies the PCK key.
    pub certification: CertificationData,
}

/// Certification data of any other type, not looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificationData {
    /// Its type.
    pub kind: CertificationDataType,
    /// Its bytes.
    pub data: Vec<u8>,
}

impl SignatureData {
    /// Reads all of `bytes`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        let mut c = Cursor::new(bytes, "signature data");
        let signature = c.array()?;
        let attestation_key = c.array()?;
        let kind = CertificationDataType(c.u16()?);
        if kind != CertificationDataType::QE_REPORT {
            return Err(QuoteError::CertificationDataType { found: kind.0 });
        }
        let qe = QeCertification::parse(c.sized()?)?;
        c.end()?;
        Ok(Self { signature, attestation_key, qe })
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, QuoteError> {
        let qe = self.qe.to_bytes()?;
        let mut out = Vec::new();
        out.extend(self.signature);
        out.extend(self.attestation_key);
        out.extend(CertificationDataType::QE_REPORT.0.to_le_bytes());
        put_sized(&mut out, &qe, "QE report certification data")?;
        Ok(out)
    }
}

impl QeCertification {
    fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        let mut c = Cursor::new(bytes, "QE report certification data");
        let report = EnclaveReport::read(&mut c)?;
        let report_signature = c.array()?;
        let auth_len = c.u16()?;
        let auth_data = c.take(usize::from(auth_len))?.to_vec();
        let kind = CertificationDataType(c.u16()?);
        let data = c.sized()?.to_vec();
        c.end()?;
        Ok(Self { report, report_signature, auth_data, certification: CertificationData { kind, data } })
    }

    fn to_bytes(&self) -> Result<Vec<u8>, QuoteError> {
        let mut out = self.report.to_bytes();
        out.extend(self.report_signature);
        let what = "QE authentication data";
        let auth_len =
            u16::try_from(self.auth_data.len()).map_err(|_| QuoteError::TooLong { what, found: self.auth_data.len(), limit: 0xffff })?;
        out.extend(auth_len.to_le_bytes());
        out.extend(&self.auth_data);
        out.extend(self.certification.kind.0.to_le_bytes());
        put_sized(&mut out, &self.certification.data, "certification data")?;
        Ok(out)
    }
}

/// Bytes behind their 32-bit length.
pub(super) fn put_sized(out: &mut Vec<u8>, bytes: &[u8], what: &'static str) -> Result<(), QuoteError> {
    let len = u32::try_from(bytes.len()).map_err(|_| QuoteError::TooLong { what, found: bytes.len(), limit: u32::MAX as usize })?;
    out.extend(len.to_le_bytes());
    out.extend(bytes);
    Ok(())
}
