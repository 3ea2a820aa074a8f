//! `kata-cc-kbs`: command line of the key broker. Wiring only.

use anyhow::Context;
use clap::Parser;
use kata_cc_kbs::admin::{Admins, Origin};
use kata_cc_kbs::appraise::Appraiser;
use kata_cc_kbs::config::{Config, Se, read_bounded, read_bytes};
use kata_cc_kbs::listen;
use kata_cc_kbs::reference::References;
use kata_cc_kbs::secure_execution::{Files, SecureExecution};
use kata_cc_kbs::server::{Broker, Clock, Parts, router};
use kata_cc_kbs::store::{Db, Store, StoreError};
use kata_cc_kbs::tls::ServerCertificate;
use kata_cc_kbs::token_key;
use kata_cc_kbs_protocol::TokenSigner;
use kata_cc_verifier::Trust;
use kata_cc_verifier::cca::CcaTrust;
use kata_cc_verifier::csv::CsvTrust;
use kata_cc_verifier::se::SealingKey;
use kata_cc_verifier::snp::{RootSet, SnpTrust};
use kata_cc_verifier::tdx::{self, TdxTrust};
use kata_cc_verifier::tpm::TpmTrust;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

const MAX_CERTIFICATE: u64 = 64 * 1024;
/// Largest store of trust anchors: some thousand platforms.
const MAX_STORE: u64 = 4 << 20;

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
    let tls = config.tls.as_ref().map(ServerCertificate::load).transpose()?;
    let roots = roots(&config)?;
    let tdx = tdx_trust(&config)?;
    let tpm = tpm_trust(&config)?;
    let cca = cca_trust(&config)?;
    let csv = csv_trust(&config)?;
    let snp = SnpTrust { rules: config.snp.rules(), ..roots.into() };
    let references = References::configured(&config.references)?;
    let signer = token_key::configured(&config.token)?;
    // A clock before 1970 reads as 0: every certificate is then "not yet valid", so nothing is released.
    let clock: Clock = Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    if cli.check_config {
        Admins::configured(&config.admin)?;
        if let Some(se) = &config.se {
            Files::read(se)?.tell(clock())?;
        }
        eprintln!("The configuration is good.");
        return Ok(());
    }

    let mut db = Db::open(&config.data_dir).context("cannot open the store")?;
    let (admins, origin) = Admins::from_config(&config.admin, &config.data_dir)?;
    if let Origin::Made(private_key) = origin {
        eprintln!("Made an administrator key: {} (keep it private; move it to where you administer from)", private_key.display());
    }
    tell(&references, &db)?;
    let signer = match signer {
        Some(brought) => brought,
        None => TokenSigner::from_bytes(&db.key_or("token", || {
            let made = TokenSigner::generate().map_err(|_| StoreError::Corrupt("token key"))?;
            Ok::<_, StoreError>(Zeroizing::new(made.to_bytes().to_vec()))
        })?)?,
    };
    let se = config.se.as_ref().map(|se| secure_execution(se, &mut db, &config, clock())).transpose()?;
    let sample = config.development.sample_evidence;
    if sample {
        tracing::warn!("evidence of kind \"sample\" will be looked at, which anybody can make; the default policy refuses it");
    }
    let parts = Parts {
        store: Store::start(db).context("cannot start the store's thread")?,
        admins,
        appraiser: Appraiser::new(Trust {
            snp,
            tdx,
            se: se.as_ref().map(SecureExecution::current),
            sample,
            tpm,
            cca,
            csv,
            ..Trust::hardware()
        }),
        collector: config.collateral.collector(&config.data_dir).context("[collateral]")?,
        signer,
        session_lifetime: config.session_lifetime(),
        token_lifetime: Duration::from_secs(config.token.lifetime_seconds),
        issuer: config.token.issuer.clone(),
        secure: tls.is_some(),
    };
    let broker = Arc::new(Broker::new(parts, Arc::clone(&clock))?.with_auth_rate(config.http.auth_rate()).with_references(references));

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
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
    })
}

/// Says what an operator should know about the reference values.
fn tell(references: &References, db: &Db) -> Result<(), StoreError> {
    if references.allow_unsigned() {
        tracing::warn!("reference values that nobody signed count: [references] allow_unsigned is true");
    } else {
        let unsigned = db.reference_values()?.len();
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

fn secure_execution(se: &Se, db: &mut Db, config: &Config, now: u64) -> anyhow::Result<SecureExecution> {
    let sealing_key = db.key_or("se", || {
        let mut key = Zeroizing::new(vec![0; 32]);
        SystemRandom::new().fill(&mut key).map_err(|_| StoreError::Corrupt("the random number generator"))?;
        Ok::<_, StoreError>(key)
    })?;
    let sealing_key = <[u8; 32]>::try_from(sealing_key.as_slice()).map_err(|_| StoreError::Corrupt("the key that seals requests"))?;
    Ok(SecureExecution::load(se.clone(), SealingKey::new(sealing_key), config.session_lifetime_seconds, now)?)
}

fn tdx_trust(config: &Config) -> anyhow::Result<TdxTrust> {
    let mut roots = tdx::RootSet::intel();
    for root in &config.tdx.simulated_roots {
        let pem = read_bounded(&root.certificate, MAX_CERTIFICATE)?;
        roots = roots.with_simulated(&root.name, pem.as_bytes()).with_context(|| format!("({})", root.certificate.display()))?;
        tracing::warn!(name = %root.name, "evidence of a simulated TD will be looked at under this root; the default policy refuses it");
    }
    Ok(TdxTrust { roots, rules: config.tdx.rules() })
}

fn tpm_trust(config: &Config) -> anyhow::Result<TpmTrust> {
    let mut trust = TpmTrust::default();
    for path in &config.tpm.attestation_keys {
        let name = path.display().to_string();
        let key = read_bounded(path, MAX_CERTIFICATE)?;
        trust = trust.with_key(&name, key.as_bytes()).with_context(|| format!("[tpm] attestation_keys: {name}"))?;
    }
    Ok(trust)
}

fn cca_trust(config: &Config) -> anyhow::Result<CcaTrust> {
    let Some(cca) = &config.cca else { return Ok(CcaTrust::default()) };
    let store = read_bounded(&cca.trust_anchors, MAX_STORE)?;
    CcaTrust::from_store(store.as_bytes()).with_context(|| format!("[cca] trust_anchors: {}", cca.trust_anchors.display()))
}

fn csv_trust(config: &Config) -> anyhow::Result<CsvTrust> {
    let Some(csv) = &config.csv else { return Ok(CsvTrust::default()) };
    let root = read_bytes(&csv.root, MAX_CERTIFICATE)?;
    let mut trust = CsvTrust::default().with_root("HRK", &root).with_context(|| format!("[csv] root: {}", csv.root.display()))?;
    for path in &csv.chips {
        let chip = read_bytes(path, MAX_CERTIFICATE)?;
        trust = trust.with_chip(&chip).with_context(|| format!("[csv] chips: {}", path.display()))?;
    }
    Ok(trust)
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
