//! Past one machine: publishing through the journals that nodes share, and how long an event takes
//! from one node to a reader of another.
//!
//! The servers are started for each measurement, are private, and keep what they acknowledge: Redis
//! syncs its file every second, PostgreSQL before each commit's answer. All nodes have one processor
//! together; the servers run beside the load generator, so that rates are those of two processors.
//! What each server took is told beside what the nodes took, for the same events.

use std::time::Duration;

use tidings_services::{Postgres, RabbitMq, Redis};

use super::{
    Load, Process,
    fanout::{AHEAD, Readers},
    publish, tokens,
};
use crate::{
    client::Form,
    figure::{Figure, Unit},
    server::{Kind, Server, Setup, shared_secret},
};

/// Between two events of one of the streams that go from node to node.
const PERIOD: Duration = Duration::from_millis(50);

/// What nodes share.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shared {
    Redis,
    Postgres,
    /// A journal in PostgreSQL, and announcements by RabbitMQ.
    PostgresAndRabbitMq,
}

/// The servers, for as long as this lives.
#[derive(Debug, Default)]
struct Services {
    redis: Option<Redis>,
    postgres: Option<Postgres>,
    rabbitmq: Option<RabbitMq>,
}

impl Services {
    fn start(shared: Shared) -> Self {
        match shared {
            Shared::Redis => {
                let redis = Redis::start_with(&["--appendfsync", "everysec"]).unwrap();
                Self { redis: Some(redis), ..Self::default() }
            }
            Shared::Postgres => {
                Self { postgres: Some(Postgres::start().unwrap()), ..Self::default() }
            }
            Shared::PostgresAndRabbitMq => Self {
                postgres: Some(Postgres::start().unwrap()),
                rabbitmq: Some(RabbitMq::start().unwrap()),
                redis: None,
            },
        }
    }

    /// What a node's configuration says of them.
    fn setup(&self) -> Setup {
        let mut settings = vec![("TIDINGS_CLUSTER_SECRET", shared_secret().to_owned())];
        let mut name = |name, value: String| settings.push((name, value));
        if let Some(redis) = &self.redis {
            name("TIDINGS_JOURNAL_KIND", "redis".to_owned());
            name("TIDINGS_REDIS_URL", redis.url().to_owned());
        }
        if let Some(postgres) = &self.postgres {
            name("TIDINGS_JOURNAL_KIND", "postgres".to_owned());
            name("TIDINGS_POSTGRES_URL", postgres.url());
        }
        if let Some(rabbitmq) = &self.rabbitmq {
            name("TIDINGS_CLUSTER_BUS", "rabbitmq".to_owned());
            name("TIDINGS_RABBITMQ_URL", rabbitmq.url());
        }
        Setup { settings, ..Setup::default() }
    }

    /// Their processes, by the names of their figures.
    fn processes(&self) -> Vec<Process> {
        let redis = self.redis.as_ref().map(|redis| ("Redis CPU", redis.id().unwrap()));
        let postgres = self.postgres.as_ref().map(|postgres| ("PostgreSQL CPU", postgres.id()));
        let postgres = postgres.map(|(name, id)| (name, id.unwrap()));
        let rabbitmq = self.rabbitmq.as_ref().map(|rabbitmq| ("RabbitMQ CPU", rabbitmq.id()));
        redis.into_iter().chain(postgres).chain(rabbitmq).collect()
    }
}

/// Durable publishing through a shared journal, so many events a request.
pub(super) async fn measure_publish(
    shared: Shared,
    kind: Kind,
    load: Load,
    events: usize,
) -> Vec<Figure> {
    let services = Services::start(shared);
    publish::run(kind, load, services.setup(), events, false, &services.processes()).await
}

/// Published on one node, delivered by another: 20 events a second in each stream.
pub(super) async fn measure_latency(shared: Shared, kind: Kind, load: Load) -> Vec<Figure> {
    let services = Services::start(shared);
    let publishing = Server::start(kind, services.setup());
    let following = Server::start(kind, services.setup());
    let mut others = vec![("publishing node's CPU", publishing.pid())];
    others.extend(services.processes());
    tokens::run(&publishing, &following, load, PERIOD, Form::Requests, &others).await
}

/// Fan-out of one topic to so many readers at each of three nodes, beside one node with as many, and
/// one with all of them: what three processes and three times the sockets cost is not the nodes'.
pub(super) async fn measure_fanout(shared: Shared, kind: Kind, load: Load) -> Vec<Figure> {
    let services = Services::start(shared);
    let mut measured = Vec::new();
    for (nodes, at_each) in [(1, load.n), (1, 3 * load.n), (3, load.n)] {
        let nodes: Vec<Server> =
            (0..nodes).map(|_| Server::start(kind, services.setup())).collect();
        let readers = Readers::open(&nodes, at_each).await;
        measured.push(readers.run(load, AHEAD, &services.processes()).await);
    }
    let cpu = |figures: &[Figure]| figures.iter().find(|of| of.name == "CPU").unwrap().value;
    let [alone, crowded, mut figures] = <[Vec<Figure>; 3]>::try_from(measured).unwrap();
    let all = cpu(&figures);
    let beside = |name, one: &[Figure]| Figure::new(name, Unit::Times, all / cpu(one));
    figures.extend([
        beside("CPU to one node's", &alone),
        beside("to one node's with all readers", &crowded),
    ]);
    figures
}
