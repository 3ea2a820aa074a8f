//! `POST /aa/aael`: a program in the pod records an event of its own in the runtime event log.
//!
//! CoCo's form: `{"domain","operation","content"}` in, `{"success":"true"}` out. The policy's rule is `ExtendRuntimeMeasurementRequest`,
//! with domain, operation, the size of the content and the container that asks. Whatever the policy says, a program's event never bears a domain of the agent's
//! (AC-56), and room for what the agent records is kept: see [`kata_cc_attester::runtime_log`].

use kata_cc_attester::runtime_log::{RuntimeLog, RuntimeLogError};
use kata_cc_evidence::eventlog::Aael;
use kata_cc_policy::{Gate, PolicyRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::asker::Asker;

/// Longest body: content of the longest event, escaped, and a little.
pub(crate) const MAX_BODY: usize = 40 << 10;

/// The request's line begins so.
const REQUEST: &[u8] = b"POST /aa/aael ";

/// What is answered, as CoCo does.
pub(crate) const SUCCESS: &[u8] = br#"{"success":"true"}"#;

/// What a program sends.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    domain: String,
    operation: String,
    content: String,
}

/// What the policy sees.
struct ExtendRuntimeMeasurement<'a>(&'a Asker, &'a Aael);

impl PolicyRequest for ExtendRuntimeMeasurement<'_> {
    const RULE: &'static str = "ExtendRuntimeMeasurementRequest";

    fn policy_input(&self) -> Value {
        let Self(asker, event) = self;
        asker.input(json!({ "domain": event.domain(), "operation": event.operation(), "size": event.content().len() }))
    }
}

/// Whether a request is for this.
#[must_use]
pub(crate) fn is_asked(head: &[u8]) -> bool {
    head.starts_with(REQUEST)
}

/// A refusal: status and text.
pub(crate) type Refusal = (u16, String);

/// How long the body is, by the request's head.
///
/// # Errors
/// When the head does not say so once, or it is longer than any.
pub(crate) fn body_len(request: &httparse::Request<'_, '_>) -> Result<usize, Refusal> {
    let mut lengths = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("content-length"));
    let (Some(length), None) = (lengths.next(), lengths.next()) else {
        return Err((400, "expected one content-length\n".to_owned()));
    };
    let length = std::str::from_utf8(length.value).ok().and_then(|length| length.parse().ok());
    match length {
        Some(length) if length <= MAX_BODY => Ok(length),
        Some(_) => Err((413, format!("expected a body of at most {MAX_BODY} bytes\n"))),
        None => Err((400, "expected content-length in digits\n".to_owned())),
    }
}

/// Records what a body says, if the policy allows it.
///
/// # Errors
/// When it is malformed, denied, or cannot be recorded.
pub(crate) fn extend(gate: &Gate, asker: &Asker, log: Option<&RuntimeLog>, body: &[u8]) -> Result<(), Refusal> {
    // Without the parser's words: they may quote the content.
    let body: Body =
        serde_json::from_slice(body).map_err(|_| (400, "expected {\"domain\",\"operation\",\"content\"}, all strings\n".to_owned()))?;
    let event = Aael::new(&body.domain, &body.operation, &body.content).map_err(|error| (400, format!("{error}\n")))?;
    gate.check(ExtendRuntimeMeasurement(asker, &event)).map_err(|denied| (403, format!("{denied}\n")))?;
    let log = log.ok_or_else(|| (503, "no runtime event log\n".to_owned()))?;
    log.record_for_workload(&event).map_err(|error| {
        let status = if matches!(error, RuntimeLogError::Domain { .. }) { 403 } else { 503 };
        (status, format!("{error}\n"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::Attester;
    use crate::guest::Guest;
    use kata_cc_evidence::eventlog::EventLog;

    const YES: &str = "package agent_policy\nExtendRuntimeMeasurementRequest if { input.domain == \"example.com\"; input.size < 100 }\nExtendRuntimeMeasurementRequest if input.domain == \"kata-cc\"";

    fn body(domain: &str, content: &str) -> Vec<u8> {
        json!({ "domain": domain, "operation": "op", "content": content }).to_string().into_bytes()
    }

    fn status(rego: &str, body: &[u8]) -> (u16, usize) {
        let (gate, attester) = (Guest::gate_for_tests(rego), Attester::mute());
        let asker = Asker { id: "c1".parse().unwrap(), name: "app".to_owned() };
        let status = extend(&gate, &asker, Some(attester.log()), body).map_or_else(|(status, _)| status, |()| 200);
        (status, EventLog::parse(&attester.log().snapshot().unwrap()).unwrap().events().len())
    }

    #[test]
    fn an_event_that_the_policy_allows_is_recorded_and_no_other() {
        assert_eq!(status(YES, &body("example.com", "c")), (200, 1));
        assert_eq!(status(YES, &body("example.org", "c")), (403, 0));
        assert_eq!(status(YES, &body("example.com", &"c".repeat(100))), (403, 0));
        assert_eq!(status("package agent_policy", &body("example.com", "c")), (403, 0));
    }

    #[test]
    fn ac_56_no_policy_lets_a_program_record_in_the_agents_name() {
        assert_eq!(status(YES, &body("kata-cc", "{}")), (403, 0));
    }

    #[test]
    fn refuses_bodies_that_are_no_event() {
        for wrong in [
            b"".to_vec(),
            b"{}".to_vec(),
            br#"{"domain":"d","operation":"o","content":{}}"#.to_vec(),
            br#"{"domain":"d","operation":"o","content":"c","register_index":1}"#.to_vec(),
            body("two words", "c"),
            body("example.com", "a\nb"),
            body("example.com", &"c".repeat(20_000)),
        ] {
            assert_eq!(status(YES, &wrong), (400, 0), "{}", String::from_utf8_lossy(&wrong));
        }
    }
}
