//! A batch as the script takes it, and what the script says became of it.
//!
//! The rule: the script assigns the offsets, so a record is sent without its fingerprint, with the
//! checksum from which the script makes it; both sides must come to the same one.

use std::sync::Arc;

use redis::Cmd;

use super::answer::{Answer, Looked, event, state, unexpected};
use crate::{
    journal::{
        Append, Appended, Batch, Dedup, JournalError, JournalSettings, Outcome, Properties,
        Refusal, record::Unplaced,
    },
    model::{Event, Offset, Position, Timestamp, TopicKey},
};

const DELETE: u32 = 1;
const DEDUP: u32 = 2;
const IF_OFFSET: u32 = 4;
const CLOSE: u32 = 8;
const OWNER: u32 = 16;
const PROPERTIES: u32 = 32;
const OWNED: u32 = 64;
const ENDS: u32 = 128;
const EXPIRES: u32 = 256;
const DUE: u32 = 512;
const KEY: u32 = 1024;

/// A batch whose bodies are made with a time.
pub(super) struct Packed<'a> {
    topic: &'a TopicKey,
    batch: &'a Batch,
    now: Timestamp,
    bodies: Vec<Unplaced>,
    /// The properties that each event would give its topic, as they are stored.
    properties: Vec<Option<String>>,
}

/// What the script answered.
pub(super) enum Answered {
    Done(Looked, Appended),
    /// The topic's last event is later than the batch: it is to be made again with this time.
    Later(Timestamp),
}

impl<'a> Packed<'a> {
    pub(super) fn new(
        topic: &'a TopicKey,
        batch: &'a Batch,
        now: Timestamp,
    ) -> Result<Self, JournalError> {
        let bodies = batch.events.iter().map(|append| Unplaced::new(&append.event, now)).collect();
        let text = |append: &Append| append.properties.as_deref().map(properties).transpose();
        let properties = batch.events.iter().map(text).collect::<Result<_, _>>()?;
        Ok(Self { topic, batch, now, bodies, properties })
    }

    /// Writes the script's arguments.
    pub(super) fn fill(&self, cmd: &mut Cmd, settings: &JournalSettings) {
        let window = u64::try_from(settings.dedup_window.as_millis()).unwrap_or(u64::MAX);
        cmd.arg(super::keys::deletions_field(self.topic));
        cmd.arg(self.now.as_millis()).arg(u8::from(self.batch.close));
        cmd.arg(settings.states_max(self.topic)).arg(window).arg(settings.dedup_events);
        cmd.arg(super::keys::name(self.topic)).arg(self.batch.events.len());
        let events = self.batch.events.iter().zip(&self.bodies).zip(&self.properties);
        for ((append, body), properties) in events {
            fill_event(cmd, append, body, properties.as_deref());
        }
    }

    /// Reads what the script answered.
    pub(super) fn read(
        &self,
        answer: redis::Value,
        settings: &JournalSettings,
    ) -> Result<Answered, JournalError> {
        let mut answer = Answer::of(answer)?;
        if answer.len() == 1 {
            return answer.number().map(|at| Answered::Later(Timestamp::from_millis(at)));
        }
        let looked = Looked::read(&mut answer)?;
        let mut outcomes = Vec::with_capacity(self.bodies.len());
        let mut events = Vec::with_capacity(self.bodies.len());
        let mut answers = answer.list()?;
        for (append, body) in self.batch.events.iter().zip(&self.bodies) {
            let position =
                |offset, fingerprint| Position { epoch: looked.head.epoch, offset, fingerprint };
            let outcome = match answers.value() {
                Some(redis::Value::Int(offset)) => {
                    let offset = Offset(u64::try_from(offset).map_err(|_| unexpected())?);
                    let fingerprint = body.at(offset);
                    let body = Arc::clone(&append.event);
                    events.push(Event { offset, fingerprint, recorded_at: self.now, body });
                    Outcome::Stored(position(offset, fingerprint))
                }
                Some(other) => {
                    let mut refused = Answer::of(other)?;
                    match refused.number()? {
                        1 => Outcome::Duplicate(position(refused.offset()?, refused.print()?)),
                        2 => Outcome::Refused(Refusal::Closed),
                        3 => Outcome::Refused(Refusal::NotOwner),
                        4 => {
                            let limit = settings.states_max(self.topic);
                            Outcome::Refused(Refusal::StatesFull { limit })
                        }
                        5 => {
                            let current = refused.bytes()?;
                            let current = current.map(|bytes| state(self.topic, &bytes));
                            Outcome::Refused(Refusal::Conflict { current: current.transpose()? })
                        }
                        _ => return Err(unexpected()),
                    }
                }
                None => return Err(unexpected()),
            };
            outcomes.push(outcome);
        }
        let appended = Appended { head: looked.head, outcomes, events };
        Ok(Answered::Done(looked, appended))
    }
}

fn fill_event(cmd: &mut Cmd, append: &Append, body: &Unplaced, properties: Option<&str>) {
    let event = &append.event;
    let is_state = event.key.is_some() && !event.delete;
    let owned = append.properties.as_deref().and_then(|properties| properties.owner.as_deref());
    let expires_at = event.expires_at.filter(|_| is_state);
    let due_at = event.due_at.filter(|_| is_state);
    let by_id = append.dedup == Dedup::ById;
    let flags = [
        (event.delete, DELETE),
        (by_id, DEDUP),
        (append.if_offset.is_some(), IF_OFFSET),
        (append.close, CLOSE),
        (append.owner.is_some(), OWNER),
        (properties.is_some(), PROPERTIES),
        (owned.is_some(), OWNED),
        (append.ends_expired, ENDS),
        (expires_at.is_some(), EXPIRES),
        (due_at.is_some(), DUE),
        (event.key.is_some(), KEY),
    ];
    let flags =
        flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag);
    cmd.arg(flags).arg(body.at(Offset::ZERO).0).arg(&body.body);
    // In the order in which the script takes them.
    if let Some(key) = &event.key {
        cmd.arg(key.as_str());
    }
    if by_id {
        cmd.arg(event.id.as_str());
    }
    if let Some(offset) = append.if_offset {
        cmd.arg(offset.0);
    }
    for text in [append.owner.as_deref(), properties, owned].into_iter().flatten() {
        cmd.arg(text);
    }
    for time in [expires_at, due_at].into_iter().flatten() {
        cmd.arg(time.as_millis());
    }
}

/// Properties as they are stored.
pub(super) fn properties(properties: &Properties) -> Result<String, JournalError> {
    let wrong = |error| JournalError::Broken(format!("properties: {error}"));
    serde_json::to_string(properties).map_err(wrong)
}

/// Reads offsets and records in turns.
pub(super) fn events(topic: &TopicKey, mut answer: Answer) -> Result<Vec<Event>, JournalError> {
    let mut events = Vec::with_capacity(answer.len() / 2);
    while answer.len() > 0 {
        let offset = answer.offset()?;
        let record = answer.bytes()?.ok_or_else(unexpected)?;
        events.push(event(topic, offset, &record)?);
    }
    Ok(events)
}
