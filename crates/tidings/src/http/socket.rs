//! The bytes of one connection: its first ones looked at, its writes watched.
//!
//! The rule: nobody holds a connection by doing nothing. A deadline inside a response's body does
//! not run while the client does not read, so the one on writing is here, at the socket.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::{Buf as _, Bytes, BytesMut};
use http_body::Frame;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::problem::raw;
use crate::{
    error::{ErrorCode, Problem},
    model::limits::HEAD_BYTES_MAX,
};

/// What an HTTP/2 connection begins with (RFC 9113 §3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// First byte of a TLS record that holds a handshake (RFC 8446 §5.1). No HTTP request begins so.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tls,
    Http1,
    Http2,
}

/// Reads until the first bytes say what the client speaks, and hands them back to be read again.
///
/// hyper-util's own detection waits for ever on a client that sends `P` and no more.
///
/// # Errors
/// `TimedOut` if it takes too long, `UnexpectedEof` if the client leaves before.
pub(super) async fn detect<T: AsyncRead + Unpin>(
    mut io: T,
    within: Duration,
) -> io::Result<(Protocol, Reads<T>)> {
    let mut first = BytesMut::with_capacity(256);
    let reading = async {
        loop {
            if io.read_buf(&mut first).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            if first.first() == Some(&TLS_HANDSHAKE) {
                return Ok(Protocol::Tls);
            }
            if first.starts_with(H2_PREFACE) {
                return Ok(Protocol::Http2);
            }
            if !H2_PREFACE.starts_with(&first) {
                return Ok(Protocol::Http1);
            }
        }
    };
    let protocol = tokio::time::timeout(within, reading).await??;
    Ok((protocol, Reads { io, first: first.freeze(), heads: None, instead: Bytes::new() }))
}

/// A deadline that is mostly moved on before it is over: the timer, made when it is first waited for,
/// stays where it is until then.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    pub(super) fn poll_until(&mut self, ends: Instant, context: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(ends)));
        if sleep.deadline() > ends {
            sleep.as_mut().reset(ends);
        }
        loop {
            ready!(sleep.as_mut().poll(context));
            if sleep.deadline() >= ends {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(ends);
        }
    }
}

/// A connection that fails once a write has made no progress for so long.
#[derive(Debug)]
pub(super) struct Stalling<T> {
    io: T,
    stall_max: Duration,
    /// What is done to the socket then.
    on_stall: fn(&T),
    timer: Timer,
    /// When the stall that goes on is over.
    stalls_until: Option<Instant>,
}

impl<T> Stalling<T> {
    pub(super) const fn new(io: T, stall_max: Duration, on_stall: fn(&T)) -> Self {
        Self { io, stall_max, on_stall, timer: Timer(None), stalls_until: None }
    }

    fn progress(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalls_until = None;
            return written;
        }
        let ends = *self.stalls_until.get_or_insert_with(|| Instant::now() + self.stall_max);
        ready!(self.timer.poll_until(ends, context));
        (self.on_stall)(&self.io);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "client does not read")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stalling<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, out)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stalling<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.progress(context, written)
    }

    // Flushing and closing a TCP socket never wait; what is above this one flushes by writing.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.progress(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// What an HTTP/1 connection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing of a request has come yet.
    Idle,
    /// A head is on its way, and has until then.
    Head(Instant),
    /// A request is being answered.
    Answer,
}

/// Where an HTTP/1 connection is between its requests; shared with the service that answers them.
#[derive(Debug, Clone)]
pub(super) struct Requests(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    phase: Phase,
    leaving: Leaving,
}

/// How far an answer is that goes on without hyper once that has written its head.
#[derive(Debug, Default)]
enum Leaving {
    /// There is none.
    #[default]
    No,
    /// Its head is made.
    Head(Body),
    /// hyper asked for what comes behind the head, so that is in hyper's buffer.
    Buffered(Body),
    /// hyper's buffer is empty.
    Written(Body),
}

impl Requests {
    pub(super) fn new() -> Self {
        let state = State { phase: Phase::Idle, leaving: Leaving::No };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A head has come whole. The connection is idle again when what this returns is dropped.
    pub(super) fn answering(&self) -> Answering {
        self.set(Phase::Answer);
        Answering(self.clone())
    }

    /// Keeps a body for whoever goes on without hyper, and returns one of no known length that
    /// hyper waits for meanwhile.
    pub(super) fn leave(&self, body: Body) -> Body {
        self.state().leaving = Leaving::Head(body);
        Body::new(Behind(self.clone()))
    }

    /// The body that is kept, as soon as hyper has written its head.
    pub(super) fn left(&self) -> Option<Body> {
        let mut state = self.state();
        match std::mem::take(&mut state.leaving) {
            Leaving::Written(body) => Some(body),
            other => {
                state.leaving = other;
                None
            }
        }
    }

    /// hyper's buffer is empty: it flushes when it has written everything.
    fn flushed(&self) {
        let mut state = self.state();
        state.leaving = match std::mem::take(&mut state.leaving) {
            Leaving::Buffered(body) => Leaving::Written(body),
            other => other,
        };
    }

    fn set(&self, phase: Phase) {
        self.state().phase = phase;
    }

    fn phase(&self) -> Phase {
        self.state().phase
    }
}

/// What hyper waits for behind a head: it never comes.
struct Behind(Requests);

impl http_body::Body for Behind {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut state = self.0.state();
        state.leaving = match std::mem::take(&mut state.leaving) {
            Leaving::Head(body) => Leaving::Buffered(body),
            other => other,
        };
        Poll::Pending
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Answering(Requests);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.set(Phase::Idle);
    }
}

