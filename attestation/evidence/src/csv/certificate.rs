//! Certificates: the format of Hygon's authorities (HRK, HSK) and that of chips and platforms (CEK, PEK).

use crate::cursor::{Cursor, FormError};

/// Number of the curve SM2 is on.
const CURVE_SM2: u32 = 3;
/// Number of SM2 signatures.
const ALGORITHM_SM2: u32 = 4;
/// Bytes of a number's field, and how many of them SM2 takes.
const FIELD: usize = 72;
const NUMBER: usize = 32;
/// Bytes of a signer's name's field.
const USER_ID: usize = 254;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage(pub u32);

impl Usage {
    /// Hygon's root.
    pub const HRK: Self = Self(0);
    /// Hygon's signing key, for chips.
    pub const HSK: Self = Self(0x13);
    /// A chip's key.
    pub const CEK: Self = Self(0x1004);
    /// A platform's key, which signs reports.
    pub const PEK: Self = Self(0x1002);
}

/// A public key of SM2, with the name that its signatures are made under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// Uncompressed point: 0x04, x, y, big-endian.
    pub point: [u8; 65],
    /// The signer's name.
    pub user_id: String,
}

/// A signature of SM2: r, s, big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

/// A number, little-endian with zeros behind it, as 32 bytes, big-endian.
fn number(cursor: &mut Cursor<'_>, field: &'static str) -> Result<[u8; NUMBER], FormError> {
    let mut number: [u8; NUMBER] = cursor.array()?;
    let rest: [u8; FIELD - NUMBER] = cursor.array()?;
    if let Some(found) = rest.into_iter().find(|byte| *byte != 0) {
        return Err(FormError::Field { field, found: found.into(), expected: "a number of 32 bytes" });
    }
    number.reverse();
    Ok(number)
}

impl Signature {
    /// Bytes of both numbers.
    pub(super) const LEN: usize = 2 * FIELD;

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, FormError> {
        let mut signature = [0; 64];
        let (r, s) = (number(cursor, "r of a signature")?, number(cursor, "s of a signature")?);
        signature.iter_mut().zip(r.into_iter().chain(s)).for_each(|(to, from)| *to = from);
        Ok(Self(signature))
    }
}

fn expect(field: &'static str, found: u32, wanted: u32, expected: &'static str) -> Result<(), FormError> {
    if found == wanted { Ok(()) } else { Err(FormError::Field { field, found: found.into(), expected }) }
}

/// Curve and point, without the name.
fn point(cursor: &mut Cursor<'_>) -> Result<[u8; 65], FormError> {
    expect("curve of a certificate's key", cursor.u32_le()?, CURVE_SM2, "3: SM2")?;
    let (x, y) = (number(cursor, "x of a certificate's key")?, number(cursor, "y of a certificate's key")?);
    let mut point = [4; 65];
    point.iter_mut().skip(1).zip(x.into_iter().chain(y)).for_each(|(to, from)| *to = from);
    Ok(point)
}

/// The signer's name behind its 16-bit length.
fn user_id(cursor: &mut Cursor<'_>) -> Result<String, FormError> {
    let len = u16::from_le_bytes(cursor.array()?);
    let field: [u8; USER_ID] = cursor.array()?;
    let name = field.get(..usize::from(len)).and_then(|name| std::str::from_utf8(name).ok());
    name.map(str::to_owned).ok_or(FormError::Field {
        field: "size of a signer's name",
        found: len.into(),
        expected: "at most 254 bytes of text",
    })
}

/// Certificate of an authority. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaCertificate {
    raw: Vec<u8>,
    /// Number of its own key.
    pub key_id: [u8; 16],
    /// Number of the key that signed it.
    pub signer_id: [u8; 16],
    /// What its key is for.
    pub usage: Usage,
    /// Its key.
    pub key: PublicKey,
    /// The signature.
    pub signature: Signature,
}

impl CaCertificate {
    /// Size in bytes.
    pub const LEN: usize = 832;
    /// Bytes that are signed.
    const SIGNED: usize = 576;

    /// Parses exactly [`CaCertificate::LEN`] bytes.
    ///
    /// # Errors
    /// When the size, the version or the curve is another.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormError> {
        let mut cursor = Cursor::new(bytes, "Hygon authority's certificate");
        expect("version of an authority's certificate", cursor.u32_le()?, 1, "1")?;
        let (key_id, signer_id, usage) = (cursor.array()?, cursor.array()?, Usage(cursor.u32_le()?));
        cursor.take(24)?;
        let point = point(&mut cursor)?;
        let user_id = user_id(&mut cursor)?;
        cursor.take(108)?;
        let signature = Signature::read(&mut cursor)?;
        cursor.take(112)?;
        cursor.end()?;
        Ok(Self { raw: bytes.to_vec(), key_id, signer_id, usage, key: PublicKey { point, user_id }, signature })
    }

    /// The bytes it was parsed from.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// What is signed.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        self.raw.get(..Self::SIGNED).unwrap_or_default()
    }
}

/// Certificate of a chip or platform. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    raw: Vec<u8>,
    /// What its key is for.
    pub usage: Usage,
    /// Its key.
    pub key: PublicKey,
    /// Signatures of SM2, each with what the signer's key is for.
    pub signatures: Vec<(Usage, Signature)>,
}

impl Certificate {
    /// Size in bytes.
    pub const LEN: usize = 2084;
    /// Bytes that are signed.
    const SIGNED: usize = 1044;

    /// Parses exactly [`Certificate::LEN`] bytes.
    ///
    /// # Errors
    /// When the size, the version, the curve or the algorithm of the key is another.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormError> {
        let mut cursor = Cursor::new(bytes, "Hygon certificate");
        expect("version of a Hygon certificate", cursor.u32_le()?, 1, "1")?;
        // Firmware's version and a reserved field.
        cursor.take(4)?;
        let usage = Usage(cursor.u32_le()?);
        expect("algorithm of a certificate's key", cursor.u32_le()?, ALGORITHM_SM2, "4: SM2")?;
        let point = point(&mut cursor)?;
        let user_id = user_id(&mut cursor)?;
        cursor.take(16)?;
        cursor.take(608)?;
        let mut signatures = Vec::new();
        for _ in 0..2 {
            let (usage, algorithm) = (Usage(cursor.u32_le()?), cursor.u32_le()?);
            let mut signature = Cursor::new(cursor.take(Signature::LEN)?, "signature of a certificate");
            cursor.take(368)?;
            // A slot of another algorithm is an empty one.
            if algorithm == ALGORITHM_SM2 {
                signatures.push((usage, Signature::read(&mut signature)?));
            }
        }
        cursor.end()?;
        Ok(Self { raw: bytes.to_vec(), usage, key: PublicKey { point, user_id }, signatures })
    }

    /// The bytes it was parsed from.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// What is signed.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        self.raw.get(..Self::SIGNED).unwrap_or_default()
    }
}
