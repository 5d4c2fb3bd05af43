//! The scenarios: what is done to a server, how much of it, and which bars it is to reach.
//!
//! The rule: a scenario does the same to every server, each in the form that its documentation names
//! for that, and knows no other way to one than its clients' bytes.

mod fanout;
mod idle;
mod nodes;
mod publish;
mod replay;
mod resume;
mod source;
mod stalled;
mod start;
mod storm;
mod tokens;
mod topics;
mod users;

use std::time::Duration;

use tokio::time::Instant;

use self::nodes::Shared;
use crate::{
    client::{Form, Publisher, Target},
    figure::{Bar, Figure, Limit, Unit},
    server::{Kind, Server},
};

/// How much, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// What the scenario counts: readers, connections, events stored.
    pub(crate) n: usize,
    /// How long it is measured.
    pub(crate) span: Duration,
    /// To see that everything works, not to know figures.
    pub(crate) is_short: bool,
}

/// A scenario.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What the load counts.
    pub(crate) of: &'static str,
    /// The load that the bars are about, and less of it.
    pub(crate) full: usize,
    pub(crate) short: usize,
    /// 1×, 4× and 16×.
    pub(crate) growth: [usize; 3],
    /// The figure that shows growth, per unit of work: flat is best.
    pub(crate) grows: &'static str,
    pub(crate) floors: &'static [Kind],
    /// Whether peers can do it at all.
    pub(crate) has_peers: bool,
    /// How often it is measured; the middle counts.
    pub(crate) rounds: usize,
    pub(crate) bars: &'static [Bar],
}

const fn bar(of: &'static str, limit: Limit) -> Bar {
    Bar { of, limit }
}

const FLOOR: &[Kind] = &[Kind::Floor];
const FLOORS: &[Kind] = &[Kind::Floor, Kind::DurableFloor];
const DURABLE: &[Kind] = &[Kind::DurableFloor];

