//! Races at their seams: a journal that acts in the very gap that a wrong order would leave.
//!
//! Each was seen to fail when the code was broken on purpose; how, stands at each test.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tidings::{
    Hub,
    connection::Envelope,
    error::ErrorCode,
    journal::{Change, DeleteIf, Journal, JournalSettings, memory::MemoryJournal},
    model::{Class, limits::TOPIC_IDLE},
    publish::Publish,
    settings::Settings,
    subscribe::{Filter, Follow, Item, Since, States},
};

use crate::support::{
    Got, Seam, SeamJournal, catch_up, delete, event, follow, key, log, publish, state, take,
    tenant, topic, trim,
};

fn hub() -> (Hub, Arc<SeamJournal>, Arc<MemoryJournal>) {
    let memory = Arc::new(MemoryJournal::new(JournalSettings::default()));
    let journal = SeamJournal::new(Arc::clone(&memory) as Arc<_>);
    let settings = Settings { ring_frames_max: 2, ..Settings::default() };
    let hub = Hub::builder().journal(Arc::clone(&journal) as Arc<_>).settings(settings).start();
    (hub, journal, memory)
}

fn earliest() -> Follow {
    Follow { since: Some(Since::Earliest), ..Follow::new(vec![key("a")]) }
}

/// Broken on purpose: in `topic_task::run`, call `serve` without catching its panic.
#[tokio::test]
async fn a_defect_met_by_an_append_neither_hangs_its_topic_nor_loses_its_readers() {
    let (hub, journal, _) = hub();
    let mut reader = follow(&hub, Follow::new(vec![key("a")])).await;
    journal.at(Seam::BeforeAppend, || async { panic!("a defect, on purpose") });
    let first = Publish::new(topic("a"), log(1));
    let refused = hub.publish_one(&tenant(), first).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    publish(&hub, "a", log(2)).await;
    assert_eq!(take(&mut reader, 1).await, [event("log", 1, 2)]);
}

/// Broken on purpose: in `topic_task::run`, do not look at a topic in doubt when it is idle. With one
/// look, what comes behind it is not found.
#[tokio::test(start_paused = true)]
async fn what_was_stored_without_an_answer_is_delivered() {
    for later in [Duration::ZERO, TOPIC_IDLE + Duration::from_secs(1)] {
        let (hub, journal, _) = hub();
        publish(&hub, "a", log(1)).await;
        let mut reader = follow(&hub, earliest()).await;
        assert_eq!(catch_up(&mut reader).await, [event("log", 1, 1)]);
        journal.store_unsaid(later);
        let second = Publish::new(topic("a"), log(2));
        let refused = hub.publish_one(&tenant(), second).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        // The clock stands: this is when it is stored, behind a look where that is late.
        tokio::time::sleep(later).await;
        assert_eq!(take(&mut reader, 1).await, [event("log", 2, 2)], "{later:?}");
    }
}

/// Broken on purpose: in `topic_task::run`, call `look` without catching its panic.
#[tokio::test(start_paused = true)]
async fn a_defect_met_while_looking_neither_hangs_the_topic_nor_loses_its_readers() {
    let (hub, journal, _) = hub();
    publish(&hub, "a", log(1)).await;
    let mut reader = follow(&hub, earliest()).await;
    assert_eq!(catch_up(&mut reader).await, [event("log", 1, 1)]);
    journal.store_unsaid(Duration::ZERO);
    journal.at(Seam::BeforeRead, || async { panic!("a defect, on purpose") });
    let second = Publish::new(topic("a"), log(2));
    hub.publish_one(&tenant(), second).await.unwrap_err();
    assert_eq!(take(&mut reader, 1).await, [event("log", 2, 2)]);
    publish(&hub, "a", log(3)).await;
    assert_eq!(take(&mut reader, 1).await, [event("log", 3, 3)]);
}

/// Broken on purpose: in `TopicReader::replay`, take the page of the start although it is empty.
#[tokio::test(start_paused = true)]
async fn an_empty_page_of_the_start_does_not_say_that_there_is_nothing() {
    let (hub, _, _) = hub();
    publish(&hub, "a", log(1)).await;
    let latest = Follow { since: Some(Since::Latest(0)), states: States::Skip, ..earliest() };
    let mut reader = follow(&hub, latest).await;
    // More than the ring holds, before the reader looks for the first time.
    for number in 2..=4 {
        publish(&hub, "a", log(number)).await;
    }
    assert_eq!(take(&mut reader, 3).await, (2..=4).map(|n| event("log", n, n)).collect::<Vec<_>>());
}

