//! `tidings journal check`: everything that a journal holds, read and compared.
//!
//! The rule: nothing is changed but what starting a hub changes, and whatever is wrong is told by
//! topic and offset; one finding does not hide the next.

use std::{collections::HashSet, fmt, path::Path, sync::Arc};

use fjall::{Readable as _, Snapshot};

use super::{
    commit_log::{CommitLog, LogError},
    damage::{REMEDY, TABLE_REMEDY},
    directory::{self, Directory},
    layout::{MEMTABLE_BYTES, Meta, Store, is_sentinel, read_due, split_u64, write_due},
    reclaim::{DELETED, Reclaimable},
    store::{damaged_log, lost, open_whole, read_meta, refused},
    tables,
    walk::{self, Held, Topic},
    writer::due_of,
};
use crate::{
    journal::{JournalError, JournalSettings},
    model::{Fingerprint, Offset, Timestamp, TopicKey},
};

/// Findings that are told; more are counted.
const FINDINGS_MAX: usize = 1000;

/// How far a tool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Events and states that are done.
    pub done: u64,
    /// … of so many.
    pub total: u64,
}

/// Something that is wrong with a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// In which topic; `None`: in what is no single topic's.
    pub topic: Option<TopicKey>,
    /// At which offset.
    pub offset: Option<Offset>,
    /// What is wrong, and for what is no topic's, what to do.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(TopicKey { tenant, topic }) = &self.topic {
            write!(f, "topic {topic} of tenant {tenant}")?;
            if let Some(offset) = self.offset {
                write!(f, ", offset {offset}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.what)
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Topics that are there.
    pub topics: u64,
    /// Log events and tombstones.
    pub events: u64,
    /// Current states.
    pub states: u64,
    /// Commits that were ever made.
    pub commits: u64,
    /// What is wrong, the first thousand.
    pub findings: Vec<Finding>,
    /// How much is wrong.
    pub findings_total: u64,
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.findings_total == 0
    }

    fn find(&mut self, topic: Option<&TopicKey>, offset: Option<Offset>, what: impl fmt::Display) {
        self.findings_total += 1;
        if self.findings.len() < FINDINGS_MAX {
            let (topic, what) = (topic.cloned(), what.to_string());
            self.findings.push(Finding { topic, offset, what });
        }
    }
}

/// Reads everything that the journal in a directory holds. The hub must be stopped.
///
/// # Errors
/// [`JournalError::Unavailable`] if a process has it open, [`JournalError::Unusable`] if there is no
/// journal that this program may read, [`JournalError::Broken`] if it cannot be opened at all; each
/// says what to do.
pub fn check(path: &Path, step: &mut dyn FnMut(Step)) -> Result<CheckReport, JournalError> {
    let directory = Directory::existing(path)?;
    let files = directory.store_files();
    let mut report = CheckReport::default();
    // By file, before the store may put others in their place; what was in them comes by topic.
    match tables::damaged(&files) {
        Ok(damaged) => damaged
            .into_iter()
            .for_each(|what| report.find(None, None, format!("{what}; {TABLE_REMEDY}"))),
        Err(error) => return Err(directory::failed("read", &files.join("keyspaces"), &error)),
    }
    let log = match CommitLog::read(&files) {
        Ok(log) => log,
        Err(LogError::Damaged(damage)) => {
            // Opening the store would cut it off.
            report.find(None, None, damaged_log(&damage));
            return Ok(report);
        }
        Err(error) => return Err(refused(error)),
    };
    let store = open_to_read(&files)?;
    let meta = read_meta(&store, &files)?;
    if let Some(known) = lost(meta, &directory, &log) {
        report.find(None, None, lost_commits(known, &directory, &log, meta));
    }
    report.commits = log.last.or(meta).map_or(0, |meta| meta.commits);
    let ids = meta.map_or(u64::MAX, |meta| meta.next_id);
    let snapshot = store.db.snapshot();
    Checker { store: &store, snapshot: &snapshot, report: &mut report, ids: HashSet::new() }
        .run(ids, step);
    drop(snapshot);
    drop(store);
    directory.release();
    Ok(report)
}

