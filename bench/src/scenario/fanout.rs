//! One topic, many readers: every event goes to all of them, flat out.
//!
//! The publisher is at most some events ahead of what all readers together have: enough that no
//! server ever waits for it, not so much that readers fall behind the newest. `CPU, lockstep` is
//! measured with the next event published when all have the last: what a delivery costs that comes
//! alone.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::task::{JoinSet, spawn_local};

use super::{DATA_BYTES, Load, Process, Watch, create};
use crate::{
    client::{From, Publisher, Reader, Tally},
    figure::{Figure, Unit},
    server::{Kind, Server, Setup},
};

/// Events that the publisher is ahead.
pub(super) const AHEAD: u64 = 16;

pub(super) async fn measure(kind: Kind, load: Load) -> Vec<Figure> {
    let servers = [Server::start(kind, Setup::default())];
    create(&servers[0].target, 1).await;
    let readers = Readers::open(&servers, load.n).await;
    let mut figures = readers.run(load, AHEAD, &[]).await;
    let alone = readers.run(load, 1, &[]).await;
    let alone = alone.iter().find(|figure| figure.name == "CPU").map(|figure| figure.value);
    figures.extend(alone.map(|cpu| Figure::new("CPU, lockstep", Unit::CpuPerMillion, cpu)));
    figures
}

/// Readers of one topic, as many at each server. Dropped, they go.
pub(super) struct Readers<'a> {
    servers: &'a [Server],
    tally: Rc<Tally>,
    tasks: JoinSet<()>,
    /// How many events the topic has.
    published: Cell<u64>,
}

impl<'a> Readers<'a> {
    pub(super) async fn open(servers: &'a [Server], at_each: usize) -> Self {
        let (tally, mut tasks) = (Tally::new(), JoinSet::new());
        for nth in 0..at_each * servers.len() {
            let target = &servers[nth % servers.len()].target;
            let request = target.follow(0, From::Now);
            let stream = target.connect(nth).await;
            let mut reader = Reader::open(stream, &request, Some(target.ready())).await;
            let tally = Rc::clone(&tally);
            tasks.spawn_local(async move { drop(reader.count(&tally, u64::MAX).await) });
        }
        Self { servers, tally, tasks, published: Cell::new(0) }
    }

    /// Publishes at the first server, so many events ahead. Others' processes have figures of their
    /// own.
    pub(super) async fn run(&self, load: Load, ahead: u64, others: &[Process]) -> Vec<Figure> {
        let Self { servers, tally, tasks, published: already } = self;
        let readers = tasks.len() as u64;
        let before = tally.events();
        let stopped = Rc::new(Cell::new(false));
        let mut publisher = Publisher::connect(&servers[0].target).await;
        let mut request = servers[0].target.publish(0, DATA_BYTES).after(already.get());
        let publishing = spawn_local({
            let (tally, stopped) = (Rc::clone(tally), Rc::clone(&stopped));
            async move {
                let mut published = 0;
                while !stopped.get() {
                    publisher.ask(request.stamped()).await;
                    published += 1_u64;
                    let behind = (published + 1).saturating_sub(ahead);
                    tally.reach(before + behind * readers).await;
                }
                published
            }
        });
        tokio::time::sleep(load.span / 4).await;
        let nodes: Vec<Process> = servers.iter().map(|server| ("CPU", server.pid())).collect();
        let watch = Watch::start(&servers[0]).and(&nodes[1..]).and(others);
        let from = tally.events();
        tokio::time::sleep(load.span.max(Duration::from_millis(500))).await;
        let delivered = tally.events() - from;
        let spent = watch.stop();
        stopped.set(true);
        let published = publishing.await.unwrap();
        already.set(already.get() + published);
        // Each has each, or this fails.
        tally.reach_all(before + published * readers).await;
        spent.figures("deliveries", delivered)
    }
}
