//! Reading: pages from a snapshot, each record checked.

use std::{ops::Bound, sync::Arc};

use fjall::{Readable as _, Snapshot};

use super::{
    due_start::DueStart,
    layout::{
        FIRST_TOPIC, Store, TopicRecord, due_begin, due_end, named_key, offset_key, read_mark,
        read_topic_key, split_u64, topic_key, topic_prefix,
    },
    writer::{Trim, damaged, unreadable},
};
use crate::{
    journal::{
        Due, DueKind, Head, JournalError, Locate, Page, PageLimit, Properties, Retention,
        StateQuery, TopicInfo, TopicQuery, page::Paging, record,
    },
    model::{Event, Fingerprint, Offset, Timestamp, TopicKey},
};

#[derive(Clone)]
pub(super) struct Reader {
    pub(super) store: Store,
    pub(super) store_epoch: u32,
    pub(super) due_start: Arc<DueStart>,
}

/// A topic in a snapshot.
struct View<'a> {
    store: &'a Store,
    snapshot: Snapshot,
    record: TopicRecord,
    head: Head,
}

type EventIter<'a> = Box<dyn Iterator<Item = Result<Event, JournalError>> + 'a>;

impl Reader {
    fn view(&self, topic: &TopicKey) -> Result<View<'_>, JournalError> {
        let snapshot = self.store.db.snapshot();
        let bytes = snapshot
            .get(&self.store.topics, topic_key(topic))
            .map_err(|error| unreadable(&error))?;
        let record = match bytes {
            Some(bytes) => TopicRecord::read(&bytes).ok_or_else(|| damaged(topic))?,
            None => TopicRecord {
                is_deleted: true,
                ..TopicRecord::new(0, 0, Timestamp::default(), Properties::default())
            },
        };
        let head = record.head(self.store_epoch);
        Ok(View { store: &self.store, snapshot, record, head })
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
        let snapshot = self.store.db.snapshot();
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
            let (entry, value) = entry.into_inner().map_err(|error| unreadable(&error))?;
            let wrong = || JournalError::Broken("an entry of the due index is damaged".to_owned());
            let (at, state_key) = entry.get(1..).and_then(split_u64).ok_or_else(wrong)?;
            first = first.or(Some(at));
            let (offset, topic) = split_u64(&value).ok_or_else(wrong)?;
            let topic = read_topic_key(topic).ok_or_else(wrong)?;
            let state =
                snapshot.get(&self.store.states, state_key).map_err(|error| unreadable(&error))?;
            let event = state.map(|state| read_state(&state)).transpose()?;
            if let Some(event) = event.filter(|event| event.offset == Offset(offset)) {
                due.push(Due { topic, event, why: kind });
            }
        }
        if limit > 0 {
            let after = now.as_millis().saturating_add(1);
            self.due_start.found(kind, start, Timestamp::from_millis(first.unwrap_or(after)));
        }
        Ok(due)
    }

    pub(super) fn topics(&self, query: &TopicQuery) -> Result<Vec<TopicInfo>, JournalError> {
        let snapshot = self.store.db.snapshot();
        let prefix = query.tenant.as_ref().map(|tenant| topic_prefix(tenant, &query.prefix));
        let prefix = prefix.unwrap_or_default();
        let start = match &query.after {
            Some(after) if topic_key(after) >= prefix => Bound::Excluded(topic_key(after)),
            _ => Bound::Included(prefix.clone().max(FIRST_TOPIC.to_vec())),
        };
        let mut topics = Vec::new();
        for entry in snapshot.range(&self.store.topics, (start, Bound::Unbounded)) {
            let (key, value) = entry.into_inner().map_err(|error| unreadable(&error))?;
            if topics.len() == query.limit || !key.starts_with(&prefix) {
                break;
            }
            let wrong = || JournalError::Broken("the record of a topic is damaged".to_owned());
            let topic = read_topic_key(&key).ok_or_else(wrong)?;
            let record = TopicRecord::read(&value).ok_or_else(wrong)?;
            if !record.is_deleted && topic.topic.as_str().starts_with(&query.prefix) {
                topics.push(record.info(topic, self.store_epoch));
            }
        }
        Ok(topics)
    }
}

