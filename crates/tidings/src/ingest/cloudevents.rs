//! CloudEvents 1.0 as publish bodies: structured JSON and binary mode.
//!
//! Topic, class, key and expiry travel as the extensions `topic`, `class`, `key`, `expirytime`,
//! `ifoffset` and `deleted`; other extensions are kept and delivered.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{HeaderMap, header};

use super::{
    Bounds, Draft, DraftParts, Fields, Members, Place, data, fits, malformed, media_type, members,
    read, strict,
};
use crate::{
    error::Problem,
    model::{
        Class, Data, JsonText, StateKey, Topic,
        event::Attribute,
        json::{Member, Value, pointer_part},
        limits::{ATTRIBUTE_BYTES_MAX, EXTENSIONS_MAX},
    },
};

/// What headers with attributes begin with, in binary mode.
const PREFIX: &str = "ce-";
/// Names that this hub writes itself, and that an event must not bring.
const OWN: &[&str] = &["position", "cursor"];

/// What is said of an event outside of it.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// Its topic: the event must not name another.
    pub(crate) topic: Option<Topic>,
    /// Its class, if it names none.
    pub(crate) class: Option<Class>,
    /// Its key, if it names neither that nor a class.
    pub(crate) key: Option<StateKey>,
}

impl From<Option<Topic>> for Given {
    fn from(topic: Option<Topic>) -> Self {
        Self { topic, ..Self::default() }
    }
}

/// Reads an event in structured mode (CloudEvents JSON format §3).
pub(crate) fn structured(text: &str, bounds: Bounds, given: Given) -> Result<Draft, Problem> {
    structured_of(members(text, "")?, Place::Whole, bounds, given)
}

/// The same of its members.
pub(super) fn structured_of(
    members: Members<'_>,
    place: Place,
    bounds: Bounds,
    given: Given,
) -> Result<Draft, Problem> {
    let fields = Fields::new(place, "/", spelled);
    let mut draft = DraftParts::default();
    let mut content_type = None;
    let mut version = None;
    let mut encoded = None;
    for Member { name, value } in members {
        let at = format!("{place}/{}", pointer_part(&name));
        let json = value.as_str();
        match &*name {
            "specversion" => version = Some(read::<String>(json, &at, "must be a string")?),
            "datacontenttype" if json != "null" => {
                let text: String = read(json, &at, "must be a string")?;
                content_type = Some(media_type(&text, &at)?);
            }
            "data_base64" if json != "null" => {
                let text: String = read(json, &at, "must be a string")?;
                let bytes = BASE64.decode(text);
                encoded =
                    Some(bytes.map_err(|_| malformed("must be base64 (RFC 4648 §4)").at(at))?);
            }
            _ => attribute(&mut draft, &name, &value, &at, bounds)?,
        }
    }
    let fields = named_once(&mut draft, given.topic, fields)?;
    if draft.class.is_none() {
        draft.class = given.class;
        draft.key = draft.key.or(given.key);
    }
    required(&draft, version.as_deref(), &fields)?;
    match (encoded, content_type) {
        (Some(_), _) if draft.data != Data::None => {
            return Err(malformed("has both data and data_base64").at(format!("{place}/data")));
        }
        (Some(bytes), content_type) => {
            let octets = || Attribute::parse("application/octet-stream");
            let content_type = content_type.map_or_else(octets, Ok)?;
            draft.data = Data::Binary { content_type, bytes: bytes.into() };
            fits(&draft.data, &format!("{place}/data_base64"), bounds)?;
        }
        (None, Some(content_type)) if content_type.as_str() != "application/json" => {
            let value = JsonText::string(content_type.as_str());
            extension(&mut draft, "datacontenttype", value, &place.to_string())?;
        }
        (None, _) => {}
    }
    draft.finish(fields)
}

/// Whether the request carries an event in binary mode.
pub(crate) fn is_binary(headers: &HeaderMap) -> bool {
    headers.contains_key("ce-specversion")
}

