//! Routes: routing keys taken apart, and names put together from their words.
//!
//! The rule: a word becomes one whole segment of a topic, so that no word can reach into another's.

use std::{collections::BTreeMap, sync::Arc};

use lapin::{
    BasicProperties,
    types::{AMQPValue, ShortString},
};

use super::settings::{RouteClass, RouteSettings};
use crate::{
    auth::SettingsError,
    error::{ErrorCode, Problem},
    model::{Class, EventType, StateKey, Tenant, Topic},
};

/// Properties that templates may use.
const PROPERTIES: &[&str] = &["type", "app_id", "user_id", "correlation_id"];

/// The routes of a queue, in order.
#[derive(Debug, Clone)]
pub(super) struct Routes(pub(super) Arc<[Route]>);

impl Routes {
    /// The first route that takes the routing key, with the words of its placeholders.
    pub(super) fn find<'a>(&self, routing_key: &'a str) -> Option<(&Route, Words<'a, '_>)> {
        self.0.iter().find_map(|route| Some((route, route.captured(routing_key)?)))
    }
}

/// Words by the placeholders' names.
pub(super) type Words<'key, 'route> = BTreeMap<&'route str, &'key str>;

/// What becomes of the messages of some routing keys.
#[derive(Debug)]
pub(super) struct Route {
    words: Vec<Word>,
    /// Whether further words may follow.
    is_open: bool,
    tenant: Template,
    topic: Option<Template>,
    class: Class,
    key: Option<Template>,
    event_type: Option<Template>,
    /// The type of a message that has none.
    fallback: String,
    expires_after_ms: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Word {
    Literal(Box<str>),
    Any,
    Named(Box<str>),
}

/// Where a message belongs.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) tenant: Tenant,
    pub(super) topic: Option<Topic>,
    pub(super) class: Class,
    pub(super) key: Option<StateKey>,
    /// The type, if the message does not bring its own.
    pub(super) event_type: String,
    pub(super) expires_after_ms: Option<u64>,
}

