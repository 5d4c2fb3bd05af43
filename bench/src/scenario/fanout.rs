//! One topic, many readers: every event goes to all of them, flat out.
//!
//! The publisher is at most some events ahead of what all readers together have: enough that no
//! server ever waits for it, not so much that readers fall behind the newest. `CPU, lockstep` is
//! measured with the next event published when all have the last: what a delivery costs that comes
//! alone.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::task::spawn_local;

use super::{DATA_BYTES, Load, Watch, create, rate_and_cpu};
use crate::{
    client::{From, Publisher, Reader, Tally},
    figure::{Figure, Unit},
    server::{Kind, Server, Setup},
};

/// Events that the publisher is ahead.
const AHEAD: u64 = 16;

pub(super) async fn measure(kind: Kind, load: Load) -> Vec<Figure> {
    let server = Server::start(kind, Setup::default());
    let target = &server.target;
    create(target, 1).await;
    let tally = Tally::new();
    let mut readers = Vec::new();
    for nth in 0..load.n {
        let request = target.follow(0, From::Now);
        let stream = target.connect(nth).await;
        let mut reader = Reader::open(stream, &request, Some(target.ready())).await;
        let tally = Rc::clone(&tally);
        readers.push(spawn_local(async move { reader.count(&tally, u64::MAX).await }));
    }
    let flat_out = run(&server, &tally, load, AHEAD).await;
    let lockstep = run(&server, &tally, load, 1).await;
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    let [rate, cpu] = flat_out;
    let [_, alone] = lockstep;
    vec![rate, cpu, Figure::new("CPU, lockstep", Unit::CpuPerMillion, alone.value)]
}

async fn run(server: &Server, tally: &Rc<Tally>, load: Load, ahead: u64) -> [Figure; 2] {
    let readers = load.n as u64;
    let before = tally.events();
    let stopped = Rc::new(Cell::new(false));
    let mut publisher = Publisher::connect(&server.target).await;
    let mut request = server.target.publish(0, DATA_BYTES);
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
    let (watch, from) = (Watch::start(server), tally.events());
    tokio::time::sleep(load.span.max(Duration::from_millis(500))).await;
    let (delivered, spent) = (tally.events() - from, watch.stop());
    stopped.set(true);
    let published = publishing.await.unwrap();
    // Each has each, or this fails.
    tally.reach(before + published * readers).await;
    assert_eq!(tally.events(), before + published * readers, "events came twice");
    rate_and_cpu("deliveries", delivered, spent)
}
