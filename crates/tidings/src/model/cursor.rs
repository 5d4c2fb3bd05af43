//! The cursor: what `Last-Event-ID` holds, and nobody else knows.
//!
//! The rule: a cursor is keyed by topic, not by place in the request, so topics may be added,
//! dropped and reordered between connections without disturbing each other's position.
//!
//! Bytes, before base64url without padding: a version byte (`1`, or `2` and then the 6 bytes of a
//! ticket's tag), then for each topic its name's hash (8, SHA-256 truncated), epoch (4), fingerprint
//! (4), offset (LEB128) doubled plus one bit that says whether the states before that offset are
//! still being sent, and if so after which offset (LEB128). One topic takes at most 43 bytes, 58
//! characters.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use sha2::{Digest as _, Sha256};

use super::{
    Epoch, Fingerprint, Offset, Position, Topic,
    limits::{CONNECTION_TOPICS_MAX, CURSOR_BYTES_MAX},
};

const PLAIN: u8 = 1;
const TAGGED: u8 = 2;

/// Proves that a cursor was sent on a connection of one ticket: random, minted at its first use.
pub type TicketTag = [u8; 6];

/// A topic's name as cursors hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicHash([u8; 8]);

impl From<&Topic> for TopicHash {
    fn from(topic: &Topic) -> Self {
        let digest = Sha256::digest(topic.as_str().as_bytes());
        let mut hash = [0; 8];
        hash.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Self(hash)
    }
}

/// How far a reader is in one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Every event up to here was sent, or belongs to the states still to be sent.
    pub position: Position,
    /// While the first states are being sent: those after this offset, and not after
    /// `position.offset`, are still to come.
    pub states_after: Option<Offset>,
}

impl From<Position> for Mark {
    fn from(position: Position) -> Self {
        Self { position, states_after: None }
    }
}

/// Positions in all topics of a connection; opaque, URL-safe text outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor {
    tag: Option<TicketTag>,
    marks: Vec<(TopicHash, Mark)>,
}

/// A cursor that is malformed, foreign or oversized. It is answered by a gap, never by a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cursor is not one of this hub's")]
pub struct CursorError;

impl Cursor {
    /// A cursor over the given topics.
    #[must_use]
    pub const fn new(marks: Vec<(TopicHash, Mark)>) -> Self {
        Self { tag: None, marks }
    }

    /// Binds the cursor to a ticket.
    #[must_use]
    pub const fn tagged(mut self, tag: Option<TicketTag>) -> Self {
        self.tag = tag;
        self
    }

    /// The ticket's tag, if the cursor was sent on a ticket's connection.
    #[must_use]
    pub const fn tag(&self) -> Option<TicketTag> {
        self.tag
    }

    /// Whether it covers no topic.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// A cursor over one topic.
    #[must_use]
    pub fn single(topic: &Topic, mark: Mark) -> Self {
        Self::new(vec![(topic.into(), mark)])
    }

    /// How far the reader was in the topic, if the cursor covers it.
    #[must_use]
    pub fn mark(&self, topic: &Topic) -> Option<Mark> {
        let hash = TopicHash::from(topic);
        self.marks.iter().find(|(of, _)| *of == hash).map(|(_, mark)| *mark)
    }

    /// Replaces the mark at this place of the list given to [`Cursor::new`].
    pub fn set(&mut self, place: usize, mark: Mark) {
        if let Some(slot) = self.marks.get_mut(place) {
            slot.1 = mark;
        }
    }

    /// Reads a cursor.
    ///
    /// # Errors
    /// [`CursorError`] if the text is not exactly what [`Cursor::encode`] writes.
    pub fn decode(text: &str) -> Result<Self, CursorError> {
        if text.len() > CURSOR_BYTES_MAX {
            return Err(CursorError);
        }
        let bytes = BASE64.decode(text).map_err(|_| CursorError)?;
        let mut rest = Bytes(&bytes);
        let tag = match rest.take::<1>()? {
            [PLAIN] => None,
            [TAGGED] => Some(rest.take()?),
            _ => return Err(CursorError),
        };
        let mut marks = Vec::new();
        while !rest.0.is_empty() {
            if marks.len() == CONNECTION_TOPICS_MAX {
                return Err(CursorError);
            }
            let hash = TopicHash(rest.take()?);
            let epoch = Epoch(u32::from_be_bytes(rest.take()?));
            let fingerprint = Fingerprint(u32::from_be_bytes(rest.take()?));
            let place = rest.varint()?;
            let states_after = (place & 1 == 1).then(|| rest.varint().map(Offset)).transpose()?;
            let position = Position { epoch, offset: Offset(place >> 1), fingerprint };
            if marks.iter().any(|(of, _)| *of == hash) {
                return Err(CursorError);
            }
            marks.push((hash, Mark { position, states_after }));
        }
        Ok(Self { tag, marks })
    }

