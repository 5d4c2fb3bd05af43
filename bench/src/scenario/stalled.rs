//! Readers that stop reading, beside readers that do not: what the healthy ones feel of them.
//!
//! Events are due at fixed times, in requests of some; the same server is measured without and with
//! the stalled ones.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::{
    io::AsyncWriteExt as _,
    net::TcpSocket,
    task::spawn_local,
    time::{Instant, sleep},
};

use super::{DATA_BYTES, Load, Watch};
use crate::{
    client::{From, Publisher, Reader, Tally, due},
    figure::{Figure, Unit},
    server::{Kind, Server, Setup},
};

const HEALTHY: usize = 100;
/// 50 events every 10 ms: 5 000 a second.
const REQUEST_EVENTS: usize = 50;
const PERIOD: Duration = Duration::from_millis(10);

pub(super) async fn measure(kind: Kind, load: Load) -> Vec<Figure> {
    let server = Server::start(kind, Setup::default());
    let target = &server.target;
    let tally = Tally::new();
    let mut readers = Vec::new();
    for nth in 0..HEALTHY {
        let request = target.follow(0, From::Now);
        let mut reader =
            Reader::open(target.connect(nth).await, &request, Some(target.ready())).await;
        let counted = Rc::clone(&tally);
        readers.push(spawn_local(async move { reader.count(&counted, u64::MAX).await }));
    }
    let stopped = Rc::new(Cell::new(false));
    let mut publisher = Publisher::connect(target).await;
    let mut events = target.publish_all(std::iter::repeat_n(0, REQUEST_EVENTS), DATA_BYTES);
    let (until, timed) = (Rc::clone(&stopped), Rc::clone(&tally));
    let publishing = spawn_local(async move {
        let (mut next, mut requests) = (Instant::now() + PERIOD, 0_u64);
        while !until.get() {
            let at = due(next, &timed).await;
            publisher.ask(events.stamped_at(at)).await;
            requests += 1;
            next += PERIOD;
        }
        requests * REQUEST_EVENTS as u64
    });
    sleep(load.span / 2).await;
    tally.record();
    sleep(load.span).await;
    let (alone, calm_rss) = (tally.delays().ms(990), server.resident_bytes());

    let mut stalled = Vec::new();
    for _ in 0..load.n {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        let mut stream = socket.connect(target.address).await.unwrap();
        stream.write_all(target.follow(0, From::Now).as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    sleep(load.span / 2).await;
    tally.record();
    let (watch, from) = (Watch::start(&server), tally.events());
    sleep(load.span).await;
    let (delivered, spent, delays) = (tally.events() - from, watch.stop(), tally.delays());
    let rss = server.resident_bytes();
    stopped.set(true);
    let published = publishing.await.unwrap();
    tally.reach_all(published * HEALTHY as u64).await;
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    let mut figures = spent.figures("deliveries", delivered);
    figures.extend([
        Figure::new("healthy p99", Unit::Ms, delays.ms(990)),
        Figure::new("p99 without them", Unit::Ms, alone),
        Figure::new("healthy p99 to without", Unit::Times, delays.ms(990) / alone),
        Figure::new(
            "RSS of a stalled one",
            Unit::KiB,
            (rss - calm_rss).max(0.0) / 1024.0 / load.n as f64,
        ),
    ]);
    figures.extend(tally.sent_late());
    figures
}
