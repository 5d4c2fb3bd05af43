//! What is where in the store: keyspaces, keys, and the record of a topic.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `topics` | tenant, 0, topic | the topic's record, under a checksum |
//! | `log` | topic id, offset | event record: log events and tombstones; written once |
//! | `states` | topic id, key | offset, event record: the newest of each key |
//! | `places` | topic id, offset | key: where the current states are in the order of offsets |
//! | `marks` | topic id, offset | fingerprint and time of a superseded state; written once |
//! | `dedup` | topic id, event id | position and time of the first |
//! | `due` | kind, time, topic id, key | offset, tenant, 0, topic |
//! | `floors` | topic id | everything of this topic up to here may be reclaimed |
//! | `meta` | `store` | what the store knows of itself, under a checksum; in every commit |
//! | `meta` | `deleted`, tenant, 0, slot | how often topics of this slot were deleted, under a checksum |
//!
//! A deleted topic leaves nothing behind but its slot's count, which is where the next history of
//! any topic of that slot begins: so an epoch never comes back, and there are so many counts at most.
//!
//! Each keyspace also has the key `\0`, so that one whose files were lost, and which the store
//! would take for an empty one, is told from it.
//!
//! Numbers are big endian, so that bytes sort as numbers do. Names are interned as topic ids, a
//! fresh one for each incarnation, so that a deleted topic's bytes can never be read as another's.

use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::snapshot::Committing;
use crate::{
    journal::{DueKind, Head, JournalError, Properties, TopicInfo, topic_epoch},
    model::{Fingerprint, Offset, Position, StateKey, Tenant, Timestamp, Topic, TopicKey},
};

/// Bytes of one keyspace's memtable: 16-32 MiB kept flush hiccups short (measured 2026-11).
pub(super) const MEMTABLE_BYTES: u64 = 16 * 1024 * 1024;
/// Of keyspaces whose keys are replaced or removed all the time, and scanned: what was replaced is
/// passed over in the memtable, one by one, until it is flushed.
const CHURNING_MEMTABLE_BYTES: u64 = 2 * 1024 * 1024;

/// The keyspaces, by the names above.
#[derive(Clone)]
pub(super) struct Store {
    pub(super) db: Database,
    pub(super) topics: Keyspace,
    pub(super) log: Keyspace,
    pub(super) states: Keyspace,
    pub(super) places: Keyspace,
    pub(super) marks: Keyspace,
    pub(super) dedup: Keyspace,
    pub(super) due: Keyspace,
    pub(super) floors: Keyspace,
    pub(super) meta: Keyspace,
    pub(super) committing: Arc<Committing>,
}

impl Store {
    /// Opens the keyspaces. Memtables take so many bytes at most in a store that is new; one that
    /// is there keeps what it was made with.
    pub(super) fn open(db: Database, memtable_bytes: u64) -> Result<Self, fjall::Error> {
        let open = |name, bytes: u64| {
            let bytes = bytes.min(memtable_bytes);
            db.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(bytes))
        };
        Ok(Self {
            topics: open("topics", CHURNING_MEMTABLE_BYTES)?,
            log: open("log", MEMTABLE_BYTES)?,
            states: open("states", CHURNING_MEMTABLE_BYTES)?,
            places: open("places", CHURNING_MEMTABLE_BYTES)?,
            marks: open("marks", MEMTABLE_BYTES)?,
            dedup: open("dedup", MEMTABLE_BYTES)?,
            due: open("due", CHURNING_MEMTABLE_BYTES)?,
            floors: open("floors", CHURNING_MEMTABLE_BYTES)?,
            meta: open("meta", CHURNING_MEMTABLE_BYTES)?,
            committing: Arc::default(),
            db,
        })
    }
}

impl Store {
    /// Marks the keyspaces of a store that was just made.
    pub(super) fn mark_keyspaces(&self) -> Result<(), fjall::Error> {
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
        for keyspace in self.keyspaces() {
            batch.insert(keyspace, SENTINEL, "");
        }
        batch.commit()
    }

