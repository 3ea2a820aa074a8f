//! Encrypted layers: the annotations, the wrapped key, the cipher. Both directions.
//!
//! Format: ocicrypt (`org.opencontainers.image.enc.*`) with the key-provider packet of Confidential Containers, versions 1 and 2.
//!
//! The cipher is AES-256-CTR with an HMAC-SHA256 over the ciphertext under the *same* key. It is not an AEAD, and whoever decrypts before the MAC is known
//! gives an attacker who flips bits an oracle. So a layer is gone through twice: [`Checking`] sees the ciphertext and gives nothing out, and only from one
//! whose MAC was right comes an [`Opening`], which decrypts; that both see the same bytes is [`crate::spool`]'s to hold. The nonce is not under the MAC; it is
//! taken from the private options only, which the key-encryption key authenticates, never from the public ones.
//!
//! **Invariant:** no error and no `Debug` of this module shows a key or a MAC, and a failed MAC stays failed: the check is consumed by asking.
//! **Invariant:** an [`Opening`] exists only for a layer whose MAC was right.

use std::collections::BTreeMap;

use aes::Aes256;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ctr::cipher::{KeyIvInit, StreamCipher};
use ring::rand::SecureRandom;
use ring::{aead, hmac};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use crate::digest::{Digest, Hasher};
use crate::secret::{ResourceUri, ResourceUriError, Secret};

/// Suffix of the media type of an encrypted layer.
pub const MEDIA_TYPE_SUFFIX: &str = "+encrypted";
/// Annotation with the public cipher options.
pub const PUBLIC_OPTIONS: &str = "org.opencontainers.image.enc.pubopts";
/// Beginning of the annotations that hold wrapped keys.
pub const KEYS_PREFIX: &str = "org.opencontainers.image.enc.keys.";
/// Beginning of the annotations that hold keys wrapped by a key provider. The provider's name follows; on reading it decides nothing.
pub const PROVIDER_PREFIX: &str = "org.opencontainers.image.enc.keys.provider.";
/// The name of the provider written by us, as Confidential Containers does.
pub const PROVIDER: &str = "attestation-agent";

const CIPHER: &str = "AES_256_CTR_HMAC_SHA256";
const WRAP: &str = "A256GCM";
/// Packets are a few hundred bytes; a manifest may hold megabytes.
const ANNOTATION_LIMIT: usize = 256 << 10;

/// What is wrong with an encrypted layer or its key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OcicryptError {
    /// The public options are absent.
    #[error("encrypted layer without the annotation {PUBLIC_OPTIONS}")]
    NoPublicOptions,
    /// No key that a key provider wrapped.
    #[error(
        "encrypted layer without a key wrapped by a key provider (annotation {PROVIDER_PREFIX}<name>); it has {found:?}: encrypt it with a key-provider key"
    )]
    NoProviderKey {
        /// The wrapping schemes that are there.
        found: Vec<String>,
    },
    /// Something is not of the expected form. The text names the part, not its content.
    #[error("encrypted layer: {part} is malformed: expected {expected}")]
    Malformed {
        /// Which part.
        part: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// A cipher or wrapping we do not do.
    #[error("encrypted layer: {part} {found:?} is not supported, only {expected} is")]
    Unsupported {
        /// Which part.
        part: &'static str,
        /// What the annotation says.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// The packet names a key that cannot be a resource.
    #[error("encrypted layer: key id")]
    KeyId(#[from] ResourceUriError),
    /// The resource is no AES-256 key.
    #[error("key {kid}: expected a key of 32 bytes, found {found} bytes")]
    KeyLength {
        /// Name of the key.
        kid: String,
        /// Its length.
        found: usize,
    },
    /// The key does not open the packet.
    #[error("key {0} does not open this layer's wrapped key: it is another key, or the packet was altered")]
    Unwrap(String),
    /// The ciphertext is not what was encrypted.
    #[error("encrypted layer: the authentication code is not that of the ciphertext: the layer was altered")]
    Mac,
    /// The decrypted blob is not what was encrypted.
    #[error("encrypted layer: the decrypted blob is not the one whose digest was wrapped with the key")]
    PlaintextDigest,
    /// No randomness.
    #[error("no random bytes from the system")]
    Random,
}

/// Bytes that peers write as base64 or as an array of integers. They may be a key, so they are read straight into memory that is wiped: serde's untagged enums
/// would keep a copy of their own first.
struct FlexibleBytes(Zeroizing<Vec<u8>>);

impl<'de> Deserialize<'de> for FlexibleBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FlexibleBytesVisitor)
    }
}

