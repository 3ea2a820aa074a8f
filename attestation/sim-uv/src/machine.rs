//! A machine with a host key: what its ultravisor does with a request.

use kata_cc_evidence::se::{Additional, Challenge, Evidence, ImageTags};
use p521::{PublicKey, SecretKey, ecdh, elliptic_curve::sec1::ToEncodedPoint as _};
use rand_core::OsRng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::{digest, hmac};

/// Why a request stays without answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// None of its key slots is for this machine.
    NotForUs,
    /// It was changed on the way.
    Changed,
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    key: SecretKey,
    public: PublicKey,
}

impl Machine {
    /// One with a new host key.
    #[must_use]
    pub fn new() -> Self {
        let key = SecretKey::random(&mut OsRng);
        let public = key.public_key();
        Self { key, public }
    }

    /// The host key's public half.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// SHA-256 of the public host key, X and Y padded to 80 bytes each: what key slots call it by.
    #[must_use]
    pub fn phkh(&self) -> [u8; 32] {
        let point = self.public.to_encoded_point(false);
        let (x, y) = (point.x().expect("not at infinity"), point.y().expect("not at infinity"));
        let padded = [&[0; 14], x.as_slice(), &[0; 14], y.as_slice()].concat();
        digest::digest(&digest::SHA256, &padded).as_ref().try_into().expect("32 bytes")
    }

    /// What a guest of this image gets who hands the challenge's request to the ultravisor.
    ///
    /// # Errors
    /// When the request is not for this machine, or was changed.
    pub fn answer(&self, challenge: &Challenge, image: &ImageTags, user_data: &[u8]) -> Result<Evidence, Unanswered> {
        let request = &challenge.request;
        let slot = request.head.slots.iter().find(|slot| slot.phkh == self.phkh()).ok_or(Unanswered::NotForUs)?;
        let (x, y) = request.head.public_key.split_at(80);
        let point = [&[4], &x[14..], &y[14..]].concat();
        let peer = PublicKey::from_sec1_bytes(&point).map_err(|_| Unanswered::Changed)?;
        let shared = ecdh::diffie_hellman(self.key.to_nonzero_scalar(), peer.as_affine());
        let agreed = digest::digest(&digest::SHA256, &[shared.raw_secret_bytes().as_slice(), &[0, 0, 0, 1]].concat());
        let protection = open(agreed.as_ref(), [0; 12], &[], &slot.wrapped_key, &slot.tag)?;
        let head = request.head.to_bytes().map_err(|_| Unanswered::Changed)?;
        let secrets = open(&protection, request.head.iv, &head, &request.encrypted, &request.tag)?;
        let (measurement_key, nonce) = secrets.split_at(64);

        let mut evidence = Evidence {
            measurement: [0; 64],
            additional: Additional { image_phkh: self.phkh(), attestation_phkh: self.phkh() },
            user_data: user_data.to_vec(),
            cuid: [5; 16],
            sealed_key: challenge.sealed_key.clone(),
            sealed_nonce: challenge.sealed_nonce.clone(),
            image_tags: challenge.image_tags,
        };
        let nonce = nonce.try_into().map_err(|_| Unanswered::Changed)?;
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, measurement_key), &evidence.measured_bytes(image, nonce));
        evidence.measurement.copy_from_slice(mac.as_ref());
        Ok(evidence)
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

fn open(key: &[u8], iv: [u8; 12], authenticated: &[u8], text: &[u8], tag: &[u8]) -> Result<Vec<u8>, Unanswered> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| Unanswered::Changed)?);
    let mut text = [text, tag].concat();
    let opened = key.open_in_place(Nonce::assume_unique_for_key(iv), Aad::from(authenticated), &mut text);
    opened.map(|text| text.to_vec()).map_err(|_| Unanswered::Changed)
}
