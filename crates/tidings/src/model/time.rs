//! Points in time and durations as the wire and the journal write them.

use std::{fmt, time::Duration};

use jiff::civil::DateTime;

/// Units of a duration and their milliseconds, the largest first. Days are 24 hours: retention and
/// replay know no calendars.
pub const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
const DAY_SECONDS: i128 = 24 * 60 * 60;

/// Milliseconds since the Unix epoch, UTC. Written as RFC 3339: `2026-11-21T07:00:00.123Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// What a text must be to be read as a time, for messages.
    pub const RULE: &str = "must be a time like 2026-11-21T07:00:00Z (RFC 3339), from \
                            1970-01-01T00:00:00Z to 9999-12-31T23:59:59.999Z";

    /// The latest time that RFC 3339 can write, `9999-12-31T23:59:59.999Z`, in milliseconds.
    const MAX_MS: u64 = 253_402_300_799_999;

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

    /// Reads RFC 3339, any offset: `2026-11-21T08:00:00+01:00`. What is below a millisecond is cut
    /// off. A leap second, which only a UTC day can end with, is the second after it, as in Unix
    /// time.
    ///
    /// # Errors
    /// `None` if the text is no RFC 3339 timestamp, or its time is before 1970 or after 9999 (UTC).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (clock, rest) = text.split_at_checked("2026-11-21T07:00:00".len())?;
        let (fraction_ms, offset) = fraction(rest)?;
        // jiff reads more than RFC 3339 has: other separators, no separators, no minutes.
        let civil: DateTime = if has_shape(clock, "0000-00-00T00:00:00") {
            clock.parse().ok()?
        } else {
            return None;
        };
        let mut seconds = civil.duration_since(EPOCH).as_secs() - offset_seconds(offset)?;
        if clock.ends_with(":60") {
            // jiff reads :60 as :59.
            seconds += 1;
            if i128::from(seconds) % DAY_SECONDS != 0 {
                return None;
            }
        }
        let ms = u64::try_from(seconds).ok()?.checked_mul(1000)? + fraction_ms;
        (ms <= Self::MAX_MS).then_some(Self(ms))
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
    /// Every event that is written has one, so its digits are put in place, without a formatter.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, ms) = (self.0 / 1000, self.0 % 1000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let [year, month, day] = date(days);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let numbers = [
            (0..4, year),
            (5..7, month),
            (8..10, day),
            (11..13, second / 3600),
            (14..16, second / 60 % 60),
            (17..19, second % 60),
            (20..23, ms),
        ];
        for (place, mut number) in numbers {
            for digit in text.get_mut(place).unwrap_or_default().iter_mut().rev() {
                *digit += (number % 10) as u8;
                number /= 10;
            }
        }
        f.pad(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// Year, month and day of a day since 1970 (Hinnant, `civil_from_days`): counted in eras of 400
/// years that begin with a March, so that a leap day is a year's last.
const fn date(days: u64) -> [u64; 3] {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = year + era * 400;
    if month < 10 { [year, month + 3, day] } else { [year + 1, month - 9, day] }
}

/// Reads a duration, each number with its unit: `250ms`, `10s`, `1h30m`, `7d`.
///
/// # Errors
/// `None` if the text is not written so, or longer than 2^64 ms.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total_ms: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, tail) = split_where(rest, |c| !c.is_ascii_digit())?;
        let (unit, tail) = split_where(tail, |c| !c.is_ascii_alphabetic())?;
        let (_, ms) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
        let part = number.parse::<u64>().ok()?.checked_mul(*ms)?;
        total_ms = total_ms.checked_add(part)?;
        rest = tail;
    }
    Some(Duration::from_millis(total_ms))
}

fn split_where(text: &str, ends: fn(char) -> bool) -> Option<(&str, &str)> {
    text.split_at_checked(text.find(ends).unwrap_or(text.len()))
}

/// Whether the text has digits where the shape has `0`, and what the shape has elsewhere.
fn has_shape(text: &str, shape: &str) -> bool {
    let fits = |(byte, shape): (u8, u8)| match shape {
        b'0' => byte.is_ascii_digit(),
        shape => byte.eq_ignore_ascii_case(&shape),
    };
    text.len() == shape.len() && text.bytes().zip(shape.bytes()).all(fits)
}

/// Takes `time-secfrac` (RFC 3339 §5.6) off, if there is one: its milliseconds, and the rest.
fn fraction(text: &str) -> Option<(u64, &str)> {
    let Some(text) = text.strip_prefix('.') else { return Some((0, text)) };
    let (digits, rest) = split_where(text, |c| !c.is_ascii_digit())?;
    let ms: String = digits.chars().chain("00".chars()).take(3).collect();
    if digits.is_empty() { None } else { Some((ms.parse().ok()?, rest)) }
}

