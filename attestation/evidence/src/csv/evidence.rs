//! CSV evidence as it travels to the broker, in CoCo's JSON form: certificates taken apart into fields, byte fields as arrays of integers.

use serde::{Deserialize, Deserializer};

use super::certificate::{CaCertificate, Certificate};
use super::report::{Report, Version};
use crate::cursor::FormError;

/// How reports of version 2 are marked.
const MAGIC: [u8; 16] = *b"ATTESTATION_EXT\0";

/// Why evidence is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Bytes in it are.
    #[error(transparent)]
    Form(#[from] FormError),
    /// A field of another size.
    #[error("{field} has {found} bytes, expected {expected}")]
    Size {
        /// Which.
        field: &'static str,
        /// Its size.
        found: usize,
        /// What it should be.
        expected: usize,
    },
    /// A report of a version that is not known here.
    #[error("attestation_report has flags {flags} and no known magic, expected zeros, or ATTESTATION_EXT with flags 0 or 1")]
    Version {
        /// The flags.
        flags: u32,
    },
}

/// Certificates of one chip, from Hygon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChipChain {
    /// Hygon's signing key.
    pub hsk: CaCertificate,
    /// The chip's key.
    pub cek: Certificate,
}

impl ChipChain {
    /// From the file that Hygon serves for a chip: HSK, then CEK.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormError> {
        let truncated = FormError::Truncated { what: "certificates of a Hygon chip", expected: CaCertificate::LEN, found: bytes.len() };
        let (hsk, cek) = bytes.split_at_checked(CaCertificate::LEN).ok_or(truncated)?;
        Ok(Self { hsk: CaCertificate::parse(hsk)?, cek: Certificate::parse(cek)? })
    }
}

/// Certificates that come with a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateChain {
    /// The chip's, if the guest has sent them.
    pub chip: Option<ChipChain>,
    /// The platform's.
    pub pek: Certificate,
}

/// A report with its certificates. Parsed, **not verified**.
///
/// Read from CoCo's JSON. Serial number and event log in it are not looked at: nobody has signed the former.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The report.
    pub report: Report,
    /// The certificates.
    pub chain: CertificateChain,
}

/// Unknown fields are ignored: they are the client's words about itself, and no check rests on them.
#[derive(Deserialize)]
struct Wire {
    attestation_report: WireReport,
    cert_chain: WireChain,
}

#[derive(Deserialize)]
struct WireReport {
    magic: [u8; 16],
    flags: u32,
    data: Vec<u8>,
}

#[derive(Deserialize)]
struct WireChain {
    hsk_cek: Option<WireChip>,
    pek: WireCertificate,
}

#[derive(Deserialize)]
struct WireChip {
    hsk: WireCa,
    cek: WireCertificate,
}

#[derive(Deserialize)]
struct WireKey {
    g: u32,
    x: Vec<u8>,
    y: Vec<u8>,
}

#[derive(Deserialize)]
struct WireSignature {
    r: Vec<u8>,
    s: Vec<u8>,
}

#[derive(Deserialize)]
struct WireCertificate {
    body: WireBody,
    sigs: [WireSlot; 2],
}

#[derive(Deserialize)]
struct WireBody {
    ver: u32,
    data: WireData,
}

#[derive(Deserialize)]
struct WireData {
    firmware: WireFirmware,
    reserved1: u16,
    pubkey: WirePubKey,
    uid_size: u16,
    user_id: Vec<u8>,
    sid: Vec<u8>,
    reserved2: Vec<u8>,
}

#[derive(Deserialize)]
struct WireFirmware {
    major: u8,
    minor: u8,
}

#[derive(Deserialize)]
struct WirePubKey {
    usage: u32,
    algo: u32,
    key: WireKey,
}

#[derive(Deserialize)]
struct WireSlot {
    usage: u32,
    algo: u32,
    signature: WireSignature,
    #[serde(rename = "_reserved")]
    reserved: Vec<u8>,
}

