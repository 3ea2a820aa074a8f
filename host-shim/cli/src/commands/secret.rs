//! `kata-cc secret`: sealed secrets, to be put where Kubernetes puts secrets, and of no use to it.
//!
//! Formats are `kata_cc_kbs_protocol::sealed`'s, the same code the guest opens them with. Invariants: a private key and a plain secret are
//! read from files and never from the command line, which every user of a machine can read; neither is printed.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_kbs_protocol::resource::ResourcePathError;
use kata_cc_kbs_protocol::sealed::{KEY_BYTES, SealedError, SigningKey, UnverifiedSecret, VerifyingKey, seal_envelope, seal_vault};
use serde_json::json;
use zeroize::Zeroizing;

use crate::files;
use crate::output::{Format, Outcome, line, note, show};

/// What to do with sealed secrets.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a key to sign sealed secrets with: a JWK (P-256) in a new file of mode 0600.
    Keygen {
        /// File to create.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the public half of a signing key, which the broker has to have.
    PublicKey {
        /// Signing key (`kata-cc secret keygen`).
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Make a sealed secret: sealed.<header>.<payload>.<signature>.
    #[command(subcommand)]
    Seal(Seal),
    /// Verify a sealed secret and say what it points to. Exit code 3 when it is not as the guest wants it.
    Verify {
        /// Public key (`kata-cc secret public-key`).
        #[arg(long, value_name = "FILE")]
        public_key: PathBuf,
        /// File with the sealed secret (`-`: stdin).
        #[arg(value_name = "FILE", default_value = "-")]
        secret: PathBuf,
    },
}

/// Kinds of sealed secrets.
#[derive(Subcommand)]
pub(crate) enum Seal {
    /// A pointer to a secret that is at the broker.
    Vault {
        #[command(flatten)]
        signer: Signer,
        /// The secret at the broker: kbs:///repository/type/tag.
        #[arg(long, value_name = "URI", value_parser = resource)]
        resource: ResourcePath,
    },
    /// A secret, encrypted under a key that is at the broker.
    Envelope {
        #[command(flatten)]
        signer: Signer,
        /// The key at the broker: kbs:///repository/type/tag.
        #[arg(long, value_name = "URI", value_parser = resource)]
        resource: ResourcePath,
        /// File with that key: 32 bytes (`kata-cc image keygen` makes such keys).
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        /// File with the secret, which is taken to its last byte (`-`: stdin).
        #[arg(long = "in", value_name = "FILE", default_value = "-")]
        secret: PathBuf,
    },
}

/// Who signs.
#[derive(clap::Args)]
pub(crate) struct Signer {
    /// Signing key (`kata-cc secret keygen`, or a JWK of CoCo's tool).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Where the broker has its public half: kbs:///repository/type/tag. The pod's policy must list it as a sealing key.
    #[arg(long, value_name = "URI", value_parser = resource)]
    kid: ResourcePath,
}

fn resource(uri: &str) -> Result<ResourcePath, ResourcePathError> {
    ResourcePath::from_uri(uri)
}

impl Signer {
    fn key(&self) -> anyhow::Result<SigningKey> {
        read_key(&self.key)
    }
}

fn read_key(path: &Path) -> anyhow::Result<SigningKey> {
    let jwk = Zeroizing::new(files::read(path)?);
    SigningKey::from_jwk(&jwk).with_context(|| format!("cannot use {}", path.display()))
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<Outcome> {
    match command {
        Command::Keygen { file } => {
            let key = SigningKey::generate()?;
            files::write_secret(file, key.to_jwk().as_bytes())?;
            note(
                format,
                format!("wrote {}; give the broker what `kata-cc secret public-key` prints, and nobody this file", file.display()),
            );
            show(format, "secret.keygen", &json!({ "key": file }), String::new)?;
        }
        Command::PublicKey { key } => {
            // JSON either way: what is printed goes to the broker as it is.
            crate::output::raw(format!("{}\n", read_key(key)?.public_jwk()).as_bytes())?;
        }
        Command::Seal(seal) => {
            let sealed = match seal {
                Seal::Vault { signer, resource } => seal_vault(resource, &signer.kid, &signer.key()?)?,
                Seal::Envelope { signer, resource, key_file, secret } => {
                    let wrapping_key = Zeroizing::new(files::read(key_file)?);
                    if wrapping_key.len() != KEY_BYTES {
                        bail!("{} has {} bytes, expected {KEY_BYTES}", key_file.display(), wrapping_key.len());
                    }
                    let secret = Zeroizing::new(files::read(secret)?);
                    seal_envelope(&secret, &wrapping_key, resource, &signer.kid, &signer.key()?)?
                }
            };
            show(format, "secret.seal", &json!({ "sealed": sealed }), || sealed.clone())?;
        }
        Command::Verify { public_key, secret } => return verify(public_key, secret, format),
    }
    Ok(Outcome::Done)
}

fn verify(public_key: &Path, secret: &Path, format: Format) -> anyhow::Result<Outcome> {
    let key = VerifyingKey::from_jwk(&files::read(public_key)?).with_context(|| format!("cannot use {}", public_key.display()))?;
    let text = files::read_text(secret)?;
    let verified = || -> Result<_, SealedError> {
        let unverified = UnverifiedSecret::parse(text.trim_end())?;
        let kid = unverified.kid().to_uri();
        Ok((unverified.verify(&key)?, kid))
    };
    match verified() {
        Ok((sealed, kid)) => {
            let resource = sealed.resource().to_uri();
            let value = json!({ "verified": true, "type": sealed.kind(), "resource": resource, "kid": kid });
            show(format, "secret.verify", &value, || line("type", sealed.kind()) + &line("resource", &resource) + &line("kid", &kid))?;
            Ok(Outcome::Done)
        }
        Err(error) => {
            let error = anyhow::Error::from(error);
            let value = json!({ "verified": false, "error": format!("{error:#}") });
            show(format, "secret.verify", &value, || format!("not verified: {error:#}"))?;
            Ok(Outcome::No)
        }
    }
}
