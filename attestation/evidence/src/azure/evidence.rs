//! Evidence of Azure's confidential VMs as it travels to the broker, in CoCo's JSON forms.
//!
//! The form without a version has bytes as arrays of integers and the VCEK as PEM; versions 1 and 2 have hexadecimal text in the quote and
//! URL-safe base64 elsewhere. Both are read, the latter is written.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::hcl::HclReport;
use crate::cursor::FormError;
use crate::snp;
use crate::tdx;
use crate::tpm::{self, Attest, Quote, RsaSignature};

/// With padding or without: the attester's library has changed its mind once.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&URL_SAFE, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// How a PEM text begins.
const PEM: &[u8] = b"-----BEGIN ";
/// Largest TD quote, in bytes.
const MAX_QUOTE: usize = 64 * 1024;

/// Why evidence is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Bytes in it are.
    #[error(transparent)]
    Form(#[from] FormError),
    /// The TPM's part is.
    #[error(transparent)]
    Tpm(#[from] tpm::EvidenceError),
    /// The SNP report, or the certificate beside it, is.
    #[error(transparent)]
    Snp(#[from] snp::EvidenceError),
    /// The TD quote is.
    #[error(transparent)]
    Tdx(#[from] tdx::EvidenceError),
    /// Another version of the form.
    #[error("version is {found}, expected 1, 2 or none")]
    Version {
        /// The version.
        found: u64,
    },
}

/// Evidence of a VM on SNP. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnpEvidence {
    /// The TPM's quote.
    pub quote: Quote,
    /// The report with the attestation key.
    pub hcl: HclReport,
    /// Endorsement certificate of the SNP report, DER or PEM, if the guest has sent it.
    pub vcek: Option<Vec<u8>>,
}

/// Evidence of a VM on TDX. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdxEvidence {
    /// The TPM's quote.
    pub quote: Quote,
    /// The report with the attestation key. The TD report in it is signed by nobody and not looked at: the TD quote says the same.
    pub hcl: HclReport,
    /// The TD quote.
    pub td_quote: tdx::Evidence,
}

impl SnpEvidence {
    /// The SNP report with its endorsement certificate, as evidence of SNP.
    ///
    /// # Errors
    /// When what the HCL report holds is no SNP report, or the certificate is too large to be one.
    pub fn snp(&self) -> Result<snp::Evidence, EvidenceError> {
        let entries: Vec<_> = self.vcek.iter().map(|data| snp::CertEntry { kind: snp::CertKind::Vcek, data: data.clone() }).collect();
        let report = snp::Report::parse(self.hcl.hardware_report()).map_err(snp::EvidenceError::from)?;
        Ok(snp::Evidence::new(report, (!entries.is_empty()).then_some(snp::CertTable { entries }))?)
    }
}

/// Bytes in one of the forms.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bytes {
    Array(Vec<u8>),
    Text(String),
}

impl Bytes {
    fn base64(self, what: &'static str, limit: usize) -> Result<Vec<u8>, EvidenceError> {
        let bytes = match self {
            Self::Array(bytes) => bytes,
            Self::Text(text) if text.as_bytes().starts_with(PEM) => text.into_bytes(),
            Self::Text(text) => BASE64.decode(text).map_err(|_| tpm::EvidenceError::Encoding { what, expected: "URL-safe base64" })?,
        };
        let found = bytes.len();
        if found > limit { Err(FormError::TooLarge { what, found, limit }.into()) } else { Ok(bytes) }
    }

    fn hex(self, what: &'static str) -> Result<Vec<u8>, EvidenceError> {
        match self {
            Self::Array(bytes) => Ok(bytes),
            Self::Text(text) => Ok(hex::decode(text).map_err(|_| tpm::EvidenceError::Encoding { what, expected: "hexadecimal" })?),
        }
    }
}

#[derive(Deserialize)]
struct WireQuote {
    signature: Bytes,
    message: Bytes,
    pcrs: Vec<Bytes>,
}

