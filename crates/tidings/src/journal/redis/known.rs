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

    /// Notes what a script said, in the run that did it.
    pub(super) fn note(&self, group: u32, epoch: Epoch, count: u64, run: &Arc<str>) {
        self.all().see(group, |seen| {
            let of_before = if seen.epoch == Some(epoch) { seen.count } else { 0 };
            Seen::of(epoch, count.max(of_before), run)
        });
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
