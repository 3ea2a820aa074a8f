//! How results and errors leave the program.
//!
//! Text for people and pipes, or one JSON object with a `schema` field whose value changes when the meaning of a field does.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

/// Form of the result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// For people and pipes.
    Text,
    /// For programs.
    Json,
}

/// Whether the answer was the one the caller hoped for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Outcome {
    /// Done, or every check passed: exit code 0.
    Done,
    /// The command worked, but a check failed or a request was denied: exit code 3.
    No,
}

impl Outcome {
    /// `Done` when it holds.
    pub(crate) fn when(holds: bool) -> Self {
        if holds { Outcome::Done } else { Outcome::No }
    }
}

/// Prints one result: `text` as it is (a newline is added when it has none), or `value` as JSON under `schema`.
pub(crate) fn show(format: Format, schema: &str, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let mut out = match format {
        Format::Text => text(),
        Format::Json => json(schema, value)?,
    };
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    raw(out.as_bytes())
}

/// Tells errors of stdout from others.
#[derive(Debug)]
struct ToStdout;

impl std::fmt::Display for ToStdout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cannot write to stdout")
    }
}

/// Writes bytes to stdout as they are.
pub(crate) fn raw(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).context(ToStdout)
}

/// `schema` first, so that a reader of the text sees what follows.
#[derive(Serialize)]
struct Tagged {
    schema: String,
    #[serde(flatten)]
    fields: serde_json::Map<String, Value>,
}

fn json(schema: &str, value: &impl Serialize) -> anyhow::Result<String> {
    let fields = match serde_json::to_value(value)? {
        Value::Object(fields) => fields,
        Value::Null => serde_json::Map::new(),
        other => serde_json::Map::from_iter([("result".to_owned(), other)]),
    };
    Ok(serde_json::to_string_pretty(&Tagged { schema: format!("kata-cc/{schema}/v1"), fields })?)
}

/// Says on stderr what is useful to know beside the result. Silent with `--json`.
pub(crate) fn note(format: Format, text: impl AsRef<str>) {
    if format == Format::Text {
        // Nothing can be done about a closed stderr.
        let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
    }
}

/// Prints an error and its causes on stderr.
pub(crate) fn explain(error: &anyhow::Error, format: Format) {
    let mut stderr = io::stderr().lock();
    // Nothing can be done about a closed stderr.
    let _ = match format {
        Format::Text => {
            let mut text = format!("error: {error}\n");
            for cause in error.chain().skip(1) {
                text.push_str(&format!("  because: {cause}\n"));
            }
            stderr.write_all(text.as_bytes())
        }
        Format::Json => {
            let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
            writeln!(stderr, "{}", serde_json::json!({ "schema": "kata-cc/error/v1", "error": error.to_string(), "causes": causes }))
        }
    };
}

/// Whether stdout was closed by whoever read it (`kata-cc … | head`): no error of ours. A broker that hangs up breaks a pipe too, which is one.
pub(crate) fn reader_went_away(error: &anyhow::Error) -> bool {
    let is_closed = error.root_cause().downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe);
    is_closed && error.downcast_ref::<ToStdout>().is_some()
}

/// Lower-case hex wrapped for people: `label  value`.
pub(crate) fn line(label: &str, value: impl std::fmt::Display) -> String {
    format!("{label:<24} {value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_results_name_their_schema_first() {
        let text = json("measure.snp", &serde_json::json!({ "digest": "00" })).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value, serde_json::json!({ "schema": "kata-cc/measure.snp/v1", "digest": "00" }));
        assert!(text.find("schema").unwrap() < text.find("digest").unwrap());
        assert_eq!(
            serde_json::from_str::<Value>(&json("x", &["a"]).unwrap()).unwrap(),
            serde_json::json!({ "schema": "kata-cc/x/v1", "result": ["a"] })
        );
    }

    #[test]
    fn only_a_closed_pipe_counts_as_the_reader_going_away() {
        let stdout = |kind| anyhow::Error::from(io::Error::from(kind)).context(ToStdout).context("measure");
        assert!(reader_went_away(&stdout(io::ErrorKind::BrokenPipe)) && !reader_went_away(&stdout(io::ErrorKind::StorageFull)));
        let network = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("cannot reach the broker");
        assert!(!reader_went_away(&network));
        assert!(!reader_went_away(&anyhow::anyhow!("other")));
    }
}
