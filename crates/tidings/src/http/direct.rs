//! `POST /v1/events` on HTTP/1.1, answered from the connection's own buffer.
//!
//! The rule: what is answered here is plainly one small publish, and answered by the handler of all
//! publishes. Whatever else a connection asks for goes on to hyper and the router as it came, and
//! what follows it too. In doubt it is for them: nothing is refused here but what a handler refuses.

use std::{
    future::poll_fn,
    io::{self, Write as _},
    mem::MaybeUninit,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::{Buf as _, Bytes, BytesMut};
use httpdate::HttpDate;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::{io::poll_read_buf, sync::CancellationToken};
use tracing::{Instrument as _, Level, Span};

use super::{
    admission::room_for_body,
    caller::{authenticate_bearer, bearer_of},
    events::{self, Answer, Asked},
    observe::Observed,
    problem,
    router::App,
    serve::ServeSettings,
    socket::Reads,
};
use crate::model::Timestamp;

/// A request that is answered here begins with this.
const FIRST_LINE: &[u8] = b"POST /v1/events HTTP/1.1\r\n";
/// Longest request that is answered here, head and body, bytes: what hyper's buffer may grow to for
/// a head alone.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Fields of such a request's head: clients and the libraries that trace them send about ten.
const FIELDS_MAX: usize = 32;
/// What a connection has room for at first, bytes: a publish of one event.
const BUFFER_BYTES: usize = 1024;
/// Fields that mean nothing to a publish.
const MEANINGLESS: [&str; 8] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "baggage",
    "host",
    "sec-fetch-mode",
    "user-agent",
    "x-request-id",
];
/// Fields that are the handler's own affair.
const OF_HANDLER: [&str; 3] = ["idempotency-key", "traceparent", "tracestate"];

/// What becomes of a connection.
#[derive(Debug)]
pub(super) enum Next {
    /// It has ended.
    End,
    /// These bytes, and what comes behind them, are for hyper.
    Hyper(Bytes),
}

/// Answers what publishes, until something else comes.
///
/// # Errors
/// The socket's, and `TimedOut` for a head that does not come whole in time.
pub(super) async fn serve<S>(
    io: &mut Reads<S>,
    app: &App,
    settings: &ServeSettings,
    shutdown: &CancellationToken,
) -> io::Result<Next>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut ending = pin!(shutdown.cancelled());
    let mut timer = Timer::default();
    let mut bytes = BytesMut::with_capacity(BUFFER_BYTES);
    let mut answer = Vec::with_capacity(BUFFER_BYTES);
    let mut begun = None;
    loop {
        let is_head_whole = match Request::look(&bytes) {
            Looked::Whole(request) => {
                answer.clear();
                let is_last = pin!(request.answer(app, shutdown, &mut answer)).await;
                let count = request.count;
                io.write_all(&answer).await?;
                // TLS keeps what the socket did not take.
                io.flush().await?;
                if is_last {
                    break;
                }
                bytes.advance(count);
                begun = None;
                continue;
            }
            Looked::Other => return Ok(Next::Hyper(bytes.freeze())),
            Looked::Part { is_head_whole } => is_head_whole,
        };
        let is_idle = bytes.is_empty();
        let ends = match is_idle {
            true => Instant::now() + settings.idle,
            false => *begun.get_or_insert_with(Instant::now) + settings.head,
        };
        // To its front, where there was a request before.
        bytes.reserve(BUFFER_BYTES);
        let came = poll_fn(|context| {
            let read = poll_read_buf(Pin::new(&mut *io), context, &mut bytes)?;
            if let Poll::Ready(count) = read {
                return Poll::Ready(io::Result::Ok(Came::Bytes(count)));
            }
            if is_idle && ending.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(Came::Bytes(0)));
            }
            timer.poll_until(ends, context).map(|()| Ok(Came::Late))
        });
        match came.await? {
            Came::Bytes(1..) => {}
            Came::Bytes(0) | Came::Late if is_idle => break,
            Came::Late if !is_head_whole => {
                let late = "head did not come in time";
                return Err(io::Error::new(io::ErrorKind::TimedOut, late));
            }
            // A body that is late or breaks off: the router has times for it, and words.
            Came::Bytes(0) | Came::Late => return Ok(Next::Hyper(bytes.freeze())),
        }
    }
    io.shutdown().await?;
    Ok(Next::End)
}

/// What came of waiting for more.
enum Came {
    /// So many bytes; none: no more will come.
    Bytes(usize),
    Late,
}

/// A deadline that is mostly moved on before it is over: the timer stays where it is until then.
#[derive(Debug, Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    fn poll_until(&mut self, ends: Instant, context: &mut Context<'_>) -> Poll<()> {
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

/// What the bytes of a connection begin with.
#[derive(Debug)]
enum Looked<'a> {
    /// A request that is answered here.
    Whole(Request<'a>),
    /// Perhaps the beginning of one.
    Part { is_head_whole: bool },
    /// Something else.
    Other,
}

