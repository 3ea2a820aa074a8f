//! The attestation request control block (ARCB), version 1.
//!
//! ```text
//! magic (8, zero) | version (4) | size (4) | IV (12) | 0 (4) | 0 (7) | key slots n (1) | 0 (4) | encrypted size (4)
//! flags (8) | measurement algorithm (4) | 0 (4) | public key of the request (160) | n key slots (80 each)
//! encrypted: measurement key (64), nonce (16) | tag (16)
//! ```
//! Everything before the encrypted part is authenticated by the tag.

use super::additional::Flags;
use crate::cursor::{Cursor, FormError};

const VERSION_1: u32 = 0x100;
const HMAC_SHA_512: u32 = 1;
const HEAD: usize = 48 + 16 + 160;
const TAG: usize = 16;

/// Size of a measurement by HMAC-SHA-512.
pub const MEASUREMENT_SIZE: usize = 64;

/// One host key's way to the request protection key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// SHA-256 of the public host key: which key it is for.
    pub phkh: [u8; 32],
    /// The request protection key, encrypted to the host key.
    pub wrapped_key: [u8; 32],
    /// Authentication tag of the wrapping.
    pub tag: [u8; 16],
}

/// What comes before the encrypted part. Its bytes are the additional authenticated data of the encryption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticatedHead {
    /// Initialisation vector of the encrypted part.
    pub iv: [u8; 12],
    /// What is asked for.
    pub flags: Flags,
    /// Public key of the request on P-521: X and Y, 80 bytes each, big-endian.
    pub public_key: [u8; 160],
    /// Host keys it is for.
    pub slots: Vec<KeySlot>,
}

/// A request: opaque to all but the ultravisor of a machine that has one of the host keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What everybody can read.
    pub head: AuthenticatedHead,
    /// Measurement key and nonce, encrypted.
    pub encrypted: [u8; Self::ENCRYPTED],
    /// Authentication tag over head and encrypted part.
    pub tag: [u8; TAG],
}

impl AuthenticatedHead {
    /// The bytes.
    ///
    /// # Errors
    /// When there is no host key, or more than 255.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormError> {
        let slots = u8::try_from(self.slots.len()).ok().filter(|slots| *slots > 0).ok_or(FormError::Field {
            field: "number of key slots",
            found: u64::try_from(self.slots.len()).unwrap_or(u64::MAX),
            expected: "1 to 255",
        })?;
        let mut bytes = vec![0; 8];
        bytes.extend(VERSION_1.to_be_bytes());
        bytes.extend(size(slots).to_be_bytes());
        bytes.extend(self.iv);
        bytes.extend([0; 11]);
        bytes.push(slots);
        bytes.extend([0; 4]);
        bytes.extend(ENCRYPTED_SIZE.to_be_bytes());
        bytes.extend(self.flags.0.to_be_bytes());
        bytes.extend(HMAC_SHA_512.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.public_key);
        for slot in &self.slots {
            bytes.extend(slot.phkh);
            bytes.extend(slot.wrapped_key);
            bytes.extend(slot.tag);
        }
        Ok(bytes)
    }
}

const ENCRYPTED_SIZE: u32 = 80;

/// Size of a request with so many key slots.
#[expect(clippy::arithmetic_side_effects, reason = "at most 20 720")]
fn size(slots: u8) -> u32 {
    320 + 80 * u32::from(slots)
}

impl Request {
    /// Size of the encrypted part: a measurement key of 64 bytes and a nonce of 16.
    pub const ENCRYPTED: usize = 80;
    /// Smallest request: one host key.
    pub const MIN: usize = HEAD + 80 + Self::ENCRYPTED + TAG;
    /// Largest request: 255 host keys.
    pub const MAX: usize = HEAD + 255 * 80 + Self::ENCRYPTED + TAG;

    /// Parses all of `bytes`.
    ///
    /// # Errors
    /// When they are not a request of version 1, with a nonce, measured by HMAC-SHA-512.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormError> {
        let mut cursor = Cursor::new(bytes, "attestation request");
        cursor.zeros::<8>("request magic")?;
        expect("request version", cursor.u32()?, VERSION_1, "0x100")?;
        let stated = cursor.u32()?;
        let iv = cursor.array()?;
        cursor.zeros::<11>("reserved field of the request")?;
        let [slots] = cursor.array()?;
        if slots == 0 {
            return Err(FormError::Field { field: "number of key slots", found: 0, expected: "1 to 255" });
        }
        cursor.zeros::<4>("reserved field of the request")?;
        expect("size of the encrypted part", cursor.u32()?, ENCRYPTED_SIZE, "0x50: measurement key and nonce")?;
        expect("request size", stated, size(slots), "what its number of key slots makes it")?;
        let flags = Flags(cursor.u64()?);
        if !flags.contains(Flags::NONCE) {
            return Err(FormError::Field { field: "attestation flags", found: flags.0, expected: "bit 1 set: with nonce" });
        }
        expect("measurement algorithm", cursor.u32()?, HMAC_SHA_512, "1: HMAC-SHA-512")?;
        cursor.zeros::<4>("reserved field of the request")?;
        let public_key = cursor.array()?;
        let slots = (0..slots)
            .map(|_| Ok(KeySlot { phkh: cursor.array()?, wrapped_key: cursor.array()?, tag: cursor.array()? }))
            .collect::<Result<_, FormError>>()?;
        let request = Self { head: AuthenticatedHead { iv, flags, public_key, slots }, encrypted: cursor.array()?, tag: cursor.array()? };
        cursor.end()?;
        Ok(request)
    }

    /// The bytes.
    ///
    /// # Errors
    /// When there is no host key, or more than 255.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormError> {
        let mut bytes = self.head.to_bytes()?;
        bytes.extend(self.encrypted);
        bytes.extend(self.tag);
        Ok(bytes)
    }
}

fn expect(field: &'static str, found: u32, wanted: u32, expected: &'static str) -> Result<(), FormError> {
    if found == wanted { Ok(()) } else { Err(FormError::Field { field, found: found.into(), expected }) }
}
