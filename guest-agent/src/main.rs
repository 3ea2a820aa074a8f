//! `kata-cc-agent`: PID 1 and the whole userland of a confidential guest.
//!
//! This file is wiring only. In the order in which things happen: [`init`] makes the guest usable, [`boot`] reads initdata and has
//! the hardware and the owner's signature vouch for it, [`rpc`] serves the host under the policy from it, [`rest`] serves programs in
//! the pod. [`kbs`] and [`image`] work for both; [`container`] runs what was allowed.
//!
//! **Invariant:** no request of the host is carried out before a policy is in force whose signature and binding to this very
//! launch were checked.
//!
//! **Invariant:** only this file reads the kernel command line and the arguments.

mod aael;
mod asker;
mod attest;
mod blob_cache;
mod boot;
mod config;
mod container;
mod copy_file;
mod descriptor;
mod errors;
mod guest;
mod image;
mod init;
mod kbs;
mod measure;
mod network;
mod reaper;
mod rest;
mod rpc;
mod sealed;
mod storage;
mod sysctl;
mod timeline;
mod vsock;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::Notify;

use crate::attest::Attester;
use crate::boot::BootError;
use crate::config::Config;
use crate::container::oom::OomEvents;
use crate::container::runtime::Runtime;
use crate::guest::{Guest, Sandbox};
use crate::image::Images;
use crate::kbs::Broker;
use crate::network::Network;
use crate::reaper::Reaper;
use crate::rest::Rest;
use crate::rpc::Service;
use crate::timeline::Timeline;

/// How long a guest that refuses to run its pod stays up for somebody to ask why.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the answer to that question may take to leave the guest.
const REFUSAL_LINGER: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let start = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == container::helper::ARGUMENT) && std::process::id() != 1 {
        return container::helper::main(arguments.get(1..).unwrap_or_default());
    }
    if std::process::id() != 1 {
        eprintln!("kata-cc-agent is the first process of a confidential guest, and does nothing elsewhere");
        return ExitCode::from(2);
    }
    if let Err(error) = boot(start) {
        tracing::error!("{error:#}");
        eprintln!("kata-cc-agent: {error:#}");
    }
    init::power::off()
}

/// Everything that happens in the guest. Comes back when it is over.
fn boot(start: Instant) -> anyhow::Result<()> {
    let timeline = Arc::new(Timeline::starting(start));
    init::bring_up().context("cannot bring the guest up")?;
    timeline.mark("init");
    let line = std::fs::read_to_string("/proc/cmdline").context("cannot read the kernel command line")?;
    let config = Config::from_command_line(&line)?;
    tracing_subscriber::fmt().with_max_level(config.log).with_writer(std::io::stderr).with_ansi(false).without_time().init();
    rustls::crypto::ring::default_provider().install_default().map_err(|_| anyhow::anyhow!("two providers of cryptography"))?;
    tokio::runtime::Builder::new_multi_thread()
        // Two, so that one busy with a handshake leaves one for the kill path.
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run(config, timeline))
}

async fn run(config: Config, timeline: Arc<Timeline>) -> anyhow::Result<()> {
    let reaper = Arc::new(Reaper::default());
    tokio::spawn(Arc::clone(&reaper).run());
    let network = Network::open()?;
    timeline.mark("runtime");
    let (groups, loopback, prepared) =
        tokio::join!(init::control_groups(), network.loopback_up(), prepare(config, network.clone(), reaper, Arc::clone(&timeline)));
    groups.context("cannot bring the guest up")?;
    loopback?;
    match prepared {
        Ok(guest) => {
            let guest = Arc::new(guest);
            let rest = Arc::new(Rest {
                gate: Arc::clone(&guest.gate),
                containers: Arc::clone(&guest.containers),
                broker: guest.broker.clone(),
                attester: Some(guest.attester.clone()),
            });
            tokio::spawn(rest.serve(Rest::bind().context("cannot serve the pod")?));
            let _server = rpc::serve(Arc::new(Service::Ready(guest))).await.context("cannot serve the host")?;
            timeline.mark("serving");
            eprintln!("kata-cc-agent: serving; timeline {}", timeline.line());
            // The host ends a pod by ending its guest.
            std::future::pending().await
        }
        Err(error) => refuse(&error).await,
    }
}

/// Everything up to a policy in force.
async fn prepare(config: Config, network: Network, reaper: Arc<Reaper>, timeline: Arc<Timeline>) -> Result<Guest, BootError> {
    let attester = Attester::detect()?;
    timeline.mark("tee");
    let bound = boot::bound_initdata(&attester, &timeline).await?;
    timeline.mark("configuration");
    let gate = Arc::new(kata_cc_policy::Gate::new());
    measure::policy(attester.log(), &bound.config.policy.envelope, bound.policy.policy().version()).map_err(attest::AttestError::from)?;
    gate.install(bound.policy)?;
    timeline.mark("policy");
    for ignored in &bound.config.ignored {
        tracing::info!(entry = %ignored, "initdata: left out, it concerns other programs");
    }
    let text = String::from_utf8_lossy(bound.initdata.raw()).into_owned();
    let broker = bound.config.broker.map(|broker| {
        let (attester, timeline) = (attester.clone(), Arc::clone(&timeline));
        Arc::new(Broker::new(broker, text, attester, config.kbs_timeout, timeline))
    });
    let images = Images::new(bound.config.image, broker.clone(), config.image_pull_timeout, Arc::clone(&timeline));
    Ok(Guest {
        gate,
        policy_keys: bound.config.policy.trusted,
        containers: Arc::default(),
        runtime: Runtime::new(reaper),
        oom: OomEvents::default(),
        network,
        images,
        attester,
        broker,
        timeline,
        sandbox: Mutex::new(Sandbox::default()),
    })
}

/// Says why there will be no pod, on the console and to the first who asks, and comes back for the guest to be powered off.
async fn refuse(error: &BootError) -> anyhow::Result<()> {
    let reason = errors::with_causes(error);
    eprintln!("kata-cc-agent: REFUSED to run this pod: {reason}");
    let service = Arc::new(Service::Refused { reason, told: Notify::new() });
    let mut server = rpc::serve(Arc::clone(&service)).await.context("cannot tell the host")?;
    if let Service::Refused { told, .. } = &*service
        && tokio::time::timeout(REFUSAL_TIMEOUT, told.notified()).await.is_ok()
    {
        // The answer is written by another task, and there is no event for its last byte having left the guest.
        tokio::time::sleep(REFUSAL_LINGER).await;
    }
    server.shutdown().await.context("cannot stop serving")
}
