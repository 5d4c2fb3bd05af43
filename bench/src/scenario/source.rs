//! Messages that wait in a RabbitMQ queue: how fast a hub stores them in its embedded journal and
//! acknowledges them.
//!
//! The queue is what the hub declares by itself: quorum, with dead letters. The broker runs beside
//! the load generator.

use std::time::Duration;

use tidings::{
    amqp::{AmqpPublisher, Message},
    auth::Secret,
};
use tidings_services::RabbitMq;
use tokio::time::{sleep, timeout};

use super::{DATA_BYTES, Load, Watch};
use crate::{
    client::{Publisher, WAIT_MAX},
    figure::Figure,
    server::{Kind, Server, Setup},
};

/// The exchange of the source that the variable asks for.
const EXCHANGE: &str = "events.topic";
/// Topics that the messages are for, by their routing keys.
const TEAMS: usize = 1000;
/// Messages that are on their way to the broker at once.
const TOGETHER: usize = 1000;
/// How often the hub is asked how far it is.
const ASKED_EVERY: Duration = Duration::from_millis(20);

pub(super) async fn measure(kind: Kind, load: Load) -> Vec<Figure> {
    let rabbitmq = RabbitMq::start().unwrap();
    let settings =
        vec![("RABBITMQ_URL", rabbitmq.url()), ("TIDINGS_METRICS_PUBLIC", "true".to_owned())];
    let mut server = Server::start(kind, Setup { settings, ..Setup::default() });
    let publisher = AmqpPublisher::new(&Secret::new(rabbitmq.url()), EXCHANGE).unwrap();
    let declared = async {
        // No message is taken before the hub has made its queue.
        while publisher.publish(&message(0)).await.is_err() {
            sleep(ASKED_EVERY).await;
        }
    };
    timeout(WAIT_MAX, declared).await.expect("the hub declares its queue");
    server.end();
    for from in (1..=load.n).step_by(TOGETHER) {
        let some: Vec<Message> = (from..=load.n.min(from + TOGETHER - 1)).map(message).collect();
        let publishing = some.iter().map(|message| publisher.publish(message));
        futures_util::future::try_join_all(publishing).await.unwrap();
    }
    server.restart();
    let watch = Watch::start(&server).and(&[("RabbitMQ CPU", rabbitmq.id())]);
    let mut asking = Publisher::connect(&server.target).await;
    while stored(asking.ask(b"GET /metrics HTTP/1.1\r\nhost: bench\r\n\r\n").await) < load.n {
        sleep(ASKED_EVERY).await;
    }
    watch.stop().figures("messages", load.n as u64)
}

fn message(number: usize) -> Message {
    Message {
        routing_key: format!("team.{}.job.{number}.status", number % TEAMS),
        id: Some(format!("m{number}")),
        content_type: Some("application/json".to_owned()),
        body: format!("\"{}\"", "x".repeat(DATA_BYTES)).into(),
        ..Message::default()
    }
}

/// How many the hub says it has stored.
fn stored(metrics: &[u8]) -> usize {
    let name = "tidings_source_messages_total{result=\"stored\"} ";
    let text = String::from_utf8_lossy(metrics);
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.map_or(0, |value| value.parse().unwrap())
}
