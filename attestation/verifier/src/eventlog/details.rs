//! An event's `details` as CoCo's claims have them, oddities included: policies were written against these.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_evidence::eventlog::{Aael, Event, EventType, Payload, UefiVariable};
use serde_json::{Value, json};

/// Names by which CoCo shows tags of Linux's EFI stub: their contents up to the first NUL.
fn label(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data.split(|byte| *byte == 0).next()?).ok()
}

/// A GUID in the byte order of the log, which is not that of GUIDs' text form.
fn raw_guid(guid: &[u8; 16]) -> String {
    let digits = hex::encode(guid);
    [0..8, 8..12, 12..16, 16..20, 20..32].into_iter().filter_map(|range| digits.get(range)).collect::<Vec<_>>().join("-")
}

fn variable(variable: &UefiVariable<'_>) -> Value {
    json!({
        "unicode_name": variable.name,
        "unicode_name_length": variable.name.encode_utf16().count(),
        "variable_data": STANDARD.encode(variable.data),
        "variable_data_length": variable.data.len(),
        "variable_name": raw_guid(&variable.guid),
    })
}

/// A runtime event's parts; content that is JSON is shown as JSON.
pub(super) fn aael(aael: &Aael) -> Value {
    let content = serde_json::from_str(aael.content()).unwrap_or_else(|_| Value::String(aael.content().to_owned()));
    json!({ "domain": aael.domain(), "operation": aael.operation(), "content": content })
}

/// The details of an event. Empty where there are none, and for a payload that is malformed.
pub(super) fn of(event: &Event) -> Value {
    match event.payload() {
        Ok(Payload::Variable(found)) => variable(&found),
        Ok(Payload::Image(path)) if !path.is_empty() => json!({ "device_paths": path }),
        Ok(Payload::Aael(found)) => json!({ "data": aael(&found), "string": found.text(), "unicode_name": "AAEL" }),
        Ok(Payload::Tagged { data, .. }) => label(data).map_or_else(|| json!({}), |text| json!({ "string": text })),
        Ok(Payload::TdShim { name, data }) => {
            // The command line is text; a hand-off block is not, and is shown as none.
            let text = label(data).filter(|text| !text.is_empty() && !text.contains(char::is_control));
            json!({ "string": text.map(|text| format!("{name} {text}")).unwrap_or_default() })
        }
        Ok(Payload::Blob { name }) => json!({ "string": name }),
        Ok(Payload::Text(text)) => json!({ "string": text }),
        Ok(Payload::Opaque(_)) if event.kind == EventType::PLATFORM_CONFIG_FLAGS => json!({ "string": "" }),
        _ => json!({}),
    }
}
