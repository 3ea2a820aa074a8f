//! The attestation report.
//!
//! In version 1 every field but the nonce is XORed with a nonce of the firmware's that no signature covers. Whoever changes it shifts all
//! fields alike, by the same four bytes; so a report of version 1 is worth something only where its measurement is compared.

use super::certificate::Signature;
use crate::cursor::{Cursor, FormError};
use crate::values::ReportData;

/// How the report is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Before firmware API 1.4.
    V1,
    /// With runtime measurements.
    V2,
}

/// The guest's policy, as it was launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy(pub u32);

impl Policy {
    /// A field of `width` bits from bit `at` on.
    #[must_use]
    pub const fn bits(self, at: u32, width: u32) -> u32 {
        match (self.0.checked_shr(at), u32::MAX.checked_shr(32_u32.saturating_sub(width))) {
            (Some(value), Some(mask)) => value & mask,
            _ => 0,
        }
    }

    /// Whether nobody may debug the guest: NODBG.
    #[must_use]
    pub const fn no_debug(self) -> bool {
        self.bits(0, 1) == 1
    }
}

/// What of a report is looked at. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    raw: Vec<u8>,
    /// How it is laid out.
    pub version: Version,
    /// Digest of the owner's session key.
    pub user_pubkey_digest: [u8; 32],
    /// Name that the owner gave the VM.
    pub vm_id: [u8; 16],
    /// Version that the owner gave the VM.
    pub vm_version: [u8; 16],
    /// What the guest wanted said.
    pub report_data: ReportData,
    /// The guest's nonce.
    pub mnonce: [u8; 16],
    /// Launch digest, SM3.
    pub measure: [u8; 32],
    /// The policy.
    pub policy: Policy,
    /// Which key is said to have signed. Not covered by the signature in version 1.
    pub sig_usage: u32,
    /// By which algorithm. Not covered by the signature in version 1.
    pub sig_algo: u32,
    /// The firmware's nonce: version 1.
    pub anonce: Option<u32>,
    /// Build of the firmware and runtime measurements, SM3: version 2.
    pub extension: Option<Extension>,
    /// The signature.
    pub signature: Signature,
}

/// What version 2 has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Build of the firmware.
    pub build: u32,
    /// Version of the registers.
    pub rtmr_version: u16,
    /// RTMR0 to RTMR4.
    pub rtmr: [[u8; 32]; 5],
}

/// Bytes that are signed.
const SIGNED_V1: usize = 0xb4;
const SIGNED_V2: usize = 0x400;

impl Report {
    /// Size in bytes, with padding.
    pub const LEN: usize = 4096;

    /// Parses exactly [`Report::LEN`] bytes.
    ///
    /// # Errors
    /// When the size is another or the signature none of SM2.
    pub fn parse(bytes: &[u8], version: Version) -> Result<Self, FormError> {
        if bytes.len() != Self::LEN {
            let found = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            return Err(FormError::Field { field: "size of the CSV report", found, expected: "0x1000" });
        }
        let anonce = match version {
            Version::V1 => {
                let mut cursor = Cursor::new(bytes, "CSV report");
                cursor.take(0xbc)?;
                Some(cursor.array::<4>()?)
            }
            Version::V2 => None,
        };
        let plain: Vec<u8> = match anonce {
            Some(nonce) => bytes.iter().zip(nonce.into_iter().cycle()).map(|(byte, nonce)| byte ^ nonce).collect(),
            None => bytes.to_vec(),
        };
        let mut cursor = Cursor::new(&plain, "CSV report");
        let (user_pubkey_digest, vm_id, vm_version) = (cursor.array()?, cursor.array()?, cursor.array()?);
        let (report_data, mnonce, measure) = (ReportData(cursor.array()?), cursor.array()?, cursor.array()?);
        let (policy, sig_usage, sig_algo) = (Policy(cursor.u32_le()?), cursor.u32_le()?, cursor.u32_le()?);
        let extension = match version {
            Version::V1 => None,
            Version::V2 => {
                let (build, rtmr_version) = (cursor.u32_le()?, u16::from_le_bytes(cursor.array()?));
                cursor.take(14)?;
                let mut rtmr = [[0; 32]; 5];
                for register in &mut rtmr {
                    *register = cursor.array()?;
                }
                Some(Extension { build, rtmr_version, rtmr })
            }
        };
        let at = if version == Version::V1 { 0xc0 } else { SIGNED_V2 };
        let mut cursor = Cursor::new(bytes, "CSV report");
        cursor.take(at)?;
        let signature = Signature::read(&mut cursor)?;
        let anonce = anonce.map(u32::from_le_bytes);
        Ok(Self {
            raw: bytes.to_vec(),
            version,
            user_pubkey_digest,
            vm_id,
            vm_version,
            report_data,
            mnonce,
            measure,
            policy,
            sig_usage,
            sig_algo,
            anonce,
            extension,
            signature,
        })
    }

    /// The bytes it was parsed from.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// What is signed.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        let len = if self.version == Version::V1 { SIGNED_V1 } else { SIGNED_V2 };
        self.raw.get(..len).unwrap_or_default()
    }
}
