//! The broker's side of the exchange.
//!
//! ```text
//! AwaitAttest --attest(evidence)--> ToVerify --accept(token)--> AttestedSession
//! ```
//!
//! Whatever goes wrong on the way, the session is gone with it: a nonce is answered at most once. (Trustee returns the old token
//! when an attested session attests again; here the client gets a refusal and starts anew.)

use std::fmt;
use std::str::FromStr;

use kata_cc_evidence::{Nonce, ReportData, TeeType};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::SESSION_COOKIE;
use crate::additional::{self, AdditionalEvidenceError};
use crate::hash::HashAlgorithm;
use crate::jwe::{Jwe, JweError};
use crate::message::{Attestation, Challenge, ErrorBody, InitData, MessageError, PROTOCOL_VERSION, PrimaryRuntimeData, Request};
use crate::random::{self, RandomError};
use crate::recipient::{JwkError, TeePublicKey};

/// Why the broker refuses a message.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Not a message of the protocol.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Another protocol version.
    #[error("protocol version {found:?} is not supported: this broker speaks {PROTOCOL_VERSION}")]
    Version {
        /// What the client speaks, cut to 32 characters.
        found: String,
    },
    /// None of the client's hash algorithms is ours.
    #[error("no common hash algorithm: this broker has sha256, sha384 and sha512")]
    NoCommonHash,
    /// The session's time is over.
    #[error("session expired: start again with /auth")]
    Expired,
    /// The nonce is not the session's.
    #[error("the nonce is not the one of this session's challenge")]
    Nonce,
    /// The guest's key is not usable.
    #[error(transparent)]
    TeeKey(#[from] JwkError),
    /// Device evidence, which nothing here verifies.
    #[error(transparent)]
    AdditionalEvidence(#[from] AdditionalEvidenceError),
    /// Initdata of another format.
    #[error("init-data format {found:?} is not supported: expected \"toml\"")]
    InitDataFormat {
        /// What the client sent, cut to 32 characters.
        found: String,
    },
    /// Our own failure.
    #[error("runtime data could not be put into canonical form")]
    Canonical(#[source] serde_json::Error),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl ServerError {
    /// HTTP status that says whose fault it is.
    #[must_use]
    pub const fn http_status(&self) -> u16 {
        match self {
            Self::Message(MessageError::TooLarge { .. }) => 413,
            Self::Message(MessageError::Json { .. })
            | Self::Version { .. }
            | Self::NoCommonHash
            | Self::TeeKey(_)
            | Self::AdditionalEvidence(_)
            | Self::InitDataFormat { .. } => 400,
            Self::Expired | Self::Nonce => 401,
            Self::Canonical(_) | Self::Random(_) => 500,
        }
    }

    /// Body of the answer.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        let variant = match self {
            Self::Message(_) => "InvalidRequest",
            Self::Version { .. } => "ProtocolVersion",
            Self::NoCommonHash => "HashAlgorithm",
            Self::Expired => "SessionExpired",
            Self::Nonce => "NonceMismatch",
            Self::TeeKey(_) => "TeeKey",
            Self::AdditionalEvidence(_) => "AdditionalEvidence",
            Self::InitDataFormat { .. } => "InitData",
            Self::Canonical(_) | Self::Random(_) => "Internal",
        };
        let detail = match self {
            // The parser's words name the field at fault; without them a client author is left to guess.
            Self::Message(MessageError::Json { message, source }) => format!("{message}: not the expected JSON: {source}"),
            other => other.to_string(),
        };
        ErrorBody::new(variant, detail)
    }
}

/// Random name of a session: 128 bits, 32 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);

/// Text that is no session id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a session id: expected 32 lower-case hexadecimal digits")]
pub struct SessionIdError;

impl SessionId {
    fn generate() -> Result<Self, RandomError> {
        Ok(Self(hex::encode(random::array::<16>()?)))
    }

    /// The digits. They are a credential: whoever has them is the session.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Finds the session in the value of a `Cookie` header.
    #[must_use]
    pub fn from_cookie_header(header: &str) -> Option<Self> {
        let mut found = header.split(';').filter_map(|pair| pair.trim().strip_prefix(SESSION_COOKIE)?.strip_prefix('='));
        // Two cookies of the name: somebody planted one. Neither is taken.
        match (found.next(), found.next()) {
            (Some(value), None) => value.parse().ok(),
            _ => None,
        }
    }
}

