//! Trimming.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]
#![allow(missing_docs, reason = "a case's name is the sentence that it proves")]

use std::time::Duration;

use super::{Store, sample::*};
use crate::{
    journal::{Change, Head, JournalSettings, Properties, Retention, TopicQuery},
    model::Offset,
};

fn keep_events(events: u64) -> Retention {
    Retention { events: Some(events), ..Retention::UNLIMITED }
}

fn keep_for(ms: u64) -> Retention {
    Retention { age: Some(Duration::from_millis(ms)), ..Retention::UNLIMITED }
}

pub async fn trimming_by_count_removes_the_oldest_and_never_more(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let whole = put(&*store, &topic, (0..10).map(|n| log(&n.to_string()))).await.head;
    for enough in [Retention::UNLIMITED, keep_events(10), keep_events(11)] {
        assert_eq!(store.trim(&topic, &enough, at(1000)).await.unwrap(), whole);
    }
    for kept in [9, 4, 4, 1, 0] {
        let head = store.trim(&topic, &keep_events(kept), at(1000)).await.unwrap();
        assert_eq!(head.earliest, Offset(11 - kept));
        assert_eq!(head.tail, Offset(11));
        let page = read(&*store, &topic, 0).await;
        assert_eq!(offsets(&page.events), (11 - kept..11).collect::<Vec<_>>());
        assert_eq!(page.head, head);
        assert_eq!(store.describe(&topic).await.unwrap().events, kept);
    }
    assert_eq!(store.describe(&topic).await.unwrap().bytes, 0);
}

pub async fn trimming_by_age_removes_what_is_older_and_never_more(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    for now in [1_000, 2_000, 2_000, 3_000] {
        put_at(&*store, now, &topic, [log("a")]).await;
    }
    let earliest =
        async |now: u64| store.trim(&topic, &keep_for(500), at(now)).await.unwrap().earliest.0;
    assert_eq!(earliest(0).await, 1);
    assert_eq!(earliest(1_500).await, 1);
    assert_eq!(earliest(1_501).await, 2);
    assert_eq!(earliest(2_500).await, 2);
    assert_eq!(earliest(2_501).await, 4);
    assert_eq!(earliest(3_500).await, 4);
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [4]);
    assert_eq!(earliest(9_000).await, 5);
}

pub async fn who_says_when_the_oldest_was_recorded_is_right(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let oldest = async |expected: u64| {
        assert_eq!(store.describe(&topic).await.unwrap().oldest_at, at(expected));
        let list = TopicQuery { tenant: None, prefix: String::new(), after: None, limit: 9 };
        let listed = store.topics(list).await.whole().unwrap();
        assert!(listed.iter().all(|info| info.oldest_at == at(expected)), "{listed:?}");
    };
    oldest(0).await;
    store.set_properties(&topic, Change::to(Properties::default())).await.unwrap().unwrap();
    oldest(0).await;
    put_at(&*store, 1_000, &topic, [state("k", "a")]).await;
    put_at(&*store, 2_000, &topic, [log("b")]).await;
    oldest(1_000).await;
    // A state that is superseded leaves its place, and its time, behind.
    put_at(&*store, 3_000, &topic, [state("k", "c"), log("d")]).await;
    oldest(1_000).await;
    store.trim(&topic, &keep_events(1), at(3_000)).await.unwrap();
    oldest(3_000).await;
    store.trim(&topic, &keep_for(500), at(3_400)).await.unwrap();
    oldest(3_000).await;
    put_at(&*store, 4_000, &topic, [log("e")]).await;
    store.trim(&topic, &keep_for(500), at(4_000)).await.unwrap();
    oldest(4_000).await;
    store.trim(&topic, &keep_events(0), at(4_000)).await.unwrap();
    oldest(0).await;
    put_at(&*store, 5_000, &topic, [log("f")]).await;
    oldest(5_000).await;
}

pub async fn trimming_by_bytes_removes_the_oldest_and_never_more(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, (0..10).map(|_| log("equally large"))).await;
    let bytes = store.describe(&topic).await.unwrap().bytes;
    let each = bytes / 10;
    assert!(each * 10 == bytes && each > 0, "ten equal events take {bytes} bytes");
    let keep = |bytes| Retention { bytes: Some(bytes), ..Retention::UNLIMITED };
    for (kept_bytes, earliest) in
        [(bytes, 1), (bytes - 1, 2), (each * 9, 2), (each * 4 + 1, 7), (each * 4, 7), (0, 11)]
    {
        let head = store.trim(&topic, &keep(kept_bytes), at(1000)).await.unwrap();
        assert_eq!(head.earliest, Offset(earliest), "{kept_bytes} of {bytes} bytes");
        let left = store.describe(&topic).await.unwrap().bytes;
        assert_eq!(left, each * (11 - earliest));
    }
}

