//! How a connection writes: frames in its format, with its own cursor.
//!
//! The rule: a frame that is all a reader gets is not copied for it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{ConnectionOptions, Envelope, Format, millis};
use crate::{
    model::{Cursor, Mark, TopicKey},
    sse::{Control, Frame},
    subscribe::{Item, Subscription},
};

/// Whether a control frame moves the cursor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cursored {
    Yes,
    No,
}

/// What was among the items that were written.
#[derive(Default)]
pub(super) struct Delivered {
    pub(super) events: u64,
    /// When the hub took the first event that the reader did not come too late for.
    pub(super) oldest: Option<Instant>,
    pub(super) is_caught_up: bool,
}

/// Writes frames in a connection's format with the connection's own cursor.
#[derive(Debug)]
pub(super) struct Encoder {
    format: Format,
    envelope: Envelope,
    pub(super) topics: Vec<TopicKey>,
    pub(super) cursor: Cursor,
    /// Gaps at the start that the reader has not been told yet: until then it gets no cursor.
    pub(super) gaps_untold: usize,
    /// Whether the reader was told that it is up to date, and has missed nothing since.
    is_live: bool,
    out: Out,
    text: String,
}

/// What is to be written: mostly one frame that goes to many readers, which is not copied.
#[derive(Debug, Default)]
enum Out {
    #[default]
    Nothing,
    Shared(Bytes),
    Own(BytesMut),
}

impl Out {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Shared(bytes) => bytes.len(),
            Self::Own(bytes) => bytes.len(),
        }
    }

    fn share(&mut self, frame: &Bytes) {
        match self {
            Self::Nothing => *self = Self::Shared(frame.clone()),
            _ => self.extend_from_slice(frame),
        }
    }

    fn extend_from_slice(&mut self, bytes: &[u8]) {
        match self {
            Self::Nothing => *self = Self::Own(BytesMut::from(bytes)),
            Self::Own(own) => own.extend_from_slice(bytes),
            Self::Shared(shared) => {
                let mut own = BytesMut::from(&**shared);
                own.extend_from_slice(bytes);
                *self = Self::Own(own);
            }
        }
    }
}

impl Encoder {
    /// Bytes that wait to be taken.
    pub(super) fn len(&self) -> usize {
        self.out.len()
    }

    pub(super) fn new(options: ConnectionOptions) -> Self {
        Self {
            format: options.format,
            envelope: options.envelope,
            topics: Vec::new(),
            cursor: Cursor::default(),
            gaps_untold: 0,
            is_live: false,
            out: Out::Nothing,
            text: String::new(),
        }
    }

    pub(super) fn take(&mut self) -> Bytes {
        match std::mem::take(&mut self.out) {
            Out::Nothing => Bytes::new(),
            Out::Shared(bytes) => bytes,
            // Whole: what `split` leaves would keep the buffer while the connection is quiet.
            Out::Own(bytes) => bytes.freeze(),
        }
    }

    /// Writes items and returns what was among them.
    pub(super) fn items(&mut self, items: Vec<Item>, subscription: &Subscription) -> Delivered {
        let mut delivered = Delivered::default();
        for item in items {
            match item {
                Item::Event { place, frame, mark } => {
                    delivered.events += 1;
                    if let Some(taken) = frame.taken.as_ref().filter(|_| self.is_live) {
                        delivered.oldest = delivered.oldest.or(Some(taken.at));
                        if let Some(delivery) = &taken.delivery {
                            delivery.handed(frame.position.map(|position| position.offset));
                        }
                    }
                    self.event(place, &frame, mark);
                }
                Item::Gap { place, gap, mark } => {
                    self.cursor.set(place, mark);
                    self.gaps_untold = self.gaps_untold.saturating_sub(1);
                    self.is_live = false;
                    let Some(topic) = self.topics.get(place).cloned() else { continue };
                    self.control(&Control::Gap(&topic, gap), Cursored::Yes, None);
                }
                Item::Checkpoint { place, mark } => {
                    self.cursor.set(place, mark);
                    self.control(&Control::Checkpoint, Cursored::Yes, None);
                }
                Item::Changed { .. } => {}
                Item::CaughtUp => {
                    self.is_live = true;
                    delivered.is_caught_up = true;
                    let offsets = subscription.offsets().collect();
                    self.control(&Control::CaughtUp(offsets), Cursored::No, None);
                }
                Item::Closed { place } => {
                    let Some(topic) = self.topics.get(place).cloned() else { continue };
                    self.control(&Control::Closed(&topic), Cursored::No, None);
                }
            }
        }
        delivered
    }