impl View<'_> {
    fn id(&self) -> u64 {
        self.record.id
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
        let entries = self.snapshot.range(&self.store.log, range);
        Box::new(entries.map(|entry| {
            let (key, value) = entry.into_inner().map_err(|error| unreadable(&error))?;
            read_event(offset_of(&key)?, &value)
        }))
    }

    /// Current states after an offset, by offset.
    fn states_by_offset(&self, after: Offset, until: Offset) -> EventIter<'_> {
        if self.record.is_deleted || self.record.states == 0 {
            return Box::new(std::iter::empty());
        }
        let entries = self.snapshot.range(&self.store.places, self.range(after, until));
        Box::new(entries.map(|entry| {
            let (place, key) = entry.into_inner().map_err(|error| unreadable(&error))?;
            let wrong = || JournalError::Broken("the order of states is damaged".to_owned());
            let key = std::str::from_utf8(&key).map_err(|_| wrong())?;
            let key = named_key(self.id(), key);
            let value =
                self.snapshot.get(&self.store.states, key).map_err(|error| unreadable(&error))?;
            let event = read_state(&value.ok_or_else(wrong)?)?;
            if event.offset == offset_of(&place)? { Ok(event) } else { Err(wrong()) }
        }))
    }

    fn states(&self, query: &StateQuery) -> Result<EventIter<'_>, JournalError> {
        if self.record.is_deleted {
            return Ok(Box::new(std::iter::empty()));
        }
        if query.prefix.is_empty() {
            return Ok(self.states_by_offset(query.after, query.until));
        }
        // By key is a seek, however many other states there are; then by offset.
        let mut events = Vec::new();
        let prefix = named_key(self.id(), &query.prefix);
        for entry in self.snapshot.prefix(&self.store.states, prefix) {
            let event = read_state(&entry.value().map_err(|error| unreadable(&error))?)?;
            if query.after < event.offset && event.offset <= query.until {
                events.push(event);
            }
        }
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
            if let Some(bytes) =
                self.snapshot.get(&self.store.log, key).map_err(|error| unreadable(&error))?
            {
                return read_event(offset, &bytes).map(|event| Some(event.fingerprint));
            }
            if let Some(bytes) =
                self.snapshot.get(&self.store.marks, key).map_err(|error| unreadable(&error))?
            {
                return Ok(read_mark(&bytes).map(|(fingerprint, _)| fingerprint));
            }
        }
        let before = offset.previous();
        let state = self.states_by_offset(before, offset).next().transpose()?;
        Ok(state.map(|state| state.fingerprint))
    }

    fn latest(&self, count: u64) -> Result<Offset, JournalError> {
        let range = || self.range(self.record.floor, Offset(u64::MAX));
        if self.record.is_deleted {
            return Ok(Offset::ZERO);
        }
        let offsets = |keyspace| {
            let entries = self.snapshot.range(keyspace, range()).rev();
            entries.map(|entry| offset_of(&entry.key().map_err(|error| unreadable(&error))?))
        };
        let mut log = offsets(&self.store.log).peekable();
        let mut states = offsets(&self.store.places).peekable();
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
        self.snapshot.range(&self.store.marks, range).map(|entry| {
            let (key, value) = entry.into_inner().map_err(|error| unreadable(&error))?;
            let wrong = || JournalError::Broken("the mark of a state is damaged".to_owned());
            let (fingerprint, time) = read_mark(&value).ok_or_else(wrong)?;
            Ok((offset_of(&key)?, fingerprint, time))
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
        for entry in self.snapshot.range(&self.store.log, range) {
            let (key, value) = entry.into_inner().map_err(|error| unreadable(&error))?;
            let event = read_event(offset_of(&key)?, &value)?;
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
        if floor.offset == self.record.floor {
            return Ok(Err(self.head));
        }
        Ok(Ok(Trim {
            id: self.id(),
            floor: floor.offset,
            floor_fingerprint: floor.fingerprint,
            events: self.record.events - events,
            bytes: self.record.bytes.saturating_sub(bytes),
        }))
    }
}

fn offset_of(key: &[u8]) -> Result<Offset, JournalError> {
    let offset = key.get(8..).and_then(split_u64).map(|(offset, _)| Offset(offset));
    offset.ok_or_else(|| JournalError::Broken("a key of the store is damaged".to_owned()))
}

fn read_event(offset: Offset, bytes: &[u8]) -> Result<Event, JournalError> {
    record::decode(bytes, offset).map_err(|error| {
        tracing::error!(%error, "a stored event is damaged and is not served");
        JournalError::Broken(error.to_string())
    })
}

pub(super) fn read_state(bytes: &[u8]) -> Result<Event, JournalError> {
    let wrong = || JournalError::Broken("a stored state is damaged".to_owned());
    let (offset, record) = split_u64(bytes).ok_or_else(wrong)?;
    read_event(Offset(offset), record)
}
