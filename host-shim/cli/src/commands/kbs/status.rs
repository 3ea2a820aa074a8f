//! Whom the broker takes us for, and how it is.

use reqwest::Method;
use serde_json::{Value, json};

use super::broker::Broker;
use super::plain;
use crate::output::{Format, Outcome, show};

pub(super) async fn whoami(broker: &Broker, format: Format) -> anyhow::Result<Outcome> {
    let told = broker.get_json("whoami").await?;
    show(format, "kbs.whoami", &told, || {
        let mut out = format!("{} as {}\n", plain(&told["subject"]), plain(&told["role"]));
        for granted in told["may"].as_array().into_iter().flatten() {
            let permissions: Vec<String> = granted["permissions"].as_array().into_iter().flatten().map(plain).collect();
            let paths = granted.get("paths").map_or_else(String::new, |paths| format!(" at {}", plain(paths)));
            out.push_str(&format!("  may {}{paths}\n", permissions.join(", ")));
        }
        out
    })?;
    Ok(Outcome::Done)
}

/// Whether it lives and whether it is ready: two questions, to both of which the answer may be no.
pub(super) async fn health(broker: &Broker, format: Format) -> anyhow::Result<Outcome> {
    let mut told = serde_json::Map::new();
    let mut text = String::new();
    let mut good = true;
    for (name, path) in [("alive", "healthz"), ("ready", "readyz")] {
        let answer = broker.ask(Method::GET, path, None).await?;
        let said = String::from_utf8_lossy(&answer.body).chars().filter(|c| !c.is_control()).take(300).collect::<String>();
        let detail = serde_json::from_slice::<Value>(&answer.body).ok().and_then(|body| body.get("detail").map(plain)).unwrap_or(said);
        let holds = answer.status.is_success();
        good &= holds;
        text.push_str(&format!("{name:<6} {}  {detail}\n", if holds { "yes" } else { "NO " }));
        told.insert(name.into(), json!(holds));
        if !holds {
            told.insert(format!("{name}_detail"), json!(detail));
        }
    }
    show(format, "kbs.health", &told, || text)?;
    Ok(Outcome::when(good))
}
