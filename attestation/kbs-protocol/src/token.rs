//! Attestation tokens: EAR claims as JWT, signed with ES256 (RFC 7518 section 3.4).
//!
//! The algorithm is fixed, and a key found in a token's own header is never a reason to trust it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use p256::{EncodedPoint, SecretKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::ear::Ear;
use crate::jwk;
use crate::random::{self, RandomError};
#[cfg(feature = "server")]
use crate::{jwk::Jwk, recipient::TeePublicKey};

/// Largest token accepted.
pub const MAX_TOKEN: usize = 128 * 1024;

/// How far the issuer's clock may be ahead of ours, in seconds.
const CLOCK_SKEW: u64 = 60;

/// Where the guest's key is found in the claims.
const TEE_KEY_POINTER: &str = "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey";

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Too long, or not three parts of base64url with JSON inside.
    #[error("token is malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// Another algorithm than ES256.
    #[error("token is not signed with ES256")]
    Algorithm,
    /// No trusted key made the signature.
    #[error("token was not signed by a trusted issuer key")]
    Signature,
    /// It is over.
    #[error("token expired at {expired_at}, it is {now}: attest again")]
    Expired {
        /// `exp`.
        expired_at: u64,
        /// Now.
        now: u64,
    },
    /// Issued in the future.
    #[error("token was issued at {issued_at}, it is {now}: check the clocks of broker and issuer")]
    NotYetValid {
        /// `iat`.
        issued_at: u64,
        /// Now.
        now: u64,
    },
    /// It carries no key to encrypt resources to.
    #[error("token carries no usable tee-pubkey at {TEE_KEY_POINTER}")]
    NoTeeKey,
    /// The stored signing key is not a key.
    #[error("signing key must be a P-256 scalar of 32 bytes")]
    SigningKey,
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Signs tokens.
pub struct TokenSigner {
    scalar: Zeroizing<[u8; 32]>,
    pair: EcdsaKeyPair,
    jwk: IssuerJwk,
    /// The tokens' first part: the same in all.
    header: String,
}

impl TokenSigner {
    /// A fresh key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, TokenError> {
        loop {
            let scalar = Zeroizing::new(random::array::<32>()?);
            // Zero and values beyond the group order are refused: less than one in 2^32 draws.
            if let Ok(signer) = Self::from_bytes(scalar.as_slice()) {
                return Ok(signer);
            }
        }
    }

    /// From the form [`TokenSigner::to_bytes`] gives.
    ///
    /// # Errors
    /// When the bytes are no key.
    pub fn from_bytes(scalar: &[u8]) -> Result<Self, TokenError> {
        // The library would also take shorter scalars and pad them: a cut-off key file must not become another key.
        let scalar: [u8; 32] = scalar.try_into().map_err(|_| TokenError::SigningKey)?;
        let scalar = Zeroizing::new(scalar);
        let public = SecretKey::from_slice(scalar.as_slice()).map_err(|_| TokenError::SigningKey)?.public_key();
        let (algorithm, point) = (&ECDSA_P256_SHA256_FIXED_SIGNING, public.to_encoded_point(false));
        let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, scalar.as_slice(), point.as_bytes(), &SystemRandom::new())
            .map_err(|_| TokenError::SigningKey)?;
        let (x, y) = jwk::coordinates(&public);
        // RFC 7638: the thumbprint is over the required members in order, which is what canonical JSON gives here.
        let thumbprint =
            ring::digest::digest(&ring::digest::SHA256, format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#).as_bytes());
        let jwk = IssuerJwk {
            kty: "EC".into(),
            crv: "P-256".into(),
            alg: "ES256".into(),
            key_use: "sig".into(),
            kid: URL_SAFE_NO_PAD.encode(thumbprint),
            x,
            y,
            x5c: Vec::new(),
        };
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": jwk.kid, "jwk": jwk});
        Ok(Self { scalar, pair, header: URL_SAFE_NO_PAD.encode(header.to_string()), jwk })
    }

    /// The same, with certificates of the key in the JWK set and in the key of each token's header (`x5c` of `jwk`, RFC 7517 section 4.7): DER, the
    /// key's own first. CoCo's verifier looks for them there; the header has them once, for tokens travel in a header of HTTP. Whether they are of
    /// this key is for the caller to know.
    #[must_use]
    pub fn with_certificates(mut self, chain: &[Vec<u8>]) -> Self {
        self.jwk.x5c = chain.iter().map(|certificate| STANDARD.encode(certificate)).collect();
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": self.jwk.kid, "jwk": self.jwk});
        self.header = URL_SAFE_NO_PAD.encode(header.to_string());
        self
    }

    /// The public key as an uncompressed point (SEC 1 section 2.3.3).
    #[must_use]
    pub fn public_point(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// The private scalar, for storing. Keep it where secrets are kept.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.scalar.clone()
    }

    /// The public key as JWK with `kid`, for a JWK set and for [`TokenVerifier`].
    #[must_use]
    pub fn public_jwk(&self) -> IssuerJwk {
        self.jwk.clone()
    }

    /// Signs claims; the result is the token.
    ///
    /// # Errors
    /// When the claims do not serialise, or there is no randomness.
    pub fn sign(&self, ear: &Ear) -> Result<String, TokenError> {
        let payload = serde_json::to_vec(ear).map_err(|_| TokenError::Malformed { what: "claims do not serialise" })?;
        let signed = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(payload));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|_| RandomError)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Signs claims; the result is the token, and what verifying it would give.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn issue(&self, ear: Ear) -> Result<(String, VerifiedToken), TokenError> {
        let token = self.sign(&ear)?;
        let claims = serde_json::to_value(&ear).map_err(|_| TokenError::Malformed { what: "claims do not serialise" })?;
        Ok((token, VerifiedToken { claims, ear }))
    }
}

impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenSigner(kid {}, key redacted)", self.jwk.kid)
    }
}

/// Public key of a token issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerJwk {
    /// `EC`.
    pub kty: String,
    /// `P-256`.
    pub crv: String,
    /// `ES256`.
    #[serde(default)]
    pub alg: String,
    /// `sig`.
    #[serde(default, rename = "use")]
    pub key_use: String,
    /// Key id.
    #[serde(default)]
    pub kid: String,
    /// X, base64url.
    pub x: String,
    /// Y, base64url.
    pub y: String,
    /// Certificates of the key, DER in standard base64. Nothing here looks at them: who has a reason to trust their issuer may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub x5c: Vec<String>,
}

/// Verifies tokens against a fixed set of issuer keys.
#[derive(Debug, Default)]
pub struct TokenVerifier {
    /// Points known to be on the curve.
    keys: Vec<EncodedPoint>,
}

/// Proof that a token was signed by a trusted key and was in its time. Private fields: only [`TokenVerifier::verify`] makes it, and
/// [`TokenSigner::issue`].
#[derive(Clone, Debug)]
pub struct VerifiedToken {
    claims: Value,
    ear: Ear,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    crit: Option<Value>,
}

impl TokenVerifier {
    /// Trusts these issuers.
    ///
    /// # Errors
    /// When a key is not a P-256 key.
    pub fn new<'a>(issuers: impl IntoIterator<Item = &'a IssuerJwk>) -> Result<Self, TokenError> {
        let keys = issuers
            .into_iter()
            .map(|issuer| {
                (issuer.kty == "EC" && issuer.crv == "P-256")
                    .then(|| jwk::point_from_coordinates(&issuer.x, &issuer.y))
                    .flatten()
                    .map(|key| key.to_encoded_point(false))
                    .ok_or(TokenError::SigningKey)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { keys })
    }

    /// Verifies signature and times.
    ///
    /// # Errors
    /// When the token is malformed, not signed by a trusted key, expired or from the future.
    pub fn verify(&self, token: &str, now: u64) -> Result<VerifiedToken, TokenError> {
        let (signed, header, payload, signature) = split(token)?;
        let header: Header = parse_part(header, "header")?;
        if header.alg != "ES256" || header.crit.is_some() {
            return Err(TokenError::Algorithm);
        }
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .ok()
            .filter(|bytes| bytes.len() == 64)
            .ok_or(TokenError::Malformed { what: "signature is not 64 bytes of base64url" })?;
        let made_it =
            |key: &EncodedPoint| UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(signed.as_bytes(), &signature).is_ok();
        if !self.keys.iter().any(made_it) {
            return Err(TokenError::Signature);
        }
        let claims: Value = parse_part(payload, "claims")?;
        let ear = Ear::deserialize(&claims).map_err(|_| TokenError::Malformed { what: "claims are not those of an EAR" })?;
        ear.check_time(now)?;
        Ok(VerifiedToken { claims, ear })
    }
}

impl Ear {
    /// Whether a token of these claims is in its time now.
    ///
    /// # Errors
    /// When it expired, or is from the future.
    pub fn check_time(&self, now: u64) -> Result<(), TokenError> {
        if now >= self.exp {
            return Err(TokenError::Expired { expired_at: self.exp, now });
        }
        if self.iat > now.saturating_add(CLOCK_SKEW) {
            return Err(TokenError::NotYetValid { issued_at: self.iat, now });
        }
        Ok(())
    }
}

