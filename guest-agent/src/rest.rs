//! The pod-local interface of CoCo: `http://127.0.0.1:8006`, for programs in the pod.
//!
//! | request | answer | policy rule |
//! |---|---|---|
//! | `GET /cdh/resource/<repository>/<type>/<tag>` | the secret's bytes | `GetResourceRequest` `{path}` |
//! | `GET /aa/token?token_type=kbs` | `{"token": …}` | `GetTokenRequest` `{token_type}` |
//! | `GET /aa/evidence?runtime_data=…` | evidence as JSON | `GetEvidenceRequest` `{}` |
//!
//! Only the pod itself can ask: the listener is bound to the loopback address and to the device `lo`, so that a packet that came in by
//! another interface never reaches it, whatever the kernel was told about routing 127.0.0.0/8; and a peer that has another address is
//! dropped unheard. Each connection is one request, bounded in size and time. The key that tokens are bound to never leaves the agent.
//!
//! `runtime_data` becomes the report data as it is, zero padded, which is CoCo's form. In the same place the agent's own handshake with the
//! broker has a digest, zero padded too: evidence made here must never pass for one of those, or whoever chose the data could attest in
//! the pod's name with a key of their own. So what could be a digest is refused: data are hexadecimal digits, at most 64; or plain
//! characters other than `%` and `&`, at most 16, or 33 to 44 (a nonce of 32 bytes in base64), or 49 to 64 of them. A SHA-256, SHA-384 or
//! SHA-512 of such a form, padding included, is not found in fewer than 2^90 tries.
//!
//! A program that any container runs can ask; which containers run at all is what the policy is for.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_policy::{Gate, PolicyRequest};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;

use crate::attest::Attester;
use crate::kbs::{Broker, BrokerError};

/// Where CoCo's programs expect it.
pub(crate) const ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8006));

/// The device by which programs of this guest reach each other, and nobody else reaches them.
const DEVICE: &[u8] = b"lo";

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// Longest request head.
const MAX_HEAD: usize = 8192;

/// Header fields taken.
const MAX_HEADERS: usize = 32;

/// How long a client may take to say what it wants.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests at the same time; more wait.
const MAX_CONNECTIONS: usize = 64;

/// Longest data to be put into evidence: what a report holds.
const MAX_RUNTIME_DATA: usize = 64;

/// Longest plain data that the zeros after it tell from a digest: 16 of them, the least there are, after a SHA-256.
const MAX_SHORT_DATA: usize = 16;

/// Plain data longer than a SHA-256, and short enough for the zeros after it to tell it from a SHA-384. In base64 a nonce of 32 bytes is one.
const NONCES: RangeInclusive<usize> = 33..=44;

/// Longest digest that zeros follow, a SHA-384.
const PADDED_DIGEST: usize = 48;

/// A container asks for a secret.
struct GetResource<'a>(&'a ResourcePath);

impl PolicyRequest for GetResource<'_> {
    const RULE: &'static str = "GetResourceRequest";

    fn policy_input(&self) -> Value {
        json!({ "path": self.0.to_string() })
    }
}

/// A container asks for the pod's attestation token.
struct GetToken;

impl PolicyRequest for GetToken {
    const RULE: &'static str = "GetTokenRequest";

    fn policy_input(&self) -> Value {
        json!({ "token_type": "kbs" })
    }
}

/// A container asks for evidence.
struct GetEvidence;

impl PolicyRequest for GetEvidence {
    const RULE: &'static str = "GetEvidenceRequest";

    fn policy_input(&self) -> Value {
        json!({})
    }
}

/// What is sent back.
#[derive(Debug)]
struct Answer {
    status: u16,
    kind: &'static str,
    body: zeroize::Zeroizing<Vec<u8>>,
}

impl Answer {
    fn ok(kind: &'static str, body: Vec<u8>) -> Self {
        Self { status: 200, kind, body: zeroize::Zeroizing::new(body) }
    }

    fn error(status: u16, text: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: zeroize::Zeroizing::new(text.into().into_bytes()) }
    }

    fn head(&self) -> String {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            502 => "Bad Gateway",
            _ => "Service Unavailable",
        };
        format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: {}\r\ncontent-length: {}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n",
            self.status,
            self.kind,
            self.body.len()
        )
    }
}

/// Answers programs in the pod.
#[derive(Debug)]
pub(crate) struct Rest {
    /// What the policy says.
    pub(crate) gate: Arc<Gate>,
    /// Where secrets come from.
    pub(crate) broker: Option<Arc<Broker>>,
    /// Where evidence comes from.
    pub(crate) attester: Option<Attester>,
}

