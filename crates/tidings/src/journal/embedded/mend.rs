//! Makes the store one piece again after its log lost its end.
//!
//! The store writes its keyspaces down one by one, so without the log that binds them, one may tell
//! of an event that another has never heard of. The events and states that are there are the truth;
//! whatever else is told of them is made from them again.
//!
//! The rule: no offset is used twice, nothing that is there is counted wrong, and nothing refers to
//! what is not there. It is done before anybody reads, under a new epoch, and may be done twice.

use std::collections::{BTreeMap, HashMap, HashSet};

use fjall::{Keyspace, OwnedWriteBatch, PersistMode};

use super::{
    damage::unreadable,
    layout::{
        FIRST_TOPIC, Store, TopicRecord, is_sentinel, offset_key, read_due, read_mark, read_seen,
        read_topic_key, split_u64, topic_key, write_due, write_mark,
    },
    reads::read_state,
    reclaim::DELETED,
    writer::due_of,
};
use crate::{
    journal::{JournalError, record},
    model::{Event, Fingerprint, Offset, StateKey, Timestamp, TopicKey},
};

/// Changes that are committed at once.
const BATCH_CHANGES: usize = 10_000;

pub(super) fn mend(store: &Store) -> Result<(), JournalError> {
    let mut mender = Mender { store, batch: store.db.batch(), ids: HashSet::new() };
    let floors = mender.floors()?;
    let mut topics = 0;
    for (topic, record) in mender.records()? {
        mender.topic(&topic, record, &floors)?;
        topics += 1;
    }
    mender.orphans()?;
    mender.due()?;
    mender.commit()?;
    tracing::warn!(topics, "the journal was mended");
    Ok(())
}

/// A key and its value.
type Entry = (Vec<u8>, Vec<u8>);

struct Mender<'a> {
    store: &'a Store,
    batch: OwnedWriteBatch,
    /// Ids of topics that are there.
    ids: HashSet<u64>,
}

/// What a topic holds.
#[derive(Default)]
struct Held {
    /// By offset: log events, tombstones, current states and marks.
    places: BTreeMap<u64, Place>,
    /// Log events and tombstones above the floor, and their bytes.
    events: u64,
    bytes: u64,
    /// Where the last tombstone of a key is.
    ended: HashMap<StateKey, Offset>,
}

/// What is at an offset: a fingerprint, and a time unless that is damaged.
#[derive(Clone, Copy)]
struct Place {
    fingerprint: Fingerprint,
    at: Option<Timestamp>,
}

