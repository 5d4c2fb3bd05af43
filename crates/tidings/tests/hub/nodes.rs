//! Several nodes on one journal: what one appends, the readers of all get, whatever the bus does.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tidings::{
    Hub,
    bus::{Announcement, Bus, Heard, local::LocalBus},
    error::ErrorCode,
    journal::{Change, Journal, JournalSettings, Properties, memory::MemoryJournal},
    model::{Class, TopicKey},
    publish::Publish,
    settings::Settings,
    subscribe::{Follow, Since},
};

use crate::support::{
    Got, Seam, SeamJournal, catch_up, collect, delete, event, follow, got, key, log, publish,
    state, take, tenant, topic, trim,
};

fn node(journal: &Arc<MemoryJournal>, bus: Arc<dyn Bus>) -> Hub {
    Hub::builder().journal(Arc::clone(journal) as Arc<dyn Journal>).bus(bus).start()
}

/// Two nodes on one journal and one bus.
fn pair() -> (Hub, Hub) {
    let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
    let bus = LocalBus::new();
    let other = bus.join();
    (node(&journal, bus), node(&journal, other))
}

fn from_now(name: &str) -> Follow {
    Follow { since: Some(Since::Now), ..Follow::new(vec![key(name)]) }
}

/// A bus that loses, doubles and holds back what it should say, by a fixed pattern.
#[derive(Debug)]
struct BadBus {
    inner: Arc<LocalBus>,
    heard: AtomicU64,
    again: Mutex<Vec<Heard>>,
    loses_everything: bool,
}

impl BadBus {
    fn new(inner: Arc<LocalBus>, loses_everything: bool) -> Arc<Self> {
        let (heard, again) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Self { inner, heard, again, loses_everything })
    }
}

#[async_trait]
impl Bus for BadBus {
    fn announce(&self, announcement: Announcement) {
        self.inner.announce(announcement);
    }

    fn follow(&self, topic: &TopicKey) {
        self.inner.follow(topic);
    }

    fn unfollow(&self, topic: &TopicKey) {
        self.inner.unfollow(topic);
    }

    async fn heard(&self) -> Heard {
        loop {
            let heard = self.inner.heard().await;
            if self.loses_everything {
                continue;
            }
            let number = self.heard.fetch_add(1, Ordering::Relaxed);
            let mut again = self.again.lock().unwrap();
            match number % 7 {
                // Lost.
                0 | 3 => {}
                // Held back until something else was said, then said twice.
                1 => again.extend([heard.clone(), heard]),
                _ => match again.pop() {
                    Some(older) => {
                        again.push(heard);
                        return older;
                    }
                    None => return heard,
                },
            }
        }
    }

    fn failure(&self) -> Option<String> {
        self.inner.failure()
    }

