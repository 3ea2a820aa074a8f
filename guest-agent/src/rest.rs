//! The pod-local interface of CoCo: `http://127.0.0.1:8006`, for programs in the pod.
//!
//! | request | answer | policy rule |
//! |---|---|---|
//! | `GET /cdh/resource/<repository>/<type>/<tag>` | the secret's bytes | `GetResourceRequest` `{path}` |
//! | `GET /aa/token?token_type=kbs` | `{"token": …}` | `GetTokenRequest` `{token_type}` |
//! | `GET /aa/evidence?runtime_data=…[&encoding=base64]` | evidence as JSON | `GetEvidenceRequest` `{}` |
//! | `POST /aa/aael` | `{"success":"true"}` | `ExtendRuntimeMeasurementRequest`, see [`crate::aael`] |
//!
//! Only the pod itself can ask: the listener is bound to the loopback address and to the device `lo`, so that a packet that came in by
//! another interface never reaches it, whatever the kernel was told about routing 127.0.0.0/8; and a peer that has another address is
//! dropped unheard. Each connection is one request, bounded in size and time.
//!
//! A token is good for half a minute at least. CoCo hands out the private key it is bound to as well (`tee_keypair`). Here it never leaves the
//! agent: with both, a program could read from the broker all that the pod may have, past the policy's word on which container may have what.
//! Failures of the broker's are told apart: 403 it says no, 404 there is no such resource, 503 it is busy or initdata names none, 504 it
//! does not answer in time, 502 any other.
//!
//! `runtime_data` becomes the report data as it is, zero padded, which is CoCo's form. In the same place the agent's own handshake with the
//! broker has a digest, zero padded too: evidence made here must never pass for one of those, or whoever chose the data could attest in
//! the pod's name with a key of their own. So what could be a digest is refused: data are hexadecimal digits, at most 64; or plain
//! characters other than `%` and `&`, at most 16, or 33 to 44 (a nonce of 32 bytes in base64), or 49 to 64 of them. A SHA-256, SHA-384 or
//! SHA-512 of such a form, padding included, is not found in fewer than 2^90 tries.
//!
//! With `encoding=base64`, CoCo's form for data that are no text, `runtime_data` is base64url without padding, and what it decodes to becomes
//! the report data. At most 16 bytes may be anything, for the zeros after them tell them from any digest; longer ones must be of the forms
//! above, so that a binary digest, which CoCo would take, is refused: write it in hexadecimal.
//!
//! A program that any container runs can ask, and the policy sees which container that is (`container_id`, `container_name`): see
//! [`crate::asker`]. Who is in no container is refused whatever the policy says.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_policy::{Gate, PolicyRequest};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;

use crate::aael;
use crate::asker::{self, Asker, AskerError};
use crate::attest::Attester;
use crate::container::Containers;
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

/// Longest data of any kind that the zeros after it tell from a digest: 16 of them, the least there are, in a SHA-256, are 2^128 tries.
const MAX_SHORT_DATA: usize = 16;

/// Plain data longer than a SHA-256, and short enough for the zeros after it to tell it from a SHA-384. In base64 a nonce of 32 bytes is one.
const NONCES: RangeInclusive<usize> = 33..=44;

/// Longest digest that zeros follow, a SHA-384.
const PADDED_DIGEST: usize = 48;

/// A container asks for a secret.
struct GetResource<'a>(&'a Asker, &'a ResourcePath);

impl PolicyRequest for GetResource<'_> {
    const RULE: &'static str = "GetResourceRequest";

    fn policy_input(&self) -> Value {
        self.0.input(json!({ "path": self.1.to_string() }))
    }
}

/// A container asks for the pod's attestation token.
struct GetToken<'a>(&'a Asker);

impl PolicyRequest for GetToken<'_> {
    const RULE: &'static str = "GetTokenRequest";

    fn policy_input(&self) -> Value {
        self.0.input(json!({ "token_type": "kbs" }))
    }
}

/// A container asks for evidence.
struct GetEvidence<'a>(&'a Asker);

