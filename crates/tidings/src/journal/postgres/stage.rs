//! Judging appends while their topics' rows are locked, and what is to be written then.
//!
//! The rule: nothing here waits or asks. What one append of a commit stages, the next one sees.

use std::collections::{HashMap, HashSet};

use super::head::TopicRow;
use crate::{
    journal::{Append, Appended, Batch, Dedup, JournalSettings, Outcome, Refusal, record},
    model::{
        Class, Epoch, Event, EventId, Fingerprint, Offset, Position, StateKey, Timestamp, TopicKey,
    },
};

/// A topic as one commit finds and changes it.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) topic: TopicKey,
    pub(super) row: TopicRow,
    /// The row as it was found.
    pub(super) found: TopicRow,
    /// States that were looked at, by key.
    pub(super) states: HashMap<StateKey, Slot>,
    /// Where ids were stored, if they were.
    pub(super) seen: HashMap<EventId, Seen>,
    pub(super) log: Vec<Stored>,
    pub(super) marks: Vec<(Offset, Fingerprint, Timestamp)>,
    /// Ids to be entered.
    pub(super) entered: HashSet<EventId>,
}

/// Where and when an id was stored first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) offset: Offset,
    pub(super) fingerprint: Fingerprint,
    pub(super) at: Timestamp,
}

/// An event and its record.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) event: Event,
    pub(super) record: Vec<u8>,
}

/// A key's state: only the last of a commit is written, so a flood of updates that queued up costs
/// one.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// As the database has it.
    pub(super) found: Option<Event>,
    /// What this commit makes of it.
    pub(super) change: Option<Change>,
}

#[derive(Debug)]
pub(super) enum Change {
    Set(Stored),
    End,
}

impl Slot {
    fn current(&self) -> Option<&Event> {
        match &self.change {
            None => self.found.as_ref(),
            Some(Change::Set(stored)) => Some(&stored.event),
            Some(Change::End) => None,
        }
    }
}

impl Staged {
    pub(super) fn new(topic: TopicKey, row: TopicRow) -> Self {
        Self {
            topic,
            found: row.clone(),
            row,
            states: HashMap::new(),
            seen: HashMap::new(),
            log: Vec::new(),
            marks: Vec::new(),
            entered: HashSet::new(),
        }
    }

    /// Whether anything is to be written.
    pub(super) fn is_changed(&self) -> bool {
        self.row != self.found
    }

    /// Judges a batch, and stages what of it is to be stored.
    pub(super) fn append(
        &mut self,
        batch: &Batch,
        settings: &JournalSettings,
        store_epoch: u32,
    ) -> Appended {
        let row = &self.row;
        let now = if row.has_events { batch.now.max(row.written_at) } else { batch.now };
        let judge = Judge {
            settings,
            now,
            states_max: settings.states_max(&self.topic),
            epoch: row.head(store_epoch).epoch,
        };
        let was_absent = row.is_absent;
        let mut outcomes = Vec::with_capacity(batch.events.len());
        let mut events = Vec::with_capacity(batch.events.len());
        for append in &batch.events {
            let outcome = judge.refuse(self, append).unwrap_or_else(|| {
                if let Some(properties) = append.properties.as_ref().filter(|_| self.row.is_absent)
                {
                    self.row.properties = (**properties).clone();
                }
                self.row.is_absent = false;
                events.push(self.store(append, now));
                Outcome::Stored(self.row.head(store_epoch).end())
            });
            self.row.closed |= append.close && !matches!(outcome, Outcome::Refused(_));
            outcomes.push(outcome);
        }
        if batch.close {
            self.row.closed = true;
            self.row.is_absent = false;
        }
        if was_absent && !self.row.is_absent && events.is_empty() {
            self.row.written_at = batch.now;
        }
        Appended { head: self.row.head(store_epoch), outcomes, events }
    }

    fn store(&mut self, append: &Append, now: Timestamp) -> Event {
        let (body, row) = (&append.event, &mut self.row);
        let offset = row.tail;
        let (fingerprint, record) = record::encode(body, offset, now);
        let event = Event { offset, fingerprint, recorded_at: now, body: body.clone() };
        let bytes = record.len() as u64;
        let stored = Stored { event: event.clone(), record };
        let slot = body.key.as_ref().map(|key| self.states.entry(key.clone()).or_default());
        if let Some(old) = slot.as_ref().and_then(|slot| slot.current()) {
            if old.offset > row.floor {
                self.marks.push((old.offset, old.fingerprint, old.recorded_at));
            }
            row.states = row.states.saturating_sub(1);
        }
        match slot {
            Some(slot) if !body.delete => {
                slot.change = Some(Change::Set(stored));
                row.states += 1;
            }
            slot => {
                if let Some(slot) = slot {
                    slot.change = Some(Change::End);
                }
                row.events += 1;
                row.bytes += bytes;
                self.log.push(stored);
            }
        }
        if offset == row.floor.next() {
            row.oldest_at = now;
        }
        row.tail = offset.next();
        row.tail_fingerprint = fingerprint;
        row.written_at = now;
        row.has_events = true;
        if append.dedup == Dedup::ById {
            self.seen.insert(body.id.clone(), Seen { offset, fingerprint, at: now });
            self.entered.insert(body.id.clone());
        }
        event
    }
}

/// What one batch is judged by.
struct Judge<'a> {
    settings: &'a JournalSettings,
    now: Timestamp,
    states_max: u64,
    epoch: Epoch,
}

impl Judge<'_> {
    /// Why an event is not to be stored; `None` if it is.
    ///
    /// A repeated id comes first: whoever repeats a publish whose answer was lost is to learn its
    /// position, whatever happened to the topic since.
    fn refuse(&self, staged: &Staged, append: &Append) -> Option<Outcome> {
        let (event, row) = (&append.event, &staged.row);
        let refused = |refusal| Some(Outcome::Refused(refusal));
        if let Some(refusal) = append.not_owner((!row.is_absent).then_some(&row.properties)) {
            return refused(refusal);
        }
        if append.dedup == Dedup::ById
            && let Some(Seen { offset, fingerprint, at }) = staged.seen.get(&event.id).copied()
            && self.settings.recognises(offset, at, row.tail, self.now)
        {
            return Some(Outcome::Duplicate(Position { epoch: self.epoch, offset, fingerprint }));
        }
        if row.closed && !append.ends_expired {
            return refused(Refusal::Closed);
        }
        let slot = event.key.as_ref().and_then(|key| staged.states.get(key));
        let current = slot.and_then(Slot::current);
        let offset = current.map_or(Offset::ZERO, |current| current.offset);
        if append.if_offset.is_some_and(|expected| expected != offset) {
            return refused(Refusal::Conflict { current: current.cloned() });
        }
        let adds_state = event.class == Class::State && !event.delete && current.is_none();
        if adds_state && row.states >= self.states_max {
            return refused(Refusal::StatesFull { limit: self.states_max });
        }
        None
    }
}
