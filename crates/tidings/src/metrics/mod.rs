//! What the hub counts: one list, from which the metrics, their registry and their reference page
//! are made.
//!
//! The rule: labels have values from fixed lists, never a topic, a tenant or a user. What every
//! delivery counts is counted once for a batch and without a lock (`striped.rs`).

mod catalogue;
mod striped;

use std::borrow::Cow;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, text::encode},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

pub use self::{
    catalogue::{Label, MetricInfo, Values},
    striped::{BusyCounter, Histogram},
};
use crate::error::ErrorCode;

/// What became of something.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// From a fixed list.
    pub result: &'static str,
}

/// Why something happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// From a fixed list.
    pub reason: &'static str,
}

/// Which limit was reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitLabel {
    /// By its name in the configuration.
    pub limit: &'static str,
}

/// When something is on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LevelLabel {
    /// As answers to publishers name it.
    pub level: &'static str,
}

/// How a client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabel {
    /// `sse`, `ndjson` or `long_poll`; `publish`: a stream of events to publish.
    pub format: &'static str,
    /// `http1`, `http2`, or `none` where the hub is embedded and somebody else serves.
    pub protocol: &'static str,
    /// `yes` or `no`.
    pub tls: &'static str,
}

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabel {
    /// As the router writes it: `/v1/topics/{*topic}`.
    pub route: Cow<'static, str>,
    /// The method, or `other`.
    pub method: &'static str,
    /// The status' class: `2xx`.
    pub status: &'static str,
}

/// Which program it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BuildLabel {
    /// Its version.
    pub version: &'static str,
}

macro_rules! label_of {
    ($($label:ident: $field:ident;)*) => {
        $(impl From<&'static str> for $label {
            fn from($field: &'static str) -> Self {
                Self { $field }
            }
        })*
    };
}

label_of! {
    ResultLabel: result;
    ReasonLabel: reason;
    LimitLabel: limit;
}

/// Refusals by limit.
pub type LimitsHit = Family<LimitLabel, Counter>;

/// Answers' times.
pub type RequestTimes = Family<RequestLabel, Histogram, fn() -> Histogram>;

/// Bounds of latencies, microseconds: from a delivery on an idle hub to one that nobody waits for.
const LATENCY: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    5_000_000, 30_000_000,
];
/// Bounds of numbers of events.
const EVENTS: &[u64] = &[1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144];
/// Bounds of sizes, bytes.
const BYTES: &[u64] = &[1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304];

fn latencies() -> Histogram {
    Histogram::of_durations(LATENCY)
}

const NONE: &[Label] = &[];
const RESUMES: &[Label] = &[Label::listed("result", &["exact", "gap", "fresh"])];
const PUBLISHED: &[Label] = &[Label {
    name: "result",
    listed: &["stored", "duplicate", "ephemeral"],
    further: Some(Values::Codes),
}];
const KEY_SETS: &[Label] = &[Label::listed("result", &["read", "failed"])];
const SPANS: &[Label] = &[Label::listed("result", &["sent", "dropped", "failed"])];
const GAPS: &[Label] =
    &[Label::listed("reason", &["trimmed", "unknown_cursor", "epoch", "lagged"])];
const CONNECTION: &[Label] = &[
    Label::listed("format", &["sse", "ndjson", "long_poll", "publish"]),
    Label::listed("protocol", &["http1", "http2", "none"]),
    Label::listed("tls", &["yes", "no"]),
];
const ENDED: &[Label] = &[Label::listed(
    "reason",
    &["drain", "max_age", "expired", "revoked", "slow", "closed", "unavailable", "left"],
)];
const REQUEST: &[Label] = &[
    Label { name: "route", listed: &["none"], further: Some(Values::Routes) },
    Label::listed("method", &["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "other"]),
    Label::listed("status", &["1xx", "2xx", "3xx", "4xx", "5xx"]),
];
const LIMITS: &[Label] = &[Label { name: "limit", listed: &[], further: Some(Values::Limits) }];
const VERSION: &[Label] = &[Label { name: "version", listed: &[], further: Some(Values::Version) }];
const HEARD: &[Label] =
    &[Label::listed("result", &["advanced", "changed", "ephemeral", "missed", "found"])];
const MESSAGES: &[Label] =
    &[Label::listed("result", &["stored", "duplicate", "ephemeral", "dead", "retried"])];
const DEAD: &[Label] =
    &[Label { name: "reason", listed: &["unmapped"], further: Some(Values::Codes) }];
const LEVELS: &[Label] = &[Label::listed("level", &["always", "everysec", "no", "off"])];
const SOURCE: &[Label] = &[Label::listed("source", &["ring", "journal"])];

/// Declares the metrics: what each counts, its name, type, unit and labels.
macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ty = $new:expr, $unit:expr, $labels:expr;)*) => {
        /// Counters and gauges of one hub, with the registry that writes them.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $doc])+ pub $name: $kind,)*
        }

        impl Metrics {
            /// Registers everything under the prefix `tidings`.
            #[must_use]
            pub fn new() -> Self {
                let mut registry = Registry::with_prefix(PREFIX);
                $(
                    let $name: $kind = $new;
                    let help = catalogue::sentence(concat!($($doc),+));
                    let unit: Option<Unit> = $unit;
                    match unit {
                        Some(unit) => registry
                            .register_with_unit(stringify!($name), help, unit, $name.clone()),
                        None => registry.register(stringify!($name), help, $name.clone()),
                    }
                )*
                Self { registry, $($name,)* }
            }

            /// Every metric, for the generated reference.
            #[must_use]
            pub fn catalogue() -> Vec<MetricInfo> {
                let metrics = Self::new();
                vec![$(MetricInfo::new(
                    stringify!($name),
                    metrics.$name.metric_type(),
                    $unit,
                    $labels,
                    concat!($($doc),+),
                ),)*]
            }
        }
    };
}

