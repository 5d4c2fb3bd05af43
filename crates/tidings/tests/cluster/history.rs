//! What publishers were told and what readers saw, against each other and against the journal.
//!
//! The rule: it knows nothing of how events get anywhere. Of one history of a topic every reader
//! has every event once, at the offset after the one before, and it is the event that its publisher
//! was told is there. Where one history ends and another begins, a reader is told so.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Debug,
};

use tidings::model::{Epoch, Position};

/// A topic's name.
pub(crate) type Name = String;

/// Something that one reader got, in the order in which it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Got {
    Event {
        topic: Name,
        id: String,
        at: Position,
    },
    /// It was told that events are missing, and why.
    Gap {
        topic: Name,
        reason: &'static str,
    },
}

/// All that happened from outside.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// By event id.
    pub(crate) attempted: HashMap<String, Name>,
    /// By event id.
    pub(crate) acked: HashMap<String, Position>,
    /// By reader.
    pub(crate) got: Vec<Vec<Got>>,
}

/// What a topic holds in the end: its history, and its events' ids and places.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) epoch: Epoch,
    pub(crate) events: Vec<(String, Position)>,
}

impl Held {
    pub(crate) fn has(&self, id: &str) -> bool {
        self.events.iter().any(|(held, _)| held == id)
    }
}

/// Whether the fault may cost events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Losses {
    /// Every topic keeps its history, and nobody is told of a gap.
    None,
    /// Topics get other histories, which readers are told of by a gap `epoch`, and keep what was
    /// acknowledged.
    Moved,
    /// They get other histories, told, and may have lost anything.
    Told,
}

impl History {
    /// How many events were acknowledged and are gone.
    pub(crate) fn lost(&self, held: &BTreeMap<Name, Held>) -> usize {
        self.acked.keys().filter(|id| !held[&self.attempted[*id]].has(id)).count()
    }

    /// Everything that is not as it should be.
    pub(crate) fn violations(
        &self,
        held: &BTreeMap<Name, Held>,
        losses: Losses,
    ) -> BTreeSet<String> {
        let mut check = Check { history: self, held, losses, found: BTreeSet::new() };
        for (topic, held) in held {
            check.journal(topic, held);
        }
        check.acknowledged();
        for (reader, got) in self.got.iter().enumerate() {
            for topic in held.keys() {
                check.reader(reader, topic, got);
            }
        }
        check.agreement();
        check.found
    }
}

struct Check<'a> {
    history: &'a History,
    held: &'a BTreeMap<Name, Held>,
    losses: Losses,
    found: BTreeSet<String>,
}

impl Check<'_> {
    fn wrong(&mut self, what: &str, of: impl Debug) {
        self.found.insert(format!("{what}: {of:?}"));
    }

    /// The journal holds what was published, once and without holes.
    fn journal(&mut self, topic: &Name, held: &Held) {
        let mut ids = HashSet::new();
        for (number, (id, at)) in (1..).zip(&held.events) {
            if self.history.attempted.get(id) != Some(topic) {
                self.wrong("stored and never published", (topic, id));
            }
            if !ids.insert(id) {
                self.wrong("stored twice", (topic, id));
            }
            if at.offset.0 != number || at.epoch != held.epoch {
                self.wrong("stored at another place", (topic, id, at, number));
            }
        }
    }

    /// What was acknowledged in a history that is still there, is where it was said to be.
    fn acknowledged(&mut self) {
        for (id, at) in &self.history.acked {
            let held = &self.held[&self.history.attempted[id]];
            if at.epoch != held.epoch {
                match self.losses {
                    Losses::None => self.wrong("acknowledged in another history", (id, at)),
                    Losses::Moved if !held.has(id) => self.wrong("acknowledged and lost", (id, at)),
                    Losses::Moved | Losses::Told => {}
                }
                continue;
            }
            let place = usize::try_from(at.offset.0).unwrap() - 1;
            if held.events.get(place) != Some(&(id.clone(), *at)) {
                self.wrong("acknowledged and lost", (id, at));
            }
        }
    }

    /// One reader's way through one topic.
    fn reader(&mut self, reader: usize, topic: &Name, all: &[Got]) {
        let held = &self.held[topic];
        let mut before: Option<Position> = None;
        let mut was_told = false;
        for got in all {
            match got {
                Got::Gap { topic: of, reason } if of == topic => {
                    if self.losses == Losses::None || *reason != "epoch" {
                        self.wrong("a gap that is none", (reader, topic, reason));
                    }
                    was_told = true;
                }
                Got::Event { topic: of, id, at } if of == topic => {
                    if self.history.attempted.get(id) != Some(topic) {
                        self.wrong("read and never published", (reader, topic, id));
                    }
                    let expected = match before {
                        Some(before) if before.epoch == at.epoch => before.offset.0 + 1,
                        Some(_) if !was_told => {
                            self.wrong("another history, untold", (reader, topic, id, at));
                            at.offset.0
                        }
                        _ => 1,
                    };
                    if at.offset.0 != expected {
                        self.wrong("lost, doubled or out of order", (reader, topic, at, expected));
                    }
                    (before, was_told) = (Some(*at), false);
                }
                _ => {}
            }
        }
        let end = held.events.last().map(|(_, at)| *at);
        if before != end {
            self.wrong("not read to the end", (reader, topic, before, end));
        }
    }

    /// Whoever knows an event's place, reader, publisher or journal, knows the same event there;
    /// and an event has one place in a history.
    fn agreement(&mut self) {
        let mut places: HashMap<(&Name, Epoch, u64), (&String, Position)> = HashMap::new();
        let mut ids: HashMap<(&Name, Epoch, &String), u64> = HashMap::new();
        let read = self.history.got.iter().flatten().filter_map(|got| match got {
            Got::Event { topic, id, at } => Some((topic, id, *at)),
            Got::Gap { .. } => None,
        });
        let acked = self.history.acked.iter();
        let acked = acked.map(|(id, at)| (&self.history.attempted[id], id, *at));
        let held = self
            .held
            .iter()
            .flat_map(|(topic, held)| held.events.iter().map(move |(id, at)| (topic, id, *at)));
        let mut found = Vec::new();
        for (topic, id, at) in held.chain(acked).chain(read) {
            let known = places.entry((topic, at.epoch, at.offset.0)).or_insert((id, at));
            if *known != (id, at) {
                found.push(("two events at one place", (topic, *known, (id, at))));
            }
            let place = *ids.entry((topic, at.epoch, id)).or_insert(at.offset.0);
            if place != at.offset.0 {
                found.push(("one event at two places", (topic, (id, at), (id, at))));
            }
        }
        for (what, of) in found {
            self.wrong(what, of);
        }
    }
}

