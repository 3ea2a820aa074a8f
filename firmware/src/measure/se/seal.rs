//! Making a header: everything secret about an image, encrypted to host keys.
//!
//! Each key slot holds the protection key, encrypted under a key that is agreed between the customer key and the slot's host key:
//! SHA-256(ECDH ‖ 00000001), AES-256-GCM with a zero IV, which is sound because each pair of keys agrees on it once: the customer key is
//! made for one image, and a host key has one slot.

use kata_cc_evidence::se::KeySlot;
use p521::elliptic_curve::sec1::ToEncodedPoint as _;
use p521::{PublicKey, SecretKey, ecdh};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use super::components::Measured;
use super::header::{Head, Header, HeaderError, PlaintextFlags, Point};

const KEY: usize = 32;
const SCALAR: usize = 66;

/// Where a CPU goes on, and in which mode: z/Architecture's program status word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Psw {
    /// Mask.
    pub mask: u64,
    /// Instruction address.
    pub address: u64,
}

impl Psw {
    /// Bits 31 and 32: 64-bit addresses.
    pub const MASK: u64 = 0x1_8000_0000;

    /// At an address, with 64-bit addresses.
    #[must_use]
    pub const fn at(address: u64) -> Self {
        Self { mask: Self::MASK, address }
    }

    pub(super) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.mask) << 64 | u128::from(self.address)).to_be_bytes()
    }
}