/// A connection that is read differently from its socket: the first bytes, which were looked at,
/// once more, and HTTP/1 heads within their time. What is written passes through, but for refusals
/// that hyper writes itself.
#[derive(Debug)]
pub(super) struct Reads<T> {
    io: T,
    first: Bytes,
    heads: Option<Heads>,
    /// What is left of a refusal that is written in place of hyper's.
    instead: Bytes,
}

/// Heads of HTTP/1 requests, each of which, once begun, must come whole in time.
///
/// hyper has one timer for this and for the time between requests. That one must be long: a proxy
/// that finds a kept connection closed under its request answers 502.
#[derive(Debug)]
struct Heads {
    requests: Requests,
    head_max: Duration,
    timer: Timer,
}

impl Heads {
    /// Looks at what a read found; fails if a head is late.
    fn watch(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<()>>,
        came: bool,
    ) -> Poll<io::Result<()>> {
        match (self.requests.phase(), polled.is_pending()) {
            (Phase::Idle, false) if came => {
                self.requests.set(Phase::Head(Instant::now() + self.head_max));
            }
            (Phase::Head(ends), true) => {
                ready!(self.timer.poll_until(ends, context));
                return Poll::Ready(Err(late_head()));
            }
            _ => {}
        }
        polled
    }
}

/// What a connection ends with whose head does not come in time.
pub(super) fn late_head() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "head did not come in time")
}

impl<T> Reads<T> {
    /// Asks for HTTP/1 heads in time; a part of the first may have come at this moment.
    pub(super) fn hurried(
        self,
        requests: Requests,
        head_max: Duration,
        begun: Option<Instant>,
    ) -> Self {
        if let Some(begun) = begun {
            requests.set(Phase::Head(begun + head_max));
        }
        Self { heads: Some(Heads { requests, head_max, timer: Timer::default() }), ..self }
    }

    /// Goes on behind what hyper wrote; it had read some bytes that it made no request of.
    pub(super) fn without_hyper(self, unread: &[u8]) -> Self {
        // Copied: hyper's whole buffer would be kept for them.
        Self { io: self.io, first: self.first, heads: None, instead: Bytes::new() }.reread(unread)
    }

    /// Reads these bytes once more.
    pub(super) fn reread(self, bytes: &[u8]) -> Self {
        let first = [bytes, &self.first[..]].concat().into();
        Self { first, ..self }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Reads<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = out.filled().len();
        let polled = if this.first.is_empty() {
            Pin::new(&mut this.io).poll_read(context, out)
        } else {
            let count = this.first.len().min(out.remaining());
            out.put_slice(this.first.get(..count).unwrap_or_default());
            this.first.advance(count);
            Poll::Ready(Ok(()))
        };
        match &mut this.heads {
            Some(heads) => heads.watch(context, polled, out.filled().len() > before),
            None => polled,
        }
    }
}

