//! What the agent records in the runtime event log: images, starts, executed commands and policies, each before it takes effect.
//!
//! | event (domain, operation) | content | recorded before |
//! |---|---|---|
//! | `github.com/confidential-containers PullImage` | `{"digest","image"}` | the image is mounted |
//! | `kata-cc StartContainer` | `{"container","image"}`: name in the pod, digest of the manifest | its first process begins |
//! | `kata-cc ExecProcess` | `{"args","container"}`: SHA-256 of the arguments as a JSON array | the process is started |
//! | `kata-cc SetPolicy` | `{"digest","version"}`: SHA-256 of the signed envelope | the policy is in force |
//!
//! Contents are canonical JSON (RFC 8785): flat objects of ASCII keys in order, with strings and small numbers, which is what
//! `serde_json` writes. Arguments are told by digest: the log goes to whoever verifies, who need not read them.
//!
//! **Invariant:** what cannot be recorded is not done.

use kata_cc_attester::runtime_log::{AGENT_DOMAIN, COCO_DOMAIN, RuntimeLog, RuntimeLogError};
use kata_cc_evidence::eventlog::{Aael, HashAlgorithm};
use serde_json::{Value, json};

/// What a container is for whoever reads the log. Its id is the host's choice and says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its name in the pod.
    pub(crate) name: String,
    /// Digest of its image's manifest.
    pub(crate) image: String,
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&HashAlgorithm::SHA256.hash(&[bytes]).unwrap_or_default()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn record(log: &RuntimeLog, domain: &str, operation: &str, content: &Value) -> Result<(), RuntimeLogError> {
    log.record(&Aael::new(domain, operation, &content.to_string())?)
}

/// An image was pulled, every byte of it checked.
///
/// # Errors
/// When it cannot be recorded; it must not be used then.
pub(crate) fn image(log: &RuntimeLog, reference: &str, digest: &str) -> Result<(), RuntimeLogError> {
    record(log, COCO_DOMAIN, "PullImage", &json!({ "digest": digest, "image": reference }))
}

/// A container is about to start.
///
/// # Errors
/// When it cannot be recorded; it must not start then.
pub(crate) fn start(log: &RuntimeLog, container: &Identity) -> Result<(), RuntimeLogError> {
    record(log, AGENT_DOMAIN, "StartContainer", &json!({ "container": container.name, "image": container.image }))
}

/// A command is about to be executed.
///
/// # Errors
/// When it cannot be recorded; it must not be executed then.
pub(crate) fn exec(log: &RuntimeLog, container: &Identity, args: &[String]) -> Result<(), RuntimeLogError> {
    let args = sha256(json!(args).to_string().as_bytes());
    record(log, AGENT_DOMAIN, "ExecProcess", &json!({ "args": args, "container": container.name }))
}

/// A policy is about to be in force.
///
/// # Errors
/// When it cannot be recorded; it must not be put in force then.
pub(crate) fn policy(log: &RuntimeLog, envelope: &[u8], version: u64) -> Result<(), RuntimeLogError> {
    // A JSON number holds 53 bits for everybody; the version may have 64.
    record(log, AGENT_DOMAIN, "SetPolicy", &json!({ "digest": sha256(envelope), "version": version.to_string() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::Attester;
    use kata_cc_evidence::eventlog::{EventLog, Payload, Registers};

    #[test]
    fn events_are_canonical_and_a_repeated_one_is_recorded_once() {
        let attester = Attester::mute();
        let log = attester.log();
        let container = Identity { name: "app".to_owned(), image: "sha256:00".to_owned() };
        image(log, "registry.example/app@sha256:00", "sha256:00").unwrap();
        for _ in 0..2 {
            start(log, &container).unwrap();
            exec(log, &container, &["probe".to_owned(), "--live".to_owned()]).unwrap();
        }
        policy(log, b"abc", 7).unwrap();
        let parsed = EventLog::parse(&log.snapshot().unwrap()).unwrap();
        assert_eq!(parsed.findings(Registers::Cc), []);
        let texts: Vec<String> = parsed
            .events()
            .iter()
            .map(|event| if let Ok(Payload::Aael(aael)) = event.payload() { aael.text() } else { String::new() })
            .collect();
        assert_eq!(
            texts,
            [
                "github.com/confidential-containers PullImage {\"digest\":\"sha256:00\",\"image\":\"registry.example/app@sha256:00\"}",
                "kata-cc StartContainer {\"container\":\"app\",\"image\":\"sha256:00\"}",
                // SHA-256 of ["probe","--live"].
                &format!("kata-cc ExecProcess {{\"args\":\"{}\",\"container\":\"app\"}}", sha256(br#"["probe","--live"]"#)),
                "kata-cc SetPolicy {\"digest\":\"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\",\"version\":\"7\"}",
            ]
        );
    }
}
