//! The reference adapter: everything in maps under one lock, nothing on disk.
//!
//! The rule: obviously right before fast. What another adapter does differently is that adapter's
//! mistake, or missing from the contract.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{
    Append, Appended, Batch, Change, Dedup, DeleteIf, Due, DueKind, Found, Head, Journal,
    JournalError, JournalSettings, Judged, Locate, Outcome, Page, PageLimit, Properties, Refusal,
    Retention, StateQuery, TopicInfo, TopicQuery, page::Paging, record, topic_epoch,
};
use crate::{
    clock::{Clock, SystemClock},
    model::{Class, Event, EventId, Fingerprint, Offset, Position, StateKey, Timestamp, TopicKey},
};

/// A journal that forgets everything when it is dropped.
#[derive(Debug)]
pub struct MemoryJournal {
    settings: JournalSettings,
    clock: Arc<dyn Clock>,
    store_epoch: u32,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    topics: BTreeMap<TopicKey, Held>,
    /// How often topics were deleted, so that their next history is told from their last.
    incarnations: BTreeMap<TopicKey, u32>,
    due: BTreeSet<(DueKind, Timestamp, TopicKey, Offset)>,
    closed: bool,
}

/// A topic and what it holds.
#[derive(Debug)]
struct Held {
    head: Head,
    /// Log events, tombstones and current states.
    events: BTreeMap<Offset, Stored>,
    /// The current states' offsets.
    keys: BTreeMap<StateKey, Offset>,
    /// What superseded states after the floor leave behind.
    marks: BTreeMap<Offset, (Fingerprint, Timestamp)>,
    /// The dedup window, and the order in which ids leave it.
    seen: BTreeMap<EventId, (Position, Timestamp)>,
    seen_order: VecDeque<(EventId, Offset, Timestamp)>,
    log_events: u64,
    log_bytes: u64,
    /// When the last event was recorded; `None` if there never was one.
    recorded_at: Option<Timestamp>,
    created_at: Timestamp,
    properties: Properties,
}

#[derive(Debug)]
struct Stored {
    event: Event,
    bytes: u64,
}

impl Stored {
    fn is_state(&self) -> bool {
        self.event.body.class == Class::State && !self.event.body.delete
    }
}

impl MemoryJournal {
    /// An empty journal.
    #[must_use]
    pub fn new(settings: JournalSettings) -> Self {
        Self::with_clock(settings, Arc::new(SystemClock))
    }

    /// An empty journal; the clock says when a topic was created that has no events.
    ///
    /// # Panics
    /// If the operating system has no randomness, which it has.
    #[must_use]
    pub fn with_clock(settings: JournalSettings, clock: Arc<dyn Clock>) -> Self {
        let store_epoch = getrandom::u32().expect("the operating system gives random bytes");
        Self { settings, clock, store_epoch, inner: Mutex::default() }
    }

