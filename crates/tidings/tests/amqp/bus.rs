//! The bus while its broker fails: it says so, and works again by itself.

use std::sync::Arc;

use tidings::{
    auth::Secret,
    bus::{
        Announcement, Bus, Heard,
        rabbitmq::{RabbitMqBus, RabbitMqBusSettings},
    },
};
use tidings_services::RabbitMq;
use tokio::time::timeout;

use crate::support::{PATIENCE, key, soon, until};

fn bus(broker: &RabbitMq) -> Arc<RabbitMqBus> {
    let url = Secret::new(broker.url());
    let settings = RabbitMqBusSettings { url, exchange: "bus".to_owned() };
    RabbitMqBus::start(&settings, &Secret::new("shared")).unwrap()
}

/// Waits until this is heard, whatever else is.
async fn hears(bus: &RabbitMqBus, wanted: &Heard) {
    let hearing = async { while bus.heard().await != *wanted {} };
    assert!(timeout(PATIENCE, hearing).await.is_ok(), "{wanted:?} was not heard");
}

/// Whether what one says now is heard by the other.
async fn passes(one: &RabbitMqBus, other: &RabbitMqBus) {
    let said = Announcement::Changed { topic: key("a") };
    one.announce(said.clone());
    hears(other, &Heard::Announced(said)).await;
}

/// Broken on purpose: without `Missed` after a reconnect nothing makes up for what was not heard. Without
/// probes a stopped broker is noticed all the same, by heartbeats.
#[tokio::test]
async fn a_broker_that_stops_or_dies_is_noticed_and_missed_until_it_is_back() {
    let mut broker = RabbitMq::start().unwrap();
    let (one, other) = (bus(&broker), bus(&broker));
    one.connected().await;
    other.connected().await;
    other.follow(&key("a"));
    hears(&other, &Heard::Missed(Some(key("a")))).await;
    passes(&one, &other).await;

    broker.pause().unwrap();
    until("the silence to be told", async || one.failure().and(other.failure()).is_some()).await;
    broker.resume().unwrap();
    soon("the bus", async || one.failure().or(other.failure()).is_none()).await;
    hears(&other, &Heard::Missed(None)).await;
    passes(&one, &other).await;

    broker.kill().unwrap();
    until("the death to be told", async || one.failure().and(other.failure()).is_some()).await;
    broker.restart().unwrap();
    soon("the bus", async || one.failure().or(other.failure()).is_none()).await;
    hears(&other, &Heard::Missed(None)).await;
    passes(&one, &other).await;
    one.close().await;
    other.close().await;
}

/// The broker takes no announcements then. Nothing waits for that, and nothing grows.
#[tokio::test]
async fn a_broker_short_of_memory_makes_announcements_be_dropped() {
    let broker = RabbitMq::start().unwrap();
    let (one, other) = (bus(&broker), bus(&broker));
    one.connected().await;
    other.connected().await;
    other.follow(&key("a"));
    hears(&other, &Heard::Missed(Some(key("a")))).await;
    broker.ctl(["set_vm_memory_high_watermark", "0.00001"]).unwrap();
    until("the alarm to be told", async || {
        one.announce(Announcement::Changed { topic: key("a") });
        one.failure().is_some_and(|failure| failure.contains("short of memory"))
    })
    .await;
    for _ in 0..10_000 {
        one.announce(Announcement::Changed { topic: key("a") });
    }
    assert!(one.dropped() > 0);
    broker.ctl(["set_vm_memory_high_watermark", "0.6"]).unwrap();
    until("the bus", async || one.failure().or(other.failure()).is_none()).await;
    passes(&one, &other).await;
}

#[tokio::test]
async fn a_queue_that_is_deleted_is_made_anew() {
    let broker = RabbitMq::start().unwrap();
    let (one, other) = (bus(&broker), bus(&broker));
    one.connected().await;
    other.connected().await;
    other.follow(&key("a"));
    hears(&other, &Heard::Missed(Some(key("a")))).await;
    // Their queues have names that the broker chose.
    let queues = broker.ctl(["list_queues", "name"]).unwrap();
    for queue in queues.lines().filter(|line| line.starts_with("amq.gen")) {
        broker.ctl(["delete_queue", queue]).unwrap();
    }
    hears(&other, &Heard::Missed(None)).await;
    until("the bus", async || one.failure().or(other.failure()).is_none()).await;
    passes(&one, &other).await;
}
