//! Points in time as the wire and the journal write them.

use std::{fmt, time::Duration};

/// Milliseconds since the Unix epoch, UTC. Written as RFC 3339: `2026-11-21T07:00:00.123Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The latest time that RFC 3339 can write, `9999-12-30T22:00:00.999Z`, in milliseconds.
    const MAX_MS: u64 = 253_402_207_200_999;

    /// From milliseconds since the Unix epoch; later than the year 9999 becomes its end.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(if ms > Self::MAX_MS { Self::MAX_MS } else { ms })
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, as JWT writes times (RFC 7519 §2, NumericDate).
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// Reads RFC 3339, any offset: `2026-11-21T08:00:00+01:00`. Before 1970 becomes 1970.
    ///
    /// # Errors
    /// `None` if the text is no RFC 3339 timestamp.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let at: jiff::Timestamp = text.parse().ok()?;
        Some(Self::from_millis(u64::try_from(at.as_millisecond()).unwrap_or(0)))
    }

    /// This time and a duration later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self::from_millis(self.0.saturating_add(ms))
    }

    /// This time and a duration earlier, not before 1970.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(ms))
    }

    /// How long from `self` until `later`; zero if that has passed.
    #[must_use]
    pub const fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = i64::try_from(self.0).unwrap_or(i64::MAX);
        let at = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{at:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_rfc_3339_with_milliseconds() {
        let at = Timestamp::parse("2026-11-21T08:00:00.5+01:00").unwrap();
        assert_eq!(at.to_string(), "2026-11-21T07:00:00.500Z");
        assert_eq!(Timestamp::parse("2026-11-21"), None);
        let end = Timestamp::from_millis(u64::MAX);
        assert_eq!(Timestamp::parse(&end.to_string()), Some(end));
    }
}
