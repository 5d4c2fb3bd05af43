//! Durable publishing without readers: connections that each wait for their answer, a topic each.

use super::{DATA_BYTES, Load, Watch, create, rate_and_cpu};
use crate::{
    client::{Publishing, Request, Target},
    figure::{Figure, Unit},
    server::{Kind, Server, Setup},
};

/// Events of one request, the most that the hub takes.
pub(super) const REQUEST_EVENTS: usize = 500;

/// On the hub's own journal, so many events a request, with ids of the publisher's own or without.
pub(super) async fn measure(kind: Kind, load: Load, events: usize, has_ids: bool) -> Vec<Figure> {
    run(kind, load, Setup::default(), events, has_ids).await
}

fn request(target: &Target, topic: usize, events: usize) -> Request {
    match events {
        1 => target.publish(topic, DATA_BYTES),
        _ => target.publish_all(std::iter::repeat_n(topic, events), DATA_BYTES),
    }
}

/// Publishes so many events a request.
pub(super) async fn run(
    kind: Kind,
    load: Load,
    setup: Setup,
    events: usize,
    has_ids: bool,
) -> Vec<Figure> {
    let mut server = Server::start(kind, setup);
    server.target.has_ids = has_ids;
    create(&server.target, load.n).await;
    let requests = (0..load.n).map(|topic| vec![request(&server.target, topic, events)]);
    let publishing = Publishing::start(&server.target, requests).await;
    let answers = &publishing.answers;
    tokio::time::sleep(load.span / 4).await;
    answers.record();
    let (watch, from) = (Watch::start(&server), answers.events());
    tokio::time::sleep(load.span).await;
    let (count, spent) = (answers.events() - from, watch.stop());
    let delays = answers.delays();
    publishing.stop().await;
    let [rate, cpu] = rate_and_cpu("events", count * events as u64, spent);
    let p50 = Figure::new("p50", Unit::Ms, delays.ms(500));
    vec![rate, cpu, p50, Figure::new("p99", Unit::Ms, delays.ms(990))]
}
