//! Challenge and evidence as they travel between broker and guest, in CoCo's JSON form.
//!
//! CoCo carries the measurement key through the guest, encrypted to the verifier. What that ciphertext looks like is the verifier's own business:
//! here it is opaque, bounded, and comes back as it went.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::additional::Additional;
use super::header::ImageTags;
use super::request::{MEASUREMENT_SIZE, Request};
use crate::cursor::FormError;

/// Most user data the ultravisor measures.
pub const MAX_USER_DATA: usize = 256;
/// Most that a verifier may have wrapped up: an RSA ciphertext under a key of 8192 bits.
const MAX_OPAQUE: usize = 1024;

/// Why challenge or evidence is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Bytes in it are.
    #[error(transparent)]
    Form(#[from] FormError),
    /// Text that is not standard base64 with padding.
    #[error("{what} is not standard base64")]
    Base64 {
        /// Which field.
        what: &'static str,
    },
}

/// What the broker asks of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// For the ultravisor.
    pub request: Request,
    /// The verifier's memory of the measurement key, for nobody else to read.
    pub sealed_key: Vec<u8>,
    /// The verifier's memory of the nonce.
    pub sealed_nonce: Vec<u8>,
    /// Tags of an image that may be the guest's. The guest cannot know better: it does not see its own header.
    pub image_tags: ImageTags,
}

/// What the guest answers. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The MAC.
    pub measurement: [u8; MEASUREMENT_SIZE],
    /// What the ultravisor added.
    pub additional: Additional,
    /// What the guest wanted to have measured.
    pub user_data: Vec<u8>,
    /// Configuration unique id: made by the ultravisor for each start of a guest.
    pub cuid: [u8; 16],
    /// As in the challenge.
    pub sealed_key: Vec<u8>,
    /// As in the challenge.
    pub sealed_nonce: Vec<u8>,
    /// As in the challenge.
    pub image_tags: ImageTags,
}

impl Evidence {
    /// The bytes whose MAC the measurement is, if the image had these tags and the request this nonce.
    #[must_use]
    pub fn measured_bytes(&self, tags: &ImageTags, nonce: &[u8; 16]) -> Vec<u8> {
        let additional = self.additional.to_bytes();
        // Both lengths were bounded when the evidence was made.
        let user_len = u16::try_from(self.user_data.len()).unwrap_or(u16::MAX).to_be_bytes();
        let additional_len = u32::try_from(additional.len()).unwrap_or(u32::MAX).to_be_bytes();
        [&tags.to_bytes(), self.cuid.as_slice(), &user_len, &[0; 2], &additional_len, &self.user_data, nonce, &additional].concat()
    }
}

#[derive(Serialize, Deserialize)]
struct WireChallenge {
    request_blob: String,
    measurement_size: u32,
    additional_size: u32,
    encr_measurement_key: String,
    encr_request_nonce: String,
    image_hdr_tags: String,
}

/// Unknown fields are ignored: they are the client's words about itself, and no check rests on them.
#[derive(Serialize, Deserialize)]
struct WireEvidence {
    measurement: String,
    additional_data: String,
    user_data: String,
    cuid: String,
    encr_measurement_key: String,
    encr_request_nonce: String,
    image_hdr_tags: String,
}

fn decode(text: &str, what: &'static str, limit: usize) -> Result<Vec<u8>, EvidenceError> {
    let bytes = STANDARD.decode(text).map_err(|_| EvidenceError::Base64 { what })?;
    let found = bytes.len();
    if found > limit { Err(FormError::TooLarge { what, found, limit }.into()) } else { Ok(bytes) }
}

fn decode_array<const N: usize>(text: &str, what: &'static str) -> Result<[u8; N], EvidenceError> {
    let bytes = decode(text, what, N)?;
    let truncated = FormError::Truncated { what, expected: N, found: bytes.len() };
    bytes.try_into().map_err(|_| truncated.into())
}

fn expect(field: &'static str, found: u32, wanted: usize, expected: &'static str) -> Result<(), FormError> {
    if usize::try_from(found) == Ok(wanted) { Ok(()) } else { Err(FormError::Field { field, found: found.into(), expected }) }
}

impl TryFrom<&WireChallenge> for Challenge {
    type Error = EvidenceError;

    fn try_from(wire: &WireChallenge) -> Result<Self, EvidenceError> {
        expect("measurement_size", wire.measurement_size, MEASUREMENT_SIZE, "0x40")?;
        expect("additional_size", wire.additional_size, Additional::LEN, "0x40: two host-key hashes")?;
        Ok(Self {
            request: Request::parse(&decode(&wire.request_blob, "request_blob", Request::MAX)?)?,
            sealed_key: decode(&wire.encr_measurement_key, "encr_measurement_key", MAX_OPAQUE)?,
            sealed_nonce: decode(&wire.encr_request_nonce, "encr_request_nonce", MAX_OPAQUE)?,
            image_tags: ImageTags::parse(&decode(&wire.image_hdr_tags, "image_hdr_tags", ImageTags::LEN)?)?,
        })
    }
}

impl TryFrom<&WireEvidence> for Evidence {
    type Error = EvidenceError;

    fn try_from(wire: &WireEvidence) -> Result<Self, EvidenceError> {
        Ok(Self {
            measurement: decode_array(&wire.measurement, "measurement")?,
            additional: Additional::parse(&decode(&wire.additional_data, "additional_data", Additional::LEN)?)?,
            user_data: decode(&wire.user_data, "user_data", MAX_USER_DATA)?,
            cuid: decode_array(&wire.cuid, "cuid")?,
            sealed_key: decode(&wire.encr_measurement_key, "encr_measurement_key", MAX_OPAQUE)?,
            sealed_nonce: decode(&wire.encr_request_nonce, "encr_request_nonce", MAX_OPAQUE)?,
            image_tags: ImageTags::parse(&decode(&wire.image_hdr_tags, "image_hdr_tags", ImageTags::LEN)?)?,
        })
    }
}

impl Serialize for Challenge {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WireChallenge {
            request_blob: STANDARD.encode(self.request.to_bytes().map_err(serde::ser::Error::custom)?),
            measurement_size: 64,
            additional_size: 64,
            encr_measurement_key: STANDARD.encode(&self.sealed_key),
            encr_request_nonce: STANDARD.encode(&self.sealed_nonce),
            image_hdr_tags: STANDARD.encode(self.image_tags.to_bytes()),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Challenge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(&WireChallenge::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Evidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WireEvidence {
            measurement: STANDARD.encode(self.measurement),
            additional_data: STANDARD.encode(self.additional.to_bytes()),
            user_data: STANDARD.encode(&self.user_data),
            cuid: STANDARD.encode(self.cuid),
            encr_measurement_key: STANDARD.encode(&self.sealed_key),
            encr_request_nonce: STANDARD.encode(&self.sealed_nonce),
            image_hdr_tags: STANDARD.encode(self.image_tags.to_bytes()),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Evidence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(&WireEvidence::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
