//! Damage: what a failed read means, and what was found so far.
//!
//! The rule: what is wrong is told by topic and place, with what to do about it, once; and it harms
//! its own topic only.

use std::{
    collections::HashSet,
    error::Error as _,
    io,
    sync::{Mutex, PoisonError},
};

use fjall::Keyspace;

use crate::{journal::JournalError, model::TopicKey};

/// What an operator can do about damage inside the store.
pub(super) const REMEDY: &str = "stop the hub and run `tidings journal check`; then restore a \
                                 backup, or save the rest with `tidings journal export --salvage`";

/// What helps where a file of a table is damaged, and the store can be opened.
pub(super) const TABLE_REMEDY: &str = "restore a backup, or save the rest with `tidings journal \
                                       export --salvage`";

/// Places that are remembered, so that each is logged once; more are logged every time.
const PLACES_MAX: usize = 1000;

/// The damage that was met, by background work or by readers.
#[derive(Debug, Default)]
pub(super) struct Damage {
    met: Mutex<HashSet<String>>,
}

impl Damage {
    /// Logs damage, and counts it, unless it was met before.
    pub(super) fn met(&self, error: &JournalError) {
        let JournalError::Broken(what) = error else { return };
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if met.contains(what) {
            return;
        }
        tracing::error!(error = what, "the journal is damaged");
        if met.len() < PLACES_MAX {
            met.insert(what.clone());
        }
    }

    /// How many damaged places were met since the start; not more than are remembered.
    pub(super) fn count(&self) -> usize {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A record of a topic is wrong.
pub(super) fn damaged(topic: &TopicKey, what: impl std::fmt::Display) -> JournalError {
    JournalError::Broken(format!(
        "topic {} of tenant {}: {what}; {REMEDY}",
        topic.topic, topic.tenant
    ))
}

/// A read that the store refused.
pub(super) fn unreadable(keyspace: &Keyspace, error: &fjall::Error) -> JournalError {
    let at = keyspace.path().display();
    match io_error(error) {
        Some(error) => JournalError::Unavailable(format!("{at}: cannot be read: {error}")),
        None => {
            let name = keyspace.name();
            let what = describe(error);
            JournalError::Broken(format!("{at}: the tables of `{name}`: {what}; {REMEDY}"))
        }
    }
}

/// The system's own error, if that is what is behind it.
pub(super) fn io_error(error: &fjall::Error) -> Option<&io::Error> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref() {
            return Some(io);
        }
        source = error.source();
    }
    None
}

/// What is wrong, without the store's own names for it.
pub(super) fn describe(error: &fjall::Error) -> String {
    match (io_error(error), error) {
        (Some(io), _) => io.to_string(),
        (_, fjall::Error::JournalRecovery(_)) => "the commit log is damaged".to_owned(),
        (_, fjall::Error::Poisoned) => {
            "writing in the background failed, as when the disk is full or broken".to_owned()
        }
        _ => "a file is damaged or missing".to_owned(),
    }
}
