//! How long a hub that was killed takes until it serves again, with so many events stored.

use super::{Load, fill};
use crate::{
    figure::{Figure, Unit},
    server::{Kind, Server, Setup},
};

/// Topics that the events are spread over.
const TOPICS: usize = 100;

pub(super) async fn measure(kind: Kind, load: Load) -> Vec<Figure> {
    let mut server = Server::start(kind, Setup::default().keep_all());
    for topic in 0..TOPICS {
        fill(&server.target, topic, 0, load.n / TOPICS).await;
    }
    server.restart();
    vec![
        Figure::new("start", Unit::Seconds, server.started_in.as_secs_f64()),
        Figure::new("RSS", Unit::MiB, server.resident_bytes() / 1024.0 / 1024.0),
    ]
}