#[derive(Deserialize)]
struct WireCa {
    body: WireCaBody,
    signature: WireSignature,
    #[serde(rename = "_reserved")]
    reserved: Vec<u8>,
}

#[derive(Deserialize)]
struct WireCaBody {
    preamble: WirePreamble,
    pubkey: WireKey,
    uid_size: u16,
    user_id: Vec<u8>,
    reserved: Vec<u8>,
}

#[derive(Deserialize)]
struct WirePreamble {
    ver: u32,
    data: WireCaData,
}

#[derive(Deserialize)]
struct WireCaData {
    kid: Vec<u8>,
    sid: Vec<u8>,
    usage: u32,
    reserved: Vec<u8>,
}

/// The raw form, field by field.
struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, field: &'static str, bytes: &[u8], expected: usize) -> Result<&mut Self, EvidenceError> {
        let found = bytes.len();
        if found != expected {
            return Err(EvidenceError::Size { field, found, expected });
        }
        self.0.extend_from_slice(bytes);
        Ok(self)
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn key(&mut self, key: &WireKey) -> Result<&mut Self, EvidenceError> {
        self.u32(key.g).bytes("x", &key.x, 72)?.bytes("y", &key.y, 72)
    }

    fn signature(&mut self, signature: &WireSignature) -> Result<&mut Self, EvidenceError> {
        self.bytes("r", &signature.r, 72)?.bytes("s", &signature.s, 72)
    }
}

impl WireCertificate {
    fn certificate(&self) -> Result<Certificate, EvidenceError> {
        let mut raw = Writer(Vec::with_capacity(Certificate::LEN));
        let data = &self.body.data;
        raw.u32(self.body.ver).bytes("firmware", &[data.firmware.major, data.firmware.minor], 2)?.u16(data.reserved1);
        raw.u32(data.pubkey.usage).u32(data.pubkey.algo).key(&data.pubkey.key)?;
        raw.u16(data.uid_size).bytes("user_id", &data.user_id, 254)?.bytes("sid", &data.sid, 16)?;
        raw.bytes("reserved2", &data.reserved2, 608)?;
        for slot in &self.sigs {
            raw.u32(slot.usage).u32(slot.algo).signature(&slot.signature)?.bytes("_reserved", &slot.reserved, 368)?;
        }
        Ok(Certificate::parse(&raw.0)?)
    }
}

impl WireCa {
    fn certificate(&self) -> Result<CaCertificate, EvidenceError> {
        let mut raw = Writer(Vec::with_capacity(CaCertificate::LEN));
        let data = &self.body.preamble.data;
        raw.u32(self.body.preamble.ver).bytes("kid", &data.kid, 16)?.bytes("sid", &data.sid, 16)?;
        raw.u32(data.usage).bytes("reserved", &data.reserved, 24)?.key(&self.body.pubkey)?;
        raw.u16(self.body.uid_size).bytes("user_id", &self.body.user_id, 254)?.bytes("reserved", &self.body.reserved, 108)?;
        raw.signature(&self.signature)?.bytes("_reserved", &self.reserved, 112)?;
        Ok(CaCertificate::parse(&raw.0)?)
    }
}

impl TryFrom<&Wire> for Evidence {
    type Error = EvidenceError;

    fn try_from(wire: &Wire) -> Result<Self, EvidenceError> {
        let report = &wire.attestation_report;
        let version = match (report.magic, report.flags) {
            ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], _) | (MAGIC, 0) => Version::V1,
            (MAGIC, 1) => Version::V2,
            (_, flags) => return Err(EvidenceError::Version { flags }),
        };
        let chip = |chip: &WireChip| Ok::<_, EvidenceError>(ChipChain { hsk: chip.hsk.certificate()?, cek: chip.cek.certificate()? });
        let chain =
            CertificateChain { chip: wire.cert_chain.hsk_cek.as_ref().map(chip).transpose()?, pek: wire.cert_chain.pek.certificate()? };
        Ok(Self { report: Report::parse(&report.data, version)?, chain })
    }
}

impl<'de> Deserialize<'de> for Evidence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(&Wire::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
