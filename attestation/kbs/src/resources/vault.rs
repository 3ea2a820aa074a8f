//! Resources in a HashiCorp Vault or OpenBao: KV secrets engine, version 2, over its HTTP interface.
//!
//! ```text
//! repository/type/tag  <->  MOUNT/data/PREFIX/repository/type/tag, the field `data`, in base64
//! ```
//! The field and its encoding are those of CoCo's broker, which has them in version 1 of the engine: what `vault kv enable-versioning` made of
//! such a mount is read as it is. Other fields are left alone when reading, and gone from the new version when writing.
//!
//! **Invariant:** no secret and no token is in an error or a log; what the Vault says of an error is not repeated. **Invariant:** only a 404
//! that the engine itself gave is a resource that is not there; every other answer that is not understood is an error.

use crate::config;
use axum::body::Bytes;
use axum::http::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_kbs_protocol::ResourcePath;
use reqwest::{Certificate, Client, Method, Response, StatusCode};
use serde::Deserialize;
use std::borrow::Cow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// For one answer. A guest waits, and has not much more patience.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For all names, which take many answers.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer: the largest resource in base64, and what is around it.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// Folders that are looked into for names.
const MAX_FOLDERS: usize = 10_000;
/// Names told.
const MAX_NAMES: usize = 100_000;
const MAX_TOKEN: u64 = 8192;
const MAX_CA: u64 = 1024 * 1024;
/// Anybody may ask whether the broker is ready; the Vault is asked once in this time.
const READY_FOR: Duration = Duration::from_secs(1);

