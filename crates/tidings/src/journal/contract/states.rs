//! Keyed states: superseding, conditions, tombstones, and their times.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]
#![allow(missing_docs, reason = "a case's name is the sentence that it proves")]

use futures_util::future::join_all;

use super::{Store, sample::*};
use crate::{
    journal::{
        Due, DueKind, Journal, JournalSettings, Outcome, PageLimit, Refusal, Retention, StateQuery,
    },
    model::{Fingerprint, Offset, Position, StateKey, TopicKey},
};

pub async fn only_the_newest_state_of_a_key_is_held(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let first = put(&*store, &topic, [state("k", "a"), state("l", "b"), state("k", "c")]).await;
    let second = put(&*store, &topic, [state("k", "d"), state("kk", "e")]).await;
    let held = [&first.events[1], &second.events[0], &second.events[1]].map(Clone::clone);
    assert_eq!(all_states(&*store, &topic).await.events, held);
    assert_eq!(read(&*store, &topic, 0).await.events, held);
    assert_eq!(store.describe(&topic).await.unwrap().states, 3);
}

pub async fn if_offset_compares_with_the_current_state(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let conflict = |current| Outcome::Refused(Refusal::Conflict { current });
    let none = put_one(&*store, &topic, state("k", "a").if_offset(1)).await;
    assert_eq!(none, conflict(None));
    let first = put(&*store, &topic, [state("k", "b").if_offset(0)]).await;
    let current = Some(first.events[0].clone());
    for wrong in [0, 2, 7] {
        let refused = put_one(&*store, &topic, state("k", "c").if_offset(wrong)).await;
        assert_eq!(refused, conflict(current.clone()));
        let refused = put_one(&*store, &topic, tombstone("k").if_offset(wrong)).await;
        assert_eq!(refused, conflict(current.clone()));
    }
    assert_eq!(stored(&put_one(&*store, &topic, state("k", "d").if_offset(1)).await).offset.0, 2);
    assert_eq!(stored(&put_one(&*store, &topic, tombstone("k").if_offset(2)).await).offset.0, 3);
    let gone = put_one(&*store, &topic, state("k", "e").if_offset(3)).await;
    assert_eq!(gone, conflict(None));
    assert_eq!(stored(&put_one(&*store, &topic, state("k", "f").if_offset(0)).await).offset.0, 4);
}

pub async fn if_offset_sees_earlier_events_of_the_batch(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let events = [
        state("k", "a").if_offset(0),
        state("k", "b").if_offset(0),
        state("k", "c").if_offset(1),
        tombstone("k").if_offset(2),
        state("k", "d").if_offset(0),
    ];
    let appended = put(&*store, &topic, events).await;
    assert_eq!(offsets(&appended.events), [1, 2, 3, 4]);
    let current = Some(appended.events[0].clone());
    assert_eq!(appended.outcomes[1], Outcome::Refused(Refusal::Conflict { current }));
    assert_eq!(offsets(&all_states(&*store, &topic).await.events), [4]);
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [3, 4]);
}

pub async fn one_of_many_concurrent_conditional_appends_wins(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, [state("ask/1", "open")]).await;
    let claims =
        (0..32).map(|n| put_one(&*store, &topic, state("ask/1", &n.to_string()).if_offset(1)));
    let outcomes = join_all(claims).await;
    let winner = all_states(&*store, &topic).await.events.remove(0);
    assert_eq!(winner.offset, Offset(2));
    let (won, lost): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|outcome| matches!(outcome, Outcome::Stored(_)));
    assert_eq!(won.len(), 1);
    for outcome in lost {
        let current = Some(winner.clone());
        assert_eq!(outcome, Outcome::Refused(Refusal::Conflict { current }));
    }
}

pub async fn a_tombstone_ends_the_state_and_stays_in_the_log(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, [state("k", "a"), tombstone("k")]).await;
    assert!(all_states(&*store, &topic).await.events.is_empty());
    let page = read(&*store, &topic, 0).await;
    assert_eq!(offsets(&page.events), [2]);
    assert!(page.events[0].body.delete);
    // Set again, the state does not take the tombstone away; and an end of nothing is one too.
    put(&*store, &topic, [state("k", "b"), tombstone("none")]).await;
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [2, 3, 4]);
    assert_eq!(offsets(&all_states(&*store, &topic).await.events), [3]);
    let info = store.describe(&topic).await.unwrap();
    assert_eq!((info.events, info.states), (2, 1));
}