struct FlexibleBytesVisitor;

impl<'de> Visitor<'de> for FlexibleBytesVisitor {
    type Value = FlexibleBytes;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("base64 or an array of bytes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<FlexibleBytes, E> {
        BASE64.decode(text).map(|bytes| FlexibleBytes(Zeroizing::new(bytes))).map_err(|_| E::custom("not base64"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<FlexibleBytes, A::Error> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(64));
        while let Some(byte) = list.next_element::<u8>()? {
            if bytes.len() == bytes.capacity() {
                // By hand: when a vector grows by itself it leaves what it held behind.
                let mut larger = Zeroizing::new(Vec::with_capacity(bytes.capacity() * 2));
                larger.extend_from_slice(&bytes);
                bytes = larger;
            }
            bytes.push(byte);
        }
        Ok(FlexibleBytes(bytes))
    }
}

#[derive(Serialize, Deserialize)]
struct PublicOptions {
    cipher: String,
    hmac: serde_json::Value,
    #[serde(default)]
    cipheroptions: BTreeMap<String, serde_json::Value>,
}

/// What the key-encryption key protects.
#[derive(Deserialize)]
struct PrivateOptions {
    symkey: FlexibleBytes,
    digest: Digest,
    cipheroptions: BTreeMap<String, FlexibleBytes>,
}

#[derive(Deserialize)]
struct RawPacket {
    kid: String,
    wrapped_data: FlexibleBytes,
    iv: Option<FlexibleBytes>,
    wrap_type: Option<String>,
    version: Option<String>,
    provider: Option<String>,
}

/// A wrapped layer key, checked in form: which key opens it, and what is to be opened.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPacket {
    kid: ResourceUri,
    iv: [u8; 12],
    wrapped: Vec<u8>,
}

impl std::fmt::Debug for KeyPacket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPacket").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl KeyPacket {
    /// Reads one packet of version 1 or 2.
    ///
    /// # Errors
    /// If it is malformed, or asks for a wrapping other than A256GCM, or its key id is no `kbs:///` resource.
    pub fn parse(json: &[u8]) -> Result<Self, OcicryptError> {
        let malformed = |part, expected| OcicryptError::Malformed { part, expected };
        let raw: RawPacket =
            serde_json::from_slice(json).map_err(|_| malformed("the key packet", "JSON with kid, wrapped_data, iv, wrap_type"))?;
        if let Some(version) = raw.version
            && version != "0.1.0"
        {
            return Err(OcicryptError::Unsupported { part: "packet version", found: version, expected: "0.1.0" });
        }
        if let Some(provider) = raw.provider
            && provider != "kbs"
        {
            return Err(OcicryptError::Unsupported { part: "packet provider", found: provider, expected: "kbs" });
        }
        match raw.wrap_type.as_deref() {
            None | Some(WRAP) => {}
            Some(other) => return Err(OcicryptError::Unsupported { part: "key wrapping", found: other.to_owned(), expected: WRAP }),
        }
        let iv =
            raw.iv.and_then(|iv| <[u8; 12]>::try_from(iv.0.as_slice()).ok()).ok_or_else(|| malformed("the packet's iv", "12 bytes"))?;
        if raw.wrapped_data.0.len() < 17 {
            return Err(malformed("the packet's wrapped_data", "ciphertext and a tag of 16 bytes"));
        }
        Ok(Self { kid: raw.kid.parse()?, iv, wrapped: raw.wrapped_data.0.to_vec() })
    }

    /// The resource that holds the key-encryption key.
    #[must_use]
    pub const fn kid(&self) -> &ResourceUri {
        &self.kid
    }

    fn unwrap(&self, kek: &Secret) -> Result<PrivateOptions, OcicryptError> {
        let key = gcm_key(&self.kid, kek)?;
        let mut data = Zeroizing::new(self.wrapped.clone());
        let plain = key
            .open_in_place(aead::Nonce::assume_unique_for_key(self.iv), aead::Aad::empty(), &mut data)
            .map_err(|_| OcicryptError::Unwrap(self.kid.to_string()))?;
        serde_json::from_slice(plain)
            .map_err(|_| OcicryptError::Malformed { part: "the unwrapped key", expected: "JSON with symkey, digest, cipheroptions" })
    }
}

fn gcm_key(kid: &ResourceUri, kek: &Secret) -> Result<aead::LessSafeKey, OcicryptError> {
    let length = || OcicryptError::KeyLength { kid: kid.to_string(), found: kek.expose().len() };
    aead::UnboundKey::new(&aead::AES_256_GCM, kek.expose()).map(aead::LessSafeKey::new).map_err(|_| length())
}

