//! What a publish passes before it is stored: room for its bytes, its rates, its tenant's quotas.
//!
//! The rule: what is refused here has written nothing. The journal is asked only where a tenant is
//! about to reach its number of topics: which of them are there.

use std::collections::HashSet;

use super::caller::fits;
use crate::{
    auth::Grant,
    error::Problem,
    hub::Hub,
    ingest::Draft,
    model::{Class, Offset, Tenant, Topic, TopicKey},
    publish::{Publish, Published},
    quota::{Room, Waiting},
};

/// Bytes that an event takes besides its data: names, and what the journal keeps beside it.
const EVENT_OVERHEAD: usize = 256;

/// Waits for room for a request's body, of so many bytes if that is known, if it is short; else for
/// its beginning.
pub(super) async fn room_for_body(
    hub: &Hub,
    grant: &Grant,
    length: Option<usize>,
) -> Result<Waiting, Problem> {
    // Not after the wait: there is never room for it.
    let bytes_max = hub.settings().publish_bytes_max;
    fits(length.unwrap_or(0) as u64, bytes_max).map_err(|problem| problem.at(""))?;
    hub.quotas().waiting(grant, length).await
}

/// Waits for the next lines' rate and room: a stream is read as fast as it may be stored.
pub(super) async fn room_for_lines(
    hub: &Hub,
    grant: &Grant,
    lines: &[Result<Draft, Problem>],
) -> Waiting {
    hub.quotas().pace(grant, lines.len()).await;
    let bytes = lines.iter().flatten().map(|line| size(&line.publish)).sum();
    hub.quotas().room(grant, bytes).await
}

/// Room for a topic that is about to be made.
pub(super) fn room_for_topic(hub: &Hub, tenant: &Tenant) -> Result<Room, Problem> {
    let room = hub.quotas().holdings.room(tenant, 1);
    if room.topics() == 0 { Err(hub.quotas().no_room()) } else { Ok(room) }
}

fn size(publish: &Publish) -> usize {
    publish.event.data.len() + EVENT_OVERHEAD
}

/// What a request's events were given of their tenant's quotas.
pub(super) struct Admission<'a> {
    hub: &'a Hub,
    tenant: &'a Tenant,
    room: Room,
    /// Topics that are not there, and that the tenant has no room for.
    refused: HashSet<Topic>,
    /// Of the events that may be published, in order.
    sizes: Vec<usize>,
}

impl<'a> Admission<'a> {
    /// Reserves what these events need.
    pub(super) async fn of(
        hub: &'a Hub,
        tenant: &'a Tenant,
        events: &[Publish],
    ) -> Result<Self, Problem> {
        let quotas = hub.quotas();
        quotas.may_store(tenant)?;
        let kept = events.iter().filter(|publish| publish.event.class != Class::Ephemeral);
        let topics: HashSet<&Topic> = kept.map(|publish| &publish.topic).collect();
        let room = quotas.holdings.room(tenant, topics.len() as u64);
        if room.topics() == topics.len() as u64 {
            return Ok(Self { hub, tenant, room, refused: HashSet::new(), sizes: Vec::new() });
        }
        drop(room);
        let mut absent = Vec::new();
        for topic in topics {
            if !hub.describe(&TopicKey::new(tenant.clone(), topic.clone())).await?.exists {
                absent.push(topic.clone());
            }
        }
        let room = quotas.holdings.room(tenant, absent.len() as u64);
        let places = usize::try_from(room.topics()).unwrap_or(usize::MAX);
        let refused = absent.into_iter().skip(places).collect();
        Ok(Self { hub, tenant, room, refused, sizes: Vec::new() })
    }

    /// Whether this event may be published: what was reserved is for it.
    pub(super) fn take(&mut self, publish: &Publish) -> Result<(), Problem> {
        if self.refused.contains(&publish.topic) {
            return Err(self.hub.quotas().no_room());
        }
        self.sizes.push(size(publish));
        Ok(())
    }

    /// Counts what was stored, and the topics that this made.
    pub(super) fn settle(mut self, results: &[Result<Published, Problem>]) {
        for (result, size) in results.iter().zip(std::mem::take(&mut self.sizes)) {
            let Ok(Published { position: Some(position), duplicate: false, .. }) = result else {
                continue;
            };
            self.hub.quotas().holdings.stored(self.tenant, size as u64);
            if position.offset == Offset(1) {
                self.room.made_one();
            }
        }
    }
}
