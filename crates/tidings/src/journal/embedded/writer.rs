//! The writer: one thread that alone changes the store, and commits for everybody at once.
//!
//! The rule: what queued up while the last commit ran is the next commit, whatever topics it is
//! for; there is no timer. Everybody is answered after the commit's fsync. A commit that failed
//! poisons the store: nothing is acknowledged any more until the process starts anew.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use fjall::PersistMode;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    damage::{damaged, describe, unreadable},
    directory::Directory,
    due_start::DueStart,
    layout::{
        META, Meta, Store, TopicRecord, deletions_key, due_key, named_key, offset_key,
        read_deletions, read_seen, topic_key, write_deletions, write_due, write_mark, write_seen,
    },
    preallocation::Preallocation,
    progress::Progress,
    reads::read_state,
    reclaim::{DELETED, Reclaimable},
};
use crate::{
    clock::Clock,
    journal::{
        Append, Appended, Batch, Change, Dedup, DeleteIf, DueKind, Head, JournalError,
        JournalSettings, Judged, Outcome, Properties, Refusal, TopicInfo, record, topic_epoch,
    },
    model::{
        Class, Event, Fingerprint, NewEvent, Offset, Position, StateKey, Timestamp, TopicKey,
        limits::{COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX},
    },
};

/// Topics whose records the writer keeps in memory; past that it reads them again.
const RECORDS_MAX: usize = 65_536;

/// What an item of a commit takes in the log besides an event's own bytes, about: its head, its key,
/// a topic's record.
const ITEM_BYTES: usize = 128;

type Reply<T> = oneshot::Sender<Result<T, JournalError>>;

/// What the writer is asked to do.
pub(super) enum Request {
    Append {
        topic: TopicKey,
        batch: Batch,
        reply: Reply<Appended>,
    },
    SetProperties {
        topic: TopicKey,
        change: Change,
        reply: Reply<Judged<TopicInfo>>,
    },
    Delete {
        topic: TopicKey,
        condition: DeleteIf,
        reply: Reply<Judged<bool>>,
    },
    Trim {
        topic: TopicKey,
        trim: Trim,
        reply: Reply<Head>,
    },
    /// Forget floors of deleted topics: nothing of them is left.
    Forget {
        ids: Vec<u64>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// How far a topic is to be trimmed, found by reading it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trim {
    /// Of which incarnation.
    pub(super) id: u64,
    pub(super) floor: Offset,
    pub(super) floor_fingerprint: Fingerprint,
    /// When what is right above it was recorded, if anything is.
    pub(super) oldest_at: Option<Timestamp>,
    /// Log events and their bytes up to there.
    pub(super) events: u64,
    pub(super) bytes: u64,
}

pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) settings: JournalSettings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) reclaimable: Arc<Reclaimable>,
    pub(super) due_start: Arc<DueStart>,
    pub(super) directory: Arc<Directory>,
    pub(super) progress: Arc<Progress>,
    pub(super) preallocation: Preallocation,
    pub(super) meta: Meta,
    pub(super) records: HashMap<TopicKey, TopicRecord>,
    /// Counts of deletions, by their keys, that are newer than those in the store may be.
    pub(super) deletions: HashMap<Vec<u8>, u32>,
}

/// Answers that wait for the commit.
type Answers = Vec<Box<dyn FnOnce(Result<(), JournalError>) + Send>>;

/// What one commit writes, and what it has written so far and the store does not show yet.
struct Commit {
    batch: fjall::OwnedWriteBatch,
    answers: Answers,
    events: usize,
    bytes: usize,
    /// States that this commit looked at, by their keys in the store.
    states: HashMap<Vec<u8>, Slot>,
    /// Ids that this commit looked at, and where they were stored.
    seen: HashMap<Vec<u8>, Option<Seen>>,
    /// Topics whose records changed.
    dirty: HashMap<TopicKey, ()>,
    /// What may be reclaimed once this is durable.
    floors: Vec<(u64, u64)>,
    /// Deleted topics of which nothing is left.
    forgotten: Vec<u64>,
}

/// How much a commit is.
#[derive(Clone, Copy)]
struct Size {
    events: usize,
    bytes: usize,
}

type Seen = (Offset, Fingerprint, Timestamp);