impl VerifiedToken {
    /// All claims, and those we know, typed.
    #[must_use]
    pub fn into_parts(self) -> (Value, Ear) {
        (self.claims, self.ear)
    }

    /// All claims as they are in the token: the input of a resource policy.
    #[must_use]
    pub fn claims(&self) -> &Value {
        &self.claims
    }

    /// The claims we know, typed.
    #[must_use]
    pub fn ear(&self) -> &Ear {
        &self.ear
    }

    /// The key of the guest the token is about. Resources are encrypted to it and to no other.
    ///
    /// # Errors
    /// When there is none or it is of a kind we do not encrypt to.
    #[cfg(feature = "server")]
    pub fn tee_key(&self) -> Result<TeePublicKey, TokenError> {
        let value = self.claims.pointer(TEE_KEY_POINTER).ok_or(TokenError::NoTeeKey)?;
        let jwk = Jwk::deserialize(value).map_err(|_| TokenError::NoTeeKey)?;
        TeePublicKey::try_from(&jwk).map_err(|_| TokenError::NoTeeKey)
    }
}

/// From when to when a token is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Times {
    /// `iat` (RFC 7519 section 4.1.6), in seconds since the epoch. An EAR has one always.
    #[serde(rename = "iat")]
    pub issued_at: u64,
    /// `exp` (RFC 7519 section 4.1.4), in seconds since the epoch.
    #[serde(rename = "exp")]
    pub expires_at: u64,
}

/// A token's times, **without verifying it**: for a client that holds a token it got over its own authenticated connection and
/// wants to know when to attest again, and what time its broker has.
///
/// # Errors
/// When the token is malformed, or one of the times is missing.
pub fn unverified_times(token: &str) -> Result<Times, TokenError> {
    let (_, _, payload, _) = split(token)?;
    parse_part(payload, "claims: expected JSON with the times iat and exp in seconds")
}

/// The key that a token's header names (`jwk`, RFC 7515 section 4.1.3), **which is no reason to trust it**: for a relying party that knows whom to
/// ask about it, such as a root that its certificates (`x5c`) lead to.
///
/// # Errors
/// When the token is malformed.
pub fn unverified_header_key(token: &str) -> Result<Option<Value>, TokenError> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        jwk: Option<Value>,
    }
    let (_, header, ..) = split(token)?;
    parse_part::<Named>(header, "header").map(|header| header.jwk)
}

fn split(token: &str) -> Result<(&str, &str, &str, &str), TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::Malformed { what: "longer than 128 KiB" });
    }
    let parts = token.rsplit_once('.').and_then(|(signed, signature)| {
        let (header, payload) = signed.split_once('.')?;
        (!payload.contains('.')).then_some((signed, header, payload, signature))
    });
    parts.ok_or(TokenError::Malformed { what: "not three parts" })
}

