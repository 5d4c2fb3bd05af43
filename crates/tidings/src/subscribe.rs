//! A subscription: positions in topics, and the one loop that serves replay, follow and recovery.
//!
//! The rule: a reader is a position, not a queue. Every step asks "what follows my position?", of
//! the ring if it reaches back that far and of the journal otherwise, and every journal page is
//! judged by the resume table. So a first replay, a slow reader, a topic that lost its history and
//! the seam between replay and follow are the same code.

mod reader;

use std::{
    collections::HashSet,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
};

use self::reader::{Found, Policy, Reader, is_full};
use crate::{
    error::{ErrorCode, Problem},
    journal::{Journal, JournalError, Locate, PageLimit},
    metrics::Metrics,
    model::{
        Class, Cursor, EventType, Mark, Offset, StateKey, Timestamp, Topic, TopicKey,
        cursor::TicketTag,
        limits::CONNECTION_TOPICS_MAX,
        resume::{Gap, GapReason, Head, Restart, reset},
    },
    sse::Frame,
    topic_task::{Live, Look, Replay, Shared, Topics, Waker},
};

/// The first page, read while it is found out where a reader starts; kept until it is sent.
const START_PAGE: PageLimit = PageLimit { events: 32, bytes: 32 * 1024 };
/// What a reader asks for.
#[derive(Debug, Clone)]
pub struct Follow {
    /// The topics, each once, at most [`limits::CONNECTION_TOPICS_MAX`](crate::model::limits).
    pub topics: Vec<TopicKey>,
    /// The cursor it comes back with, as text from outside.
    pub cursor: Option<String>,
    /// Where topics start that the cursor does not cover. Asked for explicitly as
    /// [`Since::Now`], it is also where they go on after a reset.
    pub since: Option<Since>,
    /// Which events it wants.
    pub filter: Filter,
    /// Whether the current states come first.
    pub states: States,
    /// Binds its cursors to a ticket.
    pub tag: Option<TicketTag>,
}

impl Follow {
    /// Follows topics from now on, after their current states.
    #[must_use]
    pub fn new(topics: Vec<TopicKey>) -> Self {
        Self {
            topics,
            cursor: None,
            since: None,
            filter: Filter::default(),
            states: States::First,
            tag: None,
        }
    }
}

/// Where a reader without a position starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// The tail.
    Now,
    /// The first event still held.
    Earliest,
    /// Before the last so many events.
    Latest(u64),
    /// Before the first event recorded at or after this time.
    At(Timestamp),
}

/// Whether a reader that starts after the beginning is sent the states before its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum States {
    /// Yes, before everything else.
    First,
    /// No.
    Skip,
}

/// Which events a reader wants: one of each list that is not empty.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Types: `job.done`, or `job.*` for all that begin with `job.`.
    pub types: Vec<String>,
    /// Keys: `run/1`, or `run/*` for all that begin with `run/`.
    pub keys: Vec<String>,
    /// Classes.
    pub classes: Vec<Class>,
}

impl Filter {
    fn wants(&self, frame: &Frame) -> bool {
        let one_of = |filters: &[String], text: Option<&str>| {
            filters.is_empty()
                || text.is_some_and(|text| {
                    filters.iter().any(|filter| match filter.strip_suffix('*') {
                        Some(prefix) => text.starts_with(prefix),
                        None => text == filter,
                    })
                })
        };
        (self.classes.is_empty() || self.classes.contains(&frame.class()))
            && one_of(&self.types, Some(frame.event_type().as_str()))
            && one_of(&self.keys, frame.key().map(StateKey::as_str))
    }
}

