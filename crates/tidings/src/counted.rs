//! What is counted of a connection: what carries it, that it is open, and why it ended.
//!
//! The rule: each connection counts once among the open ones and once among the ended ones, whatever
//! ends it.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    hub::Hub,
    metrics::{ConnectionLabel, Metrics, OpenConnection},
    sse::GoAway,
};

/// What a connection is carried by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Carrier {
    /// Whatever the application around the hub serves with.
    #[default]
    Unknown,
    /// HTTP/1.1 or HTTP/2, with TLS or without.
    Http {
        /// Whether it is HTTP/2.
        is_http2: bool,
        /// Whether it is encrypted.
        is_tls: bool,
    },
}

impl Carrier {
    /// What such a connection is counted as.
    pub(crate) fn label(self, format: &'static str) -> ConnectionLabel {
        let yes = |is: bool| if is { "yes" } else { "no" };
        match self {
            Self::Unknown => ConnectionLabel { format, protocol: "none", tls: "no" },
            Self::Http { is_http2, is_tls } => {
                let protocol = if is_http2 { "http2" } else { "http1" };
                ConnectionLabel { format, protocol, tls: yes(is_tls) }
            }
        }
    }
}

/// How long bytes may lie before their reader, which then is cut off, is taken for one that reads
/// nothing. What a reader that reads leaves behind when it goes is younger.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// Counts the connection as open until it is dropped, and why it ended.
#[derive(Debug)]
pub(crate) struct Counted {
    hub: Hub,
    open: OpenConnection,
    has_ended: bool,
    /// Since when bytes wait for their reader to ask for more.
    pub(crate) handed_at: Option<Instant>,
}

impl Counted {
    /// Counts one more; nothing is known of what carries it.
    pub(crate) fn new(hub: &Hub, format: &'static str) -> Self {
        let label = Carrier::default().label(format);
        let open = hub.metrics().connections.open(label);
        Self { hub: hub.clone(), open, has_ended: false, handed_at: None }
    }

    /// Counts it among those that are carried so.
    pub(crate) fn carry(&mut self, carrier: Carrier, format: &'static str) {
        self.open = self.hub.metrics().connections.open(carrier.label(format));
    }

    /// Counts why the hub ends it.
    pub(crate) fn end(&mut self, reason: GoAway) {
        self.has_ended = true;
        Metrics::count(&self.hub.metrics().connections_ended, reason.as_str());
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let is_slow = self.handed_at.is_some_and(|at| at.elapsed() >= SLOW_AFTER);
        let reason = if is_slow { GoAway::Slow.as_str() } else { "left" };
        Metrics::count(&self.hub.metrics().connections_ended, reason);
    }
}
