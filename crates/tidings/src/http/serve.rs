//! The accept loop: sockets in, places given out, an end to everything at shutdown.
//!
//! The rule: no peer holds anything without a time or a size. `axum::serve` leaves a half-sent head
//! open for ever and lets one stalled reader pin 4 MB of kernel memory (measured 2026-11), so the
//! loop is ours; what happens on one connection is in `transport.rs`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{proxy::is_trusted, router::Service, tls::Tls, transport::Transport};
use crate::{
    error::{ErrorCode, Problem},
    metrics::{LimitLabel, LimitsHit},
    model::limits,
    quota::{Buckets, Place, Places, counted_as},
    settings::Rate,
};

/// What the kernel buffers of a connection's writes and reads: it doubles both for its own
/// bookkeeping. Left alone, it lets a stalled reader pin 4 MB, and a body that waits 6 MB.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
const RECEIVE_BUFFER_BYTES: usize = 128 * 1024;
/// What of that may not be on its way yet: the rest is better kept here, where it can be dropped.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 16 * 1024;
/// When a quiet connection is first asked whether its peer is there, and how often then. Three
/// unanswered ones end it.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long what was sent may stay without an acknowledgement.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// How long accepting pauses when the process is out of descriptors: until others close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections beyond the limits that are told so at the same time; more are closed in silence.
const REFUSALS_MAX: usize = 128;
/// How long telling one of them may take.
const REFUSAL_MAX: Duration = Duration::from_secs(5);
/// When a refused client may come back.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// The deadlines and limits of sockets.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// From accepting a connection until its first bytes say what it speaks.
    pub first_byte: Duration,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For a request's head, from its first byte.
    pub head: Duration,
    /// Without a request on a connection. Longer than the 60 s of most proxies, who would send a
    /// request into the end of their connection otherwise.
    pub idle: Duration,
    /// How long a write may wait for a reader that takes nothing.
    pub write_stall: Duration,
    /// How often a quiet HTTP/2 connection is asked whether it is still there.
    pub h2_ping: Duration,
    /// How long it has to answer.
    pub h2_pong: Duration,
    /// Open connections at once.
    pub connections_max: usize,
    /// Open connections of one address (of one /64 for IPv6). Loopback and trusted proxies have no
    /// such limit: behind them, their clients' streams are counted.
    pub connections_per_address_max: usize,
    /// Connections that one address opens. Loopback and trusted proxies have no such limit.
    pub connect_rate: Rate,
    /// Networks of the reverse proxies in front.
    pub trusted_proxies: Vec<IpNet>,
    /// How long connections have to end by themselves at shutdown.
    pub drain_window: Duration,
    /// Whether peers beyond loopback and the trusted proxies may speak cleartext, where there are
    /// any of those or TLS.
    pub allow_cleartext: bool,
}

impl Default for ServeSettings {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            write_stall: Duration::from_secs(10),
            h2_ping: Duration::from_secs(20),
            h2_pong: Duration::from_secs(10),
            connections_max: limits::CONNECTIONS_MAX,
            connections_per_address_max: limits::ADDRESS_CONNECTIONS_MAX,
            connect_rate: Rate { per_second: 50, burst: 400 },
            trusted_proxies: Vec::new(),
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
/// the first bytes tell them apart. With TLS, cleartext is for loopback peers only (health checks,
/// sidecars) unless `allow_cleartext` says otherwise, so that nobody sends a credential in the
/// clear by mistake. The certificate's files are watched meanwhile. Connections that are refused
/// are counted in `limits_hit`; they may still ask for `/health/…`.
///
/// A stream of events ends by itself only if its hub drains: cancel
/// [`Hub::draining`](crate::Hub::draining) together with `shutdown`, and call
/// [`Hub::shutdown`](crate::Hub::shutdown) when this returns.
pub async fn serve(
    listener: TcpListener,
    service: impl Into<Service>,
    settings: ServeSettings,
    tls: Option<Arc<Tls>>,
    limits_hit: LimitsHit,
    shutdown: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let ended = CancellationToken::new();
    let _watch = tls.clone().map(|tls| AbortOnDropHandle::new(tokio::spawn(tls.watch())));
    let doors = Doors::new(&settings, limits_hit);
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let drain_window = settings.drain_window;
    let transport = Arc::new(Transport::new(
        service.into(),
        settings,
        tls,
        shutdown.clone(),
        tasks.clone(),
        ended.clone(),
    ));
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
        if let Err(error) = tune(&stream) {
            tracing::debug!(%address, %error, "connection was gone before it began");
            continue;
        }
        let transport = Arc::clone(&transport);
        match doors.enter(address.ip()) {
            Ok(place) => {
                // In a box: what carries it into its task would hold its size three times
                // (measured 2026-11: 3 KB more for each connection).
                let serving = Box::pin(async move {
                    transport.serve(stream, address).await;
                    drop(place);
                });
                tasks.spawn(ended.clone().run_until_cancelled_owned(serving));
            }
            Err(problem) => {
                let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() else { continue };
                let refusing = Box::pin(async move {
                    let _ = timeout(REFUSAL_MAX, transport.refuse(stream, address, problem)).await;
                    drop(permit);
                });
                tasks.spawn(ended.clone().run_until_cancelled_owned(refusing));
            }
        }
    }
    drop(listener);
    tasks.close();
    if timeout(drain_window, tasks.wait()).await.is_err() {
        tracing::warn!(open = tasks.len(), "connections are ended at the drain window's end");
        ended.cancel();
        tasks.wait().await;
    }
}

