//! Who may administer: bearers of a JWT (RFC 7519) signed by an administrator's Ed25519 key or by a configured identity provider.
//!
//! The broker holds public keys only. With neither keys nor providers configured it makes a pair once, so that a first start is neither
//! open nor locked. Who somebody is ([`Admins::authenticate`], 401) and what that role may do ([`Admins::authorize`], 403) are two
//! questions.
//!
//! **Invariant:** the algorithm belongs to the key; only keys known here are tried, those of a provider for its own issuer alone; a token
//! lives two hours at most, one of a provider a day.

mod first_start;
pub mod key;
pub mod role;

use crate::config::{self, ConfigError, read_bounded};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use key::{Algorithm, KeyError, VerifyingKey};
use role::{Granted, Permission, RoleError, Roles};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Longest lifetime of a token that an administrator's key signed.
pub const MAX_TOKEN_LIFETIME_SECONDS: u64 = 2 * 3600;
/// Longest remaining lifetime of an identity provider's token.
pub const MAX_PROVIDER_TOKEN_SECONDS: u64 = 24 * 3600;
/// How far the clocks of administrator and broker may differ.
const LEEWAY_SECONDS: u64 = 60;
/// Identity providers put groups and names into their tokens.
const MAX_TOKEN: usize = 16 * 1024;
const MAX_KEY_FILE: u64 = 256 * 1024;
const MAX_PROVIDERS: usize = 16;
/// Longest name of an administrator in the audit log.
const MAX_NAME: usize = 200;

/// Why administrators could not be set up.
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
    /// A file has no usable key.
    #[error("no usable key in {}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: KeyError,
    },
    /// A file is not an Ed25519 public key.
    #[error("{} is not an Ed25519 public key in PEM (SubjectPublicKeyInfo); other kinds belong to an identity provider", .0.display())]
    NotEd25519(PathBuf),
    /// An identity provider is not described well.
    #[error("identity provider {issuer:?}: {why}")]
    Provider {
        /// Its issuer.
        issuer: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The roles cannot be used.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

/// Why a request is not an administrator's, or not this administrator's to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmin {
    /// No bearer token.
    #[error("this call needs `Authorization: Bearer <token>` signed with an administrator's key or by a configured identity provider")]
    Missing,
    /// Not a JWT of the expected form.
    #[error("the administrator token is malformed: expected a JWT with an alg and the claims role, exp and, signed by a key, iat")]
    Malformed,
    /// No known key made the signature.
    #[error("the administrator token is not signed with a key this broker knows, by that key's algorithm")]
    Signature,
    /// For somebody else.
    #[error("the administrator token is not for this broker: its audience is another one")]
    Audience,
    /// Outside its time.
    #[error("the administrator token is expired or not valid yet")]
    Time,
    /// Lives too long.
    #[error(
        "the administrator token lives too long: {MAX_TOKEN_LIFETIME_SECONDS} seconds are allowed, \
         {MAX_PROVIDER_TOKEN_SECONDS} to an identity provider"
    )]
    TooLong,
    /// No role, or one that is not known.
    #[error("the administrator token carries no role that this broker knows")]
    Role,
    /// A role that may not do this.
    #[error("the role in the administrator token may not do this here: it needs {}", .0.as_str())]
    Forbidden(Permission),
}

impl NotAdmin {
    /// Whether we know who asks, but not that they may.
    pub fn is_authenticated(self) -> bool {
        matches!(self, Self::Role | Self::Forbidden(_))
    }
}

/// Somebody whose token was good. Only [`Admins`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Administrator {
    name: String,
    role: String,
}

impl Administrator {
    /// For the audit log: `key <start of its id>` or `<issuer> <sub>`, and the role.
    pub fn described(&self) -> String {
        format!("{} as {}", self.name, self.role)
    }

    /// `key <start of its id>` or `<issuer> <sub>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The role in the token, one that is known.
    pub fn role(&self) -> &str {
        &self.role
    }
}

