//! A process's standard streams: between containerd's pipes and the agent, in order and without loss.
//!
//! Each stream has one request to the agent at a time, so bytes cannot be reordered; nothing is read from the agent before the last bytes are in
//! the pipe, so a slow reader slows the process instead of losing its output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::sync::Arc;
use std::time::Duration;

use kata_cc_agent_protocol::rpc::agent::{CloseStdinRequest, ReadStreamRequest, WriteStreamRequest};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::error::Error;

/// One read from the agent; the size of a pipe's buffer in the guest.
const CHUNK: u32 = 64 * 1024;
/// How long after a process's end its streams may stay silent before they are given up: a child it left behind may hold them open for ever.
const SILENCE: Duration = Duration::from_millis(500);

/// Where containerd wants a process's streams.
#[derive(Debug, Clone, Default)]
pub(crate) struct StdioPaths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Which process of the guest.
#[derive(Debug, Clone)]
pub(crate) struct ProcessId {
    pub(crate) container: String,
    pub(crate) exec: String,
}

enum Sink {
    Pipe(pipe::Sender),
    File(File),
    Nowhere,
}

/// The opened streams of a process that has not been started yet.
pub(crate) struct Stdio {
    stdin: Option<pipe::Receiver>,
    stdout: Sink,
    stderr: Option<Sink>,
}

/// What a stream is doing, as far as its end is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// Waits for the agent.
    Reading(u64),
    /// Waits for containerd.
    Writing,
    Done,
}

/// The streams of a running process.
#[derive(Debug)]
pub(crate) struct Pumps {
    outputs: Vec<watch::Receiver<Activity>>,
    close_stdin: Arc<Notify>,
    tasks: JoinSet<()>,
}

fn open_pipe(path: &str, options: &mut OpenOptions) -> io::Result<File> {
    // Not through a link: the bundle's directory may have been prepared by somebody else (AC-67). Not blocking: there may be no peer yet.
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.file_type().is_fifo() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a named pipe"))
    }
}

fn open_output(path: &str) -> Result<Sink, Error> {
    let failed = || Error::host(format!("cannot open the output {path}"));
    if path.is_empty() {
        return Ok(Sink::Nowhere);
    }
    if let Some(path) = path.strip_prefix("file://") {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path).map_err(failed())?;
        return Ok(Sink::File(file));
    }
    if path.contains("://") {
        return Err(Error::Invalid(format!("output {path}: expected a named pipe or file://")));
    }
    // Both ways: with a reader of our own the pipe survives containerd's restart, and we are blocked instead of killed meanwhile.
    let file = open_pipe(path, OpenOptions::new().read(true).write(true)).map_err(failed())?;
    Ok(Sink::Pipe(pipe::Sender::from_file(file).map_err(failed())?))
}

impl Stdio {
    /// Opens what containerd prepared.
    pub(crate) fn open(paths: &StdioPaths) -> Result<Self, Error> {
        let stdin = if paths.stdin.is_empty() {
            None
        } else {
            let failed = || Error::host(format!("cannot open the input {}", paths.stdin));
            // Both ways: without a writer of our own, "no writer yet" would read as the end.
            let file = open_pipe(&paths.stdin, OpenOptions::new().read(true).write(true)).map_err(failed())?;
            Some(pipe::Receiver::from_file(file).map_err(failed())?)
        };
        let stdout = open_output(&paths.stdout)?;
        let stderr = if paths.terminal { None } else { Some(open_output(&paths.stderr)?) };
        Ok(Self { stdin, stdout, stderr })
    }

    /// Starts carrying.
    pub(crate) fn start(self, agent: &Agent, process: &ProcessId) -> Pumps {
        let mut pumps = Pumps { outputs: Vec::new(), close_stdin: Arc::new(Notify::new()), tasks: JoinSet::new() };
        if let Some(stdin) = self.stdin {
            pumps.tasks.spawn(carry_stdin(stdin, agent.clone(), process.clone(), Arc::clone(&pumps.close_stdin)));
        }
        for (sink, stream) in [(Some(self.stdout), Stream::Stdout), (self.stderr, Stream::Stderr)] {
            if let Some(sink) = sink {
                let (sender, receiver) = watch::channel(Activity::Reading(0));
                pumps.outputs.push(receiver);
                pumps.tasks.spawn(carry_output(sink, stream, agent.clone(), process.clone(), sender));
            }
        }
        pumps
    }
}

impl Pumps {
    /// containerd has written all it will.
    pub(crate) fn close_stdin(&self) -> Arc<Notify> {
        Arc::clone(&self.close_stdin)
    }

