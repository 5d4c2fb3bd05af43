//! Events: what publishers hand in, and what the journal holds.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Fingerprint, JsonText, NameError, Offset, Timestamp,
    limits::{ATTRIBUTE_BYTES_MAX, EVENT_ID_BYTES_MAX, EVENT_TYPE_BYTES_MAX, STATE_KEY_BYTES_MAX},
    name,
};

/// How an event is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Class {
    /// Kept until retention trims it; never dropped.
    #[default]
    Log,
    /// The journal holds only the newest per key.
    State,
    /// Not journaled, has no offset, may be dropped.
    Ephemeral,
}

impl Class {
    /// As the wire names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::State => "state",
            Self::Ephemeral => "ephemeral",
        }
    }

    /// Reads the wire's name of a class.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Log, Self::State, Self::Ephemeral].into_iter().find(|class| class.as_str() == text)
    }
}

name! {
    /// The publisher's name of an event, unique in its topic: `8f1c:3`. 1 to 128 bytes, none of
    /// them control characters.
    EventId, |text| line("event id", text, EVENT_ID_BYTES_MAX)
}

impl EventId {
    /// Mints an id that nobody else has: a UUIDv7 (RFC 9562 §5.7).
    #[must_use]
    pub fn mint() -> Self {
        let mut buffer = uuid::Uuid::encode_buffer();
        Self((&*uuid::Uuid::now_v7().hyphenated().encode_lower(&mut buffer)).into())
    }
}

name! {
    /// Dot-separated words of `a-z 0-9 _`: `source.ingest.progress`. At most 128 bytes; the first
    /// word `tidings` is reserved.
    EventType, |text| {
        NameError::within("event type", text, EVENT_TYPE_BYTES_MAX)?;
        let word = |word: &str| {
            !word.is_empty()
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if !text.split('.').all(word) {
            return Err(NameError::new("event type", "must be words of a-z 0-9 _ joined by dots"));
        }
        if text == "tidings" || text.starts_with("tidings.") {
            return Err(NameError::new("event type", "must not start with `tidings.`: it is reserved"));
        }
        Ok(())
    }
}

name! {
    /// What a state event replaces: `run/8f1c`. 1 to 256 bytes, none of them control characters.
    StateKey, |text| line("key", text, STATE_KEY_BYTES_MAX)
}

name! {
    /// A CloudEvents `source` or `subject`: 1 to 512 bytes, none of them control characters.
    Attribute, |text| line("attribute", text, ATTRIBUTE_BYTES_MAX)
}

fn line(what: &'static str, text: &str, bytes_max: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::new(what, "must not be empty"));
    }
    NameError::within(what, text, bytes_max)?;
    // Every event that is read has several of these, and most are plain ASCII.
    let is_plain = text.bytes().all(|byte| (b' '..0x7f).contains(&byte));
    if !is_plain && text.chars().any(char::is_control) {
        return Err(NameError::new(what, "must not have control characters"));
    }
    Ok(())
}

/// What an event says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Data {
    /// Nothing.
    #[default]
    None,
    /// JSON on one line.
    Json(JsonText),
    /// Bytes with their media type; written as base64 (CloudEvents JSON format §3.1.1).
    Binary {
        /// `datacontenttype`, e.g. `application/octet-stream`.
        content_type: Attribute,
        /// The bytes as they were published.
        bytes: Bytes,
    },
}

impl Data {
    /// Bytes that count against [`limits::EVENT_BYTES_MAX`](super::limits::EVENT_BYTES_MAX).
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Json(text) => text.as_str().len(),
            Self::Binary { bytes, .. } => bytes.len(),
        }
    }

    /// Whether there is no data, or none of its bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An event as its publisher hands it in, every field checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Repeats of an id within the dedup window are stored once.
    pub id: EventId,
    /// What happened.
    pub event_type: EventType,
    /// How it is kept. A key is present if and only if this is [`Class::State`].
    pub class: Class,
    /// What it replaces.
    pub key: Option<StateKey>,
    /// Who says so; absent, the wire says `/{topic}`.
    pub source: Option<Attribute>,
    /// What it is about.
    pub subject: Option<Attribute>,
    /// When it happened, by its publisher; absent, the wire says when it was recorded.
    pub time: Option<Timestamp>,
    /// What it says.
    pub data: Data,
    /// Further CloudEvents attributes: lower-case alphanumeric name and a JSON scalar.
    pub extensions: Vec<(Box<str>, JsonText)>,
    /// When a state ends by itself, leaving a tombstone.
    pub expires_at: Option<Timestamp>,
    /// When a state becomes due.
    pub due_at: Option<Timestamp>,
    /// A tombstone: ends the key's state.
    pub delete: bool,
}

impl NewEvent {
    /// A log event with a minted id and no data, to be filled in.
    #[must_use]
    pub fn new(event_type: EventType) -> Self {
        Self {
            id: EventId::mint(),
            event_type,
            class: Class::Log,
            key: None,
            source: None,
            subject: None,
            time: None,
            data: Data::None,
            extensions: Vec::new(),
            expires_at: None,
            due_at: None,
            delete: false,
        }
    }

    /// Makes this the state of a key.
    #[must_use]
    pub fn state(mut self, key: StateKey) -> Self {
        self.class = Class::State;
        self.key = Some(key);
        self
    }

    /// Sets the data.
    #[must_use]
    pub fn data(mut self, json: JsonText) -> Self {
        self.data = Data::Json(json);
        self
    }
}

/// An event as the journal holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the topic.
    pub offset: Offset,
    /// Its checksum at that place.
    pub fingerprint: Fingerprint,
    /// When the journal took it; never earlier than the event before it in the topic.
    pub recorded_at: Timestamp,
    /// What was published.
    pub body: Arc<NewEvent>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_dotted_lower_case_words() {
        for good in ["a", "source.ingest.progress", "x_1.y2", "tidings_like.x"] {
            assert!(EventType::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "A", "a-b", "a b", "tidings.hello", "tidings", "a\n"] {
            assert!(EventType::parse(bad).is_err(), "{bad:?}");
        }
        assert!(EventType::parse(&"x".repeat(129)).is_err());
    }

    #[test]
    fn ids_and_keys_have_no_control_characters() {
        for bad in ["", "a\nb", "a\rb", "\0", "a\u{85}b", &"x".repeat(129)] {
            assert!(EventId::parse(bad).is_err(), "{bad:?}");
        }
        assert!(StateKey::parse(&"x".repeat(256)).is_ok());
        let told = StateKey::parse(&"x".repeat(300)).unwrap_err().to_string();
        assert_eq!(told, "key must be at most 256 bytes, is 300");
        assert_ne!(EventId::mint(), EventId::mint());
    }
}
