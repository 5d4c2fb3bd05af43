//! What this process knows of each group: the history that it saw, and where.
//!
//! The rule: it is the process that remembers, not a connection. A server that is connected to, and
//! a master that a group moved to, are held against what was seen of the group anywhere before.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::keys::GROUPS;
use crate::model::Epoch;

/// What was seen of all groups.
#[derive(Debug)]
pub(super) struct Known(Mutex<All>);

#[derive(Debug)]
struct All {
    groups: Vec<Seen>,
    /// How much was seen: the order in which things were.
    moment: u64,
}

/// Whose an answer is.
#[derive(Debug, Clone)]
pub(super) struct Said {
    /// The run of the server that answered.
    pub(super) run: Arc<str>,
    /// The moment before it was asked.
    pub(super) asked: u64,
}

/// What was seen of a group.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) epoch: Option<Epoch>,
    /// Changes that it saw, and in which run of which server.
    pub(super) count: u64,
    pub(super) run: Arc<str>,
    /// When it was seen last.
    pub(super) moment: u64,
}

impl Known {
    /// Nothing yet.
    pub(super) fn new() -> Arc<Self> {
        let groups = vec![Seen::default(); GROUPS as usize];
        Arc::new(Self(Mutex::new(All { groups, moment: 0 })))
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen of each, in order.
    pub(super) fn groups(&self) -> Vec<Seen> {
        self.all().groups.clone()
    }

    /// A moment, after all that was seen so far.
    pub(super) fn now(&self) -> u64 {
        let mut all = self.all();
        all.moment += 1;
        all.moment
    }

    /// Takes what a server was found to have.
    pub(super) fn found(&self, group: u32, epoch: Epoch, count: u64, run: &Arc<str>) {
        self.all().see(group, |seen| {
            // What was changed since it was asked may have been noted before its answer.
            let is_same = seen.epoch == Some(epoch) && seen.run == *run;
            let noted = if is_same { seen.count } else { 0 };
            Seen::of(epoch, count.max(noted), run)
        });
    }

    /// Notes what a script said. An answer may come late, when the group was seen elsewhere since: it
    /// says nothing of where the group is, and nothing of a history that another one followed.
    pub(super) fn note(&self, group: u32, epoch: Epoch, count: u64, said: &Said) {
        let mut all = self.all();
        let Some(seen) = all.groups.get_mut(group as usize) else { return };
        let is_same = seen.epoch == Some(epoch);
        if is_same && count >= seen.count || !is_same && said.asked >= seen.moment {
            let moment = seen.moment.max(said.asked);
            *seen = Seen { moment, ..Seen::of(epoch, count, &said.run) };
        }
    }
}

impl All {
    fn see(&mut self, group: u32, seen: impl FnOnce(&Seen) -> Seen) {
        if let Some(known) = self.groups.get_mut(group as usize) {
            self.moment += 1;
            *known = Seen { moment: self.moment, ..seen(known) };
        }
    }
}

impl Seen {
    fn of(epoch: Epoch, count: u64, run: &Arc<str>) -> Self {
        Self { epoch: Some(epoch), count, run: Arc::clone(run), moment: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: u32 = 7;

    fn seen(known: &Known) -> (Option<Epoch>, u64, String) {
        let seen = known.groups().swap_remove(GROUP as usize);
        (seen.epoch, seen.count, seen.run.to_string())
    }

    fn said(known: &Known, run: &str) -> Said {
        Said { run: run.into(), asked: known.now() }
    }

    /// What `adopt.lua` would take for a loss: more changes than the server had when it was looked at
    /// first, seen in another run.
    ///
    /// Broken on purpose: when a late answer says where the group is, its run is that of the old
    /// master.
    #[test]
    fn an_answer_from_before_a_group_moved_does_not_take_it_back() {
        let known = Known::new();
        let old = said(&known, "old");
        known.note(GROUP, Epoch(1), 10, &old);
        let late = said(&known, "old");
        known.found(GROUP, Epoch(1), 11, &"new".into());
        known.note(GROUP, Epoch(1), 12, &said(&known, "new"));
        known.note(GROUP, Epoch(1), 11, &late);
        assert_eq!(seen(&known), (Some(Epoch(1)), 12, "new".to_owned()));
    }

    /// Or nobody would begin another epoch when the new history loses something in its turn.
    ///
    /// Broken on purpose: when any answer counts, the old epoch is what is known.
    #[test]
    fn an_answer_of_a_history_that_another_one_followed_counts_no_more() {
        let known = Known::new();
        known.note(GROUP, Epoch(1), 10, &said(&known, "old"));
        let late = said(&known, "old");
        known.found(GROUP, Epoch(2), 9, &"new".into());
        known.note(GROUP, Epoch(1), 11, &late);
        assert_eq!(seen(&known), (Some(Epoch(2)), 9, "new".to_owned()));
        // Another hub found that the server lost something: that is later.
        known.note(GROUP, Epoch(3), 4, &said(&known, "new"));
        assert_eq!(seen(&known), (Some(Epoch(3)), 4, "new".to_owned()));
    }

    /// Broken on purpose: when a group is seen at the time of the answer, it was seen after the look.
    #[test]
    fn a_group_is_seen_when_it_was_asked_for_and_not_when_the_answer_came() {
        let known = Known::new();
        let late = said(&known, "old");
        let since = known.now();
        known.note(GROUP, Epoch(1), 10, &late);
        assert!(known.groups()[GROUP as usize].moment < since);
    }
}
