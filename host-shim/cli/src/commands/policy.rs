//! `kata-cc policy`: write, sign, verify and try out agent policies.
//!
//! Verdicts printed here are previews: only the guest's own evaluation of a policy it verified counts.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use kata_cc_policy::binding::Difference;
use kata_cc_policy::envelope::PolicyPayload;
use kata_cc_policy::evaluate::{Budget, Evaluation, Rules};
use kata_cc_policy::guest_config::Draft;
use kata_cc_policy::keys::KeyKind;
use kata_cc_policy::template::PodTemplate;
use kata_cc_policy::{BindError, DocumentDigests, PublicKey, SignedPolicy, SigningKey, TrustedKeys, VerifiedPolicy};
use serde_json::{Map, Value};

use crate::files;
use crate::output::{self, Format, Outcome, line, show};

/// What to do with a policy.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a key pair to sign policies with: policy.key (private, mode 0600) and policy.pub.
    Keygen(Keygen),
    /// Write a strict policy for the containers described in a JSON file.
    Gen(Gen),
    /// Sign a policy together with the other documents of its initdata, into an envelope.
    ///
    /// For keys that are kept elsewhere, and for a new policy for a running pod. In one step with the initdata:
    /// `kata-cc initdata build --policy … --sign-with …`.
    Sign(Sign),
    /// Verify a signed policy and list the documents it was signed with; with --print, print the Rego inside.
    Verify(Verify),
    /// Evaluate a policy for one request.
    Eval(Eval),
}

/// Arguments of `policy keygen`.
#[derive(clap::Args)]
pub(crate) struct Keygen {
    /// Directory for the two files; created when missing. An existing key is never replaced.
    #[arg(long, value_name = "DIR")]
    out_dir: PathBuf,
    /// Kind of key.
    #[arg(long, value_enum, default_value_t = Kind::P256)]
    kind: Kind,
}

/// Kinds of key.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// ECDSA on P-256 with SHA-256.
    P256,
    /// Ed25519.
    Ed25519,
}

/// Arguments of `policy gen`.
#[derive(clap::Args)]
pub(crate) struct Gen {
    /// JSON description of the pod: {"containers": [{"name": "…", "image": "…@sha256:…", "args": […]}], …} (`-`: stdin).
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// File to write the Rego to.
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
}

/// Arguments of `policy sign`.
#[derive(clap::Args)]
pub(crate) struct Sign {
    /// The policy: Rego, package agent_policy.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// JSON object the policy finds under `data`.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Private key (PKCS#8 PEM, P-256 or Ed25519); may be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// Version, at least 1. A running pod takes a new policy only if its version is higher.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    version: u64,
    /// The initdata the policy is for: a draft (`kata-cc initdata build --unsigned`), or that of a running pod. The signature covers
    /// every document in it, so the policy goes with no other initdata.
    #[arg(long, value_name = "FILE")]
    initdata: PathBuf,
    /// File to write the envelope to (`-`: stdout).
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Arguments of `policy verify`.
#[derive(clap::Args)]
pub(crate) struct Verify {
    /// The signed policy.
    #[arg(value_name = "FILE")]
    envelope: PathBuf,
    /// Public key (PEM) to trust; may be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// Lowest version to accept.
    #[arg(long, value_name = "N", default_value_t = 1)]
    min_version: u64,
    /// Initdata whose documents must be those the policy was signed with.
    #[arg(long, value_name = "FILE")]
    initdata: Option<PathBuf>,
    /// Print the policy's text instead of a summary.
    #[arg(long)]
    print: bool,
}

/// Arguments of `policy eval`.
#[derive(clap::Args)]
pub(crate) struct Eval {
    /// The policy's Rego text, or a signed policy (then its signature is NOT checked; see `policy verify`).
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// JSON object the policy finds under `data` (Rego text only).
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The request in JSON form; several are evaluated in order, with the state the earlier ones left.
    #[arg(long, value_name = "FILE", required = true)]
    input: Vec<PathBuf>,
    /// The rule to ask for: a message name such as CreateContainerRequest.
    #[arg(long, value_name = "NAME")]
    rule: String,
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<Outcome> {
    match command {
        Command::Keygen(args) => keygen(args, format),
        Command::Gen(args) => generate(args, format),
        Command::Sign(args) => sign(args, format),
        Command::Verify(args) => verify(args, format),
        Command::Eval(args) => eval(args, format),
    }
}

/// Reads public keys as the guest will trust them.
pub(crate) fn trusted_keys(paths: &[PathBuf], min_version: u64) -> anyhow::Result<TrustedKeys> {
    let keys = paths
        .iter()
        .map(|path| PublicKey::from_pem(&files::read_text(path)?).with_context(|| format!("{} is not a usable public key", path.display())))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(TrustedKeys::new(keys, min_version)?)
}

fn keygen(args: &Keygen, format: Format) -> anyhow::Result<Outcome> {
    let kind = match args.kind {
        Kind::P256 => KeyKind::P256,
        Kind::Ed25519 => KeyKind::Ed25519,
    };
    let key = SigningKey::generate(kind)?;
    let public = key.public_key();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.out_dir)
        .with_context(|| format!("cannot create {}", args.out_dir.display()))?;
    let (secret_path, public_path) = (args.out_dir.join("policy.key"), args.out_dir.join("policy.pub"));
    files::write_secret(&secret_path, key.to_pkcs8_pem().as_bytes())?;
    files::write(&public_path, public.to_pem().as_bytes())?;
    let result = serde_json::json!({ "key_id": public.id().to_string(), "private_key": secret_path, "public_key": public_path });
    show(format, "policy.keygen", &result, || public.id().to_string())?;
    output::note(
        format,
        format!("wrote {} (keep it) and {}; the line on stdout is the key id", secret_path.display(), public_path.display()),
    );
    Ok(Outcome::Done)
}

fn generate(args: &Gen, format: Format) -> anyhow::Result<Outcome> {
    let pod: PodTemplate =
        serde_json::from_slice(&files::read(&args.spec)?).with_context(|| format!("{} does not describe a pod", args.spec.display()))?;
    let rego = pod.render()?;
    // What was generated is loaded as the guest will load it.
    Rules::load(&rego, &Map::new(), Budget::default()).context("the generated policy does not load; this is a bug")?;
    if args.out == Path::new("-") {
        return show(format, "policy.gen", &serde_json::json!({ "rego": rego }), || rego.clone()).map(|()| Outcome::Done);
    }
    files::write(&args.out, rego.as_bytes())?;
    show(format, "policy.gen", &serde_json::json!({ "out": args.out }), String::new)?;
    output::note(format, format!("wrote {}", args.out.display()));
    Ok(Outcome::Done)
}

/// A policy about to be signed.
pub(crate) struct ToSign<'a> {
    /// File with the Rego.
    pub(crate) policy: &'a Path,
    /// File with its data.
    pub(crate) data: Option<&'a Path>,
    /// Its version.
    pub(crate) version: u64,
    /// Files with private keys.
    pub(crate) keys: &'a [PathBuf],
}

