//! `containerd-shim-kata-cc-v2`: between containerd and one pod's guest.
//!
//! containerd starts it as `start` (found or join a pod), as `delete` (clean up after a crash), and it starts itself as the pod's server. It plans,
//! launches and watches the machine, and carries requests and streams. It is not trusted by the guest: everything it says is judged there.
//! Interface: containerd runtime v2, task service versions 2 and 3.

mod agent;
mod args;
mod bootstrap;
mod cgroup;
mod cleanup;
mod config;
mod error;
mod events;
mod host_file;
mod kind;
mod log;
mod machine;
mod network;
mod oci;
mod pod;
mod process;
mod sandbox;
mod serve;
mod stats;
mod stdio;
mod task;
mod timeline;
mod volumes;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use args::Flags;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::types::introspection::RuntimeInfo;

const RUNTIME: &str = "io.containerd.kata-cc.v2";

const HELP: &str = "containerd-shim-kata-cc-v2: runs confidential pods for containerd (runtime type io.containerd.kata-cc.v2)

containerd starts this program; there is nothing to do with it by hand. Its configuration is /etc/kata-cc/config.toml, or the file named by
KATA_CC_CONFIG or by containerd's runtime options (ConfigPath).

  -v, -version   print the version
  -info          describe the runtime to containerd
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows this to whoever asked for the pod.
            eprintln!("kata-cc: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let flags = Flags::parse(std::env::args_os().skip(1))?;
    if flags.help {
        return std::io::stdout().write_all(HELP.as_bytes()).context("cannot print");
    }
    if flags.version {
        return writeln!(std::io::stdout(), "containerd-shim-kata-cc-v2 {}", env!("CARGO_PKG_VERSION")).context("cannot print");
    }
    if flags.info {
        let info = RuntimeInfo { name: RUNTIME.into(), ..Default::default() };
        return std::io::stdout().write_all(&info.write_to_bytes()?).context("cannot print");
    }
    match flags.action.as_str() {
        "start" => bootstrap::start(&flags),
        // The machine dies with the thread that started it, so there is one thread, and it is the last to go.
        "delete" => runtime()?.block_on(cleanup::delete(&flags)),
        "" => {
            log::init(flags.debug);
            let served = runtime()?.block_on(serve::serve(&flags));
            if let Err(error) = &served {
                tracing::error!(error = %format!("{error:#}"), "the shim ends");
            }
            served
        }
        other => anyhow::bail!("unknown action {other:?}: expected `start` or `delete`"),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}