impl Route {
    pub(super) fn new(settings: &RouteSettings) -> Result<Self, SettingsError> {
        let (words, is_open) = words(&settings.routing_key)
            .map_err(|reason| SettingsError::new("routing_key", reason))?;
        let named = |name: &str| {
            words.iter().any(|word| matches!(word, Word::Named(known) if **known == *name))
        };
        let template = |path: &'static str, text: &str| {
            let template = Template::parse(text, &named);
            template.map_err(|reason| SettingsError::new(path, reason))
        };
        let optional = |path, text: &Option<String>| {
            text.as_deref().map(|text| template(path, text)).transpose()
        };
        let class = match (settings.class, &settings.key) {
            (Some(RouteClass::State), None) if settings.topic.is_some() => {
                return Err(SettingsError::new("key", "is missing: the class is state"));
            }
            (Some(RouteClass::State), _) | (None, Some(_)) => Class::State,
            (Some(_), Some(_)) => {
                return Err(SettingsError::new("key", "is for class state only"));
            }
            (Some(RouteClass::Log) | None, None) => Class::Log,
            (Some(RouteClass::Ephemeral), None) => Class::Ephemeral,
        };
        let expires_after_ms = settings.expires_after_ms()?;
        if expires_after_ms.is_some() && class != Class::State {
            return Err(SettingsError::new("expires_after", "is for class state only"));
        }
        let literal = |word: &Word| match word {
            Word::Literal(word) => Some(word.to_string()),
            _ => None,
        };
        let topic = optional("topic", &settings.topic)?;
        if let Some(topic) = &topic {
            // With a segment in place of each placeholder it must be a topic.
            let text = topic.with(&mut |_| Some("0".into())).unwrap_or_default();
            let topic = Topic::parse(&text)
                .map_err(|error| SettingsError::new("topic", error.to_string()))?;
            if topic.is_reserved() {
                return Err(SettingsError::new(
                    "topic",
                    "must not start with `$`: it is the hub's",
                ));
            }
        }
        let tenant = template("tenant", settings.tenant.as_deref().unwrap_or("default"))?;
        if let Some(text) = tenant.with(&mut |_| Some("0".into())) {
            Tenant::parse(&text)
                .map_err(|error| SettingsError::new("tenant", error.to_string()))?;
        }
        Ok(Self {
            tenant,
            topic,
            class,
            key: optional("key", &settings.key)?,
            event_type: optional("type", &settings.event_type)?,
            fallback: words.iter().filter_map(literal).collect::<Vec<_>>().join("."),
            expires_after_ms,
            words,
            is_open,
        })
    }

    /// What a queue is bound by to get these messages.
    pub(super) fn binding(&self) -> String {
        let word = |word: &Word| match word {
            Word::Literal(word) => word.to_string(),
            Word::Any | Word::Named(_) => "*".to_owned(),
        };
        let mut words: Vec<String> = self.words.iter().map(word).collect();
        if self.is_open {
            words.push("#".to_owned());
        }
        words.join(".")
    }

    /// Whether a binding may bring messages of this route.
    pub(super) fn may_match(&self, binding: &str) -> bool {
        let bound: Vec<&str> = binding.split('.').collect();
        // `#` stands for any number of words, anywhere.
        if bound.contains(&"#") {
            return true;
        }
        let fits = |(word, bound): (&Word, &&str)| match word {
            Word::Literal(word) => **word == **bound || *bound == "*",
            Word::Any | Word::Named(_) => true,
        };
        (bound.len() == self.words.len() || (self.is_open && bound.len() > self.words.len()))
            && self.words.iter().zip(&bound).all(fits)
    }

    fn captured<'a>(&self, routing_key: &'a str) -> Option<Words<'a, '_>> {
        let mut found = BTreeMap::new();
        let mut rest = routing_key.split('.');
        for word in &self.words {
            let text = rest.next()?;
            match word {
                Word::Literal(literal) if **literal == *text => {}
                Word::Literal(_) => return None,
                Word::Any => {}
                Word::Named(name) => drop(found.insert(&**name, text)),
            }
        }
        (self.is_open || rest.next().is_none()).then_some(found)
    }

    /// Where a message of this route belongs.
    pub(super) fn place(
        &self,
        words: &Words<'_, '_>,
        properties: &BasicProperties,
    ) -> Result<Place, Problem> {
        let fill = |what: &str, template: &Template, segments: bool| {
            let mut missing = None;
            let text = template.with(&mut |name| {
                let value = value(name, words, properties);
                let fits = |text: &String| !segments || Tenant::parse(text).is_ok();
                let value = value.filter(fits);
                if value.is_none() {
                    missing = Some(name.to_owned());
                }
                value
            });
            text.ok_or_else(|| {
                let name = missing.unwrap_or_default();
                let rule = if segments {
                    "is missing or not one segment of A-Z a-z 0-9 . _ ~ : @ -"
                } else {
                    "is missing"
                };
                malformed(format!("the {what} needs {{{name}}}, which {rule}"))
            })
        };
        let tenant = Tenant::parse(&fill("tenant", &self.tenant, true)?)?;
        if tenant.is_reserved() {
            return Err(malformed("the tenant is the hub's own".to_owned()));
        }
        let topic = self.topic.as_ref().map(|topic| fill("topic", topic, true)).transpose()?;
        let key = self.key.as_ref().map(|key| fill("key", key, false)).transpose()?;
        let own = properties.kind().as_ref().map(ShortString::as_str);
        let event_type = match (&self.event_type, own) {
            (Some(template), _) => fill("type", template, false)?,
            (None, Some(own)) => own.to_owned(),
            (None, None) => self.fallback.clone(),
        };
        Ok(Place {
            tenant,
            topic: topic.map(|topic| Topic::parse(&topic)).transpose()?,
            class: self.class,
            key: key.map(|key| StateKey::parse(&key)).transpose()?,
            event_type,
            expires_after_ms: self.expires_after_ms,
        })
    }
}

impl Place {
    /// The event's type.
    pub(super) fn event_type(&self) -> Result<EventType, Problem> {
        Ok(EventType::parse(&self.event_type)?)
    }
}

fn malformed(detail: String) -> Problem {
    Problem::new(ErrorCode::Malformed, detail)
}

