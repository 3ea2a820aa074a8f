//! The node's blob cache over vsock: one HTTP/1.1 request a connection.
//!
//! The host answers here. What it gives is bytes that the puller compares with a digest; what it is given is for the puller to decide. Bounded are the head of an
//! answer and what is held of its body; how long anything may take is the puller's matter.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kata_cc_agent_protocol::BLOBS_VSOCK_PORT;
use kata_cc_image_pull::registry::{BlobReader, RegistryError};
use kata_cc_image_pull::{BlobCache, CacheError, Digest, Filling};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

use crate::vsock;

/// Bytes of an answer that are read ahead; its head must fit into it.
const READ_AHEAD: usize = 64 << 10;
/// Headers of an answer; the node sends some five.
const HEADERS: usize = 32;

/// The cache of the node this guest runs on.
#[derive(Debug)]
pub(crate) struct NodeCache;

#[async_trait]
impl BlobCache for NodeCache {
    async fn reach(&self) -> Result<(), CacheError> {
        let stream = vsock::connect(BLOBS_VSOCK_PORT).await.map_err(CacheError::Unreachable)?;
        reach(stream).await
    }

    async fn get(&self, digest: &Digest) -> Result<Option<Box<dyn BlobReader>>, CacheError> {
        let stream = vsock::connect(BLOBS_VSOCK_PORT).await.map_err(CacheError::Unreachable)?;
        get(stream, digest).await
    }

    async fn put(&self, digest: &Digest, size: u64, bytes: Filling) -> Result<(), CacheError> {
        let stream = vsock::connect(BLOBS_VSOCK_PORT).await.map_err(CacheError::Unreachable)?;
        put(stream, digest, size, bytes).await
    }
}

fn protocol(error: impl std::fmt::Display) -> CacheError {
    CacheError::Protocol(error.to_string())
}

/// A connection's task, which ends with whoever waits for the answer.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn send<S, B>(stream: S, request: Request<B>) -> Result<(Response<Incoming>, Connection), CacheError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data = Bytes, Error = io::Error> + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(READ_AHEAD).max_headers(HEADERS);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(protocol)?;
    let connection = Connection(tokio::spawn(connection).abort_handle());
    let response = sender.send_request(request).await.map_err(protocol)?;
    Ok((response, connection))
}

fn request<B>(method: Method, digest: &Digest, size: Option<u64>, body: B) -> Result<Request<B>, CacheError> {
    let mut request = Request::builder().method(method).uri(format!("/blobs/{digest}")).header(HOST, "node");
    if let Some(size) = size {
        request = request.header(CONTENT_LENGTH, size);
    }
    request.body(body).map_err(protocol)
}

fn nothing() -> impl Body<Data = Bytes, Error = io::Error> + Send {
    Empty::new().map_err(|never| -> io::Error { match never {} })
}

/// Any answer will do. A shim without a cache takes the connection and ends it.
async fn reach<S>(stream: S) -> Result<(), CacheError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = Request::builder().uri("/").header(HOST, "node").body(nothing()).map_err(protocol)?;
    send(stream, request).await.map(drop)
}

async fn get<S>(stream: S, digest: &Digest) -> Result<Option<Box<dyn BlobReader>>, CacheError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (response, connection) = send(stream, request(Method::GET, digest, None, nothing())?).await?;
    match response.status() {
        StatusCode::OK => Ok(Some(Box::new(Arriving { body: response.into_body(), _connection: connection }))),
        StatusCode::NOT_FOUND => Ok(None),
        status => Err(CacheError::Status(status.as_u16())),
    }
}

async fn put<S>(stream: S, digest: &Digest, size: u64, bytes: Filling) -> Result<(), CacheError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // A body that is shorter than announced makes the connection break off, which is what the node has to see then.
    let pieces = futures::stream::unfold(bytes, |mut bytes| async { Some((Ok(Frame::data(bytes.next().await?)), bytes)) });
    let body = StreamBody::new(Box::pin(pieces));
    let (response, _connection) = send(stream, request(Method::PUT, digest, Some(size), body)?).await?;
    match response.status() {
        StatusCode::CREATED => Ok(()),
        status => Err(CacheError::Status(status.as_u16())),
    }
}

/// A blob under way from the node.
struct Arriving {
    body: Incoming,
    _connection: Connection,
}

