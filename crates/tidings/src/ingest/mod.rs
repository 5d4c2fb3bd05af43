//! Publish bodies become checked events, whoever brought them. Pure: no I/O, no grants.
//!
//! The rule: a mistake is told with the JSON pointer of its field, and spoils its own event alone.

pub(crate) mod cloudevents;
pub(crate) mod properties;
pub(crate) mod text;
pub(crate) mod trace;

use std::{borrow::Cow, fmt, str::Utf8Error};

use bytes::Bytes;
use serde::{Deserialize, Deserializer as _};
use serde_json::value::RawValue;

use crate::{
    error::{ErrorCode, Problem},
    journal::{Dedup, Properties},
    model::{
        Class, Data, EventId, EventType, JsonError, JsonText, NameError, NewEvent, Offset,
        StateKey, Timestamp, Topic,
        event::Attribute,
        json::{Member, Names, Value, mistake, object, objects, pointer_part},
    },
    publish::Publish,
};

/// One `name=value` of a query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) value: String,
}

/// What one request may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Data of one event, bytes.
    pub(crate) event_bytes_max: usize,
    /// Events.
    pub(crate) events_max: usize,
}

/// The events of one request.
#[derive(Debug)]
pub(crate) struct Drafts {
    /// Whether the body was one event by itself, so that its refusal is the request's.
    pub(crate) is_single: bool,
    /// One for each event, in order.
    pub(crate) events: Vec<Result<Draft, Problem>>,
}

/// An event that may be published.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) publish: Publish,
    pub(crate) fields: Fields,
}

/// Which event of a body it is. Its display is the JSON pointer, which only refusals need.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// All of it.
    Whole,
    /// One of the list at this pointer.
    Item { list: &'static str, number: usize },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => Ok(()),
            Self::Item { list, number } => write!(f, "{list}/{number}"),
        }
    }
}

