//! The agent's side of the key broker: one attestation per pod, kept and shared.
//!
//! Whoever needs a secret first begins the handshake; who comes meanwhile waits for that one and shares its outcome, good or bad; and
//! later needs use its cookie, token and key until shortly before they expire. It runs in a task of its own, so that the end of the need
//! that began it does not end it for the others. The broker is reached by its name in initdata and known by the certificate in
//! initdata, and by no other root: a network that the host controls cannot pose as it.
//!
//! ```text
//!            need                 the broker says yes
//! Nothing ----------> Running ------------------------> Open --+
//!    ^                   |  the broker says no           | ^   |  needs, as long as the token is good
//!    |                   v                               | +---+
//!    +-------------------+-------------------------------+
//!                                 token near its end, or the broker forgot us
//! ```
//!
//! The protocol itself is `kata-cc-kbs-protocol`; here are the socket, the clock and the patience.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use kata_cc_evidence::TeeType;
use kata_cc_kbs_protocol::message::InitData;
use kata_cc_kbs_protocol::{Attested, ClientError, ClientSession, HttpRequest, HttpResponse, Method, ResourcePath, SecretBytes};
use kata_cc_policy::guest_config::BrokerConfig;
use thiserror::Error;
use tokio::sync::OnceCell;

use crate::attest::{AttestError, Attester};
use crate::timeline::Timeline;

/// How often a request is sent before its failure counts. The network of a pod comes up while the first one is on its way.
const TRIES: u32 = 4;

/// What the second try waits for; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long before its end a token is no longer relied on.
const MARGIN_SECONDS: u64 = 10;

/// How long a token is good at least that is given to a program, unless the broker's tokens live less than twice as long.
const GIVEN_SECONDS: u64 = 30;

/// How long a session that was made because the broker did not know the one before is kept, though the broker does not take it either.
/// There are brokers that say 401 for a plain no: a program that asks again and again for what it may not have would attest each time.
const DOUBT: Duration = Duration::from_secs(10);

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
    /// A task of ours died.
    #[error("internal error: the task that attests died")]
    Died,
    /// The handshake that several needs waited for has failed.
    #[error(transparent)]
    Handshake(Arc<Self>),
}

impl BrokerError {
    /// The status the broker refused with, if it did.
    #[must_use]
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Protocol(ClientError::Refused { status, .. }) => Some(*status),
            Self::Handshake(error) => error.status(),
            _ => None,
        }
    }

    /// Whether the broker might have answered later.
    #[must_use]
    pub(crate) fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout(_) => true,
            Self::Http(error) => error.is_timeout(),
            Self::Handshake(error) => error.is_timeout(),
            _ => false,
        }
    }
}

/// Who speaks for this guest.
enum Prover {
    Tee(Attester),
    /// Says in plain words what hardware would sign.
    #[cfg(test)]
    Stated,
}

impl Prover {
    fn kind(&self) -> TeeType {
        match self {
            Self::Tee(attester) => attester.kind(),
            #[cfg(test)]
            Self::Stated => TeeType::Snp,
        }
    }

    fn unregistered_log(&self) -> Result<Option<Vec<u8>>, AttestError> {
        match self {
            Self::Tee(attester) => attester.unregistered_log(),
            #[cfg(test)]
            Self::Stated => Ok(None),
        }
    }

    async fn evidence(&self, report_data: [u8; 64], nonce: &str) -> Result<serde_json::Value, AttestError> {
        match self {
            Self::Tee(attester) => attester.evidence(report_data, Some(nonce)).await,
            #[cfg(test)]
            Self::Stated => Ok(serde_json::json!({ "report_data": kata_cc_evidence::ReportData(report_data) })),
        }
    }
}

/// The broker knows us.
struct Session {
    attested: Attested,
    /// For how many seconds its token was good when it came.
    lifetime: u64,
    /// When it was made, if that was because the broker did not know the one before.
    anew: Option<Instant>,
    /// Something was read by it.
    served: AtomicBool,
}

type Outcome = Result<Arc<Session>, Arc<BrokerError>>;

/// How far it has come with the broker.
enum State {
    Nothing,
    /// A handshake is under way.
    Running(Shared<BoxFuture<'static, Outcome>>),
    Open(Arc<Session>),
}

/// How many seconds must be left of a token's lifetime for one that is to be good for `seconds`. Half of a short life is all that can be asked
/// for: a broker whose tokens are over in half a minute would otherwise be attested to at each need.
fn left(seconds: u64, lifetime: u64) -> u64 {
    seconds.min(lifetime / 2).max(MARGIN_SECONDS)
}

impl Session {
    /// Whether it can be relied on for that many seconds.
    fn is_good(&self, seconds: u64) -> bool {
        self.attested.is_live(now() + left(seconds, self.lifetime))
    }

