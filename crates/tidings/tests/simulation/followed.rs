//! What a reader knows of its topics, and whether what it is told next may follow that.
//!
//! The rule: between two cursors a reader gets exactly the events that were stored between them and
//! that it wants, or is told which are missing. Every other answer is a broken promise.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use serde_json::Value;
use tidings::model::{Class, Cursor, Mark, Offset, Position, Topic};
use tokio::time::Instant;

use crate::history::{History, Line, Recorded};

/// Where a reader asks to start without a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    Now,
    Earliest,
}

/// Which events a reader asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    Everything,
    Logs,
    States,
}

impl Wants {
    pub(crate) const fn class(self, class: Class) -> bool {
        match self {
            Self::Everything => true,
            Self::Logs => matches!(class, Class::Log),
            Self::States => matches!(class, Class::State),
        }
    }
}

/// Whether a reader is told the end of one topic among several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    Told,
    Untold,
}

/// What a request asked for, and what was so when it was sent.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) since: Since,
    pub(crate) wants: Wants,
    /// The cursor was none of this hub's.
    pub(crate) is_foreign: bool,
    /// Up to where publishers had been told that their events are stored.
    pub(crate) told: BTreeMap<String, Position>,
}

/// An event, as a reader was told it.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    topic: String,
    epoch: String,
    pub(crate) offset: u64,
    event: Recorded,
}

impl Told {
    /// Reads a delivered event; `None` for ephemeral ones, which have no place.
    pub(crate) fn read(data: &Value) -> Result<Option<Self>, String> {
        let text = |name: &str| data[name].as_str().map(str::to_owned);
        let member = |name: &str| text(name).ok_or_else(|| format!("no {name} in {data}"));
        let class = Class::parse(&member("class")?).ok_or("a class that is none")?;
        if class == Class::Ephemeral {
            return Ok(None);
        }
        let position = member("position")?;
        let (epoch, offset) = position.split_once('-').ok_or("a position that is none")?;
        Ok(Some(Self {
            topic: member("topic")?,
            epoch: epoch.to_owned(),
            offset: offset.parse().map_err(|_| "an offset that is none")?,
            event: Recorded {
                fingerprint: tidings::model::Fingerprint(0),
                id: member("id")?,
                class,
                event_type: member("type")?,
                key: text("key"),
                data: data.get("data").map(Value::to_string).unwrap_or_default(),
                deleted: data["deleted"] == true,
            },
        }))
    }

    fn is_log(&self) -> bool {
        self.event.class == Class::Log
    }
}

/// A gap, as a reader was told it.
#[derive(Debug, Clone)]
pub(crate) struct Gap {
    pub(crate) topic: String,
    pub(crate) reason: String,
    from: Option<u64>,
    to: Option<u64>,
}

impl Gap {
    pub(crate) fn read(data: &Value) -> Result<Self, String> {
        let text = |name: &str| data[name].as_str().map(str::to_owned);
        let topic = text("topic").ok_or("a gap without a topic")?;
        let reason = text("reason").ok_or("a gap without a reason")?;
        Ok(Self { topic, reason, from: data["from"].as_u64(), to: data["to"].as_u64() })
    }

    fn is_reset(&self) -> bool {
        matches!(self.reason.as_str(), "epoch" | "unknown_cursor")
    }
}

/// What a reader knows of one topic.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    pub(crate) mark: Option<Mark>,
    /// The offsets of the keys' states.
    states: BTreeMap<String, u64>,
    /// Keys whose end may have been among events that it was told are missing.
    doubtful: BTreeSet<String>,
    /// Its states may be those of another history.
    is_unsure: bool,
    pub(crate) is_closed: bool,
}

/// What a reader is told between one cursor and the next.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) events: Vec<Told>,
    pub(crate) gaps: Vec<Gap>,
}

