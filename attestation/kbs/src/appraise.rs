//! Evidence to verdict: the verifier's claims, the binding of initdata, the attestation policy, the EAR appraisal.
//!
//! ```text
//! ToVerify ──> verifier (signature, chain, nonce and key binding, initdata binding) ──> claims ──> Rego ──> trust vector ──> Appraisal
//! ```
//! **Invariant:** initdata is looked into only after its digest was found in the verified evidence.
//! **Invariant:** no verdict without both: evidence that verified, and a policy that answered.

use crate::audit::Comparison;
use crate::pace::Pace;
use crate::rego::{self, Kind, Lookup, Policies, PolicyError};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use kata_cc_evidence::TeeType;
use kata_cc_kbs_protocol::message::InitData;
use kata_cc_kbs_protocol::token::MAX_TOKEN;
use kata_cc_kbs_protocol::{Appraisal, HashAlgorithm, ToVerify, TrustVector};
use kata_cc_verifier::checks::Checks;
use kata_cc_verifier::collateral::{Collateral, Need};
use kata_cc_verifier::eventlog::{self, RuntimeLogError};
use kata_cc_verifier::{Expected, Trust, Verifiers, VerifyError};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// The policy in force while no administrator has set another.
pub const DEFAULT_POLICY: &str = include_str!("../policies/default-attestation.rego");
/// Initdata entries that are shown to policies, parsed. The others are part of the digest all the same.
const SHOWN_INIT_DATA: [&str; 3] = ["aa.toml", "cdh.toml", "kata-cc.toml"];
/// The initdata entry with the signed agent policy, of which policies are shown the version.
const ENVELOPE: &str = "policy.dsse.json";
/// The form of agent policy whose signature covers the other entries of initdata. Of any other nothing is shown: a version would let
/// it pass for one that binds them.
const ENVELOPE_TYPE: &str = "application/vnd.kata-cc.agent-policy.v2+json";
/// Claims that grow with what a pod does. Policies see them whole; token and audit log keep them while they are short.
const GROWING: [&str; 2] = ["uefi_event_logs", "runtime_events"];
/// What is short. Half of the longest token: base64 makes four bytes of three, and initdata is in it too.
const MAX_GROWN: usize = MAX_TOKEN / 2;
const INIT_DATA_VERSION: &str = "0.1.0";

/// Why evidence gets no verdict.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Initdata that is not initdata.
    #[error("init-data: {0}")]
    InitData(&'static str),
    /// The verifier refused it.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A runtime event log beside evidence that has a register in use for one, or brings its own.
    #[error(
        "a runtime event log beside evidence of kind \"{tee}\": expected beside that of \"snp\" or \"se\", or of \"tdx\" with an RTMR3 of zero, alone; \
         others bring or bind their own"
    )]
    RuntimeLogOf {
        /// The kind.
        tee: TeeType,
    },
    /// A runtime event log that is none.
    #[error(transparent)]
    RuntimeLog(#[from] RuntimeLogError),
    /// The policy gave no answer.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

impl Refusal {
    /// Name of the check that failed, without values: what a guest may know.
    pub fn check(&self) -> &'static str {
        match self {
            Self::Verify(error) => error.rule(),
            Self::InitData(_) => "init-data",
            Self::RuntimeLogOf { .. } | Self::RuntimeLog(_) => "runtime-log",
            Self::Policy(_) => "attestation-policy",
        }
    }
}

/// What became of evidence that verified.
#[derive(Debug)]
pub struct Verdict {
    /// For the token.
    pub appraisal: Appraisal,
    /// The TEE's claims, for the audit log.
    pub claims: Value,
    /// What the policy compared, for the audit log.
    pub comparisons: Vec<Comparison>,
    /// Which policy appraised.
    pub policy_id: String,
}

/// Verifies and appraises. Cheap to clone.
#[derive(Clone)]
pub struct Appraiser {
    verifiers: Arc<Verifiers>,
    policies: Arc<Policies>,
    paces: Arc<HashMap<TeeType, Pace>>,
}

impl std::fmt::Debug for Appraiser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Appraiser(..)")
    }
}

