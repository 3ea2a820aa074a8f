//! `kata-cc-tee-sim`: command line of the simulated TEE. Wiring only.
//!
//! Started as `/init` (or as PID 1) it is the guest half, whatever its arguments: those belong to the agent.

use anyhow::Context;
use clap::{Parser, Subcommand};
use kata_cc_evidence::{HostData, MrConfigId};
use kata_cc_firmware::measure::snp::CpuModel;
use kata_cc_tee_sim::{guest, identity, intel, serve, td};
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
    /// Make the keys and certificates of a simulated SNP and a simulated TDX machine, unless they are there
    Init {
        /// Directory for them; ark.pem and tdx/root.pem are roots for the broker, tdx/collateral is its collateral directory
        #[arg(long)]
        keys: PathBuf,
    },
    /// Sign reports or quotes for one VM, measured from the files it was launched with
    Serve(Box<ServeArgs>),
    /// Print the measurements of a simulated TD as JSON, by the names of the broker's reference values
    MeasureTd(TdArgs),
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
        /// File to mount the TDX guest device on
        #[arg(long)]
        tdx_guest: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Tee {
    /// AMD SEV-SNP
    Snp,
    /// Intel TDX
    Tdx,
}

/// What a simulated TD is measured from.
#[derive(Debug, Clone, clap::Args)]
struct TdArgs {
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
}

impl TdArgs {
    fn launch(self, mr_config_id: MrConfigId) -> td::Launch {
        let Self { ovmf: firmware, kernel, initrd, append, vcpus } = self;
        td::Launch { firmware, kernel, initrd, append, vcpus, mr_config_id }
    }
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// Directory that `init` made
    #[arg(long)]
    keys: PathBuf,
    /// Unix socket to listen on
    #[arg(long)]
    socket: PathBuf,
    /// Which TEE is simulated
    #[arg(long, value_enum, default_value = "snp")]
    tee: Tee,
    #[command(flatten)]
    files: TdArgs,
    /// Model of the vCPUs (snp)
    #[arg(long, default_value = "EPYC-v4")]
    vcpu_type: CpuModel,
    /// SEV features, as a number (0x1: SNP active) (snp)
    #[arg(long, value_parser = number, default_value = "0x1")]
    guest_features: u64,
    /// Host data: 32 bytes in hex; the initdata digest goes here (snp)
    #[arg(long, required_if_eq("tee", "snp"), conflicts_with = "mr_config_id")]
    host_data: Option<HostData>,
    /// MRCONFIGID: 48 bytes in hex; the initdata digest goes here (tdx)
    #[arg(long, required_if_eq("tee", "tdx"))]
    mr_config_id: Option<MrConfigId>,
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
                identity::InitOutcome::Made => eprintln!("Made a simulated SNP and a simulated TDX machine; their roots:"),
                identity::InitOutcome::AlreadyThere => eprintln!("The simulated machines are there already, nothing changed; their roots:"),
            }
            println!("{}", keys.join("ark.pem").display());
            println!("{}", keys.join(identity::TDX_DIR).join(intel::ROOT_FILE).display());
            Ok(())
        }
        Cmd::Serve(args) => serve(*args),
        Cmd::MeasureTd(args) => {
            let td = args.launch(MrConfigId::ZERO).measure()?;
            let [rtmr0, rtmr1, rtmr2, _] = td.rtmr;
            let xfam = hex::encode(td::XFAM.to_le_bytes());
            let values = serde_json::json!({"mr_td": td.mr_td, "rtmr_0": rtmr0, "rtmr_1": rtmr1, "rtmr_2": rtmr2, "xfam": xfam});
            println!("{values:#}");
            Ok(())
        }
        Cmd::Guest { agent, args } => Err(guest::init(&agent, args).into()),
        Cmd::GuestServe { at, tdx_guest } => Ok(guest::serve(&at, tdx_guest.as_deref())?),
    }
}

fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let vm = args.vm()?;
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
    Ok(serve::run(&socket, &args.keys, &vm)?)
}

impl ServeArgs {
    /// The VM that is served. Each TEE has its own field for the initdata digest, and takes no other.
    fn vm(&self) -> anyhow::Result<serve::Vm> {
        let files = self.files.clone();
        match (self.tee, self.host_data, self.mr_config_id) {
            (Tee::Snp, Some(host_data), None) => Ok(serve::Vm::Snp(serve::Launch {
                firmware: files.ovmf,
                kernel: files.kernel,
                initrd: files.initrd,
                append: files.append,
                vcpus: files.vcpus,
                vcpu_type: self.vcpu_type,
                guest_features: self.guest_features,
                host_data,
            })),
            (Tee::Tdx, None, Some(mr_config_id)) => Ok(serve::Vm::Td(files.launch(mr_config_id))),
            _ => anyhow::bail!("expected --host-data with --tee snp, or --mr-config-id with --tee tdx"),
        }
    }
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|e| format!("{e}; expected a number such as 0x1"))
}