/// Where the fields of an event stand in its request, for refusals that name one.
#[derive(Debug, Clone)]
pub(crate) struct Fields {
    place: Place,
    /// What stands before a field's name in its event: `/`, `ce-`, or nothing in a query.
    prefix: &'static str,
    /// How this form of body spells a field of plain JSON.
    spelled: fn(&'static str) -> &'static str,
    /// Whether the query names the topic, whatever the form of the body.
    topic_in_query: bool,
}

impl Fields {
    pub(crate) const fn new(
        place: Place,
        prefix: &'static str,
        spelled: fn(&'static str) -> &'static str,
    ) -> Self {
        Self { place, prefix, spelled, topic_in_query: false }
    }

    /// The same event, with its topic in the query.
    pub(crate) const fn topic_in_query(mut self, is_there: bool) -> Self {
        self.topic_in_query = is_there;
        self
    }

    /// The JSON pointer, parameter or header of a field, by its name in plain JSON.
    pub(crate) fn at(&self, name: &'static str) -> String {
        match name {
            "topic" if self.topic_in_query => name.to_owned(),
            // Where the body is the data, it has no other name.
            "data" if self.prefix != "/" => "/data".to_owned(),
            name => format!("{}{}{}", self.place, self.prefix, (self.spelled)(name)),
        }
    }
}

/// Members of an event in `application/json` and NDJSON; the last two are in no query.
pub(crate) const MEMBERS: &[&str] = &[
    "topic",
    "type",
    "class",
    "key",
    "id",
    "subject",
    "source",
    "time",
    "expires_at",
    "if_offset",
    "delete",
    "close",
    "data",
    "properties",
];

/// Query parameters of a request whose body is the data.
pub(crate) const PARAMETERS: &[&str] = MEMBERS.split_at(MEMBERS.len() - 2).0;

/// Reads `application/json`: an event, an array of them, or `{"events": […]}`.
pub(crate) fn json(body: &[u8], bounds: Bounds) -> Result<Drafts, Problem> {
    let text = json_text(body, "")?;
    if text.trim_start().starts_with('[') {
        return Ok(Drafts { is_single: false, events: array(text, "", bounds, event_of)? });
    }
    let members = members(text, "")?;
    if let Some(events) = members.iter().find(|member| member.name == "events") {
        if let Some(other) = members.iter().find(|member| member.name != "events") {
            let rule = "stands beside `events`, which must be alone";
            return Err(malformed(rule).at(format!("/{}", pointer_part(&other.name))));
        }
        let events = array(events.value.as_str(), "/events", bounds, event_of)?;
        return Ok(Drafts { is_single: false, events });
    }
    Ok(Drafts { is_single: true, events: vec![event_of(members, Place::Whole, bounds)] })
}

/// Reads `application/cloudevents-batch+json` (CloudEvents JSON format §4).
/// The topic of the query is that of events which name none.
pub(crate) fn cloudevents_batch(
    body: &[u8],
    bounds: Bounds,
    topic: Option<&Topic>,
) -> Result<Drafts, Problem> {
    let event = |members: Members<'_>, place, bounds| {
        cloudevents::structured_of(members, place, bounds, topic.cloned().into())
    };
    let events = array(json_text(body, "")?, "", bounds, event)?;
    Ok(Drafts { is_single: false, events })
}

/// Reads one line of NDJSON.
pub(crate) fn line(line: &[u8], bounds: Bounds) -> Result<Draft, Problem> {
    event_of(members(json_text(line, "")?, "")?, Place::Whole, bounds)
}

/// Reads a body that is the data itself, the rest being in the query.
pub(crate) fn raw(
    parameters: Vec<Parameter>,
    content_type: Option<&str>,
    body: Bytes,
    bounds: Bounds,
) -> Result<Draft, Problem> {
    let mut draft = DraftParts::default();
    for Parameter { name, value } in parameters {
        // What is text in JSON is text here; numbers and booleans are written as in JSON.
        let json = match &*name {
            "if_offset" | "delete" | "close" => value,
            _ => JsonText::string(&value).as_str().to_owned(),
        };
        draft.member(&name, &Value::Unread(&json), &name, bounds)?;
    }
    draft.data = data(content_type, body, bounds)?;
    draft.finish(Fields::new(Place::Whole, "", |name| name))
}

/// A body as data: JSON, text, or bytes, by its media type.
pub(crate) fn data(
    content_type: Option<&str>,
    body: Bytes,
    bounds: Bounds,
) -> Result<Data, Problem> {
    if body.is_empty() {
        return Ok(Data::None);
    }
    // What curl says of any `-d`; a form is text too.
    let content_type = content_type.unwrap_or("text/plain");
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let content_type = media_type(content_type, "Content-Type")?;
    let data = if essence == "application/json" || essence.ends_with("+json") {
        let text = json_text(&body, "/data")?;
        Data::Json(JsonText::parse(text).map_err(|error| body_problem(text, &error, "/data"))?)
    } else if essence.starts_with("text/") || essence == "application/x-www-form-urlencoded" {
        let text = std::str::from_utf8(&body).map_err(|error| not_utf8(&error).at("/data"))?;
        Data::Json(JsonText::string(text))
    } else {
        Data::Binary { content_type, bytes: body }
    };
    fits(&data, "/data", bounds)?;
    Ok(data)
}

/// Reads a media type: type and subtype are tokens (RFC 9110 §8.3.1), and parameters are anything.
pub(crate) fn media_type(text: &str, at: &str) -> Result<Attribute, Problem> {
    let is_token = |text: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !text.is_empty() && text.bytes().all(allowed)
    };
    let essence = text.split(';').next().unwrap_or_default().trim();
    if !essence.split_once('/').is_some_and(|(kind, sub)| is_token(kind) && is_token(sub)) {
        return Err(malformed("must be a media type, like image/png").at(at));
    }
    Attribute::parse(text).map_err(|error| Problem::from(error).at(at))
}

