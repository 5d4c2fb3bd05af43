//! One topic of a subscription: a position, and what follows it.
//!
//! The rule: a look takes from the ring what the ring has, in one go and under one lock. Only what
//! the ring does not have is waited for, and every page of the journal is judged by the resume table.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Filter, Item, States};
use crate::{
    journal::{Journal, JournalError, PageLimit, StateQuery},
    metrics::Metrics,
    model::{
        Fingerprint, Mark, Offset, TopicKey,
        resume::{GapReason, Head, Restart, Resume, resume},
    },
    sse::Frame,
    topic_task::{Look, Registration, Replay},
};

/// Events handed out at once: a connection writes them in one go, then it is another's turn.
const BATCH_EVENTS_MAX: usize = 128;
/// Bytes handed out at once, apart from the last event.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Events that may be filtered out before a reader's cursor is moved past them by a checkpoint.
const FILTERED_EVENTS_MAX: u64 = 500;

/// Whether so much is enough for one turn.
pub(super) const fn is_full(events: usize, bytes: usize) -> bool {
    events >= BATCH_EVENTS_MAX || bytes >= BATCH_BYTES_MAX
}

/// How a reader goes on after a gap.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) restart: Restart,
    pub(super) states: States,
}

impl Policy {
    /// What the resume table says, less the states if they are not wanted. `held` is the fingerprint
    /// at the mark's offset, if the journal knows it.
    pub(super) fn judge(self, mark: Mark, head: &Head, held: Option<Fingerprint>) -> Resume {
        self.trim(resume(mark, head, held, self.restart))
    }

    pub(super) fn trim(self, mut resume: Resume) -> Resume {
        if resume.gap.is_some() && self.states == States::Skip {
            resume.mark.states_after = None;
        }
        resume
    }
}

/// A position in one topic.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) key: TopicKey,
    pub(super) registration: Registration,
    /// Up to which change of its topic's properties it was told.
    pub(super) changes: u64,
    pub(super) mark: Mark,
    /// The first page, if finding the start needed one.
    pub(super) page: Option<Arc<Replay>>,
    pub(super) finished: bool,
    /// It was connected before: what is missing now, retention took while it read.
    pub(super) connected: bool,
    pub(super) filtered: u64,
}

/// Where a reader puts what it finds.
pub(super) struct Found<'a> {
    pub(super) place: usize,
    pub(super) filter: &'a Filter,
    pub(super) items: &'a mut Vec<Item>,
    pub(super) bytes: &'a mut usize,
}

impl Found<'_> {
    /// Returns whether the reader wants the event.
    fn event(&mut self, frame: &Arc<Frame>, mark: Option<Mark>) -> bool {
        let wanted = self.filter.wants(frame);
        if wanted {
            *self.bytes += frame.length();
            self.items.push(Item::Event { place: self.place, frame: Arc::clone(frame), mark });
        }
        wanted
    }

    pub(super) fn is_full(&self) -> bool {
        is_full(self.items.len(), *self.bytes)
    }
}

impl Reader {
    /// Looks once into the ring for what follows.
    pub(super) fn look(&mut self, metrics: &Metrics, found: &mut Found<'_>) -> Look {
        if self.mark.states_after.is_some() {
            return Look::Behind;
        }
        let live = Arc::clone(&self.registration.live);
        let mut seen = self.registration.seen;
        let look = live.look(self.mark.position, &mut seen, |frame| {
            self.take(frame, found);
            !found.is_full()
        });
        self.registration.seen = seen;
        if let Look::Frames { lag, end, is_closed } = look {
            metrics.reader_lag.ring.observe(lag);
            self.page = None;
            if self.mark.position.offset != end {
                return look;
            }
            self.ends(found);
            return Look::End { is_closed };
        }
        if let Look::End { .. } = look {
            // What was read for the start is not what follows later.
            self.page = None;
            self.ends(found);
        }
        look
    }

    /// It has everything of its topic: what was held back is told by a position.
    fn ends(&mut self, found: &mut Found<'_>) {
        self.connected = true;
        if self.filtered > 0 {
            self.checkpoint(found);
        }
    }

    /// Asks the journal once for what follows. Returns whether that was all.
    pub(super) async fn advance(
        &mut self,
        journal: &Arc<dyn Journal>,
        metrics: &Metrics,
        policy: Policy,
        found: &mut Found<'_>,
    ) -> Result<bool, JournalError> {
        match self.mark.states_after {
            Some(after) => {
                self.states(&**journal, metrics, policy, after, found).await?;
                Ok(false)
            }
            None => self.replay(journal, metrics, policy, found).await,
        }
    }

