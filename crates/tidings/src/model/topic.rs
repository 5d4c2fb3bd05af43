//! Tenants, topics, and the patterns that grants and rules are written in.
//!
//! The rule: a topic is addressed by the pair of its tenant and its name, never by one joined
//! string, so that no separator in a name can reach into another tenant.

use super::{
    NameError,
    limits::{PATTERN_BYTES_MAX, SEGMENT_BYTES_MAX, TOPIC_BYTES_MAX, TOPIC_SEGMENTS_MAX},
    name,
};

name! {
    /// The unit of isolation, one segment: `acme`. It comes from the credential, never from a URL.
    /// `~hub` is the hub's own.
    Tenant, |text| segment("tenant", text)
}

impl Tenant {
    /// The hub's own tenant, whose topics hold what the hub keeps for itself.
    #[must_use]
    pub(crate) fn hub() -> Self {
        Self("~hub".into())
    }

    /// Whether no credential may be of this tenant.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.as_str() == "~hub"
    }
}

name! {
    /// A named, ordered sequence of events: `user/42`, `team/7/jobs`.
    ///
    /// 1 to 16 segments joined by `/`, each 1 to 128 bytes of `A-Z a-z 0-9 . _ ~ : @ -` and not
    /// `.` or `..`; at most 512 bytes. A first segment that starts with `$` is the hub's own.
    Topic, |text| {
        NameError::within("topic", text, TOPIC_BYTES_MAX)?;
        segment_count("topic", text)?;
        text.strip_prefix('$').unwrap_or(text).split('/').try_for_each(|part| segment("topic", part))
    }
}

impl Topic {
    /// Whether this topic is the hub's own, which no client may write.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.as_str().starts_with('$')
    }

    /// The topic's segments in order.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.as_str().split('/')
    }
}

/// Where a topic is: its tenant and its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicKey {
    /// Whose topic it is.
    pub tenant: Tenant,
    /// Its name within the tenant.
    pub topic: Topic,
}

impl TopicKey {
    /// Pairs a tenant with a topic name.
    #[must_use]
    pub const fn new(tenant: Tenant, topic: Topic) -> Self {
        Self { tenant, topic }
    }
}

/// A set of topics in a grant or rule: `user/*`, `team/7/**`.
///
/// `*` stands for one whole segment, `**` for one or more segments at the end. Wildcards never
/// match the hub's own topics: those must be named from their `$`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: Box<str>,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`NameError`] names the broken rule: the rules of topics, and `**` only at the end.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        NameError::within("pattern", text, PATTERN_BYTES_MAX)?;
        let count = segment_count("pattern", text)?;
        let body = text.strip_prefix('$').unwrap_or(text);
        for (place, part) in body.split('/').enumerate() {
            match part {
                "*" => {}
                "**" if place + 1 == count => {}
                "**" => return Err(NameError::new("pattern", "may have `**` only at its end")),
                literal => segment("pattern", literal)?,
            }
        }
        Ok(Self { text: text.into() })
    }

    /// Whether the topic is in this set. Linear in the topic's length.
    #[must_use]
    pub fn matches(&self, topic: &Topic) -> bool {
        if topic.is_reserved() && !self.text.starts_with('$') {
            return false;
        }
        let mut names = topic.segments();
        for part in self.text.split('/') {
            match (part, names.next()) {
                ("**", Some(_)) => return true,
                ("*", Some(_)) => {}
                (literal, Some(segment)) if literal == segment => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<&Topic> for Pattern {
    fn from(topic: &Topic) -> Self {
        Self { text: topic.as_str().into() }
    }
}

fn segment_count(what: &'static str, text: &str) -> Result<usize, NameError> {
    let count = text.split('/').count();
    if count > TOPIC_SEGMENTS_MAX {
        let rule = format!("must have at most {TOPIC_SEGMENTS_MAX} segments, has {count}");
        return Err(NameError::new(what, rule));
    }
    Ok(count)
}

fn segment(what: &'static str, text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::new(what, "must not be empty or have an empty segment"));
    }
    if text.len() > SEGMENT_BYTES_MAX {
        let (most, has) = (SEGMENT_BYTES_MAX, text.len());
        let rule = format!("must have segments of at most {most} bytes, has one of {has}");
        return Err(NameError::new(what, rule));
    }
    if text == "." || text == ".." {
        return Err(NameError::new(what, "must not have `.` or `..` as a segment"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~:@-".contains(&byte);
    if !text.bytes().all(allowed) {
        return Err(NameError::new(what, "may only hold A-Z a-z 0-9 . _ ~ : @ - in segments"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn topics_keep_the_rules_for_names() {
        for good in ["a", "user/42", "$hub/x", "a.b_c~d:e@f-g", &"s/".repeat(15).as_str()[..29]] {
            assert!(Topic::parse(good).is_ok(), "{good}");
        }
        let long = "x".repeat(129);
        let deep = "s/".repeat(16) + "s";
        for bad in
            ["", "/", "a/", "/a", "a//b", ".", "a/..", "ü", "a b", "a\n", "a/$b", "*", &long, &deep]
        {
            assert!(Topic::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_limit_is_told_with_its_numbers() {
        for (text, told) in [
            ("x/".repeat(300), "topic must be at most 512 bytes, is 600"),
            ("s/".repeat(17), "topic must have at most 16 segments, has 18"),
            ("x".repeat(129), "topic must have segments of at most 128 bytes, has one of 129"),
        ] {
            assert_eq!(Topic::parse(&text).unwrap_err().to_string(), told);
        }
    }

    #[test]
    fn patterns_match_whole_segments() {
        let matches = |pattern: &str, topic: &str| {
            Pattern::parse(pattern).unwrap().matches(&Topic::parse(topic).unwrap())
        };
        assert!(matches("user/*", "user/42"));
        assert!(!matches("user/*", "user"));
        assert!(!matches("user/*", "user/42/x"));
        assert!(!matches("user/4", "user/42"));
        assert!(matches("team/**", "team/7/jobs"));
        assert!(!matches("team/**", "team"));
        assert!(matches("**", "anything/at/all"));
        assert!(!matches("**", "$hub/secret"));
        assert!(!matches("*/secret", "$hub/secret"));
        assert!(matches("$hub/*", "$hub/secret"));
        for bad in ["**/a", "a*", "a/", "***", "{sub}"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_topic_matches_itself_and_nothing_else_of_another_spelling(
            a in "[a-z0-9._~:@-]{1,8}(/[a-z0-9_~:@-]{1,8}){0,4}",
            b in "[a-z0-9._~:@-]{1,8}(/[a-z0-9_~:@-]{1,8}){0,4}",
        ) {
            let (Ok(left), Ok(right)) = (Topic::parse(&a), Topic::parse(&b)) else { return Ok(()) };
            prop_assert!(Pattern::from(&left).matches(&left));
            prop_assert_eq!(Pattern::from(&left).matches(&right), a == b);
        }
    }
}