/// Broken on purpose: in `Live::ask_anew`, leave out `forget`.
#[tokio::test(start_paused = true)]
async fn readers_are_told_of_a_deletion_although_the_journal_does_not_say_where_the_topic_stands() {
    let (hub, journal, _) = hub();
    publish(&hub, "a", log(1)).await;
    let mut reader = follow(&hub, earliest()).await;
    assert_eq!(take(&mut reader, 1).await, [event("log", 1, 1)]);
    journal.fail_describe();
    delete(&hub, "a").await;
    let told = tokio::time::timeout(Duration::from_secs(60), take(&mut reader, 1)).await.unwrap();
    assert!(matches!(told.as_slice(), [Got::Gap("epoch", ..)]), "{told:?}");
    publish(&hub, "a", log(2)).await;
    assert_eq!(take(&mut reader, 1).await, [event("log", 1, 2)]);
}

/// Broken on purpose: in `Hub::shutdown`, close the journal without waiting for the tasks.
#[tokio::test]
async fn what_was_asked_before_the_end_is_answered_and_what_comes_after_is_refused() {
    let (hub, journal, memory) = hub();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (go, gate) = tokio::sync::oneshot::channel();
    let mut once = Some((begun, gate));
    journal.at(Seam::BeforeAppend, move || {
        let (begun, gate) = once.take().unwrap();
        async move {
            begun.send(()).unwrap();
            gate.await.unwrap();
        }
    });
    let one = |number| {
        let (hub, event) = (hub.clone(), Publish::new(topic("a"), log(number)));
        tokio::spawn(async move { hub.publish_one(&tenant(), event).await })
    };
    let first = one(1);
    begins.await.unwrap();
    let second = one(2);
    while hub.metrics().topics_active.get() == 0 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    let ending = tokio::spawn({
        let hub = hub.clone();
        async move { hub.shutdown().await }
    });
    while hub.unready().is_none() {
        tokio::task::yield_now().await;
    }
    go.send(()).unwrap();
    assert_eq!(first.await.unwrap().unwrap().position.unwrap().offset.0, 1);
    assert_eq!(second.await.unwrap().unwrap().position.unwrap().offset.0, 2);
    ending.await.unwrap();
    assert!(memory.failure().is_some(), "the journal is closed");
    assert_eq!(one(3).await.unwrap().unwrap_err().code, ErrorCode::Unavailable);
}

/// Broken on purpose: in `Hub::poll`, let the deadline end a page before it is caught up.
#[tokio::test(start_paused = true)]
async fn a_page_that_nobody_waits_for_has_what_is_there_although_the_journal_takes_its_time() {
    let (hub, journal, _) = hub();
    for number in 1..=5 {
        publish(&hub, "a", log(number)).await;
    }
    // Not the read that finds the start, but the one after it.
    let second = Arc::clone(&journal);
    journal.at(Seam::BeforeRead, move || {
        second.at(Seam::BeforeRead, || tokio::time::sleep(Duration::from_millis(20)));
        std::future::ready(())
    });
    let page = hub.poll(None, earliest(), Envelope::CloudEvents, Duration::ZERO).await.unwrap();
    assert!(journal.is_done(Seam::BeforeRead));
    assert_eq!(page.events.len(), 5);
    let rest = Follow { cursor: Some(page.cursor), ..earliest() };
    let page = hub.poll(None, rest, Envelope::CloudEvents, Duration::ZERO).await.unwrap();
    assert!(page.events.is_empty() && page.gaps.is_empty());
}

/// Broken on purpose: in `Subscription::next`, tell changes only while there are no items.
#[tokio::test]
async fn what_was_read_after_the_properties_changed_comes_after_the_word_of_it() {
    let (hub, journal, _) = hub();
    for number in 1..=1500 {
        publish(&hub, "a", log(number)).await;
    }
    let mut reader = follow(&hub, earliest()).await;
    let first = take(&mut reader, 1).await;
    let changer = hub.clone();
    journal.at(Seam::BeforeRead, move || {
        let hub = changer.clone();
        async move {
            hub.set_properties(&key("a"), Change::default()).await.unwrap().unwrap();
            publish(&hub, "a", log(1501)).await;
        }
    });
    let (mut is_told, mut count) = (false, first.len());
    while count < 1501 {
        for item in reader.next().await.unwrap() {
            match item {
                Item::Changed { place: 0 } => is_told = true,
                Item::Event { frame, .. } => {
                    count += 1;
                    let is_after = frame.position.unwrap().offset.0 == 1501;
                    assert!(is_told || !is_after, "came before the word of the change");
                }
                _ => {}
            }
        }
    }
    assert!(is_told && journal.is_done(Seam::BeforeRead));
}

