//! What was really stored: every commit of every history that a topic ever had.
//!
//! The rule: it is written where the store commits and nowhere else, so that whatever the hub tells
//! its publishers and readers is compared with what it could have known.

use std::collections::BTreeMap;

use tidings::{
    journal::{Append, Appended},
    model::{Class, Data, Epoch, Event, Fingerprint, Offset, Position},
};
use tokio::time::Instant;

/// The key of the states that are raised by one with each event.
pub(crate) const COUNTER: &str = "counter";

/// All histories of all topics.
#[derive(Debug, Default)]
pub(crate) struct History {
    lines: BTreeMap<String, Vec<Line>>,
}

/// One history of a topic: from its beginning, or from a backup, until it is deleted or lost.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) epoch: Epoch,
    /// Everything that was committed, trimmed or not.
    pub(crate) events: BTreeMap<u64, Recorded>,
    /// The last offset that was trimmed.
    pub(crate) floor: u64,
    pub(crate) closed: bool,
    /// The last position that a publisher was told.
    told: Option<Position>,
    ended_at: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) id: String,
    pub(crate) class: Class,
    pub(crate) event_type: String,
    pub(crate) key: Option<String>,
    pub(crate) data: String,
    pub(crate) deleted: bool,
}

impl Recorded {
    fn of(event: &Event) -> Self {
        let body = &event.body;
        let data = match &body.data {
            Data::Json(text) => text.as_str().to_owned(),
            _ => String::new(),
        };
        Self {
            fingerprint: event.fingerprint,
            id: body.id.as_str().to_owned(),
            class: body.class,
            event_type: body.event_type.as_str().to_owned(),
            key: body.key.as_ref().map(|key| key.as_str().to_owned()),
            data,
            deleted: body.delete,
        }
    }
}

impl Line {
    fn new(epoch: Epoch) -> Self {
        Self { epoch, events: BTreeMap::new(), floor: 0, closed: false, told: None, ended_at: None }
    }

    /// The offset of the last event.
    pub(crate) fn end(&self) -> u64 {
        self.events.last_key_value().map_or(0, |(offset, _)| *offset)
    }

    /// The last position that a publisher was told: what readers must see from then on.
    pub(crate) fn told(&self) -> Position {
        let fingerprint = Fingerprint(0);
        self.told.unwrap_or(Position { epoch: self.epoch, offset: Offset::ZERO, fingerprint })
    }

    /// Whether it takes no more events after this offset, but the ends of states that expire.
    pub(crate) fn is_closed_at(&self, offset: u64) -> bool {
        self.closed && self.events.range(offset + 1..).all(|(_, event)| event.deleted)
    }

    /// Whether the position is one of this history.
    pub(crate) fn holds(&self, position: Position) -> bool {
        let Offset(offset) = position.offset;
        let held = self.events.get(&offset).map(|event| event.fingerprint);
        self.epoch == position.epoch && (offset == 0 || held == Some(position.fingerprint))
    }

    /// Counters are raised by one, by publishers who compare and set.
    fn lost_update(&self, event: &Recorded) -> Option<String> {
        let key = event.key.as_deref().filter(|key| *key == COUNTER && !event.deleted)?;
        let count = |event: &Recorded| -> u64 {
            let data: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
            data["count"].as_u64().unwrap_or(0)
        };
        let before = self.states_at(u64::MAX).get(key).map_or(0, |at| count(&self.events[at]));
        (count(event) != before + 1).then(|| format!("{} follows {before}", event.data))
    }

    /// The offsets of the keys' newest states up to an offset.
    pub(crate) fn states_at(&self, offset: u64) -> BTreeMap<&str, u64> {
        let mut states = BTreeMap::new();
        for (at, event) in self.events.range(..=offset) {
            match &event.key {
                Some(key) if event.deleted => drop(states.remove(key.as_str())),
                Some(key) => drop(states.insert(key.as_str(), *at)),
                None => {}
            }
        }
        states
    }
}

impl History {
    pub(crate) fn topics(&self) -> impl Iterator<Item = &str> {
        self.lines.keys().map(String::as_str)
    }

    /// The topic as it is now.
    pub(crate) fn now(&self, topic: &str) -> &Line {
        self.lines[topic].last().unwrap()
    }

    /// The newest history that holds both positions, or else the new one.
    pub(crate) fn line(&self, topic: &str, new: Position, old: Option<Position>) -> Option<&Line> {
        let newest = || self.lines[topic].iter().rev().filter(|line| line.holds(new));
        let both = newest().find(|line| old.is_none_or(|old| line.holds(old)));
        both.or_else(|| newest().next())
    }

