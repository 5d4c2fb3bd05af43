//! What a topic's readers share: its ring, where it stands, and how they are woken.
//!
//! The rule: a topic knows nothing of a reader but how to wake it. What it knows of itself is a copy
//! of what the journal said, in offset order, and a reader whose position does not fit to it is sent
//! to the journal. Many readers are woken some at a time, and what is appended meanwhile goes out with
//! what they have not been woken for yet.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use futures_util::FutureExt as _;
use tokio::{sync::Notify, time::Instant};

use super::{
    Topics,
    doubt::Doubt,
    replay::{Replay, Replays},
    waker::Waker,
};
use crate::{
    journal::{Appended, Journal, JournalError, Page, PageLimit, Properties, TopicInfo},
    model::{Event, Offset, Position, TopicKey, limits::TOPIC_IDLE, resume::Head},
    ring::{Ring, RingLimit},
    sse::{Frame, FrameTopic, Taken},
};

/// Readers that are woken at once. Whoever is woken stands in the runtime's queue before whoever
/// publishes next: a thousand are several milliseconds, in which nothing would be appended and no
/// two events share a write.
const WAKE_AT_ONCE: usize = 64;

/// What a topic's readers share: its ring and where it stands.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) topic: TopicKey,
    /// The same, for its frames.
    pub(crate) frames: FrameTopic,
    /// Held by who asks the journal where the topic stands: one does for all.
    asking: tokio::sync::Mutex<()>,
    /// How often the topic's properties changed: what they allowed must be asked again.
    changes: AtomicU64,
    /// Events that were appended here since retention was told.
    grown: AtomicU64,
    /// Other nodes may have appended: the task is to look.
    pub(super) hinted: Notify,
    /// They may have changed its properties, too.
    pub(super) hinted_change: AtomicBool,
    /// Whether the task is to look for what the journal did not say.
    pub(super) doubt: Doubt,
    /// The bus brings what other nodes say of the topic.
    pub(super) followed: AtomicBool,
    replays: Replays,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    /// As the journal last told; `None` until it was asked or written, and when that is not known
    /// any more.
    pub(super) head: Option<Head>,
    /// As the journal last told them; `None` while they are the default.
    properties: Option<Box<Properties>>,
    /// How often the journal turned out to hold another history than this node knew, under whatever
    /// epoch: readers ask it where they are.
    rewinds: u64,
    pub(super) ring: Ring,
    readers: Vec<Option<(Arc<Waker>, u32)>>,
    pub(super) reader_count: usize,
    /// When the last reader left.
    left_at: Option<Instant>,
    waking: Waking,
}

/// How far the readers of a topic are woken: a round that goes on where it is when more comes.
#[derive(Debug, Default)]
struct Waking {
    /// Places that are still to be visited.
    left: usize,
    /// The next of them.
    next: usize,
}

/// What a reader has seen of a topic besides its events.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// The next ephemeral frame that it has not.
    ephemeral: u64,
    rewinds: u64,
}

impl State {
    /// Whether somebody reads the topic, or may be about to come back to it.
    fn is_read(&self) -> bool {
        self.reader_count > 0 || self.left_at.is_some_and(|at| at.elapsed() < TOPIC_IDLE)
    }

    /// Wakes the next readers of the round. Returns whether there are more.
    fn wake_some(&mut self) -> bool {
        let Waking { left, next } = &mut self.waking;
        let count = (*left).min(WAKE_AT_ONCE);
        for _ in 0..count {
            // Places are given back at the end, so that a round may begin anew before it is over.
            *next = if *next < self.readers.len() { *next } else { 0 };
            if let Some(Some((waker, number))) = self.readers.get(*next) {
                waker.wake(*number);
            }
            *next += 1;
        }
        *left -= count;
        *left > 0
    }

    /// Notes where the topic stands. The ring ends there, or it holds nothing: a hole before what
    /// comes next would be taken for states that were superseded.
    fn stand_at(&mut self, head: Head) {
        let end = head.tail.previous();
        if self.ring.end() != end {
            self.ring.restart(end);
        }
        let went_back = |old: Head| old.epoch == head.epoch && old.tail > head.tail;
        self.rewinds += u64::from(self.head.is_some_and(went_back));
        self.head = Some(head);
    }
}

