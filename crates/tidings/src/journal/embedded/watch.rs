//! Looks after the journal from outside: a commit that hangs, the high-water mark, compaction.
//!
//! The rule: the thread that watches the writer never waits for the disk; what does has a thread of
//! its own.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use fjall::PersistMode;

use super::{
    damage::describe, directory::Directory, layout::Store, progress::Progress, reclaim::Reclaimer,
};
use crate::{
    journal::JournalError,
    model::limits::{COMMIT_SLOW, COMMIT_STALL_MAX, COMPACTION_WAIT_MAX, HIGH_WATER_SYNC},
};

/// How often the writer is looked at: a quarter of what it may take.
const LOOK: Duration = Duration::from_millis(250);

/// How much was trimmed or deleted before the store is compacted, once it is idle …
const RECLAIM_IDLE_BYTES: u64 = 64 * 1024 * 1024;
/// … and before it is compacted although it is busy.
const RECLAIM_BUSY_BYTES: u64 = 1024 * 1024 * 1024;

/// What the journal and those who watch it use.
pub(super) struct Shared {
    pub(super) directory: Arc<Directory>,
    pub(super) progress: Arc<Progress>,
    pub(super) reclaimer: Reclaimer,
    /// Asked whether it failed in the background; `None` once the journal was closed.
    pub(super) store: Mutex<Option<Store>>,
    is_closing: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        directory: Arc<Directory>,
        progress: Arc<Progress>,
        reclaimer: Reclaimer,
        store: Store,
    ) -> Self {
        let store = Mutex::new(Some(store));
        Self { directory, progress, reclaimer, store, is_closing: AtomicBool::new(false) }
    }

    /// Starts the threads; they end with the journal.
    pub(super) fn watch(shared: &Arc<Self>) -> Result<(), JournalError> {
        let watched = Arc::downgrade(shared);
        spawn("journal-watch", move || watch(&watched))?;
        let kept = Arc::downgrade(shared);
        spawn("journal-keeper", move || keep(&kept))
    }

    /// Fails if the store failed in the background, where memtables are written: else it would show
    /// in the next commit only.
    fn check_store(&self) -> Result<(), fjall::Error> {
        // Under the lock: closing waits for this, as it waits for all that holds the store.
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(store) = store.as_ref() else { return Ok(()) };
        let size = store.db.disk_space()?;
        self.progress.metrics.journal_size.set(i64::try_from(size).unwrap_or(i64::MAX));
        store.db.persist(PersistMode::Buffer)
    }

    /// Closes the files, once nobody asks for them any more. Blocks.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::SeqCst);
        let is_idle = self.reclaimer.close(COMPACTION_WAIT_MAX);
        drop(self.store.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.directory.sync();
        if is_idle {
            self.directory.release();
        } else {
            tracing::warn!("a compaction goes on while the journal is closed: it is begun anew");
        }
    }
}

pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), JournalError> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map(drop).map_err(|error| {
        JournalError::Broken(format!("cannot start the thread {name}: {error}; raise its limit"))
    })
}

/// Tells of a commit that is slow, and ends the process if it hangs: the store is stuck, and
/// starting again mends it.
fn watch(shared: &Weak<Shared>) {
    let mut is_slow = false;
    loop {
        // Nothing is waited for here: this is the clock by which the writer is watched.
        thread::sleep(LOOK);
        let Some(shared) = shared.upgrade() else { return };
        let taken = shared.progress.committing().unwrap_or_default();
        if is_slow != (taken >= COMMIT_SLOW) {
            is_slow = !is_slow;
            if is_slow {
                tracing::error!(
                    directory = %shared.directory.path().display(),
                    limit_ms = u64::try_from(COMMIT_SLOW.as_millis()).unwrap_or(u64::MAX),
                    "a commit is slow: the disk does not get on, and the hub is not ready"
                );
            } else {
                tracing::warn!("the slow commit is done");
            }
        }
        if taken > COMMIT_STALL_MAX {
            tracing::error!(
                directory = %shared.directory.path().display(),
                taken_ms = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX),
                "a commit hangs: the process ends, to be started anew"
            );
            std::process::abort();
        }
    }
}

/// Does what may wait for the disk.
fn keep(shared: &Weak<Shared>) {
    let mut commits_before = 0;
    loop {
        // This is the clock by which the mark is synced.
        thread::sleep(HIGH_WATER_SYNC);
        let Some(shared) = shared.upgrade() else { return };
        if shared.is_closing.load(Ordering::SeqCst) {
            return;
        }
        shared.directory.sync();
        if let Err(error) = shared.check_store() {
            let (directory, reason) = (shared.directory.path().display(), describe(&error));
            let remedy = "see to the disk, then start the hub anew";
            shared.progress.fail(format!("{directory}: {reason}; {remedy}"));
        }
        let commits = shared.progress.commits();
        let is_idle = commits == commits_before;
        commits_before = commits;
        let worthwhile = if is_idle { RECLAIM_IDLE_BYTES } else { RECLAIM_BUSY_BYTES };
        if shared.reclaimer.is_idle() && shared.reclaimer.bytes() >= worthwhile {
            let shared = Arc::clone(&shared);
            let reclaim = move || {
                if let Err(error) = shared.reclaimer.run() {
                    let error = describe(&error);
                    tracing::error!(error, "the store was not compacted, and keeps growing");
                }
            };
            // It takes long, and the mark is to be synced meanwhile.
            if let Err(error) = spawn("journal-reclaim", reclaim) {
                tracing::warn!(%error, "the store was not compacted");
            }
        }
    }
}
