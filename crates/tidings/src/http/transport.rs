//! One connection: what it speaks, TLS, and HTTP on it until it ends.
//!
//! The rule: whatever a client does or leaves undone, the connection ends within a time that is
//! written here or in [`ServeSettings`], and a panic ends one request and no more.

use std::{
    convert::Infallible,
    error::Error,
    future::{Future as _, poll_fn},
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Method, Version, header};
use http_body::{Body as _, Frame};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service as _;

use super::{
    chunks::{self, LongAnswer},
    direct::{self, Next},
    follow,
    proxy::is_trusted,
    rest::{Linger, linger},
    router::Service,
    serve::{Peer, ServeSettings},
    socket::{Protocol, Reads, Requests, Stalling, detect},
    tls::Tls,
};
use crate::{
    error::{ErrorCode, Problem},
    model::limits::HEAD_BYTES_MAX,
};

/// What hyper buffers of one HTTP/2 stream's writes.
const H2_SEND_BUFFER_BYTES: usize = 32 * 1024;
/// What a client may send on one HTTP/2 stream, and on all of a connection's, before it waits.
const H2_STREAM_WINDOW_BYTES: u32 = 128 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 512 * 1024;
/// Streams of one HTTP/2 connection: a browser's tabs share one.
const H2_STREAMS_MAX: u32 = 64;
/// Bytes of one HTTP/2 header list.
const H2_HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// HTTP/2 streams that a peer may open and reset before it must wait (CVE-2023-44487).
const H2_RESETS_MAX: usize = 32;
/// Resets that the hub sends because of a peer's mistakes before it ends the connection.
const H2_LOCAL_RESETS_MAX: usize = 1024;
/// Bytes handed to an HTTP/2 stream at once, so that a slow reader is told from one that stopped.
const H2_PIECE_BYTES: usize = 16 * 1024;

type Failure = Box<dyn Error + Send + Sync>;

/// What all connections of a listener share.
pub(super) struct Transport {
    http1: http1::Builder,
    http2: auto::Builder<Streams>,
    service: Service,
    settings: ServeSettings,
    tls: Option<Arc<Tls>>,
    shutdown: CancellationToken,
}

impl Transport {
    pub(super) fn new(
        service: Service,
        settings: ServeSettings,
        tls: Option<Arc<Tls>>,
        shutdown: CancellationToken,
        tasks: TaskTracker,
        ended: CancellationToken,
    ) -> Self {
        let streams = Streams { tasks, ended, stall_max: settings.write_stall };
        let (http1, http2) = (http1(&settings), http2(&settings, streams));
        Self { http1, http2, service, settings, tls, shutdown }
    }

