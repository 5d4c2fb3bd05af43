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

use std::{pin::Pin, time::Duration};

use tokio::time::Instant;

use self::{idle::Transport, nodes::Shared, publish::REQUEST_EVENTS};
use crate::{
    client::{Form, Publisher, Target},
    figure::{Bar, Figure, Limit, Unit},
    machine,
    server::{Kind, Server},
};

/// How much, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// What the scenario counts: readers, connections, events stored.
    pub(crate) n: usize,
    /// How long it is measured.
    pub(crate) span: Duration,
    /// Between two pings of a connection.
    pub(crate) heartbeat: Duration,
}

/// Does a scenario to a server; gives nothing if this kind of server cannot.
pub(crate) type Measure = fn(Kind, Load) -> Pin<Box<dyn Future<Output = Vec<Figure>>>>;

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
    /// The figures that show growth: flat is best.
    pub(crate) grows: &'static [&'static str],
    pub(crate) floors: &'static [Kind],
    /// Whether peers can do it at all.
    pub(crate) has_peers: bool,
    /// How often it is measured; the middle counts.
    pub(crate) rounds: usize,
    pub(crate) bars: &'static [Bar],
    pub(crate) measure: Measure,
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
        grows: &["CPU"],
        floors: FLOORS,
        has_peers: true,
        rounds: 3,
        bars: &[bar("CPU", Limit::FloorTimes(1.3)), bar("CPU", Limit::FloorTimes(1.0))],
        measure: |kind, load| Box::pin(fanout::measure(kind, load)),
    },
    Scenario {
        name: "users",
        title: "5 000 users × 1 reader, one durable event each in turn",
        of: "users",
        full: 5000,
        short: 500,
        growth: [1000, 4000, 16_000],
        grows: &["deliveries", "p99", "CPU"],
        floors: FLOORS,
        has_peers: true,
        rounds: 3,
        bars: &[
            bar("deliveries", Limit::AtLeast(20_000.0)),
            bar("p99", Limit::AtMost(10.0)),
            bar("CPU", Limit::FloorTimes(1.6)),
        ],
        measure: |kind, load| Box::pin(users::measure(kind, load)),
    },
    PUBLISH_64,
    Scenario {
        name: "publish-1",
        title: "durable publish, 1 connection, one event a request",
        of: "connections",
        full: 1,
        short: 1,
        growth: [1, 4, 16],
        grows: &["p50", "CPU"],
        floors: DURABLE,
        has_peers: true,
        rounds: 3,
        bars: &[bar("p50", Limit::AtMost(0.4))],
        measure: |kind, load| Box::pin(publish::measure(kind, load, 1, false)),
    },
    PUBLISH_500,
    Scenario {
        name: "publish-64-ids",
        title: "one event a request, 64 connections, each with an id of its publisher's own",
        has_peers: false,
        bars: &[],
        measure: |kind, load| Box::pin(publish::measure(kind, load, 1, true)),
        ..PUBLISH_64
    },
    Scenario {
        name: "publish-500-ids",
        title: "500 events a request, 8 connections, each with an id of its publisher's own",
        has_peers: false,
        bars: &[],
        measure: |kind, load| Box::pin(publish::measure(kind, load, REQUEST_EVENTS, true)),
        ..PUBLISH_500
    },
    TOKENS,
    Scenario {
        name: "tokens-requests",
        title: "the same, each token by a request of its own",
        bars: &[],
        measure: |kind, load| Box::pin(tokens::measure(kind, load, Form::Requests)),
        ..TOKENS
    },
    Scenario {
        name: "replay",
        title: "replay: 200 readers × 1 000 events",
        of: "readers",
        full: 200,
        short: 50,
        growth: [50, 200, 800],
        grows: &["events", "CPU"],
        floors: FLOOR,
        has_peers: true,
        rounds: 3,
        bars: &[bar("events", Limit::AtLeast(700_000.0))],
        measure: |kind, load| Box::pin(replay::measure(kind, load)),
    },
    Scenario {
        name: "resume",
        title: "resume 5 behind, with 100 and 1 000 000 events stored",
        of: "events stored",
        full: 1_000_000,
        short: 50_000,
        growth: [62_500, 250_000, 1_000_000],
        grows: &["p50", "p50 to that of 100"],
        floors: FLOOR,
        has_peers: false,
        rounds: 1,
        bars: &[bar("p50", Limit::AtMost(1.0)), bar("p50 to that of 100", Limit::AtMost(1.3))],
        measure: |kind, load| Box::pin(resume::measure(kind, load)),
    },
    Scenario {
        name: "idle",
        title: "idle SSE connections, 10 000 on HTTP/1.1",
        of: "connections",
        full: 10_000,
        short: 1000,
        growth: [1000, 4000, 16_000],
        grows: IDLE_GROWS,
        floors: FLOOR,
        has_peers: true,
        rounds: 1,
        bars: &[
            bar("RSS each", Limit::AtMost(8.0)),
            bar("heartbeat CPU of 10 000", Limit::AtMost(5.0)),
        ],
        measure: |kind, load| Box::pin(idle::measure(kind, load, Transport::Plain)),
    },
    Scenario {
        name: "idle-h2",
        title: "idle SSE connections on HTTP/2, one stream each",
        of: "connections",
        full: 5000,
        short: 500,
        growth: [1000, 4000, 16_000],
        grows: IDLE_GROWS,
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[bar("heartbeat CPU of 10 000", Limit::AtMost(5.0))],
        measure: |kind, load| Box::pin(idle::measure(kind, load, Transport::Http2)),
    },
    Scenario {
        name: "idle-tls",
        title: "idle SSE connections on TLS 1.3, HTTP/1.1",
        of: "connections",
        full: 5000,
        short: 500,
        growth: [1000, 4000, 16_000],
        grows: IDLE_GROWS,
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[bar("heartbeat CPU of 10 000", Limit::AtMost(5.0))],
        measure: |kind, load| Box::pin(idle::measure(kind, load, Transport::Tls)),
    },
    Scenario {
        name: "topics",
        title: "1 000 000 topics on disk, 10 000 active",
        of: "topics",
        full: 1_000_000,
        short: 20_000,
        growth: [62_500, 250_000, 1_000_000],
        grows: &["CPU", "RSS", "slower than 1 000 topics"],
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[
            bar("RSS", Limit::AtMost(200.0)),
            bar("slower than 1 000 topics", Limit::AtMost(1.2)),
        ],
        measure: |kind, load| Box::pin(topics::measure(kind, load)),
    },
    Scenario {
        name: "start",
        title: "cold start with 1 000 000 events, after a kill",
        of: "events stored",
        full: 1_000_000,
        short: 50_000,
        growth: [62_500, 250_000, 1_000_000],
        grows: &["start"],
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[bar("start", Limit::AtMost(1.0))],
        measure: |kind, load| Box::pin(start::measure(kind, load)),
    },
    Scenario {
        name: "stalled",
        title: "500 stalled readers beside 100 healthy ones, 5 000 events/s",
        of: "stalled readers",
        full: 500,
        short: 100,
        growth: [125, 500, 2000],
        grows: &["healthy p99", "healthy p99 to without"],
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[bar("healthy p99 to without", Limit::AtMost(1.5))],
        measure: |kind, load| Box::pin(stalled::measure(kind, load)),
    },
    Scenario {
        name: "storm",
        title: "storm: 5 000 readers reconnect at once after a restart, 100 behind each",
        of: "readers",
        full: 5000,
        short: 300,
        growth: [1000, 4000, 16_000],
        grows: &["all caught up", "publisher p99 to calm", "CPU"],
        floors: &[],
        has_peers: false,
        rounds: 1,
        bars: &[
            bar("all caught up", Limit::AtMost(5.0)),
            bar("publisher p99 to calm", Limit::AtMost(3.0)),
        ],
        measure: |kind, load| Box::pin(storm::measure(kind, load)),
    },
    Scenario {
        name: "redis-64",
        title: "durable publish through Redis (everysec), 64 connections",
        bars: &[bar("events", Limit::AtLeast(20_000.0))],
        measure: |kind, load| Box::pin(nodes::measure_publish(Shared::Redis, kind, load, 1)),
        ..SHARED_64
    },
    Scenario {
        name: "postgres-64",
        title: "durable publish through PostgreSQL, 64 connections",
        bars: &[bar("events", Limit::AtLeast(10_000.0))],
        measure: |kind, load| Box::pin(nodes::measure_publish(Shared::Postgres, kind, load, 1)),
        ..SHARED_64
    },
    Scenario {
        name: "postgres-500",
        title: "the same, 500 events a request, 8 connections",
        full: 8,
        short: 8,
        growth: [2, 8, 32],
        bars: &[bar("events", Limit::AtLeast(40_000.0))],
        measure: |kind, load| {
            Box::pin(nodes::measure_publish(Shared::Postgres, kind, load, REQUEST_EVENTS))
        },
        ..SHARED_64
    },
    Scenario {
        name: "nodes-redis",
        title: "node to node, Redis, 50 × 20 events/s",
        bars: &[bar("p50", Limit::AtMost(3.0)), bar("p99", Limit::AtMost(10.0))],
        measure: |kind, load| Box::pin(nodes::measure_latency(Shared::Redis, kind, load)),
        ..NODES
    },
    Scenario {
        name: "nodes-postgres",
        title: "node to node, PostgreSQL, 50 × 20 events/s",
        bars: &[bar("p50", Limit::AtMost(10.0)), bar("p99", Limit::AtMost(30.0))],
        measure: |kind, load| Box::pin(nodes::measure_latency(Shared::Postgres, kind, load)),
        ..NODES
    },
    Scenario {
        name: "nodes-rabbitmq",
        title: "node to node, RabbitMQ over PostgreSQL, 50 × 20 events/s",
        bars: &[bar("p50", Limit::AtMost(5.0)), bar("p99", Limit::AtMost(15.0))],
        measure: |kind, load| {
            Box::pin(nodes::measure_latency(Shared::PostgresAndRabbitMq, kind, load))
        },
        ..NODES
    },
    Scenario {
        name: "source",
        title: "RabbitMQ source into the embedded journal",
        of: "messages",
        full: 200_000,
        short: 5000,
        growth: [12_500, 50_000, 200_000],
        grows: &["messages", "CPU"],
        bars: &[bar("messages", Limit::AtLeast(20_000.0))],
        measure: |kind, load| Box::pin(source::measure(kind, load)),
        ..SHARED_64
    },
    Scenario {
        name: "three-nodes",
        title: "fan-out: 1 topic × 5 000 readers at each of three nodes, Redis",
        of: "readers at each",
        full: 5000,
        short: 100,
        growth: [300, 1200, 4800],
        grows: &["CPU to one node's", "CPU"],
        bars: &[bar("CPU to one node's", Limit::AtMost(1.2))],
        measure: |kind, load| Box::pin(nodes::measure_fanout(Shared::Redis, kind, load)),
        ..SHARED_64
    },
];