/// Broken on purpose: in `Subscription::start`, attach after the start was found.
#[tokio::test]
async fn an_event_published_while_the_start_is_found_is_delivered_once() {
    for seam in [Seam::BeforeRead, Seam::AfterRead] {
        let (hub, journal, _) = hub();
        let publisher = hub.clone();
        journal.at(seam, move || {
            let hub = publisher.clone();
            async move { drop(publish(&hub, "a", log(1)).await) }
        });
        let mut reader = follow(&hub, earliest()).await;
        assert!(journal.is_done(seam));
        assert_eq!(take(&mut reader, 1).await, [event("log", 1, 1)]);
        publish(&hub, "a", log(2)).await;
        assert_eq!(take(&mut reader, 1).await, [event("log", 2, 2)]);
    }
}

/// Broken on purpose: in `Live::head`, let what `describe` said replace what an append said.
#[tokio::test]
async fn now_is_the_end_of_the_topic_even_if_it_moves_while_it_is_found() {
    let (hub, journal, _) = hub();
    let publisher = hub.clone();
    journal.at(Seam::AfterDescribe, move || {
        let hub = publisher.clone();
        async move { drop(publish(&hub, "a", log(1)).await) }
    });
    let mut reader = follow(&hub, Follow::new(vec![key("a")])).await;
    assert!(journal.is_done(Seam::AfterDescribe));
    assert_eq!(reader.offsets().map(|(_, offset)| offset.0).collect::<Vec<_>>(), [1]);
    publish(&hub, "a", log(2)).await;
    assert_eq!(take(&mut reader, 1).await, [event("log", 2, 2)]);
}

/// Broken on purpose: in `Reader::replay`, go on from the end of the ring instead of the page's.
#[tokio::test]
async fn an_event_published_between_replay_and_follow_is_delivered_once() {
    let (hub, journal, _) = hub();
    for number in 1..=5 {
        publish(&hub, "a", log(number)).await;
    }
    let mut reader = follow(&hub, earliest()).await;
    let publisher = hub.clone();
    journal.at(Seam::AfterRead, move || {
        let hub = publisher.clone();
        async move {
            for number in 6..=9 {
                publish(&hub, "a", log(number)).await;
            }
        }
    });
    let want: Vec<Got> = (1..=9).map(|n| event("log", n, n)).collect();
    assert_eq!(take(&mut reader, 9).await, want);
    publish(&hub, "a", log(10)).await;
    assert_eq!(take(&mut reader, 1).await, [event("log", 10, 10)]);
}

/// Broken on purpose: in `Reader::replay`, leave `judge` out.
#[tokio::test]
async fn a_trim_while_a_reader_replays_is_told() {
    let (hub, journal, memory) = hub();
    for number in 1..=1500 {
        publish(&hub, "a", log(number)).await;
    }
    let mut reader = follow(&hub, earliest()).await;
    let first = take(&mut reader, 1).await;
    assert_eq!(first[0], event("log", 1, 1));
    let read = first.len() as u64;
    journal.at(Seam::BeforeRead, move || {
        let memory = Arc::clone(&memory);
        async move {
            trim(&*memory, "a", 100).await;
        }
    });
    let got = take(&mut reader, 101).await;
    assert!(journal.is_done(Seam::BeforeRead));
    let mut want = vec![Got::Gap("trimmed", Some(read + 1), Some(1400))];
    want.extend((1401..=1500).map(|n| event("log", n, n)));
    assert_eq!(got, want);
}

/// Broken on purpose: in `Reader::replay`, leave `judge` out.
#[tokio::test]
async fn another_history_while_a_reader_replays_is_told() {
    let (hub, journal, memory) = hub();
    for number in 1..=1500 {
        publish(&hub, "a", log(number)).await;
    }
    let mut reader = follow(&hub, earliest()).await;
    take(&mut reader, 1).await;
    journal.at(Seam::BeforeRead, move || {
        let memory = Arc::clone(&memory);
        async move {
            memory.delete(&key("a"), DeleteIf::Always).await.unwrap().unwrap();
        }
    });
    let got = take(&mut reader, 1).await;
    assert!(journal.is_done(Seam::BeforeRead));
    assert_eq!(got, [Got::Gap("epoch", None, None)]);
}