    /// How many there are. The store numbers them from 1, in the order in which they are made.
    pub(super) const KEYSPACES: usize = 9;

    pub(super) fn keyspaces(&self) -> [&Keyspace; Self::KEYSPACES] {
        let Self {
            topics,
            log,
            states,
            places,
            marks,
            dedup,
            due,
            floors,
            meta,
            db: _,
            committing: _,
        } = self;
        [topics, log, states, places, marks, dedup, due, floors, meta]
    }
}

/// In every keyspace, before all other keys; no id, name or kind begins with it.
pub(super) const SENTINEL: [u8; 1] = [0];

/// Where the topics of all tenants begin.
pub(super) const FIRST_TOPIC: [u8; 1] = [1];

/// Whether a key is a keyspace's own.
pub(super) fn is_sentinel(key: &[u8]) -> bool {
    key == SENTINEL
}

/// The key of a topic's record.
pub(super) fn topic_key(topic: &TopicKey) -> Vec<u8> {
    topic_prefix(&topic.tenant, topic.topic.as_str())
}

/// Where the records of a tenant's topics begin that start with a text.
pub(super) fn topic_prefix(tenant: &Tenant, prefix: &str) -> Vec<u8> {
    // Names have no NUL, so no tenant's keys begin like another's.
    [tenant.as_str().as_bytes(), &[0], prefix.as_bytes()].concat()
}

/// Reads the key of a topic's record.
pub(super) fn read_topic_key(bytes: &[u8]) -> Option<TopicKey> {
    let (tenant, topic) = std::str::from_utf8(bytes).ok()?.split_once('\0')?;
    Some(TopicKey::new(Tenant::parse(tenant).ok()?, Topic::parse(topic).ok()?))
}

pub(super) fn offset_key(id: u64, offset: Offset) -> [u8; 16] {
    let mut key = [0; 16];
    let (head, tail) = key.split_at_mut(8);
    head.copy_from_slice(&id.to_be_bytes());
    tail.copy_from_slice(&offset.0.to_be_bytes());
    key
}

pub(super) fn named_key(id: u64, name: &str) -> Vec<u8> {
    [&id.to_be_bytes(), name.as_bytes()].concat()
}

pub(super) fn due_key(kind: DueKind, at: Timestamp, id: u64, key: &StateKey) -> Vec<u8> {
    let at = at.as_millis().to_be_bytes();
    [&[due_kind(kind)][..], &at, &id.to_be_bytes(), key.as_str().as_bytes()].concat()
}

/// Due entries of a kind that are not before a time sort from here on.
pub(super) fn due_begin(kind: DueKind, from: Timestamp) -> Vec<u8> {
    [&[due_kind(kind)][..], &from.as_millis().to_be_bytes()].concat()
}

/// Due entries of a kind that are not after a time sort before this.
pub(super) fn due_end(kind: DueKind, now: Timestamp) -> Vec<u8> {
    [&[due_kind(kind)][..], &now.as_millis().saturating_add(1).to_be_bytes()].concat()
}

const fn due_kind(kind: DueKind) -> u8 {
    match kind {
        DueKind::Expired => 1,
        DueKind::Due => 2,
    }
}

/// An entry of the due index.
#[derive(Debug)]
pub(super) struct DueEntry {
    pub(super) at: Timestamp,
    /// The state's key in `states`.
    pub(super) state_key: Vec<u8>,
    pub(super) offset: Offset,
    pub(super) topic: TopicKey,
}

/// Writes where a state in the due index is.
pub(super) fn write_due(topic: &TopicKey, offset: Offset) -> Vec<u8> {
    [&offset.0.to_be_bytes()[..], &topic_key(topic)].concat()
}

pub(super) fn read_due(key: &[u8], value: &[u8]) -> Option<DueEntry> {
    let (at, state_key) = split_u64(key.get(1..)?)?;
    let (offset, topic) = split_u64(value)?;
    Some(DueEntry {
        at: Timestamp::from_millis(at),
        state_key: state_key.to_vec(),
        offset: Offset(offset),
        topic: read_topic_key(topic)?,
    })
}

