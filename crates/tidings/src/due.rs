//! Expiry: states whose `expires_at` has come are ended by a tombstone, like any other event.
//!
//! The rule: the tombstone is appended only if the state is still the one that expired, so several
//! nodes, or a state renewed in the last moment, cannot end the wrong one.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::{
    hub::Hub,
    journal::{Append, Due, DueKind, JournalError, Outcome},
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
            tracing::warn!(%error, "not all expired states were ended; trying again");
        }
    }
}

impl Hub {
    /// Ends the states that have expired, and returns how many there were.
    ///
    /// # Errors
    /// The journal's, also if only a part of it failed: the states of the others are ended. What was
    /// not ended is found again.
    pub async fn expire(&self) -> Result<usize, JournalError> {
        let mut count = 0;
        loop {
            let now = self.clock().now();
            let due = self.journal().due(DueKind::Expired, now, EXPIRED_MAX).await;
            let (mut ended, mut failed) = (0, due.missing);
            for end in join_all(due.items.iter().map(|expired| self.end(expired))).await {
                match end {
                    Ok(some) => ended += some,
                    // What is wrong with one topic, which was logged, keeps no other from it.
                    Err(JournalError::Broken(_)) => {}
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            count += ended;
            // A round that ended nothing would find the same again.
            if due.items.len() < EXPIRED_MAX || ended == 0 {
                return failed.map_or(Ok(count), Err);
            }
        }
    }

    /// Returns how many it ended: one, or none if somebody replaced it.
    async fn end(&self, expired: &Due) -> Result<usize, JournalError> {
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
            if_offset: Some(expired.event.offset),
            ends_expired: true,
            ..Append::new(Arc::new(tombstone))
        };
        let appended = self.topics().append(&expired.topic, vec![append], false, None).await?;
        let stored = |outcome: &&Outcome| matches!(outcome, Outcome::Stored(_));
        Ok(appended.1.iter().filter(stored).count())
    }
}
