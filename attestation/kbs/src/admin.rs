//! Who may administer: bearers of a JWT signed with an administrator's Ed25519 key (RFC 7519, RFC 8037).
//!
//! The broker holds public keys only. With none configured it makes a pair once, so that a first start is neither open nor locked.
//!
//! **Invariant:** only `alg: EdDSA` is looked at, only keys known here are tried, and a token lives two hours at most.

use crate::config::{ConfigError, read_bounded};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Longest lifetime of an administrator's token.
pub const MAX_TOKEN_LIFETIME_SECONDS: u64 = 2 * 3600;
/// The role a token must carry.
pub const ROLE: &str = "admin";
/// How far the clocks of administrator and broker may differ.
const LEEWAY_SECONDS: u64 = 60;
const MAX_TOKEN: usize = 4096;
const MAX_PEM: u64 = 16 * 1024;
const PUBLIC_KEY_LEN: usize = 32;
/// DER of SubjectPublicKeyInfo for Ed25519 up to the key (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// DER of PKCS#8 version 1 for Ed25519 up to the seed (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] = [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why administrator keys could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// A key file could not be read.
    #[error(transparent)]
    Read(#[from] ConfigError),
    /// A key file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not an Ed25519 public key.
    #[error("{} is not an Ed25519 public key in PEM (SubjectPublicKeyInfo)", .0.display())]
    NotAKey(PathBuf),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

/// Why a request is not an administrator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmin {
    /// No bearer token.
    #[error("this call needs `Authorization: Bearer <token>` signed with an administrator's key")]
    Missing,
    /// Not a JWT of the expected form.
    #[error("the administrator token is malformed: expected a JWT with alg EdDSA and the claims role, iat, exp")]
    Malformed,
    /// No known key made the signature.
    #[error("the administrator token is not signed with a key this broker knows")]
    Signature,
    /// Wrong role.
    #[error("the administrator token does not carry the role \"{ROLE}\"")]
    Role,
    /// Outside its time.
    #[error("the administrator token is expired or not valid yet")]
    Time,
    /// Lives too long.
    #[error("the administrator token lives longer than {MAX_TOKEN_LIFETIME_SECONDS} seconds")]
    TooLong,
}

/// The known administrators.
#[derive(Debug, Clone)]
pub struct Admins {
    keys: Vec<[u8; PUBLIC_KEY_LEN]>,
}

/// Where the keys came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Configured, or found in the data directory.
    Found,
    /// Made just now; the private key is in this file.
    Made(PathBuf),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    role: String,
    iat: u64,
    exp: u64,
    #[serde(default)]
    nbf: Option<u64>,
}

impl Admins {
    /// Reads the configured public keys; with none, uses or makes the pair in `data_dir`.
    pub fn set_up(configured: &[PathBuf], data_dir: &Path) -> Result<(Self, Origin), AdminError> {
        if !configured.is_empty() {
            let keys = configured.iter().map(|path| read_public(path)).collect::<Result<_, _>>()?;
            return Ok((Self { keys }, Origin::Found));
        }
        let public = data_dir.join("admin.pub");
        if public.exists() {
            return Ok((Self { keys: vec![read_public(&public)?] }, Origin::Found));
        }
        let private = data_dir.join("admin.key");
        let key = make_pair(&private, &public)?;
        Ok((Self { keys: vec![key] }, Origin::Made(private)))
    }

    /// Checks the value of an `Authorization` header.
    pub fn check(&self, authorization: Option<&str>, now: u64) -> Result<(), NotAdmin> {
        let token = authorization.and_then(bearer).ok_or(NotAdmin::Missing)?;
        if token.len() > MAX_TOKEN {
            return Err(NotAdmin::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(NotAdmin::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(NotAdmin::Malformed)?;
        let header: Header = decode(header)?;
        if header.alg != "EdDSA" || header.crit.is_some() {
            return Err(NotAdmin::Malformed);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| NotAdmin::Malformed)?;
        if !self.keys.iter().any(|key| UnparsedPublicKey::new(&ED25519, key).verify(signed.as_bytes(), &signature).is_ok()) {
            return Err(NotAdmin::Signature);
        }
        let claims: Claims = decode(claims)?;
        if claims.role != ROLE {
            return Err(NotAdmin::Role);
        }
        let from = claims.nbf.unwrap_or(claims.iat).max(claims.iat);
        if now.saturating_add(LEEWAY_SECONDS) < from || now > claims.exp.saturating_add(LEEWAY_SECONDS) || claims.exp <= claims.iat {
            return Err(NotAdmin::Time);
        }
        if claims.exp - claims.iat > MAX_TOKEN_LIFETIME_SECONDS {
            return Err(NotAdmin::TooLong);
        }
        Ok(())
    }
}

/// The token of a `Bearer` credential; the scheme is case-insensitive (RFC 9110 §11.1).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, NotAdmin> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| NotAdmin::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| NotAdmin::Malformed)
}

fn read_public(path: &Path) -> Result<[u8; PUBLIC_KEY_LEN], AdminError> {
    let text = read_bounded(path, MAX_PEM)?;
    let malformed = || AdminError::NotAKey(path.into());
    let body = text
        .split_once("-----BEGIN PUBLIC KEY-----")
        .and_then(|(_, rest)| rest.split_once("-----END PUBLIC KEY-----"))
        .map(|(body, _)| body.split_whitespace().collect::<String>())
        .ok_or_else(malformed)?;
    let der = STANDARD.decode(body).map_err(|_| malformed())?;
    der.strip_prefix(SPKI_PREFIX.as_slice()).and_then(|key| key.try_into().ok()).ok_or_else(malformed)
}

fn make_pair(private: &Path, public: &Path) -> Result<[u8; PUBLIC_KEY_LEN], AdminError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: u64 = 1_800_000_000;

    fn admin() -> (Admins, Ed25519KeyPair) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
        (Admins { keys: vec![pair.public_key().as_ref().try_into().unwrap()] }, pair)
    }