fn words(text: &str) -> Result<(Vec<Word>, bool), &'static str> {
    if text.is_empty() || text.len() > 250 {
        return Err("must be 1 to 250 bytes");
    }
    let (text, is_open) = match text.strip_suffix('#') {
        Some("") => return Ok((Vec::new(), true)),
        Some(head) => (head.strip_suffix('.').ok_or("may have `#` only as its last word")?, true),
        None => (text, false),
    };
    let mut words: Vec<Word> = Vec::new();
    for word in text.split('.') {
        let word = match word.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(name) => Word::Named(placeholder(name)?.into()),
            None if word == "*" => Word::Any,
            None if word.is_empty() => return Err("must not have an empty word"),
            None if word.contains(['{', '}', '*', '#']) => {
                return Err("must have {name}, * and # as whole words");
            }
            None => Word::Literal(word.into()),
        };
        if matches!(word, Word::Named(_)) && words.contains(&word) {
            return Err("must not have a placeholder twice");
        }
        words.push(word);
    }
    Ok((words, is_open))
}

fn placeholder(name: &str) -> Result<&str, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let fits = !name.is_empty() && name.len() <= 64 && name.bytes().all(allowed);
    if fits { Ok(name) } else { Err("must name placeholders by 1 to 64 of A-Z a-z 0-9 _") }
}

fn value(name: &str, words: &Words<'_, '_>, properties: &BasicProperties) -> Option<String> {
    if let Some(header) = name.strip_prefix("header.") {
        return text(properties.headers().as_ref()?.inner().get(header)?);
    }
    let property = match name.strip_prefix("property.") {
        None => return words.get(name).map(|word| (*word).to_owned()),
        Some("type") => properties.kind(),
        Some("app_id") => properties.app_id(),
        Some("user_id") => properties.user_id(),
        Some(_) => properties.correlation_id(),
    };
    property.as_ref().map(|text| text.as_str().to_owned())
}

/// A header as text: texts, numbers and booleans are.
pub(super) fn text(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok()?.to_owned(),
        AMQPValue::ShortString(text) => text.as_str().to_owned(),
        AMQPValue::Boolean(value) => value.to_string(),
        _ => number(value)?.to_string(),
    })
}

/// A header as a whole number.
pub(super) fn number(value: &AMQPValue) -> Option<i64> {
    Some(match value {
        AMQPValue::ShortShortInt(number) => (*number).into(),
        AMQPValue::ShortShortUInt(number) => (*number).into(),
        AMQPValue::ShortInt(number) => (*number).into(),
        AMQPValue::ShortUInt(number) => (*number).into(),
        AMQPValue::LongInt(number) => (*number).into(),
        AMQPValue::LongUInt(number) => (*number).into(),
        AMQPValue::LongLongInt(number) => *number,
        _ => return None,
    })
}

/// A text with placeholders: `job/{job}`.
#[derive(Debug)]
struct Template(Vec<Part>);

#[derive(Debug)]
enum Part {
    Literal(Box<str>),
    Placeholder(Box<str>),
}