impl<T: AsyncWrite + Unpin> Reads<T> {
    /// Writes what is left of a refusal.
    fn poll_instead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(context, &self.instead))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.instead.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes hyper's own refusal of a head, if these bytes are one.
    fn replaced(&mut self, bytes: &[u8]) -> bool {
        let refusal = self.heads.as_ref().and_then(|_| refusal_of_head(bytes));
        self.instead = refusal.unwrap_or_default();
        !self.instead.is_empty()
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Reads<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_instead(context))?;
        if self.replaced(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(context))?;
        ready!(Pin::new(&mut self.io).poll_flush(context))?;
        if let Some(heads) = &self.heads {
            heads.requests.flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(context))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_instead(context))?;
        if let [bytes] = slices
            && self.replaced(bytes)
        {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// What is answered in place of hyper's own refusal of a head, which is a status and no more: it
/// reaches no handler that could make a problem of it.
fn refusal_of_head(bytes: &[u8]) -> Option<Bytes> {
    let head = std::str::from_utf8(bytes).ok()?;
    let is_bare = head.ends_with("\r\n\r\n")
        && head.contains("\r\ncontent-length: 0\r\n")
        && !head.contains("\r\nx-request-id: ");
    let status = head.strip_prefix("HTTP/1.1 ").filter(|_| is_bare)?.get(..3)?;
    let problem = match status {
        "400" => Problem::new(ErrorCode::Malformed, "the request's head is no HTTP"),
        "414" | "431" => {
            let detail = format!(
                "the request's head has more than {HEAD_BYTES_MAX} bytes or too many fields"
            );
            Problem::new(ErrorCode::HeadTooLarge, detail)
        }
        _ => return None,
    };
    Some(raw(&problem).into())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn detected(pieces: &[&[u8]]) -> io::Result<(Protocol, Vec<u8>)> {
        let (mut client, server) = duplex(1024);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let sending = tokio::spawn(async move {
            for piece in pieces {
                client.write_all(&piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        let (protocol, mut io) = detect(server, LIMIT).await?;
        drop(sending.await.unwrap());
        let mut all = Vec::new();
        io.read_to_end(&mut all).await?;
        Ok((protocol, all))
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_bytes_say_the_protocol_and_are_read_again() {
        let request = b"POST / HTTP/1.1\r\n\r\n";
        for (pieces, protocol) in [
            (vec![&request[..]], Protocol::Http1),
            (vec![b"P", b"R", b"OPFIND / HTTP/1.1\r\n"], Protocol::Http1),
            (vec![H2_PREFACE, b"more"], Protocol::Http2),
            (vec![b"PRI * HTTP/2.0\r\n", b"\r\nSM\r\n\r\n"], Protocol::Http2),
            (vec![b"\x16\x03\x01"], Protocol::Tls),
            (vec![b"\0"], Protocol::Http1),
        ] {
            assert_eq!(detected(&pieces).await.unwrap(), (protocol, pieces.concat()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_say_its_protocol_is_given_up() {
        for silent in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
            let (mut client, server) = duplex(64);
            client.write_all(silent).await.unwrap();
            let begun = Instant::now();
            let error = detect(server, LIMIT).await.unwrap_err();
            assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, LIMIT));
        }
        let (client, server) = duplex(64);
        drop(client);
        let error = detect(server, LIMIT).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte_and_the_time_between_is_free() {
        let (mut client, server) = duplex(64);
        let requests = Requests::new();
        let server = Reads { io: server, first: Bytes::new(), heads: None, instead: Bytes::new() };
        let mut server = server.hurried(requests.clone(), LIMIT, None);
        let mut bytes = [0; 64];
        for _ in 0..2 {
            // Ten times the limit between requests, and while one is answered.
            let idle = tokio::time::timeout(LIMIT * 10, server.read(&mut bytes)).await;
            assert!(idle.is_err(), "{idle:?}");
            client.write_all(b"head").await.unwrap();
            assert_eq!(server.read(&mut bytes).await.unwrap(), 4);
            let answering = requests.answering();
            let quiet = tokio::time::timeout(LIMIT * 10, server.read(&mut bytes)).await;
            assert!(quiet.is_err(), "{quiet:?}");
            drop(answering);
        }
        client.write_all(b"h").await.unwrap();
        assert_eq!(server.read(&mut bytes).await.unwrap(), 1);
        let begun = Instant::now();
        // More bytes do not buy more time.
        tokio::time::advance(LIMIT / 2).await;
        client.write_all(b"e").await.unwrap();
        assert_eq!(server.read(&mut bytes).await.unwrap(), 1);
        let error = server.read(&mut bytes).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, LIMIT));
    }

    #[test]
    fn only_a_bare_refusal_of_a_head_is_replaced() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                    content-length: 0\r\ndate: x\r\n\r\n";
        let answer = refusal_of_head(bare.as_bytes()).unwrap();
        let answer = std::str::from_utf8(&answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{head}");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["code"], "head_too_large");
        assert!(head.contains(problem["request_id"].as_str().unwrap()), "{head}");
        for other in [
            bare.replace("431", "404"),
            bare.replace("date: x", "x-request-id: 1"),
            bare.replace("length: 0", "length: 1"),
            format!("{bare}x"),
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
        ] {
            assert_eq!(refusal_of_head(other.as_bytes()), None, "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_without_progress_fails_at_the_limit_and_a_slow_one_does_not() {
        let (mut client, server) = duplex(1);
        let mut server = Stalling::new(server, LIMIT, |_| {});
        let slow_reader = tokio::spawn(async move {
            let mut read = [0];
            for _ in 0..5 {
                tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
                client.read_exact(&mut read).await.unwrap();
            }
            client
        });
        server.write_all(b"123456").await.unwrap();
        let stalled = slow_reader.await.unwrap();
        let begun = Instant::now();
        let error = server.write_all(b"7").await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, LIMIT));
        drop(stalled);
    }
}
