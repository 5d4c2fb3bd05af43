//! Measures a journal: `cargo run --release -p tidings --example journal_load [DIR | redis://… | postgres://…]`.
//!
//! Every number is of appends that were acknowledged: by the embedded journal with fsync before each
//! answer, by Redis as its `appendfsync` says, by PostgreSQL with `synchronous_commit`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement fails loudly")]

use std::{path::Path, sync::Arc, time::Duration};

use tidings::{
    clock::{Clock, SystemClock},
    journal::{
        Append, Batch, Journal, JournalSettings, PageLimit, Retention,
        embedded::EmbeddedJournal,
        postgres::{PostgresJournal, PostgresOptions},
        redis::{RedisJournal, RedisOptions},
    },
    model::{EventType, JsonText, NewEvent, Offset, StateKey, Tenant, Topic, TopicKey},
};
use tokio::time::Instant;

const TOPICS: u64 = 1_000;

fn topic(n: u64) -> TopicKey {
    TopicKey::new(Tenant::parse("acme").unwrap(), Topic::parse(&format!("user/{n}")).unwrap())
}

fn log(text: &JsonText) -> Append {
    let event = NewEvent::new(EventType::parse("source.ingest.progress").unwrap());
    Append::new(Arc::new(event.data(text.clone())))
}

fn batch(events: Vec<Append>) -> Batch {
    Batch { events, now: SystemClock.now(), ..Batch::default() }
}

/// Lets so many callers append until they have appended so many batches of so many events.
async fn appends(journal: &Arc<dyn Journal>, callers: u64, batches: u64, events: usize) -> Run {
    let text = JsonText::string(&"x".repeat(120));
    let started = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (journal, text) = (Arc::clone(journal), text.clone());
            tokio::spawn(async move {
                let mut waits = Vec::new();
                for n in 0..batches / callers {
                    let topic = topic((n * callers + caller) % TOPICS);
                    let batch = batch((0..events).map(|_| log(&text)).collect());
                    let asked = Instant::now();
                    journal.append(&topic, batch).await.unwrap();
                    waits.push(asked.elapsed());
                }
                waits
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.unwrap());
    }
    waits.sort_unstable();
    Run { events: waits.len() * events, took: started.elapsed(), waits }
}

struct Run {
    events: usize,
    took: Duration,
    waits: Vec<Duration>,
}

impl Run {
    #[allow(clippy::cast_precision_loss, reason = "a rate is printed with three digits")]
    fn say(&self, what: &str) {
        let rate = self.events as f64 / self.took.as_secs_f64();
        let at = |permille: usize| {
            self.waits.get(self.waits.len() * permille / 1000).copied().unwrap_or_default()
        };
        println!(
            "{what:<44} {rate:>9.0} events/s   ack p50 {:>8.2?} p99 {:>8.2?} p99.9 {:>8.2?}",
            at(500),
            at(990),
            at(999)
        );
    }
}

async fn replay(journal: &dyn Journal, topics: u64) -> Run {
    let started = Instant::now();
    let (mut events, mut waits) = (0, Vec::new());
    for n in 0..topics {
        let (topic, mut after) = (topic(n), Offset::ZERO);
        loop {
            let asked = Instant::now();
            let page = journal.read(&topic, after, PageLimit::default()).await.unwrap();
            waits.push(asked.elapsed());
            events += page.events.len();
            after = page.next.offset;
            if after == page.head.end().offset {
                break;
            }
        }
    }
    waits.sort_unstable();
    Run { events, took: started.elapsed(), waits }
}

async fn flood(journal: &dyn Journal, updates: usize) -> (Duration, Duration) {
    let topic = TopicKey::new(Tenant::parse("acme").unwrap(), Topic::parse("flood").unwrap());
    let text = JsonText::string(&"x".repeat(60));
    let state = || {
        let event = NewEvent::new(EventType::parse("a.b").unwrap()).data(text.clone());
        let event = Arc::new(event.state(StateKey::parse("run/1").unwrap()));
        Append::new(event)
    };
    let started = Instant::now();
    for _ in 0..updates / 500 {
        journal.append(&topic, batch((0..500).map(|_| state()).collect())).await.unwrap();
    }
    let wrote = started.elapsed();
    let started = Instant::now();
    let page = journal.read(&topic, Offset::ZERO, PageLimit::default()).await.unwrap();
    assert_eq!(page.events.len(), 1);
    (wrote, started.elapsed())
}

async fn open(place: &str) -> Arc<dyn Journal> {
    let settings = JournalSettings::default();
    if !place.contains("://") {
        return EmbeddedJournal::open(Path::new(place), settings).unwrap();
    }
    if place.starts_with("postgres") {
        let options = PostgresOptions::new(place).schema("load");
        return PostgresJournal::open(options, settings).await.unwrap();
    }
    let journal = RedisJournal::open(RedisOptions::new(place), settings).await.unwrap();
    println!("Redis acknowledges with an append-only file: {:?}", journal.durability(&topic(0)));
    journal
}

#[tokio::main]
async fn main() {
    let given = std::env::args().nth(1);
    let temporary = tempfile::tempdir().unwrap();
    let default = || temporary.path().join("journal").to_string_lossy().into_owned();
    let place = given.unwrap_or_else(default);
    let journal = open(&place).await;
    appends(&journal, 1, 2_000, 1).await.say("1 caller, 1 event each");
    appends(&journal, 64, 200_000, 1).await.say("64 callers, 1 event each, 1 000 topics");
    appends(&journal, 8, 2_000, 500).await.say("8 callers, 500 events each, 1 000 topics");
    replay(&*journal, TOPICS).await.say("replay by pages of 500 (page, not ack)");
    let (wrote, read) = flood(&*journal, 1_000_000).await;
    println!("1 000 000 updates of one key: {wrote:.2?}; then read in {read:.2?}");
    let started = Instant::now();
    let kept = Retention { events: Some(50), ..Retention::UNLIMITED };
    for n in 0..TOPICS {
        journal.trim(&topic(n), &kept, SystemClock.now()).await.unwrap();
    }
    println!("trimmed {TOPICS} topics to 50 events in {:.2?}", started.elapsed());
    replay(&*journal, TOPICS).await.say("replay of what is left");
    let started = Instant::now();
    journal.close().await;
    drop(journal);
    let closed = started.elapsed();
    let started = Instant::now();
    let journal = open(&place).await;
    println!("closed in {closed:.2?}, opened in {:.2?}", started.elapsed());
    journal.close().await;
}
