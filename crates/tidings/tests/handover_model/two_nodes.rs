//! The hub's own hand-over: two nodes over one journal, rings, and a reader that is a position.
//!
//! What is modelled is what `topic_task.rs` and `subscribe.rs` do, one atomic step for each lock
//! taken or journal call made: a topic's task appends and then advances its ring; a reader that was
//! woken looks into the ring and otherwise reads a page and judges it by the resume table. What is
//! to come with the bus is modelled as designed: an announcement that is next is pushed, an older
//! one dropped, a newer one fills the hole from the journal; a task compares its end with the
//! journal's now and then.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// Frames that a ring keeps: fewer than there are events, so that a reader falls off it.
const RING_FRAMES: u8 = 1;
/// Events of a journal page.
const PAGE_EVENTS: u8 = 2;

const TOLD: &str = "what follows is next, or a gap with its bounds was told";
const ONCE: &str = "no event twice, none before an earlier one";
const REASON: &str = "no gap without a reason";
const CAUGHT_UP: &str = "the reader has everything at rest";

/// What happens in a check, how often at most.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    events: u8,
    drops: u8,
    doubles: u8,
    disconnects: u8,
    trims: u8,
    recreations: u8,
}

/// How the code is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    Nothing,
    /// A page is not compared with the reader's position.
    UnjudgedPage,
    /// No task ever asks whether there is more in the journal.
    NoTailCheck,
    /// An announcement that is not the next is pushed all the same.
    HoleInRing,
    /// Announcements are compared by offset alone.
    EpochIgnored,
    /// A reader looks first and is registered to be woken afterwards.
    AttachedLast,
    /// A task tells the other node of an event before it is stored.
    AnnouncedFirst,
}

#[derive(Debug, Clone, Copy)]
struct Cluster {
    bounds: Bounds,
    broken: Break,
}