impl FromStr for SessionId {
    type Err = SessionIdError;

    fn from_str(text: &str) -> Result<Self, SessionIdError> {
        let sane = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        sane.then(|| Self(text.into())).ok_or(SessionIdError)
    }
}

impl TryFrom<String> for SessionId {
    type Error = SessionIdError;

    fn try_from(text: String) -> Result<Self, SessionIdError> {
        text.parse()
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.0
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId(redacted)")
    }
}

fn nonce_digest(nonce: &str) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, nonce.as_bytes()).as_ref());
    digest
}

/// A session that has a challenge out and waits for evidence. Serialisable, so that several brokers may share a store.
#[derive(Debug, Serialize, Deserialize)]
pub struct AwaitAttest {
    id: SessionId,
    tee: TeeType,
    /// SHA-256: a nonce that asks for something is kilobytes long, and anybody may open sessions.
    nonce: [u8; 32],
    algorithm: String,
    expires_at: u64,
}

impl AwaitAttest {
    /// Opens a session and makes its challenge.
    ///
    /// # Errors
    /// When the version is another, no hash algorithm is common, or there is no randomness.
    pub fn open(request: &Request, now: u64, lifetime: u64) -> Result<(Self, Challenge), ServerError> {
        let nonce = Nonce(random::array()?).to_string();
        Self::with_nonce(request, nonce, HashAlgorithm::default(), now, lifetime)
    }

    /// Opens a session whose challenge asks for something, as Secure Execution needs it: `asked` is the nonce, so the evidence is bound to it, and
    /// must never be the same twice. The hash is SHA-512, as CoCo has it for such challenges.
    ///
    /// # Errors
    /// When the version is another, or the client cannot do SHA-512.
    pub fn open_asking(request: &Request, asked: &Value, now: u64, lifetime: u64) -> Result<(Self, Challenge), ServerError> {
        Self::with_nonce(request, asked.to_string(), HashAlgorithm::Sha512, now, lifetime)
    }

    fn with_nonce(
        request: &Request,
        nonce: String,
        algorithm: HashAlgorithm,
        now: u64,
        lifetime: u64,
    ) -> Result<(Self, Challenge), ServerError> {
        if request.version != PROTOCOL_VERSION {
            return Err(ServerError::Version { found: request.version.chars().take(32).collect() });
        }
        // A client that names what it can do must be able to do what will be selected.
        if let Some(offered) = request.extra_params.get("supported-hash-algorithms").and_then(Value::as_array)
            && !offered.iter().any(|name| name.as_str().and_then(|name| name.parse().ok()) == Some(algorithm))
        {
            return Err(ServerError::NoCommonHash);
        }
        let session = Self {
            id: SessionId::generate()?,
            tee: request.tee,
            nonce: nonce_digest(&nonce),
            algorithm: algorithm.as_str().into(),
            expires_at: now.saturating_add(lifetime),
        };
        // The protocol's default hash is not named, and the log is offered to those who asked: others expect what CoCo's broker says,
        // an empty string.
        let mut extra = serde_json::Map::new();
        if request.extra_params.get(additional::RUNTIME_LOG) == Some(&Value::Bool(true)) {
            extra.insert(additional::RUNTIME_LOG.into(), true.into());
        }
        if algorithm != HashAlgorithm::default() {
            extra.insert("selected-hash-algorithm".into(), algorithm.as_str().into());
        }
        let extra_params = if extra.is_empty() { Value::String(String::new()) } else { Value::Object(extra) };
        Ok((session, Challenge { nonce, extra_params }))
    }

    /// The session's id.
    #[must_use]
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// Kind of TEE the client said it is.
    #[must_use]
    pub fn tee(&self) -> TeeType {
        self.tee
    }

    /// When it ends.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// Value of the `Set-Cookie` header. `secure` where the connection is TLS.
    #[must_use]
    pub fn set_cookie(&self, secure: bool) -> String {
        let secure = if secure { "; Secure" } else { "" };
        format!("{SESSION_COOKIE}={}; Path=/kbs/v0; HttpOnly; SameSite=Strict{secure}", self.id.as_str())
    }

