//! Numbers that an operator may change, with their defaults.
//!
//! Things (journal, clock) are components and are handed to [`crate::HubBuilder`] instead.

use std::time::Duration;

use crate::{journal::Retention, model::limits};

/// So much in the long run, and so much of it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In the long run. 0: without bound.
    pub per_second: u64,
    /// At once, after a pause. At least 1.
    pub burst: u64,
}

impl Rate {
    /// No bound.
    pub const UNLIMITED: Self = Self { per_second: 0, burst: 1 };
}

/// How one hub behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Data of one event, bytes.
    pub event_bytes_max: usize,
    /// Body of one publish request, bytes.
    pub publish_bytes_max: usize,
    /// Events of one publish request.
    pub publish_events_max: usize,
    /// Topics of one connection; at most [`limits::CONNECTION_TOPICS_MAX`].
    pub connection_topics_max: usize,
    /// Frames that a topic keeps in memory.
    pub ring_frames_max: usize,
    /// Bytes of the frames that a topic keeps in memory.
    pub ring_bytes_max: usize,
    /// What topics keep that do not say it themselves.
    pub retention: Retention,
    /// How often topics are swept for events past their age and topics past their ttl.
    pub retention_sweep: Duration,
    /// How often expired states are looked for: they end at most this much late.
    pub expiry_sweep: Duration,
    /// Silence on a connection after which it is pinged, ± 20 %.
    pub heartbeat: Duration,
    /// What `retry:` tells browsers.
    pub retry: Duration,
    /// How long a connection lives, ± 10 %, so that load spreads and grants are looked at anew.
    pub connection_age_max: Duration,
    /// How long a revocation lasts that does not say it.
    pub revocation_life: Duration,
    /// How long an orderly shutdown takes at most.
    pub drain_window: Duration,
    /// Connections that one user (one API key) follows and publishes streams over at once. 0: without
    /// bound.
    pub user_connections_max: usize,
    /// Connections that one tenant follows and publishes streams over at once. 0: without bound.
    pub tenant_connections_max: usize,
    /// Connections that one address (one /64 for IPv6) behind a trusted proxy follows and publishes
    /// streams over at once. 0: without bound. Direct ones are counted where they are accepted:
    /// [`ServeSettings`](crate::http::ServeSettings).
    pub address_connections_max: usize,
    /// Events that one user (one API key) publishes, at all nodes together.
    pub user_publish_rate: Rate,
    /// Events that one tenant publishes, at all nodes together.
    pub tenant_publish_rate: Rate,
    /// Topics that one tenant holds.
    pub tenant_topics_max: u64,
    /// Bytes that one tenant's topics hold, as stored.
    pub tenant_bytes_max: Option<u64>,
    /// Bytes of publish requests that are being read or stored, of all publishers; one body may go
    /// beyond. A tenant holds as much as it leaves free, a user as much as its tenant may yet take.
    pub publish_waiting_bytes_max: usize,
    /// How long a publish waits for room among them.
    pub publish_wait: Duration,
    /// How long a publish may take to be stored before its publisher is told to repeat it.
    pub publish_store_max: Duration,
    /// How long the body of a request may take to arrive.
    pub body_read_max: Duration,
    /// How long a publisher's stream may be without a line.
    pub publish_idle_max: Duration,
    /// Bytes a second that must arrive of a request's body, after a grace of 5 s. 0: without bound.
    pub body_rate_min: u64,
    /// What this node is called among those that share its journal.
    pub node_name: String,
    /// Pages of the journal that readers read at once.
    pub replay_reads_max: usize,
    /// Of these, those that one tenant's readers read.
    pub tenant_replay_reads_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            event_bytes_max: limits::EVENT_BYTES_MAX,
            publish_bytes_max: limits::PUBLISH_BYTES_MAX,
            publish_events_max: limits::PUBLISH_EVENTS_MAX,
            connection_topics_max: limits::CONNECTION_TOPICS_MAX,
            ring_frames_max: limits::RING_FRAMES_MAX,
            ring_bytes_max: limits::RING_BYTES_MAX,
            retention: Retention {
                age: Some(Duration::from_secs(7 * 24 * 60 * 60)),
                events: Some(10_000),
                bytes: Some(64 * 1024 * 1024),
            },
            retention_sweep: Duration::from_secs(60),
            expiry_sweep: Duration::from_secs(1),
            heartbeat: Duration::from_secs(15),
            retry: Duration::from_millis(2500),
            connection_age_max: Duration::from_secs(60 * 60),
            revocation_life: Duration::from_secs(30 * 24 * 60 * 60),
            drain_window: Duration::from_secs(20),
            user_connections_max: limits::USER_CONNECTIONS_MAX,
            tenant_connections_max: limits::CONNECTIONS_MAX,
            address_connections_max: limits::ADDRESS_CONNECTIONS_MAX,
            user_publish_rate: Rate { per_second: 5_000, burst: 10_000 },
            tenant_publish_rate: Rate { per_second: 50_000, burst: 100_000 },
            tenant_topics_max: limits::TENANT_TOPICS_MAX,
            tenant_bytes_max: None,
            publish_waiting_bytes_max: limits::PUBLISH_WAITING_BYTES_MAX,
            publish_wait: Duration::from_secs(5),
            publish_store_max: Duration::from_secs(20),
            body_read_max: Duration::from_secs(30),
            publish_idle_max: Duration::from_secs(5 * 60),
            body_rate_min: 1024,
            node_name: "node".to_owned(),
            replay_reads_max: limits::REPLAY_READS_MAX,
            tenant_replay_reads_max: limits::TENANT_REPLAY_READS_MAX,
        }
    }
}
