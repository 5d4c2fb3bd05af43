//! Three nodes on one PostgreSQL.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tidings::{
    bus::{Bus, postgres::PostgresBus},
    journal::{
        Journal, JournalSettings,
        postgres::{PostgresJournal, PostgresOptions},
    },
};
use tidings_services::Postgres;
use tokio_postgres::{Client, NoTls};

use crate::{
    history::Losses,
    load::Load,
    nodes::{LossyBus, Nodes, Parts, codec, until},
};

pub(crate) const TOPICS: [&str; 3] = ["message/1", "message/2", "team/7/jobs"];
/// Enough for an append to be given up, and for a node to say that it is not ready.
const STATEMENT_TIMEOUT: Duration = Duration::from_millis(500);
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

pub(crate) async fn journal(options: &PostgresOptions) -> Arc<dyn Journal> {
    PostgresJournal::open(options.clone(), JournalSettings::default()).await.unwrap()
}

pub(crate) async fn bus(options: &PostgresOptions) -> Arc<dyn Bus> {
    PostgresBus::open(options, codec()).await.unwrap()
}

/// A schema of its own: tests that do not break the server share it. Nodes need fewer connections
/// here than where thousands read.
pub(crate) fn options(url: &str) -> PostgresOptions {
    let schema = format!("t{}", uuid::Uuid::new_v4().simple());
    PostgresOptions { writers: 2, readers: 4, ..PostgresOptions::new(url).schema(schema) }
}

/// Options that give up early.
pub(crate) fn hasty(url: &str) -> PostgresOptions {
    PostgresOptions {
        statement_timeout: STATEMENT_TIMEOUT,
        append_timeout: APPEND_TIMEOUT,
        lock_timeout: LOCK_TIMEOUT,
        ..options(url)
    }
}

pub(crate) async fn parts(options: PostgresOptions) -> Parts {
    (journal(&options).await, bus(&options).await)
}

pub(crate) async fn nodes(options: &PostgresOptions) -> Arc<Nodes> {
    Nodes::start(|| parts(options.clone())).await
}

async fn check(load: Load, options: &PostgresOptions) {
    load.check(&*journal(options).await, Losses::None).await;
}

async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Broken on purpose: with `synchronous_commit = off`, acknowledged events are gone; the journal
/// sees that, and tells readers of other histories.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_lose_and_double_nothing_when_postgres_is_killed() {
    let mut server = Postgres::start().unwrap();
    let options = hasty(&server.url());
    let nodes = nodes(&options).await;
    let load = Load::start(&nodes, &TOPICS).await;
    server.kill().unwrap();
    load.is_refused().await;
    server.restart().unwrap();
    load.resumes().await;
    check(load, &options).await;
}

/// Broken on purpose: with a bus that does not connect again, the test waits in vain for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_survive_a_storm_of_terminated_backends() {
    let server = Postgres::start().unwrap();
    let options = options(&server.url());
    let nodes = nodes(&options).await;
    let load = Load::start(&nodes, &TOPICS).await;
    let client = client(&server.url()).await;
    let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    for _ in 0..5 {
        client.query(all, &[]).await.unwrap();
        load.resumes().await;
    }
    until("the bus", async || nodes.living().all(|hub| hub.bus_failure().is_none())).await;
    check(load, &options).await;
}

/// Whoever publishes there is refused in time, and may come again. Its readers go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_three_nodes_that_somebody_locks_is_refused_and_goes_on() {
    let server = Postgres::shared().unwrap();
    let options = hasty(server.url());
    let nodes = nodes(&options).await;
    let load = Load::start(&nodes, &TOPICS).await;
    let client = client(server.url()).await;
    let lock =
        format!("BEGIN; SELECT FROM {}.topics WHERE name = 'message/1' FOR UPDATE", options.schema);
    for _ in 0..2 {
        client.batch_execute(&lock).await.unwrap();
        load.is_refused().await;
        client.batch_execute("ROLLBACK").await.unwrap();
        load.resumes().await;
    }
    check(load, &options).await;
}

/// Broken on purpose: without the entry of ids (put_seen.sql), what was given up is stored twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_are_refused_while_postgres_holds_still_and_everything_goes_on_after() {
    let server = Postgres::start().unwrap();
    let options = hasty(&server.url());
    let nodes = nodes(&options).await;
    let load = Load::start(&nodes, &TOPICS).await;
    server.pause().unwrap();
    load.is_refused().await;
    let all_say_so = || nodes.living().all(|hub| hub.unready().is_some());
    until("hubs that are not ready", async || all_say_so()).await;
    server.resume().unwrap();
    load.resumes().await;
    check(load, &options).await;
}

/// Broken on purpose: without `relay::compare` readers stop before the last events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_get_everything_although_postgres_loses_a_third_of_the_announcements() {
    let server = Postgres::shared().unwrap();
    let (options, lost) = (options(server.url()), Arc::new(AtomicUsize::new(0)));
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
    check(load, &options).await;
    assert!(lost.load(Ordering::Relaxed) > 0);
}

/// Broken on purpose: without the entry of ids (put_seen.sql), events whose answer died with the
/// node are stored twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_on_postgres_that_dies_costs_its_readers_and_publishers_nothing() {
    let server = Postgres::shared().unwrap();
    let options = options(server.url());
    let nodes = nodes(&options).await;
    let load = Load::start(&nodes, &TOPICS).await;
    nodes.kill(1);
    load.goes_on().await;
    check(load, &options).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_jump_cost_readers_and_publishers_nothing() {
    let server = Postgres::shared().unwrap();
    let options = options(server.url());
    let nodes = nodes(&options).await;
    let load = Load::start(&nodes, &TOPICS).await;
    load.goes_on_while_clocks_jump().await;
    check(load, &options).await;
}
