//! The verifier's memory of a request, carried by the guest: measurement key and nonce, sealed with the time they were made.
//!
//! So a broker keeps nothing between challenge and evidence, and any replica with the same sealing key can check the answer. Whoever opened such a
//! box could make measurements, so it is AES-256-GCM under a key that never leaves the broker (NIST SP 800-38D).

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::{Zeroize as _, Zeroizing};

use super::error::SeError;

const PURPOSE: &[u8] = b"kata-cc Secure Execution request, version 1";

/// The key of the boxes. Replicas of a broker share it.
#[derive(Clone)]
pub struct SealingKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingKey(..)")
    }
}

impl SealingKey {
    /// From key material, which must be secret and uniformly random.
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        Self(Zeroizing::new(key))
    }

    fn key(&self) -> Result<LessSafeKey, SeError> {
        let key = UnboundKey::new(&AES_256_GCM, &*self.0).map_err(|_| SeError::Cryptography { what: "the sealing key" })?;
        Ok(LessSafeKey::new(key))
    }
}

/// What is remembered. Wiped when dropped; no Debug.
pub(super) struct Secrets {
    pub(super) issued_at: u64,
    pub(super) measurement_key: [u8; 64],
    pub(super) nonce: [u8; 16],
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.measurement_key.zeroize();
        self.nonce.zeroize();
    }
}

impl Secrets {
    pub(super) fn seal(&self, key: &SealingKey, iv: [u8; NONCE_LEN]) -> Result<Vec<u8>, SeError> {
        let mut text = [self.issued_at.to_be_bytes().as_slice(), &self.measurement_key, &self.nonce].concat();
        let tag = key.key()?.seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::from(PURPOSE), &mut text);
        let Ok(tag) = tag else {
            text.zeroize();
            return Err(SeError::Cryptography { what: "sealing the measurement key" });
        };
        Ok([iv.as_slice(), &text, tag.as_ref()].concat())
    }

    pub(super) fn open(key: &SealingKey, sealed: &[u8]) -> Result<Self, SeError> {
        let (iv, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SeError::Sealed)?;
        let mut text = Zeroizing::new(rest.to_vec());
        let opened = key.key()?.open_in_place(Nonce::assume_unique_for_key(*iv), Aad::from(PURPOSE), &mut text);
        let opened = opened.map_err(|_| SeError::Sealed)?;
        let (issued_at, rest) = opened.split_first_chunk().ok_or(SeError::Sealed)?;
        let (measurement_key, rest) = rest.split_first_chunk().ok_or(SeError::Sealed)?;
        let nonce = rest.try_into().map_err(|_| SeError::Sealed)?;
        Ok(Self { issued_at: u64::from_be_bytes(*issued_at), measurement_key: *measurement_key, nonce })
    }
}