/// Broken on purpose: in `Reader::states`, query without `until`.
#[tokio::test]
async fn a_state_replaced_while_the_first_states_are_sent_is_delivered_in_its_new_place() {
    for seam in [Seam::BeforeStates, Seam::AfterStates] {
        let (hub, journal, _) = hub();
        publish(&hub, "a", state("k", 1)).await;
        publish(&hub, "a", state("j", 2)).await;
        let publisher = hub.clone();
        journal.at(seam, move || {
            let hub = publisher.clone();
            async move { drop(publish(&hub, "a", state("k", 3)).await) }
        });
        let mut reader = follow(&hub, Follow::new(vec![key("a")])).await;
        let got = catch_up(&mut reader).await;
        let mut want = vec![event("state", 2, 2), event("state", 3, 3)];
        if matches!(seam, Seam::AfterStates) {
            want.insert(0, event("state", 1, 1));
        }
        assert_eq!(got, want);
        publish(&hub, "a", log(4)).await;
        assert_eq!(take(&mut reader, 1).await, [event("log", 4, 4)]);
    }
}

/// Broken on purpose: in `Live::advance`, do not wake the readers of the tenth event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_woken_reader_finds_what_it_was_woken_for() {
    let (hub, _, _) = hub();
    for round in 0..20 {
        let name = format!("a/{round}");
        let mut reader = follow(&hub, Follow::new(vec![key(&name)])).await;
        assert_eq!(catch_up(&mut reader).await, []);
        let publisher = hub.clone();
        let publishing = tokio::spawn(async move {
            for number in 1..=10 {
                publish(&publisher, &name, log(number)).await;
            }
        });
        let want: Vec<Got> = (1..=10).map(|n| event("log", n, n)).collect();
        assert_eq!(take(&mut reader, 10).await, want);
        publishing.await.unwrap();
    }
}

/// Broken on purpose: in `Subscription::step`, clear the topic's bit before it is looked at.
#[tokio::test(start_paused = true)]
async fn a_reader_whose_wait_is_dropped_while_the_journal_reads_goes_on() {
    let (hub, journal, _) = hub();
    for number in 1..=1500 {
        publish(&hub, "a", log(number)).await;
    }
    let mut reader = follow(&hub, earliest()).await;
    let mut got = take(&mut reader, 1).await;
    let pause = Duration::from_secs(60);
    journal.at(Seam::BeforeRead, move || tokio::time::sleep(pause));
    // As a connection does when it must send a ping.
    while !journal.is_done(Seam::BeforeRead) {
        tokio::select! {
            items = reader.next() => got.extend(items.unwrap().iter().filter_map(crate::support::got)),
            () = tokio::time::sleep(pause / 4) => {}
        }
    }
    got.extend(catch_up(&mut reader).await);
    assert_eq!(got, (1..=1500).map(|n| event("log", n, n)).collect::<Vec<_>>());
}

/// Broken on purpose: in `Subscription::next`, look at the waker only when nothing is left to do.
#[tokio::test]
async fn a_topic_that_is_behind_does_not_hold_up_the_others() {
    let (hub, _, _) = hub();
    for number in 1..=5000 {
        publish(&hub, "a", log(number)).await;
    }
    let both = Follow { topics: vec![key("a"), key("b")], ..earliest() };
    let mut reader = follow(&hub, both).await;
    let mut got = take(&mut reader, 600).await;
    publish(&hub, "b", log(7)).await;
    while !got.contains(&event("log", 1, 7)) {
        got.extend(take(&mut reader, 1).await);
        assert!(got.len() < 4000, "the other topic waits for the replay's end");
    }
}

