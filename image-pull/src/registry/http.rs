//! A registry over HTTP(S): OCI distribution-spec 1.1, pull and push.
//!
//! Its own client rather than a library's, because three things must be exact here: where a redirect may lead, who gets a credential, and how much is read.
//! Everything a registry sends is bounded; a broken download is taken up again where it broke, which the digest makes safe.
//!
//! **Invariant:** plain HTTP is spoken with listed hosts only, and no answer of a registry adds to the list.
//! **Invariant:** `Authorization` is sent to the registry's own origin and, as a login, to its token service; a redirect never carries it elsewhere.
//! **Invariant:** a login goes over TLS only, and only on the word of a challenge that came over TLS: who may write a challenge into plain HTTP names the token
//! service too. Digests pin what comes from a registry of plain HTTP; nothing would guard what goes there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Method, Response, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::digest::Digest;
use crate::manifest::MANIFEST_TYPES;
use crate::reference::Reference;
use crate::registry::auth::{Challenge, Credentials, challenge};
use crate::registry::{BlobReader, RawManifest, Registry, RegistryError, Version};

/// How to reach registries.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// `host:port` (or `host`) with which plain HTTP is spoken. No login is sent to them, nor to a token service that one of them names.
    pub insecure_registries: BTreeSet<String>,
    /// Further certificate authorities, PEM.
    pub extra_ca: Vec<String>,
    /// Whether the public certificate authorities (Mozilla's list) are trusted too.
    pub public_ca: bool,
    /// Logins.
    pub credentials: Credentials,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { insecure_registries: BTreeSet::new(), extra_ca: Vec::new(), public_ca: true, credentials: Credentials::default() }
    }
}

/// Times a request is tried when the connection or the registry fails in passing.
const TRIES: u32 = 4;
const REDIRECTS: usize = 5;
/// How long a registry may be silent. The client library's own clock for this also runs while *we* are busy unpacking what came before.
const SILENCE: Duration = Duration::from_secs(60);
const TOKEN_ANSWER_LIMIT: u64 = 64 << 10;

struct Inner {
    client: Client,
    config: HttpConfig,
    /// What to send as `Authorization`, by registry, repository and whether writing is meant.
    tokens: Mutex<HashMap<(String, bool), Zeroizing<String>>>,
    /// Repositories for which a login was used. Only grows: what is public has never needed one.
    logins: Mutex<HashSet<String>>,
}

/// The client. Clones share connections and tokens.
#[derive(Clone)]
pub struct HttpRegistry(Arc<Inner>);

/// A URL that may be shown: presigned queries and user names are credentials.
pub(crate) fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

fn host_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Addresses that only mean something on the machine itself or to its cloud's metadata service.
fn is_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
        Ok(IpAddr::V6(ip)) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || ip.to_ipv4_mapped().is_some()
                || ip.segments()[..2] == [0xfd00, 0x0ec2]
        }
        Err(_) => matches!(host, "localhost" | "metadata" | "metadata.google.internal") || host.ends_with(".localhost"),
    }
}

fn connection(url: &Url, error: &reqwest::Error) -> RegistryError {
    // reqwest's own text repeats the URL with its query.
    let mut reason = String::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = cause.to_string();
        source = cause.source();
    }
    let kind = match (error.is_timeout(), error.is_connect()) {
        (true, _) => "timed out",
        (_, true) => "cannot connect",
        _ => "the connection failed",
    };
    let reason = if reason.is_empty() { kind.to_owned() } else { format!("{kind}: {reason}") };
    RegistryError::Connection { url: shown(url), reason }
}

/// Waits for a registry's next word.
async fn heard<T>(url: &Url, word: impl Future<Output = reqwest::Result<T>>) -> Result<T, RegistryError> {
    match tokio::time::timeout(SILENCE, word).await {
        Ok(outcome) => outcome.map_err(|error| connection(url, &error)),
        Err(_) => Err(RegistryError::Connection { url: shown(url), reason: format!("no answer for {} s", SILENCE.as_secs()) }),
    }
}

/// One request as it is sent again after a challenge, a redirect or a failure.
pub(crate) struct Request<'a> {
    pub(crate) image: &'a Reference,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) write: bool,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
}