impl Followed {
    /// Takes in what a step says of this topic. An error is a broken promise.
    pub(crate) fn advance(
        &mut self,
        topic: &str,
        step: &Step,
        cursor: &Cursor,
        asked: &Asked,
        history: &History,
    ) -> Result<(), String> {
        let name = Topic::parse(topic).unwrap();
        let Some(new) = cursor.mark(&name) else {
            // A ticket's first cursor: it says whose it is, and nothing of where.
            let is_nowhere = self.mark.is_none() && step.events.is_empty() && step.gaps.is_empty();
            return if is_nowhere { Ok(()) } else { Err("the cursor lacks the topic".to_owned()) };
        };
        let gaps: Vec<&Gap> = step.gaps.iter().filter(|gap| gap.topic == topic).collect();
        let is_reset = gaps.iter().any(|gap| gap.is_reset());
        let mut before = self.mark.map(|mark| mark.position);
        let line = history.line(topic, new.position, before.filter(|_| !is_reset));
        let line =
            line.ok_or_else(|| format!("the cursor is at {}, which never was", new.position))?;
        for gap in &gaps {
            judge(gap, before, new.position, asked, history)?;
            // After a reset, what is missing is told of the other history.
            before = before.filter(|_| !gap.is_reset());
        }
        let epoch = new.position.epoch.to_string();
        // On a page of a long-poll, what came before a reset is of another history.
        let events = step.events.iter().filter(|told| told.topic == topic);
        let events: Vec<&Told> = events.filter(|told| !is_reset || told.epoch == epoch).collect();
        if let Some(stray) = events.iter().find(|told| told.epoch != epoch) {
            return Err(format!("{} is of another history than its cursor", stray.event.id));
        }
        for told in &events {
            same(told, line)?;
        }
        let old = if is_reset { None } else { self.mark };
        let skipped = |offset: u64| {
            gaps.iter().any(|gap| gap.from.unwrap_or(1) <= offset && Some(offset) <= gap.to)
        };
        let is_wanted =
            |event: &Recorded| event.class == Class::Log && asked.wants.class(event.class);
        let logs: Vec<u64> =
            events.iter().filter(|told| told.is_log()).map(|told| told.offset).collect();
        let base = match old {
            // Events that were lost without a trace and trimmed since: nobody can tell the old
            // history from the new one below its floor, and that something is missing is told.
            Some(mark) if !line.holds(mark.position) && !gaps.is_empty() => {
                self.is_unsure = true;
                mark.position.offset.0
            }
            Some(mark) if !line.holds(mark.position) => {
                return Err(format!("{} became {} without a gap", mark.position, new.position));
            }
            Some(mark) => mark.position.offset.0,
            None => logs.first().map_or(new.position.offset.0, |first| first - 1),
        };
        if base > new.position.offset.0 {
            return Err(format!("went back from {base} to {}", new.position));
        }
        let stored =
            line.events.range((Bound::Excluded(base), Bound::Included(new.position.offset.0)));
        let expected: Vec<u64> = stored
            .filter(|(offset, event)| is_wanted(event) && !skipped(**offset))
            .map(|(offset, _)| *offset)
            .collect();
        if logs != expected {
            let at = new.position;
            return Err(format!("after {base} up to {at}: got {logs:?}, stored {expected:?}"));
        }
        if old.is_none() {
            let floor = if is_reset { history.floor(topic, new.position) } else { 0 };
            start(topic, base, line, &gaps, floor, asked)?;
        }
        if is_reset {
            self.states.clear();
            self.doubtful.clear();
            self.is_unsure = false;
        } else if !gaps.is_empty() {
            self.doubtful = self.states.keys().cloned().collect();
        }
        self.is_closed &= gaps.is_empty();
        for told in events {
            self.state(told)?;
        }
        self.mark = Some(new);
        Ok(())
    }

    fn state(&mut self, told: &Told) -> Result<(), String> {
        let Some(key) = &told.event.key else { return Ok(()) };
        let held = self.states.get(key).copied();
        if held.is_some_and(|held| held >= told.offset) {
            return Err(format!("state {key} at {} came after {held:?}", told.offset));
        }
        self.doubtful.remove(key);
        if told.event.deleted {
            self.states.remove(key);
        } else {
            self.states.insert(key.clone(), told.offset);
        }
        Ok(())
    }

    /// Checks what must be so once a reader was told that it has everything up to an offset.
    pub(crate) fn caught_up(
        &mut self,
        topic: &str,
        offset: u64,
        asked: &Asked,
        history: &History,
    ) -> Result<(), String> {
        let mark = self.mark.ok_or("caught up without a cursor")?;
        if mark.position.offset.0 != offset || has_states_to_come(mark) {
            return Err(format!("caught up at {offset}, the cursor at {}", mark.position));
        }
        let line = history.line(topic, mark.position, None).ok_or("caught up nowhere")?;
        if let Some(told) = asked.told.get(topic)
            && line.holds(*told)
            && offset < told.offset.0
        {
            return Err(format!("caught up at {offset}, and {told} was there"));
        }
        if asked.wants.class(Class::State) {
            self.compare(topic, line, offset, history)?;
        }
        Ok(())
    }

