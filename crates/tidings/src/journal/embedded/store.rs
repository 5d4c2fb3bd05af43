//! Opening the store: its log is read first, its own record last.
//!
//! The rule: what the store had acknowledged is there, or every topic begins a new epoch before
//! anybody reads from it, or the store is not opened. One that is not opened stays as it is.

use std::{
    io,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
};

use fjall::{Database, PersistMode};
use lsm_tree::{AbstractTree as _, AnyTree, SeqNo};

use super::{
    commit_log::{CommitLog, LogDamage, LogError},
    damage::{REMEDY, describe, io_error},
    directory::{self, Directory, Made},
    layout::{META, Meta, SENTINEL, Store, split_u64},
    mend::mend,
    reclaim::{self, Reclaimable},
    tables,
};
use crate::journal::{JournalError, JournalSettings};

/// fjall's own journal files: more would make opening after a crash slow (measured: 512 MiB take
/// above a second).
const STORE_JOURNAL_BYTES: u64 = 64 * 1024 * 1024;
/// Blocks that are kept in memory for reads.
const STORE_CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// Ids that a topic may have been given by commits that were lost.
const LOST_IDS: u64 = 1 << 32;

/// Opens the store of a directory, or makes it.
pub(super) fn open(
    directory: &Directory,
    reclaimable: &Arc<Reclaimable>,
    settings: JournalSettings,
    memtable_bytes: u64,
) -> Result<(Store, Meta), JournalError> {
    let (files, made) = directory.store(|new| {
        let store = open_files(new, reclaimable, settings, memtable_bytes)?;
        store.mark_keyspaces().map_err(|error| unopened(new, &error))
    })?;
    let log = match made {
        Made::Now => CommitLog::default(),
        Made::Before => {
            let log = CommitLog::read(&files).map_err(refused)?;
            log.settle().map_err(refused)?;
            log
        }
    };
    let store = open_whole(&files, reclaimable, settings, memtable_bytes)?;
    let meta = own_record(&store, directory, &log, &files)?;
    for entry in store.floors.iter() {
        let (id, floor) = entry.into_inner().map_err(|error| unopened(&files, &error))?;
        if let (Some((id, _)), Some((floor, _))) = (split_u64(&id), split_u64(&floor)) {
            reclaimable.set_floor(id, floor);
        }
    }
    Ok((store, meta))
}

/// Opens the files of a store whose log was found whole.
pub(super) fn open_whole(
    files: &Path,
    reclaimable: &Arc<Reclaimable>,
    settings: JournalSettings,
    memtable_bytes: u64,
) -> Result<Store, JournalError> {
    probe(files)?;
    let store = open_files(files, reclaimable, settings, memtable_bytes)?;
    for keyspace in store.keyspaces() {
        let is_there = keyspace.contains_key(SENTINEL).map_err(|error| unopened(files, &error))?;
        if !is_there {
            let (at, name) = (keyspace.path().display(), keyspace.name());
            return Err(JournalError::Broken(format!(
                "{at}: what makes `{name}` is missing, here or in the commit log; restore a backup, \
                 or choose an empty directory to begin with an empty journal"
            )));
        }
    }
    Ok(store)
}

/// Looks at everything that names the store's files, changing nothing, and then opens each keyspace
/// by itself, and so knows which is damaged. Inside the store's own opening, an assertion on damage
/// ends the process instead: its locks are poisoned when it cleans up.
///
/// Worse, the store takes what is not named for something that was never finished, and deletes it
/// with all its tables: a keyspace without `current`, and each that its own keyspace does not know.
/// A store is made whole under another name, so here there is nothing that was never finished.
fn probe(files: &Path) -> Result<(), JournalError> {
    let version = files.join("version");
    if !version.exists() {
        // The store would take the directory for a new one, and meet its own files there.
        return Err(missing(&version));
    }
    let keyspaces = files.join("keyspaces");
    let unread = |error| directory::failed("read", &keyspaces, &error);
    let found = tables::keyspaces(files).map_err(unread)?;
    let own = keyspaces.join(OWN_KEYSPACE);
    let made = (0..=Store::KEYSPACES).map(|number| keyspaces.join(number.to_string()));
    // What an earlier version deleted and made anew has another number.
    let absent = made.into_iter().find(|path| !found.contains(path));
    if let Some(path) = absent.filter(|path| found.len() <= Store::KEYSPACES || *path == own) {
        return Err(missing(&path));
    }
    for path in &found {
        let current = path.join(tables::CURRENT);
        if !current.exists() {
            return Err(missing(&current));
        }
        if let Some(file) = tables::damaged_list(path).map_err(unread)? {
            let what = tables::does_not_match(&file);
            return Err(JournalError::Broken(format!("{what}; restore a backup")));
        }
    }
    let unknown = opened(&own, |tree| unknown_to(tree, &found))?;
    if let Some(path) = unknown {
        return Err(JournalError::Broken(format!(
            "{}: the store does not know this keyspace; restore a backup, or move it elsewhere if \
             it was put there",
            path.display()
        )));
    }
    found.iter().filter(|path| **path != own).try_for_each(|path| opened(path, |_| Ok(())))
}

