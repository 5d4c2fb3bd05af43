//! Following through the hub: starts, resumes and every row of the resume table, end to end.

use std::sync::Arc;

use tidings::{
    Hub,
    error::ErrorCode,
    journal::{Journal, JournalSettings, memory::MemoryJournal},
    model::{Cursor, Offset},
    settings::Settings,
    subscribe::{Filter, Follow, Resumed, Since, States},
};

use crate::support::{
    Got, catch_up, delete, event, follow, key, log, publish, state, take, topic, trim,
};

fn small() -> (Hub, Arc<MemoryJournal>) {
    let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
    // A ring so small that replay must come from the journal.
    let settings = Settings { ring_frames_max: 2, ..Settings::default() };
    (Hub::builder().journal(Arc::clone(&journal) as Arc<_>).settings(settings).start(), journal)
}

fn since(name: &str, since: Since) -> Follow {
    Follow { since: Some(since), ..Follow::new(vec![key(name)]) }
}

fn from(name: &str, cursor: String) -> Follow {
    Follow { cursor: Some(cursor), ..Follow::new(vec![key(name)]) }
}

#[tokio::test]
async fn a_reader_from_now_gets_the_current_states_and_then_what_comes() {
    let (hub, _) = small();
    for (name, number) in [("k", 1), ("j", 2), ("k", 3)] {
        publish(&hub, "a", state(name, number)).await;
    }
    publish(&hub, "a", log(4)).await;
    let mut reader = follow(&hub, Follow::new(vec![key("a")])).await;
    assert_eq!(catch_up(&mut reader).await, [event("state", 2, 2), event("state", 3, 3)]);
    publish(&hub, "a", log(5)).await;
    assert_eq!(take(&mut reader, 1).await, [event("log", 5, 5)]);
    let skip = Follow { states: States::Skip, ..Follow::new(vec![key("a")]) };
    assert_eq!(catch_up(&mut follow(&hub, skip).await).await, []);
}

#[tokio::test]
async fn a_reader_from_the_earliest_gets_everything_or_is_told_what_was_trimmed() {
    let (hub, journal) = small();
    publish(&hub, "a", state("k", 1)).await;
    for number in 2..=6 {
        publish(&hub, "a", log(number)).await;
    }
    let all: Vec<Got> =
        std::iter::once(event("state", 1, 1)).chain((2..=6).map(|n| event("log", n, n))).collect();
    let mut reader = follow(&hub, since("a", Since::Earliest)).await;
    assert_eq!(catch_up(&mut reader).await, all);
    trim(&*journal, "a", 2).await;
    let mut reader = follow(&hub, since("a", Since::Earliest)).await;
    let told = Got::Gap("trimmed", Some(1), Some(4));
    let rest = [told, event("state", 1, 1), event("log", 5, 5), event("log", 6, 6)];
    assert_eq!(catch_up(&mut reader).await, rest);
}

#[tokio::test]
async fn latest_and_times_start_before_the_events_they_name() {
    let (hub, _) = small();
    for number in 1..=6 {
        publish(&hub, "a", log(number)).await;
    }
    let mut reader = follow(&hub, since("a", Since::Latest(2))).await;
    assert_eq!(catch_up(&mut reader).await, [event("log", 5, 5), event("log", 6, 6)]);
    let mut reader = follow(&hub, since("a", Since::Latest(99))).await;
    assert_eq!(catch_up(&mut reader).await.len(), 6);
    let future = hub.clock().now().plus(std::time::Duration::from_secs(60));
    assert_eq!(catch_up(&mut follow(&hub, since("a", Since::At(future))).await).await, []);
    let past = hub.clock().now().minus(std::time::Duration::from_secs(60));
    assert_eq!(catch_up(&mut follow(&hub, since("a", Since::At(past))).await).await.len(), 6);
}

