//! The end of a credential, for readers that are far behind.

use std::time::Duration;

use tidings::{
    Hub,
    clock::{Clock as _, SystemClock},
    connection::{Connection, ConnectionOptions, Envelope, Format},
    model::{EventType, JsonText, NewEvent, Tenant, Topic, TopicKey},
    publish::Publish,
    subscribe::{Follow, Since},
};

/// Broken on purpose: with the connection's events asked before its timers, all of the history came
/// after the end.
#[tokio::test(start_paused = true)]
async fn a_reader_that_is_behind_gets_nothing_more_once_its_credential_has_ended() {
    let hub = Hub::builder().start();
    let (tenant, topic) = (Tenant::parse("acme").unwrap(), Topic::parse("t").unwrap());
    for n in 0..2000 {
        let event = NewEvent::new(EventType::parse("x").unwrap());
        let event = event.data(JsonText::parse(&n.to_string()).unwrap());
        hub.publish_one(&tenant, Publish::new(topic.clone(), event)).await.unwrap();
    }
    let follow =
        Follow { since: Some(Since::Earliest), ..Follow::new(vec![TopicKey::new(tenant, topic)]) };
    let options = ConnectionOptions {
        format: Format::Sse,
        envelope: Envelope::CloudEvents,
        expires_at: Some(SystemClock.now().plus(Duration::from_secs(100))),
    };
    let mut connection = Connection::open(&hub, follow, options);
    for _ in 0..4 {
        connection.next().await.unwrap();
    }
    // The reader does not read for a while, and its credential ends meanwhile.
    tokio::time::advance(Duration::from_secs(101)).await;
    let mut rest = String::new();
    while let Some(bytes) = connection.next().await {
        rest.push_str(std::str::from_utf8(&bytes).unwrap());
    }
    assert!(rest.contains("\"reason\":\"expired\""), "{rest}");
    assert!(!rest.contains("specversion"), "events came after the end");
}