    /// The process has ended: waits for the rest of its output.
    pub(crate) async fn drain(mut self) {
        for output in &mut self.outputs {
            loop {
                let activity = *output.borrow_and_update();
                match activity {
                    Activity::Done => break,
                    // However slow the reader is, what was read from the guest reaches it.
                    Activity::Writing => {
                        if output.changed().await.is_err() {
                            break;
                        }
                    }
                    Activity::Reading(_) => {
                        if !matches!(tokio::time::timeout(SILENCE, output.changed()).await, Ok(Ok(()))) {
                            break;
                        }
                    }
                }
            }
        }
        self.tasks.shutdown().await;
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

async fn carry_output(mut sink: Sink, stream: Stream, agent: Agent, process: ProcessId, activity: watch::Sender<Activity>) {
    let request = ReadStreamRequest { container_id: process.container, exec_id: process.exec, len: CHUNK, ..Default::default() };
    let mut reads = 0_u64;
    loop {
        let answer = match stream {
            Stream::Stdout => agent.client().read_stdout(agent.waiting_context(), &request).await,
            Stream::Stderr => agent.client().read_stderr(agent.waiting_context(), &request).await,
        };
        // An error is the end of the stream, and so is nothing: that is also how agents answer where the policy keeps the output.
        let data = answer.map(|answer| answer.data).unwrap_or_default();
        if data.is_empty() {
            break;
        }
        activity.send_replace(Activity::Writing);
        if let Err(error) = write(&mut sink, &data).await {
            tracing::warn!(%error, "cannot write output; the rest is dropped");
            sink = Sink::Nowhere;
        }
        reads = reads.wrapping_add(1);
        activity.send_replace(Activity::Reading(reads));
    }
    // The pipe is closed before anybody is told, so that the reader sees the end first.
    drop(sink);
    activity.send_replace(Activity::Done);
}

async fn write(sink: &mut Sink, data: &[u8]) -> io::Result<()> {
    match sink {
        Sink::Pipe(pipe) => pipe.write_all(data).await,
        Sink::File(file) => file.write_all(data),
        Sink::Nowhere => Ok(()),
    }
}

async fn carry_stdin(stdin: pipe::Receiver, agent: Agent, process: ProcessId, close: Arc<Notify>) {
    let mut buffer = vec![0; CHUNK as usize];
    let mut closing = false;
    loop {
        match stdin.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                let data = buffer.get(..read).unwrap_or_default();
                if send(&agent, &process, data).await.is_err() {
                    return;
                }
            }
            // All that was in the pipe when containerd closed it has been carried.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && closing => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::select! {
                    readable = stdin.readable() => if readable.is_err() { break },
                    () = close.notified() => closing = true,
                }
            }
            Err(_) => break,
        }
    }
    let request = CloseStdinRequest { container_id: process.container, exec_id: process.exec, ..Default::default() };
    // The process may be gone.
    let _ = agent.client().close_stdin(agent.context(), &request).await;
}

async fn send(agent: &Agent, process: &ProcessId, mut data: &[u8]) -> Result<(), ttrpc::Error> {
    while !data.is_empty() {
        let request = WriteStreamRequest {
            container_id: process.container.clone(),
            exec_id: process.exec.clone(),
            data: data.to_vec(),
            ..Default::default()
        };
        // No deadline: a process that does not read its input is not an error.
        let written = agent.client().write_stdin(agent.waiting_context(), &request).await?.len;
        let written = usize::try_from(written).unwrap_or(usize::MAX);
        match data.get(written..) {
            Some(rest) if written > 0 => data = rest,
            _ => return Err(ttrpc::Error::Others("the agent took an impossible number of bytes".into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ac_67_refuses_pipes_behind_links_and_what_is_no_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        nix::unistd::mkfifo(path("fifo").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::write(path("file"), b"").unwrap();
        std::os::unix::fs::symlink(path("fifo"), path("link")).unwrap();
        let stdout = |path: String| Stdio::open(&StdioPaths { stdout: path, ..Default::default() }).map(drop);
        stdout(path("fifo")).unwrap();
        stdout(String::new()).unwrap();
        stdout(format!("file://{}", path("log"))).unwrap();
        assert!(stdout(path("file")).is_err());
        assert!(stdout(path("link")).is_err());
        assert!(stdout(path("missing")).is_err());
        assert!(stdout("binary:///bin/true".into()).is_err());
        assert!(Stdio::open(&StdioPaths { stdin: path("link"), ..Default::default() }).is_err());
    }
}