const PUBLISH_64: Scenario = Scenario {
    name: "publish-64",
    title: "durable publish, 64 connections, one event a request",
    of: "connections",
    full: 64,
    short: 64,
    growth: [16, 64, 256],
    grows: &["events", "CPU"],
    floors: DURABLE,
    has_peers: true,
    rounds: 3,
    bars: &[
        bar("events", Limit::AtLeast(30_000.0)),
        bar("events", Limit::PeerTimes("durable-streams (wal)", 1.0)),
    ],
    measure: |kind, load| Box::pin(publish::measure(kind, load, 1, false)),
};

const PUBLISH_500: Scenario = Scenario {
    name: "publish-500",
    title: "durable publish, 500 events a request, 8 connections",
    of: "connections",
    full: 8,
    short: 8,
    growth: [2, 8, 32],
    grows: &["events", "CPU"],
    floors: DURABLE,
    has_peers: true,
    rounds: 3,
    bars: &[bar("events", Limit::AtLeast(200_000.0))],
    measure: |kind, load| Box::pin(publish::measure(kind, load, REQUEST_EVENTS, false)),
};

const TOKENS: Scenario = Scenario {
    name: "tokens",
    title: "token streams: 200 × 50 events/s, one reader each",
    of: "streams",
    full: 200,
    short: 100,
    growth: [50, 200, 800],
    grows: &["p50", "p99", "CPU"],
    floors: DURABLE,
    has_peers: false,
    rounds: 3,
    bars: &[bar("p50", Limit::AtMost(3.0)), bar("p99", Limit::AtMost(15.0))],
    measure: |kind, load| Box::pin(tokens::measure(kind, load, Form::Lines)),
};

