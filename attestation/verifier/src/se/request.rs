//! Making an attestation request for a set of host keys.
//!
//! The request protection key encrypts measurement key and nonce; each key slot holds it once more, encrypted under a key that is agreed between the
//! request's own key and the slot's host key: SHA-256(ECDH ‖ 00000001), AES-256-GCM with a zero IV, which is sound because each pair of keys
//! agrees on it once.

use kata_cc_evidence::se::{AuthenticatedHead, Flags, KeySlot, Request};
use p521::{SecretKey, ecdh};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{Context, SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize as _, Zeroizing};

use super::error::SeError;
use super::host_key::{HostKey, coordinates};
use super::seal::Secrets;

const KEY: usize = 32;
const SCALAR: usize = 66;

/// Everything random about a request but what is remembered of it.
pub(super) struct Ephemeral {
    pub(super) iv: [u8; 12],
    pub(super) key: SecretKey,
    pub(super) protection_key: Zeroizing<[u8; KEY]>,
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], SeError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SeError::Cryptography { what: "the random number generator" })?;
    Ok(bytes)
}

impl Ephemeral {
    pub(super) fn generate() -> Result<Self, SeError> {
        Ok(Self { iv: random()?, key: generate_key()?, protection_key: Zeroizing::new(random()?) })
    }
}

/// A uniform scalar. The order is just below 2^521, so the first try misses it once in 2^261 times.
fn generate_key() -> Result<SecretKey, SeError> {
    for _ in 0..4 {
        let mut bytes = Zeroizing::new(random::<SCALAR>()?);
        if let Some(first) = bytes.first_mut() {
            *first &= 1;
        }
        if let Ok(key) = SecretKey::from_slice(bytes.as_slice()) {
            return Ok(key);
        }
    }
    Err(SeError::Cryptography { what: "making a key on P-521" })
}

/// Builds the request.
pub(super) fn build(host_keys: &[HostKey], flags: Flags, secrets: &Secrets, ephemeral: &Ephemeral) -> Result<Request, SeError> {
    let slots = host_keys.iter().map(|host_key| wrap(host_key, ephemeral)).collect::<Result<_, _>>()?;
    let head = AuthenticatedHead { iv: ephemeral.iv, flags, public_key: coordinates(&ephemeral.key.public_key()), slots };
    let mut encrypted = [0; Request::ENCRYPTED];
    let (key, nonce) = encrypted.split_at_mut(secrets.measurement_key.len());
    key.copy_from_slice(&secrets.measurement_key);
    nonce.copy_from_slice(&secrets.nonce);
    match encrypt(&ephemeral.protection_key, ephemeral.iv, &head.to_bytes()?, &mut encrypted) {
        Ok(tag) => Ok(Request { head, encrypted, tag }),
        Err(error) => {
            encrypted.zeroize();
            Err(error)
        }
    }
}

fn wrap(host_key: &HostKey, ephemeral: &Ephemeral) -> Result<KeySlot, SeError> {
    let shared = ecdh::diffie_hellman(ephemeral.key.to_nonzero_scalar(), host_key.key().as_affine());
    let mut hash = Context::new(&SHA256);
    hash.update(shared.raw_secret_bytes());
    hash.update(&[0, 0, 0, 1]);
    let mut agreed = Zeroizing::new([0; KEY]);
    agreed.copy_from_slice(hash.finish().as_ref());
    let mut wrapped_key = *ephemeral.protection_key;
    match encrypt(&agreed, [0; 12], &[], &mut wrapped_key) {
        Ok(tag) => Ok(KeySlot { phkh: host_key.phkh(), wrapped_key, tag }),
        Err(error) => {
            wrapped_key.zeroize();
            Err(error)
        }
    }
}

fn encrypt(key: &[u8; KEY], iv: [u8; 12], authenticated: &[u8], text: &mut [u8]) -> Result<[u8; 16], SeError> {
    let failed = || SeError::Cryptography { what: "encryption" };
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| failed())?);
    let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::from(authenticated), text).map_err(|_| failed())?;
    tag.as_ref().try_into().map_err(|_| failed())
}
