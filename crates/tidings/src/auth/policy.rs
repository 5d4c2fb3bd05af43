//! Access rules: which topics the holders of tokens may read, write, answer in and follow.
//!
//! The rule: what no rule allows is denied. Rules only add; their order matters for feeds alone.

use std::{borrow::Cow, fmt, sync::Arc};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::{Map, Value};

use super::{
    grant::{Access, Scope},
    invalid,
    template::{Bindings, Template, is_segment},
};
use crate::{
    error::Problem,
    model::{
        Tenant,
        limits::{ACCESS_RULES_MAX, GRANT_ELEMENTS_MAX},
    },
};

/// The access rules, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<Rule>", into = "Vec<Rule>")]
pub struct Policy {
    rules: Vec<Rule>,
}

/// One access rule that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "RuleSettings", into = "RuleSettings")]
pub struct Rule {
    template: Arc<Template>,
    read: Condition,
    write: Condition,
    answer: Condition,
    feed: bool,
}

/// One access rule as it is written: an `[[access]]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Rule")]
pub struct RuleSettings {
    /// The topics that the rule is about. `*` stands for one segment, `**` for the rest. A segment
    /// `{sub}`, `{tenant}` or `{<claim>}` stands for that claim of the token: a text, or any
    /// element of a list. Example: `team/{teams}/jobs`.
    pub topic: String,
    /// Who may read them.
    #[serde(default)]
    pub read: Condition,
    /// Who may write them. `"owner"` is the topic's owner; its `readers` may not write.
    /// Whoever it lets write may also create each topic below `topic` that is not there, and so
    /// learns which are.
    #[serde(default)]
    pub write: Condition,
    /// Who may claim and answer the asks there.
    #[serde(default)]
    pub answer: Condition,
    /// Whether they are part of the caller's feed: followed when a reader names no topic. Only
    /// without `*` and `**`, and only where `read` does not depend on the topic's owner.
    #[serde(default)]
    pub feed: bool,
}

/// Who is meant by a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// Nobody: `false`.
    #[default]
    Never,
    /// Everybody whose claims fit the topic: `true`.
    Always,
    /// Whom the topic's properties name: `"owner"`.
    Owner,
    /// Who has one of these in the claim `permissions`: `{ permission = "events:read" }` or
    /// `{ any_permission = ["events:read", "events:all"] }`.
    Permission(Vec<String>),
    /// Who has one of these in the claim `roles`: `{ role = "admin" }` or
    /// `{ any_role = ["admin", "engineer"] }`.
    Role(Vec<String>),
}

/// Why a rule cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("access rule for `{topic}`: {reason}")]
pub struct RuleError {
    /// The rule's topic as it was written.
    pub topic: String,
    /// What is wrong, and what is possible.
    pub reason: String,
}

/// Whom the rules are applied to: what a verified token says.
#[derive(Debug)]
pub(super) struct Caller<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) subject: Option<&'a str>,
    pub(super) roles: &'a [String],
    pub(super) permissions: &'a [String],
    pub(super) claims: &'a Map<String, Value>,
}

impl Policy {
    /// Collects rules.
    ///
    /// # Errors
    /// If there are more than 256.
    pub fn new(rules: Vec<Rule>) -> Result<Self, RuleError> {
        match rules.get(ACCESS_RULES_MAX) {
            Some(rule) => Err(RuleError {
                topic: rule.template.as_str().to_owned(),
                reason: format!("there are more than {ACCESS_RULES_MAX} rules"),
            }),
            None => Ok(Self { rules }),
        }
    }

    /// The rules in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What the rules allow the caller, and what its claims bind the placeholders to.
    pub(super) fn apply(&self, caller: &Caller<'_>) -> Result<(Vec<Scope>, Bindings), Problem> {
        let mut scopes = Vec::new();
        let mut bindings = Bindings::new();
        for rule in &self.rules {
            for name in rule.template.claims() {
                if !bindings.contains_key(name) {
                    bindings.insert(name.into(), caller.values(name)?);
                }
            }
            let scope = Scope {
                template: Arc::clone(&rule.template),
                read: rule.read.access(caller),
                write: rule.write.access(caller),
                answer: rule.answer.access(caller),
                feed: rule.feed,
            };
            let expansions = scope.template.expansions(&bindings);
            if scope.feed && expansions > GRANT_ELEMENTS_MAX {
                return Err(invalid(format!(
                    "token's claims make more than {GRANT_ELEMENTS_MAX} feed topics of `{}`",
                    scope.template.as_str()
                )));
            }
            if expansions > 0 && scope.allows_something() {
                scopes.push(scope);
            }
        }
        Ok((scopes, bindings))
    }
}

impl TryFrom<Vec<Rule>> for Policy {
    type Error = RuleError;

    fn try_from(rules: Vec<Rule>) -> Result<Self, RuleError> {
        Self::new(rules)
    }
}

impl From<Policy> for Vec<Rule> {
    fn from(policy: Policy) -> Self {
        policy.rules
    }
}