    /// Writes the cursor: base64url, at most 64 characters for one topic.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        self.encode_into(&mut text);
        text
    }

    /// Writes the cursor behind what the buffer holds.
    pub fn encode_into(&self, text: &mut String) {
        let mut bytes = Vec::with_capacity(7 + self.marks.len() * 36);
        match self.tag {
            None => bytes.push(PLAIN),
            Some(tag) => {
                bytes.push(TAGGED);
                bytes.extend(tag);
            }
        }
        for (hash, mark) in &self.marks {
            mark.put(*hash, &mut bytes);
        }
        BASE64.encode_string(&bytes, text);
    }
}

impl TopicHash {
    /// Writes the cursor over this topic alone.
    pub(crate) fn cursor_into(self, mark: Mark, text: &mut String) {
        let mut bytes = Vec::with_capacity(43);
        bytes.push(PLAIN);
        mark.put(self, &mut bytes);
        BASE64.encode_string(&bytes, text);
    }
}

impl Mark {
    fn put(self, topic: TopicHash, bytes: &mut Vec<u8>) {
        bytes.extend(topic.0);
        bytes.extend(self.position.epoch.0.to_be_bytes());
        bytes.extend(self.position.fingerprint.0.to_be_bytes());
        let place = self.position.offset.0 << 1;
        put_varint(bytes, place | u64::from(self.states_after.is_some()));
        if let Some(Offset(after)) = self.states_after {
            put_varint(bytes, after);
        }
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push((value & 0x7f) as u8);
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], CursorError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(CursorError)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// One spelling only: no overlong forms and no overflow, so that equal cursors are equal text.
    fn varint(&mut self) -> Result<u64, CursorError> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.take::<1>()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 || shift > 0 && byte == 0 {
                return Err(CursorError);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(CursorError)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn marks() -> impl Strategy<Value = Mark> {
        (any::<u32>(), 0..u64::MAX / 2, any::<u32>(), proptest::option::of(any::<u64>())).prop_map(
            |(epoch, offset, fingerprint, states)| Mark {
                position: Position {
                    epoch: Epoch(epoch),
                    offset: Offset(offset),
                    fingerprint: Fingerprint(fingerprint),
                },
                states_after: states.map(Offset),
            },
        )
    }

    /// The first bytes of SHA-256, which cursors that browsers keep were made with.
    #[test]
    fn a_topic_is_held_by_the_hash_of_its_name() {
        let hash = TopicHash::from(&Topic::parse("user/42").unwrap());
        assert_eq!(hash, TopicHash([0xff, 0x93, 0x67, 0x30, 0x7e, 0xb0, 0x33, 0x73]));
    }

    proptest! {
        #[test]
        fn a_cursor_comes_back_as_it_was(
            list in proptest::collection::vec(marks(), 0..32),
            tag in proptest::option::of(any::<TicketTag>()),
        ) {
            let topic = |n: usize| Topic::parse(&format!("t/{n}")).unwrap();
            let cursor = Cursor::new(
                list.iter().enumerate().map(|(n, mark)| ((&topic(n)).into(), *mark)).collect(),
            )
            .tagged(tag);
            let text = cursor.encode();
            prop_assert!(text.len() <= CURSOR_BYTES_MAX);
            let back = Cursor::decode(&text).unwrap();
            prop_assert_eq!(&back, &cursor);
            for (n, mark) in list.iter().enumerate() {
                prop_assert_eq!(back.mark(&topic(n)), Some(*mark));
            }
            prop_assert_eq!(back.mark(&topic(list.len())), None);
        }

        #[test]
        fn one_topic_takes_at_most_64_characters(mark in marks(), tag in any::<TicketTag>()) {
            let cursor = Cursor::single(&Topic::parse("user/42").unwrap(), mark).tagged(Some(tag));
            prop_assert!(cursor.encode().len() <= 64);
        }

        #[test]
        fn what_decodes_encodes_to_the_same_text(text in "[A-Za-z0-9_-]{0,80}") {
            if let Ok(cursor) = Cursor::decode(&text) {
                prop_assert_eq!(cursor.encode(), text);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut versioned = vec![PLAIN];
            versioned.extend(bytes);
            let text = BASE64.encode(&versioned);
            if let Ok(cursor) = Cursor::decode(&text) {
                prop_assert_eq!(cursor.encode(), text);
            }
        }
    }
}