impl ToSign<'_> {
    /// Signs it for initdata. Hands out the envelope and the ids of the keys.
    pub(crate) fn sign(&self, draft: &Draft) -> anyhow::Result<(String, Vec<String>)> {
        let rego = files::read_text(self.policy)?;
        let data = read_object(self.data)?;
        // A policy the guest cannot load must not be signed.
        Rules::load(&rego, &data, Budget::default()).with_context(|| format!("the guest would refuse {}", self.policy.display()))?;
        let read = |path: &PathBuf| {
            SigningKey::from_pkcs8_pem(&files::read_text(path)?).with_context(|| format!("{} is not a usable private key", path.display()))
        };
        let keys = self.keys.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
        let payload = PolicyPayload { version: self.version, rego, data, documents: draft.documents() };
        let envelope = SignedPolicy::sign(&payload, &keys.iter().collect::<Vec<_>>())?;
        let ids = keys.iter().map(|key| key.public_key().id().to_string()).collect();
        Ok((String::from_utf8(envelope).context("the envelope is not text; this is a bug")?, ids))
    }
}

fn sign(args: &Sign, format: Format) -> anyhow::Result<Outcome> {
    let draft = super::initdata::draft(&args.initdata)?;
    let to_sign = ToSign { policy: &args.policy, data: args.data.as_deref(), version: args.version, keys: &args.key };
    let (envelope, ids) = to_sign.sign(&draft)?;
    SignedPolicy::verify(envelope.as_bytes(), draft.trusted()).with_context(|| {
        format!("the guest would refuse this policy under the keys and the lowest version in {}", args.initdata.display())
    })?;
    files::write(&args.out, envelope.as_bytes())?;
    let documents = draft.documents();
    if args.out != Path::new("-") {
        let result = serde_json::json!({ "version": args.version, "key_ids": ids, "documents": documents, "out": args.out });
        show(format, "policy.sign", &result, String::new)?;
    }
    let names: Vec<&str> = documents.iter().map(|(name, _)| name).collect();
    output::note(format, format!("version {} signed by {}, together with {}", args.version, ids.join(", "), names.join(", ")));
    Ok(Outcome::Done)
}

fn verify(args: &Verify, format: Format) -> anyhow::Result<Outcome> {
    let envelope = files::read(&args.envelope)?;
    let keys = trusted_keys(&args.key, args.min_version)?;
    let initdata = args.initdata.as_deref().map(super::initdata::read_file).transpose()?;
    match SignedPolicy::verify(&envelope, &keys) {
        Ok(policy) => {
            let loads = Rules::load(policy.rego(), policy.data(), Budget::default()).map_err(|e| e.to_string());
            let covers = initdata.map(|initdata| policy.documents().compare(&DocumentDigests::of(&initdata)));
            report_verified(&policy, loads.as_ref().err(), covers.as_ref(), args.print, format)?;
            Ok(Outcome::when(loads.is_ok() && covers.is_none_or(|covers| covers.is_ok())))
        }
        Err(error) => {
            let why = format!("{:#}", anyhow::Error::from(error));
            show(format, "policy.verify", &serde_json::json!({ "verified": false, "error": why }), || format!("refused: {why}"))?;
            Ok(Outcome::No)
        }
    }
}

