//! What the hub counts. Labels have bounded values: never a topic, a tenant or a user.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// How a publish, resume, connection or gap ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// From a fixed list.
    pub result: &'static str,
}

/// Which limit was reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitLabel {
    /// By its name in the configuration.
    pub limit: &'static str,
}

/// Refusals by limit.
pub type LimitsHit = Family<LimitLabel, Counter>;

/// Counters and gauges of one hub, with the registry that writes them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Events by what became of them: `stored`, `duplicate`, `ephemeral` or a problem's code.
    pub events_published: Family<ResultLabel, Counter>,
    /// Events written to connections.
    pub events_delivered: Counter,
    /// Events read from the journal for readers that the ring could not serve.
    pub events_replayed: Counter,
    /// Ephemeral events dropped because a topic was busy.
    pub ephemeral_dropped: Counter,
    /// Hints to retention dropped because it was busy.
    pub retention_hints_dropped: Counter,
    /// Connections by how they resumed: `exact`, `gap` or `fresh`.
    pub resumes: Family<ResultLabel, Counter>,
    /// Gaps told, by reason.
    pub gaps: Family<ResultLabel, Counter>,
    /// Connections ended by the hub, by reason.
    pub connections_ended: Family<ResultLabel, Counter>,
    /// Requests and connections refused because of a limit, by its name.
    pub limits_hit: LimitsHit,
    /// Open connections.
    pub connections: Gauge,
    /// Topics with a task.
    pub topics_active: Gauge,
    /// Places of the journal that were met since the start and cannot be read.
    pub journal_damaged_places: Gauge,
    /// Readings of issuers' key sets: `read` or `failed`.
    pub key_sets_read: Family<ResultLabel, Counter>,
    /// Issuers whose key set could not be read the last time.
    pub key_sets_failing: Gauge,
}

impl Metrics {
    /// Registers everything under the prefix `tidings`.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tidings");
        macro_rules! register {
            ($($name:ident: $kind:ty, $help:literal;)*) => {{
                $(let $name = <$kind>::default();
                registry.register(stringify!($name), $help, $name.clone());)*
                Self { registry, $($name,)* }
            }};
        }
        register! {
            events_published: Family<ResultLabel, Counter>, "Events by what became of them";
            events_delivered: Counter, "Events written to connections";
            events_replayed: Counter, "Events read from the journal for readers";
            ephemeral_dropped: Counter, "Ephemeral events dropped because a topic was busy";
            retention_hints_dropped: Counter, "Hints to retention dropped because it was busy";
            resumes: Family<ResultLabel, Counter>, "Connections by how they resumed";
            gaps: Family<ResultLabel, Counter>, "Gaps told to readers, by reason";
            connections_ended: Family<ResultLabel, Counter>, "Connections the hub ended, by reason";
            limits_hit: LimitsHit, "Refusals because of a limit, by its name";
            connections: Gauge, "Open connections";
            topics_active: Gauge, "Topics with a task";
            journal_damaged_places: Gauge, "Places of the journal that were met and cannot be read";
            key_sets_read: Family<ResultLabel, Counter>, "Readings of issuers' key sets";
            key_sets_failing: Gauge, "Issuers whose key set could not be read the last time";
        }
    }

    /// Counts one in a family.
    pub(crate) fn count(family: &Family<ResultLabel, Counter>, result: &'static str) {
        family.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a refusal because of a limit.
    pub(crate) fn count_limit(&self, limit: &'static str) {
        self.limits_hit.get_or_create(&LimitLabel { limit }).inc();
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
