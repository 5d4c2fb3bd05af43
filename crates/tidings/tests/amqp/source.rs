//! Messages become events: mapping, once each, in order, and what cannot become one.

use std::{collections::HashSet, sync::Arc};

use futures_util::future::join_all;
use lapin::{
    BasicProperties,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable},
};
use tidings::{
    Hub,
    bus::local::LocalBus,
    journal::{Journal, StateQuery},
    model::Class,
    source::amqp::AmqpSource,
    subscribe::{Follow, Item, Since},
};

use crate::support::{
    PATIENCE, Site, Switched, events, events_of, header, hub, json, key, memory, message, until,
    working,
};

#[tokio::test]
async fn the_status_of_a_job_becomes_a_state_of_its_team() {
    let (site, journal) = (Site::shared(), memory());
    let (hub, source) = hub(Arc::clone(&journal) as _, &site.settings()).await;
    let publisher = site.publisher();
    let mut status = message("team.7.job.8f1c.status", "m1", r#"{"done": 1}"#);
    status.message_type = Some("job.progress".to_owned());
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    status.headers.push(("traceparent".to_owned(), trace.to_owned()));
    publisher.publish(&status).await.unwrap();
    publisher.publish(&message("team.7.job.8f1c.status", "m2", r#"{"done": 2}"#)).await.unwrap();
    publisher.publish(&message("team.7.job.9.status", "m3", r#"{"done": 3}"#)).await.unwrap();
    events_of(&*journal, "team/7/jobs", 3).await;
    let states = journal.states(&key("team/7/jobs"), StateQuery::all()).await.unwrap().events;
    let told: Vec<_> = states
        .iter()
        .map(|event| {
            let body = &event.body;
            let key = body.key.as_ref().unwrap().as_str();
            (body.id.as_str(), key, body.event_type.as_str(), json(event))
        })
        .collect();
    assert_eq!(
        told,
        [
            ("m2", "job/8f1c", "team.job.status", r#"{"done":2}"#.to_owned()),
            ("m3", "job/9", "team.job.status", r#"{"done":3}"#.to_owned()),
        ]
    );
    // The first one is superseded; its type and trace are seen on another key.
    status.routing_key = "team.8.job.1.status".to_owned();
    publisher.publish(&status).await.unwrap();
    let first = events_of(&*journal, "team/8/jobs", 1).await.remove(0).body;
    assert_eq!(first.event_type.as_str(), "job.progress");
    assert_eq!(first.extensions[0].0.as_ref(), "traceparent");
    assert_eq!(first.extensions[0].1.as_str(), format!("\"{trace}\""));
    assert_eq!(source.failure(), None);
    hub.shutdown().await;
}

#[tokio::test]
async fn a_cloud_event_keeps_its_attributes_and_may_name_its_topic() {
    let (site, journal) = (Site::shared(), memory());
    let settings = site.settings_with(serde_json::json!({
        "routing_key": "events.#", "tenant": "{header.tenant}",
    }));
    let (hub, _source) = hub(Arc::clone(&journal) as _, &settings).await;
    let publisher = site.publisher();
    let mut event = message(
        "events.anything.at.all",
        "ignored",
        r#"{"specversion": "1.0", "id": "e1", "source": "/worker", "type": "a.b",
            "topic": "user/42", "class": "state", "key": "k", "data": [1, 2]}"#,
    );
    event.content_type = Some("application/cloudevents+json; charset=utf-8".to_owned());
    event.headers.push(("tenant".to_owned(), "default".to_owned()));
    publisher.publish(&event).await.unwrap();
    let got = events_of(&*journal, "user/42", 1).await.remove(0);
    assert_eq!((got.body.id.as_str(), got.body.class, &*json(&got)), ("e1", Class::State, "[1,2]"));
    // The hub's own topics are not to be written from there.
    event.body = r#"{"specversion": "1.0", "id": "e2", "source": "/", "type": "a.b",
        "topic": "$hub/x"}"#
        .into();
    publisher.publish(&event).await.unwrap();
    let (properties, _) = site.dead_letters(1).await.remove(0);
    assert_eq!(header(&properties, "x-tidings-detail"), "the topic is the hub's own");
    hub.shutdown().await;
}

/// Broken on purpose: with an acknowledgement before `Hub::publish`, the messages do not return.
#[tokio::test]
async fn a_message_is_acknowledged_once_it_is_stored_and_an_outage_loses_none() {
    let (site, memory) = (Site::shared(), memory());
    let journal = Switched::new(Arc::clone(&memory));
    let (hub, source) = hub(Arc::clone(&journal) as _, &site.log_settings()).await;
    journal.turn(true);
    let publisher = site.publisher();
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    for name in &names {
        publisher.publish(&message("log.a", name, name)).await.unwrap();
    }
    until("the outage to be told", async || {
        source.failure().is_some_and(|failure| failure.contains("the journal"))
    })
    .await;
    assert!(events(&*memory, "log/a").await.is_empty());
    // The hub goes away before the journal is back: nothing was acknowledged.
    hub.shutdown().await;
    drop(source);
    until("the messages to return", async || site.depth(&site.name).await == 20).await;
    journal.turn(false);
    let (hub, source) = self::hub(Arc::clone(&journal) as _, &site.log_settings()).await;
    let stored = events_of(&*memory, "log/a", 20).await;
    assert_eq!(stored.iter().map(json).collect::<Vec<_>>(), names);
    // And once more, this time it comes back by itself.
    journal.turn(true);
    publisher.publish(&message("log.a", "20", "20")).await.unwrap();
    until("the outage to be told", async || source.failure().is_some()).await;
    journal.turn(false);
    assert_eq!(events_of(&*memory, "log/a", 21).await.len(), 21);
    working(&source).await;
    until("everything to be acknowledged", async || site.depth(&site.name).await == 0).await;
    hub.shutdown().await;
}

#[tokio::test]
async fn what_is_delivered_again_is_stored_once() {
    let (site, journal) = (Site::shared(), memory());
    let (hub, _source) = hub(Arc::clone(&journal) as _, &site.log_settings()).await;
    let publisher = site.publisher();
    for _ in 0..3 {
        publisher.publish(&message("log.a", "same", "1")).await.unwrap();
    }
    publisher.publish(&message("log.a", "other", "2")).await.unwrap();
    events_of(&*journal, "log/a", 2).await;
    until("all to be counted", async || {
        let text = hub.metrics_text();
        text.contains("tidings_source_messages_total{result=\"duplicate\"} 2")
            && text.contains("tidings_source_messages_total{result=\"stored\"} 2")
    })
    .await;
    let stored = events(&*journal, "log/a").await;
    assert_eq!(stored.iter().map(json).collect::<Vec<_>>(), ["1", "2"]);
    hub.shutdown().await;
}

/// Broken on purpose: with a batch that is given up at its first poison, the good ones behind it are
/// missing.
#[tokio::test]
async fn poison_goes_to_the_dead_letters_with_its_reason_and_stops_nobody() {
    let full = std::env::var_os("TESTS_FULL").is_some();
    let (good, bad) = if full { (10_000, 1_000) } else { (2_000, 200) };
    let (site, journal) = (Site::shared(), memory());
    let (hub, source) = hub(Arc::clone(&journal) as _, &site.log_settings()).await;
    let publisher = site.publisher();
    let messages: Vec<_> = (0..good + bad)
        .map(|n| match n % 11 {
            10 if n % 2 == 0 => message("log.a", &format!("m{n}"), "{broken"),
            // A segment that a topic cannot have.
            10 => message("log.a/b", &format!("m{n}"), "1"),
            _ => message("log.a", &format!("m{n}"), &n.to_string()),
        })
        .collect();
    for some in messages.chunks(500) {
        for published in join_all(some.iter().map(|m| publisher.publish(m))).await {
            published.unwrap();
        }
    }
    let stored = events_of(&*journal, "log/a", good).await;
    let wanted: Vec<String> =
        (0..good + bad).filter(|n| n % 11 != 10).map(|n| n.to_string()).collect();
    assert_eq!(stored.iter().map(json).collect::<Vec<_>>(), wanted);
    let letters = site.dead_letters(bad).await;
    let mut ids = HashSet::new();
    for (properties, body) in &letters {
        assert_eq!(header(properties, "x-tidings-reason"), "malformed");
        assert_eq!(header(properties, "x-tidings-queue"), site.name);
        assert_eq!(header(properties, "x-tidings-attempts"), "LongLongInt(1)");
        let (key, detail) =
            (header(properties, "x-tidings-routing-key"), header(properties, "x-tidings-detail"));
        match key.as_str() {
            "log.a" => assert!(body == b"{broken" && detail.starts_with("/data: "), "{detail}"),
            "log.a/b" => assert!(detail.contains("{name}"), "{detail}"),
            other => panic!("{other}"),
        }
        ids.insert(properties.message_id().clone().unwrap());
    }
    assert_eq!(ids.len(), bad);
    until("everything to be acknowledged", async || site.depth(&site.name).await == 0).await;
    assert_eq!(source.failure(), None);
    hub.shutdown().await;
    assert_eq!(site.depth(&site.name).await, 0, "something came back");
}

#[tokio::test]
async fn every_kind_of_poison_is_told_apart() {
    let (site, journal) = (Site::shared(), memory());
    let mut settings = site.log_settings();
    settings.queues[0].bindings = vec!["#".to_owned()];
    let (hub, _source) = hub(Arc::clone(&journal) as _, &settings).await;
    let (_connection, channel) = site.channel().await;
    let large = format!("\"{}\"", "x".repeat(70_000));
    let plain = BasicProperties::default().with_content_type("application/json".into());
    let mut odd = FieldTable::default();
    // The broker would send the copy there too, and delete it after a millisecond.
    odd.insert(
        "CC".into(),
        AMQPValue::FieldArray(vec![AMQPValue::LongString("log.b".into())].into()),
    );
    for (routing_key, body, properties) in [
        ("other.a", "1", plain.clone()),
        ("log.a", large.as_str(), plain.clone()),
        ("log.a", "1", plain.clone().with_content_encoding("gzip".into())),
        ("log.a", "1", plain.clone().with_message_id("a\nb".into())),
        ("log.a", "1", plain.clone().with_type("Not.A.Type".into())),
        (
            "log.a",
            "[]",
            plain.clone().with_content_type("application/cloudevents-batch+json".into()),
        ),
        (
            "log.a",
            "{",
            plain
                .clone()
                .with_headers(odd)
                .with_expiration("60000".into())
                .with_user_id("guest".into()),
        ),
        ("log.a", "\"good\"", plain),
    ] {
        let options = BasicPublishOptions::default();
        let (name, key) = (site.name.as_str().into(), routing_key.into());
        let published =
            channel.basic_publish(name, key, options, body.as_bytes(), properties).await;
        published.unwrap().await.unwrap();
    }
    let letters = site.dead_letters(7).await;
    let mut reasons: Vec<String> =
        letters.iter().map(|(properties, _)| header(properties, "x-tidings-reason")).collect();
    reasons.sort();
    let mut wanted = vec!["unmapped", "too_large", "unsupported_media_type"];
    wanted.extend(["malformed"; 4]);
    wanted.sort_unstable();
    assert_eq!(reasons, wanted);
    for (properties, _) in &letters {
        assert_eq!(properties.expiration(), &None);
        assert_eq!(header(properties, "CC"), "");
    }
    let kept = letters.iter().filter(|(p, _)| header(p, "x-tidings-user-id") == "guest").count();
    assert_eq!(kept, 1);
    assert_eq!(events_of(&*journal, "log/a", 1).await.len(), 1);
    hub.shutdown().await;
}

/// The queue was declared by the application, with other properties.
#[tokio::test]
async fn a_queue_that_is_there_is_taken_as_it_is() {
    let (site, journal) = (Site::shared(), memory());
    let (_connection, channel) = site.channel().await;
    let durable = lapin::options::QueueDeclareOptions::durable();
    channel.queue_declare(site.name.as_str().into(), durable, FieldTable::default()).await.unwrap();
    let (hub, _source) = hub(Arc::clone(&journal) as _, &site.log_settings()).await;
    let publisher = site.publisher();
    publisher.publish(&message("log.a", "1", "1")).await.unwrap();
    publisher.publish(&message("log.a", "2", "{")).await.unwrap();
    events_of(&*journal, "log/a", 1).await;
    let (properties, _) = site.dead_letters(1).await.remove(0);
    assert_eq!(header(&properties, "x-tidings-reason"), "malformed");
    hub.shutdown().await;
}

/// In what this replaces, each of two nodes saw half.
#[tokio::test]
async fn readers_on_both_of_two_hubs_see_every_message_of_their_queue() {
    const COUNT: u64 = 500;
    let (site, journal, bus) = (Site::shared(), memory(), LocalBus::new());
    let mut settings = site.log_settings();
    settings.queues[0].single_active_consumer = false;
    let node = |bus| {
        let hub = Hub::builder().journal(Arc::clone(&journal) as Arc<dyn Journal>).bus(bus).start();
        let source = AmqpSource::start(&hub, &settings).unwrap();
        (hub, source)
    };
    let nodes = [node(bus.join()), node(bus)];
    let mut readers = Vec::new();
    for (hub, source) in &nodes {
        working(source).await;
        let follow = Follow { since: Some(Since::Now), ..Follow::new(vec![key("log/a")]) };
        readers.push(hub.subscribe(follow).await.unwrap().0);
    }
    let publisher = site.publisher();
    let messages: Vec<_> =
        (0..COUNT).map(|n| message("log.a", &format!("m{n}"), &n.to_string())).collect();
    for published in join_all(messages.iter().map(|message| publisher.publish(message))).await {
        published.unwrap();
    }
    for mut reader in readers {
        let mut seen = Vec::new();
        let reading = async {
            while seen.len() < COUNT as usize {
                for item in reader.next().await.unwrap() {
                    if let Item::Event { frame, .. } = item {
                        seen.push(String::from_utf8(frame.data().to_vec()).unwrap());
                    }
                }
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, reading).await;
        assert!(in_time.is_ok(), "{} of {COUNT}", seen.len());
        let distinct: HashSet<&String> = seen.iter().collect();
        assert_eq!((distinct.len(), seen.len()), (COUNT as usize, COUNT as usize));
    }
    for (hub, _) in &nodes {
        assert!(hub.metrics_text().contains("result=\"stored\""), "one hub did nothing");
        hub.shutdown().await;
    }
}