    /// Whether another one in its place would help as little.
    fn is_in_doubt(&self) -> bool {
        !self.served.load(Ordering::Relaxed) && self.anew.is_some_and(|made| made.elapsed() < DOUBT)
    }
}

/// The key broker.
pub(crate) struct Broker {
    config: BrokerConfig,
    init_data: String,
    prover: Prover,
    timeout: Duration,
    timeline: Arc<Timeline>,
    /// Made when first needed: it reads the resolver's configuration, which the host tells after boot.
    client: OnceCell<reqwest::Client>,
    state: Mutex<State>,
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
        Self::proving_by(Prover::Tee(attester), config, init_data, timeout, timeline)
    }

    fn proving_by(prover: Prover, config: BrokerConfig, init_data: String, timeout: Duration, timeline: Arc<Timeline>) -> Self {
        Self { config, init_data, prover, timeout, timeline, client: OnceCell::new(), state: Mutex::new(State::Nothing) }
    }

    /// Reads a secret, attesting first if that has not been done or no longer holds.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses.
    pub(crate) async fn resource(self: &Arc<Self>, path: &ResourcePath) -> Result<SecretBytes, BrokerError> {
        self.in_time(async {
            let session = self.session(None, MARGIN_SECONDS).await?;
            match self.fetch(&session, path).await {
                // Its memory of us is gone; the one retry attests anew.
                Err(BrokerError::Protocol(error)) if error.wants_new_session() && !session.is_in_doubt() => {
                    let session = self.session(Some(&session), MARGIN_SECONDS).await?;
                    self.fetch(&session, path).await
                }
                other => other,
            }
        })
        .await
    }

    /// The attestation token, good for a while, attesting first if need be.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses.
    pub(crate) async fn token(self: &Arc<Self>) -> Result<String, BrokerError> {
        self.in_time(async { Ok(self.session(None, GIVEN_SECONDS).await?.attested.token().to_owned()) }).await
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
        tokio::time::timeout(self.timeout, work).await.unwrap_or(Err(BrokerError::Timeout(self.timeout)))
    }

    async fn fetch(&self, session: &Session, path: &ResourcePath) -> Result<SecretBytes, BrokerError> {
        let response = self.send(&session.attested.get_resource(path)).await?;
        let secret = session.attested.open_resource(&response)?;
        session.served.store(true, Ordering::Relaxed);
        Ok(secret)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session that is good for some seconds, and is not the one that the broker has `forgotten`.
    async fn session(self: &Arc<Self>, forgotten: Option<&Arc<Session>>, seconds: u64) -> Result<Arc<Session>, BrokerError> {
        let running = {
            let mut state = self.state();
            match &*state {
                // Somebody else may have attested anew already.
                State::Open(session) if session.is_good(seconds) && forgotten.is_none_or(|old| !Arc::ptr_eq(old, session)) => {
                    return Ok(Arc::clone(session));
                }
                // One whose task died has an outcome and will not be replaced by it.
                State::Running(running) if running.peek().is_none() => running.clone(),
                _ => {
                    let running = self.begin(forgotten.map(|_| Instant::now()));
                    *state = State::Running(running.clone());
                    running
                }
            }
        };
        running.await.map_err(BrokerError::Handshake)
    }

    /// Begins a handshake.
    fn begin(self: &Arc<Self>, anew: Option<Instant>) -> Shared<BoxFuture<'static, Outcome>> {
        let broker = Arc::clone(self);
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let outcome = match broker.in_time(broker.handshake()).await {
                Ok(attested) => {
                    let lifetime = attested.expires_at().saturating_sub(now());
                    Ok(Arc::new(Session { attested, lifetime, anew, served: AtomicBool::new(false) }))
                }
                Err(error) => Err(Arc::new(error)),
            };
            *broker.state() = match &outcome {
                Ok(session) => {
                    broker.timeline.since("attest", began);
                    State::Open(Arc::clone(session))
                }
                // For those that wait. The next need tries again.
                Err(_) => State::Nothing,
            };
            outcome
        });
        task.map(|ended| ended.unwrap_or_else(|_| Err(Arc::new(BrokerError::Died)))).boxed().shared()
    }

    async fn handshake(&self) -> Result<Attested, BrokerError> {
        let (challenge, request) = ClientSession::start(self.prover.kind());
        let evidence = challenge.handle(&self.send(&request).await?)?;
        let evidence = match self.prover.unregistered_log()? {
            Some(log) if evidence.takes_runtime_log() => evidence.with_runtime_log(&log)?,
            _ => evidence,
        };
        let report = self.prover.evidence(*evidence.report_data().as_bytes(), evidence.nonce()).await?;
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

#[cfg(test)]
#[path = "kbs_tests.rs"]
pub(crate) mod tests;