/// The keyspace in which the store keeps the names of the others.
const OWN_KEYSPACE: &str = "0";

fn missing(file: &Path) -> JournalError {
    JournalError::Broken(format!("{}: is missing; restore a backup", file.display()))
}

/// Opens a keyspace by itself.
fn opened<T>(
    keyspace: &Path,
    then: impl FnOnce(&AnyTree) -> Result<T, lsm_tree::Error>,
) -> Result<T, JournalError> {
    let open = || {
        let counter = lsm_tree::SequenceNumberCounter::default();
        then(&lsm_tree::Config::new(keyspace, counter.clone(), counter).open()?)
    };
    let damaged = |error: fjall::Error| match io_error(&error) {
        Some(io) if io.kind() != io::ErrorKind::UnexpectedEof => {
            directory::failed("opened", keyspace, io)
        }
        _ => JournalError::Broken(format!("{}; restore a backup", damaged_file(keyspace))),
    };
    match std::panic::catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(|error| damaged(error.into())),
        Err(_) => Err(damaged(fjall::Error::Unrecoverable)),
    }
}

/// The first keyspace that the store's own, under `n` and its number (u64, big endian), has no name
/// for.
fn unknown_to<'a>(
    own: &AnyTree,
    found: &'a [PathBuf],
) -> Result<Option<&'a PathBuf>, lsm_tree::Error> {
    for path in found.iter().filter(|path| !path.ends_with(OWN_KEYSPACE)) {
        let number = path.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
        let Some(number) = number else { return Ok(Some(path)) };
        let key = [&b"n"[..], &number.to_be_bytes()].concat();
        if own.get(key, SeqNo::MAX)?.is_none() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// What is wrong in a keyspace that does not open, with the file's name if that is known.
fn damaged_file(keyspace: &Path) -> String {
    let damaged = tables::damaged_of(keyspace).unwrap_or_default().into_iter().next();
    damaged.unwrap_or_else(|| format!("{}: a file in it is damaged or missing", keyspace.display()))
}

pub(super) fn open_files(
    files: &Path,
    reclaimable: &Arc<Reclaimable>,
    settings: JournalSettings,
    memtable_bytes: u64,
) -> Result<Store, JournalError> {
    let filtered = Arc::clone(reclaimable);
    let filters = move |keyspace: &str| reclaim::filter(keyspace, &filtered, settings);
    let open = || {
        let db = Database::builder(files)
            .max_journaling_size(STORE_JOURNAL_BYTES)
            .cache_size(STORE_CACHE_BYTES)
            .manual_journal_persist(true)
            .with_compaction_filter_factories(Arc::new(filters))
            .open();
        db.and_then(|db| Store::open(db, memtable_bytes))
    };
    // Some damage is met by an assertion of the store instead of an error.
    match std::panic::catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(|error| unopened(files, &error)),
        Err(_) => Err(unopened(files, &fjall::Error::Unrecoverable)),
    }
}

/// What the store knows of itself, if it knows it.
pub(super) fn read_meta(store: &Store, files: &Path) -> Result<Option<Meta>, JournalError> {
    let stored = store.meta.get(META).map_err(|error| unopened(files, &error))?;
    let damaged = || {
        let at = store.meta.path().display();
        JournalError::Broken(format!("{at}: the store's own record is damaged; {REMEDY}"))
    };
    stored.map(|bytes| Meta::read(&bytes).ok_or_else(damaged)).transpose()
}