impl Appraiser {
    /// An appraiser that trusts these roots.
    pub fn new(trust: Trust) -> Self {
        Self {
            verifiers: Arc::new(Verifiers::new(trust)),
            policies: Arc::default(),
            paces: Arc::new(TeeType::ALL.map(|tee| (tee, Pace::default())).into()),
        }
    }

    /// Whether guests of this kind are asked for their evidence.
    ///
    /// # Errors
    /// When evidence of this kind cannot be verified here at all.
    pub fn asks(&self, tee: TeeType) -> Result<bool, VerifyError> {
        Ok(self.verifiers.get(tee)?.asks())
    }

    /// What such a guest is asked.
    ///
    /// # Errors
    /// When nothing that is trusted allows to ask.
    pub fn challenge(&self, tee: TeeType, now: u64) -> Result<Option<Value>, VerifyError> {
        self.verifiers.get(tee)?.challenge(now)
    }

    /// Whether evidence of this kind was lately appraised so quickly that going to another thread for it would take longer.
    pub fn is_quick(&self, tee: TeeType) -> bool {
        self.paces.get(&tee).is_some_and(Pace::is_quick)
    }

    /// What the verifier will look for beside this evidence.
    pub fn needs(&self, received: &ToVerify) -> Vec<Need> {
        self.verifiers.get(received.tee()).map(|verifier| verifier.needs(received.evidence())).unwrap_or_default()
    }

    /// Verifies the evidence of a session and appraises it under `policy`, or under the default where there is none. What was checked of
    /// the evidence is in `checks` whatever comes of it.
    pub fn appraise(
        &self,
        received: &ToVerify,
        policy: Option<&str>,
        references: &Arc<Lookup>,
        collateral: &Collateral,
        now: u64,
        checks: &mut Checks,
    ) -> Result<Verdict, Refusal> {
        let mut appraise = || self.try_appraise(received, policy, references, collateral, now, checks);
        match self.paces.get(&received.tee()) {
            Some(pace) => pace.of(appraise),
            None => appraise(),
        }
    }

    fn try_appraise(
        &self,
        received: &ToVerify,
        policy: Option<&str>,
        references: &Arc<Lookup>,
        collateral: &Collateral,
        now: u64,
        checks: &mut Checks,
    ) -> Result<Verdict, Refusal> {
        let init_data = received.init_data().map(ParsedInitData::parse).transpose()?;
        let expected = Expected {
            report_data: Some(received.expected_report_data()),
            initdata_digest: init_data.as_ref().map(|i| i.digest.as_slice()),
            now_unix: now,
        };
        let verifier = self.verifiers.get(received.tee())?;
        let verified = verifier.verify(received.evidence(), &expected, collateral, checks)?;
        let mut claims = verified.claims().clone();
        // The report data is the exchange's, so this is the log that the guest's agent sent with it.
        let runtime_events = received.runtime_log().map(|log| runtime_events(received.tee(), &claims, log)).transpose()?;
        if let (Value::Object(claims), Some(events)) = (&mut claims, runtime_events) {
            claims.insert("runtime_events".into(), events);
        }

        let (policy_id, policy) = match policy {
            Some(policy) => ("default_cpu", policy),
            None => ("default_cpu (built in)", DEFAULT_POLICY),
        };
        let mut input = Map::new();
        input.insert("report_data".into(), claims.get("report_data").cloned().unwrap_or_default());
        input.insert("init_data".into(), claims.get("init_data").cloned().unwrap_or_default());
        input.insert(
            "runtime_data_claims".into(),
            json!({"nonce": received.runtime_data().nonce, "tee-pubkey": received.runtime_data().tee_pubkey}),
        );
        if let Some(init_data) = init_data {
            input.insert("init_data_claims".into(), init_data.claims);
        }
        input.insert(received.tee().as_str().into(), claims.clone());
        let mut input = Value::Object(input);
        let appraised = self.policies.get(Kind::Attestation, policy)?.trust_claims(&input, references)?;
        let comparisons = rego::comparisons(&appraised.queried, references, &claims, &input);
        let vector = serde_json::to_value(&appraised.claims)
            .and_then(TrustVector::deserialize)
            .map_err(|e| PolicyError::Answer { expected: "the eight AR4SI claims with values from -128 to 127", found: e.to_string() })?;
        let claims = kept(claims);
        if let Value::Object(input) = &mut input {
            input.insert(received.tee().as_str().into(), claims.clone());
        }
        Ok(Verdict { appraisal: Appraisal::new(vector, policy_id, input), comparisons, claims, policy_id: policy_id.into() })
    }
}

