//! Appending, closing and opening again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]
#![allow(missing_docs, reason = "a case's name is the sentence that it proves")]

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;

use super::{Store, sample::*};
use crate::{
    journal::{
        Append, Batch, Dedup, DueKind, Head, JournalError, JournalSettings, Outcome, Refusal,
    },
    model::{
        Class, Data, EventId, EventType, Fingerprint, JsonText, NewEvent, Offset, StateKey,
        event::Attribute, limits::EVENT_BYTES_MAX,
    },
};

pub async fn offsets_are_dense_from_1_in_the_order_of_the_batch(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let first = put(&*store, &topic, [log("a"), state("k", "b"), log("c")]).await;
    let second = put(&*store, &topic, [tombstone("k")]).await;
    assert_eq!(offsets(&first.events), [1, 2, 3]);
    assert_eq!(offsets(&second.events), [4]);
    for (index, outcome) in first.outcomes.iter().enumerate() {
        assert_eq!(stored(outcome), position(&first, index));
    }
    let last = position(&second, 0);
    assert_eq!(second.head.end(), last);
    let head =
        Head { tail: Offset(5), tail_fingerprint: last.fingerprint, ..Head::empty(last.epoch) };
    assert_eq!(second.head, head);
}

pub async fn concurrent_appenders_get_dense_offsets_and_no_two_the_same(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topics = [topic("a"), topic("b"), topic("c")];
    let appends = (0..96).map(|n| put_one(&*store, &topics[n % 3], log(&n.to_string())));
    let outcomes = join_all(appends).await;
    for (index, topic) in topics.iter().enumerate() {
        let own = outcomes.iter().skip(index).step_by(3);
        let mut given: Vec<u64> = own.map(|outcome| stored(outcome).offset.0).collect();
        given.sort_unstable();
        assert_eq!(given, (1..=32).collect::<Vec<_>>());
        let page = read(&*store, topic, 0).await;
        assert_eq!(offsets(&page.events), given);
        for (n, outcome) in outcomes.iter().enumerate().skip(index).step_by(3) {
            let held = &page.events[usize::try_from(stored(outcome).offset.0).unwrap() - 1];
            assert_eq!(held.fingerprint, stored(outcome).fingerprint);
            assert_eq!(held.body.data, Data::Json(JsonText::string(&n.to_string())));
        }
    }
}

pub async fn a_batch_of_concurrent_appenders_is_never_interleaved(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let appends = (0..16).map(|_| put(&*store, &topic, (0..5).map(|n| log(&n.to_string()))));
    for appended in join_all(appends).await {
        let first = appended.events[0].offset.0;
        assert_eq!(offsets(&appended.events), (first..first + 5).collect::<Vec<_>>());
        assert_eq!(appended.head.tail, Offset(first + 5));
        assert_eq!(read(&*store, &topic, first - 1).await.events[..5], appended.events);
    }
}

pub async fn refused_events_take_no_offset_and_fail_no_others(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let events = [log("a"), state("k", "b").if_offset(7), log("c"), state("k", "d").if_offset(0)];
    let appended = put(&*store, &topic, events).await;
    assert_eq!(stored(&appended.outcomes[0]).offset, Offset(1));
    let refused = Outcome::Refused(Refusal::Conflict { current: None });
    assert_eq!(appended.outcomes[1], refused);
    assert_eq!(stored(&appended.outcomes[2]).offset, Offset(2));
    assert_eq!(stored(&appended.outcomes[3]).offset, Offset(3));
    assert_eq!(offsets(&appended.events), [1, 2, 3]);
    assert_eq!(read(&*store, &topic, 0).await.events, appended.events);
}

pub async fn an_empty_batch_changes_nothing_and_creates_nothing(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let appended = store.append(&topic, batch([])).await.unwrap();
    assert_eq!(appended.head, Head::empty(appended.head.epoch));
    assert!(appended.outcomes.is_empty() && appended.events.is_empty());
    assert!(!store.describe(&topic).await.unwrap().exists);
    let before = put(&*store, &topic, [log("a")]).await.head;
    assert_eq!(store.append(&topic, batch([])).await.unwrap().head, before);
}

pub async fn a_batch_of_refused_events_creates_nothing(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, [state("k", "a").if_offset(3)]).await;
    assert!(!store.describe(&topic).await.unwrap().exists);
}

