//! Three nodes on a PostgreSQL with a standby, which is promoted over it.
//!
//! The rule: the nodes know both servers by one URL and find the one that takes events. Its history
//! is another one, whatever it lost, and every reader is told so.

use std::sync::Arc;

use tidings::journal::postgres::PostgresOptions;
use tidings_services::Postgres;

use crate::{
    history::Losses,
    load::Load,
    nodes::{Nodes, until},
    postgres::{TOPICS, hasty, journal, nodes},
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
        Self::start_on(Postgres::start().unwrap()).await
    }

    /// One whose commits wait until the standby has them on its disk.
    async fn start_synchronous() -> Self {
        let pair = Self::start().await;
        pair.primary.ask("ALTER SYSTEM SET synchronous_standby_names = '*'").unwrap();
        pair.primary.ask("SELECT pg_reload_conf()").unwrap();
        let state = "SELECT sync_state FROM pg_stat_replication";
        until("a synchronous standby", async || pair.primary.ask(state).unwrap() == "sync").await;
        pair
    }

    async fn start_on(primary: Postgres) -> Self {
        let standby = Postgres::start_standby(&primary).unwrap();
        let servers = format!("{},{}", primary.address(), standby.address());
        let url = format!("postgres://postgres@{servers}/postgres?target_session_attrs=read-write");
        let options = hasty(&url);
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
