//! The HTTP interface: one file a verb. Handlers parse, ask the modules that decide, and answer; they decide nothing themselves.

pub mod attest;
pub mod audit;
pub mod auth;
pub mod body;
pub mod error;
pub mod health;
pub mod manifest;
pub mod policy;
pub mod reference;
pub mod resource;
pub mod routes;
pub mod whoami;

pub use routes::router;

use crate::admin::role::Permission;
use crate::admin::{Administrator, Admins, NotAdmin};
use crate::appraise::Appraiser;
use crate::audit::{Action, Decision};
use crate::limit::{Rate, RateLimit};
use crate::metrics::Metrics;
use crate::reference::{References, Remembered};
use crate::rego::Policies;
use crate::resources::Resources;
use crate::store::Store;
use crate::tokens::Tokens;
use axum::http::{HeaderMap, StatusCode, header};
use body::Held;
use error::ApiError;
use kata_cc_collateral::Collector;
use kata_cc_kbs_protocol::{SessionId, TokenSigner};
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
    /// Where the resources are.
    pub resources: Resources,
    /// Who may administer.
    pub admins: Admins,
    /// Counters.
    pub metrics: Metrics,
    /// Evidence to claims to trust vector.
    pub appraiser: Appraiser,
    /// What evidence does not bring.
    pub collector: Collector,
    /// Tokens of this broker and those that share its store.
    pub tokens: Tokens,
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
    /// Whose reference values count.
    pub references: References,
    /// Those that count now.
    pub(crate) in_force: Remembered,
    /// Policies over resources that were read.
    pub(crate) resource_policies: Arc<Policies>,
    pub(crate) held: Held,
    auth_rate: RateLimit,
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
    /// See [`Broker::collector`].
    pub collector: Collector,
    /// Signs tokens.
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
        Ok(Self {
            resources: Resources::Store(parts.store.clone()),
            store: parts.store,
            admins: parts.admins,
            metrics: Metrics::default(),
            appraiser: parts.appraiser,
            collector: parts.collector,
            tokens: Tokens::of(parts.signer)?,
            session_lifetime: parts.session_lifetime,
            token_lifetime: parts.token_lifetime,
            issuer: parts.issuer,
            secure: parts.secure,
            clock,
            references: References::default(),
            in_force: Remembered::default(),
            resource_policies: Arc::default(),
            held: Held::default(),
            auth_rate: RateLimit::new(Rate::default()),
            evaluations: Arc::new(Semaphore::new(MAX_EVALUATIONS)),
            attests: Semaphore::new(MAX_ATTESTS),
        })
    }

    /// With another rate of sessions for each address than the default.
    pub fn with_auth_rate(mut self, rate: Rate) -> Self {
        self.auth_rate = RateLimit::new(rate);
        self
    }

    /// With these reference values counting; without it, none do.
    pub fn with_references(mut self, references: References) -> Self {
        self.references = references;
        self
    }

    /// With resources in this place; without it, they are in the store.
    pub fn with_resources(mut self, resources: Resources) -> Self {
        self.resources = resources;
        self
    }

    fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Logs and stores a decision. A decision that cannot be stored is not acted upon.
    async fn record(&self, decision: Decision) -> Result<(), ApiError> {
        decision.log();
        Ok(self.store.record(decision).await?)
    }

    /// Lets administrators pass whose role allows this at this path, and records everybody else.
    async fn require_admin(&self, headers: &HeaderMap, permission: Permission, path: &str) -> Result<Administrator, ApiError> {
        let now = self.now();
        match self.admins.authorize(text(headers, header::AUTHORIZATION), permission, path, now) {
            Ok(administrator) => Ok(administrator),
            Err(refused) => Err(self.refuse_admin(refused, permission.as_str(), path, now).await?),
        }
    }

    /// Lets everybody pass who is known, whatever their role may do.
    async fn require_known(&self, headers: &HeaderMap, path: &str) -> Result<Administrator, ApiError> {
        let now = self.now();
        match self.admins.authenticate(text(headers, header::AUTHORIZATION), now) {
            Ok(administrator) => Ok(administrator),
            Err(refused) => Err(self.refuse_admin(refused, "to be known", path, now).await?),
        }
    }

    /// Records a refusal, and says how it is answered.
    async fn refuse_admin(&self, refused: NotAdmin, rule: &str, path: &str, now: u64) -> Result<ApiError, ApiError> {
        let mut decision = Decision::new(now, Action::AdminRefused, false, "refused", rule);
        decision.subject = Some(path.chars().take(300).collect());
        decision.detail = refused.to_string();
        // Anybody can cause this one: the table counts repetitions instead of keeping them.
        self.record(decision).await?;
        let status = if refused.is_authenticated() { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
        Ok(ApiError::new(status, "AdminAuth", refused.to_string()))
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