    /// Serves a connection until it ends.
    pub(super) async fn serve(&self, stream: TcpStream, address: SocketAddr) {
        let ended = AssertUnwindSafe(self.serve_all(stream, address)).catch_unwind();
        match ended.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%address, error, "connection ended"),
            Err(_) => tracing::error!(%address, "connection ended by a panic"),
        }
    }

    /// Requests, and between them streams of events. What requests take is made anew for each turn:
    /// a stream that waits for hours holds none of it (measured 2026-11: 26 KB of futures, 16 KB of
    /// hyper's buffers).
    async fn serve_all(&self, stream: TcpStream, address: SocketAddr) -> Result<(), Failure> {
        let line = Box::pin(self.connection(stream, address, &self.service)).await?;
        // Each in a box of its own size: what is held here is held for as long as it goes on.
        match line {
            None => Ok(()),
            Some(Line::Plain(left, peer)) => Box::pin(self.streams(left, peer)).await,
            Some(Line::Tls(left, peer)) => Box::pin(self.streams(*left, peer)).await,
        }
    }

    /// Writes a stream of events, and goes on with the requests behind it.
    async fn streams<S>(&self, left: Left<S>, peer: Peer) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Left { mut io, mut body, mut is_last } = left;
        loop {
            let Some(early) = chunks::write(&mut io, body).await? else { return Ok(()) };
            if is_last || self.shutdown.is_cancelled() {
                return Ok(io.shutdown().await?);
            }
            match Box::pin(self.http1(io.reread(&early), peer, &self.service)).await? {
                Some(next) => Left { io, body, is_last } = next,
                None => return Ok(()),
            }
        }
    }

    /// Answers whatever a connection asks for with this problem.
    pub(super) async fn refuse(&self, stream: TcpStream, address: SocketAddr, problem: Problem) {
        let service = refusing(problem, Some(self.service.router.clone())).into();
        if let Err(error) = self.connection(stream, address, &service).await {
            tracing::debug!(%address, error, "refused connection ended");
        }
    }

    /// Serves requests until the connection ends, or a stream of events is all it is to carry.
    async fn connection(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        service: &Service,
    ) -> Result<Option<Line>, Failure> {
        // A reset: after an ordinary end the kernel would keep what was not sent for half a minute.
        let reset = |stream: &TcpStream| drop(stream.set_zero_linger());
        let stream = Stalling::new(stream, self.settings.write_stall, reset);
        let detected = self.unless_ending(detect(stream, self.settings.first_byte)).await?;
        let (protocol, stream) = match detected {
            Ok(detected) => detected,
            // Looks whether the port is open, as health checks and proxies do.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let is_tls = protocol == Protocol::Tls;
        let peer = Peer { address, is_tls };
        match &self.tls {
            Some(tls) if is_tls => {
                let handshake = timeout(self.settings.handshake, tls.acceptor().accept(stream));
                let stream = self.unless_ending(handshake).await???;
                let detected = detect(stream, self.settings.first_byte);
                let (protocol, stream) = self.unless_ending(detected).await??;
                let left = self.http(protocol, stream, peer, service).await?;
                Ok(left.map(|left| Line::Tls(Box::new(left), peer)))
            }
            None if is_tls => Err("a TLS handshake on a port without TLS".into()),
            _ => {
                let refusing = self.refusal_of_cleartext(address).map(|detail| {
                    refusing(Problem::new(ErrorCode::Malformed, detail), None).into()
                });
                let service = refusing.as_ref().unwrap_or(service);
                let left = self.http(protocol, stream, peer, service).await?;
                Ok(left.map(|left| Line::Plain(left, peer)))
            }
        }
    }

    /// Why this peer may not speak cleartext: who may are loopback's, the proxies that were named,
    /// and all if nothing else was said.
    fn refusal_of_cleartext(&self, address: SocketAddr) -> Option<&'static str> {
        let ServeSettings { allow_cleartext, trusted_proxies, .. } = &self.settings;
        if *allow_cleartext || is_local(address) || is_trusted(trusted_proxies, address.ip()) {
            return None;
        }
        let only_proxies = "this port is for the proxy in front";
        match &self.tls {
            Some(_) => Some("this port speaks https only"),
            None => (!trusted_proxies.is_empty()).then_some(only_proxies),
        }
    }

    /// What comes before the first request does not hold up a shutdown.
    async fn unless_ending<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let done = self.shutdown.run_until_cancelled(work).await;
        done.ok_or_else(|| "the server is shutting down".into())
    }

    async fn http<S>(
        &self,
        protocol: Protocol,
        stream: Reads<S>,
        peer: Peer,
        service: &Service,
    ) -> Result<Option<Left<S>>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if protocol == Protocol::Http2 {
            return self.http2(stream, peer, &service.router).await.map(|()| None);
        }
        self.http1(stream, peer, service).await
    }

    async fn http2<S>(&self, stream: Reads<S>, peer: Peer, app: &Router) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let app = app.clone();
        let streams = OpenStreams::default();
        let idle = streams.idle_for(self.settings.idle);
        let service = service_fn(move |request| {
            let open = streams.open();
            let answer = answer(&app, peer, request);
            async move {
                let noted = |body| Noted { body: heeded(body), _note: open };
                answer.await.map(|response| response.map(noted))
            }
        });
        let connection = self.http2.serve_connection(TokioIo::new(stream), service);
        self.drive(connection, idle).await
    }

    /// Serves requests until the connection ends, or one is answered by a stream of events.
    async fn http1<S>(
        &self,
        mut stream: Reads<S>,
        peer: Peer,
        service: &Service,
    ) -> Result<Option<Left<S>>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut begun = None;
        if let Some(app) = &service.app {
            // In a box: a reader's connection is soon done with it.
            let publishing = direct::serve(&mut stream, app, &self.settings, &self.shutdown);
            match Box::pin(publishing).await? {
                Next::End => return Ok(None),
                Next::Hyper { bytes, begun: since } => {
                    (stream, begun) = (stream.reread(&bytes), since);
                }
            }
        }
        self.by_hyper(stream, begun, peer, &service.router).await
    }

    /// Serves requests by hyper; a part of the first may have come at this moment.
    async fn by_hyper<S>(
        &self,
        stream: Reads<S>,
        begun: Option<Instant>,
        peer: Peer,
        app: &Router,
    ) -> Result<Option<Left<S>>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let app = app.clone();
        let requests = Requests::new();
        let is_last = Arc::new(AtomicBool::new(false));
        let lingers = Arc::new(AtomicBool::new(false));
        let stream = stream.hurried(requests.clone(), self.settings.head, begun);
        let service = service_fn({
            let (requests, is_last) = (requests.clone(), Arc::clone(&is_last));
            let lingers = Arc::clone(&lingers);
            move |request: hyper::Request<Incoming>| {
                let answering = requests.answering();
                let (requests, is_last) = (requests.clone(), Arc::clone(&is_last));
                let lingers = Arc::clone(&lingers);
                // A body that is not read would be taken for the next request.
                let may_leave = request.version() == Version::HTTP_11
                    && request.method() == Method::GET
                    && request.body().is_end_stream();
                let closes = closes(request.headers());
                let answer = answer(&app, peer, request);
                async move {
                    let mut response = answer.await?;
                    let is_left = response.extensions_mut().remove::<Linger>().is_some();
                    lingers.store(is_left, Ordering::Relaxed);
                    let is_long = response.extensions_mut().remove::<LongAnswer>().is_some();
                    if is_long && may_leave {
                        let closes = closes || self::closes(response.headers());
                        is_last.store(closes, Ordering::Relaxed);
                        response = response.map(|body| requests.leave(body));
                    }
                    let noted = |body| Noted { body, _note: answering };
                    Ok::<_, Infallible>(response.map(noted))
                }
            }
        });
        // hyper has a timer of its own between the requests of HTTP/1.
        let mut connection = self.http1.serve_connection(TokioIo::new(stream), service);
        let mut shutdown = pin!(self.shutdown.cancelled());
        let mut is_ending = false;
        let left = poll_fn(|context| {
            loop {
                if let Poll::Ready(ended) = Pin::new(&mut connection).poll(context) {
                    return Poll::Ready(ended.map(|()| None));
                }
                // Behind that, so that what has come already is answered: told to end before it has
                // read anything, hyper would end at once.
                if is_ending || shutdown.as_mut().poll(context).is_pending() {
                    break;
                }
                is_ending = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            requests.left().map_or(Poll::Pending, |body| Poll::Ready(Ok(Some(body))))
        });
        let left = left.await;
        if lingers.load(Ordering::Relaxed) {
            linger(connection.into_parts().io.into_inner()).await;
            left?;
            return Ok(None);
        }
        let Some(body) = left? else { return Ok(None) };
        let parts = connection.into_parts();
        let io = parts.io.into_inner().without_hyper(&parts.read_buf);
        Ok(Some(Left { io, body, is_last: is_last.load(Ordering::Relaxed) }))
    }

    async fn drive<I, S, B>(
        &self,
        connection: auto::Connection<'_, I, S, Streams>,
        idle: impl Future<Output = ()>,
    ) -> Result<(), Failure>
    where
        S: hyper::service::Service<
                hyper::Request<Incoming>,
                Response = hyper::Response<B>,
                Error = Infallible,
            >,
        S::Future: Send + 'static,
        I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
        B: http_body::Body<Data: Send, Error: Into<Failure>> + Send + 'static,
    {
        tokio::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return result,
            () = self.shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
            () = idle => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

/// A connection that hyper has left: its head is written, the body is to follow.
struct Left<S> {
    io: Reads<S>,
    body: Body,
    /// No request may follow.
    is_last: bool,
}

/// The same, over what it goes.
enum Line {
    Plain(Left<Stalling<TcpStream>>, Peer),
    Tls(Box<Left<TlsStream<Reads<Stalling<TcpStream>>>>>, Peer),
}

fn answer(
    app: &Router,
    peer: Peer,
    mut request: hyper::Request<Incoming>,
) -> impl Future<Output = Result<Response, Infallible>> + use<> {
    request.extensions_mut().insert(peer);
    app.clone().call(request.map(Body::new))
}

/// Whether a head says that its connection ends with it (RFC 9112 §9.6).
fn closes(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case("close"))
}

