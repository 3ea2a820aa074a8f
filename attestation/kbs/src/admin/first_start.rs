//! The administrator's key pair of a first start: PKCS#8 and SubjectPublicKeyInfo of Ed25519 (RFC 8410).
//!
//! **Invariant:** the private key is written once, with mode 0600, and never read by the broker.

use super::AdminError;
use super::key::VerifyingKey;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use std::path::Path;
use zeroize::Zeroizing;

const PUBLIC_KEY_LEN: usize = 32;
/// DER of SubjectPublicKeyInfo for Ed25519 up to the key (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// DER of PKCS#8 version 1 for Ed25519 up to the seed (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] = [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Makes a pair and writes both halves; the public one last, so that a start that was cut short leaves no key nobody can use.
pub(super) fn make_pair(private: &Path, public: &Path) -> Result<[u8; PUBLIC_KEY_LEN], AdminError> {
    let mut seed = Zeroizing::new([0u8; 32]);
    SystemRandom::new().fill(seed.as_mut_slice()).map_err(|_| AdminError::Random)?;
    let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).map_err(|_| AdminError::Random)?;
    let key: [u8; PUBLIC_KEY_LEN] = pair.public_key().as_ref().try_into().map_err(|_| AdminError::Random)?;
    let der = Zeroizing::new([PKCS8_PREFIX.as_slice(), seed.as_slice()].concat());
    let pem = Zeroizing::new(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_slice())));
    crate::seal::write_new_private(private, pem.as_bytes()).map_err(|source| AdminError::Write { path: private.into(), source })?;
    let spki = [SPKI_PREFIX.as_slice(), &key].concat();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(spki));
    std::fs::write(public, pem).map_err(|source| AdminError::Write { path: public.into(), source })?;
    Ok(key)
}

/// The first 16 digits of a key's id: SHA-256 of its SubjectPublicKeyInfo, as `kata-cc policy` shows ids.
pub(super) fn short_id(key: &VerifyingKey) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, &[SPKI_PREFIX.as_slice(), key.encoded()].concat());
    hex::encode(digest).chars().take(16).collect()
}
