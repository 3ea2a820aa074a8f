//! The commands, one file each.

mod check;
mod collateral;
mod completions;
mod firmware;
mod image;
mod initdata;
mod kbs;
mod measure;
mod plan;
mod policy;
mod secret;
mod timeline;
mod verify;
mod verify_eventlog;
mod verify_manifest;
mod verify_token;

use clap::Subcommand;

use crate::output::{Format, Outcome};

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Look whether this host can run confidential pods, and say what is missing.
    Check(check::Args),
    /// Compute the launch measurement of a guest before it exists.
    #[command(subcommand)]
    Measure(measure::Command),
    /// List the firmware builds that are known, and tell what a file of firmware is.
    #[command(subcommand)]
    Firmware(firmware::Command),
    /// Show the machine that would be made for a pod: as a plan, or as QEMU's command line.
    Plan(plan::Args),
    /// Encrypt images and make the keys for it; make boot images of IBM Secure Execution.
    #[command(subcommand)]
    Image(image::Command),
    /// Sign, verify and try out agent policies.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Seal secrets for Kubernetes to carry, and make the keys for it.
    #[command(subcommand)]
    Secret(secret::Command),
    /// Build and read initdata, the part of a pod the hardware measures.
    #[command(subcommand)]
    Initdata(initdata::Command),
    /// Administer a key broker.
    Kbs(kbs::Args),
    /// Verify evidence without a broker.
    #[command(subcommand)]
    Verify(verify::Command),
    /// Fetch what evidence does not bring: certificates, revocation lists, TCB levels.
    #[command(subcommand)]
    Collateral(collateral::Command),
    /// Show what a pod's start spent its time on.
    Timeline(timeline::Args),
    /// Print a completion script for a shell.
    Completions(completions::Args),
}

/// Carries out a command.
pub(crate) fn run(command: Command, format: Format) -> anyhow::Result<Outcome> {
    match command {
        Command::Check(args) => check::run(&args, format),
        Command::Measure(command) => measure::run(&command, format),
        Command::Firmware(command) => firmware::run(&command, format),
        Command::Plan(args) => plan::run(&args, format),
        Command::Image(command) => image::run(command, format),
        Command::Policy(command) => policy::run(&command, format),
        Command::Secret(command) => secret::run(&command, format),
        Command::Initdata(command) => initdata::run(&command, format),
        Command::Kbs(args) => kbs::run(args, format),
        Command::Verify(command) => verify::run(&command, format),
        Command::Collateral(command) => collateral::run(&command, format),
        Command::Timeline(args) => timeline::run(&args, format),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Runs a command that talks to the network.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    // A second call finds the provider installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(future)
}
