//! Places in a topic's history.
//!
//! The rule: a position is trusted only if epoch, offset and fingerprint all agree with the
//! journal. An epoch alone does not notice a failover that reused offsets.

use std::fmt;

/// Place of an event in its topic, assigned by the journal, ascending from 1.
///
/// Offset 0 is the place before everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(pub u64);

impl Offset {
    /// Before everything.
    pub const ZERO: Self = Self(0);

    /// The offset after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The offset before this one; of 0, itself.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of a topic's history: another epoch, another history. Written as `k3f9w1a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u32);

impl Epoch {
    const DIGITS: &'static [u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit =
            |shift: u32| Self::DIGITS.get(((self.0 >> shift) & 31) as usize).unwrap_or(&b'0');
        let text = [30, 25, 20, 15, 10, 5, 0].map(|shift| *digit(shift));
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// 32 bits of an event's hash at its offset: CRC-32C of the stored record and the offset.
///
/// It tells two histories apart that reused an offset under one epoch, and is the checksum under
/// which the event is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fingerprint(pub u32);

/// A place in a topic's history that can be checked.
///
/// Displayed as `epoch-offset`, the `position` of an event: `0k3f9w1-1041`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Of which history.
    pub epoch: Epoch,
    /// The place; [`Offset::ZERO`] is before everything.
    pub offset: Offset,
    /// Of the event at that place; 0 at offset 0.
    pub fingerprint: Fingerprint,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_written_as_epoch_and_offset() {
        let position =
            Position { epoch: Epoch(u32::MAX), offset: Offset(1041), fingerprint: Fingerprint(7) };
        assert_eq!(position.to_string(), "3zzzzzz-1041");
    }
}
