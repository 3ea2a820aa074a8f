//! The broker's two policies: which guest is trusted, and which trusted guest gets which secret.

use std::path::Path;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::broker::{Broker, segment};
use super::done;
use crate::files;
use crate::output::{Format, Outcome, show};

pub(super) async fn set_resource(broker: &Broker, file: &Path, format: Format) -> anyhow::Result<Outcome> {
    let policy = files::read(file)?;
    broker.post("resource-policy", &json!({ "policy": URL_SAFE_NO_PAD.encode(policy) })).await?;
    done(format, "kbs.set-resource-policy", json!({}), "the resource policy is in force".to_owned())
}

pub(super) async fn get_resource(broker: &Broker, format: Format) -> anyhow::Result<Outcome> {
    let policy = policy_text(&broker.get("resource-policy").await?)?;
    show(format, "kbs.get-resource-policy", &json!({ "policy": policy }), || policy.clone())?;
    Ok(Outcome::Done)
}

pub(super) async fn reset_resource(broker: &Broker, format: Format) -> anyhow::Result<Outcome> {
    broker.delete("resource-policy").await?;
    done(format, "kbs.reset-resource-policy", json!({}), "the built-in resource policy is in force".to_owned())
}

pub(super) async fn set_attestation(broker: &Broker, file: &Path, id: &str, format: Format) -> anyhow::Result<Outcome> {
    put_attestation(broker, &files::read(file)?, id).await?;
    done(format, "kbs.set-attestation-policy", json!({ "policy_id": id }), format!("attestation policy {id} is in force"))
}

/// Sets a policy without a word.
pub(super) async fn put_attestation(broker: &Broker, policy: &[u8], id: &str) -> anyhow::Result<()> {
    let body = json!({ "type": "rego", "policy_id": id, "policy": URL_SAFE_NO_PAD.encode(policy) });
    broker.post("attestation-policy", &body).await?;
    Ok(())
}

pub(super) async fn get_attestation(broker: &Broker, id: &str, format: Format) -> anyhow::Result<Outcome> {
    let policy = policy_text(&broker.get(&format!("attestation-policy/{}", segment(id)?)).await?)?;
    show(format, "kbs.get-attestation-policy", &json!({ "policy_id": id, "policy": policy }), || policy.clone())?;
    Ok(Outcome::Done)
}

pub(super) async fn reset_attestation(broker: &Broker, id: &str, format: Format) -> anyhow::Result<Outcome> {
    broker.delete(&format!("attestation-policy/{}", segment(id)?)).await?;
    done(format, "kbs.reset-attestation-policy", json!({ "policy_id": id }), format!("the built-in attestation policy {id} is in force"))
}

pub(super) async fn list_attestation(broker: &Broker, format: Format) -> anyhow::Result<Outcome> {
    let listed = broker.get_json("attestation-policy").await?;
    show(format, "kbs.list-attestation-policies", &listed, || {
        let line = |policy: &Value| {
            let origin = if policy["built_in"] == true { "built in" } else { "set by an administrator" };
            format!("{}  {origin}\n", super::plain(&policy["policy_id"]))
        };
        listed["policies"].as_array().into_iter().flatten().map(line).collect()
    })?;
    Ok(Outcome::Done)
}

/// The broker answers with the policy as text, as base64url of text, or as `{"policy": base64url}`.
fn policy_text(answer: &[u8]) -> anyhow::Result<String> {
    let text = match serde_json::from_slice::<Value>(answer) {
        Ok(Value::Object(body)) => body.get("policy").and_then(Value::as_str).context("the broker's answer holds no policy")?.to_owned(),
        Ok(Value::String(text)) => text,
        _ => String::from_utf8(answer.to_vec()).context("the broker's answer is not text")?,
    };
    match URL_SAFE_NO_PAD.decode(text.trim()) {
        Ok(bytes) => String::from_utf8(bytes).context("the policy is not text"),
        Err(_) => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_in_each_form_brokers_answer_with() {
        let rego = "package policy\ndefault allow := false\n";
        let encoded = URL_SAFE_NO_PAD.encode(rego);
        for answer in [rego.to_owned(), encoded.clone(), json!({ "policy": encoded }).to_string(), json!(encoded).to_string()] {
            assert_eq!(policy_text(answer.as_bytes()).unwrap(), rego, "{answer}");
        }
    }
}