/// Small buffers, so that a reader who stops costs little, and prompt discovery of dead peers.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    }
    Ok(())
}

/// Who may come in: so many in all, so many and so fast of one address.
struct Doors {
    all: Arc<Semaphore>,
    of_address: Arc<Places<IpAddr>>,
    connect_rate: Buckets<IpAddr>,
    trusted_proxies: Vec<IpNet>,
    limits_hit: LimitsHit,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
struct Entered {
    _of_all: OwnedSemaphorePermit,
    _of_address: Option<Place<IpAddr>>,
}

impl Doors {
    fn new(settings: &ServeSettings, limits_hit: LimitsHit) -> Self {
        Self {
            all: Arc::new(Semaphore::new(settings.connections_max)),
            of_address: Places::new(settings.connections_per_address_max),
            connect_rate: Buckets::new(settings.connect_rate),
            trusted_proxies: settings.trusted_proxies.clone(),
            limits_hit,
        }
    }

    fn enter(&self, peer: IpAddr) -> Result<Entered, Problem> {
        let address = counted_as(peer).filter(|_| !is_trusted(&self.trusted_proxies, peer));
        if let Some(address) = address {
            self.connect_rate.take(&address, 1, Instant::now()).map_err(|after| {
                let detail = "this address connects faster than this limit allows";
                self.refused("address_connect_rate", ErrorCode::LimitReached, detail, after)
            })?;
        }
        let of_all = Arc::clone(&self.all).try_acquire_owned().map_err(|_| {
            let detail = "the hub has no place for more connections";
            self.refused("connections", ErrorCode::Unavailable, detail, REFUSED_FOR)
        })?;
        let of_address = match address {
            Some(address) => Some(self.of_address.take(address).ok_or_else(|| {
                let detail = "there are too many connections from this address";
                self.refused("address_connections", ErrorCode::LimitReached, detail, REFUSED_FOR)
            })?),
            None => None,
        };
        Ok(Entered { _of_all: of_all, _of_address: of_address })
    }

    fn refused(
        &self,
        limit: &'static str,
        code: ErrorCode,
        detail: &str,
        after: Duration,
    ) -> Problem {
        self.limits_hit.get_or_create(&LimitLabel { limit }).inc();
        Problem::new(code, detail).after(after).limit(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doors(change: impl FnOnce(&mut ServeSettings)) -> Doors {
        let mut settings = ServeSettings::default();
        change(&mut settings);
        Doors::new(&settings, LimitsHit::default())
    }

    fn enter(doors: &Doors, address: &str) -> Result<Entered, Option<&'static str>> {
        doors.enter(address.parse().unwrap()).map_err(|problem| problem.limit)
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_and_all_together_have_their_limits_and_places_come_back() {
        let doors = doors(|settings| {
            settings.connections_max = 3;
            settings.connections_per_address_max = 2;
        });
        let first = enter(&doors, "192.0.2.1").unwrap();
        let _second = enter(&doors, "::ffff:192.0.2.1").unwrap();
        assert_eq!(enter(&doors, "192.0.2.1").unwrap_err(), Some("address_connections"));
        drop(first);
        let _third = enter(&doors, "192.0.2.1").unwrap();
        let _fourth = enter(&doors, "192.0.2.2").unwrap();
        assert_eq!(enter(&doors, "192.0.2.3").unwrap_err(), Some("connections"));
        let hit = |limit| doors.limits_hit.get_or_create(&LimitLabel { limit }).get();
        assert_eq!([hit("address_connections"), hit("connections")], [1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_site_is_one_peer_and_loopback_and_trusted_proxies_are_not_counted() {
        let doors = doors(|settings| {
            settings.connections_per_address_max = 1;
            settings.connect_rate = Rate { per_second: 1, burst: 1 };
            settings.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
        });
        let _first = enter(&doors, "2001:db8:1:2::1").unwrap();
        assert!(enter(&doors, "2001:db8:1:2:ffff::9").is_err());
        let _other = enter(&doors, "2001:db8:1:3::1").unwrap();
        for uncounted in ["127.0.0.1", "::1", "10.1.2.3", "::ffff:10.1.2.3"] {
            for _ in 0..3 {
                std::mem::forget(enter(&doors, uncounted).unwrap());
            }
        }
        assert_eq!(doors.of_address.holders(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_connects_too_fast_is_told_when_to_come_back() {
        let doors = doors(|settings| settings.connect_rate = Rate { per_second: 2, burst: 3 });
        let connect = || doors.enter("192.0.2.1".parse().unwrap());
        for _ in 0..3 {
            connect().unwrap();
        }
        let problem = connect().unwrap_err();
        assert_eq!(problem.limit, Some("address_connect_rate"));
        tokio::time::advance(problem.retry_after.unwrap()).await;
        connect().unwrap();
    }

    /// What the kernel was told, asked of the kernel: an option that is passed wrongly is off.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_socket_has_small_buffers_and_finds_dead_peers() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        tune(&stream).unwrap();
        let socket = socket2::SockRef::from(&stream);
        assert_eq!(socket.send_buffer_size().unwrap(), 2 * SEND_BUFFER_BYTES);
        assert_eq!(socket.recv_buffer_size().unwrap(), 2 * RECEIVE_BUFFER_BYTES);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_BYTES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED_MAX));
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
    }
}
