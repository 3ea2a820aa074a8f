//! `start`: makes the socket of a new pod's shim and starts its server, or names the socket of the pod a container joins.
//!
//! The socket is listening before the server runs (it inherits it as its standard input), so there is nothing to wait for.
//! containerd up to 2.2 reads a bare address, which means version 2 of the task service; 2.3 and newer say and read it in protobuf (version 3).

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use containerd_shim_protos::TASK_API_VERSION;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message as _;
use sha2::{Digest as _, Sha256};

use crate::args::Flags;
use crate::kind::Kind;
use crate::oci::Spec;

/// containerd's own limit.
const MAX_INPUT: u64 = 10 << 20;
/// Where containerd expects the sockets of shims.
const SOCKET_DIR: &str = "/run/containerd/s";
/// Where events go; containerd sets it.
pub(crate) const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// How containerd wants to be answered.
#[derive(Debug, PartialEq, Eq)]
enum Dialect {
    /// A bare address.
    Plain,
    /// A protobuf message.
    Bootstrap,
}

/// Answers `start`.
pub(crate) fn start(flags: &Flags) -> anyhow::Result<()> {
    let mut input = Vec::new();
    io::stdin().lock().take(MAX_INPUT).read_to_end(&mut input).context("cannot read containerd's parameters")?;
    let (options, dialect) = parameters(&input, flags);
    let spec = Spec::load(Path::new("."))?;
    let address = match Kind::of(&spec.annotations)? {
        Kind::Container(sandbox) => join(&options, sandbox.as_str())?,
        Kind::Sandbox | Kind::Single => found(&options)?,
    };
    let note = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open("address");
    note.and_then(|mut file| file.write_all(address.as_bytes())).context("cannot write the address into the bundle")?;
    let reply = match dialect {
        Dialect::Plain => address.into_bytes(),
        Dialect::Bootstrap => {
            let result = BootstrapResult { version: TASK_API_VERSION, address, protocol: "ttrpc".into(), ..Default::default() };
            result.write_to_bytes()?
        }
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&reply).and_then(|()| stdout.flush()).context("cannot answer containerd")
}

/// What containerd says of the container to start.
#[derive(Debug)]
struct Parameters {
    id: String,
    namespace: String,
    /// containerd's own socket; part of the name of ours.
    address: String,
    ttrpc_address: String,
    debug: bool,
    socket_dir: Option<String>,
}

impl Parameters {
    fn socket_address(&self, grouping: &str) -> String {
        socket_address(self.socket_dir.as_deref(), &self.address, &self.namespace, grouping)
    }
}

fn parameters(input: &[u8], flags: &Flags) -> (Parameters, Dialect) {
    // Runtime options of older versions read as such a message too, but name neither this container nor its namespace.
    let new = BootstrapParams::parse_from_bytes(input)
        .ok()
        .filter(|params| params.instance_id == flags.id && params.namespace == flags.namespace);
    match new {
        Some(params) => {
            let parameters = Parameters {
                id: params.instance_id,
                namespace: params.namespace,
                address: params.containerd_grpc_address,
                ttrpc_address: params.containerd_ttrpc_address,
                // Zero is "info"; what is more talkative is below.
                debug: flags.debug || params.log_level.value() < 0,
                socket_dir: params.socket_dir.filter(|dir| !dir.is_empty()),
            };
            (parameters, Dialect::Bootstrap)
        }
        None => {
            let parameters = Parameters {
                id: flags.id.clone(),
                namespace: flags.namespace.clone(),
                address: flags.address.clone(),
                ttrpc_address: std::env::var(TTRPC_ADDRESS).unwrap_or_default(),
                debug: flags.debug,
                socket_dir: None,
            };
            (parameters, Dialect::Plain)
        }
    }
}

