//! Frames: events as the bytes that readers get, encoded once, for the first of them, and shared by
//! all.
//!
//! The rule: an event has one encoding. Live and replayed bytes come from the same function over
//! the same record, and no byte of an event can end a line of the stream.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    ops::Range,
    sync::{Arc, OnceLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    error::Problem,
    model::{
        Class, Data, Epoch, Event, EventType, Offset, Position, StateKey, Timestamp, Topic,
        TopicHash, TopicKey,
        json::escape_into,
        resume::{Gap, Head},
    },
    spans::Delivery,
};

/// An event was taken here, just now, and is not replayed.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub(crate) at: Instant,
    /// Whom to tell of its delivery, if its publish is traced.
    pub(crate) delivery: Option<Arc<Delivery>>,
}

/// A topic as frames name it: its name, and that as cursors hold it, hashed once for all of them.
#[derive(Debug, Clone)]
pub struct FrameTopic(Arc<(Topic, TopicHash)>);

impl From<&TopicKey> for FrameTopic {
    fn from(key: &TopicKey) -> Self {
        Self(Arc::new((key.topic.clone(), (&key.topic).into())))
    }
}

impl From<&Self> for FrameTopic {
    fn from(topic: &Self) -> Self {
        topic.clone()
    }
}

/// An event as readers get it; encoded when the first of them takes it.
#[derive(Debug)]
pub struct Frame {
    /// Its place; `None` for ephemeral events.
    pub position: Option<Position>,
    /// When this hub took the event; `None` for one that is replayed.
    pub(crate) taken: Option<Taken>,
    topic: FrameTopic,
    event: Event,
    encoded: OnceLock<Encoded>,
}

#[derive(Debug)]
struct Encoded {
    bytes: Bytes,
    json: Range<usize>,
    data: Range<usize>,
}

/// What is written of most events besides their data, bytes.
const ENVELOPE_BYTES: usize = 320;

impl Frame {
    /// The frame of a stored event: `id: <cursor>`, `data: <CloudEvents JSON>`, empty line.
    #[must_use]
    pub fn of(topic: impl Into<FrameTopic>, epoch: Epoch, event: &Event) -> Self {
        let position = Position { epoch, offset: event.offset, fingerprint: event.fingerprint };
        Self::new(topic.into(), Some(position), event)
    }

    /// The frame of an event that has no place.
    #[must_use]
    pub fn ephemeral(topic: impl Into<FrameTopic>, event: &Event) -> Self {
        Self::new(topic.into(), None, event)
    }

    fn new(topic: FrameTopic, position: Option<Position>, event: &Event) -> Self {
        let (event, encoded) = (event.clone(), OnceLock::new());
        Self { position, taken: None, topic, event, encoded }
    }

    fn encoded(&self) -> &Encoded {
        self.encoded.get_or_init(|| {
            let mut out = String::with_capacity(self.length());
            let (topic, hash) = &*self.topic.0;
            if let Some(position) = self.position {
                out.push_str("id: ");
                hash.cursor_into(position.into(), &mut out);
                out.push('\n');
            }
            out.push_str("data: ");
            let start = out.len();
            let data = cloud_event_into(&mut out, topic, self.position, &self.event);
            let json = start..out.len();
            out.push_str("\n\n");
            Encoded { bytes: Bytes::from(out), json, data }
        })
    }

    /// Says when this hub took the event.
    #[must_use]
    pub(crate) fn taken(self, taken: Option<Taken>) -> Self {
        Self { taken, ..self }
    }

    /// How the event is kept.
    #[must_use]
    pub fn class(&self) -> Class {
        self.event.body.class
    }

    /// What happened.
    #[must_use]
    pub fn event_type(&self) -> &EventType {
        &self.event.body.event_type
    }

    /// The key of a state.
    #[must_use]
    pub fn key(&self) -> Option<&StateKey> {
        self.event.body.key.as_ref()
    }

    /// Whether it ends the state of its key.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.event.body.delete
    }

    /// How long it is, about, without encoding it: bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        ENVELOPE_BYTES + self.event.body.data.len()
    }

    /// What it takes of memory, about, bytes: as it was stored, and as it is written once it is read.
    #[must_use]
    pub fn size(&self) -> usize {
        2 * self.length()
    }

    /// The whole frame with the cursor of a connection that follows this topic alone.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.encoded().bytes
    }

    /// The event as CloudEvents JSON on one line.
    #[must_use]
    pub fn json(&self) -> Bytes {
        let Encoded { bytes, json, .. } = self.encoded();
        bytes.slice(json.clone())
    }

    /// The event's data as JSON on one line; `null` if it has none, base64 in quotes if binary.
    #[must_use]
    pub fn data(&self) -> Bytes {
        let Encoded { bytes, data, .. } = self.encoded();
        if data.is_empty() { Bytes::from_static(b"null") } else { bytes.slice(data.clone()) }
    }
}