#[tokio::test]
async fn every_cursor_of_a_topic_resumes_exactly_behind_it() {
    let (hub, _) = small();
    let mut cursors = vec![follow(&hub, Follow::new(vec![key("a")])).await.cursor().encode()];
    for number in 1..=9 {
        cursors.push(publish(&hub, "a", log(number)).await.cursor().unwrap());
    }
    for (seen, cursor) in cursors.into_iter().enumerate() {
        let (mut reader, started) = hub.subscribe(from("a", cursor)).await.unwrap();
        assert_eq!(started.resumed, Resumed::Exact);
        let rest: Vec<Got> = (seen as u64 + 1..=9).map(|n| event("log", n, n)).collect();
        assert_eq!(catch_up(&mut reader).await, rest);
    }
}

#[tokio::test]
async fn a_cursor_on_a_superseded_state_is_exact() {
    let (hub, _) = small();
    let cursor = publish(&hub, "a", state("k", 1)).await.cursor().unwrap();
    for number in 2..=5 {
        publish(&hub, "a", state("k", number)).await;
    }
    let mut reader = follow(&hub, from("a", cursor)).await;
    assert_eq!(catch_up(&mut reader).await, [event("state", 5, 5)]);
}

#[tokio::test]
async fn a_trimmed_cursor_is_told_its_gap_and_gets_the_states_since_then() {
    let (hub, journal) = small();
    publish(&hub, "a", state("old", 1)).await;
    let cursor = publish(&hub, "a", log(2)).await.cursor().unwrap();
    publish(&hub, "a", state("new", 3)).await;
    for number in 4..=6 {
        publish(&hub, "a", log(number)).await;
    }
    trim(&*journal, "a", 1).await;
    let told = Got::Gap("trimmed", Some(3), Some(5));
    let mut reader = follow(&hub, from("a", cursor.clone())).await;
    let rest = [told.clone(), event("state", 3, 3), event("log", 6, 6)];
    assert_eq!(catch_up(&mut reader).await, rest);
    let bare = Follow { states: States::Skip, ..from("a", cursor) };
    assert_eq!(catch_up(&mut follow(&hub, bare).await).await, [told, event("log", 6, 6)]);
}

#[tokio::test]
async fn the_last_trimmed_offset_is_still_exact() {
    let (hub, journal) = small();
    publish(&hub, "a", log(1)).await;
    let cursor = publish(&hub, "a", log(2)).await.cursor().unwrap();
    publish(&hub, "a", log(3)).await;
    trim(&*journal, "a", 1).await;
    let mut reader = follow(&hub, from("a", cursor)).await;
    assert_eq!(catch_up(&mut reader).await, [event("log", 3, 3)]);
}

#[tokio::test]
async fn another_history_is_a_reset_with_states_and_what_is_held() {
    let (hub, _) = small();
    publish(&hub, "a", log(1)).await;
    let cursor = publish(&hub, "a", log(2)).await.cursor().unwrap();
    delete(&hub, "a").await;
    publish(&hub, "a", state("k", 1)).await;
    publish(&hub, "a", log(2)).await;
    let told = Got::Gap("epoch", None, None);
    let mut reader = follow(&hub, from("a", cursor.clone())).await;
    assert_eq!(
        catch_up(&mut reader).await,
        [told.clone(), event("state", 1, 1), event("log", 2, 2)]
    );
    let now = Follow { since: Some(Since::Now), ..from("a", cursor) };
    assert_eq!(catch_up(&mut follow(&hub, now).await).await, [told, event("state", 1, 1)]);
}

#[tokio::test]
async fn a_reused_offset_under_one_epoch_is_told_by_its_fingerprint() {
    let (hub, _) = small();
    publish(&hub, "a", log(1)).await;
    let published = publish(&hub, "a", log(2)).await;
    publish(&hub, "a", log(3)).await;
    let mut position = published.position.unwrap();
    position.fingerprint.0 ^= 1;
    let cursor = Cursor::single(&topic("a"), position.into()).encode();
    let mut reader = follow(&hub, from("a", cursor)).await;
    let mut all = vec![Got::Gap("epoch", None, None)];
    all.extend((1..=3).map(|n| event("log", n, n)));
    assert_eq!(catch_up(&mut reader).await, all);
    position.fingerprint.0 ^= 1;
    position.offset = Offset(99);
    let cursor = Cursor::single(&topic("a"), position.into()).encode();
    let mut reader = follow(&hub, from("a", cursor)).await;
    assert_eq!(catch_up(&mut reader).await, all);
}

