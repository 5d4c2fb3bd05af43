//! Query strings: decoded strictly, unknown names refused with the nearest known one.

use std::{ops::RangeInclusive, time::Duration};

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use crate::{
    error::{ErrorCode, Problem},
    model,
};

/// Parameters of one query: far more than any resource has.
const PARAMETERS_MAX: usize = 128;
/// Letters of an unknown name that are compared with the known ones, none of which is so long.
const NAME_CHARS_COMPARED: usize = 64;

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
            return Err(malformed(&unknown("parameter", &name, known)).at(name));
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

/// Reads a duration: `90s`, `1h30m`, `7d`, `1500ms`, a number of seconds, or ISO 8601 (`PT10M`).
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_secs);
    }
    if text.starts_with('P') {
        return Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok();
    }
    model::time::duration(text)
}

/// Refuses every parameter, for resources that have none.
pub(super) async fn refuse_all(request: Request, next: Next) -> Response {
    match parameters(request.uri().query(), &[]) {
        Ok(_) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// What to say of a name that is none of the known ones.
pub(super) fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(nearest) => format!("there is no such {what}; did you mean `{nearest}`?"),
        None if known.is_empty() => format!("there is no such {what}: none is known here"),
        None => format!("there is no such {what}; known are {}", known.join(", ")),
    }
}

/// The known name that is a slip of the fingers away: a letter, and one more for every five.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name: String = name.chars().take(NAME_CHARS_COMPARED).collect();
    let name = name.to_lowercase();
    let distance = |known: &str| strsim::osa_distance(known, &name);
    let likely = |known: &str| distance(known) <= 1 + known.len().max(name.len()) / 5;
    known.iter().copied().filter(|known| likely(known)).min_by_key(|known| distance(known))
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
    fn a_name_is_suggested_for_a_slip_and_not_for_another_word() {
        let known = ["topic", "type", "key", "class", "since", "last_event_id", "state", "ticket"];
        for (name, suggested) in [
            ("topc", Some("topic")),
            ("tpye", Some("type")),
            ("topics", Some("topic")),
            ("last_event", Some("last_event_id")),
            ("lastEventId", Some("last_event_id")),
            ("foo", None),
            ("id", None),
            ("x", None),
            ("", None),
            ("access_token", None),
            ("authorization", None),
            ("follow", None),
            ("ü", None),
        ] {
            assert_eq!(nearest(name, &known), suggested, "{name}");
        }
        let told = unknown("member", "foo", &["a", "b"]);
        assert_eq!(told, "there is no such member; known are a, b");
        assert_eq!(
            unknown("parameter", "a", &[]),
            "there is no such parameter: none is known here"
        );
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let seconds = |text| duration(text).map(|duration| duration.as_secs());
        for (text, want) in [
            ("90", 90),
            ("90s", 90),
            ("10m", 600),
            ("7d", 604_800),
            ("1h30m", 5400),
            ("PT1H", 3600),
        ] {
            assert_eq!(seconds(text), Some(want), "{text}");
        }
        assert_eq!(duration("1500ms"), Some(Duration::from_millis(1500)));
        for bad in
            ["", "x", "-5s", "+5", "5 parsecs", "36 h", "36hours", "1.5h", "1h ago", "P", "p1"]
        {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
