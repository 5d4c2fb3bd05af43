//! What is said about a metric besides its value: name, type, unit, labels and meaning.
//!
//! The rule: `docs/metrics.md` is what this writes, and a test holds that no label has a value that
//! does not stand there.

use prometheus_client::{metrics::MetricType, registry::Unit};

use super::{ErrorCode, PREFIX};

/// A label and the values that it may have.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Values.
    pub listed: &'static [&'static str],
    /// Values that stand in another list.
    pub further: Option<Values>,
}

/// A list of values that is kept elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// The codes of problems.
    Codes,
    /// The routes of the HTTP interface.
    Routes,
    /// The names of the limits in the configuration.
    Limits,
    /// The version of the program.
    Version,
}

impl Label {
    pub(super) const fn listed(name: &'static str, listed: &'static [&'static str]) -> Self {
        Self { name, listed, further: None }
    }

    /// Whether it may have this value.
    #[must_use]
    pub fn may_be(&self, value: &str) -> bool {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit();
        self.listed.contains(&value)
            || match self.further {
                Some(Values::Codes) => ErrorCode::ALL.iter().any(|code| code.as_str() == value),
                Some(Values::Routes) => value.starts_with('/') && !value.contains('*'),
                Some(Values::Limits) => value.bytes().all(is_name),
                Some(Values::Version) => value == env!("CARGO_PKG_VERSION"),
                None => false,
            }
    }

    /// Its name and values, as a cell of a table.
    #[must_use]
    pub fn describe(&self) -> String {
        let listed = self.listed.iter().map(|value| format!("`{value}`"));
        let further = self.further.map(|values| match values {
            Values::Codes => "a problem's code",
            Values::Routes => "a route as [protocol.md](protocol.md) writes it",
            Values::Limits => "a limit's name",
            Values::Version => "the version",
        });
        let values: Vec<String> = listed.chain(further.map(str::to_owned)).collect();
        format!("`{}`: {}", self.name, values.join(", "))
    }
}

/// A metric in the reference.
#[derive(Debug, Clone)]
pub struct MetricInfo {
    /// As it is written out, with its unit and the suffix of its type.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    /// Its unit; none for plain numbers.
    pub unit: Option<String>,
    /// Its labels.
    pub labels: &'static [Label],
    /// What it counts.
    pub meaning: String,
}

impl MetricInfo {
    pub(super) fn new(
        name: &str,
        kind: MetricType,
        unit: Option<Unit>,
        labels: &'static [Label],
        doc: &str,
    ) -> Self {
        let unit = unit.map(|unit| unit.as_str().to_owned());
        let (kind, suffix) = match kind {
            MetricType::Counter => ("counter", "_total"),
            MetricType::Gauge => ("gauge", ""),
            MetricType::Histogram => ("histogram", ""),
            MetricType::Info => ("info", "_info"),
            _ => ("unknown", ""),
        };
        let of_unit = unit.as_ref().map(|unit| format!("_{unit}")).unwrap_or_default();
        let name = format!("{PREFIX}_{name}{of_unit}{suffix}");
        Self { name, kind, unit, labels, meaning: format!("{}.", sentence(doc)) }
    }
}

/// A doc comment on one line, without its full stop: the registry writes one.
pub(super) fn sentence(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches('.').to_owned()
}