/// What was lost of a store, and what becomes of the rest.
fn lost_commits(known: u64, directory: &Directory, log: &CommitLog, meta: Option<Meta>) -> String {
    let begins = "when the hub starts, it mends the rest and every topic begins a new epoch; or \
                  restore a backup";
    if directory.is_mark_lost() {
        return format!(
            "commits after {known} may be lost: the file `commits` is missing; {begins}"
        );
    }
    let found = log.last.or(meta).map_or(0, |meta| meta.commits);
    format!("the commits {} to {known} were lost: {begins}", found + 1)
}

/// Opens a store that nothing is to be reclaimed from.
pub(super) fn open_to_read(files: &Path) -> Result<Store, JournalError> {
    let nothing = Arc::new(Reclaimable::default());
    open_whole(files, &nothing, JournalSettings::default(), MEMTABLE_BYTES)
}

/// How much there is to do.
pub(super) fn total(store: &Store, snapshot: &Snapshot) -> u64 {
    let topics = walk::topics(store, snapshot).filter_map(Result::ok);
    topics.map(|topic| topic.record.events + topic.record.states).sum()
}

struct Checker<'a> {
    store: &'a Store,
    snapshot: &'a Snapshot,
    report: &'a mut CheckReport,
    /// Ids of topics that are there.
    ids: HashSet<u64>,
}