    /// Takes the evidence and says what it has to be bound to. Nothing is verified yet.
    ///
    /// # Errors
    /// When the session is over, the nonce is another's, the key is unusable or evidence beside the TEE's own is not a runtime event log.
    pub fn attest(self, attestation: Attestation, now: u64) -> Result<ToVerify, ServerError> {
        if now >= self.expires_at {
            return Err(ServerError::Expired);
        }
        let Attestation { init_data, runtime_data, tee_evidence } = attestation;
        if nonce_digest(&runtime_data.nonce) != self.nonce {
            return Err(ServerError::Nonce);
        }
        let runtime_log = additional::runtime_log(&tee_evidence.additional_evidence)?;
        if let Some(init_data) = &init_data
            && init_data.format != "toml"
        {
            return Err(ServerError::InitDataFormat { found: init_data.format.chars().take(32).collect() });
        }
        let tee_key = TeePublicKey::try_from(&runtime_data.tee_pubkey)?;
        let algorithm: HashAlgorithm = self.algorithm.parse().map_err(|_| ServerError::NoCommonHash)?;
        let bound = PrimaryRuntimeData {
            additional_evidence: tee_evidence.additional_evidence,
            nonce: runtime_data.nonce,
            tee_pubkey: runtime_data.tee_pubkey,
        };
        let expected_report_data = algorithm.bind(&bound).map_err(ServerError::Canonical)?;
        Ok(ToVerify {
            id: self.id,
            tee: self.tee,
            tee_key,
            evidence: tee_evidence.primary_evidence,
            expected_report_data,
            runtime_data: bound,
            runtime_log,
            init_data,
        })
    }
}

/// Evidence received for a live session: bound to nothing yet, to be verified by the verifier and appraised by policy.
#[derive(Debug)]
pub struct ToVerify {
    id: SessionId,
    tee: TeeType,
    tee_key: TeePublicKey,
    evidence: Value,
    expected_report_data: ReportData,
    runtime_data: PrimaryRuntimeData,
    runtime_log: Option<Vec<u8>>,
    init_data: Option<InitData>,
}

impl ToVerify {
    /// Kind of TEE.
    #[must_use]
    pub fn tee(&self) -> TeeType {
        self.tee
    }

    /// The evidence in its own JSON form.
    #[must_use]
    pub fn evidence(&self) -> &Value {
        &self.evidence
    }

    /// What the evidence's REPORT_DATA must be: it binds nonce and key.
    #[must_use]
    pub fn expected_report_data(&self) -> &ReportData {
        &self.expected_report_data
    }

    /// `runtime_data_claims` of the token.
    #[must_use]
    pub fn runtime_data(&self) -> &PrimaryRuntimeData {
        &self.runtime_data
    }

    /// The guest's runtime event log, where it came beside the evidence. It is the guest's only once [`ToVerify::expected_report_data`] was found
    /// in verified evidence.
    #[must_use]
    pub fn runtime_log(&self) -> Option<&[u8]> {
        self.runtime_log.as_deref()
    }

    /// Initdata in plain text. Its digest must be compared with the evidence before a word of it is believed.
    #[must_use]
    pub fn init_data(&self) -> Option<&InitData> {
        self.init_data.as_ref()
    }

    /// The guest's key, as yet unproven.
    #[must_use]
    pub fn tee_key(&self) -> &TeePublicKey {
        &self.tee_key
    }

    /// The evidence was verified and appraised: from here on the session may ask for resources, subject to policy.
    #[must_use]
    pub fn accept(self, token: String, expires_at: u64) -> AttestedSession {
        AttestedSession { id: self.id, token, tee_key: self.tee_key, expires_at }
    }
}

/// A session whose evidence was accepted.
pub struct AttestedSession {
    id: SessionId,
    token: String,
    tee_key: TeePublicKey,
    expires_at: u64,
}

impl AttestedSession {
    /// The session's id.
    #[must_use]
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// The token issued for it.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// When it ends.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// True while it may be used.
    #[must_use]
    pub fn is_live(&self, now: u64) -> bool {
        now < self.expires_at
    }

    /// Encrypts a resource so that only the attested guest can read it.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn seal(&self, resource: &[u8]) -> Result<Jwe, JweError> {
        Jwe::seal(resource, &self.tee_key)
    }
}

impl fmt::Debug for AttestedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttestedSession(until {}, rest redacted)", self.expires_at)
    }
}