    /// A panic under the lock leaves a map that is at worst short of one event that was not
    /// acknowledged, so a poisoned lock is used as it is.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, Inner>, JournalError> {
        let inner = self.lock();
        if inner.closed {
            return Err(JournalError::Unavailable("the journal was closed".to_owned()));
        }
        Ok(inner)
    }

    fn empty_head(&self, inner: &Inner, topic: &TopicKey) -> Head {
        let incarnation = inner.incarnations.get(topic).copied().unwrap_or(0);
        Head::empty(topic_epoch(self.store_epoch, incarnation))
    }

    fn info(&self, inner: &Inner, topic: &TopicKey) -> TopicInfo {
        match inner.topics.get(topic) {
            Some(held) => held.info(topic.clone()),
            None => TopicInfo::absent(topic.clone(), self.empty_head(inner, topic).epoch),
        }
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn append(&self, topic: &TopicKey, batch: Batch) -> Result<Appended, JournalError> {
        let mut inner = self.open()?;
        let inner = &mut *inner;
        let mut created = None;
        let mut exists = inner.topics.contains_key(topic);
        let held = match inner.topics.get_mut(topic) {
            Some(held) => held,
            None => {
                let head = self.empty_head(inner, topic);
                created.insert(Held::new(head, batch.now, Properties::default()))
            }
        };
        let recorded_at = held.recorded_at.map_or(batch.now, |last| last.max(batch.now));
        let states_max = self.settings.states_max(topic);
        let mut outcomes = Vec::with_capacity(batch.events.len());
        let mut events = Vec::with_capacity(batch.events.len());
        for append in &batch.events {
            let judged = held.judge(append, exists, &self.settings, states_max, recorded_at);
            let outcome = judged.unwrap_or_else(|| {
                if let Some(properties) = append.properties.as_ref().filter(|_| !exists) {
                    held.properties = Properties::clone(properties);
                }
                exists = true;
                // Not by the time of what was refused: a clock may go back behind it.
                held.forget_ids(&self.settings, recorded_at);
                let (event, superseded) = held.store(append, recorded_at);
                if let Some(old) = superseded {
                    due_of(topic, &old).for_each(|entry| _ = inner.due.remove(&entry));
                }
                inner.due.extend(due_of(topic, &event));
                let position = held.head.end();
                events.push(event);
                Outcome::Stored(position)
            });
            held.head.closed |= append.close && !matches!(outcome, Outcome::Refused(_));
            outcomes.push(outcome);
        }
        held.head.closed |= batch.close;
        let head = held.head;
        if let Some(held) = created.filter(|_| exists || batch.close) {
            inner.topics.insert(topic.clone(), held);
        }
        Ok(Appended { head, outcomes, events })
    }

    async fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        let inner = self.open()?;
        let mut paging = Paging::new(limit);
        let Some(held) = inner.topics.get(topic) else {
            return Ok(paging.finish(
                self.empty_head(&inner, topic),
                after,
                None,
                Offset(u64::MAX),
            ));
        };
        for (_, stored) in held.events.range((Bound::Excluded(after), Bound::Unbounded)) {
            if paging.take(stored.event.clone()).is_break() {
                break;
            }
        }
        Ok(paging.finish(held.head, after, held.known(after), Offset(u64::MAX)))
    }

    async fn states(&self, topic: &TopicKey, query: StateQuery) -> Result<Page, JournalError> {
        let inner = self.open()?;
        let mut paging = Paging::new(query.limit);
        let Some(held) = inner.topics.get(topic) else {
            let head = self.empty_head(&inner, topic);
            return Ok(paging.finish(head, query.after, None, query.until));
        };
        let wanted = |stored: &&Stored| {
            stored.is_state()
                && stored.event.offset <= query.until
                && stored
                    .event
                    .body
                    .key
                    .as_ref()
                    .is_some_and(|key| key.as_str().starts_with(&query.prefix))
        };
        let after = held.events.range((Bound::Excluded(query.after), Bound::Unbounded));
        for stored in after.map(|(_, stored)| stored).filter(wanted) {
            if paging.take(stored.event.clone()).is_break() {
                break;
            }
        }
        paging.until_fingerprint = held.known(query.until);
        Ok(paging.finish(held.head, query.after, held.known(query.after), query.until))
    }

    async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        Ok(self.info(&*self.open()?, topic))
    }

    async fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError> {
        let inner = self.open()?;
        let Some(held) = inner.topics.get(topic) else { return Ok(Offset::ZERO) };
        Ok(held.locate(from))
    }

    async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        let mut inner = self.open()?;
        if let Err(refusal) = change.judge(inner.topics.get(topic).map(|held| &held.properties)) {
            return Ok(Err(refusal));
        }
        let new =
            Held::new(self.empty_head(&inner, topic), self.clock.now(), Properties::default());
        let held = inner.topics.entry(topic.clone()).or_insert(new);
        held.properties = change.properties;
        held.head.closed |= change.close;
        Ok(Ok(held.info(topic.clone())))
    }

    async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        let mut inner = self.open()?;
        let info = self.info(&inner, topic);
        if let Err(refusal) = condition.judge(&info) {
            return Ok(Err(refusal));
        }
        if inner.topics.remove(topic).is_none() {
            return Ok(Ok(false));
        }
        inner.due.retain(|(_, _, of, _)| of != topic);
        *inner.incarnations.entry(topic.clone()).or_default() += 1;
        Ok(Ok(true))
    }

    async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Head, JournalError> {
        let mut inner = self.open()?;
        let Some(held) = inner.topics.get_mut(topic) else {
            return Ok(self.empty_head(&inner, topic));
        };
        held.trim(retention, now);
        Ok(held.head)
    }

    async fn due(&self, kind: DueKind, now: Timestamp, limit: usize) -> Found<Due> {
        let due = self.open().map(|inner| {
            let entries = inner.due.iter().filter(|(why, at, ..)| *why == kind && *at <= now);
            let due = entries.take(limit).filter_map(|(_, _, topic, offset)| {
                let event = inner.topics.get(topic)?.events.get(offset)?.event.clone();
                Some(Due { topic: topic.clone(), event, why: kind })
            });
            due.collect()
        });
        due.into()
    }

    async fn topics(&self, query: TopicQuery) -> Found<TopicInfo> {
        let topics = self.open().map(|inner| {
            let wanted = inner.topics.iter().filter(|(key, _)| {
                query.tenant.as_ref().is_none_or(|tenant| key.tenant == *tenant)
                    && key.topic.as_str().starts_with(&query.prefix)
                    && query.after.as_ref().is_none_or(|after| *key > after)
            });
            wanted.take(query.limit).map(|(key, held)| held.info(key.clone())).collect()
        });
        topics.into()
    }

    fn failure(&self) -> Option<String> {
        self.lock().closed.then(|| "the journal was closed".to_owned())
    }

    async fn close(&self) {
        self.lock().closed = true;
    }
}