#[tokio::test]
async fn a_malformed_cursor_is_told_and_answered_with_what_is_held() {
    let (hub, _) = small();
    publish(&hub, "a", log(1)).await;
    for cursor in ["", "x", "!!", "AQ==", &"A".repeat(5000)] {
        let (mut reader, started) = hub.subscribe(from("a", cursor.into())).await.unwrap();
        if cursor.is_empty() {
            assert_eq!(started.resumed, Resumed::Gap);
        }
        let told = Got::Gap("unknown_cursor", None, None);
        assert_eq!(catch_up(&mut reader).await, [told, event("log", 1, 1)], "{cursor}");
    }
}

#[tokio::test]
async fn topics_may_be_added_dropped_and_reordered_between_connections() {
    let (hub, _) = small();
    for name in ["a", "b", "c"] {
        for number in 1..=3 {
            publish(&hub, name, log(number)).await;
        }
    }
    let both = Follow { since: Some(Since::Earliest), ..Follow::new(vec![key("a"), key("b")]) };
    let mut reader = follow(&hub, both).await;
    catch_up(&mut reader).await;
    let cursor = reader.cursor().encode();
    publish(&hub, "b", log(4)).await;
    let next = Follow { cursor: Some(cursor), ..Follow::new(vec![key("c"), key("b")]) };
    let (mut reader, started) = hub.subscribe(next).await.unwrap();
    assert_eq!(started.resumed, Resumed::Exact);
    assert_eq!(catch_up(&mut reader).await, [event("log", 4, 4)]);
}

#[tokio::test]
async fn a_drop_in_the_middle_of_the_first_states_loses_none() {
    let (hub, _) = small();
    for number in 1..=300 {
        publish(&hub, "a", state(&format!("k{number}"), number)).await;
    }
    let (mut reader, _) = hub.subscribe(Follow::new(vec![key("a")])).await.unwrap();
    let items = reader.next().await.unwrap();
    let mut seen: Vec<u64> = Vec::new();
    let mut cursors = Vec::new();
    let mut cursor = reader.cursor().clone();
    for item in &items {
        if let tidings::subscribe::Item::Event { frame, mark: Some(mark), .. } = item {
            seen.push(frame.position.unwrap().offset.0);
            cursor.set(0, *mark);
            cursors.push(cursor.encode());
        }
    }
    assert!(!seen.is_empty());
    // One sent state is replaced, one that was not sent yet is too, and a log event comes.
    publish(&hub, "a", state("k1", 301)).await;
    publish(&hub, "a", state("k300", 302)).await;
    publish(&hub, "a", log(303)).await;
    for (at, cursor) in cursors.into_iter().enumerate().step_by(17) {
        let mut reader = follow(&hub, from("a", cursor)).await;
        let got = catch_up(&mut reader).await;
        let mut want: Vec<Got> =
            (seen[at] + 1..300).filter(|n| *n > 1).map(|n| event("state", n, n)).collect();
        want.extend([event("state", 301, 301), event("state", 302, 302), event("log", 303, 303)]);
        assert_eq!(got, want, "after {at}");
    }
}

#[tokio::test]
async fn filters_hold_back_events_and_move_the_cursor_past_them() {
    let (hub, _) = small();
    for number in 1..=1200 {
        publish(&hub, "a", log(number)).await;
    }
    publish(&hub, "a", state("run/1", 7)).await;
    let filter =
        Filter { types: vec!["test.st*".into()], keys: vec!["run/*".into()], ..Filter::default() };
    let wanted = Follow { filter, ..since("a", Since::Earliest) };
    let mut reader = follow(&hub, wanted.clone()).await;
    assert_eq!(catch_up(&mut reader).await, [event("state", 1201, 7)]);
    publish(&hub, "a", log(1202)).await;
    let items = reader.next().await.unwrap();
    assert!(matches!(items[..], [tidings::subscribe::Item::Checkpoint { .. }]), "{items:?}");
    let mark = reader.cursor().mark(&topic("a")).unwrap();
    assert_eq!(mark.position.offset, Offset(1202));
}

