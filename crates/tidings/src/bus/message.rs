//! Announcements as bytes on a bus.
//!
//! One line of text, its words separated by single spaces, which neither tenants nor topics hold:
//!
//! ```text
//! 1 advanced EPOCH OFFSET FINGERPRINT TENANT TOPIC      all three in decimal
//! 1 changed TENANT TOPIC
//! 1 ephemeral NODE SEAL TENANT TOPIC                    and after a line feed the event's record
//! ```
//!
//! The rule: what makes a node only look into the journal needs no proof. What is handed to readers
//! as it is carries the seal (HMAC-SHA-256, hex) of the secret that the nodes share.

use std::sync::Arc;

use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::{
    auth::Secret,
    journal::record,
    model::{
        Class, Epoch, Fingerprint, NewEvent, Offset, Position, Tenant, Timestamp, Topic, TopicKey,
    },
};

/// Something that a node says of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announcement {
    /// Its last event is this one.
    Advanced {
        /// Which topic.
        topic: TopicKey,
        /// Where it ends.
        end: Position,
    },
    /// Its properties are others, or it was deleted.
    Changed {
        /// Which topic.
        topic: TopicKey,
    },
    /// It got an event that no journal keeps.
    Ephemeral {
        /// Which topic.
        topic: TopicKey,
        /// The event.
        event: Arc<NewEvent>,
        /// When it was taken.
        at: Timestamp,
        /// The node that took it, which has served its own readers.
        node: u64,
    },
}

impl Announcement {
    /// Which topic it is about.
    #[must_use]
    pub const fn topic(&self) -> &TopicKey {
        match self {
            Self::Advanced { topic, .. }
            | Self::Changed { topic }
            | Self::Ephemeral { topic, .. } => topic,
        }
    }
}

/// Writes and reads announcements.
#[derive(Clone)]
pub struct Codec {
    seal: Hmac<Sha256>,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codec").finish_non_exhaustive()
    }
}

impl Codec {
    /// Seals with the secret that all nodes share.
    #[must_use]
    pub fn new(secret: &Secret) -> Self {
        let seal = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes());
        Self { seal: seal.expect("HMAC takes keys of any length") }
    }

    /// Writes an announcement.
    #[must_use]
    pub fn encode(&self, announcement: &Announcement) -> Bytes {
        let TopicKey { tenant, topic } = announcement.topic();
        let text = match announcement {
            Announcement::Advanced { end, .. } => {
                let Position { epoch, offset, fingerprint } = end;
                format!("1 advanced {} {offset} {} {tenant} {topic}", epoch.0, fingerprint.0)
            }
            Announcement::Changed { .. } => format!("1 changed {tenant} {topic}"),
            Announcement::Ephemeral { event, at, node, .. } => {
                let (_, record) = record::encode(event, Offset::ZERO, *at);
                let seal = self.seal(*node, tenant, topic, &record).finalize().into_bytes();
                let seal: String = seal.iter().map(|byte| format!("{byte:02x}")).collect();
                let head = format!("1 ephemeral {node} {seal} {tenant} {topic}\n");
                return [head.as_bytes(), &record].concat().into();
            }
        };
        text.into()
    }

    /// Reads an announcement; `None` if it is none, or its seal is not of this secret.
    #[must_use]
    pub fn decode(&self, bytes: &[u8]) -> Option<Announcement> {
        let line = bytes.split(|byte| *byte == b'\n').next()?;
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        if words.next()? != "1" {
            return None;
        }
        let announcement = match words.next()? {
            "advanced" => {
                let epoch = Epoch(words.next()?.parse().ok()?);
                let offset = Offset(words.next()?.parse().ok()?);
                let fingerprint = Fingerprint(words.next()?.parse().ok()?);
                let end = Position { epoch, offset, fingerprint };
                Announcement::Advanced { topic: topic(&mut words)?, end }
            }
            "changed" => Announcement::Changed { topic: topic(&mut words)? },
            "ephemeral" => {
                let node = words.next()?.parse().ok()?;
                let seal = unhex(words.next()?)?;
                let topic = topic(&mut words)?;
                let record = bytes.get(line.len() + 1..)?;
                let sealed = self.seal(node, &topic.tenant, &topic.topic, record);
                sealed.verify_slice(&seal).ok()?;
                let event = record::decode(record, Offset::ZERO).ok()?;
                let at = event.recorded_at;
                // Records have the two classes that a journal keeps.
                let body = NewEvent { class: Class::Ephemeral, ..NewEvent::clone(&event.body) };
                Announcement::Ephemeral { topic, event: Arc::new(body), at, node }
            }
            _ => return None,
        };
        words.next().is_none().then_some(announcement)
    }

    fn seal(&self, node: u64, tenant: &Tenant, topic: &Topic, record: &[u8]) -> Hmac<Sha256> {
        self.seal.clone().chain_update(format!("{node} {tenant} {topic}\n")).chain_update(record)
    }
}

fn topic<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<TopicKey> {
    let tenant = Tenant::parse(words.next()?).ok()?;
    Some(TopicKey::new(tenant, Topic::parse(words.next()?).ok()?))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len() / 2)
        .map(|place| u8::from_str_radix(text.get(2 * place..2 * place + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EventType, JsonText};

    fn key() -> TopicKey {
        TopicKey::new(Tenant::parse("~hub").unwrap(), Topic::parse("$a/b:c@d~e").unwrap())
    }

    fn codec(secret: &str) -> Codec {
        Codec::new(&Secret::new(secret))
    }

    fn all() -> Vec<Announcement> {
        let mut event =
            NewEvent::new(EventType::parse("user.typing").unwrap()).data(JsonText::string("\n x"));
        event.class = Class::Ephemeral;
        let end = Position {
            epoch: Epoch(u32::MAX),
            offset: Offset(u64::MAX),
            fingerprint: Fingerprint(7),
        };
        vec![
            Announcement::Advanced { topic: key(), end },
            Announcement::Changed { topic: key() },
            Announcement::Ephemeral {
                topic: key(),
                event: Arc::new(event),
                at: Timestamp::from_millis(5),
                node: u64::MAX,
            },
        ]
    }

    #[test]
    fn an_announcement_comes_back() {
        let codec = codec("a");
        for announcement in all() {
            assert_eq!(codec.decode(&codec.encode(&announcement)), Some(announcement));
        }
    }

    #[test]
    fn an_event_of_another_secret_node_or_topic_is_none() {
        let announcement = all().pop().unwrap();
        let bytes = codec("a").encode(&announcement);
        assert_eq!(codec("b").decode(&bytes), None);
        let text = String::from_utf8_lossy(&bytes[..40]).into_owned();
        assert!(text.starts_with("1 ephemeral 18446744073709551615 "), "{text}");
        for place in 0..bytes.len() {
            let mut wrong = bytes.to_vec();
            wrong[place] ^= 1;
            assert_eq!(codec("a").decode(&wrong), None, "byte {place}");
        }
    }

    #[test]
    fn what_is_no_announcement_is_none() {
        let words = ["", "1", "2 changed t a", "1 changed t", "1 changed t a b", "1 changed t a/"];
        let more = ["1 advanced 1 2 t a", "1 advanced x 2 3 t a", "1 advanced 1 -2 3 t a"];
        let odd = ["1 ephemeral 1 zz t a\nrecord", "1 ephemeral 1 \u{e9}\u{e9} t a\n"];
        for text in words.into_iter().chain(more).chain(odd) {
            assert_eq!(codec("a").decode(text.as_bytes()), None, "{text}");
        }
        assert_eq!(codec("a").decode(&[0xff, 0xfe]), None);
    }
}