/// Documents that are not as they were signed, for `--json`.
pub(crate) fn differences(differences: &[Difference]) -> Vec<Value> {
    let digest = |digest: &kata_cc_policy::binding::DocumentDigest| digest.to_string();
    let entry = |document: &str, change: &str, expected: Option<String>, found: Option<String>| serde_json::json!({ "document": document, "change": change, "expected": expected, "found": found });
    differences
        .iter()
        .map(|difference| match difference {
            Difference::Changed { document, expected, found } => entry(document, "changed", Some(digest(expected)), Some(digest(found))),
            Difference::Added { document, found } => entry(document, "added", None, Some(digest(found))),
            Difference::Removed { document, expected } => entry(document, "removed", Some(digest(expected)), None),
        })
        .collect()
}

fn report_verified(
    policy: &VerifiedPolicy,
    refusal: Option<&String>,
    covers: Option<&Result<(), BindError>>,
    print: bool,
    format: Format,
) -> anyhow::Result<()> {
    let mut result = serde_json::json!({
        "verified": true,
        "version": policy.version(),
        "key_id": policy.key().to_string(),
        "loads": refusal.is_none(),
        "load_error": refusal,
        "documents": policy.documents(),
        "rego": policy.rego(),
        "data": policy.data(),
    });
    if let Some(covers) = covers {
        let found = covers.as_ref().err().map(|error| differences(error.differences())).unwrap_or_default();
        result["initdata"] = serde_json::json!({ "covered": covers.is_ok(), "differences": found });
    }
    show(format, "policy.verify", &result, || {
        if print {
            return policy.rego().to_owned();
        }
        let mut text = line("verified", "yes");
        text += &line("version", policy.version());
        text += &line("signed by", policy.key());
        text += &line("guest can load it", refusal.map_or("yes".to_owned(), |why| format!("no: {why}")));
        for (name, digest) in policy.documents().iter() {
            text += &line("signed with", format_args!("{name} (sha256 {digest})"));
        }
        match covers {
            None => {}
            Some(Ok(())) => text += &line("covers the initdata", "yes"),
            Some(Err(error)) => {
                for difference in error.differences() {
                    text += &line("covers the initdata", format_args!("no: {difference}"));
                }
            }
        }
        text
    })
}

fn eval(args: &Eval, format: Format) -> anyhow::Result<Outcome> {
    let text = files::read_text(&args.policy)?;
    let (rego, data) = match envelope_payload(&text) {
        Some(payload) => (payload.rego, payload.data),
        None => (text, read_object(args.data.as_deref())?),
    };
    let mut rules = Rules::load(&rego, &data, Budget::default()).with_context(|| format!("cannot load {}", args.policy.display()))?;
    let mut verdicts = Vec::new();
    for path in &args.input {
        let input: Value = serde_json::from_slice(&files::read(path)?).with_context(|| format!("{} is not JSON", path.display()))?;
        let verdict = match rules.evaluate(&args.rule, &input) {
            Evaluation::Allowed => serde_json::json!({ "input": path, "allowed": true }),
            Evaluation::Denied { cause, details } => {
                serde_json::json!({ "input": path, "allowed": false, "cause": cause.to_string(), "reasons": details })
            }
        };
        verdicts.push(verdict);
    }
    let allowed = verdicts.iter().all(|v| v["allowed"] == true);
    let result = serde_json::json!({ "rule": args.rule, "allowed": allowed, "verdicts": verdicts });
    show(format, "policy.eval", &result, || {
        verdicts
            .iter()
            .map(|verdict| {
                let name = verdict["input"].as_str().unwrap_or_default();
                match verdict["cause"].as_str() {
                    None => format!("allowed  {name}\n"),
                    Some(cause) => {
                        let reasons: String = verdict["reasons"]
                            .as_array()
                            .into_iter()
                            .flatten()
                            .filter_map(Value::as_str)
                            .map(|r| format!("         - {r}\n"))
                            .collect();
                        format!("DENIED   {name}: {cause}\n{reasons}")
                    }
                }
            })
            .collect()
    })?;
    Ok(Outcome::when(allowed))
}

/// The payload of an envelope, unverified; `None` when the text is no envelope.
fn envelope_payload(text: &str) -> Option<PolicyPayload> {
    use base64::Engine as _;
    let envelope: Value = serde_json::from_str(text).ok()?;
    let payload = base64::engine::general_purpose::STANDARD.decode(envelope.get("payload")?.as_str()?).ok()?;
    serde_json::from_slice(&payload).ok()
}

fn read_object(path: Option<&Path>) -> anyhow::Result<Map<String, Value>> {
    match path {
        None => Ok(Map::new()),
        Some(path) => serde_json::from_slice(&files::read(path)?).with_context(|| format!("{} is not a JSON object", path.display())),
    }
}