/// Everything secret or random about an image. Made anew for each: used twice, its keys would encrypt different pages alike. Wiped when
/// dropped.
pub struct Secrets {
    pub(super) protection_key: Zeroizing<[u8; KEY]>,
    pub(super) customer_key: SecretKey,
    pub(super) communication_key: Zeroizing<[u8; KEY]>,
    pub(super) component_key: Zeroizing<[u8; 2 * KEY]>,
    pub(super) iv: [u8; 12],
    pub(super) tweaks: [[u8; 6]; 4],
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// Why there are no secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError<E: std::error::Error + 'static> {
    /// No random bytes.
    #[error("there are no random bytes")]
    Random(#[source] E),
    /// They were never a key.
    #[error("the random bytes do not make keys, which does not happen by chance")]
    NotRandom,
}

impl Secrets {
    /// Of random bytes, which `fill` must put into all of the slice. Each comes from the system's generator, or from wherever a test has
    /// them.
    ///
    /// # Errors
    /// When `fill` fails, or what it gives cannot be random.
    pub fn draw<E: std::error::Error>(mut fill: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<Self, SecretsError<E>> {
        let mut fill = |bytes: &mut [u8]| fill(bytes).map_err(SecretsError::Random);
        let mut protection_key = Zeroizing::new([0; KEY]);
        let mut communication_key = Zeroizing::new([0; KEY]);
        let mut component_key = Zeroizing::new([0; 2 * KEY]);
        let (mut iv, mut tweaks) = ([0; 12], [[0; 6]; 4]);
        fill(&mut *protection_key)?;
        fill(&mut *communication_key)?;
        fill(&mut *component_key)?;
        fill(&mut iv)?;
        for tweak in &mut tweaks {
            fill(tweak)?;
        }
        let (one, other) = component_key.split_at(KEY);
        // Equal halves undo XTS (FIPS 140, implementation guidance C.I).
        if one == other {
            return Err(SecretsError::NotRandom);
        }
        // A uniform scalar. The order is just below 2^521, so the first try misses it once in 2^261 times.
        for _ in 0..4 {
            let mut scalar = Zeroizing::new([0; SCALAR]);
            fill(&mut *scalar)?;
            if let Some(first) = scalar.first_mut() {
                *first &= 1;
            }
            if let Ok(customer_key) = SecretKey::from_slice(scalar.as_slice()) {
                return Ok(Self { protection_key, customer_key, communication_key, component_key, iv, tweaks });
            }
        }
        Err(SecretsError::NotRandom)
    }
}

/// Why no header was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It has no form.
    #[error("the Secure Execution header cannot be made")]
    Header(#[from] HeaderError),
    /// A key twice would have its slots encrypted twice under one key and IV.
    #[error("host key {phkh} is there twice; give each host-key document once")]
    SameHostKey {
        /// Its hash, hexadecimal.
        phkh: String,
    },
    /// The arithmetic refused.
    #[error("the Secure Execution header cannot be made: encryption failed")]
    Encryption,
}

/// Makes the header of measured pages, for these host keys. The guest starts with `psw`.
///
/// # Errors
/// When there is no host key, one twice, or more than fit.
pub fn seal(measured: &Measured, host_keys: &[Point], flags: PlaintextFlags, psw: Psw, secrets: &Secrets) -> Result<Header, SealError> {
    let mut slots: Vec<KeySlot> = Vec::with_capacity(host_keys.len());
    for host_key in host_keys {
        let phkh = phkh(host_key);
        if slots.iter().any(|slot| slot.phkh == phkh) {
            return Err(SealError::SameHostKey { phkh: hex::encode(phkh) });
        }
        slots.push(wrap(host_key, phkh, secrets)?);
    }
    let customer_key = point(&secrets.customer_key.public_key()).ok_or(SealError::Encryption)?;
    let head = Head { iv: secrets.iv, pages: measured.pages, flags, customer_key, digests: measured.digests, slots };
    let confidential = confidential(secrets, psw);
    seal_parts(head, &confidential, &secrets.protection_key)
}

/// SHA-256 of a public host key: what key slots call it by.
#[must_use]
pub fn phkh(host_key: &Point) -> [u8; 32] {
    Sha256::digest(host_key.coordinates()).into()
}

fn point(key: &PublicKey) -> Option<Point> {
    let encoded = key.to_encoded_point(false);
    let mut bytes = [0; Point::LEN];
    bytes.get_mut(14..80)?.copy_from_slice(encoded.x()?);
    bytes.get_mut(94..)?.copy_from_slice(encoded.y()?);
    Point::from_coordinates(bytes).ok()
}

/// The encrypted part, before it is: communication key, component key, PSW, secret control flags, number of optional items, 0.
fn confidential(secrets: &Secrets, psw: Psw) -> Zeroizing<[u8; Header::ENCRYPTED]> {
    let mut bytes = Zeroizing::new([0; Header::ENCRYPTED]);
    let fields: [&[u8]; 3] = [&*secrets.communication_key, &*secrets.component_key, &psw.to_bytes()];
    for (byte, value) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
        *byte = *value;
    }
    bytes
}

fn seal_parts(head: Head, confidential: &[u8; Header::ENCRYPTED], protection_key: &[u8; KEY]) -> Result<Header, SealError> {
    let authenticated = head.to_bytes(confidential.len())?;
    let mut text = Zeroizing::new(*confidential);
    let tag = encrypt(protection_key, head.iv, &authenticated, &mut *text)?;
    Ok(Header { head, encrypted: text.to_vec(), tag })
}

fn wrap(host_key: &Point, phkh: [u8; 32], secrets: &Secrets) -> Result<KeySlot, SealError> {
    let shared = ecdh::diffie_hellman(secrets.customer_key.to_nonzero_scalar(), host_key.key().as_affine());
    let mut agreed = Zeroizing::new([0; KEY]);
    agreed.copy_from_slice(&Sha256::new().chain_update(shared.raw_secret_bytes()).chain_update([0, 0, 0, 1]).finalize());
    let mut wrapped_key = *secrets.protection_key;
    match encrypt(&agreed, [0; 12], &[], &mut wrapped_key) {
        Ok(tag) => Ok(KeySlot { phkh, wrapped_key, tag }),
        Err(error) => {
            wrapped_key.zeroize();
            Err(error)
        }
    }
}

fn encrypt(key: &[u8; KEY], iv: [u8; 12], authenticated: &[u8], text: &mut [u8]) -> Result<[u8; 16], SealError> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Encryption)?);
    let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::from(authenticated), text);
    tag.ok().and_then(|tag| tag.as_ref().try_into().ok()).ok_or(SealError::Encryption)
}

#[cfg(test)]
pub(super) mod tests;