/// The checker itself: what it must find, it finds.
mod tests {
    use tidings::model::{Fingerprint, Offset};

    use super::*;

    fn at(epoch: u32, offset: u64) -> Position {
        let fingerprint = Fingerprint(u32::try_from(offset).unwrap() + 100 * epoch);
        Position { epoch: Epoch(epoch), offset: Offset(offset), fingerprint }
    }

    fn event(id: &str, at: Position) -> Got {
        Got::Event { topic: "t".to_owned(), id: id.to_owned(), at }
    }

    fn gap() -> Got {
        Got::Gap { topic: "t".to_owned(), reason: "epoch" }
    }

    /// Events a, b, c of the topic t in one history, acknowledged and read.
    fn good() -> (History, BTreeMap<Name, Held>) {
        let placed = [("a", at(1, 1)), ("b", at(1, 2)), ("c", at(1, 3))];
        let attempted = placed.map(|(id, _)| (id.to_owned(), "t".to_owned())).into();
        let acked = placed.map(|(id, at)| (id.to_owned(), at)).into();
        let got = vec![placed.map(|(id, at)| event(id, at)).to_vec()];
        let events = placed.map(|(id, at)| (id.to_owned(), at)).to_vec();
        let held = Held { epoch: Epoch(1), events };
        (History { attempted, acked, got }, BTreeMap::from([("t".to_owned(), held)]))
    }

    /// What it says of the good history after a change.
    fn says(losses: Losses, change: impl FnOnce(&mut History, &mut Held)) -> Vec<String> {
        let (mut history, mut held) = good();
        change(&mut history, held.get_mut("t").unwrap());
        let found = history.violations(&held, losses);
        let mut kinds: Vec<String> =
            found.iter().map(|text| text.split(':').next().unwrap().to_owned()).collect();
        kinds.dedup();
        kinds
    }

    #[test]
    fn the_checker_finds_every_kind_of_harm() {
        let none = Losses::None;
        assert_eq!(says(none, |_, _| {}), Vec::<String>::new());
        let wrong = "lost, doubled or out of order";
        assert_eq!(says(none, |history, _| drop(history.got[0].remove(1))), [wrong]);
        assert_eq!(
            says(none, |history, _| history.got[0].insert(1, event("a", at(1, 1)))),
            [wrong]
        );
        assert_eq!(says(none, |history, _| history.got[0].swap(0, 1)), [wrong]);
        assert_eq!(says(none, |history, _| drop(history.got[0].pop())), ["not read to the end"]);
        assert_eq!(says(none, |history, _| history.got[0].push(gap())), ["a gap that is none"]);
        let forged = says(none, |history, held| {
            history.got[0].push(event("x", at(1, 4)));
            held.events.push(("x".to_owned(), at(1, 4)));
        });
        assert_eq!(forged, ["read and never published", "stored and never published"]);
        let lost = says(none, |history, held| {
            held.events.pop();
            history.got[0].pop();
        });
        assert_eq!(lost, ["acknowledged and lost"]);
        let doubled = says(none, |history, held| {
            held.events.push(("a".to_owned(), at(1, 4)));
            history.got[0].push(event("a", at(1, 4)));
        });
        assert_eq!(doubled, ["one event at two places", "stored twice"]);
        let other = says(none, |history, _| history.got[0][1] = event("c", at(1, 2)));
        assert_eq!(other, ["one event at two places", "two events at one place"]);
    }

    #[test]
    fn the_checker_lets_a_history_end_only_if_that_is_told() {
        let again = |history: &mut History, held: &mut Held, told: bool| {
            *held = Held { epoch: Epoch(2), events: vec![("c".to_owned(), at(2, 1))] };
            history.acked.insert("c".to_owned(), at(2, 1));
            history.got[0].extend(told.then(gap));
            history.got[0].push(event("c", at(2, 1)));
        };
        let none = says(Losses::Told, |history, held| again(history, held, true));
        assert_eq!(none, Vec::<String>::new());
        let silent = says(Losses::Told, |history, held| again(history, held, false));
        assert_eq!(silent, ["another history, untold"]);
        let moved = says(Losses::Moved, |history, held| again(history, held, true));
        assert_eq!(moved, ["acknowledged and lost"]);
        let kept = says(Losses::None, |history, held| again(history, held, true));
        assert_eq!(kept, ["a gap that is none", "acknowledged in another history"]);
    }
}
