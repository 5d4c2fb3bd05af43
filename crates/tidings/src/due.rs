//! Expiry: states whose `expires_at` has come are ended by a tombstone, like any other event.
//!
//! The rule: the tombstone is appended only if the state is still the one that expired, so several
//! nodes, or a state renewed in the last moment, cannot end the wrong one.

use std::sync::Arc;

use crate::{
    hub::Hub,
    journal::{Append, Dedup, Due, DueKind, JournalError},
    model::{Data, EventId, NewEvent},
};

/// States ended in one go; more wait for the next, so that publishers get their turn.
const EXPIRED_MAX: usize = 500;

/// Ends expired states until the hub is shut down.
pub(crate) async fn run(hub: Hub) {
    let mut sweep = tokio::time::interval(hub.settings().expiry_sweep);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        sweep.tick().await;
        if let Err(error) = hub.expire().await {
            tracing::warn!(%error, "expired states were not ended; trying again");
        }
    }
}

impl Hub {
    /// Ends the states that have expired, and returns how many there were.
    ///
    /// # Errors
    /// The journal's; what was not ended is found again.
    pub async fn expire(&self) -> Result<usize, JournalError> {
        let mut count = 0;
        loop {
            let now = self.clock().now();
            let due = self.journal().due(DueKind::Expired, now, EXPIRED_MAX).await?;
            for expired in &due {
                self.end(expired).await?;
            }
            count += due.len();
            if due.len() < EXPIRED_MAX {
                return Ok(count);
            }
        }
    }

    async fn end(&self, expired: &Due) -> Result<(), JournalError> {
        let tombstone = NewEvent {
            id: EventId::mint(),
            data: Data::None,
            time: None,
            expires_at: None,
            due_at: None,
            delete: true,
            ..NewEvent::clone(&expired.event.body)
        };
        let append = Append {
            event: Arc::new(tombstone),
            if_offset: Some(expired.event.offset),
            dedup: Dedup::Minted,
        };
        // Refused means that somebody replaced it: then it is not expired any more.
        self.topics().append(&expired.topic, vec![append], None, false).await.map(drop)
    }
}
