//! Problems: what a caller is told when something is refused (RFC 9457).
//!
//! The rule: a code says what to do; it never changes its meaning, status or name. Details of a
//! failure inside the hub go to the log, not to the caller.

use std::{fmt, time::Duration};

use crate::model::{JsonText, NameError};

/// Declares the codes with their names, statuses, whether to try again, and titles.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal, $status:literal, $retry:literal, $title:literal;)*) => {
        /// What kind of problem it is. Stable: clients switch on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode { $($(#[$doc])* $code,)* }

        impl ErrorCode {
            /// All codes, for the generated reference.
            pub const ALL: &'static [Self] = &[$(Self::$code,)*];

            /// The stable snake_case name: `forbidden_topic`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$code => $name,)* }
            }

            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$code => $status,)* }
            }

            /// Whether the same request may work later.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$code => $retry,)* }
            }

            /// A short summary of the kind of problem.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$code => $title,)* }
            }
        }
    };
}

codes! {
    /// A field, parameter or body is not what it must be; `pointer` says which.
    Malformed = "malformed", 400, false, "Malformed request";
    /// There is no credential.
    CredentialMissing = "credential_missing", 401, false, "Credential missing";
    /// The credential is not valid: unknown, wrongly signed, not yet valid or for another audience.
    CredentialInvalid = "credential_invalid", 401, false, "Credential invalid";
    /// The credential was valid once.
    CredentialExpired = "credential_expired", 401, false, "Credential expired";
    /// The credential was revoked.
    CredentialRevoked = "credential_revoked", 401, false, "Credential revoked";
    /// The grant does not allow this.
    Forbidden = "forbidden", 403, false, "Not allowed by the grant";
    /// The grant does not cover writing this topic.
    ForbiddenTopic = "forbidden_topic", 403, false, "Topic not covered by the grant";
    /// The browser's origin is not one of those allowed.
    ForbiddenOrigin = "forbidden_origin", 403, false, "Origin not allowed";
    /// There is nothing here, as far as the grant sees.
    NotFound = "not_found", 404, false, "Not found";
    /// The resource does not have this method.
    MethodNotAllowed = "method_not_allowed", 405, false, "Method not allowed";
    /// None of the media types asked for can be served.
    NotAcceptable = "not_acceptable", 406, false, "Not acceptable";
    /// The body arrives more slowly than the hub waits for it.
    TooSlow = "too_slow", 408, true, "Too slow";
    /// The state is not at the expected offset; `current` is what it is.
    Conflict = "conflict", 409, false, "Conflict with the current state";
    /// The topic takes no more events.
    TopicClosed = "topic_closed", 409, false, "Topic closed";
    /// The body, an event or a list is larger than its limit.
    TooLarge = "too_large", 413, false, "Too large";
    /// The body's media type or encoding is not understood.
    UnsupportedMediaType = "unsupported_media_type", 415, false, "Unsupported media type";
    /// The idempotency key was used with another body.
    IdempotencyKeyReused = "idempotency_key_reused", 422, false, "Idempotency key reused";
    /// The request's head is larger than the hub reads.
    HeadTooLarge = "head_too_large", 431, false, "Head too large";
    /// A limit on rate or number was reached.
    LimitReached = "limit_reached", 429, true, "Limit reached";
    /// The topic holds as many states as it may.
    StatesFull = "states_full", 429, false, "Topic holds too many states";
    /// The hub failed in a way it should not have; the log has the request's id.
    Internal = "internal", 500, false, "Internal error";
    /// Something the hub depends on is down, or it is draining.
    Unavailable = "unavailable", 503, true, "Unavailable";
}

/// A problem with one request or one event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// Its kind.
    pub code: ErrorCode,
    /// What is wrong this time and what to do about it, lower case. No secrets, no internals.
    pub detail: String,
    /// JSON pointer of the field (RFC 6901), or the name of the query parameter or header.
    pub pointer: Option<String>,
    /// When to try again at the earliest.
    pub retry_after: Option<Duration>,
    /// Which limit was reached, by its name in the configuration: `user_connections`.
    pub limit: Option<&'static str>,
    /// For [`ErrorCode::Conflict`]: the key's current state as the wire writes events.
    pub current: Option<JsonText>,
}

impl Problem {
    /// A problem of the given kind.
    #[must_use]
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { code, detail, pointer: None, retry_after: None, limit: None, current: None }
    }

    /// Says which field it is.
    #[must_use]
    pub fn at(mut self, pointer: impl Into<String>) -> Self {
        self.pointer = Some(pointer.into());
        self
    }

    /// Says that its field is within another one.
    #[must_use]
    pub(crate) fn within(mut self, place: impl fmt::Display) -> Self {
        self.pointer = self.pointer.map(|pointer| format!("{place}{pointer}"));
        self
    }

    /// When to try again, milliseconds, rounded up: at least 1, as 0 would be at once.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        let ms = self.retry_after?.as_nanos().div_ceil(1_000_000).max(1);
        Some(u64::try_from(ms).unwrap_or(u64::MAX))
    }

    /// Says when to try again.
    #[must_use]
    pub const fn after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// Says which limit was reached.
    #[must_use]
    pub const fn limit(mut self, name: &'static str) -> Self {
        self.limit = Some(name);
        self
    }

    /// The members of the `application/problem+json` object (RFC 9457 §3.1), without `request_id`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut json = serde_json::Map::new();
        let mut put = |name: &str, value: serde_json::Value| {
            json.insert(name.to_owned(), value);
        };
        put("type", format!("urn:tidings:problem:{}", self.code.as_str()).into());
        put("title", self.code.title().into());
        put("status", self.code.status().into());
        put("detail", self.detail.as_str().into());
        put("code", self.code.as_str().into());
        put("retryable", self.code.retryable().into());
        if let Some(pointer) = &self.pointer {
            put("pointer", pointer.as_str().into());
        }
        if let Some(ms) = self.retry_after_ms() {
            put("retry_after_ms", ms.into());
        }
        if let Some(limit) = self.limit {
            put("limit", limit.into());
        }
        if self.code == ErrorCode::Conflict {
            let current = self.current.as_ref().map(|text| serde_json::from_str(text.as_str()));
            put("current", current.and_then(Result::ok).unwrap_or_default());
        }
        json
    }
}

impl From<NameError> for Problem {
    fn from(error: NameError) -> Self {
        Self::new(ErrorCode::Malformed, error.to_string())
    }
}