impl HttpRegistry {
    /// A client by this configuration. Nothing is connected yet.
    ///
    /// # Errors
    /// If a certificate is malformed or the TLS library refuses the configuration.
    pub fn new(config: HttpConfig) -> Result<Self, RegistryError> {
        let wrong = |what: String| RegistryError::Configuration(what);
        let mut roots = rustls::RootCertStore::empty();
        if config.public_ca {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        for pem in &config.extra_ca {
            let before = roots.len();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|e| wrong(format!("extra certificate authority: not PEM: {e:?}")))?;
                roots.add(certificate).map_err(|e| wrong(format!("extra certificate authority: {e}")))?;
            }
            if roots.len() == before {
                return Err(wrong("extra certificate authority: no certificate in it".to_owned()));
            }
        }
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong(format!("TLS: {e}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_secs(15))
            .user_agent(concat!("kata-cc/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| wrong(format!("HTTP client: {e}")))?;
        Ok(Self(Arc::new(Inner { client, config, tokens: Mutex::default(), logins: Mutex::default() })))
    }

    fn insecure(&self, host_port: &str) -> bool {
        self.0.config.insecure_registries.contains(host_port)
    }

    /// `<scheme>://<host>/v2/<repository>/<rest>`.
    pub(crate) fn url(&self, image: &Reference, rest: &str) -> Result<Url, RegistryError> {
        let scheme = if self.insecure(image.registry()) { "http" } else { "https" };
        let text = format!("{scheme}://{}/v2/{}/{rest}", image.api_host(), image.repository());
        Url::parse(&text).map_err(|e| RegistryError::Protocol { url: text, what: e.to_string() })
    }

    /// Where a registry may send us.
    pub(crate) fn may_go(&self, from: &Url, to: &Url) -> Result<(), RegistryError> {
        let refuse = |why| Err(RegistryError::Redirect { url: shown(from), to: shown(to), why });
        let listed = self.insecure(&host_port(to));
        match to.scheme() {
            "https" => {}
            "http" if listed => {}
            "http" => return refuse("plain HTTP is spoken with listed registries only"),
            _ => return refuse("it is neither HTTPS nor HTTP"),
        }
        if is_local(to) && !listed && from.host() != to.host() {
            return refuse("it is an address of this machine, of its link, or of a metadata service");
        }
        Ok(())
    }

    /// Sends a request: with what authorization there is, answering a challenge once, following redirects of reads, trying again what failed in passing.
    pub(crate) async fn send(&self, request: Request<'_>) -> Result<Response, RegistryError> {
        let mut tries = 0;
        let mut challenged = false;
        loop {
            tries += 1;
            let outcome = self.send_following(&request).await;
            let wait = match outcome {
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED && !challenged => {
                    challenged = true;
                    tries -= 1;
                    self.answer_challenge(&request, &response).await?;
                    continue;
                }
                Ok(response) if passing(response.status()) && tries < TRIES => retry_after(&response),
                Ok(response) => return Ok(response),
                Err(RegistryError::Connection { .. }) if tries < TRIES => None,
                Err(error) => return Err(error),
            };
            tokio::time::sleep(wait.unwrap_or(Duration::from_millis(250 << tries))).await;
        }
    }

    async fn send_following(&self, request: &Request<'_>) -> Result<Response, RegistryError> {
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS {
            let mut builder = self.0.client.request(request.method.clone(), url.clone()).headers(request.headers.clone());
            if same_origin(&url, &request.url)
                && let Some(authorization) = self.authorization(request.image, request.write)
            {
                builder = builder.header(AUTHORIZATION, authorization);
            }
            if let Some(body) = &request.body {
                builder = builder.body(body.clone());
            }
            let response = heard(&url, builder.send()).await?;
            let follows =
                matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) && matches!(request.method, Method::GET | Method::HEAD);
            if !follows {
                return Ok(response);
            }
            let next = location(&url, &response)?;
            self.may_go(&url, &next)?;
            url = next;
        }
        Err(RegistryError::Protocol { url: shown(&request.url), what: format!("more than {REDIRECTS} redirects") })
    }

    pub(crate) fn authorization(&self, image: &Reference, write: bool) -> Option<HeaderValue> {
        let tokens = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let mut value = HeaderValue::from_str(tokens.get(&(image.name(), write))?).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    async fn answer_challenge(&self, request: &Request<'_>, response: &Response) -> Result<(), RegistryError> {
        let url = response.url();
        let denied = || RegistryError::Status { url: shown(url), status: 401 };
        if !same_origin(url, &request.url) {
            return Err(denied());
        }
        let offered: Vec<Challenge> =
            response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| challenge(value.to_str().ok()?)).collect();
        let login = self.0.config.credentials.find(request.image);
        if login.is_some() && !offered.is_empty() {
            not_in_clear(url)?;
            // Before it is sent: nobody may take for public what is on its way with a login.
            self.0.logins.lock().unwrap_or_else(PoisonError::into_inner).insert(request.image.name());
        }
        let basic = login.map(|login| {
            use base64::Engine;
            let pair = Zeroizing::new(format!("{}:{}", login.user, login.password.as_str()));
            Zeroizing::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair.as_bytes())))
        });
        let value = match offered.iter().find(|c| matches!(c, Challenge::Bearer { .. })).or(offered.first()) {
            Some(Challenge::Bearer { realm, service }) => self.token(request, url, realm, service.as_deref(), basic).await?,
            Some(Challenge::Basic) => basic.ok_or_else(denied)?,
            None => return Err(denied()),
        };
        let mut tokens = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.insert((request.image.name(), request.write), value);
        Ok(())
    }

    async fn token(
        &self,
        request: &Request<'_>,
        from: &Url,
        realm: &str,
        service: Option<&str>,
        basic: Option<Zeroizing<String>>,
    ) -> Result<Zeroizing<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<Zeroizing<String>>,
            access_token: Option<Zeroizing<String>>,
        }
        let mut url = from.join(realm).map_err(|_| protocol(from, "the token service's address is malformed"))?;
        self.may_go(from, &url)?;
        if basic.is_some() {
            not_in_clear(&url)?;
        }
        let actions = if request.write { "pull,push" } else { "pull" };
        url.query_pairs_mut().append_pair("scope", &format!("repository:{}:{actions}", request.image.repository()));
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut builder = self.0.client.get(url.clone());
        if let Some(basic) = basic {
            let mut value = HeaderValue::from_str(&basic).map_err(|_| protocol(from, "the login holds characters HTTP cannot carry"))?;
            value.set_sensitive(true);
            builder = builder.header(AUTHORIZATION, value);
        }
        let response = heard(&url, builder.send()).await?;
        let body = Zeroizing::new(body(expect(response, &[StatusCode::OK])?, TOKEN_ANSWER_LIMIT).await?);
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| protocol(&url, "expected a token in JSON"))?;
        let token = answer.token.or(answer.access_token).ok_or_else(|| protocol(&url, "expected a token in JSON"))?;
        Ok(Zeroizing::new(format!("Bearer {}", token.as_str())))
    }

    /// A request made ready but not sent, for a body that can be sent only once.
    pub(crate) fn once(&self, image: &Reference, method: Method, url: Url, registry: &Url) -> reqwest::RequestBuilder {
        let authorization = same_origin(&url, registry).then(|| self.authorization(image, true)).flatten();
        let builder = self.0.client.request(method, url);
        match authorization {
            Some(authorization) => builder.header(AUTHORIZATION, authorization),
            None => builder,
        }
    }

    async fn open_blob(&self, image: &Reference, digest: &Digest, from: u64) -> Result<Response, RegistryError> {
        let url = self.url(image, &format!("blobs/{digest}"))?;
        let mut headers = HeaderMap::new();
        if from > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-"))
        {
            headers.insert(RANGE, range);
        }
        let response = self.send(Request { image, method: Method::GET, url, write: false, headers, body: None }).await?;
        expect(response, &[StatusCode::OK, StatusCode::PARTIAL_CONTENT])
    }
}

