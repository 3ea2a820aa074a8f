//! Making and signing an ID block, at the owner's.

use std::fmt;

use ring::error::Unspecified;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use super::{
    AUTH_SIZE, AUTHOR_KEY, AUTHOR_SIGNATURE, BLOCK_SIZE, CURVE_P384, ECDSA_P384, FIELD, ID_KEY, ID_SIGNATURE, IdBlockError, KEY_SIZE,
    NUMBER, SignedIdBlock, VERSION,
};

/// What an owner says of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdBlock {
    /// LD, the measurement that the guest must have.
    pub launch_digest: [u8; 48],
    /// FAMILY_ID, the owner's name for what belongs together.
    pub family_id: [u8; 16],
    /// IMAGE_ID, the owner's name for this image.
    pub image_id: [u8; 16],
    /// GUEST_SVN, the owner's security version number.
    pub guest_svn: u32,
    /// POLICY, the guest policy that the launch must have.
    pub policy: u64,
}

impl IdBlock {
    fn to_bytes(&self) -> [u8; BLOCK_SIZE] {
        let mut block = [0; BLOCK_SIZE];
        put(&mut block, 0, &self.launch_digest);
        put(&mut block, 0x30, &self.family_id);
        put(&mut block, 0x40, &self.image_id);
        put(&mut block, 0x50, &VERSION.to_le_bytes());
        put(&mut block, 0x54, &self.guest_svn.to_le_bytes());
        put(&mut block, 0x58, &self.policy.to_le_bytes());
        block
    }
}

/// A private key on P-384 that signs ID blocks, or keys that do.
pub struct IdKey(EcdsaKeyPair);

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdKey")
    }
}

/// Why an ID block was not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// Not a key for this.
    #[error("expected a private key on P-384 in PKCS#8, as `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384` makes it")]
    Key,
    /// One key for both parts, whose point is that they are different people's.
    #[error("the author's key is the ID key; an author vouches for another's key, so leave it out or name another")]
    OneKey,
    /// The system has no random bytes.
    #[error("the system's random source failed")]
    Random,
    /// What came out does not verify.
    #[error("what was signed does not verify")]
    Check(#[from] IdBlockError),
}

impl IdKey {
    /// A key in PKCS#8 (DER), with its public part.
    ///
    /// # Errors
    ///
    /// Any other key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, SignError> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, der, &SystemRandom::new()).map(Self).map_err(|_| SignError::Key)
    }

    /// The public key as AMD has it.
    fn put_public(&self, auth: &mut [u8], at: usize) {
        put(auth, at, &CURVE_P384.to_le_bytes());
        // The byte in front says that the point is not compressed.
        put_numbers(auth, at + 4, self.0.public_key().as_ref().get(1..).unwrap_or_default());
    }

    fn put_signature(&self, auth: &mut [u8], at: usize, message: &[u8]) -> Result<(), SignError> {
        let signature = self.0.sign(&SystemRandom::new(), message).map_err(|Unspecified| SignError::Random)?;
        put_numbers(auth, at, signature.as_ref());
        Ok(())
    }
}

impl SignedIdBlock {
    /// Signs a block by the ID key, and that key by an author's if there is one. What comes out was checked as the shim will.
    ///
    /// # Errors
    ///
    /// One key in both parts, or no random bytes.
    pub fn sign(block: &IdBlock, id: &IdKey, author: Option<&IdKey>) -> Result<Self, SignError> {
        let (block, mut auth) = (block.to_bytes(), vec![0; AUTH_SIZE]);
        put(&mut auth, 0, &ECDSA_P384.to_le_bytes());
        id.put_public(&mut auth, ID_KEY);
        id.put_signature(&mut auth, ID_SIGNATURE, &block)?;
        if let Some(author) = author {
            if author.0.public_key().as_ref() == id.0.public_key().as_ref() {
                return Err(SignError::OneKey);
            }
            put(&mut auth, 4, &ECDSA_P384.to_le_bytes());
            author.put_public(&mut auth, AUTHOR_KEY);
            let key = super::part(&auth, ID_KEY, KEY_SIZE).to_vec();
            author.put_signature(&mut auth, AUTHOR_SIGNATURE, &key)?;
        }
        Ok(Self::parse(&block, &auth)?)
    }
}

/// Two big-endian numbers, one behind the other, as AMD has them: little-endian, in wider fields.
fn put_numbers(bytes: &mut [u8], at: usize, numbers: &[u8]) {
    for (number, at) in numbers.chunks(NUMBER).zip([at, at + FIELD]) {
        let little: Vec<u8> = number.iter().rev().copied().collect();
        put(bytes, at, &little);
    }
}

/// The places are constants within the structure.
fn put(bytes: &mut [u8], at: usize, content: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(content) {
        *to = *from;
    }
}
