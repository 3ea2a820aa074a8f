//! A small client of QEMU's monitor protocol: greeting, capabilities, a few commands, the events that tell why a machine stopped.

use std::io;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

/// QEMU's messages are short; a guest can make it send events, not long ones.
const MAX_MESSAGE: u64 = 64 * 1024;
/// Commands waiting for their turn.
const QUEUE: usize = 8;

/// Why the conversation with QEMU failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The monitor is gone, and most likely the machine.
    #[error("QEMU closed its monitor")]
    Closed,
    /// Reading or writing failed.
    #[error("cannot talk to QEMU's monitor")]
    Io(#[from] io::Error),
    /// Not what the protocol says.
    #[error("QEMU's monitor: expected {expected}, found {found}")]
    Unexpected {
        /// What should have come.
        expected: &'static str,
        /// The beginning of what came.
        found: String,
    },
    /// QEMU refused a command.
    #[error("QEMU refused `{command}`: {description}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What QEMU said.
        description: String,
    },
}

/// Why the guest stopped, as far as QEMU said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stopped {
    /// The guest's kernel panicked.
    pub panicked: bool,
    /// The reason of the shutdown event (`guest-shutdown`, `guest-reset`, `host-qmp-quit`, …).
    pub reason: Option<String>,
}

struct Command {
    name: &'static str,
    answer: oneshot::Sender<Result<Value, QmpError>>,
}

/// A monitor ready for commands.
#[derive(Debug)]
pub struct Qmp {
    commands: mpsc::Sender<Command>,
    stopped: watch::Receiver<Stopped>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<RefusedMessage>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct RefusedMessage {
    desc: String,
}

impl Qmp {
    /// Takes the greeting and leaves the negotiation mode.
    pub async fn open(stream: UnixStream) -> Result<Self, QmpError> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        if receive(&mut reader).await?.greeting.is_none() {
            return Err(QmpError::Unexpected { expected: "a greeting", found: "another message".into() });
        }
        send(&mut writer, "qmp_capabilities").await?;
        let (stopped_sender, stopped) = watch::channel(Stopped::default());
        let answer = receive_answer(&mut reader, &stopped_sender).await?;
        check("qmp_capabilities", answer)?;
        let (commands, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(converse(reader, writer, receiver, stopped_sender));
        Ok(Self { commands, stopped })
    }

    async fn execute(&self, name: &'static str) -> Result<Value, QmpError> {
        let (answer, result) = oneshot::channel();
        self.commands.send(Command { name, answer }).await.map_err(|_| QmpError::Closed)?;
        result.await.map_err(|_| QmpError::Closed)?
    }

    /// Ends the machine at once.
    pub async fn quit(&self) -> Result<(), QmpError> {
        self.execute("quit").await.map(drop)
    }

    /// What QEMU says the machine is doing (`running`, `paused`, `shutdown`, …).
    pub async fn status(&self) -> Result<String, QmpError> {
        let answer = self.execute("query-status").await?;
        answer
            .get("status")
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| QmpError::Unexpected { expected: "a status", found: beginning(&answer.to_string()) })
    }

    /// Holds the machine's processors.
    pub async fn pause(&self) -> Result<(), QmpError> {
        self.execute("stop").await.map(drop)
    }

    /// Lets the machine's processors go on.
    pub async fn resume(&self) -> Result<(), QmpError> {
        self.execute("cont").await.map(drop)
    }

    /// What is known of why the guest stopped.
    #[must_use]
    pub fn stopped(&self) -> Stopped {
        self.stopped.borrow().clone()
    }
}

async fn converse(
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    mut commands: mpsc::Receiver<Command>,
    stopped: watch::Sender<Stopped>,
) {
    loop {
        tokio::select! {
            // Cancel safe: `fill_buf` consumes nothing.
            filled = reader.fill_buf() => match filled {
                Ok([_, ..]) => match receive(&mut reader).await {
                    Ok(message) => note_event(&message, &stopped),
                    Err(_) => return,
                },
                _ => return,
            },
            command = commands.recv() => {
                let Some(Command { name, answer }) = command else { return };
                let result = match send(&mut writer, name).await {
                    Ok(()) => receive_answer(&mut reader, &stopped).await,
                    Err(error) => Err(error),
                };
                // Whoever asked may have given up.
                let _ = answer.send(result.and_then(|message| check(name, message)));
            }
        }
    }
}

