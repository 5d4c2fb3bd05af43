//! Reclaiming: what trimming and deleting left behind goes when the store compacts.
//!
//! The rule: the filter may destroy only what no reader may be served any more, and only in
//! keyspaces where that is decided by the key alone or by numbers that never go back.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};
use tokio::sync::mpsc;

use super::{
    commit_log,
    layout::{Store, read_seen, split_u64},
    writer::Request,
};
use crate::{
    journal::JournalSettings,
    model::{Offset, Timestamp},
};

/// The floor of a topic that was deleted: everything of it may go.
pub(super) const DELETED: u64 = u64::MAX;

/// What may be reclaimed of which topic. Shared by the writer, which moves it, and the filters.
#[derive(Debug, Default)]
pub(super) struct Reclaimable {
    /// Topic id: everything up to this offset, or [`DELETED`].
    floors: RwLock<HashMap<u64, u64>>,
    /// Topic id: tail and time, of topics whose dedup window does not hold all their ids.
    tails: RwLock<HashMap<u64, (Offset, Timestamp)>>,
    /// Bytes that were trimmed or deleted, and not yet reclaimed as far as this process knows.
    bytes: AtomicU64,
}

impl Reclaimable {
    pub(super) fn set_floor(&self, id: u64, floor: u64) {
        self.floors.write().unwrap_or_else(PoisonError::into_inner).insert(id, floor);
        if floor == DELETED {
            self.tails.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }

    pub(super) fn set_tail(&self, id: u64, tail: Offset, at: Timestamp) {
        self.tails.write().unwrap_or_else(PoisonError::into_inner).insert(id, (tail, at));
    }

    /// Forgets deleted topics of which nothing is left.
    pub(super) fn forget(&self, ids: &[u64]) {
        let mut floors = self.floors.write().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            floors.remove(id);
        }
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn floor(&self, id: u64) -> u64 {
        let floors = self.floors.read().unwrap_or_else(PoisonError::into_inner);
        floors.get(&id).copied().unwrap_or(0)
    }

    fn tail(&self, id: u64) -> Option<(Offset, Timestamp)> {
        self.tails.read().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    fn deleted(&self) -> Vec<u64> {
        let floors = self.floors.read().unwrap_or_else(PoisonError::into_inner);
        floors.iter().filter(|(_, floor)| **floor == DELETED).map(|(id, _)| *id).collect()
    }
}

/// Compacts the whole store. fjall's own compaction is driven by writes, so that an idle hub's
/// store would never shrink.
pub(super) struct Reclaimer {
    reclaimable: Arc<Reclaimable>,
    /// What is compacted; `None` once the journal was closed.
    work: Mutex<Option<Work>>,
    /// Whether a run is under way: one at a time.
    runs: Mutex<bool>,
    ended: Condvar,
    /// Where the commit log is.
    files: PathBuf,
    gone: Mutex<Gone>,
}

/// Deleted topics that nothing is left of in the tables. The log still tells of them, and is
/// replayed by the next start; their floors are remembered until it does not.
#[derive(Debug, Default)]
struct Gone {
    /// Topic id: the newest log file when nothing was left of it.
    ids: HashMap<u64, u64>,
}

impl Gone {
    /// Takes ids of which nothing is left, and returns those that the log does not tell of either.
    fn take(&mut self, gone: &[u64], log: RangeInclusive<u64>) -> Vec<u64> {
        for id in gone {
            self.ids.entry(*id).or_insert(*log.end());
        }
        let forgotten = self.ids.extract_if(|_, file| *file < *log.start());
        forgotten.map(|(id, _)| id).collect()
    }
}

type Work = (Store, mpsc::Sender<Request>);

/// A run that is under way until this is dropped.
pub(super) struct Run<'a>(&'a Reclaimer);

impl Drop for Run<'_> {
    fn drop(&mut self) {
        *self.0.runs.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.ended.notify_all();
    }
}

impl Reclaimer {
    pub(super) fn new(
        store: Store,
        reclaimable: Arc<Reclaimable>,
        requests: mpsc::Sender<Request>,
        files: PathBuf,
    ) -> Self {
        let work = Mutex::new(Some((store, requests)));
        let (runs, ended, gone) = (Mutex::new(false), Condvar::new(), Mutex::default());
        Self { reclaimable, work, runs, ended, files, gone }
    }

    /// Bytes that a run would give back.
    pub(super) fn bytes(&self) -> u64 {
        self.reclaimable.bytes()
    }

    /// Whether none runs.
    pub(super) fn is_idle(&self) -> bool {
        !*self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) -> Option<Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for its turn.
    pub(super) fn begin(&self) -> Run<'_> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ended.wait_while(runs, |runs| *runs);
        *waited.unwrap_or_else(PoisonError::into_inner) = true;
        Run(self)
    }

    /// Gives back to the disk what trimming and deleting left behind. Blocks while it does.
    pub(super) fn run(&self) -> Result<(), fjall::Error> {
        // Dropped after the store: who waits for the run waits for that.
        let _run = self.begin();
        let Some((store, requests)) = self.work() else { return Ok(()) };
        let (bytes, deleted) = (self.reclaimable.bytes(), self.reclaimable.deleted());
        for keyspace in [&store.log, &store.marks, &store.places, &store.states, &store.dedup] {
            if self.work().is_none() {
                return Ok(());
            }
            // The filter sees tables only, so what is in memory goes there first.
            keyspace.rotate_memtable_and_wait()?;
            keyspace.major_compact()?;
        }
        self.reclaimable.bytes.fetch_sub(bytes, Ordering::Relaxed);
        let log = commit_log::numbers(&self.files)?;
        let ids = self.gone.lock().unwrap_or_else(PoisonError::into_inner).take(&deleted, log);
        if !ids.is_empty() {
            // The writer is gone if the journal is closing; then it is done next time.
            let _ = requests.blocking_send(Request::Forget { ids });
        }
        Ok(())
    }

    /// Lets the store go, waiting so long for a run to end. Returns whether none holds it any more.
    pub(super) fn close(&self, wait: Duration) -> bool {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ended.wait_timeout_while(runs, wait, |runs| *runs);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
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
    /// Keys of topic id and offset, written once.
    Offsets,
    /// Keys of topic id and something: only of deleted topics, whose ids are never used again.
    Deleted,
    /// Ids that are recognised no more. One may have been written again, and destroying the later
    /// entry may uncover the earlier one: which is older still, and recognised as little.
    Dedup(JournalSettings),
}

#[derive(Clone)]
struct Reclaim {
    what: What,
    reclaimable: Arc<Reclaimable>,
}

impl std::panic::RefUnwindSafe for Reclaim {}

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
            _ if floor == DELETED => true,
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [u64; 0] = [];

    #[test]
    fn a_floor_is_forgotten_once_the_log_does_not_tell_of_its_topic() {
        let mut gone = Gone::default();
        assert_eq!(gone.take(&[1, 2], 3..=4), NOTHING);
        assert_eq!(gone.take(&[1, 2, 3], 4..=6), NOTHING);
        let mut forgotten = gone.take(&[1, 2, 3], 5..=7);
        forgotten.sort_unstable();
        assert_eq!(forgotten, [1, 2]);
        assert_eq!(gone.take(&[3], 6..=7), NOTHING);
        assert_eq!(gone.take(&[3], 7..=7), [3]);
    }
}
