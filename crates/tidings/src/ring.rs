//! The newest frames of one topic, in memory, shared by all its readers.
//!
//! The rule: the ring knows no readers. A reader says which offset it has and gets what follows, or
//! learns that it must ask the journal. Whatever is not dense empties the ring, never fills it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    model::{Class, Offset, StateKey, limits::RING_EPHEMERAL_BYTES_MAX},
    sse::Frame,
};

/// Ephemeral frames kept for readers that are being woken. Dropping them is their class's promise.
const EPHEMERAL_FRAMES_MAX: usize = 64;

/// Frames with dense offsets, newest last.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    slots: VecDeque<Slot>,
    /// The offset before the first slot's: what a reader must have to be served from here.
    floor: Offset,
    bytes: usize,
    newest: HashMap<StateKey, Offset>,
    ephemeral: VecDeque<Arc<Frame>>,
    ephemeral_bytes: usize,
    /// How many ephemeral frames were dropped or are held before the next one.
    ephemeral_next: u64,
}

#[derive(Debug)]
struct Slot {
    /// `None`: a state that was superseded before this node heard of it.
    frame: Option<Arc<Frame>>,
    /// A newer state of its key is in the ring: a reader that comes now needs only that one.
    superseded: bool,
}

/// How many frames a ring keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingLimit {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

impl Ring {
    /// Empties the ring; it will hold what follows this offset.
    pub(crate) fn restart(&mut self, floor: Offset) {
        // Not cleared: an empty ring takes no memory.
        self.slots = VecDeque::new();
        self.newest = HashMap::new();
        self.bytes = 0;
        self.floor = floor;
    }

    /// Lets go of all frames: who comes from here on is at the end, or asks the journal.
    pub(crate) fn release(&mut self) {
        self.restart(self.end());
        self.ephemeral = VecDeque::new();
        self.ephemeral_bytes = 0;
    }

    /// Adds a frame at its offset. One that does not follow the last empties the ring first.
    pub(crate) fn push(&mut self, offset: Offset, frame: Arc<Frame>, limit: RingLimit) {
        if offset != self.end().next() {
            self.restart(offset.previous());
        }
        if let Some(key) = frame.key()
            && frame.class() == Class::State
            && let Some(older) = self.newest.insert(key.clone(), offset)
            && let Some(slot) = self.slot_mut(older)
        {
            // The journal keeps tombstones, so a reader that comes by this way gets them too.
            slot.superseded = slot.frame.as_ref().is_none_or(|frame| !frame.is_tombstone());
        }
        self.bytes += frame.size();
        self.slots.push_back(Slot { frame: Some(frame), superseded: false });
        self.shrink_to(limit);
    }

    /// Says that the journal holds nothing more up to this offset.
    pub(crate) fn skip_to(&mut self, offset: Offset, limit: RingLimit) {
        if offset.0.saturating_sub(self.end().0) > limit.frames as u64 {
            self.restart(offset);
        }
        while self.end() < offset {
            self.slots.push_back(Slot { frame: None, superseded: true });
        }
        self.shrink_to(limit);
    }

    fn shrink_to(&mut self, limit: RingLimit) {
        while self.slots.len() > limit.frames || self.bytes > limit.bytes {
            let Some(oldest) = self.slots.pop_front() else { break };
            self.floor = self.floor.next();
            let Some(frame) = oldest.frame else { continue };
            self.bytes -= frame.size();
            if let Some(key) = frame.key()
                && self.newest.get(key) == Some(&self.floor)
            {
                self.newest.remove(key);
            }
        }
        if self.slots.is_empty() {
            // Memory of a burst goes back once the ring is empty.
            self.slots.shrink_to_fit();
        }
    }

    /// Adds a frame that has no offset.
    pub(crate) fn push_ephemeral(&mut self, frame: Arc<Frame>) {
        self.ephemeral_bytes += frame.length();
        self.ephemeral.push_back(frame);
        self.ephemeral_next += 1;
        // The newest stays: each alone is within what an event may be.
        while self.ephemeral.len() > EPHEMERAL_FRAMES_MAX
            || (self.ephemeral.len() > 1 && self.ephemeral_bytes > RING_EPHEMERAL_BYTES_MAX)
        {
            let Some(oldest) = self.ephemeral.pop_front() else { break };
            self.ephemeral_bytes -= oldest.length();
        }
    }