/// Why a Vault cannot be asked as configured.
#[derive(Debug, thiserror::Error)]
pub enum VaultSetupError {
    /// The authorities' file.
    #[error(transparent)]
    Read(#[from] config::ConfigError),
    /// There is no certificate in it.
    #[error("no certificates of an authority in {}", .0.display())]
    Authority(PathBuf),
    /// The token.
    #[error(transparent)]
    Token(#[from] VaultError),
    /// The client could not be made.
    #[error("cannot set up a client for the Vault")]
    Client(#[source] reqwest::Error),
}

/// Why the Vault did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VaultError {
    /// It does not answer, or not now.
    #[error("the Vault does not answer: {0}")]
    Unavailable(&'static str),
    /// The token may not do this, or is none.
    #[error("the Vault denies it: the broker's token is no longer good, or may not {what} under {mount}")]
    Denied {
        /// What was asked.
        what: &'static str,
        /// Where.
        mount: String,
    },
    /// There is no secrets engine there.
    #[error("the Vault has no secrets engine at {0}: see `vault.mount` and `vault.namespace`")]
    NoMount(String),
    /// There is another engine.
    #[error(
        "what the Vault has mounted at {0} is no KV secrets engine of version 2: enable one there (vault secrets enable -version=2 kv)"
    )]
    Engine(String),
    /// A value that is not a resource.
    #[error("the Vault's value at {path} is no resource: expected {expected}")]
    Form {
        /// Mount and path.
        path: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The value is larger than the Vault takes.
    #[error("the Vault does not take a value of this size")]
    TooLarge,
    /// Too many names.
    #[error("there are more names under {0} than are told")]
    TooMany(String),
    /// Another answer.
    #[error("the Vault answered {status}, which is not expected where {what} is asked for under {mount}")]
    Status {
        /// What was asked.
        what: &'static str,
        /// Where.
        mount: String,
        /// Its answer.
        status: u16,
    },
    /// The token's file could not be read.
    #[error("cannot read the Vault's token from {}", .0.display())]
    TokenFile(PathBuf, #[source] Arc<std::io::Error>),
    /// Everybody may read the token.
    #[error("{} has the Vault's token and may be read by everybody: chmod o= it", .0.display())]
    TokenMode(PathBuf),
    /// There is no token in the file.
    #[error("{} is no token of a Vault: expected one line of visible characters", .0.display())]
    TokenForm(PathBuf),
}

/// A Vault's mount, as far as the resources are in it.
pub struct Vault {
    client: Client,
    address: String,
    mount: String,
    /// With a slash behind it, unless it is empty.
    prefix: String,
    namespace: Option<HeaderValue>,
    token_file: PathBuf,
    /// When the Vault was last asked whether it is ready, and what it was.
    asked: Mutex<Option<(Instant, Result<(), VaultError>)>>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({}/v1/{}/data/{})", self.address, self.mount, self.prefix)
    }
}

/// What all answers have around them.
#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
struct Answer<T> {
    data: T,
}

#[derive(Deserialize)]
struct Version<'a> {
    #[serde(borrow)]
    data: Option<Value<'a>>,
}

/// Borrowed from the answer, which is wiped: base64 has nothing that JSON escapes.
#[derive(Deserialize)]
struct Value<'a> {
    #[serde(borrow)]
    data: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Written {
    version: u64,
}

#[derive(Deserialize)]
struct Folder {
    keys: Vec<String>,
}

#[derive(Deserialize)]
struct Mount {
    #[serde(rename = "type")]
    kind: String,
    options: Option<Options>,
}

#[derive(Deserialize)]
struct Options {
    version: Option<String>,
}

/// The body of a 404. The engine's own has no text, or says which version was deleted; the Vault's router has an error.
#[derive(Deserialize)]
struct Absent {
    #[serde(default)]
    errors: Vec<serde::de::IgnoredAny>,
}

impl Vault {
    /// Reads the files that are named. Asks nobody yet.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn configured(config: &config::Vault) -> Result<Self, VaultSetupError> {
        read_token(&config.token_file)?;
        // The client takes the process's provider of cryptography. A second call finds one installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            // The token would go along.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("kata-cc-kbs/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &config.ca {
            let pem = config::read_bytes(path, MAX_CA)?;
            let authorities = Certificate::from_pem_bundle(&pem).ok().filter(|found| !found.is_empty());
            client = client.tls_certs_only(authorities.ok_or_else(|| VaultSetupError::Authority(path.clone()))?);
        }
        let prefix = if config.prefix.is_empty() { String::new() } else { format!("{}/", config.prefix) };
        Ok(Self {
            client: client.build().map_err(VaultSetupError::Client)?,
            address: config.address.as_str().to_owned(),
            mount: config.mount.clone(),
            prefix,
            // Checked with the configuration to be of a narrow alphabet.
            namespace: config.namespace.as_ref().and_then(|name| HeaderValue::from_str(name).ok()),
            token_file: config.token_file.clone(),
            asked: Mutex::default(),
        })
    }

    /// Whether it answers, knows the token, and has a KV engine of version 2 where the resources should be.
    pub async fn ready(&self) -> Result<(), VaultError> {
        let mut asked = self.asked.lock().await;
        // A failure too: those who wait here for a Vault that is silent would each wait for it once more.
        if let Some((since, known)) = asked.as_ref()
            && since.elapsed() < READY_FOR
        {
            return known.clone();
        }
        let found = self.ask_ready().await;
        *asked = Some((Instant::now(), found.clone()));
        found
    }

    async fn ask_ready(&self) -> Result<(), VaultError> {
        let what = "see an engine, if there is one,";
        let response = self.ask(Method::GET, &format!("sys/internal/ui/mounts/{}", self.mount), None, what).await?;
        if response.status() != StatusCode::OK {
            return Err(self.failed(what, response.status()));
        }
        let body = bounded(response).await?;
        let is_kv2 = |mount: Mount| {
            let version = mount.options.and_then(|options| options.version);
            matches!(mount.kind.as_str(), "kv" | "generic") && version.as_deref() == Some("2")
        };
        if !serde_json::from_slice::<Answer<Mount>>(&body).is_ok_and(|answer| is_kv2(answer.data)) {
            return Err(VaultError::Engine(self.mount.clone()));
        }
        Ok(())
    }

    /// The newest version of a secret; `None` where there is none, or it was deleted.
    pub async fn get(&self, path: &ResourcePath) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        let what = "read";
        let response = self.ask(Method::GET, &self.of("data", path), None, what).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return self.absent(response).await.map(|()| None),
            status => return Err(self.failed(what, status)),
        }
        let body = bounded(response).await?;
        // What is wrong is not asked of the parser, whose words could have a piece of the secret in them.
        let form = |expected| VaultError::Form { path: format!("{}/{}{path}", self.mount, self.prefix), expected };
        let answer: Answer<Version<'_>> =
            serde_json::from_slice(&body).map_err(|_| form("a value of a KV secrets engine of version 2 with a field `data`, a string"))?;
        let Some(value) = answer.data.data else { return Ok(None) };
        let secret = STANDARD.decode(value.data.as_bytes()).map_err(|_| form("standard base64 in its field `data`"))?;
        Ok(Some(Zeroizing::new(secret)))
    }

    /// A new version of a secret. Whether there was a version before.
    pub async fn put(&self, path: &ResourcePath, value: &[u8]) -> Result<bool, VaultError> {
        let what = "write";
        // An engine of version 1 would keep the secret too, under a name that nobody looks for.
        self.ready().await?;
        // As large as it gets, so that no piece of it stays behind.
        let mut body = Zeroizing::new(String::with_capacity(value.len() / 3 * 4 + 64));
        body.push_str("{\"data\":{\"data\":\"");
        STANDARD.encode_string(value, &mut body);
        body.push_str("\"}}");
        let body = Bytes::from_owner(Wiped(body));
        let response = self.ask(Method::POST, &self.of("data", path), Some(body), what).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::PAYLOAD_TOO_LARGE => return Err(VaultError::TooLarge),
            StatusCode::NOT_FOUND => return Err(VaultError::NoMount(self.mount.clone())),
            status => return Err(self.failed(what, status)),
        }
        let body = bounded(response).await?;
        let written: Answer<Written> = serde_json::from_slice(&body).map_err(|_| VaultError::Engine(self.mount.clone()))?;
        Ok(written.data.version > 1)
    }

    /// Deletes a secret with all of its versions. Whether there was one.
    pub async fn delete(&self, path: &ResourcePath) -> Result<bool, VaultError> {
        let (what, url) = ("delete", self.of("metadata", path));
        // Deleting says nothing of what there was.
        let there = self.ask(Method::GET, &url, None, what).await?;
        match there.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return self.absent(there).await.map(|()| false),
            status => return Err(self.failed(what, status)),
        }
        match self.ask(Method::DELETE, &url, None, what).await?.status() {
            StatusCode::NO_CONTENT | StatusCode::OK => Ok(true),
            status => Err(self.failed(what, status)),
        }
    }

    /// Names of all secrets, in order; of those too whose newest version was deleted. What is not named like a resource is passed over.
    pub async fn names(&self) -> Result<Vec<String>, VaultError> {
        tokio::time::timeout(LIST_TIMEOUT, self.all_names()).await.unwrap_or(Err(VaultError::Unavailable("all names in time")))
    }

    async fn all_names(&self) -> Result<Vec<String>, VaultError> {
        // Folders of repositories, then of types: each is listed once, the deepest have the tags.
        let (mut folders, mut names) = (vec![String::new()], Vec::new());
        let mut looked_into = 0;
        while let Some(folder) = folders.pop() {
            looked_into += 1;
            if looked_into > MAX_FOLDERS {
                return Err(VaultError::TooMany(self.mount.clone()));
            }
            let is_type = folder.matches('/').count() == 2;
            for key in self.list(&folder).await? {
                let name = format!("{folder}{key}");
                match (is_type, key.ends_with('/')) {
                    (true, false) if name.parse::<ResourcePath>().is_ok() => names.push(name),
                    (false, true) if format!("{name}{}", if folder.is_empty() { "x/x" } else { "x" }).parse::<ResourcePath>().is_ok() => {
                        folders.push(name);
                    }
                    _ => {}
                }
            }
            if names.len() > MAX_NAMES || folders.len() > MAX_FOLDERS {
                return Err(VaultError::TooMany(self.mount.clone()));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>, VaultError> {
        let what = "list";
        // The form of LIST for whatever is between that knows no such method.
        let path = format!("{}/metadata/{}{folder}?list=true", self.mount, self.prefix);
        let response = self.ask(Method::GET, &path, None, what).await?;
        match response.status() {
            StatusCode::OK => {}
            // There is nothing in it.
            StatusCode::NOT_FOUND => return self.absent(response).await.map(|()| Vec::new()),
            status => return Err(self.failed(what, status)),
        }
        let body = bounded(response).await?;
        let answer: Answer<Folder> = serde_json::from_slice(&body).map_err(|_| VaultError::Engine(self.mount.clone()))?;
        Ok(answer.data.keys)
    }

    /// `data` or `metadata` of a resource. Nothing in it needs escaping, see [`ResourcePath`].
    fn of(&self, what: &str, path: &ResourcePath) -> String {
        format!("{}/{what}/{}{path}", self.mount, self.prefix)
    }

    /// Sends a request, and once more where the token has been renewed meanwhile.
    async fn ask(&self, method: Method, path: &str, body: Option<Bytes>, what: &'static str) -> Result<Response, VaultError> {
        let token = read_token(&self.token_file)?;
        let response = self.send(method.clone(), path, body.clone(), &token).await?;
        if response.status() != StatusCode::FORBIDDEN {
            return Ok(response);
        }
        let renewed = read_token(&self.token_file)?;
        let response = if *renewed == *token { response } else { self.send(method, path, body, &renewed).await? };
        if response.status() == StatusCode::FORBIDDEN {
            return Err(VaultError::Denied { what, mount: self.mount.clone() });
        }
        Ok(response)
    }

    async fn send(&self, method: Method, path: &str, body: Option<Bytes>, token: &str) -> Result<Response, VaultError> {
        // Known to be good for a header since it was read.
        let mut token = HeaderValue::from_str(token).map_err(|_| VaultError::TokenForm(self.token_file.clone()))?;
        token.set_sensitive(true);
        let url = format!("{}/v1/{path}", self.address);
        // Without the second, a Vault's agent or proxy in between may be told not to forward the request.
        let mut request = self.client.request(method, url).header("X-Vault-Token", token).header("X-Vault-Request", "true");
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body);
        }
        let response = request.send().await.map_err(|e| VaultError::Unavailable(unanswered(&e)))?;
        match response.status().as_u16() {
            // 429: a standby that does not forward, or a limit of requests; 472 and 473: a standby of another cluster.
            429 | 472 | 473 => Err(VaultError::Unavailable("it is a standby, or asked too often")),
            503 => Err(VaultError::Unavailable("it is sealed, or under maintenance")),
            500 | 502 | 504 => Err(VaultError::Unavailable("it has an error of its own, which its log has")),
            _ => Ok(response),
        }
    }

    /// Tells a resource that is not there from an engine that is not there.
    async fn absent(&self, response: Response) -> Result<(), VaultError> {
        let body = bounded(response).await?;
        match serde_json::from_slice::<Absent>(&body) {
            Ok(absent) if absent.errors.is_empty() => Ok(()),
            _ => Err(VaultError::NoMount(self.mount.clone())),
        }
    }

    fn failed(&self, what: &'static str, status: StatusCode) -> VaultError {
        VaultError::Status { what, mount: self.mount.clone(), status: status.as_u16() }
    }
}

