//! A client that takes as little of the cores as it can, for measuring how much the broker does: it keeps its key, and opens one answer of many.
//!
//! The client of [`crate::exchange`] is a guest's, which makes a key for each handshake and opens each answer: together that takes longer than all that
//! the broker does. Trustee was measured with a driver that kept its key too.

use anyhow::{Context, Result, bail};
use kata_cc_kbs_protocol::jwe::Jwe;
use kata_cc_kbs_protocol::message::{Attestation, Challenge, PrimaryRuntimeData, Request, RuntimeData, TeeEvidence};
use kata_cc_kbs_protocol::{HashAlgorithm, HttpRequest, HttpResponse, Jwk, Method, PROTOCOL_VERSION, TeeKey};
use serde_json::{Value, json};

use crate::broker::{RESOURCE, SECRET};
use crate::connection::Connection;
use crate::evidence::{Kind, Machine};

/// Where the interface is.
const BASE_PATH: &str = "/kbs/v0";
/// Of so many answers one is opened.
const OPENED: u64 = 64;

/// One client.
pub(crate) struct Driver {
    connection: Connection,
    key: TeeKey,
    jwk: Jwk,
    answers: u64,
}

impl Driver {
    /// With a key, and a connection to the broker.
    pub(crate) fn new(connection: Connection) -> Result<Self> {
        let key = TeeKey::generate()?;
        Ok(Self { connection, jwk: key.to_jwk(), key, answers: 0 })
    }

    /// A whole handshake; the session's cookie.
    pub(crate) fn attest(&mut self, machine: &Machine, kind: Kind) -> Result<String> {
        let request = Request { version: PROTOCOL_VERSION.into(), tee: kind.tee(), extra_params: json!({}) };
        let answer = self.send(Method::Post, "/auth", None, serde_json::to_vec(&request)?)?;
        let cookie = answer.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("set-cookie")).context("no cookie")?;
        let cookie = cookie.1.split(';').next().unwrap_or_default().to_owned();
        let Challenge { nonce, .. } = serde_json::from_slice(&answer.body)?;
        let bound = PrimaryRuntimeData { additional_evidence: String::new(), nonce: nonce.clone(), tee_pubkey: self.jwk.clone() };
        let attestation = Attestation {
            init_data: None,
            runtime_data: RuntimeData { nonce, tee_pubkey: self.jwk.clone() },
            tee_evidence: TeeEvidence {
                primary_evidence: machine.evidence(&HashAlgorithm::default().bind(&bound)?)?,
                additional_evidence: String::new(),
            },
        };
        self.send(Method::Post, "/attest", Some(&cookie), serde_json::to_vec(&attestation)?)?;
        Ok(cookie)
    }

    /// One resource of a session.
    pub(crate) fn read(&mut self, cookie: &str) -> Result<()> {
        let answer = self.send(Method::Get, &format!("/resource/{RESOURCE}"), Some(cookie), Vec::new())?;
        self.answers += 1;
        if self.answers % OPENED == 1 {
            let jwe: Jwe = serde_json::from_slice(&answer.body)?;
            if jwe.open(&self.key)?.expose() != SECRET {
                bail!("the broker gave another secret than it was given");
            }
        }
        Ok(())
    }

    fn send(&mut self, method: Method, path: &str, cookie: Option<&str>, body: Vec<u8>) -> Result<HttpResponse> {
        let mut headers = vec![("content-type", "application/json".to_owned())];
        headers.extend(cookie.map(|cookie| ("cookie", cookie.to_owned())));
        let answer = self.connection.send(&HttpRequest { method, path: format!("{BASE_PATH}{path}"), headers, body })?;
        match answer.status {
            200 => Ok(answer),
            status => bail!("{path} was answered with {status}: {}", serde_json::from_slice::<Value>(&answer.body).unwrap_or_default()),
        }
    }
}
