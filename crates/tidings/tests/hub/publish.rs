//! Publishing through the hub.

use std::{sync::Arc, time::Duration};

use tidings::{
    Hub,
    error::ErrorCode,
    journal::{Change, Dedup, Properties},
    model::{Class, EventId, NewEvent, Offset, limits::DEDUP_WINDOW},
    publish::Publish,
    subscribe::Follow,
};

use crate::support::{
    catch_up, clock, event, follow, key, log, publish, state, take, tenant, topic,
};

#[tokio::test]
async fn events_of_one_request_keep_their_order_per_topic() {
    let hub = Hub::builder().start();
    let events = (0..50).map(|n| Publish::new(topic(["a", "b"][n % 2]), log(n as u64))).collect();
    let results = hub.publish(&tenant(), events).await;
    for (n, result) in results.into_iter().enumerate() {
        let published = result.unwrap();
        assert_eq!(published.topic, topic(["a", "b"][n % 2]));
        assert_eq!(published.position.unwrap().offset, Offset(n as u64 / 2 + 1));
    }
}

#[tokio::test]
async fn a_repeated_id_is_answered_with_the_first_position() {
    let hub = Hub::builder().start();
    let mut again = Publish::new(topic("a"), log(1));
    again.event.id = EventId::parse("mine").unwrap();
    again.dedup = Dedup::ById;
    let first = hub.publish_one(&tenant(), again.clone()).await.unwrap();
    publish(&hub, "a", log(2)).await;
    let second = hub.publish_one(&tenant(), again).await.unwrap();
    assert!(!first.duplicate && second.duplicate);
    assert_eq!(first.position, second.position);
}

#[tokio::test]
async fn a_conflict_tells_the_current_state_and_fails_no_other_event() {
    let hub = Hub::builder().start();
    publish(&hub, "a", state("k", 1)).await;
    let conflicting =
        Publish { if_offset: Some(Offset::ZERO), ..Publish::new(topic("a"), state("k", 2)) };
    let events = vec![conflicting, Publish::new(topic("a"), log(3))];
    let mut results = hub.publish(&tenant(), events).await;
    let stored = results.pop().unwrap().unwrap();
    assert_eq!(stored.position.unwrap().offset, Offset(2));
    let problem = results.pop().unwrap().unwrap_err();
    assert_eq!(problem.code, ErrorCode::Conflict);
    let current = serde_json::to_value(problem.to_json()).unwrap()["current"].clone();
    assert_eq!((current["data"].as_u64(), current["key"].as_str()), (Some(1), Some("k")));
}

#[tokio::test]
async fn an_event_can_close_its_topic_and_what_follows_is_refused() {
    let hub = Hub::builder().start();
    let last = Publish { close: true, ..Publish::new(topic("a"), log(1)) };
    let results = hub.publish(&tenant(), vec![last, Publish::new(topic("a"), log(2))]).await;
    let codes: Vec<_> = results.into_iter().map(|r| r.map_err(|p| p.code).err()).collect();
    assert_eq!(codes, [None, Some(ErrorCode::TopicClosed)]);
}

#[tokio::test]
async fn an_ephemeral_event_reaches_readers_without_a_place() {
    let hub = Hub::builder().start();
    let mut reader = follow(&hub, Follow::new(vec![key("a")])).await;
    assert_eq!(catch_up(&mut reader).await, []);
    let mut typing = Publish::new(topic("a"), log(7));
    typing.event.class = Class::Ephemeral;
    let published = hub.publish_one(&tenant(), typing).await.unwrap();
    assert_eq!(published.position, None);
    assert_eq!(take(&mut reader, 1).await, [event("ephemeral", 0, 7)]);
    assert_eq!(hub.describe(&key("a")).await.unwrap().head.tail, Offset(1));
}

#[tokio::test]
async fn an_idempotency_key_makes_a_request_repeatable_and_is_bound_to_its_body() {
    let hub = Hub::builder().start();
    let request = || vec![Publish::new(topic("a"), log(1)), Publish::new(topic("b"), log(2))];
    let mut positions = Vec::new();
    let bind = async |scope: &str, body: &[u8], events: &mut Vec<Publish>| {
        let numbered = events.iter_mut().enumerate();
        hub.bind_idempotency_key(&tenant(), scope, "once", body, numbered).await
    };
    for _ in 0..2 {
        let mut events = request();
        bind("key:x", b"body", &mut events).await.unwrap();
        let results = hub.publish(&tenant(), events).await;
        positions.push(results.into_iter().map(|r| r.unwrap().position).collect::<Vec<_>>());
    }
    assert_eq!(positions[0], positions[1]);
    assert_eq!(hub.describe(&key("a")).await.unwrap().head.tail, Offset(2));
    let other = bind("key:x", b"else", &mut request()).await;
    assert_eq!(other.unwrap_err().code, ErrorCode::IdempotencyKeyReused);
    bind("key:y", b"else", &mut request()).await.unwrap();
}

