//! The connection to a broker: where it is, who asks, and what its refusals mean.
//!
//! Invariants: the admin key never leaves this process (the broker gets a token that lives five minutes); secrets travel only over
//! TLS, or over loopback; no token is ever shown.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kata_cc_policy::SigningKey;
use kata_cc_policy::keys::KeyKind;
use reqwest::{Method, StatusCode, Url};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::files;

/// How long an admin token lives: one command.
const TOKEN_LIFETIME: Duration = Duration::from_secs(300);
/// Largest answer read.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// A broker that says nothing for this long is not there.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What the names of the broker's errors begin with.
const ERROR_PREFIX: &str = "https://github.com/confidential-containers/kbs/errors/";

/// Where the broker is and who asks.
#[derive(clap::Args)]
pub(super) struct Connection {
    /// The broker's URL, such as https://broker.example:8080.
    #[arg(long, value_name = "URL", env = "KATA_CC_KBS_URL")]
    url: Option<String>,
    /// PEM certificate (or CA) to expect at the broker; without it, the system's roots.
    #[arg(long, value_name = "FILE", env = "KATA_CC_KBS_CA")]
    ca: Option<PathBuf>,
    /// The admin's private key: Ed25519, PKCS#8 PEM (the broker makes one in its data directory at its first start).
    #[arg(long, value_name = "FILE", env = "KATA_CC_KBS_ADMIN_KEY")]
    admin_key: Option<PathBuf>,
    /// Role to ask for with the admin key, such as auditor: less than admin where less will do.
    #[arg(long, value_name = "ROLE", default_value = "admin")]
    role: String,
    /// A token (JWT) of an identity provider that the broker knows, in place of an admin key.
    #[arg(long, value_name = "FILE", env = "KATA_CC_KBS_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

impl Connection {
    /// To a broker that is known otherwise than by arguments.
    pub(super) fn to(url: String, ca: PathBuf, admin_key: PathBuf) -> Self {
        Self { url: Some(url), ca: Some(ca), admin_key: Some(admin_key), role: "admin".to_owned(), token_file: None }
    }

    /// As somebody who may administer.
    pub(super) fn administrator(&self) -> anyhow::Result<Broker> {
        let token = match (&self.token_file, &self.admin_key) {
            (Some(path), None) => read_token(&files::read_text(path)?).with_context(|| format!("{} holds no token", path.display()))?,
            (None, Some(path)) => {
                let unusable = || format!("{} is not a usable admin key", path.display());
                let key = SigningKey::from_pkcs8_pem(&Zeroizing::new(files::read_text(path)?)).with_context(unusable)?;
                admin_token(&key, &self.role, SystemTime::now()).with_context(unusable)?
            }
            (Some(_), Some(_)) => bail!("who asks? give --admin-key or --token-file (or their environment variables), not both"),
            (None, None) => bail!("who asks? give --admin-key FILE (or KATA_CC_KBS_ADMIN_KEY), or --token-file FILE"),
        };
        Ok(Broker { token: Some(token), ..self.anybody()? })
    }

    /// As nobody in particular.
    pub(super) fn anybody(&self) -> anyhow::Result<Broker> {
        let Some(url) = &self.url else { bail!("which broker? give --url URL (or KATA_CC_KBS_URL)") };
        let base = parse_url(url)?;
        let ca = self.ca.as_deref().map(files::read).transpose()?;
        Ok(Broker { client: client(ca.as_deref())?, base, token: None })
    }
}

/// One compact JWS; anything else would not be a header's value.
fn read_token(text: &str) -> anyhow::Result<String> {
    let token = text.trim();
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if token.split('.').count() != 3 || !token.split('.').all(plain) {
        bail!("expected a JWT: three parts of base64url with dots between them");
    }
    Ok(token.to_owned())
}

fn parse_url(text: &str) -> anyhow::Result<Url> {
    let url: Url = text.parse().with_context(|| format!("expected a URL such as https://broker.example:8080, found {text:?}"))?;
    let loopback = match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if loopback => Ok(url),
        "http" => bail!("{text} would send secrets in the clear; use https:// (http:// is for loopback only)"),
        other => bail!("expected an https:// URL, found {other}://"),
    }
}