pub async fn every_field_of_an_event_comes_back(factory: impl AsyncFn(JournalSettings) -> Store) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    let name = |text: &str| Some(Attribute::parse(text).unwrap());
    let full = NewEvent {
        id: EventId::parse("id/with spaces and ünïcode").unwrap(),
        event_type: EventType::parse("source.ingest.progress").unwrap(),
        class: Class::State,
        key: Some(StateKey::parse("run/8f1c").unwrap()),
        source: name("/worker"),
        subject: name("run/8f1c"),
        time: Some(at(5)),
        data: Data::Binary {
            content_type: Attribute::parse("image/png").unwrap(),
            bytes: Bytes::from_static(b"\x89\0\xff\r\n"),
        },
        extensions: vec![("traceparent".into(), JsonText::string("00-1"))],
        expires_at: Some(at(9_000)),
        due_at: Some(at(8_000)),
        delete: false,
    };
    let bare = NewEvent::new(EventType::parse("x").unwrap());
    let nul = bare.clone().data(JsonText::string("\0\r\n\u{2028}"));
    let events = [full, bare, nul];
    let appends = events
        .iter()
        .map(|event| Append { dedup: Dedup::ById, ..Append::new(Arc::new(event.clone())) });
    // Equal ids would be duplicates.
    let appends = appends.enumerate().map(|(n, append)| match n {
        2 => append.id("another"),
        _ => append,
    });
    let appended = put(&*store, &topic, appends).await;
    assert_eq!(*appended.events[0].body, events[0]);
    assert_eq!(*appended.events[1].body, events[1]);
    assert_eq!(appended.events[2].body.data, events[2].data);
    assert_eq!(read(&*store, &topic, 0).await.events, appended.events);
    if store.reopen().await {
        assert_eq!(read(&*store, &topic, 0).await.events, appended.events);
    }
}

pub async fn the_largest_events_come_back(factory: impl AsyncFn(JournalSettings) -> Store) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let text = "x".repeat(EVENT_BYTES_MAX - 2);
    let appended = put(&*store, &topic, (0..40).map(|_| log(&text))).await;
    assert_eq!(appended.events[0].body.data.len(), EVENT_BYTES_MAX);
    assert_eq!(read(&*store, &topic, 0).await.events, appended.events);
}

pub async fn recorded_at_never_goes_back_although_the_clock_does(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    for now in [5_000, 1_000, 5_001] {
        put_at(&*store, now, &topic, [log("a")]).await;
        store.reopen().await;
    }
    let times: Vec<u64> =
        read(&*store, &topic, 0).await.events.iter().map(|e| e.recorded_at.as_millis()).collect();
    assert_eq!(times, [5_000, 5_000, 5_001]);
    assert_eq!(store.describe(&topic).await.unwrap().written_at, at(5_001));
}

pub async fn a_closed_topic_refuses_events_and_closing_twice_is_no_error(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, [log("a").id("1")]).await;
    for _ in 0..2 {
        let closed = store.append(&topic, Batch { close: true, ..batch([]) }).await.unwrap();
        assert!(closed.head.closed);
        assert_eq!(closed.head.tail, Offset(2));
        let refused = put(&*store, &topic, [log("b"), log("c")]).await;
        assert_eq!(refused.outcomes, vec![Outcome::Refused(Refusal::Closed); 2]);
        assert_eq!(refused.head, closed.head);
        store.reopen().await;
    }
    assert!(read(&*store, &topic, 0).await.head.closed);
    assert!(store.describe(&topic).await.unwrap().head.closed);
}

pub async fn a_batch_that_closes_stores_its_events_first(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let close = Batch { close: true, ..batch([log("a"), log("b")]) };
    let appended = store.append(&topic, close).await.unwrap();
    assert_eq!(offsets(&appended.events), [1, 2]);
    assert!(appended.head.closed);
    assert_eq!(appended.head.tail, Offset(3));
    let again = Batch { close: true, ..batch([log("c")]) };
    let appended = store.append(&topic, again).await.unwrap();
    assert_eq!(appended.outcomes, [Outcome::Refused(Refusal::Closed)]);
    assert_eq!(read(&*store, &topic, 0).await.events.len(), 2);
}

pub async fn an_event_that_closes_its_topic_is_its_last(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    let events = [log("a"), log("b").id("b").closing(), log("c")];
    let appended = put(&*store, &topic, events).await;
    assert_eq!(offsets(&appended.events), [1, 2]);
    assert_eq!(appended.outcomes[2], Outcome::Refused(Refusal::Closed));
    assert!(appended.head.closed);
    store.reopen().await;
    assert!(store.describe(&topic).await.unwrap().head.closed);
    // Whoever repeats it learns where it is.
    let again = put_one(&*store, &topic, log("b").id("b").closing()).await;
    assert!(matches!(again, Outcome::Duplicate(at) if at.offset == Offset(2)), "{again:?}");
}

