//! Evidence of a TPM as it travels to the broker, in CoCo's JSON form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::attest::Attest;
use super::quote::{PCRS, Pcrs, Quote};
use super::signature::RsaSignature;
use crate::cursor::FormError;

/// Why evidence is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Bytes in it are.
    #[error(transparent)]
    Form(#[from] FormError),
    /// Text in another encoding.
    #[error("{what} is not {expected}")]
    Encoding {
        /// Which field.
        what: &'static str,
        /// The encoding.
        expected: &'static str,
    },
    /// Too many or too few PCRs.
    #[error("pcrs has {found} values, expected {PCRS}")]
    Pcrs {
        /// How many.
        found: usize,
    },
    /// One PCR is of another bank.
    #[error("a value of pcrs has {found} bytes, expected 32 (SHA-256)")]
    Pcr {
        /// Its size.
        found: usize,
    },
}

/// A quote and the key that is said to have signed it. Parsed, **not verified**.
///
/// Serialises to and from CoCo's `{"tpm_quote":{"signature":"<base64>","message":"<base64>","pcrs":["<hex>", …]},"ak_public":"<base64>"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The quote.
    pub quote: Quote,
    /// The attestation key's SubjectPublicKeyInfo, DER: the guest's word, to be found among the keys that are trusted.
    pub ak_public: Vec<u8>,
}

impl Evidence {
    /// Largest public key, in bytes: of 4096 bits, with room.
    pub const MAX_KEY: usize = 1024;
}

/// Unknown fields are ignored: they are the client's words about itself, and no check rests on them.
#[derive(Serialize, Deserialize)]
struct Wire {
    tpm_quote: WireQuote,
    ak_public: String,
}

#[derive(Serialize, Deserialize)]
struct WireQuote {
    signature: String,
    message: String,
    pcrs: Vec<String>,
}

/// Values of all PCRs.
pub(crate) fn pcrs(values: &[Vec<u8>]) -> Result<Box<Pcrs>, EvidenceError> {
    if values.len() != PCRS {
        return Err(EvidenceError::Pcrs { found: values.len() });
    }
    let mut pcrs = Box::new([[0; 32]; PCRS]);
    for (to, from) in pcrs.iter_mut().zip(values) {
        *to = from.as_slice().try_into().map_err(|_| EvidenceError::Pcr { found: from.len() })?;
    }
    Ok(pcrs)
}

fn base64(text: &str, what: &'static str, limit: usize) -> Result<Vec<u8>, EvidenceError> {
    let bytes = STANDARD.decode(text).map_err(|_| EvidenceError::Encoding { what, expected: "standard base64" })?;
    let found = bytes.len();
    if found > limit { Err(FormError::TooLarge { what, found, limit }.into()) } else { Ok(bytes) }
}

impl TryFrom<&Wire> for Evidence {
    type Error = EvidenceError;

    fn try_from(wire: &Wire) -> Result<Self, EvidenceError> {
        let quote = &wire.tpm_quote;
        let values = quote.pcrs.iter().map(hex::decode).collect::<Result<Vec<_>, _>>();
        let values = values.map_err(|_| EvidenceError::Encoding { what: "a value of pcrs", expected: "hexadecimal" })?;
        Ok(Self {
            quote: Quote {
                attest: Attest::parse(&base64(&quote.message, "message", Attest::MAX)?)?,
                signature: RsaSignature::parse(&base64(&quote.signature, "signature", RsaSignature::MAX.saturating_add(6))?)?,
                pcrs: pcrs(&values)?,
            },
            ak_public: base64(&wire.ak_public, "ak_public", Self::MAX_KEY)?,
        })
    }
}

impl Serialize for Evidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tpm_quote = WireQuote {
            signature: STANDARD.encode(self.quote.signature.to_bytes()),
            message: STANDARD.encode(self.quote.attest.as_bytes()),
            pcrs: self.quote.pcrs.iter().map(hex::encode).collect(),
        };
        Wire { tpm_quote, ak_public: STANDARD.encode(&self.ak_public) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Evidence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(&Wire::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
