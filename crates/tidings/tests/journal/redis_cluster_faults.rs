//! Redis Clusters whose slots move, whose masters are killed and flushed, and whose slots nobody has.
//!
//! The rule: as for one server, what was acknowledged is there, or its topic has another epoch. What
//! fails at one master fails nothing at the others, within a bounded time, and heals by itself.

use std::{sync::Arc, time::Duration};

use tidings::{
    Hub,
    bus::local::LocalBus,
    clock::{Clock as _, SystemClock},
    journal::{
        Append, Batch, Change, Dedup, DueKind, Journal, JournalError, JournalSettings, Outcome,
        PageLimit, Properties, Retention, TopicQuery,
        redis::{RedisJournal, RedisOptions},
    },
    model::{
        Epoch, EventId, EventType, JsonText, NewEvent, Offset, Position, StateKey, Tenant,
        Timestamp, Topic, TopicKey,
    },
    subscribe::{Follow, Item, Since},
};
use tidings_services::{Redis, RedisCluster};
use tokio::time::{Instant, sleep, timeout};

use crate::redis::{options, options_of};

/// Far longer than anything here may take: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether something came.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What a call may take beyond its limit: this machine may have other work.
const LATE_MAX: Duration = Duration::from_secs(5);

pub(crate) fn topic(name: &str) -> TopicKey {
    TopicKey::new(Tenant::parse("acme").unwrap(), Topic::parse(name).unwrap())
}

fn batch(id: &str) -> Batch {
    let event = NewEvent::new(EventType::parse("a.b").unwrap()).data(JsonText::string(id));
    let event = NewEvent { id: EventId::parse(id).unwrap(), ..event };
    let append = Append { dedup: Dedup::ById, ..Append::new(Arc::new(event)) };
    Batch { events: vec![append], now: Timestamp::from_millis(1000), ..Batch::default() }
}

pub(crate) async fn open(options: &RedisOptions) -> Arc<RedisJournal> {
    RedisJournal::open(options.clone(), JournalSettings::default()).await.unwrap()
}

pub(crate) async fn append(
    journal: &RedisJournal,
    topic: &TopicKey,
    id: &str,
) -> Result<Position, JournalError> {
    match &journal.append(topic, batch(id)).await?.outcomes[0] {
        Outcome::Stored(position) | Outcome::Duplicate(position) => Ok(*position),
        refused @ Outcome::Refused(_) => panic!("{refused:?}"),
    }
}

async fn epoch(journal: &RedisJournal, topic: &TopicKey) -> Epoch {
    persist(async || journal.describe(topic).await).await.head.epoch
}

pub(crate) async fn ids(journal: &RedisJournal, topic: &TopicKey) -> Vec<String> {
    let page = journal.read(topic, Offset::ZERO, PageLimit::default()).await.unwrap();
    page.events.iter().map(|event| event.body.id.as_str().to_owned()).collect()
}

/// Asks again until there is an answer, as a hub's clients do.
pub(crate) async fn persist<T>(mut ask: impl AsyncFnMut() -> Result<T, JournalError>) -> T {
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

/// Waits for a journal to say that something fails, or that nothing does.
pub(crate) async fn until_failure(journal: &RedisJournal, is_it: impl Fn(Option<&str>) -> bool) {
    let waiting = async {
        while !is_it(journal.failure().as_deref()) {
            sleep(LOOK_AGAIN).await;
        }
    };
    let waited = timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "{:?}", journal.failure());
}