pub async fn trimming_spares_states_and_takes_tombstones(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let events = [state("a", "1"), log("2"), state("b", "3"), tombstone("b"), log("5")];
    put(&*store, &topic, events).await;
    store.trim(&topic, &keep_events(1), at(1000)).await.unwrap();
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [1, 5]);
    let head = store.trim(&topic, &keep_for(0), at(9_000)).await.unwrap();
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [1]);
    assert_eq!(offsets(&all_states(&*store, &topic).await.events), [1]);
    assert_eq!(head.earliest, Offset(6));
    let info = store.describe(&topic).await.unwrap();
    assert_eq!((info.events, info.bytes, info.states), (0, 0, 1));
    // A state below the floor is superseded as any other.
    put(&*store, &topic, [state("a", "6").if_offset(1)]).await;
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [6]);
    assert_eq!(read(&*store, &topic, 1).await.after_fingerprint, None);
}

pub async fn a_flood_of_states_evicts_no_log_event(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, [log("approve?")]).await;
    for _ in 0..4 {
        put(&*store, &topic, (0..100).map(|n| state("run/1", &n.to_string()))).await;
    }
    let head = store.trim(&topic, &keep_events(5), at(1000)).await.unwrap();
    assert_eq!(head.earliest, Offset(1));
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [1, 401]);
}

pub async fn earliest_never_goes_back(factory: impl AsyncFn(JournalSettings) -> Store) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, (0..10).map(|_| log("a"))).await;
    let head = store.trim(&topic, &keep_events(3), at(1000)).await.unwrap();
    for wider in [Retention::UNLIMITED, keep_events(7), keep_for(100_000)] {
        assert_eq!(store.trim(&topic, &wider, at(1000)).await.unwrap(), head);
    }
    assert_eq!(read(&*store, &topic, 0).await.events.len(), 3);
}

pub async fn the_floor_keeps_the_fingerprint_of_the_last_event_trimmed(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let appended = put(&*store, &topic, [log("a"), log("b"), state("k", "c"), log("d")]).await;
    let head = store.trim(&topic, &keep_events(1), at(1000)).await.unwrap();
    assert_eq!(head.floor(), position(&appended, 1));
    assert_eq!(read(&*store, &topic, 2).await.after_fingerprint, Some(head.floor_fingerprint));
    let head = store.trim(&topic, &keep_events(0), at(1000)).await.unwrap();
    assert_eq!(head.floor(), appended.head.end());
}

pub async fn old_superseded_states_are_trimmed_without_a_log(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let old = put_at(&*store, 1_000, &topic, (0..5).map(|_| state("k", "old"))).await;
    put_at(&*store, 2_000, &topic, [state("k", "new"), state("k", "newer")]).await;
    let head = store.trim(&topic, &keep_for(500), at(2_100)).await.unwrap();
    assert_eq!(head.floor(), position(&old, 4));
    assert_eq!(read(&*store, &topic, 4).await.after_fingerprint, None);
    assert!(read(&*store, &topic, 6).await.after_fingerprint.is_some());
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [7]);
    // The newest state stays, and is no reason to move the floor.
    let head = store.trim(&topic, &keep_for(500), at(9_000)).await.unwrap();
    assert_eq!(head.earliest, Offset(7));
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [7]);
}

pub async fn reading_from_below_the_floor_yields_what_is_held(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, (0..10).map(|_| log("a"))).await;
    store.trim(&topic, &keep_events(4), at(1000)).await.unwrap();
    for after in 0..=6 {
        let page = read(&*store, &topic, after).await;
        assert_eq!(offsets(&page.events), [7, 8, 9, 10]);
        assert_eq!(page.head.earliest, Offset(7));
        assert_eq!(page.after_fingerprint.is_some(), after == 0 || after == 6);
    }
}

pub async fn offsets_go_on_after_everything_was_trimmed(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    let first = put(&*store, &topic, (0..3).map(|_| log("a"))).await.head;
    store.trim(&topic, &keep_events(0), at(1000)).await.unwrap();
    store.reopen().await;
    let next = put(&*store, &topic, [log("b")]).await;
    assert_eq!(offsets(&next.events), [4]);
    assert_eq!(next.head.epoch, first.epoch);
    assert_eq!(next.head.floor(), first.end());
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [4]);
}

pub async fn trimming_holds_after_reopening(factory: impl AsyncFn(JournalSettings) -> Store) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    let events = (0..20).flat_map(|n| [log(&n.to_string()), state("k", &n.to_string())]);
    put(&*store, &topic, events).await;
    store.trim(&topic, &keep_events(5), at(1000)).await.unwrap();
    let before = store.describe(&topic).await.unwrap();
    let held = read(&*store, &topic, 0).await.events;
    assert_eq!(held.len(), 6);
    store.reopen().await;
    assert_eq!(store.describe(&topic).await.unwrap(), before);
    assert_eq!(read(&*store, &topic, 0).await.events, held);
    assert_eq!(before.head.earliest, Offset(30));
    assert_eq!(read(&*store, &topic, 28).await.after_fingerprint, None);
    assert!(read(&*store, &topic, 30).await.after_fingerprint.is_some());
}

pub async fn trimming_a_topic_that_is_not_there_creates_nothing(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let head = store.trim(&topic, &keep_events(0), at(1000)).await.unwrap();
    assert_eq!(head, Head::empty(head.epoch));
    assert!(!store.describe(&topic).await.unwrap().exists);
}