impl PolicyRequest for GetEvidence<'_> {
    const RULE: &'static str = "GetEvidenceRequest";

    fn policy_input(&self) -> Value {
        self.0.input(json!({}))
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
            413 => "Content Too Large",
            431 => "Request Header Fields Too Large",
            502 => "Bad Gateway",
            504 => "Gateway Timeout",
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
    /// Who may be asking.
    pub(crate) containers: Arc<Containers>,
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
                        let asker = asker::of(&rest.containers, &stream);
                        rest.connection(stream, asker).await;
                        drop(slot);
                    });
                }
                Err(error) => tracing::warn!(%error, "cannot accept"),
            }
        }
    }

    async fn connection(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin, asker: Result<Asker, AskerError>) {
        let answer = match tokio::time::timeout(HEAD_TIMEOUT, head(&mut stream)).await {
            Ok(Ok(Some(head))) if aael::is_asked(&head) => self.extend(head, &mut stream, &asker).await,
            Ok(Ok(Some(head))) => self.answer(&head, &asker).await,
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

    async fn answer(&self, head: &[u8], asker: &Result<Asker, AskerError>) -> Answer {
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
            return self.resource(resource, asker).await;
        }
        match path {
            "/aa/token" => self.token(query, asker).await,
            "/aa/evidence" => self.evidence(query, asker).await,
            _ => Answer::error(404, "expected /cdh/resource/<repository>/<type>/<tag>, /aa/token, /aa/evidence, or POST to /aa/aael\n"),
        }
    }

    /// `POST /aa/aael`, the one request with a body. Some of it may have come with the head.
    async fn extend(&self, mut received: Vec<u8>, stream: &mut (impl AsyncRead + Unpin), asker: &Result<Asker, AskerError>) -> Answer {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = request.parse(&received) else {
            return Answer::error(400, "not a request\n");
        };
        let length = match aael::body_len(&request) {
            Ok(length) => length,
            Err((status, text)) => return Answer::error(status, text),
        };
        let mut body = received.split_off(head);
        let missing = length.saturating_sub(body.len());
        let mut rest = stream.take(missing as u64);
        let read = tokio::time::timeout(HEAD_TIMEOUT, rest.read_to_end(&mut body)).await;
        if !matches!(read, Ok(Ok(_))) || body.len() != length {
            return Answer::error(400, "body is not of its content-length\n");
        }
        let asker = match known(asker) {
            Ok(asker) => asker,
            Err(answer) => return answer,
        };
        match aael::extend(&self.gate, asker, self.attester.as_ref().map(Attester::log), &body) {
            Ok(()) => Answer::ok("application/json", aael::SUCCESS.to_vec()),
            Err((status, text)) => Answer::error(status, text),
        }
    }

    async fn resource(&self, path: &str, asker: &Result<Asker, AskerError>) -> Answer {
        let Ok(path) = path.parse::<ResourcePath>() else {
            return Answer::error(400, "not a resource: expected <repository>/<type>/<tag>\n");
        };
        if let Err(answer) = self.allow(asker, |asker| GetResource(asker, &path)) {
            return answer;
        }
        match self.broker() {
            Ok(broker) => match broker.resource(&path).await {
                Ok(secret) => Answer::ok("application/octet-stream", secret.expose().to_vec()),
                Err(error) => refusal(&error),
            },
            Err(answer) => answer,
        }
    }

    async fn token(&self, query: &str, asker: &Result<Asker, AskerError>) -> Answer {
        if query != "token_type=kbs" {
            return Answer::error(400, "expected token_type=kbs\n");
        }
        if let Err(answer) = self.allow(asker, GetToken) {
            return answer;
        }
        match self.broker() {
            Ok(broker) => match broker.token().await {
                Ok(token) => Answer::ok("application/json", json!({ "token": token }).to_string().into_bytes()),
                Err(error) => refusal(&error),
            },
            Err(answer) => answer,
        }
    }

    async fn evidence(&self, query: &str, asker: &Result<Asker, AskerError>) -> Answer {
        let Some(report_data) = asked_report_data(query) else {
            return Answer::error(
                400,
                "expected runtime_data= and at most 64 hexadecimal digits, or plain characters (no % and &): at most 16, 33 to 44, or 49 to 64; \
                 or with encoding=base64 the same, or at most 16 bytes of any kind, in base64url without padding\n",
            );
        };
        if let Err(answer) = self.allow(asker, GetEvidence) {
            return answer;
        }
        let Some(attester) = &self.attester else {
            return Answer::error(503, "no TEE\n");
        };
        match attester.evidence(report_data, None).await {
            Ok(evidence) => Answer::ok("application/json", evidence.to_string().into_bytes()),
            Err(error) => Answer::error(502, format!("{}\n", crate::errors::with_causes(&error))),
        }
    }

    /// Asks the policy, for a container that is known.
    fn allow<'a, R: PolicyRequest>(
        &self,
        asker: &'a Result<Asker, AskerError>,
        request: impl FnOnce(&'a Asker) -> R,
    ) -> Result<(), Answer> {
        let asker = known(asker)?;
        self.gate.check(request(asker)).map(|_| ()).map_err(|denied| Answer::error(403, format!("{denied}\n")))
    }

    fn broker(&self) -> Result<&Arc<Broker>, Answer> {
        self.broker.as_ref().ok_or_else(|| Answer::error(503, format!("{}\n", BrokerError::None)))
    }
}