/// A topic at each master, with one event, and where its slot is.
pub(crate) async fn one_at_each(
    cluster: &RedisCluster,
    options: &RedisOptions,
    journal: &RedisJournal,
) -> [(TopicKey, u16, Position); 3] {
    let mut found = [None, None, None];
    for name in 0..100 {
        let topic = topic(&name.to_string());
        let first = append(journal, &topic, "1").await.unwrap();
        let pattern = format!("{}*:acme/{name}:h", options.prefix);
        let (slot, master) = cluster.slot_like(&pattern).unwrap();
        found[master].get_or_insert((topic, slot, first));
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    found.map(Option::unwrap)
}

/// Broken on purpose: when `ASK` is followed to the master that the slot goes to, it has the group's
/// history or has not, and keys are written in two places; without a newer map after `MOVED`, nobody
/// finds the slot again.
#[tokio::test]
async fn a_group_that_moves_is_written_by_nobody_half_way_and_goes_on_at_its_new_master() {
    let cluster = RedisCluster::start().unwrap();
    let options = options_of(cluster.url());
    let impatient = RedisOptions { timeout: Duration::from_millis(300), ..options.clone() };
    let (journal, impatient) = (open(&options).await, open(&impatient).await);
    let [(topic, slot, first), (other, ..), _] = one_at_each(&cluster, &options, &journal).await;
    let moving = cluster.begin_move(slot, 0, 1).unwrap();
    for half in [false, true] {
        if half {
            cluster.move_half(&moving).unwrap();
        }
        let started = Instant::now();
        let refused = append(&impatient, &topic, "not stored").await;
        assert!(matches!(refused, Err(JournalError::Unavailable(_))), "{refused:?}");
        let refused = impatient.describe(&topic).await;
        assert!(matches!(refused, Err(JournalError::Unavailable(_))), "{refused:?}");
        assert!(started.elapsed() < LATE_MAX);
        assert_eq!(append(&impatient, &other, "2").await.unwrap().offset, Offset(2));
        assert_eq!(impatient.failure(), None, "a slot that moves is no failure");
    }
    // How often the master said where the slot goes to.
    let asked = || {
        let info = cluster.node(0).unwrap().command(&["INFO", "errorstats"]).unwrap();
        let count = info.split("errorstat_ASK:count=").nth(1).and_then(|rest| rest.lines().next());
        count.map_or(0, |count| count.trim().parse::<u64>().unwrap())
    };
    // Who waits is served once it has moved, and is not told anything of it.
    let patient = RedisOptions { timeout: PATIENCE, ..options.clone() };
    let patient = open(&patient).await;
    let more = asked() + 1;
    let waiting = tokio::spawn({
        let topic = topic.clone();
        async move { append(&patient, &topic, "2").await }
    });
    let asking = async {
        while asked() < more {
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout(PATIENCE, asking).await.unwrap();
    assert!(!waiting.is_finished());
    cluster.end_move(&moving).unwrap();
    let second = waiting.await.unwrap().unwrap();
    assert_eq!((second.epoch, second.offset), (first.epoch, Offset(2)));
    // The others hear of it by `MOVED`.
    assert_eq!(append(&impatient, &topic, "3").await.unwrap().offset, Offset(3));
    assert_eq!(append(&journal, &topic, "4").await.unwrap().epoch, first.epoch);
    assert_eq!(ids(&journal, &topic).await, ["1", "2", "3", "4"]);
    let all = TopicQuery { tenant: None, prefix: String::new(), after: None, limit: 100 };
    let listed = journal.topics(all).await.whole().unwrap();
    assert!(listed.iter().any(|info| info.topic == topic), "a listing asks where it is now");
    // And back.
    let moving = cluster.begin_move(slot, 1, 0).unwrap();
    cluster.end_move(&moving).unwrap();
    assert_eq!(append(&journal, &topic, "5").await.unwrap().epoch, first.epoch);
}

/// Broken on purpose: when adopt.lua takes no history for another one, the epoch stays, and the event
/// that was acknowledged is missing.
#[tokio::test]
async fn a_replica_that_takes_over_without_the_last_events_begins_another_epoch_of_its_groups_only()
{
    let mut cluster = RedisCluster::start_with_replicas().unwrap();
    let options = options_of(cluster.url());
    let journal = open(&options).await;
    let [(lossy, _, first), (whole, ..), (third, ..)] =
        one_at_each(&cluster, &options, &journal).await;
    let before = [epoch(&journal, &whole).await, epoch(&journal, &third).await];
    let replica = RedisCluster::replica_of(0);
    assert!(cluster.node(0).unwrap().command(&["WAIT", "1", "5000"]).unwrap().starts_with(":1"));
    cluster.node_mut(replica).unwrap().pause().unwrap();
    cluster.node(0).unwrap().command(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
    assert_eq!(append(&journal, &lossy, "lost").await.unwrap().offset, Offset(2));
    cluster.node_mut(0).unwrap().kill().unwrap();
    cluster.node_mut(replica).unwrap().resume().unwrap();
    let address = format!("127.0.0.1:{}", cluster.node(0).unwrap().port().unwrap());
    until_failure(&journal, |reason| {
        reason.is_some_and(|reason| reason.contains(&format!("its master {address} is missing")))
    })
    .await;
    let refused = append(&journal, &lossy, "2").await;
    assert!(matches!(refused, Err(JournalError::Unavailable(_))), "{refused:?}");
    let after = persist(async || append(&journal, &lossy, "2").await).await;
    assert_ne!(after.epoch, first.epoch);
    assert_eq!(ids(&journal, &lossy).await, ["1", "2"]);
    until_failure(&journal, |reason| reason.is_none()).await;
    assert_eq!([epoch(&journal, &whole).await, epoch(&journal, &third).await], before);
    // Back, the old master is a replica, and nothing is asked of it.
    cluster.node_mut(0).unwrap().restart().unwrap();
    assert_eq!(append(&journal, &lossy, "3").await.unwrap().epoch, after.epoch);
}

/// Broken on purpose: without `is_promoted` in adopt.lua the epoch stays though the topic is gone.
#[tokio::test]
async fn a_group_of_which_a_promoted_replica_has_only_a_part_begins_another_epoch() {
    let mut cluster = RedisCluster::start_with_replicas().unwrap();
    let options = options_of(cluster.url());
    let journal = open(&options).await;
    let [(topic, slot, first), ..] = one_at_each(&cluster, &options, &journal).await;
    let moving = cluster.begin_move(slot, 0, 1).unwrap();
    cluster.move_half(&moving).unwrap();
    let replica = RedisCluster::replica_of(1);
    assert!(cluster.node(1).unwrap().command(&["WAIT", "1", "5000"]).unwrap().starts_with(":1"));
    cluster.node_mut(replica).unwrap().pause().unwrap();
    cluster.node(1).unwrap().command(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
    cluster.end_move(&moving).unwrap();
    // Nobody looked at the group there.
    cluster.node_mut(1).unwrap().kill().unwrap();
    cluster.node_mut(replica).unwrap().resume().unwrap();
    cluster.until_master(replica).unwrap();
    let after = persist(async || journal.describe(&topic).await).await;
    assert_ne!(after.head.epoch, first.epoch);
}

#[tokio::test]
async fn a_master_that_was_flushed_begins_another_epoch_of_its_groups_only() {
    let cluster = RedisCluster::start().unwrap();
    let options = options_of(cluster.url());
    let journal = open(&options).await;
    let [(flushed, _, first), (whole, _, other), _] =
        one_at_each(&cluster, &options, &journal).await;
    cluster.node(0).unwrap().command(&["FLUSHALL"]).unwrap();
    let again = append(&journal, &flushed, "1").await.unwrap();
    assert_ne!(again.epoch, first.epoch);
    assert_eq!(again.offset, Offset(1));
    assert_eq!(append(&journal, &whole, "2").await.unwrap().epoch, other.epoch);
}

/// Broken on purpose: when a silent or deprived master has what others say, the slot's name is
/// missing; with a wait that is not `timeout_at` in `Again`, nobody is answered.
#[tokio::test]
async fn a_slot_that_nobody_has_is_refused_soon_by_its_name_and_is_served_once_it_is_back() {
    let cluster = RedisCluster::start_with(&PARTIAL).unwrap();
    let options = options_of(cluster.url());
    let journal = open(&options).await;
    let [(topic, slot, first), (other, ..), _] = one_at_each(&cluster, &options, &journal).await;
    let change = |what| cluster.node(0).unwrap().command(&["CLUSTER", what, &slot.to_string()]);
    change("DELSLOTS").unwrap();
    let started = Instant::now();
    let Err(JournalError::Unavailable(message)) = append(&journal, &topic, "2").await else {
        panic!("a slot that nobody has takes events")
    };
    assert!(message.contains(&format!("{slot}")), "{message}");
    assert!(started.elapsed() < options.timeout + LATE_MAX);
    let named = format!("no master has slot {slot}");
    until_failure(&journal, |reason| reason.is_some_and(|reason| reason.contains(&named))).await;
    let opened = RedisJournal::open(options.clone(), JournalSettings::default()).await;
    assert!(matches!(opened, Err(JournalError::Unavailable(_))), "{opened:?}");
    assert_eq!(append(&journal, &other, "2").await.unwrap().offset, Offset(2));
    change("ADDSLOTS").unwrap();
    let after = persist(async || append(&journal, &topic, "2").await).await;
    assert_eq!((after.epoch, after.offset), (first.epoch, Offset(2)));
    until_failure(&journal, |reason| reason.is_none()).await;
}

/// Without all slots, a cluster serves nobody by default.
#[tokio::test]
async fn a_master_that_is_killed_and_comes_back_loses_nothing_and_nobody_waits_for_ever() {
    let mut cluster = RedisCluster::start_with(&["--cluster-node-timeout", "1000"]).unwrap();
    let options = RedisOptions { timeout: Duration::from_secs(1), ..options_of(cluster.url()) };
    let journal = open(&options).await;
    let topics = one_at_each(&cluster, &options, &journal).await;
    cluster.node_mut(2).unwrap().kill().unwrap();
    let address = format!("127.0.0.1:{}", cluster.node(2).unwrap().port().unwrap());
    until_failure(&journal, |reason| reason.is_some_and(|r| r.contains(&address))).await;
    for (topic, ..) in &topics {
        // The others notice, and refuse everything.
        let refused = async {
            while append(&journal, topic, "2").await.is_ok() {
                sleep(LOOK_AGAIN).await;
            }
        };
        timeout(PATIENCE, refused).await.unwrap();
    }
    cluster.node_mut(2).unwrap().restart().unwrap();
    for (topic, _, first) in &topics {
        let again = persist(async || append(&journal, topic, "2").await).await;
        assert_eq!((again.epoch, again.offset), (first.epoch, Offset(2)));
    }
    until_failure(&journal, |reason| reason.is_none()).await;
}

/// What is left of a cluster goes on, so that the master that is gone is all that is gone.
const PARTIAL: [&str; 4] =
    ["--cluster-require-full-coverage", "no", "--cluster-node-timeout", "15000"];

/// A log event, and a state that expired long ago.
fn expired(now: Timestamp) -> Batch {
    let event = NewEvent::new(EventType::parse("a.b").unwrap());
    let state = NewEvent {
        expires_at: Some(Timestamp::from_millis(1)),
        ..event.clone().state(StateKey::parse("k").unwrap())
    };
    let events = [event, state].map(|event| Append::new(Arc::new(event)));
    Batch { events: events.into(), now, ..Batch::default() }
}

fn names<'a>(topics: impl IntoIterator<Item = &'a TopicKey>) -> Vec<TopicKey> {
    let mut names: Vec<TopicKey> = topics.into_iter().cloned().collect();
    names.sort();
    names
}

/// Broken on purpose: when `read_many` fails with the first of its masters, nothing is found.
#[tokio::test]
async fn what_the_other_masters_have_is_found_while_one_is_gone_and_never_taken_for_all() {
    let mut cluster = RedisCluster::start_with(&PARTIAL).unwrap();
    let options = RedisOptions { timeout: Duration::from_secs(1), ..options_of(cluster.url()) };
    let journal = open(&options).await;
    let at_each = one_at_each(&cluster, &options, &journal).await;
    let topics = at_each.map(|(topic, ..)| topic);
    for topic in &topics {
        journal.append(topic, expired(Timestamp::from_millis(1000))).await.unwrap();
    }
    let due = || journal.due(DueKind::Expired, Timestamp::from_millis(1000), 99);
    let list = |after, limit| {
        journal.topics(TopicQuery { tenant: None, prefix: String::new(), after, limit })
    };
    assert_eq!(names(due().await.whole().unwrap().iter().map(|due| &due.topic)), names(&topics));
    let all = names(list(None, 99).await.whole().unwrap().iter().map(|info| &info.topic));
    cluster.node_mut(2).unwrap().kill().unwrap();
    let address = format!("127.0.0.1:{}", cluster.node(2).unwrap().port().unwrap());
    until_failure(&journal, |reason| reason.is_some_and(|r| r.contains(&address))).await;

    let [first, second, gone] = &topics;
    let found = due().await;
    assert_eq!(names(found.items.iter().map(|due| &due.topic)), names([first, second]));
    assert!(found.missing.as_ref().is_some_and(|why| why.to_string().contains(&address)));
    assert!(matches!(found.whole(), Err(JournalError::Unavailable(_))));

    // By pages, each of which says that it is not the whole.
    let (mut after, mut listed) = (None, Vec::new());
    loop {
        let page = list(after, 1).await;
        assert!(page.missing.is_some(), "a part is taken for the whole");
        let Some(last) = page.items.last() else { break };
        after = Some(last.topic.clone());
        listed.extend(page.items.into_iter().map(|info| info.topic));
    }
    assert!(listed.contains(first) && listed.contains(second) && !listed.contains(gone));
    assert!(listed.is_sorted() && listed.len() < all.len());

    let described = journal.describe_all(&[gone.clone(), second.clone(), first.clone()]).await;
    let [of_gone, of_second, of_first] = described.as_slice() else { panic!("{described:?}") };
    assert!(matches!(of_gone, Err(JournalError::Unavailable(_))), "{of_gone:?}");
    assert_eq!(of_second.as_ref().unwrap(), &journal.describe(second).await.unwrap());
    assert_eq!(of_first.as_ref().unwrap(), &journal.describe(first).await.unwrap());
    assert_eq!(journal.failure_of(first), None);
    assert!(journal.failure_of(gone).is_some_and(|why| why.contains(&address)));

    cluster.node_mut(2).unwrap().restart().unwrap();
    let found = persist(async || due().await.whole()).await;
    assert_eq!(names(found.iter().map(|due| &due.topic)), names(&topics));
    let found = persist(async || list(None, 99).await.whole()).await;
    assert_eq!(names(found.iter().map(|info| &info.topic)), all);
}

/// A hub whose announcements nobody hears, as if the bus had lost them.
///
/// Broken on purpose: when `read_many` fails with the first of its masters, no state is ended; when
/// `compare` ends at what is missing, the reader waits for ever.
#[tokio::test]
async fn expiry_retention_and_comparisons_go_on_at_the_other_masters_while_one_is_gone() {
    let mut cluster = RedisCluster::start_with(&PARTIAL).unwrap();
    let options = RedisOptions { timeout: Duration::from_secs(1), ..options_of(cluster.url()) };
    let journal = open(&options).await;
    let [(topic, ..), _, (gone, ..)] = one_at_each(&cluster, &options, &journal).await;
    let hub = Hub::builder().journal(open(&options).await).bus(LocalBus::new()).start();
    // Nobody reads what is followed of the master that is gone; it is compared all the same.
    let follow =
        |topic: &TopicKey| Follow { since: Some(Since::Now), ..Follow::new(vec![topic.clone()]) };
    let _other = hub.subscribe(follow(&gone)).await.unwrap();
    let mut reader = hub.subscribe(follow(&topic)).await.unwrap().0;
    cluster.node_mut(2).unwrap().kill().unwrap();
    let address = format!("127.0.0.1:{}", cluster.node(2).unwrap().port().unwrap());
    until_failure(&journal, |reason| reason.is_some_and(|r| r.contains(&address))).await;

    // Compared: the reader gets what the bus did not say, and the end of the state with it.
    journal.append(&topic, expired(SystemClock.now())).await.unwrap();
    let reading = async {
        let mut events = 0;
        while events < 3 {
            let items = reader.next().await.unwrap();
            events += items.iter().filter(|item| matches!(item, Item::Event { .. })).count();
        }
    };
    timeout(PATIENCE, reading).await.expect("the reader waits for ever");
    assert_eq!(journal.describe(&topic).await.unwrap().states, 0);
    assert!(hub.expire().await.is_err(), "what is missing is told");

    let retention = Retention { events: Some(1), ..Retention::UNLIMITED };
    let properties = Properties { retention: Some(retention), ..Properties::default() };
    journal.set_properties(&topic, Change::to(properties)).await.unwrap().unwrap();
    assert!(hub.sweep().await.is_err(), "what is missing is told");
    assert_eq!(journal.describe(&topic).await.unwrap().events, 1);
    let all = TopicQuery { tenant: None, prefix: String::new(), after: None, limit: 99 };
    let listed = hub.list(all).await;
    assert!(matches!(listed, Err(JournalError::Unavailable(_))), "{listed:?}");
    hub.shutdown().await;
}

#[tokio::test]
async fn the_url_of_the_wrong_kind_says_which_is_right() {
    let (cluster, redis) = (RedisCluster::start().unwrap(), Redis::shared().unwrap());
    let plain = format!("redis://127.0.0.1:{}", cluster.node(0).unwrap().port().unwrap());
    let refused = RedisJournal::open(options_of(&plain), JournalSettings::default()).await;
    let Err(JournalError::Broken(message)) = refused else { panic!("{refused:?}") };
    assert!(message.contains("give its URL as redis+cluster://"), "{message}");
    let options = options(&redis);
    let url = options.url.replace("redis://", "redis+cluster://");
    let options = RedisOptions { url, ..options };
    let refused = RedisJournal::open(options, JournalSettings::default()).await;
    let Err(JournalError::Broken(message)) = refused else { panic!("{refused:?}") };
    assert!(message.contains("give its URL as redis://"), "{message}");
}
