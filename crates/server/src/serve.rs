//! `tidings serve`, and the part of `tidings dev` that serves.
//!
//! The rules: nothing is accepted before everything is open. The first signal drains: not ready at
//! once, as before for the grace, then no new connections, and an end at the end of the drain window
//! whatever hangs. The second signal ends at once.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tidings::http::{ServeSettings, Tls, serve};
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Admin,
    cli::ServeArgs,
    commands::load_config,
    components::Components,
    config::serving_problems,
    descriptors,
    exit::{Exit, Failure},
    supervisor, telemetry,
};

/// Operators' connections at once: their own, so that no crowd of clients keeps them out.
const ADMIN_CONNECTIONS: usize = 256;
/// How much of the drain window connections may take; the rest is for the journal to close.
const CONNECTIONS_SHARE: f64 = 0.9;

/// Connections that may wait to be accepted. The kernel holds it down (`net.core.somaxconn`, 4 096
/// where nothing else is set). Who finds no room tries again after 1 s, 2, 4 and so on: with the 128
/// that are usual, of 5 000 readers that came back at once the last were in after 4 s, or after more
/// than 160 (docs/adr/0014).
const BACKLOG: u32 = 65_535;

/// How much of it the last spans may take: a collector that is away must not look like a journal
/// that hangs.
const TRACES_SHARE: f64 = 0.05;

/// Runs the command.
pub(crate) async fn run(args: &ServeArgs) -> Result<Exit, Failure> {
    let loaded = load_config(&args.layers)?;
    let config = &loaded.config;
    let problems = serving_problems(&loaded);
    if !problems.is_empty() {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(Failure::new(Exit::Config, lines.join("\n")));
    }
    telemetry::start(&config.log);
    let listeners = Listeners::bind(config.listen, config.admin.listen)?;
    let mut components = Components::start(config).await?;
    let admin = Admin::new(&loaded, &mut components)?;
    if config.has_nameless_proxy() {
        tracing::warn!(
            "limits by address are off: all connections come from the proxy in front; name it in \
             `trusted_proxies`, and clients are told apart by `X-Forwarded-For`"
        );
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %listeners.address,
        admin = %listeners.admin_address,
        tls = components.tls.is_some(),
        data = %config.data.display(),
        "serving"
    );
    listeners.serve(components, admin).await
}

/// Bound sockets that nothing is accepted from yet.
#[derive(Debug)]
pub(crate) struct Listeners {
    clients: TcpListener,
    admin: TcpListener,
    /// Listened for before anybody is told that the hub is there.
    signals: Signals,
    /// Where clients connect, with the port that was taken for port 0.
    pub(crate) address: SocketAddr,
    /// Where operators connect.
    pub(crate) admin_address: SocketAddr,
}

impl Listeners {
    /// Takes both addresses.
    pub(crate) fn bind(listen: SocketAddr, admin_listen: SocketAddr) -> Result<Self, Failure> {
        let (clients, address) = bind("listen", listen)?;
        let (admin, admin_address) = bind("admin.listen", admin_listen)?;
        Ok(Self { clients, admin, signals: Signals::new()?, address, admin_address })
    }