impl TryFrom<WireQuote> for Quote {
    type Error = EvidenceError;

    fn try_from(wire: WireQuote) -> Result<Self, EvidenceError> {
        let pcrs: Vec<Vec<u8>> = wire.pcrs.into_iter().map(|value| value.hex("a value of pcrs")).collect::<Result<_, _>>()?;
        Ok(Self {
            attest: Attest::parse(&wire.message.hex("message")?)?,
            signature: RsaSignature::from_bare(&wire.signature.hex("signature")?)?,
            pcrs: tpm::pcrs(&pcrs)?,
        })
    }
}

/// Unknown fields are ignored: they are the client's words about itself, and no check rests on them.
#[derive(Deserialize)]
struct WireSnp {
    version: Option<u64>,
    #[serde(alias = "quote")]
    tpm_quote: WireQuote,
    #[serde(alias = "report")]
    hcl_report: Bytes,
    vcek: Option<Bytes>,
}

#[derive(Deserialize)]
struct WireTdx {
    version: Option<u64>,
    tpm_quote: WireQuote,
    hcl_report: Bytes,
    td_quote: Bytes,
}

/// What is written.
#[derive(Serialize)]
struct Written {
    version: u64,
    tpm_quote: WrittenQuote,
    hcl_report: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcek: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    td_quote: Option<String>,
}

#[derive(Serialize)]
struct WrittenQuote {
    signature: String,
    message: String,
    pcrs: Vec<String>,
}

impl Written {
    fn new(quote: &Quote, hcl: &HclReport) -> Self {
        let tpm_quote = WrittenQuote {
            signature: hex::encode(quote.signature.as_bytes()),
            message: hex::encode(quote.attest.as_bytes()),
            pcrs: quote.pcrs.iter().map(hex::encode).collect(),
        };
        Self { version: 1, tpm_quote, hcl_report: BASE64.encode(hcl.as_bytes()), vcek: None, td_quote: None }
    }
}

const fn check_version(version: Option<u64>) -> Result<(), EvidenceError> {
    match version {
        None | Some(1 | 2) => Ok(()),
        Some(found) => Err(EvidenceError::Version { found }),
    }
}

impl TryFrom<WireSnp> for SnpEvidence {
    type Error = EvidenceError;

    fn try_from(wire: WireSnp) -> Result<Self, EvidenceError> {
        check_version(wire.version)?;
        Ok(Self {
            quote: wire.tpm_quote.try_into()?,
            hcl: HclReport::parse(&wire.hcl_report.base64("hcl_report", HclReport::MAX)?)?,
            vcek: wire.vcek.map(|vcek| vcek.base64("vcek", snp::CertTable::MAX_LEN)).transpose()?,
        })
    }
}

impl TryFrom<WireTdx> for TdxEvidence {
    type Error = EvidenceError;

    fn try_from(wire: WireTdx) -> Result<Self, EvidenceError> {
        check_version(wire.version)?;
        Ok(Self {
            quote: wire.tpm_quote.try_into()?,
            hcl: HclReport::parse(&wire.hcl_report.base64("hcl_report", HclReport::MAX)?)?,
            td_quote: tdx::Evidence::from_raw(&wire.td_quote.base64("td_quote", MAX_QUOTE)?, None)?,
        })
    }
}

impl Serialize for SnpEvidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let vcek = self.vcek.as_ref().map(|vcek| match std::str::from_utf8(vcek) {
            Ok(text) if vcek.starts_with(PEM) => text.to_owned(),
            _ => BASE64.encode(vcek),
        });
        Written { vcek, ..Written::new(&self.quote, &self.hcl) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SnpEvidence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        WireSnp::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

impl Serialize for TdxEvidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let td_quote = Some(BASE64.encode(self.td_quote.quote_bytes()));
        Written { td_quote, ..Written::new(&self.quote, &self.hcl) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TdxEvidence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        WireTdx::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}