pub async fn a_superseded_state_leaves_its_fingerprint_until_it_is_trimmed(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let events =
        [log("a"), state("k", "b"), state("k", "c"), log("d"), state("k", "e"), tombstone("k")];
    let appended = put(&*store, &topic, events).await;
    assert_eq!(offsets(&read(&*store, &topic, 0).await.events), [1, 4, 6]);
    let known = async |after: u64| read(&*store, &topic, after).await.after_fingerprint;
    assert_eq!(known(0).await, Some(Fingerprint(0)));
    for event in &appended.events {
        assert_eq!(known(event.offset.0).await, Some(event.fingerprint));
    }
    assert_eq!(known(7).await, None);
    // Trimmed up to 4: what was superseded before is forgotten with the log of its time.
    let two = Retention { events: Some(1), ..Retention::UNLIMITED };
    assert_eq!(store.trim(&topic, &two, at(1000)).await.unwrap().earliest, Offset(5));
    for trimmed in [1, 2, 3] {
        assert_eq!(known(trimmed).await, None);
    }
    for event in &appended.events[3..] {
        assert_eq!(known(event.offset.0).await, Some(event.fingerprint));
    }
}

pub async fn a_topic_holds_so_many_states_and_no_more(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(JournalSettings { states_per_topic: 2, ..settings() }).await;
    let topic = topic("t");
    let full = Outcome::Refused(Refusal::StatesFull { limit: 2 });
    let events = [state("a", ""), state("b", ""), state("c", ""), state("a", "again"), log("x")];
    let appended = put(&*store, &topic, events).await;
    assert_eq!(appended.outcomes[2], full);
    assert_eq!(offsets(&appended.events), [1, 2, 3, 4]);
    store.reopen().await;
    assert_eq!(put_one(&*store, &topic, state("c", "")).await, full);
    let room = put(&*store, &topic, [tombstone("a"), state("c", ""), state("d", "")]).await;
    assert_eq!(offsets(&room.events), [5, 6]);
    assert_eq!(room.outcomes[2], full);
}

pub async fn the_hubs_own_topics_hold_any_number_of_states(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(JournalSettings { states_per_topic: 2, ..settings() }).await;
    let appended =
        put(&*store, &topic("$hub/effects"), (0..5).map(|n| state(&n.to_string(), ""))).await;
    assert_eq!(appended.events.len(), 5);
}

pub async fn states_are_read_by_prefix_and_bounds_in_pages(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let keys = ["run/1", "ask/1", "run/10", "run/2", "run", "run0", "rum", "ask/2"];
    put(&*store, &topic, [log("x")]).await;
    put(&*store, &topic, keys.map(|key| state(key, key))).await;
    put(&*store, &topic, [log("y"), tombstone("run/2"), state("ask/1", "again")]).await;
    let query = async |prefix: &str, after: u64, until: u64| {
        let query = StateQuery {
            prefix: prefix.to_owned(),
            after: Offset(after),
            until: Offset(until),
            ..StateQuery::all()
        };
        offsets(&store.states(&topic, query).await.unwrap().events)
    };
    assert_eq!(query("", 0, u64::MAX).await, [2, 4, 6, 7, 8, 9, 12]);
    assert_eq!(query("run/", 0, u64::MAX).await, [2, 4]);
    assert_eq!(query("run", 0, u64::MAX).await, [2, 4, 6, 7]);
    assert_eq!(query("run/1", 0, u64::MAX).await, [2, 4]);
    assert_eq!(query("ask/", 0, u64::MAX).await, [9, 12]);
    assert_eq!(query("x", 0, u64::MAX).await, [0; 0]);
    assert_eq!(query("", 4, 8).await, [6, 7, 8]);
    assert_eq!(query("ru", 6, 8).await, [7, 8]);
    assert_eq!(query("", 8, 4).await, [0; 0]);
    let of = StateQuery::of(&StateKey::parse("ask/1").unwrap());
    assert_eq!(offsets(&store.states(&topic, of).await.unwrap().events), [12]);
    // Page by page it is the same.
    let limit = PageLimit { events: 3, bytes: usize::MAX };
    let (mut after, mut paged) = (Offset::ZERO, Vec::new());
    loop {
        let query = StateQuery { after, limit, ..StateQuery::all() };
        let page = store.states(&topic, query).await.unwrap();
        if page.events.is_empty() {
            break;
        }
        assert!(page.events.len() <= 3);
        paged.extend(offsets(&page.events));
        after = page.next.offset;
    }
    assert_eq!(paged, [2, 4, 6, 7, 8, 9, 12]);
}

pub async fn a_states_page_says_how_far_it_is_complete(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let appended = put(&*store, &topic, [state("a", ""), log("x"), state("b", ""), log("y")]).await;
    let next = async |after: u64, until: u64, events: usize| {
        let limit = PageLimit { events, bytes: usize::MAX };
        let (after, until) = (Offset(after), Offset(until));
        let query = StateQuery { after, until, limit, ..StateQuery::all() };
        store.states(&topic, query).await.unwrap().next
    };
    assert_eq!(next(0, u64::MAX, 9).await, appended.head.end());
    assert_eq!(next(0, u64::MAX, 2).await, appended.head.end());
    assert_eq!(next(0, u64::MAX, 1).await, position(&appended, 0));
    assert_eq!(next(0, 2, 9).await, position(&appended, 1));
    assert_eq!(next(0, 3, 9).await, position(&appended, 2));
    assert_eq!(next(2, 1, 9).await, position(&appended, 1));
    let past = Position { offset: Offset(9), fingerprint: Fingerprint(0), ..appended.head.end() };
    assert_eq!(next(9, u64::MAX, 9).await, past);
}