/// An encrypted layer's annotations, checked in form. No key has been asked for yet.
#[derive(Clone)]
pub struct Sealed {
    mac: [u8; 32],
    packets: Vec<KeyPacket>,
}

impl Sealed {
    /// Reads the annotations of an encrypted layer.
    ///
    /// # Errors
    /// If they are absent, malformed, or none of the wrapped keys is of a form we can open.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, OcicryptError> {
        let decode = |text: &str| BASE64.decode(text).map_err(|_| OcicryptError::Malformed { part: "an annotation", expected: "base64" });
        let public = annotations.get(PUBLIC_OPTIONS).ok_or(OcicryptError::NoPublicOptions)?;
        if public.len() > ANNOTATION_LIMIT {
            return Err(OcicryptError::Malformed { part: PUBLIC_OPTIONS, expected: "at most 256 KiB" });
        }
        let malformed = || OcicryptError::Malformed { part: PUBLIC_OPTIONS, expected: "JSON with cipher and an hmac of 32 bytes" };
        let public: PublicOptions = serde_json::from_slice(&decode(public)?).map_err(|_| malformed())?;
        if public.cipher != CIPHER {
            return Err(OcicryptError::Unsupported { part: "cipher", found: public.cipher, expected: CIPHER });
        }
        let FlexibleBytes(mac) = serde_json::from_value(public.hmac).map_err(|_| malformed())?;
        let mac = <[u8; 32]>::try_from(mac.as_slice()).map_err(|_| malformed())?;

        let mut packets = Vec::new();
        let mut found = Vec::new();
        let mut first_error = None;
        for (key, value) in annotations {
            let Some(scheme) = key.strip_prefix(KEYS_PREFIX) else { continue };
            found.push(scheme.to_owned());
            if !key.starts_with(PROVIDER_PREFIX) || value.len() > ANNOTATION_LIMIT {
                continue;
            }
            // One packet for each recipient. Those of others need not make sense to us, as long as one does.
            for packet in value.split(',') {
                match decode(packet).and_then(|json| KeyPacket::parse(&json)) {
                    Ok(packet) => packets.push(packet),
                    Err(error) => first_error = first_error.or(Some(error)),
                }
            }
        }
        match (packets.is_empty(), first_error) {
            (false, _) => Ok(Self { mac, packets }),
            (true, Some(error)) => Err(error),
            (true, None) => Err(OcicryptError::NoProviderKey { found }),
        }
    }

    /// The wrapped keys, one for each recipient.
    #[must_use]
    pub fn packets(&self) -> &[KeyPacket] {
        &self.packets
    }

    /// Opens one of the packets with its key-encryption key.
    ///
    /// # Errors
    /// If the key does not open it, or what it holds is malformed.
    pub fn unwrap(&self, packet: &KeyPacket, kek: &Secret) -> Result<LayerKey, OcicryptError> {
        let private = packet.unwrap(kek)?;
        let malformed = |part, expected| OcicryptError::Malformed { part, expected };
        let symkey = private.symkey.0;
        let mut key = Zeroizing::new([0u8; 32]);
        if symkey.len() != key.len() {
            return Err(malformed("the unwrapped key's symkey", "32 bytes"));
        }
        key.copy_from_slice(&symkey);
        let nonce = private.cipheroptions.get("nonce").and_then(|nonce| <[u8; 16]>::try_from(nonce.0.as_slice()).ok());
        let nonce = nonce.ok_or_else(|| malformed("the unwrapped key's nonce", "16 bytes"))?;
        Ok(LayerKey { key, nonce, plaintext: private.digest, mac: self.mac })
    }
}

/// All that is needed to open one layer.
#[derive(Clone)]
pub struct LayerKey {
    key: Zeroizing<[u8; 32]>,
    nonce: [u8; 16],
    plaintext: Digest,
    mac: [u8; 32],
}

impl std::fmt::Debug for LayerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LayerKey(..)")
    }
}

type Ctr = ctr::Ctr128BE<Aes256>;

/// A layer's ciphertext being checked. It knows the key and decrypts nothing.
pub(crate) struct Checking {
    key: LayerKey,
    mac: hmac::Context,
}