/// A publish.
#[derive(Debug)]
struct Request<'a> {
    bearer: &'a str,
    content_type: Option<&'a str>,
    /// Fields that the handler reads itself; mostly none.
    headers: HeaderMap,
    body: &'a [u8],
    /// Bytes of all of it.
    count: usize,
}

impl<'a> Request<'a> {
    fn look(bytes: &'a [u8]) -> Looked<'a> {
        if !bytes.starts_with(FIRST_LINE) {
            let is_part = FIRST_LINE.starts_with(bytes);
            return if is_part { Looked::Part { is_head_whole: false } } else { Looked::Other };
        }
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut head = httparse::Request::new(&mut []);
        match head.parse_with_uninit_headers(bytes, &mut fields) {
            Ok(httparse::Status::Complete(count)) => {
                Self::of(head.headers, bytes, count).unwrap_or(Looked::Other)
            }
            Ok(httparse::Status::Partial) if bytes.len() < REQUEST_BYTES_MAX => {
                Looked::Part { is_head_whole: false }
            }
            _ => Looked::Other,
        }
    }

    /// Reads a head of so many bytes; `None` for what is not answered here.
    fn of(
        fields: &[httparse::Header<'a>],
        bytes: &'a [u8],
        head_count: usize,
    ) -> Option<Looked<'a>> {
        let (mut authorization, mut content_type, mut length) = (None, None, None);
        let mut headers = HeaderMap::new();
        for field in fields {
            let is = |name: &&str| field.name.eq_ignore_ascii_case(name);
            let is_kept = is(&"connection") && field.value.eq_ignore_ascii_case(b"keep-alive");
            if is_kept || MEANINGLESS.iter().any(is) {
                continue;
            }
            if OF_HANDLER.iter().any(is) {
                let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
                headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
                continue;
            }
            let once = if is(&"authorization") {
                &mut authorization
            } else if is(&"content-type") {
                &mut content_type
            } else if is(&"content-length") {
                &mut length
            } else {
                return None;
            };
            // Of two, or of other characters, the router knows what to say.
            let text = str::from_utf8(field.value).ok().filter(|_| field.value.is_ascii())?;
            if once.replace(text).is_some() {
                return None;
            }
        }
        if events::is_stream(content_type) {
            return None;
        }
        let bearer = bearer_of(authorization?)?;
        // No sign: it is digits (RFC 9110 §8.6).
        let length = length.filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()))?;
        let length: usize = length.parse().ok()?;
        let count = head_count.checked_add(length).filter(|count| *count <= REQUEST_BYTES_MAX)?;
        Some(match bytes.get(head_count..count) {
            Some(body) => Looked::Whole(Self { bearer, content_type, headers, body, count }),
            None => Looked::Part { is_head_whole: true },
        })
    }

    /// Writes its answer; true: the connection ends with it.
    async fn answer(&self, app: &App, shutdown: &CancellationToken, out: &mut Vec<u8>) -> bool {
        let (id, observed) = (problem::new_id(), Observed::publish());
        let span = || problem::span(&id, "POST", "/v1/events");
        // Pinned where they are made: moved into all that is around them, they are copied each time.
        let work = pin!(async {
            let grant = match authenticate_bearer(app, self.bearer).await {
                Ok(grant) => grant,
                Err(problem) => return Answer::from(problem),
            };
            let asked =
                Asked { content_type: self.content_type, query: None, headers: &self.headers };
            let body = async {
                let room = room_for_body(&app.hub, &grant, Some(self.body.len())).await?;
                Ok((Bytes::copy_from_slice(self.body), room))
            };
            pin!(events::publish_body(app, &grant, asked, body)).await
        });
        let work = problem::answer_panics(work, span, Answer::from);
        // Nothing is logged of most of them, and a span takes a tenth of what they do.
        let around = if tracing::enabled!(Level::DEBUG) { span() } else { Span::none() };
        let answer = problem::within(id.clone(), work.instrument(around.clone())).await;
        let status = answer.status();
        let around = if around.is_none() && status.is_server_error() { span() } else { around };
        around.in_scope(|| observed.answered(status, false, app.hub.metrics()));
        let is_last = app.hub.is_leaving() || shutdown.is_cancelled();
        write(out, answer, &id, app.hub.clock().now(), is_last);
        is_last
    }
}

/// Writes an answer as the router and hyper do.
fn write(out: &mut Vec<u8>, answer: Answer, id: &str, now: Timestamp, is_last: bool) {
    let (status, headers, body) = answer.into_parts();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
    put(&[b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", reason.as_bytes()]);
    for (name, value) in &headers {
        put(&[b"\r\n", name.as_str().as_bytes(), b": ", value.as_bytes()]);
    }
    put(&[b"\r\nvary: Origin\r\nx-request-id: ", id.as_bytes()]);
    if is_last {
        put(&[b"\r\nconnection: close"]);
    }
    let date = HttpDate::from(SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()));
    // Writing to memory does not fail.
    let _ = write!(out, "\r\ncontent-length: {}\r\ndate: {date}\r\n\r\n", body.len());
    out.extend_from_slice(body.as_bytes());
}
