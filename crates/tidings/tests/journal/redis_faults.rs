//! Redis servers that are killed, flushed, restored, replaced and held up.
//!
//! The rule: what was acknowledged is there, or its topic has another epoch; and a hub that cannot
//! know says so, within a bounded time, and goes on by itself.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::future::{join, join_all};
use tidings::{
    journal::{
        Append, Appended, Batch, Dedup, Durability, Journal, JournalError, JournalSettings,
        Outcome, PageLimit,
        redis::{RedisJournal, RedisOptions},
    },
    model::{
        Epoch, EventId, EventType, JsonText, NewEvent, Offset, Position, StateKey, Tenant,
        Timestamp, Topic, TopicKey,
    },
};
use tidings_services::{Redis, free_port};
use tokio::time::{sleep, timeout};

use crate::redis::options;

/// Far longer than anything here may take: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether something came.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

fn topic(name: &str) -> TopicKey {
    TopicKey::new(Tenant::parse("acme").unwrap(), Topic::parse(name).unwrap())
}

fn log(id: &str) -> Append {
    let event = NewEvent::new(EventType::parse("a.b").unwrap()).data(JsonText::string(id));
    let event = NewEvent { id: EventId::parse(id).unwrap(), ..event };
    Append { dedup: Dedup::ById, ..Append::new(Arc::new(event)) }
}

fn batch(events: impl IntoIterator<Item = Append>) -> Batch {
    let now = Timestamp::from_millis(1000);
    Batch { events: events.into_iter().collect(), now, ..Batch::default() }
}

async fn open(options: &RedisOptions) -> Arc<RedisJournal> {
    RedisJournal::open(options.clone(), JournalSettings::default()).await.unwrap()
}

async fn epoch(journal: &RedisJournal, topic: &TopicKey) -> Epoch {
    journal.describe(topic).await.unwrap().head.epoch
}

/// Asks again until there is an answer, as a hub's clients do.
async fn persist<T>(mut ask: impl AsyncFnMut() -> Result<T, JournalError>) -> T {
    let asking = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(JournalError::Unavailable(_)) => sleep(LOOK_AGAIN).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(PATIENCE, asking).await.unwrap()
}

fn position(appended: &Appended) -> Position {
    match &appended.outcomes[0] {
        Outcome::Stored(position) | Outcome::Duplicate(position) => *position,
        refused @ Outcome::Refused(_) => panic!("{refused:?}"),
    }
}

/// Broken on purpose: when append.lua does not enter ids, events are stored twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_event_is_lost_or_doubled_by_kill_9_of_redis() {
    let mut redis = Redis::start().unwrap();
    let options = options(&redis);
    let journal = open(&options).await;
    assert_eq!(journal.durability(&topic("any")), Durability::Always);
    let stop = tokio_util::sync::CancellationToken::new();
    let writers = join_all((0..8).map(async |writer| {
        let topic = topic(&format!("t/{}", writer % 3));
        let before = epoch(&journal, &topic).await;
        let mut acked = Vec::new();
        for round in 0.. {
            if stop.is_cancelled() {
                break;
            }
            let id = format!("{writer}-{round}");
            let append = async || journal.append(&topic, batch([log(&id)])).await;
            acked.push((id.clone(), position(&persist(append).await)));
        }
        (topic, before, acked)
    }));
    let kills = async {
        for _ in 0..3 {
            let tail =
                async || persist(async || journal.describe(&topic("t/0")).await).await.head.tail.0;
            let more = tail().await + 200;
            let grown = async {
                while tail().await < more {
                    sleep(LOOK_AGAIN).await;
                }
            };
            timeout(PATIENCE, grown).await.unwrap();
            redis.kill().unwrap();
            redis.restart().unwrap();
        }
        stop.cancel();
    };
    for (topic, before, acked) in join(writers, kills).await.0 {
        let limit = PageLimit { events: usize::MAX, bytes: usize::MAX };
        let page = persist(async || journal.read(&topic, Offset::ZERO, limit).await).await;
        let mut ids: Vec<_> = page.events.iter().map(|event| event.body.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), page.events.len(), "an event is doubled");
        assert_eq!(page.events.len() as u64, page.head.tail.0 - 1, "offsets have holes");
        for (id, position) in acked {
            let held = &page.events[usize::try_from(position.offset.0).unwrap() - 1];
            assert_eq!((held.body.id.as_str(), held.fingerprint), (&*id, position.fingerprint));
            assert_eq!(position.epoch, before, "nothing was lost, so the history is the same");
        }
    }
}