/// A key's state: as the store has it, and as it is to be. Only the last of a commit is written, so
/// a flood of updates that queued up costs one.
struct Slot {
    topic: TopicKey,
    id: u64,
    stored: Option<Event>,
    current: Option<Event>,
    /// The record of `current`, if this commit set it.
    record: Vec<u8>,
}

impl Writer {
    /// Works until it is closed or nobody can ask any more.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        // Whoever publishes waits until this thread has been given the processor twice: to begin a
        // commit, and when the disk has it (docs/adr/0014).
        if let Err(error) = tidings_slice::ask(tidings_slice::SHORTEST) {
            tracing::debug!(%error, "the journal's writer has no short slices");
        }
        while let Some(first) = requests.blocking_recv() {
            let mut commit = Commit::new(&self.store);
            let mut next = Some(first);
            let mut closing = None;
            while let Some(request) = next.take() {
                if let Request::Close { reply } = request {
                    closing = Some(reply);
                    requests.close();
                } else {
                    self.stage(request, &mut commit);
                }
                if commit.events < COMMIT_EVENTS_MAX && commit.bytes < COMMIT_BYTES_MAX {
                    next = requests.try_recv().ok();
                }
            }
            self.commit(commit);
            if let Some(reply) = closing {
                // What was accepted before the channel closed is still served.
                while let Ok(request) = requests.try_recv() {
                    let mut commit = Commit::new(&self.store);
                    self.stage(request, &mut commit);
                    self.commit(commit);
                }
                drop(self);
                let _ = reply.send(());
                return;
            }
        }
    }

    fn stage(&mut self, request: Request, commit: &mut Commit) {
        match request {
            Request::Append { topic, batch, reply } => {
                let staged = self.append(&topic, batch, commit);
                commit.answer(reply, staged);
            }
            Request::SetProperties { topic, change, reply } => {
                let staged = self.set_properties(&topic, change, commit);
                commit.answer(reply, staged);
            }
            Request::Delete { topic, condition, reply } => {
                let staged = self.delete(&topic, &condition, commit);
                commit.answer(reply, staged);
            }
            Request::Trim { topic, trim, reply } => {
                let staged = self.trim(&topic, trim, commit);
                commit.answer(reply, staged);
            }
            Request::Forget { ids } => {
                for id in &ids {
                    commit.batch.remove(&self.store.floors, id.to_be_bytes());
                }
                commit.forgotten.extend(ids);
            }
            Request::Close { .. } => {}
        }
    }

    /// Makes it durable and answers, or answers that it failed.
    fn commit(&mut self, commit: Commit) {
        let added: Vec<_> = commit.states.values().flat_map(Slot::added_due).collect();
        let size = Size { events: commit.events, bytes: commit.bytes };
        let Commit { mut batch, answers, dirty, floors, forgotten, states, .. } = commit;
        let result = match self.progress.failure() {
            Some(reason) => Err(JournalError::Unavailable(reason)),
            None if dirty.is_empty() && forgotten.is_empty() => Ok(()),
            None => {
                for (key, slot) in states {
                    slot.write(key, &self.store, &mut batch);
                }
                self.write(&mut batch, dirty.into_keys()).and_then(|()| self.persist(batch, size))
            }
        };
        if result.is_ok() {
            for (id, floor) in floors {
                self.reclaimable.set_floor(id, floor);
            }
            self.reclaimable.forget(&forgotten);
            for (kind, at) in added {
                self.due_start.add(kind, at);
            }
        } else {
            // What was staged is not in the store: what is in memory is ahead of it.
            self.records.clear();
        }
        // They are in the store now, or never.
        self.deletions.clear();
        for answer in answers {
            answer(result.clone());
        }
        if self.records.len() > RECORDS_MAX {
            self.records.clear();
        }
    }

    fn write(
        &mut self,
        batch: &mut fjall::OwnedWriteBatch,
        dirty: impl Iterator<Item = TopicKey>,
    ) -> Result<(), JournalError> {
        for topic in dirty {
            let Some(record) = self.records.get(&topic) else { continue };
            if record.is_deleted {
                batch.remove(&self.store.topics, topic_key(&topic));
                continue;
            }
            batch.insert(&self.store.topics, topic_key(&topic), record.write()?);
            if record.tail.0 > self.settings.dedup_events {
                self.reclaimable.set_tail(record.id, record.tail, record.written_at);
            }
        }
        self.meta.commits += 1;
        batch.insert(&self.store.meta, META, self.meta.write());
        Ok(())
    }

    fn persist(&mut self, batch: fjall::OwnedWriteBatch, size: Size) -> Result<(), JournalError> {
        // From here on whoever watches the writer knows that it may wait for the disk.
        let _progress = self.progress.begin();
        let bytes = size.bytes + batch.len() * ITEM_BYTES;
        self.preallocation.make_room(bytes as u64);
        let _running = self.store.begin_commit();
        let begun = Instant::now();
        match batch.durability(Some(PersistMode::SyncData)).commit() {
            Ok(()) => {
                self.directory.reach(self.meta.commits);
                self.progress.reach(self.meta.commits);
                let metrics = &self.progress.metrics;
                metrics.commit_duration.observe_duration(begun.elapsed());
                metrics.commit_size.observe(size.events as u64);
                metrics.commit_data.observe(size.bytes as u64);
                Ok(())
            }
            Err(error) => {
                let reason = failed_commit(&self.directory, &error);
                self.progress.fail(reason.clone());
                Err(JournalError::Unavailable(reason))
            }
        }
    }

    /// How often topics of this one's slot were deleted.
    fn deletions(&self, topic: &TopicKey) -> Result<u32, JournalError> {
        let key = deletions_key(topic);
        if let Some(count) = self.deletions.get(&key) {
            return Ok(*count);
        }
        let meta = &self.store.meta;
        match meta.get(&key).map_err(|error| unreadable(meta, &error))? {
            Some(bytes) => read_deletions(&key, &bytes)
                .ok_or_else(|| damaged(topic, "the count of its deletions is damaged")),
            None => Ok(0),
        }
    }

    /// The topic's record, made if there is none: then it is in memory only, until a commit that
    /// names it dirty.
    fn record(
        &mut self,
        topic: &TopicKey,
        now: Timestamp,
    ) -> Result<&mut TopicRecord, JournalError> {
        if !self.records.contains_key(topic) {
            let topics = &self.store.topics;
            let stored =
                topics.get(topic_key(topic)).map_err(|error| unreadable(topics, &error))?;
            let record = match stored {
                Some(bytes) => TopicRecord::read(&bytes)
                    .ok_or_else(|| damaged(topic, "its record is damaged"))?,
                None => TopicRecord::absent(0),
            };
            self.records.insert(topic.clone(), record);
        }
        let incarnation = match self.records.get(topic) {
            Some(record) if !record.is_deleted => record.incarnation,
            // Another topic of the slot may have been deleted meanwhile.
            _ => self.deletions(topic)?,
        };
        let next_id = &mut self.meta.next_id;
        let record = self
            .records
            .get_mut(topic)
            .ok_or_else(|| JournalError::Unavailable("topic record went away".to_owned()))?;
        if record.is_deleted {
            let fresh = TopicRecord::new(*next_id, incarnation, now, Properties::default());
            *record = TopicRecord { is_deleted: true, ..fresh };
            *next_id += 1;
        }
        Ok(record)
    }

    fn append(
        &mut self,
        topic: &TopicKey,
        batch: Batch,
        commit: &mut Commit,
    ) -> Result<Appended, JournalError> {
        let Batch { events, close, now } = batch;
        let store = self.store.clone();
        let settings = self.settings;
        let store_epoch = self.meta.store_epoch;
        let mut staged = Staged {
            store: &store,
            settings,
            states_max: settings.states_max(topic),
            epoch: topic_epoch(store_epoch, 0),
            topic,
            now,
            commit,
        };
        let record = self.record(topic, now)?;
        staged.epoch = record.head(store_epoch).epoch;
        // What may fail comes first, so that a batch is staged whole or not at all.
        for append in &events {
            staged.load(record.id, append)?;
        }
        if record.has_events {
            staged.now = now.max(record.written_at);
        }
        let was_closed = record.closed;
        let mut outcomes = Vec::with_capacity(events.len());
        let mut stored = Vec::with_capacity(events.len());
        for append in &events {
            let outcome = staged.judge(record, append).unwrap_or_else(|| {
                if let Some(properties) = append.properties.as_ref().filter(|_| record.is_deleted) {
                    record.properties = Properties::clone(properties);
                }
                record.is_deleted = false;
                stored.push(staged.store(record, append));
                Outcome::Stored(record.head(store_epoch).end())
            });
            record.closed |= append.close && !matches!(outcome, Outcome::Refused(_));
            outcomes.push(outcome);
        }
        record.closed |= close;
        let changed = !stored.is_empty() || record.closed != was_closed;
        let head = record.head(store_epoch);
        if changed {
            record.is_deleted = false;
            commit.dirty.insert(topic.clone(), ());
        }
        Ok(Appended { head, outcomes, events: stored })
    }

    fn set_properties(
        &mut self,
        topic: &TopicKey,
        change: Change,
        commit: &mut Commit,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        let now = self.clock.now();
        let store_epoch = self.meta.store_epoch;
        let record = self.record(topic, now)?;
        if let Err(refusal) = change.judge((!record.is_deleted).then_some(&record.properties)) {
            return Ok(Err(refusal));
        }
        record.is_deleted = false;
        record.properties = change.properties;
        record.closed |= change.close;
        let info = record.info(topic.clone(), store_epoch);
        commit.dirty.insert(topic.clone(), ());
        Ok(Ok(info))
    }

    fn delete(
        &mut self,
        topic: &TopicKey,
        condition: &DeleteIf,
        commit: &mut Commit,
    ) -> Result<Judged<bool>, JournalError> {
        let now = self.clock.now();
        let store_epoch = self.meta.store_epoch;
        let (store, reclaimable) = (self.store.clone(), Arc::clone(&self.reclaimable));
        let deletions = self.deletions(topic)?.wrapping_add(1);
        let record = self.record(topic, now)?;
        if let Err(refusal) = condition.judge(&record.info(topic.clone(), store_epoch)) {
            return Ok(Err(refusal));
        }
        if record.is_deleted {
            return Ok(Ok(false));
        }
        // Every state is ended, so that nothing of it stays due.
        let mut found = Vec::new();
        for entry in store.states.prefix(record.id.to_be_bytes()) {
            let (key, value) =
                entry.into_inner().map_err(|error| unreadable(&store.states, &error))?;
            match read_state(topic, &value) {
                Ok(state) => found.push((key.to_vec(), state)),
                // It goes with its topic all the same; only its times stay behind.
                Err(error) => tracing::error!(%error, "a damaged state is deleted with its topic"),
            }
        }
        for (key, stored) in found {
            commit.states.entry(key).or_insert_with(|| Slot::of(topic, record.id, Some(stored)));
        }
        for slot in commit.states.values_mut().filter(|slot| slot.id == record.id) {
            slot.current = None;
        }
        commit.batch.insert(&store.floors, record.id.to_be_bytes(), DELETED.to_be_bytes());
        commit.floors.push((record.id, DELETED));
        reclaimable.add_bytes(record.bytes.max(1));
        *record = TopicRecord::absent(deletions);
        let key = deletions_key(topic);
        commit.batch.insert(&store.meta, key.clone(), write_deletions(&key, deletions));
        self.deletions.insert(key, deletions);
        commit.dirty.insert(topic.clone(), ());
        Ok(Ok(true))
    }

    fn trim(
        &mut self,
        topic: &TopicKey,
        trim: Trim,
        commit: &mut Commit,
    ) -> Result<Head, JournalError> {
        let now = self.clock.now();
        let store = self.store.clone();
        let store_epoch = self.meta.store_epoch;
        self.reclaimable.add_bytes(trim.bytes);
        let record = self.record(topic, now)?;
        // Deleted, or deleted and written again, since it was looked at: then there is nothing.
        if record.id != trim.id || record.is_deleted {
            return Ok(record.head(store_epoch));
        }
        let is_learnt = trim.floor == record.floor && trim.oldest_at.is_some();
        if is_learnt || trim.floor > record.floor {
            // If nothing was above it, something may be by now: then it is looked at once more.
            record.oldest_at = trim.oldest_at.unwrap_or_default();
            commit.dirty.insert(topic.clone(), ());
        }
        if trim.floor > record.floor {
            record.floor = trim.floor;
            record.floor_fingerprint = trim.floor_fingerprint;
            record.events = record.events.saturating_sub(trim.events);
            record.bytes = record.bytes.saturating_sub(trim.bytes);
            let floor = trim.floor.0;
            commit.batch.insert(&store.floors, record.id.to_be_bytes(), floor.to_be_bytes());
            commit.floors.push((record.id, floor));
        }
        Ok(record.head(store_epoch))
    }
}