/// Reads an event in binary mode: attributes in `ce-` headers, the body its data (CloudEvents HTTP
/// binding §3.1).
pub(crate) fn binary(
    headers: &HeaderMap,
    body: Bytes,
    bounds: Bounds,
    topic: Option<Topic>,
) -> Result<Draft, Problem> {
    let mut draft = DraftParts::default();
    let mut version = None;
    for (name, value) in headers {
        let Some(attribute_name) = name.as_str().strip_prefix(PREFIX) else { continue };
        if headers.get_all(name).iter().nth(1).is_some() {
            return Err(malformed("this header is there twice").at(name.as_str()));
        }
        let text = value.to_str().ok().and_then(percent_decode);
        let text = text.ok_or_else(|| {
            malformed("must be ASCII with percent-encoded UTF-8").at(name.as_str())
        })?;
        match attribute_name {
            "specversion" => version = Some(text),
            // The body is the data, and `Content-Type` its type (HTTP binding §3.1.1).
            "data" | "datacontenttype" => {
                return Err(malformed("is not an attribute in binary mode").at(name.as_str()));
            }
            "ifoffset" | "deleted" | "close" => {
                attribute(
                    &mut draft,
                    attribute_name,
                    &Value::Unread(&text),
                    name.as_str(),
                    bounds,
                )?;
            }
            _ => {
                let json = JsonText::string(&text);
                attribute(
                    &mut draft,
                    attribute_name,
                    &Value::Unread(json.as_str()),
                    name.as_str(),
                    bounds,
                )?;
            }
        }
    }
    let fields = named_once(&mut draft, topic, Fields::new(Place::Whole, PREFIX, spelled))?;
    required(&draft, version.as_deref(), &fields)?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    draft.data = data(content_type, body, bounds)?;
    draft.finish(fields)
}

/// Takes the topic that was given beside the event: it must not name another.
fn named_once(
    draft: &mut DraftParts,
    given: Option<Topic>,
    fields: Fields,
) -> Result<Fields, Problem> {
    let Some(topic) = given else { return Ok(fields) };
    if draft.topic.as_ref().is_some_and(|named| *named != topic) {
        return Err(malformed("is another topic than the one that was given beside it")
            .at(fields.at("topic")));
    }
    draft.topic = Some(topic);
    Ok(fields.topic_in_query(true))
}