/// The entries that a state has in the due index.
fn due_of(
    topic: &TopicKey,
    event: &Event,
) -> impl Iterator<Item = (DueKind, Timestamp, TopicKey, Offset)> {
    let times = [(event.body.expires_at, DueKind::Expired), (event.body.due_at, DueKind::Due)];
    let is_state = event.body.class == Class::State && !event.body.delete;
    let (topic, offset) = (topic.clone(), event.offset);
    times
        .into_iter()
        .filter(move |_| is_state)
        .filter_map(move |(at, why)| at.map(|at| (why, at, topic.clone(), offset)))
}

impl Held {
    fn new(head: Head, created_at: Timestamp, properties: Properties) -> Self {
        Self {
            head,
            events: BTreeMap::new(),
            keys: BTreeMap::new(),
            marks: BTreeMap::new(),
            seen: BTreeMap::new(),
            seen_order: VecDeque::new(),
            log_events: 0,
            log_bytes: 0,
            recorded_at: None,
            created_at,
            properties,
        }
    }

    fn info(&self, topic: TopicKey) -> TopicInfo {
        TopicInfo {
            topic,
            exists: true,
            head: self.head,
            events: self.log_events,
            bytes: self.log_bytes,
            states: self.keys.len() as u64,
            written_at: self.recorded_at.unwrap_or(self.created_at),
            oldest_at: self.oldest_at(),
            properties: self.properties.clone(),
        }
    }

    fn floor(&self) -> Offset {
        self.head.floor().offset
    }

    fn oldest_at(&self) -> Timestamp {
        let first = &self.head.earliest;
        let held = self.events.get(first).map(|stored| stored.event.recorded_at);
        held.or_else(|| self.marks.get(first).map(|(_, at)| *at)).unwrap_or_default()
    }

    /// The fingerprint at an offset, as long as it is known.
    fn known(&self, offset: Offset) -> Option<Fingerprint> {
        let position =
            [self.head.floor(), self.head.end()].into_iter().find(|p| p.offset == offset);
        let held = || self.events.get(&offset).map(|stored| stored.event.fingerprint);
        let mark = || self.marks.get(&offset).map(|(fingerprint, _)| *fingerprint);
        position.map(|position| position.fingerprint).or_else(held).or_else(mark)
    }

    fn forget_ids(&mut self, settings: &JournalSettings, now: Timestamp) {
        let tail = self.head.tail;
        let stale = |(_, offset, at): &mut (EventId, Offset, Timestamp)| {
            !settings.recognises(*offset, *at, tail, now)
        };
        while let Some((id, ..)) = self.seen_order.pop_front_if(stale) {
            self.seen.remove(&id);
        }
    }

    /// Why an event is not to be stored; `None` if it is.
    ///
    /// A repeated id comes first: whoever repeats a publish whose answer was lost is to learn its
    /// position, whatever happened to the topic since.
    fn judge(
        &self,
        append: &Append,
        exists: bool,
        settings: &JournalSettings,
        states_max: u64,
        now: Timestamp,
    ) -> Option<Outcome> {
        let event = &append.event;
        if let Some(refusal) = append.not_owner(exists.then_some(&self.properties)) {
            return Some(Outcome::Refused(refusal));
        }
        if append.dedup == Dedup::ById
            && let Some((first, at)) = self.seen.get(&event.id)
            && settings.recognises(first.offset, *at, self.head.tail, now)
        {
            return Some(Outcome::Duplicate(*first));
        }
        if self.head.closed && !append.ends_expired {
            return Some(Outcome::Refused(Refusal::Closed));
        }
        let at = event.key.as_ref().and_then(|key| self.keys.get(key));
        let current = at.and_then(|at| self.events.get(at)).map(|stored| &stored.event);
        let offset = current.map_or(Offset::ZERO, |current| current.offset);
        if append.if_offset.is_some_and(|expected| expected != offset) {
            return Some(Outcome::Refused(Refusal::Conflict { current: current.cloned() }));
        }
        let adds_state = event.class == Class::State && !event.delete && current.is_none();
        if adds_state && self.keys.len() as u64 >= states_max {
            return Some(Outcome::Refused(Refusal::StatesFull { limit: states_max }));
        }
        None
    }

