//! Numbers that an operator may change, with their defaults.
//!
//! Things (journal, clock) are components and are handed to [`crate::HubBuilder`] instead.

use std::time::Duration;

use crate::{journal::Retention, model::limits};

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
        }
    }
}
