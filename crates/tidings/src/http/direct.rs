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
    task::{Poll, ready},
    time::{Duration, SystemTime},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use httpdate::HttpDate;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    time::Instant,
};
use tokio_util::{io::poll_read_buf, sync::CancellationToken};
use tracing::{Instrument as _, level_filters::LevelFilter};

use super::{
    admission::room_for_body,
    caller::{BODY_GRACE, authenticate_bearer, bearer_of},
    events::{self, Answer, Asked},
    observe::Observed,
    problem,
    router::App,
    serve::ServeSettings,
    socket::{Reads, Timer, late_head},
};
use crate::{model::Timestamp, request};

/// A request that is answered here begins with this.
const FIRST_LINE: &[u8] = b"POST /v1/events HTTP/1.1\r\n";
/// Longest request that is answered here, head and body, bytes: half of what hyper's buffer may grow
/// to for a head alone.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Fields of such a request's head: clients and the libraries that trace them send about ten.
const FIELDS_MAX: usize = 32;
/// What is read at once, bytes: mostly a publish of one event.
const BUFFER_BYTES: usize = 1024;
/// What a quiet connection keeps of either buffer, bytes.
const KEPT_BYTES: usize = 4 * 1024;
/// The end of the year 9999.
const SECONDS_MAX: u64 = 253_402_300_799;
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
    /// It is for hyper.
    Hyper {
        /// What was read and is to be read again.
        bytes: Bytes,
        /// Since when a request's head is on its way, if these are a part of it.
        begun: Option<Instant>,
    },
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
    let mut input = Input { io, bytes: Vec::new(), early: Vec::new(), timer: Timer::default() };
    let mut answer = Vec::new();
    let body_max = app.hub.settings().body_read_max.min(BODY_GRACE);
    // Since when a request is on its way, and since when its head is here.
    let (mut begun, mut body_begun) = (None, None);
    loop {
        let missing = match Request::look(&input.bytes) {
            Looked::Whole(request) => {
                answer.clear();
                let answered = {
                    let answering = pin!(request.answer(app, shutdown, &mut answer));
                    unless_left(answering, input.io, &mut input.early).await?
                };
                let Some(is_last) = answered else { break };
                let count = request.count;
                input.io.write_all(&answer).await?;
                // TLS keeps what the socket did not take.
                input.io.flush().await?;
                if is_last {
                    break;
                }
                input.bytes.drain(..count);
                input.bytes.append(&mut input.early);
                (begun, body_begun) = (None, None);
                continue;
            }
            Looked::Other => return Ok(Next::Hyper { bytes: input.bytes.into(), begun }),
            Looked::Part(missing) => missing,
        };
        let ends = match missing {
            Missing::All => {
                // Large ones may have been long ago.
                input.bytes.shrink_to(KEPT_BYTES);
                answer.clear();
                answer.shrink_to(KEPT_BYTES);
                Instant::now() + settings.idle
            }
            Missing::Head => *begun.get_or_insert_with(Instant::now) + settings.head,
            Missing::Body(_) => *body_begun.get_or_insert_with(Instant::now) + body_max,
        };
        match (input.more(missing, ends, ending.as_mut()).await?, missing) {
            (Came::Enough, _) => {}
            (Came::End | Came::Late, Missing::All) => break,
            (Came::Late, Missing::Head) => {
                return Err(late_head());
            }
            // A head that breaks off, or a body that does or is late: the router gives that as long
            // once more, and has words.
            (Came::End | Came::Late, _) => {
                return Ok(Next::Hyper { bytes: input.bytes.into(), begun });
            }
        }
    }
    io.shutdown().await?;
    Ok(Next::End)
}

/// What comes on a connection.
struct Input<'a, S> {
    io: &'a mut Reads<S>,
    /// What was read and is not answered yet.
    bytes: Vec<u8>,
    /// What came while a request was answered.
    early: Vec<u8>,
    timer: Timer,
}

/// What came of waiting for more.
enum Came {
    /// Perhaps what is missing.
    Enough,
    /// No more will come.
    End,
    Late,
}