/// Claims for token and audit log. A guest that has done much must not be kept from attesting again by what it did: lists that have grown
/// too long are named in `left_out` instead.
fn kept(mut claims: Value) -> Value {
    let Value::Object(map) = &mut claims else { return claims };
    let long = |map: &Map<String, Value>| {
        let length: usize = GROWING.iter().filter_map(|name| map.get(*name)).map(|list| list.to_string().len()).sum();
        length > MAX_GROWN
    };
    if long(map) {
        let left_out: Vec<Value> = GROWING.iter().filter(|name| map.remove(**name).is_some()).map(|name| json!(name)).collect();
        map.insert("left_out".into(), left_out.into());
    }
    claims
}

/// Events of a log that no register holds. Guests' kernels before Linux 6.16 cannot extend RTMR3: of such a TD it is zero, and the log comes as that
/// of SNP does. Where it is not, the events are in the log that replays to it, and a second one would contradict it or pass for it.
fn runtime_events(tee: TeeType, claims: &Value, log: &[u8]) -> Result<Value, Refusal> {
    let unused = claims.get("rtmr_3").and_then(Value::as_str).is_some_and(|register| register.bytes().all(|digit| digit == b'0'));
    match tee {
        TeeType::Snp | TeeType::Se => {}
        TeeType::Tdx if unused => {}
        _ => return Err(Refusal::RuntimeLogOf { tee }),
    }
    Ok(eventlog::runtime_log(log)?)
}

struct ParsedInitData {
    digest: Vec<u8>,
    claims: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InitDataToml {
    version: String,
    algorithm: String,
    data: toml::Table,
}

impl ParsedInitData {
    /// Digest of the exact text, and what policies may see of it. Believed only once the digest was found in evidence.
    fn parse(init_data: &InitData) -> Result<Self, Refusal> {
        let parsed: InitDataToml =
            toml::from_str(&init_data.body).map_err(|_| Refusal::InitData("not TOML with version, algorithm and [data]"))?;
        if parsed.version != INIT_DATA_VERSION {
            return Err(Refusal::InitData("version, expected 0.1.0"));
        }
        let algorithm: HashAlgorithm =
            parsed.algorithm.parse().map_err(|_| Refusal::InitData("algorithm, expected sha256, sha384 or sha512"))?;
        let mut claims = Map::new();
        for name in SHOWN_INIT_DATA {
            let Some(entry) = parsed.data.get(name) else { continue };
            let text = entry.as_str().ok_or(Refusal::InitData("an entry of [data] is not text"))?;
            let table: toml::Table =
                toml::from_str(text).map_err(|_| Refusal::InitData("an entry of [data] that ends in .toml is not TOML"))?;
            let shown = serde_json::to_value(table).map_err(|_| Refusal::InitData("an entry of [data] has no JSON form"))?;
            claims.insert(name.into(), shown);
        }
        if let Some(entry) = parsed.data.get(ENVELOPE) {
            let text = entry.as_str().ok_or(Refusal::InitData("an entry of [data] is not text"))?;
            if let Some(version) = policy_version(text)? {
                claims.insert(ENVELOPE.into(), json!({ "version": version }));
            }
        }
        Ok(Self { digest: algorithm.digest(init_data.body.as_bytes()), claims: claims.into() })
    }
}

/// A DSSE envelope. Signatures are the guest's to verify: one that measures right goes no further, and asks for nothing, unless a key in
/// its initdata signed the policy together with all other entries.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload_type: String,
    payload: String,
}

/// What of a policy is shown.
#[derive(Deserialize)]
struct SignedPolicy {
    version: u64,
}