#[async_trait]
impl BlobReader for Arriving {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(RegistryError::Connection { url: "the node's blob cache".to_owned(), reason: error.to_string() });
                }
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    fn digest() -> Digest {
        Digest::of(b"a blob")
    }

    /// The other end: reads until it has `until` or there is no more, then answers and, if told to, ends the connection.
    async fn node(mut stream: DuplexStream, until: &[u8], answer: &[u8], end: bool) -> String {
        let mut seen = Vec::new();
        while !seen.ends_with(until) {
            let Ok(byte) = stream.read_u8().await else { break };
            seen.push(byte);
        }
        let _ = stream.write_all(answer).await;
        if !end {
            let _ = stream.read_to_end(&mut seen).await;
        }
        String::from_utf8(seen).unwrap().to_lowercase()
    }

    async fn asked(answer: &[u8]) -> (Result<Vec<u8>, String>, String) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let read = async {
            let reader = get(near, &digest()).await.map_err(|error| error.to_string())?;
            let mut reader = reader.ok_or("absent")?;
            let mut bytes = Vec::new();
            while let Some(more) = reader.next().await.map_err(|error| format!("broke off: {error}"))? {
                bytes.extend_from_slice(&more);
            }
            Ok(bytes)
        };
        tokio::join!(read, node(far, b"\r\n\r\n", answer, true))
    }

    #[tokio::test]
    async fn a_blob_is_asked_for_by_its_digest_and_read_to_its_announced_end() {
        let (read, seen) = asked(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\na blob").await;
        assert_eq!(read, Ok(b"a blob".to_vec()));
        assert!(seen.starts_with(&format!("get /blobs/{} http/1.1\r\n", digest())), "{seen}");
        assert_eq!(asked(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.0, Err("absent".to_owned()));
        assert_eq!(asked(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n").await.0, Err("it answers 500".to_owned()));
        // A redirect is an answer like any other; nothing is followed.
        let redirect = b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(asked(redirect).await.0, Err("it answers 302".to_owned()));
        let (cut, _) = asked(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\na bl").await;
        assert!(cut.as_ref().is_err_and(|error| error.starts_with("broke off")), "{cut:?}");
    }

    #[tokio::test]
    async fn somebody_is_there_who_answers_and_not_who_ends_the_connection() {
        let reached = |answer: &'static [u8]| async move {
            let (near, far) = tokio::io::duplex(1 << 20);
            tokio::join!(reach(near), node(far, b"\r\n\r\n", answer, true)).0.is_ok()
        };
        assert!(reached(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await);
        assert!(!reached(b"").await && !reached(b"OK 7\n").await);
    }

    #[tokio::test]
    async fn an_answer_that_is_none_or_has_an_endless_head_is_an_error() {
        for answer in [&b"OK 7\n"[..], b"", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"] {
            assert!(asked(answer).await.0.is_err_and(|error| error != "absent"), "{answer:?}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(200 << 10));
        assert!(asked(long.as_bytes()).await.0.is_err());
    }

    #[tokio::test]
    async fn a_blob_is_given_with_its_length_and_one_that_was_given_up_does_not_pass_for_whole() {
        let given = |pieces: &'static [&'static [u8]], until: &'static [u8], answer: &'static [u8]| async move {
            let (near, far) = tokio::io::duplex(1 << 20);
            let filling = Filling::of(pieces.iter().map(|piece| Bytes::from_static(piece)));
            let given = async { put(near, &digest(), 6, filling).await.map_err(|error| error.to_string()) };
            tokio::join!(given, node(far, until, answer, false))
        };
        let created = b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n";
        let (outcome, seen) = given(&[b"a b", b"lob"], b"a blob", created).await;
        assert_eq!(outcome, Ok(()));
        assert!(seen.starts_with(&format!("put /blobs/{} http/1.1\r\n", digest())), "{seen}");
        assert!(seen.contains("\r\ncontent-length: 6\r\n") && seen.ends_with("\r\n\r\na blob"), "{seen}");
        let refused = b"HTTP/1.1 507 Full\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(given(&[b"a blob"], b"a blob", refused).await.0, Err("it answers 507".to_owned()));
        // Of six bytes three at most, and then the end of the connection.
        let (outcome, seen) = given(&[b"a b"], b"a blob", b"").await;
        let body = seen.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        assert!(outcome.is_err() && "a b".starts_with(body), "{outcome:?} {seen}");
    }
}