/// Refuses a place to which a login would go in clear.
fn not_in_clear(url: &Url) -> Result<(), RegistryError> {
    if url.scheme() == "https" { Ok(()) } else { Err(RegistryError::LoginInClear { url: shown(url) }) }
}

pub(crate) fn protocol(url: &Url, what: impl Into<String>) -> RegistryError {
    RegistryError::Protocol { url: shown(url), what: what.into() }
}

pub(crate) fn location(url: &Url, response: &Response) -> Result<Url, RegistryError> {
    let text = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let text = text.ok_or_else(|| protocol(url, "an answer without the Location it needs"))?;
    url.join(text).map_err(|_| protocol(url, "a malformed Location"))
}

const fn passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds: u64 = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds.min(30)))
}

pub(crate) fn expect(response: Response, good: &[StatusCode]) -> Result<Response, RegistryError> {
    if good.contains(&response.status()) {
        Ok(response)
    } else {
        Err(RegistryError::Status { url: shown(response.url()), status: response.status().as_u16() })
    }
}

async fn body(mut response: Response, limit: u64) -> Result<Vec<u8>, RegistryError> {
    let too_large = |url: &Url| RegistryError::TooLarge { url: shown(url), limit };
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_large(response.url()));
    }
    let mut bytes = Vec::new();
    loop {
        let url = response.url().clone();
        let Some(chunk) = heard(&url, response.chunk()).await? else { return Ok(bytes) };
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(too_large(response.url()));
        }
        bytes.extend_from_slice(&chunk);
    }
}