fn http1(settings: &ServeSettings) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // A head has 100 fields at most, which is hyper's default: to say so would have it clear the room
    // for them, 5 KB, for every request.
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(settings.idle)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(true)
        // A client that closed its side has left: its stream of events ends.
        .half_close(false);
    builder
}

fn http2(settings: &ServeSettings, streams: Streams) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(streams);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(settings.h2_ping)
        .keep_alive_timeout(settings.h2_pong)
        .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(H2_HEADERS_BYTES_MAX)
        .max_pending_accept_reset_streams(H2_RESETS_MAX)
        .max_local_error_reset_streams(H2_LOCAL_RESETS_MAX)
        .max_send_buf_size(H2_SEND_BUFFER_BYTES);
    builder.http2_only()
}

fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Answers every request with a problem, and every connection with its end. Questions after the
/// health go to `healthy`: a crowd at the door is no reason to take the hub for dead.
fn refusing(problem: Problem, healthy: Option<Router>) -> Router {
    let refuse = async move |request: Request| {
        let version = request.version();
        let mut response = match healthy.clone() {
            Some(mut app) if request.uri().path().starts_with("/health/") => {
                app.call(request).await.unwrap_or_else(|never| match never {})
            }
            _ => follow::refusal(request.headers(), &problem, None),
        };
        if version <= Version::HTTP_11 {
            let close = http::HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    };
    let id = axum::middleware::from_fn(super::problem::identify);
    Router::new().fallback(refuse).layer(id)
}

/// Runs the streams of HTTP/2 connections, each until it ends, panics or is not read any more.
#[derive(Clone)]
struct Streams {
    tasks: TaskTracker,
    ended: CancellationToken,
    stall_max: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let Self { ended, stall_max, .. } = self.clone();
        self.tasks.spawn(async move {
            let reader = Arc::new(Reader::default());
            let stream = READER.scope(Arc::clone(&reader), stream);
            tokio::select! {
                () = ended.cancelled() => {}
                done = AssertUnwindSafe(stream).catch_unwind() => {
                    if done.is_err() {
                        tracing::error!("HTTP/2 stream ended by a panic");
                    }
                }
                // Dropping the stream resets it. The connection's other streams go on.
                () = reader.stalled(stall_max) => tracing::debug!("HTTP/2 stream is not read"),
            }
        });
    }
}

