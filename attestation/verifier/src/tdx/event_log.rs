//! The event log beside a quote: the one place where it is held against the RTMRs and becomes claims.
//!
//! **Invariant:** a log makes claims only if it replays to the RTMRs of the verified quote. Anybody on the way can write a log.

use kata_cc_evidence::eventlog::EventLog;
use kata_cc_evidence::tdx::Body;
use serde_json::Value;

use super::error::TdxError;
use crate::checks::Checks;
use crate::eventlog::{self, check_replay};

/// Claims of the log (`uefi_event_logs` and more), to be added to the quote's. A log that came and does not replay refuses the evidence: what
/// sent it has no reason to send a wrong one but to mislead.
pub(super) fn claims(log: Option<&[u8]>, body: &Body, checks: &mut Checks) -> Result<Option<Value>, TdxError> {
    let Some(bytes) = log else {
        checks.not_compared("event log", "none");
        return Ok(None);
    };
    let rtmrs = body.rtmr.map(|register| register.0);
    let log = EventLog::parse(bytes).map_err(|error| TdxError::EventLog { reason: error.to_string() }).and_then(|log| {
        check_replay(&log, &rtmrs).map_err(|error| TdxError::EventLog { reason: error.to_string() })?;
        Ok(log)
    });
    let found = match &log {
        Ok(log) => format!("{} events, replayed", log.events().len()),
        Err(_) => format!("{} bytes", bytes.len()),
    };
    let log = checks.record("event log", found, "replays to RTMR0 to RTMR3", log)?;
    Ok(Some(eventlog::claims(&log)))
}
