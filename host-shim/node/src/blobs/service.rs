//! The interface guests use: `GET` and `PUT` of `/blobs/sha256:<hex>`.
//!
//! | request | answer |
//! |---|---|
//! | `GET` | 200 with the bytes, which breaks off if whoever was giving them does; 404 |
//! | `PUT` with `Content-Length` | 201; 422 if the bytes are not of that length and digest, 413 if there are too many, 507 if there is no room, 411 without a length |
//! | anything else | 400 for a digest that is none, 404, 405 |
//!
//! **Invariant:** nothing of a request but the parsed digest reaches the file system.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame};
use hyper::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::digest::BlobDigest;
use super::store::{BlobStore, PutError, Reading};

const PREFIX: &str = "/blobs/";

/// What an answer carries.
pub(super) type AnswerBody = UnsyncBoxBody<Bytes, io::Error>;

fn text(status: StatusCode, text: String) -> Response<AnswerBody> {
    let body = Full::new(Bytes::from(text + "\n")).map_err(|never: Infallible| -> io::Error { match never {} }).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Answers one request.
pub(super) async fn answer<B>(store: BlobStore, request: Request<B>) -> Response<AnswerBody>
where
    B: Body<Data = Bytes> + Unpin,
{
    let Some(name) = request.uri().path().strip_prefix(PREFIX).filter(|_| request.uri().query().is_none()) else {
        return text(StatusCode::NOT_FOUND, format!("expected {PREFIX}sha256:<hex>"));
    };
    let digest: BlobDigest = match name.parse() {
        Ok(digest) => digest,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}")),
    };
    match *request.method() {
        Method::GET => match store.get(digest).await {
            Some(reading) => give(reading),
            None => text(StatusCode::NOT_FOUND, format!("{digest} is not here")),
        },
        Method::PUT => match take(&store, digest, request).await {
            Ok(size) => {
                tracing::debug!(%digest, size, "blob kept");
                text(StatusCode::CREATED, format!("{digest} kept"))
            }
            Err(refusal) => refusal,
        },
        _ => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "expected GET or PUT".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, PUT"));
            response
        }
    }
}

fn give(reading: Reading) -> Response<AnswerBody> {
    let size = reading.size();
    let pieces = stream::try_unfold(reading, |mut reading| async move {
        Ok::<_, io::Error>(reading.next().await?.map(|piece| (Frame::data(piece), reading)))
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(pieces)));
    response.headers_mut().insert(CONTENT_LENGTH, size.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

async fn take<B>(store: &BlobStore, digest: BlobDigest, request: Request<B>) -> Result<u64, Response<AnswerBody>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let refused = |error: PutError| {
        let status = match &error {
            PutError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            PutError::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            PutError::Length { .. } | PutError::Digest { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            PutError::Io { source, .. } => {
                tracing::warn!(%digest, %error, %source, "blob not kept");
                return text(StatusCode::INTERNAL_SERVER_ERROR, "the node's disk failed".to_owned());
            }
        };
        // Guests can cause these at will.
        tracing::debug!(%digest, %error, "blob not kept");
        text(status, error.to_string())
    };
    // hyper has made sure that it agrees with how the body is framed.
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let Some(size) = length else { return Err(text(StatusCode::LENGTH_REQUIRED, "expected a Content-Length".to_owned())) };
    let mut fill = store.put(digest, size).await.map_err(refused)?;
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(text(StatusCode::BAD_REQUEST, "the blob broke off".to_owned())) };
        if let Some(bytes) = frame.data_ref() {
            fill.write(bytes).await.map_err(refused)?;
        }
    }
    fill.finish().await.map_err(refused)?;
    Ok(size)
}
