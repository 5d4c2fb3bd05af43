//! Redis by TLS and with passwords: one server, a Sentinel's, and a cluster, which take nothing else.
//!
//! The rule: who is not the server that is meant learns nothing, and every server is meant by the
//! name or address that it was found by: in the URL, or as a node or a Sentinel announces it.

use tidings::{
    auth::Secret,
    bus::{
        Announcement, Bus, Codec, Heard,
        redis::{RedisBus, SaidBy},
    },
    journal::{
        DueKind, Journal, JournalError, JournalSettings, TopicQuery,
        contract::{self, Store},
        redis::{RedisJournal, RedisOptions},
    },
    model::{Offset, Timestamp},
};
use tidings_services::{Guard, Redis, RedisCluster};
use tokio::time::{Duration, timeout};

use crate::{
    postgres_tls::Authority,
    redis::options_of,
    redis_cluster_faults::{append, ids, one_at_each, open, persist, topic, until_failure},
};

/// Far longer than anything here may take: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nodes that are called as their certificates call them.
const BY_NAME: [&str; 4] =
    ["--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname"];
/// What `docs/operations.md` says that the user of a hub needs.
const RIGHTS: &str = "~test-* &test-* -@all +@hash +@sortedset +@list +@stream +unlink +evalsha \
    +script|load +publish +subscribe +unsubscribe +ping +info +config|get +wait +cluster|info \
    +cluster|slots +cluster|myid";

fn guard(authority: &Authority, name: &str) -> Guard {
    let signed = authority.sign(name);
    Guard {
        certificate: signed.certificate,
        key: signed.key,
        authority: authority.pem.clone(),
        rights: RIGHTS.to_owned(),
    }
}

fn trusting(authority: &Authority, url: &str) -> RedisOptions {
    let root_certificates = Some(authority.pem.clone().into_bytes());
    RedisOptions { root_certificates, ..options_of(url) }
}

async fn refused(options: &RedisOptions) -> String {
    match RedisJournal::open(options.clone(), JournalSettings::default()).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{options:?} was to be refused"),
    }
}

/// All that a hub asks of a server, with the rights that its user is said to need.
async fn is_served(options: &RedisOptions) {
    let store = async |settings| {
        // Each case has the place to itself.
        let prefix = options_of(&options.url).prefix;
        let options = RedisOptions { prefix, ..options.clone() };
        Store::new(RedisJournal::open(options, settings).await.unwrap())
    };
    contract::replay_is_log_states_and_tombstones_in_offset_order(store).await;
    contract::who_says_when_the_oldest_was_recorded_is_right(store).await;
    contract::an_id_is_recognised_within_the_window_by_count(store).await;
    contract::a_deleted_topic_is_gone_and_has_another_epoch(store).await;
    contract::latest_finds_the_last_so_many_events(store).await;
    contract::since_finds_the_first_event_of_a_time(store).await;
    let journal = RedisJournal::open(options.clone(), JournalSettings::default()).await.unwrap();
    journal.due(DueKind::Expired, Timestamp::from_millis(9), 9).await.whole().unwrap();
    let all = TopicQuery { tenant: None, prefix: String::new(), after: None, limit: 9 };
    journal.topics(all).await.whole().unwrap();
    assert_ne!(journal.durability(&topic("t")), tidings::journal::Durability::Never);
    let codec = Codec::new(&Secret::new("0123456789abcdef0123456789abcdef"));
    let bus = RedisBus::open(options.clone(), codec, SaidBy::Journal).await.unwrap();
    let topic = topic("said");
    bus.follow(&topic);
    hears(&*bus, &Heard::Missed(Some(topic.clone()))).await;
    let end = append(&journal, &topic, "said").await.unwrap();
    hears(&*bus, &Heard::Announced(Announcement::Advanced { topic, end })).await;
}

async fn hears(bus: &dyn Bus, what: &Heard) {
    let until = async { while bus.heard().await != *what {} };
    timeout(PATIENCE, until).await.unwrap_or_else(|_| panic!("{what:?} was not heard"));
}

