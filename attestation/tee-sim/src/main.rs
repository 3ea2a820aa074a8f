//! `kata-cc-tee-sim`: command line of the simulated TEE. Wiring only.
//!
//! Started as `/init` (or as PID 1) it is the guest half, whatever its arguments: those belong to the agent.

use anyhow::Context;
use clap::{Parser, Subcommand};
use kata_cc_evidence::HostData;
use kata_cc_firmware::measure::snp::CpuModel;
use kata_cc_tee_sim::{guest, identity, serve};
use nix::sys::signal::{SigSet, Signal};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// A simulated TEE for development: real launch measurements, reports signed by a root of your own. It protects nothing.
#[derive(Debug, Parser)]
#[command(name = "kata-cc-tee-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Make the simulated key hierarchy (root, intermediate, chip key), unless it is there
    Init {
        /// Directory for keys and certificates; give ark.pem to the broker as a simulated root
        #[arg(long)]
        keys: PathBuf,
    },
    /// Sign reports for one VM, measured from the files it was launched with
    Serve(Box<ServeArgs>),
    /// The guest half: mount the report interface and become the agent
    Guest {
        /// Program to execute when the report interface is there
        #[arg(long, default_value = guest::AGENT)]
        agent: PathBuf,
        /// Arguments of that program
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// The report server that `guest` starts for itself
    #[command(hide = true)]
    GuestServe {
        /// Mount point
        at: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// Directory that `init` made
    #[arg(long)]
    keys: PathBuf,
    /// Unix socket to listen on
    #[arg(long)]
    socket: PathBuf,
    /// Firmware image the VM boots
    #[arg(long)]
    ovmf: PathBuf,
    /// Kernel image
    #[arg(long)]
    kernel: PathBuf,
    /// Initrd
    #[arg(long)]
    initrd: PathBuf,
    /// Kernel command line
    #[arg(long, allow_hyphen_values = true)]
    append: String,
    /// Number of vCPUs
    #[arg(long)]
    vcpus: u32,
    /// Model of the vCPUs
    #[arg(long, default_value = "EPYC-v4")]
    vcpu_type: CpuModel,
    /// SEV features, as a number (0x1: SNP active)
    #[arg(long, value_parser = number, default_value = "0x1")]
    guest_features: u64,
    /// Host data: 32 bytes in hex; the initdata digest goes here
    #[arg(long)]
    host_data: HostData,
}

fn main() -> ExitCode {
    let as_init = std::env::args_os().next().is_some_and(|arg0| arg0 == "/init") || std::process::id() == 1;
    if as_init {
        let e = guest::init(guest::AGENT.as_ref(), std::env::args_os().skip(1).collect());
        return fail(&e.into());
    }
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

fn fail(e: &anyhow::Error) -> ExitCode {
    eprintln!("kata-cc-tee-sim: {e:#}");
    ExitCode::FAILURE
}

fn run(command: Cmd) -> anyhow::Result<()> {
    match command {
        Cmd::Init { keys } => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
            let outcome = identity::init(&keys, identity::RSA_BITS, now)?;
            match outcome {
                identity::InitOutcome::Made => eprintln!("Made a simulated key hierarchy."),
                identity::InitOutcome::AlreadyThere => eprintln!("The simulated key hierarchy is there already; nothing changed."),
            }
            println!("{}", keys.join("ark.pem").display());
            Ok(())
        }
        Cmd::Serve(args) => serve(*args),
        Cmd::Guest { agent, args } => Err(guest::init(&agent, args).into()),
        Cmd::GuestServe { at } => Ok(guest::serve(&at)?),
    }
}

fn serve(args: ServeArgs) -> anyhow::Result<()> {
    // Blocked before any thread exists, so that only the waiting thread ever sees them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;
    let socket = serve::Socket::bind(&args.socket)?;
    let path = socket.path().to_path_buf();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let _ = signals.wait();
            let _ = std::fs::remove_file(path);
            std::process::exit(0);
        })
        .context("cannot start the signal thread")?;
    let launch = serve::Launch {
        firmware: args.ovmf,
        kernel: args.kernel,
        initrd: args.initrd,
        append: args.append,
        vcpus: args.vcpus,
        vcpu_type: args.vcpu_type,
        guest_features: args.guest_features,
        host_data: args.host_data,
    };
    Ok(serve::run(&socket, &args.keys, &launch)?)
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|e| format!("{e}; expected a number such as 0x1"))
}