    /// Takes a frame that follows the position.
    fn take(&mut self, frame: &Arc<Frame>, found: &mut Found<'_>) {
        let Some(position) = frame.position else {
            found.event(frame, None);
            return;
        };
        self.mark = position.into();
        if found.event(frame, Some(self.mark)) {
            self.filtered = 0;
        } else {
            self.filtered += 1;
            if self.filtered >= FILTERED_EVENTS_MAX {
                self.checkpoint(found);
            }
        }
    }

    fn checkpoint(&mut self, found: &mut Found<'_>) {
        self.filtered = 0;
        found.items.push(Item::Checkpoint { place: found.place, mark: self.mark });
    }

    /// Reads a page of the journal. Returns whether it has nothing more.
    async fn replay(
        &mut self,
        journal: &Arc<dyn Journal>,
        metrics: &Metrics,
        policy: Policy,
        found: &mut Found<'_>,
    ) -> Result<bool, JournalError> {
        let live = Arc::clone(&self.registration.live);
        // An empty page of the start does not say that there is nothing now.
        let kept = self.page.take().filter(|page| !page.frames.is_empty());
        let page = match kept {
            Some(page) => page,
            None => {
                let asked_at = Instant::now();
                let page = live.replay(journal, self.mark.position, PageLimit::default()).await?;
                metrics.replay_read_duration.observe_duration(asked_at.elapsed());
                page
            }
        };
        if self.judge(&page.head, page.after_fingerprint, metrics, policy, found) {
            return Ok(false);
        }
        let before = self.mark;
        metrics.events_replayed.inc_by(page.frames.len() as u64);
        if !page.frames.is_empty() {
            let end = page.head.tail.previous().0;
            metrics.reader_lag.journal.observe(end.saturating_sub(before.position.offset.0));
        }
        for frame in &page.frames {
            self.take(frame, found);
        }
        if self.mark.position != page.next {
            // Superseded states at the page's end.
            self.mark = page.next.into();
            self.filtered += 1;
        }
        // A page that has nothing, although the ring thought so: the topic will wake this reader
        // when it has heard of it.
        let is_end = self.mark == before;
        if is_end && self.filtered > 0 {
            self.checkpoint(found);
        }
        Ok(is_end)
    }

    /// Reads a page of the states before the position.
    async fn states(
        &mut self,
        journal: &dyn Journal,
        metrics: &Metrics,
        policy: Policy,
        after: Offset,
        found: &mut Found<'_>,
    ) -> Result<(), JournalError> {
        let until = self.mark.position.offset;
        let query = StateQuery { after, until, ..StateQuery::all() };
        let asked_at = Instant::now();
        let page = journal.states(&self.key, query).await?;
        metrics.replay_read_duration.observe_duration(asked_at.elapsed());
        if page.head.epoch != self.mark.position.epoch {
            self.judge(&page.head, page.after_fingerprint, metrics, policy, found);
            return Ok(());
        }
        metrics.events_replayed.inc_by(page.events.len() as u64);
        let live = Arc::clone(&self.registration.live);
        for event in &page.events {
            let frame = Arc::new(Frame::of(&live.frames, page.head.epoch, event));
            self.mark.states_after = Some(event.offset);
            found.event(&frame, Some(self.mark));
        }
        if page.next.offset >= until || page.events.is_empty() {
            self.mark.states_after = None;
            if until > Offset::ZERO {
                self.checkpoint(found);
            }
        }
        Ok(())
    }

    /// Compares the position with the journal. Returns whether the reader was moved by a gap.
    fn judge(
        &mut self,
        head: &Head,
        held: Option<Fingerprint>,
        metrics: &Metrics,
        policy: Policy,
        found: &mut Found<'_>,
    ) -> bool {
        let resume = policy.judge(self.mark, head, held);
        let Some(mut gap) = resume.gap else { return false };
        if self.connected && gap.reason == GapReason::Trimmed {
            gap.reason = GapReason::Lagged;
        }
        Metrics::count(&metrics.gaps, gap.reason.as_str());
        self.mark = resume.mark;
        self.page = None;
        self.finished = false;
        found.items.push(Item::Gap { place: found.place, gap, mark: self.mark });
        true
    }
}