#[derive(Debug, Clone)]
struct Provider {
    issuer: String,
    audience: String,
    keys: Vec<VerifyingKey>,
}

/// The known administrators and what their roles may do.
#[derive(Debug, Clone, Default)]
pub struct Admins {
    keys: Vec<VerifyingKey>,
    providers: Vec<Provider>,
    roles: Roles,
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
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    sub: Option<String>,
    aud: Option<Audience>,
    role: Option<String>,
    iat: Option<u64>,
    exp: u64,
    nbf: Option<u64>,
}

/// One name or a list of them (RFC 7519 §4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn names(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

impl Admins {
    /// With these administrators' keys and the built-in roles; with no key, uses or makes the pair in `data_dir`.
    pub fn set_up(public_keys: &[PathBuf], data_dir: &Path) -> Result<(Self, Origin), AdminError> {
        Self::from_config(&config::Admin { public_keys: public_keys.to_vec(), ..config::Admin::default() }, data_dir)
    }

    /// Reads keys, identity providers and roles; with neither keys nor providers, uses or makes the pair in `data_dir`.
    pub fn from_config(config: &config::Admin, data_dir: &Path) -> Result<(Self, Origin), AdminError> {
        let mut admins = Self::configured(config)?;
        if !admins.is_empty() {
            return Ok((admins, Origin::Found));
        }
        let public = data_dir.join("admin.pub");
        if public.exists() {
            admins.keys.push(read_ed25519(&public)?);
            return Ok((admins, Origin::Found));
        }
        let private = data_dir.join("admin.key");
        admins.keys.push(VerifyingKey::ed25519(first_start::make_pair(&private, &public)?));
        Ok((admins, Origin::Made(private)))
    }

    /// What the configuration names, and nothing is made. Empty when it names nobody.
    pub fn configured(config: &config::Admin) -> Result<Self, AdminError> {
        if config.identity_providers.len() > MAX_PROVIDERS {
            let issuer = config.identity_providers.last().map(|p| p.issuer.clone()).unwrap_or_default();
            return Err(AdminError::Provider { issuer, why: "more than 16 identity providers" });
        }
        let mut providers: Vec<Provider> = Vec::new();
        for described in &config.identity_providers {
            let provider = Provider::read(described)?;
            // Two of one issuer would each be asked about the other's tokens.
            if providers.iter().any(|other| other.issuer == provider.issuer) {
                return Err(AdminError::Provider { issuer: provider.issuer, why: "configured twice" });
            }
            providers.push(provider);
        }
        let keys = config.public_keys.iter().map(|path| read_ed25519(path)).collect::<Result<_, _>>()?;
        Ok(Self { keys, providers, roles: Roles::new(&config.roles)? })
    }