/// The fields of an event, while they are read.
#[derive(Default)]
pub(crate) struct DraftParts {
    pub(crate) topic: Option<Topic>,
    pub(crate) event_type: Option<EventType>,
    pub(crate) class: Option<Class>,
    pub(crate) key: Option<StateKey>,
    pub(crate) data: Data,
    pub(crate) id: Option<EventId>,
    pub(crate) subject: Option<Attribute>,
    pub(crate) source: Option<Attribute>,
    pub(crate) time: Option<Timestamp>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) if_offset: Option<Offset>,
    pub(crate) delete: bool,
    pub(crate) close: bool,
    pub(crate) properties: Option<Box<Properties>>,
    pub(crate) extensions: Vec<(Box<str>, JsonText)>,
}

impl DraftParts {
    /// Takes one member; `at` is its JSON pointer or parameter name.
    pub(crate) fn member(
        &mut self,
        name: &str,
        value: &Value<'_>,
        at: &str,
        bounds: Bounds,
    ) -> Result<(), Problem> {
        let json = value.as_str();
        if json == "null" && name != "data" {
            return Ok(());
        }
        match name {
            "topic" => self.topic = Some(named(json, at, Topic::parse)?),
            "type" => self.event_type = Some(named(json, at, EventType::parse)?),
            "class" => {
                let class = Class::parse(&text(json, at)?);
                let rule = "must be log, state or ephemeral";
                self.class = Some(class.ok_or_else(|| malformed(rule).at(at))?);
            }
            "key" => self.key = Some(named(json, at, StateKey::parse)?),
            "data" => {
                self.data = Data::Json(strict(value, at)?);
                fits(&self.data, at, bounds)?;
            }
            "id" => self.id = Some(named(json, at, EventId::parse)?),
            "subject" => self.subject = Some(named(json, at, Attribute::parse)?),
            "source" => self.source = Some(named(json, at, Attribute::parse)?),
            "time" => self.time = Some(time(json, at)?),
            "expires_at" => self.expires_at = Some(time(json, at)?),
            "if_offset" => {
                self.if_offset = Some(Offset(read(json, at, "must be an offset, 0 or above")?));
            }
            "delete" => self.delete = read(json, at, "must be true or false")?,
            "close" => self.close = read(json, at, "must be true or false")?,
            "properties" => {
                let read = properties::parse(&strict(value, at)?, at)?;
                if read.closed.is_some() {
                    let detail = "use `close` on the event to close its topic";
                    return Err(malformed(detail).at(format!("{at}/closed")));
                }
                self.properties = Some(Box::new(read.properties));
            }
            _ => return Err(malformed(&text::unknown("member", name, MEMBERS)).at(at)),
        }
        Ok(())
    }

    /// Checks that the fields fit together.
    pub(crate) fn finish(self, fields: Fields) -> Result<Draft, Problem> {
        let missing = |name| {
            malformed(&format!("`{}` is missing", (fields.spelled)(name))).at(fields.at(name))
        };
        let clash = |name, rule: &str| Err(malformed(rule).at(fields.at(name)));
        let topic = self.topic.ok_or_else(|| missing("topic"))?;
        let event_type = self.event_type.ok_or_else(|| missing("type"))?;
        let class = self.class.unwrap_or_default();
        if class == Class::State {
            if self.key.is_none() {
                return Err(missing("key"));
            }
            if self.delete && !matches!(self.data, Data::None) {
                return clash("data", "a deletion has no data");
            }
        } else {
            let only = "is for class state only";
            if self.key.is_some() {
                return clash("key", only);
            }
            if self.if_offset.is_some() {
                return clash("if_offset", only);
            }
            if self.expires_at.is_some() {
                return clash("expires_at", only);
            }
            if self.delete {
                return clash("delete", only);
            }
        }
        if class == Class::Ephemeral && (self.close || self.properties.is_some()) {
            return clash("class", "an ephemeral event cannot create or close its topic");
        }
        let dedup = if self.id.is_some() { Dedup::ById } else { Dedup::Minted };
        let event = NewEvent {
            id: self.id.unwrap_or_else(EventId::mint),
            event_type,
            class,
            key: self.key,
            source: self.source,
            subject: self.subject,
            time: self.time,
            data: self.data,
            extensions: self.extensions,
            expires_at: self.expires_at,
            due_at: None,
            delete: self.delete,
        };
        let (if_offset, properties, close) = (self.if_offset, self.properties, self.close);
        let publish = Publish { if_offset, dedup, properties, close, ..Publish::new(topic, event) };
        Ok(Draft { publish, fields })
    }
}