#[tokio::test]
async fn a_closed_topic_ends_at_its_end() {
    let (hub, _) = small();
    publish(&hub, "a", log(1)).await;
    let mut reader = follow(&hub, since("a", Since::Earliest)).await;
    assert_eq!(catch_up(&mut reader).await, [event("log", 1, 1)]);
    hub.close(&key("a")).await.unwrap();
    assert_eq!(take(&mut reader, 1).await, [Got::Closed]);
    assert!(reader.is_finished());
    let cursor = reader.cursor().clone();
    assert!(hub.is_finished(&[key("a")], &cursor).await.unwrap());
    let mut late = follow(&hub, since("a", Since::Earliest)).await;
    assert_eq!(take(&mut late, 2).await, [event("log", 1, 1), Got::Closed]);
}

#[tokio::test]
async fn a_reader_overtaken_by_retention_while_connected_is_told_that_it_lagged() {
    let (hub, journal) = small();
    let mut reader = follow(&hub, Follow::new(vec![key("a")])).await;
    assert_eq!(catch_up(&mut reader).await, []);
    for number in 1..=10 {
        publish(&hub, "a", log(number)).await;
    }
    trim(&*journal, "a", 3).await;
    let got = take(&mut reader, 4).await;
    let mut want = vec![Got::Gap("lagged", Some(1), Some(7))];
    want.extend((8..=10).map(|n| event("log", n, n)));
    assert_eq!(got, want);
}

#[tokio::test]
async fn deleting_a_topic_tells_its_connected_readers() {
    let (hub, _) = small();
    publish(&hub, "a", log(1)).await;
    let mut reader = follow(&hub, Follow::new(vec![key("a")])).await;
    catch_up(&mut reader).await;
    delete(&hub, "a").await;
    assert_eq!(take(&mut reader, 1).await, [Got::Gap("epoch", None, None)]);
    publish(&hub, "a", log(1)).await;
    assert_eq!(take(&mut reader, 1).await, [event("log", 1, 1)]);
    let cursor = reader.cursor().encode();
    let (_, started) = hub.subscribe(from("a", cursor)).await.unwrap();
    assert_eq!(started.resumed, Resumed::Exact);
    assert_eq!(journal_head(&hub).await, Offset(2));
}

#[tokio::test]
async fn a_cursor_of_other_topics_is_not_called_an_exact_return() {
    let (hub, _) = small();
    publish(&hub, "a", log(1)).await;
    let cursor = follow(&hub, Follow::new(vec![key("a")])).await.cursor().encode();
    let (_, started) = hub.subscribe(from("b", cursor)).await.unwrap();
    assert_eq!(started.resumed, Resumed::Fresh);
}

#[tokio::test]
async fn a_reader_of_too_many_topics_or_of_one_twice_is_refused() {
    let (hub, _) = small();
    let many = (0..33).map(|n| key(&format!("t/{n}"))).collect();
    let refused = hub.subscribe(Follow::new(many)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::TooLarge);
    let refused = hub.subscribe(Follow::new(vec![key("a"), key("a")])).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Malformed);
}

async fn journal_head(hub: &Hub) -> Offset {
    hub.describe(&key("a")).await.unwrap().head.tail
}

#[tokio::test]
async fn a_reader_of_a_topic_before_its_first_event_resumes_exactly_once_it_exists() {
    let (hub, journal) = small();
    let reader = follow(&hub, Follow::new(vec![key("new")])).await;
    let cursor = reader.cursor().encode();
    drop(reader);
    publish(&hub, "new", log(1)).await;
    let (mut reader, started) = hub.subscribe(from("new", cursor)).await.unwrap();
    assert_eq!(started.resumed, Resumed::Exact);
    assert_eq!(catch_up(&mut reader).await, [event("log", 1, 1)]);
    assert!(journal.failure().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_closed_topic_ends_for_readers_that_come_after_its_task_retired() {
    let (hub, _) = small();
    publish(&hub, "a", log(1)).await;
    hub.close(&key("a")).await.unwrap();
    tokio::time::sleep(tidings::model::limits::TOPIC_IDLE * 3).await;
    for start in [Since::Earliest, Since::Latest(1)] {
        let mut reader = follow(&hub, since("a", start)).await;
        assert_eq!(take(&mut reader, 2).await, [event("log", 1, 1), Got::Closed]);
    }
}