/// The report data that a program asks for by the query's two parameters, in either order and each at most once.
fn asked_report_data(query: &str) -> Option<[u8; MAX_RUNTIME_DATA]> {
    let (mut data, mut encoding) = (None, None);
    for parameter in query.split('&') {
        match parameter.split_once('=')? {
            ("runtime_data", value) if data.is_none() => data = Some(value),
            ("encoding", value) if encoding.is_none() => encoding = Some(value),
            _ => return None,
        }
    }
    match encoding {
        None => report_data(data?.as_bytes()),
        Some("base64") => {
            let decoded = URL_SAFE_NO_PAD.decode(data?).ok()?;
            if decoded.len() <= MAX_SHORT_DATA { Some(padded(&decoded)) } else { report_data(&decoded) }
        }
        Some(_) => None,
    }
}

/// The report data for data of a program's, unless it could be the digest by which the agent binds its own handshake.
fn report_data(data: &[u8]) -> Option<[u8; MAX_RUNTIME_DATA]> {
    let hexadecimal = data.iter().all(u8::is_ascii_hexdigit);
    let plain = data.iter().all(|byte| byte.is_ascii_graphic() && !b"%&".contains(byte));
    let no_digest = data.len() <= MAX_SHORT_DATA || NONCES.contains(&data.len()) || data.len() > PADDED_DIGEST;
    (data.len() <= MAX_RUNTIME_DATA && (hexadecimal || (plain && no_digest))).then(|| padded(data))
}

