//! `tidings publish --amqp`, against a real broker.

use tidings::{
    Hub,
    source::amqp::{AmqpSettings, AmqpSource},
};
use tidings_services::RabbitMq;

use crate::support::run;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_published_to_rabbitmq_and_told_if_no_queue_gets_it() {
    let directory = tempfile::tempdir().unwrap();
    let broker = RabbitMq::shared().unwrap();
    let name = format!("test.cli.{}", uuid::Uuid::now_v7());
    let publish = |url: &str, routing_key: &str| {
        let args = [
            "publish",
            "--amqp",
            url,
            "--exchange",
            &name,
            "--routing-key",
            routing_key,
            "--type",
            "job.progress",
            "--id",
            "m1",
            "--data",
            "{\"done\": 3}",
        ];
        run(directory.path(), &args)
    };
    let ran = publish(broker.url(), "team.7.job.1.status");
    assert!(ran.err.contains("no queue gets messages"), "{ran:?}");
    ran.expect(65);
    let settings: AmqpSettings = serde_json::from_value(serde_json::json!({
        "url": broker.url(),
        "queues": [{
            "queue": name, "exchange": name,
            "routes": [{"routing_key": "team.{team}.job.{job}.status", "topic": "team/{team}/jobs"}],
        }],
    }))
    .unwrap();
    let hub = Hub::builder().start();
    let source = AmqpSource::start(&hub, &settings).unwrap();
    let waited = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        while source.failure().is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap();
    let result: serde_json::Value =
        serde_json::from_str(&publish(broker.url(), "team.7.job.1.status").expect(0)).unwrap();
    assert_eq!((&result["id"], &result["exchange"]), (&"m1".into(), &name.as_str().into()));
    publish("http://guest:secret@localhost", "a").expect(64);
    let waited = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        while !hub.metrics_text().contains("source_messages_total{result=\"stored\"} 1") {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap();
    hub.shutdown().await;
}