fn event_of(members: Members<'_>, place: Place, bounds: Bounds) -> Result<Draft, Problem> {
    let mut draft = DraftParts::default();
    let mut at = String::new();
    for Member { name, value } in members {
        at.clear();
        at.push('/');
        at.push_str(&pointer_part(&name));
        draft.member(&name, &value, &at, bounds).map_err(|problem| problem.within(place))?;
    }
    draft.finish(Fields::new(place, "/", |name| name))
}

fn array(
    text: &str,
    list: &'static str,
    bounds: Bounds,
    event: impl Fn(Members<'_>, Place, Bounds) -> Result<Draft, Problem>,
) -> Result<Vec<Result<Draft, Problem>>, Problem> {
    let place = |number| Place::Item { list, number };
    if let Some(items) = objects(text, bounds.events_max) {
        let one = |(number, members)| event(members, place(number), bounds);
        return Ok(items.into_iter().enumerate().map(one).collect());
    }
    let wrong = |_| not_read(text, list, "must be an array of events");
    let items: Vec<&RawValue> = serde_json::from_str(text).map_err(wrong)?;
    if items.len() > bounds.events_max {
        let detail = format!("holds {} events, more than {}", items.len(), bounds.events_max);
        return Err(Problem::new(ErrorCode::TooLarge, detail).at(list));
    }
    if items.is_empty() {
        return Err(malformed("holds no event").at(list));
    }
    let one = |(number, item): (usize, &&RawValue)| {
        let place = place(number);
        event(members(item.get(), &place.to_string())?, place, bounds)
    };
    Ok(items.iter().enumerate().map(one).collect())
}

/// A JSON string; copied only if it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The members of an event, each once.
pub(crate) type Members<'a> = Vec<Member<'a>>;

/// Reads the members of a JSON object. What is wrong within a value is told when it is read.
pub(crate) fn members<'a>(text: &'a str, at: &str) -> Result<Members<'a>, Problem> {
    object(text).map_or_else(|| unread_members(text, at), Ok)
}

/// The same, their values unread.
fn unread_members<'a>(text: &'a str, at: &str) -> Result<Members<'a>, Problem> {
    struct Visitor;

    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Members<'de>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            mut map: A,
        ) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((Text(name), value)) = map.next_entry::<_, &RawValue>()? {
                members.push(Member { name, value: Value::Unread(value.get()) });
            }
            Ok(members)
        }
    }

    let mut reader = serde_json::Deserializer::from_str(text);
    let wrong = |_| not_read(text, at, "must be a JSON object");
    let members = reader.deserialize_map(Visitor).map_err(wrong)?;
    reader.end().map_err(wrong)?;
    let mut seen = Names::default();
    for Member { name, .. } in &members {
        if !seen.insert(name.clone()) {
            let detail = "this member is there twice";
            return Err(malformed(detail).at(format!("{at}/{}", pointer_part(name))));
        }
    }
    Ok(members)
}

pub(crate) fn malformed(detail: &str) -> Problem {
    Problem::new(ErrorCode::Malformed, detail)
}

