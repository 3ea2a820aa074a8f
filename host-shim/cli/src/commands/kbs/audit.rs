//! Decisions of the broker: listed, and explained.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::{Value, json};

use super::broker::{Broker, segment};
use super::plain;
use crate::output::{Format, Outcome, show};

/// Arguments of `kbs audit`.
#[derive(clap::Args)]
pub(super) struct Filters {
    /// How many at most, newest first.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only those since then: RFC 3339, or a span before now such as 2h.
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<u64>,
    /// Only of this action: attest, read-resource, write-resource, delete-resource, set-policy, set-reference-value,
    /// set-reference-manifest, admin-refused.
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only those with numbers below this: the page before.
    #[arg(long, value_name = "ID")]
    before: Option<u64>,
    /// Only those that were allowed (true) or refused (false).
    #[arg(long, value_name = "BOOL")]
    allowed: Option<bool>,
}

/// Unix time of an RFC 3339 time, or of so long ago.
fn parse_since(text: &str) -> Result<u64, String> {
    let at = match humantime::parse_rfc3339_weak(text) {
        Ok(at) => Some(at),
        Err(_) => humantime::parse_duration(text).ok().and_then(|ago| SystemTime::now().checked_sub(ago)),
    };
    let unix = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
    unix.ok_or_else(|| format!("expected a time such as 2026-01-31T12:00:00Z or a span such as 2h, found {text:?}"))
}

impl Filters {
    fn query(&self) -> anyhow::Result<String> {
        let mut query = format!("audit?limit={}", self.limit);
        if let Some(since) = self.since {
            query.push_str(&format!("&since={since}"));
        }
        if let Some(before) = self.before {
            query.push_str(&format!("&before={before}"));
        }
        if let Some(action) = &self.action {
            query.push_str(&format!("&action={}", segment(action)?));
        }
        if let Some(allowed) = self.allowed {
            query.push_str(&format!("&allowed={allowed}"));
        }
        Ok(query)
    }
}

pub(super) async fn list(broker: &Broker, filters: &Filters, format: Format) -> anyhow::Result<Outcome> {
    let records = decisions(&broker.get(&filters.query()?).await?)?;
    show(format, "kbs.audit", &json!({ "decisions": records }), || records.iter().map(summary).collect())?;
    Ok(Outcome::Done)
}

pub(super) async fn explain(broker: &Broker, id: u64, format: Format) -> anyhow::Result<Outcome> {
    let record = broker.get_json(&format!("audit/{id}")).await?;
    show(format, "kbs.explain", &record, || explained(&record))?;
    Ok(Outcome::Done)
}

/// The list of decisions, newest first.
fn decisions(answer: &[u8]) -> anyhow::Result<Vec<Value>> {
    serde_json::from_slice(answer).context("the broker's audit answer is not a list of decisions")
}

/// A decision on one line.
fn summary(record: &Value) -> String {
    let at = record["at"].as_u64().unwrap_or_default();
    // Years beyond 9999 cannot be written; no clock is there.
    let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at.min(253_402_300_799)));
    let verdict = if record["allowed"] == true { "allowed" } else { "REFUSED" };
    let text = |name: &str| plain(record.get(name).unwrap_or(&Value::Null));
    let subject = if record.get("subject").is_some() { text("subject") } else { text("tee") };
    let times = record["times"].as_u64().map_or_else(String::new, |times| format!("  x{times}"));
    format!("{:>6}  {at}  {verdict}  {:<20} {:<14} {subject}  ({}){times}\n", text("id"), text("action"), text("outcome"), text("rule"))
}

/// A decision for people: the verdict and its rule, what was compared with expected beside found, then everything else.
fn explained(record: &Value) -> String {
    fn walk(value: &Value, name: &str, depth: usize, out: &mut String) {
        let pad = "  ".repeat(depth);
        match value {
            Value::Object(fields) => {
                out.push_str(&format!("{pad}{name}:\n"));
                fields.iter().for_each(|(key, inner)| walk(inner, key, depth + 1, out));
            }
            Value::Array(list) if list.iter().any(|v| v.is_object() || v.is_array()) => {
                out.push_str(&format!("{pad}{name}:\n"));
                list.iter().for_each(|inner| walk(inner, "-", depth + 1, out));
            }
            Value::Array(list) => out.push_str(&format!("{pad}{name}: {}\n", list.iter().map(plain).collect::<Vec<_>>().join(", "))),
            other => out.push_str(&format!("{pad}{name}: {}\n", plain(other))),
        }
    }
    let Value::Object(fields) = record else { return String::new() };
    let mut out = summary(record);
    out.push_str(&format!("rule: {}\n", plain(&record["rule"])));
    for compared in record["comparisons"].as_array().into_iter().flatten() {
        let mark = if matches(&compared["expected"], &compared["found"]) { "as expected" } else { "DIFFERS" };
        out.push_str(&format!("{} {mark}\n", plain(&compared["claim"])));
        out.push_str(&format!("  expected: {}\n  found:    {}\n", listed(&compared["expected"]), listed(&compared["found"])));
    }
    for (key, inner) in fields.iter().filter(|(key, _)| !matches!(key.as_str(), "comparisons" | "rule")) {
        walk(inner, key, 0, &mut out);
    }
    out
}

/// Whether what was found is the expected value or one of them. A hint for the eye: the policy alone decides, and may ask for "at least".
fn matches(expected: &Value, found: &Value) -> bool {
    expected == found || expected.as_array().is_some_and(|all| all.contains(found))
}

fn listed(value: &Value) -> String {
    match value {
        Value::Array(all) if all.is_empty() => "nothing is registered".to_owned(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => plain(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_shown_on_a_line_and_in_full() {
        let answer = json!([{ "id": 7, "at": 1_700_000_000, "action": "read-resource", "allowed": false, "outcome": "denied",
            "subject": "a/b/c", "rule": "default resource policy", "comparisons": [{ "claim": "ear.status", "expected": "affirming", "found": "warning" }] }]);
        let records = decisions(answer.to_string().as_bytes()).unwrap();
        let line = summary(&records[0]);
        assert!(line.contains("2023-11-14T22:13:20Z") && line.contains("REFUSED") && line.contains("a/b/c"), "{line}");
        let full = explained(&records[0]);
        assert!(full.contains("expected: affirming") && full.contains("found:    warning"), "{full}");
        assert!(full.contains("ear.status DIFFERS") && full.contains("rule: default resource policy"), "{full}");
        assert!(summary(&json!({})).ends_with(")\n"));
        assert!(summary(&json!({ "times": 7 })).ends_with("x7\n"));
        assert!(decisions(b"{}").is_err());
    }

    #[test]
    fn a_time_is_given_as_such_or_as_a_span() {
        assert_eq!(parse_since("1970-01-01T00:01:00Z"), Ok(60));
        assert!(parse_since("2h").unwrap() > 1_000_000_000);
        assert!(parse_since("yesterday").is_err());
    }

    #[test]
    fn each_filter_is_asked_for() {
        let all = Filters { limit: 5, since: Some(7), before: Some(9), action: Some("attest".into()), allowed: Some(false) };
        assert_eq!(all.query().unwrap(), "audit?limit=5&since=7&before=9&action=attest&allowed=false");
        assert!(Filters { action: Some("a&b".into()), ..all }.query().is_err());
    }
}