/// Reads a big-endian number and what follows it.
pub(super) fn split_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u64::from_be_bytes(*number), rest))
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

/// Where an event id was first stored.
pub(super) fn write_seen(position: Position, at: Timestamp) -> Vec<u8> {
    let fingerprint = position.fingerprint.0.to_be_bytes();
    [&position.offset.0.to_be_bytes()[..], &fingerprint, &at.as_millis().to_be_bytes()].concat()
}

pub(super) fn read_seen(bytes: &[u8]) -> Option<(Offset, Fingerprint, Timestamp)> {
    let (offset, rest) = split_u64(bytes)?;
    let (fingerprint, rest) = split_u32(rest)?;
    let (at, _) = split_u64(rest)?;
    Some((Offset(offset), Fingerprint(fingerprint), Timestamp::from_millis(at)))
}

pub(super) fn write_mark(fingerprint: Fingerprint, at: Timestamp) -> Vec<u8> {
    [&fingerprint.0.to_be_bytes()[..], &at.as_millis().to_be_bytes()].concat()
}

pub(super) fn read_mark(bytes: &[u8]) -> Option<(Fingerprint, Timestamp)> {
    let (fingerprint, rest) = split_u32(bytes)?;
    let (at, _) = split_u64(rest)?;
    Some((Fingerprint(fingerprint), Timestamp::from_millis(at)))
}

/// What the whole store knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// Drawn once and told to nobody: what begins with it is a commit of this store, and nothing
    /// that a publisher wrote.
    pub(super) secret: u64,
    pub(super) store_epoch: u32,
    pub(super) next_id: u64,
    pub(super) commits: u64,
}

/// The key of what the store knows of itself.
pub(super) const META: &str = "store";

impl Meta {
    /// Bytes of a written one.
    pub(super) const BYTES: usize = 32;

    pub(super) fn write(&self) -> Vec<u8> {
        let numbers = [self.next_id.to_be_bytes(), self.commits.to_be_bytes()].concat();
        let body =
            [&self.secret.to_be_bytes()[..], &self.store_epoch.to_be_bytes(), &numbers].concat();
        [&crc32c::crc32c(&body).to_be_bytes()[..], &body].concat()
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (sum, body) = split_u32(bytes)?;
        if bytes.len() != Self::BYTES || crc32c::crc32c(body) != sum {
            return None;
        }
        let (secret, rest) = split_u64(body)?;
        let (store_epoch, rest) = split_u32(rest)?;
        let (next_id, rest) = split_u64(rest)?;
        let (commits, _) = split_u64(rest)?;
        Some(Self { secret, store_epoch, next_id, commits })
    }
}

/// Slots of each tenant that deletions are counted in: a million counts take some 20 MB, and the
/// deletion of a topic gives one in a million others that were never written another epoch.
const DELETION_SLOTS: u32 = 1 << 20;

/// Begins the keys of all counts of deletions.
pub(super) const DELETIONS: &str = "deleted";

/// The key of the count that a topic's deletions are in: one of its tenant, so that no tenant can
/// tell what another deletes.
pub(super) fn deletions_key(topic: &TopicKey) -> Vec<u8> {
    let slot = crc32c::crc32c(topic.topic.as_str().as_bytes()) % DELETION_SLOTS;
    let tenant = topic.tenant.as_str().as_bytes();
    [DELETIONS.as_bytes(), tenant, &[0], &slot.to_be_bytes()].concat()
}

/// Writes a count of deletions, which belongs to its key.
pub(super) fn write_deletions(key: &[u8], count: u32) -> Vec<u8> {
    let count = count.to_be_bytes();
    let sum = crc32c::crc32c_append(crc32c::crc32c(key), &count);
    [sum.to_be_bytes(), count].concat()
}

pub(super) fn read_deletions(key: &[u8], bytes: &[u8]) -> Option<u32> {
    let (sum, count) = split_u32(bytes)?;
    let is_sound = crc32c::crc32c_append(crc32c::crc32c(key), count) == sum;
    split_u32(count).filter(|(_, rest)| is_sound && rest.is_empty()).map(|(count, _)| count)
}