/// Broken on purpose: in `Subscription::next`, do not hand out at once what was found before. The
/// simulation found it.
#[tokio::test(start_paused = true)]
async fn a_long_poll_that_ends_while_the_journal_reads_tells_the_gap_that_its_cursor_is_behind() {
    let (hub, journal, memory) = hub();
    for number in 1..=5 {
        publish(&hub, "a", log(number)).await;
    }
    let first = Follow { since: Some(Since::Latest(5)), ..Follow::new(vec![key("a")]) };
    let cursor = hub.subscribe(first).await.unwrap().0.cursor().encode();
    trim(&*memory, "a", 2).await;
    journal.at(Seam::BeforeStates, || tokio::time::sleep(Duration::from_secs(60)));
    let again = Follow { cursor: Some(cursor), ..Follow::new(vec![key("a")]) };
    let page = hub.poll(None, again, Envelope::CloudEvents, Duration::from_secs(1)).await.unwrap();
    let gap = serde_json::json!({ "topic": "a", "reason": "trimmed", "from": 1, "to": 3 });
    assert_eq!((page.events.len(), page.gaps), (0, vec![gap]));
}

/// Broken on purpose: in `Reader::advance`, leave `at_end` as it is when frames are found. The
/// simulation found it: the cursor stayed before the end, so that coming back was not answered 204.
#[tokio::test]
async fn a_closed_topic_is_told_after_the_checkpoint_of_what_was_filtered() {
    let (hub, _, _) = hub();
    publish(&hub, "a", log(1)).await;
    let filter = Filter { classes: vec![Class::Log], ..Filter::default() };
    let mut reader = follow(&hub, Follow { filter, ..earliest() }).await;
    assert_eq!(catch_up(&mut reader).await, [event("log", 1, 1)]);
    let last = Publish { close: true, ..Publish::new(topic("a"), state("k", 2)) };
    hub.publish_one(&tenant(), last).await.unwrap();
    while !reader.is_finished() {
        reader.next().await.unwrap();
    }
    let mark = reader.cursor().mark(&topic("a")).unwrap();
    assert_eq!(mark.position.offset.0, 2);
}

/// Broken on purpose: in `Live::holds`, say no.
#[tokio::test]
async fn who_comes_back_to_what_is_in_memory_asks_no_journal() {
    let (hub, journal, _) = hub();
    drop(follow(&hub, Follow::new(vec![key("a")])).await);
    let cursor = publish(&hub, "a", log(1)).await.cursor();
    publish(&hub, "a", log(2)).await;
    journal.at(Seam::BeforeRead, || async {});
    let back = Follow { cursor, ..Follow::new(vec![key("a")]) };
    let mut reader = follow(&hub, back.clone()).await;
    assert_eq!(catch_up(&mut reader).await, [event("log", 2, 2)]);
    assert!(!journal.is_done(Seam::BeforeRead), "the journal was read");
    // The ring has two: this one is behind it.
    publish(&hub, "a", log(3)).await;
    let mut reader = follow(&hub, back).await;
    assert_eq!(catch_up(&mut reader).await, [event("log", 2, 2), event("log", 3, 3)]);
    assert!(journal.is_done(Seam::BeforeRead));
}

/// Broken on purpose: in `Replays::page`, join nobody: each reads for itself.
#[tokio::test]
async fn readers_that_come_back_together_have_the_journal_read_once() {
    let (hub, journal, _) = hub();
    let cursor = publish(&hub, "a", log(1)).await.cursor();
    for number in 2..=5 {
        publish(&hub, "a", log(number)).await;
    }
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (go, gate) = tokio::sync::oneshot::channel::<()>();
    let mut once = Some((begun, gate));
    journal.at(Seam::AfterRead, move || {
        let (begun, gate) = once.take().unwrap();
        async move {
            begun.send(()).unwrap();
            gate.await.unwrap();
        }
    });
    let come_back = || {
        let (hub, cursor) = (hub.clone(), cursor.clone());
        async move {
            let back = Follow { cursor, ..Follow::new(vec![key("a")]) };
            catch_up(&mut follow(&hub, back).await).await
        }
    };
    let first = tokio::spawn(come_back());
    begins.await.unwrap();
    journal.at(Seam::BeforeRead, || async {});
    // It runs until it waits, which is for the other's page.
    let mut second = Box::pin(come_back());
    assert!(second.as_mut().now_or_never().is_none());
    // Known to the second only: its page may not hide it.
    publish(&hub, "a", log(6)).await;
    go.send(()).unwrap();
    let all: Vec<_> = (2..=6).map(|number| event("log", number, number)).collect();
    assert_eq!(first.await.unwrap(), all);
    assert_eq!(second.await, all);
    assert!(!journal.is_done(Seam::BeforeRead), "the journal was read twice");
}
