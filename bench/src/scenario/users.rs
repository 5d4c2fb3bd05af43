//! Many users with one reader each: one durable event each in turn, from a few publishers that wait
//! for each answer.

use std::rc::Rc;

use tokio::task::spawn_local;

use super::{DATA_BYTES, Load, Watch, create};
use crate::{
    client::{From, Publishing, Reader, Tally},
    figure::Figure,
    server::{Kind, Server, Setup},
};

/// Publishers at once, each with one request at a time.
const PUBLISHERS: usize = 16;

pub(super) async fn measure(kind: Kind, load: Load) -> Vec<Figure> {
    let server = Server::start(kind, Setup::default());
    let target = &server.target;
    create(target, load.n).await;
    let tally = Tally::new();
    let mut readers = Vec::new();
    for nth in 0..load.n {
        let request = target.follow(nth, From::Now);
        let stream = target.connect(nth).await;
        let mut reader = Reader::open(stream, &request, Some(target.ready())).await;
        let tally = Rc::clone(&tally);
        readers.push(spawn_local(async move { reader.count(&tally, u64::MAX).await }));
    }
    let users = |first| (first..load.n).step_by(PUBLISHERS);
    let requests =
        (0..PUBLISHERS).map(|first| users(first).map(|user| target.publish(user, DATA_BYTES)));
    let publishing = Publishing::start(target, requests.map(Iterator::collect)).await;
    tokio::time::sleep(load.span / 4).await;
    tally.record();
    let (watch, from) = (Watch::start(&server), tally.events());
    tokio::time::sleep(load.span).await;
    let (delivered, spent, delays) = (tally.events() - from, watch.stop(), tally.delays());
    let published = publishing.stop().await;
    tally.reach_all(published).await;
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    let mut figures = spent.figures("deliveries", delivered);
    figures.extend(delays.figures());
    figures
}
