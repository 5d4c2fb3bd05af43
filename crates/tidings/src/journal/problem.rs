//! What the journal's refusals and failures are to a caller.
//!
//! The rule: a failure inside the store says when to try again, never what failed: that is logged.

use std::time::Duration;

use super::{JournalError, Refusal};
use crate::{
    error::{ErrorCode, Problem},
    request,
};

impl From<JournalError> for Problem {
    fn from(error: JournalError) -> Self {
        request::logged(|| tracing::error!(%error, "the journal did not answer"));
        Self::new(ErrorCode::Unavailable, "the journal is unavailable, try again later")
            .after(Duration::from_secs(1))
    }
}

impl From<&Refusal> for Problem {
    /// Without `current`, which only the wire's encoder can write.
    fn from(refusal: &Refusal) -> Self {
        let code = match refusal {
            Refusal::Conflict { .. } => ErrorCode::Conflict,
            Refusal::Closed => ErrorCode::TopicClosed,
            Refusal::NotOwner => ErrorCode::ForbiddenTopic,
            Refusal::Changed => ErrorCode::Conflict,
            Refusal::StatesFull { .. } => ErrorCode::StatesFull,
        };
        Self::new(code, refusal.to_string())
    }
}
