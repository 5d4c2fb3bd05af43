//! One reader of one topic, and four ways to get from what is stored to what is live.
//!
//! The bus is the worst there is: what it carries arrives in any order, and as far as a check
//! allows, not at all or twice. The reader's connection breaks once, anywhere.

use stateright::{Checker, Model, Property};

const EVENTS: u8 = 4;
const RECONNECTS: u8 = 1;

const IN_ORDER: &str = "each event once, in order, without a hole";
const CAUGHT_UP: &str = "nothing is missing at rest";

/// How a reader gets from stored to live events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Reads the journal, then subscribes to the bus.
    ReplayThenSubscribe,
    /// Subscribes, reads the journal and passes on what the bus brings as it comes.
    SubscribeThenForward,
    /// Subscribes, buffers, reads the journal, then drops what it has already.
    BufferAndDropOld,
    /// The same, and what is not the next event only says: read the journal. So does the clock.
    JournalIsTheTruth,
}

/// What the bus may do besides reordering.
#[derive(Debug, Clone, Copy)]
struct Faults {
    drops: u8,
    doubles: u8,
}

#[derive(Debug, Clone, Copy)]
struct Handover {
    way: Way,
    faults: Faults,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    /// Events 1 to this are stored.
    stored: u8,
    /// Announcements under way, sorted: their order says nothing.
    bus: Vec<u8>,
    phase: Phase,
    /// What came while the journal was still to be read.
    buffer: Vec<u8>,
    seen: Vec<u8>,
    drops_left: u8,
    doubles_left: u8,
    reconnects_left: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Away,
    /// Half of the hand-over is done; which half depends on the way.
    Between,
    Live,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Publish,
    Deliver(u8),
    Drop(u8),
    Double(u8),
    /// The next half of the hand-over.
    Hand,
    /// The clock: is there more in the journal?
    Check,
    Disconnect,
}

impl State {
    fn last(&self) -> u8 {
        self.seen.iter().copied().max().unwrap_or(0)
    }

    fn read_journal(&mut self) {
        self.seen.extend(self.last() + 1..=self.stored);
    }

    fn receive(&mut self, way: Way, event: u8) {
        match way {
            Way::ReplayThenSubscribe | Way::SubscribeThenForward => self.seen.push(event),
            Way::BufferAndDropOld if event > self.last() => self.seen.push(event),
            Way::JournalIsTheTruth if event == self.last() + 1 => self.seen.push(event),
            Way::JournalIsTheTruth if event > self.last() => self.read_journal(),
            Way::BufferAndDropOld | Way::JournalIsTheTruth => {}
        }
    }

    fn deliver(&mut self, way: Way, event: u8) {
        match (self.phase, way) {
            // Not subscribed: nobody hears it.
            (Phase::Away, _) | (Phase::Between, Way::ReplayThenSubscribe) => {}
            (Phase::Between, Way::SubscribeThenForward) | (Phase::Live, _) => {
                self.receive(way, event);
            }
            (Phase::Between, _) => self.buffer.push(event),
        }
    }

    fn hand(&mut self, way: Way) {
        match (self.phase, way) {
            (Phase::Away, Way::ReplayThenSubscribe) => self.read_journal(),
            (Phase::Between, Way::SubscribeThenForward) => self.read_journal(),
            (Phase::Between, Way::BufferAndDropOld | Way::JournalIsTheTruth) => {
                self.read_journal();
                for event in std::mem::take(&mut self.buffer) {
                    self.receive(way, event);
                }
            }
            _ => {}
        }
        self.phase = if self.phase == Phase::Away { Phase::Between } else { Phase::Live };
    }
}

impl Model for Handover {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            stored: 0,
            bus: Vec::new(),
            phase: Phase::Away,
            buffer: Vec::new(),
            seen: Vec::new(),
            drops_left: self.faults.drops,
            doubles_left: self.faults.doubles,
            reconnects_left: RECONNECTS,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.stored < EVENTS {
            actions.push(Action::Publish);
        }
        let mut announced = state.bus.clone();
        announced.dedup();
        for event in announced {
            actions.push(Action::Deliver(event));
            if state.drops_left > 0 {
                actions.push(Action::Drop(event));
            }
            if state.doubles_left > 0 {
                actions.push(Action::Double(event));
            }
        }
        if state.phase != Phase::Live {
            actions.push(Action::Hand);
        } else if self.way == Way::JournalIsTheTruth && state.last() < state.stored {
            actions.push(Action::Check);
        }
        if state.phase != Phase::Away && state.reconnects_left > 0 {
            actions.push(Action::Disconnect);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Publish => {
                state.stored += 1;
                state.bus.push(state.stored);
                state.bus.sort_unstable();
            }
            Action::Deliver(event) | Action::Drop(event) => {
                let place = state.bus.iter().position(|announced| *announced == event)?;
                state.bus.remove(place);
                if action == Action::Deliver(event) {
                    state.deliver(self.way, event);
                } else {
                    state.drops_left -= 1;
                }
            }
            Action::Double(event) => {
                state.doubles_left -= 1;
                state.bus.push(event);
                state.bus.sort_unstable();
            }
            Action::Hand => state.hand(self.way),
            Action::Check => state.read_journal(),
            Action::Disconnect => {
                state.reconnects_left -= 1;
                state.phase = Phase::Away;
                state.buffer.clear();
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(IN_ORDER, |_, state: &State| {
                state.seen.iter().zip(1_u8..).all(|(seen, next)| *seen == next)
            }),
            Property::always(CAUGHT_UP, |model: &Self, state: &State| {
                let mut actions = Vec::new();
                model.actions(state, &mut actions);
                actions.retain(|action| *action != Action::Disconnect);
                !actions.is_empty() || (1..=EVENTS).all(|event| state.seen.contains(&event))
            }),
        ]
    }
}

/// What the bus does in the three checks of each way: it always reorders.
const FAULTS: [Faults; 3] = [
    Faults { drops: 0, doubles: 0 },
    Faults { drops: 0, doubles: 1 },
    Faults { drops: 1, doubles: 1 },
];

fn assert_violated(way: Way) {
    for faults in FAULTS {
        let checker = Handover { way, faults }.checker().spawn_bfs().join();
        checker.assert_any_discovery(IN_ORDER);
    }
}

#[test]
fn replay_then_subscribe_loses_events() {
    assert_violated(Way::ReplayThenSubscribe);
}

#[test]
fn subscribe_then_forward_doubles_and_reorders_events() {
    assert_violated(Way::SubscribeThenForward);
}

#[test]
fn dropping_old_events_alone_does_not_survive_a_reordering_bus() {
    assert_violated(Way::BufferAndDropOld);
}

#[test]
fn dropping_old_events_alone_misses_an_announcement_that_was_lost() {
    let faults = Faults { drops: 1, doubles: 1 };
    let checker = Handover { way: Way::BufferAndDropOld, faults }.checker().spawn_bfs().join();
    checker.assert_any_discovery(CAUGHT_UP);
}

#[test]
fn a_journal_that_is_the_truth_survives_loss_doubling_and_reordering() {
    for faults in FAULTS {
        let model = Handover { way: Way::JournalIsTheTruth, faults };
        let checker = model.checker().spawn_bfs().join();
        checker.assert_properties();
        assert!(checker.unique_state_count() > 1_000, "checked next to nothing");
    }
}