pub async fn a_refused_event_closes_nothing_and_a_repeated_one_does(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let refused = put_one(&*store, &topic, state("k", "a").if_offset(7).closing()).await;
    assert!(matches!(refused, Outcome::Refused(Refusal::Conflict { .. })), "{refused:?}");
    assert!(!store.describe(&topic).await.unwrap().exists);
    put(&*store, &topic, [log("a").id("a")]).await;
    put(&*store, &topic, [state("k", "a").if_offset(7).closing()]).await;
    assert!(!store.describe(&topic).await.unwrap().head.closed);
    let repeated = put(&*store, &topic, [log("a").id("a").closing(), log("b")]).await;
    assert!(matches!(repeated.outcomes[0], Outcome::Duplicate(_)));
    assert_eq!(repeated.outcomes[1], Outcome::Refused(Refusal::Closed));
    assert!(store.describe(&topic).await.unwrap().head.closed);
}

pub async fn a_closed_topic_takes_the_end_of_an_expired_state(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, [state("k", "a").times(Some(1), None).closing()]).await;
    let due = async || store.due(DueKind::Expired, at(2000), 10).await.whole().unwrap().len();
    assert_eq!(due().await, 1);
    let end = Append { ends_expired: true, ..tombstone("k").if_offset(1) };
    assert_eq!(stored(&put_one(&*store, &topic, end).await).offset, Offset(2));
    assert_eq!(due().await, 0);
    assert!(store.describe(&topic).await.unwrap().head.closed);
    let refused = put_one(&*store, &topic, tombstone("k")).await;
    assert_eq!(refused, Outcome::Refused(Refusal::Closed));
}

pub async fn an_event_of_a_subject_enters_its_own_topics_only(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    let refused = Outcome::Refused(Refusal::NotOwner);
    let nobodys = Append { properties: None, ..log("a").by("ann") };
    assert_eq!(put_one(&*store, &topic, nobodys).await, refused);
    assert!(!store.describe(&topic).await.unwrap().exists);
    // The first that is stored makes the topic its own, and is the first to do so.
    let events = [
        state("k", "x").by("bob").if_offset(3),
        log("a").by("ann").id("a"),
        log("b").by("bob"),
        log("c").by("ann"),
        log("a").by("bob").id("a"),
        log("d"),
    ];
    let outcomes = put(&*store, &topic, events).await.outcomes;
    assert!(matches!(outcomes[0], Outcome::Refused(Refusal::Conflict { .. })));
    assert_eq!((&outcomes[2], &outcomes[4]), (&refused, &refused));
    for at in [1, 3, 5] {
        assert!(matches!(outcomes[at], Outcome::Stored(_)), "{at}: {outcomes:?}");
    }
    store.reopen().await;
    let owner = store.describe(&topic).await.unwrap().properties.owner;
    assert_eq!(owner.as_deref(), Some("ann"));
    assert_eq!(put_one(&*store, &topic, log("e").by("bob").closing()).await, refused);
    put(&*store, &topic, [log("f").closing()]).await;
    assert_eq!(put_one(&*store, &topic, log("g").by("bob")).await, refused);
}

pub async fn a_batch_without_events_can_close_and_creates_the_topic(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let close = Batch { close: true, ..batch([]) };
    let head = store.append(&topic, close).await.unwrap().head;
    assert_eq!(head, Head { closed: true, ..Head::empty(head.epoch) });
    let info = store.describe(&topic).await.unwrap();
    assert!(info.exists);
    assert_eq!((info.head, info.written_at), (head, at(1000)));
}

pub async fn a_closed_journal_refuses_appends_and_says_so(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, [log("a")]).await;
    assert_eq!(store.failure(), None);
    store.close().await;
    store.close().await;
    let refused = store.append(&topic, batch([log("b")])).await;
    assert!(matches!(refused, Err(JournalError::Unavailable(_))), "{refused:?}");
    assert!(store.failure().is_some());
}

pub async fn what_was_appended_is_there_after_reopening(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    let events = [log("a"), state("k", "b"), state("k", "c"), state("l", "d"), tombstone("l")];
    put(&*store, &topic, events).await;
    let before = (
        read(&*store, &topic, 0).await.events,
        all_states(&*store, &topic).await.events,
        store.describe(&topic).await.unwrap(),
    );
    if !store.reopen().await {
        return;
    }
    let after = (
        read(&*store, &topic, 0).await.events,
        all_states(&*store, &topic).await.events,
        store.describe(&topic).await.unwrap(),
    );
    assert_eq!(before, after);
    let mark = read(&*store, &topic, 2).await.after_fingerprint;
    assert!(mark.is_some_and(|mark| mark != Fingerprint(0)));
    assert_eq!(stored(&put_one(&*store, &topic, log("e")).await).offset, Offset(6));
}