#[tokio::test]
async fn a_server_is_who_its_certificate_says_and_lets_in_who_has_the_password() {
    let authority = Authority::new("ours");
    let redis = Redis::start_guarded(&guard(&authority, "localhost"), &[]).unwrap();
    let options = trusting(&authority, redis.url());
    is_served(&options).await;
    let elsewhere = redis.url().replace("localhost", "127.0.0.1");
    let told = refused(&trusting(&authority, &elsewhere)).await;
    assert!(told.contains("127.0.0.1") && told.contains("localhost"), "{told}");
    let told = refused(&trusting(&Authority::new("other"), redis.url())).await;
    assert!(told.contains("UnknownIssuer"), "{told}");
    let told = refused(&options_of(redis.url())).await;
    assert!(told.contains("UnknownIssuer"), "{told}");
    let stranger = redis.url().replace(Guard::PASSWORD, "guessed");
    let told = refused(&trusting(&authority, &stranger)).await;
    assert!(told.contains("set user and password in its URL"), "{told}");
    assert!(!told.contains("guessed"), "{told}");
}

#[tokio::test]
async fn sentinels_and_their_master_are_spoken_to_by_tls_and_followed() {
    let authority = Authority::new("ours");
    // As Sentinel calls its servers: by their addresses.
    let of_servers = guard(&authority, "127.0.0.1");
    let mut redis = Redis::start_guarded(&of_servers, &[]).unwrap();
    let _replica = Redis::start_guarded_replica(&redis, &of_servers).unwrap();
    let of_sentinel = guard(&authority, "localhost");
    let sentinel = Redis::start_guarded_sentinel(&redis, "hub", &of_sentinel).unwrap();
    let url = format!("rediss+sentinel://hub:{}@{}/hub", Guard::PASSWORD, sentinel.url());
    let options = trusting(&authority, &url);
    let journal = open(&options).await;
    let before = append(&journal, &topic("t"), "1").await.unwrap();
    assert!(redis.command(&["WAIT", "1", "5000"]).unwrap().starts_with(":1"));
    redis.kill().unwrap();
    let after = persist(async || append(&journal, &topic("t"), "2").await).await;
    assert_ne!(after.epoch, before.epoch, "nothing proves that the replica had everything");
    assert_eq!(ids(&journal, &topic("t")).await, ["1", "2"]);
}

/// Broken on purpose: a client of the nodes without `redis.ca` takes none of them.
#[tokio::test]
async fn a_cluster_is_spoken_to_by_tls_at_the_names_that_its_nodes_announce() {
    let authority = Authority::new("ours");
    let guarded = guard(&authority, "localhost");
    let mut cluster = RedisCluster::start_guarded(guarded, &BY_NAME).unwrap();
    let options = trusting(&authority, cluster.url());
    is_served(&options).await;
    let journal = open(&options).await;
    let [(topic, _, first), (whole, _, other), _] = one_at_each(&cluster, &options, &journal).await;
    assert!(cluster.node(0).unwrap().command(&["WAIT", "1", "5000"]).unwrap().starts_with(":1"));
    cluster.node_mut(0).unwrap().kill().unwrap();
    cluster.until_master(RedisCluster::replica_of(0)).unwrap();
    let after = persist(async || append(&journal, &topic, "2").await).await;
    assert_ne!(after.epoch, first.epoch, "nothing proves that the replica had everything");
    assert_eq!(ids(&journal, &topic).await, ["1", "2"]);
    until_failure(&journal, |reason| reason.is_none()).await;
    let same = persist(async || append(&journal, &whole, "2").await).await;
    assert_eq!((same.epoch, same.offset), (other.epoch, Offset(2)));
    let stranger = cluster.url().replace(Guard::PASSWORD, "guessed");
    let told = refused(&trusting(&authority, &stranger)).await;
    assert!(told.contains("set user and password in its URL"), "{told}");
    let told = refused(&options_of(cluster.url())).await;
    assert!(told.contains("UnknownIssuer"), "{told}");
}

/// The URL's nodes are who they say; those that they name are not who they are called.
#[tokio::test]
async fn a_cluster_whose_certificates_are_not_for_what_its_nodes_announce_is_refused_with_why() {
    let authority = Authority::new("ours");
    let cluster = RedisCluster::start_guarded(guard(&authority, "localhost"), &[]).unwrap();
    let refused =
        RedisJournal::open(trusting(&authority, cluster.url()), JournalSettings::default());
    let Err(error @ JournalError::Broken(_)) = refused.await else {
        panic!("a node is taken for another")
    };
    let told = error.to_string();
    assert!(told.contains("127.0.0.1") && told.contains("localhost"), "{told}");
    assert!(told.contains("cluster-announce-hostname"), "{told}");
}
