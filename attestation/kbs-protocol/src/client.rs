//! The guest's side of the exchange.
//!
//! ```text
//! ClientSession::start -> AwaitChallenge --handle--> AwaitEvidence --submit--> AwaitToken --handle--> Attested
//! ```
//!
//! The connection must be authenticated by the caller (the broker's certificate comes from measured initdata). This side binds a
//! fresh key into the evidence, so that whatever the broker answers can be read by this process alone.

use std::fmt;

use kata_cc_evidence::{ReportData, TeeType};
use serde_json::{Value, json};

use crate::BASE_PATH;
use crate::SESSION_COOKIE;
use crate::additional;
use crate::hash::{HashAlgorithm, UnknownHash};
use crate::http::{HttpRequest, HttpResponse, MAX_BODY, Method};
use crate::jwe::{Jwe, JweError};
use crate::jwk::TeeKey;
use crate::message::{
    self, Attestation, Challenge, ErrorBody, InitData, MessageError, PROTOCOL_VERSION, PrimaryRuntimeData, Request, RuntimeData,
    TeeEvidence, TokenResponse,
};
use crate::random::RandomError;
use crate::resource::ResourcePath;
use crate::secret::SecretBytes;
use crate::token::{Times, TokenError, unverified_times};

/// Longest nonce taken: SE brokers put a request of a few KiB there.
const MAX_NONCE: usize = 64 * 1024;

/// How far the guest's clock may be from the broker's, in seconds. As long as the tokens of brokers are good by default, ours and CoCo's: within
/// it a wrong clock cannot make anything live longer than one token. A guest's answer may take a minute on its way, which this leaves room for.
pub const MAX_CLOCK_SKEW: u64 = 300;

/// Why the exchange did not go on.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The broker refused.
    #[error("broker answered {step} with status {status}{}{detail}", if detail.is_empty() { "" } else { ": " })]
    Refused {
        /// What was asked.
        step: &'static str,
        /// HTTP status.
        status: u16,
        /// Error variant, empty where the answer had no error body.
        variant: String,
        /// The broker's explanation, cut to 512 characters.
        detail: String,
    },
    /// The answer is not of the protocol.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The challenge came without a session cookie, or with one that cannot be sent back.
    #[error("broker sent no usable {SESSION_COOKIE} cookie with its challenge")]
    NoSession,
    /// The nonce is empty or too long.
    #[error("broker's nonce has {found} characters, expected 1 to {MAX_NONCE}")]
    Nonce {
        /// Its length.
        found: usize,
    },
    /// The broker chose a hash algorithm we do not have.
    #[error(transparent)]
    Hash(#[from] UnknownHash),
    /// The token is malformed.
    #[error("broker's answer to attest")]
    Token(#[from] TokenError),
    /// The guest's clock is not the broker's (AC-72).
    #[error(
        "the guest's clock says {now} and the broker issued its token at {issued_at} (seconds since the epoch), more than {MAX_CLOCK_SKEW} s \
         apart: set the host's clock, which the guest's is taken from, or the broker's"
    )]
    ClockSkew {
        /// `iat`, the broker's time.
        issued_at: u64,
        /// Now, by the guest's clock.
        now: u64,
    },
    /// The token was never good.
    #[error("broker's token expires at {expires_at}, not after it was issued at {issued_at}: check the broker's token lifetime")]
    TokenNeverGood {
        /// `exp`.
        expires_at: u64,
        /// `iat`.
        issued_at: u64,
    },
    /// The token is over before it was used.
    #[error("broker's token expires at {expires_at}, it is {now}: check the clocks")]
    TokenExpired {
        /// `exp`.
        expires_at: u64,
        /// Now.
        now: u64,
    },
    /// The resource cannot be opened.
    #[error("broker's answer to get_resource")]
    Resource(#[from] JweError),
    /// Our own message does not serialise.
    #[error("message could not be serialised")]
    Serialise(#[source] serde_json::Error),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl ClientError {
    /// True when a new attestation may help: the broker does not know the session (any more).
    #[must_use]
    pub fn wants_new_session(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. })
    }
}

/// Where the exchange starts.
pub struct ClientSession;

