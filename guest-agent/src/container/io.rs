//! Standard streams of a process: the agent's ends of its pipes or of its terminal.
//!
//! Nothing is buffered here: what the process wrote stays in the pipe until the host asks for it, so a process whose output is
//! not read blocks, as it would anywhere, and costs no more memory than its pipe. Asking empties the pipe also where the policy
//! gives the host nothing of it.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use crate::descriptor::watched;
use crate::reaper::{Exit, ended};

/// The most one read gives back, whatever the host asks for.
const MAX_READ: usize = 1 << 20;

/// One end of a pipe, or of a terminal, that the agent holds.
#[derive(Debug)]
pub(crate) struct End(AsyncFd<OwnedFd>);

impl End {
    /// Takes a descriptor over.
    ///
    /// # Errors
    /// When it cannot be made non-blocking or watched.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(watched(fd, Interest::READABLE | Interest::WRITABLE)?))
    }

    /// The descriptor.
    #[must_use]
    pub(crate) fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }

    /// Reads what is there, or waits for something. Empty is the end.
    async fn read(&self, max: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; max.clamp(1, MAX_READ)];
        let length = self.0.async_io(Interest::READABLE, |fd| read_once(fd, &mut data)).await?;
        data.truncate(length);
        Ok(data)
    }

    /// Reads what is there now. Empty if there is nothing, or at the end.
    fn read_now(&self, max: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; max.clamp(1, MAX_READ)];
        let length = match read_once(self.fd(), &mut data) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            other => other?,
        };
        data.truncate(length);
        Ok(data)
    }

    /// Writes all of it.
    async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let length = self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, data)?)).await?;
            data = data.get(length..).unwrap_or_default();
        }
        Ok(())
    }
}

/// A terminal whose other side was closed answers EIO, which is its way to say that this is the end.
fn read_once(fd: &OwnedFd, data: &mut [u8]) -> io::Result<usize> {
    match nix::unistd::read(fd, data) {
        Err(Errno::EIO) => Ok(0),
        other => Ok(other?),
    }
}

/// The agent's ends of a process's standard streams.
#[derive(Debug)]
pub(crate) enum Streams {
    /// Three pipes.
    Pipes {
        /// `None` once closed.
        stdin: Mutex<Option<End>>,
        /// One reader at a time, so that nothing is reordered.
        stdout: Mutex<End>,
        /// As stdout.
        stderr: Mutex<End>,
    },
    /// One terminal. There is no separate error stream.
    Terminal {
        /// The controlling side.
        master: End,
        /// One reader at a time.
        reading: Mutex<()>,
    },
}

/// The process's ends.
#[derive(Debug)]
pub(crate) struct ChildEnds {
    /// What the process reads.
    pub(crate) stdin: OwnedFd,
    /// What it writes.
    pub(crate) stdout: OwnedFd,
    /// What it writes about errors.
    pub(crate) stderr: OwnedFd,
}