impl<S: AsyncRead + Unpin> Input<'_, S> {
    /// Waits for what is missing, and between requests for the server's end too.
    async fn more(
        &mut self,
        missing: Missing,
        ends: Instant,
        mut ending: Pin<&mut impl Future<Output = ()>>,
    ) -> io::Result<Came> {
        let Self { io, bytes, timer, .. } = self;
        poll_fn(|context| {
            loop {
                let known = bytes.len();
                bytes.reserve(BUFFER_BYTES);
                match poll_read_buf(Pin::new(&mut **io), context, bytes)? {
                    Poll::Ready(0) => return Poll::Ready(Ok(Came::End)),
                    Poll::Ready(_) if missing.may_be_in(bytes, known) => {
                        return Poll::Ready(Ok(Came::Enough));
                    }
                    Poll::Ready(_) => {}
                    Poll::Pending => break,
                }
            }
            if missing == Missing::All && ending.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(Came::End));
            }
            timer.poll_until(ends, context).map(|()| Ok(Came::Late))
        })
        .await
    }
}

/// Waits for an answer; `None`: its client has left, or closed its side, and is not served any more.
/// What else it sends is kept.
async fn unless_left<S: AsyncRead + Unpin>(
    mut answering: Pin<&mut impl Future<Output = bool>>,
    io: &mut Reads<S>,
    early: &mut Vec<u8>,
) -> io::Result<Option<bool>> {
    poll_fn(|context| {
        if let Poll::Ready(is_last) = answering.as_mut().poll(context) {
            return Poll::Ready(Ok(Some(is_last)));
        }
        if early.is_empty() && ready!(poll_read_buf(Pin::new(&mut *io), context, early))? == 0 {
            return Poll::Ready(Ok(None));
        }
        Poll::Pending
    })
    .await
}

/// What the bytes of a connection begin with.
#[derive(Debug)]
pub(super) enum Looked<'a> {
    /// A request that is answered here.
    Whole(Request<'a>),
    /// Perhaps the beginning of one.
    Part(Missing),
    /// Something else.
    Other,
}

/// What is missing of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    All,
    /// Some of its head.
    Head,
    /// Some of its body; it has so many bytes in all.
    Body(usize),
}

impl Missing {
    /// Whether it may be here, with what came behind the bytes that are known. To look at all of a
    /// head again for each of its bytes would cost the square of them.
    fn may_be_in(self, bytes: &[u8], known: usize) -> bool {
        match self {
            Self::All => true,
            Self::Head => {
                let came = bytes.get(known..).unwrap_or_default();
                bytes.len() >= REQUEST_BYTES_MAX || came.contains(&b'\n')
            }
            Self::Body(count) => bytes.len() >= count,
        }
    }
}

/// A publish.
#[derive(Debug)]
pub(super) struct Request<'a> {
    bearer: &'a str,
    content_type: Option<&'a str>,
    /// Fields that the handler reads itself; mostly none.
    headers: HeaderMap,
    pub(super) body: &'a [u8],
    /// Bytes of all of it.
    pub(super) count: usize,
}

