//! `kata-cc initdata`: build and read initdata, the text a pod carries and the hardware measures.
//!
//! What is built is read back by the same code the guest agent uses, so that a typing error is found here and not by a pod that
//! refuses to start.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use kata_cc_policy::guest_config::Documents;
use kata_cc_policy::initdata::{ANNOTATION, Algorithm, Initdata};
use kata_cc_policy::{GuestConfig, SignedPolicy};
use serde::Serialize;

use crate::files;
use crate::output::{self, Format, Outcome, line, show};

/// What to do with initdata.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Put initdata together and write it as TOML.
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
pub(crate) struct Build {
    /// File to write (`-`: stdout).
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// URL of the key broker the guest attests to.
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// PEM certificate (or CA) the guest must find at the broker; it trusts no other.
    #[arg(long, value_name = "FILE", requires = "broker")]
    broker_cert: Option<PathBuf>,
    /// Let the guest talk to the broker by plain HTTP. Anyone on the network can then pose as the broker.
    #[arg(long, requires = "broker")]
    insecure_broker: bool,
    /// Signed agent policy (`kata-cc policy sign`).
    #[arg(long, value_name = "FILE")]
    policy_envelope: PathBuf,
    /// Public key (PEM) that policies of this pod must be signed with; may be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    policy_key: Vec<PathBuf>,
    /// Lowest policy version the guest takes. Default: the version of the envelope given.
    #[arg(long, value_name = "N")]
    policy_min_version: Option<u64>,
    /// Take the envelope without verifying it. The guest verifies it all the same; for testing that it does.
    #[arg(long)]
    skip_policy_verification: bool,
    /// Where the guest finds the image signature policy: kbs:///repository/type/tag.
    #[arg(long, value_name = "URI")]
    image_security_policy_uri: Option<String>,
    /// Where the guest finds registry credentials: kbs:///repository/type/tag.
    #[arg(long, value_name = "URI")]
    registry_credentials_uri: Option<String>,
    /// Further root certificate (PEM) for registries; may be given several times.
    #[arg(long, value_name = "FILE")]
    registry_ca: Vec<PathBuf>,
    /// Registry that may be reached by plain HTTP; may be given several times. Digests still pin every byte.
    #[arg(long, value_name = "HOST:PORT")]
    insecure_registry: Vec<String>,
    /// Digest algorithm: sha256 (fits SEV-SNP exactly), sha384 (fits TDX exactly), sha512.
    #[arg(long, value_name = "NAME", default_value = "sha256")]
    algorithm: String,
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
            let digests = Digests::of(&read(input)?);
            show(format, "initdata.digest", &digests, || digests.digest.clone())?;
            Ok(Outcome::Done)
        }
        Command::Annotation(input) => {
            let value = read(input)?.to_annotation();
            let result = serde_json::json!({ "name": ANNOTATION, "value": value });
            show(format, "initdata.annotation", &result, || value.clone())?;
            Ok(Outcome::Done)
        }
        Command::Show(input) => describe(&read(input)?, format),
    }
}

/// Reads initdata in any of its three forms; which one it is shows in the first bytes.
fn read(input: &Input) -> anyhow::Result<Initdata> {
    let bytes = files::read(&input.file)?;
    let parsed = if bytes.starts_with(kata_cc_policy::initdata::DISK_MAGIC) {
        Initdata::from_disk_image(&bytes)
    } else {
        match std::str::from_utf8(&bytes) {
            // Base64 of gzip always begins so; TOML cannot (no key may be followed by nothing).
            Ok(text) if text.trim_start().starts_with("H4sI") => Initdata::from_annotation(text),
            _ => Initdata::parse(&bytes),
        }
    };
    parsed.with_context(|| format!("{} is not usable initdata", input.file.display()))
}

fn build(args: &Build, format: Format) -> anyhow::Result<Outcome> {
    let initdata = assemble(args)?;
    files::write(&args.out, initdata.raw())?;
    let digests = Digests::of(&initdata);
    if args.out == std::path::Path::new("-") {
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

fn assemble(args: &Build) -> anyhow::Result<Initdata> {
    let algorithm: Algorithm = args.algorithm.parse()?;
    let text = |paths: &[PathBuf]| paths.iter().map(|p| files::read_text(p)).collect::<anyhow::Result<Vec<_>>>();
    let envelope = files::read_text(&args.policy_envelope)?;
    let min_version = if args.skip_policy_verification {
        args.policy_min_version.unwrap_or(1)
    } else {
        let keys = super::policy::trusted_keys(&args.policy_key, args.policy_min_version.unwrap_or(1))?;
        let policy = SignedPolicy::verify(envelope.as_bytes(), &keys)
            .with_context(|| format!("the guest would refuse {} under the keys given by --policy-key", args.policy_envelope.display()))?;
        args.policy_min_version.unwrap_or(policy.version())
    };
    let documents = Documents {
        broker_url: args.broker.clone(),
        broker_cert: args.broker_cert.as_deref().map(files::read_text).transpose()?,
        insecure_http: args.insecure_broker,
        image_security_policy_uri: args.image_security_policy_uri.clone(),
        authenticated_registry_credentials_uri: args.registry_credentials_uri.clone(),
        insecure_registries: args.insecure_registry.clone(),
        extra_root_certificates: text(&args.registry_ca)?,
        policy_envelope: envelope,
        policy_keys: text(&args.policy_key)?,
        min_version,
    };
    documents.build(algorithm).context("the guest would refuse this initdata")
}

fn describe(initdata: &Initdata, format: Format) -> anyhow::Result<Outcome> {
    let digests = Digests::of(initdata);
    let documents: serde_json::Map<String, serde_json::Value> =
        initdata.names().map(|name| (name.to_owned(), initdata.get(name).unwrap_or_default().into())).collect();
    let verdict = GuestConfig::from_initdata(initdata);
    let refusal = verdict.as_ref().err().map(ToString::to_string);
    let result = serde_json::json!({
        "algorithm": digests.algorithm,
        "digest": digests.digest,
        "host_data": digests.host_data,
        "mr_config_id": digests.mr_config_id,
        "data": documents,
        "guest": { "accepts": refusal.is_none(), "error": refusal },
    });
    show(format, "initdata.show", &result, || {
        let mut text = line("digest", format_args!("{}:{}", digests.algorithm, digests.digest));
        text += &line("HOST_DATA (SEV-SNP)", &digests.host_data);
        text += &line("MRCONFIGID (TDX)", &digests.mr_config_id);
        text += &line("guest accepts it", refusal.as_deref().map_or("yes".to_owned(), |why| format!("no: {why}")));
        for name in initdata.names() {
            text += &format!("\n--- {name}\n{}\n", initdata.get(name).unwrap_or_default().trim_end());
        }
        text
    })?;
    Ok(Outcome::when(verdict.is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_policy::initdata::InitdataBuilder;

    fn input(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> Input {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        Input { file }
    }

    #[test]
    fn every_form_of_initdata_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let initdata = InitdataBuilder::new().document("x.toml", "a = 1").build().unwrap();
        for (name, bytes) in
            [("toml", initdata.raw().to_vec()), ("annotation", initdata.to_annotation().into_bytes()), ("disk", initdata.to_disk_image())]
        {
            assert_eq!(read(&input(&dir, name, &bytes)).unwrap().digest(), initdata.digest(), "{name}");
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
            assert!(read(&input(&dir, name, &bytes)).is_err(), "{name}");
        }
    }
}
