//! Topics of rules, with placeholders for claims: `team/{teams}/jobs`.
//!
//! The rule: a claim's value is compared with one whole segment of a topic and never becomes part
//! of a pattern, so that no value can act as a separator or a wildcard.

use std::collections::BTreeMap;

use crate::model::{NameError, Pattern, Tenant, Topic};

/// What the placeholders stand for: any of the values, each one valid segment.
pub(super) type Bindings = BTreeMap<Box<str>, Vec<Box<str>>>;

/// A pattern that may have placeholders as segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    text: Box<str>,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    /// `*`
    One,
    /// `**`
    Rest,
    /// `{name}`
    Claim(Box<str>),
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, NameError> {
        // With a segment in place of each placeholder it must be a pattern.
        let mut pattern = String::with_capacity(text.len());
        let mut parts: Vec<Part> = Vec::new();
        for segment in text.split('/') {
            let claim = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            let part = match (claim, segment) {
                (Some(name), _) => Part::Claim(claim_name(name)?.into()),
                (None, "*") => Part::One,
                (None, "**") => Part::Rest,
                (None, literal) if literal.contains(['{', '}']) => {
                    return Err(NameError::new(
                        "topic",
                        "must have a placeholder as a whole segment",
                    ));
                }
                (None, literal) => Part::Literal(literal.into()),
            };
            if matches!(part, Part::Claim(_)) && parts.contains(&part) {
                // With a list claim the two would stand for different elements.
                return Err(NameError::new("topic", "must not have a placeholder twice"));
            }
            if !parts.is_empty() {
                pattern.push('/');
            }
            pattern.push_str(if claim.is_some() { "0" } else { segment });
            parts.push(part);
        }
        Pattern::parse(&pattern)?;
        Ok(Self { text: text.into(), parts })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it names the hub's own topics.
    pub(super) fn is_reserved(&self) -> bool {
        self.text.starts_with('$')
    }

    pub(super) fn has_wildcard(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::One | Part::Rest))
    }

    /// The claims that its placeholders name.
    pub(super) fn claims(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Claim(name) => Some(&**name),
            _ => None,
        })
    }

    /// Whether the topic is one that this template stands for. A placeholder without a value
    /// stands for nothing.
    pub(super) fn matches(&self, topic: &Topic, bindings: &Bindings) -> bool {
        if topic.is_reserved() && !self.is_reserved() {
            return false;
        }
        let mut segments = topic.segments();
        for part in &self.parts {
            let Some(segment) = segments.next() else { return false };
            let fits = match part {
                Part::Rest => return true,
                Part::One => true,
                Part::Literal(literal) => **literal == *segment,
                Part::Claim(name) => values(bindings, name).iter().any(|value| **value == *segment),
            };
            if !fits {
                return false;
            }
        }
        segments.next().is_none()
    }

    /// How many topics it stands for; wildcards count as one.
    pub(super) fn expansions(&self, bindings: &Bindings) -> usize {
        self.claims().fold(1, |count, name| count.saturating_mul(values(bindings, name).len()))
    }

    /// The topics it stands for, in the order of the values. Without wildcards only; the caller
    /// has looked at [`Self::expansions`] before.
    pub(super) fn expand(&self, bindings: &Bindings) -> Vec<Topic> {
        let mut texts = vec![String::new()];
        for part in &self.parts {
            let values = match part {
                Part::Literal(literal) => std::slice::from_ref(literal),
                Part::Claim(name) => values(bindings, name),
                Part::One | Part::Rest => &[],
            };
            texts = texts
                .iter()
                .flat_map(|text| {
                    values.iter().map(move |value| {
                        if text.is_empty() { value.to_string() } else { format!("{text}/{value}") }
                    })
                })
                .collect();
        }
        // What is too long for a topic stands for none.
        texts.iter().filter_map(|text| Topic::parse(text).ok()).collect()
    }
}

impl From<&Pattern> for Template {
    fn from(pattern: &Pattern) -> Self {
        Self::parse(pattern.as_str()).expect("a pattern is a template without placeholders")
    }
}

/// Whether the text can be one segment of a topic, the hub's own `$` apart.
pub(super) fn is_segment(text: &str) -> bool {
    // A tenant is one segment by definition.
    Tenant::parse(text).is_ok()
}

fn values<'a>(bindings: &'a Bindings, name: &str) -> &'a [Box<str>] {
    bindings.get(name).map_or(&[], Vec::as_slice)
}

fn claim_name(name: &str) -> Result<&str, NameError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
        return Err(NameError::new("placeholder", "must be 1 to 64 of A-Z a-z 0-9 _ -"));
    }
    if matches!(name, "exp" | "nbf" | "iat" | "tidings") {
        return Err(NameError::new(
            "placeholder",
            "must name a claim that is text or a list of it",
        ));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_a_whole_segment_and_names_a_claim_once() {
        for good in ["user/{sub}", "{tenant}", "team/{teams}/*", "$hub/{sub}", "a/{x-y_9}/**"] {
            assert_eq!(Template::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "user/{}",
            "user/{sub",
            "user/sub}",
            "user/u-{sub}",
            "user/{a}{b}",
            "user/{a}/{a}",
            "${sub}",
            "{su b}",
            "{{sub}}",
            "{exp}",
            "{tidings}",
            "**/a",
            "user//{sub}",
            "user/{a/b}",
            "user/{a*}",
            "user/..",
        ] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_expansion_that_is_no_topic_is_left_out() {
        let long = "x".repeat(128);
        let template = Template::parse("{a}/{b}/{c}/{d}/z").unwrap();
        let mut bindings = Bindings::new();
        for name in ["a", "b", "c", "d"] {
            bindings.insert(name.into(), vec![long.as_str().into(), "1".into()]);
        }
        assert_eq!(template.expansions(&bindings), 16);
        assert_eq!(template.expand(&bindings).len(), 15);
        bindings.remove("a");
        assert_eq!((template.expansions(&bindings), template.expand(&bindings).len()), (0, 0));
    }
}