/// What a failed commit is to those who ask.
pub(super) fn failed_commit(directory: &Directory, error: &fjall::Error) -> String {
    // Of what failed in the background the store keeps no cause.
    let is_causeless = matches!(error, fjall::Error::Poisoned);
    let reason = match is_causeless.then(|| directory.write_failure()).flatten() {
        Some(cause) => format!("writing in the background failed: {cause}"),
        None => describe(error),
    };
    let directory = directory.path().display();
    format!("{directory}: a commit failed: {reason}; see to the disk, then start the hub anew")
}

impl Commit {
    fn new(store: &Store) -> Self {
        Self {
            batch: store.db.batch(),
            answers: Vec::new(),
            events: 0,
            bytes: 0,
            states: HashMap::new(),
            seen: HashMap::new(),
            dirty: HashMap::new(),
            floors: Vec::new(),
            forgotten: Vec::new(),
        }
    }

    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, staged: Result<T, JournalError>) {
        self.events += 1;
        self.answers.push(Box::new(move |result| {
            // Whoever asked may have gone away.
            let _ = reply.send(result.and(staged));
        }));
    }
}

/// An append while it is staged.
struct Staged<'a> {
    store: &'a Store,
    settings: JournalSettings,
    states_max: u64,
    epoch: crate::model::Epoch,
    topic: &'a TopicKey,
    now: Timestamp,
    commit: &'a mut Commit,
}

