//! How a page is filled, for adapters that hand events over one by one.
//!
//! The rule: a page holds at least one event, and says by `next` how far it is complete.

use std::ops::ControlFlow;

use super::{Head, Page, PageLimit};
use crate::model::{Event, Fingerprint, Offset, Position};

/// A page being filled.
#[derive(Debug)]
pub(crate) struct Paging {
    limit: PageLimit,
    events: Vec<Event>,
    bytes: usize,
    more: bool,
    /// Of the event at the query's `until`, if it is known.
    pub(crate) until_fingerprint: Option<Fingerprint>,
}

impl Paging {
    pub(crate) fn new(limit: PageLimit) -> Self {
        Self { limit, events: Vec::new(), bytes: 0, more: false, until_fingerprint: None }
    }

    /// Offers the next event. `Break`: the page is full, and this event is not in it.
    pub(crate) fn take(&mut self, event: Event) -> ControlFlow<()> {
        let bytes = self.bytes.saturating_add(event.body.data.len());
        let full = self.events.len() >= self.limit.events || bytes > self.limit.bytes;
        if full && !self.events.is_empty() {
            self.more = true;
            return ControlFlow::Break(());
        }
        self.bytes = bytes;
        self.events.push(event);
        ControlFlow::Continue(())
    }

    /// The page; without a `Break` it is complete up to `until` or the end, whichever is first.
    pub(crate) fn finish(
        self,
        head: Head,
        after: Offset,
        after_fingerprint: Option<Fingerprint>,
        until: Offset,
    ) -> Page {
        let at = |offset, fingerprint: Option<Fingerprint>| Position {
            epoch: head.epoch,
            offset,
            fingerprint: fingerprint.unwrap_or_default(),
        };
        let after_fingerprint =
            if after == Offset::ZERO { Some(Fingerprint(0)) } else { after_fingerprint };
        let complete = match self.events.last() {
            Some(last) if self.more => at(last.offset, Some(last.fingerprint)),
            _ if until < head.end().offset => at(until, self.until_fingerprint),
            _ => head.end(),
        };
        let next = if after > complete.offset { at(after, after_fingerprint) } else { complete };
        Page { head, after_fingerprint, events: self.events, next }
    }
}
