//! Everybody comes back at once: after a restart, each reader to its own topic, a hundred events
//! behind, while somebody publishes one event after the other.

use std::rc::Rc;

use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{DATA_BYTES, Load, Watch, rate_and_cpu};
use crate::{
    client::{From, Publisher, Publishing, Reader, Tally, WAIT_MAX, cursor},
    figure::{Figure, Unit},
    server::{Kind, Server, Setup},
};

const BEHIND: usize = 100;

pub(super) async fn measure(kind: Kind, load: Load) -> Vec<Figure> {
    let mut server = Server::start(kind, Setup { has_history: true, ..Setup::default() });
    let mut cursors = Vec::new();
    let mut publisher = Publisher::connect(&server.target).await;
    for topic in 0..load.n {
        let mut first = server.target.publish(topic, DATA_BYTES);
        cursors.push(cursor(publisher.ask(first.stamped()).await));
        let mut rest = server.target.publish_all(std::iter::repeat_n(topic, BEHIND), DATA_BYTES);
        publisher.ask(rest.stamped()).await;
    }
    server.restart();
    let target = &server.target;
    let other = vec![target.publish(load.n, DATA_BYTES)];
    let publishing = Publishing::start(target, std::iter::once(other)).await;
    tokio::time::sleep(load.span / 4).await;
    publishing.answers.record();
    tokio::time::sleep(load.span).await;
    let calm = publishing.answers.delays();

    publishing.answers.record();
    let (watch, came) = (Watch::start(&server), Instant::now());
    let tally = Tally::new();
    let mut readers = JoinSet::new();
    for (topic, cursor) in cursors.iter().enumerate() {
        let request = target.follow(topic, From::Cursor(cursor));
        let (target, tally) = (target.clone(), Rc::clone(&tally));
        readers.spawn_local(async move {
            let mut reader = Reader::open(target.connect(topic).await, &request, None).await;
            reader.count(&tally, BEHIND as u64).await.unwrap();
            reader
        });
    }
    let all = timeout(WAIT_MAX, readers.join_all()).await;
    let caught_up = came.elapsed().as_secs_f64();
    let spent = watch.stop();
    let stormy = publishing.answers.delays();
    publishing.stop().await;
    assert!(all.is_ok(), "{} of {} events came", tally.events(), load.n * BEHIND);
    assert_eq!(tally.events(), (load.n * BEHIND) as u64, "events came twice");
    let [rate, cpu] = rate_and_cpu("events", tally.events(), spent);
    vec![
        Figure::new("all caught up", Unit::Seconds, caught_up),
        Figure::new("publisher p99", Unit::Ms, stormy.ms(990)),
        Figure::new("calm p99", Unit::Ms, calm.ms(990)),
        Figure::new("publisher p99 to calm", Unit::Times, stormy.ms(990) / calm.ms(990)),
        rate,
        cpu,
    ]
}
