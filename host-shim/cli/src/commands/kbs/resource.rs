//! Secrets by name. Their values go to the broker and never come back: guests alone get them.

use std::path::Path;

use anyhow::Context;
use kata_cc_policy::guest_config::ResourceUri;
use reqwest::Method;
use serde_json::json;

use super::broker::Broker;
use super::done;
use crate::files;
use crate::output::{self, Format, Outcome, show};

pub(super) fn parse(text: &str) -> Result<ResourceUri, String> {
    let full = if text.starts_with("kbs:") { text.to_owned() } else { format!("kbs:///{text}") };
    full.parse().map_err(|expected| format!("expected {expected}, with or without kbs:///"))
}

pub(super) async fn set(broker: &Broker, path: &ResourceUri, file: &Path, format: Format) -> anyhow::Result<Outcome> {
    let bytes = files::read(file)?;
    broker.call(Method::POST, &format!("resource/{}", path.path()), Some(("application/octet-stream", bytes))).await?;
    done(format, "kbs.set-resource", json!({ "resource": path.to_string() }), format!("stored {path}"))
}

pub(super) async fn delete(broker: &Broker, path: &ResourceUri, format: Format) -> anyhow::Result<Outcome> {
    broker.delete(&format!("resource/{}", path.path())).await?;
    done(format, "kbs.delete-resource", json!({ "resource": path.to_string() }), format!("deleted {path}"))
}

async fn names(broker: &Broker) -> anyhow::Result<Vec<String>> {
    let listed = broker.get_json("resource").await?;
    let names = listed.get("resources").cloned().context("the broker's answer holds no list of resources")?;
    serde_json::from_value(names).context("the broker's list of resources is not one of names")
}

pub(super) async fn list(broker: &Broker, prefix: Option<&str>, format: Format) -> anyhow::Result<Outcome> {
    let mut names = names(broker).await?;
    names.retain(|name| prefix.is_none_or(|prefix| below(name, prefix)));
    show(format, "kbs.list-resources", &json!({ "resources": names }), || names.iter().map(|name| format!("{name}\n")).collect())?;
    Ok(Outcome::Done)
}

/// Whether a name begins with whole parts of the prefix.
fn below(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether there is such a resource.
pub(super) async fn get(broker: &Broker, path: &ResourceUri, format: Format) -> anyhow::Result<Outcome> {
    let there = names(broker).await?.iter().any(|name| name == path.path());
    show(format, "kbs.get-resource", &json!({ "resource": path.to_string(), "exists": there }), || {
        format!("{path} {}", if there { "is there" } else { "is not there" })
    })?;
    output::note(format, "values are for attested guests; the broker gives them to no administrator");
    Ok(Outcome::when(there))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_paths_have_three_plain_parts() {
        assert_eq!(parse("a/b/c").unwrap().path(), "a/b/c");
        assert_eq!(parse("kbs:///a/b/c").unwrap().path(), "a/b/c");
        for bad in ["", "a/b", "a/b/c/d", "a/../c", "kbs://host/a/b/c", "a/b/c?x", "/a/b/c"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_is_of_whole_parts() {
        assert!(below("a/b/c", "a") && below("a/b/c", "a/b/") && below("a/b/c", "a/b/c"));
        assert!(!below("ab/c/d", "a") && !below("a/b/c", "a/b/c/d"));
    }
}