    fn dropped(&self) -> u64 {
        self.inner.dropped()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[tokio::test]
async fn what_one_node_appends_the_readers_of_the_other_get() {
    let (one, other) = pair();
    let mut reader = follow(&other, from_now("a")).await;
    for number in 1..=5 {
        publish(&one, "a", log(number)).await;
        assert_eq!(take(&mut reader, 1).await, [event("log", number, number)]);
    }
    publish(&other, "a", log(6)).await;
    assert_eq!(take(&mut reader, 1).await, [event("log", 6, 6)]);
}

/// The appends of both nodes interleave; what stands between two of a node's own comes by the
/// journal. Broken on purpose: taking in one's own batch without looking whether it is next is
/// still right, because a ring with a hole sends its readers to the journal, only dearer.
#[tokio::test]
async fn publishers_on_both_nodes_give_every_reader_the_same_order() {
    let (one, other) = pair();
    let mut readers = Vec::new();
    for hub in [&one, &other, &one, &other] {
        readers.push(follow(hub, from_now("a")).await);
    }
    let publishing = [one.clone(), other.clone()].map(|hub| {
        tokio::spawn(async move {
            for number in 0..200 {
                publish(&hub, "a", log(number)).await;
            }
        })
    });
    let mut all = Vec::new();
    for reader in &mut readers {
        all.push(take(reader, 400).await);
    }
    for publisher in publishing {
        publisher.await.unwrap();
    }
    let offsets = |got: &Got| if let Got::Event(_, offset, _) = got { *offset } else { 0 };
    assert_eq!(all[0].iter().map(offsets).collect::<Vec<_>>(), (1..=400).collect::<Vec<_>>());
    assert!(all.iter().all(|got| *got == all[0]));
}

#[tokio::test]
async fn a_bus_that_loses_doubles_and_reorders_harms_nobody() {
    let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
    let bus = LocalBus::new();
    let other = node(&journal, BadBus::new(bus.join(), false));
    let one = node(&journal, BadBus::new(bus, false));
    let names = ["a", "b", "c"];
    let mut readers = Vec::new();
    for name in names {
        readers.push(follow(&other, from_now(name)).await);
        readers.push(follow(&one, from_now(name)).await);
    }
    for number in 1..=60 {
        for (place, name) in (0_u64..).zip(names) {
            let hub = if (number + place).is_multiple_of(3) { &other } else { &one };
            publish(hub, name, log(number)).await;
        }
    }
    for reader in &mut readers {
        let expected: Vec<Got> = (1..=60).map(|n| event("log", n, n)).collect();
        assert_eq!(take(reader, 60).await, expected);
    }
}

/// Time is virtual: nothing waits but the comparison. Broken on purpose: without `relay::compare`
/// the reader waits for ever.
#[tokio::test(start_paused = true)]
async fn a_dead_bus_delays_by_a_second_and_loses_nothing() {
    let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
    let bus = LocalBus::new();
    let other = node(&journal, BadBus::new(bus.join(), true));
    let one = node(&journal, bus);
    let mut reader = follow(&other, from_now("a")).await;
    let published_at = tokio::time::Instant::now();
    publish(&one, "a", log(1)).await;
    assert_eq!(take(&mut reader, 1).await, [event("log", 1, 1)]);
    assert!(published_at.elapsed() <= Duration::from_secs(1), "{:?}", published_at.elapsed());
    assert_eq!(other.metrics().announcements.get_or_create(&"found".into()).get(), 1);
}

#[tokio::test]
async fn a_topic_that_another_node_closes_or_deletes_ends_here_too() {
    let (one, other) = pair();
    publish(&one, "a", log(1)).await;
    let mut reader = follow(&other, from_now("a")).await;
    let mut deleted = follow(&other, from_now("b")).await;
    publish(&one, "b", log(1)).await;
    assert_eq!(take(&mut deleted, 1).await, [event("log", 1, 1)]);
    one.close(&key("a")).await.unwrap();
    assert_eq!(take(&mut reader, 1).await, [Got::Closed]);
    delete(&one, "b").await;
    assert_eq!(take(&mut deleted, 1).await, [Got::Gap("epoch", None, None)]);
}

#[tokio::test]
async fn readers_are_asked_again_when_another_node_changes_a_topics_properties() {
    let (one, other) = pair();
    publish(&one, "a", log(1)).await;
    let mut reader = follow(&other, from_now("a")).await;
    catch_up(&mut reader).await;
    let properties = Properties { owner: Some("u".to_owned()), ..Properties::default() };
    one.set_properties(&key("a"), Change::to(properties)).await.unwrap().unwrap();
    let changed = |item: &_| matches!(item, tidings::subscribe::Item::Changed { .. });
    assert_eq!(collect(&mut reader, changed).await, []);
}

/// The second event is appended after the node read what follows the first, and the third after it
/// asked for the properties, which say that there are two. The reader looks when all is known.
///
/// Broken on purpose: with `Live::refresh` leaving the ring as it was, the third was put behind a
/// place for a second that is superseded, and the reader was never given that one.
#[tokio::test(start_paused = true)]
async fn what_is_appended_while_a_node_asks_for_properties_is_not_taken_for_superseded() {
    let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
    let bus = LocalBus::new();
    let seams = SeamJournal::new(Arc::clone(&journal) as Arc<dyn Journal>);
    let asking = Arc::clone(&seams) as Arc<dyn Journal>;
    let other = Hub::builder().journal(asking).bus(bus.join()).start();
    let one = node(&journal, bus);
    let mut reader = follow(&other, from_now("a")).await;
    publish(&one, "a", log(1)).await;
    assert_eq!(take(&mut reader, 1).await, [event("log", 1, 1)]);
    let (first, inner) = (one.clone(), Arc::clone(&seams));
    seams.at(Seam::AfterRead, move || {
        let (first, inner) = (first.clone(), Arc::clone(&inner));
        async move {
            publish(&first, "a", log(2)).await;
            inner.at(Seam::AfterDescribe, move || {
                let first = first.clone();
                async move { drop(publish(&first, "a", log(3)).await) }
            });
        }
    });
    let properties = Properties { owner: Some("u".to_owned()), ..Properties::default() };
    one.set_properties(&key("a"), Change::to(properties)).await.unwrap().unwrap();
    // Time is virtual: it goes on once there is nothing left to do.
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(seams.is_done(Seam::AfterDescribe), "nobody asked for the properties");
    assert_eq!(take(&mut reader, 2).await, [event("log", 2, 2), event("log", 3, 3)]);
}

#[tokio::test]
async fn events_that_no_journal_keeps_reach_the_readers_of_all_nodes_once() {
    let (one, other) = pair();
    let mut here = follow(&one, from_now("a")).await;
    let mut there = follow(&other, from_now("a")).await;
    catch_up(&mut here).await;
    catch_up(&mut there).await;
    let mut typing = log(7);
    typing.class = Class::Ephemeral;
    one.publish_one(&tenant(), Publish::new(topic("a"), typing)).await.unwrap();
    publish(&one, "a", log(1)).await;
    for reader in [&mut here, &mut there] {
        let mut all = Vec::new();
        while all.len() < 2 {
            all.extend(reader.next().await.unwrap().iter().filter_map(got));
        }
        // Its class promises no order with the others.
        all.sort_by_key(|got| matches!(got, Got::Event("log", ..)));
        assert_eq!(all, [event("ephemeral", 0, 7), event("log", 1, 1)]);
    }
}

/// One compare-and-set, on whichever node.
#[tokio::test]
async fn one_of_two_nodes_conditional_appends_wins() {
    let (one, other) = pair();
    let claim = |number| {
        let publish = Publish::new(topic("a"), state("k", number));
        Publish { if_offset: Some(tidings::model::Offset::ZERO), ..publish }
    };
    let (tenant, (a, b)) = (tenant(), (claim(1), claim(2)));
    let (a, b) = tokio::join!(one.publish_one(&tenant, a), other.publish_one(&tenant, b));
    let lost = [&a, &b].into_iter().filter_map(|claim| claim.as_ref().err());
    let codes: Vec<ErrorCode> = lost.map(|problem| problem.code).collect();
    assert_eq!(codes, [ErrorCode::Conflict]);
}

/// Broken on purpose: in `Reader::look`, keep the page at an end. It was empty, and what came later was
/// behind it.
#[tokio::test(start_paused = true)]
async fn a_reader_that_is_ahead_of_its_node_gets_what_comes_after() {
    let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
    let bus = LocalBus::new();
    let quiet = BadBus::new(bus.join(), true);
    let a = node(&journal, bus);
    let settings = Settings { ring_frames_max: 2, ..Settings::default() };
    let shared = Arc::clone(&journal) as Arc<dyn Journal>;
    let b = Hub::builder().journal(shared).bus(quiet).settings(settings).start();
    publish(&a, "t", log(1)).await;
    let mut early = follow(&b, from_now("t")).await;
    assert_eq!(catch_up(&mut early).await, []);
    let cursor = publish(&a, "t", log(2)).await.cursor();
    let mut ahead = follow(&b, Follow { cursor, ..Follow::new(vec![key("t")]) }).await;
    assert_eq!(catch_up(&mut ahead).await, []);
    for number in 3..=8 {
        publish(&a, "t", log(number)).await;
    }
    let rest: Vec<_> = (3..=8).map(|number| event("log", number, number)).collect();
    assert_eq!(take(&mut ahead, 6).await, rest);
}

/// Broken on purpose: in `Start::resume`, ask the ring of a node that is not alone.
#[tokio::test(start_paused = true)]
async fn who_comes_back_is_told_what_another_node_trimmed() {
    let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
    let b = node(&journal, LocalBus::new());
    // So that its ring is fed.
    drop(follow(&b, from_now("t")).await);
    let cursor = publish(&b, "t", log(1)).await.cursor();
    for number in 2..=4 {
        publish(&b, "t", log(number)).await;
    }
    trim(&*journal, "t", 1).await;
    let mut back = follow(&b, Follow { cursor, ..Follow::new(vec![key("t")]) }).await;
    let told = catch_up(&mut back).await;
    assert_eq!(told, [Got::Gap("trimmed", Some(2), Some(3)), event("log", 4, 4)]);
}