impl<'a> Request<'a> {
    pub(super) fn look(bytes: &'a [u8]) -> Looked<'a> {
        if !bytes.starts_with(FIRST_LINE) {
            let is_part = FIRST_LINE.starts_with(bytes);
            return match bytes {
                [] => Looked::Part(Missing::All),
                _ if is_part => Looked::Part(Missing::Head),
                _ => Looked::Other,
            };
        }
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut head = httparse::Request::new(&mut []);
        match head.parse_with_uninit_headers(bytes, &mut fields) {
            Ok(httparse::Status::Complete(count)) => {
                Self::of(head.headers, bytes, count).unwrap_or(Looked::Other)
            }
            Ok(httparse::Status::Partial) if bytes.len() < REQUEST_BYTES_MAX => {
                Looked::Part(Missing::Head)
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
            None => Looked::Part(Missing::Body(count)),
        })
    }

    /// Writes its answer; true: the connection ends with it.
    async fn answer(&self, app: &App, shutdown: &CancellationToken, out: &mut Vec<u8>) -> bool {
        let (id, observed) = (request::new_id(), Observed::publish());
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
        let work = async {
            let answer = problem::answer_panics(work, Answer::from).await;
            observed.answered(answer.status, false, app.hub.metrics());
            answer
        };
        // Whatever crate or module is asked for its details, what it says belongs to a request.
        let answer = if LevelFilter::current() >= LevelFilter::DEBUG {
            let work = work.instrument(request::publish_span(&id));
            request::within(id.clone(), work).await
        } else {
            request::within_publish(id.clone(), work).await
        };
        let is_last = app.hub.is_leaving() || shutdown.is_cancelled();
        write(out, answer, &id, app.hub.clock().now(), is_last);
        is_last
    }
}

/// Writes an answer as the router and hyper do.
fn write(out: &mut Vec<u8>, answer: Answer, id: &str, now: Timestamp, is_last: bool) {
    let Answer { status, headers, body } = answer;
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
    // There are four digits for the year.
    let now = Duration::from_secs(now.as_secs().min(SECONDS_MAX));
    let date = HttpDate::from(SystemTime::UNIX_EPOCH + now);
    // Writing to memory does not fail.
    let _ = write!(out, "\r\ncontent-length: {}\r\ndate: {date}\r\n\r\n", body.len());
    out.extend_from_slice(body.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::{
        io::{AsyncReadExt as _, DuplexStream, duplex},
        task::JoinHandle,
    };

    use super::{
        super::{fuzzing::request_head, socket::detect},
        *,
    };
    use crate::{
        Hub,
        auth::{ApiKey, AuthSettings, Authenticator, Grant},
        http::HttpSettings,
        model::Tenant,
    };

    const EVENT: &str = r#"{"topic":"a","type":"t","data":1}"#;
    const LIMIT: Duration = Duration::from_secs(10);

    /// A publish of one event with these fields besides those that it needs.
    fn request(key: &str, fields: &str, body: &str) -> String {
        format!(
            "POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n{fields}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn is_answered_here(bytes: &str) -> bool {
        matches!(Request::look(bytes.as_bytes()), Looked::Whole(_))
    }

    fn is_for_hyper(bytes: &str) -> bool {
        matches!(Request::look(bytes.as_bytes()), Looked::Other)
    }

    /// What clients send as they come, so that it is they whom this serves.
    #[test]
    fn what_common_clients_send_is_answered_here() {
        for fields in [
            // curl
            "User-Agent: curl/8.5.0\r\nAccept: */*\r\n",
            // Go
            "User-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n",
            // requests for Python
            "User-Agent: python-requests/2.32.3\r\nAccept-Encoding: gzip, deflate\r\n\
             Accept: */*\r\nConnection: keep-alive\r\n",
            // fetch of Node.js
            "connection: keep-alive\r\naccept: */*\r\naccept-language: *\r\n\
             sec-fetch-mode: cors\r\nuser-agent: node\r\naccept-encoding: gzip, deflate\r\n",
            // Any of them, traced by OpenTelemetry
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
             tracestate: a=b\r\nbaggage: c=d\r\n",
            "Idempotency-Key: 1\r\n",
        ] {
            assert!(is_answered_here(&request("k", fields, EVENT)), "{fields}");
        }
    }

    #[test]
    fn whatever_may_mean_something_else_is_for_the_router() {
        for fields in [
            "Transfer-Encoding: chunked\r\n",
            "Expect: 100-continue\r\n",
            "Connection: close\r\n",
            "Connection: keep-alive, Upgrade\r\nUpgrade: h2c\r\n",
            "Origin: https://app.example\r\n",
            "Cookie: a=b\r\n",
            "Content-Encoding: gzip\r\n",
            "X-Forwarded-For: 192.0.2.1\r\n",
            "ce-type: t\r\n",
            "Content-Length: 33\r\n",
            "Authorization: Bearer other\r\n",
            "Content-Type: application/json\r\n",
            "X-Whatever: 1\r\n",
            "User-Agent: a\r\n b\r\n",
            "User-Agent : a\r\n",
            "\u{e9}: a\r\n",
        ] {
            assert!(is_for_hyper(&request("k", fields, EVENT)), "{fields}");
        }
        let good = request("k", "", EVENT);
        for (from, to) in [
            ("POST", "PUT"),
            ("/v1/events ", "/v1/events?topic=a "),
            ("/v1/events ", "/v1/events/ "),
            ("/v1/events ", "http://a/v1/events "),
            ("HTTP/1.1", "HTTP/1.0"),
            ("Authorization: Bearer k\r\n", ""),
            ("Bearer k", "Basic k"),
            ("Bearer k", "Bearer \u{e9}"),
            ("application/json", "application/x-ndjson"),
            ("application/json", "Application/JSONL; charset=utf-8"),
            ("Content-Length: 33\r\n", ""),
            ("Content-Length: 33", "Content-Length: +33"),
            ("Content-Length: 33", "Content-Length: 33, 33"),
            ("Content-Length: 33", "Content-Length: 18446744073709551648"),
            ("Content-Length: 33", "Content-Length: 16384"),
            ("\r\nHost", "\r\n\r\nHost\0"),
        ] {
            let other = good.replacen(from, to, 1);
            assert_ne!(other, good, "{from}");
            assert!(is_for_hyper(&other), "{from} -> {to}");
        }
        assert!(is_for_hyper(&format!("\r\n{good}")));
        let long = format!("User-Agent: {}\r\n", "a".repeat(REQUEST_BYTES_MAX));
        assert!(is_for_hyper(&request("k", &long, EVENT)));
        assert!(is_for_hyper(&request("k", &"Accept: a\r\n".repeat(FIELDS_MAX), EVENT)));
    }

    #[test]
    fn a_request_may_come_in_any_pieces() {
        let whole = request("k", "User-Agent: a\r\n", EVENT);
        let head = whole.len() - EVENT.len();
        for count in 0..whole.len() {
            let looked = Request::look(&whole.as_bytes()[..count]);
            let Looked::Part(missing) = looked else { panic!("{count}: {looked:?}") };
            let expected = match count {
                0 => Missing::All,
                _ if count < head => Missing::Head,
                _ => Missing::Body(whole.len()),
            };
            assert_eq!(missing, expected, "{count}");
        }
        let Looked::Whole(request) = Request::look(whole.as_bytes()) else { panic!() };
        assert_eq!((request.count, request.body), (whole.len(), EVENT.as_bytes()));
        assert_eq!((request.bearer, request.content_type), ("k", Some("application/json")));
    }

    proptest! {
        #[test]
        fn no_bytes_are_taken_for_a_request_that_others_would_read_otherwise(
            place in 0_usize..400, count in 0_usize..40, put in "[ -~\r\n]{0,40}",
        ) {
            let mut bytes = request("k", "User-Agent: a\r\nAccept: b\r\n", EVENT);
            let place = place.min(bytes.len());
            bytes.replace_range(place..(place + count).min(bytes.len()), &put);
            request_head(bytes.as_bytes());
        }
    }

    /// A connection to a hub, and the key to it.
    struct Connected {
        client: DuplexStream,
        serving: JoinHandle<io::Result<Next>>,
        shutdown: CancellationToken,
        hub: Hub,
        key: String,
    }

    impl Connected {
        fn new() -> Self {
            let (key, mut entry) = ApiKey::generate();
            entry.write = vec!["**".to_owned()];
            let settings = AuthSettings { api_keys: vec![entry], ..AuthSettings::default() };
            let hub = Hub::builder().start();
            let authenticator = Arc::new(Authenticator::new(&settings).unwrap());
            let app = hub.service(authenticator, &HttpSettings::default()).unwrap().app.unwrap();
            let (client, server) = duplex(64 * 1024);
            let shutdown = CancellationToken::new();
            let ending = shutdown.clone();
            let serving = tokio::spawn(async move {
                let settings =
                    ServeSettings { head: LIMIT, idle: LIMIT * 7, ..ServeSettings::default() };
                let (_, mut io) = detect(server, LIMIT).await?;
                serve(&mut io, &app, &settings, &ending).await
            });
            Self { client, serving, shutdown, hub, key: key.expose().to_owned() }
        }

        fn request(&self) -> String {
            request(&self.key, "", EVENT)
        }

        async fn send(&mut self, text: &str) {
            self.client.write_all(text.as_bytes()).await.unwrap();
        }

        /// One answer: its head and its body.
        async fn answer(&mut self) -> (String, serde_json::Value) {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.client.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let length = head.split_once("content-length: ").unwrap().1;
            let mut body = vec![0; length.split_once("\r\n").unwrap().0.parse().unwrap()];
            self.client.read_exact(&mut body).await.unwrap();
            (head, serde_json::from_slice(&body).unwrap())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_on_one_connection_are_answered_in_their_order() {
        let mut connected = Connected::new();
        let wrong = request(&connected.key, "", "{}");
        let all = [connected.request(), wrong, connected.request()].concat();
        // Two and a half at once, the rest later.
        let (first, rest) = all.split_at(all.len() - 50);
        connected.send(first).await;
        for status in ["200 OK", "400 Bad Request"] {
            let (head, _) = connected.answer().await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
        }
        connected.send(rest).await;
        let (head, body) = connected.answer().await;
        assert_eq!(body["results"][0]["offset"], 2, "{body}");
        assert!(!head.contains("connection:"), "{head}");
        drop(connected.client);
        assert!(matches!(connected.serving.await.unwrap(), Ok(Next::End)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_answered_here_comes_out_as_it_went_in() {
        let other = "GET /v1/topics HTTP/1.1\r\nhost: a\r\n\r\n".to_owned();
        for other in [other, request("k", "Expect: 100-continue\r\n", "")] {
            let mut connected = Connected::new();
            let both = connected.request() + &other;
            connected.send(&both).await;
            connected.answer().await;
            let next = connected.serving.await.unwrap().unwrap();
            let Next::Hyper { bytes, .. } = next else { panic!("{next:?}") };
            assert_eq!(bytes, other);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_late_or_breaks_off_is_for_the_router() {
        for is_late in [true, false] {
            let mut connected = Connected::new();
            let request = connected.request();
            let part = &request[..request.len() - 1];
            let begun = Instant::now();
            connected.send(part).await;
            if !is_late {
                connected.client.shutdown().await.unwrap();
            }
            let next = connected.serving.await.unwrap().unwrap();
            let Next::Hyper { bytes, .. } = next else { panic!("{next:?}") };
            assert_eq!(bytes, part);
            assert_eq!(begun.elapsed(), if is_late { BODY_GRACE } else { Duration::ZERO });
        }
    }

    /// What is read of a head goes on with the time that it has begun.
    #[tokio::test(start_paused = true)]
    async fn a_head_that_turns_out_to_be_another_has_what_is_left_of_its_time() {
        let mut connected = Connected::new();
        connected.send("POST /v1/ev").await;
        let begun = Instant::now();
        tokio::time::sleep(LIMIT / 2).await;
        connected.send("erything HTTP/1.1\r\n").await;
        let next = connected.serving.await.unwrap().unwrap();
        let Next::Hyper { begun: Some(since), .. } = next else { panic!("{next:?}") };
        assert_eq!(since, begun);
    }

    /// Broken on purpose, it failed: with nothing read while a request is answered.
    #[tokio::test(start_paused = true)]
    async fn who_leaves_is_not_served_any_more() {
        let mut connected = Connected::new();
        let of = |tenant| Grant::of_patterns(Tenant::parse(tenant).unwrap(), "other", &[], &[]);
        let (quotas, hub) = (connected.hub.quotas(), &connected.hub);
        // All of it, and one beyond: the request waits for room.
        let _room = quotas.room(&of("a"), hub.settings().publish_waiting_bytes_max).await;
        let _more = quotas.room(&of("b"), 1).await;
        connected.send(&connected.request()).await;
        tokio::task::yield_now().await;
        let begun = Instant::now();
        connected.client.shutdown().await.unwrap();
        assert!(matches!(connected.serving.await.unwrap(), Ok(Next::End)));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte_and_the_time_between_is_longer() {
        let mut connected = Connected::new();
        let request = connected.request();
        for _ in 0..3 {
            connected.send(&request).await;
            connected.answer().await;
            tokio::time::sleep(LIMIT * 6).await;
        }
        let begun = Instant::now();
        connected.send(&request[..10]).await;
        tokio::time::sleep(LIMIT / 2).await;
        // More bytes do not buy more time.
        connected.send(&request[10..20]).await;
        let error = connected.serving.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, LIMIT));
        let mut connected = Connected::new();
        connected.send(&connected.request()).await;
        connected.answer().await;
        let begun = Instant::now();
        assert!(matches!(connected.serving.await.unwrap(), Ok(Next::End)));
        assert_eq!(begun.elapsed(), LIMIT * 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_a_quiet_connection_at_once_and_a_busy_one_behind_its_answer() {
        let mut quiet = Connected::new();
        quiet.send(&quiet.request()).await;
        quiet.answer().await;
        let begun = Instant::now();
        quiet.shutdown.cancel();
        assert!(matches!(quiet.serving.await.unwrap(), Ok(Next::End)));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let mut busy = Connected::new();
        let request = busy.request();
        busy.send(&request[..30]).await;
        tokio::task::yield_now().await;
        busy.shutdown.cancel();
        tokio::time::sleep(LIMIT / 2).await;
        busy.send(&request[30..]).await;
        let (head, _) = busy.answer().await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("\r\nconnection: close\r\n"));
        assert!(matches!(busy.serving.await.unwrap(), Ok(Next::End)));
        // A hub that leaves says so before its listener closes.
        let mut told = Connected::new();
        told.hub.withdraw();
        told.send(&told.request()).await;
        let (head, _) = told.answer().await;
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        assert!(matches!(told.serving.await.unwrap(), Ok(Next::End)));
    }
}
