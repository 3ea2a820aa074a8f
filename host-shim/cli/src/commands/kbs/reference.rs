//! What evidence is compared with: signed manifests, and single values where the broker takes unsigned ones.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use reqwest::Method;
use serde_json::{Value, json};

use super::broker::{Broker, segment};
use super::{done, plain};
use crate::files;
use crate::output::{self, Format, Outcome, show};

/// Arguments of `kbs set-reference-value`.
#[derive(clap::Args)]
pub(super) struct SetValue {
    /// Name the attestation policy asks for, such as snp_launch_measurement.
    #[arg(value_name = "ID")]
    id: String,
    /// Values; text unless --as-json.
    #[arg(value_name = "VALUE", required_unless_present = "value_file")]
    values: Vec<String>,
    /// A file whose text is a value, such as a policy key in PEM; may be given several times.
    #[arg(long, value_name = "FILE", conflicts_with = "as_json")]
    value_file: Vec<PathBuf>,
    /// Read each value as JSON (numbers, true, false).
    #[arg(long)]
    as_json: bool,
}

impl SetValue {
    fn values(&self) -> anyhow::Result<Vec<Value>> {
        if self.as_json {
            let read = |text: &String| {
                serde_json::from_str(text).with_context(|| format!("{text:?} is not JSON; quote text or leave out --as-json"))
            };
            return self.values.iter().map(read).collect();
        }
        let files = self.value_file.iter().map(|path| files::read_text(path)).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(self.values.iter().cloned().chain(files).map(Value::String).collect())
    }
}

pub(super) async fn set_value(broker: &Broker, args: &SetValue, format: Format) -> anyhow::Result<Outcome> {
    let (id, values) = (&args.id, args.values()?);
    broker.post("reference-value", &json!({ "id": id, "values": values })).await?;
    done(format, "kbs.set-reference-value", json!({ "id": id, "values": values }), format!("{id} has {} value(s), unsigned", values.len()))
}

pub(super) async fn get_value(broker: &Broker, id: &str, format: Format) -> anyhow::Result<Outcome> {
    let value = broker.get_json(&format!("reference-value/{}", segment(id)?)).await?;
    show(format, "kbs.get-reference-value", &json!({ "id": id, "value": value }), || match &value {
        Value::Array(values) => values.iter().map(|v| plain(v) + "\n").collect(),
        other => plain(other),
    })?;
    Ok(Outcome::Done)
}

pub(super) async fn delete_value(broker: &Broker, id: &str, format: Format) -> anyhow::Result<Outcome> {
    broker.delete(&format!("reference-value/{}", segment(id)?)).await?;
    done(format, "kbs.delete-reference-value", json!({ "id": id }), format!("deleted {id}"))
}

pub(super) async fn list_values(broker: &Broker, format: Format) -> anyhow::Result<Outcome> {
    let values = broker.get_json("reference-value").await?;
    show(format, "kbs.list-reference-values", &json!({ "values": values }), || {
        let line = |(id, value): (&String, &Value)| match value {
            Value::Array(list) => format!("{id}  {} value(s)\n", list.len()),
            scalar => format!("{id}  {}\n", plain(scalar)),
        };
        values.as_object().into_iter().flatten().map(line).collect()
    })?;
    Ok(Outcome::Done)
}

pub(super) async fn set_manifest(broker: &Broker, file: &Path, allow_rollback: bool, format: Format) -> anyhow::Result<Outcome> {
    let envelope = files::read(file)?;
    let payload_type = serde_json::from_slice::<Value>(&envelope).ok().and_then(|json| json.get("payloadType").cloned());
    // The broker takes other forms too by the same call: those have a command of their own.
    payload_type.with_context(|| format!("{} is no signed manifest; `kata-cc measure … --sign` makes one", file.display()))?;
    let path = if allow_rollback { "reference-value?allow_rollback=true" } else { "reference-value" };
    let answer = broker.call(Method::POST, path, Some(("application/json", envelope))).await?;
    let answer: Value = serde_json::from_slice(&answer).context("the broker's answer is not JSON")?;
    let text = format!(
        "{} serial {}: {}, {} (sha256 {})",
        plain(&answer["name"]),
        plain(&answer["serial"]),
        plain(&answer["outcome"]),
        plain(&answer["standing"]),
        plain(&answer["sha256"])
    );
    done(format, "kbs.set-reference-manifest", answer, text)
}

pub(super) async fn get_manifest(broker: &Broker, name: &str, out: &Path, format: Format) -> anyhow::Result<Outcome> {
    let envelope = broker.get(&format!("reference-manifest/{}", segment(name)?)).await?;
    files::write(out, &envelope)?;
    output::note(format, "verify it: kata-cc verify manifest FILE --key PUB");
    Ok(Outcome::Done)
}

pub(super) async fn delete_manifest(broker: &Broker, name: &str, format: Format) -> anyhow::Result<Outcome> {
    broker.delete(&format!("reference-manifest/{}", segment(name)?)).await?;
    let text = format!("deleted {name}; its serial number is remembered");
    done(format, "kbs.delete-reference-manifest", json!({ "name": name }), text)
}

pub(super) async fn list_manifests(broker: &Broker, format: Format) -> anyhow::Result<Outcome> {
    let listed = broker.get_json("reference-manifest").await?;
    show(format, "kbs.list-reference-manifests", &listed, || {
        listed["manifests"].as_array().into_iter().flatten().map(described).collect()
    })?;
    Ok(Outcome::Done)
}

/// A manifest on three lines.
fn described(manifest: &Value) -> String {
    let text = |name: &str| plain(&manifest[name]);
    // Years beyond 9999 cannot be written.
    let time = |name: &str| {
        let unix = manifest[name].as_u64().unwrap_or_default().min(253_402_300_799);
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix)).to_string()
    };
    let counts: Vec<String> = manifest["values"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(id, values)| format!("{id} ({})", values.as_array().map_or(0, Vec::len)))
        .collect();
    format!(
        "{} {} serial {}  {}  {}\n  {} to {}, signed by {}, brought by {}\n  {}\n",
        text("name"),
        text("release"),
        text("serial"),
        text("kind"),
        text("standing"),
        time("not_before"),
        time("expires"),
        text("signer"),
        text("put_by"),
        counts.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_described_with_what_it_is_worth() {
        let text = described(&json!({
            "name": "guest", "release": "1.2", "serial": 3, "kind": "production", "standing": "expired", "not_before": 0, "expires": 60,
            "signer": "aa", "put_by": "key b as admin", "values": {"snp_launch_measurement": ["x", "y"]},
        }));
        for word in ["guest 1.2 serial 3", "expired", "1970-01-01T00:01:00Z", "snp_launch_measurement (2)", "key b as admin"] {
            assert!(text.contains(word), "no {word:?} in {text}");
        }
        assert!(described(&json!({})).contains("serial -"));
    }
}