/// Where containerd expects the socket of a shim: named by a hash, because paths of sockets are short.
pub(crate) fn socket_address(dir: Option<&str>, containerd: &str, namespace: &str, grouping: &str) -> String {
    let name = Path::new(containerd).join(namespace).join(grouping);
    let hash = hex::encode(Sha256::digest(name.as_os_str().as_encoded_bytes()));
    format!("unix://{}/{hash}", dir.unwrap_or(SOCKET_DIR).trim_end_matches('/'))
}

fn socket_path(address: &str) -> PathBuf {
    address.strip_prefix("unix://").unwrap_or(address).into()
}

/// The socket of the pod a container belongs to.
fn join(options: &Parameters, sandbox: &str) -> anyhow::Result<String> {
    let address = options.socket_address(sandbox);
    UnixStream::connect(socket_path(&address)).with_context(|| format!("pod {sandbox} of container {} is not running", options.id))?;
    Ok(address)
}

/// A new pod's socket, with a server behind it.
fn found(options: &Parameters) -> anyhow::Result<String> {
    if options.ttrpc_address.is_empty() {
        bail!("containerd gave no address for events (environment {TTRPC_ADDRESS})");
    }
    let address = options.socket_address(&options.id);
    let listener = listen(&socket_path(&address))?;
    let program = std::env::current_exe().context("cannot find our own binary")?;
    let mut command = Command::new(program);
    command.args(["-namespace", &options.namespace, "-id", &options.id, "-address", &options.address, "-socket", &address]);
    if options.debug {
        command.arg("-debug");
    }
    command.env(TTRPC_ADDRESS, &options.ttrpc_address);
    // A group of its own: a signal to containerd's terminal is not for the pods.
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().context("cannot start the shim's server")?;
    Ok(address)
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let dir = path.parent().context("the socket's path has no directory")?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let failed = || format!("cannot listen on {}", path.display());
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // Left by a crashed predecessor; one that answers is a pod of the same name that is running.
            if UnixStream::connect(path).is_ok() {
                bail!("{}: a shim of this name is running", path.display());
            }
            remove_socket(path);
            UnixListener::bind(path).with_context(failed)
        }
        result => result.with_context(failed),
    }
}

/// Removes a socket, and nothing that is not one.
pub(crate) fn remove_socket(path: &Path) {
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        let _ = std::fs::remove_file(path);
    }
}

/// As [`remove_socket`], for an address as containerd writes it.
pub(crate) fn remove_address(address: &str) {
    remove_socket(&socket_path(address));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags { id: "c".into(), namespace: "n".into(), address: "/run/c.sock".into(), ..Default::default() }
    }

    #[test]
    fn tells_new_containerd_from_old() {
        let params = BootstrapParams { instance_id: "c".into(), namespace: "n".into(), ..Default::default() };
        let (options, dialect) = parameters(&params.write_to_bytes().unwrap(), &flags());
        assert_eq!((options.id.as_str(), dialect), ("c", Dialect::Bootstrap));
        // Runtime options (a protobuf Any) and nothing at all.
        for input in [&b"\x0a\x01t\x12\x02ab"[..], b""] {
            let (options, dialect) = parameters(input, &flags());
            assert_eq!((options.address.as_str(), dialect), ("/run/c.sock", Dialect::Plain));
        }
    }

    #[test]
    fn names_sockets_as_containerd_does() {
        assert_eq!(
            socket_address(None, "/run/containerd/containerd.sock", "default", "123"),
            "unix:///run/containerd/s/0ddfbd72d02b3551e75f3a0ed90b9965b533401be618f43a568bc522764e0ad0"
        );
        assert!(socket_address(Some("/x/"), "/a", "b", "c").starts_with("unix:///x/"));
    }

    #[test]
    fn replaces_the_socket_of_a_crashed_shim_but_not_of_a_running_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let running = listen(&path).unwrap();
        assert!(listen(&path).is_err());
        drop(running);
        listen(&path).unwrap();
        std::fs::write(dir.path().join("file"), b"").unwrap();
        remove_socket(&dir.path().join("file"));
        assert!(dir.path().join("file").exists());
    }
}
