//! Three nodes on two servers: users' topics in Redis, messages in PostgreSQL.

use std::sync::Arc;

use tidings::{
    bus::redis::SaidBy,
    journal::{
        Journal,
        postgres::PostgresOptions,
        redis::RedisOptions,
        routed::{Route, RoutedJournal},
    },
    model::Pattern,
};
use tidings_services::{Postgres, Redis};

use crate::{
    history::Losses,
    load::{Load, publish_apart},
    nodes::Nodes,
    postgres, redis,
};

async fn journal(redis: &RedisOptions, postgres: &PostgresOptions) -> Arc<dyn Journal> {
    let route =
        Route { topics: Pattern::parse("user/*").unwrap(), journal: redis::journal(redis).await };
    Arc::new(RoutedJournal::new(vec![route], postgres::journal(postgres).await))
}

/// Whether every node takes events of this topic at once.
async fn are_taken(nodes: &Nodes, name: &str) {
    for hub in nodes.living() {
        publish_apart(hub, name).await;
    }
}

/// One connection follows topics of both. Each server fails in turn: what is in the other goes on
/// being taken, and nothing of either is lost.
///
/// Broken on purpose: when `RoutedJournal::failure_of` asks all journals, the other's events are
/// refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_topics_in_two_journals_get_everything_although_both_are_killed() {
    let (mut redis, mut server) = (Redis::start().unwrap(), Postgres::start().unwrap());
    let (in_redis, in_postgres) =
        (RedisOptions::new(redis.url()), postgres::options(&server.url()));
    let nodes = Nodes::start(|| {
        let (in_redis, in_postgres) = (in_redis.clone(), in_postgres.clone());
        async move {
            let bus = redis::bus(&in_redis, SaidBy::Hub).await;
            (journal(&in_redis, &in_postgres).await, bus)
        }
    });
    let nodes = nodes.await;
    let load = Load::start(&nodes, &["user/1", "message/1", "user/2", "message/2"]).await;
    redis.kill().unwrap();
    load.is_refused().await;
    are_taken(&nodes, "message/3").await;
    redis.restart().unwrap();
    load.resumes().await;
    server.kill().unwrap();
    load.is_refused().await;
    are_taken(&nodes, "user/3").await;
    server.restart().unwrap();
    load.resumes().await;
    load.check(&*journal(&in_redis, &in_postgres).await, Losses::None).await;
}