/// What only hubs do, on servers that they share.
const SHARED_64: Scenario =
    Scenario { floors: &[], has_peers: false, rounds: 1, bars: &[], ..PUBLISH_64 };

const NODES: Scenario = Scenario {
    of: "streams",
    full: 50,
    short: 50,
    growth: [12, 48, 192],
    grows: &["p50", "p99", "CPU"],
    ..SHARED_64
};

const IDLE_GROWS: &[&str] = &["RSS each", "heartbeat CPU of 10 000"];

/// Bytes of an event's data.
const DATA_BYTES: usize = 200;

/// A process that is watched, by the name of its figure.
type Process = (&'static str, u32);

/// What servers spend from a moment on.
struct Watch {
    begun: Instant,
    /// Each with its CPU seconds until then.
    processes: Vec<(Process, f64)>,
    profile: Option<std::process::Child>,
}

impl Watch {
    /// Watches a server, whose figure is `CPU`.
    fn start(server: &Server) -> Self {
        let profile = crate::profile::start(server);
        let watch = Self { begun: Instant::now(), processes: Vec::new(), profile };
        watch.and(&[("CPU", server.pid())])
    }

    /// Watches others, too. Those of one name have one figure together.
    fn and(mut self, others: &[Process]) -> Self {
        let begun = |process: &Process| (*process, machine::cpu_seconds(process.1));
        self.processes.extend(others.iter().map(begun));
        self
    }

    fn stop(self) -> Spent {
        let seconds = self.begun.elapsed().as_secs_f64();
        let mut cpu: Vec<(&'static str, f64)> = Vec::new();
        for ((name, pid), before) in self.processes {
            let spent = machine::cpu_seconds(pid) - before;
            match cpu.iter_mut().find(|(of, _)| *of == name) {
                Some((_, all)) => *all += spent,
                None => cpu.push((name, spent)),
            }
        }
        if let Some(profile) = self.profile {
            crate::profile::stop(profile);
        }
        Spent { seconds, cpu }
    }
}

/// Seconds, and CPU seconds by the names of their figures, the server's first.
struct Spent {
    seconds: f64,
    cpu: Vec<(&'static str, f64)>,
}

impl Spent {
    /// CPU seconds of the server.
    fn cpu(&self) -> f64 {
        self.cpu.first().map_or(f64::NAN, |(_, spent)| *spent)
    }

    /// The same, where only so many of the seconds count.
    fn within(self, seconds: f64) -> Self {
        Self { seconds, ..self }
    }

    /// How often something was done a second, and what each time cost each process.
    fn figures(&self, name: &'static str, count: u64) -> Vec<Figure> {
        let count = count as f64;
        let rate = Figure::new(name, Unit::PerSecond, count / self.seconds);
        let each = |(name, spent): &(&'static str, f64)| {
            Figure::new(name, Unit::CpuPerMillion, spent * 1e6 / count)
        };
        std::iter::once(rate).chain(self.cpu.iter().map(each)).collect()
    }
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

/// Publishes events to one topic, which has some before, as many a request as there may be.
async fn fill(target: &Target, topic: usize, before: usize, events: usize) {
    if events == 0 {
        return;
    }
    let mut publisher = Publisher::connect(target).await;
    let one = target.dialect == crate::client::Dialect::Nchan;
    let each = if one { 1 } else { REQUEST_EVENTS.min(events) };
    let whole = if one {
        target.publish(topic, DATA_BYTES)
    } else {
        target.publish_all(std::iter::repeat_n(topic, each), DATA_BYTES)
    };
    let mut whole = whole.after(before as u64);
    for _ in 0..events / each {
        publisher.ask(whole.stamped()).await;
    }
    let left = events % each;
    if left > 0 {
        let rest = target.publish_all(std::iter::repeat_n(topic, left), DATA_BYTES);
        publisher.ask(rest.after((before + events - left) as u64).stamped()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_has_a_bar_is_measured_at_growing_loads() {
        for scenario in ALL {
            for bar in scenario.bars {
                assert!(scenario.grows.contains(&bar.of), "{}: {}", scenario.name, bar.of);
            }
            assert_eq!(scenario.growth.map(|n| n / scenario.growth[0]), [1, 4, 16]);
        }
    }

    #[test]
    fn processes_of_one_name_have_one_figure_together() {
        let watch = Watch { begun: Instant::now(), processes: Vec::new(), profile: None };
        let own = std::process::id();
        let spent = watch.and(&[("CPU", own), ("Redis CPU", own), ("CPU", own)]).stop();
        let names: Vec<&str> = spent.cpu.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["CPU", "Redis CPU"]);
        let names: Vec<&str> =
            spent.figures("events", 7).iter().map(|figure| figure.name).collect();
        assert_eq!(names, ["events", "CPU", "Redis CPU"]);
    }
}