/// What is due of one kind, as topic and offset.
async fn due(journal: &dyn Journal, kind: DueKind, now: u64, limit: usize) -> Vec<(TopicKey, u64)> {
    let due = journal.due(kind, at(now), limit).await.whole().unwrap();
    let place = |due: Due| {
        assert_eq!(due.why, kind);
        (due.topic, due.event.offset.0)
    };
    due.into_iter().map(place).collect()
}

pub async fn due_states_come_earliest_first_of_all_tenants(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let (a, b, c) = (topic("a"), topic("b"), topic_of("other", "a"));
    let first =
        put(&*store, &a, [state("1", "").times(Some(300), Some(100)), state("2", "")]).await;
    put(&*store, &b, [log("x"), state("1", "").times(None, Some(200))]).await;
    put(&*store, &c, [state("1", "").times(Some(50), None)]).await;
    put(&*store, &c, [state("2", "").times(None, Some(65_536))]).await;
    let by_due_at = [(a.clone(), 1), (b, 2), (c.clone(), 2)];
    let by_expires_at = [(c, 1), (a.clone(), 1)];
    for (kind, all, times) in [
        (DueKind::Due, &by_due_at[..], &[100, 200, 65_536][..]),
        (DueKind::Expired, &by_expires_at[..], &[50, 300][..]),
    ] {
        for (count, time) in times.iter().enumerate() {
            assert_eq!(due(&*store, kind, time - 1, 9).await, all[..count]);
            assert_eq!(due(&*store, kind, *time, 9).await, all[..=count]);
        }
        assert_eq!(due(&*store, kind, 70_000, 2).await, all[..2]);
        assert_eq!(due(&*store, kind, 70_000, 0).await, []);
    }
    let event = first.events[0].clone();
    let whole = store.due(DueKind::Due, at(100), 9).await.whole().unwrap();
    assert_eq!(whole, [Due { topic: a, event, why: DueKind::Due }]);
}

pub async fn a_state_that_is_replaced_or_ended_is_no_longer_due(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let lease = |due_at| state("run/1", "").times(None, Some(due_at));
    put(&*store, &topic, [lease(100), state("run/2", "").times(Some(100), Some(100))]).await;
    put(&*store, &topic, [lease(200)]).await;
    for kind in [DueKind::Due, DueKind::Expired] {
        assert_eq!(due(&*store, kind, 150, 9).await, [(topic.clone(), 2)]);
    }
    put(&*store, &topic, [tombstone("run/2")]).await;
    for kind in [DueKind::Due, DueKind::Expired] {
        assert_eq!(due(&*store, kind, 150, 9).await, []);
    }
    assert_eq!(due(&*store, DueKind::Due, 200, 9).await, [(topic.clone(), 3)]);
    // A refused replacement leaves it due; one without a time clears it.
    put(&*store, &topic, [lease(900).if_offset(1)]).await;
    assert_eq!(due(&*store, DueKind::Due, 200, 9).await.len(), 1);
    put(&*store, &topic, [state("run/1", "succeeded")]).await;
    assert_eq!(due(&*store, DueKind::Due, 10_000, 9).await, []);
    // Only states are due: a log event or tombstone with a time is not.
    let mistaken = [log("x").times(Some(1), Some(1)), tombstone("k").times(Some(1), Some(1))];
    put(&*store, &topic, mistaken).await;
    for kind in [DueKind::Due, DueKind::Expired] {
        assert_eq!(due(&*store, kind, 10_000, 9).await, []);
    }
}

pub async fn due_states_survive_trimming_and_reopening_and_end_with_their_topic(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, [state("a", "").times(Some(1), Some(2)), log("x")]).await;
    let all = Retention { events: Some(0), ..Retention::UNLIMITED };
    store.trim(&topic, &all, at(1000)).await.unwrap();
    store.reopen().await;
    let count = async |store: &Store| {
        let expired = due(&**store, DueKind::Expired, 10, 9).await.len();
        expired + due(&**store, DueKind::Due, 10, 9).await.len()
    };
    assert_eq!(count(&store).await, 2);
    delete(&*store, &topic).await;
    assert_eq!(count(&store).await, 0);
    put(&*store, &topic, [state("a", "")]).await;
    assert_eq!(count(&store).await, 0);
}