/// What a reader finds when it looks into the ring.
pub(crate) enum Look {
    /// It has everything there is.
    End {
        /// Nothing can follow.
        is_closed: bool,
    },
    /// It was given frames, or skipped what it does not need.
    Frames {
        /// So many offsets were ahead of it.
        lag: u64,
        /// Where the topic ends.
        end: Offset,
        /// Nothing can follow that.
        is_closed: bool,
    },
    /// It must ask the journal.
    Behind,
}

impl Live {
    pub(super) fn new(topic: TopicKey) -> Self {
        let state = State {
            head: None,
            properties: None,
            rewinds: 0,
            ring: Ring::default(),
            readers: Vec::new(),
            reader_count: 0,
            left_at: None,
            waking: Waking::default(),
        };
        Self {
            frames: (&topic).into(),
            topic,
            asking: tokio::sync::Mutex::default(),
            changes: AtomicU64::default(),
            grown: AtomicU64::default(),
            hinted: Notify::new(),
            hinted_change: AtomicBool::default(),
            doubt: Doubt::default(),
            followed: AtomicBool::default(),
            replays: Replays::default(),
            state: Mutex::new(state),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the topic stands, asking the journal if that is not known. Readers that wait since it was
    /// forgotten may be behind it: they look again.
    pub(crate) async fn head(
        self: &Arc<Self>,
        journal: &dyn Journal,
    ) -> Result<Head, JournalError> {
        if let Some(head) = self.state().head {
            return Ok(head);
        }
        let _asking = self.asking.lock().await;
        loop {
            // Whoever asked before, or an append, may have been faster, and knows better.
            if let Some(head) = self.state().head {
                return Ok(head);
            }
            let changes = self.changes();
            let info = journal.describe(&self.topic).await?;
            let mut state = self.state();
            // What was told before a deletion is of the old history.
            if state.head.is_none() && self.changes() == changes {
                state.ring.restart(info.head.tail.previous());
                state.head = Some(info.head);
                state.properties = boxed(info.properties);
                self.wake_all(&mut state);
            }
        }
    }

    /// Whether somebody reads the topic, or may be about to come back to it.
    pub(super) fn is_read(&self) -> bool {
        self.state().is_read()
    }

    /// Lets go of the frames that nobody will read.
    pub(super) fn release(&self) {
        let mut state = self.state();
        if !state.is_read() {
            state.ring.release();
        }
    }

    /// Reads a page of the journal behind a reader's position, together with who else is there.
    pub(crate) async fn replay(
        self: &Arc<Self>,
        journal: &Arc<dyn Journal>,
        at: Position,
        limit: PageLimit,
    ) -> Result<Arc<Replay>, JournalError> {
        let read = || {
            let (live, journal) = (Arc::clone(self), Arc::clone(journal));
            async move {
                let page = journal.read(&live.topic, at.offset, limit).await?;
                Ok(Arc::new(Replay::of(&live.frames, &page)))
            }
        };
        self.replays.page(at, limit, read).await
    }

    /// Looks for what follows a reader's position: hands out the ephemeral frames since a place,
    /// which it moves, and then the others until `take` says no.
    pub(crate) fn look(
        &self,
        at: Position,
        seen: &mut Seen,
        mut take: impl FnMut(&Arc<Frame>) -> bool,
    ) -> Look {
        let state = self.state();
        state.ring.ephemeral(seen.ephemeral).for_each(|frame| {
            take(frame);
        });
        seen.ephemeral = state.ring.ephemeral_end();
        if seen.rewinds != state.rewinds {
            seen.rewinds = state.rewinds;
            return Look::Behind;
        }
        let Some(head) = &state.head else { return Look::Behind };
        if head.epoch != at.epoch {
            return Look::Behind;
        }
        let (end, is_closed) = (head.tail.previous(), head.closed);
        if at.offset == end {
            // The same place in another history: only the journal can tell.
            let is_same = head.tail_fingerprint == at.fingerprint;
            return if is_same { Look::End { is_closed } } else { Look::Behind };
        }
        if at.offset > end {
            // A page may be ahead of the ring: durable, and about to be pushed.
            return Look::End { is_closed: false };
        }
        if at.offset < end && state.ring.end() == end && state.ring.read(at.offset, take) {
            return Look::Frames { lag: end.0 - at.offset.0, end, is_closed };
        }
        Look::Behind
    }

    /// Takes in how far the topic was trimmed.
    pub(super) fn trimmed(&self, trimmed: Head) {
        let mut state = self.state();
        self.replays.separate();
        if let Some(head) = state.head.as_mut().filter(|head| head.epoch == trimmed.epoch) {
            head.earliest = trimmed.earliest;
            head.floor_fingerprint = trimmed.floor_fingerprint;
        }
    }

    /// Whether a position is one that the ring knows: what follows it needs no journal. Only for
    /// who is alone: of what other nodes trim and delete, the ring hears later.
    pub(crate) fn holds(&self, at: Position) -> bool {
        let state = self.state();
        let is_known = |head: Head| {
            head.epoch == at.epoch
                && head.end().offset == state.ring.end()
                && head.floor().offset <= at.offset
        };
        let held = || state.ring.get(at.offset)?.position;
        state.head.is_some_and(is_known) && held() == Some(at)
    }

    /// A number that is another one once the topic's properties may allow something else: before
    /// anything that was appended after the change can be found.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Counts what was appended; whether that is as much as retention is told of.
    pub(super) fn grow(&self, events: u64, tell: u64) -> bool {
        // Its one task counts.
        let grown = self.grown.load(Ordering::Relaxed) + events;
        let is_enough = grown >= tell;
        self.grown.store(if is_enough { 0 } else { grown }, Ordering::Relaxed);
        is_enough
    }

    /// Whether the topic is closed, as far as this node knows.
    pub(super) fn is_closed(&self) -> bool {
        self.state().head.is_some_and(|head| head.closed)
    }

    /// Whether the topic is closed and ends at this offset.
    pub(crate) fn is_finished(&self, at: Offset) -> bool {
        self.state().head.is_some_and(|head| head.closed && head.tail.previous() <= at)
    }

    /// Wakes all readers: some now, more of them from a task of its own, which lets others work in
    /// between.
    pub(super) fn wake_all(self: &Arc<Self>, state: &mut State) {
        let is_going_on = state.waking.left > 0;
        state.waking.left = state.readers.len();
        if is_going_on || !state.wake_some() {
            return;
        }
        let live = Arc::clone(self);
        tokio::spawn(async move {
            let mut is_more = true;
            while is_more {
                tokio::task::yield_now().await;
                is_more = live.state().wake_some();
            }
        });
    }

    /// Takes in what an append stored. `taken` says when the hub took each event, by offset. Of a
    /// topic that nobody reads, only where it stands: who comes later asks the journal, and memory
    /// is for as many topics as there are readers.
    pub(super) fn advance(
        self: &Arc<Self>,
        appended: &Appended,
        taken: &[(Offset, Taken)],
        limit: RingLimit,
    ) {
        let frame = |event: &Event| {
            let place = taken.binary_search_by_key(&event.offset, |(offset, _)| *offset).ok();
            let taken = place.and_then(|place| taken.get(place)).map(|(_, taken)| taken.clone());
            let frame = Frame::of(&self.frames, appended.head.epoch, event).taken(taken);
            (event.offset, Arc::new(frame))
        };
        let events = if self.is_read() { &appended.events[..] } else { &[] };
        let frames: Vec<(Offset, Arc<Frame>)> = events.iter().map(frame).collect();
        let mut state = self.state();
        let moved = state.head != Some(appended.head);
        let is_other =
            |old: Head| old.epoch != appended.head.epoch || old.tail > appended.head.tail;
        if state.head.is_none_or(is_other) {
            self.replays.separate();
        }
        if state.head.is_none_or(|head| head.epoch != appended.head.epoch) {
            state.ring.restart(appended.head.tail.previous());
        }
        for (offset, frame) in frames {
            state.ring.push(offset, frame, limit);
        }
        state.stand_at(appended.head);
        if moved {
            self.wake_all(&mut state);
        }
    }

    /// Takes in what the journal says of the topic after its properties changed or it was deleted.
    pub(super) fn refresh(self: &Arc<Self>, info: TopicInfo) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        let mut state = self.state();
        self.replays.separate();
        if state.head.is_none_or(|old| old.epoch != info.head.epoch) {
            state.ring.restart(info.head.tail.previous());
        }
        state.stand_at(info.head);
        state.properties = boxed(info.properties);
        self.wake_all(&mut state);
    }

    /// Says that where the topic stands is not known any more: its readers ask the journal.
    fn forget(self: &Arc<Self>) {
        let mut state = self.state();
        self.replays.separate();
        self.changes.fetch_add(1, Ordering::SeqCst);
        state.head = None;
        self.wake_all(&mut state);
    }

    /// Takes in what the journal says of the topic now, or has its readers ask.
    pub(super) async fn ask_anew(self: &Arc<Self>, journal: &dyn Journal) {
        match journal.describe(&self.topic).await {
            Ok(info) => self.refresh(info),
            Err(error) => {
                tracing::warn!(%error, "the journal does not say where a topic stands");
                self.forget();
            }
        }
    }

    /// Whether the batch stands right behind what this node knows: no other node appended between.
    pub(super) fn is_next(&self, appended: &Appended) -> bool {
        let Some(head) = self.state().head else { return true };
        let before = match appended.events.first() {
            Some(first) => first.offset,
            None => appended.head.tail,
        };
        head.epoch == appended.head.epoch && head.tail == before
    }

    /// Takes in a page that begins where this node's knowledge ends. Returns whether there is more.
    pub(super) fn extend(self: &Arc<Self>, from: Head, page: &Page, limit: RingLimit) -> bool {
        let frame = |event: &Event| Arc::new(Frame::of(&self.frames, page.head.epoch, event));
        let events = if self.is_read() { &page.events[..] } else { &[] };
        let frames: Vec<(Offset, Arc<Frame>)> =
            events.iter().map(|event| (event.offset, frame(event))).collect();
        let mut state = self.state();
        if state.head != Some(from) {
            // Nobody but the topic's task gets here, and a trim.
            return true;
        }
        let is_same = page.after_fingerprint.is_none_or(|known| known == from.tail_fingerprint);
        let goes_on = page.head.epoch == from.epoch && page.head.tail >= from.tail && is_same;
        let rest = page.head.tail.0.saturating_sub(page.next.offset.0 + 1);
        if goes_on && rest <= limit.frames as u64 {
            for (offset, frame) in frames {
                state.ring.skip_to(offset.previous(), limit);
                state.ring.push(offset, frame, limit);
            }
            if state.ring.end() != page.next.offset {
                state.ring.restart(page.next.offset);
            }
            let at_end = page.next == page.head.end();
            state.head = Some(Head {
                tail: page.next.offset.next(),
                tail_fingerprint: page.next.fingerprint,
                closed: page.head.closed && at_end,
                ..page.head
            });
        } else {
            // Another history, or more than a ring holds: readers find their way by the journal.
            self.replays.separate();
            state.ring.restart(page.head.tail.previous());
            state.head = Some(page.head);
            state.rewinds += u64::from(!goes_on);
        }
        if state.head != Some(from) {
            self.wake_all(&mut state);
        }
        state.head != Some(page.head)
    }

    /// Notes that its task is to look into the journal.
    pub(super) fn hint(&self, change: bool) {
        if change {
            self.hinted_change.store(true, Ordering::Release);
        }
        self.hinted.notify_one();
    }

    /// Whether its task was asked to and has not begun, or has to for its readers.
    pub(super) fn is_to_look(&self) -> bool {
        let is_hinted = self.hinted.notified().now_or_never().is_some();
        if is_hinted {
            self.hinted.notify_one();
        }
        is_hinted || (self.doubt.is_left() && self.is_read())
    }

    /// Where the topic ends, as far as this node knows.
    pub(crate) fn end(&self) -> Option<Position> {
        self.state().head.map(|head| head.end())
    }

    /// Whether the journal says of the topic what this node knows: of its end, and its properties.
    pub(crate) fn agrees(&self, info: &TopicInfo) -> (bool, bool) {
        let state = self.state();
        let known = state.properties.as_deref();
        let same =
            known.map_or(info.properties == Properties::default(), |p| *p == info.properties);
        // Where nobody knows the end, its readers, if there are any, are to be told.
        let is_unread = state.reader_count == 0;
        (state.head.map_or(is_unread, |head| is_same_end(&head, &info.head)), same)
    }
}

fn boxed(properties: Properties) -> Option<Box<Properties>> {
    (properties != Properties::default()).then(|| Box::new(properties))
}

/// Trimming is told on its own way.
fn is_same_end(one: &Head, other: &Head) -> bool {
    one.end() == other.end() && one.closed == other.closed
}

/// A reader's place among those that a topic wakes. Dropped, it is not woken any more.
#[derive(Debug)]
pub(crate) struct Registration {
    topics: Arc<Topics>,
    pub(crate) live: Arc<Live>,
    place: usize,
    /// What this reader has seen that positions do not say.
    pub(crate) seen: Seen,
}

impl Registration {
    pub(super) fn new(
        topics: Arc<Topics>,
        live: Arc<Live>,
        waker: Arc<Waker>,
        number: u32,
    ) -> Self {
        let mut state = live.state();
        let place = state.readers.iter().position(Option::is_none).unwrap_or_else(|| {
            state.readers.push(None);
            // A round that is going on does not end before its places.
            state.waking.left += usize::from(state.waking.left > 0);
            state.readers.len() - 1
        });
        if let Some(slot) = state.readers.get_mut(place) {
            *slot = Some((waker, number));
        }
        state.reader_count += 1;
        let seen = Seen { ephemeral: state.ring.ephemeral_end(), rewinds: state.rewinds };
        drop(state);
        Self { topics, live, place, seen }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.live.state();
        if let Some(slot) = state.readers.get_mut(self.place) {
            *slot = None;
        }
        state.reader_count -= 1;
        while matches!(state.readers.last(), Some(None)) {
            state.readers.pop();
        }
        let is_last = state.reader_count == 0;
        state.left_at = is_last.then(Instant::now);
        drop(state);
        if is_last {
            self.topics.left(&self.live);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::{JournalSettings, memory::MemoryJournal},
        model::{Epoch, EventType, Fingerprint, NewEvent, Tenant, Timestamp, Topic},
    };

    const LIMIT: RingLimit = RingLimit { frames: 4, bytes: 1 << 20 };

    fn live(end: u64, fingerprint: u32) -> (Arc<Live>, Head) {
        let topic = TopicKey::new(Tenant::parse("t").unwrap(), Topic::parse("a").unwrap());
        let live = Arc::new(Live::new(topic));
        let head = head(end, fingerprint);
        let mut state = live.state();
        state.head = Some(head);
        state.ring.restart(Offset(end));
        state.reader_count = 1;
        drop(state);
        (live, head)
    }

    fn head(end: u64, fingerprint: u32) -> Head {
        let tail_fingerprint = Fingerprint(fingerprint);
        Head { tail: Offset(end + 1), tail_fingerprint, ..Head::empty(Epoch(1)) }
    }

    /// A page after an offset whose event has this fingerprint now; events have their offset's.
    fn page(after: Option<u32>, offsets: &[u64], next: u64, end: u64) -> Page {
        let event = |offset: &u64| Event {
            offset: Offset(*offset),
            fingerprint: Fingerprint(u32::try_from(*offset).unwrap()),
            recorded_at: Timestamp::from_millis(0),
            body: Arc::new(NewEvent::new(EventType::parse("x").unwrap())),
        };
        let fingerprint = |offset: u64| u32::try_from(offset).unwrap();
        Page {
            head: head(end, fingerprint(end)),
            after_fingerprint: after.map(Fingerprint),
            events: offsets.iter().map(event).collect(),
            next: head(next, fingerprint(next)).end(),
        }
    }

    /// What a reader at this position finds: offsets, or nothing if it must ask the journal.
    fn look(live: &Live, offset: u64, fingerprint: u32) -> Option<Vec<u64>> {
        look_again(live, &mut Seen::default(), offset, fingerprint)
    }

    /// The same of a reader that may have looked before.
    fn look_again(live: &Live, seen: &mut Seen, offset: u64, fingerprint: u32) -> Option<Vec<u64>> {
        let mut found = Vec::new();
        let (offset, fingerprint) = (Offset(offset), Fingerprint(fingerprint));
        let at = Position { epoch: Epoch(1), offset, fingerprint };
        let look = live.look(at, seen, |frame| {
            found.push(frame.position.unwrap().offset.0);
            true
        });
        (!matches!(look, Look::Behind)).then_some(found)
    }

    #[test]
    fn what_other_nodes_appended_is_served_from_the_ring() {
        let (live, head) = live(2, 2);
        assert!(!live.extend(head, &page(Some(2), &[3, 5], 5, 5), LIMIT));
        assert_eq!(look(&live, 2, 2), Some(vec![3, 5]), "4 was superseded");
        assert_eq!(look(&live, 5, 5), Some(vec![]));
    }

    #[test]
    fn a_page_whose_last_events_were_superseded_leads_to_the_journal() {
        let (live, head) = live(2, 2);
        assert!(!live.extend(head, &page(Some(2), &[3], 5, 5), LIMIT));
        assert_eq!(look(&live, 2, 2), None);
        assert_eq!(look(&live, 5, 5), Some(vec![]));
    }

    #[test]
    fn a_part_of_what_was_appended_is_taken_in_before_the_rest() {
        let (live, head) = live(2, 2);
        assert!(live.extend(head, &page(Some(2), &[3, 4], 4, 6), LIMIT));
        assert_eq!(live.end().map(|end| end.offset), Some(Offset(4)));
        assert_eq!(look(&live, 2, 2), Some(vec![3, 4]));
    }

    #[test]
    fn more_than_a_ring_holds_is_left_to_the_journal() {
        let (live, head) = live(2, 2);
        assert!(!live.extend(head, &page(Some(2), &[3, 4], 4, 900), LIMIT));
        assert_eq!(live.end().map(|end| end.offset), Some(Offset(900)));
        assert_eq!(look(&live, 2, 2), None);
    }

    /// Broken on purpose: without the comparison of fingerprints, a reader at 2 is served 3 of a
    /// history in which its 2 never was.
    #[test]
    fn a_history_that_reused_offsets_sends_everybody_to_the_journal() {
        let (live, head) = live(2, 2);
        assert!(!live.extend(head, &page(Some(77), &[3], 3, 3), LIMIT));
        assert_eq!(look(&live, 2, 2), None);
        assert_eq!(look(&live, 1, 1), None);
    }

    /// Broken on purpose: a reader that is past the end and told that it has everything waits until
    /// the new history is as long as the old one.
    #[test]
    fn a_history_that_lost_its_end_sends_readers_to_the_journal_once() {
        let (live, head) = live(9, 9);
        let mut seen = Seen::default();
        assert_eq!(look_again(&live, &mut seen, 9, 9), Some(vec![]));
        assert!(!live.extend(head, &page(None, &[], 9, 6), LIMIT));
        assert_eq!(look_again(&live, &mut seen, 9, 9), None);
        // It was told by the journal, and goes on from the new end.
        assert_eq!(look_again(&live, &mut seen, 6, 6), Some(vec![]));
    }

    #[test]
    fn another_epoch_sends_everybody_to_the_journal() {
        let (live, head) = live(2, 2);
        let mut page = page(None, &[3], 3, 3);
        page.head.epoch = Epoch(2);
        assert!(!live.extend(head, &page, LIMIT));
        assert_eq!(look(&live, 2, 2), None);
    }

    /// Broken on purpose, it failed: with the fingerprint not compared.
    #[test]
    fn a_position_is_held_that_the_ring_has_and_no_other() {
        let (live, head) = live(2, 2);
        assert!(!live.extend(head, &page(Some(2), &[3, 5], 5, 5), LIMIT));
        let holds = |epoch, offset, fingerprint| {
            let (offset, fingerprint) = (Offset(offset), Fingerprint(fingerprint));
            live.holds(Position { epoch: Epoch(epoch), offset, fingerprint })
        };
        assert!(holds(1, 3, 3) && holds(1, 5, 5));
        assert!(!holds(2, 3, 3), "another history");
        assert!(!holds(1, 3, 77), "another event");
        assert!(!holds(1, 2, 2), "the ring begins behind it");
        assert!(!holds(1, 4, 4), "it was superseded: only the journal knows what it was");
        assert!(!holds(1, 6, 6), "it is not there yet");
        // Trimmed: what was behind it may be gone.
        let trimmed = Head { earliest: Offset(5), ..live.state().head.unwrap() };
        live.state().head = Some(trimmed);
        assert!(!holds(1, 3, 3) && holds(1, 5, 5));
    }

    /// Broken on purpose, it failed: with frames kept for all topics, and for read ones only.
    #[tokio::test(start_paused = true)]
    async fn frames_are_kept_while_a_topic_is_read_and_until_its_readers_may_be_back() {
        let (live, _) = live(2, 2);
        let append = |offset: u64| {
            let Page { head, events, .. } = page(None, &[offset], offset, offset);
            live.advance(&Appended { head, outcomes: Vec::new(), events }, &[], LIMIT);
            let before = u32::try_from(offset - 1).unwrap();
            look(&live, offset - 1, before)
        };
        live.state().reader_count = 0;
        assert_eq!(append(3), None);
        assert_eq!(look(&live, 3, 3), Some(vec![]), "where it stands is known");
        live.state().reader_count = 1;
        assert_eq!(append(4), Some(vec![4]));
        live.state().reader_count = 0;
        live.state().left_at = Some(Instant::now());
        tokio::time::advance(TOPIC_IDLE / 2).await;
        assert_eq!(append(5), Some(vec![5]));
        live.release();
        assert_eq!(look(&live, 4, 4), Some(vec![5]), "they may be back");
        tokio::time::advance(TOPIC_IDLE / 2).await;
        live.release();
        assert_eq!(look(&live, 4, 4), None);
        assert_eq!(append(6), None);
        // The same of what other nodes append.
        let head = live.state().head.unwrap();
        assert!(!live.extend(head, &page(Some(6), &[7], 7, 7), LIMIT));
        assert_eq!((look(&live, 6, 6), look(&live, 7, 7)), (None, Some(vec![])));
    }

    /// Broken on purpose, it failed: with nobody woken when it is known again, and with nobody asked
    /// to look for it.
    #[tokio::test]
    async fn readers_look_again_when_it_is_known_again_where_a_topic_stands() {
        let (live, _) = live(2, 2);
        let wakers = add_readers(&live, 1);
        live.forget();
        assert_eq!((woken(&wakers), look(&live, 2, 2)), (1, None));
        let journal = MemoryJournal::new(JournalSettings::default());
        let info = journal.describe(&live.topic).await.unwrap();
        assert!(!live.agrees(&info).0, "other nodes may have appended since");
        live.head(&journal).await.unwrap();
        assert_eq!(woken(&wakers), 1);
    }

    fn add_readers(live: &Live, count: usize) -> Vec<Arc<Waker>> {
        let wakers: Vec<Arc<Waker>> = (0..count).map(|_| Arc::default()).collect();
        let mut state = live.state();
        state.readers.extend(wakers.iter().map(|waker| Some((Arc::clone(waker), 0))));
        wakers
    }

    /// How many have been woken since they were asked last.
    fn woken(wakers: &[Arc<Waker>]) -> usize {
        wakers.iter().filter(|waker| waker.take() != 0).count()
    }

    /// Broken on purpose, it failed: with a round that does not begin anew, and with one that begins
    /// at the first place again.
    #[tokio::test]
    async fn many_readers_are_woken_some_at_a_time_and_go_on_where_the_round_is() {
        let (live, _) = live(2, 2);
        let mut wakers = add_readers(&live, 2 * WAKE_AT_ONCE + 10);
        live.wake_all(&mut live.state());
        assert_eq!(woken(&wakers), WAKE_AT_ONCE);
        // More comes: the others are woken for both, and the first ones again.
        live.wake_all(&mut live.state());
        assert_eq!(woken(&wakers), 0);
        let left = live.state().waking.left;
        while live.state().waking.left == left {
            tokio::task::yield_now().await;
        }
        assert_eq!(woken(&wakers[..WAKE_AT_ONCE]), 0);
        assert_eq!(woken(&wakers), WAKE_AT_ONCE);
        // Readers that come meanwhile do not take the place of others.
        wakers.extend(add_readers(&live, 3));
        live.state().waking.left += 3;
        while live.state().waking.left > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(woken(&wakers), WAKE_AT_ONCE + 10 + 3);
        live.wake_all(&mut live.state());
        while live.state().waking.left > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(woken(&wakers), wakers.len());
    }
}
