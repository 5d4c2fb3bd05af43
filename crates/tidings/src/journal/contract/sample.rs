//! What the cases append, and shorthands for reading it back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]

use std::sync::Arc;

use crate::{
    journal::{
        Append, Appended, Batch, Dedup, DeleteIf, Journal, JournalSettings, Outcome, Page,
        PageLimit, Properties, StateQuery,
    },
    model::{
        Event, EventId, EventType, JsonText, NewEvent, Offset, Position, StateKey, Tenant,
        Timestamp, Topic, TopicKey,
    },
};

pub(super) fn settings() -> JournalSettings {
    JournalSettings::default()
}

/// A topic of tenant `acme`.
pub(super) fn topic(name: &str) -> TopicKey {
    topic_of("acme", name)
}

pub(super) fn topic_of(tenant: &str, name: &str) -> TopicKey {
    TopicKey::new(Tenant::parse(tenant).unwrap(), Topic::parse(name).unwrap())
}

pub(super) fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn body(text: &str) -> NewEvent {
    NewEvent::new(EventType::parse("a.b").unwrap()).data(JsonText::string(text))
}

fn minted(event: NewEvent) -> Append {
    Append::new(Arc::new(event))
}

/// A log event.
pub(super) fn log(text: &str) -> Append {
    minted(body(text))
}

/// A state.
pub(super) fn state(key: &str, text: &str) -> Append {
    minted(body(text).state(StateKey::parse(key).unwrap()))
}

/// The end of a state.
pub(super) fn tombstone(key: &str) -> Append {
    let event = NewEvent::new(EventType::parse("a.b").unwrap());
    minted(NewEvent { delete: true, ..event.state(StateKey::parse(key).unwrap()) })
}

impl Append {
    /// Gives the event an id that its publisher chose.
    pub(super) fn id(self, id: &str) -> Self {
        let id = EventId::parse(id).unwrap();
        let event = Arc::new(NewEvent { id, ..(*self.event).clone() });
        Self { event, dedup: Dedup::ById, ..self }
    }

    /// Makes it conditional.
    pub(super) fn if_offset(self, offset: u64) -> Self {
        Self { if_offset: Some(Offset(offset)), ..self }
    }

    /// Makes it close its topic.
    pub(super) fn closing(self) -> Self {
        Self { close: true, ..self }
    }

    /// Makes it the subject's, with a topic that would be the subject's too.
    pub(super) fn by(self, subject: &str) -> Self {
        let properties = Properties { owner: Some(subject.to_owned()), ..Properties::default() };
        Self { owner: Some(subject.into()), properties: Some(Box::new(properties)), ..self }
    }

    /// Sets when the state expires and is due.
    pub(super) fn times(self, expires_at: Option<u64>, due_at: Option<u64>) -> Self {
        let event = NewEvent {
            expires_at: expires_at.map(at),
            due_at: due_at.map(at),
            ..(*self.event).clone()
        };
        Self { event: Arc::new(event), ..self }
    }
}

pub(super) fn batch(events: impl IntoIterator<Item = Append>) -> Batch {
    batch_at(1000, events)
}

pub(super) fn batch_at(ms: u64, events: impl IntoIterator<Item = Append>) -> Batch {
    Batch { events: events.into_iter().collect(), now: at(ms), ..Batch::default() }
}

/// Appends events at 1 000 ms.
pub(super) async fn put(
    journal: &dyn Journal,
    topic: &TopicKey,
    events: impl IntoIterator<Item = Append>,
) -> Appended {
    put_at(journal, 1000, topic, events).await
}

pub(super) async fn put_at(
    journal: &dyn Journal,
    ms: u64,
    topic: &TopicKey,
    events: impl IntoIterator<Item = Append>,
) -> Appended {
    journal.append(topic, batch_at(ms, events)).await.unwrap()
}

/// Appends one event and tells what became of it.
pub(super) async fn put_one(journal: &dyn Journal, topic: &TopicKey, event: Append) -> Outcome {
    put(journal, topic, [event]).await.outcomes.remove(0)
}

/// Deletes a topic, whatever it is.
pub(super) async fn delete(journal: &dyn Journal, topic: &TopicKey) -> bool {
    journal.delete(topic, DeleteIf::Always).await.unwrap().unwrap()
}

/// Everything after an offset, in one page.
pub(super) async fn read(journal: &dyn Journal, topic: &TopicKey, after: u64) -> Page {
    journal.read(topic, Offset(after), EVERYTHING).await.unwrap()
}

/// All states, in one page.
pub(super) async fn all_states(journal: &dyn Journal, topic: &TopicKey) -> Page {
    journal.states(topic, StateQuery { limit: EVERYTHING, ..StateQuery::all() }).await.unwrap()
}

pub(super) const EVERYTHING: PageLimit = PageLimit { events: usize::MAX, bytes: usize::MAX };

pub(super) fn offsets(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.offset.0).collect()
}

/// The position of an event.
pub(super) fn position(appended: &Appended, index: usize) -> Position {
    let event = &appended.events[index];
    Position { epoch: appended.head.epoch, offset: event.offset, fingerprint: event.fingerprint }
}

/// The stored position of an outcome.
pub(super) fn stored(outcome: &Outcome) -> Position {
    match outcome {
        Outcome::Stored(position) => *position,
        other => panic!("expected it to be stored, but it was {other:?}"),
    }
}