impl Template {
    /// Reads a template; `named` says which words the routing key gives.
    fn parse(text: &str, named: &impl Fn(&str) -> bool) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, behind)) = rest.split_once('{') {
            let (name, behind) = behind.split_once('}').ok_or("has a `{` without `}`")?;
            let is_known = match name.split_once('.') {
                Some(("header", header)) => !header.is_empty() && header.len() <= 255,
                Some(("property", property)) => PROPERTIES.contains(&property),
                Some(_) => false,
                None => named(name),
            };
            if !is_known {
                return Err(format!(
                    "has {{{name}}}, which is no word of the routing key, no {{header.NAME}} and \
                     none of {{property.type}}, {{property.app_id}}, {{property.user_id}} and \
                     {{property.correlation_id}}"
                ));
            }
            parts.push(Part::Literal(literal.into()));
            parts.push(Part::Placeholder(name.into()));
            rest = behind;
        }
        if rest.contains('}') {
            return Err("has a `}` without `{`".to_owned());
        }
        if text.is_empty() {
            return Err("must not be empty".to_owned());
        }
        parts.push(Part::Literal(rest.into()));
        Ok(Self(parts))
    }

    /// The text with values; `None` if there is none for a placeholder.
    fn with(&self, value: &mut dyn FnMut(&str) -> Option<String>) -> Option<String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Placeholder(name) => text.push_str(&value(name)?),
            }
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldTable;

    use super::*;

    fn route(routing_key: &str, topic: &str, key: Option<&str>) -> Result<Route, SettingsError> {
        Route::new(&RouteSettings {
            routing_key: routing_key.to_owned(),
            topic: Some(topic.to_owned()),
            key: key.map(str::to_owned),
            tenant: Some("{header.tenant}".to_owned()),
            ..RouteSettings::default()
        })
    }

    fn place(route: &Route, routing_key: &str, tenant: &str) -> Option<Result<Place, Problem>> {
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString(tenant.into()));
        let properties = BasicProperties::default().with_headers(headers);
        Some(route.place(&route.captured(routing_key)?, &properties))
    }

    #[test]
    fn a_routing_key_becomes_tenant_topic_and_key() {
        let route =
            route("team.{team}.job.{job}.status", "team/{team}/jobs", Some("job/{job}")).unwrap();
        assert_eq!(route.binding(), "team.*.job.*.status");
        let found = place(&route, "team.7.job.8f1c.status", "acme").unwrap().unwrap();
        assert_eq!(found.tenant.as_str(), "acme");
        assert_eq!(found.topic.unwrap().as_str(), "team/7/jobs");
        assert_eq!((found.class, found.key.unwrap().as_str()), (Class::State, "job/8f1c"));
        assert_eq!(found.event_type, "team.job.status");
        for other in ["team.7.job.8f1c", "team.7.job.8f1c.status.x", "user.7.job.8f1c.status", ""] {
            assert!(place(&route, other, "acme").is_none(), "{other}");
        }
    }

    /// Broken on purpose: without the check of segments, `1/secret` becomes `team/1/secret/jobs`.
    #[test]
    fn a_word_cannot_be_more_than_its_segment() {
        let route = route("team.{team}", "team/{team}/jobs", None).unwrap();
        for (routing_key, tenant) in [
            ("team.1/secret", "acme"),
            ("team.", "acme"),
            ("team.$hub", "acme"),
            ("team.a b", "acme"),
            ("team.1", "acme/other"),
            ("team.1", "~hub"),
            ("team.1", ""),
        ] {
            let refused = place(&route, routing_key, tenant).unwrap();
            assert_eq!(refused.unwrap_err().code, ErrorCode::Malformed, "{routing_key} {tenant}");
        }
    }

    #[test]
    fn what_is_no_route_is_told() {
        for (routing_key, topic, path) in [
            ("", "a", "routing_key"),
            ("a..b", "a", "routing_key"),
            ("a.{b", "a", "routing_key"),
            ("{a}.{a}", "a", "routing_key"),
            ("#.a", "a", "routing_key"),
            ("a#", "a", "routing_key"),
            ("a.{b}", "a/{c}", "topic"),
            ("a.{b}", "$hub/{b}", "topic"),
            ("a.{b}", "a/{b", "topic"),
            ("a.{b}", "a/{property.reply_to}", "topic"),
            ("a.{b}", "", "topic"),
            ("a.{b}", "a//{b}", "topic"),
        ] {
            let told = route(routing_key, topic, None).unwrap_err();
            assert_eq!(told.path, path, "{routing_key} {topic}");
        }
    }

    #[test]
    fn wildcards_and_bindings_agree() {
        let all = route("#", "a", None).unwrap();
        assert_eq!(all.binding(), "#");
        assert!(place(&all, "x.y", "t").is_some() && place(&all, "", "t").is_some());
        let open = route("a.*.#", "a", None).unwrap();
        assert_eq!(open.binding(), "a.*.#");
        assert!(place(&open, "a.b", "t").is_some() && place(&open, "a.b.c.d", "t").is_some());
        assert!(place(&open, "a", "t").is_none());
        assert!(open.may_match("a.b.c") && open.may_match("#") && open.may_match("*.b"));
        assert!(!open.may_match("b.c") && !open.may_match("a"));
    }
}
