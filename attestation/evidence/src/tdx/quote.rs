//! The quote: header, TD report and signature data; raw bytes to fields and back, without loss.
//!
//! ```text
//! v4: header 48 ‖ body 584                              ‖ u32 length ‖ signature data ‖ anything
//! v5: header 48 ‖ u16 type ‖ u32 size ‖ body 584, 648, 885 ‖ u32 length ‖ signature data ‖ anything
//! ```
//! What follows the signature data is not part of the quote and is given back apart: quoting services pad.

use super::body::Body;
use super::cursor::Cursor;
use super::signature::{SignatureData, put_sized};

/// QE_VENDOR_ID of Intel's quoting enclaves.
pub const INTEL_QE_VENDOR_ID: [u8; 16] = [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];

/// Attestation key type: ECDSA-256-with-P-256.
const ECDSA_P256: u16 = 2;
/// TEE_TYPE of a TD. Zero is an SGX enclave.
const TEE_TDX: u32 = 0x81;

/// Why bytes are not a TDX quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Fewer bytes than a field, or a length before it, says.
    #[error("TDX quote: {what} needs {expected} more bytes, found {found}")]
    Truncated {
        /// In which part.
        what: &'static str,
        /// How many are needed for the next field.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// More bytes than the fields of a part need.
    #[error("TDX quote: {what} has {found} bytes after its last field, expected none")]
    Excess {
        /// Which part.
        what: &'static str,
        /// How many.
        found: usize,
    },
    /// Another version.
    #[error("TDX quote version {found}: expected 4 or 5")]
    Version {
        /// The version found.
        found: u16,
    },
    /// A quote of something else.
    #[error("quote is of TEE type {found:#x}, expected 0x81 (TDX){}", if *found == 0 { ": this is a quote of an SGX enclave" } else { "" })]
    TeeType {
        /// TEE_TYPE.
        found: u32,
    },
    /// Another kind of attestation key.
    #[error("TDX quote: attestation key type {found}, expected 2 (ECDSA P-256)")]
    AttestationKeyType {
        /// The type found.
        found: u16,
    },
    /// A body type of version 5 that is no TD report.
    #[error("TDX quote: body type {found}, expected 2 (TD report 1.0), 3 (1.5) or 4 (1.5, extended)")]
    BodyType {
        /// The type found.
        found: u16,
    },
    /// A body size that is not its type's.
    #[error("TDX quote: body of type {kind:?} has size {found}, expected {expected}")]
    BodySize {
        /// The type.
        kind: BodyType,
        /// What the type has.
        expected: usize,
        /// What the quote says.
        found: u32,
    },
    /// Signature data without the quoting enclave's report.
    #[error("TDX quote: certification data type {found}, expected 6 (QE report certification data)")]
    CertificationDataType {
        /// The type found.
        found: u16,
    },
    /// A part that does not fit its length field.
    #[error("TDX quote: {what} has {found} bytes, expected at most {limit}")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// How many bytes.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// A version 4 quote has no room for what TDX 1.5 adds.
    #[error("TDX quote: a body of TDX 1.5 needs quote version 5, found {found}")]
    Extension {
        /// The version.
        found: u16,
    },
}

/// Type of the body, as version 5 writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum BodyType {
    /// TD report of TDX 1.0.
    Td10 = 2,
    /// TD report of TDX 1.5.
    Td15 = 3,
    /// TD report of TDX 1.5 in its extended form.
    Td15Ex = 4,
}

impl BodyType {
    /// Size of such a body in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Td10 => Body::LEN_10,
            Self::Td15 => Body::LEN_15,
            Self::Td15Ex => Body::LEN_15_EX,
        }
    }

    /// As in the quote.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }
}

/// The header's fields that are not the same in every TDX quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Quote version: 4 or 5.
    pub version: u16,
    /// Reserved (the quoting enclave's and PCE's versions in some quotes); signed, so kept.
    pub reserved: [u8; 4],
    /// QE_VENDOR_ID.
    pub qe_vendor_id: [u8; 16],
    /// USER_DATA: the first 16 bytes name the platform.
    pub user_data: [u8; 20],
}

impl Header {
    /// Size in bytes.
    pub const LEN: usize = 48;

    /// Attestation key type, as in the quote: the one that is parsed.
    #[must_use]
    pub const fn att_key_type(&self) -> u16 {
        ECDSA_P256
    }

    /// TEE type, as in the quote: the one that is parsed.
    #[must_use]
    pub const fn tee_type(&self) -> u32 {
        TEE_TDX
    }

