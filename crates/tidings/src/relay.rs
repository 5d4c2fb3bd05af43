//! What other nodes did: announcements turned into looks at the journal.
//!
//! The rule: an announcement is a hint. A topic's own task reads what it does not know, in offset
//! order, and every topic with readers is compared with the journal every second, so that what the
//! bus lost is found without it.

use std::{sync::Arc, time::Duration};

use crate::{
    bus::{Announcement, Bus, Heard},
    hub::Hub,
    journal::JournalError,
    metrics::Metrics,
    model::TopicKey,
    topic_task::Live,
};

/// Between two comparisons of all topics with readers: so late is at most what the bus lost, and so
/// late a reader is let go whose leave another node took.
const COMPARED_EVERY: Duration = Duration::from_millis(900);
/// Topics compared in one query.
const COMPARED_AT_ONCE: usize = 500;

/// Hears the bus until the hub is shut down.
pub(crate) async fn listen(hub: Hub, bus: Arc<dyn Bus>) {
    loop {
        hub.heard(bus.heard().await);
    }
}

/// Compares topics with the journal until the hub is shut down.
pub(crate) async fn compare(hub: Hub) {
    let mut sweep = tokio::time::interval(COMPARED_EVERY);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        sweep.tick().await;
        if let Err(error) = hub.compare().await {
            tracing::debug!(%error, "not all topics were compared with the journal; trying again");
        }
    }
}

impl Hub {
    fn heard(&self, heard: Heard) {
        let metrics = self.metrics();
        match heard {
            Heard::Announced(announcement) => {
                Metrics::count(&metrics.announcements, kind(&announcement));
                self.announced(announcement);
            }
            Heard::Missed(Some(topic)) => {
                if let Some(live) = self.topics().live(&topic) {
                    self.topics().hint(&live, true);
                }
            }
            Heard::Missed(None) => {
                Metrics::count(&metrics.announcements, "missed");
                for live in self.topics().followed() {
                    self.topics().hint(&live, true);
                }
            }
        }
    }

    fn announced(&self, announcement: Announcement) {
        let is_here = |topic: &TopicKey| self.topics().live(topic);
        match announcement {
            Announcement::Advanced { topic, end } => {
                let Some(live) = is_here(&topic) else { return };
                // An older one of the same history says nothing new. One that names the same offset
                // with another fingerprint does.
                let known = live.end().is_some_and(|known| {
                    known.epoch == end.epoch && known.offset > end.offset || known == end
                });
                if !known {
                    self.topics().hint(&live, false);
                }
            }
            Announcement::Changed { topic } => {
                if let Some(live) = is_here(&topic) {
                    self.topics().hint(&live, true);
                }
            }
            Announcement::Ephemeral { topic, event, at, node } => {
                if node != self.topics().shared().node {
                    if topic.tenant.is_reserved() {
                        return self.hear(node, &event);
                    }
                    // A topic that was closed meanwhile has no readers to hand it to.
                    let _ = self.topics().hand_out(&topic, event, at);
                }
            }
        }
    }

    /// Compares every topic that has readers here with the journal, and has those looked at of which
    /// it says something else.
    async fn compare(&self) -> Result<(), JournalError> {
        if let Some(bus) = &self.topics().shared().bus {
            let counted = &self.metrics().announcements_dropped;
            counted.inc_by(bus.dropped().saturating_sub(counted.get()));
        }
        let followed = self.topics().followed();
        let mut failed = None;
        for chunk in followed.chunks(COMPARED_AT_ONCE) {
            let keys: Vec<TopicKey> = chunk.iter().map(|live| live.topic.clone()).collect();
            let infos = self.journal().describe_all(&keys).await;
            for (live, info) in chunk.iter().zip(infos) {
                let info = match info {
                    Ok(info) => info,
                    // Nothing is known of this one, and the others may have advanced.
                    Err(error) => {
                        failed = failed.or(Some(error));
                        continue;
                    }
                };
                let (end, properties) = Live::agrees(live, &info);
                if !(end && properties) {
                    Metrics::count(&self.metrics().announcements, "found");
                    self.topics().hint(live, !properties);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

const fn kind(announcement: &Announcement) -> &'static str {
    match announcement {
        Announcement::Advanced { .. } => "advanced",
        Announcement::Changed { .. } => "changed",
        Announcement::Ephemeral { .. } => "ephemeral",
    }
}