/// A request's body, wiped when it has been sent.
struct Wiped(Zeroizing<String>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Reqwest's own text has the URL.
fn unanswered(error: &reqwest::Error) -> &'static str {
    match (error.is_timeout(), error.is_connect()) {
        (true, _) => "no answer in time",
        (_, true) => "no connection, or its certificate is not one of `vault.ca`",
        _ => "a broken answer",
    }
}

async fn bounded(mut response: Response) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let known = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let mut body = Zeroizing::new(Vec::with_capacity(known.min(MAX_ANSWER)));
    while let Some(chunk) = response.chunk().await.map_err(|e| VaultError::Unavailable(unanswered(&e)))? {
        if body.len().saturating_add(chunk.len()) > MAX_ANSWER {
            return Err(VaultError::Unavailable("an answer that is too large"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn read_token(path: &Path) -> Result<Zeroizing<String>, VaultError> {
    use std::io::Read as _;
    let fail = |source| VaultError::TokenFile(path.into(), Arc::new(source));
    let file = std::fs::File::open(path).map_err(fail)?;
    // Its group may be that of the agent which renews it.
    if file.metadata().map_err(fail)?.permissions().mode() & 0o007 != 0 {
        return Err(VaultError::TokenMode(path.into()));
    }
    let mut text = Zeroizing::new(String::with_capacity(512));
    file.take(MAX_TOKEN + 1).read_to_string(&mut text).map_err(fail)?;
    let token = text.trim_ascii();
    if token.is_empty() || text.len() as u64 > MAX_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(VaultError::TokenForm(path.into()));
    }
    Ok(Zeroizing::new(token.to_owned()))
}
