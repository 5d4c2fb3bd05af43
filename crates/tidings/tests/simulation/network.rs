//! The network between clients and the hub: pipes in memory, each with a fate.
//!
//! The rule: a client and the hub see of a fault what TCP would show them: bytes that stop, come
//! late or in pieces, a connection that ends in the middle, or one that is dead and does not say so.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service as _;

use crate::chance::Chance;

#[derive(Debug)]
pub(crate) struct Network(Mutex<State>);

#[derive(Debug)]
struct State {
    chance: Chance,
    host: Option<Host>,
    is_calm: bool,
    /// Connections that are dead without saying so.
    silent: Vec<CancellationToken>,
}

/// A hub that is reachable, and its connections.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    app: Router,
    connections: TaskTracker,
    /// Cancelled when the process dies, with everything in it.
    dead: CancellationToken,
}

impl Host {
    pub(crate) fn new(app: Router, dead: CancellationToken) -> Self {
        Self { app, connections: TaskTracker::new(), dead }
    }

    /// Waits until all connections have ended.
    pub(crate) async fn wait(&self) {
        self.connections.close();
        self.connections.wait().await;
    }

    fn accept(&self, stream: DuplexStream) {
        let app = self.app.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            app.clone().call(request.map(Body::new))
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).half_close(false);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        self.connections.spawn(self.dead.clone().run_until_cancelled_owned(connection));
    }
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    /// It ends after so many bytes of the hub's.
    CutDown(u64),
    /// It ends after so many bytes of the client's.
    CutUp(u64),
    /// After so many bytes of the hub's, nothing arrives any more, either way.
    Silent(u64),
    /// A few bytes at a time.
    Slow,
}

impl Network {
    pub(crate) fn new(chance: Chance) -> Arc<Self> {
        let state = State { chance, host: None, is_calm: false, silent: Vec::new() };
        Arc::new(Self(Mutex::new(state)))
    }

    /// Makes a hub reachable, or none.
    pub(crate) fn host(&self, host: Option<Host>) {
        self.0.lock().unwrap().host = host;
    }

    /// From now on nothing breaks; what is dead is found to be.
    pub(crate) fn calm(&self) {
        let mut state = self.0.lock().unwrap();
        state.is_calm = true;
        state.silent.drain(..).for_each(|connection| connection.cancel());
    }

    /// Connects to the hub that is reachable now.
    pub(crate) async fn connect(&self) -> io::Result<DuplexStream> {
        let (host, fate, mut chance) = {
            let mut state = self.0.lock().unwrap();
            let mut chance = state.chance.fork();
            let fate = if state.is_calm { Fate::Fine } else { fate(&mut chance) };
            (state.host.clone(), fate, chance)
        };
        sleep(chance.millis(0..20)).await;
        let host = host.ok_or(io::ErrorKind::ConnectionRefused)?;
        if host.dead.is_cancelled() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let buffer = *chance.pick(&[512, 4096, 65_536]);
        let (client, near) = tokio::io::duplex(buffer);
        let (far, server) = tokio::io::duplex(buffer);
        host.accept(server);
        let cut = CancellationToken::new();
        if let Fate::Silent(_) = fate {
            self.0.lock().unwrap().silent.push(cut.clone());
        }
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let silence = CancellationToken::new();
        let wire = |limit, chance| Wire {
            fate,
            limit,
            chance,
            cut: cut.clone(),
            silence: silence.clone(),
        };
        let (down, up) = match fate {
            Fate::CutDown(bytes) | Fate::Silent(bytes) => (bytes, u64::MAX),
            Fate::CutUp(bytes) => (u64::MAX, bytes),
            Fate::Fine | Fate::Slow => (u64::MAX, u64::MAX),
        };
        tokio::spawn(wire(down, chance.fork()).carry(far_read, near_write));
        tokio::spawn(wire(up, chance.fork()).carry(near_read, far_write));
        Ok(client)
    }
}

fn fate(chance: &mut Chance) -> Fate {
    // An answer to a publish is about 400 bytes, a stream may be many thousands.
    let place = |chance: &mut Chance| match chance.within(0..3) {
        0 => chance.within(0..700),
        1 => chance.within(0..4000),
        _ => chance.within(0..40_000),
    };
    match chance.within(0..20) {
        0..5 => Fate::CutDown(place(chance)),
        5 => Fate::CutUp(chance.within(0..900)),
        6 => Fate::Silent(place(chance)),
        7 => Fate::Slow,
        _ => Fate::Fine,
    }
}

/// One direction of a connection.
struct Wire {
    fate: Fate,
    /// Bytes that get through.
    limit: u64,
    chance: Chance,
    cut: CancellationToken,
    silence: CancellationToken,
}

impl Wire {
    async fn carry(mut self, from: ReadHalf<DuplexStream>, to: WriteHalf<DuplexStream>) {
        let cut = self.cut.clone();
        // Both halves are dropped then, and both ends find the connection closed.
        cut.run_until_cancelled(self.copy(from, to)).await;
    }

    async fn copy(&mut self, mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
        let mut buffer = vec![0; 4096];
        loop {
            let most = match self.fate {
                Fate::Slow => self.chance.within(1..200),
                _ => self.chance.within(1..4096),
            };
            let most = usize::try_from(most.min(self.limit.max(1))).unwrap();
            let Ok(count) = from.read(&mut buffer[..most]).await else { return };
            if count == 0 {
                let _ = to.shutdown().await;
                return;
            }
            if self.silence.is_cancelled() {
                continue;
            }
            if self.limit == 0 {
                match self.fate {
                    Fate::Silent(_) => self.silence.cancel(),
                    _ => self.cut.cancel(),
                }
                continue;
            }
            let latency = self.latency();
            if !latency.is_zero() {
                sleep(latency).await;
            }
            if to.write_all(&buffer[..count]).await.is_err() {
                self.cut.cancel();
                return;
            }
            self.limit -= count as u64;
            if self.limit == 0 && !matches!(self.fate, Fate::Silent(_)) {
                self.cut.cancel();
            }
        }
    }

    fn latency(&mut self) -> Duration {
        match (self.fate, self.chance.within(0..20)) {
            (Fate::Slow, _) => self.chance.millis(1..100),
            (_, 0..14) => Duration::ZERO,
            (_, 14..19) => self.chance.millis(1..10),
            _ => self.chance.millis(10..200),
        }
    }
}