impl Staged<'_> {
    /// Looks the event's id and key up, unless this commit has already.
    fn load(&mut self, id: u64, append: &Append) -> Result<(), JournalError> {
        if append.dedup == Dedup::ById {
            let key = named_key(id, append.event.id.as_str());
            if let Entry::Vacant(vacant) = self.commit.seen.entry(key) {
                let dedup = &self.store.dedup;
                let bytes = dedup.get(vacant.key()).map_err(|error| unreadable(dedup, &error))?;
                vacant.insert(bytes.and_then(|bytes| read_seen(&bytes)));
            }
        }
        if let Some(key) = &append.event.key {
            let key = named_key(id, key.as_str());
            if let Entry::Vacant(vacant) = self.commit.states.entry(key) {
                let states = &self.store.states;
                let bytes = states.get(vacant.key()).map_err(|error| unreadable(states, &error))?;
                let stored = bytes.map(|bytes| read_state(self.topic, &bytes)).transpose()?;
                vacant.insert(Slot::of(self.topic, id, stored));
            }
        }
        Ok(())
    }

    /// Why an event is not to be stored; `None` if it is.
    ///
    /// A repeated id comes first: whoever repeats a publish whose answer was lost is to learn its
    /// position, whatever happened to the topic since.
    fn judge(&self, record: &TopicRecord, append: &Append) -> Option<Outcome> {
        let event = &append.event;
        let refused = |refusal| Some(Outcome::Refused(refusal));
        let properties = (!record.is_deleted).then_some(&record.properties);
        if let Some(refusal) = append.not_owner(properties) {
            return refused(refusal);
        }
        if append.dedup == Dedup::ById
            && let Some((offset, fingerprint)) = self.seen(record, event)
        {
            return Some(Outcome::Duplicate(Position { epoch: self.epoch, offset, fingerprint }));
        }
        if record.closed && !append.ends_expired {
            return refused(Refusal::Closed);
        }
        let key = event.key.as_ref().map(|key| named_key(record.id, key.as_str()));
        let current = key.and_then(|key| self.commit.states.get(&key)?.current.as_ref());
        let offset = current.map_or(Offset::ZERO, |current| current.offset);
        if append.if_offset.is_some_and(|expected| expected != offset) {
            return refused(Refusal::Conflict { current: current.cloned() });
        }
        let adds_state = event.class == Class::State && !event.delete && current.is_none();
        if adds_state && record.states >= self.states_max {
            return refused(Refusal::StatesFull { limit: self.states_max });
        }
        None
    }

    fn seen(&self, record: &TopicRecord, event: &NewEvent) -> Option<(Offset, Fingerprint)> {
        let key = named_key(record.id, event.id.as_str());
        let (offset, fingerprint, at) = (*self.commit.seen.get(&key)?)?;
        let recognised = self.settings.recognises(offset, at, record.tail, self.now);
        recognised.then_some((offset, fingerprint))
    }

    fn store(&mut self, record: &mut TopicRecord, append: &Append) -> Event {
        let body = &append.event;
        let (id, offset) = (record.id, record.tail);
        if offset == record.floor.next() {
            record.oldest_at = self.now;
        }
        let (fingerprint, bytes) = record::encode(body, offset, self.now);
        let event = Event { offset, fingerprint, recorded_at: self.now, body: Arc::clone(body) };
        let commit = &mut *self.commit;
        commit.events += 1;
        commit.bytes += bytes.len();
        let slot = body.key.as_ref().map(|key| named_key(id, key.as_str()));
        let mut slot = slot.and_then(|key| commit.states.get_mut(&key));
        if let Some(old) = slot.as_mut().and_then(|slot| slot.current.take()) {
            if old.offset > record.floor {
                let mark = write_mark(old.fingerprint, old.recorded_at);
                commit.batch.insert(&self.store.marks, offset_key(id, old.offset), mark);
            }
            record.states = record.states.saturating_sub(1);
        }
        match slot {
            Some(slot) if !body.delete => {
                slot.current = Some(event.clone());
                slot.record = bytes;
                record.states += 1;
            }
            _ => {
                record.events += 1;
                record.bytes += bytes.len() as u64;
                commit.batch.insert(&self.store.log, offset_key(id, offset), bytes);
            }
        }
        record.tail = offset.next();
        record.tail_fingerprint = fingerprint;
        record.written_at = self.now;
        record.has_events = true;
        if append.dedup == Dedup::ById {
            let key = named_key(id, body.id.as_str());
            let position = Position { epoch: self.epoch, offset, fingerprint };
            let seen = write_seen(position, self.now);
            commit.batch.insert(&self.store.dedup, key.clone(), seen);
            commit.seen.insert(key, Some((offset, fingerprint, self.now)));
        }
        event
    }
}