#[tokio::test]
async fn a_flushed_server_begins_another_epoch_behind_an_open_connection() {
    let redis = Redis::start().unwrap();
    let journal = open(&options(&redis)).await;
    let (written, unwritten) = (topic("a"), topic("b"));
    let before = position(&journal.append(&written, batch([log("1"), log("2")])).await.unwrap());
    let unwritten_before = epoch(&journal, &unwritten).await;
    redis.command(&["FLUSHALL"]).unwrap();
    let after = journal.describe(&written).await.unwrap();
    assert!(!after.exists);
    assert_ne!(after.head.epoch, before.epoch);
    assert_ne!(epoch(&journal, &unwritten).await, unwritten_before);
    let again = position(&journal.append(&written, batch([log("1")])).await.unwrap());
    assert_eq!((again.epoch, again.offset), (after.head.epoch, Offset(1)));
}

/// Broken on purpose: when adopt.lua does not compare counts, the epoch stays, and offset 3 is used
/// twice.
#[tokio::test]
async fn a_server_restored_from_a_backup_begins_another_epoch() {
    let mut redis = Redis::start().unwrap();
    let options = options(&redis);
    let (journal, reader) = (open(&options).await, open(&options).await);
    let topic = topic("t");
    journal.append(&topic, batch([log("1"), log("2")])).await.unwrap();
    let files = redis.directory().unwrap().join("appendonlydir");
    let backup = tempfile::tempdir().unwrap();
    copy(&files, backup.path());
    let lost = position(&journal.append(&topic, batch([log("3")])).await.unwrap());
    // A node that knows nothing of the third comes back first, and uses its offset.
    redis.kill().unwrap();
    std::fs::remove_dir_all(&files).unwrap();
    copy(backup.path(), &files);
    redis.restart().unwrap();
    persist(async || reader.append(&topic, batch([log("other")])).await).await;
    let after = persist(async || journal.describe(&topic).await).await.head;
    assert_ne!(after.epoch, lost.epoch);
    assert_eq!(after.tail, Offset(4));
    assert_ne!(after.tail_fingerprint, lost.fingerprint);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Broken on purpose: when adopt.lua does not compare replication ids, the epoch stays.
#[tokio::test]
async fn a_promoted_replica_that_lost_events_begins_another_epoch() {
    let mut master = Redis::start().unwrap();
    let mut replica = Redis::start_replica(&master).unwrap();
    let options = options(&master);
    let journal = open(&RedisOptions { wait_replicas: 1, ..options.clone() }).await;
    let topic = topic("t");
    let kept = position(&journal.append(&topic, batch([log("1")])).await.unwrap());
    // The replica hears nothing of the second.
    replica.pause().unwrap();
    master.command(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
    let unsure = journal.append(&topic, batch([log("2")])).await;
    assert!(matches!(unsure, Err(JournalError::Unavailable(_))), "{unsure:?}");
    master.kill().unwrap();
    replica.resume().unwrap();
    let there = RedisOptions { url: replica.url().to_owned(), ..options };
    let refused = RedisJournal::open(there.clone(), JournalSettings::default()).await;
    assert!(matches!(refused, Err(JournalError::Unavailable(_))), "a replica takes no appends");
    replica.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
    let promoted = open(&there).await;
    let head = promoted.describe(&topic).await.unwrap().head;
    assert_eq!((head.tail, head.tail_fingerprint), (Offset(2), kept.fingerprint));
    assert_ne!(head.epoch, kept.epoch);
}

#[tokio::test]
async fn a_hub_finds_the_master_through_sentinel_and_its_successor_too() {
    let mut master = Redis::start().unwrap();
    let replica = Redis::start_replica(&master).unwrap();
    let sentinel = Redis::start_sentinel(&master, "hub").unwrap();
    let knows_replica = async || {
        while !sentinel.command(&["SENTINEL", "REPLICAS", "hub"]).unwrap().contains("127.0.0.1") {
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout(PATIENCE, knows_replica()).await.unwrap();
    let url = format!("redis+sentinel://{}/hub", sentinel.url());
    let journal = open(&RedisOptions { url, ..options(&master) }).await;
    let topic = topic("t");
    let before = position(&journal.append(&topic, batch([log("1")])).await.unwrap());
    master.kill().unwrap();
    let append = async || journal.append(&topic, batch([log("2")])).await;
    let after = position(&persist(append).await);
    assert_ne!(after.epoch, before.epoch);
    drop(replica);
}

#[tokio::test]
async fn an_evicting_server_is_refused_with_the_remedy_unless_that_is_wanted() {
    let redis = Redis::start_with(&["--maxmemory-policy", "allkeys-lru"]).unwrap();
    let options = options(&redis);
    let refused = RedisJournal::open(options.clone(), JournalSettings::default()).await;
    let Err(JournalError::Broken(message)) = refused else { panic!("{refused:?}") };
    assert!(message.contains("set maxmemory-policy noeviction"), "{message}");
    open(&RedisOptions { allow_evicting: true, ..options }).await;
}

#[tokio::test]
async fn a_server_that_holds_still_is_unavailable_soon_and_comes_back_by_itself() {
    let mut redis = Redis::start().unwrap();
    let options = RedisOptions { timeout: Duration::from_millis(500), ..options(&redis) };
    let journal = open(&options).await;
    let topic = topic("t");
    journal.append(&topic, batch([log("1")])).await.unwrap();
    redis.pause().unwrap();
    let unsure = journal.append(&topic, batch([log("2")])).await;
    assert!(matches!(unsure, Err(JournalError::Unavailable(_))), "{unsure:?}");
    let failing = async {
        while journal.failure().is_none() {
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout(PATIENCE, failing).await.unwrap();
    redis.resume().unwrap();
    // Whether it was stored nobody could tell; by its id it is stored once.
    let append = async || journal.append(&topic, batch([log("2")])).await;
    assert_eq!(position(&persist(append).await).offset, Offset(2));
    assert_eq!(journal.failure(), None);
    assert_eq!(journal.describe(&topic).await.unwrap().events, 2);
}

#[tokio::test]
async fn two_nodes_store_what_both_publish_once() {
    let redis = Redis::shared().unwrap();
    let options = options(&redis);
    let nodes = [open(&options).await, open(&options).await];
    let topic = topic("t");
    let append = async |node: usize, n: u64| {
        // The second node's clock is behind.
        let now = Timestamp::from_millis(9_000 - 100 * node as u64 + n);
        let batch = Batch { now, ..batch([log(&n.to_string())]) };
        position(&nodes[node].append(&topic, batch).await.unwrap())
    };
    for n in 0..50 {
        let (one, other) = tokio::join!(append(0, n), append(1, n));
        assert_eq!((one, one.offset), (other, Offset(n + 1)));
    }
    let page = nodes[0].read(&topic, Offset::ZERO, PageLimit::default()).await.unwrap();
    assert_eq!(page.events.len(), 50);
    assert!(page.events.is_sorted_by_key(|event| event.recorded_at));
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_loaded_again() {
    let redis = Redis::start().unwrap();
    let journal = open(&options(&redis)).await;
    redis.command(&["SCRIPT", "FLUSH"]).unwrap();
    assert_eq!(
        position(&journal.append(&topic("t"), batch([log("1")])).await.unwrap()).offset,
        Offset(1)
    );
}

#[tokio::test]
async fn a_damaged_record_is_named_and_not_served() {
    let redis = Redis::start().unwrap();
    let options = RedisOptions { prefix: "p:".to_owned(), ..RedisOptions::new(redis.url()) };
    let journal = open(&options).await;
    let topic = topic("t");
    let event =
        NewEvent::new(EventType::parse("a.b").unwrap()).state(StateKey::parse("k").unwrap());
    journal.append(&topic, batch([Append::new(Arc::new(event))])).await.unwrap();
    let states = redis.command(&["KEYS", "p:*:acme/t:s"]).unwrap();
    let key = states.lines().find(|line| line.starts_with("p:")).unwrap();
    redis.command(&["HSET", key, "k", "000000000-000000-000000"]).unwrap();
    let Err(JournalError::Broken(message)) =
        journal.read(&topic, Offset::ZERO, PageLimit::default()).await
    else {
        panic!("a damaged record was served")
    };
    assert!(message.contains("topic t of tenant acme is damaged"), "{message}");
}

#[tokio::test]
async fn a_server_with_tls_is_trusted_by_the_certificate_that_is_given() {
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).to_string_lossy().into_owned();
    let (certificate, key) = (path("certificate.pem"), path("key.pem"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let port = free_port().unwrap().to_string();
    let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key];
    let tls = ["--tls-port", &port, "--tls-ca-cert-file", &certificate, "--tls-auth-clients", "no"];
    let redis = Redis::start_with(&[&files[..], &tls[..]].concat()).unwrap();
    let url = format!("rediss://localhost:{port}");
    let untrusting = RedisOptions { url, ..options(&redis) };
    let refused = RedisJournal::open(untrusting.clone(), JournalSettings::default()).await;
    assert!(matches!(refused, Err(JournalError::Broken(_))), "{refused:?}");
    let root_certificates = Some(std::fs::read(&certificate).unwrap());
    let journal = open(&RedisOptions { root_certificates, ..untrusting }).await;
    let appended = journal.append(&topic("t"), batch([log("1")])).await.unwrap();
    assert_eq!(position(&appended).offset, Offset(1));
}
