//! What a request still sends when it has been answered.
//!
//! The rule: a refusal reaches its client. A connection that is closed with something unread is
//! reset, and the reset may overtake the answer (RFC 9112 §9.6), so what an HTTP/1 client is about
//! to send anyway is read and dropped, up to the size and within the time of an ordinary body. Where
//! its length is known, that is before the answer, and the connection can be kept. Where it is not,
//! or is more than anybody reads, or was waited for already, it may go on for ever: the answer goes
//! first, says that the connection ends, and the rest is read behind it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, StatusCode, Version, header},
    response::Response,
};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::{hub::Hub, model::limits::PUBLISH_BYTES_MAX};

/// How long a refused client may take to send the rest.
const REST_MAX: Duration = Duration::from_secs(5);
/// Bytes of a body without a known length that are read behind its answer: an ordinary body's.
const LINGER_BYTES_MAX: usize = PUBLISH_BYTES_MAX;
/// What of them is read at once, bytes.
const LINGER_BUFFER_BYTES: usize = 8 * 1024;

/// Marks a response behind which something may come that nobody reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linger;

/// A request's body, which comes back when its handler drops it.
struct Lent {
    body: Body,
    has_ended: bool,
    back: Arc<Mutex<Option<Body>>>,
}

/// What a handler leaves unread of its request.
pub(super) struct Rest {
    /// Where its body comes back; `None`: there is none to be read.
    back: Option<Arc<Mutex<Option<Body>>>>,
    /// It says no length: it may go on for ever.
    is_endless: bool,
}

impl Rest {
    /// Lends a request to its handler.
    pub(super) fn of(request: Request) -> (Request, Self) {
        // Who asks before sending, sends nothing to a refusal.
        let asks = request.headers().contains_key(header::EXPECT);
        if asks || request.version() > Version::HTTP_11 || request.body().is_end_stream() {
            return (request, Self { back: None, is_endless: false });
        }
        let is_endless = request.body().size_hint().upper().is_none();
        let back = Arc::default();
        let lend = |body| Body::new(Lent { body, has_ended: false, back: Arc::clone(&back) });
        (request.map(lend), Self { back: Some(back), is_endless })
    }

    /// Reads it, before the answer is sent or behind it.
    pub(super) async fn read(self, response: &mut Response, hub: &Hub) {
        // A body that is still being read is the answer's own affair.
        let rest = |back: Arc<Mutex<Option<Body>>>| {
            back.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let Some(rest) = self.back.and_then(rest) else { return };
        let bytes_max = hub.settings().publish_bytes_max;
        let is_too_large = rest.size_hint().lower() > bytes_max as u64;
        let is_too_slow = response.status() == StatusCode::REQUEST_TIMEOUT;
        let reading = discard(rest, bytes_max);
        if self.is_endless || is_too_large || is_too_slow {
            if reading.now_or_never().is_none() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
                response.extensions_mut().insert(Linger);
            }
            return;
        }
        // Whoever sends longer is cut off, and may miss the answer.
        let _ = tokio::time::timeout(REST_MAX, reading).await;
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

/// Reads and drops what comes behind the last answer of a connection whose own side is closed.
pub(super) async fn linger<S: AsyncRead + Unpin>(mut io: S) {
    let reading = async {
        let (mut left, mut bytes) =
            (LINGER_BYTES_MAX, BytesMut::with_capacity(LINGER_BUFFER_BYTES));
        while let Ok(count @ 1..) = io.read_buf(&mut bytes).await {
            let Some(rest) = left.checked_sub(count) else { return };
            left = rest;
            bytes.clear();
        }
    };
    let _ = tokio::time::timeout(REST_MAX, reading).await;
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.has_ended && !self.body.is_end_stream() {
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
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.has_ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::response::IntoResponse as _;
    use futures_util::stream;
    use tokio::{io::AsyncWriteExt as _, time::Instant};

    use super::*;

    async fn refused(body: Body) -> Response {
        let hub = Hub::builder().start();
        let (request, rest) = Rest::of(Request::new(body));
        drop(request);
        let mut response = StatusCode::UNAUTHORIZED.into_response();
        rest.read(&mut response, &hub).await;
        response
    }

    /// Broken on purpose, it failed: with the rest read before the answer, whatever its length.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_may_go_on_for_ever_holds_no_answer_back() {
        let begun = Instant::now();
        let endless = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let response = refused(endless).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(response.headers()[header::CONNECTION], "close");
        assert!(response.extensions().get::<Linger>().is_some());
        // One that is here to its end costs no connection.
        let whole = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"x"))]);
        for body in [Body::from_stream(whole), Body::from("x"), Body::empty()] {
            let response = refused(body).await;
            assert_eq!(response.headers().get(header::CONNECTION), None);
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn lingering_ends_with_the_client_the_bytes_or_the_time() {
        let begun = Instant::now();
        let (mut client, server) = tokio::io::duplex(1024);
        let sending = async move {
            client.write_all(&[0; 4096]).await.unwrap();
            drop(client);
        };
        tokio::join!(linger(server), sending);
        let (mut client, server) = tokio::io::duplex(LINGER_BYTES_MAX);
        let sending = async move { client.write_all(&vec![0; 4 * LINGER_BYTES_MAX]).await };
        let ((), sent) = tokio::join!(linger(server), sending);
        assert!(sent.is_err(), "nobody reads for ever");
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let (client, server) = tokio::io::duplex(1024);
        linger(server).await;
        assert_eq!(begun.elapsed(), REST_MAX);
        drop(client);
    }
}
