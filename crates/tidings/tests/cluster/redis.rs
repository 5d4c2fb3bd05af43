//! Three nodes on one Redis.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tidings::{
    bus::{
        Bus,
        redis::{RedisBus, SaidBy},
    },
    journal::{
        Journal, JournalSettings,
        redis::{RedisJournal, RedisOptions},
    },
};
use tidings_services::Redis;

use crate::{
    history::Losses,
    load::Load,
    nodes::{LossyBus, Nodes, Parts, codec, until},
};

/// Two groups of topics and more, so that not all changes share one connection.
const TOPICS: [&str; 3] = ["user/1", "user/2", "team/7/jobs"];
/// Longer than a server may be silent before its connections are given up: 1.5 s for the journal's.
const PAUSE: Duration = Duration::from_secs(2);

pub(crate) async fn journal(options: &RedisOptions) -> Arc<dyn Journal> {
    RedisJournal::open(options.clone(), JournalSettings::default()).await.unwrap()
}

pub(crate) async fn bus(options: &RedisOptions, said_by: SaidBy) -> Arc<dyn Bus> {
    RedisBus::open(options.clone(), codec(), said_by).await.unwrap()
}

/// A node's parts.
pub(crate) async fn parts(options: RedisOptions) -> Parts {
    (journal(&options).await, bus(&options, SaidBy::Journal).await)
}

pub(crate) async fn nodes(redis: &Redis) -> Arc<Nodes> {
    let options = RedisOptions::new(redis.url());
    Nodes::start(|| parts(options.clone())).await
}

async fn check(load: Load, redis: &Redis, losses: Losses) {
    let journal = journal(&RedisOptions::new(redis.url())).await;
    load.check(&*journal, losses).await;
}

/// Broken on purpose: without the entry of ids in append.lua, events are stored twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_lose_and_double_nothing_when_redis_is_killed() {
    let mut redis = Redis::start().unwrap();
    let nodes = nodes(&redis).await;
    let load = Load::start(&nodes, &TOPICS).await;
    for _ in 0..3 {
        redis.kill().unwrap();
        load.is_refused().await;
        redis.restart().unwrap();
        load.resumes().await;
    }
    check(load, &redis, Losses::None).await;
}

/// Broken on purpose: when adopt.lua goes on with the epoch that was known, what was acknowledged
/// is not where it was said to be. Either of its two looks is enough: an empty server, and too few
/// changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_on_three_nodes_are_told_when_redis_is_flushed() {
    let redis = Redis::start().unwrap();
    let nodes = nodes(&redis).await;
    let load = Load::start(&nodes, &TOPICS).await;
    for _ in 0..3 {
        redis.command(&["FLUSHALL"]).unwrap();
        load.goes_on().await;
    }
    check(load, &redis, Losses::Told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_are_refused_while_redis_holds_still_and_everything_goes_on_after() {
    let mut redis = Redis::start().unwrap();
    let nodes = nodes(&redis).await;
    let load = Load::start(&nodes, &TOPICS).await;
    redis.pause().unwrap();
    tokio::time::sleep(PAUSE).await;
    load.is_refused().await;
    assert!((0..3).all(|node| nodes.hub(node).unready().is_some()), "a hub says nothing of it");
    redis.resume().unwrap();
    load.resumes().await;
    check(load, &redis, Losses::None).await;
}

/// Broken on purpose: without `State::stand_at` in `topic_task/live.rs`, a reader now and then
/// skips an event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_get_everything_while_redis_drops_the_bus_again_and_again() {
    let redis = Redis::start().unwrap();
    let nodes = nodes(&redis).await;
    let load = Load::start(&nodes, &TOPICS).await;
    for _ in 0..5 {
        redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).unwrap();
        load.goes_on().await;
    }
    until("the bus", async || nodes.living().all(|hub| hub.bus_failure().is_none())).await;
    check(load, &redis, Losses::None).await;
}

/// Broken on purpose: without `relay::compare` readers stop before the last events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_get_everything_although_redis_loses_a_third_of_the_announcements() {
    let redis = Redis::start().unwrap();
    let (options, lost) = (RedisOptions::new(redis.url()), Arc::new(AtomicUsize::new(0)));
    let nodes = Nodes::start(|| {
        let (options, lost) = (options.clone(), Arc::clone(&lost));
        async move {
            let (journal, bus) = parts(options).await;
            let bus: Arc<dyn Bus> = LossyBus::around(bus, 7, lost);
            (journal, bus)
        }
    });
    let nodes = nodes.await;
    let load = Load::start(&nodes, &TOPICS).await;
    for _ in 0..5 {
        load.goes_on().await;
    }
    check(load, &redis, Losses::None).await;
    assert!(lost.load(Ordering::Relaxed) > 0);
}

/// A node that dies tells nobody. Its clients find another, and nothing that it had said is undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_costs_its_readers_and_publishers_nothing() {
    let redis = Redis::start().unwrap();
    let nodes = nodes(&redis).await;
    let load = Load::start(&nodes, &TOPICS).await;
    nodes.kill(0);
    load.goes_on().await;
    nodes.kill(2);
    load.goes_on().await;
    check(load, &redis, Losses::None).await;
}

/// Broken on purpose: without the look at `written_at` in append.lua, topics go back in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_jump_cost_readers_and_publishers_nothing() {
    let redis = Redis::start().unwrap();
    let nodes = nodes(&redis).await;
    let load = Load::start(&nodes, &TOPICS).await;
    load.goes_on_while_clocks_jump().await;
    check(load, &redis, Losses::None).await;
}

/// Sentinel promotes a replica that knows nothing of the last events. Some were acknowledged and
/// are gone: every reader is told so, and goes on with what the replica has.
///
/// Broken on purpose: when adopt.lua takes no history for another one, acknowledged events are lost
/// under the same epoch, and readers get other events at offsets that they had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_on_three_nodes_are_told_what_a_failover_of_redis_lost() {
    let mut master = Redis::start().unwrap();
    let mut replica = Redis::start_replica(&master).unwrap();
    let sentinel = Redis::start_sentinel(&master, "hub").unwrap();
    let knows_replica =
        || sentinel.command(&["SENTINEL", "REPLICAS", "hub"]).unwrap().contains("127.0.0.1");
    until("a replica that Sentinel knows", async || knows_replica()).await;
    let options = RedisOptions::new(&format!("redis+sentinel://{}/hub", sentinel.url()));
    let nodes = Nodes::start(|| parts(options.clone())).await;
    let load = Load::start(&nodes, &TOPICS).await;
    replica.pause().unwrap();
    master.command(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
    load.goes_on().await;
    master.kill().unwrap();
    replica.resume().unwrap();
    // Until then nobody takes events.
    let elected = || replica.command(&["ROLE"]).unwrap().contains("master");
    until("a new master", async || elected()).await;
    load.resumes().await;
    check(load, &replica, Losses::Told).await;
}
