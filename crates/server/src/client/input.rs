//! Lines of an input, each made into an event to publish.
//!
//! The rules: what one read of the input brings is handed on at once, so that a line is published
//! when it is written; at most [`CHUNKS_MAX`] reads wait, and past that the writer of the input
//! waits; a line that cannot be an event is counted and reported, never fatal.

use std::{
    io::{BufRead, BufReader, Read},
    thread,
};

use serde_json::json;
use tokio::sync::mpsc;

/// Bytes that one read takes.
const READ_BYTES: usize = 64 * 1024;
/// Reads that wait to be published: at most 1 MiB of input.
const CHUNKS_MAX: usize = 16;
/// Longest line that is looked at, bytes: beyond what any hub takes, so the rest is passed over
/// without being kept.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// What a line becomes.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    /// The data of an event of this topic and type; `members` are further members of the event.
    Line { topic: String, event_type: String, members: serde_json::Map<String, serde_json::Value> },
    /// The event itself, given this topic and type where it has none.
    Event { topic: Option<String>, event_type: Option<String> },
}

/// An event to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number in the input, from 1.
    pub(super) number: u64,
    /// The event as one line of JSON, with its id.
    pub(super) event: String,
    /// How far into the input it ends, bytes.
    pub(super) end: u64,
    /// Whether bytes that are no UTF-8 were replaced.
    pub(super) was_repaired: bool,
}

/// What a line of the input turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Read1 {
    Line(Line),
    /// Not an event.
    Unusable {
        number: u64,
        reason: String,
    },
}

