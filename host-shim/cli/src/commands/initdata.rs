//! `kata-cc initdata`: build and read initdata, the text a pod carries and the hardware measures.
//!
//! What is built is read back by the same code the guest agent uses, so that a typing error is found here and not by a pod that
//! refuses to start.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{ArgGroup, Subcommand};
use kata_cc_policy::evaluate::{Budget, Rules};
use kata_cc_policy::guest_config::{Documents, Draft, POLICY_DSSE};
use kata_cc_policy::initdata::{ANNOTATION, Algorithm, Initdata};
use kata_cc_policy::{BindError, BoundPolicy, DocumentDigests, GuestConfig, SignedPolicy};
use serde::Serialize;

use super::policy::ToSign;
use crate::files;
use crate::output::{self, Format, Outcome, line, show};

/// What to do with initdata.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Put initdata together, sign its policy together with it, and write it as TOML.
    ///
    /// In one step: --policy with --policy-version and --sign-with. With a key that is kept elsewhere in three: --unsigned writes a draft,
    /// `kata-cc policy sign --initdata DRAFT` signs, --from DRAFT --policy-envelope FILE puts both together.
    Build(Box<Build>),
    /// Print the digest the hardware must report.
    Digest(Input),
    /// Print the value of the pod annotation that carries it.
    Annotation(Input),
    /// Print what the guest will read from it.
    Show(Input),
}

