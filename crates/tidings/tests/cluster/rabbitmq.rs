//! Three nodes on one PostgreSQL that tell each other by RabbitMQ.

use std::sync::Arc;

use tidings::{
    auth::Secret,
    bus::{
        Bus,
        rabbitmq::{RabbitMqBus, RabbitMqBusSettings},
    },
    subscribe::{Follow, Item},
};
use tidings_services::{Postgres, RabbitMq};
use tokio::time::timeout;

use crate::{
    history::Losses,
    load::{Load, key, publish_apart},
    nodes::{Nodes, PATIENCE, secret, soon, until},
    postgres::{journal, options},
};

/// While the broker is away, what one node appends is found by comparing, also in a topic that
/// nobody publishes to at the reader's node.
///
/// Broken on purpose: without `relay::compare` the quiet topic's event is not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_on_three_nodes_go_on_without_the_broker_of_the_bus() {
    let (server, mut broker) = (Postgres::shared().unwrap(), RabbitMq::start().unwrap());
    let (options, url) = (options(server.url()), Secret::new(broker.url()));
    let nodes = Nodes::start(|| {
        let options = options.clone();
        let settings = RabbitMqBusSettings { url: url.clone(), exchange: "bus".to_owned() };
        async move {
            let bus = RabbitMqBus::start(&settings, &secret()).unwrap();
            bus.connected().await;
            let bus: Arc<dyn Bus> = bus;
            (journal(&options).await, bus)
        }
    });
    let nodes = nodes.await;
    let load = Load::start(&nodes, &["message/1", "message/2"]).await;
    let follow = Follow::new(vec![key("message/quiet")]);
    let (mut quiet, _) = nodes.hub(1).subscribe(follow).await.unwrap();
    broker.kill().unwrap();
    let failing = || nodes.living().all(|hub| hub.bus_failure().is_some());
    until("the failure to be told", async || failing()).await;
    load.goes_on().await;
    publish_apart(nodes.hub(0), "message/quiet").await;
    let is_event = |item: &Item| matches!(item, Item::Event { .. });
    let reading = async { while !quiet.next().await.unwrap().iter().any(is_event) {} };
    assert!(timeout(PATIENCE, reading).await.is_ok(), "what nobody announces is not read");
    assert!(nodes.living().all(|hub| hub.unready().is_none()), "a hub does without its bus");
    broker.restart().unwrap();
    soon("the bus", async || nodes.living().all(|hub| hub.bus_failure().is_none())).await;
    load.goes_on().await;
    load.check(&*journal(&options).await, Losses::None).await;
}
