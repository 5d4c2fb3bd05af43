//! Publishers and readers at all nodes, and what became of them.
//!
//! The rule: they are clients. A publisher sends an event until it is acknowledged, by the same id;
//! a reader whose stream ends comes back with its cursor, to another node if its own is gone.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tidings::{
    Hub,
    error::{ErrorCode, Problem},
    journal::{Dedup, Journal, JournalError, PageLimit},
    model::{
        EventId, EventType, JsonText, NewEvent, Offset, Position, Tenant, Timestamp, Topic,
        TopicKey,
    },
    publish::Publish,
    subscribe::{Follow, Item, Since, States},
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    history::{Got, Held, History, Losses},
    nodes::{LOOK_AGAIN, NODES, Nodes, PATIENCE, soon, until},
};

/// At each node.
const PUBLISHERS: usize = 2;
const READERS: usize = 2;
/// Within so long a publish is answered, whatever the server does: the adapters give up after 5 s,
/// and the machine has other work.
const ANSWERED_WITHIN: Duration = Duration::from_secs(15);
/// Events that count as going on: each publisher and each reader got so many more.
const MORE: usize = 20;

pub(crate) fn tenant() -> Tenant {
    Tenant::parse("acme").unwrap()
}

pub(crate) fn key(name: &str) -> TopicKey {
    TopicKey::new(tenant(), Topic::parse(name).unwrap())
}

/// Publishes one event that no load knows of.
pub(crate) async fn publish_apart(hub: &Hub, name: &str) {
    let event = NewEvent::new(EventType::parse("a.b").unwrap());
    let publish = Publish::new(Topic::parse(name).unwrap(), event);
    hub.publish_one(&tenant(), publish).await.unwrap();
}

/// Clients at work.
pub(crate) struct Load {
    nodes: Arc<Nodes>,
    shared: Arc<Shared>,
    publishers: Vec<JoinHandle<()>>,
    readers: Vec<JoinHandle<()>>,
}

struct Shared {
    topics: Vec<&'static str>,
    history: Mutex<History>,
    stop: CancellationToken,
    /// By publisher.
    acked: Vec<AtomicUsize>,
    refused: Vec<AtomicUsize>,
    /// By reader.
    read: Vec<AtomicUsize>,
}

impl Shared {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }
}

fn counters(count: usize) -> Vec<AtomicUsize> {
    (0..count).map(|_| AtomicUsize::new(0)).collect()
}

fn counts(of: &[AtomicUsize]) -> Vec<usize> {
    of.iter().map(|count| count.load(Ordering::SeqCst)).collect()
}

/// Whether each of them is so far ahead of what it was.
fn all_ahead(of: &[AtomicUsize], before: &[usize], by: usize) -> bool {
    counts(of).iter().zip(before).all(|(now, before)| *now >= before + by)
}

