//! `kata-cc kbs`: administer a key broker over its HTTP interface (CoCo KBS, `/kbs/v0`, with our additions `audit` and plain
//! reference values).
//!
//! Invariants: the admin key never leaves this process (the broker gets a token that lives five minutes); secrets travel only over
//! TLS, or over loopback.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;
use kata_cc_policy::SigningKey;
use kata_cc_policy::guest_config::ResourceUri;
use kata_cc_policy::keys::KeyKind;
use reqwest::{Method, StatusCode, Url};
use serde_json::{Value, json};

use crate::files;
use crate::output::{self, Format, Outcome, show};

/// How long an admin token lives: one command.
const TOKEN_LIFETIME: Duration = Duration::from_secs(300);
/// Largest answer read.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// A broker that says nothing for this long is not there.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Arguments of `kbs`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The broker's URL, such as https://broker.example:8080.
    #[arg(long, value_name = "URL", env = "KATA_CC_KBS_URL")]
    url: String,
    /// PEM certificate (or CA) to expect at the broker; without it, the system's roots.
    #[arg(long, value_name = "FILE", env = "KATA_CC_KBS_CA")]
    ca: Option<PathBuf>,
    /// The admin's private key: Ed25519, PKCS#8 PEM (the broker makes one in its data directory at its first start).
    #[arg(long, value_name = "FILE", env = "KATA_CC_KBS_ADMIN_KEY")]
    admin_key: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// What to ask the broker for.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store a secret.
    SetResource {
        /// repository/type/tag, or kbs:///repository/type/tag.
        #[arg(value_name = "PATH", value_parser = parse_resource)]
        path: ResourceUri,
        /// File with the secret's bytes (`-`: stdin).
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Delete a secret.
    DeleteResource {
        /// repository/type/tag, or kbs:///repository/type/tag.
        #[arg(value_name = "PATH", value_parser = parse_resource)]
        path: ResourceUri,
    },
    /// Set the policy that decides which attested guest gets which secret.
    SetResourcePolicy {
        /// Rego, package policy.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print that policy.
    GetResourcePolicy,
    /// Set the policy that appraises evidence.
    SetAttestationPolicy {
        /// Rego, package policy.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Which appraisal policy.
        #[arg(long, value_name = "ID", default_value = "default_cpu")]
        id: String,
    },
    /// Print that policy.
    GetAttestationPolicy {
        /// Which appraisal policy.
        #[arg(long, value_name = "ID", default_value = "default_cpu")]
        id: String,
    },
    /// Set the values a claim is compared with; they replace earlier ones.
    SetReferenceValue {
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
    },
    /// Print the values a claim is compared with.
    GetReferenceValue {
        /// Name the attestation policy asks for.
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Print the broker's last decisions.
    Audit {
        /// How many at most, newest first.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Explain one decision: which claim was expected, what was found, which rule decided.
    Explain {
        /// Number of the decision, as `audit` prints it.
        #[arg(value_name = "ID")]
        id: u64,
    },
}

fn parse_resource(text: &str) -> Result<ResourceUri, String> {
    let full = if text.starts_with("kbs:") { text.to_owned() } else { format!("kbs:///{text}") };
    full.parse().map_err(|expected| format!("expected {expected}, with or without kbs:///"))
}

pub(crate) fn run(args: Args, format: Format) -> anyhow::Result<Outcome> {
    let base = parse_url(&args.url)?;
    let pem = files::read_text(&args.admin_key)?;
    let key = SigningKey::from_pkcs8_pem(&pem).with_context(|| format!("{} is not a usable admin key", args.admin_key.display()))?;
    let token = admin_token(&key, SystemTime::now()).with_context(|| format!("{} is not a usable admin key", args.admin_key.display()))?;
    let ca = args.ca.as_deref().map(files::read).transpose()?;
    super::block_on(async {
        let broker = Broker { client: client(ca.as_deref())?, base, token };
        execute(&broker, args.command, format).await
    })
}

fn parse_url(text: &str) -> anyhow::Result<Url> {
    let url: Url = text.parse().with_context(|| format!("expected a URL such as https://broker.example:8080, found {text:?}"))?;
    let loopback = match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if loopback => Ok(url),
        "http" => bail!("{text} would send secrets in the clear; use https:// (http:// is for loopback only)"),
        other => bail!("expected an https:// URL, found {other}://"),
    }
}

fn client(ca: Option<&[u8]>) -> anyhow::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
    if let Some(pem) = ca {
        let certificates = reqwest::Certificate::from_pem_bundle(pem).context("--ca holds no PEM certificate")?;
        if certificates.is_empty() {
            bail!("--ca holds no PEM certificate (expected -----BEGIN CERTIFICATE-----)");
        }
        // Only these: with --ca given, a public authority must not be able to vouch for another broker.
        builder = builder.tls_certs_only(certificates);
    }
    Ok(builder.build()?)
}

/// A JWT (RFC 7519) signed with EdDSA (RFC 8037).
fn admin_token(key: &SigningKey, now: SystemTime) -> anyhow::Result<String> {
    if key.public_key().kind() != KeyKind::Ed25519 {
        bail!("expected an Ed25519 private key, found P-256");
    }
    let now = now.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let header = json!({ "alg": "EdDSA", "typ": "JWT" });
    let claims = json!({ "role": "admin", "iat": now, "exp": now + TOKEN_LIFETIME.as_secs() });
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = key.sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

struct Broker {
    client: reqwest::Client,
    base: Url,
    token: String,
}

impl Broker {
    async fn call(&self, method: Method, path: &str, body: Option<(&str, Vec<u8>)>) -> anyhow::Result<Vec<u8>> {
        let url = format!("{}/kbs/v0/{path}", self.base.as_str().trim_end_matches('/'));
        let mut request = self.client.request(method, &url).bearer_auth(&self.token);
        if let Some((kind, bytes)) = body {
            request = request.header("content-type", kind).body(bytes);
        }
        let mut response = request.send().await.with_context(|| format!("no answer from the broker at {}", self.base))?;
        let status = response.status();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.context("the broker's answer broke off")? {
            if answer.len() + chunk.len() > MAX_ANSWER {
                bail!("the broker's answer is longer than {MAX_ANSWER} bytes");
            }
            answer.extend_from_slice(&chunk);
        }
        if status.is_success() { Ok(answer) } else { Err(refusal(status, &answer)) }
    }

    async fn get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        self.call(Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Vec<u8>> {
        self.call(Method::POST, path, Some(("application/json", body.to_string().into_bytes()))).await
    }
}

/// What the broker said, and what to do about it.
fn refusal(status: StatusCode, answer: &[u8]) -> anyhow::Error {
    let said = match serde_json::from_slice::<Value>(answer) {
        Ok(body) => body.get("detail").and_then(Value::as_str).map(str::to_owned).unwrap_or_else(|| body.to_string()),
        Err(_) => String::from_utf8_lossy(answer).chars().take(500).collect(),
    };
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; check that --admin-key belongs to a public key in the broker's [admin] section, and both clocks"
        }
        StatusCode::NOT_FOUND => "; check the name, and that --url names the broker's root",
        _ => "",
    };
    anyhow::anyhow!("the broker refused with {status}: {}{hint}", said.trim())
}

async fn execute(broker: &Broker, command: Command, format: Format) -> anyhow::Result<Outcome> {
    match command {
        Command::SetResource { path, file } => {
            let bytes = files::read(&file)?;
            broker.call(Method::POST, &format!("resource/{}", path.path()), Some(("application/octet-stream", bytes))).await?;
            done(format, "kbs.set-resource", json!({ "resource": path.to_string() }), format!("stored {path}"))
        }
        Command::DeleteResource { path } => {
            broker.call(Method::DELETE, &format!("resource/{}", path.path()), None).await?;
            done(format, "kbs.delete-resource", json!({ "resource": path.to_string() }), format!("deleted {path}"))
        }
        Command::SetResourcePolicy { file } => {
            let policy = files::read(&file)?;
            broker.post("resource-policy", &json!({ "policy": URL_SAFE_NO_PAD.encode(policy) })).await?;
            done(format, "kbs.set-resource-policy", json!({}), "the resource policy is in force".to_owned())
        }
        Command::GetResourcePolicy => {
            let policy = policy_text(&broker.get("resource-policy").await?)?;
            show(format, "kbs.get-resource-policy", &json!({ "policy": policy }), || policy.clone())?;
            Ok(Outcome::Done)
        }
        Command::SetAttestationPolicy { file, id } => {
            let policy = files::read(&file)?;
            let body = json!({ "type": "rego", "policy_id": id, "policy": URL_SAFE_NO_PAD.encode(policy) });
            broker.post("attestation-policy", &body).await?;
            done(format, "kbs.set-attestation-policy", json!({ "policy_id": id }), format!("attestation policy {id} is in force"))
        }
        Command::GetAttestationPolicy { id } => {
            let policy = policy_text(&broker.get(&format!("attestation-policy/{}", segment(&id)?)).await?)?;
            show(format, "kbs.get-attestation-policy", &json!({ "policy_id": id, "policy": policy }), || policy.clone())?;
            Ok(Outcome::Done)
        }
        Command::SetReferenceValue { id, values, value_file, as_json } => {
            let values = if as_json {
                values
                    .iter()
                    .map(|v| serde_json::from_str(v).with_context(|| format!("{v:?} is not JSON; quote text or leave out --as-json")))
                    .collect::<anyhow::Result<Vec<Value>>>()?
            } else {
                let files = value_file.iter().map(|path| files::read_text(path)).collect::<anyhow::Result<Vec<_>>>()?;
                values.into_iter().chain(files).map(Value::String).collect::<Vec<_>>()
            };
            broker.post("reference-value", &json!({ "id": id, "values": values })).await?;
            done(format, "kbs.set-reference-value", json!({ "id": id, "values": values }), format!("{id} has {} value(s)", values.len()))
        }
        Command::GetReferenceValue { id } => {
            let value: Value = serde_json::from_slice(&broker.get(&format!("reference-value/{}", segment(&id)?)).await?)?;
            show(format, "kbs.get-reference-value", &json!({ "id": id, "value": value }), || match &value {
                Value::Array(values) => values.iter().map(|v| plain(v) + "\n").collect(),
                other => plain(other),
            })?;
            Ok(Outcome::Done)
        }
        Command::Audit { limit } => {
            let records = decisions(&broker.get(&format!("audit?limit={limit}")).await?)?;
            show(format, "kbs.audit", &json!({ "decisions": records }), || records.iter().map(summary).collect())?;
            Ok(Outcome::Done)
        }
        Command::Explain { id } => {
            let records = decisions(&broker.get("audit?limit=1000").await?)?;
            let Some(record) = records.iter().find(|r| r["id"] == id) else {
                bail!("no decision {id} among the last {} the broker shows; `kata-cc kbs audit` lists them", records.len());
            };
            show(format, "kbs.explain", record, || explain(record))?;
            Ok(Outcome::Done)
        }
    }
}

fn done(format: Format, schema: &str, result: Value, text: String) -> anyhow::Result<Outcome> {
    show(format, schema, &result, String::new)?;
    output::note(format, text);
    Ok(Outcome::Done)
}

/// One segment of a URL's path.
fn segment(text: &str) -> anyhow::Result<&str> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) || matches!(text, "." | "..")
    {
        bail!("expected a name of letters, digits, `_`, `-` and `.`, found {text:?}");
    }
    Ok(text)
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
    format!("{:>6}  {at}  {verdict}  {:<20} {:<14} {subject}  ({})\n", text("id"), text("action"), text("outcome"), text("rule"))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// A decision as indented `key: value` lines.
