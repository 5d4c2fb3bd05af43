//! The bus in a Redis Cluster: the contract, what journals say at any master, and nodes that leave.

use std::{sync::Arc, time::Duration};

use tidings::{
    auth::Secret,
    bus::{
        Announcement, Bus, Codec, Heard,
        contract::Pair,
        redis::{RedisBus, SaidBy},
    },
    bus_contract,
    journal::{
        Append, Batch, Journal, JournalSettings,
        redis::{RedisJournal, RedisOptions},
    },
    model::{EventType, NewEvent, Tenant, Topic, TopicKey},
};
use tidings_services::RedisCluster;
use tokio::time::timeout;

use crate::redis::options_of;

/// Longer than a silent connection is believed.
const PATIENCE: Duration = Duration::from_secs(40);
/// What is left of a cluster goes on, so that the node that is broken is all that is broken.
const PARTIAL: [&str; 4] =
    ["--cluster-require-full-coverage", "no", "--cluster-node-timeout", "15000"];

async fn open(options: &RedisOptions, said_by: SaidBy) -> Arc<RedisBus> {
    let codec = Codec::new(&Secret::new("0123456789abcdef0123456789abcdef"));
    RedisBus::open(options.clone(), codec, said_by).await.unwrap()
}

async fn pair() -> Pair {
    let cluster = RedisCluster::shared().unwrap();
    let options = options_of(cluster.url());
    let (one, other) = (open(&options, SaidBy::Hub).await, open(&options, SaidBy::Hub).await);
    Pair::new(one, other).keeping(cluster)
}

bus_contract!(contract, pair);

fn topic(name: &str) -> TopicKey {
    TopicKey::new(Tenant::parse("acme").unwrap(), Topic::parse(name).unwrap())
}

/// Waits until this is heard, whatever else is.
async fn hears(bus: &dyn Bus, what: Heard) {
    let until = async { while bus.heard().await != what {} };
    timeout(PATIENCE, until).await.unwrap_or_else(|_| panic!("{what:?} was not heard"));
}

async fn follow(bus: &dyn Bus, topic: &TopicKey) {
    bus.follow(topic);
    hears(bus, Heard::Missed(Some(topic.clone()))).await;
}

/// The node that a bus listens at.
fn node_of(cluster: &RedisCluster) -> usize {
    let listens = |number: &usize| {
        let list = cluster.node(*number).unwrap().command(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        list.unwrap().contains("sub=")
    };
    (0..3).find(listens).unwrap()
}

/// Broken on purpose: with `SPUBLISH` in `say` of common.lua nothing is heard.
#[tokio::test]
async fn what_the_journal_says_at_any_master_is_heard_over_one_connection() {
    let cluster = RedisCluster::shared().unwrap();
    let options = options_of(cluster.url());
    let journal = RedisJournal::open(options.clone(), JournalSettings::default()).await.unwrap();
    let bus = open(&options, SaidBy::Journal).await;
    // By chance all twelve are at two masters once in a hundred times; nothing depends on it.
    for name in 0..12 {
        let topic = topic(&format!("user/{name}"));
        follow(&*bus, &topic).await;
        let event = NewEvent::new(EventType::parse("a.b").unwrap());
        let batch = Batch { events: vec![Append::new(Arc::new(event))], ..Batch::default() };
        let end = journal.append(&topic, batch).await.unwrap().head.end();
        hears(&*bus, Heard::Announced(Announcement::Advanced { topic, end })).await;
    }
}

#[tokio::test]
async fn a_bus_whose_node_is_killed_goes_on_at_another() {
    let mut cluster = RedisCluster::start_with(&PARTIAL).unwrap();
    let bus = open(&options_of(cluster.url()), SaidBy::Hub).await;
    let topic = topic("t");
    follow(&*bus, &topic).await;
    let node = node_of(&cluster);
    cluster.node_mut(node).unwrap().kill().unwrap();
    hears(&*bus, Heard::Missed(None)).await;
    let changed = Announcement::Changed { topic };
    bus.announce(changed.clone());
    hears(&*bus, Heard::Announced(changed)).await;
    assert_eq!(bus.failure(), None);
}

/// Broken on purpose: without `cut_off` in the bus it goes on hearing itself, and nobody else.
#[tokio::test]
async fn a_bus_leaves_a_node_that_left_its_cluster_though_it_hears_itself_there() {
    let cluster = RedisCluster::start_with(&PARTIAL).unwrap();
    let options = options_of(cluster.url());
    let bus = open(&options, SaidBy::Hub).await;
    let topic = topic("t");
    follow(&*bus, &topic).await;
    let left = node_of(&cluster);
    cluster.node(left).unwrap().command(&["CLUSTER", "RESET", "SOFT"]).unwrap();
    hears(&*bus, Heard::Missed(None)).await;
    assert_ne!(node_of(&cluster), left);
    let changed = Announcement::Changed { topic };
    let other = open(&options, SaidBy::Hub).await;
    other.announce(changed.clone());
    hears(&*bus, Heard::Announced(changed)).await;
}
