//! Figures: what a scenario found out, the bars it is to reach, and how numbers are written.

use std::fmt;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    PerSecond,
    /// CPU seconds of the server per million of what it did: microseconds for each.
    CpuPerMillion,
    Ms,
    Seconds,
    KiB,
    MiB,
    Percent,
    Times,
}

/// A number with its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) value: f64,
    /// The least and the most of several rounds, of which the value is the middle.
    pub(crate) range: Option<(f64, f64)>,
}

impl Figure {
    pub(crate) const fn new(name: &'static str, unit: Unit, value: f64) -> Self {
        Self { name, unit, value, range: None }
    }

    /// Of the same figure in several rounds: the middle, with the least and the most.
    pub(crate) fn middle(rounds: &[Self]) -> Option<Self> {
        let mut values: Vec<f64> = rounds.iter().map(|figure| figure.value).collect();
        values.sort_by(f64::total_cmp);
        let value = *values.get(values.len() / 2)?;
        let range = values.first().copied().zip(values.last().copied());
        Some(Self { value, range: range.filter(|_| values.len() > 1), ..*rounds.first()? })
    }

    /// `24 100 to 26 300`, of several rounds.
    pub(crate) fn range_text(&self) -> Option<String> {
        self.range.map(|(least, most)| format!("{} to {}", written(least), written(most)))
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = written(self.value);
        match self.unit {
            Unit::PerSecond => write!(out, "{text}/s"),
            Unit::CpuPerMillion => write!(out, "{text} s/M"),
            Unit::Ms => write!(out, "{text} ms"),
            Unit::Seconds => write!(out, "{text} s"),
            Unit::KiB => write!(out, "{text} KiB"),
            Unit::MiB => write!(out, "{text} MiB"),
            Unit::Percent => write!(out, "{text} %"),
            Unit::Times => write!(out, "{text} ×"),
        }
    }
}

/// A number with three digits that count, thousands apart.
pub(crate) fn written(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_once('.').map_or((&*text, ""), |(whole, rest)| (whole, rest));
    let mut spaced = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 && digit.is_ascii_digit() {
            spaced.push(' ');
        }
        spaced.push(digit);
    }
    if rest.is_empty() { spaced } else { format!("{spaced}.{rest}") }
}

/// What a figure is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bar {
    /// Of which figure.
    pub(crate) of: &'static str,
    pub(crate) limit: Limit,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// In multiples of the floor's figure of the same run.
    FloorTimes(f64),
    /// In multiples of a peer's figure of the same run: at least.
    PeerTimes(&'static str, f64),
}

impl Bar {
    /// As the issue writes it.
    pub(crate) fn text(&self, figure: &Figure) -> String {
        let of = self.of;
        let with = |value| Figure { value, ..*figure };
        match self.limit {
            Limit::AtMost(most) => format!("{of} ≤ {}", with(most)),
            Limit::AtLeast(least) => format!("{of} ≥ {}", with(least)),
            Limit::FloorTimes(times) => format!("{of} ≤ {times} × floor"),
            Limit::PeerTimes(peer, times) => format!("{of} ≥ {times} × {peer}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_rounds_the_middle_counts_and_the_others_are_told() {
        let of = |value| Figure::new("events", Unit::PerSecond, value);
        let middle = Figure::middle(&[of(26_300.0), of(24_100.0), of(25_586.0)]).unwrap();
        assert_eq!(middle.to_string(), "25 586/s");
        assert_eq!(middle.range_text().unwrap(), "24 100 to 26 300");
        let once = Figure::middle(&[of(7.0)]).unwrap();
        assert_eq!((once.value, once.range_text()), (7.0, None));
        assert!(Figure::middle(&[]).is_none());
    }

    #[test]
    fn numbers_have_three_digits_and_thousands_apart() {
        for (value, text) in [
            (0.0, "0.00"),
            (1.234, "1.23"),
            (12.34, "12.3"),
            (123.4, "123"),
            (123_456.7, "123 457"),
            (1_234_567.0, "1 234 567"),
            (-1234.0, "-1 234"),
        ] {
            assert_eq!(written(value), text);
        }
    }
}
