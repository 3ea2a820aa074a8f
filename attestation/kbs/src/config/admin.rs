//! `[admin]`: who may administer. Administrators' keys, identity providers, roles.
//!
//! ```toml
//! [admin]
//! public_keys = ["/etc/kata-cc-kbs/admin.pub"]
//! [[admin.identity_providers]]
//! issuer = "https://id.example"
//! audience = "kata-cc-kbs"
//! jwk_set = "/etc/kata-cc-kbs/id.example.jwks"
//! [[admin.roles]]
//! role = "team-a"
//! allow = ["resource:write", "resource:delete"]
//! allowed_endpoints = "^/kbs/v0/resource/team-a/.*$"
//! ```

use crate::admin::key::Algorithm;
use serde::Deserialize;
use std::path::PathBuf;

/// Administrators.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Ed25519 public keys (SPKI PEM). With none and no identity provider, `data_dir/admin.pub` is used, and made if it is not there.
    #[serde(default)]
    pub public_keys: Vec<PathBuf>,
    /// Who else may say who an administrator is.
    #[serde(default)]
    pub identity_providers: Vec<IdentityProvider>,
    /// Roles besides `admin`, `auditor` and `provisioner`.
    #[serde(default)]
    pub roles: Vec<Role>,
}

/// An issuer of administrators' tokens. Exactly one of `jwk_set` and `public_key` is given.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityProvider {
    /// The `iss` claim, compared as it is.
    pub issuer: String,
    /// What `aud` must name.
    pub audience: String,
    /// File with a JWK set (RFC 7517). Read at the start; the broker fetches nothing.
    pub jwk_set: Option<PathBuf>,
    /// File with one public key (SPKI PEM).
    pub public_key: Option<PathBuf>,
    /// The algorithm of keys that do not say theirs: needed for an RSA key in PEM, or in a set without `alg`.
    pub algorithm: Option<Algorithm>,
}

/// What the bearers of a role may do. The same role may be given several times; each entry adds to it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// The `role` claim.
    pub role: String,
    /// Permissions, such as `resource:write`, `policy:*` or `*`. Not given: whatever `allowed_endpoints` matches.
    pub allow: Option<Vec<String>>,
    /// Regular expression over the whole path of the request. Not given: any path.
    pub allowed_endpoints: Option<String>,
}