impl TryFrom<RuleSettings> for Rule {
    type Error = RuleError;

    fn try_from(settings: RuleSettings) -> Result<Self, RuleError> {
        let RuleSettings { topic, read, write, answer, feed } = settings;
        let refuse = |reason: String| RuleError { topic: topic.clone(), reason };
        let template = Template::parse(&topic).map_err(|error| refuse(error.to_string()))?;
        if feed && template.has_wildcard() {
            return Err(refuse(
                "a feed has exact topics, so `feed` allows no `*` or `**`".to_owned(),
            ));
        }
        if feed && matches!(read, Condition::Never | Condition::Owner) {
            return Err(refuse("`feed` needs a `read` of true, a permission or a role".to_owned()));
        }
        if template.is_reserved() && (write != Condition::Never || answer != Condition::Never) {
            return Err(refuse(
                "topics that start with `$` are never written by clients".to_owned(),
            ));
        }
        Ok(Self { template: Arc::new(template), read, write, answer, feed })
    }
}

impl From<Rule> for RuleSettings {
    fn from(rule: Rule) -> Self {
        let Rule { template, read, write, answer, feed } = rule;
        Self { topic: template.as_str().to_owned(), read, write, answer, feed }
    }
}

impl Caller<'_> {
    /// The values of a claim that can be a segment. Absent and `null`: none.
    fn values(&self, name: &str) -> Result<Vec<Box<str>>, Problem> {
        let texts: Vec<&str> = match (name, self.claims.get(name)) {
            ("sub", _) => self.subject.into_iter().collect(),
            ("tenant", _) => vec![self.tenant.as_str()],
            (_, None | Some(Value::Null)) => Vec::new(),
            (_, Some(Value::String(text))) => vec![text],
            (_, Some(Value::Array(list))) => {
                if list.len() > GRANT_ELEMENTS_MAX {
                    return Err(invalid(format!(
                        "token's claim `{name}` has more than {GRANT_ELEMENTS_MAX} elements"
                    )));
                }
                let texts: Option<_> = list.iter().map(Value::as_str).collect();
                texts.ok_or_else(|| claim_type(name))?
            }
            (_, Some(_)) => return Err(claim_type(name)),
        };
        let mut values: Vec<Box<str>> = Vec::with_capacity(texts.len());
        for text in texts {
            if is_segment(text) && !values.iter().any(|value| **value == *text) {
                values.push(text.into());
            }
        }
        Ok(values)
    }
}

fn claim_type(name: &str) -> Problem {
    invalid(format!("token's claim `{name}` must be a string or a list of strings"))
}

impl Condition {
    fn access(&self, caller: &Caller<'_>) -> Access {
        let any = |wanted: &[String], held: &[String]| {
            if held.iter().any(|name| wanted.contains(name)) {
                Access::Allowed
            } else {
                Access::Denied
            }
        };
        match self {
            Self::Never => Access::Denied,
            Self::Always => Access::Allowed,
            Self::Owner if caller.subject.is_none() => Access::Denied,
            Self::Owner => Access::IfOwner,
            Self::Permission(names) => any(names, caller.permissions),
            Self::Role(names) => any(names, caller.roles),
        }
    }
}

const FIELDS: &[&str] = &["permission", "any_permission", "role", "any_role"];

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ConditionVisitor)
    }
}

struct ConditionVisitor;

