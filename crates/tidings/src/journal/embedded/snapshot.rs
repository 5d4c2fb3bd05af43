//! Snapshots that hold each commit whole, or nothing of it.
//!
//! The rule: nobody reads half a commit. The store numbers what it does, and a snapshot shows what
//! has a lower number than the newest that is done. A flush or compaction takes a number, too, and
//! is done as soon as it is registered: a commit with a lower number, which still goes into the
//! tables one change after the other, is shown by it as far as it has come (fjall 3.1.13,
//! `upgrade_version_with_seqno` of lsm-tree 3.1.10). A page read from such a snapshot has events
//! that its head does not know, which its reader would be sent again.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use fjall::{Readable as _, Snapshot};

use super::{
    damage::unreadable,
    layout::{META, Meta, Store},
};
use crate::journal::JournalError;

/// The commit that is running. There is one at most: one thread writes.
#[derive(Debug, Default)]
pub(super) struct Committing {
    /// Its number among all commits.
    number: AtomicU64,
    /// The next number of the store when it began, plus one: its own is not below. 0: none runs.
    begun_at: AtomicU64,
    /// Held while it runs.
    runs: Mutex<()>,
}

/// A commit that runs until this is dropped.
pub(super) struct Running<'a> {
    committing: &'a Committing,
    _runs: MutexGuard<'a, ()>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.committing.begun_at.store(0, Ordering::SeqCst);
    }
}

impl Store {
    /// Says that the commit of this number begins. Its batch ends with the store's own record.
    pub(super) fn begin_commit(&self, number: u64) -> Running<'_> {
        let committing = &*self.committing;
        let runs = committing.runs.lock().unwrap_or_else(PoisonError::into_inner);
        committing.number.store(number, Ordering::SeqCst);
        committing.begun_at.store(self.db.seqno() + 1, Ordering::SeqCst);
        Running { committing, _runs: runs }
    }

    /// What is in the store now: each commit whole, or nothing of it. Waits for a running commit
    /// only if the store shows it too early.
    pub(super) fn snapshot(&self) -> Result<Snapshot, JournalError> {
        loop {
            let snapshot = self.db.snapshot();
            // Behind the snapshot: a commit that began after it has a number that is not below.
            let begun_at = self.committing.begun_at.load(Ordering::SeqCst);
            let may_show_it = begun_at != 0 && snapshot.seqno() >= begun_at;
            if !may_show_it
                || self.shows(&snapshot, self.committing.number.load(Ordering::SeqCst))?
            {
                return Ok(snapshot);
            }
            drop(self.committing.runs.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Whether a snapshot has the last change of the commit of this number.
    fn shows(&self, snapshot: &Snapshot, number: u64) -> Result<bool, JournalError> {
        let record = snapshot.get(&self.meta, META);
        let record = record.map_err(|error| unreadable(&self.meta, &error))?;
        Ok(record.and_then(|record| Meta::read(&record)).is_some_and(|meta| meta.commits >= number))
    }
}
