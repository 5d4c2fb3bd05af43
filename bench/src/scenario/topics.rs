//! Many topics on disk, of which some are published to: what a hub with them costs beside one that
//! has few.

use super::{DATA_BYTES, Load, Watch};
use crate::{
    client::{Publisher, Publishing, Target},
    figure::{Figure, Unit},
    server::{Kind, Server, Setup},
};

/// Topics that are published to, and how many there are in all where there are few.
const ACTIVE: usize = 10_000;
const FEW: usize = 1000;
const CONNECTIONS: usize = 64;
const REQUEST_EVENTS: usize = 500;

pub(super) async fn measure(kind: Kind, load: Load) -> Vec<Figure> {
    let few = run(kind, load, FEW, FEW).await;
    let many = run(kind, load, load.n, ACTIVE.min(load.n)).await;
    let [few, many_rate] = [&few, &many].map(|figures| figures[0].value);
    let slower = Figure::new("slower than 1 000 topics", Unit::Times, few / many_rate);
    many.into_iter().chain([slower]).collect()
}

async fn run(kind: Kind, load: Load, topics: usize, active: usize) -> Vec<Figure> {
    let mut server = Server::start(kind, Setup::default());
    create_topics(&server.target, topics).await;
    // What creating them has put into memory, and merging it on the disk, is not what having them
    // costs.
    server.restart();
    server.settle().await;
    let target = &server.target;
    // Spread over all of them: neighbours in the store would be cheaper.
    let topic = |number: usize| number * (topics / active);
    let of = |first| (first..active).step_by(CONNECTIONS);
    let requests =
        (0..CONNECTIONS).map(|first| of(first).map(|n| target.publish(topic(n), DATA_BYTES)));
    let publishing = Publishing::start(target, requests.map(Iterator::collect)).await;
    // Once each, so that all are active.
    publishing.answers.reach(active as u64).await;
    let (watch, from) = (Watch::start(&server), publishing.answers.events());
    tokio::time::sleep(load.span).await;
    let (count, spent) = (publishing.answers.events() - from, watch.stop());
    let resident = server.resident_bytes() / 1024.0 / 1024.0;
    publishing.stop().await;
    let mut figures = spent.figures("events", count);
    figures.push(Figure::new("RSS", Unit::MiB, resident));
    figures
}

/// Publishes one event to each.
async fn create_topics(target: &Target, topics: usize) {
    let mut publisher = Publisher::connect(target).await;
    for first in (0..topics).step_by(REQUEST_EVENTS) {
        let numbers = first..topics.min(first + REQUEST_EVENTS);
        publisher.ask(target.publish_all(numbers, DATA_BYTES).stamped()).await;
    }
}