/// What the name of every metric starts with.
const PREFIX: &str = "tidings";

metrics! {
    /// Open connections of readers and publishers' streams, and long-polls that wait.
    connections: OpenConnections = OpenConnections::default(), None, CONNECTION;
    /// Connections that ended, by why: the reason that the client was told, `left` if it went
    /// away by itself, `slow` if it was cut off while it took nothing,
    /// or sent no line of its stream.
    connections_ended: Family<ReasonLabel, Counter> = Family::default(), None, ENDED;
    /// Events that were published, by what became of them.
    events_published: Family<ResultLabel, Counter> = Family::default(), None, PUBLISHED;
    /// Events handed to readers, replayed ones included; an event to ten readers counts ten.
    events_delivered: BusyCounter = BusyCounter::default(), None, NONE;
    /// Bytes handed to readers of streams.
    delivered: BusyCounter = BusyCounter::default(), Some(Unit::Bytes), NONE;
    /// From the moment that the hub takes a published event until its bytes are handed to a
    /// reader's socket, the commit included. One value for each write to a reader that is up to
    /// date, of the oldest event in it.
    delivery_latency: Histogram = latencies(), Some(Unit::Seconds), NONE;
    /// How far behind the end of its topic a reader was when it was handed something, in offsets,
    /// by where that came from: the ring in memory or the journal.
    reader_lag: ReaderLag = ReaderLag::default(), Some(Unit::Other("events".to_owned())), SOURCE;
    /// Events read from the journal for readers that the ring could not serve.
    events_replayed: Counter = Counter::default(), None, NONE;
    /// Reading one page of the journal for a reader.
    replay_read_duration: Histogram = latencies(), Some(Unit::Seconds), NONE;
    /// From the request of a stream until everything that there was has been handed to it.
    catch_up_duration: Histogram = latencies(), Some(Unit::Seconds), NONE;
    /// Connections by how they resumed: exactly, with a gap, or without a cursor.
    resumes: Family<ResultLabel, Counter> = Family::default(), None, RESUMES;
    /// Gaps told to readers, by why.
    gaps: Family<ReasonLabel, Counter> = Family::default(), None, GAPS;
    /// Ephemeral events dropped because a topic was busy.
    ephemeral_dropped: Counter = Counter::default(), None, NONE;
    /// What was heard of other nodes, by what it was: announcements that a topic advanced or changed,
    /// ephemeral events, `missed` where the bus may have lost something, and `found` for topics that
    /// had changed without a word, or a moment before it.
    announcements: Family<ResultLabel, Counter> = Family::default(), None, HEARD;
    /// Announcements that were not sent to other nodes because there were too many at once; those
    /// look for themselves within a second.
    announcements_dropped: Counter = Counter::default(), None, NONE;
    /// Messages of sources by what became of them: `dead` if they cannot become events, `retried` for
    /// each time that the journal did not take one.
    source_messages: Family<ResultLabel, Counter> = Family::default(), None, MESSAGES;
    /// Messages that a source's broker delivered again.
    source_redelivered: Counter = Counter::default(), None, NONE;
    /// Messages that are in a dead-letter queue, by why.
    source_dead_letters: Family<ReasonLabel, Counter> = Family::default(), None, DEAD;
    /// Connections of sources that ended and were made anew.
    source_reconnects: Counter = Counter::default(), None, NONE;
    /// From a message's own timestamp until it is stored, in whole seconds. One value for each batch,
    /// of the oldest message in it.
    source_lag: Histogram = latencies(), Some(Unit::Seconds), NONE;
    /// Messages that wait in the queues of sources, as was last asked.
    source_queue_depth: Gauge = Gauge::default(), None, NONE;
    /// Queues of sources that are not consumed now.
    source_queues_failing: Gauge = Gauge::default(), None, NONE;
    /// Topics that somebody reads or writes just now.
    topics_active: Gauge = Gauge::default(), None, NONE;
    /// Hints to retention dropped because it was busy; the next sweep finds those topics.
    retention_hints_dropped: Counter = Counter::default(), None, NONE;
    /// Events of one commit of the embedded journal, of all topics.
    commit_size: Histogram = Histogram::of_numbers(EVENTS),
        Some(Unit::Other("events".to_owned())), NONE;
    /// Data of one commit of the embedded journal.
    commit_data: Histogram = Histogram::of_numbers(BYTES), Some(Unit::Bytes), NONE;
    /// Writing one commit of the embedded journal, its fsync included.
    commit_duration: Histogram = latencies(), Some(Unit::Seconds), NONE;
    /// What the embedded journal takes on its disk.
    journal_size: Gauge = Gauge::default(), Some(Unit::Bytes), NONE;
    /// Age of the oldest event that is still held in any topic, as the last sweep of retention
    /// found it.
    oldest_event_age: Gauge = Gauge::default(), Some(Unit::Seconds), NONE;
    /// Refusals because of a limit, by its name in the configuration.
    limits_hit: LimitsHit = Family::default(), None, LIMITS;
    /// Readings of issuers' key sets.
    key_sets_read: Family<ResultLabel, Counter> = Family::default(), None, KEY_SETS;
    /// Issuers whose key set could not be read the last time.
    key_sets_failing: Gauge = Gauge::default(), None, NONE;
    /// Spans for the OpenTelemetry collector: sent to it, dropped because the queue was full or the
    /// hub ended, or failed because the collector did not take them.
    spans: Family<ResultLabel, Counter> = Family::default(), None, SPANS;
    /// Places of the journal that were met since the start and cannot be read.
    journal_damaged_places: Gauge = Gauge::default(), None, NONE;
    /// 1 for the level by which a journal's server has an event on its disk when it is acknowledged,
    /// as answers to publishers name it: `always`, before that; `everysec` and `no`, what Redis does
    /// with its append-only file; `off`, without one, or where Redis does not say. Else 0. Of several
    /// journals each has its level.
    journal_durability: Levels = Levels::default(), None, LEVELS;
    /// Answering a request, streams of events excluded.
    request_duration: RequestTimes = Family::new_with_constructor(latencies as fn() -> Histogram),
        Some(Unit::Seconds), REQUEST;
    /// 1 while the hub takes and serves events, else 0: as `/health/ready`.
    ready: Gauge = Gauge::default(), None, NONE;
    /// Which program it is.
    build: Build = Build::default(), None, VERSION;
}

