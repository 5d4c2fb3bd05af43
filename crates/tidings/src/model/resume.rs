//! The resume table: what a cursor is worth against the journal as it is.
//!
//! The rule: a position is exact, or the reader is told what is gone; there is no third answer.

use super::{Epoch, Fingerprint, Mark, Offset, Position};

/// A topic as the journal has it: the bounds of its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Which history this is.
    pub epoch: Epoch,
    /// The first offset that retention has not trimmed.
    pub earliest: Offset,
    /// The offset that the next event gets.
    pub tail: Offset,
    /// Of the event before `tail`; 0 if there never was one.
    pub tail_fingerprint: Fingerprint,
    /// Of the last event that was trimmed; 0 if none was.
    pub floor_fingerprint: Fingerprint,
    /// Whether the topic takes no more events.
    pub closed: bool,
}

impl Head {
    /// A topic that was never written, in the given history.
    #[must_use]
    pub const fn empty(epoch: Epoch) -> Self {
        Self {
            epoch,
            earliest: Offset(1),
            tail: Offset(1),
            tail_fingerprint: Fingerprint(0),
            floor_fingerprint: Fingerprint(0),
            closed: false,
        }
    }

    /// The position after everything.
    #[must_use]
    pub const fn end(&self) -> Position {
        Position {
            epoch: self.epoch,
            offset: self.tail.previous(),
            fingerprint: self.tail_fingerprint,
        }
    }

    /// The position before the first event still held.
    #[must_use]
    pub const fn floor(&self) -> Position {
        Position {
            epoch: self.epoch,
            offset: self.earliest.previous(),
            fingerprint: self.floor_fingerprint,
        }
    }
}

/// Why events are missing from a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// Retention had removed them when the reader came back.
    Trimmed,
    /// The cursor is malformed, foreign, oversized or does not cover the topic's position.
    UnknownCursor,
    /// The history is another one than the reader's.
    Epoch,
    /// Retention overtook a reader that was connected.
    Lagged,
}

impl GapReason {
    /// As the wire names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trimmed => "trimmed",
            Self::UnknownCursor => "unknown_cursor",
            Self::Epoch => "epoch",
            Self::Lagged => "lagged",
        }
    }
}

/// Events that a reader will not get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// The first offset that is missing, where that is known.
    pub from: Option<Offset>,
    /// The last offset that is missing, where that is known.
    pub to: Option<Offset>,
}

/// Where a reader goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// What it is told before anything else, if it missed something.
    pub gap: Option<Gap>,
    /// Where it goes on from.
    pub mark: Mark,
}

/// Where a reader starts that has no usable position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// From the first event still held, states before it included.
    Earliest,
    /// From the tail, after the current states.
    Now,
}

/// Judges a reader's mark.
///
/// `held` is the fingerprint of the event at the mark's offset, if the journal still knows it.
#[must_use]
pub fn resume(mark: Mark, head: &Head, held: Option<Fingerprint>, restart: Restart) -> Resume {
    let position = mark.position;
    let foreign = position.epoch != head.epoch || position.offset >= head.tail;
    if foreign {
        return reset(GapReason::Epoch, head, restart);
    }
    if position.offset < head.floor().offset {
        let gap = Gap {
            reason: GapReason::Trimmed,
            from: Some(position.offset.next()),
            to: Some(head.floor().offset),
        };
        // States outlive trimming: those after the old position are still there to be sent.
        let states_after = Some(mark.states_after.unwrap_or(position.offset));
        return Resume { gap: Some(gap), mark: Mark { position: head.floor(), states_after } };
    }
    let known = match position.offset {
        Offset::ZERO => Some(Fingerprint(0)),
        offset if offset == head.floor().offset => Some(head.floor_fingerprint),
        _ => held,
    };
    if known == Some(position.fingerprint) {
        Resume { gap: None, mark }
    } else {
        reset(GapReason::Epoch, head, restart)
    }
}

/// Sends a reader without a usable position to where it asked to start.
#[must_use]
pub fn reset(reason: GapReason, head: &Head, restart: Restart) -> Resume {
    let position = match restart {
        Restart::Earliest => head.floor(),
        Restart::Now => head.end(),
    };
    Resume {
        gap: Some(Gap { reason, from: None, to: None }),
        mark: Mark { position, states_after: Some(Offset::ZERO) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head = Head {
        epoch: Epoch(7),
        earliest: Offset(10),
        tail: Offset(20),
        tail_fingerprint: Fingerprint(19),
        floor_fingerprint: Fingerprint(9),
        closed: false,
    };

    fn at(offset: u64) -> Mark {
        let fingerprint = Fingerprint(u32::try_from(offset).unwrap());
        Position { epoch: Epoch(7), offset: Offset(offset), fingerprint }.into()
    }

    fn judge(mark: Mark, held: Option<u32>) -> Resume {
        resume(mark, &HEAD, held.map(Fingerprint), Restart::Earliest)
    }

    #[test]
    fn a_held_offset_with_its_fingerprint_is_exact() {
        for offset in 10..20 {
            let answer = judge(at(offset), Some(u32::try_from(offset).unwrap()));
            assert_eq!(answer, Resume { gap: None, mark: at(offset) });
        }
    }

    #[test]
    fn the_last_trimmed_offset_is_exact_by_the_floors_fingerprint() {
        assert_eq!(judge(at(9), None), Resume { gap: None, mark: at(9) });
        let mut wrong = at(9);
        wrong.position.fingerprint = Fingerprint(1);
        assert_eq!(judge(wrong, None).gap.unwrap().reason, GapReason::Epoch);
    }

    #[test]
    fn an_offset_before_the_floor_is_told_from_and_to() {
        let answer = judge(at(4), None);
        let gap = Gap { reason: GapReason::Trimmed, from: Some(Offset(5)), to: Some(Offset(9)) };
        assert_eq!(answer.gap, Some(gap));
        assert_eq!(answer.mark, Mark { position: HEAD.floor(), states_after: Some(Offset(4)) });
    }

    #[test]
    fn states_still_to_be_sent_survive_a_trim_meanwhile() {
        let mark = Mark { states_after: Some(Offset(2)), ..at(4) };
        assert_eq!(judge(mark, None).mark.states_after, Some(Offset(2)));
    }

    #[test]
    fn another_epoch_the_future_and_another_fingerprint_are_resets() {
        let mut other = at(12);
        other.position.epoch = Epoch(8);
        for (mark, held) in [(other, Some(12)), (at(20), None), (at(12), Some(13)), (at(12), None)]
        {
            let answer = judge(mark, held);
            assert_eq!(answer, reset(GapReason::Epoch, &HEAD, Restart::Earliest));
            assert_eq!(answer.mark.position, HEAD.floor());
            assert_eq!(answer.mark.states_after, Some(Offset::ZERO));
        }
        let now = resume(other, &HEAD, None, Restart::Now);
        assert_eq!(now.mark, Mark { position: HEAD.end(), states_after: Some(Offset::ZERO) });
    }

    #[test]
    fn offset_zero_of_an_untrimmed_topic_is_exact() {
        let head = Head::empty(Epoch(7));
        let zero = Mark::from(head.end());
        assert_eq!(resume(zero, &head, None, Restart::Earliest), Resume { gap: None, mark: zero });
    }
}