/// Writes an event as CloudEvents 1.0 JSON and returns where its data is, empty if it has none.
fn cloud_event_into(
    out: &mut String,
    topic: &Topic,
    position: Option<Position>,
    event: &Event,
) -> Range<usize> {
    let body = &event.body;
    // What is pushed needs no escapes: names have none by their rules.
    let push = |out: &mut String, texts: &[&str]| texts.iter().for_each(|text| out.push_str(text));
    let topic = topic.as_str();
    out.push_str("{\"specversion\":\"1.0\",\"id\":");
    escape_into(out, body.id.as_str());
    out.push_str(",\"source\":");
    match &body.source {
        Some(source) => escape_into(out, source.as_str()),
        None => push(out, &["\"/", topic, "\""]),
    }
    push(out, &[",\"type\":\"", body.event_type.as_str(), "\""]);
    if let Some(subject) = &body.subject {
        out.push_str(",\"subject\":");
        escape_into(out, subject.as_str());
    }
    let time = body.time.unwrap_or(event.recorded_at);
    let _ = write!(out, ",\"time\":\"{time}");
    push(out, &["\",\"topic\":\"", topic, "\""]);
    if let Some(position) = position {
        let _ = write!(out, ",\"position\":\"{position}\"");
    }
    push(out, &[",\"class\":\"", body.class.as_str(), "\""]);
    if let Some(key) = &body.key {
        out.push_str(",\"key\":");
        escape_into(out, key.as_str());
    }
    if let Some(at) = body.expires_at {
        let _ = write!(out, ",\"expirytime\":\"{at}\"");
    }
    if body.delete {
        out.push_str(",\"deleted\":true");
    }
    for (name, value) in &body.extensions {
        push(out, &[",\"", name, "\":", value.as_str()]);
    }
    let data = match &body.data {
        Data::None => out.len()..out.len(),
        Data::Json(text) => {
            out.push_str(",\"data\":");
            let start = out.len();
            out.push_str(text.as_str());
            start..out.len()
        }
        Data::Binary { content_type, bytes } => {
            out.push_str(",\"datacontenttype\":");
            escape_into(out, content_type.as_str());
            out.push_str(",\"data_base64\":");
            let start = out.len();
            out.push('"');
            BASE64.encode_string(bytes, out);
            out.push('"');
            start..out.len()
        }
    };
    out.push('}');
    data
}

/// Why the hub ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GoAway {
    /// The hub is being shut down.
    Drain,
    /// The connection reached its maximum age.
    MaxAge,
    /// The credential expired.
    Expired,
    /// The credential was revoked, or no longer covers a topic.
    Revoked,
    /// The reader does not take what it is sent.
    Slow,
    /// All topics of the connection are closed and were read to their end.
    Closed,
    /// The hub cannot serve it now.
    Unavailable,
}