/// An event or the end of a history: which epoch, which offset.
type Place = (u8, u8);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    journal: Journal,
    nodes: [Node; 2],
    /// Announcements under way: to which node, and what. Sorted: their order says nothing.
    bus: Vec<(usize, Place)>,
    reader: Reader,
    left: Left,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Journal {
    epoch: u8,
    /// Events up to here were trimmed.
    floor: u8,
    /// The last event's offset.
    end: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Node {
    /// What it knows of the journal.
    epoch: u8,
    end: u8,
    /// Its ring holds what follows this offset, with the epoch that each frame has.
    floor: u8,
    frames_of: u8,
    /// Stored by it, and not in its ring yet.
    pending: Option<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Reader {
    position: Place,
    node: Option<usize>,
    is_registered: bool,
    is_woken: bool,
    seen: Vec<Seen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Seen {
    Event(Place),
    Trimmed { from: u8, to: u8 },
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Left {
    events: u8,
    drops: u8,
    doubles: u8,
    disconnects: u8,
    trims: u8,
    recreations: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Append(usize),
    Advance(usize),
    Deliver(usize, Place),
    Drop(usize, Place),
    Double(usize, Place),
    Check(usize),
    Trim(u8),
    Recreate(usize),
    Attach(usize),
    Register,
    Read,
    Disconnect,
}

impl Node {
    /// Puts the next frame into the ring; what does not follow empties it.
    fn push(&mut self, (epoch, offset): Place) {
        if offset != self.end + 1 || epoch != self.frames_of {
            self.floor = offset - 1;
        }
        (self.frames_of, self.end) = (epoch, offset);
        self.floor = self.floor.max(self.end.saturating_sub(RING_FRAMES));
    }

    fn restart(&mut self, journal: Journal) {
        (self.epoch, self.frames_of) = (journal.epoch, journal.epoch);
        (self.floor, self.end) = (journal.end, journal.end);
    }

    /// Takes in what the journal has after this node's end.
    fn fill(&mut self, journal: Journal) {
        if journal.epoch != self.epoch || journal.floor > self.end {
            return self.restart(journal);
        }
        for offset in self.end + 1..=journal.end {
            self.push((journal.epoch, offset));
        }
    }
}

impl State {
    fn node(&self, number: usize) -> &Node {
        self.nodes.get(number).unwrap()
    }

    fn change(&mut self, number: usize, change: impl FnOnce(&mut Node)) {
        change(self.nodes.get_mut(number).unwrap());
        if self.reader.node == Some(number) && self.reader.is_registered {
            self.reader.is_woken = true;
        }
    }

    fn announce(&mut self, by: usize, what: Place) {
        self.bus.push((1 - by, what));
        self.bus.sort_unstable();
    }

    fn receive(&mut self, number: usize, place: Place, broken: Break) {
        let (node, journal) = (*self.node(number), self.journal);
        let (epoch, offset) = place;
        if epoch != node.epoch && broken != Break::EpochIgnored {
            self.change(number, |node| {
                if node.epoch != journal.epoch {
                    node.restart(journal);
                }
            });
        } else if offset == node.end + 1 {
            self.change(number, |node| node.push(place));
        } else if offset > node.end && broken == Break::HoleInRing {
            // The frames before it stay, as if it followed them.
            let floor = node.floor;
            self.change(number, |node| {
                node.push(place);
                node.floor = floor;
            });
        } else if offset > node.end {
            self.change(number, |node| node.fill(journal));
        }
    }

    /// The next frame of the node's ring, whether to ask the journal, or nothing.
    fn look(&self, number: usize) -> Look {
        let (node, (epoch, offset)) = (self.node(number), self.reader.position);
        if node.epoch != epoch {
            Look::Journal
        } else if offset >= node.end {
            Look::Nothing
        } else if offset < node.floor {
            Look::Journal
        } else {
            Look::Frame((node.frames_of, offset + 1))
        }
    }

    /// One turn of the reader.
    fn read(&mut self, number: usize, broken: Break) {
        match self.look(number) {
            Look::Nothing => self.reader.is_woken = false,
            Look::Frame(place) if broken == Break::HoleInRing => {
                // It hands out what stands next in the ring, and that is the last.
                let last = (place.0, self.node(number).end);
                self.reader.take(last);
            }
            Look::Frame(place) => self.reader.take(place),
            Look::Journal => self.read_page(broken),
        }
    }

    /// The resume table, and then a page.
    fn read_page(&mut self, broken: Break) {
        let (journal, (epoch, offset)) = (self.journal, self.reader.position);
        let is_other = epoch != journal.epoch || offset > journal.end;
        if is_other && broken != Break::UnjudgedPage {
            self.reader.seen.push(Seen::Reset);
            self.reader.position = (journal.epoch, journal.floor);
        } else if offset < journal.floor && broken != Break::UnjudgedPage {
            self.reader.seen.push(Seen::Trimmed { from: offset + 1, to: journal.floor });
            self.reader.position = (journal.epoch, journal.floor);
        } else {
            let from = offset.max(journal.floor) + 1;
            let page = from..=journal.end.min(from + PAGE_EVENTS - 1);
            // A page that has nothing: the node will wake the reader when it has heard of it.
            self.reader.is_woken = !page.is_empty();
            page.for_each(|offset| self.reader.take((journal.epoch, offset)));
        }
    }
}

enum Look {
    Nothing,
    Frame(Place),
    Journal,
}

impl Reader {
    fn take(&mut self, place: Place) {
        self.seen.push(Seen::Event(place));
        self.position = place;
    }
}

impl Model for Cluster {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let node = Node { epoch: 0, end: 0, floor: 0, frames_of: 0, pending: None };
        let Bounds { events, drops, doubles, disconnects, trims, recreations } = self.bounds;
        vec![State {
            journal: Journal { epoch: 0, floor: 0, end: 0 },
            nodes: [node, node],
            bus: Vec::new(),
            reader: Reader {
                position: (0, 0),
                node: None,
                is_registered: false,
                is_woken: false,
                seen: Vec::new(),
            },
            left: Left { events, drops, doubles, disconnects, trims, recreations },
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (number, node) in state.nodes.iter().enumerate() {
            if node.pending.is_some() {
                // Its task waits for its own append and does nothing else.
                actions.push(Action::Advance(number));
                continue;
            }
            if state.left.events > 0 {
                actions.push(Action::Append(number));
            }
            if state.left.recreations > 0 {
                actions.push(Action::Recreate(number));
            }
            let is_behind = (node.epoch, node.end) != (state.journal.epoch, state.journal.end);
            if state.reader.node == Some(number) && is_behind && self.broken != Break::NoTailCheck {
                actions.push(Action::Check(number));
            }
        }
        let mut under_way = state.bus.clone();
        under_way.dedup();
        for (number, place) in under_way {
            if state.node(number).pending.is_none() {
                actions.push(Action::Deliver(number, place));
            }
            if state.left.drops > 0 {
                actions.push(Action::Drop(number, place));
            }
            if state.left.doubles > 0 {
                actions.push(Action::Double(number, place));
            }
        }
        if state.left.trims > 0 {
            actions.extend((state.journal.floor + 1..=state.journal.end).map(Action::Trim));
        }
        match state.reader.node {
            None => actions.extend([Action::Attach(0), Action::Attach(1)]),
            Some(_) => {
                if state.reader.is_woken {
                    actions.push(Action::Read);
                } else if !state.reader.is_registered {
                    actions.push(Action::Register);
                }
                if state.left.disconnects > 0 {
                    actions.push(Action::Disconnect);
                }
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Append(number) => {
                state.left.events -= 1;
                let place = (state.journal.epoch, state.journal.end + 1);
                if self.broken == Break::AnnouncedFirst {
                    state.announce(number, place);
                } else {
                    state.journal.end += 1;
                }
                state.change(number, |node| node.pending = Some(place));
            }
            Action::Advance(number) => {
                let place = state.node(number).pending?;
                if self.broken == Break::AnnouncedFirst {
                    state.journal.end = state.journal.end.max(place.1);
                } else {
                    state.announce(number, place);
                }
                state.change(number, |node| {
                    node.pending = None;
                    node.push(place);
                    node.epoch = place.0;
                });
            }
            Action::Deliver(number, place) | Action::Drop(number, place) => {
                let at = state.bus.iter().position(|under_way| *under_way == (number, place))?;
                state.bus.remove(at);
                if action == Action::Deliver(number, place) {
                    state.receive(number, place, self.broken);
                } else {
                    state.left.drops -= 1;
                }
            }
            Action::Double(number, place) => {
                state.left.doubles -= 1;
                state.bus.push((number, place));
                state.bus.sort_unstable();
            }
            Action::Check(number) => {
                let journal = state.journal;
                state.change(number, |node| node.fill(journal));
            }
            Action::Trim(floor) => {
                state.left.trims -= 1;
                state.journal.floor = floor;
            }
            Action::Recreate(number) => {
                state.left.recreations -= 1;
                state.journal = Journal { epoch: state.journal.epoch + 1, floor: 0, end: 0 };
                let journal = state.journal;
                state.change(number, |node| node.restart(journal));
                state.announce(number, (journal.epoch, 0));
            }
            Action::Attach(number) => {
                state.reader.node = Some(number);
                state.reader.is_registered = self.broken != Break::AttachedLast;
                state.reader.is_woken = true;
            }
            Action::Register => state.reader.is_registered = true,
            Action::Read => state.read(state.reader.node?, self.broken),
            Action::Disconnect => {
                state.left.disconnects -= 1;
                state.reader.node = None;
                state.reader.is_registered = false;
                state.reader.is_woken = false;
            }
        }
        Some(state)
    }

    /// Each event, each gap of the bounds and as many again: what sees more turns in a circle.
    fn within_boundary(&self, state: &State) -> bool {
        state.reader.seen.len() <= 2 * usize::from(self.bounds.events) + 4
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(TOLD, |_, state: &State| told(&state.reader.seen)),
            Property::always(ONCE, |_, state: &State| once(&state.reader.seen)),
            Property::always(REASON, |model: &Self, state: &State| {
                let trimmed = state.left.trims < model.bounds.trims;
                state.reader.seen.iter().all(|seen| match seen {
                    Seen::Event((epoch, offset)) => {
                        *epoch < state.journal.epoch || *offset <= state.journal.end
                    }
                    Seen::Trimmed { from, to } => trimmed && from <= to,
                    Seen::Reset => state.journal.epoch > 0,
                })
            }),
            Property::always(CAUGHT_UP, |model: &Self, state: &State| {
                let mut actions = Vec::new();
                model.actions(state, &mut actions);
                // It rests if all that is left is what need not happen.
                actions.retain(|action| !matches!(action, Action::Disconnect | Action::Trim(_)));
                !actions.is_empty()
                    || state.reader.position == (state.journal.epoch, state.journal.end)
            }),
        ]
    }
}

/// Whether each event follows the one before, or what the reader was told in between.
fn told(seen: &[Seen]) -> bool {
    let mut next = Some((0, 1));
    seen.iter().all(|seen| {
        let is_told = match (seen, next) {
            (Seen::Event(place), Some(next)) => *place == next,
            (Seen::Trimmed { from, .. }, Some((_, next))) => *from == next,
            // After a reset anything may follow, as far as `once` allows it.
            (Seen::Event(_) | Seen::Trimmed { .. }, None) | (Seen::Reset, _) => true,
        };
        next = match (seen, next) {
            (Seen::Event((epoch, offset)), _) => Some((*epoch, offset + 1)),
            (Seen::Trimmed { to, .. }, Some((epoch, _))) => Some((epoch, to + 1)),
            (Seen::Trimmed { .. }, None) | (Seen::Reset, _) => None,
        };
        is_told
    })
}

fn once(seen: &[Seen]) -> bool {
    let events = seen.iter().filter_map(|seen| match seen {
        Seen::Event(place) => Some(*place),
        Seen::Trimmed { .. } | Seen::Reset => None,
    });
    let events: Vec<Place> = events.collect();
    events.is_sorted_by(|earlier, later| earlier < later)
}

/// An unlucky day without trimming and recreation.
const LOSSY: Bounds =
    Bounds { events: 4, drops: 1, doubles: 1, disconnects: 1, trims: 0, recreations: 0 };
/// All that some of the breaks need.
const SHORT: Bounds =
    Bounds { events: 2, drops: 1, doubles: 0, disconnects: 0, trims: 0, recreations: 0 };
/// Retention runs meanwhile.
const TRIMMED: Bounds =
    Bounds { events: 3, drops: 1, doubles: 0, disconnects: 1, trims: 2, recreations: 0 };
/// The topic is deleted and written again meanwhile.
const RECREATED: Bounds =
    Bounds { events: 3, drops: 1, doubles: 0, disconnects: 1, trims: 0, recreations: 1 };

fn assert_holds(bounds: Bounds) {
    let checker =
        Cluster { bounds, broken: Break::Nothing }.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    assert!(checker.unique_state_count() > 10_000, "checked next to nothing");
}

fn assert_found(broken: Break, bounds: Bounds, property: &'static str) {
    // Broken code may also turn in circles: the one property is enough.
    let finish = HasDiscoveries::AllOf([property].into());
    let checker = Cluster { bounds, broken }.checker().finish_when(finish).spawn_bfs().join();
    checker.assert_any_discovery(property);
}

#[test]
fn a_lossy_bus_costs_no_event() {
    assert_holds(LOSSY);
}

#[test]
fn what_retention_takes_is_told_with_its_bounds() {
    assert_holds(TRIMMED);
}

#[test]
fn another_history_is_told_as_such() {
    assert_holds(RECREATED);
}

#[test]
fn a_page_that_is_not_judged_loses_silently() {
    assert_found(Break::UnjudgedPage, TRIMMED, TOLD);
}

#[test]
fn without_a_look_at_the_tail_a_lost_last_announcement_is_never_noticed() {
    assert_found(Break::NoTailCheck, SHORT, CAUGHT_UP);
}

#[test]
fn a_ring_with_a_hole_loses_silently() {
    assert_found(Break::HoleInRing, LOSSY, TOLD);
}

#[test]
fn announcements_compared_without_their_epoch_mix_two_histories() {
    assert_found(Break::EpochIgnored, RECREATED, TOLD);
}

#[test]
fn a_reader_that_looks_before_it_is_registered_sleeps_through_an_event() {
    assert_found(Break::AttachedLast, SHORT, CAUGHT_UP);
}

#[test]
fn an_event_announced_before_it_is_stored_is_seen_too_early() {
    assert_found(Break::AnnouncedFirst, LOSSY, REASON);
}
