//! One reader after another comes back to a topic, five events behind: from connecting until it has
//! them, with few and with many events stored.

use tokio::time::{Instant, timeout};

use super::{DATA_BYTES, Load, Watch, fill};
use crate::{
    client::{Delays, From, Publisher, Reader, Tally, WAIT_MAX, cursor, micros},
    figure::{Figure, Unit},
    server::{Kind, Server, Setup},
};

/// Events stored in the topic that is compared with.
const FEW: usize = 100;
const BEHIND: usize = 5;

pub(super) async fn measure(kind: Kind, load: Load) -> Vec<Figure> {
    let setup = Setup { has_history: true, ..Setup::default() }.keep_all();
    let server = Server::start(kind, setup);
    let few = resume(&server, 0, FEW, load).await;
    let many = resume(&server, 1, load.n, load).await;
    vec![
        Figure::new("p50", Unit::Ms, many.ms(500)),
        Figure::new("p99", Unit::Ms, many.ms(990)),
        Figure::new("p50 of 100", Unit::Ms, few.ms(500)),
        Figure::new("p50 to that of 100", Unit::Times, many.ms(500) / few.ms(500)),
    ]
}

async fn resume(server: &Server, topic: usize, stored: usize, load: Load) -> Delays {
    let target = &server.target;
    let before = stored - BEHIND - 1;
    fill(target, topic, 0, before).await;
    let mut publisher = Publisher::connect(target).await;
    let mut last = target.publish(topic, DATA_BYTES).after(before as u64);
    let at = cursor(publisher.ask(last.stamped()).await);
    let seen = before + 1;
    fill(target, topic, seen, BEHIND).await;
    let request = target.follow(topic, From::Cursor(&at));
    let mut delays = Vec::new();
    let tally = Tally::new();
    let watch = Watch::start(server);
    let begun = Instant::now();
    while begun.elapsed() < load.span {
        let came = Instant::now();
        let stream = target.connect(0).await;
        let mut reader = Reader::open(stream, &request, None).await.after(seen as u64);
        let reading = timeout(WAIT_MAX, reader.count(&tally, BEHIND as u64));
        reading.await.expect("five events").unwrap();
        delays.push(micros(came));
    }
    watch.stop();
    assert_eq!(tally.events(), (delays.len() * BEHIND) as u64, "more came than was missing");
    Delays::of(delays)
}