tokio::task_local! {
    /// The reader of the HTTP/2 stream that is being served. HTTP/1 has the socket's own deadline;
    /// on HTTP/2 one stream can stop being read while the socket goes on.
    static READER: Arc<Reader>;
}

/// Whether a stream's reader takes what it is given.
#[derive(Debug, Default)]
struct Reader {
    /// Since when a piece is given and the next one not asked for.
    given_at: Mutex<Option<Instant>>,
}

impl Reader {
    fn set(&self, given_at: Option<Instant>) {
        *self.given_at.lock().unwrap_or_else(PoisonError::into_inner) = given_at;
    }

    /// Waits until nothing was asked for so long, or up to twice as long.
    async fn stalled(&self, stall_max: Duration) {
        loop {
            let given_at = *self.given_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if given_at.is_some_and(|at| at + stall_max <= now) {
                return;
            }
            sleep_until(given_at.unwrap_or(now) + stall_max).await;
        }
    }
}

/// Notes when the body's reader takes pieces, on HTTP/2.
fn heeded(body: Body) -> Body {
    match READER.try_with(Arc::clone) {
        Ok(reader) => Body::new(Heeded { body, rest: Bytes::new(), reader }),
        Err(_) => body,
    }
}

/// The streams of an HTTP/2 connection that are being answered.
#[derive(Clone)]
struct OpenStreams(watch::Sender<usize>);

/// One of them, until it is dropped.
struct OpenStream(OpenStreams);

impl Default for OpenStreams {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl OpenStreams {
    fn open(&self) -> OpenStream {
        self.0.send_modify(|count| *count += 1);
        OpenStream(self.clone())
    }

