//! Measures the RabbitMQ source: publishes messages, then takes the time until a hub has stored and
//! acknowledged them all in the embedded journal.
//!
//! `cargo run --release -p tidings --features amqp --example amqp_load -- URL [MESSAGES] [classic]`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement fails loudly")]

use std::time::Duration;

use futures_util::future::join_all;
use lapin::{Connection, ConnectionProperties, options::QueueDeclareOptions, types::FieldTable};
use tidings::{
    Hub,
    amqp::{AmqpPublisher, Message},
    auth::Secret,
    journal::{JournalSettings, embedded::EmbeddedJournal},
    source::amqp::{AmqpSettings, AmqpSource},
};
use tokio::time::Instant;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().expect("the address of a broker");
    let count: u64 = arguments.next().map_or(200_000, |text| text.parse().unwrap());
    let kind = arguments.next().unwrap_or_else(|| "quorum".to_owned());
    let name = format!("load.{:x}", getrandom::u64().unwrap());
    let settings: AmqpSettings = serde_json::from_value(serde_json::json!({
        "url": url,
        "queues": [{
            "queue": name, "exchange": name, "queue_type": kind,
            "routes": [{
                "routing_key": "team.{team}.job.{job}.status",
                "topic": "team/{team}/jobs", "class": "log",
            }],
        }],
    }))
    .unwrap();

    // The queue, by a source that goes away again.
    let hub = Hub::builder().start();
    let source = AmqpSource::start(&hub, &settings).unwrap();
    while source.failure().is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    hub.shutdown().await;
    let publisher = AmqpPublisher::new(&Secret::new(&url), &name).unwrap();
    let body = format!(r#"{{"status": "running", "note": "{}"}}"#, "x".repeat(120));
    let started = Instant::now();
    for from in (0..count).step_by(1000) {
        let messages: Vec<Message> = (from..(from + 1000).min(count))
            .map(|n| Message {
                routing_key: format!("team.{}.job.{n}.status", n % 1000),
                id: Some(format!("m{n}")),
                content_type: Some("application/json".to_owned()),
                body: body.clone().into(),
                ..Message::default()
            })
            .collect();
        for published in join_all(messages.iter().map(|m| publisher.publish(m))).await {
            published.unwrap();
        }
    }
    told("published, confirmed", count, started.elapsed());

    let directory = tempfile::tempdir().unwrap();
    let journal = EmbeddedJournal::open(directory.path(), JournalSettings::default()).unwrap();
    let hub = Hub::builder().journal(journal).start();
    let started = Instant::now();
    let _source = AmqpSource::start(&hub, &settings).unwrap();
    let stored = format!("tidings_source_messages_total{{result=\"stored\"}} {count}\n");
    while !hub.metrics_text().contains(&stored) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let asked = channel.queue_declare(name.as_str().into(), passive, FieldTable::default());
    assert_eq!(asked.await.unwrap().message_count(), 0);
    told("stored and acknowledged", count, started.elapsed());
    hub.shutdown().await;
    for queue in [name.clone(), format!("{name}.dead")] {
        channel.queue_delete(queue.as_str().into(), Default::default()).await.unwrap();
    }
}

fn told(what: &str, count: u64, took: Duration) {
    let rate = count as f64 / took.as_secs_f64();
    println!("{count} {what} in {:.1} s: {rate:.0}/s", took.as_secs_f64());
}
