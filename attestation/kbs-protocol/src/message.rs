//! Messages of the RCAR exchange, exact on the wire.
//!
//! Mind the spelling: kebab-case everywhere except inside `tee-evidence`, where it is snake_case; and `additional_evidence` is JSON
//! *as a string*, hashed as that very string.

use kata_cc_evidence::TeeType;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::http::MAX_BODY;
use crate::jwk::Jwk;

/// The one protocol version both sides speak.
pub const PROTOCOL_VERSION: &str = "0.4.0";

/// Why bytes are not a message of the protocol.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Too many bytes.
    #[error("{message}: body of {found} bytes, at most {MAX_BODY} are accepted")]
    TooLarge {
        /// Which message.
        message: &'static str,
        /// How many bytes.
        found: usize,
    },
    /// Not JSON of the expected form.
    #[error("{message}: not the expected JSON")]
    Json {
        /// Which message.
        message: &'static str,
        /// What the parser says; names fields, never values of secrets.
        #[source]
        source: serde_json::Error,
    },
}

pub(crate) fn parse<T: DeserializeOwned>(message: &'static str, body: &[u8]) -> Result<T, MessageError> {
    if body.len() > MAX_BODY {
        return Err(MessageError::TooLarge { message, found: body.len() });
    }
    serde_json::from_slice(body).map_err(|source| MessageError::Json { message, source })
}

/// `POST /auth`: asks for a challenge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Protocol version.
    pub version: String,
    /// Kind of TEE.
    pub tee: TeeType,
    /// `{"supported-hash-algorithms":[…]}` or an empty string.
    #[serde(rename = "extra-params")]
    pub extra_params: Value,
}

impl Request {
    /// Parses a body.
    ///
    /// # Errors
    /// When it is too large or not of the form.
    pub fn from_json(body: &[u8]) -> Result<Self, MessageError> {
        parse("auth request", body)
    }
}

/// Answer to [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The nonce, compared as this very string.
    pub nonce: String,
    /// `{"selected-hash-algorithm":"…"}`, or an empty string where nothing was selected.
    #[serde(rename = "extra-params")]
    pub extra_params: Value,
}

/// Initdata in plain text, for the broker to compare with what the hardware measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitData {
    /// `toml`.
    pub format: String,
    /// The exact text.
    pub body: String,
}

/// What the evidence is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeData {
    /// The challenge's nonce.
    pub nonce: String,
    /// The guest's public key.
    #[serde(rename = "tee-pubkey")]
    pub tee_pubkey: Jwk,
}

/// [`RuntimeData`] as primary evidence binds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimaryRuntimeData {
    /// The exact string of [`TeeEvidence::additional_evidence`].
    #[serde(rename = "additional-evidence")]
    pub additional_evidence: String,
    /// The challenge's nonce.
    pub nonce: String,
    /// The guest's public key.
    #[serde(rename = "tee-pubkey")]
    pub tee_pubkey: Jwk,
}

/// Evidence of the TEE and of its devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeeEvidence {
    /// Evidence of the TEE, in its own form.
    pub primary_evidence: Value,
    /// JSON text of a map from TEE kind to evidence, or empty.
    pub additional_evidence: String,
}

/// `POST /attest`: the evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attestation {
    /// Initdata, if the pod has any.
    #[serde(default)]
    pub init_data: Option<InitData>,
    /// What the evidence is bound to.
    pub runtime_data: RuntimeData,
    /// The evidence.
    pub tee_evidence: TeeEvidence,
}

impl Attestation {
    /// Parses a body.
    ///
    /// # Errors
    /// When it is too large or not of the form.
    pub fn from_json(body: &[u8]) -> Result<Self, MessageError> {
        parse("attestation", body)
    }
}

/// Answer to [`Attestation`].
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenResponse {
    /// The attestation token, a JWT.
    pub token: String,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// `https://github.com/confidential-containers/kbs/errors/<Variant>`.
    #[serde(rename = "type")]
    pub error_type: String,
    /// Explanation.
    pub detail: String,
}

impl ErrorBody {
    const PREFIX: &'static str = "https://github.com/confidential-containers/kbs/errors/";

    /// For a variant of the protocol's error names.
    #[must_use]
    pub fn new(variant: &str, detail: impl Into<String>) -> Self {
        Self { error_type: format!("{}{variant}", Self::PREFIX), detail: detail.into() }
    }

    /// The variant's name, without the prefix.
    #[must_use]
    pub fn variant(&self) -> &str {
        self.error_type.strip_prefix(Self::PREFIX).unwrap_or(&self.error_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwk::TeeKey;

    #[test]
    fn names_on_the_wire_are_the_protocols() {
        let jwk = TeeKey::generate().expect("random").to_jwk();
        let attestation = Attestation {
            init_data: Some(InitData { format: "toml".into(), body: "x".into() }),
            runtime_data: RuntimeData { nonce: "n".into(), tee_pubkey: jwk },
            tee_evidence: TeeEvidence { primary_evidence: serde_json::json!({"a": 1}), additional_evidence: String::new() },
        };
        let json = serde_json::to_value(&attestation).expect("serialises");
        assert_eq!(json["init-data"]["format"], "toml");
        assert_eq!(json["runtime-data"]["nonce"], "n");
        assert_eq!(json["runtime-data"]["tee-pubkey"]["kty"], "EC");
        assert_eq!(json["tee-evidence"]["primary_evidence"]["a"], 1);
        assert_eq!(json["tee-evidence"]["additional_evidence"], "");
        let body = serde_json::to_vec(&json).expect("serialises");
        assert_eq!(Attestation::from_json(&body).expect("parses"), attestation);
    }

    #[test]
    fn request_and_challenge_have_extra_params() {
        let request = Request::from_json(br#"{"version":"0.4.0","tee":"snp","extra-params":""}"#).expect("parses");
        assert_eq!(request.tee, TeeType::Snp);
        assert!(Request::from_json(br#"{"version":"0.4.0","tee":"snp"}"#).is_err());
        assert!(Request::from_json(br#"{"version":"0.4.0","tee":"none","extra-params":""}"#).is_err());
        let json = serde_json::to_value(Challenge { nonce: "n".into(), extra_params: "".into() }).expect("serialises");
        assert_eq!(json, serde_json::json!({"nonce": "n", "extra-params": ""}));
    }

    #[test]
    fn bodies_are_bounded() {
        assert!(matches!(Request::from_json(&vec![b' '; MAX_BODY + 1]), Err(MessageError::TooLarge { .. })));
    }

    #[test]
    fn error_bodies_carry_the_type_prefix() {
        let body = ErrorBody::new("PolicyDeny", "denied");
        assert_eq!(body.error_type, "https://github.com/confidential-containers/kbs/errors/PolicyDeny");
        assert_eq!(body.variant(), "PolicyDeny");
    }
}