impl Slot {
    fn of(topic: &TopicKey, id: u64, stored: Option<Event>) -> Self {
        Self { topic: topic.clone(), id, current: stored.clone(), stored, record: Vec::new() }
    }

    fn is_changed(&self) -> bool {
        let offset = |event: &Option<Event>| event.as_ref().map(|event| event.offset);
        offset(&self.stored) != offset(&self.current)
    }

    /// When the new state is due, if this is one.
    fn added_due(&self) -> impl Iterator<Item = (DueKind, Timestamp)> {
        self.current.iter().filter(|_| self.is_changed()).flat_map(times_of)
    }

    /// Writes what became of the state; nothing, if it is the one that the store has.
    fn write(self, key: Vec<u8>, store: &Store, batch: &mut fjall::OwnedWriteBatch) {
        if !self.is_changed() {
            return;
        }
        if let Some(old) = &self.stored {
            // A place is written once and removed once, so the two may annihilate each other.
            batch.remove_weak(&store.places, offset_key(self.id, old.offset));
            for entry in due_of(self.id, old) {
                batch.remove(&store.due, entry);
            }
        }
        let Some(new) = &self.current else {
            return batch.remove(&store.states, key);
        };
        let offset = new.offset.0.to_be_bytes();
        let state_key = new.body.key.as_ref().map(StateKey::as_str).unwrap_or_default();
        batch.insert(&store.places, offset_key(self.id, new.offset), state_key);
        // After the removals: one at the same time has the same key.
        for entry in due_of(self.id, new) {
            batch.insert(&store.due, entry, write_due(&self.topic, new.offset));
        }
        batch.insert(&store.states, key, [&offset[..], &self.record].concat());
    }
}

/// A state's times.
fn times_of(state: &Event) -> impl Iterator<Item = (DueKind, Timestamp)> {
    let times = [(DueKind::Expired, state.body.expires_at), (DueKind::Due, state.body.due_at)];
    times.into_iter().filter_map(|(kind, at)| Some((kind, at?)))
}

/// The keys of a state's entries in the due index.
pub(super) fn due_of(id: u64, state: &Event) -> impl Iterator<Item = Vec<u8>> {
    let key = state.body.key.as_ref();
    times_of(state).filter_map(move |(kind, at)| Some(due_key(kind, at, id, key?)))
}

#[cfg(test)]
mod tests;
