//! Event logs in appraisal: held against the RTMRs of a verified quote, and as claims.
//!
//! ```text
//! check_replay(log, rtmrs of the quote)?     first: without it nothing in a log means anything
//! claims(log)                                CoCo's `uefi_event_logs`, findings, and what was booted
//! ```
//! CoCo's form shows every event with its label, and policies written for it look for *some* event with a label and a digest. Labels of
//! what is not in the log are nobody's word, though, and a guest's kernel can extend further digests after boot: a guest that booted another
//! kernel can call its digest something else and add the expected one behind it. The claims under `boot` are stricter. `kernel` is there only if
//! it is the one image in RTMR1 and every other event there carries its own payload; `kernel_parameters` and `initrd` only if they are
//! the first and the last of RTMR2, in the order in which Linux's EFI stub measures them, and nothing else is there.
//!
//! **Invariant:** no claim is made from an event whose payload is not what was measured.

mod details;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_evidence::eventlog::{Event, EventLog, EventLogError, EventType, HashAlgorithm, Payload, PayloadCheck, Registers};
use serde_json::{Map, Value, json};

/// `LOAD_OPTIONS_EVENT_TAG_ID` of Linux's EFI stub.
const LOAD_OPTIONS: u32 = 0x8f3b_22ed;

/// `INITRD_EVENT_TAG_ID` of Linux's EFI stub.
const INITRD: u32 = 0x8f3b_22ec;

/// What OVMF calls a kernel that QEMU handed to it.
const DIRECT_KERNEL: &str = "File(kernel)";

/// CC measurement registers as a log numbers them.
const RTMR1: u32 = 2;
const RTMR2: u32 = 3;
const RTMR3: u32 = 4;

/// Why a log does not belong to a quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// A register holds something else.
    #[error(
        "RTMR{register} of the quote is {}, the event log replays to {}: the log is not this guest's, or not whole",
        hex::encode(found.as_slice()),
        hex::encode(expected.as_slice())
    )]
    Register {
        /// Which: 0 to 3.
        register: usize,
        /// What the log replays to.
        expected: Box<[u8; 48]>,
        /// What the quote says.
        found: Box<[u8; 48]>,
    },
    /// The log cannot be replayed at all.
    #[error("the event log cannot be replayed")]
    Log(#[from] kata_cc_evidence::eventlog::ReplayError),
}

/// Holds a log against RTMR0 to RTMR3 of a quote.
///
/// # Errors
/// When a register is not what the log replays to. The first one is named.
pub fn check_replay(log: &EventLog, rtmrs: &[[u8; 48]; 4]) -> Result<(), ReplayError> {
    let values = log.replay(Registers::Cc, HashAlgorithm::SHA384)?;
    for (register, (found, value)) in rtmrs.iter().zip(values.values()).enumerate() {
        if value.as_slice() != found {
            let mut expected = Box::new([0; 48]);
            expected.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
            return Err(ReplayError::Register { register, expected, found: Box::new(*found) });
        }
    }
    Ok(())
}

/// Why a runtime event log without a register is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeLogError {
    /// It is no event log.
    #[error("the runtime event log is malformed")]
    Malformed(#[from] EventLogError),
    /// It has an event that no agent records.
    #[error("event {index} of the runtime event log is not a runtime event of RTMR3 whose digest is its payload's")]
    Event {
        /// Which, from 0.
        index: usize,
    },
}

/// Runtime events of a log that no register holds, but the report data of evidence binds: the word of the guest's agent, which records nothing
/// else. The caller has compared the report data.
///
/// # Errors
/// When it is no event log, or anything in it is not what the agent writes.
pub fn runtime_log(bytes: &[u8]) -> Result<Value, RuntimeLogError> {
    let log = EventLog::parse(bytes)?;
    let events = log.events().iter().filter(|event| event.kind != EventType::NO_ACTION).enumerate().map(|(index, event)| {
        let bound = event.index == RTMR3 && event.check_payload() == PayloadCheck::Matches;
        match event.payload() {
            Ok(Payload::Aael(aael)) if bound => Ok(details::aael(&aael)),
            _ => Err(RuntimeLogError::Event { index }),
        }
    });
    Ok(Value::Array(events.collect::<Result<_, _>>()?))
}