impl Rest {
    /// Listens.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub(crate) fn bind() -> std::io::Result<TcpListener> {
        bind_to(ADDRESS)
    }

    /// Serves for ever.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((_, peer)) if !is_of_the_pod(peer) => tracing::warn!("a peer that is not of this guest was dropped"),
                Ok((stream, _)) => {
                    let rest = Arc::clone(&self);
                    tokio::spawn(async move {
                        rest.connection(stream).await;
                        drop(slot);
                    });
                }
                Err(error) => tracing::warn!(%error, "cannot accept"),
            }
        }
    }

    async fn connection(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let answer = match tokio::time::timeout(HEAD_TIMEOUT, head(&mut stream)).await {
            Ok(Ok(Some(head))) => self.answer(&head).await,
            Ok(Ok(None)) => Answer::error(431, "request head too large\n"),
            Ok(Err(_)) => return,
            Err(_) => Answer::error(408, "no request\n"),
        };
        // A client that has gone away is nobody's error.
        if stream.write_all(answer.head().as_bytes()).await.is_ok() {
            let _ = stream.write_all(&answer.body).await;
            let _ = stream.shutdown().await;
        }
    }

    async fn answer(&self, head: &[u8]) -> Answer {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = matches!(request.parse(head), Ok(httparse::Status::Complete(_)));
        let (true, Some(method), Some(target)) = (parsed, request.method, request.path) else {
            return Answer::error(400, "not a request\n");
        };
        if method != "GET" {
            return Answer::error(405, "expected GET\n");
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if let Some(resource) = path.strip_prefix("/cdh/resource/") {
            return self.resource(resource).await;
        }
        match path {
            "/aa/token" => self.token(query).await,
            "/aa/evidence" => self.evidence(query).await,
            _ => Answer::error(404, "expected /cdh/resource/<repository>/<type>/<tag>, /aa/token or /aa/evidence\n"),
        }
    }

    async fn resource(&self, path: &str) -> Answer {
        let Ok(path) = path.parse::<ResourcePath>() else {
            return Answer::error(400, "not a resource: expected <repository>/<type>/<tag>\n");
        };
        if let Err(denied) = self.gate.check(GetResource(&path)) {
            return Answer::error(403, format!("{denied}\n"));
        }
        match self.broker() {
            Ok(broker) => match broker.resource(&path).await {
                Ok(secret) => Answer::ok("application/octet-stream", secret.expose().to_vec()),
                Err(error) => refusal(&error),
            },
            Err(answer) => answer,
        }
    }

    async fn token(&self, query: &str) -> Answer {
        if query != "token_type=kbs" {
            return Answer::error(400, "expected token_type=kbs\n");
        }
        if let Err(denied) = self.gate.check(GetToken) {
            return Answer::error(403, format!("{denied}\n"));
        }
        match self.broker() {
            Ok(broker) => match broker.token().await {
                Ok(token) => Answer::ok("application/json", json!({ "token": token }).to_string().into_bytes()),
                Err(error) => refusal(&error),
            },
            Err(answer) => answer,
        }
    }

    async fn evidence(&self, query: &str) -> Answer {
        let data = query.strip_prefix("runtime_data=").map(str::as_bytes);
        let Some(report_data) = data.and_then(report_data) else {
            return Answer::error(
                400,
                "expected runtime_data= and at most 64 hexadecimal digits, or plain characters (no % and &): at most 16, 33 to 44, or 49 to 64\n",
            );
        };
        if let Err(denied) = self.gate.check(GetEvidence) {
            return Answer::error(403, format!("{denied}\n"));
        }
        let Some(attester) = &self.attester else {
            return Answer::error(503, "no TEE\n");
        };
        match attester.evidence(report_data).await {
            Ok(evidence) => Answer::ok("application/json", evidence.to_string().into_bytes()),
            Err(error) => Answer::error(502, format!("{}\n", crate::errors::with_causes(&error))),
        }
    }

    fn broker(&self) -> Result<&Broker, Answer> {
        self.broker.as_deref().ok_or_else(|| Answer::error(503, format!("{}\n", BrokerError::None)))
    }
}

/// The report data for data of a program's, unless it could be the digest by which the agent binds its own handshake.
fn report_data(data: &[u8]) -> Option<[u8; MAX_RUNTIME_DATA]> {
    let hexadecimal = data.iter().all(u8::is_ascii_hexdigit);
    let plain = data.iter().all(|byte| byte.is_ascii_graphic() && !b"%&".contains(byte));
    let no_digest = data.len() <= MAX_SHORT_DATA || NONCES.contains(&data.len()) || data.len() > PADDED_DIGEST;
    if data.len() > MAX_RUNTIME_DATA || !(hexadecimal || (plain && no_digest)) {
        return None;
    }
    let mut report_data = [0; MAX_RUNTIME_DATA];
    report_data.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    Some(report_data)
}