/// Reads `time-offset` (RFC 3339 §5.6), seconds east of UTC.
fn offset_seconds(text: &str) -> Option<i64> {
    if text.eq_ignore_ascii_case("Z") {
        return Some(0);
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let text = text.get(1..).filter(|text| has_shape(text, "00:00"))?;
    let (hours, minutes) = text.split_once(':')?;
    let (hours, minutes): (i64, i64) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_is_written_as_rfc_3339_with_milliseconds() {
        let at = Timestamp::parse("2026-11-21T08:00:00.5+01:00").unwrap();
        assert_eq!(at.to_string(), "2026-11-21T07:00:00.500Z");
        let end = Timestamp::from_millis(u64::MAX);
        assert_eq!(end.to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!(Timestamp::parse(&end.to_string()), Some(end));
    }

    #[test]
    fn all_of_rfc_3339_from_1970_to_9999_is_read() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
            ("1969-12-31T23:00:00-01:00", "1970-01-01T00:00:00.000Z"),
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59.000Z"),
            ("9999-12-31T23:59:59.9999999999Z", "9999-12-31T23:59:59.999Z"),
            ("9999-12-31T22:59:59-01:00", "9999-12-31T23:59:59.000Z"),
            ("2026-11-21t07:00:00.12z", "2026-11-21T07:00:00.120Z"),
            ("2026-11-21T07:00:00-00:00", "2026-11-21T07:00:00.000Z"),
            ("2026-11-21T07:00:00+23:59", "2026-11-20T07:01:00.000Z"),
            ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000Z"),
            ("2016-12-31T23:59:60.25Z", "2017-01-01T00:00:00.250Z"),
            ("1990-12-31T15:59:60-08:00", "1991-01-01T00:00:00.000Z"),
        ] {
            let read = Timestamp::parse(text).map(|at| at.to_string());
            assert_eq!(read.as_deref(), Some(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_of_rfc_3339_or_beyond_the_range_is_refused() {
        for bad in [
            "",
            "now",
            "2026-11-21",
            "2026-11-21T07:00:00",
            "2026-11-21T07:00Z",
            "2026-11-21 07:00:00Z",
            "20261121T070000Z",
            "2026-11-21T07:00:00.Z",
            "2026-11-21T07:00:00,5Z",
            "2026-11-21T07:00:00+01",
            "2026-11-21T07:00:00+0100",
            "2026-11-21T07:00:00+24:00",
            "2026-11-21T07:00:00+01:60",
            "2026-11-21T07:00:00 01:00",
            "2026-11-21T07:00:00Z ",
            "2026-11-21T07:00:00+01:00[Europe/Paris]",
            "2026-11-21T24:00:00Z",
            "2026-11-21T07:60:00Z",
            "2026-11-21T07:00:61Z",
            "2026-11-21T07:00:60Z",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-21T07:00:0éZ",
            "+02026-11-21T07:00:00Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59-00:01",
            "9999-12-31T23:59:60Z",
        ] {
            assert_eq!(Timestamp::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_numbers_with_their_units() {
        for (text, ms) in
            [("250ms", 250), ("90s", 90_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("0s", 0)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "10", "s", "10 s", "36 h", " 1s", "1s ", "+1s", "-1s", "1.5s", "1H", "1y"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
        assert_eq!(duration("99999999999999999999d"), None);
        assert_eq!(duration("999999999999999999d"), None);
    }

    /// Every day until the last.
    #[test]
    fn dates_are_those_of_the_calendar() {
        let mut day = jiff::civil::date(1970, 1, 1);
        for days in 0..=2_932_896 {
            let of_calendar = [day.year(), day.month().into(), day.day().into()];
            let found = date(days).map(|number| i16::try_from(number).unwrap());
            assert_eq!(found, of_calendar, "day {days}");
            day = day.tomorrow().unwrap_or(day);
        }
        assert_eq!(day.to_string(), "9999-12-31");
    }

    proptest! {
        #[test]
        fn every_time_reads_back(ms in 0..=Timestamp::MAX_MS) {
            let at = Timestamp::from_millis(ms);
            prop_assert_eq!(Timestamp::parse(&at.to_string()), Some(at));
        }

        #[test]
        fn no_text_panics(text in "[0-9:.+ZzTt é-]{0,40}") {
            let _ = (Timestamp::parse(&text), duration(&text));
        }
    }
}