/// Reads what the store knows of itself, and whether it has lost its end.
fn own_record(
    store: &Store,
    directory: &Directory,
    log: &CommitLog,
    files: &Path,
) -> Result<Meta, JournalError> {
    let stored = read_meta(store, files)?;
    let mut meta = match stored {
        Some(meta) => meta,
        None => first_record()?,
    };
    let lost = lost(stored, directory, log);
    if let Some(known) = lost {
        // Ids of topics that were lost must not be used again, nor offsets of those that were not.
        meta.store_epoch = draw_u32()?;
        meta.next_id = meta.next_id.saturating_add(LOST_IDS);
        let found = log.last.or(stored).map_or(0, |meta| meta.commits);
        let path = directory.path().display();
        if directory.is_mark_lost() {
            tracing::error!(
                directory = %path,
                found,
                "the journal's file `commits` is missing, so its newest commits may be too: every \
                 topic begins a new epoch"
            );
        } else {
            tracing::error!(
                directory = %path,
                found,
                known,
                "the journal has lost its newest commits: every topic begins a new epoch"
            );
        }
        meta.commits = known;
        mend(store)?;
    }
    if stored.is_none() || lost.is_some() {
        // Before anybody is told of an epoch, it is the one that the next start finds.
        let mut batch = store.db.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&store.meta, META, meta.write());
        batch.commit().map_err(|error| unopened(files, &error))?;
    }
    if directory.is_mark_lost() {
        directory.begin_mark(meta.commits)?;
    }
    directory.reach(meta.commits);
    Ok(meta)
}

/// How many commits there were, if some of them are not there any more, or may not be.
///
/// Tables may be ahead of a log that lost its end: then the record in them tells how far it went.
pub(super) fn lost(stored: Option<Meta>, directory: &Directory, log: &CommitLog) -> Option<u64> {
    let commits = |meta: Meta| meta.commits;
    let known = directory.high_water().max(stored.map_or(0, commits));
    if directory.is_mark_lost() {
        let known = known.max(log.last.map_or(0, commits));
        return (known > 0).then_some(known);
    }
    match (stored, log.last) {
        (Some(_), Some(last)) => (last.commits < known).then_some(known),
        (Some(stored), None) => (stored.commits < known).then_some(known),
        (None, last) => (known > 0 || last.is_some()).then_some(known.max(last.map_or(0, commits))),
    }
}

/// The record of a store that has none: nothing was ever committed, or all of it was lost.
fn first_record() -> Result<Meta, JournalError> {
    Ok(Meta { secret: draw_secret()?, store_epoch: draw_u32()?, next_id: 1, commits: 0 })
}

pub(super) fn draw_secret() -> Result<u64, JournalError> {
    getrandom::u64().map_err(no_randomness)
}

pub(super) fn draw_u32() -> Result<u32, JournalError> {
    getrandom::u32().map_err(no_randomness)
}

fn no_randomness(error: getrandom::Error) -> JournalError {
    JournalError::Broken(format!("no randomness: {error}"))
}

/// What a log is to who wants to open its store.
pub(super) fn refused(error: LogError) -> JournalError {
    match error {
        LogError::Io(file, error) => directory::failed("read", &file, &error),
        LogError::Damaged(damage) => JournalError::Broken(damaged_log(&damage)),
    }
}

pub(super) fn damaged_log(damage: &LogDamage) -> String {
    format!(
        "{damage}; restore a backup, or give them up with `tidings journal repair`: every topic \
         then begins a new epoch"
    )
}

/// Why a store's files cannot be opened.
pub(super) fn unopened(files: &Path, error: &fjall::Error) -> JournalError {
    let at = files.display();
    if let fjall::Error::Locked = error {
        return directory::locked(files);
    }
    let version = files.join("version");
    if let Some(error) = io_error(error) {
        return directory::failed("opened", files, error);
    }
    JournalError::Broken(match error {
        fjall::Error::InvalidVersion(_) => format!(
            "{}: the store has another version, or the file is damaged; run the version of \
             Tidings that wrote it, or restore a backup",
            version.display()
        ),
        other => {
            let damaged = tables::damaged(files).unwrap_or_default().into_iter().next();
            let what = damaged.unwrap_or_else(|| {
                format!("{at}: the store cannot be opened: {}", describe(other))
            });
            format!(
                "{what}; restore a backup, or choose an empty directory to begin with an empty \
                 journal"
            )
        }
    })
}