    fn token(pair: &Ed25519KeyPair, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        format!("Bearer {signed}.{}", URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes())))
    }

    fn good_claims() -> Value {
        json!({"role": "admin", "iat": NOW - 10, "exp": NOW + 600})
    }

    #[track_caller]
    fn outcome(header: Value, claims: Value) -> Result<(), NotAdmin> {
        let (admins, pair) = admin();
        admins.check(Some(&token(&pair, &header, &claims)), NOW)
    }

    #[test]
    fn accepts_a_fresh_token_of_a_known_key() {
        assert_eq!(outcome(json!({"alg": "EdDSA", "typ": "JWT"}), good_claims()), Ok(()));
    }

    #[test]
    fn refuses_other_algorithms_and_critical_headers() {
        for header in
            [json!({"alg": "none"}), json!({"alg": "HS256"}), json!({"alg": "ES256"}), json!({"alg": "EdDSA", "crit": ["b64"]}), json!({})]
        {
            assert_eq!(outcome(header, good_claims()), Err(NotAdmin::Malformed));
        }
    }

    #[test]
    fn refuses_other_roles_and_times() {
        let header = || json!({"alg": "EdDSA"});
        let with = |key: &str, value: Value| {
            let mut claims = good_claims();
            claims[key] = value;
            claims
        };
        assert_eq!(outcome(header(), with("role", json!("user"))), Err(NotAdmin::Role));
        assert_eq!(outcome(header(), with("role", Value::Null)), Err(NotAdmin::Malformed));
        assert_eq!(outcome(header(), with("exp", json!(NOW - 5 * 60 - 100))), Err(NotAdmin::Time));
        assert_eq!(outcome(header(), with("iat", json!(NOW + 120))), Err(NotAdmin::Time));
        assert_eq!(outcome(header(), with("nbf", json!(NOW + 120))), Err(NotAdmin::Time));
        assert_eq!(outcome(header(), with("exp", json!(NOW + 8000))), Err(NotAdmin::TooLong));
    }

    #[test]
    fn refuses_a_token_of_another_key_or_changed_after_signing() {
        let (admins, pair) = admin();
        let other = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
        let header = json!({"alg": "EdDSA"});
        assert_eq!(admins.check(Some(&token(&other, &header, &good_claims())), NOW), Err(NotAdmin::Signature));
        let good = token(&pair, &header, &json!({"role": "user", "iat": NOW, "exp": NOW + 60}));
        let (head, rest) = good.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        let forged = format!("{head}.{}.{signature}", URL_SAFE_NO_PAD.encode(good_claims().to_string()));
        assert_eq!(admins.check(Some(&forged), NOW), Err(NotAdmin::Signature));
    }

    #[test]
    fn refuses_missing_and_malformed_credentials() {
        let (admins, _) = admin();
        for (credential, expected) in [
            (None, NotAdmin::Missing),
            (Some(""), NotAdmin::Missing),
            (Some("Bearer "), NotAdmin::Missing),
            (Some("Basic YTpi"), NotAdmin::Missing),
            (Some("Bearer a.b"), NotAdmin::Malformed),
            (Some("Bearer ..."), NotAdmin::Malformed),
        ] {
            assert_eq!(admins.check(credential, NOW), Err(expected), "{credential:?}");
        }
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN + 1));
        assert_eq!(admins.check(Some(&long), NOW), Err(NotAdmin::Malformed));
    }

    #[test]
    fn no_key_at_all_means_nobody() {
        let (_, pair) = admin();
        let nobody = Admins { keys: Vec::new() };
        assert_eq!(nobody.check(Some(&token(&pair, &json!({"alg": "EdDSA"}), &good_claims())), NOW), Err(NotAdmin::Signature));
    }

    #[test]
    fn the_first_start_makes_a_private_key_file_and_later_starts_use_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (first, origin) = Admins::set_up(&[], dir.path()).unwrap();
        let private = dir.path().join("admin.key");
        assert_eq!(origin, Origin::Made(private.clone()));
        assert_eq!(std::fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
        let pem = std::fs::read_to_string(&private).unwrap();
        let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&STANDARD.decode(body).unwrap()).unwrap();
        assert_eq!(first.check(Some(&token(&pair, &json!({"alg": "EdDSA"}), &good_claims())), NOW), Ok(()));
        std::fs::remove_file(private).unwrap();
        let (second, origin) = Admins::set_up(&[], dir.path()).unwrap();
        assert_eq!((second.keys, origin), (first.keys, Origin::Found));
    }

    #[test]
    fn refuses_a_file_that_is_not_an_ed25519_public_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.pem");
        std::fs::write(&path, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").unwrap();
        assert!(matches!(Admins::set_up(&[path], dir.path()), Err(AdminError::NotAKey(_))));
    }
}
