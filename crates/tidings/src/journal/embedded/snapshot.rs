//! Snapshots that hold each commit whole, or nothing of it.
//!
//! The rule: nobody reads half a commit, and nobody waits for a whole one. The store numbers what it
//! does, and a snapshot shows what has a lower number than the newest that is done. A flush or
//! compaction takes a number, too, and is done as soon as it is registered: a commit with a lower
//! number, which still goes into the tables one change after the other, is shown by it as far as it
//! has come (fjall 3.1.13, `upgrade_version_with_seqno` of lsm-tree 3.1.10). A page read from such a
//! snapshot has events that its head does not know, which its reader would be sent again. Who would
//! get one gets the snapshot from before the commit, which has all that was acknowledged.

use std::sync::{Mutex, MutexGuard, PoisonError};

use fjall::Snapshot;
use lsm_tree::SeqNo;

use super::layout::Store;

/// The commit that is running, if one is. There is one at most: one thread writes.
#[derive(Default)]
pub(super) struct Committing(Mutex<Option<Before>>);

/// What was there before the commit.
struct Before {
    /// The store's next number: the commit's is not below.
    next: SeqNo,
    snapshot: Snapshot,
}

impl Committing {
    fn before(&self) -> MutexGuard<'_, Option<Before>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A commit that runs until this is dropped.
pub(super) struct Running<'a>(&'a Committing);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let before = self.0.before().take();
        // Closed when nobody waits for the lock.
        drop(before);
    }
}

impl Store {
    /// Says that a commit begins.
    pub(super) fn begin_commit(&self) -> Running<'_> {
        let before = Before { next: self.db.seqno(), snapshot: self.db.snapshot() };
        *self.committing.before() = Some(before);
        Running(&self.committing)
    }

    /// What is in the store now: each commit whole, or nothing of it.
    pub(super) fn snapshot(&self) -> Snapshot {
        let snapshot = self.db.snapshot();
        // Behind that: a commit that begins now has a number that the snapshot does not show.
        match &*self.committing.before() {
            Some(before) if snapshot.seqno() > before.next => before.snapshot.clone(),
            _ => snapshot,
        }
    }
}