    /// Serves until a signal, drains, and closes the journal.
    pub(crate) async fn serve(self, components: Components, admin: Admin) -> Result<Exit, Failure> {
        let Components { hub, service, serve: mut settings, tls, drain_grace, traces, .. } =
            components;
        let mut signals = self.signals;
        let window = settings.drain_window;
        settings.connections_max = descriptors::connections_max(settings.connections_max);
        settings.drain_window = window.mul_f64(CONNECTIONS_SHARE);
        let admin_settings = ServeSettings {
            connections_max: ADMIN_CONNECTIONS,
            drain_window: Duration::ZERO,
            allow_cleartext: admin.allow_cleartext(),
            ..ServeSettings::default()
        };
        let (drained, all_over) = (CancellationToken::new(), CancellationToken::new());
        let limits_hit = hub.metrics().limits_hit.clone();
        let admin = tokio::spawn(serve(
            self.admin,
            admin.router(),
            admin_settings,
            tls.clone(),
            limits_hit.clone(),
            all_over.clone(),
        ));
        let clients = tokio::spawn(serve(
            self.clients,
            service,
            settings,
            tls.clone(),
            limits_hit,
            drained.clone(),
        ));
        let _watchdog = supervisor::feed_watchdog();
        supervisor::ready();
        signals.first(tls.as_ref()).await;
        supervisor::stopping();
        tracing::info!("draining; a second signal ends at once");
        let orderly = async {
            hub.withdraw();
            sleep(drain_grace).await;
            hub.drain();
            drained.cancel();
            // A task ends otherwise only by a panic, which has been reported.
            drop(clients.await);
            hub.shutdown().await;
            if let Some(traces) = traces {
                traces.finish(window.mul_f64(TRACES_SHARE)).await;
            }
            all_over.cancel();
            drop(admin.await);
        };
        end(orderly, signals.second(), drain_grace + window).await
    }
}

/// Waits for an orderly end, but for no longer than that may take, and not after a second signal.
async fn end(
    orderly: impl Future<Output = ()>,
    second: impl Future<Output = ()>,
    within: Duration,
) -> Result<Exit, Failure> {
    tokio::select! {
        () = orderly => tracing::info!("drained"),
        () = second => tracing::warn!("ended by a second signal"),
        () = sleep(within) => {
            let message = "ended at the end of the drain window: the journal did not close in \
                           time. What was acknowledged is stored; the next start recovers";
            return Err(Failure::new(Exit::Software, message));
        }
    }
    Ok(Exit::Ok)
}

fn bind(name: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let refused = |error: std::io::Error| {
        let (exit, hint) = match error.kind() {
            std::io::ErrorKind::AddrInUse => (Exit::InUse, "; is another hub running?"),
            _ => (Exit::Config, ""),
        };
        Failure::new(exit, format!("{name}: cannot listen on {address}: {error}{hint}"))
    };
    let listener = listen(address).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    Ok((listener, address))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // The port is free at once after a restart, whatever connections have yet to end.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::new(Exit::Software, format!("signals: {error}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits to be told to end; meanwhile SIGHUP reads the certificate anew.
    async fn first(&mut self, tls: Option<&Arc<Tls>>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => match tls.map(|tls| tls.reload()) {
                    Some(Err(error)) => {
                        tracing::error!(%error, "certificate was not reloaded; the old one is in use");
                    }
                    Some(Ok(())) => tracing::info!("certificate reloaded"),
                    None => tracing::info!("nothing to reload"),
                },
            }
        }
    }

    async fn second(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        net::{Ipv4Addr, TcpStream},
    };

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whatever_hangs_the_end_comes_at_the_end_of_the_window() {
        let window = Duration::from_secs(20);
        let begun = Instant::now();
        let failure = end(pending(), pending(), window).await.unwrap_err();
        assert_eq!((failure.exit, begun.elapsed()), (Exit::Software, window));
        assert!(failure.message.contains("drain window"), "{}", failure.message);
        assert_eq!(end(ready(()), pending(), window).await.unwrap(), Exit::Ok);
        assert_eq!(end(pending(), ready(()), window).await.unwrap(), Exit::Ok);
    }

    /// Broken on purpose, it failed: with 1 024, and 128 are usual.
    #[tokio::test]
    async fn more_than_the_usual_number_may_come_at_once() {
        let kernels = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let crowd: usize = kernels.trim().parse().unwrap();
        let crowd = crowd.min(1_500);
        assert!(descriptors::possible() > crowd);
        let (_listener, address) = bind("listen", (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let mut all = Vec::new();
        for number in 0..crowd {
            let connected = TcpStream::connect_timeout(&address, Duration::from_secs(10));
            all.push(connected.unwrap_or_else(|error| panic!("{number} of {crowd}: {error}")));
        }
    }
}