impl Metrics {
    /// Counts one in a family.
    pub(crate) fn count<L>(family: &Family<L, Counter>, value: &'static str)
    where
        L: From<&'static str> + Clone + std::hash::Hash + Eq,
    {
        family.get_or_create(&value.into()).inc();
    }

    /// Counts a refusal because of a limit.
    pub(crate) fn count_limit(&self, limit: &'static str) {
        Self::count(&self.limits_hit, limit);
    }

    /// Everything in OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Open connections, in all and by how they are connected.
#[derive(Debug, Clone, Default)]
pub struct OpenConnections {
    all: Gauge,
    by_label: Family<ConnectionLabel, Gauge>,
}

impl OpenConnections {
    /// How many there are.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.all.get()
    }

    /// Counts one more, until it is dropped.
    pub(crate) fn open(&self, label: ConnectionLabel) -> OpenConnection {
        let gauges = [self.all.clone(), self.by_label.get_or_create_owned(&label)];
        for gauge in &gauges {
            gauge.inc();
        }
        OpenConnection(gauges)
    }
}

/// One of them.
#[derive(Debug)]
pub(crate) struct OpenConnection([Gauge; 2]);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        for gauge in &self.0 {
            gauge.dec();
        }
    }
}

/// Which levels hold.
#[derive(Debug, Clone, Default)]
pub struct Levels(Family<LevelLabel, Gauge>);

impl Levels {
    pub(crate) fn set(&self, level: &'static str, holds: bool) {
        self.0.get_or_create_owned(&LevelLabel { level }).set(holds.into());
    }
}

/// How far behind readers are, by what serves them.
#[derive(Debug, Clone)]
pub struct ReaderLag {
    /// What the ring served.
    pub ring: Histogram,
    /// What the journal served.
    pub journal: Histogram,
}

impl Default for ReaderLag {
    fn default() -> Self {
        let lags = || Histogram::of_numbers(EVENTS);
        Self { ring: lags(), journal: lags() }
    }
}

/// The program that runs.
#[derive(Debug, Clone)]
pub struct Build(std::sync::Arc<Info<BuildLabel>>);

impl Default for Build {
    fn default() -> Self {
        Self(Info::new(BuildLabel { version: env!("CARGO_PKG_VERSION") }).into())
    }
}

impl EncodeMetric for OpenConnections {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.by_label.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.by_label.metric_type()
    }
}

impl EncodeMetric for Levels {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

impl EncodeMetric for ReaderLag {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.ring.encode(encoder.encode_family(&[("source", "ring")])?)?;
        self.journal.encode(encoder.encode_family(&[("source", "journal")])?)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl EncodeMetric for Build {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}