impl ClientSession {
    /// Asks for a challenge.
    #[must_use]
    pub fn start(tee: TeeType) -> (AwaitChallenge, HttpRequest) {
        let offered: Vec<&str> = HashAlgorithm::ALL.into_iter().map(HashAlgorithm::as_str).collect();
        let request = Request {
            version: PROTOCOL_VERSION.into(),
            tee,
            extra_params: json!({ "supported-hash-algorithms": offered, additional::RUNTIME_LOG: true }),
        };
        let body = json!(request).to_string().into_bytes();
        (AwaitChallenge { _private: () }, post("/auth", None, body))
    }
}

/// Waits for the broker's challenge.
pub struct AwaitChallenge {
    _private: (),
}

impl AwaitChallenge {
    /// Takes the challenge and makes the key the evidence will be bound to.
    ///
    /// # Errors
    /// When the broker refused, or its answer is malformed.
    pub fn handle(self, response: &HttpResponse) -> Result<AwaitEvidence, ClientError> {
        let challenge: Challenge = message::parse("challenge", success("auth", response)?)?;
        let cookie = response.header("set-cookie").find_map(session_cookie).ok_or(ClientError::NoSession)?;
        if challenge.nonce.is_empty() || challenge.nonce.len() > MAX_NONCE {
            return Err(ClientError::Nonce { found: challenge.nonce.len() });
        }
        let algorithm = match challenge.extra_params.get("selected-hash-algorithm") {
            None => HashAlgorithm::default(),
            Some(Value::String(name)) => name.parse()?,
            Some(other) => return Err(UnknownHash { found: other.to_string().chars().take(32).collect() }.into()),
        };
        let tee_key = TeeKey::generate()?;
        let runtime = PrimaryRuntimeData { additional_evidence: String::new(), nonce: challenge.nonce, tee_pubkey: tee_key.to_jwk() };
        let report_data = algorithm.bind(&runtime).map_err(ClientError::Serialise)?;
        let takes_runtime_log = challenge.extra_params.get(additional::RUNTIME_LOG) == Some(&Value::Bool(true));
        Ok(AwaitEvidence { cookie, runtime, tee_key, algorithm, report_data, takes_runtime_log })
    }
}

/// Waits for this guest's evidence over [`AwaitEvidence::report_data`].
pub struct AwaitEvidence {
    cookie: String,
    runtime: PrimaryRuntimeData,
    tee_key: TeeKey,
    algorithm: HashAlgorithm,
    report_data: ReportData,
    takes_runtime_log: bool,
}

impl AwaitEvidence {
    /// What the hardware has to put into the report.
    #[must_use]
    pub fn report_data(&self) -> &ReportData {
        &self.report_data
    }

    /// Whether the broker takes a runtime event log beside the evidence.
    #[must_use]
    pub fn takes_runtime_log(&self) -> bool {
        self.takes_runtime_log
    }

    /// Has the evidence bind the guest's runtime event log too, which changes [`AwaitEvidence::report_data`]. For TEEs without a register that
    /// such a log is extended into, and brokers that take one.
    ///
    /// # Errors
    /// When it does not serialise.
    pub fn with_runtime_log(mut self, log: &[u8]) -> Result<Self, ClientError> {
        self.runtime.additional_evidence = additional::of_runtime_log(log).map_err(ClientError::Serialise)?;
        self.report_data = self.algorithm.bind(&self.runtime).map_err(ClientError::Serialise)?;
        Ok(self)
    }

    /// The challenge's nonce as it came. For Secure Execution it is the broker's request, in JSON, which the evidence must answer.
    #[must_use]
    pub fn nonce(&self) -> &str {
        &self.runtime.nonce
    }

    /// Sends the evidence, and initdata in plain text if the pod has any.
    ///
    /// # Errors
    /// When the message does not serialise.
    pub fn submit(self, evidence: Value, init_data: Option<InitData>) -> Result<(AwaitToken, HttpRequest), ClientError> {
        let PrimaryRuntimeData { additional_evidence, nonce, tee_pubkey } = self.runtime;
        let attestation = Attestation {
            init_data,
            runtime_data: RuntimeData { nonce, tee_pubkey },
            tee_evidence: TeeEvidence { primary_evidence: evidence, additional_evidence },
        };
        let body = serde_json::to_vec(&attestation).map_err(ClientError::Serialise)?;
        let request = post("/attest", Some(&self.cookie), body);
        Ok((AwaitToken { cookie: self.cookie, tee_key: self.tee_key }, request))
    }
}

/// Waits for the broker's verdict.
pub struct AwaitToken {
    cookie: String,
    tee_key: TeeKey,
}