/// The claims of a log: `uefi_event_logs` in CoCo's form, `event_log_findings` as text, `boot`, and `runtime_events` of RTMR3.
#[must_use]
pub fn claims(log: &EventLog) -> Value {
    let events: Vec<Value> = log.events().iter().map(event).collect();
    let findings: Vec<String> = log.findings(Registers::Cc).iter().map(ToString::to_string).collect();
    json!({ "uefi_event_logs": events, "event_log_findings": findings, "boot": boot(log), "runtime_events": runtime(log) })
}

fn event(event: &Event) -> Value {
    let digests: Vec<Value> =
        event.digests.iter().map(|digest| json!({ "alg": digest.algorithm.to_string(), "digest": hex::encode(&digest.bytes) })).collect();
    json!({
        "details": details::of(event),
        "digest_matches_event": event.is_digest_of(&event.data).unwrap_or(false),
        "digests": digests,
        "event": STANDARD.encode(&event.data),
        "index": event.index,
        "type_name": event.kind.to_string(),
    })
}

/// Events that were extended into a register.
fn extended(log: &EventLog, index: u32) -> Vec<&Event> {
    log.events().iter().filter(|event| event.index == index && event.kind != EventType::NO_ACTION).collect()
}

fn digest(event: &Event) -> Option<String> {
    event.digest(HashAlgorithm::SHA384).map(hex::encode)
}

/// What firmware says in RTMR1 around a direct boot (PFP 1.06, §10.4.4).
const ACTIONS: [&str; 5] = [
    "Calling EFI Application from Boot Option",
    "Returning from EFI Application from Boot Option",
    "Exit Boot Services Invocation",
    "Exit Boot Services Returned with Failure",
    "Exit Boot Services Returned with Success",
];

/// Whether a payload is one that no image can be. Any other is bytes of the log writer's choice, among them those of a small kernel.
fn is_short(event: &Event) -> bool {
    match event.payload() {
        Ok(Payload::Separator(_)) => true,
        Ok(Payload::Text(text)) => event.kind == EventType::EFI_ACTION && text.len() == event.data.len() && ACTIONS.contains(&text),
        _ => false,
    }
}

/// What was booted, where the log leaves no other reading.
fn boot(log: &EventLog) -> Value {
    let mut claims = Map::new();
    let mut put = |names: &[&str], digest: &Option<String>| {
        for name in names {
            if let Some(digest) = digest {
                claims.insert((*name).to_owned(), Value::String(digest.clone()));
            }
        }
    };
    let (bound, other): (Vec<&Event>, Vec<&Event>) =
        extended(log, RTMR1).into_iter().partition(|event| event.check_payload() == PayloadCheck::Matches);
    if let [kernel] = other.as_slice()
        && kernel.kind == EventType::EFI_BOOT_SERVICES_APPLICATION
        && let Ok(Payload::Image(path)) = kernel.payload()
        && path.last().is_some_and(|last| last == DIRECT_KERNEL)
        && bound.iter().all(|event| is_short(event))
    {
        put(&["kernel", "tdvfkernel"], &digest(kernel));
    }
    let tag = |event: &Event| match event.payload() {
        Ok(Payload::Tagged { id, .. }) => Some(id),
        _ => None,
    };
    let loaded = extended(log, RTMR2);
    match loaded.iter().map(|event| tag(event)).collect::<Vec<_>>().as_slice() {
        [Some(LOAD_OPTIONS)] | [Some(LOAD_OPTIONS), Some(INITRD)] => {
            put(&["kernel_parameters", "tdvfkernelparams"], &loaded.first().and_then(|event| digest(event)));
            put(&["initrd"], &loaded.get(1).and_then(|event| digest(event)));
        }
        _ => {}
    }
    Value::Object(claims)
}

/// Runtime events of RTMR3, each with its text as measured. Who may make them, the guest's agent decides.
fn runtime(log: &EventLog) -> Vec<Value> {
    extended(log, RTMR3)
        .into_iter()
        .filter(|event| event.check_payload() == PayloadCheck::Matches)
        .filter_map(|event| match event.payload() {
            Ok(Payload::Aael(aael)) => Some(details::aael(&aael)),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests;