/// Zero padded, as CoCo does it. Longer data are the caller's to refuse.
fn padded(data: &[u8]) -> [u8; MAX_RUNTIME_DATA] {
    let mut report_data = [0; MAX_RUNTIME_DATA];
    report_data.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    report_data
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

/// The container that asks. Nobody else is given anything.
fn known(asker: &Result<Asker, AskerError>) -> Result<&Asker, Answer> {
    asker.as_ref().map_err(|error| Answer::error(403, format!("{}\n", crate::errors::with_causes(error))))
}

fn refusal(error: &BrokerError) -> Answer {
    // CoCo says 500 to all of it. A program can tell what it may not have from what is not there, and from what may come yet.
    let status = match (error.status(), error.is_timeout()) {
        (Some(404), _) => 404,
        (Some(401 | 403), _) => 403,
        (Some(429 | 503), _) => 503,
        (_, true) => 504,
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
pub(crate) mod tests {
    use super::*;

    /// A listener as the agent's, on a port of its own.
    pub(crate) fn listener() -> TcpListener {
        bind_to(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
    }

    fn rest(gate: Gate) -> Rest {
        Rest { gate: Arc::new(gate), containers: Arc::default(), broker: None, attester: None }
    }

    fn app() -> Result<Asker, AskerError> {
        Ok(Asker { id: "c1".parse().unwrap(), name: "app".to_owned() })
    }

    async fn ask(request: &str) -> String {
        ask_of(&rest(Gate::new()), app(), request).await
    }

    pub(crate) async fn ask_of(rest: &Rest, asker: Result<Asker, AskerError>, request: &str) -> String {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let serve = rest.connection(server, asker);
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
        let listener = listener();
        assert_eq!(getsockopt(&listener, sockopt::BindToDevice).unwrap(), "lo");
        let address = listener.local_addr().unwrap();
        let gate = crate::guest::Guest::gate_for_tests("package agent_policy\nGetTokenRequest := true");
        let rest = Arc::new(rest(gate));
        let serving = tokio::spawn(rest.serve(listener));
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /aa/token?token_type=kbs HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        // The policy would allow it to any container; this program is in none.
        status(&answer, 403);
        assert!(!answer.contains("policy"), "{answer}");
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

    #[test]
    fn data_in_base64_are_what_they_decode_to() {
        let query = |data: &[u8]| format!("runtime_data={}&encoding=base64", URL_SAFE_NO_PAD.encode(data));
        for data in [&b""[..], &[0xff; 16], &[0, 1, 2, 0xfe], b"0123456789abcdef0123456789abcdef", "x".repeat(64).as_bytes()] {
            let found = asked_report_data(&query(data)).unwrap();
            assert_eq!(&found[..data.len()], data);
            assert!(found[data.len()..].iter().all(|byte| *byte == 0));
        }
        assert_eq!(asked_report_data("encoding=base64&runtime_data=_-4"), Some(padded(&[0xff, 0xee])));
        // By its bytes, not by its letters: these would be plain data.
        assert_eq!(asked_report_data("runtime_data=_-4"), Some(padded(b"_-4")));
    }

    #[test]
    fn data_in_base64_cannot_pass_for_the_agents_own_either() {
        // Any digest of a handshake, whatever its algorithm, and one with a zero at its end.
        for length in [17, 20, 31, 32, 33, 47, 48, 49, 63, 64] {
            for mut data in [vec![0xa5; length], vec![0x80; length]] {
                for last in [0xa5, 0] {
                    *data.last_mut().unwrap() = last;
                    assert_eq!(
                        asked_report_data(&format!("runtime_data={}&encoding=base64", URL_SAFE_NO_PAD.encode(&data))),
                        None,
                        "{data:?}"
                    );
                }
            }
        }
        let long = URL_SAFE_NO_PAD.encode("0".repeat(65));
        for wrong in [
            "",
            "encoding=base64",
            "runtime_data=AA&encoding=hex",
            "runtime_data=AA&encoding=",
            "runtime_data=AA&encoding=base64&encoding=base64",
            "runtime_data=AA&runtime_data=AA",
            "runtime_data=AA&other=1",
            "runtime_data=AA&",
            "runtime_data=AA==&encoding=base64",
            "runtime_data=+/4&encoding=base64",
            "runtime_data=A&encoding=base64",
            &format!("runtime_data={long}&encoding=base64"),
        ] {
            assert_eq!(asked_report_data(wrong), None, "{wrong:?}");
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
            let encoded = URL_SAFE_NO_PAD.encode(data);
            status(&ask(&format!("GET /aa/evidence?runtime_data={encoded}&encoding=base64 HTTP/1.1\r\n\r\n")).await, 403);
        }
    }

    #[test]
    fn failures_of_the_broker_are_told_apart() {
        use kata_cc_kbs_protocol::ClientError;
        let refused = |status| {
            let error = BrokerError::Protocol(ClientError::Refused { step: "x", status, variant: String::new(), detail: String::new() });
            // Whether met by the need itself or waited for.
            (refusal(&error).status, refusal(&BrokerError::Handshake(Arc::new(error))).status)
        };
        for (status, told) in [(404, 404), (401, 403), (403, 403), (429, 503), (503, 503), (500, 502), (400, 502)] {
            assert_eq!(refused(status), (told, told), "{status}");
        }
        assert_eq!(refusal(&BrokerError::Timeout(Duration::from_secs(1))).status, 504);
        assert_eq!(refusal(&BrokerError::TooLong(1)).status, 502);
    }

    #[tokio::test]
    async fn nothing_is_given_without_a_policy() {
        // AC-21
        for path in ["/cdh/resource/default/key/1", "/aa/token?token_type=kbs", "/aa/evidence?runtime_data=x"] {
            status(&ask(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await, 403);
        }
    }

    #[tokio::test]
    async fn each_container_is_given_what_the_policy_gives_to_it() {
        let rego = r#"package agent_policy
GetResourceRequest if [input.container_name, input.path] in [["app", "default/app/1"], ["proxy", "default/proxy/1"]]
GetTokenRequest if input.container_id == "c1"
GetEvidenceRequest if input.container_name == "app"
ExtendRuntimeMeasurementRequest if input.container_name == "app""#;
        let rest = rest(crate::guest::Guest::gate_for_tests(rego));
        let proxy = || Ok(Asker { id: "c2".parse().unwrap(), name: "proxy".to_owned() });
        let nobody = || Err(AskerError::NotAContainer);
        let body = r#"{"domain":"example.com","operation":"op","content":"c"}"#;
        let event = format!("POST /aa/aael HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\n\r\n");
        for (request, of_proxy) in [
            (get("/cdh/resource/default/app/1"), false),
            (get("/cdh/resource/default/proxy/1"), true),
            (get("/aa/token?token_type=kbs"), false),
            (get("/aa/evidence?runtime_data=x"), false),
            (event, false),
        ] {
            // 503: there is no broker and no TEE behind this one.
            status(&ask_of(&rest, app(), &request).await, if of_proxy { 403 } else { 503 });
            status(&ask_of(&rest, proxy(), &request).await, if of_proxy { 503 } else { 403 });
            status(&ask_of(&rest, nobody(), &request).await, 403);
        }
    }

    #[tokio::test]
    async fn a_runtime_event_is_taken_with_its_body_in_one_piece_or_two() {
        let rego = "package agent_policy\nExtendRuntimeMeasurementRequest := true";
        let rest = Rest { attester: Some(Attester::mute()), ..rest(crate::guest::Guest::gate_for_tests(rego)) };
        let body = r#"{"domain":"example.com","operation":"op","content":"c"}"#;
        for split in [0, 5] {
            let head = format!("POST /aa/aael HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
            let (mut client, server) = tokio::io::duplex(64 * 1024);
            let talk = async {
                client.write_all(format!("{head}{}", &body[..split]).as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
                client.write_all(&body.as_bytes()[split..]).await.unwrap();
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.unwrap();
                answer
            };
            let answer = tokio::join!(rest.connection(server, app()), talk).1;
            status(&answer, 200);
            assert!(answer.ends_with("\r\n\r\n{\"success\":\"true\"}"), "{answer}");
        }
        assert_eq!(rest.attester.unwrap().log().snapshot().unwrap().windows(12).filter(|at| at == b"example.com ").count(), 2);
    }

    #[tokio::test]
    async fn runtime_events_of_no_length_or_too_long_are_refused() {
        let ask_with = async |headers: &str| ask(&format!("POST /aa/aael HTTP/1.1\r\n{headers}\r\n")).await;
        status(&ask_with("").await, 400);
        status(&ask_with("content-length: 1\r\ncontent-length: 2\r\n").await, 400);
        status(&ask_with("content-length: -1\r\n").await, 400);
        status(&ask_with(&format!("content-length: {}\r\n", aael::MAX_BODY + 1)).await, 413);
        status(&ask("POST /aa/aael HTTP/1.1\r\ncontent-length: 1\r\n\r\n{}").await, 400);
        // AC-21
        let body = r#"{"domain":"d","operation":"o","content":"c"}"#;
        status(&ask(&format!("POST /aa/aael HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await, 403);
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
