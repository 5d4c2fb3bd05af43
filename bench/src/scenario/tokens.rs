//! Token streams: what language models write, a token an event, each stream with one reader. They are
//! written as `docs/guides/token-streams.md` says, a line each of one long request, or by a request
//! each, which is all that the floor understands.
//!
//! Tokens are due at fixed times whatever the server does: one that had to wait for the answer to
//! the one before is late by that, and its delay says so. One that the load generator's own timer sent
//! late counts from when it was sent, and `sent late` tells how late that was.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::{task::spawn_local, time::Instant};

use super::{DATA_BYTES, Load, Process, Watch, create};
use crate::{
    client::{Form, From, Reader, Repeating, Tally, due},
    figure::Figure,
    server::{Kind, Server, Setup},
};

/// Between two tokens of a stream.
const PERIOD: Duration = Duration::from_millis(20);

pub(super) async fn measure(kind: Kind, load: Load, form: Form) -> Vec<Figure> {
    let server = Server::start(kind, Setup::default());
    let form = if kind == Kind::Hub { form } else { Form::Requests };
    run(&server, &server, load, PERIOD, form, &[]).await
}

/// Publishes on one server and follows on another, which may be the same. `CPU` is the latter's;
/// others' processes have figures of their own.
pub(super) async fn run(
    publishing: &Server,
    following: &Server,
    load: Load,
    period: Duration,
    form: Form,
    others: &[Process],
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
        let (stopped, tally) = (Rc::clone(&stopped), Rc::clone(&tally));
        publishers.push(spawn_local(async move {
            // Streams are spread evenly over the period.
            let mut next = Instant::now() + period;
            let offset = period.mul_f64(nth as f64 / load.n as f64);
            next += offset.saturating_sub(Duration::from_nanos(
                (begin.elapsed().as_nanos() % period.as_nanos()) as u64,
            ));
            let mut published = 0_u64;
            while !stopped.get() {
                tokens.publish(due(next, &tally).await).await;
                published += 1;
                next += period;
            }
            published
        }));
    }
    tokio::time::sleep(load.span / 4).await;
    tally.record();
    let (watch, from) = (Watch::start(following).and(others), tally.events());
    tokio::time::sleep(load.span).await;
    let (delivered, spent, delays) = (tally.events() - from, watch.stop(), tally.delays());
    stopped.set(true);
    let mut published = 0;
    for publisher in publishers {
        published += publisher.await.unwrap();
    }
    tally.reach_all(published).await;
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    let mut figures = spent.figures("tokens", delivered);
    figures.extend(delays.figures());
    figures.extend(tally.sent_late());
    figures
}
