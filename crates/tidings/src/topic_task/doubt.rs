//! Whether a topic holds what the journal said.
//!
//! The rule: what a server was asked for and did not answer may be stored, now or a little later. The
//! topic's task looks for it, and nobody else: without a bus, no other node is there to tell.

use std::sync::atomic::{AtomicU8, Ordering};

/// How often is looked. A look is at most [`TOPIC_IDLE`](crate::model::limits::TOPIC_IDLE) away, the
/// second as much again, which is more than the time that any journal gives its server.
const LOOKS: u8 = 2;

/// The looks that are left. Only the topic's task changes them.
#[derive(Debug, Default)]
pub(super) struct Doubt(AtomicU8);

impl Doubt {
    /// More may have been stored or changed than the journal said, or may yet be.
    pub(super) fn begin(&self) {
        self.0.store(LOOKS, Ordering::Relaxed);
    }

    pub(super) fn is_left(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// It is looked at once.
    pub(super) fn look(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
    }
}
