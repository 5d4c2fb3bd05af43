//! What nodes tell and ask each other: who is there, and orders for connections elsewhere.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tidings::{
    Hub,
    auth::Grant,
    bus::local::LocalBus,
    error::ErrorCode,
    journal::{Journal, JournalSettings, memory::MemoryJournal},
    settings::Settings,
};

use crate::{
    identity::{ends_as, grant_with, open, read},
    support::{tenant, topic},
};

/// Waits for what other nodes are told now and then. Time is virtual.
async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect("it does not come to hold");
}

async fn names(hub: &Hub) -> Vec<String> {
    hub.nodes().await.unwrap().into_iter().map(|node| node.name).collect()
}

/// Nodes of these names that know each other.
async fn cluster<const N: usize>(names_of: [&str; N]) -> [Hub; N] {
    let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
    let bus = LocalBus::new();
    let hubs = names_of.map(|name| {
        let settings = Settings { node_name: name.to_owned(), ..Settings::default() };
        let journal = Arc::clone(&journal) as Arc<dyn Journal>;
        Hub::builder().journal(journal).bus(bus.join()).settings(settings).start()
    });
    for hub in &hubs {
        eventually(async || names(hub).await == names_of).await;
    }
    hubs
}

fn reader(topic: &str) -> Grant {
    grant_with("42", &[topic], json!({}))
}

#[tokio::test(start_paused = true)]
async fn nodes_know_each_other_and_miss_who_left() {
    let [a, b] = cluster(["a", "b"]).await;
    assert_eq!(names(&a).await, ["a", "b"]);
    let third = Hub::builder().start();
    assert_eq!(names(&third).await, ["node"], "whoever is alone knows itself");
    b.say_goodbye().await.unwrap();
    assert_eq!(names(&a).await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_order_finds_a_connection_on_whichever_node_it_is() {
    let [a, b, c] = cluster(["a", "b", "c"]).await;
    let mut one = open(&b, "t", &reader("t"));
    read(&mut one, "caught_up").await;
    let id = b.connections()[0].id.clone();
    let later = a.clock().now().plus(Duration::from_secs(600));
    let renewed = grant_with("42", &["t"], json!({ "expires_at_ms": later.as_millis() }));
    assert_eq!(a.renew_connection_anywhere(&id, &renewed).await.unwrap(), [topic("t")]);
    assert_eq!(b.connections()[0].grant.expires_at(), Some(later));
    let refused = a.renew_connection_anywhere(&id, &reader("other")).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ForbiddenTopic);
    let stranger = grant_with("43", &["t"], json!({}));
    for (id, grant) in [(&*id, &stranger), ("none", &renewed)] {
        let unknown = a.renew_connection_anywhere(id, grant).await.unwrap_err();
        assert_eq!(unknown.code, ErrorCode::NotFound);
    }
    assert!(!a.end_connection_anywhere("none").await);
    assert!(a.end_connection_anywhere(&id).await);
    ends_as(&mut one, "drain").await;
    drop(one);
    let mut two = open(&b, "t", &reader("t"));
    let mut three = open(&c, "t", &reader("t"));
    read(&mut two, "caught_up").await;
    read(&mut three, "caught_up").await;
    assert_eq!(a.end_subject_anywhere(&tenant(), "42").await, 2);
    ends_as(&mut two, "drain").await;
    ends_as(&mut three, "drain").await;
}