/// Something for the reader. `place` is the topic's number in [`Follow::topics`].
#[derive(Debug, Clone)]
pub enum Item {
    /// An event, and where the reader is once it has it; `None` for ephemeral events.
    Event {
        /// Of which topic.
        place: usize,
        /// The event.
        frame: Arc<Frame>,
        /// Where the reader is after it.
        mark: Option<Mark>,
    },
    /// Events are missing.
    Gap {
        /// Of which topic.
        place: usize,
        /// Which, and why.
        gap: Gap,
        /// Where the reader goes on.
        mark: Mark,
    },
    /// Nothing but a position, after events that the filter held back or states that were sent.
    Checkpoint {
        /// Of which topic.
        place: usize,
        /// Where the reader is.
        mark: Mark,
    },
    /// Everything there was has been handed out; what follows is live.
    CaughtUp,
    /// The topic's properties changed. Whoever reads by their leave asks again before it takes the
    /// items after this one.
    Changed {
        /// Which topic.
        place: usize,
    },
    /// A closed topic was read to its end.
    Closed {
        /// Which topic.
        place: usize,
    },
}

/// How a subscription began.
#[derive(Debug, Clone)]
pub struct Started {
    /// Whether the cursor could be followed exactly.
    pub resumed: Resumed,
    /// How many gaps come first. Until the last of them was told, the cursor that the reader came
    /// with is the one to keep: a new one would make a reader that is cut off here believe that it
    /// missed nothing.
    pub gaps: usize,
    /// The topics' bounds, in the order of [`Follow::topics`].
    pub heads: Vec<Head>,
}

/// Whether a reader came back where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumed {
    /// Yes.
    Exact,
    /// No; gaps follow.
    Gap,
    /// It brought no cursor, or one that is about other topics.
    Fresh,
}

impl Resumed {
    /// As the wire names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Gap => "gap",
            Self::Fresh => "fresh",
        }
    }
}

/// Positions in topics, and what follows them.
#[derive(Debug)]
pub struct Subscription {
    topics: Arc<Topics>,
    filter: Filter,
    policy: Policy,
    waker: Arc<Waker>,
    readers: Vec<Reader>,
    cursor: Cursor,
    /// Bits of topics that may have something.
    dirty: u32,
    /// Which topic's turn it is, so that a busy one does not starve the others.
    turn: usize,
    /// What was found and not handed out yet: kept here so that dropping `next` loses nothing.
    items: Vec<Item>,
    item_bytes: usize,
    caught_up: bool,
}

impl Subscription {
    /// Attaches to the topics and finds where to start in each.
    pub(crate) async fn start(
        topics: Arc<Topics>,
        follow: Follow,
        waker: Arc<Waker>,
    ) -> Result<(Self, Started), Problem> {
        check(&follow.topics)?;
        let cursor = follow.cursor.as_deref().map(Cursor::decode);
        let restart = match follow.since {
            Some(Since::Now) => Restart::Now,
            _ => Restart::Earliest,
        };
        let policy = Policy { restart, states: follow.states };
        let mut covered = false;
        let mut gaps = Vec::new();
        let mut heads = Vec::new();
        let mut readers = Vec::with_capacity(follow.topics.len());
        for (place, key) in follow.topics.into_iter().enumerate() {
            // Attach first: what is appended from here on wakes this reader, however long the
            // journal takes to say where it starts.
            let number = u32::try_from(place).unwrap_or(u32::MAX);
            let registration = topics.attach(&key, &waker, number);
            let changes = registration.live.changes();
            let shared = topics.shared();
            let journal = &*shared.journal;
            let start = match &cursor {
                Some(Err(_)) => {
                    let head = registration.live.head(journal).await?;
                    let start = policy.trim(reset(GapReason::UnknownCursor, &head, restart));
                    Start { head, gap: start.gap, mark: start.mark, page: None }
                }
                Some(Ok(cursor)) if let Some(mark) = cursor.mark(&key.topic) => {
                    covered = true;
                    Start::resume(shared, &registration.live, mark, policy).await?
                }
                _ => {
                    let since = follow.since.unwrap_or(Since::Now);
                    Start::fresh(journal, &registration.live, since, follow.states).await?
                }
            };
            if let Some(gap) = start.gap {
                gaps.push(Item::Gap { place, gap, mark: start.mark });
            }
            heads.push(start.head);
            readers.push(Reader {
                key,
                registration,
                changes,
                mark: start.mark,
                page: start.page,
                finished: false,
                connected: false,
                filtered: 0,
            });
        }
        let resumed = match (gaps.is_empty(), covered) {
            (false, _) => Resumed::Gap,
            (true, true) => Resumed::Exact,
            (true, false) => Resumed::Fresh,
        };
        let metrics = &topics.shared().metrics;
        Metrics::count(&metrics.resumes, resumed.as_str());
        for item in &gaps {
            if let Item::Gap { gap, .. } = item {
                Metrics::count(&metrics.gaps, gap.reason.as_str());
            }
        }
        let marks = readers.iter().map(|r: &Reader| ((&r.key.topic).into(), r.mark)).collect();
        let dirty = u32::MAX >> (32 - readers.len().clamp(1, 32));
        let gaps_told = gaps.len();
        let subscription = Self {
            topics,
            filter: follow.filter,
            policy,
            waker,
            readers,
            cursor: Cursor::new(marks).tagged(follow.tag),
            dirty,
            turn: 0,
            items: gaps,
            item_bytes: 0,
            caught_up: false,
        };
        Ok((subscription, Started { resumed, gaps: gaps_told, heads }))
    }