#[tokio::test]
async fn a_repeat_finds_its_events_although_another_of_the_request_was_refused_then() {
    let hub = Hub::builder().start();
    let publish = async |places: &[usize]| {
        let event = |place: &usize| Publish::new(topic("a"), log(*place as u64));
        let mut events: Vec<_> = places.iter().map(event).collect();
        let numbered = places.iter().copied().zip(&mut events);
        hub.bind_idempotency_key(&tenant(), "key:x", "once", b"body", numbered).await.unwrap();
        let results = hub.publish(&tenant(), events).await;
        results.into_iter().map(|result| result.unwrap().duplicate).collect::<Vec<_>>()
    };
    assert_eq!(publish(&[0, 2]).await, [false, false]);
    assert_eq!(publish(&[0, 1, 2]).await, [true, false, true]);
}

#[tokio::test]
async fn an_idempotency_key_used_anew_after_its_window_swallows_nothing() {
    let clock = clock();
    let hub = Hub::builder().clock(Arc::clone(&clock) as Arc<_>).start();
    let publish = async |body: &[u8], number| {
        let mut event = Publish::new(topic("a"), log(number));
        let numbered = [(0, &mut event)];
        hub.bind_idempotency_key(&tenant(), "key:x", "daily", body, numbered).await.unwrap();
        hub.publish_one(&tenant(), event).await.unwrap().duplicate
    };
    assert!(!publish(b"one", 1).await);
    clock.set(tidings::clock::Clock::now(&*clock).plus(DEDUP_WINDOW + Duration::from_secs(1)));
    hub.expire().await.unwrap();
    assert!(!publish(b"two", 2).await, "another body's event is another event");
}

#[tokio::test]
async fn a_closed_topic_takes_no_ephemeral_event_and_ends_its_expired_states() {
    let clock = clock();
    let hub = Hub::builder().clock(Arc::clone(&clock) as Arc<_>).start();
    let now = tidings::clock::Clock::now(&*clock);
    let expiring = NewEvent { expires_at: Some(now.plus(Duration::from_secs(5))), ..state("k", 1) };
    let last = Publish { close: true, ..Publish::new(topic("a"), expiring) };
    hub.publish_one(&tenant(), last).await.unwrap();
    let typing = NewEvent { class: Class::Ephemeral, ..log(1) };
    let refused = hub.publish_one(&tenant(), Publish::new(topic("a"), typing)).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::TopicClosed);
    clock.set(now.plus(Duration::from_secs(6)));
    hub.expire().await.unwrap();
    let info = hub.describe(&key("a")).await.unwrap();
    assert_eq!((info.states, info.head.closed, info.head.tail), (0, true, Offset(3)));
}

#[tokio::test]
async fn a_topic_is_deleted_at_the_end_of_its_ttl_unless_it_was_written_meanwhile() {
    let clock = clock();
    let hub = Hub::builder().clock(Arc::clone(&clock) as Arc<_>).start();
    let ttl = Some(Duration::from_secs(10));
    let change = Change::to(Properties { ttl, ..Properties::default() });
    hub.set_properties(&key("a"), change).await.unwrap().unwrap();
    for _ in 0..3 {
        publish(&hub, "a", log(1)).await;
        clock.set(tidings::clock::Clock::now(&*clock).plus(Duration::from_secs(9)));
        hub.sweep().await.unwrap();
        assert!(hub.describe(&key("a")).await.unwrap().exists);
    }
    clock.set(tidings::clock::Clock::now(&*clock).plus(Duration::from_secs(2)));
    hub.sweep().await.unwrap();
    assert!(!hub.describe(&key("a")).await.unwrap().exists);
}

#[tokio::test]
async fn an_expired_state_ends_by_a_tombstone_that_readers_see() {
    let clock = clock();
    let hub = Hub::builder().clock(Arc::clone(&clock) as Arc<_>).start();
    let now = tidings::clock::Clock::now(&*clock);
    let mut expiring = state("k", 1);
    expiring.expires_at = Some(now.plus(Duration::from_secs(5)));
    publish(&hub, "a", expiring).await;
    let mut reader = follow(&hub, Follow::new(vec![key("a")])).await;
    assert_eq!(catch_up(&mut reader).await, [event("state", 1, 1)]);
    assert_eq!(hub.expire().await.unwrap(), 0);
    clock.set(now.plus(Duration::from_secs(6)));
    // The hub's own sweep may have been faster.
    hub.expire().await.unwrap();
    assert_eq!(take(&mut reader, 1).await, [event("state", 2, "null")]);
    assert_eq!(hub.describe(&key("a")).await.unwrap().states, 0);
}

#[tokio::test]
async fn many_publishers_of_one_topic_get_dense_offsets_and_readers_see_them_in_order() {
    let hub = Hub::builder().start();
    let mut reader = follow(&hub, Follow::new(vec![key("a")])).await;
    let publishers = (0..8_u64).map(|p| {
        let hub = hub.clone();
        tokio::spawn(async move {
            for n in 0..100 {
                publish(&hub, "a", log(p * 100 + n)).await;
            }
        })
    });
    let publishers: Vec<_> = publishers.collect();
    let got = take(&mut reader, 800).await;
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let offsets: Vec<u64> = got
        .iter()
        .map(|got| match got {
            crate::support::Got::Event(_, offset, _) => *offset,
            other => panic!("unexpected {other:?}"),
        })
        .collect();
    assert_eq!(offsets, (1..=800).collect::<Vec<_>>());
}
