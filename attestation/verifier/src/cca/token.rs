//! The CCA token: a platform token and a realm token (Arm, "Realm Management Monitor specification", section "CCA attestation token";
//! claims of the platform also in draft-ffm-rats-cca-token).

use super::error::CcaError;
use super::signed::{Claims, Point, Signed, read};
use coset::cbor::value::Value;

/// Tag of the collection of both tokens.
const COLLECTION: u64 = 399;
const PLATFORM_TOKEN: i128 = 44234;
const REALM_TOKEN: i128 = 44241;
/// The one profile that is known here. In later ones the realm key has another form.
pub(super) const PROFILE: &str = "http://arm.com/CCA-SSD/1.0.0";
/// Most software components of a platform.
const MAX_COMPONENTS: usize = 64;
/// Realm extensible measurements.
const EXTENSIBLE: usize = 4;

/// Both tokens with what they say. Parsed, **not verified**.
pub(super) struct Token {
    pub(super) platform_token: Signed,
    pub(super) realm_token: Signed,
    pub(super) platform: Platform,
    pub(super) realm: Realm,
}

/// What the platform says of itself.
pub(super) struct Platform {
    pub(super) profile: String,
    /// Hash of the realm key.
    pub(super) challenge: Vec<u8>,
    pub(super) implementation_id: [u8; 32],
    pub(super) instance_id: [u8; 33],
    pub(super) config: Vec<u8>,
    pub(super) lifecycle: u16,
    pub(super) hash: String,
    pub(super) components: Vec<Component>,
    pub(super) service: Option<String>,
}

/// Software that the platform measured as it started.
pub(super) struct Component {
    pub(super) kind: Option<String>,
    pub(super) measurement: Vec<u8>,
    pub(super) version: Option<String>,
    pub(super) signer_id: Vec<u8>,
    pub(super) hash: Option<String>,
}

/// What the realm manager says of the realm.
pub(super) struct Realm {
    pub(super) challenge: [u8; 64],
    pub(super) personalization: [u8; 64],
    pub(super) key: Point,
    pub(super) key_hash: String,
    pub(super) initial: Vec<u8>,
    pub(super) hash: String,
    pub(super) extensible: Vec<Vec<u8>>,
}

impl Token {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CcaError> {
        let what = "the CCA token";
        let collection = match read(bytes, what)? {
            Value::Tag(COLLECTION, collection) => Claims::of(*collection, what)?,
            _ => return Err(CcaError::Form { what, expected: "a collection with tag 399" }),
        };
        let part = |label| collection.bytes(label, "a collection of platform token (44234) and realm token (44241)");
        let platform_token = Signed::parse(part(PLATFORM_TOKEN)?, "the platform token")?;
        let realm_token = Signed::parse(part(REALM_TOKEN)?, "the realm token")?;
        let (platform, realm) = (Platform::of(platform_token.claims())?, Realm::of(realm_token.claims())?);
        Ok(Self { platform_token, realm_token, platform, realm })
    }
}

impl Platform {
    fn of(claims: &Claims) -> Result<Self, CcaError> {
        let profile = claims.text(265, "with a profile (265)")?;
        if profile != PROFILE {
            return Err(CcaError::Profile { found: profile.chars().take(128).collect(), expected: PROFILE });
        }
        let components = claims.list(2399, MAX_COMPONENTS, "with at most 64 software components (2399)")?;
        Ok(Self {
            profile,
            challenge: claims.hash(10, "with a hash as challenge (10)")?,
            implementation_id: claims.array(2396, "with an implementation id (2396) of 32 bytes")?,
            instance_id: claims.array(256, "with an instance id (256) of 33 bytes")?,
            config: claims.bytes(2401, "with a configuration (2401)")?.to_vec(),
            lifecycle: claims.u16(2395, "with a life cycle (2395)")?,
            hash: claims.text(2402, "with a hash algorithm (2402)")?,
            components: components.iter().map(Component::of).collect::<Result<_, _>>()?,
            service: claims.optional_text(2400, "with a text as verification service (2400)")?,
        })
    }
}

impl Component {
    fn of(value: &Value) -> Result<Self, CcaError> {
        let claims = Claims::of(value.clone(), "a software component")?;
        Ok(Self {
            kind: claims.optional_text(1, "with a text as type (1)")?,
            measurement: claims.hash(2, "with a hash as measurement (2)")?,
            version: claims.optional_text(4, "with a text as version (4)")?,
            signer_id: claims.hash(5, "with a hash as signer (5)")?,
            hash: claims.optional_text(6, "with a text as hash algorithm (6)")?,
        })
    }
}

impl Realm {
    fn of(claims: &Claims) -> Result<Self, CcaError> {
        let expected = "with four hashes as extensible measurements (44239)";
        let extensible = claims.list(44239, EXTENSIBLE, expected)?;
        let hash = |value: &Value| value.as_bytes().filter(|bytes| matches!(bytes.len(), 32 | 48 | 64)).cloned();
        let extensible: Vec<Vec<u8>> = extensible.iter().filter_map(hash).collect();
        if extensible.len() != EXTENSIBLE {
            return Err(CcaError::Form { what: "the realm token", expected });
        }
        Ok(Self {
            challenge: claims.array(10, "with a challenge (10) of 64 bytes")?,
            personalization: claims.array(44235, "with a personalization value (44235) of 64 bytes")?,
            key: claims.array(44237, "with a key (44237) that is an uncompressed point of P-384")?,
            key_hash: claims.text(44240, "with the hash algorithm of the key (44240)")?,
            initial: claims.hash(44238, "with a hash as initial measurement (44238)")?,
            hash: claims.text(44236, "with a hash algorithm (44236)")?,
            extensible,
        })
    }
}
