//! The words of Tidings as values: no I/O, no async, no clock.
//!
//! Everything here is parsed at the edge, so a `Topic` in hand is valid, and compares, hashes and
//! clones cheaply.

pub mod cursor;
pub mod event;
pub mod json;
pub mod limits;
pub mod position;
pub mod resume;
pub mod time;
pub mod topic;

use std::borrow::Cow;

pub use cursor::{Cursor, CursorError, Mark, TopicHash};
pub use event::{Class, Data, Event, EventId, EventType, NewEvent, StateKey};
pub use json::{JsonError, JsonText};
pub use position::{Epoch, Fingerprint, Offset, Position};
pub use time::Timestamp;
pub use topic::{Pattern, Tenant, Topic, TopicKey};

/// A name that broke the rules for names, and which rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {rule}")]
#[non_exhaustive]
pub struct NameError {
    /// What was being named: `topic`, `event type`, …
    pub what: &'static str,
    /// The rule it broke, as the end of a sentence: `must be at most 128 bytes, is 300`.
    pub rule: Cow<'static, str>,
}

impl NameError {
    pub(crate) fn new(what: &'static str, rule: impl Into<Cow<'static, str>>) -> Self {
        Self { what, rule: rule.into() }
    }

    /// Refuses a name that is longer than it may be.
    pub(crate) fn within(what: &'static str, text: &str, bytes_max: usize) -> Result<(), Self> {
        if text.len() <= bytes_max {
            return Ok(());
        }
        let rule = format!("must be at most {bytes_max} bytes, is {}", text.len());
        Err(Self::new(what, rule))
    }
}

/// Declares a cheap-to-clone newtype over a checked string.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Checks the text against the rules for such names.
            ///
            /// # Errors
            /// [`NameError`](crate::model::NameError) names the rule that was broken.
            pub fn parse(text: &str) -> Result<Self, $crate::model::NameError> {
                let check: fn(&str) -> Result<(), $crate::model::NameError> = $check;
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}
pub(crate) use name;
