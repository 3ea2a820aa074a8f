//! One pull by our library as the guest uses it: the same defaults, a runtime like the agent's, a store that begins empty. A process of its own.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use kata_cc_image_pull::{LayerStore, PullConfig, Puller, ResourceUri, Secret, SecretError, Secrets, SignaturePolicy};

/// The key of the encrypted image. No secret: it protects made-up bytes.
pub(crate) const KEK: [u8; 32] = *b"a bench's key, which is no secre";
/// Its name.
pub(crate) const KEY_ID: &str = "kbs:///bench/key/image";

/// What to pull.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of the layer store
    #[arg(long)]
    store: PathBuf,
    /// The image
    #[arg(long)]
    reference: String,
    /// Registry with which plain HTTP is spoken
    #[arg(long)]
    registry: String,
}

struct Bench;

#[async_trait::async_trait]
impl Secrets for Bench {
    async fn resource(&self, uri: &ResourceUri) -> Result<Secret, SecretError> {
        if uri.to_string() != KEY_ID {
            return Err("no such key in the bench".into());
        }
        Ok(Secret::new(KEK.to_vec()))
    }
}

/// Chooses ring, as the agent does. Once is enough.
pub(crate) fn install_cryptography() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Pulls, and prints the memory it took.
pub(crate) fn pull(args: &Args) -> Result<()> {
    install_cryptography();
    // As in the agent.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let config = PullConfig { insecure_registries: vec![args.registry.clone()], ..PullConfig::default() };
        let puller = Puller::new(config, Arc::new(Bench))?;
        let store = LayerStore::open(&args.store)?;
        puller.pull(&args.reference.parse()?, &SignaturePolicy::insecure_accept_anything(), &store, &|_| {}).await?;
        anyhow::Ok(())
    })?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("/proc/self/status has no VmHWM")?;
    println!("{}", peak.trim().trim_end_matches(" kB"));
    Ok(())
}
