//! What is counted when: latencies, lags, and why connections ended.

use std::{sync::Arc, time::Duration};

use tidings::{
    Hub,
    clock::Clock as _,
    connection::{Connection, ConnectionOptions, Envelope, Format},
    journal::{JournalSettings, memory::MemoryJournal},
    metrics::Metrics,
    settings::Settings,
    subscribe::{Follow, Since},
};
use tokio::time::advance;

use crate::support::{Seam, SeamJournal, clock, key, log, publish};

const SSE: ConnectionOptions =
    ConnectionOptions { format: Format::Sse, envelope: Envelope::CloudEvents, expires_at: None };

fn open(hub: &Hub, since: Since) -> Connection {
    let follow = Follow { since: Some(since), ..Follow::new(vec![key("t")]) };
    Connection::open(hub, follow, SSE)
}

async fn read_until(connection: &mut Connection, text: &str) {
    while let Some(bytes) = connection.next().await {
        if std::str::from_utf8(&bytes).unwrap().contains(text) {
            return;
        }
    }
    panic!("ended before {text}");
}

/// The value of a sample, by its name and labels.
fn sample(hub: &Hub, name: &str) -> Option<f64> {
    let text = hub.metrics_text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

/// Broken on purpose, it failed: with frames of replay timed, and with the time of the commit left
/// out.
#[tokio::test(start_paused = true)]
async fn a_delivery_is_timed_from_the_publish_on_and_a_replay_is_not() {
    let hub = Hub::builder().start();
    // It had a reader, so that its ring is fed.
    read_until(&mut open(&hub, Since::Now), "caught_up").await;
    publish(&hub, "t", log(1)).await;
    advance(Duration::from_secs(9)).await;
    let mut connection = open(&hub, Since::Earliest);
    connection.next().await;
    advance(Duration::from_secs(3)).await;
    read_until(&mut connection, "caught_up").await;
    assert_eq!(hub.metrics().delivery_latency.count(), 0);
    assert_eq!(sample(&hub, "tidings_catch_up_duration_seconds_sum"), Some(3.0));
    publish(&hub, "t", log(2)).await;
    advance(Duration::from_secs(2)).await;
    publish(&hub, "t", log(3)).await;
    read_until(&mut connection, "\"data\":3").await;
    // One write: of its oldest event.
    assert_eq!(sample(&hub, "tidings_delivery_latency_seconds_sum"), Some(2.0));
    assert_eq!(sample(&hub, "tidings_delivery_latency_seconds_count"), Some(1.0));
    assert_eq!(sample(&hub, "tidings_events_delivered_total"), Some(3.0));
    assert_eq!(sample(&hub, "tidings_reader_lag_events_sum{source=\"ring\"}"), Some(3.0));
    assert!(hub.metrics().delivered.get() > 0);
}

#[tokio::test]
async fn what_the_ring_does_not_hold_is_counted_as_replayed_with_its_lag() {
    let settings = Settings { ring_frames_max: 2, ..Settings::default() };
    let hub = Hub::builder().settings(settings).start();
    for number in 1..=10 {
        publish(&hub, "t", log(number)).await;
    }
    let mut connection = open(&hub, Since::Earliest);
    read_until(&mut connection, "caught_up").await;
    assert_eq!(sample(&hub, "tidings_events_replayed_total"), Some(10.0));
    assert_eq!(sample(&hub, "tidings_reader_lag_events_sum{source=\"journal\"}"), Some(10.0));
    assert_eq!(sample(&hub, "tidings_events_published_total{result=\"stored\"}"), Some(10.0));
}

#[tokio::test(start_paused = true)]
async fn a_connection_counts_once_by_why_it_ended() {
    let hub = Hub::builder().start();
    let ended = |reason: &str| {
        let name = format!("tidings_connections_ended_total{{reason=\"{reason}\"}}");
        sample(&hub, &name).unwrap_or_default()
    };
    let mut left = open(&hub, Since::Now);
    read_until(&mut left, "caught_up").await;
    // It goes while the hub waits for something to tell it, however long that took.
    let waiting = tokio::time::timeout(Duration::from_secs(5), left.next()).await;
    assert!(waiting.is_err());
    drop(left);
    assert_eq!((ended("left"), ended("slow")), (1.0, 0.0));
    let mut busy = open(&hub, Since::Now);
    read_until(&mut busy, "caught_up").await;
    drop(busy);
    assert_eq!((ended("left"), ended("slow")), (2.0, 0.0));
    let mut slow = open(&hub, Since::Now);
    read_until(&mut slow, "caught_up").await;
    advance(Duration::from_secs(10)).await;
    drop(slow);
    assert_eq!((ended("left"), ended("slow")), (2.0, 1.0));
    let mut drained = open(&hub, Since::Now);
    read_until(&mut drained, "caught_up").await;
    assert_eq!(hub.metrics().connections.get(), 1);
    hub.drain();
    read_until(&mut drained, "goaway").await;
    advance(Duration::from_secs(10)).await;
    drop(drained);
    assert_eq!((ended("left"), ended("slow"), ended("drain")), (2.0, 1.0, 1.0));
    assert_eq!(hub.metrics().connections.get(), 0);
}

#[tokio::test]
async fn a_sweep_finds_the_age_of_the_oldest_event() {
    let clock = clock();
    let hub = Hub::builder().clock(clock.clone()).start();
    publish(&hub, "t", log(1)).await;
    clock.set(clock.now().plus(Duration::from_secs(60)));
    publish(&hub, "u", log(1)).await;
    clock.set(clock.now().plus(Duration::from_secs(5)));
    hub.sweep().await.unwrap();
    assert_eq!(sample(&hub, "tidings_oldest_event_age_seconds"), Some(65.0));
}

/// Broken on purpose: with a sweep that reads the first event of each topic, it fails.
#[tokio::test]
async fn a_sweep_reads_no_topic_that_says_how_old_it_is() {
    let clock = clock();
    let memory = MemoryJournal::with_clock(JournalSettings::default(), clock.clone());
    let journal = SeamJournal::new(Arc::new(memory));
    let hub = Hub::builder().clock(clock.clone()).journal(Arc::clone(&journal) as Arc<_>).start();
    publish(&hub, "t", log(1)).await;
    clock.set(clock.now().plus(Duration::from_secs(60)));
    journal.at(Seam::BeforeRead, || async {});
    hub.sweep().await.unwrap();
    assert_eq!(sample(&hub, "tidings_oldest_event_age_seconds"), Some(60.0));
    assert!(!journal.is_done(Seam::BeforeRead));
}

#[test]
fn names_are_as_prometheus_wants_them() {
    let names = Metrics::catalogue();
    for metric in &names {
        let suffix = match (metric.kind, &metric.unit) {
            ("counter", None) => "_total".to_owned(),
            ("counter", Some(unit)) => format!("_{unit}_total"),
            ("info", _) => "_info".to_owned(),
            (_, Some(unit)) => format!("_{unit}"),
            (_, None) => String::new(),
        };
        assert!(metric.name.ends_with(&suffix), "{metric:?}");
        assert!(metric.name.starts_with("tidings_") && metric.meaning.len() > 10, "{metric:?}");
        // With a fixed number of labels of a fixed number of values each.
        assert!(metric.labels.len() <= 3, "{metric:?}");
    }
}
