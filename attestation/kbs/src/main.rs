//! `kata-cc-kbs`: command line of the key broker. Wiring only.

use anyhow::Context;
use clap::Parser;
use kata_cc_kbs::admin::{Admins, Origin};
use kata_cc_kbs::appraise::Appraiser;
use kata_cc_kbs::config::{Config, read_bounded};
use kata_cc_kbs::listen;
use kata_cc_kbs::server::{Broker, Clock, Parts, router};
use kata_cc_kbs::store::{Db, Store, StoreError};
use kata_cc_kbs_protocol::TokenSigner;
use kata_cc_verifier::Trust;
use kata_cc_verifier::snp::RootSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

const MAX_CERTIFICATE: u64 = 64 * 1024;

/// The key broker: verifies what confidential guests say about themselves and releases secrets to those that policy allows.
#[derive(Debug, Parser)]
#[command(name = "kata-cc-kbs", version)]
struct Cli {
    /// Configuration file (TOML)
    #[arg(long, env = "KATA_CC_KBS_CONFIG")]
    config: PathBuf,
    /// Check the configuration and the files it names, and exit
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kata-cc-kbs: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let config = Config::load(&cli.config)?;
    let tls = config.tls.as_ref().map(listen::acceptor).transpose()?;
    let roots = roots(&config)?;
    if cli.check_config {
        for path in &config.admin.public_keys {
            Admins::set_up(std::slice::from_ref(path), &config.data_dir)?;
        }
        eprintln!("The configuration is good.");
        return Ok(());
    }

    let mut db = Db::open(&config.data_dir).context("cannot open the store")?;
    let (admins, origin) = Admins::set_up(&config.admin.public_keys, &config.data_dir)?;
    if let Origin::Made(private_key) = origin {
        eprintln!("Made an administrator key: {} (keep it private; move it to where you administer from)", private_key.display());
    }
    let signer = db.key_or("token", || {
        let made = TokenSigner::generate().map_err(|_| StoreError::Corrupt("token key"))?;
        Ok::<_, StoreError>(Zeroizing::new(made.to_bytes().to_vec()))
    })?;
    let parts = Parts {
        store: Store::start(db).context("cannot start the store's thread")?,
        admins,
        appraiser: Appraiser::new(Trust { snp: roots.into() }),
        signer: TokenSigner::from_bytes(&signer)?,
        session_lifetime: config.session_lifetime(),
        token_lifetime: Duration::from_secs(config.token.lifetime_seconds),
        issuer: config.token.issuer.clone(),
        secure: tls.is_some(),
    };
    // A clock before 1970 reads as 0: every certificate is then "not yet valid", so nothing is released.
    let clock: Clock = Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    let broker = Arc::new(Broker::new(parts, clock)?);

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listener = tokio::net::TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        println!("{scheme}://{}", listener.local_addr()?);
        listen::serve(listener, tls, router(broker), async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
        Ok(())
    })
}

fn roots(config: &Config) -> anyhow::Result<RootSet> {
    let mut roots = RootSet::amd();
    for root in &config.simulated_roots {
        let pem = read_bounded(&root.certificate, MAX_CERTIFICATE)?;
        roots = roots
            .with_simulated(&root.name, pem.as_bytes())
            .with_context(|| format!("simulated root {:?} ({})", root.name, root.certificate.display()))?;
        tracing::warn!(name = %root.name, "evidence of a simulated TEE will be looked at under this root; the default policy refuses it");
    }
    Ok(roots)
}
