//! `kata-cc kbs`: administer a key broker over its HTTP interface (CoCo KBS, `/kbs/v0`, with our additions: lists, audit, signed reference
//! manifests, whoami), or run one for development.
//!
//! Here are the commands; [`broker`] is the connection, [`run`] and [`dev`] are a broker of one's own, the other files are what is administered.

mod audit;
mod broker;
mod dev;
mod policy;
mod reference;
mod resource;
mod run;
mod status;

use std::path::PathBuf;

use clap::Subcommand;
use kata_cc_policy::guest_config::ResourceUri;
use serde_json::Value;

use crate::output::{self, Format, Outcome, show};

/// Arguments of `kbs`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: broker::Connection,
    #[command(subcommand)]
    command: Command,
}

/// What to ask the broker for.
#[derive(Subcommand)]
enum Command {
    /// Store a secret.
    SetResource {
        /// repository/type/tag, or kbs:///repository/type/tag.
        #[arg(value_name = "PATH", value_parser = resource::parse)]
        path: ResourceUri,
        /// File with the secret's bytes (`-`: stdin).
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Say whether there is a secret of this name. Its value is for attested guests alone.
    GetResource {
        /// repository/type/tag, or kbs:///repository/type/tag.
        #[arg(value_name = "PATH", value_parser = resource::parse)]
        path: ResourceUri,
    },
    /// List the names of secrets.
    ListResources {
        /// Only those below this: a repository, or repository/type.
        #[arg(value_name = "PREFIX")]
        prefix: Option<String>,
    },
    /// Delete a secret.
    DeleteResource {
        /// repository/type/tag, or kbs:///repository/type/tag.
        #[arg(value_name = "PATH", value_parser = resource::parse)]
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
    /// Go back to the built-in resource policy.
    ResetResourcePolicy,
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
    /// List appraisal policies, and which are the built-in ones.
    ListAttestationPolicies,
    /// Go back to the built-in appraisal policy.
    ResetAttestationPolicy {
        /// Which appraisal policy.
        #[arg(long, value_name = "ID", default_value = "default_cpu")]
        id: String,
    },
    /// Register a signed manifest of reference values, as `kata-cc measure … --sign` writes it. It replaces the one of its name.
    SetReferenceManifest {
        /// The manifest (`-`: stdin).
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Take it although a manifest of its name with as high a serial number was there.
        #[arg(long)]
        allow_rollback: bool,
    },
    /// List the manifests, and whether each counts.
    ListReferenceManifests,
    /// Fetch a manifest as it was signed.
    GetReferenceManifest {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
        /// File to write it to.
        #[arg(long, short, value_name = "FILE", default_value = "-")]
        out: PathBuf,
    },
    /// Delete a manifest: what it lists is no longer trusted.
    DeleteReferenceManifest {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Set the values a claim is compared with, unsigned; they replace earlier unsigned ones. Only where the broker allows it.
    SetReferenceValue(reference::SetValue),
    /// Print the values a claim is compared with now, signed and unsigned.
    GetReferenceValue {
        /// Name the attestation policy asks for.
        #[arg(value_name = "ID")]
        id: String,
    },
    /// List what claims are compared with now, signed and unsigned.
    ListReferenceValues,
    /// Delete unsigned values.
    DeleteReferenceValue {
        /// Name the attestation policy asks for.
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Print the broker's last decisions.
    Audit(audit::Filters),
    /// Explain one decision: which claim was expected, what was found, which rule decided.
    Explain {
        /// Number of the decision, as `audit` prints it.
        #[arg(value_name = "ID")]
        id: u64,
    },
    /// Say whom the broker takes us for, and what that role may do.
    Whoami,
    /// Say whether the broker lives and is ready. Exits with 3 when it does not.
    Health,
    /// Run a broker on this machine, for development: everything it needs is made, and taken away at the end.
    Run(run::Args),
}

pub(crate) fn run(args: Args, format: Format) -> anyhow::Result<Outcome> {
    let Args { connection, command } = args;
    super::block_on(async {
        let command = match command {
            Command::Run(args) => return run::run(args, format).await,
            other => other,
        };
        if matches!(command, Command::Health) {
            return status::health(&connection.anybody()?, format).await;
        }
        execute(&connection.administrator()?, command, format).await
    })
}

async fn execute(broker: &broker::Broker, command: Command, format: Format) -> anyhow::Result<Outcome> {
    match command {
        Command::SetResource { path, file } => resource::set(broker, &path, &file, format).await,
        Command::GetResource { path } => resource::get(broker, &path, format).await,
        Command::ListResources { prefix } => resource::list(broker, prefix.as_deref(), format).await,
        Command::DeleteResource { path } => resource::delete(broker, &path, format).await,
        Command::SetResourcePolicy { file } => policy::set_resource(broker, &file, format).await,
        Command::GetResourcePolicy => policy::get_resource(broker, format).await,
        Command::ResetResourcePolicy => policy::reset_resource(broker, format).await,
        Command::SetAttestationPolicy { file, id } => policy::set_attestation(broker, &file, &id, format).await,
        Command::GetAttestationPolicy { id } => policy::get_attestation(broker, &id, format).await,
        Command::ListAttestationPolicies => policy::list_attestation(broker, format).await,
        Command::ResetAttestationPolicy { id } => policy::reset_attestation(broker, &id, format).await,
        Command::SetReferenceManifest { file, allow_rollback } => reference::set_manifest(broker, &file, allow_rollback, format).await,
        Command::ListReferenceManifests => reference::list_manifests(broker, format).await,
        Command::GetReferenceManifest { name, out } => reference::get_manifest(broker, &name, &out, format).await,
        Command::DeleteReferenceManifest { name } => reference::delete_manifest(broker, &name, format).await,
        Command::SetReferenceValue(args) => reference::set_value(broker, &args, format).await,
        Command::GetReferenceValue { id } => reference::get_value(broker, &id, format).await,
        Command::ListReferenceValues => reference::list_values(broker, format).await,
        Command::DeleteReferenceValue { id } => reference::delete_value(broker, &id, format).await,
        Command::Audit(filters) => audit::list(broker, &filters, format).await,
        Command::Explain { id } => audit::explain(broker, id, format).await,
        Command::Whoami => status::whoami(broker, format).await,
        Command::Health => status::health(broker, format).await,
        Command::Run(args) => run::run(args, format).await,
    }
}

fn done(format: Format, schema: &str, result: Value, text: String) -> anyhow::Result<Outcome> {
    show(format, schema, &result, String::new)?;
    output::note(format, text);
    Ok(Outcome::Done)
}

/// A value without the quotes of JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
