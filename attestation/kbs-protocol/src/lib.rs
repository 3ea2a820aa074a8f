//! The key-broker protocol (RCAR 0.4.0): messages, both sides as state machines, encrypted resources and attestation tokens; and
//! [`sealed`] secrets, which point to the broker.
//!
//! ```text
//! client                                         server
//! ClientSession::start        -- Request  -->    AwaitAttest::open
//! AwaitChallenge::handle      <-- Challenge --
//! AwaitEvidence::submit       -- Attestation --> AwaitAttest::attest -> ToVerify -> (verifier, policy) -> accept
//! AwaitToken::handle          <-- token ------
//! Attested::get_resource      -- GET ------->    AttestedSession::seal
//! Attested::open_resource     <-- JWE --------
//! ```
//!
//! Not here: sockets, TLS, HTTP parsing, clocks, storage, evidence verification. The caller passes `now` in seconds since the
//! epoch and moves [`http::HttpRequest`] and [`http::HttpResponse`] values.
//!
//! The broker's side is the feature `server`, on by default; the measured guest does without it and the cryptography that only it needs.
//!
//! **Invariant:** every state is consumed by the message it waits for, so that a nonce cannot be answered twice and evidence cannot be
//! submitted for a challenge that was never made.

#![deny(clippy::indexing_slicing, clippy::panic)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::panic))]

pub mod additional;
pub mod client;
pub mod ear;
pub mod hash;
pub mod http;
pub mod jwe;
pub mod jwk;
pub mod message;
mod random;
#[cfg(feature = "server")]
pub mod recipient;
pub mod resource;
pub mod sealed;
pub mod secret;
#[cfg(feature = "server")]
pub mod server;
pub mod token;

pub use client::{Attested, AwaitChallenge, AwaitEvidence, AwaitToken, ClientError, ClientSession};
pub use ear::{Appraisal, Ear, Status, TrustVector};
pub use hash::HashAlgorithm;
pub use http::{HttpRequest, HttpResponse, Method};
pub use jwk::{Jwk, TeeKey};
pub use message::PROTOCOL_VERSION;
pub use random::RandomError;
#[cfg(feature = "server")]
pub use recipient::{JwkError, TeePublicKey};
pub use resource::ResourcePath;
pub use secret::SecretBytes;
#[cfg(feature = "server")]
pub use server::{AttestedSession, AwaitAttest, ServerError, SessionId, ToVerify};
pub use token::{TokenError, TokenSigner, TokenVerifier, VerifiedToken};

/// Prefix of every path of the protocol.
pub const BASE_PATH: &str = "/kbs/v0";

/// Name of the session cookie.
pub const SESSION_COOKIE: &str = "kbs-session-id";
