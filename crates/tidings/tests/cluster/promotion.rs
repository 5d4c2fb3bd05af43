//! Three nodes on a PostgreSQL with a standby, which is promoted over it.
//!
//! The rule: the nodes know both servers by one URL and find the one that takes events. Its history
//! is another one, whatever it lost, and every reader is told so.

use std::sync::Arc;

use tidings::{
    Hub,
    journal::postgres::PostgresOptions,
    subscribe::{Follow, Item, Since},
};
use tidings_services::Postgres;
use tokio::time::timeout;

use crate::{
    history::Losses,
    load::{Load, key},
    nodes::{NODES, Nodes, PATIENCE, until},
    postgres::{TOPICS, hasty, journal, nodes, options},
};

/// A primary, its standby, and nodes that know both.
struct Pair {
    primary: Postgres,
    standby: Postgres,
    options: PostgresOptions,
    nodes: Arc<Nodes>,
}

impl Pair {
    async fn start() -> Self {
        Self::start_with(Postgres::start().unwrap(), hasty).await
    }

    /// One whose commits wait until the standby has them on its disk.
    async fn start_synchronous() -> Self {
        let pair = Self::start().await;
        pair.primary.configure("SET synchronous_standby_names = '*'").unwrap();
        let state = "SELECT sync_state FROM pg_stat_replication";
        until("a synchronous standby", async || pair.primary.ask(state).unwrap() == "sync").await;
        pair
    }

    async fn start_with(primary: Postgres, options: impl Fn(&str) -> PostgresOptions) -> Self {
        let standby = Postgres::start_standby(&primary).unwrap();
        let servers = format!("{},{}", primary.address(), standby.address());
        let url = format!("postgres://postgres@{servers}/postgres?target_session_attrs=read-write");
        let options = options(&url);
        let nodes = nodes(&options).await;
        Self { primary, standby, options, nodes }
    }

    async fn load(&self) -> Load {
        Load::start(&self.nodes, &TOPICS).await
    }

    /// Returns how many events were acknowledged and are gone.
    async fn check(&self, load: Load, losses: Losses) -> usize {
        load.check(&*journal(&self.options).await, losses).await
    }
}

/// Some were acknowledged and are gone: every reader is told so, and goes on with what the standby
/// has.
///
/// Broken on purpose: when renew_epoch.sql looks at no timeline, acknowledged events are lost under
/// the same epoch, and two events have one place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_on_three_nodes_are_told_what_a_promotion_of_postgres_lost() {
    let mut pair = Pair::start().await;
    let load = pair.load().await;
    pair.standby.cut_off().unwrap();
    load.goes_on().await;
    pair.primary.kill().unwrap();
    load.is_refused().await;
    pair.standby.promote().unwrap();
    load.resumes().await;
    assert!(pair.check(load, Losses::Told).await > 0, "nothing was lost");
}

/// What the standby does not have is not acknowledged, while it is there and while it is not.
///
/// Broken on purpose: with `synchronous_commit = local`, publishers are acknowledged by the primary
/// alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_synchronous_standby_was_acknowledged_for_survives_its_promotion() {
    let mut pair = Pair::start_synchronous().await;
    let load = pair.load().await;
    pair.standby.cut_off().unwrap();
    load.is_refused().await;
    pair.primary.kill().unwrap();
    pair.standby.promote().unwrap();
    load.resumes().await;
    assert_eq!(pair.check(load, Losses::Moved).await, 0);
}

/// The old primary was only out of reach. It takes connections and says nothing, then it is back and
/// takes events, while the one that was promoted is away.
///
/// Broken on purpose: when no timeline supersedes another, publishers are answered by the old primary;
/// without a time of its own for each server, they are not answered at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_do_not_go_back_to_a_primary_that_another_was_promoted_over() {
    let mut pair = Pair::start().await;
    let load = pair.load().await;
    pair.primary.pause().unwrap();
    load.is_refused().await;
    pair.standby.promote().unwrap();
    load.resumes().await;
    pair.primary.resume().unwrap();
    load.goes_on().await;
    pair.standby.kill().unwrap();
    load.is_refused().await;
    pair.standby.restart().unwrap();
    load.resumes().await;
    pair.check(load, Losses::Told).await;
}