impl Load {
    /// Starts publishers and readers of these topics, and waits until all of them got somewhere.
    pub(crate) async fn start(nodes: &Arc<Nodes>, topics: &[&'static str]) -> Self {
        let history = History { got: vec![Vec::new(); NODES * READERS], ..History::default() };
        let shared = Arc::new(Shared {
            topics: topics.to_vec(),
            history: Mutex::new(history),
            stop: CancellationToken::new(),
            acked: counters(NODES * PUBLISHERS),
            refused: counters(NODES * PUBLISHERS),
            read: counters(NODES * READERS),
        });
        let publisher =
            |number| tokio::spawn(publish(Arc::clone(nodes), Arc::clone(&shared), number));
        let reader = |number| tokio::spawn(read(Arc::clone(nodes), Arc::clone(&shared), number));
        let load = Self {
            publishers: (0..NODES * PUBLISHERS).map(publisher).collect(),
            readers: (0..NODES * READERS).map(reader).collect(),
            nodes: Arc::clone(nodes),
            shared,
        };
        load.goes_on().await;
        load
    }

    /// Waits until each publisher was acknowledged some more, and each reader got some more after
    /// that.
    pub(crate) async fn goes_on(&self) {
        let acked = counts(&self.shared.acked);
        until("acknowledgements", async || all_ahead(&self.shared.acked, &acked, MORE)).await;
        let read = counts(&self.shared.read);
        until("events", async || all_ahead(&self.shared.read, &read, MORE)).await;
    }

    /// The same once what failed answers again: everybody finds it by themselves, and soon. Each
    /// publisher is acknowledged within the bound, and each reader gets something after that.
    pub(crate) async fn resumes(&self) {
        let acked = counts(&self.shared.acked);
        let mut read = None;
        let mut has_resumed = || {
            if read.is_none() && all_ahead(&self.shared.acked, &acked, 1) {
                read = Some(counts(&self.shared.read));
            }
            read.as_ref().is_some_and(|read| all_ahead(&self.shared.read, read, 1))
        };
        soon("the nodes to resume", async || has_resumed()).await;
        self.goes_on().await;
    }

    /// Goes on while clocks jump, each node's by itself: an hour ahead, back, and behind.
    pub(crate) async fn goes_on_while_clocks_jump(&self) {
        const HOUR_MS: i64 = 3_600_000;
        for off_ms in [HOUR_MS, -HOUR_MS, 0] {
            for number in 0..NODES {
                self.nodes.set_clock(number, off_ms);
                self.goes_on().await;
            }
        }
    }

    /// Waits until each publisher was refused once more.
    pub(crate) async fn is_refused(&self) {
        let refused = counts(&self.shared.refused);
        until("refusals", async || all_ahead(&self.shared.refused, &refused, 1)).await;
    }

    /// Ends the load: publishers finish what they began, readers read it all, and then everything
    /// is looked at. `journal` says what there is, as nobody's cache does. Returns how many events
    /// were acknowledged and are gone.
    pub(crate) async fn check(mut self, journal: &dyn Journal, losses: Losses) -> usize {
        self.shared.stop.cancel();
        for publisher in self.publishers.drain(..) {
            timeout(PATIENCE, publisher).await.expect("a publisher is not acknowledged").unwrap();
        }
        let mut held = BTreeMap::new();
        for topic in &self.shared.topics {
            held.insert((*topic).to_owned(), hold(journal, topic).await);
        }
        // What is missing after that, the checker names.
        let everything = async {
            while !self.has_read_all(&held) {
                sleep(LOOK_AGAIN).await;
            }
        };
        let _in_time = timeout(PATIENCE, everything).await;
        for reader in self.readers.drain(..) {
            reader.abort();
            assert!(reader.await.is_err_and(|error| error.is_cancelled()), "a reader failed");
        }
        let violations = self.shared.history().violations(&held, losses);
        assert!(violations.is_empty(), "{} violations: {violations:#?}", violations.len());
        for hub in self.nodes.living() {
            assert_eq!(hub.unready(), None);
        }
        self.shared.history().lost(&held)
    }

    fn has_read_all(&self, held: &BTreeMap<String, Held>) -> bool {
        let history = self.shared.history();
        held.iter().all(|(name, held)| {
            let end = held.events.last().map(|(_, at)| *at);
            history.got.iter().all(|got| {
                let last = got.iter().rev().find_map(|got| match got {
                    Got::Event { topic, at, .. } if topic == name => Some(*at),
                    _ => None,
                });
                last == end
            })
        })
    }
}

/// Everything that a topic holds.
async fn hold(journal: &dyn Journal, topic: &str) -> Held {
    let (mut events, mut after) = (Vec::new(), Offset::ZERO);
    let mut recorded_at = Timestamp::default();
    loop {
        let page = match journal.read(&key(topic), after, PageLimit::default()).await {
            Ok(page) => page,
            Err(JournalError::Unavailable(_)) => {
                sleep(LOOK_AGAIN).await;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let epoch = page.head.epoch;
        if page.events.is_empty() {
            return Held { epoch, events };
        }
        for event in &page.events {
            assert!(recorded_at <= event.recorded_at, "{topic} went back in time: {event:?}");
            recorded_at = event.recorded_at;
        }
        events.extend(page.events.iter().map(|event| {
            let at = Position { epoch, offset: event.offset, fingerprint: event.fingerprint };
            (event.body.id.as_str().to_owned(), at)
        }));
        after = page.next.offset;
    }
}

/// A publisher: one event after the other, in all topics in turn.
async fn publish(nodes: Arc<Nodes>, shared: Arc<Shared>, number: usize) {
    for round in 0.. {
        if shared.stop.is_cancelled() {
            return;
        }
        let topic = shared.topics[(number + round) % shared.topics.len()];
        let id = format!("{number}-{round}");
        let event = NewEvent::new(EventType::parse("a.b").unwrap()).data(JsonText::string(&id));
        let event = NewEvent { id: EventId::parse(&id).unwrap(), ..event };
        let publish = Publish::new(Topic::parse(topic).unwrap(), event);
        let publish = Publish { dedup: Dedup::ById, ..publish };
        shared.history().attempted.insert(id.clone(), topic.to_owned());
        let at = loop {
            match attempt(&nodes, number, publish.clone()).await {
                Some(Ok(at)) => break at,
                Some(Err(problem)) => {
                    assert_eq!(problem.code, ErrorCode::Unavailable, "{problem:?}");
                    assert!(problem.retry_after.is_some(), "{problem:?}");
                    shared.refused[number].fetch_add(1, Ordering::SeqCst);
                }
                // Its node is gone. Whether it was stored, nobody can tell.
                None => {}
            }
            sleep(LOOK_AGAIN).await;
        };
        shared.history().acked.insert(id, at);
        shared.acked[number].fetch_add(1, Ordering::SeqCst);
    }
}

/// One try, answered in time; no answer if the node died.
async fn attempt(
    nodes: &Nodes,
    number: usize,
    publish: Publish,
) -> Option<Result<Position, Problem>> {
    let asking = nodes.spawn(number % NODES, |hub| async move {
        let published = hub.publish_one(&tenant(), publish).await?;
        Ok(published.position.unwrap())
    });
    match timeout(ANSWERED_WITHIN, asking).await.expect("a publisher is not answered") {
        Ok(answer) => Some(answer),
        Err(error) => {
            assert!(error.is_cancelled(), "{error}");
            None
        }
    }
}

/// What a stream brings at once, and the cursor behind it.
type Batch = (Vec<Item>, String);

/// A reader: follows all topics on one connection from their beginning, again and again.
async fn read(nodes: Arc<Nodes>, shared: Arc<Shared>, number: usize) {
    let mut cursor = None;
    loop {
        let (sender, mut batches) = mpsc::channel(16);
        let follow = Follow {
            cursor: cursor.clone(),
            since: Some(Since::Earliest),
            states: States::Skip,
            ..Follow::new(shared.topics.iter().map(|topic| key(topic)).collect())
        };
        nodes.spawn(number % NODES, |hub| stream(hub, follow, sender));
        while let Some((items, behind)) = batches.recv().await {
            let got: Vec<Got> = items.iter().filter_map(|item| got(&shared, item)).collect();
            let events = got.iter().filter(|got| matches!(got, Got::Event { .. })).count();
            shared.history().got[number].extend(got);
            shared.read[number].fetch_add(events, Ordering::SeqCst);
            cursor = Some(behind);
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// A node's end of a reader's stream, to whatever ends it.
async fn stream(hub: Hub, follow: Follow, to: mpsc::Sender<Batch>) {
    let Ok((mut subscription, _)) = hub.subscribe(follow).await else { return };
    while let Ok(items) = subscription.next().await {
        if to.send((items, subscription.cursor().encode())).await.is_err() {
            return;
        }
    }
}

fn got(shared: &Shared, item: &Item) -> Option<Got> {
    let name = |place: &usize| shared.topics[*place].to_owned();
    match item {
        Item::Event { place, frame, .. } => {
            let event: Value = serde_json::from_slice(&frame.json()).unwrap();
            let id = event["id"].as_str().unwrap().to_owned();
            assert_eq!(event["data"], id.as_str(), "an event has another's data");
            Some(Got::Event { topic: name(place), id, at: frame.position.unwrap() })
        }
        Item::Gap { place, gap, .. } => {
            Some(Got::Gap { topic: name(place), reason: gap.reason.as_str() })
        }
        _ => None,
    }
}