    /// Stores an event at the tail; gives it back with the state that it superseded.
    fn store(&mut self, append: &Append, recorded_at: Timestamp) -> (Event, Option<Event>) {
        let offset = self.head.tail;
        let (fingerprint, bytes) = record::encode(&append.event, offset, recorded_at);
        let event = Event { offset, fingerprint, recorded_at, body: append.event.clone() };
        let stored = Stored { event: event.clone(), bytes: bytes.len() as u64 };
        let mut superseded = None;
        if let Some(key) = &append.event.key {
            let old = if append.event.delete {
                self.keys.remove(key)
            } else {
                self.keys.insert(key.clone(), offset)
            };
            superseded = old.and_then(|old| self.events.remove(&old)).map(|stored| stored.event);
        }
        if let Some(old) = superseded.as_ref().filter(|old| old.offset > self.floor()) {
            self.marks.insert(old.offset, (old.fingerprint, old.recorded_at));
        }
        if !stored.is_state() {
            self.log_events += 1;
            self.log_bytes += stored.bytes;
        }
        self.events.insert(offset, stored);
        self.head.tail = offset.next();
        self.head.tail_fingerprint = fingerprint;
        self.recorded_at = Some(recorded_at);
        if append.dedup == Dedup::ById {
            self.seen.insert(append.event.id.clone(), (self.head.end(), recorded_at));
            self.seen_order.push_back((append.event.id.clone(), offset, recorded_at));
        }
        (event, superseded)
    }

    fn locate(&self, from: Locate) -> Offset {
        let end = self.head.end().offset;
        let mut held = self.events.range(self.head.earliest..);
        match from {
            Locate::Latest(0) => end,
            Locate::Latest(count) => {
                let nth = usize::try_from(count - 1).unwrap_or(usize::MAX);
                held.nth_back(nth).map_or(self.floor(), |(offset, _)| offset.previous())
            }
            Locate::Since(at) => {
                let held = held.find(|(_, stored)| stored.event.recorded_at >= at);
                let mark = self.marks.iter().find(|(_, (_, recorded_at))| *recorded_at >= at);
                let offsets = [held.map(|(offset, _)| offset), mark.map(|(offset, _)| offset)];
                offsets.into_iter().flatten().min().map_or(end, |offset| offset.previous())
            }
        }
    }

    fn trim(&mut self, retention: &Retention, now: Timestamp) {
        let cutoff = retention.age.map(|age| now.minus(age));
        let is_old = |at: Timestamp| cutoff.is_some_and(|cutoff| at < cutoff);
        let mut floor = self.head.floor();
        let log: Vec<Offset> =
            self.events.iter().filter(|(_, held)| !held.is_state()).map(|(at, _)| *at).collect();
        for offset in log {
            let Some(stored) = self.events.get(&offset) else { continue };
            let too_many = retention.events.is_some_and(|max| self.log_events > max);
            let too_big = retention.bytes.is_some_and(|max| self.log_bytes > max);
            if !(is_old(stored.event.recorded_at) || too_many || too_big) {
                break;
            }
            floor.offset = offset;
            floor.fingerprint = stored.event.fingerprint;
            self.log_events -= 1;
            self.log_bytes -= stored.bytes;
            self.events.remove(&offset);
        }
        // Times ascend with offsets, so no older log event is left before an old mark.
        for (offset, (fingerprint, at)) in &self.marks {
            if *offset > floor.offset && is_old(*at) {
                floor.offset = *offset;
                floor.fingerprint = *fingerprint;
            }
        }
        self.marks.retain(|offset, _| *offset > floor.offset);
        self.head.earliest = floor.offset.next();
        self.head.floor_fingerprint = floor.fingerprint;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{journal::contract::Store, journal_contract};

    async fn store(settings: JournalSettings) -> Store {
        Store::new(Arc::new(MemoryJournal::new(settings)))
    }

    journal_contract!(memory, store);
}