    fn event(&mut self, place: usize, frame: &Frame, mark: Option<Mark>) {
        if let Some(mark) = mark {
            self.cursor.set(place, mark);
        }
        match (self.format, self.envelope) {
            (Format::Sse, envelope) => {
                // A connection that follows one topic without a ticket shares the frame whole.
                let shared = self.topics.len() == 1
                    && self.cursor.tag().is_none()
                    && mark.is_none_or(|mark| mark.states_after.is_none());
                if shared && envelope == Envelope::CloudEvents {
                    self.out.share(frame.bytes());
                    return;
                }
                if mark.is_some() {
                    self.out.extend_from_slice(b"id: ");
                    self.put_cursor();
                    self.out.extend_from_slice(b"\n");
                }
                self.out.extend_from_slice(b"data: ");
                self.payload(frame);
                self.out.extend_from_slice(b"\n\n");
            }
            (Format::Ndjson, Envelope::None) => {
                self.payload(frame);
                self.out.extend_from_slice(b"\n");
            }
            (Format::Ndjson, Envelope::CloudEvents) => {
                let json = frame.json();
                if mark.is_some() {
                    self.out.extend_from_slice(b"{\"cursor\":\"");
                    self.put_cursor();
                    self.out.extend_from_slice(b"\",");
                    self.out.extend_from_slice(json.get(1..).unwrap_or_default());
                } else {
                    self.out.extend_from_slice(&json);
                }
                self.out.extend_from_slice(b"\n");
            }
        }
    }

    fn payload(&mut self, frame: &Frame) {
        match self.envelope {
            Envelope::CloudEvents => self.out.extend_from_slice(&frame.json()),
            Envelope::None => self.out.extend_from_slice(&frame.data()),
        }
    }

    fn put_cursor(&mut self) {
        self.text.clear();
        self.cursor.encode_into(&mut self.text);
        self.out.extend_from_slice(self.text.as_bytes());
    }

    pub(super) fn control(
        &mut self,
        control: &Control<'_>,
        cursored: Cursored,
        retry: Option<Duration>,
    ) {
        let cursored = if self.gaps_untold > 0 { Cursored::No } else { cursored };
        if matches!(control, Control::Checkpoint) && cursored == Cursored::No {
            return;
        }
        match self.format {
            Format::Sse => self.control_sse(control, cursored, retry),
            Format::Ndjson if self.envelope == Envelope::CloudEvents => {
                let mut line = serde_json::Map::new();
                line.insert("type".to_owned(), control.name().into());
                if cursored == Cursored::Yes {
                    line.insert("cursor".to_owned(), self.cursor.encode().into());
                }
                line.insert("data".to_owned(), control.data());
                let line = serde_json::Value::Object(line).to_string();
                self.out.extend_from_slice(line.as_bytes());
                self.out.extend_from_slice(b"\n");
            }
            // Bare data has no room for the hub's own words.
            Format::Ndjson => {}
        }
    }

    fn control_sse(&mut self, control: &Control<'_>, cursored: Cursored, retry: Option<Duration>) {
        if let Some(retry) = retry {
            let line = format!("retry: {}\n", millis(retry));
            self.out.extend_from_slice(line.as_bytes());
        }
        let is_checkpoint = matches!(control, Control::Checkpoint);
        if !is_checkpoint {
            let line = format!("event: {}\n", control.name());
            self.out.extend_from_slice(line.as_bytes());
        }
        if cursored == Cursored::Yes {
            self.out.extend_from_slice(b"id: ");
            self.put_cursor();
            self.out.extend_from_slice(b"\n");
        }
        if !is_checkpoint {
            let line = format!("data: {}\n", control.data());
            self.out.extend_from_slice(line.as_bytes());
        }
        self.out.extend_from_slice(b"\n");
    }
}