/// CloudEvents' spelling of a field that has another name in plain JSON.
fn spelled(name: &'static str) -> &'static str {
    match name {
        "expires_at" => "expirytime",
        "if_offset" => "ifoffset",
        "delete" => "deleted",
        name => name,
    }
}

fn required(draft: &DraftParts, version: Option<&str>, fields: &Fields) -> Result<(), Problem> {
    if version != Some("1.0") {
        return Err(malformed("must be \"1.0\"").at(fields.at("specversion")));
    }
    for (name, is_there) in [("id", draft.id.is_some()), ("source", draft.source.is_some())] {
        if !is_there {
            let detail = format!("`{name}` is missing");
            return Err(malformed(&detail).at(fields.at(name)));
        }
    }
    Ok(())
}

fn attribute(
    draft: &mut DraftParts,
    name: &str,
    value: &Value<'_>,
    at: &str,
    bounds: Bounds,
) -> Result<(), Problem> {
    let json = value.as_str();
    match name {
        "id" | "source" | "type" | "subject" | "time" | "data" | "topic" | "class" | "key"
        | "close" => draft.member(name, value, at, bounds),
        "expirytime" => draft.member("expires_at", value, at, bounds),
        "ifoffset" => draft.member("if_offset", value, at, bounds),
        "deleted" => draft.member("delete", value, at, bounds),
        _ if json == "null" => Ok(()),
        _ => {
            let value = strict(value, at)?;
            if json.starts_with(['{', '[']) {
                return Err(malformed("must be a string, number or boolean").at(at));
            }
            extension(draft, name, value, at)
        }
    }
}

fn extension(draft: &mut DraftParts, name: &str, value: JsonText, at: &str) -> Result<(), Problem> {
    let is_name = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !is_name {
        let rule = format!(
            "extensions are named by 1 to 64 lower-case letters and digits, this name has {} bytes",
            name.len()
        );
        return Err(malformed(&rule).at(at));
    }
    if OWN.contains(&name) {
        return Err(malformed("this name is the hub's own").at(at));
    }
    if value.as_str().len() > ATTRIBUTE_BYTES_MAX {
        let bytes = value.as_str().len();
        let rule = format!("must be at most {ATTRIBUTE_BYTES_MAX} bytes as JSON, is {bytes}");
        return Err(malformed(&rule).at(at));
    }
    if draft.extensions.len() == EXTENSIONS_MAX {
        let rule = format!("there are more than {EXTENSIONS_MAX} extensions");
        return Err(malformed(&rule).at(at));
    }
    draft.extensions.push((name.into(), value));
    Ok(())
}

/// Undoes the percent-encoding of header values (HTTP binding §3.1.3.2); `+` is itself.
fn percent_decode(text: &str) -> Option<String> {
    super::text::decode(&text.replace('+', "%2B"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { event_bytes_max: 1000, events_max: 3 };

    #[test]
    fn a_structured_event_keeps_its_attributes() {
        let text = r#"{"specversion":"1.0","id":"1","source":"/w","type":"a.b","topic":"user/1",
            "class":"state","key":"k","traceparent":"00-1","n":7,"dataschema":"http://x",
            "datacontenttype":"text/plain","data":"x","expirytime":"2027-01-01T00:00:00Z"}"#;
        let draft = structured(text, BOUNDS, Given::default()).unwrap().publish;
        assert_eq!(draft.topic.as_str(), "user/1");
        assert!(draft.event.expires_at.is_some());
        let names: Vec<&str> = draft.event.extensions.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["traceparent", "n", "dataschema", "datacontenttype"]);
    }

    #[test]
    fn mistakes_are_pointed_at() {
        for (text, pointer) in [
            (r#"{"id":"1","source":"/","type":"a","topic":"t"}"#, "/specversion"),
            (
                r#"{"specversion":"0.3","id":"1","source":"/","type":"a","topic":"t"}"#,
                "/specversion",
            ),
            (r#"{"specversion":"1.0","source":"/","type":"a","topic":"t"}"#, "/id"),
            (r#"{"specversion":"1.0","id":"1","type":"a","topic":"t"}"#, "/source"),
            (r#"{"specversion":"1.0","id":"1","source":"/","topic":"t"}"#, "/type"),
            (r#"{"specversion":"1.0","id":"1","source":"/","type":"a"}"#, "/topic"),
            (
                r#"{"specversion":"1.0","id":"1","source":"/","type":"a","topic":"t","Bad":1}"#,
                "/Bad",
            ),
            (r#"{"specversion":"1.0","id":"1","source":"/","type":"a","topic":"t","x":{}}"#, "/x"),
            (
                r#"{"specversion":"1.0","id":"1","source":"/","type":"a","topic":"t","position":"1"}"#,
                "/position",
            ),
            (
                r#"{"specversion":"1.0","id":"1","source":"/","type":"a","topic":"t","data_base64":"?"}"#,
                "/data_base64",
            ),
        ] {
            let problem = structured(text, BOUNDS, Given::default()).unwrap_err();
            assert_eq!(problem.pointer.as_deref(), Some(pointer), "{text}");
        }
    }

    #[test]
    fn the_topic_of_the_query_is_the_events_own_or_it_has_none() {
        let event = |topic: &str, of_query: &str| {
            let text =
                format!(r#"{{"specversion":"1.0","id":"1","source":"/","type":"a"{topic}}}"#);
            structured(&text, BOUNDS, Some(Topic::parse(of_query).unwrap()).into())
        };
        for topic in ["", r#","topic":"t""#] {
            let draft = event(topic, "t").unwrap();
            assert_eq!((draft.publish.topic.as_str(), &*draft.fields.at("topic")), ("t", "topic"));
        }
        let problem = event(r#","topic":"u""#, "t").unwrap_err();
        assert_eq!(problem.pointer.as_deref(), Some("/topic"));
    }

    #[test]
    fn binary_mode_reads_headers() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("ce-id", "1+1"),
            ("ce-source", "/caf%C3%A9"),
            ("ce-type", "a.b"),
            ("ce-topic", "user/1"),
            ("ce-deleted", "false"),
            ("content-type", "image/png"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let draft = binary(&headers, Bytes::from_static(b"\x89"), BOUNDS, None).unwrap();
        assert_eq!(draft.fields.at("if_offset"), "ce-ifoffset");
        let draft = draft.publish;
        assert_eq!(draft.event.source.unwrap().as_str(), "/café");
        assert_eq!(draft.event.id.as_str(), "1+1");
        assert!(matches!(draft.event.data, Data::Binary { .. }));
        headers.insert("ce-subject", "a%0Ab".parse().unwrap());
        let problem = binary(&headers, Bytes::new(), BOUNDS, None).unwrap_err();
        assert_eq!(problem.pointer.as_deref(), Some("ce-subject"));
        headers.remove("ce-subject");
        headers.append("ce-id", "2".parse().unwrap());
        let problem = binary(&headers, Bytes::new(), BOUNDS, None).unwrap_err();
        assert_eq!(problem.pointer.as_deref(), Some("ce-id"));
        headers.insert("ce-id", "1".parse().unwrap());
        for name in ["ce-data", "ce-datacontenttype"] {
            headers.insert(name, "text/plain".parse().unwrap());
            let problem = binary(&headers, Bytes::new(), BOUNDS, None).unwrap_err();
            assert_eq!(problem.pointer.as_deref(), Some(name));
            headers.remove(name);
        }
        headers.remove("ce-type");
        let problem = binary(&headers, Bytes::new(), BOUNDS, None).unwrap_err();
        assert_eq!(problem.pointer.as_deref(), Some("ce-type"));
    }
}