    /// Whether since then there was a time at which the position was not one of the topic's.
    pub(crate) fn was_foreign(&self, topic: &str, position: Position, since: Instant) -> bool {
        let lines = self.lines[topic].iter();
        let mut meanwhile = lines.filter(|line| line.ended_at.is_none_or(|end| end >= since));
        meanwhile.any(|line| !line.holds(position))
    }

    /// Whether the topic had another history before this one.
    pub(crate) fn has_changed(&self, topic: &str) -> bool {
        self.lines[topic].len() > 1
    }

    /// Whether a state that was stored at the offset was replaced in one of the histories that had
    /// it. One that was lost since may have been read from when it was.
    pub(crate) fn was_replaced(&self, topic: &str, line: &Line, offset: u64) -> bool {
        let state = &line.events[&offset];
        self.lines[topic].iter().filter(|line| line.events.get(&offset) == Some(state)).any(
            |line| {
                let mut later = line.events.range(offset + 1..);
                later.any(|(_, event)| event.key == state.key)
            },
        )
    }

    /// How far the histories that hold a position were trimmed.
    pub(crate) fn floor(&self, topic: &str, position: Position) -> u64 {
        let lines = self.lines[topic].iter().filter(|line| line.holds(position));
        lines.map(|line| line.floor).max().unwrap_or(0)
    }

    /// Whether a history that holds the position takes no more events after it. What a hub that died
    /// since had said of it may come late.
    pub(crate) fn was_closed_at(&self, topic: &str, position: Position) -> bool {
        let mut lines = self.lines[topic].iter().filter(|line| line.holds(position));
        lines.any(|line| line.is_closed_at(position.offset.0))
    }

    /// Whether a history that holds the position was trimmed up to an offset.
    pub(crate) fn was_trimmed(&self, topic: &str, position: Position, floor: u64) -> bool {
        self.lines[topic].iter().any(|line| line.holds(position) && line.floor >= floor)
    }

    /// A publisher was told that an event with this data is at the position. Returns whether it
    /// ever was.
    pub(crate) fn tell(&mut self, topic: &str, position: Position, data: &str) -> bool {
        let offset = position.offset.0;
        let lines = self.lines.get_mut(topic).unwrap().iter_mut().rev();
        let mut stored = lines.filter(|line| {
            line.holds(position) && line.events.get(&offset).is_some_and(|event| event.data == data)
        });
        let Some(line) = stored.next() else { return false };
        if line.told().offset < position.offset {
            line.told = Some(position);
        }
        true
    }

    /// Begins a history: the topic's first, or the one after its deletion or loss.
    pub(crate) fn begin(&mut self, topic: &str, epoch: Epoch) {
        let lines = self.lines.entry(topic.to_owned()).or_default();
        if let Some(last) = lines.last_mut() {
            last.ended_at = Some(Instant::now());
        }
        lines.push(Line::new(epoch));
    }

    pub(crate) fn trimmed(&mut self, topic: &str, floor: u64) {
        if let Some(line) = self.lines.get_mut(topic).and_then(|lines| lines.last_mut()) {
            line.floor = floor;
        }
    }

    pub(crate) fn closed(&mut self, topic: &str, closed: bool) {
        if let Some(line) = self.lines.get_mut(topic).and_then(|lines| lines.last_mut()) {
            line.closed = closed;
        }
    }

    /// Takes in what an append stored. An error if it should not have been.
    pub(crate) fn appended(
        &mut self,
        topic: &str,
        batch: &[Append],
        appended: &Appended,
    ) -> Result<(), String> {
        let Some(line) = self.lines.get_mut(topic).and_then(|lines| lines.last_mut()) else {
            return Ok(());
        };
        for event in &appended.events {
            let recorded = Recorded::of(event);
            let is_again = |older: &&Recorded| older.data == recorded.data && !recorded.deleted;
            if !recorded.data.is_empty() && line.events.values().any(|older| is_again(&older)) {
                return Err(format!("{topic} stored {} twice", recorded.data));
            }
            let sender = |event: &Recorded| event.id.split_once(':').map(|(of, _)| of.to_owned());
            let number = |event: &Recorded| event.id.split_once(':')?.1.parse::<u64>().ok();
            let later = |older: &&Recorded| {
                sender(older) == sender(&recorded) && number(older) > number(&recorded)
            };
            if number(&recorded).is_some()
                && let Some(later) = line.events.values().find(later)
            {
                return Err(format!("{topic} stored {} after {}", recorded.id, later.id));
            }
            if let Some(wrong) = line.lost_update(&recorded) {
                return Err(format!("{topic}: {wrong}"));
            }
            line.events.insert(event.offset.0, recorded);
        }
        line.closed = appended.head.closed;
        if batch.len() != appended.outcomes.len() {
            return Err("the journal did not answer each event".to_owned());
        }
        Ok(())
    }
}