/// Version of the agent policy in an envelope; `None` where it is of another type.
fn policy_version(envelope: &str) -> Result<Option<u64>, Refusal> {
    let envelope: Envelope =
        serde_json::from_str(envelope).map_err(|_| Refusal::InitData("the entry policy.dsse.json is not a DSSE envelope"))?;
    if envelope.payload_type != ENVELOPE_TYPE {
        return Ok(None);
    }
    // The same bytes as the guest finds: DSSE allows both alphabets.
    let payload = STANDARD.decode(&envelope.payload).or_else(|_| URL_SAFE.decode(&envelope.payload));
    let payload = payload.map_err(|_| Refusal::InitData("the payload in policy.dsse.json is not base64"))?;
    let policy: SignedPolicy = serde_json::from_slice(&payload)
        .map_err(|_| Refusal::InitData("the payload in policy.dsse.json is not a policy with a version"))?;
    Ok(Some(policy.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<ParsedInitData, Refusal> {
        ParsedInitData::parse(&InitData { format: "toml".into(), body: body.into() })
    }

    #[test]
    fn init_data_digest_is_over_the_exact_text() {
        let body = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"aa.toml\" = 'x = 1'\n\"other\" = \"y\"\n";
        let parsed = parse(body).unwrap();
        assert_eq!(parsed.digest, HashAlgorithm::Sha384.digest(body.as_bytes()));
        assert_eq!(parsed.claims, json!({"aa.toml": {"x": 1}}));
        assert_ne!(parse(&format!("{body}\n")).unwrap().digest, parsed.digest);
    }

    fn envelope(payload_type: &str, payload: &str) -> String {
        let envelope = json!({"payloadType": payload_type, "payload": STANDARD.encode(payload), "signatures": []});
        format!("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.dsse.json\" = '{envelope}'\n")
    }

    #[test]
    fn shows_the_version_of_a_policy_that_binds_the_other_entries_and_of_no_other() {
        let shown = |payload_type: &str, payload: &str| parse(&envelope(payload_type, payload)).unwrap().claims;
        assert_eq!(shown(ENVELOPE_TYPE, r#"{"version":7,"rego":"","documents":{}}"#), json!({"policy.dsse.json": {"version": 7}}));
        let former = "application/vnd.kata-cc.agent-policy.v1+json";
        assert_eq!(shown(former, r#"{"version":7,"rego":""}"#), json!({}));
    }

    #[test]
    fn refuses_an_envelope_that_is_none() {
        for payload in ["", "{}", "[]", r#"{"version":"7"}"#, r#"{"version":-1}"#, r#"{"version":1,"version":2}"#] {
            assert!(matches!(parse(&envelope(ENVELOPE_TYPE, payload)), Err(Refusal::InitData(_))), "{payload}");
        }
        let twice = envelope(ENVELOPE_TYPE, r#"{"version":1}"#).replace("\"signatures\":[]", "\"payload\":\"e30=\"");
        assert!(matches!(parse(&twice), Err(Refusal::InitData(_))), "{twice}");
        for entry in ["1", "''", "'{}'", "'{\"payloadType\":\"x\"}'"] {
            let body = format!("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.dsse.json\" = {entry}\n");
            assert!(matches!(parse(&body), Err(Refusal::InitData(_))), "{entry}");
        }
    }

    #[test]
    fn lists_that_grow_do_not_make_tokens_too_long() {
        let short = json!({"measurement": "4d", "runtime_events": ["x"]});
        assert_eq!(kept(short.clone()), short);
        let long = json!({"measurement": "4d", "runtime_events": ["x".repeat(MAX_GROWN)]});
        assert_eq!(kept(long), json!({"measurement": "4d", "left_out": ["runtime_events"]}));
        let together = json!({"runtime_events": ["x".repeat(MAX_GROWN / 2)], "uefi_event_logs": ["x".repeat(MAX_GROWN / 2)]});
        assert_eq!(kept(together), json!({"left_out": ["uefi_event_logs", "runtime_events"]}));
    }

    #[test]
    fn refuses_init_data_of_another_form() {
        for bad in [
            "",
            "version = \"0.2.0\"\nalgorithm = \"sha256\"\n[data]\n",
            "version = \"0.1.0\"\nalgorithm = \"md5\"\n[data]\n",
            "version = \"0.1.0\"\nalgorithm = \"sha256\"\n",
            "version = \"0.1.0\"\nalgorithm = \"sha256\"\nextra = 1\n[data]\n",
            "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = 1\n",
            "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"= =\"\n",
        ] {
            assert!(matches!(parse(bad), Err(Refusal::InitData(_))), "{bad}");
        }
    }
}