fn explain(record: &Value) -> String {
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
    let mut out = String::new();
    if let Value::Object(fields) = record {
        fields.iter().for_each(|(key, inner)| walk(inner, key, 0, &mut out));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_token_is_a_short_lived_jwt_the_public_key_verifies() {
        let key = SigningKey::generate(KeyKind::Ed25519).unwrap();
        let token = admin_token(&key, UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!(parts.len(), 3);
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
        let claims: Value = serde_json::from_slice(&decode(parts[1])).unwrap();
        assert_eq!(claims, json!({ "role": "admin", "iat": 1000, "exp": 1300 }));
        assert!(key.public_key().verifies(format!("{}.{}", parts[0], parts[1]).as_bytes(), &decode(parts[2])));
    }

    #[test]
    fn a_p256_key_is_no_admin_key() {
        let key = SigningKey::generate(KeyKind::P256).unwrap();
        assert!(admin_token(&key, UNIX_EPOCH + Duration::from_secs(1)).unwrap_err().to_string().contains("Ed25519"));
    }

    #[test]
    fn secrets_travel_over_tls_or_loopback_only() {
        for good in
            ["https://broker.example:8080", "https://broker.example/sub/", "http://127.0.0.1:8080", "http://[::1]:8080", "http://localhost"]
        {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in ["http://broker.example", "http://127.0.0.1.example", "ftp://broker.example", "broker.example:8080", "file:///etc"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn resource_paths_have_three_plain_parts() {
        assert_eq!(parse_resource("a/b/c").unwrap().path(), "a/b/c");
        assert_eq!(parse_resource("kbs:///a/b/c").unwrap().path(), "a/b/c");
        for bad in ["", "a/b", "a/b/c/d", "a/../c", "kbs://host/a/b/c", "a/b/c?x", "/a/b/c"] {
            assert!(parse_resource(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_policy_is_read_in_each_form_brokers_answer_with() {
        let rego = "package policy\ndefault allow := false\n";
        let encoded = URL_SAFE_NO_PAD.encode(rego);
        for answer in [rego.to_owned(), encoded.clone(), json!({ "policy": encoded }).to_string(), json!(encoded).to_string()] {
            assert_eq!(policy_text(answer.as_bytes()).unwrap(), rego, "{answer}");
        }
    }

    #[test]
    fn decisions_are_shown_on_a_line_and_in_full() {
        let answer = json!([{ "id": 7, "at": 1_700_000_000, "action": "read-resource", "allowed": false, "outcome": "denied",
            "subject": "a/b/c", "rule": "default resource policy", "comparisons": [{ "claim": "ear.status", "expected": "affirming", "found": "warning" }] }]);
        let records = decisions(answer.to_string().as_bytes()).unwrap();
        let line = summary(&records[0]);
        assert!(line.contains("2023-11-14T22:13:20Z") && line.contains("REFUSED") && line.contains("a/b/c"), "{line}");
        let full = explain(&records[0]);
        assert!(full.contains("expected: affirming") && full.contains("found: warning"), "{full}");
        assert!(summary(&json!({})).ends_with(")\n"));
        assert!(decisions(b"{}").is_err());
    }

    #[test]
    fn a_refusal_says_what_the_broker_said_and_what_to_do() {
        let text = refusal(StatusCode::UNAUTHORIZED, br#"{"type":"x","detail":"token expired"}"#).to_string();
        assert!(text.contains("token expired") && text.contains("--admin-key"), "{text}");
        assert!(refusal(StatusCode::BAD_GATEWAY, b"\xff\xfe").to_string().contains("502"));
    }
}
