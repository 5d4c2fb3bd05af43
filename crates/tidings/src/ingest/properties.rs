//! A topic's properties as JSON: in `PUT /v1/topics/{topic}` and inline on a first publish.

use serde_json::Value;

use super::text::{duration, unknown};
use crate::{
    error::{ErrorCode, Problem},
    journal::{Properties, Retention},
    model::{JsonText, json::pointer_part},
};

/// Members of a topic's properties, and of its retention.
const MEMBERS: &[&str] = &["owner", "readers", "ttl", "retention", "closed"];
const BOUNDS: &[&str] = &["age", "events", "bytes"];

/// Subjects that may be named as readers.
const READERS_MAX: usize = 100;
/// Bytes of a subject: as tokens may have them.
const SUBJECT_BYTES_MAX: usize = 256;

/// What a body with properties says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PropertiesText {
    pub(crate) properties: Properties,
    /// Whether the topic is to be closed.
    pub(crate) closed: Option<bool>,
}

/// Reads `{"owner", "readers", "ttl", "retention": {"age", "events", "bytes"}, "closed"}`, each
/// optional. `at` is the JSON pointer of the object.
pub(crate) fn parse(json: &JsonText, at: &str) -> Result<PropertiesText, Problem> {
    let value: Value = serde_json::from_str(json.as_str())
        .map_err(|_| wrong(at, "holds a number that is out of range"))?;
    let Value::Object(members) = value else { return Err(wrong(at, "must be an object")) };
    let mut properties = Properties::default();
    let mut closed = None;
    for (name, value) in &members {
        let at = format!("{at}/{}", pointer_part(name));
        if value.is_null() {
            continue;
        }
        match &**name {
            "owner" => properties.owner = Some(subject(value, &at)?),
            "readers" => properties.readers = subjects(value, &at)?,
            "ttl" => properties.ttl = Some(time(value, &at)?),
            "retention" => properties.retention = Some(retention(value, &at)?),
            "closed" => {
                closed = Some(value.as_bool().ok_or_else(|| wrong(&at, "must be true or false"))?);
            }
            _ => return Err(wrong(&at, &unknown("property", name, MEMBERS))),
        }
    }
    Ok(PropertiesText { properties, closed })
}

fn wrong(at: &str, rule: &str) -> Problem {
    Problem::new(ErrorCode::Malformed, rule).at(at)
}

fn subject(value: &Value, at: &str) -> Result<String, Problem> {
    let fits = |text: &&str| {
        (1..=SUBJECT_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
    };
    let text = value.as_str().filter(fits);
    let rule = "must be a subject: 1 to 256 bytes without control characters";
    text.map(str::to_owned).ok_or_else(|| wrong(at, rule))
}

fn subjects(value: &Value, at: &str) -> Result<Vec<String>, Problem> {
    let list = value.as_array().ok_or_else(|| wrong(at, "must be a list of subjects"))?;
    if list.len() > READERS_MAX {
        let detail = format!("holds {} subjects, more than {READERS_MAX}", list.len());
        return Err(Problem::new(ErrorCode::TooLarge, detail).at(at));
    }
    list.iter().enumerate().map(|(n, value)| subject(value, &format!("{at}/{n}"))).collect()
}

fn time(value: &Value, at: &str) -> Result<std::time::Duration, Problem> {
    let time = match value {
        Value::Number(number) => number.as_u64().map(std::time::Duration::from_secs),
        Value::String(text) => duration(text),
        _ => None,
    };
    let rule = "must be seconds or a duration like \"36h\" or \"7d\", above zero";
    time.filter(|time| !time.is_zero()).ok_or_else(|| wrong(at, rule))
}

fn retention(value: &Value, at: &str) -> Result<Retention, Problem> {
    let members = value.as_object().ok_or_else(|| wrong(at, "must be an object"))?;
    let mut retention = Retention::UNLIMITED;
    for (name, value) in members {
        let at = format!("{at}/{}", pointer_part(name));
        if value.is_null() {
            continue;
        }
        // In the configuration 0 is no bound; here it would be all of a topic, taken at once.
        let rule = "must be a whole number above zero; without it there is no bound";
        let count = || value.as_u64().filter(|count| *count > 0).ok_or_else(|| wrong(&at, rule));
        match &**name {
            "age" => retention.age = Some(time(value, &at)?),
            "events" => retention.events = Some(count()?),
            "bytes" => retention.bytes = Some(count()?),
            _ => return Err(wrong(&at, &unknown("bound", name, BOUNDS))),
        }
    }
    Ok(retention)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ingest::strict_text;

    #[test]
    fn properties_are_read_and_mistakes_are_pointed_at() {
        let text =
            r#"{"owner":"u1","readers":["u2"],"ttl":"36h","retention":{"events":5},"closed":true}"#;
        let read = parse(&strict_text(text, "").unwrap(), "").unwrap();
        assert_eq!(read.closed, Some(true));
        assert_eq!(read.properties.ttl, Some(Duration::from_secs(36 * 3600)));
        assert_eq!(read.properties.retention.unwrap().events, Some(5));
        for (text, pointer) in [
            ("[]", ""),
            (r#"{"owner":1}"#, "/owner"),
            (r#"{"readers":["a",""]}"#, "/readers/1"),
            (r#"{"ttl":"soon"}"#, "/ttl"),
            (r#"{"ttl":0}"#, "/ttl"),
            (r#"{"retention":{"evnts":1}}"#, "/retention/evnts"),
            (r#"{"retention":{"events":0}}"#, "/retention/events"),
            (r#"{"retention":{"bytes":0}}"#, "/retention/bytes"),
            (r#"{"x":1}"#, "/x"),
        ] {
            let read = strict_text(text, "/p").and_then(|json| parse(&json, "/p"));
            let problem = read.unwrap_err();
            assert_eq!(problem.pointer.as_deref(), Some(&*format!("/p{pointer}")), "{text}");
        }
    }
}