impl Checking {
    /// Begins with a layer's key.
    #[must_use]
    pub(crate) fn new(key: &LayerKey) -> Self {
        Self { key: key.clone(), mac: hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.key.as_slice())) }
    }

    /// Takes the next ciphertext.
    pub(crate) fn update(&mut self, ciphertext: &[u8]) {
        self.mac.update(ciphertext);
    }

    /// Whether that was all of the layer and authentic; if so, what decrypts it. There is no second answer.
    ///
    /// # Errors
    /// If the MAC is another.
    pub(crate) fn finish(self) -> Result<Opening, OcicryptError> {
        let Self { key, mac } = self;
        let found = mac.sign();
        // Not a comparison that stops at the first difference: the result must tell a forger nothing but no.
        if found.as_ref().iter().zip(key.mac).fold(found.as_ref().len() ^ 32, |d, (a, b)| d | usize::from(a ^ b)) != 0 {
            return Err(OcicryptError::Mac);
        }
        Ok(Opening {
            cipher: Ctr::new(key.key.as_slice().into(), (&key.nonce).into()),
            plaintext: Hasher::new(),
            expected_plaintext: key.plaintext,
        })
    }
}

/// An authentic layer being decrypted.
pub(crate) struct Opening {
    cipher: Ctr,
    plaintext: Hasher,
    expected_plaintext: Digest,
}

impl Opening {
    /// Decrypts the next bytes where they are.
    pub(crate) fn apply(&mut self, bytes: &mut [u8]) {
        self.cipher.apply_keystream(bytes);
        self.plaintext.update(bytes);
    }

    /// Whether all that came out is what the key was wrapped for: a right MAC under a right key says it is, unless the author's tool was wrong.
    ///
    /// # Errors
    /// If the digest of the plaintext is another.
    pub(crate) fn finish(self) -> Result<(), OcicryptError> {
        if self.plaintext.finish() == self.expected_plaintext { Ok(()) } else { Err(OcicryptError::PlaintextDigest) }
    }
}

/// A layer being encrypted under a fresh key and nonce.
pub struct Sealing {
    cipher: Ctr,
    mac: hmac::Context,
    plaintext: Hasher,
    key: Zeroizing<[u8; 32]>,
    nonce: [u8; 16],
}

impl Sealing {
    /// Begins with a fresh random key and nonce.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn new() -> Result<Self, OcicryptError> {
        let random = ring::rand::SystemRandom::new();
        let mut key = Zeroizing::new([0u8; 32]);
        let mut nonce = [0u8; 16];
        random.fill(key.as_mut_slice()).map_err(|_| OcicryptError::Random)?;
        random.fill(&mut nonce).map_err(|_| OcicryptError::Random)?;
        Ok(Self {
            cipher: Ctr::new(key.as_slice().into(), (&nonce).into()),
            mac: hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.as_slice())),
            plaintext: Hasher::new(),
            key,
            nonce,
        })
    }

    /// Encrypts the next bytes where they are.
    pub fn apply(&mut self, bytes: &mut [u8]) {
        self.plaintext.update(bytes);
        self.cipher.apply_keystream(bytes);
        self.mac.update(bytes);
    }

    /// The annotations that let the holder of `kek`, to be found under `kid`, open what was encrypted. A packet of version 1.
    ///
    /// # Errors
    /// If `kek` is no AES-256 key or the system gives no random bytes.
    pub fn finish(self, kid: &ResourceUri, kek: &Secret) -> Result<BTreeMap<String, String>, OcicryptError> {
        let private = Zeroizing::new(
            serde_json::json!({
                "symkey": BASE64.encode(self.key.as_slice()),
                "digest": self.plaintext.finish(),
                "cipheroptions": {"nonce": BASE64.encode(self.nonce)},
            })
            .to_string(),
        );
        let mut iv = [0u8; 12];
        ring::rand::SystemRandom::new().fill(&mut iv).map_err(|_| OcicryptError::Random)?;
        let mut wrapped = private.as_bytes().to_vec();
        gcm_key(kid, kek)?
            .seal_in_place_append_tag(aead::Nonce::assume_unique_for_key(iv), aead::Aad::empty(), &mut wrapped)
            .expect("a few hundred bytes are within what AES-GCM seals");
        let packet = serde_json::json!({
            "kid": kid.to_string(),
            "wrapped_data": BASE64.encode(wrapped),
            "iv": BASE64.encode(iv),
            "wrap_type": WRAP,
        });
        let public = serde_json::json!({"cipher": CIPHER, "hmac": BASE64.encode(self.mac.sign()), "cipheroptions": {}});
        Ok(BTreeMap::from([
            (format!("{PROVIDER_PREFIX}{PROVIDER}"), BASE64.encode(packet.to_string())),
            (PUBLIC_OPTIONS.to_owned(), BASE64.encode(public.to_string())),
        ]))
    }
}
