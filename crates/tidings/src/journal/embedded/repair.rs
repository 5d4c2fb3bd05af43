//! `tidings journal repair`: gives up what cannot be read of the commit log, so that a hub starts.
//!
//! The rule: what is cut off is kept beside the store, every topic begins a new epoch, and what is
//! left is one piece. Events that are damaged in the tables stay as they are.

use std::{path::Path, path::PathBuf, sync::Arc};

use super::{
    check::{CheckReport, Step, check},
    commit_log::{CommitLog, LogError},
    directory::{self, Directory},
    layout::MEMTABLE_BYTES,
    reclaim::Reclaimable,
    store::{self, refused},
};
use crate::journal::{JournalError, JournalSettings};

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// The log was cut after this commit.
    pub cut_after: Option<u64>,
    /// Where what was cut off is kept.
    pub kept: Option<PathBuf>,
    /// Whether every topic begins a new epoch; else there was nothing to repair.
    pub new_epoch: bool,
    /// What is wrong still, or with a sound journal nothing.
    pub left: CheckReport,
}

/// Repairs the journal in a directory. The hub must be stopped.
///
/// # Errors
/// As [`check`](super::check()).
pub fn repair(path: &Path, step: &mut dyn FnMut(Step)) -> Result<Repaired, JournalError> {
    let (mut cut_after, mut kept) = (None, None);
    let directory = Directory::existing(path)?;
    let files = directory.store_files();
    match CommitLog::read(&files) {
        Ok(_) => {}
        Err(LogError::Damaged(damage)) => {
            let to = directory.damaged();
            CommitLog::cut(&files, &damage, &to)
                .map_err(|error| directory::failed("cut off", &damage.file, &error))?;
            let known = damage.newest.max(damage.before).unwrap_or(0);
            // Further than the log goes: so the loss is noticed when the store is opened.
            further(&directory, known)?;
            (cut_after, kept) = (Some(damage.before.unwrap_or(0)), Some(to));
        }
        Err(error) => return Err(refused(error)),
    }
    directory.release();
    drop(directory);
    if cut_after.is_none() {
        let found = check(path, &mut |_| {})?;
        if found.is_sound() {
            return Ok(Repaired { cut_after, kept, new_epoch: false, left: found });
        }
        let directory = Directory::existing(path)?;
        further(&directory, found.commits)?;
        directory.release();
    }
    let directory = Directory::existing(path)?;
    let nothing = Arc::new(Reclaimable::default());
    // Opening it mends it.
    let opened = store::open(&directory, &nothing, JournalSettings::default(), MEMTABLE_BYTES)?;
    drop(opened);
    directory.sync();
    directory.release();
    drop(directory);
    let left = check(path, step)?;
    Ok(Repaired { cut_after, kept, new_epoch: true, left })
}

/// Notes that the store had more commits than the log has.
fn further(directory: &Directory, known: u64) -> Result<(), JournalError> {
    if directory.is_mark_lost() {
        return directory.begin_mark(known + 1);
    }
    directory.reach(directory.high_water().max(known) + 1);
    directory.sync();
    Ok(())
}