    /// The last offset held, or the floor.
    pub(crate) fn end(&self) -> Offset {
        Offset(self.floor.0 + self.slots.len() as u64)
    }

    /// Hands out what follows the offset, states only if nothing newer of their key follows, until
    /// `take` says no. Returns whether the ring reaches back that far.
    pub(crate) fn read(&self, after: Offset, mut take: impl FnMut(&Arc<Frame>) -> bool) -> bool {
        let Some(skip) = after.0.checked_sub(self.floor.0) else { return false };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        for slot in self.slots.iter().skip(skip) {
            let wanted = slot.frame.as_ref().filter(|_| !slot.superseded);
            if wanted.is_some_and(|frame| !take(frame)) {
                break;
            }
        }
        true
    }

    /// The frame at an offset, if it is held.
    pub(crate) fn get(&self, offset: Offset) -> Option<&Frame> {
        self.slots.get(self.place(offset)?)?.frame.as_deref()
    }

    /// Where a reader starts that wants only the ephemeral events to come.
    pub(crate) const fn ephemeral_end(&self) -> u64 {
        self.ephemeral_next
    }

    /// The ephemeral frames from there on that are still held.
    pub(crate) fn ephemeral(&self, from: u64) -> impl Iterator<Item = &Arc<Frame>> {
        let first = self.ephemeral_next - self.ephemeral.len() as u64;
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        self.ephemeral.iter().skip(skip)
    }

    fn slot_mut(&mut self, offset: Offset) -> Option<&mut Slot> {
        let place = self.place(offset)?;
        self.slots.get_mut(place)
    }