    fn read(c: &mut Cursor<'_>) -> Result<Self, QuoteError> {
        let version = c.u16()?;
        let key_type = c.u16()?;
        let tee_type = c.u32()?;
        // The TEE first: for an SGX quote that is what is wrong with it, not its version 3.
        if tee_type != TEE_TDX {
            return Err(QuoteError::TeeType { found: tee_type });
        }
        if !matches!(version, 4 | 5) {
            return Err(QuoteError::Version { found: version });
        }
        if key_type != ECDSA_P256 {
            return Err(QuoteError::AttestationKeyType { found: key_type });
        }
        Ok(Self { version, reserved: c.array()?, qe_vendor_id: c.array()?, user_data: c.array()? })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.version.to_le_bytes());
        out.extend(self.att_key_type().to_le_bytes());
        out.extend(self.tee_type().to_le_bytes());
        out.extend(self.reserved);
        out.extend(self.qe_vendor_id);
        out.extend(self.user_data);
    }
}

/// A TDX quote, field by field. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Header.
    pub header: Header,
    /// TD report.
    pub body: Body,
    /// Signature data.
    pub signature_data: SignatureData,
}

impl Quote {
    /// Largest quote that is looked at, with what follows it. Real ones have about 5000 bytes; the kernel gives at most 32 KiB.
    pub const MAX_LEN: usize = 64 * 1024;

    /// Parses a quote at the start of `bytes`, and gives what follows it.
    ///
    /// # Errors
    /// When it is too long, a length does not fit, or the quote is of a form that is not known.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), QuoteError> {
        if bytes.len() > Self::MAX_LEN {
            return Err(QuoteError::TooLong { what: "quote", found: bytes.len(), limit: Self::MAX_LEN });
        }
        let mut c = Cursor::new(bytes, "quote");
        let header = Header::read(&mut c)?;
        let kind = if header.version == 4 { BodyType::Td10 } else { read_body_type(&mut c)? };
        let mut body_bytes = Cursor::new(c.take(kind.size())?, "TD report");
        let body = Body::read(&mut body_bytes, kind)?;
        body_bytes.end()?;
        let signature_data = SignatureData::parse(c.sized()?)?;
        Ok((Self { header, body, signature_data }, c.rest()))
    }

    /// Type of the body.
    #[must_use]
    pub const fn body_type(&self) -> BodyType {
        match self.body.extension {
            None => BodyType::Td10,
            Some(extension) if extension.more.is_none() => BodyType::Td15,
            Some(_) => BodyType::Td15Ex,
        }
    }

    /// The bytes that the attestation key signs: all before the length of the signature data.
    ///
    /// # Errors
    /// When the body does not fit the version.
    pub fn signed_bytes(&self) -> Result<Vec<u8>, QuoteError> {
        let mut out = Vec::with_capacity(Header::LEN.saturating_add(Body::LEN_15_EX));
        self.header.write(&mut out);
        let kind = self.body_type();
        match (self.header.version, kind) {
            (4, BodyType::Td10) => {}
            (5, _) => {
                out.extend(kind.code().to_le_bytes());
                #[expect(clippy::cast_possible_truncation, reason = "less than 1000")]
                out.extend((kind.size() as u32).to_le_bytes());
            }
            (4, BodyType::Td15 | BodyType::Td15Ex) => return Err(QuoteError::Extension { found: 4 }),
            (found, _) => return Err(QuoteError::Version { found }),
        }
        self.body.write(&mut out);
        Ok(out)
    }

    /// Serialises; the inverse of [`Quote::parse`].
    ///
    /// # Errors
    /// When the fields do not make a quote that would parse back.
    pub fn to_bytes(&self) -> Result<Vec<u8>, QuoteError> {
        let mut out = self.signed_bytes()?;
        put_sized(&mut out, &self.signature_data.to_bytes()?, "signature data")?;
        Ok(out)
    }
}

fn read_body_type(c: &mut Cursor<'_>) -> Result<BodyType, QuoteError> {
    let kind = match c.u16()? {
        2 => BodyType::Td10,
        3 => BodyType::Td15,
        4 => BodyType::Td15Ex,
        found => return Err(QuoteError::BodyType { found }),
    };
    let size = c.u32()?;
    if usize::try_from(size) != Ok(kind.size()) {
        return Err(QuoteError::BodySize { kind, expected: kind.size(), found: size });
    }
    Ok(kind)
}