#[async_trait::async_trait]
impl Registry for HttpRegistry {
    async fn manifest(&self, repository: &Reference, version: Version<'_>, limit: u64) -> Result<Option<RawManifest>, RegistryError> {
        let url = self.url(repository, &format!("manifests/{version}"))?;
        let mut headers = HeaderMap::new();
        for accepted in MANIFEST_TYPES {
            headers.append(ACCEPT, HeaderValue::from_static(accepted));
        }
        let response = self.send(Request { image: repository, method: Method::GET, url, write: false, headers, body: None }).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let response = expect(response, &[StatusCode::OK])?;
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_owned());
        Ok(Some(RawManifest { bytes: body(response, limit).await?.into(), content_type }))
    }

    async fn blob(&self, repository: &Reference, digest: &Digest) -> Result<Box<dyn BlobReader>, RegistryError> {
        let response = self.open_blob(repository, digest, 0).await?;
        Ok(Box::new(HttpBlob {
            registry: self.clone(),
            repository: repository.clone(),
            digest: *digest,
            url: response.url().clone(),
            response,
            at: 0,
            skip: 0,
            resumes: TRIES,
        }))
    }

    fn sent_login(&self, repository: &Reference) -> bool {
        self.0.logins.lock().unwrap_or_else(PoisonError::into_inner).contains(&repository.name())
    }
}

/// A blob under way over HTTP.
struct HttpBlob {
    registry: HttpRegistry,
    repository: Reference,
    digest: Digest,
    url: Url,
    response: Response,
    /// Bytes handed on so far.
    at: u64,
    /// Bytes to leave out, because a registry that knows no ranges began anew.
    skip: u64,
    /// Breaks in a row that are still put up with. A registry that sends one byte a connection is not stopped by this; the layer's size and the caller's clock do.
    resumes: u32,
}

#[async_trait::async_trait]
impl BlobReader for HttpBlob {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            match heard(&self.url, self.response.chunk()).await {
                Ok(Some(mut chunk)) => {
                    let leave = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
                    let rest = chunk.split_off(leave);
                    self.skip -= leave as u64;
                    if rest.is_empty() {
                        continue;
                    }
                    self.at += rest.len() as u64;
                    self.resumes = TRIES;
                    return Ok(Some(rest));
                }
                Ok(None) => return Ok(None),
                Err(error) if self.resumes > 0 => {
                    self.resumes -= 1;
                    tracing::warn!(digest = %self.digest, at = self.at, %error, "download broke, resuming");
                    self.response = self.registry.open_blob(&self.repository, &self.digest, self.at).await?;
                    self.url = self.response.url().clone();
                    self.skip = if self.response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { self.at };
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(insecure: &[&str]) -> HttpRegistry {
        let insecure_registries = insecure.iter().map(|&s| s.to_owned()).collect();
        HttpRegistry::new(HttpConfig { insecure_registries, ..HttpConfig::default() }).unwrap()
    }

    #[track_caller]
    fn check(insecure: &[&str], from: &str, to: &str, allowed: bool) {
        let outcome = registry(insecure).may_go(&Url::parse(from).unwrap(), &Url::parse(to).unwrap());
        assert_eq!(outcome.is_ok(), allowed, "{from} -> {to}: {outcome:?}");
    }

    #[test]
    fn refuses_redirects_to_plain_http_and_to_local_addresses() {
        let from = "https://ghcr.io/v2/a/b/blobs/x";
        check(&[], from, "https://cdn.example.com/x?sig=1", true);
        check(&[], from, "http://cdn.example.com/x", false);
        check(&[], from, "file:///etc/passwd", false);
        for local in [
            "169.254.169.254",
            "127.0.0.1:8006",
            "[::1]",
            "[fe80::1]",
            "0.0.0.0",
            "[fd00:ec2::254]",
            "[::ffff:169.254.169.254]",
            "localhost",
            "metadata.google.internal",
        ] {
            check(&[], from, &format!("https://{local}/x"), false);
        }
        check(&["127.0.0.1:5000"], "http://127.0.0.1:5000/v2/", "http://127.0.0.1:5000/x", true);
        check(&["127.0.0.1:5000"], "http://127.0.0.1:5000/v2/", "http://127.0.0.1:8006/x", false);
    }

    #[test]
    fn speaks_plain_http_with_listed_hosts_only() {
        let url = |insecure: &[&str], image: &str| registry(insecure).url(&image.parse().unwrap(), "x").unwrap().to_string();
        assert_eq!(url(&["r.io:5000"], "r.io:5000/a"), "http://r.io:5000/v2/a/x");
        assert_eq!(url(&["r.io:5000"], "r.io:5001/a"), "https://r.io:5001/v2/a/x");
        assert_eq!(url(&["r.io:5000"], "r.io/a"), "https://r.io/v2/a/x");
        assert_eq!(url(&[], "nginx"), "https://registry-1.docker.io/v2/library/nginx/x");
    }

    #[test]
    fn shows_no_query_and_no_user() {
        assert_eq!(shown(&Url::parse("https://u:p@h.io:444/a?X-Amz-Signature=secret").unwrap()), "https://h.io:444/a");
    }
}
