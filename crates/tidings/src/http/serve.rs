//! The accept loop: sockets in, places given out, an end to everything at shutdown.
//!
//! The rule: no peer holds anything without a time or a size. `axum::serve` leaves a half-sent head
//! open for ever and lets one stalled reader pin 4 MB of kernel memory (measured 2026-11), so the
//! loop is ours; what happens on one connection is in `transport.rs`.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{tls::Tls, transport::Transport};
use crate::error::{ErrorCode, Problem};

/// What the kernel buffers of a connection's writes: it doubles this for its own bookkeeping.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
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
    /// Between the requests of an HTTP/1 connection. Longer than the 60 s of most proxies, who
    /// would send a request into the end of their connection otherwise.
    pub idle: Duration,
    /// How long a write may wait for a reader that takes nothing.
    pub write_stall: Duration,
    /// How often a quiet HTTP/2 connection is asked whether it is still there.
    pub h2_ping: Duration,
    /// How long it has to answer.
    pub h2_pong: Duration,
    /// Open connections at once.
    pub connections_max: usize,
    /// Open connections of one address (of one /64 for IPv6). Loopback has no such limit; behind a
    /// proxy elsewhere, all connections have the proxy's address, so raise it.
    pub connections_per_address_max: usize,
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
            idle: Duration::from_secs(75),
            write_stall: Duration::from_secs(10),
            h2_ping: Duration::from_secs(20),
            h2_pong: Duration::from_secs(10),
            connections_max: 50_000,
            connections_per_address_max: 200,
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
/// clear by mistake. The certificate's files are watched meanwhile.
///
/// A stream of events ends by itself only if its hub drains: cancel
/// [`Hub::draining`](crate::Hub::draining) together with `shutdown`, and call
/// [`Hub::shutdown`](crate::Hub::shutdown) when this returns.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    settings: ServeSettings,
    tls: Option<Arc<Tls>>,
    shutdown: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let ended = CancellationToken::new();
    let _watch = tls.clone().map(|tls| AbortOnDropHandle::new(tokio::spawn(tls.watch())));
    let places = Places::new(&settings);
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let drain_window = settings.drain_window;
    let transport = Arc::new(Transport::new(
        app,
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
        match places.take(address.ip()) {
            Ok(place) => {
                tasks.spawn(ended.clone().run_until_cancelled_owned(async move {
                    transport.serve(stream, address).await;
                    drop(place);
                }));
            }
            Err(problem) => {
                let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() else { continue };
                tasks.spawn(ended.clone().run_until_cancelled_owned(async move {
                    let _ = timeout(REFUSAL_MAX, transport.refuse(stream, address, problem)).await;
                    drop(permit);
                }));
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
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15));
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))?;
    Ok(())
}

/// Who has how many connections.
#[derive(Debug)]
struct Places {
    max: usize,
    per_address_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    address: Option<IpAddr>,
}

impl Places {
    fn new(settings: &ServeSettings) -> Arc<Self> {
        let per_address_max = settings.connections_per_address_max;
        Arc::new(Self { max: settings.connections_max, per_address_max, taken: Mutex::default() })
    }

    fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Problem> {
        let refused = |code, detail: &str| Err(Problem::new(code, detail).after(REFUSED_FOR));
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.max {
            return refused(ErrorCode::Unavailable, "the hub has no place for more connections");
        }
        let address = counted_as(peer);
        if let Some(address) = address {
            let count = taken.by_address.entry(address).or_default();
            if *count >= self.per_address_max {
                return refused(ErrorCode::LimitReached, "too many connections from this address");
            }
            *count += 1;
        }
        taken.all += 1;
        Ok(Place { places: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        let Some(address) = self.address else { return };
        if let Some(count) = taken.by_address.get_mut(&address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.by_address.remove(&address);
            }
        }
    }
}

/// What stands for one peer: its address, or the /64 that an IPv6 site has to itself. None for
/// loopback, where proxies and sidecars are.
fn counted_as(peer: IpAddr) -> Option<IpAddr> {
    match peer.to_canonical() {
        ip if ip.is_loopback() => None,
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Some(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
        }
        ip => Some(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(max: usize, per_address_max: usize) -> Arc<Places> {
        let limits = ServeSettings { connections_max: max, ..ServeSettings::default() };
        Places::new(&ServeSettings { connections_per_address_max: per_address_max, ..limits })
    }

    #[test]
    fn an_address_and_all_together_have_their_limits_and_places_come_back() {
        let places = places(3, 2);
        let take = |address: &str| places.take(address.parse().unwrap());
        let code = |taken: Result<Place, Problem>| taken.map(drop).map_err(|problem| problem.code);
        let first = take("192.0.2.1").unwrap();
        let _second = take("::ffff:192.0.2.1").unwrap();
        assert_eq!(code(take("192.0.2.1")), Err(ErrorCode::LimitReached));
        drop(first);
        let _third = take("192.0.2.1").unwrap();
        let _fourth = take("192.0.2.2").unwrap();
        assert_eq!(code(take("192.0.2.3")), Err(ErrorCode::Unavailable));
    }

    #[test]
    fn a_site_is_one_peer_and_loopback_is_not_counted() {
        let places = places(100, 1);
        let take = |address: &str| places.take(address.parse().unwrap());
        let _first = take("2001:db8:1:2::1").unwrap();
        assert!(take("2001:db8:1:2:ffff::9").is_err());
        let _other = take("2001:db8:1:3::1").unwrap();
        let _local: Vec<_> =
            ["127.0.0.1", "127.0.0.1", "::1", "::1"].map(|ip| take(ip).unwrap()).into();
        assert_eq!(places.taken.lock().unwrap().by_address.len(), 2);
    }
}