    /// Whether nobody at all could administer: then nothing is served.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.providers.is_empty()
    }

    /// Whether the bearer of the `Authorization` header may do this at this path.
    pub fn authorize(&self, authorization: Option<&str>, permission: Permission, path: &str, now: u64) -> Result<Administrator, NotAdmin> {
        let administrator = self.authenticate(authorization, now)?;
        if self.roles.allow(&administrator.role, permission, path) { Ok(administrator) } else { Err(NotAdmin::Forbidden(permission)) }
    }

    /// What somebody's role may do.
    pub fn granted(&self, administrator: &Administrator) -> Vec<Granted> {
        self.roles.granted(&administrator.role)
    }

    /// Who the bearer of the `Authorization` header is.
    pub fn authenticate(&self, authorization: Option<&str>, now: u64) -> Result<Administrator, NotAdmin> {
        let token = authorization.and_then(bearer).ok_or(NotAdmin::Missing)?;
        if token.len() > MAX_TOKEN {
            return Err(NotAdmin::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(NotAdmin::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(NotAdmin::Malformed)?;
        let header: Header = decode(header)?;
        if header.crit.is_some() {
            return Err(NotAdmin::Malformed);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| NotAdmin::Malformed)?;
        // Of claims that are not verified yet, the issuer alone is looked at, to choose the keys.
        let claims: Claims = decode(claims)?;
        let provider = claims.iss.as_deref().and_then(|iss| self.providers.iter().find(|p| p.issuer == iss));
        let keys = provider.map_or(&self.keys, |p| &p.keys);
        let signer = keys.iter().find(|key| {
            let named = header.kid.is_none() || key.kid().is_none() || header.kid.as_deref() == key.kid();
            named && header.alg == key.algorithm().as_str() && key.verifies(signed.as_bytes(), &signature)
        });
        let signer = signer.ok_or(NotAdmin::Signature)?;
        let name = match provider {
            None => {
                by_key(&claims, now)?;
                format!("key {}", first_start::short_id(signer))
            }
            Some(provider) => {
                by_provider(&claims, provider, now)?;
                let sub = claims.sub.as_deref().unwrap_or("without sub");
                format!("{} {sub}", provider.issuer).chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
            }
        };
        match claims.role {
            Some(role) if self.roles.know(&role) => Ok(Administrator { name, role }),
            _ => Err(NotAdmin::Role),
        }
    }
}

fn by_key(claims: &Claims, now: u64) -> Result<(), NotAdmin> {
    let iat = claims.iat.ok_or(NotAdmin::Malformed)?;
    in_time(claims, now)?;
    if claims.exp - iat.min(claims.exp) > MAX_TOKEN_LIFETIME_SECONDS { Err(NotAdmin::TooLong) } else { Ok(()) }
}

fn by_provider(claims: &Claims, provider: &Provider, now: u64) -> Result<(), NotAdmin> {
    if !claims.aud.as_ref().is_some_and(|aud| aud.names(&provider.audience)) {
        return Err(NotAdmin::Audience);
    }
    in_time(claims, now)?;
    if claims.exp.saturating_sub(now) > MAX_PROVIDER_TOKEN_SECONDS { Err(NotAdmin::TooLong) } else { Ok(()) }
}

fn in_time(claims: &Claims, now: u64) -> Result<(), NotAdmin> {
    let from = claims.nbf.unwrap_or(0).max(claims.iat.unwrap_or(0));
    let early = now.saturating_add(LEEWAY_SECONDS) < from;
    let late = now > claims.exp.saturating_add(LEEWAY_SECONDS);
    if early || late || claims.exp <= from { Err(NotAdmin::Time) } else { Ok(()) }
}

impl Provider {
    fn read(described: &config::IdentityProvider) -> Result<Self, AdminError> {
        let fail = |why| AdminError::Provider { issuer: described.issuer.chars().take(MAX_NAME).collect(), why };
        if described.issuer.is_empty() || described.audience.is_empty() {
            return Err(fail("`issuer` and `audience` must not be empty"));
        }
        let keys = match (&described.jwk_set, &described.public_key) {
            (Some(path), None) => {
                let text = read_bounded(path, MAX_KEY_FILE)?;
                key::jwk_set(&text, described.algorithm).map_err(|source| AdminError::Key { path: path.clone(), source })?
            }
            (None, Some(path)) => {
                let text = read_bounded(path, MAX_KEY_FILE)?;
                let key = VerifyingKey::from_pem(&text, described.algorithm);
                vec![key.map_err(|source| AdminError::Key { path: path.clone(), source })?]
            }
            _ => return Err(fail("give exactly one of `jwk_set` and `public_key`")),
        };
        Ok(Self { issuer: described.issuer.clone(), audience: described.audience.clone(), keys })
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

fn read_ed25519(path: &Path) -> Result<VerifyingKey, AdminError> {
    let text = read_bounded(path, MAX_KEY_FILE)?;
    VerifyingKey::from_pem(&text, Some(Algorithm::EdDsa)).map_err(|_| AdminError::NotEd25519(path.into()))
}

#[cfg(test)]
mod tests;
