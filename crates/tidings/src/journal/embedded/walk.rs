//! Walks over everything that a store holds, for tools that must go on where something is damaged.
//!
//! The rule: what cannot be read is told by its place, and what follows it is read.

use std::{iter, iter::Peekable, ops::Bound};

use fjall::{Keyspace, Readable as _, Slice, Snapshot};

use super::{
    damage::describe,
    layout::{
        FIRST_TOPIC, Store, TopicRecord, named_key, offset_key, read_mark, read_seen,
        read_topic_key, split_u64,
    },
};
use crate::{
    journal::record,
    model::{Event, Fingerprint, Offset, Timestamp, TopicKey},
};

/// What is wrong at a place that whoever walks knows.
pub(super) type Wrong = String;

fn unreadable(keyspace: &Keyspace, error: &fjall::Error) -> Wrong {
    let (at, name, what) = (keyspace.path().display(), keyspace.name(), describe(error));
    format!("{at}: the tables of `{name}`: {what}")
}

/// A topic of a snapshot.
pub(super) struct Topic<'a> {
    pub(super) key: TopicKey,
    pub(super) record: TopicRecord,
    store: &'a Store,
    snapshot: &'a Snapshot,
}

/// What is at an offset.
pub(super) enum Held {
    /// A log event or tombstone, and its bytes as stored.
    Log(Event, u64),
    State(Event),
    Mark(Fingerprint, Timestamp),
}

/// An offset, and what is there or why it cannot be read.
pub(super) type At = (Offset, Result<Held, Wrong>);

/// An id that was seen, with where and when.
pub(super) type Seen = (String, Offset, Fingerprint, Timestamp);

/// The topics of a store; a name whose record is damaged is told instead.
pub(super) fn topics<'a>(
    store: &'a Store,
    snapshot: &'a Snapshot,
) -> impl Iterator<Item = Result<Topic<'a>, Wrong>> {
    let topics = &store.topics;
    entries(snapshot, topics, FIRST_TOPIC.to_vec()).map(move |entry| {
        let (key, value) = entry?;
        let wrong = || {
            let name = String::from_utf8_lossy(&key).replace('\0', ", topic ");
            format!("tenant {name}: its record is damaged")
        };
        let record = TopicRecord::read(&value).ok_or_else(wrong)?;
        let key = read_topic_key(&key).ok_or_else(wrong)?;
        Ok(Topic { key, record, store, snapshot })
    })
}

/// The entries of a keyspace from a key on, until one cannot be read.
pub(super) fn entries<'a>(
    snapshot: &'a Snapshot,
    keyspace: &'a Keyspace,
    from: Vec<u8>,
) -> impl Iterator<Item = Result<(Slice, Slice), Wrong>> + 'a {
    let mut entries = snapshot.range(keyspace, from..);
    let mut failed = false;
    iter::from_fn(move || {
        if failed {
            return None;
        }
        let entry = entries.next()?.into_inner().map_err(|error| unreadable(keyspace, &error));
        failed = entry.is_err();
        Some(entry)
    })
}

/// The ids of topics that a keyspace holds something of: a seek for each.
pub(super) fn ids(
    snapshot: &Snapshot,
    keyspace: &Keyspace,
) -> impl Iterator<Item = Result<u64, Wrong>> {
    let mut from = Some(1_u64);
    iter::from_fn(move || {
        let key = snapshot.range(keyspace, from?.to_be_bytes()..).next()?.key();
        let id = key.map_err(|error| unreadable(keyspace, &error));
        let id = id.map(|key| split_u64(&key).map_or(u64::MAX, |(id, _)| id));
        from = id.as_ref().ok().and_then(|id| id.checked_add(1));
        Some(id)
    })
}

