//! Repeated event ids.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]
#![allow(missing_docs, reason = "a case's name is the sentence that it proves")]

use std::time::Duration;

use super::{Store, sample::*};
use crate::{
    journal::{Batch, JournalSettings, Outcome, Retention},
    model::Offset,
};

/// Ids are recognised for a second, and among the last three events.
fn short() -> JournalSettings {
    JournalSettings {
        dedup_window: Duration::from_secs(1),
        dedup_events: 3,
        ..JournalSettings::default()
    }
}

pub async fn a_repeated_id_is_stored_once_and_returns_the_first_position(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let first = put(&*store, &topic, [log("a"), log("b").id("1")]).await;
    let again = put(&*store, &topic, [log("c"), log("other").id("1")]).await;
    assert_eq!(again.outcomes[1], Outcome::Duplicate(position(&first, 1)));
    assert_eq!(offsets(&again.events), [3]);
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [1, 2, 3]);
}

pub async fn a_repeated_id_within_a_batch_is_stored_once(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let events = [log("a").id("1"), log("b").id("2"), log("c").id("1")];
    let appended = put(&*store, &topic, events).await;
    assert_eq!(appended.outcomes[2], Outcome::Duplicate(position(&appended, 0)));
    assert_eq!(offsets(&appended.events), [1, 2]);
}

pub async fn minted_ids_are_neither_looked_up_nor_entered(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let mut minted = log("a").id("1");
    minted.dedup = crate::journal::Dedup::Minted;
    put(&*store, &topic, [minted.clone()]).await;
    let chosen = put_one(&*store, &topic, log("b").id("1")).await;
    assert_eq!(stored(&chosen).offset, Offset(2));
    assert_eq!(stored(&put_one(&*store, &topic, minted).await).offset, Offset(3));
    assert_eq!(
        put_one(&*store, &topic, log("c").id("1")).await,
        Outcome::Duplicate(stored(&chosen))
    );
}

pub async fn ids_of_one_topic_mean_nothing_in_another(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    for topic in [topic("a"), topic("b"), topic_of("other", "a")] {
        let outcome = put_one(&*store, &topic, log("x").id("1")).await;
        assert_eq!(stored(&outcome).offset, Offset(1));
    }
}

pub async fn a_refused_id_is_not_entered(factory: impl AsyncFn(JournalSettings) -> Store) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let refused = put_one(&*store, &topic, state("k", "a").if_offset(9).id("1")).await;
    assert!(matches!(refused, Outcome::Refused(_)));
    let retried = put_one(&*store, &topic, state("k", "a").if_offset(0).id("1")).await;
    assert_eq!(stored(&retried).offset, Offset(1));
}

pub async fn an_id_is_recognised_within_the_window_by_time(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(JournalSettings { dedup_events: 0, ..short() }).await;
    let topic = topic("t");
    let first = put_at(&*store, 1_000, &topic, [log("a").id("1")]).await;
    let second = put_at(&*store, 1_000, &topic, (0..20).map(|_| log("x"))).await;
    assert_eq!(second.events.len(), 20);
    let within = put_at(&*store, 1_999, &topic, [log("b").id("1")]).await;
    assert_eq!(within.outcomes, [Outcome::Duplicate(position(&first, 0))]);
    let past = put_at(&*store, 2_000, &topic, [log("b").id("1")]).await;
    assert_eq!(stored(&past.outcomes[0]).offset, Offset(22));
}

pub async fn an_id_is_recognised_within_the_window_by_count(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(JournalSettings { dedup_window: Duration::ZERO, ..short() }).await;
    let topic = topic("t");
    let first = put_at(&*store, 1_000, &topic, [log("a").id("1"), log("x"), log("y")]).await;
    let within = put_at(&*store, 9_000, &topic, [log("b").id("1")]).await;
    assert_eq!(within.outcomes, [Outcome::Duplicate(position(&first, 0))]);
    // The third event after it, in the same batch, pushes it out.
    let past = put_at(&*store, 9_000, &topic, [log("z"), log("b").id("1")]).await;
    assert_eq!(stored(&past.outcomes[1]).offset, Offset(5));
}

pub async fn a_forgotten_id_can_be_used_and_is_recognised_again(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(short()).await;
    let topic = topic("t");
    put_at(&*store, 1_000, &topic, [log("a").id("1")]).await;
    put_at(&*store, 1_000, &topic, (0..5).map(|_| log("x"))).await;
    let second = put_at(&*store, 5_000, &topic, [log("b").id("1")]).await;
    assert_eq!(stored(&second.outcomes[0]).offset, Offset(7));
    store.reopen().await;
    let third = put_at(&*store, 5_500, &topic, [log("c").id("1")]).await;
    assert_eq!(third.outcomes, [Outcome::Duplicate(position(&second, 0))]);
}

pub async fn an_id_is_recognised_after_its_event_was_superseded_trimmed_or_its_topic_closed(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let events = [state("k", "a").if_offset(0).id("s"), log("b").id("l")];
    let first = put(&*store, &topic, events.clone()).await;
    put(&*store, &topic, [state("k", "c"), log("d")]).await;
    let all = Retention { events: Some(0), ..Retention::UNLIMITED };
    store.trim(&topic, &all, at(1000)).await.unwrap();
    store.append(&topic, Batch { close: true, ..batch([]) }).await.unwrap();
    let again = put(&*store, &topic, events).await;
    let first = [position(&first, 0), position(&first, 1)].map(Outcome::Duplicate);
    assert_eq!(again.outcomes, first);
}

pub async fn an_id_is_recognised_after_reopening_and_forgotten_by_deleting(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    let first = put(&*store, &topic, [log("a").id("1")]).await;
    store.reopen().await;
    let again = put_one(&*store, &topic, log("a").id("1")).await;
    assert_eq!(again, Outcome::Duplicate(position(&first, 0)));
    assert!(delete(&*store, &topic).await);
    let anew = stored(&put_one(&*store, &topic, log("a").id("1")).await);
    assert_eq!(anew.offset, Offset(1));
    assert_ne!(anew.epoch, first.head.epoch);
}