impl Checker<'_> {
    fn run(mut self, next_id: u64, step: &mut dyn FnMut(Step)) {
        let total = total(self.store, self.snapshot);
        for topic in walk::topics(self.store, self.snapshot) {
            let topic = match topic {
                Ok(topic) => topic,
                Err(error) => {
                    self.report.find(None, None, format!("{error}; {REMEDY}"));
                    continue;
                }
            };
            self.report.topics += 1;
            if !self.ids.insert(topic.record.id) || topic.record.id >= next_id {
                self.find(&topic, None, "its id is not its own");
            }
            self.topic(&topic);
            let (events, states) = (self.report.events, self.report.states);
            step(Step { done: (events + states).min(total), total });
        }
        self.orphans();
        self.due();
    }

    fn find(&mut self, topic: &Topic<'_>, offset: Option<Offset>, what: impl fmt::Display) {
        self.report.find(Some(&topic.key), offset, what);
    }

    fn topic(&mut self, topic: &Topic<'_>) {
        let record = &topic.record;
        let (mut events, mut bytes, mut states) = (0, 0, 0);
        let (mut last, mut time) = (record.floor, Timestamp::default());
        let (mut newest, mut damaged) = (None, false);
        for (offset, held) in topic.held() {
            if offset > last.next() {
                let what = format!("what was at {} to {offset} is missing", last.next());
                self.find(topic, Some(last.next()), what);
            } else if offset <= last && offset > record.floor {
                self.find(topic, Some(offset), "there are two events");
            }
            last = last.max(offset);
            let (fingerprint, at) = match held {
                Ok(Held::Log(event, length)) => {
                    events += 1;
                    bytes += length;
                    (event.fingerprint, event.recorded_at)
                }
                Ok(Held::State(event)) => {
                    states += 1;
                    self.times(topic, &event);
                    (event.fingerprint, event.recorded_at)
                }
                Ok(Held::Mark(fingerprint, at)) => (fingerprint, at),
                Err(error) => {
                    self.find(topic, Some(offset), &error);
                    (newest, damaged) = (None, true);
                    continue;
                }
            };
            // States from below the floor come in between, and are older than what was trimmed.
            if at < time {
                self.find(topic, Some(offset), "it was recorded before the event before it");
            }
            time = time.max(at);
            newest = Some((offset, fingerprint));
        }
        self.ends(topic, last, newest);
        self.report.events += events;
        self.report.states += states;
        for (what, found, told) in [
            ("events", events, record.events),
            ("bytes", bytes, record.bytes),
            ("states", states, record.states),
        ] {
            if found != told && !damaged {
                self.find(topic, None, format!("{found} {what} are there, {told} are told"));
            }
        }
        self.states(topic, states);
        self.seen(topic);
    }

    /// Compares where a topic ends with where it says it does.
    fn ends(&mut self, topic: &Topic<'_>, last: Offset, newest: Option<(Offset, Fingerprint)>) {
        let record = &topic.record;
        if last.next() < record.tail {
            let what =
                format!("what was at {} to {} is missing", last.next(), record.tail.previous());
            self.find(topic, Some(last.next()), what);
        } else if last >= record.tail {
            self.find(topic, Some(last), format!("it is at or beyond the end, {}", record.tail));
        }
        let wrong = newest.is_some_and(|(offset, fingerprint)| {
            offset.next() == record.tail && fingerprint != record.tail_fingerprint
        });
        if wrong {
            self.find(topic, Some(last), "it is another event than the topic's last");
        }
    }

    /// Compares a state's times with the due index.
    fn times(&mut self, topic: &Topic<'_>, state: &crate::model::Event) {
        for key in due_of(topic.record.id, state) {
            let entry = self.snapshot.get(&self.store.due, key).ok().flatten();
            let right = write_due(&topic.key, state.offset);
            if entry.is_none_or(|entry| *entry != *right) {
                self.find(topic, Some(state.offset), "the state is not in the due index");
            }
        }
    }

    /// Compares the states by key with those by offset, of which there are so many.
    fn states(&mut self, topic: &Topic<'_>, by_offset: u64) {
        let mut by_key = 0;
        for state in topic.states() {
            by_key += 1;
            if let Err(error) = state {
                self.find(topic, None, error);
            }
        }
        if by_key != by_offset {
            let what = format!("{by_key} states by key are there, but {by_offset} by offset");
            self.find(topic, None, what);
        }
    }

    fn seen(&mut self, topic: &Topic<'_>) {
        for seen in topic.seen() {
            match seen {
                Ok((id, offset, ..)) if offset >= topic.record.tail => {
                    let what = format!("the id {id:?} was seen beyond the end");
                    self.find(topic, Some(offset), what);
                }
                Ok(_) => {}
                Err(error) => self.find(topic, None, error),
            }
        }
    }

    /// Looks for what belongs to no topic.
    fn orphans(&mut self) {
        let Store { log, states, places, marks, dedup, floors, .. } = self.store;
        let mut told = HashSet::new();
        for keyspace in [log, states, places, marks, dedup] {
            for id in walk::ids(self.snapshot, keyspace) {
                let id = match id {
                    Ok(id) => id,
                    Err(error) => {
                        self.report.find(None, None, error);
                        break;
                    }
                };
                let floor = self.snapshot.get(floors, id.to_be_bytes()).ok().flatten();
                let is_deleted = floor.is_some_and(|floor| *floor == DELETED.to_be_bytes());
                if !self.ids.contains(&id) && !is_deleted && told.insert(id) {
                    let name = keyspace.name();
                    let what = format!("`{name}` holds topic number {id}, whose record is missing");
                    self.report.find(None, None, what);
                }
            }
        }
    }

    fn due(&mut self) {
        for entry in walk::entries(self.snapshot, &self.store.due, Vec::new()) {
            let (key, value) = match entry {
                Ok(entry) => entry,
                Err(error) => return self.report.find(None, None, error),
            };
            if is_sentinel(&key) {
                continue;
            }
            let Some(entry) = read_due(&key, &value) else {
                self.report.find(None, None, "an entry of the due index is damaged");
                continue;
            };
            let state = self.snapshot.get(&self.store.states, &entry.state_key).ok().flatten();
            let offset = state.as_deref().and_then(split_u64).map(|(offset, _)| offset);
            if offset != Some(entry.offset.0) {
                let what = "the due index has a state that is not there";
                self.report.find(Some(&entry.topic), Some(entry.offset), what);
            }
        }
    }
}