fn bind_to(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    // Before `bind`, so that there is no moment in which another device would do.
    socket.bind_device(Some(DEVICE))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether a peer is a program of this guest. The device says so already; this does not rely on it.
fn is_of_the_pod(peer: SocketAddr) -> bool {
    peer.ip().is_loopback()
}

fn refusal(error: &BrokerError) -> Answer {
    let status = match error.status() {
        Some(404) => 404,
        Some(401 | 403) => 403,
        _ => 502,
    };
    Answer::error(status, format!("{}\n", crate::errors::with_causes(error)))
}

/// Reads a request's head. `None` if it is too long.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let length = stream.read(&mut chunk).await?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        head.extend(chunk.iter().take(length));
        if head.windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(Some(head));
        }
        if head.len() > MAX_HEAD {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(request: &str) -> String {
        let rest = Rest { gate: Arc::new(Gate::new()), broker: None, attester: None };
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let serve = rest.connection(server);
        let talk = async {
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        tokio::join!(serve, talk).1
    }

    #[track_caller]
    fn status(answer: &str, status: u16) {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }

    #[tokio::test]
    async fn listens_on_the_loopback_device_alone() {
        use nix::sys::socket::{getsockopt, sockopt};
        let listener = bind_to(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        assert_eq!(getsockopt(&listener, sockopt::BindToDevice).unwrap(), "lo");
        let address = listener.local_addr().unwrap();
        let rest = Arc::new(Rest { gate: Arc::new(Gate::new()), broker: None, attester: None });
        let serving = tokio::spawn(rest.serve(listener));
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /aa/token?token_type=kbs HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        status(&answer, 403);
        serving.abort();
    }

    #[test]
    fn peers_from_outside_are_not_heard() {
        // What `route_localnet` would let in.
        for peer in ["10.0.0.1:40000", "169.254.1.1:40000", "[2001:db8::1]:40000", "0.0.0.0:1"] {
            assert!(!is_of_the_pod(peer.parse().unwrap()), "{peer}");
        }
        assert!(is_of_the_pod("127.0.0.1:40000".parse().unwrap()));
    }

    #[test]
    fn evidence_for_programs_cannot_pass_for_the_agents_own() {
        // As found by trying keys: digests whose every byte is a plain character.
        for length in [17, 32, 45, 48] {
            assert_eq!(report_data("x".repeat(length).as_bytes()), None, "{length}");
        }
        for wrong in ["a b", "x&encoding=base64", "x%00", "\u{e9}", "x\0", &"0".repeat(65)] {
            assert_eq!(report_data(wrong.as_bytes()), None, "{wrong:?}");
        }
        // What is taken is, as a digest, out of reach: by the count of its zeros, or of what each of its bytes may be.
        let reach = |data: &[u8], digest: usize| -> f64 {
            let choices: f64 = if data.iter().all(u8::is_ascii_hexdigit) { 22.0 } else { 92.0 };
            let bits = |length: usize| (8.0 - choices.log2()) * f64::from(u32::try_from(length).unwrap());
            let zeros = digest.saturating_sub(data.len());
            bits(data.len()) + 8.0 * f64::from(u32::try_from(zeros).unwrap())
        };
        for length in 0..=64 {
            for data in ["0".repeat(length), "x".repeat(length)] {
                let Some(found) = report_data(data.as_bytes()) else {
                    continue;
                };
                assert_eq!(&found[..length], data.as_bytes());
                assert!(found[length..].iter().all(|byte| *byte == 0));
                for digest in [32, 48, 64].into_iter().filter(|digest| *digest >= length) {
                    assert!(reach(data.as_bytes(), digest) > 90.0, "{length} characters like {} against {digest} bytes", &data[..1]);
                }
            }
        }
    }

    #[tokio::test]
    async fn evidence_takes_the_forms_of_nonces() {
        for data in [
            "nonce-1".to_owned(),
            format!("{}=", "aB/+".repeat(11).split_at(43).0),
            "0f".repeat(16),
            "0f".repeat(24),
            "0f".repeat(32),
            "x".repeat(64),
        ] {
            // The policy's no, and not the form's.
            status(&ask(&format!("GET /aa/evidence?runtime_data={data} HTTP/1.1\r\n\r\n")).await, 403);
        }
    }

    #[tokio::test]
    async fn nothing_is_given_without_a_policy() {
        // AC-21
        for path in ["/cdh/resource/default/key/1", "/aa/token?token_type=kbs", "/aa/evidence?runtime_data=x"] {
            status(&ask(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await, 403);
        }
    }

    #[tokio::test]
    async fn refuses_requests_that_are_not_of_the_interface() {
        status(&ask("POST /aa/token HTTP/1.1\r\n\r\n").await, 405);
        status(&ask("GET /other HTTP/1.1\r\n\r\n").await, 404);
        status(&ask("GET /cdh/resource/a/b HTTP/1.1\r\n\r\n").await, 400);
        status(&ask("GET /cdh/resource/a/../c HTTP/1.1\r\n\r\n").await, 400);
        status(&ask("GET /cdh/resource/a/b/%2e%2e HTTP/1.1\r\n\r\n").await, 400);
        status(&ask("GET /aa/token HTTP/1.1\r\n\r\n").await, 400);
        status(&ask(&format!("GET /aa/evidence?runtime_data={} HTTP/1.1\r\n\r\n", "x".repeat(65))).await, 400);
        status(&ask(&format!("GET /aa/evidence?runtime_data={} HTTP/1.1\r\n\r\n", "x".repeat(48))).await, 400);
        status(&ask("nonsense\r\n\r\n").await, 400);
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(2 * MAX_HEAD));
        status(&ask(&long).await, 431);
    }
}
