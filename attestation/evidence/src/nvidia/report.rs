//! The report: the request, with the verifier's nonce, and the device's response, which ends in a signature over both.

use crate::cursor::{Cursor, FormError};

/// Request with its nonce: bytes.
const REQUEST: usize = 37;
/// SPDM version 1.1.
const SPDM_1_1: u8 = 0x11;
const GET_MEASUREMENTS: u8 = 0xe0;
const MEASUREMENTS: u8 = 0x60;
/// Measurements in DMTF's form.
const DMTF: u8 = 1;

/// Why a field is wrong.
fn expect(field: &'static str, found: u8, wanted: u8, expected: &'static str) -> Result<(), FormError> {
    if found == wanted { Ok(()) } else { Err(FormError::Field { field, found: found.into(), expected }) }
}

/// A report of a Hopper GPU. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    raw: Vec<u8>,
    /// The verifier's nonce.
    pub nonce: [u8; 32],
    /// Measurements by their index.
    pub measurements: Vec<(u8, Vec<u8>)>,
    /// What NVIDIA says more, by type.
    pub opaque: Vec<(u16, Vec<u8>)>,
    /// ECDSA on P-384 with SHA-384: r, s, big-endian.
    pub signature: [u8; 96],
}

impl Report {
    /// Largest that is accepted, in bytes. Known ones have about 4100.
    pub const MAX: usize = 16 * 1024;
    /// Type of the firmware's id in the opaque data.
    pub const FWID: u16 = 20;

    /// Parses exactly one.
    ///
    /// # Errors
    /// When it is none, has a measurement or a type twice, or is not whole.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormError> {
        if bytes.len() > Self::MAX {
            return Err(FormError::TooLarge { what: "GPU report", found: bytes.len(), limit: Self::MAX });
        }
        let mut cursor = Cursor::new(bytes, "GPU report");
        let mut request = Cursor::new(cursor.take(REQUEST)?, "request of the GPU report");
        let [version, code, _, _] = request.array()?;
        expect("SPDM version of the request", version, SPDM_1_1, "0x11: 1.1")?;
        expect("code of the request", code, GET_MEASUREMENTS, "0xe0: GET_MEASUREMENTS")?;
        let nonce = request.array()?;

        let [version, code, _, _, blocks] = cursor.array()?;
        expect("SPDM version of the response", version, SPDM_1_1, "0x11: 1.1")?;
        expect("code of the response", code, MEASUREMENTS, "0x60: MEASUREMENTS")?;
        let [low, middle, high] = cursor.array()?;
        let len = u32::from_le_bytes([low, middle, high, 0]);
        let record = Cursor::new(cursor.take(usize::try_from(len).unwrap_or(usize::MAX))?, "measurements of the GPU report");
        let measurements = measurements(record, blocks)?;
        // The device's own nonce.
        cursor.take(32)?;
        let len = u16::from_le_bytes(cursor.array()?);
        let opaque = opaque(Cursor::new(cursor.take(len.into())?, "opaque data of the GPU report"))?;
        let signature = cursor.array()?;
        cursor.end()?;
        Ok(Self { raw: bytes.to_vec(), nonce, measurements, opaque, signature })
    }

    /// The bytes it was parsed from.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// What is signed: all but the signature.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        self.raw.split_last_chunk::<96>().map(|(signed, _)| signed).unwrap_or_default()
    }

    /// Opaque data of a type.
    #[must_use]
    pub fn opaque(&self, kind: u16) -> Option<&[u8]> {
        self.opaque.iter().find(|(known, _)| *known == kind).map(|(_, data)| data.as_slice())
    }
}

fn measurements(mut cursor: Cursor<'_>, blocks: u8) -> Result<Vec<(u8, Vec<u8>)>, FormError> {
    let mut measurements: Vec<(u8, Vec<u8>)> = Vec::with_capacity(blocks.into());
    for _ in 0..blocks {
        let [index, specification] = cursor.array()?;
        expect("specification of a measurement", specification, DMTF, "1: DMTF")?;
        let len = u16::from_le_bytes(cursor.array()?);
        let mut block = Cursor::new(cursor.take(len.into())?, "measurement of the GPU report");
        block.take(1)?;
        let len = u16::from_le_bytes(block.array()?);
        let value = block.take(len.into())?.to_vec();
        block.end()?;
        if measurements.iter().any(|(known, _)| *known == index) {
            return Err(FormError::Field { field: "index of a measurement", found: index.into(), expected: "each index once" });
        }
        measurements.push((index, value));
    }
    cursor.end()?;
    Ok(measurements)
}

fn opaque(mut cursor: Cursor<'_>) -> Result<Vec<(u16, Vec<u8>)>, FormError> {
    let mut opaque: Vec<(u16, Vec<u8>)> = Vec::new();
    while cursor.left() > 0 {
        let (kind, len) = (u16::from_le_bytes(cursor.array()?), u16::from_le_bytes(cursor.array()?));
        let data = cursor.take(len.into())?.to_vec();
        if opaque.iter().any(|(known, _)| *known == kind) {
            return Err(FormError::Field { field: "type of opaque data", found: kind.into(), expected: "each type once" });
        }
        opaque.push((kind, data));
    }
    Ok(opaque)
}