impl Mender<'_> {
    fn scan(&self, keyspace: &Keyspace, prefix: &[u8]) -> Result<Vec<Entry>, JournalError> {
        let entries = keyspace.prefix(prefix).map(|entry| {
            let (key, value) = entry.into_inner().map_err(|error| unreadable(keyspace, &error))?;
            Ok((key.to_vec(), value.to_vec()))
        });
        let entries: Result<Vec<_>, JournalError> = entries.collect();
        Ok(entries?.into_iter().filter(|(key, _)| !is_sentinel(key)).collect())
    }

    fn floors(&self) -> Result<HashMap<u64, u64>, JournalError> {
        let entries = self.scan(&self.store.floors, &[])?.into_iter();
        let pair =
            |(id, floor): (Vec<u8>, Vec<u8>)| Some((split_u64(&id)?.0, split_u64(&floor)?.0));
        Ok(entries.filter_map(pair).collect())
    }

    /// The topics whose records can be read.
    fn records(&self) -> Result<Vec<(TopicKey, TopicRecord)>, JournalError> {
        let topics = &self.store.topics;
        let mut found = Vec::new();
        for entry in topics.range(FIRST_TOPIC..) {
            let (key, value) = entry.into_inner().map_err(|error| unreadable(topics, &error))?;
            match (read_topic_key(&key), TopicRecord::read(&value)) {
                (Some(topic), Some(record)) => found.push((topic, record)),
                _ => tracing::error!(?key, "the record of a topic is damaged, and not mended"),
            }
        }
        Ok(found)
    }

    fn topic(
        &mut self,
        topic: &TopicKey,
        mut record: TopicRecord,
        floors: &HashMap<u64, u64>,
    ) -> Result<(), JournalError> {
        let floor = floors.get(&record.id).copied().unwrap_or(0);
        if floor == DELETED {
            // Its deletion came further than the rest of that commit.
            self.batch.remove(&self.store.topics, topic_key(topic));
            return self.changed();
        }
        self.ids.insert(record.id);
        let mut held = self.log(&record, floor)?;
        if floor > record.floor.0 {
            record.floor = Offset(floor);
            let place = held.places.get(&floor);
            record.floor_fingerprint = place.map(|place| place.fingerprint).unwrap_or_default();
        }
        record.events = held.events;
        record.bytes = held.bytes;
        record.states = self.states(topic, record.id, &mut held)?;
        for (key, value) in self.scan(&self.store.marks, &record.id.to_be_bytes())? {
            if let (Some(offset), Some((fingerprint, at))) = (offset_of(&key), read_mark(&value)) {
                held.places.entry(offset).or_insert(Place { fingerprint, at: Some(at) });
            }
        }
        let last = held.places.last_key_value();
        if let Some((offset, place)) = last.filter(|(offset, _)| **offset >= record.tail.0) {
            record.tail = Offset(*offset).next();
            record.tail_fingerprint = place.fingerprint;
            record.written_at = place.at.unwrap_or(record.written_at);
            record.has_events = true;
        }
        // What is missing is a mark from now on, as what was superseded: nothing is served there.
        let mut time = Timestamp::default();
        for offset in record.floor.0 + 1..record.tail.0 {
            if let Some(place) = held.places.get(&offset) {
                time = place.at.unwrap_or(time);
                continue;
            }
            let key = offset_key(record.id, Offset(offset));
            let mark = write_mark(record.stand_in(Offset(offset)), time);
            self.batch.insert(&self.store.marks, key, mark);
            self.changed()?;
        }
        for (key, value) in self.scan(&self.store.dedup, &record.id.to_be_bytes())? {
            // An id whose event was lost may be published again.
            let is_lost = read_seen(&value).is_none_or(|(offset, ..)| {
                offset > record.floor && !held.places.contains_key(&offset.0)
            });
            if is_lost {
                self.batch.remove(&self.store.dedup, key);
                self.changed()?;
            }
        }
        record.oldest_at = Timestamp::default();
        self.batch.insert(&self.store.topics, topic_key(topic), record.write()?);
        self.changed()
    }

    fn log(&self, record: &TopicRecord, floor: u64) -> Result<Held, JournalError> {
        let mut held = Held::default();
        for (key, value) in self.scan(&self.store.log, &record.id.to_be_bytes())? {
            let Some(offset) = offset_of(&key) else { continue };
            // A damaged one is counted, so that its offset is not used again; reading it fails.
            let event = record::decode(&value, Offset(offset)).ok();
            let place = Place {
                fingerprint: event.as_ref().map(|event| event.fingerprint).unwrap_or_default(),
                at: event.as_ref().map(|event| event.recorded_at),
            };
            held.places.insert(offset, place);
            if offset > floor.max(record.floor.0) {
                held.events += 1;
                held.bytes += value.len() as u64;
            }
            if let Some(event) = event
                && let Some(key) = event.body.key.as_ref().filter(|_| event.body.delete)
            {
                held.ended.insert(key.clone(), event.offset);
            }
        }
        Ok(held)
    }

    /// Drops states that were ended, and makes the order of the others anew; counts them.
    fn states(&mut self, topic: &TopicKey, id: u64, held: &mut Held) -> Result<u64, JournalError> {
        let mut current: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut count = 0;
        for (key, value) in self.scan(&self.store.states, &id.to_be_bytes())? {
            count += 1;
            let Ok(state) = read_state(topic, &value) else {
                // It keeps its place, so that reading it fails.
                if let (Some((offset, _)), Some(name)) = (split_u64(&value), key.get(8..)) {
                    let place = Place { fingerprint: Fingerprint(0), at: None };
                    held.places.insert(offset, place);
                    current.insert(offset, name.to_vec());
                }
                continue;
            };
            let Some(name) = &state.body.key else { continue };
            if held.ended.get(name).is_some_and(|ended| *ended > state.offset) {
                count -= 1;
                self.batch.remove(&self.store.states, key);
                self.changed()?;
                continue;
            }
            let place = Place { fingerprint: state.fingerprint, at: Some(state.recorded_at) };
            held.places.insert(state.offset.0, place);
            current.insert(state.offset.0, name.as_str().as_bytes().to_vec());
            self.times(topic, id, &state)?;
        }
        for (key, value) in self.scan(&self.store.places, &id.to_be_bytes())? {
            let is_right = offset_of(&key)
                .is_some_and(|offset| current.get(&offset).is_some_and(|name| *name == value));
            if is_right {
                offset_of(&key).and_then(|offset| current.remove(&offset));
            } else {
                self.batch.remove(&self.store.places, key);
                self.changed()?;
            }
        }
        for (offset, name) in current {
            self.batch.insert(&self.store.places, offset_key(id, Offset(offset)), name);
            self.changed()?;
        }
        Ok(count)
    }

    /// Enters a state's times into the due index.
    fn times(&mut self, topic: &TopicKey, id: u64, state: &Event) -> Result<(), JournalError> {
        for key in due_of(id, state) {
            self.batch.insert(&self.store.due, key, write_due(topic, state.offset));
            self.changed()?;
        }
        Ok(())
    }

    /// Gives up what belongs to topics that are not there.
    fn orphans(&mut self) -> Result<(), JournalError> {
        let store = self.store;
        let mut known = self.ids.clone();
        for keyspace in [&store.log, &store.states, &store.places, &store.marks, &store.dedup] {
            let mut from = 1_u64;
            // A seek for each topic, whatever it holds.
            while let Some(entry) = keyspace.range(from.to_be_bytes()..).next() {
                let key = entry.key().map_err(|error| unreadable(keyspace, &error))?;
                let Some((id, _)) = split_u64(&key) else { break };
                if known.insert(id) {
                    let floor = DELETED.to_be_bytes();
                    self.batch.insert(&store.floors, id.to_be_bytes(), floor);
                    self.changed()?;
                }
                let Some(next) = id.checked_add(1) else { break };
                from = next;
            }
        }
        Ok(())
    }

    /// Drops entries of the due index whose states are not there.
    fn due(&mut self) -> Result<(), JournalError> {
        self.commit()?;
        for (key, value) in self.scan(&self.store.due, &[])? {
            let is_right = match read_due(&key, &value) {
                Some(entry) => {
                    let id = split_u64(&entry.state_key).map(|(id, _)| id);
                    let states = &self.store.states;
                    let state = states.get(&entry.state_key);
                    let state = state.map_err(|error| unreadable(states, &error))?;
                    let offset = state.as_deref().and_then(split_u64).map(|(offset, _)| offset);
                    offset == Some(entry.offset.0) && id.is_some_and(|id| self.ids.contains(&id))
                }
                None => false,
            };
            if !is_right {
                self.batch.remove(&self.store.due, key);
                self.changed()?;
            }
        }
        Ok(())
    }

    fn changed(&mut self) -> Result<(), JournalError> {
        if self.batch.len() < BATCH_CHANGES { Ok(()) } else { self.commit() }
    }

    fn commit(&mut self) -> Result<(), JournalError> {
        let batch = std::mem::replace(&mut self.batch, self.store.db.batch());
        let committed = batch.durability(Some(PersistMode::SyncAll)).commit();
        committed.map_err(|error| unreadable(&self.store.meta, &error))
    }
}

fn offset_of(key: &[u8]) -> Option<u64> {
    key.get(8..).and_then(split_u64).map(|(offset, _)| offset)
}
