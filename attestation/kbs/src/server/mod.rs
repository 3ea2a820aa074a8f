//! The HTTP interface: one file a verb. Handlers parse, ask the modules that decide, and answer; they decide nothing themselves.

pub mod attest;
pub mod audit;
pub mod auth;
pub mod body;
pub mod error;
pub mod health;
pub mod policy;
pub mod reference;
pub mod resource;

use crate::admin::Admins;
use crate::appraise::Appraiser;
use crate::audit::{Action, Decision};
use crate::metrics::Metrics;
use crate::session::Sessions;
use crate::store::Store;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::{get, post};
use error::ApiError;
use kata_cc_kbs_protocol::{SessionId, TokenSigner, TokenVerifier};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Evaluations of evidence and policies that run side by side. They are CPU work; more would only slow each other down.
const MAX_EVALUATIONS: usize = 8;
/// Evidence in memory at a time; more waits, its body already complete.
const MAX_ATTESTS: usize = 16;

/// Where "now" comes from, in seconds since the epoch.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Everything the handlers need.
pub struct Broker {
    /// What is kept.
    pub store: Store,
    /// Exchanges under way.
    pub sessions: Sessions,
    /// Who may administer.
    pub admins: Admins,
    /// Counters.
    pub metrics: Metrics,
    /// Evidence to claims to trust vector.
    pub appraiser: Appraiser,
    /// Signs tokens.
    pub signer: TokenSigner,
    /// Knows the tokens it signed.
    pub verifier: TokenVerifier,
    /// Lifetime of a session from `/auth` on.
    pub session_lifetime: Duration,
    /// Lifetime of a token.
    pub token_lifetime: Duration,
    /// `iss` of tokens.
    pub issuer: String,
    /// Whether connections are TLS, so that cookies say so.
    pub secure: bool,
    /// Time.
    pub clock: Clock,
    evaluations: Arc<Semaphore>,
    /// Turns at looking at evidence: parsed, it is many times its size on the wire, and anybody may send it.
    pub(crate) attests: Semaphore,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// What a [`Broker`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// See [`Broker::store`].
    pub store: Store,
    /// See [`Broker::admins`].
    pub admins: Admins,
    /// See [`Broker::appraiser`].
    pub appraiser: Appraiser,
    /// See [`Broker::signer`].
    pub signer: TokenSigner,
    /// See [`Broker::session_lifetime`].
    pub session_lifetime: Duration,
    /// See [`Broker::token_lifetime`].
    pub token_lifetime: Duration,
    /// See [`Broker::issuer`].
    pub issuer: String,
    /// See [`Broker::secure`].
    pub secure: bool,
}

impl Broker {
    /// A broker that trusts the tokens of its own signer and no others.
    pub fn new(parts: Parts, clock: Clock) -> Result<Self, kata_cc_kbs_protocol::TokenError> {
        let verifier = TokenVerifier::new([&parts.signer.public_jwk()])?;
        Ok(Self {
            store: parts.store,
            sessions: Sessions::default(),
            admins: parts.admins,
            metrics: Metrics::default(),
            appraiser: parts.appraiser,
            signer: parts.signer,
            verifier,
            session_lifetime: parts.session_lifetime,
            token_lifetime: parts.token_lifetime,
            issuer: parts.issuer,
            secure: parts.secure,
            clock,
            evaluations: Arc::new(Semaphore::new(MAX_EVALUATIONS)),
            attests: Semaphore::new(MAX_ATTESTS),
        })
    }

    fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Logs and stores a decision. A decision that cannot be stored is not acted upon.
    async fn record(&self, decision: Decision) -> Result<(), ApiError> {
        decision.log();
        Ok(self.store.run(move |db| db.record(&decision)).await?)
    }

    /// Lets administrators pass and records everybody else.
    async fn require_admin(&self, headers: &HeaderMap, subject: &str) -> Result<(), ApiError> {
        let now = self.now();
        let Err(refused) = self.admins.check(text(headers, header::AUTHORIZATION), now) else { return Ok(()) };
        let mut decision = Decision::new(now, Action::AdminRefused, false, "refused", "admin token");
        decision.subject = Some(subject.chars().take(300).collect());
        decision.detail = refused.to_string();
        // Anybody can cause this one: into the log, not into the table of which the old rows go.
        decision.log();
        let status = match refused {
            crate::admin::NotAdmin::Role => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        Err(ApiError::new(status, "AdminAuth", refused.to_string()))
    }

    /// Runs CPU-heavy work off the runtime, a bounded number at a time.
    async fn evaluate<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.evaluations).acquire_owned().await.map_err(|e| ApiError::internal("evaluation", &e))?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await
        .map_err(|e| ApiError::internal("evaluation", &e))
    }
}

/// The routes.
pub fn router(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/kbs/v0/auth", post(auth::auth).layer(DefaultBodyLimit::max(body::MAX_AUTH_BODY)))
        .route("/kbs/v0/attest", post(attest::attest))
        .route("/kbs/v0/resource/{repository}/{kind}/{tag}", get(resource::read).post(resource::write).delete(resource::delete))
        .route("/kbs/v0/resource-policy", get(policy::get_resource).post(policy::set_resource))
        .route("/kbs/v0/attestation-policy", post(policy::set_attestation))
        .route("/kbs/v0/attestation-policy/{id}", get(policy::get_attestation))
        .route("/kbs/v0/reference-value", post(reference::register))
        .route("/kbs/v0/reference-value/{id}", get(reference::query))
        .route("/kbs/v0/audit", get(audit::list))
        .route("/.well-known/jwks.json", get(health::jwks))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "InvalidRequestPath", "no such path"))
        .method_not_allowed_fallback(async || ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "not with this method"))
        .layer(DefaultBodyLimit::max(body::MAX_BODY))
        .with_state(broker)
}

/// A header as text; absent where it is given twice, since two proxies might each believe another one.
fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// The session a request names.
fn session_id(headers: &HeaderMap) -> Option<SessionId> {
    SessionId::from_cookie_header(text(headers, header::COOKIE)?)
}