/// Reads the input on a thread of its own until its end or until nobody takes the lines any more.
pub(super) fn spawn(
    input: Box<dyn Read + Send>,
    run: String,
    shape: Shape,
) -> mpsc::Receiver<std::io::Result<Vec<Read1>>> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    // A thread and not a task: reading a terminal or pipe cannot be cancelled, and must not keep
    // the runtime from ending.
    thread::spawn(move || {
        let mut input = BufReader::with_capacity(READ_BYTES, input);
        let mut splitter = Splitter::new(run, shape);
        loop {
            let chunk = match input.fill_buf() {
                Ok([]) => {
                    let rest = splitter.finish();
                    if !rest.is_empty() {
                        drop(sender.blocking_send(Ok(rest)));
                    }
                    return;
                }
                Ok(bytes) => {
                    let taken = bytes.len();
                    let lines = splitter.feed(bytes);
                    input.consume(taken);
                    Ok(lines)
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = chunk.is_err();
            if chunk.as_ref().is_ok_and(Vec::is_empty) {
                continue;
            }
            if sender.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// Cuts bytes into lines and makes events of them.
struct Splitter {
    run: String,
    shape: Shape,
    partial: Vec<u8>,
    /// The rest of a line that is too long is being passed over.
    skipping: bool,
    number: u64,
    consumed: u64,
}

impl Splitter {
    fn new(run: String, shape: Shape) -> Self {
        Self { run, shape, partial: Vec::new(), skipping: false, number: 0, consumed: 0 }
    }

    fn feed(&mut self, bytes: &[u8]) -> Vec<Read1> {
        let mut read = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.consumed += part.len() as u64;
            if !self.skipping {
                self.partial.extend_from_slice(part);
            }
            let ended = part.ends_with(b"\n");
            if !self.skipping && self.partial.len() > LINE_BYTES_MAX {
                self.number += 1;
                let reason = format!("is longer than {LINE_BYTES_MAX} bytes");
                read.push(Read1::Unusable { number: self.number, reason });
                self.partial.clear();
                self.skipping = true;
            }
            if ended && !std::mem::take(&mut self.skipping) {
                read.extend(self.line());
            }
        }
        read
    }

    /// The last line, if it has no line break.
    fn finish(&mut self) -> Vec<Read1> {
        if self.partial.is_empty() { Vec::new() } else { self.line().into_iter().collect() }
    }

    fn line(&mut self) -> Option<Read1> {
        let bytes = std::mem::take(&mut self.partial);
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        self.number += 1;
        let (number, end) = (self.number, self.consumed);
        let text = String::from_utf8_lossy(bytes);
        let was_repaired = matches!(text, std::borrow::Cow::Owned(_));
        // Unique for this run and line, so that a line which is sent again is stored once.
        let id = format!("{}:{number}", self.run);
        let event = match &self.shape {
            Shape::Line { topic, event_type, members } => {
                let mut event = members.clone();
                event.insert("topic".to_owned(), topic.as_str().into());
                event.insert("type".to_owned(), event_type.as_str().into());
                event.insert("id".to_owned(), id.into());
                event.insert("data".to_owned(), text.into());
                Ok(serde_json::Value::Object(event).to_string())
            }
            Shape::Event { .. } if text.trim().is_empty() => return None,
            Shape::Event { topic, event_type } => {
                complete(text.trim(), &id, topic.as_deref(), event_type.as_deref())
            }
        };
        Some(match event {
            Ok(event) => Read1::Line(Line { number, event, end, was_repaired }),
            Err(reason) => Read1::Unusable { number, reason },
        })
    }
}

/// Adds the members that an event lacks. The rest of its text stays as it is, so that numbers keep
/// their digits and the hub sees members that are there twice.
fn complete(
    text: &str,
    id: &str,
    topic: Option<&str>,
    event_type: Option<&str>,
) -> Result<String, String> {
    let members: std::collections::BTreeMap<String, serde::de::IgnoredAny> =
        serde_json::from_str(text).map_err(|_| "is no JSON object".to_owned())?;
    let mut added = String::new();
    for (name, value) in [("id", Some(id)), ("topic", topic), ("type", event_type)] {
        if let Some(value) = value.filter(|_| !members.contains_key(name)) {
            added.push_str(&format!("{}:{}", json!(name), json!(value)));
            added.push(',');
        }
    }
    let body = text.strip_prefix('{').unwrap_or(text);
    if members.is_empty() {
        added.pop();
    }
    Ok(format!("{{{added}{body}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Splitter {
        Splitter::new(
            "run".to_owned(),
            Shape::Line {
                topic: "build/1".to_owned(),
                event_type: "line".to_owned(),
                members: serde_json::Map::new(),
            },
        )
    }

    fn data(read: &Read1) -> String {
        let Read1::Line(line) = read else { panic!("{read:?}") };
        let event: serde_json::Value = serde_json::from_str(&line.event).unwrap();
        assert_eq!(event["id"], format!("run:{}", line.number));
        event["data"].as_str().unwrap().to_owned()
    }

    #[test]
    fn lines_are_the_same_wherever_the_input_is_cut() {
        let input = "a\r\n\n\u{1b}[31mred\u{1b}[0m\nü\0\nlast".as_bytes();
        for cut in 0..=input.len() {
            let mut splitter = lines();
            let (left, right) = input.split_at(cut);
            let mut read = splitter.feed(left);
            read.extend(splitter.feed(right));
            read.extend(splitter.finish());
            let data: Vec<_> = read.iter().map(data).collect();
            assert_eq!(data, ["a", "", "\u{1b}[31mred\u{1b}[0m", "ü\0", "last"], "cut at {cut}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_and_said_so() {
        let read = lines().feed(b"a\xffb\n");
        assert_eq!(data(&read[0]), "a\u{fffd}b");
        assert!(matches!(&read[0], Read1::Line(line) if line.was_repaired));
    }

    #[test]
    fn a_line_without_end_is_reported_once_and_the_next_one_is_read() {
        let mut splitter = lines();
        let mut read = Vec::new();
        for _ in 0..40 {
            read.extend(splitter.feed(&[b'x'; READ_BYTES]));
            assert!(splitter.partial.len() <= LINE_BYTES_MAX);
        }
        read.extend(splitter.feed(b"x\nnext\n"));
        assert!(matches!(&read[0], Read1::Unusable { number: 1, .. }));
        assert_eq!((read.len(), data(&read[1])), (2, "next".to_owned()));
    }

    #[test]
    fn events_get_the_members_that_they_lack_and_keep_their_digits() {
        let complete = |text| complete(text, "run:1", Some("t"), None);
        assert_eq!(complete("{}").unwrap(), r#"{"id":"run:1","topic":"t"}"#);
        assert_eq!(
            complete(r#"{"data":1.000000000000000000001}"#).unwrap(),
            r#"{"id":"run:1","topic":"t","data":1.000000000000000000001}"#
        );
        assert_eq!(complete(r#"{"id":"x","topic":"u"}"#).unwrap(), r#"{"id":"x","topic":"u"}"#);
        assert!(complete("[1]").is_err());
        assert!(complete("{").is_err());
    }
}