fn parse_part<T: for<'de> Deserialize<'de>>(part: &str, what: &'static str) -> Result<T, TokenError> {
    URL_SAFE_NO_PAD.decode(part).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or(TokenError::Malformed { what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ear::{Appraisal, EAT_PROFILE, TrustVector, VerifierId};
    use crate::jwk::TeeKey;

    const NOW: u64 = 1_800_000_000;

    fn ear(tee_key: &TeePublicKey) -> Ear {
        let vector = TrustVector { hardware: 2, executables: 3, ..TrustVector::default() };
        let evidence = json!({"runtime_data_claims": {"tee-pubkey": tee_key.to_jwk(), "nonce": "n"}, "snp": {"measurement": "00"}});
        Ear {
            eat_profile: EAT_PROFILE.into(),
            iat: NOW,
            exp: NOW + 300,
            iss: "kata-cc".into(),
            verifier_id: VerifierId { developer: "kata-cc".into(), build: "test".into() },
            submods: [("cpu0".to_owned(), Appraisal::new(vector, "default", evidence))].into(),
        }
    }

    fn signed() -> (TokenSigner, TokenVerifier, TeePublicKey, String) {
        let signer = TokenSigner::generate().expect("random");
        let verifier = TokenVerifier::new([&signer.public_jwk()]).expect("a key");
        let tee_key = TeePublicKey::try_from(&TeeKey::generate().expect("random").to_jwk()).expect("a key");
        let token = signer.sign(&ear(&tee_key)).expect("signs");
        (signer, verifier, tee_key, token)
    }

    #[test]
    fn signed_token_verifies_and_carries_the_guests_key() {
        let (_, verifier, tee_key, token) = signed();
        let verified = verifier.verify(&token, NOW + 10).expect("verifies");
        assert_eq!(verified.tee_key(), Ok(tee_key.clone()));
        assert_eq!(verified.ear(), &ear(&tee_key));
        let cpu0 = &verified.claims()["submods"]["cpu0"];
        assert_eq!(cpu0["ear.status"], "affirming");
        assert_eq!(cpu0["ear.trustworthiness-vector"]["executables"], 3);
        assert_eq!(unverified_times(&token), Ok(Times { issued_at: NOW, expires_at: NOW + 300 }));
    }

    #[test]
    fn certificates_are_in_the_headers_key_once_and_in_the_key_set_and_change_nothing_for_our_verifier() {
        let signer = TokenSigner::generate().expect("random").with_certificates(&[vec![0x30, 0], vec![0x30, 1, 0]]);
        let tee_key = TeePublicKey::try_from(&TeeKey::generate().expect("random").to_jwk()).expect("a key");
        let token = signer.sign(&ear(&tee_key)).expect("signs");
        let header: Value = parse_part(token.split('.').next().expect("a header"), "header").expect("JSON");
        assert_eq!((header.get("x5c"), &header["jwk"]["x5c"]), (None, &json!(["MAA=", "MAEA"])));
        assert_eq!(unverified_header_key(&token), Ok(Some(json!(signer.public_jwk()))));
        assert!(TokenVerifier::new([&signer.public_jwk()]).expect("a key").verify(&token, NOW).is_ok());
        // Without any there is no such field.
        let (_, _, _, token) = signed();
        let header: Value = parse_part(token.split('.').next().expect("a header"), "header").expect("JSON");
        assert!(header.get("x5c").is_none() && header["jwk"].get("x5c").is_none());
    }

    #[test]
    fn refuses_tokens_out_of_their_time() {
        let (_, verifier, _, token) = signed();
        assert_eq!(verifier.verify(&token, NOW + 300).map(|_| ()), Err(TokenError::Expired { expired_at: NOW + 300, now: NOW + 300 }));
        assert!(verifier.verify(&token, NOW - 60).is_ok());
        assert!(matches!(verifier.verify(&token, NOW - 61), Err(TokenError::NotYetValid { .. })));
    }

    #[test]
    fn refuses_another_issuer_even_though_its_key_is_in_the_header() {
        let (_, _, tee_key, _) = signed();
        let (_, verifier, _, _) = signed();
        let stranger = TokenSigner::generate().expect("random").sign(&ear(&tee_key)).expect("signs");
        assert_eq!(verifier.verify(&stranger, NOW).map(|_| ()), Err(TokenError::Signature));
        assert_eq!(TokenVerifier::default().verify(&stranger, NOW).map(|_| ()), Err(TokenError::Signature));
    }

    #[test]
    fn refuses_changed_claims_and_unsigned_tokens() {
        let (_, verifier, tee_key, token) = signed();
        let parts: Vec<&str> = token.split('.').collect();
        let mut claims = serde_json::to_value(ear(&tee_key)).expect("serialises");
        claims["exp"] = (NOW + 999_999).into();
        let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
        assert_eq!(verifier.verify(&format!("{}.{claims}.{}", parts[0], parts[2]), NOW).map(|_| ()), Err(TokenError::Signature));
        for alg in ["none", "HS256", "es256", "ES384"] {
            let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg}).to_string());
            assert_eq!(verifier.verify(&format!("{header}.{}.{}", parts[1], parts[2]), NOW).map(|_| ()), Err(TokenError::Algorithm));
        }
        for bad in ["", ".", "..", "a.b", &format!("{}.{}.", parts[0], parts[1]), &format!("{token}.x")] {
            assert!(verifier.verify(bad, NOW).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_token_without_key_gives_no_key() {
        let (signer, verifier, tee_key, _) = signed();
        let mut bare = ear(&tee_key);
        bare.submods.values_mut().for_each(|appraisal| appraisal.annotated_evidence = Value::Null);
        let token = signer.sign(&bare).expect("signs");
        assert_eq!(verifier.verify(&token, NOW).expect("verifies").tee_key(), Err(TokenError::NoTeeKey));
    }

    #[test]
    fn signing_key_survives_storing() {
        let (signer, verifier, tee_key, _) = signed();
        let again = TokenSigner::from_bytes(signer.to_bytes().as_slice()).expect("a key");
        assert!(verifier.verify(&again.sign(&ear(&tee_key)).expect("signs"), NOW).is_ok());
        assert!(TokenSigner::from_bytes(&[0; 32]).is_err());
        assert!(TokenSigner::from_bytes(&[1; 31]).is_err());
        assert!(!format!("{signer:?}").contains(&hex::encode(signer.to_bytes().as_slice())));
    }
}
