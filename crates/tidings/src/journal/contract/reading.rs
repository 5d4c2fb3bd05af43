//! Replay, pages and places.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]
#![allow(missing_docs, reason = "a case's name is the sentence that it proves")]

use futures_util::future::join;

use super::{Store, sample::*};
use crate::{
    journal::{JournalSettings, Locate, PageLimit, Retention},
    model::{Fingerprint, Offset, Position},
};

pub async fn replay_is_log_states_and_tombstones_in_offset_order(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let events = [
        log("1"),
        state("a", "2"),
        log("3"),
        state("b", "4"),
        state("a", "5"),
        tombstone("b"),
        log("7"),
        state("c", "8"),
    ];
    let appended = put(&*store, &topic, events).await;
    let page = read(&*store, &topic, 0).await;
    assert_eq!(offsets(&page.events), [1, 3, 5, 6, 7, 8]);
    for event in &page.events {
        let index = usize::try_from(event.offset.0).unwrap() - 1;
        assert_eq!(*event, appended.events[index]);
    }
    assert_eq!(page.head, appended.head);
    assert_eq!(page.next, appended.head.end());
}

pub async fn replay_goes_on_after_any_offset(factory: impl AsyncFn(JournalSettings) -> Store) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, (0..300).map(|n| log(&n.to_string()))).await;
    put(&*store, &topic, [state("k", "a"), state("k", "b")]).await;
    for after in [0, 1, 127, 128, 254, 255, 256, 257, 299, 300, 301] {
        let expected: Vec<u64> = (after + 1..=302).filter(|offset| *offset != 301).collect();
        assert_eq!(offsets(&read(&*store, &topic, after).await.events), expected);
    }
}

pub async fn pages_are_bounded_by_events_and_bytes_and_hold_one_event_at_least(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    // Ten bytes of data each, the quotes included.
    put(&*store, &topic, (0..7).map(|_| log("12345678"))).await;
    let page = async |after: u64, events: usize, bytes: usize| {
        let limit = PageLimit { events, bytes };
        let page = store.read(&topic, Offset(after), limit).await.unwrap();
        (offsets(&page.events), page.next.offset.0)
    };
    let everything = usize::MAX;
    assert_eq!(page(0, 3, everything).await, (vec![1, 2, 3], 3));
    assert_eq!(page(3, 3, everything).await, (vec![4, 5, 6], 6));
    assert_eq!(page(6, 3, everything).await, (vec![7], 7));
    assert_eq!(page(4, 3, everything).await, (vec![5, 6, 7], 7));
    assert_eq!(page(0, everything, 30).await, (vec![1, 2, 3], 3));
    assert_eq!(page(0, everything, 39).await, (vec![1, 2, 3], 3));
    assert_eq!(page(0, everything, 1).await, (vec![1], 1));
    assert_eq!(page(0, 0, 0).await, (vec![1], 1));
}

pub async fn next_covers_what_was_superseded(factory: impl AsyncFn(JournalSettings) -> Store) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, [log("a")]).await;
    let flood = put(&*store, &topic, (0..50).map(|n| state("k", &n.to_string()))).await;
    let one = PageLimit { events: 1, bytes: usize::MAX };
    let page = store.read(&topic, Offset(0), one).await.unwrap();
    assert_eq!(offsets(&page.events), [1]);
    let page = store.read(&topic, page.next.offset, one).await.unwrap();
    assert_eq!(offsets(&page.events), [51]);
    assert_eq!(page.next, flood.head.end());
    // The page ends with the topic although the last event is not in it.
    put(&*store, &topic, [tombstone("k")]).await;
    let none = Retention { events: Some(0), ..Retention::UNLIMITED };
    let head = store.trim(&topic, &none, at(1000)).await.unwrap();
    let page = store.read(&topic, Offset(20), one).await.unwrap();
    assert_eq!(page.events, []);
    assert_eq!(page.next, head.end());
}