async fn send(writer: &mut OwnedWriteHalf, command: &str) -> Result<(), QmpError> {
    Ok(writer.write_all(format!("{}\n", json!({"execute": command})).as_bytes()).await?)
}

async fn receive(reader: &mut BufReader<OwnedReadHalf>) -> Result<Message, QmpError> {
    let mut line = Vec::new();
    if reader.take(MAX_MESSAGE).read_until(b'\n', &mut line).await? == 0 {
        return Err(QmpError::Closed);
    }
    serde_json::from_slice(&line)
        .map_err(|_| QmpError::Unexpected { expected: "a JSON message on one line", found: beginning(&String::from_utf8_lossy(&line)) })
}

async fn receive_answer(reader: &mut BufReader<OwnedReadHalf>, stopped: &watch::Sender<Stopped>) -> Result<Message, QmpError> {
    loop {
        let message = receive(reader).await?;
        if message.event.is_none() {
            return Ok(message);
        }
        note_event(&message, stopped);
    }
}

fn check(command: &'static str, message: Message) -> Result<Value, QmpError> {
    match (message.error, message.result) {
        (Some(error), _) => Err(QmpError::Refused { command, description: beginning(&error.desc) }),
        (None, Some(result)) => Ok(result),
        (None, None) => Err(QmpError::Unexpected { expected: "an answer", found: "another message".into() }),
    }
}

fn note_event(message: &Message, stopped: &watch::Sender<Stopped>) {
    match message.event.as_deref() {
        Some("GUEST_PANICKED") => stopped.send_modify(|stopped| stopped.panicked = true),
        Some("SHUTDOWN") => {
            let reason = message.data.get("reason").and_then(Value::as_str).map(beginning);
            stopped.send_modify(|stopped| stopped.reason = reason);
        }
        _ => {}
    }
}

fn beginning(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

    async fn peer(script: &'static [(&'static str, &'static [u8])]) -> Result<Qmp, QmpError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            theirs.write_all(GREETING).await.unwrap();
            let mut theirs = BufReader::new(theirs);
            for (expected, answer) in script {
                let mut line = String::new();
                theirs.read_line(&mut line).await.unwrap();
                assert_eq!(line.trim(), format!("{{\"execute\":\"{expected}\"}}"));
                theirs.write_all(answer).await.unwrap();
            }
        });
        Qmp::open(ours).await
    }

    #[tokio::test]
    async fn negotiates_and_keeps_events_that_come_between_answers() {
        let qmp = peer(&[
            ("qmp_capabilities", b"{\"return\": {}}\n"),
            (
                "query-status",
                b"{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-reset\"}}\n{\"return\":{\"status\":\"running\"}}\n",
            ),
            ("quit", b"{\"return\": {}}\n{\"event\":\"GUEST_PANICKED\",\"data\":{}}\n"),
        ])
        .await
        .unwrap();
        assert_eq!(qmp.status().await.unwrap(), "running");
        assert_eq!(qmp.stopped().reason.as_deref(), Some("guest-reset"));
        qmp.quit().await.unwrap();
        assert!(matches!(qmp.status().await, Err(QmpError::Closed)));
        assert!(qmp.stopped().panicked);
    }

    #[tokio::test]
    async fn passes_on_refusals_and_survives_nonsense() {
        let refused = peer(&[("qmp_capabilities", b"{\"error\": {\"class\": \"X\", \"desc\": \"no\"}}\n")]).await;
        assert!(matches!(refused, Err(QmpError::Refused { command: "qmp_capabilities", .. })));
        assert!(matches!(peer(&[("qmp_capabilities", b"hello\n")]).await, Err(QmpError::Unexpected { .. })));
        assert!(matches!(peer(&[]).await, Err(QmpError::Closed | QmpError::Io(_))));
    }
}