impl<'de> Visitor<'de> for ConditionVisitor {
    type Value = Condition;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "true, false, \"owner\", or one of { permission = \"…\" }, { any_permission = [\"…\"] }, \
             { role = \"…\" }, { any_role = [\"…\"] }",
        )
    }

    fn visit_bool<E: de::Error>(self, all: bool) -> Result<Condition, E> {
        Ok(if all { Condition::Always } else { Condition::Never })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Condition, E> {
        match text {
            "owner" => Ok(Condition::Owner),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Condition, A::Error> {
        let Some(field) = map.next_key::<String>()? else {
            return Err(de::Error::invalid_length(0, &self));
        };
        let condition = match field.as_str() {
            "permission" => Condition::Permission(vec![map.next_value()?]),
            "any_permission" => Condition::Permission(map.next_value()?),
            "role" => Condition::Role(vec![map.next_value()?]),
            "any_role" => Condition::Role(map.next_value()?),
            _ => return Err(de::Error::unknown_field(&field, FIELDS)),
        };
        let (Condition::Permission(names) | Condition::Role(names)) = &condition else {
            unreachable!("the two kinds of lists are all that is made above")
        };
        if names.is_empty() || names.iter().any(String::is_empty) {
            return Err(de::Error::custom(format!("`{field}` must name something")));
        }
        if map.next_key::<String>()?.is_some() {
            return Err(de::Error::custom("a condition has one of the four fields, not two"));
        }
        Ok(condition)
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (one, any, names) = match self {
            Self::Never => return serializer.serialize_bool(false),
            Self::Always => return serializer.serialize_bool(true),
            Self::Owner => return serializer.serialize_str("owner"),
            Self::Permission(names) => ("permission", "any_permission", names),
            Self::Role(names) => ("role", "any_role", names),
        };
        let mut map = serializer.serialize_map(Some(1))?;
        match names.as_slice() {
            [name] => map.serialize_entry(one, name)?,
            names => map.serialize_entry(any, names)?,
        }
        map.end()
    }
}

impl JsonSchema for Condition {
    fn schema_name() -> Cow<'static, str> {
        "Condition".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = |name: &str, of: &str| {
            json_schema!({
                "type": "object", "properties": { name: { "type": "string", "minLength": 1,
                "description": format!("Who has this in the token's claim `{of}`.") } },
                "required": [name], "additionalProperties": false,
            })
        };
        let any = |name: &str, of: &str| {
            json_schema!({
                "type": "object", "properties": { name: { "type": "array", "minItems": 1,
                "items": { "type": "string", "minLength": 1 },
                "description": format!("Who has any of these in the token's claim `{of}`.") } },
                "required": [name], "additionalProperties": false,
            })
        };
        json_schema!({
            "description": "Who: `true` (everybody whose claims fit the topic), `false` (nobody), \
                `\"owner\"` (whom the topic's properties name), or the holders of a permission or role.",
            "oneOf": [
                { "type": "boolean" },
                { "const": "owner" },
                one("permission", "permissions"),
                any("any_permission", "permissions"),
                one("role", "roles"),
                any("any_role", "roles"),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct File {
        access: Policy,
    }

    fn read(text: &str) -> Result<Policy, String> {
        toml::from_str::<File>(text).map(|file| file.access).map_err(|error| error.to_string())
    }

    #[test]
    fn rules_are_read_from_toml_and_written_back() {
        let policy = read(
            r#"
            [[access]]
            topic = "user/{sub}"
            read = true
            feed = true
            [[access]]
            topic = "team/{teams}/jobs"
            read = { permission = "events:read" }
            feed = true
            [[access]]
            topic = "message/*"
            read = "owner"
            write = false
            [[access]]
            topic = "account/{tenant}/escalations"
            read = { any_role = ["engineer", "admin"] }
            answer = { role = "admin" }
            "#,
        )
        .unwrap();
        let json = serde_json::to_value(&policy).unwrap();
        let expected = serde_json::json!([
            {"topic":"user/{sub}","read":true,"write":false,"answer":false,"feed":true},
            {"topic":"team/{teams}/jobs","read":{"permission":"events:read"},"write":false,"answer":false,"feed":true},
            {"topic":"message/*","read":"owner","write":false,"answer":false,"feed":false},
            {"topic":"account/{tenant}/escalations","read":{"any_role":["engineer","admin"]},"write":false,
             "answer":{"role":"admin"},"feed":false},
        ]);
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Policy>(json).unwrap(), policy);
    }

    #[test]
    fn a_rule_that_cannot_be_says_why() {
        let cases = [
            ("topic = 'user/*'\nread = true\nfeed = true", "exact topics"),
            ("topic = 'user/**'\nread = true\nfeed = true", "exact topics"),
            ("topic = 'user/{sub}'\nfeed = true", "needs a `read`"),
            ("topic = 'user/{sub}'\nread = 'owner'\nfeed = true", "needs a `read`"),
            ("topic = '$hub/{sub}'\nwrite = true", "never written by clients"),
            ("topic = '$hub/{sub}'\nanswer = true", "never written by clients"),
            ("topic = 'user-{sub}'\nread = true", "whole segment"),
            ("topic = 'a'\nraed = true", "unknown field `raed`"),
            ("topic = 'a'\nread = 'owners'", "expected true, false, \"owner\""),
            ("topic = 'a'\nread = 1", "expected true, false, \"owner\""),
            ("topic = 'a'\nread = {}", "expected true, false, \"owner\""),
            ("topic = 'a'\nread = { any_role = [] }", "`any_role` must name something"),
            ("topic = 'a'\nread = { permission = '' }", "`permission` must name something"),
            ("topic = 'a'\nread = { roles = ['a'] }", "unknown field `roles`"),
            ("topic = 'a'\nread = { role = 'a', permission = 'b' }", "not two"),
            ("read = true", "missing field `topic`"),
        ];
        for (rule, reason) in cases {
            let error = read(&format!("[[access]]\n{rule}\n")).unwrap_err();
            assert!(error.contains(reason), "{rule}: {error}");
        }
        let many = "[[access]]\ntopic = 'a'\n".repeat(ACCESS_RULES_MAX + 1);
        assert!(read(&many).unwrap_err().contains("more than 256 rules"));
    }

    #[test]
    fn the_schema_describes_every_field_of_a_rule() {
        let schema = schemars::schema_for!(Policy).to_value();
        let rule = &schema["$defs"]["Rule"];
        assert_eq!(rule["additionalProperties"], false, "{schema}");
        for field in ["topic", "read", "write", "answer", "feed"] {
            assert!(rule["properties"][field]["description"].is_string(), "{field}: {schema}");
        }
    }
}
