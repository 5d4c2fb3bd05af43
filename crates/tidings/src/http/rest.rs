//! What a request still sends when it has been answered.
//!
//! The rule: a refusal reaches its client. A connection that is closed with something unread is
//! reset, and the reset may overtake the answer (RFC 9112 §9.6), so what an HTTP/1 client is about
//! to send anyway is read and dropped, up to the size and within the time of an ordinary body.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{Version, header},
};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;

use crate::hub::Hub;

/// How long a refused client may take to send the rest.
const REST_MAX: Duration = Duration::from_secs(5);

/// A request's body, which comes back when its handler drops it.
struct Lent {
    body: Body,
    back: Arc<Mutex<Option<Body>>>,
}

/// What a handler leaves unread of its request.
#[derive(Default)]
pub(super) struct Rest(Option<Arc<Mutex<Option<Body>>>>);

impl Rest {
    /// Lends a request to its handler.
    pub(super) fn of(request: Request) -> (Request, Self) {
        // Who asks before sending, sends nothing to a refusal.
        let asks = request.headers().contains_key(header::EXPECT);
        if asks || request.version() > Version::HTTP_11 || request.body().is_end_stream() {
            return (request, Self(None));
        }
        let back = Arc::default();
        let lend = |body| Body::new(Lent { body, back: Arc::clone(&back) });
        (request.map(lend), Self(Some(back)))
    }

    /// Reads it, before the answer is sent.
    pub(super) async fn read(self, hub: &Hub) {
        // A body that is still being read is the answer's own affair.
        let rest =
            self.0.and_then(|back| back.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(rest) = rest {
            let reading = discard(rest, hub.settings().publish_bytes_max);
            // Whoever sends longer is cut off, and may miss the answer.
            let _ = tokio::time::timeout(REST_MAX, reading).await;
        }
    }
}

async fn discard(mut body: Body, bytes_max: usize) {
    let mut left = bytes_max;
    while let Some(Ok(frame)) = body.frame().await {
        let count = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(count) else { return };
        left = rest;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.body.is_end_stream() {
            let body = std::mem::take(&mut self.body);
            *self.back.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