/// A topic as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicRecord {
    pub(super) id: u64,
    /// The count of its deletions when it was created.
    pub(super) incarnation: u32,
    /// Not there, and so in no store: never written, or deleted.
    pub(super) is_deleted: bool,
    pub(super) closed: bool,
    pub(super) tail: Offset,
    pub(super) tail_fingerprint: Fingerprint,
    pub(super) floor: Offset,
    pub(super) floor_fingerprint: Fingerprint,
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) states: u64,
    /// When it was created, or the last event recorded.
    pub(super) written_at: Timestamp,
    /// When what is right above the floor was recorded; the default while that is not known, or
    /// nothing is there.
    pub(super) oldest_at: Timestamp,
    /// Whether it ever had an event, so that `written_at` is one's time.
    pub(super) has_events: bool,
    pub(super) properties: Properties,
}

const RECORD_VERSION: u8 = 1;
/// Bytes of a record without properties.
const RECORD_BYTES: usize = 82;
const CLOSED: u8 = 1 << 1;
const HAS_EVENTS: u8 = 1 << 2;

impl TopicRecord {
    pub(super) fn new(id: u64, incarnation: u32, now: Timestamp, properties: Properties) -> Self {
        Self {
            id,
            incarnation,
            is_deleted: false,
            closed: false,
            tail: Offset(1),
            tail_fingerprint: Fingerprint(0),
            floor: Offset::ZERO,
            floor_fingerprint: Fingerprint(0),
            events: 0,
            bytes: 0,
            states: 0,
            written_at: now,
            oldest_at: Timestamp::default(),
            has_events: false,
            properties,
        }
    }

    /// What a topic is that is not there.
    pub(super) fn absent(incarnation: u32) -> Self {
        let none = Self::new(0, incarnation, Timestamp::default(), Properties::default());
        Self { is_deleted: true, ..none }
    }

    /// The fingerprint of what is missing at an offset.
    pub(super) fn stand_in(&self, offset: Offset) -> Fingerprint {
        if offset.next() == self.tail { self.tail_fingerprint } else { Fingerprint(0) }
    }

    pub(super) fn head(&self, store_epoch: u32) -> Head {
        Head {
            epoch: topic_epoch(store_epoch, self.incarnation),
            earliest: self.floor.next(),
            tail: self.tail,
            tail_fingerprint: self.tail_fingerprint,
            floor_fingerprint: self.floor_fingerprint,
            closed: self.closed,
        }
    }

    pub(super) fn info(&self, topic: TopicKey, store_epoch: u32) -> TopicInfo {
        let head = self.head(store_epoch);
        if self.is_deleted {
            return TopicInfo::absent(topic, head.epoch);
        }
        TopicInfo {
            topic,
            exists: true,
            head,
            events: self.events,
            bytes: self.bytes,
            states: self.states,
            written_at: self.written_at,
            oldest_at: self.oldest_at,
            properties: self.properties.clone(),
        }
    }

