//! Evidence beside the TEE's own, in the string `additional_evidence`: JSON text of a map, which REPORT_DATA binds as that very text.
//!
//! CoCo's keys are kinds of devices; none of those is taken here. The one key that is taken is ours: the guest's runtime event log, for
//! TEEs that have no register to hold a log against. It is the word of the guest's agent, which the launch measurement is about, and
//! the hardware's signature over REPORT_DATA says that nobody changed it on the way. It is sent only to brokers that say they take it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The key, and the name of the offer and of its acceptance in `extra-params`, with the value `true`.
pub const RUNTIME_LOG: &str = "kata-cc-runtime-log";

/// Evidence of that kind is not taken here.
#[cfg(feature = "server")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "additional_evidence: {reason}; expected an empty string, or a JSON object with \"{RUNTIME_LOG}\" alone, a runtime event log in base64"
)]
pub struct AdditionalEvidenceError {
    /// What is wrong with it.
    reason: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Map {
    #[serde(rename = "kata-cc-runtime-log")]
    runtime_log: String,
}

/// The text for a runtime event log.
pub(crate) fn of_runtime_log(log: &[u8]) -> Result<String, serde_json::Error> {
    serde_json::to_string(&Map { runtime_log: STANDARD.encode(log) })
}

/// The runtime event log in a text; `None` in the empty one.
#[cfg(feature = "server")]
pub(crate) fn runtime_log(text: &str) -> Result<Option<Vec<u8>>, AdditionalEvidenceError> {
    if text.is_empty() {
        return Ok(None);
    }
    let map: Map = serde_json::from_str(text).map_err(|error| AdditionalEvidenceError { reason: error.to_string() })?;
    let log = STANDARD.decode(map.runtime_log).map_err(|error| AdditionalEvidenceError { reason: error.to_string() })?;
    Ok(Some(log))
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use super::*;

    #[test]
    fn a_log_comes_back_and_nothing_else_is_taken() {
        let text = of_runtime_log(b"a log").expect("serialises");
        assert_eq!(text, r#"{"kata-cc-runtime-log":"YSBsb2c="}"#);
        assert_eq!(runtime_log(&text), Ok(Some(b"a log".to_vec())));
        assert_eq!(runtime_log(""), Ok(None));
        for other in [
            "{}",
            " ",
            "null",
            r#"{"nvidia":"{}"}"#,
            r#"{"kata-cc-runtime-log":"YSBsb2c=","nvidia":"{}"}"#,
            r#"{"kata-cc-runtime-log":"YSBsb2c=","kata-cc-runtime-log":""}"#,
            r#"{"kata-cc-runtime-log":"?"}"#,
            r#"{"kata-cc-runtime-log":1}"#,
        ] {
            assert!(runtime_log(other).is_err(), "{other}");
        }
    }
}