/// A file with initdata.
#[derive(clap::Args)]
pub(crate) struct Input {
    /// Initdata TOML, or the value of the annotation, or the disk image made of it (`-`: stdin).
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Arguments of `initdata build`.
#[derive(clap::Args)]
#[command(group(ArgGroup::new("how it is signed").required(true).args(["policy", "policy_envelope", "unsigned"])))]
pub(crate) struct Build {
    /// File to write (`-`: stdout).
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The agent policy (Rego, package agent_policy), to be signed now.
    #[arg(long, value_name = "FILE", requires_all = ["policy_version", "sign_with"])]
    policy: Option<PathBuf>,
    /// Its version, at least 1.
    #[arg(long, value_name = "N", requires = "policy", value_parser = clap::value_parser!(u64).range(1..))]
    policy_version: Option<u64>,
    /// JSON object the policy finds under `data`.
    #[arg(long, value_name = "FILE", requires = "policy")]
    policy_data: Option<PathBuf>,
    /// Private key (PKCS#8 PEM, P-256 or Ed25519) that signs the policy and all other documents; may be given several times.
    #[arg(long, value_name = "FILE", requires = "policy")]
    sign_with: Vec<PathBuf>,
    /// Write a draft: everything but the policy, for `kata-cc policy sign --initdata`.
    #[arg(long, conflicts_with = "from")]
    unsigned: bool,
    /// Take all documents but the policy from this initdata, in place of the options below.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The policy as `kata-cc policy sign --initdata` signed it for the initdata given by --from.
    // Not only `requires`: clap waives that for an argument that conflicts with one that is there.
    #[arg(long, value_name = "FILE", requires = "from", conflicts_with = "documents")]
    policy_envelope: Option<PathBuf>,
    /// Write the result although the guest would refuse its policy. It will refuse it; for testing that it does.
    #[arg(long, conflicts_with = "unsigned")]
    skip_policy_verification: bool,
    #[command(flatten)]
    documents: DocumentArgs,
}

/// What the documents say.
#[derive(clap::Args)]
#[group(id = "documents", conflicts_with = "from")]
struct DocumentArgs {
    /// Public key (PEM) that policies of this pod must be signed with; may be given several times.
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    policy_key: Vec<PathBuf>,
    /// Lowest policy version the guest takes. Default: --policy-version, or 1 with --unsigned.
    #[arg(long, value_name = "N")]
    policy_min_version: Option<u64>,
    /// URL of the key broker the guest attests to.
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// PEM certificate (or CA) the guest must find at the broker; it trusts no other.
    #[arg(long, value_name = "FILE", requires = "broker")]
    broker_cert: Option<PathBuf>,
    /// Let the guest talk to the broker by plain HTTP. Anyone on the network can then pose as the broker.
    #[arg(long, requires = "broker")]
    insecure_broker: bool,
    /// Where the guest finds the image signature policy: kbs:///repository/type/tag.
    #[arg(long, value_name = "URI")]
    image_security_policy_uri: Option<String>,
    /// Where the guest finds registry credentials: kbs:///repository/type/tag.
    #[arg(long, value_name = "URI")]
    registry_credentials_uri: Option<String>,
    /// Further root certificate (PEM) for registries; may be given several times.
    #[arg(long, value_name = "FILE")]
    registry_ca: Vec<PathBuf>,
    /// Registry that may be reached by plain HTTP; may be given several times. Digests still pin every byte; no login is sent to it.
    #[arg(long, value_name = "HOST:PORT")]
    insecure_registry: Vec<String>,
    /// Digest algorithm: sha256 (fits SEV-SNP exactly), sha384 (fits TDX exactly), sha512. Default: sha256.
    #[arg(long, value_name = "NAME")]
    algorithm: Option<String>,
}

#[derive(Serialize)]
struct Digests {
    algorithm: &'static str,
    digest: String,
    host_data: String,
    mr_config_id: String,
}

impl Digests {
    fn of(initdata: &Initdata) -> Self {
        let digest = initdata.digest();
        Digests {
            algorithm: initdata.algorithm().name(),
            digest: hex::encode(digest.as_bytes()),
            host_data: hex::encode(initdata.host_data()),
            mr_config_id: hex::encode(digest.field::<48>()),
        }
    }
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<Outcome> {
    match command {
        Command::Build(args) => build(args, format),
        Command::Digest(input) => {
            let digests = Digests::of(&read_file(&input.file)?);
            show(format, "initdata.digest", &digests, || digests.digest.clone())?;
            Ok(Outcome::Done)
        }
        Command::Annotation(input) => {
            let value = read_file(&input.file)?.to_annotation();
            let result = serde_json::json!({ "name": ANNOTATION, "value": value });
            show(format, "initdata.annotation", &result, || value.clone())?;
            Ok(Outcome::Done)
        }
        Command::Show(input) => describe(&read_file(&input.file)?, format),
    }
}

/// Reads initdata in any of its three forms; which one it is shows in the first bytes.
pub(crate) fn read_file(path: &Path) -> anyhow::Result<Initdata> {
    let bytes = files::read(path)?;
    let parsed = if bytes.starts_with(kata_cc_policy::initdata::DISK_MAGIC) {
        Initdata::from_disk_image(&bytes)
    } else {
        match std::str::from_utf8(&bytes) {
            // Base64 of gzip always begins so; TOML cannot (no key may be followed by nothing).
            Ok(text) if text.trim_start().starts_with("H4sI") => Initdata::from_annotation(text),
            _ => Initdata::parse(&bytes),
        }
    };
    parsed.with_context(|| format!("{} is not usable initdata", path.display()))
}

/// Reads initdata, with a policy or without, as what a policy is signed for.
pub(crate) fn draft(path: &Path) -> anyhow::Result<Draft> {
    Draft::of(&read_file(path)?).with_context(|| format!("the guest would refuse {}", path.display()))
}

fn build(args: &Build, format: Format) -> anyhow::Result<Outcome> {
    let draft = match &args.from {
        Some(path) => draft(path)?,
        None => args.documents.draft(args.policy_version)?,
    };
    if args.unsigned {
        return write_draft(&draft, &args.out, format);
    }
    let envelope = match (&args.policy, args.policy_version, &args.policy_envelope) {
        (Some(policy), Some(version), _) => {
            ToSign { policy, data: args.policy_data.as_deref(), version, keys: &args.sign_with }.sign(&draft)?.0
        }
        (_, _, Some(path)) => files::read_text(path)?,
        // The definition of the arguments does not let this happen.
        _ => bail!("expected --policy with --policy-version and --sign-with, or --policy-envelope, or --unsigned; found none of them"),
    };
    let initdata = draft.complete(&envelope)?;
    if !args.skip_policy_verification {
        accept(&initdata).context("the guest would refuse this initdata")?;
    }
    files::write(&args.out, initdata.raw())?;
    let digests = Digests::of(&initdata);
    if args.out == Path::new("-") {
        output::note(format, format!("digest {}:{}", digests.algorithm, digests.digest));
    } else {
        show(format, "initdata.build", &digests, || digests.digest.clone())?;
        output::note(
            format,
            format!(
                "wrote {} ({} bytes); the line on stdout is its {} digest",
                args.out.display(),
                initdata.raw().len(),
                digests.algorithm
            ),
        );
    }
    Ok(Outcome::Done)
}

/// A draft has a digest too, but no pod will ever have it: the documents' digests are what matters.
fn write_draft(draft: &Draft, out: &Path, format: Format) -> anyhow::Result<Outcome> {
    files::write(out, draft.initdata().raw())?;
    let name = if out == Path::new("-") { "DRAFT".into() } else { out.display().to_string() };
    if out != Path::new("-") {
        let result = serde_json::json!({ "out": out, "documents": draft.documents(), "min_version": draft.trusted().min_version() });
        show(format, "initdata.draft", &result, String::new)?;
    }
    output::note(
        format,
        format!(
            "a draft without a policy; sign one with `kata-cc policy sign --initdata {name}`, then `kata-cc initdata build --from {name} \
             --policy-envelope …`"
        ),
    );
    Ok(Outcome::Done)
}

impl DocumentArgs {
    fn draft(&self, policy_version: Option<u64>) -> anyhow::Result<Draft> {
        let algorithm: Algorithm = self.algorithm.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        let text = |paths: &[PathBuf]| paths.iter().map(|p| files::read_text(p)).collect::<anyhow::Result<Vec<_>>>();
        let documents = Documents {
            broker_url: self.broker.clone(),
            broker_cert: self.broker_cert.as_deref().map(files::read_text).transpose()?,
            insecure_http: self.insecure_broker,
            image_security_policy_uri: self.image_security_policy_uri.clone(),
            authenticated_registry_credentials_uri: self.registry_credentials_uri.clone(),
            insecure_registries: self.insecure_registry.clone(),
            extra_root_certificates: text(&self.registry_ca)?,
            policy_keys: text(&self.policy_key)?,
            min_version: self.policy_min_version.or(policy_version).unwrap_or(1),
        };
        documents.draft(algorithm).context("the guest would refuse these documents")
    }
}

/// What the guest does with initdata once the hardware has vouched for it.
fn accept(initdata: &Initdata) -> anyhow::Result<BoundPolicy> {
    let config = GuestConfig::from_initdata(initdata)?;
    let policy = SignedPolicy::verify(&config.policy.envelope, &config.policy.trusted)?.bind(initdata)?;
    Rules::load(policy.policy().rego(), policy.policy().data(), Budget::default()).context("the policy does not load")?;
    Ok(policy)
}

fn describe(initdata: &Initdata, format: Format) -> anyhow::Result<Outcome> {
    let digests = Digests::of(initdata);
    let documents: serde_json::Map<String, serde_json::Value> =
        initdata.documents().map(|(name, text)| (name.to_owned(), text.into())).collect();
    let verdict = accept(initdata);
    let refusal = verdict.as_ref().err().map(|why| format!("{why:#}"));
    let differing = verdict.as_ref().err().and_then(|why| why.downcast_ref::<BindError>()).map(BindError::differences).unwrap_or_default();
    let covered = DocumentDigests::of(initdata);
    let policy = verdict.as_ref().ok().map(BoundPolicy::policy);
    let result = serde_json::json!({
        "algorithm": digests.algorithm,
        "digest": digests.digest,
        "host_data": digests.host_data,
        "mr_config_id": digests.mr_config_id,
        "data": documents,
        "documents": covered,
        "policy": policy.map(|policy| serde_json::json!({ "version": policy.version(), "key_id": policy.key().to_string() })),
        "guest": { "accepts": refusal.is_none(), "error": refusal, "differences": super::policy::differences(differing) },
    });
    show(format, "initdata.show", &result, || {
        let mut text = line("digest", format_args!("{}:{}", digests.algorithm, digests.digest));
        text += &line("HOST_DATA (SEV-SNP)", &digests.host_data);
        text += &line("MRCONFIGID (TDX)", &digests.mr_config_id);
        text += &line("guest accepts it", refusal.as_deref().map_or("yes".to_owned(), |why| format!("no: {why}")));
        if let Some(policy) = policy {
            text += &line("policy version", policy.version());
            text += &line("all of it signed by", policy.key());
        }
        for (name, digest) in covered.iter() {
            text += &format!("\n--- {name} (sha256 {digest})\n{}\n", initdata.get(name).unwrap_or_default().trim_end());
        }
        if let Some(envelope) = initdata.get(POLICY_DSSE) {
            text += &format!("\n--- {POLICY_DSSE} (the signature over all of these)\n{}\n", envelope.trim_end());
        }
        text
    })?;
    Ok(Outcome::when(verdict.is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_policy::initdata::InitdataBuilder;

    fn file(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        file
    }

    #[test]
    fn every_form_of_initdata_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let initdata = InitdataBuilder::new().document("x.toml", "a = 1").build().unwrap();
        for (name, bytes) in
            [("toml", initdata.raw().to_vec()), ("annotation", initdata.to_annotation().into_bytes()), ("disk", initdata.to_disk_image())]
        {
            assert_eq!(read_file(&file(&dir, name, &bytes)).unwrap().digest(), initdata.digest(), "{name}");
        }
    }

    #[test]
    fn damaged_initdata_is_refused_in_every_form() {
        let dir = tempfile::tempdir().unwrap();
        let initdata = InitdataBuilder::new().document("x.toml", "a = 1").build().unwrap();
        for (name, mut bytes) in
            [("toml", initdata.raw().to_vec()), ("annotation", initdata.to_annotation().into_bytes()), ("disk", initdata.to_disk_image())]
        {
            // Within the text or its compressed form, not in the padding of the disk.
            bytes.truncate(40);
            assert!(read_file(&file(&dir, name, &bytes)).is_err(), "{name}");
        }
    }
}
