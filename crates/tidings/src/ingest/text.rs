//! Text that people write: names with slips, durations, percent-encoding.

use std::time::Duration;

use crate::model;

/// Letters of an unknown name that are compared with the known ones, none of which is so long.
const NAME_CHARS_COMPARED: usize = 64;

/// Reads a duration: `90s`, `1h30m`, `7d`, `1500ms`, a number of seconds, or ISO 8601 (`PT10M`).
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_secs);
    }
    if text.starts_with('P') {
        return Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok();
    }
    model::time::duration(text)
}

/// What to say of a name that is none of the known ones.
pub(crate) fn unknown(what: &str, name: &str, known: &[&str]) -> String {
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

/// Undoes percent-encoding; `None` if it is not UTF-8 or a `%` is not followed by two hex digits.
pub(crate) fn decode(text: &str) -> Option<String> {
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