impl AwaitToken {
    /// Takes the token, and holds the guest's clock against it. The host sets that clock as it likes; the time a token was issued at is the
    /// broker's word, over the broker's own connection and about a key made for this exchange, so it is neither the host's nor an old one.
    /// An issuer of EAR always states it, and one that does not is refused: nothing else tells the guest the time.
    ///
    /// # Errors
    /// When the broker refused the evidence, its answer is malformed or without `iat`, the clock is off by more than [`MAX_CLOCK_SKEW`], or
    /// the token is expired.
    pub fn handle(self, response: &HttpResponse, now: u64) -> Result<Attested, ClientError> {
        let TokenResponse { token } = message::parse("token", success("attest", response)?)?;
        let Times { issued_at, expires_at } = unverified_times(&token)?;
        if expires_at <= issued_at {
            return Err(ClientError::TokenNeverGood { expires_at, issued_at });
        }
        if now.abs_diff(issued_at) > MAX_CLOCK_SKEW {
            return Err(ClientError::ClockSkew { issued_at, now });
        }
        if now >= expires_at {
            return Err(ClientError::TokenExpired { expires_at, now });
        }
        Ok(Attested { cookie: self.cookie, tee_key: self.tee_key, token, expires_at })
    }
}

/// The broker has accepted this guest. Serves every secret until it expires.
pub struct Attested {
    cookie: String,
    tee_key: TeeKey,
    token: String,
    expires_at: u64,
}

impl Attested {
    /// The attestation token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The key the token is about.
    #[must_use]
    pub fn tee_key(&self) -> &TeeKey {
        &self.tee_key
    }

    /// When the token expires, in seconds since the epoch.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// True while the token is good. Attest again when it is not.
    #[must_use]
    pub fn is_live(&self, now: u64) -> bool {
        now < self.expires_at
    }

    /// Asks for a secret. Cookie and token are both sent: the token serves where the session's broker is another replica.
    #[must_use]
    pub fn get_resource(&self, path: &ResourcePath) -> HttpRequest {
        HttpRequest {
            method: Method::Get,
            path: format!("{BASE_PATH}/resource/{path}"),
            headers: vec![
                ("accept", "application/json".into()),
                ("cookie", format!("{SESSION_COOKIE}={}", self.cookie)),
                ("authorization", format!("Bearer {}", self.token)),
            ],
            body: Vec::new(),
        }
    }

    /// Opens the answer.
    ///
    /// # Errors
    /// When the broker refused, or the answer is malformed or not for this guest's key.
    pub fn open_resource(&self, response: &HttpResponse) -> Result<SecretBytes, ClientError> {
        let jwe: Jwe = message::parse("resource", success("get_resource", response)?)?;
        Ok(jwe.open(&self.tee_key)?)
    }
}

impl fmt::Debug for Attested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attested(until {}, rest redacted)", self.expires_at)
    }
}

fn post(path: &str, cookie: Option<&str>, body: Vec<u8>) -> HttpRequest {
    let mut headers = vec![("accept", "application/json".to_owned()), ("content-type", "application/json".to_owned())];
    headers.extend(cookie.map(|value| ("cookie", format!("{SESSION_COOKIE}={value}"))));
    HttpRequest { method: Method::Post, path: format!("{BASE_PATH}{path}"), headers, body }
}

/// The body of a success, or the refusal it is.
fn success<'a>(step: &'static str, response: &'a HttpResponse) -> Result<&'a [u8], ClientError> {
    if response.status == 200 {
        return Ok(&response.body);
    }
    let body = if response.body.len() > MAX_BODY { &[][..] } else { &response.body };
    let (variant, detail) = serde_json::from_slice::<ErrorBody>(body)
        .map(|error| (error.variant().chars().take(64).collect(), error.detail.chars().take(512).collect()))
        .unwrap_or_default();
    Err(ClientError::Refused { step, status: response.status, variant, detail })
}

/// Value of the session cookie in a `Set-Cookie` header, when it is one that may be sent back as it is.
fn session_cookie(header: &str) -> Option<String> {
    let (pair, _attributes) = header.split_once(';').unwrap_or((header, ""));
    let value = pair.trim().strip_prefix(SESSION_COOKIE)?.strip_prefix('=')?;
    let sane =
        (1..=256).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    sane.then(|| value.to_owned())
}
