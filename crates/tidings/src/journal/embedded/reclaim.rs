//! Reclaiming: what trimming and deleting left behind goes when the store compacts.
//!
//! The rule: the filter may destroy only what no reader may be served any more, and only in
//! keyspaces where that is decided by the key alone or by numbers that never go back.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};

use super::layout::{read_seen, split_u64};
use crate::{
    journal::JournalSettings,
    model::{Offset, Timestamp},
};

/// What may be reclaimed of which topic. Shared by the writer, which moves it, and the filters.
#[derive(Debug, Default)]
pub(super) struct Reclaimable {
    /// Topic id: everything up to this offset; `u64::MAX`: the topic was deleted.
    floors: RwLock<HashMap<u64, u64>>,
    /// Topic id: tail and time, of topics whose dedup window does not hold all their ids.
    tails: RwLock<HashMap<u64, (Offset, Timestamp)>>,
}

impl Reclaimable {
    pub(super) fn set_floor(&self, id: u64, floor: u64) {
        self.floors.write().unwrap_or_else(PoisonError::into_inner).insert(id, floor);
    }

    pub(super) fn set_tail(&self, id: u64, tail: Offset, at: Timestamp) {
        self.tails.write().unwrap_or_else(PoisonError::into_inner).insert(id, (tail, at));
    }

    fn floor(&self, id: u64) -> u64 {
        let floors = self.floors.read().unwrap_or_else(PoisonError::into_inner);
        floors.get(&id).copied().unwrap_or(0)
    }

    fn tail(&self, id: u64) -> Option<(Offset, Timestamp)> {
        self.tails.read().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }
}

/// The filters of the keyspaces that have one.
pub(super) fn filter(
    keyspace: &str,
    reclaimable: &Arc<Reclaimable>,
    settings: JournalSettings,
) -> Option<Arc<dyn Factory>> {
    let what = match keyspace {
        "log" | "marks" => What::Offsets,
        // States outlive trimming, and so does their order.
        "states" | "places" => What::Deleted,
        "dedup" => What::Dedup(settings),
        _ => return None,
    };
    Some(Arc::new(Reclaim { what, reclaimable: Arc::clone(reclaimable) }))
}

#[derive(Clone, Copy)]
enum What {
    /// Keys of topic id and offset.
    Offsets,
    /// Keys of topic id and something: only of deleted topics.
    Deleted,
    /// Ids that are recognised no more.
    Dedup(JournalSettings),
}

#[derive(Clone)]
struct Reclaim {
    what: What,
    reclaimable: Arc<Reclaimable>,
}

impl Factory for Reclaim {
    fn name(&self) -> &'static str {
        "tidings-reclaim"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(self.clone())
    }
}

impl CompactionFilter for Reclaim {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let Some((id, rest)) = split_u64(item.key()) else { return Ok(Verdict::Keep) };
        let floor = self.reclaimable.floor(id);
        let gone = match self.what {
            _ if floor == u64::MAX => true,
            What::Offsets => split_u64(rest).is_some_and(|(offset, _)| offset <= floor),
            What::Deleted => false,
            What::Dedup(settings) => match self.reclaimable.tail(id) {
                Some((tail, now)) => read_seen(&item.value()?)
                    .is_some_and(|(offset, _, at)| !settings.recognises(offset, at, tail, now)),
                None => false,
            },
        };
        Ok(if gone { Verdict::Destroy } else { Verdict::Keep })
    }
}