    /// The topics, in the order of [`Follow::topics`].
    pub fn topics(&self) -> impl Iterator<Item = &TopicKey> {
        self.readers.iter().map(|reader| &reader.key)
    }

    /// Where the reader is after everything that was handed out.
    #[must_use]
    pub const fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The last offset of each topic up to which everything was handed out.
    pub fn offsets(&self) -> impl Iterator<Item = (&TopicKey, Offset)> {
        self.readers.iter().map(|reader| (&reader.key, reader.mark.position.offset))
    }

    /// Whether all topics are closed and were read to their end: nothing can follow.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.readers.iter().all(|reader| reader.finished)
    }

    /// Waits for what follows: at least one item, at most about 64 KiB or one page of the journal.
    ///
    /// Cancel-safe: what was found is kept.
    ///
    /// # Errors
    /// The journal's; the cursor has not moved past what was handed out, so coming back with it
    /// loses nothing.
    pub async fn next(&mut self) -> Result<Vec<Item>, JournalError> {
        loop {
            match poll_fn(|context| self.poll_next(context)).await {
                Some(items) => return Ok(items),
                None => self.read().await?,
            }
        }
    }

    /// The same as far as memory goes; `None`: [`Subscription::read`] is to be waited for first.
    pub(crate) fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Vec<Item>>> {
        // Gaps at the start, before anything is waited for: the cursor is behind them already. And
        // what was found before.
        while self.items.is_empty() {
            if self.fill() == Filled::NeedsJournal {
                return Poll::Ready(None);
            }
            if self.items.is_empty() {
                self.dirty = ready!(self.waker.poll(context));
            }
        }
        Poll::Ready(Some(self.hand_out()))
    }

    /// Finds what only the journal has.
    ///
    /// Cancel-safe: what was found is kept.
    ///
    /// # Errors
    /// The journal's, as of [`Subscription::next`].
    pub(crate) async fn read(&mut self) -> Result<(), JournalError> {
        while self.fill() == Filled::NeedsJournal {
            self.step().await?;
        }
        Ok(())
    }

    /// Finds what there is, as far as memory goes.
    fn fill(&mut self) -> Filled {
        // Also while one topic has much: the others get their turn.
        self.dirty |= self.waker.take();
        while self.dirty != 0 && !self.is_full() {
            if self.step_now() == Filled::NeedsJournal {
                return Filled::NeedsJournal;
            }
        }
        if self.dirty == 0 && !self.caught_up {
            self.caught_up = true;
            self.items.push(Item::CaughtUp);
        }
        self.tell_changes();
        Filled::All
    }

    fn is_full(&self) -> bool {
        is_full(self.items.len(), self.item_bytes)
    }

    /// Puts changes of properties before everything that was found: it may be from after them.
    fn tell_changes(&mut self) {
        for (place, reader) in self.readers.iter_mut().enumerate() {
            let changes = reader.registration.live.changes();
            if reader.changes != changes {
                reader.changes = changes;
                self.items.insert(0, Item::Changed { place });
            }
        }
    }

    fn hand_out(&mut self) -> Vec<Item> {
        self.item_bytes = 0;
        for item in &self.items {
            match item {
                Item::Gap { place, mark, .. } => {
                    self.cursor.set(*place, *mark);
                    self.caught_up = false;
                }
                Item::CaughtUp => self.caught_up = true,
                Item::Event { place, mark: Some(mark), .. } | Item::Checkpoint { place, mark } => {
                    self.cursor.set(*place, *mark)
                }
                Item::Event { mark: None, .. } | Item::Changed { .. } | Item::Closed { .. } => {}
            }
        }
        std::mem::take(&mut self.items)
    }

    /// Whose turn it is of the topics that may have something.
    fn whose_turn(&self) -> Option<usize> {
        let count = self.readers.len();
        (0..count)
            .map(|ahead| (self.turn + ahead) % count)
            .find(|place| self.dirty & (1 << place) != 0)
    }

    /// Takes one turn with one topic that may have something, if the ring has it.
    fn step_now(&mut self) -> Filled {
        let Some(place) = self.whose_turn() else {
            self.dirty = 0;
            return Filled::All;
        };
        let metrics = &self.topics.shared().metrics;
        let Some(reader) = self.readers.get_mut(place) else { return Filled::All };
        let mut found = Found {
            place,
            filter: &self.filter,
            items: &mut self.items,
            bytes: &mut self.item_bytes,
        };
        match reader.look(metrics, &mut found) {
            Look::Behind => return Filled::NeedsJournal,
            Look::Frames { .. } => {}
            Look::End { is_closed } => {
                self.dirty &= !(1 << place);
                self.end(place, is_closed);
            }
        }
        self.turn = place + 1;
        Filled::All
    }

    /// Takes one turn with one topic, asking the journal.
    async fn step(&mut self) -> Result<(), JournalError> {
        let Some(place) = self.whose_turn() else { return Ok(()) };
        self.turn = place + 1;
        let shared = self.topics.shared();
        let Some(reader) = self.readers.get_mut(place) else { return Ok(()) };
        let mut found = Found {
            place,
            filter: &self.filter,
            items: &mut self.items,
            bytes: &mut self.item_bytes,
        };
        let metrics = &shared.metrics;
        let is_end = reader.advance(&shared.journal, metrics, self.policy, &mut found).await?;
        if is_end {
            // Only now: whoever drops this future while the journal reads finds the bit again. What
            // happened meanwhile is among the waker's own bits.
            self.dirty &= !(1 << place);
            let is_closed = reader.registration.live.is_finished(reader.mark.position.offset);
            self.end(place, is_closed);
        }
        Ok(())
    }

    /// A reader has everything of its topic.
    fn end(&mut self, place: usize, is_closed: bool) {
        let Some(reader) = self.readers.get_mut(place) else { return };
        if is_closed && !reader.finished {
            reader.finished = true;
            self.items.push(Item::Closed { place });
        }
    }
}

