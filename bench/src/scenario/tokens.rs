//! Token streams: what language models write, a token an event, each stream with one reader. They are
//! written as `docs/guides/token-streams.md` says, a line each of one long request, or by a request
//! each, which is all that the floor understands.
//!
//! Tokens are due at fixed times whatever the server does: one that had to wait for the answer to
//! the one before is late by that, and its delay says so.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::{
    task::spawn_local,
    time::{Instant, sleep_until},
};

use super::{DATA_BYTES, Load, Watch, create, rate_and_cpu};
use crate::{
    client::{Form, From, Reader, Repeating, Tally},
    figure::{Figure, Unit},
    server::{Kind, Server, Setup},
};

/// Between two tokens of a stream.
const PERIOD: Duration = Duration::from_millis(20);

pub(super) async fn measure(kind: Kind, load: Load, form: Form) -> Vec<Figure> {
    let server = Server::start(kind, Setup::default());
    let form = if kind == Kind::Hub { form } else { Form::Requests };
    run(&server, &server, load, PERIOD, form).await
}

/// Publishes on one server and follows on another, which may be the same.
pub(super) async fn run(
    publishing: &Server,
    following: &Server,
    load: Load,
    period: Duration,
    form: Form,
) -> Vec<Figure> {
    let (target, followed) = (&publishing.target, &following.target);
    create(target, load.n).await;
    let tally = Tally::new();
    let mut readers = Vec::new();
    let stopped = Rc::new(Cell::new(false));
    let mut publishers = Vec::new();
    let begin = Instant::now();
    for nth in 0..load.n {
        let request = followed.follow(nth, From::Now);
        let stream = followed.connect(nth).await;
        let mut reader = Reader::open(stream, &request, Some(followed.ready())).await;
        let counted = Rc::clone(&tally);
        readers.push(spawn_local(async move { reader.count(&counted, u64::MAX).await }));
        let mut tokens = Repeating::start(target, form, nth, DATA_BYTES).await;
        let stopped = Rc::clone(&stopped);
        publishers.push(spawn_local(async move {
            // Streams are spread evenly over the period.
            let mut due = Instant::now() + period;
            let offset = period.mul_f64(nth as f64 / load.n as f64);
            due += offset.saturating_sub(Duration::from_nanos(
                (begin.elapsed().as_nanos() % period.as_nanos()) as u64,
            ));
            let mut published = 0_u64;
            while !stopped.get() {
                sleep_until(due).await;
                tokens.publish(due).await;
                published += 1;
                due += period;
            }
            published
        }));
    }
    tokio::time::sleep(load.span / 4).await;
    tally.record();
    let (watch, from) = (Watch::start(following), tally.events());
    tokio::time::sleep(load.span).await;
    let (delivered, spent, delays) = (tally.events() - from, watch.stop(), tally.delays());
    stopped.set(true);
    let mut published = 0;
    for publisher in publishers {
        published += publisher.await.unwrap();
    }
    tally.reach(published).await;
    assert_eq!(tally.events(), published, "tokens came twice");
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    let [rate, cpu] = rate_and_cpu("tokens", delivered, spent);
    let p50 = Figure::new("p50", Unit::Ms, delays.ms(500));
    vec![rate, cpu, p50, Figure::new("p99", Unit::Ms, delays.ms(990))]
}
