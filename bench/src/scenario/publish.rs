//! Durable publishing without readers: connections that each wait for their answer, a topic each.

use super::{DATA_BYTES, Load, Process, Watch, create};
use crate::{
    client::{Publishing, Request, Target},
    figure::Figure,
    server::{Kind, Server, Setup},
};

/// Events of one request, the most that the hub takes.
pub(super) const REQUEST_EVENTS: usize = 500;

/// On the hub's own journal, so many events a request, with ids of the publisher's own or without.
pub(super) async fn measure(kind: Kind, load: Load, events: usize, has_ids: bool) -> Vec<Figure> {
    if let Kind::Peer(peer) = kind
        && events > 1
        && !peer.takes_lists
    {
        return Vec::new();
    }
    run(kind, load, Setup::default(), events, has_ids, &[]).await
}

fn request(target: &Target, topic: usize, events: usize) -> Request {
    match events {
        1 => target.publish(topic, DATA_BYTES),
        _ => target.publish_all(std::iter::repeat_n(topic, events), DATA_BYTES),
    }
}

/// Publishes so many events a request. Others' processes have figures of their own.
pub(super) async fn run(
    kind: Kind,
    load: Load,
    setup: Setup,
    events: usize,
    has_ids: bool,
    others: &[Process],
) -> Vec<Figure> {
    let mut server = Server::start(kind, setup);
    server.target.has_ids = has_ids;
    create(&server.target, load.n).await;
    let requests = (0..load.n).map(|topic| vec![request(&server.target, topic, events)]);
    let publishing = Publishing::start(&server.target, requests).await;
    let answers = &publishing.answers;
    tokio::time::sleep(load.span / 4).await;
    answers.record();
    let (watch, from) = (Watch::start(&server).and(others), answers.events());
    tokio::time::sleep(load.span).await;
    let (count, spent) = (answers.events() - from, watch.stop());
    let delays = answers.delays();
    publishing.stop().await;
    let mut figures = spent.figures("events", count * events as u64);
    figures.extend(delays.figures());
    figures
}
