//! Where the due index begins, so that looking for what is due does not pass over what was.
//!
//! The rule: no entry is before the start, except one whose append is not answered yet. A lease
//! that is renewed every few seconds leaves a removed entry behind each time; without a start, each
//! look would pass over all of them that the store has not compacted away.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{journal::DueKind, model::Timestamp};

#[derive(Debug, Default)]
pub(super) struct DueStart {
    expired: Mutex<Start>,
    due: Mutex<Start>,
}

/// A start that was looked up, to be moved if no entry was added since.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Start {
    pub(super) at: Timestamp,
    added: u64,
}

impl DueStart {
    fn of(&self, kind: DueKind) -> MutexGuard<'_, Start> {
        let start = match kind {
            DueKind::Expired => &self.expired,
            DueKind::Due => &self.due,
        };
        start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to begin. To be asked before the snapshot is taken that is searched.
    pub(super) fn look(&self, kind: DueKind) -> Start {
        *self.of(kind)
    }

    /// Says that a search found nothing before this time.
    pub(super) fn found(&self, kind: DueKind, looked: Start, first: Timestamp) {
        let mut start = self.of(kind);
        // What was added meanwhile may not have been in the snapshot.
        if start.added == looked.added {
            start.at = start.at.max(first);
        }
    }

    /// Says that an entry is in the store, before its append is answered.
    pub(super) fn add(&self, kind: DueKind, at: Timestamp) {
        let mut start = self.of(kind);
        start.at = start.at.min(at);
        start.added += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn an_entry_that_is_added_during_a_search_is_not_passed_over_by_the_next() {
        let start = DueStart::default();
        let looked = start.look(DueKind::Due);
        start.add(DueKind::Due, at(50));
        start.found(DueKind::Due, looked, at(100));
        assert!(start.look(DueKind::Due).at <= at(50));
        let looked = start.look(DueKind::Due);
        start.found(DueKind::Due, looked, at(100));
        assert_eq!(start.look(DueKind::Due).at, at(100));
        start.add(DueKind::Due, at(70));
        assert_eq!(start.look(DueKind::Due).at, at(70));
        assert_eq!(start.look(DueKind::Expired).at, at(0));
    }
}