fn client(ca: Option<&[u8]>) -> anyhow::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
    if let Some(pem) = ca {
        let certificates = reqwest::Certificate::from_pem_bundle(pem).context("--ca holds no PEM certificate")?;
        if certificates.is_empty() {
            bail!("--ca holds no PEM certificate (expected -----BEGIN CERTIFICATE-----)");
        }
        // Only these: with --ca given, a public authority must not be able to vouch for another broker.
        builder = builder.tls_certs_only(certificates);
    }
    Ok(builder.build()?)
}

/// A JWT (RFC 7519) signed with EdDSA (RFC 8037).
fn admin_token(key: &SigningKey, role: &str, now: SystemTime) -> anyhow::Result<String> {
    if key.public_key().kind() != KeyKind::Ed25519 {
        bail!("expected an Ed25519 private key, found P-256");
    }
    let now = now.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let header = json!({ "alg": "EdDSA", "typ": "JWT" });
    let claims = json!({ "role": role, "iat": now, "exp": now + TOKEN_LIFETIME.as_secs() });
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = key.sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// A broker to ask.
pub(super) struct Broker {
    client: reqwest::Client,
    base: Url,
    token: Option<String>,
}

/// What a broker said, whatever it was.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    retry_after: Option<String>,
}

impl Broker {
    /// Asks for a path from the broker's root.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<(&str, Vec<u8>)>) -> anyhow::Result<Answer> {
        let url = format!("{}/{path}", self.base.as_str().trim_end_matches('/'));
        let mut request = self.client.request(method, &url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some((kind, bytes)) = body {
            request = request.header("content-type", kind).body(bytes);
        }
        let mut response = request.send().await.with_context(|| format!("no answer from the broker at {}", self.base))?;
        let status = response.status();
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.context("the broker's answer broke off")? {
            if answer.len() + chunk.len() > MAX_ANSWER {
                bail!("the broker's answer is longer than {MAX_ANSWER} bytes");
            }
            answer.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body: answer, retry_after })
    }

    /// Asks, and takes nothing for an answer but success.
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<(&str, Vec<u8>)>) -> anyhow::Result<Vec<u8>> {
        let answer = self.ask(method, &format!("kbs/v0/{path}"), body).await?;
        if answer.status.is_success() { Ok(answer.body) } else { Err(refusal(&answer)) }
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        self.call(Method::GET, path, None).await
    }

    pub(super) async fn get_json(&self, path: &str) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.get(path).await?).with_context(|| format!("the broker's answer to {path} is not JSON"))
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Vec<u8>> {
        self.call(Method::POST, path, Some(("application/json", body.to_string().into_bytes()))).await
    }

    pub(super) async fn delete(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        self.call(Method::DELETE, path, None).await
    }
}

/// What the broker said, and what to do about it.
fn refusal(answer: &Answer) -> anyhow::Error {
    let body = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    let said = match &body {
        Value::Null => String::from_utf8_lossy(&answer.body).into_owned(),
        body => body.get("detail").and_then(Value::as_str).map(str::to_owned).unwrap_or_else(|| body.to_string()),
    };
    let said: String = said.chars().filter(|c| !c.is_control()).take(2000).collect();
    let variant = body.get("type").and_then(Value::as_str).map(|text| text.strip_prefix(ERROR_PREFIX).unwrap_or(text)).unwrap_or_default();
    let hint = hint(answer.status, variant, answer.retry_after.as_deref());
    anyhow::anyhow!("the broker refused with {}: {}{hint}", answer.status, said.trim())
}

fn hint(status: StatusCode, variant: &str, retry_after: Option<&str>) -> String {
    let hint = match (status, variant) {
        (StatusCode::UNAUTHORIZED, _) => {
            "check that --admin-key belongs to a public key in the broker's [admin] section (or --token-file is of an identity provider that it \
             knows), and both clocks"
        }
        (StatusCode::FORBIDDEN, "UnsignedReferenceValues" | "ManifestNotAllowed") => "this is the broker's configuration, whoever asks",
        (StatusCode::FORBIDDEN, _) => "the broker knows you, but not in a role that may do this; `kata-cc kbs whoami` says what yours may",
        (StatusCode::NOT_FOUND, "InvalidRequestPath" | "") => "check that --url names the root of a kata-cc broker of this version",
        (StatusCode::NOT_FOUND, _) => "check the name",
        (StatusCode::CONFLICT, "ManifestNotNewer") => {
            "`kata-cc kbs list-reference-manifests` shows what is there; --allow-rollback goes back to an older one"
        }
        (StatusCode::CONFLICT, _) => "somebody else was first; look at what is there now",
        (StatusCode::PAYLOAD_TOO_LARGE, _) => "the broker takes no more than 2 MiB at a time",
        (StatusCode::TOO_MANY_REQUESTS, _) => {
            return retry_after.map_or_else(|| "; try again later".to_owned(), |after| format!("; try again in {after} s"));
        }
        (StatusCode::INSUFFICIENT_STORAGE, _) => "delete what is not needed",
        (StatusCode::SERVICE_UNAVAILABLE, _) => "`kata-cc kbs health` says whether it is ready",
        _ => return String::new(),
    };
    format!("; {hint}")
}