/// Whether what memory has was all there is to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    All,
    NeedsJournal,
}

/// Whether a reader can follow these topics at once: its waker has a bit for each.
fn check(topics: &[TopicKey]) -> Result<(), Problem> {
    let mut seen = HashSet::new();
    if topics.len() > CONNECTION_TOPICS_MAX {
        let detail = format!("there are more than {CONNECTION_TOPICS_MAX} topics");
        return Err(Problem::new(ErrorCode::TooLarge, detail).at("topic"));
    }
    if let Some(twice) = topics.iter().find(|topic| !seen.insert(*topic)) {
        let detail = format!("the topic {} is there twice", twice.topic);
        return Err(Problem::new(ErrorCode::Malformed, detail).at("topic"));
    }
    Ok(())
}

/// Where a reader of one topic starts.
struct Start {
    head: Head,
    gap: Option<Gap>,
    mark: Mark,
    page: Option<Arc<Replay>>,
}

impl Start {
    async fn resume(
        shared: &Shared,
        live: &Arc<Live>,
        mark: Mark,
        policy: Policy,
    ) -> Result<Self, JournalError> {
        let Shared { journal, bus, .. } = shared;
        let head = live.head(&**journal).await?;
        if head.end() == mark.position || (bus.is_none() && live.holds(mark.position)) {
            return Ok(Self { head, gap: None, mark, page: None });
        }
        let page = live.replay(journal, mark.position, START_PAGE).await?;
        let resume = policy.judge(mark, &page.head, page.after_fingerprint);
        // A page that others have asked for may be from before the last append.
        let is_older = page.head.epoch == head.epoch && page.head.tail < head.tail;
        let head = if is_older { head } else { page.head };
        let page = (resume.mark == mark && mark.states_after.is_none()).then_some(page);
        Ok(Self { head, gap: resume.gap, mark: resume.mark, page })
    }