pub async fn reading_past_the_tail_is_empty_and_goes_nowhere(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let absent = read(&*store, &topic, 0).await;
    assert_eq!(absent.events, []);
    assert_eq!(absent.next, absent.head.end());
    assert_eq!(absent.after_fingerprint, Some(Fingerprint(0)));
    let head = put(&*store, &topic, [log("a")]).await.head;
    let page = read(&*store, &topic, 1).await;
    assert_eq!((page.events, page.next), (vec![], head.end()));
    let page = read(&*store, &topic, 5).await;
    let past = Position { offset: Offset(5), fingerprint: Fingerprint(0), ..head.end() };
    assert_eq!((page.events, page.next, page.after_fingerprint), (vec![], past, None));
}

pub async fn a_page_agrees_with_its_head_while_appends_run(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let write = async {
        for n in 0..60 {
            let text = n.to_string();
            put(&*store, &topic, [log(&text), state("k", &text), state("k", "again")]).await;
        }
    };
    let check = async {
        loop {
            let page = read(&*store, &topic, 0).await;
            assert_eq!(page.next, page.head.end());
            let last = page.events.last();
            assert_eq!(last.map_or(0, |event| event.offset.0), page.head.end().offset.0);
            let last = last.map(|event| event.fingerprint).unwrap_or_default();
            assert_eq!(last, page.head.tail_fingerprint);
            // Every third offset is held, and the newest state: whole batches, none in part.
            let batches = page.head.end().offset.0 / 3;
            assert_eq!(page.head.end().offset.0 % 3, 0);
            assert_eq!(page.events.len() as u64, batches + u64::from(batches > 0));
            if batches == 60 {
                break;
            }
        }
    };
    join(write, check).await;
}

pub async fn latest_finds_the_last_so_many_events(factory: impl AsyncFn(JournalSettings) -> Store) {
    let store = factory(settings()).await;
    let topic = topic("t");
    assert_eq!(store.locate(&topic, Locate::Latest(3)).await.unwrap(), Offset(0));
    let events = [
        log("1"),
        state("k", "2"),
        log("3"),
        state("l", "4"),
        state("k", "5"),
        tombstone("x"),
        state("k", "7"),
        log("8"),
    ];
    put(&*store, &topic, events).await;
    let held = [1, 3, 4, 6, 7, 8];
    let latest = async |count: u64| {
        let after = store.locate(&topic, Locate::Latest(count)).await.unwrap();
        (after.0, offsets(&read(&*store, &topic, after.0).await.events))
    };
    for count in 0..=6 {
        let (_, found) = latest(count).await;
        assert_eq!(found, held[6 - usize::try_from(count).unwrap()..], "latest {count}");
    }
    assert_eq!(latest(0).await.0, 8);
    assert_eq!(latest(7).await.0, 0);
    assert_eq!(latest(u64::MAX).await.0, 0);
    // Not before the floor, whatever is still held there.
    let two = Retention { events: Some(2), ..Retention::UNLIMITED };
    assert_eq!(store.trim(&topic, &two, at(1000)).await.unwrap().earliest, Offset(4));
    assert_eq!(latest(4).await.1, [4, 6, 7, 8]);
    assert_eq!(latest(9).await.0, 3);
}

pub async fn since_finds_the_first_event_of_a_time(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    assert_eq!(store.locate(&topic, Locate::Since(at(0))).await.unwrap(), Offset(0));
    // The clock jumps back at the fourth batch, and recorded_at stands still.
    for (n, now) in [1_000, 2_000, 3_000, 500, 600, 3_500, 4_000].into_iter().enumerate() {
        put_at(&*store, now, &topic, [log(&n.to_string()), state("k", "x"), log("y")]).await;
    }
    let page = read(&*store, &topic, 0).await;
    for time in [0, 999, 1_000, 1_001, 2_000, 2_500, 3_000, 3_001, 3_500, 4_000, 4_001, 9_000] {
        let after = store.locate(&topic, Locate::Since(at(time))).await.unwrap();
        assert!(after < page.head.tail);
        let found = read(&*store, &topic, after.0).await.events;
        let expected: Vec<_> =
            page.events.iter().filter(|event| event.recorded_at >= at(time)).cloned().collect();
        assert_eq!(found, expected, "since {time}");
    }
    let five = Retention { events: Some(5), ..Retention::UNLIMITED };
    let floor = store.trim(&topic, &five, at(4_000)).await.unwrap().floor().offset;
    assert_eq!(store.locate(&topic, Locate::Since(at(0))).await.unwrap(), floor);
}
