//! Reading: pages from a snapshot, each record checked.

use std::{ops::Bound, sync::Arc};

use fjall::{Keyspace, Readable as _, Slice, Snapshot};

use super::{
    damage::{Damage, damaged, unreadable},
    due_start::DueStart,
    layout::{
        DueEntry, FIRST_TOPIC, Store, TopicRecord, deletions_key, due_begin, due_end, named_key,
        offset_key, read_deletions, read_due, read_mark, read_topic_key, split_u64, topic_key,
        topic_prefix,
    },
    writer::Trim,
};
use crate::{
    journal::{
        Due, DueKind, Head, JournalError, Locate, Page, PageLimit, Retention, StateQuery,
        TopicInfo, TopicQuery, page::Paging, record,
    },
    model::{Event, Fingerprint, Offset, Timestamp, TopicKey},
};

#[derive(Clone)]
pub(super) struct Reader {
    pub(super) store: Store,
    pub(super) store_epoch: u32,
    pub(super) due_start: Arc<DueStart>,
    pub(super) damage: Arc<Damage>,
}

/// A topic in a snapshot.
struct View<'a> {
    topic: &'a TopicKey,
    store: &'a Store,
    snapshot: Snapshot,
    record: TopicRecord,
    head: Head,
}

type EventIter<'a> = Box<dyn Iterator<Item = Result<Event, JournalError>> + 'a>;

impl Reader {
    fn view<'a>(&'a self, topic: &'a TopicKey) -> Result<View<'a>, JournalError> {
        let snapshot = self.store.snapshot();
        let record = match get(&snapshot, &self.store.topics, topic_key(topic))? {
            Some(bytes) => {
                TopicRecord::read(&bytes).ok_or_else(|| damaged(topic, "its record is damaged"))?
            }
            None => {
                let key = deletions_key(topic);
                let count = match get(&snapshot, &self.store.meta, &key)? {
                    Some(bytes) => read_deletions(&key, &bytes)
                        .ok_or_else(|| damaged(topic, "the count of its deletions is damaged"))?,
                    None => 0,
                };
                TopicRecord::absent(count)
            }
        };
        let head = record.head(self.store_epoch);
        Ok(View { topic, store: &self.store, snapshot, record, head })
    }

    /// Reads from a view until the floor is after the reading what it was before.
    ///
    /// Compaction may drop what lies below a floor as soon as that is durable, also from under an
    /// older snapshot: a page read meanwhile would have a hole that its head does not tell.
    fn whole<T>(
        &self,
        topic: &TopicKey,
        read: impl Fn(&View<'_>) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let mut view = self.view(topic)?;
        loop {
            let result = read(&view)?;
            let now = self.view(topic)?;
            let history = |record: &TopicRecord| (record.id, record.is_deleted, record.floor);
            if history(&now.record) == history(&view.record) {
                return Ok(result);
            }
            view = now;
        }
    }

    pub(super) fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        self.whole(topic, |view| {
            let mut paging = Paging::new(limit);
            let mut log = view.log(after).peekable();
            let mut states = view.states_by_offset(after, Offset(u64::MAX)).peekable();
            loop {
                let offset = |event: Option<&Result<Event, _>>| match event {
                    Some(Ok(event)) => event.offset,
                    // An error is to be met, not passed over.
                    Some(Err(_)) => Offset::ZERO,
                    None => Offset(u64::MAX),
                };
                let first = if offset(log.peek()) < offset(states.peek()) {
                    log.next()
                } else {
                    states.next().or_else(|| log.next())
                };
                let Some(event) = first else { break };
                if paging.take(event?).is_break() {
                    break;
                }
            }
            let known = view.fingerprint(after)?;
            Ok(paging.finish(view.head, after, known, Offset(u64::MAX)))
        })
    }