pub(crate) fn read<'a, T: Deserialize<'a>>(
    json: &'a str,
    at: &str,
    rule: &str,
) -> Result<T, Problem> {
    serde_json::from_str(json).map_err(|_| not_read(json, at, rule))
}

pub(crate) fn named<T>(
    json: &str,
    at: &str,
    parse: fn(&str) -> Result<T, NameError>,
) -> Result<T, Problem> {
    let text = text(json, at)?;
    parse(&text).map_err(|error| Problem::from(error).at(at))
}

/// What a JSON string means.
fn text<'a>(json: &'a str, at: &str) -> Result<Cow<'a, str>, Problem> {
    // It is JSON: without escapes, it means what stands between its quotes.
    let quoted = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    if let Some(plain) = quoted.filter(|text| !text.contains('\\')) {
        return Ok(plain.into());
    }
    let Text(text) = read(json, at, "must be a string")?;
    Ok(text)
}

pub(crate) fn time(json: &str, at: &str) -> Result<Timestamp, Problem> {
    let text = text(json, at)?;
    Timestamp::parse(&text).ok_or_else(|| malformed(Timestamp::RULE).at(at))
}

pub(crate) fn fits(data: &Data, at: &str, bounds: Bounds) -> Result<(), Problem> {
    if data.len() <= bounds.event_bytes_max {
        return Ok(());
    }
    let detail = format!("is {} bytes, more than {}", data.len(), bounds.event_bytes_max);
    Err(Problem::new(ErrorCode::TooLarge, detail).at(at))
}

/// What is not strict within a value of the body: its pointer says where.
fn json_problem(error: &JsonError, at: &str) -> Problem {
    malformed(error.reason).at(format!("{at}{}", error.pointer))
}

/// The same for a whole body, which may be anything: its byte and line are told too.
fn body_problem(body: &str, error: &JsonError, at: &str) -> Problem {
    let mut problem = json_problem(error, at);
    problem.detail = format!("{} at byte {}", error.reason, error.at);
    if body.contains('\n') {
        let before = body.bytes().take(error.at).filter(|byte| *byte == b'\n').count();
        problem.detail.push_str(&format!(", in line {}", before + 1));
    }
    problem
}

/// A text, or all of a body if `at` is empty, as strict JSON.
pub(crate) fn strict_text(text: &str, at: &str) -> Result<JsonText, Problem> {
    strict(&Value::Unread(text), at)
}

/// The same of a value that may be known to be strict.
pub(crate) fn strict(value: &Value<'_>, at: &str) -> Result<JsonText, Problem> {
    value.strict().map_err(|error| match at {
        "" => body_problem(value.as_str(), &error, at),
        at => json_problem(&error, at),
    })
}

/// Why a reader refused a text: it is not JSON, or it is and not what it `must` be.
fn not_read(text: &str, at: &str, must: &str) -> Problem {
    match mistake(text) {
        Some(error) if at.is_empty() => body_problem(text, &error, at),
        Some(error) if at.starts_with('/') => json_problem(&error, at),
        // Parameters and headers are not JSON to who writes them.
        _ => malformed(must).at(at),
    }
}

/// A body as text that may be JSON.
pub(crate) fn json_text<'a>(body: &'a [u8], at: &str) -> Result<&'a str, Problem> {
    std::str::from_utf8(body).map_err(|error| {
        let sound = body.get(..error.valid_up_to()).unwrap_or_default();
        let sound = std::str::from_utf8(sound).unwrap_or_default();
        // What is JSON up to there ends in the value that holds the byte.
        let cut = mistake(sound).filter(|cut| cut.at == sound.len());
        not_utf8(&error).at(format!("{at}{}", cut.map(|cut| cut.pointer).unwrap_or_default()))
    })
}

fn not_utf8(error: &Utf8Error) -> Problem {
    malformed(&format!("is not UTF-8 at byte {}", error.valid_up_to()))
}

#[cfg(test)]
mod tests;
