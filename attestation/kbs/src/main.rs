//! `kata-cc-kbs`: command line of the key broker. Wiring only.

mod trust;

use anyhow::Context;
use clap::Parser;
use kata_cc_kbs::admin::{Admins, Origin};
use kata_cc_kbs::appraise::Appraiser;
use kata_cc_kbs::config::{Config, Se};
use kata_cc_kbs::listen;
use kata_cc_kbs::reference::References;
use kata_cc_kbs::resources::{Resources, Vault};
use kata_cc_kbs::seal::pkcs11::wrap_key_file;
use kata_cc_kbs::secure_execution::{Files, SecureExecution};
use kata_cc_kbs::server::{Broker, Clock, Parts, router};
use kata_cc_kbs::store::rotate::rotate;
use kata_cc_kbs::store::{Store, StoreError};
use kata_cc_kbs::tls::ServerCertificate;
use kata_cc_kbs::token_key;
use kata_cc_kbs_protocol::TokenSigner;
use kata_cc_verifier::Trust;
use kata_cc_verifier::se::SealingKey;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

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
    /// Seal everything in the store with a new key, and exit. No broker may run meanwhile
    #[arg(long, conflicts_with = "check_config")]
    rotate_store_key: bool,
    /// The environment variable with the new key, where the configuration has `store.key_env`
    #[arg(long, value_name = "NAME", requires = "rotate_store_key")]
    new_store_key_env: Option<String>,
    /// Have the HSM of `[store.pkcs11]` wrap the store's key that is in this key file, and exit
    #[arg(long, value_name = "KEY_FILE", conflicts_with_all = ["check_config", "rotate_store_key"])]
    wrap_store_key: Option<PathBuf>,
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
    let tls = config.tls.as_ref().map(ServerCertificate::load).transpose()?;
    let trust = trust::configured(&config)?;
    let references = References::configured(&config.references)?;
    let signer = token_key::configured(&config.token)?;
    let vault = config.vault.as_ref().map(Vault::configured).transpose().context("[vault]")?;
    // A clock before 1970 reads as 0: every certificate is then "not yet valid", so nothing is released.
    let clock: Clock = Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    if cli.check_config {
        Admins::configured(&config.admin)?;
        Store::check(&config.store, &config.data_dir)?;
        if let Some(se) = &config.se {
            Files::read(se)?.tell(clock())?;
        }
        eprintln!("The configuration is good.");
        return Ok(());
    }

    if let Some(key_file) = &cli.wrap_store_key {
        let wrapped = wrap_key_file(&config.store.key(&config.data_dir), key_file)?;
        eprintln!(
            "{} has the wrapped key. The key itself has been in a file: now run --rotate-store-key, then delete {}.",
            wrapped.display(),
            key_file.display()
        );
        return Ok(());
    }

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    if cli.rotate_store_key {
        let values = runtime.block_on(rotate(&config.store, &config.data_dir, cli.new_store_key_env.as_deref()))?;
        eprintln!("{values} stored values are sealed with the new key.");
        return Ok(());
    }
    runtime.block_on(serve(&config, Given { tls, trust, references, signer, vault }, clock))
}

/// What the files say that the configuration names.
struct Given {
    tls: Option<ServerCertificate>,
    trust: Trust,
    references: References,
    signer: Option<TokenSigner>,
    vault: Option<Vault>,
}

async fn serve(config: &Config, given: Given, clock: Clock) -> anyhow::Result<()> {
    let Given { tls, mut trust, references, signer, vault } = given;
    let store = Store::configured(&config.store, &config.data_dir).await.context("cannot open the store")?;
    let (admins, origin) = Admins::from_config(&config.admin, &config.data_dir)?;
    if let Origin::Made(private_key) = origin {
        eprintln!("Made an administrator key: {} (keep it private; move it to where you administer from)", private_key.display());
    }
    tell(&references, &store).await?;
    let resources = match vault {
        Some(vault) => in_vault(vault, &store).await?,
        None => Resources::Store(store.clone()),
    };
    let signer = match signer {
        Some(brought) => brought,
        None => TokenSigner::from_bytes(&store.key_or("token", make_token_key).await?)?,
    };
    let se = match &config.se {
        Some(se) => Some(secure_execution(se, &store, config, clock()).await?),
        None => None,
    };
    trust.se = se.as_ref().map(SecureExecution::current);
    let parts = Parts {
        store,
        admins,
        appraiser: Appraiser::new(trust),
        collector: config.collateral.collector(&config.data_dir).context("[collateral]")?,
        signer,
        session_lifetime: config.session_lifetime(),
        token_lifetime: Duration::from_secs(config.token.lifetime_seconds),
        issuer: config.token.issuer.clone(),
        secure: tls.is_some(),
    };
    let broker = Broker::new(parts, Arc::clone(&clock))?.with_auth_rate(config.http.auth_rate()).with_references(references);
    let broker = Arc::new(broker.with_resources(resources));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = tokio::net::TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    println!("{scheme}://{}", listener.local_addr()?);
    let acceptor = tls.as_ref().map(ServerCertificate::acceptor).transpose()?;
    if let Some(certificate) = tls {
        tokio::spawn(certificate.follow(signal(SignalKind::hangup())?));
    }
    if let Some(se) = se {
        tokio::spawn(se.follow(signal(SignalKind::hangup())?, move || clock()));
    }
    listen::serve_within(config.http.limits(), listener, acceptor, router(broker), async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await;
    Ok(())
}

fn make_token_key() -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let made = TokenSigner::generate().map_err(|_| StoreError::Corrupt("token key"))?;
    Ok(Zeroizing::new(made.to_bytes().to_vec()))
}

/// Says what an operator should know about the reference values.
async fn tell(references: &References, store: &Store) -> Result<(), StoreError> {
    if references.allow_unsigned() {
        tracing::warn!("reference values that nobody signed count: [references] allow_unsigned is true");
    } else {
        let unsigned = store.registered().await?.unsigned.len();
        if unsigned > 0 {
            tracing::warn!(
                unsigned,
                "reference values that nobody signed are stored and do not count: sign them, or set [references] allow_unsigned"
            );
        }
    }
    for kind in references.development() {
        tracing::warn!(
            kind = kind.as_str(),
            "manifests of images that are not for production are taken: [references] development names their kind"
        );
    }
    Ok(())
}

/// Says what an operator should know about a Vault. One that is away now may be there later: `/readyz` says so.
async fn in_vault(vault: Vault, store: &Store) -> Result<Resources, StoreError> {
    let left = store.resource_names().await?.len();
    if left > 0 {
        tracing::warn!(left, "resources are in the store and not served: [vault] has the resources");
    }
    if let Err(error) = vault.ready().await {
        tracing::error!(%error, "the Vault cannot be used now");
    }
    Ok(Resources::Vault(vault.into()))
}

async fn secure_execution(se: &Se, store: &Store, config: &Config, now: u64) -> anyhow::Result<SecureExecution> {
    let make = || {
        let mut key = Zeroizing::new(vec![0; 32]);
        SystemRandom::new().fill(&mut key).map_err(|_| StoreError::Corrupt("the random number generator"))?;
        Ok(key)
    };
    let sealing_key = store.key_or("se", make).await?;
    let sealing_key = <[u8; 32]>::try_from(sealing_key.as_slice()).map_err(|_| StoreError::Corrupt("the key that seals requests"))?;
    Ok(SecureExecution::load(se.clone(), SealingKey::new(sealing_key), config.session_lifetime_seconds, now)?)
}
