//! Readers that come at once to one topic and read all of it.

use tokio::{task::JoinSet, time::Instant};

use super::{Load, Watch, create, fill};
use crate::{
    client::{From, Reader, Tally},
    figure::Figure,
    server::{Kind, Server, Setup},
};

const EVENTS: usize = 1000;

pub(super) async fn measure(kind: Kind, load: Load) -> Vec<Figure> {
    if let Kind::Peer(peer) = kind
        && !peer.replays
    {
        return Vec::new();
    }
    let server = Server::start(kind, Setup { has_history: true, ..Setup::default() });
    let target = &server.target;
    create(target, 1).await;
    fill(target, 0, 0, EVENTS).await;
    let request = target.follow(0, From::Earliest);
    let tally = Tally::new();
    let watch = Watch::start(&server);
    let (mut reading, begun) = (0.0, Instant::now());
    let mut events = 0;
    while begun.elapsed() < load.span {
        let mut streams = Vec::new();
        for nth in 0..load.n {
            streams.push(target.connect(nth).await);
        }
        let sent = Instant::now();
        let mut readers = JoinSet::new();
        for stream in streams {
            let (request, tally) = (request.clone(), std::rc::Rc::clone(&tally));
            readers.spawn_local(async move {
                let mut reader = Reader::open(stream, &request, None).await;
                reader.count(&tally, EVENTS as u64).await.unwrap();
            });
        }
        readers.join_all().await;
        reading += sent.elapsed().as_secs_f64();
        events += load.n * EVENTS;
    }
    // Connecting is not reading.
    let spent = watch.stop().within(reading);
    assert_eq!(tally.events(), events as u64, "events came that were not published");
    spent.figures("events", events as u64)
}