    /// Compares the states with those that were the newest at an offset.
    fn compare(
        &mut self,
        topic: &str,
        line: &Line,
        offset: u64,
        history: &History,
    ) -> Result<(), String> {
        if self.is_unsure {
            return Ok(());
        }
        let newest = line.states_at(offset);
        for (key, at) in &newest {
            // One that was replaced while the states were read comes in its new place.
            if self.states.get(*key) != Some(at) && !history.was_replaced(topic, line, *at) {
                let held = self.states.get(*key);
                return Err(format!("state {key} is at {at}, the reader has {held:?}"));
            }
        }
        let ended = |key: &String| !newest.contains_key(key.as_str());
        let gone: Vec<String> = self.states.keys().filter(|key| ended(key)).cloned().collect();
        for key in gone {
            if !self.doubtful.remove(&key) {
                return Err(format!("state {key} has ended, and the reader was not told"));
            }
            self.states.remove(&key);
        }
        Ok(())
    }

    /// Whether the reader has everything that there is.
    pub(crate) fn is_at_end(&self, topic: &str, ends: Ends, history: &History) -> bool {
        let line = history.now(topic);
        self.mark.is_some_and(|mark| {
            line.holds(mark.position)
                && mark.position.offset.0 == line.end()
                && !has_states_to_come(mark)
                && (ends == Ends::Untold || self.is_closed == line.closed)
        })
    }

    /// Checks what must be so in the end.
    pub(crate) fn finish(
        &mut self,
        topic: &str,
        wants: Wants,
        history: &History,
    ) -> Result<(), String> {
        let line = history.now(topic);
        if wants.class(Class::State) {
            self.compare(topic, line, line.end(), history)
        } else {
            Ok(())
        }
    }
}

/// Before offset 0 there are none.
fn has_states_to_come(mark: Mark) -> bool {
    mark.states_after.is_some() && mark.position.offset > Offset::ZERO
}

/// Whether the gap had to be told to a reader at the old position.
fn judge(
    gap: &Gap,
    old: Option<Position>,
    new: Position,
    asked: &Asked,
    history: &History,
) -> Result<(), String> {
    let topic = gap.topic.as_str();
    let is_right = match gap.reason.as_str() {
        // A deletion that is not answered yet is known to the journal before it is to the hub: who
        // comes then is given the old history, and told at once that it has ended.
        "epoch" => match old {
            Some(old) => history.was_foreign(topic, old, asked.at),
            None => history.has_changed(topic),
        },
        "unknown_cursor" => asked.is_foreign,
        "trimmed" | "lagged" => {
            old.is_none_or(|old| Some(old.offset.0) < gap.to)
                && gap.to.is_some_and(|to| history.was_trimmed(topic, new, to))
                && gap.from.is_none_or(|from| Some(from) <= gap.to)
        }
        _ => false,
    };
    if is_right { Ok(()) } else { Err(format!("{gap:?} at {old:?} without a reason")) }
}

/// Whether the event was stored as it is told.
fn same(told: &Told, line: &Line) -> Result<(), String> {
    let stored = line.events.get(&told.offset).ok_or_else(|| format!("{told:?} was not stored"))?;
    let event = Recorded { fingerprint: stored.fingerprint, ..told.event.clone() };
    if event == *stored { Ok(()) } else { Err(format!("{event:?} was stored as {stored:?}")) }
}

/// Whether a reader without a position may start after this offset.
fn start(
    topic: &str,
    base: u64,
    line: &Line,
    gaps: &[&Gap],
    floor: u64,
    asked: &Asked,
) -> Result<(), String> {
    let is_reset = gaps.iter().any(|gap| gap.is_reset());
    if asked.since == Since::Now && !is_reset {
        let told = asked.told.get(topic).filter(|told| line.holds(**told));
        let end = told.map_or(0, |told| told.offset.0);
        return if base >= end {
            Ok(())
        } else {
            Err(format!("started after {base} and not at {end}"))
        };
    }
    let told = gaps.iter().filter_map(|gap| gap.to).max().unwrap_or(0);
    let untold = if is_reset { floor } else { told };
    let before = line.events.range(..=base).rev();
    let lost = before.take_while(|(offset, _)| **offset > untold);
    let lost: Vec<u64> = lost
        .filter(|(_, event)| event.class == Class::Log && asked.wants.class(Class::Log))
        .map(|(offset, _)| *offset)
        .collect();
    if lost.is_empty() { Ok(()) } else { Err(format!("started after {base} without {lost:?}")) }
}