    async fn fresh(
        journal: &dyn Journal,
        live: &Arc<Live>,
        since: Since,
        states: States,
    ) -> Result<Self, JournalError> {
        let states_after = (states == States::First).then_some(Offset::ZERO);
        // Whatever the start: the topic must know where it ends, to tell its readers.
        let head = live.head(journal).await?;
        let located = match since {
            Since::Now => {
                let states_after = states_after.filter(|_| head.tail > Offset(1));
                let mark = Mark { position: head.end(), states_after };
                return Ok(Self { head, gap: None, mark, page: None });
            }
            Since::Earliest => Offset::ZERO,
            Since::Latest(count) => journal.locate(&live.topic, Locate::Latest(count)).await?,
            Since::At(time) => journal.locate(&live.topic, Locate::Since(time)).await?,
        };
        let page = journal.read(&live.topic, located, START_PAGE).await?;
        let head = page.head;
        let floor = head.floor();
        // What was trimmed may have been among what was asked for; `latest` asks only for what is
        // held.
        let trimmed = floor.offset > Offset::ZERO
            && located <= floor.offset
            && !matches!(since, Since::Latest(_));
        let (position, page) = match page.after_fingerprint {
            Some(fingerprint) if located > floor.offset => {
                let position = crate::model::Position { fingerprint, offset: located, ..floor };
                (position, Some(page))
            }
            _ => (floor, None),
        };
        let gap = trimmed.then_some(Gap {
            reason: GapReason::Trimmed,
            from: (since == Since::Earliest).then_some(Offset(1)),
            to: Some(floor.offset),
        });
        let states_after = states_after.filter(|_| position.offset > Offset::ZERO);
        let page = page.filter(|_| states_after.is_none());
        let page = page.map(|page| Arc::new(Replay::of(&live.frames, &page)));
        Ok(Self { head, gap, mark: Mark { position, states_after }, page })
    }
}

/// Checks the text of a type filter: `job.*` or an event type.
#[must_use]
pub fn is_type_filter(text: &str) -> bool {
    match text.strip_suffix(".*") {
        Some(prefix) => EventType::parse(prefix).is_ok(),
        None => text == "*" || EventType::parse(text).is_ok(),
    }
}

/// Pairs a tenant with the topic names that one of its readers asked for.
#[must_use]
pub fn keys(tenant: &crate::model::Tenant, topics: &[Topic]) -> Vec<TopicKey> {
    topics.iter().map(|topic| TopicKey::new(tenant.clone(), topic.clone())).collect()
}