/// All of them, in the order of their table.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "fanout",
        title: "fan-out: 1 topic × 1 000 readers, 200 B",
        of: "readers",
        full: 1000,
        short: 200,
        growth: [250, 1000, 4000],
        grows: "CPU",
        floors: FLOORS,
        has_peers: true,
        rounds: 3,
        bars: &[bar("CPU", Limit::FloorTimes(1.3)), bar("CPU", Limit::FloorTimes(1.0))],
    },
    Scenario {
        name: "users",
        title: "5 000 users × 1 reader, one durable event each in turn",
        of: "users",
        full: 5000,
        short: 500,
        growth: [1000, 4000, 16_000],
        grows: "CPU",
        floors: FLOORS,
        has_peers: true,
        rounds: 3,
        bars: &[
            bar("deliveries", Limit::AtLeast(20_000.0)),
            bar("p99", Limit::AtMost(10.0)),
            bar("CPU", Limit::FloorTimes(1.6)),
        ],
    },
    PUBLISH_64,
    Scenario {
        name: "publish-1",
        title: "durable publish, 1 connection, one event a request",
        of: "connections",
        full: 1,
        short: 1,
        growth: [1, 4, 16],
        grows: "p50",
        floors: DURABLE,
        has_peers: true,
        rounds: 3,
        bars: &[bar("p50", Limit::AtMost(0.4))],
    },
    PUBLISH_500,
    Scenario {
        name: "publish-64-ids",
        title: "one event a request, 64 connections, each with an id of its publisher's own",
        has_peers: false,
        bars: &[],
        ..PUBLISH_64
    },
    Scenario {
        name: "publish-500-ids",
        title: "500 events a request, 8 connections, each with an id of its publisher's own",
        bars: &[],
        ..PUBLISH_500
    },
    TOKENS,
    Scenario {
        name: "tokens-requests",
        title: "the same, each token by a request of its own",
        bars: &[],
        ..TOKENS
    },
    Scenario {
        name: "replay",
        title: "replay: 200 readers × 1 000 events",
        of: "readers",
        full: 200,
        short: 50,
        growth: [50, 200, 800],
        grows: "CPU",
        floors: FLOOR,
        has_peers: true,
        rounds: 3,
        bars: &[bar("events", Limit::AtLeast(700_000.0))],
    },
    Scenario {
        name: "resume",
        title: "resume 5 behind, with 100 and 1 000 000 events stored",
        of: "events stored",
        full: 1_000_000,
        short: 50_000,
        growth: [62_500, 250_000, 1_000_000],
        grows: "p50",
        floors: FLOOR,
        has_peers: false,
        rounds: 1,
        bars: &[bar("p50", Limit::AtMost(1.0)), bar("p50 to that of 100", Limit::AtMost(1.3))],
    },
    Scenario {
        name: "idle",
        title: "idle SSE connections, 10 000 on HTTP/1.1",
        of: "connections",
        full: 10_000,
        short: 1000,
        growth: [1000, 4000, 16_000],
        grows: "RSS each",
        floors: FLOOR,
        has_peers: true,
        rounds: 1,
        bars: &[
            bar("RSS each", Limit::AtMost(8.0)),
            bar("heartbeat CPU of 10 000", Limit::AtMost(5.0)),
        ],
    },
    Scenario {
        name: "idle-h2",
        title: "idle SSE connections on HTTP/2, one stream each",
        of: "connections",
        full: 5000,
        short: 500,
        growth: [1000, 4000, 16_000],
        grows: "RSS each",
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[bar("heartbeat CPU of 10 000", Limit::AtMost(5.0))],
    },
    Scenario {
        name: "idle-tls",
        title: "idle SSE connections on TLS 1.3, HTTP/1.1",
        of: "connections",
        full: 5000,
        short: 500,
        growth: [1000, 4000, 16_000],
        grows: "RSS each",
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[bar("heartbeat CPU of 10 000", Limit::AtMost(5.0))],
    },
    Scenario {
        name: "topics",
        title: "1 000 000 topics on disk, 10 000 active",
        of: "topics",
        full: 1_000_000,
        short: 20_000,
        growth: [62_500, 250_000, 1_000_000],
        grows: "CPU",
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[
            bar("RSS", Limit::AtMost(200.0)),
            bar("slower than 1 000 topics", Limit::AtMost(1.2)),
        ],
    },
    Scenario {
        name: "start",
        title: "cold start with 1 000 000 events, after a kill",
        of: "events stored",
        full: 1_000_000,
        short: 50_000,
        growth: [62_500, 250_000, 1_000_000],
        grows: "start",
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[bar("start", Limit::AtMost(1.0))],
    },
    Scenario {
        name: "stalled",
        title: "500 stalled readers beside 100 healthy ones, 5 000 events/s",
        of: "stalled readers",
        full: 500,
        short: 100,
        growth: [125, 500, 2000],
        grows: "healthy p99",
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[bar("healthy p99 to without", Limit::AtMost(1.5))],
    },
    Scenario {
        name: "storm",
        title: "storm: 5 000 readers reconnect at once after a restart, 100 behind each",
        of: "readers",
        full: 5000,
        short: 300,
        growth: [1000, 4000, 16_000],
        grows: "CPU",
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[
            bar("all caught up", Limit::AtMost(5.0)),
            bar("publisher p99 to calm", Limit::AtMost(3.0)),
        ],
    },
    shared("redis-64", "durable publish through Redis (everysec), 64 connections", 64, {
        &[bar("events", Limit::AtLeast(20_000.0))]
    }),
    shared("postgres-64", "durable publish through PostgreSQL, 64 connections", 64, {
        &[bar("events", Limit::AtLeast(10_000.0))]
    }),
    shared("postgres-500", "the same, 500 events a request, 8 connections", 8, {
        &[bar("events", Limit::AtLeast(40_000.0))]
    }),
    shared("nodes-redis", "node to node, Redis, 50 × 20 events/s", 50, {
        &[bar("p50", Limit::AtMost(3.0)), bar("p99", Limit::AtMost(10.0))]
    }),
    shared("nodes-postgres", "node to node, PostgreSQL, 50 × 20 events/s", 50, {
        &[bar("p50", Limit::AtMost(10.0)), bar("p99", Limit::AtMost(30.0))]
    }),
    shared("nodes-rabbitmq", "node to node, RabbitMQ over PostgreSQL, 50 × 20 events/s", 50, {
        &[bar("p50", Limit::AtMost(5.0)), bar("p99", Limit::AtMost(15.0))]
    }),
    Scenario {
        of: "messages",
        growth: [50_000, 200_000, 800_000],
        grows: "CPU",
        short: 5000,
        ..shared("source", "RabbitMQ source into the embedded journal", 200_000, {
            &[bar("messages", Limit::AtLeast(20_000.0))]
        })
    },
    Scenario {
        of: "readers at each",
        growth: [300, 1200, 4800],
        grows: "CPU",
        short: 100,
        ..shared(
            "three-nodes",
            "fan-out: 1 topic × 5 000 readers at each of three nodes, Redis",
            5000,
            &[bar("CPU to one node's", Limit::AtMost(1.2))],
        )
    },
];

const PUBLISH_64: Scenario = Scenario {
    name: "publish-64",
    title: "durable publish, 64 connections, one event a request",
    of: "connections",
    full: 64,
    short: 64,
    growth: [16, 64, 256],
    grows: "CPU",
    floors: DURABLE,
    has_peers: true,
    rounds: 3,
    bars: &[
        bar("events", Limit::AtLeast(30_000.0)),
        bar("events", Limit::PeerTimes("durable-streams (wal)", 1.0)),
    ],
};

const PUBLISH_500: Scenario = Scenario {
    name: "publish-500",
    title: "durable publish, 500 events a request, 8 connections",
    of: "connections",
    full: 8,
    short: 8,
    growth: [2, 8, 32],
    grows: "CPU",
    floors: DURABLE,
    has_peers: false,
    rounds: 3,
    bars: &[bar("events", Limit::AtLeast(200_000.0))],
};

const TOKENS: Scenario = Scenario {
    name: "tokens",
    title: "token streams: 200 × 50 events/s, one reader each",
    of: "streams",
    full: 200,
    short: 100,
    growth: [50, 200, 800],
    grows: "p99",
    floors: DURABLE,
    has_peers: false,
    rounds: 3,
    bars: &[bar("p50", Limit::AtMost(3.0)), bar("p99", Limit::AtMost(15.0))],
};