/// One segment of a URL's path.
pub(super) fn segment(text: &str) -> anyhow::Result<&str> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) || matches!(text, "." | "..")
    {
        bail!("expected a name of letters, digits, `_`, `-` and `.`, found {text:?}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_token_is_a_short_lived_jwt_the_public_key_verifies() {
        let key = SigningKey::generate(KeyKind::Ed25519).unwrap();
        let token = admin_token(&key, "auditor", UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!(parts.len(), 3);
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
        let claims: Value = serde_json::from_slice(&decode(parts[1])).unwrap();
        assert_eq!(claims, json!({ "role": "auditor", "iat": 1000, "exp": 1300 }));
        assert!(key.public_key().verifies(format!("{}.{}", parts[0], parts[1]).as_bytes(), &decode(parts[2])));
    }

    #[test]
    fn a_p256_key_is_no_admin_key() {
        let key = SigningKey::generate(KeyKind::P256).unwrap();
        assert!(admin_token(&key, "admin", UNIX_EPOCH + Duration::from_secs(1)).unwrap_err().to_string().contains("Ed25519"));
    }

    #[test]
    fn secrets_travel_over_tls_or_loopback_only() {
        for good in
            ["https://broker.example:8080", "https://broker.example/sub/", "http://127.0.0.1:8080", "http://[::1]:8080", "http://localhost"]
        {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in ["http://broker.example", "http://127.0.0.1.example", "ftp://broker.example", "broker.example:8080", "file:///etc"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_one_jwt() {
        assert_eq!(read_token(" a.b-c.d_e\n").unwrap(), "a.b-c.d_e");
        for bad in ["", "a.b", "a.b.c.d", "a..c", "a.b.c\nd.e.f", "a.b.c d"] {
            assert!(read_token(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn refusals_say_what_the_broker_said_and_what_to_do() {
        let told = |status: u16, variant: &str, retry_after: Option<&str>| {
            let body = json!({"type": format!("{ERROR_PREFIX}{variant}"), "detail": "because"}).to_string().into_bytes();
            refusal(&Answer { status: StatusCode::from_u16(status).unwrap(), body, retry_after: retry_after.map(str::to_owned) })
                .to_string()
        };
        for (status, variant, word) in [
            (401, "AdminAuth", "--admin-key"),
            (403, "AdminAuth", "whoami"),
            (403, "UnsignedReferenceValues", "configuration"),
            (404, "ManifestNotFound", "check the name"),
            (404, "InvalidRequestPath", "--url"),
            (409, "ManifestNotNewer", "--allow-rollback"),
            (413, "PayloadTooLarge", "2 MiB"),
            (429, "RateLimited", "later"),
            (507, "StoreFull", "delete"),
        ] {
            let text = told(status, variant, None);
            assert!(text.contains("because") && text.contains(word) && text.contains(&status.to_string()), "{text}");
        }
        assert!(told(429, "RateLimited", Some("7")).ends_with("try again in 7 s"));
        let foreign = Answer { status: StatusCode::BAD_GATEWAY, body: b"\xff\xfe\x1b[2J".to_vec(), retry_after: None };
        let text = refusal(&foreign).to_string();
        assert!(text.contains("502") && !text.contains('\x1b'), "{text:?}");
    }

    #[test]
    fn segments_are_plain_names() {
        assert!(segment("default_cpu").is_ok());
        for bad in ["", ".", "..", "a/b", "a?b", "a b", "ä"] {
            assert!(segment(bad).is_err(), "{bad}");
        }
    }
}
