//! A broker of one's own, broken in every way: whatever was confirmed to its publisher is an event
//! afterwards, once, and nobody restarts anything.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use lapin::options::QueueDeleteOptions;
use tidings::{journal::memory::MemoryJournal, source::amqp::QueueType};
use tidings_services::RabbitMq;
use tokio::task::JoinHandle;

use crate::support::{
    Site, events, events_of, header, hub, json, memory, message, soon, until, working,
};

/// Publishes numbers until it is told to stop; each until it is confirmed.
struct Load {
    stop: Arc<AtomicBool>,
    confirmed: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Load {
    fn start(site: &Site) -> Self {
        let (stop, confirmed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (publisher, stopped, count) = (site.publisher(), stop.clone(), confirmed.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                let number = count.load(Ordering::SeqCst);
                let message = message("log.a", &format!("m{number}"), &number.to_string());
                // While the broker is away or the queue too: the same once more.
                while publisher.publish(&message).await.is_err() {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { stop, confirmed, task }
    }

    /// Waits until some more are confirmed.
    async fn goes_on(&self) {
        let before = self.confirmed.load(Ordering::SeqCst);
        until("more messages", async || self.confirmed.load(Ordering::SeqCst) > before + 50).await;
    }

    /// Ends it; every number must be in the journal, once and in order.
    async fn check(self, journal: &MemoryJournal) {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
        let count = self.confirmed.load(Ordering::SeqCst);
        let stored = events_of(journal, "log/a", count as usize).await;
        let numbers: Vec<String> = (0..count).map(|number| number.to_string()).collect();
        assert_eq!(stored.iter().map(json).collect::<Vec<_>>(), numbers);
    }
}

/// Kills a broker twice under load, with a queue of some type.
async fn is_killed_and_restarted(queue_type: QueueType) {
    let mut broker = RabbitMq::start().unwrap();
    let (site, journal) = (Site::at(&broker.url()), memory());
    let mut settings = site.log_settings();
    settings.queues[0].queue_type = queue_type;
    let (hub, source) = hub(Arc::clone(&journal) as _, &settings).await;
    let load = Load::start(&site);
    for _ in 0..2 {
        load.goes_on().await;
        broker.kill().unwrap();
        until("the failure to be told", async || source.failure().is_some()).await;
        assert_eq!(hub.unready(), None, "the hub goes on without its source");
        broker.restart().unwrap();
        if queue_type == QueueType::Quorum {
            // Those of a single node may come back without a leader (rabbitmq-server issue 10070).
            for queue in [site.name.clone(), format!("{}.dead", site.name)] {
                let election = format!("ra:trigger_election({{'%2F_{queue}', node()}}).");
                broker.ctl(["eval", &election]).unwrap();
            }
        }
        soon("the source", async || source.failure().is_none()).await;
    }
    load.goes_on().await;
    load.check(&journal).await;
    assert!(hub.metrics_text().contains("tidings_source_queues_failing 0"));
    hub.shutdown().await;
}

#[tokio::test]
async fn channels_and_connections_that_the_broker_closes_are_made_anew() {
    let broker = RabbitMq::start().unwrap();
    let (site, journal) = (Site::at(&broker.url()), memory());
    let (hub, source) = hub(Arc::clone(&journal) as _, &site.log_settings()).await;
    let load = Load::start(&site);
    for _ in 0..3 {
        load.goes_on().await;
        broker.ctl(["close_all_connections", "for a test"]).unwrap();
    }
    load.goes_on().await;
    load.check(&journal).await;
    working(&source).await;
    hub.shutdown().await;
}

#[tokio::test]
async fn a_broker_that_is_killed_and_restarted_costs_nothing() {
    is_killed_and_restarted(QueueType::Classic).await;
}

/// The default: what was confirmed is on the disk of the broker.
#[tokio::test]
async fn a_quorum_queue_whose_broker_is_killed_and_restarted_costs_nothing() {
    is_killed_and_restarted(QueueType::Quorum).await;
}

/// What was in the queue is gone, by whoever deleted it; what comes later is not.
#[tokio::test]
async fn a_queue_that_is_deleted_is_declared_again() {
    let site = Site::shared();
    let journal = memory();
    let (hub, _source) = hub(Arc::clone(&journal) as _, &site.log_settings()).await;
    let publisher = site.publisher();
    publisher.publish(&message("log.a", "1", "1")).await.unwrap();
    events_of(&*journal, "log/a", 1).await;
    let (_connection, channel) = site.channel().await;
    let deleted = channel.queue_delete(site.name.as_str().into(), QueueDeleteOptions::default());
    deleted.await.unwrap();
    until("the queue", async || publisher.publish(&message("log.a", "2", "2")).await.is_ok()).await;
    assert_eq!(events_of(&*journal, "log/a", 2).await.len(), 2);
    // The dead letters' too, with the next one that is for it.
    let (_connection, channel) = site.channel().await;
    let dead = format!("{}.dead", site.name);
    let deleted = channel.queue_delete(dead.as_str().into(), QueueDeleteOptions::default());
    deleted.await.unwrap();
    publisher.publish(&message("log.a", "3", "{")).await.unwrap();
    until("the dead letters", async || {
        let (_connection, channel) = site.channel().await;
        let passive = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        let name = dead.as_str().into();
        channel.queue_declare(name, passive, Default::default()).await.is_ok()
    })
    .await;
    let (properties, body) = site.dead_letters(1).await.remove(0);
    assert_eq!(
        (header(&properties, "x-tidings-attempts"), body),
        ("LongLongInt(2)".into(), b"{".into())
    );
    hub.shutdown().await;
}

/// A broker that is short of memory takes no messages, dead letters neither. Its consumers are what
/// helps it: they must not wait for anything that is published.
///
/// Broken on purpose: with poison that is never handed back, the good ones behind a window of it are never
/// delivered.
#[tokio::test]
async fn a_broker_short_of_memory_is_drained_all_the_same() {
    let broker = RabbitMq::start().unwrap();
    let (site, journal) = (Site::at(&broker.url()), memory());
    let mut settings = site.log_settings();
    settings.queues[0].prefetch = 20;
    let (first, source) = hub(Arc::clone(&journal) as _, &settings).await;
    // Its connection for dead letters is open before the alarm.
    let publisher = site.publisher();
    publisher.publish(&message("log.a", "0", "{")).await.unwrap();
    site.dead_letters(1).await;
    first.shutdown().await;
    drop(source);
    for number in 1..=100 {
        let body = if number <= 60 { "{" } else { "1" };
        publisher.publish(&message("log.a", &number.to_string(), body)).await.unwrap();
    }
    broker.ctl(["set_vm_memory_high_watermark", "0.00001"]).unwrap();
    let journal = memory();
    let (hub, _source) = hub(Arc::clone(&journal) as _, &settings).await;
    // Forty good ones, behind three windows of poison.
    assert_eq!(events_of(&*journal, "log/a", 40).await.len(), 40);
    broker.ctl(["set_vm_memory_high_watermark", "0.6"]).unwrap();
    // Each at least once: a letter that the broker had, but could not confirm in time, was sent again.
    let mut ids = std::collections::HashSet::new();
    while ids.len() < 60 {
        let (properties, _) = site.dead_letters(1).await.remove(0);
        ids.insert(properties.message_id().clone());
    }
    assert_eq!(events(&*journal, "log/a").await.len(), 40);
    hub.shutdown().await;
}