/// What only hubs do, on servers that they share.
const fn shared(
    name: &'static str,
    title: &'static str,
    full: usize,
    bars: &'static [Bar],
) -> Scenario {
    Scenario {
        name,
        title,
        of: "connections",
        full,
        short: full,
        growth: [full / 4, full, full * 4],
        grows: "p50",
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars,
    }
}

impl Scenario {
    /// Does it to a server; nothing if this kind of server cannot.
    pub(crate) async fn measure(&self, kind: Kind, load: Load) -> Vec<Figure> {
        match self.name {
            "fanout" => fanout::measure(kind, load).await,
            "users" => users::measure(kind, load).await,
            "publish-64" | "publish-1" => publish::measure(kind, load, 1, false).await,
            "publish-64-ids" => publish::measure(kind, load, 1, true).await,
            "publish-500" | "publish-500-ids" => {
                let has_ids = self.name != "publish-500";
                publish::measure(kind, load, publish::REQUEST_EVENTS, has_ids).await
            }
            "tokens" => tokens::measure(kind, load, Form::Lines).await,
            "tokens-requests" => tokens::measure(kind, load, Form::Requests).await,
            "replay" => replay::measure(kind, load).await,
            "resume" => resume::measure(kind, load).await,
            "idle" => idle::measure(kind, load, idle::Transport::Plain).await,
            "idle-h2" => idle::measure(kind, load, idle::Transport::Http2).await,
            "idle-tls" => idle::measure(kind, load, idle::Transport::Tls).await,
            "topics" => topics::measure(kind, load).await,
            "stalled" => stalled::measure(kind, load).await,
            "start" => start::measure(kind, load).await,
            "redis-64" => nodes::measure_publish(Shared::Redis, kind, load, 1).await,
            "postgres-64" => nodes::measure_publish(Shared::Postgres, kind, load, 1).await,
            "postgres-500" => {
                let events = publish::REQUEST_EVENTS;
                nodes::measure_publish(Shared::Postgres, kind, load, events).await
            }
            "nodes-redis" => nodes::measure_latency(Shared::Redis, kind, load).await,
            "nodes-postgres" => nodes::measure_latency(Shared::Postgres, kind, load).await,
            "source" => source::measure(kind, load).await,
            "three-nodes" => nodes::measure_fanout(Shared::Redis, kind, load).await,
            "nodes-rabbitmq" => {
                nodes::measure_latency(Shared::PostgresAndRabbitMq, kind, load).await
            }
            _ => storm::measure(kind, load).await,
        }
    }
}

/// Bytes of an event's data.
const DATA_BYTES: usize = 200;

/// What a server spent since a moment.
struct Watch<'a> {
    server: &'a Server,
    begun: Instant,
    cpu: f64,
    profile: Option<std::process::Child>,
}

impl<'a> Watch<'a> {
    fn start(server: &'a Server) -> Self {
        let profile = crate::profile::start(server);
        Self { server, begun: Instant::now(), cpu: server.cpu_seconds(), profile }
    }

    /// Seconds, and CPU seconds of the server.
    fn stop(self) -> (f64, f64) {
        let spent = (self.begun.elapsed().as_secs_f64(), self.server.cpu_seconds() - self.cpu);
        if let Some(profile) = self.profile {
            crate::profile::stop(profile);
        }
        spent
    }
}

/// How often it was done a second, and what each cost the server.
fn rate_and_cpu(name: &'static str, count: u64, (seconds, cpu): (f64, f64)) -> [Figure; 2] {
    let count = count as f64;
    [
        Figure::new(name, Unit::PerSecond, count / seconds),
        Figure::new("CPU", Unit::CpuPerMillion, cpu * 1e6 / count),
    ]
}

/// Makes topics where they must be made before they are used.
async fn create(target: &Target, topics: usize) {
    if target.create(0).is_none() {
        return;
    }
    let mut publisher = Publisher::connect(target).await;
    for request in (0..topics).filter_map(|topic| target.create(topic)) {
        publisher.ask(&request).await;
    }
}

/// Publishes events to one topic, as many a request as there may be.
async fn fill(target: &Target, topic: usize, events: usize) {
    const REQUEST_EVENTS: usize = 500;
    if events == 0 {
        return;
    }
    let mut publisher = Publisher::connect(target).await;
    let one = target.dialect == crate::client::Dialect::Nchan;
    let each = if one { 1 } else { REQUEST_EVENTS.min(events) };
    let mut whole = if one {
        target.publish(topic, DATA_BYTES)
    } else {
        target.publish_all(std::iter::repeat_n(topic, each), DATA_BYTES)
    };
    for _ in 0..events / each {
        publisher.ask(whole.stamped()).await;
    }
    if !events.is_multiple_of(each) {
        let mut rest = target.publish_all(std::iter::repeat_n(topic, events % each), DATA_BYTES);
        publisher.ask(rest.stamped()).await;
    }
}