    pub(super) fn write(&self) -> Result<Vec<u8>, JournalError> {
        let mut flags = 0;
        flags |= if self.closed { CLOSED } else { 0 };
        flags |= if self.has_events { HAS_EVENTS } else { 0 };
        let mut out = Vec::with_capacity(RECORD_BYTES);
        out.extend([0, 0, 0, 0, RECORD_VERSION, flags]);
        out.extend(self.id.to_be_bytes());
        out.extend(self.incarnation.to_be_bytes());
        out.extend(self.tail_fingerprint.0.to_be_bytes());
        out.extend(self.floor_fingerprint.0.to_be_bytes());
        let numbers = [self.tail.0, self.floor.0, self.events, self.bytes, self.states];
        out.extend(numbers.into_iter().flat_map(u64::to_be_bytes));
        out.extend(self.written_at.as_millis().to_be_bytes());
        out.extend(self.oldest_at.as_millis().to_be_bytes());
        if self.properties != Properties::default() {
            let properties = serde_json::to_vec(&self.properties);
            let wrong = |error| JournalError::Broken(format!("properties: {error}"));
            out.extend(properties.map_err(wrong)?);
        }
        let sum = crc32c::crc32c(out.get(4..).unwrap_or_default());
        if let Some(slot) = out.first_chunk_mut() {
            *slot = sum.to_be_bytes();
        }
        Ok(out)
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (sum, body) = split_u32(bytes)?;
        if crc32c::crc32c(body) != sum {
            return None;
        }
        let ([RECORD_VERSION, flags], rest) = body.split_first_chunk()? else { return None };
        let (id, rest) = split_u64(rest)?;
        let (incarnation, rest) = split_u32(rest)?;
        let (tail_fingerprint, rest) = split_u32(rest)?;
        let (floor_fingerprint, rest) = split_u32(rest)?;
        let (tail, rest) = split_u64(rest)?;
        let (floor, rest) = split_u64(rest)?;
        let (events, rest) = split_u64(rest)?;
        let (bytes, rest) = split_u64(rest)?;
        let (states, rest) = split_u64(rest)?;
        let (written_at, rest) = split_u64(rest)?;
        let (oldest_at, rest) = split_u64(rest)?;
        let properties = if rest.is_empty() {
            Properties::default()
        } else {
            serde_json::from_slice(rest).ok()?
        };
        Some(Self {
            id,
            incarnation,
            is_deleted: false,
            closed: flags & CLOSED != 0,
            tail: Offset(tail),
            tail_fingerprint: Fingerprint(tail_fingerprint),
            floor: Offset(floor),
            floor_fingerprint: Fingerprint(floor_fingerprint),
            events,
            bytes,
            states,
            written_at: Timestamp::from_millis(written_at),
            oldest_at: Timestamp::from_millis(oldest_at),
            has_events: flags & HAS_EVENTS != 0,
            properties,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_topics_record_comes_back_as_it_was_or_not_at_all() {
        let properties = Properties {
            owner: Some("u".into()),
            ttl: Some(Duration::from_millis(1500)),
            ..Properties::default()
        };
        let record = TopicRecord {
            closed: true,
            tail: Offset(9),
            floor: Offset(3),
            oldest_at: Timestamp::from_millis(4),
            ..TopicRecord::new(7, 2, Timestamp::from_millis(5), properties)
        };
        let bytes = record.write().unwrap();
        assert_eq!(TopicRecord::read(&bytes), Some(record));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(TopicRecord::read(&damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn the_stores_own_record_and_counts_come_back_or_not_at_all() {
        let meta = Meta { secret: 9, store_epoch: 7, next_id: 3, commits: 1 << 40 };
        let key = deletions_key(&read_topic_key(b"a\0b").unwrap());
        let (meta_bytes, count_bytes) = (meta.write(), write_deletions(&key, 5));
        assert_eq!(Meta::read(&meta_bytes), Some(meta));
        assert_eq!(meta_bytes.len(), Meta::BYTES);
        assert_eq!(read_deletions(&key, &count_bytes), Some(5));
        assert_eq!(read_deletions(b"another", &count_bytes), None);
        for bit in 0..meta_bytes.len() * 8 {
            let flip = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                let place = bit / 8 % bytes.len();
                bytes[place] ^= 1 << (bit % 8);
                bytes
            };
            assert_eq!(Meta::read(&flip(&meta_bytes)), None, "bit {bit}");
            assert_eq!(read_deletions(&key, &flip(&count_bytes)), None, "bit {bit}");
        }
    }

    #[test]
    fn no_tenant_reaches_into_another() {
        let key = |tenant, topic| {
            topic_key(&TopicKey::new(Tenant::parse(tenant).unwrap(), Topic::parse(topic).unwrap()))
        };
        let acme = Tenant::parse("acme").unwrap();
        assert!(!key("acme2", "a").starts_with(&topic_prefix(&acme, "")));
        assert!(!key("acme-", "x/a").starts_with(&topic_prefix(&acme, "")));
        let back = read_topic_key(&key("acme", "a/b")).unwrap();
        assert_eq!((back.tenant.as_str(), back.topic.as_str()), ("acme", "a/b"));
    }
}
