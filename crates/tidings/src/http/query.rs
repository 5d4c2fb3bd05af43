//! Query strings: decoded strictly, unknown names refused with the nearest known one.

use std::{ops::RangeInclusive, time::Duration};

use crate::error::{ErrorCode, Problem};

/// Parameters of one query: far more than any resource has.
const PARAMETERS_MAX: usize = 128;

/// One `name=value` of a query.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) value: String,
}

/// Reads a query of `application/x-www-form-urlencoded` (WHATWG URL §5.1), names as known and each
/// at most once.
pub(super) fn parameters(query: Option<&str>, known: &[&str]) -> Result<Vec<Parameter>, Problem> {
    repeatable(query, known, &[])
}

/// The same for a query in which the parameters `many` may be repeated.
pub(super) fn repeatable(
    query: Option<&str>,
    known: &[&str],
    many: &[&str],
) -> Result<Vec<Parameter>, Problem> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let mut parameters: Vec<Parameter> = Vec::new();
    for pair in pairs {
        if parameters.len() == PARAMETERS_MAX {
            return Err(malformed("the query has more than 128 parameters"));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name =
            decode(name).ok_or_else(|| malformed("the query is not percent-encoded UTF-8"))?;
        if !known.contains(&&*name) {
            let nearest = known.iter().min_by_key(|known| distance(known, &name));
            let detail = match nearest {
                Some(nearest) => format!("there is no such parameter; did you mean `{nearest}`?"),
                None => "this resource has no parameters".to_owned(),
            };
            return Err(malformed(&detail).at(name));
        }
        if !many.contains(&&*name) && parameters.iter().any(|other| other.name == name) {
            return Err(malformed("this parameter is there twice").at(name));
        }
        let value = decode(value)
            .ok_or_else(|| malformed("the value is not percent-encoded UTF-8").at(name.clone()))?;
        parameters.push(Parameter { name, value });
    }
    Ok(parameters)
}

/// A parameter that must be there is not.
pub(super) fn missing(name: &str) -> Problem {
    malformed(&format!("the parameter `{name}` is missing")).at(name)
}

/// Reads a number within a range.
pub(super) fn number(
    name: &str,
    value: &str,
    range: RangeInclusive<usize>,
) -> Result<usize, Problem> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        let detail = format!("must be a number from {} to {}", range.start(), range.end());
        malformed(&detail).at(name)
    })
}

/// Reads a duration: `90s`, `10m`, `36h`, `7d`, `1500ms`, a number of seconds, or ISO 8601 (`PT10M`).
pub(super) fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let span: jiff::SignedDuration = text.parse().ok().or_else(|| {
        // Days are 24 hours here: retention and replay know no calendars.
        let days: i64 = text.strip_suffix('d')?.parse().ok()?;
        Some(jiff::SignedDuration::from_hours(days.checked_mul(24)?))
    })?;
    Duration::try_from(span).ok()
}

fn malformed(detail: &str) -> Problem {
    Problem::new(ErrorCode::Malformed, detail)
}

/// Undoes percent-encoding; `None` if it is not UTF-8 or a `%` is not followed by two hex digits.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

/// How many letters must change to make one name the other (Levenshtein), cut off at long names.
fn distance(known: &str, name: &str) -> usize {
    let name: Vec<char> = name.chars().take(32).collect();
    let mut row: Vec<usize> = (0..=name.len()).collect();
    for (above, letter) in known.chars().enumerate() {
        let mut diagonal = above;
        let mut left = above + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (other, cell) in name.iter().zip(row.iter_mut().skip(1)) {
            let change = diagonal + usize::from(letter != *other);
            diagonal = *cell;
            left = change.min(*cell + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_strictly() {
        let read =
            repeatable(Some("topic=a%2Fb&topic=c+d&x="), &["topic", "x"], &["topic"]).unwrap();
        let pairs: Vec<_> = read.iter().map(|p| (&*p.name, &*p.value)).collect();
        assert_eq!(pairs, [("topic", "a/b"), ("topic", "c d"), ("x", "")]);
        for bad in ["topic=%", "topic=%2", "topic=%zz", "topic=%ff", "%ff=1"] {
            assert!(parameters(Some(bad), &["topic"]).is_err(), "{bad}");
        }
        let problem = parameters(Some("topic=a&topic=b"), &["topic"]).unwrap_err();
        assert_eq!(problem.pointer.as_deref(), Some("topic"));
        let problem = parameters(Some("topc=a"), &["since", "topic"]).unwrap_err();
        assert_eq!(problem.pointer.as_deref(), Some("topc"));
        assert_eq!(problem.detail, "there is no such parameter; did you mean `topic`?");
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let seconds = |text| duration(text).map(|duration| duration.as_secs());
        for (text, want) in [("90", 90), ("90s", 90), ("10m", 600), ("7d", 604_800), ("PT1H", 3600)]
        {
            assert_eq!(seconds(text), Some(want), "{text}");
        }
        assert_eq!(duration("1500ms"), Some(Duration::from_millis(1500)));
        for bad in ["", "x", "-5s", "5 parsecs"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
