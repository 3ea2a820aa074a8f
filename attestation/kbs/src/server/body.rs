//! Request bodies: bounded in size, in time and together, before anything is parsed.
//!
//! A body is read before anybody knows who sends it. One is bounded by [`MAX_BODY`]; of as many as there may be connections, that is gigabytes.

use super::Broker;
use super::error::ApiError;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use hyper::body::Frame;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Largest body.
pub const MAX_BODY: usize = 2 * 1024 * 1024;
/// Largest body of `/auth`, which is some hundred bytes and which anybody may send.
pub const MAX_AUTH_BODY: usize = 16 * 1024;
/// Bytes of all bodies that are held at a time, as far as they have come.
pub const MAX_HELD: usize = 128 * 1024 * 1024;
/// A client that needs longer to send its body is cut off.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What is still taken in of a body that was refused, and thrown away: who is sending sees the answer only if the connection is still there.
const MAX_DRAINED: usize = 16 * 1024 * 1024;
/// And for how long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How many bytes of bodies are held.
#[derive(Debug, Clone, Default)]
pub struct Held(Arc<AtomicUsize>);

/// The part that one body has of them, until it is dropped.
#[derive(Debug)]
pub struct Part {
    held: Held,
    bytes: usize,
}

impl Part {
    fn of(held: &Held) -> Self {
        Self { held: held.clone(), bytes: 0 }
    }

    fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let sum = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= MAX_HELD);
        match self.held.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum) {
            Ok(_) => self.bytes = self.bytes.saturating_add(bytes),
            Err(_) => {
                let detail = format!("the broker holds {MAX_HELD} bytes of requests, as many as it may: try again in a while");
                return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", detail));
            }
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A body of at most `MAX` bytes, and the part that it has of what is held, for as long as the handler runs.
#[derive(Debug)]
pub struct Bounded<const MAX: usize = MAX_BODY>(pub Bytes, pub Part);

impl<const MAX: usize> FromRequest<Arc<Broker>> for Bounded<MAX> {
    type Rejection = ApiError;

    async fn from_request(request: Request, broker: &Arc<Broker>) -> Result<Self, ApiError> {
        let timeout = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "Timeout", "the body did not arrive in time");
        tokio::time::timeout(BODY_TIMEOUT, read(request.into_body(), Part::of(&broker.held))).await.map_err(timeout)?
    }
}

async fn read<const MAX: usize>(mut body: Body, mut part: Part) -> Result<Bounded<MAX>, ApiError> {
    let too_large = |body: Body| {
        tokio::spawn(tokio::time::timeout(DRAIN_TIMEOUT, drain(body)));
        let detail = format!("the body is larger than the {MAX} bytes that this path takes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "PayloadTooLarge", detail)
    };
    // What will be too large need not be waited for.
    if body.size_hint().lower() > MAX as u64 {
        return Err(too_large(body));
    }
    let mut bytes = Vec::new();
    while let Some(frame) = next(&mut body).await {
        let frame = frame.map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "InvalidRequest", "the body could not be read"))?;
        // Trailers mean nothing here.
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > MAX.saturating_sub(bytes.len()) {
            return Err(too_large(body));
        }
        part.grow(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(Bounded(bytes.into(), part))
}

async fn next(body: &mut Body) -> Option<Result<Frame<Bytes>, axum::Error>> {
    poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

async fn drain(mut body: Body) {
    let mut drained = 0usize;
    while let Some(Ok(frame)) = next(&mut body).await {
        drained = drained.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        if drained > MAX_DRAINED {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(grown: Result<(), ApiError>) -> Option<StatusCode> {
        grown.err().map(|e| e.status())
    }

    #[test]
    fn bodies_have_a_bound_together_and_give_back_what_they_had() {
        let held = Held::default();
        let (mut one, mut other) = (Part::of(&held), Part::of(&held));
        assert_eq!(status(one.grow(MAX_HELD - 10)), None);
        assert_eq!(status(other.grow(10)), None);
        assert_eq!(status(other.grow(1)), Some(StatusCode::SERVICE_UNAVAILABLE));
        drop(one);
        assert_eq!(status(other.grow(1)), None);
        assert_eq!(held.0.load(Ordering::Relaxed), 11);
        assert_eq!(status(other.grow(usize::MAX)), Some(StatusCode::SERVICE_UNAVAILABLE));
        drop(other);
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_body_is_held_as_far_as_it_has_come() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let held = Held::default();
        let read = |text: &'static str| runtime.block_on(read::<8>(Body::from(text), Part::of(&held)));
        let Bounded(bytes, part) = read("12345678").unwrap();
        assert_eq!((bytes.as_ref(), held.0.load(Ordering::Relaxed)), (b"12345678".as_slice(), 8));
        assert_eq!(read("123456789").err().map(|e| e.status()), Some(StatusCode::PAYLOAD_TOO_LARGE));
        drop(part);
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
    }
}