/// Commits are done at the primary then and wait for ever. Publishers are answered, the hubs say why
/// they are not ready, readers go on, and no connection is spent for each that comes again.
///
/// Broken on purpose: when commits that hang are not told, the hubs say that they are ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_say_so_while_commits_wait_for_a_standby_and_go_on_once_it_is_there() {
    let mut pair = Pair::start_synchronous().await;
    let load = pair.load().await;
    pair.standby.kill().unwrap();
    load.is_refused().await;
    let says_why = |hub: &Hub| hub.unready().is_some_and(|why| why.contains("standby"));
    until("hubs that say why", async || pair.nodes.living().all(says_why)).await;
    for _ in 0..10 {
        load.is_refused().await;
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let waiting: usize = pair.primary.ask(waiting).unwrap().parse().unwrap();
    assert!((1..=NODES * pair.options.writers).contains(&waiting), "{waiting} commits wait");
    for hub in pair.nodes.living() {
        let follow = Follow { since: Some(Since::Earliest), ..Follow::new(vec![key(TOPICS[0])]) };
        let (mut reader, _) = hub.subscribe(follow).await.unwrap();
        let is_event = |item: &Item| matches!(item, Item::Event { .. });
        let reading = async { while !reader.next().await.unwrap().iter().any(is_event) {} };
        timeout(PATIENCE, reading).await.expect("a reader waits for a standby");
    }
    pair.standby.restart().unwrap();
    load.resumes().await;
    assert_eq!(pair.check(load, Losses::None).await, 0);
}

/// It cannot note down which history it has, so nobody is let in: the hubs say so.
///
/// Broken on purpose: when the question whether a server answers does not include its history, the hubs say
/// that they are ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_say_so_while_a_promoted_server_waits_for_a_standby() {
    let mut pair = Pair::start().await;
    let load = pair.load().await;
    pair.standby.configure("SET synchronous_standby_names = '*'").unwrap();
    pair.primary.kill().unwrap();
    pair.standby.promote().unwrap();
    load.is_refused().await;
    let says_why = |hub: &Hub| hub.unready().is_some_and(|why| why.contains("synchronous standby"));
    until("hubs that say why", async || pair.nodes.living().all(says_why)).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert_eq!(pair.standby.ask(waiting).unwrap(), "1", "one notes it down, the others wait");
    pair.standby.configure("RESET synchronous_standby_names").unwrap();
    load.resumes().await;
    pair.check(load, Losses::Told).await;
}

/// The old primary was out of reach for less time than the bus takes to notice. What the journal
/// knows of the new one, the bus knows too: nothing of a node stays.
///
/// Broken on purpose: with a `Lineage` for each, the bus stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_leaves_a_primary_that_another_was_promoted_over_with_the_journal() {
    let patient = |url: &str| PostgresOptions { statement_timeout: PATIENCE, ..options(url) };
    let pair = Pair::start_with(Postgres::start().unwrap(), patient).await;
    let load = pair.load().await;
    pair.standby.promote().unwrap();
    pair.primary.pause().unwrap();
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tidings'";
    let journals = || pair.standby.ask(connections).unwrap().parse::<usize>().unwrap() >= NODES;
    until("the journals at the new primary", async || journals()).await;
    pair.primary.resume().unwrap();
    let is_left = || pair.primary.ask(connections).unwrap() == "0";
    until("everybody to leave the old primary", async || is_left()).await;
    until("the bus", async || pair.nodes.living().all(|hub| hub.bus_failure().is_none())).await;
    load.goes_on().await;
    pair.check(load, Losses::Told).await;
}
