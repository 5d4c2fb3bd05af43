//! What the scripts answer, read.
//!
//! The rule: an answer of another shape is an error that says so, never a guess.

use redis::Value;

use crate::{
    journal::{Head, JournalError, Properties, TopicInfo, record, topic_epoch},
    model::{Epoch, Event, Fingerprint, Offset, Timestamp, TopicKey},
};

/// Values that are read one after the other.
pub(super) struct Answer(std::vec::IntoIter<Value>);

impl Answer {
    pub(super) fn of(value: Value) -> Result<Self, JournalError> {
        match value {
            Value::Array(values) => Ok(Self(values.into_iter())),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The next value, if there is one more.
    pub(super) fn value(&mut self) -> Option<Value> {
        self.0.next()
    }

    pub(super) fn list(&mut self) -> Result<Self, JournalError> {
        Self::of(self.value().ok_or_else(unexpected)?)
    }

    pub(super) fn number(&mut self) -> Result<u64, JournalError> {
        match self.value() {
            Some(Value::Int(number)) => u64::try_from(number).map_err(|_| unexpected()),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn offset(&mut self) -> Result<Offset, JournalError> {
        self.number().map(Offset)
    }

    fn u32(&mut self) -> Result<u32, JournalError> {
        u32::try_from(self.number()?).map_err(|_| unexpected())
    }

    pub(super) fn print(&mut self) -> Result<Fingerprint, JournalError> {
        self.u32().map(Fingerprint)
    }

    pub(super) fn epoch(&mut self) -> Result<Epoch, JournalError> {
        self.u32().map(Epoch)
    }

    pub(super) fn print_if_known(&mut self) -> Result<Option<Fingerprint>, JournalError> {
        match self.value() {
            Some(Value::Int(print)) => {
                u32::try_from(print).map(|print| Some(Fingerprint(print))).map_err(|_| unexpected())
            }
            Some(Value::Nil) => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// Bytes; `None` for what is not there.
    pub(super) fn bytes(&mut self) -> Result<Option<Vec<u8>>, JournalError> {
        match self.value() {
            Some(Value::BulkString(bytes)) => Ok(Some(bytes)),
            Some(Value::Nil) | None => Ok(None),
            Some(_) => Err(unexpected()),
        }
    }

    fn flag(&mut self) -> Result<bool, JournalError> {
        self.number().map(|number| number == 1)
    }
}

pub(super) fn unexpected() -> JournalError {
    JournalError::Unavailable("Redis gave an answer of an unknown shape".to_owned())
}

/// A topic as a script found it.
#[derive(Debug)]
pub(super) struct Looked {
    /// The epoch of its group, and the changes of the group so far.
    pub(super) group_epoch: Epoch,
    pub(super) count: u64,
    pub(super) incarnation: u32,
    pub(super) exists: bool,
    pub(super) head: Head,
    events: u64,
    bytes: u64,
    states: u64,
    written_at: Timestamp,
    oldest_at: Timestamp,
    /// As they are stored, where the script tells them.
    pub(super) properties: Option<Vec<u8>>,
}

impl Looked {
    pub(super) fn read(answer: &mut Answer) -> Result<Self, JournalError> {
        let mut answer = answer.list()?;
        let (group_epoch, count) = (answer.epoch()?, answer.number()?);
        let (exists, incarnation, closed) = (answer.flag()?, answer.u32()?, answer.flag()?);
        let (tail, tail_fingerprint) = (answer.offset()?, answer.print()?);
        let (floor, floor_fingerprint) = (answer.offset()?, answer.print()?);
        let epoch = topic_epoch(group_epoch.0, incarnation);
        let earliest = floor.next();
        let head = Head { epoch, earliest, tail, tail_fingerprint, floor_fingerprint, closed };
        Ok(Self {
            group_epoch,
            count,
            incarnation,
            exists,
            head,
            events: answer.number()?,
            bytes: answer.number()?,
            states: answer.number()?,
            written_at: Timestamp::from_millis(answer.number()?),
            oldest_at: Timestamp::from_millis(answer.number()?),
            properties: answer.bytes()?,
        })
    }

    pub(super) fn info(&self, topic: TopicKey) -> Result<TopicInfo, JournalError> {
        if !self.exists {
            return Ok(TopicInfo::absent(topic, self.head.epoch));
        }
        let properties = match &self.properties {
            None => Properties::default(),
            Some(text) => serde_json::from_slice(text)
                .map_err(|error| damaged(&topic, format_args!("its properties: {error}")))?,
        };
        Ok(TopicInfo {
            topic,
            exists: true,
            head: self.head,
            events: self.events,
            bytes: self.bytes,
            states: self.states,
            written_at: self.written_at,
            oldest_at: self.oldest_at,
            properties,
        })
    }
}

/// Reads a record as it is stored.
pub(super) fn event(topic: &TopicKey, offset: Offset, bytes: &[u8]) -> Result<Event, JournalError> {
    record::decode(bytes, offset).map_err(|error| damaged(topic, format_args!("{error}")))
}

/// Reads a state as it is stored: its offset, a byte about its times, its record.
pub(super) fn state(topic: &TopicKey, bytes: &[u8]) -> Result<Event, JournalError> {
    let parts = bytes
        .split_first_chunk::<8>()
        .and_then(|(offset, rest)| Some((Offset(u64::from_be_bytes(*offset)), rest.get(1..)?)));
    let (offset, record) = parts.ok_or_else(|| damaged(topic, format_args!("a state is cut")))?;
    event(topic, offset, record)
}

fn damaged(topic: &TopicKey, what: std::fmt::Arguments<'_>) -> JournalError {
    let (tenant, topic) = (&topic.tenant, &topic.topic);
    JournalError::Broken(format!(
        "topic {topic} of tenant {tenant} is damaged in Redis: {what}; delete the topic, or restore \
         it from a backup"
    ))
}