impl<'a> Topic<'a> {
    /// What is at each offset, in their order; states from below the floor first.
    pub(super) fn held(&self) -> impl Iterator<Item = At> + '_ {
        let floor = self.record.floor;
        let log = self.values(&self.store.log, floor).map(|(offset, value)| {
            let event = value.and_then(|value| {
                let event = record::decode(&value, offset).map_err(|error| error.to_string())?;
                Ok(Held::Log(event, value.len() as u64))
            });
            (offset, event)
        });
        let states = self.values(&self.store.places, Offset::ZERO).map(|(offset, key)| {
            (offset, key.and_then(|key| self.state(offset, &key).map(Held::State)))
        });
        let marks = self.values(&self.store.marks, floor).map(|(offset, value)| {
            let mark = value.and_then(|value| {
                let mark = read_mark(&value).ok_or("the mark of a state is damaged")?;
                Ok(Held::Mark(mark.0, mark.1))
            });
            (offset, mark)
        });
        merged(log, merged(states, marks))
    }

    /// The key and offset of each current state.
    pub(super) fn states(&self) -> impl Iterator<Item = Result<Event, Wrong>> + '_ {
        self.named(&self.store.states).map(|entry| read_state(&entry?.1))
    }

    /// The ids that were seen.
    pub(super) fn seen(&self) -> impl Iterator<Item = Result<Seen, Wrong>> + '_ {
        self.named(&self.store.dedup).map(|entry| {
            let (id, value) = entry?;
            let wrong = || "an id that was seen is damaged".to_owned();
            let (offset, fingerprint, at) = read_seen(&value).ok_or_else(wrong)?;
            let id = String::from_utf8(id.to_vec()).map_err(|_| wrong())?;
            Ok((id, offset, fingerprint, at))
        })
    }

    fn state(&self, offset: Offset, key: &[u8]) -> Result<Event, Wrong> {
        let wrong = || "the state that was here is missing".to_owned();
        let key = std::str::from_utf8(key).map_err(|_| wrong())?;
        let states = &self.store.states;
        let value = self.snapshot.get(states, named_key(self.record.id, key));
        let value = value.map_err(|error| unreadable(states, &error))?.ok_or_else(wrong)?;
        let event = read_state(&value)?;
        if event.offset == offset { Ok(event) } else { Err(wrong()) }
    }

    /// Entries of a keyspace by name, without the topic's id, until one cannot be read.
    fn named<'b>(
        &'b self,
        keyspace: &'b Keyspace,
    ) -> impl Iterator<Item = Result<(Slice, Slice), Wrong>> + 'b {
        let id = self.record.id.to_be_bytes();
        let own = move |entry: &Result<(Slice, Slice), _>| {
            entry.as_ref().map_or(true, |(key, _)| key.starts_with(&id))
        };
        let entries = entries(self.snapshot, keyspace, id.to_vec()).take_while(own);
        entries
            .map(|entry| entry.map(|(key, value)| (key.get(8..).unwrap_or_default().into(), value)))
    }

    /// Entries of a keyspace by offset. Where a table cannot be read, each offset is asked for.
    fn values<'b>(
        &'b self,
        keyspace: &'b Keyspace,
        after: Offset,
    ) -> impl Iterator<Item = (Offset, Result<Slice, Wrong>)> + 'b {
        let (id, end) = (self.record.id, self.record.tail);
        let key = move |offset| offset_key(id, offset);
        let range = (Bound::Excluded(key(after)), Bound::Included(key(Offset(u64::MAX))));
        let mut entries = Some(self.snapshot.range(keyspace, range));
        let mut last = after;
        iter::from_fn(move || {
            if let Some(iter) = &mut entries {
                match iter.next()?.into_inner() {
                    Ok((key, value)) => {
                        let offset = key.get(8..).and_then(split_u64);
                        last = offset.map_or(last.next(), |(offset, _)| Offset(offset));
                        return Some((last, Ok(value)));
                    }
                    Err(_) => entries = None,
                }
            }
            loop {
                last = last.next();
                if last >= end {
                    return None;
                }
                match self.snapshot.get(keyspace, key(last)) {
                    Ok(Some(value)) => return Some((last, Ok(value))),
                    Ok(None) => {}
                    Err(error) => return Some((last, Err(unreadable(keyspace, &error)))),
                }
            }
        })
    }
}

fn read_state(bytes: &[u8]) -> Result<Event, Wrong> {
    let (offset, record) = split_u64(bytes).ok_or("a state is damaged")?;
    record::decode(record, Offset(offset)).map_err(|error| format!("a state: {error}"))
}

/// Two ascending sequences as one.
fn merged<'a>(
    one: impl Iterator<Item = At> + 'a,
    other: impl Iterator<Item = At> + 'a,
) -> impl Iterator<Item = At> + 'a {
    let (mut one, mut other) = (one.peekable(), other.peekable());
    iter::from_fn(move || {
        fn offset(at: &mut Peekable<impl Iterator<Item = At>>) -> Option<Offset> {
            at.peek().map(|(offset, _)| *offset)
        }
        match (offset(&mut one), offset(&mut other)) {
            (Some(first), Some(second)) if second < first => other.next(),
            (Some(_), _) => one.next(),
            (None, _) => other.next(),
        }
    })
}