/// Which output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Streams {
    /// Three pipes: our ends and the process's.
    ///
    /// # Errors
    /// When pipes cannot be made.
    pub(crate) fn pipes() -> io::Result<(Self, ChildEnds)> {
        let (stdin, our_stdin) = pipe2(OFlag::O_CLOEXEC)?;
        let (our_stdout, stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (our_stderr, stderr) = pipe2(OFlag::O_CLOEXEC)?;
        let ours = Self::Pipes {
            stdin: Mutex::new(Some(End::new(our_stdin)?)),
            stdout: Mutex::new(End::new(our_stdout)?),
            stderr: Mutex::new(End::new(our_stderr)?),
        };
        Ok((ours, ChildEnds { stdin, stdout, stderr }))
    }

    /// A terminal by its controlling side.
    ///
    /// # Errors
    /// When the descriptor cannot be used.
    pub(crate) fn terminal(master: OwnedFd) -> io::Result<Self> {
        Ok(Self::Terminal { master: End::new(master)?, reading: Mutex::new(()) })
    }

    /// Reads output, waiting for some. Empty means that there will never be any more.
    ///
    /// Once the process has ended, all that it wrote is in the pipe. Descendants that it left behind may hold the pipe open for
    /// ever; they are not waited for.
    ///
    /// # Errors
    /// When reading fails.
    pub(crate) async fn read(&self, output: Output, max: usize, exit: &Exit) -> io::Result<Vec<u8>> {
        match (self, output) {
            (Self::Pipes { stdout, .. }, Output::Stdout) => read_pipe(stdout, max, exit).await,
            (Self::Pipes { stderr, .. }, Output::Stderr) => read_pipe(stderr, max, exit).await,
            (Self::Terminal { master, reading }, Output::Stdout) => {
                // What was written to a terminal arrives later, through a kernel thread; but a terminal whose session has
                // ended is hung up, which is an end that does arrive.
                let _one = reading.lock().await;
                master.read(max).await
            }
            (Self::Terminal { .. }, Output::Stderr) => Ok(Vec::new()),
        }
    }

    /// Writes input, waiting until the process has taken it or has ended.
    ///
    /// # Errors
    /// When the input was closed, by either side.
    pub(crate) async fn write(&self, data: &[u8], exit: &Exit) -> io::Result<()> {
        let write = async {
            match self {
                Self::Pipes { stdin, .. } => match stdin.lock().await.as_ref() {
                    Some(end) => end.write_all(data).await,
                    None => Err(io::ErrorKind::BrokenPipe.into()),
                },
                Self::Terminal { master, .. } => master.write_all(data).await,
            }
        };
        tokio::select! {
            result = write => result,
            _ = ended(exit) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends the process's input. On a terminal that is a character, which the host sends; here it is nothing.
    pub(crate) async fn close_input(&self) {
        if let Self::Pipes { stdin, .. } = self {
            stdin.lock().await.take();
        }
    }

    /// Tells a terminal its size.
    ///
    /// # Errors
    /// When there is no terminal, or it refuses.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        match self {
            Self::Pipes { .. } => Err(io::Error::new(io::ErrorKind::Unsupported, "the process has no terminal")),
            Self::Terminal { master, .. } => {
                let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                Ok(rustix::termios::tcsetwinsize(master.fd(), size)?)
            }
        }
    }
}

async fn read_pipe(end: &Mutex<End>, max: usize, exit: &Exit) -> io::Result<Vec<u8>> {
    let end = end.lock().await;
    tokio::select! {
        biased;
        data = end.read(max) => data,
        _ = ended(exit) => end.read_now(max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use tokio::sync::watch;

    #[tokio::test]
    async fn output_is_complete_and_in_order_although_the_process_has_ended() {
        let (streams, child) = Streams::pipes().unwrap();
        let (end, exit) = watch::channel(None);
        let writer = std::thread::spawn(move || {
            let mut out = std::fs::File::from(child.stdout);
            for number in 0..100_000u32 {
                out.write_all(&number.to_be_bytes()).unwrap();
            }
            end.send_replace(Some(0));
            // A descendant keeps the pipe open: the end must be seen all the same.
            out
        });
        let mut all = Vec::new();
        loop {
            let data = streams.read(Output::Stdout, 4096, &exit).await.unwrap();
            if data.is_empty() {
                break;
            }
            all.extend(data);
        }
        let expected: Vec<u8> = (0..100_000u32).flat_map(u32::to_be_bytes).collect();
        assert!(all == expected, "{} bytes", all.len());
        drop(writer.join().unwrap());
    }

    #[tokio::test]
    async fn input_reaches_the_process_until_it_is_closed() {
        let (streams, child) = Streams::pipes().unwrap();
        let (_end, exit) = watch::channel(None);
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            std::fs::File::from(child.stdin).read_to_string(&mut text).unwrap();
            text
        });
        streams.write(b"hello", &exit).await.unwrap();
        streams.close_input().await;
        assert_eq!(reader.join().unwrap(), "hello");
        assert!(streams.write(b"x", &exit).await.is_err());
    }

    #[tokio::test]
    async fn writing_to_a_process_that_does_not_read_ends_when_it_does() {
        let (streams, _child) = Streams::pipes().unwrap();
        let (end, exit) = watch::channel(None);
        let data = vec![0; 1 << 20];
        let write = streams.write(&data, &exit);
        let ends = async { end.send_replace(Some(0)) };
        let (result, _) = tokio::join!(write, ends);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn only_terminals_have_a_size() {
        let (streams, _child) = Streams::pipes().unwrap();
        assert_eq!(streams.resize(24, 80).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
