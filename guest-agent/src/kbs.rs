//! The agent's side of the key broker: one attestation per pod, kept and shared.
//!
//! Whoever needs a secret first makes the handshake; who comes meanwhile waits for that one (the lock is held on purpose), and
//! later needs use its token and key until they expire. The broker is reached by its name in initdata and known by the
//! certificate in initdata, and by no other root: a network that the host controls cannot pose as it.
//!
//! The protocol itself is `kata-cc-kbs-protocol`; here are the socket, the clock and the patience.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kata_cc_kbs_protocol::message::InitData;
use kata_cc_kbs_protocol::{Attested, ClientError, ClientSession, HttpRequest, HttpResponse, Method, ResourcePath, SecretBytes};
use kata_cc_policy::guest_config::BrokerConfig;
use thiserror::Error;
use tokio::sync::{Mutex, OnceCell};

use crate::attest::{AttestError, Attester};
use crate::timeline::Timeline;

/// How often a request is sent before its failure counts. The network of a pod comes up while the first one is on its way.
const TRIES: u32 = 4;

/// What the second try waits for; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long before its end a token is no longer relied on.
const MARGIN_SECONDS: u64 = 10;

/// Why a secret was not to be had.
#[derive(Debug, Error)]
pub(crate) enum BrokerError {
    /// Initdata names no broker.
    #[error("no key broker: initdata has no [token_configs.kbs] in aa.toml")]
    None,
    /// Our TLS could not be set up.
    #[error("the broker's certificate in initdata cannot be used")]
    Tls(#[source] reqwest::Error),
    /// The broker cannot be reached.
    #[error("the key broker cannot be reached")]
    Http(#[source] reqwest::Error),
    /// An answer longer than any should be.
    #[error("the key broker's answer is longer than {0} bytes")]
    TooLong(usize),
    /// Not in time.
    #[error("the key broker did not answer in {0:?}")]
    Timeout(Duration),
    /// No evidence.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The broker said no, or spoke another language.
    #[error(transparent)]
    Protocol(#[from] ClientError),
}

impl BrokerError {
    /// The status the broker refused with, if it did.
    #[must_use]
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Protocol(ClientError::Refused { status, .. }) => Some(*status),
            _ => None,
        }
    }
}

/// The key broker.
pub(crate) struct Broker {
    config: BrokerConfig,
    init_data: String,
    attester: Attester,
    timeout: Duration,
    timeline: Arc<Timeline>,
    /// Made when first needed: it reads the resolver's configuration, which the host tells after boot.
    client: OnceCell<reqwest::Client>,
    session: Mutex<Option<Arc<Attested>>>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("url", &self.config.url).finish_non_exhaustive()
    }
}

/// Seconds since the epoch, by the guest's clock.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Broker {
    /// The broker that initdata names. Nothing is sent yet.
    #[must_use]
    pub(crate) fn new(config: BrokerConfig, init_data: String, attester: Attester, timeout: Duration, timeline: Arc<Timeline>) -> Self {
        Self { config, init_data, attester, timeout, timeline, client: OnceCell::new(), session: Mutex::new(None) }
    }

    /// Reads a secret, attesting first if that has not been done or no longer holds.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses.
    pub(crate) async fn resource(&self, path: &ResourcePath) -> Result<SecretBytes, BrokerError> {
        self.in_time(async {
            let session = self.session().await?;
            match self.fetch(&session, path).await {
                Err(BrokerError::Protocol(error)) if error.wants_new_session() => {
                    // Its memory of us is gone; the one retry attests anew.
                    self.forget(&session).await;
                    let session = self.session().await?;
                    self.fetch(&session, path).await
                }
                other => other,
            }
        })
        .await
    }

    /// The attestation token, attesting first if need be.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses.
    pub(crate) async fn token(&self) -> Result<String, BrokerError> {
        self.in_time(async { Ok(self.session().await?.token().to_owned()) }).await
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
        tokio::time::timeout(self.timeout, work).await.unwrap_or(Err(BrokerError::Timeout(self.timeout)))
    }

    async fn fetch(&self, session: &Attested, path: &ResourcePath) -> Result<SecretBytes, BrokerError> {
        let response = self.send(&session.get_resource(path)).await?;
        Ok(session.open_resource(&response)?)
    }

    async fn session(&self) -> Result<Arc<Attested>, BrokerError> {
        let mut slot = self.session.lock().await;
        if let Some(session) = slot.as_ref().filter(|session| session.is_live(now() + MARGIN_SECONDS)) {
            return Ok(Arc::clone(session));
        }
        let began = Instant::now();
        let session = Arc::new(self.handshake().await?);
        *slot = Some(Arc::clone(&session));
        self.timeline.since("attest", began);
        Ok(session)
    }

    async fn forget(&self, session: &Arc<Attested>) {
        let mut slot = self.session.lock().await;
        // Somebody else may have attested anew already.
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            *slot = None;
        }
    }

    async fn handshake(&self) -> Result<Attested, BrokerError> {
        let (challenge, request) = ClientSession::start(self.attester.kind());
        let evidence = challenge.handle(&self.send(&request).await?)?;
        let report = self.attester.evidence(*evidence.report_data().as_bytes()).await?;
        let init_data = InitData { format: "toml".to_owned(), body: self.init_data.clone() };
        let (token, request) = evidence.submit(report, Some(init_data))?;
        Ok(token.handle(&self.send(&request).await?, now())?)
    }

    async fn client(&self) -> Result<&reqwest::Client, BrokerError> {
        self.client
            .get_or_try_init(|| async {
                let builder = reqwest::Client::builder()
                    .redirect(reqwest::redirect::Policy::none())
                    .referer(false)
                    .no_proxy()
                    .connect_timeout(Duration::from_secs(10));
                let builder = match &self.config.cert {
                    Some(pem) => {
                        let roots = reqwest::Certificate::from_pem_bundle(pem.as_bytes())?;
                        builder.tls_certs_only(roots).https_only(true)
                    }
                    // Plain HTTP, which the pod's owner asked for by name; no root can be trusted by accident.
                    None => builder.tls_certs_only([]),
                };
                builder.build()
            })
            .await
            .map_err(BrokerError::Tls)
    }

    /// Sends a request until it is answered, a few times. Whatever the answer is, it is one.
    async fn send(&self, request: &HttpRequest) -> Result<HttpResponse, BrokerError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES {
            match self.try_send(request).await {
                // What has not reached the broker is sent again. So is what may be asked twice, when the connection broke before the
                // answer; an attestation may not, since a nonce is answered once.
                Err(BrokerError::Http(error)) if error.is_connect() || (error.is_request() && !request.path.ends_with("/attest")) => {
                    tracing::info!("the key broker cannot be reached yet");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                other => return other,
            }
        }
        self.try_send(request).await
    }

    async fn try_send(&self, request: &HttpRequest) -> Result<HttpResponse, BrokerError> {
        let url = format!("{}{}", self.config.url, request.path);
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
        };
        let mut outgoing = self.client().await?.request(method, url).body(request.body.clone());
        for (name, value) in &request.headers {
            outgoing = outgoing.header(*name, value);
        }
        let mut response = outgoing.send().await.map_err(http)?;
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .collect();
        let limit = kata_cc_kbs_protocol::http::MAX_BODY;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(http)? {
            if body.len() + chunk.len() > limit {
                return Err(BrokerError::TooLong(limit));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(HttpResponse { status, headers, body })
    }
}

/// Without the address: it may be long, and the host knows it anyway.
fn http(error: reqwest::Error) -> BrokerError {
    BrokerError::Http(error.without_url())
}