impl GoAway {
    /// As the wire names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::MaxAge => "max_age",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Slow => "slow",
            Self::Closed => "closed",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What the hub itself says on a connection.
#[derive(Debug, Clone)]
pub enum Control<'a> {
    /// The connection and where its topics stand.
    Hello {
        /// Its id.
        connection: &'a str,
        /// Longest silence before a ping, milliseconds.
        heartbeat_ms: u64,
        /// `exact`, `gap` or `fresh`.
        resumed: &'static str,
        /// The topics' bounds.
        topics: Vec<(&'a TopicKey, Head)>,
    },
    /// Everything up to these offsets was sent.
    CaughtUp(Vec<(&'a TopicKey, Offset)>),
    /// The connection lives.
    Ping(Timestamp),
    /// Events of a topic are missing.
    Gap(&'a TopicKey, Gap),
    /// A topic takes no more events and was read to its end.
    Closed(&'a TopicKey),
    /// The credential ends soon, or was renewed.
    Auth {
        /// When it ends; `None`: never.
        expires_at: Option<Timestamp>,
    },
    /// The hub ends the connection.
    GoAway {
        /// Why.
        reason: GoAway,
        /// When to come back, milliseconds.
        retry_ms: u64,
    },
    /// Something failed.
    Problem(&'a Problem),
    /// Nothing but a new cursor.
    Checkpoint,
}

impl Control<'_> {
    /// The frame's name on the wire.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "tidings.hello",
            Self::CaughtUp(_) => "tidings.caught_up",
            Self::Ping(_) => "tidings.ping",
            Self::Gap(..) => "tidings.gap",
            Self::Closed(_) => "tidings.closed",
            Self::Auth { .. } => "tidings.auth",
            Self::GoAway { .. } => "tidings.goaway",
            Self::Problem(_) => "tidings.problem",
            Self::Checkpoint => "tidings.checkpoint",
        }
    }

    /// The frame's data.
    #[must_use]
    pub fn data(&self) -> serde_json::Value {
        match self {
            Self::Hello { connection, heartbeat_ms, resumed, topics } => {
                let topics: BTreeMap<&str, serde_json::Value> = topics
                    .iter()
                    .map(|(topic, head)| {
                        let head = json!({
                            "epoch": head.epoch.to_string(),
                            "earliest": head.earliest.0,
                            "tail": head.tail.0,
                        });
                        (topic.topic.as_str(), head)
                    })
                    .collect();
                json!({
                    "connection": connection,
                    "heartbeat_ms": heartbeat_ms,
                    "resumed": resumed,
                    "topics": topics,
                })
            }
            Self::CaughtUp(topics) => {
                let topics: BTreeMap<&str, u64> =
                    topics.iter().map(|(topic, at)| (topic.topic.as_str(), at.0)).collect();
                json!({ "topics": topics })
            }
            Self::Ping(time) => json!({ "time": time.to_string() }),
            Self::Gap(topic, gap) => json!({
                "topic": topic.topic.as_str(),
                "reason": gap.reason.as_str(),
                "from": gap.from.map(|offset| offset.0),
                "to": gap.to.map(|offset| offset.0),
            }),
            Self::Closed(topic) => json!({ "topic": topic.topic.as_str() }),
            Self::Auth { expires_at } => {
                json!({ "expires_at": expires_at.map(|at| at.to_string()) })
            }
            Self::GoAway { reason, retry_ms } => {
                json!({ "reason": reason.as_str(), "retry_ms": retry_ms })
            }
            Self::Problem(problem) => serde_json::Value::Object(problem.to_json()),
            Self::Checkpoint => json!({}),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        Cursor, EventId, Fingerprint, JsonText, NewEvent, Tenant, event::Attribute,
    };

    fn topic() -> TopicKey {
        TopicKey::new(Tenant::parse("t").unwrap(), Topic::parse("user/42").unwrap())
    }

    fn event(body: NewEvent) -> Event {
        Event {
            offset: Offset(1041),
            fingerprint: Fingerprint(9),
            recorded_at: Timestamp::parse("2026-11-21T07:00:00Z").unwrap(),
            body: Arc::new(body),
        }
    }

    #[test]
    fn an_event_is_cloudevents_json_on_one_line() {
        let body = NewEvent {
            id: EventId::parse("8f1c:3").unwrap(),
            subject: Some(Attribute::parse("run/\"8f1c\"").unwrap()),
            ..NewEvent::new(EventType::parse("source.ingest.progress").unwrap())
                .state(StateKey::parse("run/8f1c").unwrap())
                .data(JsonText::parse("{\"current\": 3, \"total\": 10}").unwrap())
        };
        let frame = Frame::of(&topic(), Epoch(7), &event(body));
        let text = std::str::from_utf8(frame.bytes()).unwrap();
        let (id, rest) = text.split_once('\n').unwrap();
        let cursor = Cursor::decode(id.strip_prefix("id: ").unwrap()).unwrap();
        assert_eq!(cursor.mark(&topic().topic).unwrap().position, frame.position.unwrap());
        assert_eq!(
            rest,
            "data: {\"specversion\":\"1.0\",\"id\":\"8f1c:3\",\"source\":\"/user/42\",\
             \"type\":\"source.ingest.progress\",\"subject\":\"run/\\\"8f1c\\\"\",\
             \"time\":\"2026-11-21T07:00:00.000Z\",\"topic\":\"user/42\",\
             \"position\":\"0000007-1041\",\"class\":\"state\",\"key\":\"run/8f1c\",\
             \"data\":{\"current\":3,\"total\":10}}\n\n"
        );
        assert_eq!(frame.data(), "{\"current\":3,\"total\":10}");
        serde_json::from_slice::<serde_json::Value>(&frame.json()).unwrap();
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_frame(text in any::<String>(), key in "\\PC{1,20}") {
            let Ok(key) = StateKey::parse(&key) else { return Ok(()) };
            let body = NewEvent::new(EventType::parse("a").unwrap())
                .state(key)
                .data(JsonText::string(&text));
            let frame = Frame::of(&topic(), Epoch(1), &event(body));
            let bytes = std::str::from_utf8(frame.bytes()).unwrap();
            prop_assert_eq!(bytes.matches(['\n', '\r']).count(), 3);
            prop_assert!(bytes.ends_with("\n\n"));
            let json: serde_json::Value = serde_json::from_slice(&frame.json()).unwrap();
            prop_assert_eq!(json["data"].as_str().unwrap(), text);
        }
    }
}
