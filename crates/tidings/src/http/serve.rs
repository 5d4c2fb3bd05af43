//! The accept loop: sockets in, requests out, and a deadline on everything a peer can delay.
//!
//! The rule: no peer holds anything without a time or a size. `axum::serve` leaves a half-sent head
//! open for ever and lets one stalled reader pin 4 MB of kernel memory (measured 2026-11), so the
//! loop is ours: hyper-util with timers, small socket buffers, and a write deadline below hyper,
//! where no body future can sleep through it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, Sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service as _;

use super::tls::Tls;
use crate::model::limits::HEAD_BYTES_MAX;

/// What hyper buffers of a connection's writes. A frame of 64 KiB still goes out, in parts.
const WRITE_BUFFER_BYTES: usize = 32 * 1024;
/// What the kernel buffers of a connection's writes: it doubles this for its own bookkeeping.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Streams of one HTTP/2 connection: a browser's tabs share one.
const H2_STREAMS_MAX: u32 = 64;
/// Bytes of one HTTP/2 header list.
const H2_HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// HTTP/2 streams that a peer may open and reset before it must wait (CVE-2023-44487).
const H2_RESETS_MAX: usize = 32;
/// How long accepting pauses when the process is out of descriptors: until others close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The deadlines and limits of sockets.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// From accepting a connection to its first byte.
    pub first_byte: Duration,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For a request's head, and for the next request of a kept-alive connection.
    pub head: Duration,
    /// How long a write may wait for a reader that takes nothing.
    pub write_stall: Duration,
    /// Open connections at once.
    pub connections_max: usize,
    /// How long connections have to end by themselves at shutdown.
    pub drain_window: Duration,
    /// Whether peers beyond loopback may speak cleartext to a port that has TLS.
    pub allow_cleartext: bool,
}

impl Default for ServeSettings {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            write_stall: Duration::from_secs(10),
            connections_max: 50_000,
            drain_window: Duration::from_secs(20),
            allow_cleartext: false,
        }
    }
}

/// Who is at the other end of a request's connection; in its extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Their address, as the socket tells it.
    pub address: SocketAddr,
    /// Whether the connection is encrypted.
    pub is_tls: bool,
}

/// Serves until `shutdown`, then lets connections end within the drain window, then ends them.
///
/// One port speaks HTTP/1.1, HTTP/2 with prior knowledge, and, given `tls`, both over TLS by ALPN:
/// the first byte tells them apart. With TLS, cleartext is for loopback peers only (health checks,
/// sidecars) unless `allow_cleartext` says otherwise, so that nobody sends a credential in the
/// clear by mistake.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    settings: ServeSettings,
    tls: Option<Arc<Tls>>,
    shutdown: CancellationToken,
) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(settings.connections_max));
    let ended = CancellationToken::new();
    let server = Arc::new(Server {
        builder: builder(&settings),
        app,
        settings,
        tls,
        shutdown: shutdown.clone(),
    });
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory, or a peer that was faster: the next may work.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            connections.spawn(ended.clone().run_until_cancelled_owned(refuse(stream)));
            continue;
        };
        let connection = Arc::clone(&server).connection(stream, address);
        let ended = ended.clone();
        connections.spawn(async move {
            ended.run_until_cancelled_owned(connection).await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    if timeout(server.settings.drain_window, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "connections are ended at the drain window's end");
        ended.cancel();
        connections.wait().await;
    }
}

/// Says that there is no place, in the form that every client and proxy understands.
async fn refuse(mut stream: TcpStream) {
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\
                   Connection: close\r\n\r\n";
    // A peer that does not take it loses nothing by our leaving.
    let _ = timeout(Duration::from_secs(1), stream.write_all(answer)).await;
}

fn builder(settings: &ServeSettings) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.head)
        .max_buf_size(WRITE_BUFFER_BYTES.max(HEAD_BYTES_MAX))
        .keep_alive(true)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(H2_HEADERS_BYTES_MAX)
        .max_pending_accept_reset_streams(H2_RESETS_MAX)
        .max_local_error_reset_streams(1024)
        .max_send_buf_size(WRITE_BUFFER_BYTES);
    builder
}

struct Server {
    builder: auto::Builder<TokioExecutor>,
    app: Router,
    settings: ServeSettings,
    tls: Option<Arc<Tls>>,
    shutdown: CancellationToken,
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, address: SocketAddr) {
        if let Err(error) = self.try_connection(stream, address).await {
            tracing::debug!(%address, error, "connection ended");
        }
    }

    async fn try_connection(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        tune(&stream)?;
        let mut first = [0];
        let peeked = timeout(self.settings.first_byte, stream.peek(&mut first)).await??;
        if peeked == 0 {
            return Ok(());
        }
        // A TLS record of the type handshake (RFC 8446 §5.1); no HTTP request begins so.
        let is_tls = first == [22];
        let stream = Stalling::new(stream, self.settings.write_stall);
        match &self.tls {
            Some(tls) if is_tls => {
                let handshake = tls.acceptor().accept(stream);
                let stream = timeout(self.settings.handshake, handshake).await??;
                self.http(stream, Peer { address, is_tls }).await
            }
            Some(_) if !self.settings.allow_cleartext && !is_loopback(address.ip()) => {
                let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\
                               Content-Length: 26\r\nConnection: close\r\n\r\n\
                               this port speaks https only";
                let mut stream = stream;
                Ok(stream.write_all(answer).await?)
            }
            None if is_tls => Err("a TLS handshake on a port without TLS".into()),
            _ => self.http(stream, Peer { address, is_tls }).await,
        }
    }

    async fn http<S>(
        &self,
        stream: S,
        peer: Peer,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let app = self.app.clone();
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            app.clone().call(request.map(Body::new))
        });
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return result,
            () = self.shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Small buffers, so that a reader who stops costs little, and prompt discovery of dead peers.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15));
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))?;
    Ok(())
}

/// A stream whose writes fail if the peer takes nothing for so long.
///
/// It is below hyper on purpose: hyper polls the socket, not the body, while the peer does not read.
#[derive(Debug)]
struct Stalling {
    stream: TcpStream,
    limit: Duration,
    /// Running since a write first had to wait; made when that first happens.
    deadline: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl Stalling {
    const fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, deadline: None, is_waiting: false }
    }

    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.is_waiting = false;
            return polled;
        }
        let end = Instant::now() + self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if !std::mem::replace(&mut self.is_waiting, true) {
            deadline.as_mut().reset(end);
        }
        ready!(deadline.as_mut().poll(context));
        let detail = "the peer takes nothing";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, detail)))
    }
}

impl AsyncRead for Stalling {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stalling {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watch(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, polled)
    }
}