    /// Waits until there was none for so long. hyper has no such timer for HTTP/2, where a client
    /// that answers pings and asks for nothing would stay for ever.
    fn idle_for(&self, idle: Duration) -> impl Future<Output = ()> + use<> {
        let mut count = self.0.subscribe();
        async move {
            // The sender lives as long as the connection that waits here.
            while count.wait_for(|count| *count == 0).await.is_ok() {
                tokio::select! {
                    () = sleep(idle) => return,
                    _ = count.wait_for(|count| *count > 0) => {}
                }
            }
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// Holds the note that a request is being answered until its answer has ended.
struct Noted<N> {
    body: Body,
    _note: N,
}

impl<N: Unpin> http_body::Body for Noted<N> {
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

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

struct Heeded {
    body: Body,
    /// What is left of a frame that is handed on in pieces.
    rest: Bytes,
    reader: Arc<Reader>,
}

impl Heeded {
    fn piece(&mut self) -> Frame<Bytes> {
        let count = self.rest.len().min(H2_PIECE_BYTES);
        self.reader.set(Some(Instant::now()));
        Frame::data(self.rest.split_to(count))
    }
}

impl http_body::Body for Heeded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(self.piece())));
        }
        self.reader.set(None);
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let Poll::Ready(Some(Ok(frame))) = polled else { return polled };
        match frame.into_data() {
            Ok(data) => {
                self.rest = data;
                Poll::Ready(Some(Ok(self.piece())))
            }
            Err(trailers) => Poll::Ready(Some(Ok(trailers))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let left = self.rest.len() as u64;
        let hint = self.body.size_hint();
        let mut out = http_body::SizeHint::new();
        out.set_lower(hint.lower() + left);
        if let Some(upper) = hint.upper() {
            out.set_upper(upper + left);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use rcgen::generate_simple_self_signed;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;
    use crate::{
        Hub,
        auth::{ApiKey, AuthSettings, Authenticator},
        http::HttpSettings,
    };

    /// What a peer of this address is answered on a port with TLS.
    async fn cleartext_answer(address: &str, allow_cleartext: bool) -> String {
        let directory = tempfile::tempdir().unwrap();
        let pair = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let paths = ["cert.pem", "key.pem"].map(|name| directory.path().join(name));
        std::fs::write(&paths[0], pair.cert.pem()).unwrap();
        std::fs::write(&paths[1], pair.signing_key.serialize_pem()).unwrap();
        let tls = Arc::new(Tls::open(&paths[0], &paths[1]).unwrap());
        let settings = ServeSettings { allow_cleartext, ..ServeSettings::default() };
        let app = Router::new().route("/", get(async || "served"));
        let ended = CancellationToken::new();
        let transport = Transport::new(
            app.into(),
            settings,
            Some(tls),
            ended.clone(),
            TaskTracker::new(),
            ended,
        );
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        transport.serve(stream, address.parse().unwrap()).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// A connection to a hub whose router has no routes.
    async fn connected(shutdown: &CancellationToken) -> (TcpStream, JoinHandle<()>, String) {
        let (key, mut entry) = ApiKey::generate();
        entry.write = vec!["**".to_owned()];
        let settings = AuthSettings { api_keys: vec![entry], ..AuthSettings::default() };
        let authenticator = Arc::new(Authenticator::new(&settings).unwrap());
        let service = Hub::builder().start().service(authenticator, &HttpSettings::default());
        let service = Service { router: Router::new(), ..service.unwrap() };
        let transport = Transport::new(
            service,
            ServeSettings::default(),
            None,
            shutdown.clone(),
            TaskTracker::new(),
            CancellationToken::new(),
        );
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, address) = listener.accept().await.unwrap();
        let serving = tokio::spawn(async move { transport.serve(stream, address).await });
        (client, serving, key.expose().to_owned())
    }

    /// Broken on purpose, it failed: with everything given to hyper.
    #[tokio::test]
    async fn a_plain_publish_needs_no_router_and_what_follows_has_one() {
        let (mut client, serving, key) = connected(&CancellationToken::new()).await;
        let event = r#"{"topic":"a","type":"t"}"#;
        let publish = format!(
            "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{event}",
            event.len()
        );
        let other = publish.replacen("host", "connection: close\r\nhost", 1);
        let all = [&*publish, &publish, &other].concat();
        client.write_all(all.as_bytes()).await.unwrap();
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        let statuses: Vec<&str> =
            answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(statuses, ["200", "200", "404"], "{answers}");
        serving.await.unwrap();
    }

    /// Broken on purpose, it failed: with hyper told to end before it had read anything.
    #[tokio::test]
    async fn what_had_begun_when_the_server_ends_is_answered() {
        let shutdown = CancellationToken::new();
        let (mut client, serving, _) = connected(&shutdown).await;
        client.write_all(b"POST /v1/events HTTP/1.1\r\nhost: a\r\n").await.unwrap();
        // So that this much is read: the test's thread is the server's.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
        client.write_all(b"x-whatever: 1\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn cleartext_beside_tls_is_for_loopback_unless_allowed() {
        for local in ["127.0.0.1:9", "127.1.2.3:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            assert!(cleartext_answer(local, false).await.ends_with("served"), "{local}");
        }
        for remote in ["192.0.2.1:9", "10.0.0.1:9", "[2001:db8::1]:9", "[::ffff:192.0.2.1]:9"] {
            let answer = cleartext_answer(remote, false).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{remote}: {answer}");
            assert!(answer.contains("this port speaks https only"), "{remote}: {answer}");
            assert!(cleartext_answer(remote, true).await.ends_with("served"), "{remote}");
        }
    }
}
