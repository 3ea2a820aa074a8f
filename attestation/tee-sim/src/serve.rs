//! The host half: a unix socket that answers report requests for one VM.
//!
//! The VMM's vsock device forwards the guest's connections to the socket. The socket is bound before anything else is done, so a guest
//! that is quicker than the measurement waits in the backlog instead of being refused.
//!
//! **Invariant:** at most [`MAX_CONNECTIONS`] connections are served at a time, each for at most [`IO_TIMEOUT`] of silence.

use crate::identity::{self, Identity, IdentityError};
use crate::report::{self, Launched};
use crate::wire::{Blobs, Request, write_response};
use crate::{intel, td};
use kata_cc_evidence::{HostData, LaunchDigest, ReportData};
use kata_cc_firmware::measure::snp::{CpuModel, MeasureError, SnpFiles, Vmm, measure_files};
use rand_core::{OsRng, RngCore};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Connections served side by side; one guest needs one at a time.
pub const MAX_CONNECTIONS: usize = 8;
/// A peer that is silent for so long is dropped.
pub const IO_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket could not be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// Socket path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The keys could not be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The launch could not be measured.
    #[error("cannot measure the launch")]
    Measure(#[from] MeasureError),
    /// The launch of a TD could not be measured.
    #[error("cannot measure the launch")]
    Td(#[from] td::LaunchError),
    /// `accept` failed for good.
    #[error("cannot accept connections")]
    Accept(#[source] std::io::Error),
}

/// A VM, as the shim tells of it.
#[derive(Debug, Clone)]
pub enum Vm {
    /// An SNP guest.
    Snp(Launch),
    /// A TD.
    Td(td::Launch),
}

/// What an SNP guest was launched with.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Firmware image.
    pub firmware: PathBuf,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initrd.
    pub initrd: PathBuf,
    /// Kernel command line.
    pub append: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Model of the vCPUs.
    pub vcpu_type: CpuModel,
    /// SEV features.
    pub guest_features: u64,
    /// Host data.
    pub host_data: HostData,
}

impl Launch {
    /// Reads the files and computes what the hardware would have measured.
    pub fn measure(&self) -> Result<Launched, MeasureError> {
        let digest = measure_files(&SnpFiles {
            firmware: &self.firmware,
            kernel: Some(&self.kernel),
            initrd: Some(&self.initrd),
            append: Some(&self.append),
            vcpus: self.vcpus,
            vcpu_type: self.vcpu_type,
            guest_features: self.guest_features,
            vmm: Vmm::Qemu,
        })?;
        let mut report_id = [0u8; 32];
        OsRng.fill_bytes(&mut report_id);
        Ok(Launched { measurement: LaunchDigest(*digest.as_bytes()), host_data: self.host_data, report_id })
    }
}

/// A bound socket that is removed when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds. A socket left by a dead server is replaced; any other file is not.
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        use std::os::unix::fs::FileTypeExt;
        let fail = |source| ServeError::Listen { path: path.into(), source };
        if let Ok(found) = std::fs::symlink_metadata(path)
            && found.file_type().is_socket()
            && UnixStream::connect(path).is_err()
        {
            std::fs::remove_file(path).map_err(fail)?;
        }
        let listener = UnixListener::bind(path).map_err(fail)?;
        Ok(Self { listener, path: path.into() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A simulated machine with what it has launched.
#[derive(Debug)]
pub enum Machine {
    /// An SNP machine.
    Snp(Box<Identity>, Launched),
    /// A TDX machine.
    Tdx(Box<intel::Identity>, td::Launched),
}

impl Machine {
    /// The machine of `keys` with this VM launched.
    pub fn launch(keys: &Path, vm: &Vm) -> Result<Self, ServeError> {
        Ok(match vm {
            Vm::Snp(launch) => Self::Snp(Box::new(identity::load(keys)?), launch.measure()?),
            Vm::Td(launch) => Self::Tdx(Box::new(intel::load(&keys.join(identity::TDX_DIR))?), launch.measure()?),
        })
    }

    fn describe(&self) -> String {
        match self {
            Self::Snp(_, launched) => format!("launch digest {} host data {}", launched.measurement, launched.host_data),
            Self::Tdx(_, td) => {
                let [rtmr0, rtmr1, rtmr2, _] = td.rtmr;
                format!("MRTD {} RTMR0 {rtmr0} RTMR1 {rtmr1} RTMR2 {rtmr2} MRCONFIGID {}", td.mr_td, td.mr_config_id)
            }
        }
    }

    fn answer(&self, request: &Request) -> Result<Blobs, String> {
        let alone = |outblob| Blobs { outblob, auxblob: Vec::new() };
        match (self, request) {
            (Self::Snp(identity, launched), Request::Report(request)) => {
                report::report(identity, launched, request).map_err(|e| e.to_string())
            }
            (Self::Snp(..), _) => Err("this is an SNP machine: it has no TDs".into()),
            (Self::Tdx(identity, td), Request::Report(request)) if request.vmpl == 0 => {
                td.quote(identity, ReportData(request.report_data)).map(alone).map_err(|e| e.to_string())
            }
            (Self::Tdx(..), Request::Report(_)) => Err("this is a TDX machine: a TD has no VMPL".into()),
            (Self::Tdx(_, td), Request::TdReport(report_data)) => Ok(alone(td.td_report(ReportData(*report_data)).to_vec())),
            (Self::Tdx(_, td), Request::EventLog) => Ok(alone(td.event_log.clone())),
        }
    }
}

/// Measures the launch and serves requests until the process ends or `accept` fails.
pub fn run(socket: &Socket, keys: &Path, vm: &Vm) -> Result<(), ServeError> {
    let machine = Machine::launch(keys, vm)?;
    eprintln!("kata-cc-tee-sim: {}", machine.describe());
    serve(socket, machine)
}

/// Serves requests for an already measured launch.
pub fn serve(socket: &Socket, machine: Machine) -> Result<(), ServeError> {
    let shared = Arc::new(machine);
    let busy = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match socket.listener.accept() {
            Ok((stream, _)) => stream,
            // The peer hung up while it waited: nothing to do with us.
            Err(e) if matches!(e.kind(), std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::Interrupted) => continue,
            Err(e) => return Err(ServeError::Accept(e)),
        };
        let Some(slot) = Slot::take(&busy) else {
            eprintln!("kata-cc-tee-sim: refused a connection: {MAX_CONNECTIONS} are open already");
            continue;
        };
        let shared = Arc::clone(&shared);
        let spawned = std::thread::Builder::new().name("report".into()).spawn(move || {
            let _slot = slot;
            answer(stream, &shared);
        });
        if let Err(e) = spawned {
            eprintln!("kata-cc-tee-sim: refused a connection: no thread for it: {e}");
        }
    }
}

/// One of the bounded places, given back when dropped.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(busy: &Arc<AtomicUsize>) -> Option<Self> {
        busy.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < MAX_CONNECTIONS).then_some(n + 1)).ok()?;
        Some(Self(Arc::clone(busy)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn answer(mut stream: UnixStream, machine: &Machine) {
    let outcome = stream
        .set_read_timeout(Some(IO_TIMEOUT))
        .and_then(|()| stream.set_write_timeout(Some(IO_TIMEOUT)))
        .map_err(Into::into)
        .and_then(|()| Request::read_from(&mut stream))
        .and_then(|request| write_response(&mut stream, &machine.answer(&request)));
    if let Err(e) = outcome {
        eprintln!("kata-cc-tee-sim: connection dropped: {e}");
    }
}
