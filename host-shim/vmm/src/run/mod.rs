//! Running a plan: the one place where processes are started.

mod console;
mod host;
mod process;
mod vsock;

use std::fs::OpenOptions;
use std::future::Future;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::task::JoinHandle;

pub use host::{reserve_vsock, vhost_net};
pub use process::{Exit, Process};
pub use vsock::{ReadyListener, Refusing, connect};

use crate::plan::{LaunchPlan, PlanError, Vsock};
use crate::qemu::{self, FdRole};
use crate::qmp::{Qmp, QmpError, Stopped};
use crate::run_dir::RunDir;
use crate::tee::Tee;

/// How long QEMU may take to answer its monitor after being asked to quit, before it is killed.
const QUIT_GRACE: Duration = Duration::from_secs(1);

/// Ends seen within this time are one end.
const TOGETHER: Duration = Duration::from_millis(300);

/// Why a machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The plan has no command line.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Something of the host's.
    #[error("{step}: {source}")]
    Host {
        /// What was being done.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A process ended during the start.
    #[error("{name} ended while the machine was being started ({exit})")]
    Ended {
        /// Which.
        name: &'static str,
        /// How.
        exit: Exit,
    },
    /// The monitor did not come up.
    #[error("QEMU's monitor did not come up")]
    Monitor(#[from] QmpError),
    /// The caller brought too few or too many descriptors.
    #[error("the plan has {expected} descriptors of {what} to inherit, the caller brought {found}")]
    Descriptors {
        /// Of what.
        what: &'static str,
        /// By the plan.
        expected: usize,
        /// By the caller.
        found: usize,
    },
}

fn host(step: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Host { step, source }
}

/// Descriptors opened beforehand for the machine.
#[derive(Debug, Default)]
pub struct Inherited {
    /// One tap per interface.
    pub taps: Vec<OwnedFd>,
    /// One `/dev/vhost-net` per interface that uses it.
    pub vhost_net: Vec<OwnedFd>,
    /// `/dev/vhost-vsock` with the guest's address set.
    pub vhost_vsock: Option<OwnedFd>,
}

/// How a machine ended.
#[derive(Debug, Clone)]
pub struct VmExit {
    /// Which process ended first.
    pub name: &'static str,
    /// How that process ended.
    pub exit: Exit,
    /// What the monitor said before.
    pub stopped: Stopped,
}

/// A virtual machine monitor: what turns a plan into a machine.
pub trait Vmm: Sized {
    /// Starts the machine and what it needs. On an error nothing is left running.
    fn launch(plan: &LaunchPlan, inherited: Inherited, dir: &RunDir) -> impl Future<Output = Result<Self, LaunchError>>;
    /// Waits for the end of the machine or of a process it cannot do without.
    fn wait(&self) -> impl Future<Output = VmExit> + Send;
    /// Ends the machine and its helpers, and returns when they are gone.
    fn stop(&self) -> impl Future<Output = ()> + Send;
    /// Holds or releases its processors.
    fn set_paused(&self, paused: bool) -> impl Future<Output = Result<(), QmpError>> + Send;
}

/// A machine run by QEMU.
#[derive(Debug)]
pub struct Qemu {
    qemu: Process,
    helpers: Vec<Process>,
    qmp: Qmp,
    console: JoinHandle<()>,
}

impl Qemu {
    /// QEMU's process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }
}

/// The descriptor of a socket pair that goes to QEMU, and our end.
fn pair(step: &'static str) -> Result<(OwnedFd, UnixStream), LaunchError> {
    let (theirs, ours) = StdUnixStream::pair().map_err(host(step))?;
    ours.set_nonblocking(true).map_err(host(step))?;
    Ok((theirs.into(), UnixStream::from_std(ours).map_err(host(step))?))
}

/// The first of the helpers to end; never, when there are none.
async fn first_end(helpers: &[Process]) -> (&'static str, Exit) {
    let waits: Vec<_> = helpers.iter().map(|helper| Box::pin(async move { (helper.name(), helper.wait().await) })).collect();
    select_first(waits).await
}

/// A helper ends when QEMU does, and may be seen to end first; then QEMU is what to tell of.
async fn cause(qemu: &Process, helper: (&'static str, Exit)) -> (&'static str, Exit) {
    match tokio::time::timeout(TOGETHER, qemu.wait()).await {
        Ok(exit) => (qemu.name(), exit),
        Err(_) => helper,
    }
}

async fn select_first<F: Future + Unpin>(mut futures: Vec<F>) -> F::Output {
    std::future::poll_fn(move |context| {
        for future in &mut futures {
            if let std::task::Poll::Ready(output) = std::pin::Pin::new(future).poll(context) {
                return std::task::Poll::Ready(output);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

fn take<T>(what: &'static str, items: Vec<T>, expected: usize) -> Result<std::vec::IntoIter<T>, LaunchError> {
    if items.len() == expected { Ok(items.into_iter()) } else { Err(LaunchError::Descriptors { what, expected, found: items.len() }) }
}

/// The processes of a machine that is being started.
#[derive(Default)]
struct Started {
    helpers: Vec<Process>,
    qemu: Option<Process>,
}

impl Started {
    /// Ends what has been started so far, and waits until it is gone.
    async fn end(&self) {
        for process in self.helpers.iter().chain(&self.qemu) {
            process.kill();
        }
        for process in self.helpers.iter().chain(&self.qemu) {
            process.wait().await;
        }
    }

    /// Starts the vsock helper and the report service, and connects to the helper.
    async fn helpers(&mut self, plan: &LaunchPlan, dir: &RunDir) -> Result<Option<OwnedFd>, LaunchError> {
        let mut helper_socket = None;
        if let Vsock::VhostUser { cid, helper, device_socket, socket, .. } = &plan.vsock {
            let watch = vsock::SocketWatch::new(dir.path()).map_err(host("cannot watch the pod's directory"))?;
            let arguments = qemu::vsock_helper(*cid, device_socket, socket);
            let helper = Process::spawn("vhost-device-vsock", helper, arguments, Vec::new(), dir);
            self.helpers.push(helper.map_err(host("cannot start the vsock helper"))?);
            helper_socket = Some((watch, device_socket));
        }
        if let Tee::Sim(sim) = &plan.tee {
            // Not waited for: the guest asks for its first report long after the service's socket is there.
            let service = Process::spawn("kata-cc-tee-sim", &sim.tee_sim, sim.service_arguments(plan), Vec::new(), dir);
            self.helpers.push(service.map_err(host("cannot start the simulated TEE"))?);
        }
        let Some((watch, socket)) = helper_socket else { return Ok(None) };
        tokio::select! {
            connected = watch.connect(socket) => connected.map(Some).map_err(host("cannot connect to the vsock helper")),
            (name, exit) = first_end(&self.helpers) => Err(LaunchError::Ended { name, exit }),
        }
    }

    /// Starts QEMU and waits for its monitor.
    async fn qemu(
        &mut self,
        plan: &LaunchPlan,
        descriptors: Vec<(OwnedFd, RawFd)>,
        qmp: UnixStream,
        dir: &RunDir,
    ) -> Result<Qmp, LaunchError> {
        let qemu = Process::spawn("qemu", &plan.qemu, qemu::command(plan)?, descriptors, dir).map_err(host("cannot start QEMU"))?;
        let qemu = self.qemu.insert(qemu);
        tokio::select! {
            opened = Qmp::open(qmp) => match opened {
                // A monitor that closes is nearly always QEMU refusing its command line; its own words say more.
                Err(QmpError::Closed | QmpError::Io(_)) => {
                    qemu.kill();
                    Err(LaunchError::Ended { name: "qemu", exit: qemu.wait().await })
                }
                opened => Ok(opened?),
            },
            end = first_end(&self.helpers) => {
                let (name, exit) = cause(qemu, end).await;
                Err(LaunchError::Ended { name, exit })
            }
        }
    }
}

/// Brings the descriptors of a plan into the order its command line names them in.
fn descriptors(
    plan: &LaunchPlan,
    inherited: Inherited,
    qmp: OwnedFd,
    console: OwnedFd,
    helper: Option<OwnedFd>,
) -> Result<Vec<(OwnedFd, RawFd)>, LaunchError> {
    let mut taps = take("taps", inherited.taps, plan.nics.len())?;
    let mut vhost_net = take("vhost-net", inherited.vhost_net, plan.nics.iter().filter(|nic| nic.vhost).count())?;
    let (mut qmp, mut console, mut helper, mut vhost_vsock) = (Some(qmp), Some(console), helper, inherited.vhost_vsock);
    let mut descriptors = Vec::new();
    for (role, number) in qemu::inherited(plan).into_iter().zip(qemu::FIRST_FD..) {
        let (what, fd) = match role {
            FdRole::Qmp => ("monitor", qmp.take()),
            FdRole::Console => ("console", console.take()),
            FdRole::VsockHelper => ("vsock helper", helper.take()),
            FdRole::VhostVsock => ("/dev/vhost-vsock", vhost_vsock.take()),
            FdRole::Tap(_) => ("taps", taps.next()),
            FdRole::VhostNet(_) => ("vhost-net", vhost_net.next()),
        };
        descriptors.push((fd.ok_or(LaunchError::Descriptors { what, expected: 1, found: 0 })?, number));
    }
    Ok(descriptors)
}

impl Vmm for Qemu {
    async fn launch(plan: &LaunchPlan, inherited: Inherited, dir: &RunDir) -> Result<Self, LaunchError> {
        let (qmp_fd, qmp_stream) = pair("cannot make the monitor's socket pair")?;
        let (console_fd, console_stream) = pair("cannot make the console's socket pair")?;
        let log = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&plan.console_log)
            .map_err(host("cannot create the console log"))?;
        let mut started = Started::default();
        let begun = async {
            let helper = started.helpers(plan, dir).await?;
            let descriptors = descriptors(plan, inherited, qmp_fd, console_fd, helper)?;
            // Read from the first byte on: QEMU does not wait for us.
            let console = tokio::spawn(console::keep(console_stream, log));
            Ok((started.qemu(plan, descriptors, qmp_stream, dir).await?, console))
        };
        match begun.await {
            Ok((qmp, console)) => match started.qemu.take() {
                Some(qemu) => Ok(Self { qemu, helpers: started.helpers, qmp, console }),
                None => Err(QmpError::Closed.into()),
            },
            Err(error) => {
                started.end().await;
                Err(error)
            }
        }
    }

    async fn wait(&self) -> VmExit {
        let (name, exit) = tokio::select! {
            exit = self.qemu.wait() => ("qemu", exit),
            end = first_end(&self.helpers) => cause(&self.qemu, end).await,
        };
        VmExit { name, exit, stopped: self.qmp.stopped() }
    }

    async fn stop(&self) {
        // Asked first, so that QEMU can release devices in order; killed when it does not answer. Nothing of the guest is worth keeping.
        let quit = tokio::time::timeout(QUIT_GRACE, async {
            let _ = self.qmp.quit().await;
            self.qemu.wait().await
        });
        if quit.await.is_err() {
            self.qemu.kill();
            self.qemu.wait().await;
        }
        for helper in &self.helpers {
            helper.kill();
        }
        for helper in &self.helpers {
            helper.wait().await;
        }
    }

    async fn set_paused(&self, paused: bool) -> Result<(), QmpError> {
        if paused { self.qmp.pause().await } else { self.qmp.resume().await }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.console.abort();
    }
}