    pub(super) fn states(
        &self,
        topic: &TopicKey,
        query: &StateQuery,
    ) -> Result<Page, JournalError> {
        self.whole(topic, |view| {
            let mut paging = Paging::new(query.limit);
            let mut events = view.states(query)?;
            while let Some(event) = events.next().transpose()? {
                if paging.take(event).is_break() {
                    break;
                }
            }
            paging.until_fingerprint = view.fingerprint(query.until)?;
            let known = view.fingerprint(query.after)?;
            Ok(paging.finish(view.head, query.after, known, query.until))
        })
    }

    pub(super) fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        Ok(self.view(topic)?.record.info(topic.clone(), self.store_epoch))
    }

    pub(super) fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError> {
        self.whole(topic, |view| {
            let end = view.head.end().offset;
            match from {
                Locate::Latest(0) => Ok(end),
                Locate::Latest(count) => view.latest(count),
                Locate::Since(at) => view.since(at),
            }
        })
    }

    /// The number that a topic is kept under.
    #[cfg(test)]
    pub(super) fn id_of(&self, topic: &TopicKey) -> Result<u64, JournalError> {
        Ok(self.view(topic)?.record.id)
    }

    /// How far a topic is to be trimmed; its head, if not at all.
    pub(super) fn excess(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Result<Trim, Head>, JournalError> {
        self.whole(topic, |view| view.excess(retention, now))
    }

    pub(super) fn due(
        &self,
        kind: DueKind,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Due>, JournalError> {
        let start = self.due_start.look(kind);
        let snapshot = self.store.snapshot();
        let range = due_begin(kind, start.at)..due_end(kind, now);
        let mut due = Vec::new();
        if start.at > now {
            return Ok(due);
        }
        let mut first = None;
        for entry in snapshot.range(&self.store.due, range) {
            if due.len() == limit {
                break;
            }
            let (key, value) =
                entry.into_inner().map_err(|error| unreadable(&self.store.due, &error))?;
            let Some(entry) = read_due(&key, &value) else {
                let wrong = format!("an entry of the due index is damaged: {key:?}");
                self.damage.met(&JournalError::Broken(wrong));
                continue;
            };
            first = first.or(Some(entry.at.as_millis()));
            match self.due_state(&snapshot, &entry) {
                Ok(Some(event)) => due.push(Due { topic: entry.topic, event, why: kind }),
                Ok(None) => {}
                // What is wrong with one topic must not keep the others from what is due.
                Err(error @ JournalError::Broken(_)) => self.damage.met(&error),
                Err(error) => return Err(error),
            }
        }
        if limit > 0 {
            let after = now.as_millis().saturating_add(1);
            self.due_start.found(kind, start, Timestamp::from_millis(first.unwrap_or(after)));
        }
        Ok(due)
    }

    /// The state of a due entry, if it is still the one that was entered.
    fn due_state(
        &self,
        snapshot: &Snapshot,
        entry: &DueEntry,
    ) -> Result<Option<Event>, JournalError> {
        let state = get(snapshot, &self.store.states, &entry.state_key)?;
        let event = state.map(|state| read_state(&entry.topic, &state)).transpose()?;
        Ok(event.filter(|event| event.offset == entry.offset))
    }

    pub(super) fn topics(&self, query: &TopicQuery) -> Result<Vec<TopicInfo>, JournalError> {
        let snapshot = self.store.snapshot();
        let prefix = query.tenant.as_ref().map(|tenant| topic_prefix(tenant, &query.prefix));
        let prefix = prefix.unwrap_or_default();
        let start = match &query.after {
            Some(after) if topic_key(after) >= prefix => Bound::Excluded(topic_key(after)),
            _ => Bound::Included(prefix.clone().max(FIRST_TOPIC.to_vec())),
        };
        let mut topics = Vec::new();
        for entry in snapshot.range(&self.store.topics, (start, Bound::Unbounded)) {
            let (key, value) =
                entry.into_inner().map_err(|error| unreadable(&self.store.topics, &error))?;
            if topics.len() == query.limit || !key.starts_with(&prefix) {
                break;
            }
            let Some(topic) = read_topic_key(&key) else {
                let wrong = format!("the name of a topic is damaged: {key:?}");
                self.damage.met(&JournalError::Broken(wrong));
                continue;
            };
            if !topic.topic.as_str().starts_with(&query.prefix) {
                continue;
            }
            match TopicRecord::read(&value) {
                Some(record) => topics.push(record.info(topic, self.store_epoch)),
                None => self.damage.met(&damaged(&topic, "its record is damaged")),
            }
        }
        Ok(topics)
    }
}

impl View<'_> {
    fn id(&self) -> u64 {
        self.record.id
    }

    fn damaged(&self, what: impl std::fmt::Display) -> JournalError {
        damaged(self.topic, what)
    }

    fn get(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Slice>, JournalError> {
        get(&self.snapshot, keyspace, key)
    }

    fn range(&self, after: Offset, until: Offset) -> (Bound<[u8; 16]>, Bound<[u8; 16]>) {
        let (after, until) = (offset_key(self.id(), after), offset_key(self.id(), until));
        // An empty range must not be the wrong way round.
        if after >= until {
            return (Bound::Excluded(after), Bound::Included(after));
        }
        (Bound::Excluded(after), Bound::Included(until))
    }

    /// Log events and tombstones after an offset and the floor.
    fn log(&self, after: Offset) -> EventIter<'_> {
        if self.record.is_deleted {
            return Box::new(std::iter::empty());
        }
        let range = self.range(after.max(self.record.floor), Offset(u64::MAX));
        let log = &self.store.log;
        Box::new(self.snapshot.range(log, range).map(|entry| {
            let (key, value) = entry.into_inner().map_err(|error| unreadable(log, &error))?;
            read_event(self.topic, self.offset_of(&key)?, &value)
        }))
    }

    /// Current states after an offset, by offset.
    fn states_by_offset(&self, after: Offset, until: Offset) -> EventIter<'_> {
        self.states_in_order("", after, until)
    }

    /// Current states whose keys start with a text, by offset: passes over all others.
    fn states_in_order<'a>(
        &'a self,
        prefix: &'a str,
        after: Offset,
        until: Offset,
    ) -> EventIter<'a> {
        if self.record.is_deleted || self.record.states == 0 {
            return Box::new(std::iter::empty());
        }
        let places = &self.store.places;
        let entries = self.snapshot.range(places, self.range(after, until));
        let entries = entries.map(|entry| entry.into_inner().map_err(|e| unreadable(places, &e)));
        let wanted = move |entry: &Result<(_, Slice), _>| {
            entry.as_ref().map_or(true, |(_, key)| key.starts_with(prefix.as_bytes()))
        };
        Box::new(entries.filter(wanted).map(|entry| {
            let (place, key) = entry?;
            let wrong = || self.damaged("the order of its states is damaged");
            let key = std::str::from_utf8(&key).map_err(|_| wrong())?;
            let value = self.get(&self.store.states, named_key(self.id(), key))?;
            let event = read_state(self.topic, &value.ok_or_else(wrong)?)?;
            if event.offset == self.offset_of(&place)? { Ok(event) } else { Err(wrong()) }
        }))
    }

    fn states<'a>(&'a self, query: &'a StateQuery) -> Result<EventIter<'a>, JournalError> {
        let StateQuery { prefix, after, until, limit } = query;
        if self.record.is_deleted {
            return Ok(Box::new(std::iter::empty()));
        }
        // Few states are found by their keys, however many others there are; many by their order,
        // so that reading all of them page by page passes over each once.
        let few = limit.events.saturating_mul(2);
        let mut found = Vec::new();
        if !prefix.is_empty() {
            let states = &self.store.states;
            for entry in self.snapshot.prefix(states, named_key(self.id(), prefix)) {
                if found.len() > few {
                    break;
                }
                found.push(entry.value().map_err(|error| unreadable(states, &error))?);
            }
        }
        if prefix.is_empty() || found.len() > few {
            return Ok(self.states_in_order(prefix, *after, *until));
        }
        let events = found.iter().map(|state| read_state(self.topic, state));
        let mut events = events.collect::<Result<Vec<_>, _>>()?;
        events.retain(|event| *after < event.offset && event.offset <= *until);
        events.sort_by_key(|event| event.offset);
        Ok(Box::new(events.into_iter().map(Ok)))
    }

    /// The fingerprint at an offset, as long as it is known.
    fn fingerprint(&self, offset: Offset) -> Result<Option<Fingerprint>, JournalError> {
        for position in [self.head.floor(), self.head.end()] {
            if position.offset == offset {
                return Ok(Some(position.fingerprint));
            }
        }
        if self.record.is_deleted || offset >= self.record.tail {
            return Ok(None);
        }
        let key = offset_key(self.id(), offset);
        if offset > self.record.floor {
            if let Some(bytes) = self.get(&self.store.log, key)? {
                let event = read_event(self.topic, offset, &bytes)?;
                return Ok(Some(event.fingerprint));
            }
            if let Some(bytes) = self.get(&self.store.marks, key)? {
                let mark = read_mark(&bytes);
                let (fingerprint, _) =
                    mark.ok_or_else(|| self.damaged("the mark of a state is damaged"))?;
                return Ok(Some(fingerprint));
            }
        }
        let before = offset.previous();
        let state = self.states_by_offset(before, offset).next().transpose()?;
        Ok(state.map(|state| state.fingerprint))
    }

    fn latest(&self, count: u64) -> Result<Offset, JournalError> {
        if self.record.is_deleted {
            return Ok(Offset::ZERO);
        }
        let mut log = self.offsets_back(&self.store.log).peekable();
        let mut states = self.offsets_back(&self.store.places).peekable();
        let mut first = self.record.floor.next();
        for _ in 0..count {
            let newest = |offset: Option<&Result<Offset, _>>| match offset {
                Some(Ok(offset)) => *offset,
                Some(Err(_)) => Offset(u64::MAX),
                None => Offset::ZERO,
            };
            let next = if newest(log.peek()) > newest(states.peek()) {
                log.next()
            } else {
                states.next().or_else(|| log.next())
            };
            match next {
                Some(offset) => first = offset?,
                None => return Ok(self.record.floor),
            }
        }
        Ok(first.previous())
    }

    /// The offsets above the floor that a keyspace holds, newest first.
    fn offsets_back<'a>(
        &'a self,
        keyspace: &'a Keyspace,
    ) -> impl Iterator<Item = Result<Offset, JournalError>> + 'a {
        let range = self.range(self.record.floor, Offset(u64::MAX));
        self.snapshot.range(keyspace, range).rev().map(|entry| {
            self.offset_of(&entry.key().map_err(|error| unreadable(keyspace, &error))?)
        })
    }

    /// Times ascend with offsets, but offsets have holes where nothing is held: each keyspace is
    /// halved by what it holds next.
    fn since(&self, at: Timestamp) -> Result<Offset, JournalError> {
        let end = self.head.end().offset;
        if self.record.is_deleted {
            return Ok(end);
        }
        let (mut low, mut high) = (self.record.floor, end);
        // Invariant: what is held at or before `low` is older; after `high`, not.
        while low < high {
            let middle = Offset(low.0 + (high.0 - low.0) / 2);
            match self.first_time(middle, high)? {
                Some((offset, time)) if time < at => low = offset,
                _ => high = middle,
            }
        }
        // Nothing is held between `low` and the first that is young enough.
        match self.first_time(low, end)? {
            Some((offset, _)) => Ok(offset.previous()),
            None => Ok(end),
        }
    }

    /// The first of log, states and marks after an offset, with its time.
    fn first_time(
        &self,
        after: Offset,
        until: Offset,
    ) -> Result<Option<(Offset, Timestamp)>, JournalError> {
        let time = |event: Event| (event.offset, event.recorded_at);
        let log = self.log(after).next().transpose()?.map(time);
        let state = self.states_by_offset(after, until).next().transpose()?.map(time);
        let mark = self.marks(after).next().transpose()?;
        let mark = mark.map(|(offset, _, time)| (offset, time));
        Ok([log, state, mark].into_iter().flatten().filter(|(at, _)| *at <= until).min())
    }

    fn marks(
        &self,
        after: Offset,
    ) -> impl Iterator<Item = Result<(Offset, Fingerprint, Timestamp), JournalError>> {
        let range = self.range(after.max(self.record.floor), Offset(u64::MAX));
        let marks = &self.store.marks;
        self.snapshot.range(marks, range).map(|entry| {
            let (key, value) = entry.into_inner().map_err(|error| unreadable(marks, &error))?;
            let wrong = || self.damaged("the mark of a state is damaged");
            let (fingerprint, time) = read_mark(&value).ok_or_else(wrong)?;
            Ok((self.offset_of(&key)?, fingerprint, time))
        })
    }

    fn excess(
        &self,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Result<Trim, Head>, JournalError> {
        if self.record.is_deleted {
            return Ok(Err(self.head));
        }
        let cutoff = retention.age.map(|age| now.minus(age));
        let is_old = |at: Timestamp| cutoff.is_some_and(|cutoff| at < cutoff);
        let (mut events, mut bytes) = (self.record.events, self.record.bytes);
        let mut floor = self.head.floor();
        let range = self.range(self.record.floor, Offset(u64::MAX));
        let log = &self.store.log;
        for entry in self.snapshot.range(log, range) {
            let (key, value) = entry.into_inner().map_err(|error| unreadable(log, &error))?;
            let event = read_event(self.topic, self.offset_of(&key)?, &value)?;
            let too_many = retention.events.is_some_and(|max| events > max);
            let too_big = retention.bytes.is_some_and(|max| bytes > max);
            if !(is_old(event.recorded_at) || too_many || too_big) {
                break;
            }
            floor.offset = event.offset;
            floor.fingerprint = event.fingerprint;
            events -= 1;
            bytes = bytes.saturating_sub(value.len() as u64);
        }
        // Times ascend with offsets, so no older log event is left before an old mark.
        if cutoff.is_some() {
            for mark in self.marks(floor.offset) {
                let (offset, fingerprint, at) = mark?;
                if !is_old(at) {
                    break;
                }
                floor.offset = offset;
                floor.fingerprint = fingerprint;
            }
        }
        // Damage there keeps nothing from being trimmed: then it is not known.
        let above = self.first_time(floor.offset, floor.offset.next()).ok().flatten();
        let oldest_at = above.map(|(_, at)| at);
        let is_known = oldest_at.is_none_or(|at| at == self.record.oldest_at);
        if floor.offset == self.record.floor && is_known {
            return Ok(Err(self.head));
        }
        Ok(Ok(Trim {
            id: self.id(),
            floor: floor.offset,
            floor_fingerprint: floor.fingerprint,
            oldest_at,
            events: self.record.events - events,
            bytes: self.record.bytes.saturating_sub(bytes),
        }))
    }

    fn offset_of(&self, key: &[u8]) -> Result<Offset, JournalError> {
        let offset = key.get(8..).and_then(split_u64).map(|(offset, _)| Offset(offset));
        offset.ok_or_else(|| self.damaged("a key of it is damaged"))
    }
}

fn get(
    snapshot: &Snapshot,
    keyspace: &Keyspace,
    key: impl AsRef<[u8]>,
) -> Result<Option<Slice>, JournalError> {
    snapshot.get(keyspace, key).map_err(|error| unreadable(keyspace, &error))
}

pub(super) fn read_event(
    topic: &TopicKey,
    offset: Offset,
    bytes: &[u8],
) -> Result<Event, JournalError> {
    record::decode(bytes, offset).map_err(|error| damaged(topic, error))
}

pub(super) fn read_state(topic: &TopicKey, bytes: &[u8]) -> Result<Event, JournalError> {
    let wrong = || damaged(topic, "a state of it is damaged");
    let (offset, record) = split_u64(bytes).ok_or_else(wrong)?;
    read_event(topic, Offset(offset), record)
}
