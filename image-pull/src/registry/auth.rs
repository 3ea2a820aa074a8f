//! Who we are to a registry: credentials from a Docker `config.json`, and the challenges registries answer with.
//!
//! **Invariant:** a credential goes to the registry whose name, part by part, is the one it was given for, and to the token service that registry names; never to
//! a host that merely ends alike.
//!
//! Formats: docker `config.json` (`auths`), RFC 9110 11.6.1 (challenges), distribution "token authentication".

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::reference::Reference;
use crate::registry::RegistryError;
use crate::secret::Secret;

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<Zeroizing<String>>,
    username: Option<String>,
    password: Option<Zeroizing<String>>,
    identitytoken: Option<Zeroizing<String>>,
}

/// A user name and a password.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: Zeroizing<String>,
}

/// Credentials by registry, or registry and repository prefix.
#[derive(Clone, Default)]
pub struct Credentials(BTreeMap<String, Login>);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Credentials {
    /// Reads a Docker `config.json`. Credential helpers are not run: the guest has none.
    ///
    /// # Errors
    /// If it is malformed, or holds an identity token, which is not supported.
    pub fn parse(config_json: &Secret) -> Result<Self, RegistryError> {
        // serde's message could quote what it could not read, so it is left out.
        let wrong = |what: &str| RegistryError::Configuration(format!("registry credentials: {what}"));
        let file: ConfigFile =
            serde_json::from_slice(config_json.expose()).map_err(|_| wrong("expected a Docker config.json with `auths`"))?;
        let mut logins = BTreeMap::new();
        for (key, entry) in file.auths {
            if entry.identitytoken.is_some_and(|token| !token.is_empty()) {
                return Err(wrong("identity tokens are not supported; use a user name and a password or access token"));
            }
            let login = match (entry.auth, entry.username, entry.password) {
                (Some(auth), _, _) if !auth.is_empty() => {
                    let text = BASE64.decode(auth.as_bytes()).ok().and_then(|raw| String::from_utf8(raw).ok()).map(Zeroizing::new);
                    let text = text.ok_or_else(|| wrong("`auth` is not base64 of user:password"))?;
                    let (user, password) = text.split_once(':').ok_or_else(|| wrong("`auth` is not base64 of user:password"))?;
                    Login { user: user.to_owned(), password: Zeroizing::new(password.to_owned()) }
                }
                (_, Some(user), Some(password)) => Login { user, password },
                _ => continue,
            };
            let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
            let key = match key {
                "index.docker.io/v1" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
                other => other,
            };
            logins.insert(key.to_owned(), login);
        }
        Ok(Self(logins))
    }

    /// The login given for the longest part of this image's name.
    pub(crate) fn find(&self, image: &Reference) -> Option<&Login> {
        let name = image.name();
        let mut scope = name.as_str();
        loop {
            if let Some(login) = self.0.get(scope) {
                return Some(login);
            }
            scope = scope.rsplit_once('/')?.0;
        }
    }
}

/// What a registry wants to see.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

/// The challenge we can answer, out of a `WWW-Authenticate` header.
pub(crate) fn challenge(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut realm = None;
    let mut service = None;
    let mut rest = rest.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').map_or((after, ""), |(value, after)| (value, after)),
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            _ => {}
        }
        rest = after.trim_start_matches([',', ' ']);
    }
    Some(Challenge::Bearer { realm: realm?, service })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(config: &str, image: &str) -> Option<String> {
        let credentials = Credentials::parse(&Secret::new(config.as_bytes().to_vec())).unwrap();
        credentials.find(&image.parse().unwrap()).map(|login| login.user.clone())
    }

    #[test]
    fn gives_a_login_only_to_the_host_it_is_for() {
        let config = r#"{"auths":{"ghcr.io":{"auth":"YTpi"},"ghcr.io/team/app":{"username":"c","password":"d"},"https://index.docker.io/v1/":{"auth":"ZTpm"}}}"#;
        assert_eq!(user(config, "ghcr.io/other/app").as_deref(), Some("a"));
        assert_eq!(user(config, "ghcr.io/team/app").as_deref(), Some("c"));
        assert_eq!(user(config, "ghcr.io/team/app/sub").as_deref(), Some("c"));
        assert_eq!(user(config, "ghcr.io/team/apple").as_deref(), Some("a"));
        assert_eq!(user(config, "nginx").as_deref(), Some("e"));
        for other in ["evil-ghcr.io/team/app", "ghcr.io.evil.com/team/app", "ghcr.io:444/team/app", "sub.ghcr.io/a"] {
            assert_eq!(user(config, other), None, "{other}");
        }
    }

    #[test]
    fn errors_and_debug_show_no_credential() {
        let secret = Secret::new(br#"{"auths":{"x.io":{"auth":"c2VjcmV0"}}}"#.to_vec());
        assert!(!Credentials::parse(&secret).unwrap_err().to_string().contains("c2VjcmV0"));
        let secret = Secret::new(br#"{"auths":{"x.io":{"auth":"YTpzZWNyZXQ="}}}"#.to_vec());
        assert!(!format!("{:?}", Credentials::parse(&secret).unwrap()).contains("secret"));
    }

    #[test]
    fn reads_challenges() {
        assert_eq!(
            challenge(r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#),
            Some(Challenge::Bearer { realm: "https://auth.docker.io/token".into(), service: Some("registry.docker.io".into()) })
        );
        assert_eq!(challenge("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(challenge("Negotiate"), None);
        assert_eq!(challenge("Bearer service=x"), None);
    }
}