    fn place(&self, offset: Offset) -> Option<usize> {
        usize::try_from(offset.0.checked_sub(self.floor.0 + 1)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Epoch, Event, EventType, Fingerprint, JsonText, NewEvent, Tenant, Timestamp, Topic,
        TopicKey,
    };

    const LIMIT: RingLimit = RingLimit { frames: 4, bytes: 1 << 20 };

    fn frame(offset: u64, key: Option<&str>) -> Arc<Frame> {
        let topic = TopicKey::new(Tenant::parse("t").unwrap(), Topic::parse("a").unwrap());
        let mut body = NewEvent::new(EventType::parse("x").unwrap());
        if let Some(key) = key {
            body = body.state(StateKey::parse(key).unwrap());
        }
        let event = Event {
            offset: Offset(offset),
            fingerprint: Fingerprint(0),
            recorded_at: Timestamp::from_millis(0),
            body: Arc::new(body),
        };
        Arc::new(Frame::of(&topic, Epoch(1), &event))
    }

    fn read(ring: &Ring, after: u64) -> Option<Vec<u64>> {
        let mut offsets = Vec::new();
        let served = ring.read(Offset(after), |frame| {
            offsets.push(frame.position.unwrap().offset.0);
            true
        });
        served.then_some(offsets)
    }

    #[test]
    fn a_reader_gets_what_follows_its_offset_or_is_sent_to_the_journal() {
        let mut ring = Ring::default();
        ring.restart(Offset(10));
        for offset in 11..=16 {
            ring.push(Offset(offset), frame(offset, None), LIMIT);
        }
        assert_eq!(read(&ring, 11), None);
        assert_eq!(read(&ring, 12), Some(vec![13, 14, 15, 16]));
        assert_eq!(read(&ring, 16), Some(vec![]));
        assert_eq!(read(&ring, 99), Some(vec![]));
    }

    #[test]
    fn a_hole_empties_the_ring() {
        let mut ring = Ring::default();
        ring.push(Offset(1), frame(1, None), LIMIT);
        ring.push(Offset(5), frame(5, None), LIMIT);
        assert_eq!(read(&ring, 1), None);
        assert_eq!(read(&ring, 4), Some(vec![5]));
    }

    #[test]
    fn a_slow_reader_gets_the_newest_state_of_a_key_once_and_every_log_event() {
        let mut ring = Ring::default();
        ring.push(Offset(1), frame(1, Some("k")), LIMIT);
        ring.push(Offset(2), frame(2, None), LIMIT);
        ring.push(Offset(3), frame(3, Some("k")), LIMIT);
        ring.push(Offset(4), frame(4, Some("other")), LIMIT);
        assert_eq!(read(&ring, 0), Some(vec![2, 3, 4]));
        ring.push(Offset(5), frame(5, None), LIMIT);
        ring.push(Offset(6), frame(6, Some("k")), LIMIT);
        assert_eq!(read(&ring, 2), Some(vec![4, 5, 6]));
    }

    #[test]
    fn a_slow_reader_gets_every_tombstone() {
        let event = |offset, delete| {
            let topic = TopicKey::new(Tenant::parse("t").unwrap(), Topic::parse("a").unwrap());
            let body = NewEvent::new(EventType::parse("x").unwrap());
            let body = body.state(StateKey::parse("k").unwrap());
            let event = Event {
                offset: Offset(offset),
                fingerprint: Fingerprint(0),
                recorded_at: Timestamp::from_millis(0),
                body: Arc::new(NewEvent { delete, ..body }),
            };
            Arc::new(Frame::of(&topic, Epoch(1), &event))
        };
        let mut ring = Ring::default();
        for (offset, delete) in [(1, false), (2, true), (3, false)] {
            ring.push(Offset(offset), event(offset, delete), LIMIT);
        }
        assert_eq!(read(&ring, 0), Some(vec![2, 3]), "as the journal would tell it");
    }

    #[test]
    fn bytes_bound_the_ring_too() {
        let mut ring = Ring::default();
        let one = frame(1, None).size();
        let limit = RingLimit { frames: 100, bytes: one * 3 };
        for offset in 1..=9 {
            ring.push(Offset(offset), frame(offset, None), limit);
        }
        assert_eq!(read(&ring, 5), None);
        assert_eq!(read(&ring, 6), Some(vec![7, 8, 9]));
    }

    #[test]
    fn ephemeral_frames_are_dropped_oldest_first() {
        let mut ring = Ring::default();
        let start = ring.ephemeral_end();
        for offset in 0..EPHEMERAL_FRAMES_MAX as u64 + 3 {
            ring.push_ephemeral(frame(offset, None));
        }
        assert_eq!(ring.ephemeral(start).count(), EPHEMERAL_FRAMES_MAX);
        assert_eq!(ring.ephemeral(ring.ephemeral_end() - 1).count(), 1);
        assert_eq!(ring.ephemeral(ring.ephemeral_end()).count(), 0);
    }

    #[test]
    fn bytes_bound_the_ephemeral_frames_too_and_the_newest_stays() {
        let large = |bytes: usize| {
            let topic = TopicKey::new(Tenant::parse("t").unwrap(), Topic::parse("a").unwrap());
            let data = JsonText::string(&"x".repeat(bytes));
            let event = Event {
                offset: Offset::ZERO,
                fingerprint: Fingerprint(0),
                recorded_at: Timestamp::from_millis(0),
                body: Arc::new(NewEvent::new(EventType::parse("x").unwrap()).data(data)),
            };
            Arc::new(Frame::ephemeral(&topic, &event))
        };
        let mut ring = Ring::default();
        for _ in 0..20 {
            ring.push_ephemeral(large(64 * 1024));
            let held: usize = ring.ephemeral(0).map(|frame| frame.length()).sum();
            assert!(held <= RING_EPHEMERAL_BYTES_MAX && held == ring.ephemeral_bytes, "{held}");
        }
        assert_eq!(ring.ephemeral(0).count(), 3);
        ring.push_ephemeral(large(2 * RING_EPHEMERAL_BYTES_MAX));
        assert_eq!(ring.ephemeral(0).count(), 1);
        assert_eq!(ring.ephemeral_end(), 21);
    }
}
