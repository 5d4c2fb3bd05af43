//! A topic's row: what is locked, judged by and written back.
//!
//! The rule: numbers go into the database as they are in it, signed, and come back as they were.

use tokio_postgres::Row;

use crate::{
    journal::{Head, JournalError, Properties, TopicInfo, topic_epoch},
    model::{Fingerprint, Offset, Tenant, Timestamp, Topic, TopicKey},
};

/// Slots of each tenant that deletions are counted in, as in the embedded journal: a deletion gives
/// one in a million topics that are not there another epoch.
const DELETION_SLOTS: u32 = 1 << 20;

/// A topic as the database keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicRow {
    /// Never used again, so that what is left of a deleted topic is nobody's.
    pub(super) id: i64,
    pub(super) incarnation: u32,
    /// Not there: never written, or deleted.
    pub(super) is_absent: bool,
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
    pub(super) has_events: bool,
    pub(super) properties: Properties,
    /// When what is right above the floor was recorded; the default where that is not known.
    pub(super) oldest_at: Timestamp,
}

impl TopicRow {
    /// A topic that is not there, of which so many were deleted before.
    pub(super) fn absent(id: i64, deletions: i64, now: Timestamp) -> Self {
        Self {
            id,
            incarnation: low(deletions),
            is_absent: true,
            closed: false,
            tail: Offset(1),
            tail_fingerprint: Fingerprint(0),
            floor: Offset::ZERO,
            floor_fingerprint: Fingerprint(0),
            events: 0,
            bytes: 0,
            states: 0,
            written_at: now,
            has_events: false,
            properties: Properties::default(),
            oldest_at: Timestamp::default(),
        }
    }

    /// Reads a row whose columns begin with `id` at a place.
    pub(super) fn read(row: &Row, at: usize) -> Result<Self, JournalError> {
        let text: &str = row.get(at + 12);
        let properties = serde_json::from_str(text).map_err(|error| {
            let id: i64 = row.get(at);
            JournalError::Broken(format!(
                "PostgreSQL: properties of the topic with id {id}: {error}"
            ))
        })?;
        Ok(Self {
            id: row.get(at),
            incarnation: row.get::<_, i32>(at + 1).cast_unsigned(),
            is_absent: false,
            closed: row.get(at + 2),
            tail: offset(row.get(at + 3)),
            tail_fingerprint: fingerprint(row.get(at + 4)),
            floor: offset(row.get(at + 5)),
            floor_fingerprint: fingerprint(row.get(at + 6)),
            events: unsigned(row.get(at + 7)),
            bytes: unsigned(row.get(at + 8)),
            states: unsigned(row.get(at + 9)),
            written_at: time(row.get(at + 10)),
            has_events: row.get(at + 11),
            properties,
            oldest_at: time(row.get(at + 13)),
        })
    }

    /// Reads the one row of `head.sql`.
    pub(super) fn read_one(row: &Row) -> Result<Self, JournalError> {
        match row.get::<_, Option<i64>>(1) {
            Some(_) => Self::read(row, 1),
            None => Ok(Self::absent(0, row.get(0), Timestamp::default())),
        }
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
        if self.is_absent {
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
}

/// A topic's name in a row.
pub(super) fn read_topic(row: &Row, at: usize) -> Result<TopicKey, JournalError> {
    let (tenant, name): (&str, &str) = (row.get(at), row.get(at + 1));
    let wrong = || {
        let what = format!("PostgreSQL: no topic can have the name {name:?} of tenant {tenant:?}");
        JournalError::Broken(what)
    };
    let tenant = Tenant::parse(tenant).map_err(|_| wrong())?;
    Ok(TopicKey::new(tenant, Topic::parse(name).map_err(|_| wrong())?))
}

/// The slot that a topic's deletions are counted in.
pub(super) fn deletion_slot(topic: &TopicKey) -> i32 {
    (crc32c::crc32c(topic.topic.as_str().as_bytes()) % DELETION_SLOTS).cast_signed()
}

/// The two numbers of the advisory lock of a topic's slot in a schema. Slots that share one wait for
/// each other, no more.
pub(super) fn slot_lock(schema: &str, topic: &TopicKey) -> (i32, i32) {
    let tenant = crc32c::crc32c(topic.tenant.as_str().as_bytes());
    let slot = crc32c::crc32c_append(tenant, &deletion_slot(topic).to_be_bytes());
    (crc32c::crc32c(schema.as_bytes()).cast_signed(), slot.cast_signed())
}

/// The low half, which counts on from 0 after 2^32.
fn low(count: i64) -> u32 {
    u32::try_from(count & i64::from(u32::MAX)).unwrap_or_default()
}

/// As the database keeps a number; one that is too large for it is larger than all there are.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

pub(super) fn offset(number: i64) -> Offset {
    Offset(unsigned(number))
}

pub(super) const fn fingerprint(number: i32) -> Fingerprint {
    Fingerprint(number.cast_unsigned())
}

/// A fingerprint that a record begins with.
pub(super) fn fingerprint_of(record: &[u8]) -> Option<Fingerprint> {
    record.first_chunk().map(|bytes| Fingerprint(u32::from_be_bytes(*bytes)))
}

pub(super) fn time(ms: i64) -> Timestamp {
    Timestamp::from_millis(unsigned(ms))
}
