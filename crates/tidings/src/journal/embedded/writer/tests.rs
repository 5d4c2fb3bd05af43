//! What is not seen from outside: how much one commit takes, and what the writer keeps in memory.

use std::path::Path;

use super::*;
use crate::{
    clock::SystemClock,
    journal::embedded::{layout::MEMTABLE_BYTES, store},
    metrics::Metrics,
    model::{EventType, JsonText, Tenant, Topic},
};

fn topic(name: &str) -> TopicKey {
    TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse(name).unwrap())
}

/// A writer that nobody has started.
fn writer(path: &Path) -> Writer {
    let settings = JournalSettings::default();
    let directory = Arc::new(Directory::open(path).unwrap());
    let reclaimable = Arc::new(Reclaimable::default());
    let (store, meta) = store::open(&directory, &reclaimable, settings, MEMTABLE_BYTES).unwrap();
    let metrics = Arc::new(Metrics::default());
    Writer {
        store,
        settings,
        clock: Arc::new(SystemClock),
        preallocation: Preallocation::of(directory.store_files()),
        reclaimable,
        due_start: Arc::default(),
        directory,
        progress: Arc::new(Progress::after(meta.commits, metrics)),
        meta,
        records: HashMap::new(),
        deletions: HashMap::new(),
    }
}

fn event(data: &str) -> NewEvent {
    NewEvent::new(EventType::parse("a.b").unwrap()).data(JsonText::string(data))
}

fn append(event: NewEvent) -> Request {
    let events = vec![Append::new(Arc::new(event))];
    let (reply, _) = oneshot::channel();
    Request::Append { topic: topic("t"), batch: Batch { events, ..Batch::default() }, reply }
}

/// How many commits it takes to write what queued up before the writer looked.
fn commits_of(events: usize, data: &str) -> u64 {
    let directory = tempfile::tempdir().unwrap();
    let writer = writer(directory.path());
    let (before, progress) = (writer.meta.commits, Arc::clone(&writer.progress));
    let (requests, receiver) = mpsc::channel(events);
    for _ in 0..events {
        requests.try_send(append(event(data))).unwrap();
    }
    drop(requests);
    writer.run(receiver);
    progress.commits() - before
}

#[test]
fn what_queued_up_is_one_commit_up_to_a_number_of_events() {
    // An append counts, and each event of it.
    assert_eq!(commits_of(COMMIT_EVENTS_MAX / 2, ""), 1);
    assert_eq!(commits_of(COMMIT_EVENTS_MAX / 2 + 1, ""), 2);
}

#[test]
fn what_queued_up_is_one_commit_up_to_a_number_of_bytes() {
    let length = |data: &str| {
        let (_, bytes) = record::encode(&Arc::new(event(data)), Offset(1), Timestamp::default());
        bytes.len()
    };
    let data = "x".repeat(COMMIT_BYTES_MAX / 16 - length(""));
    assert_eq!(length(&data) * 16, COMMIT_BYTES_MAX);
    assert_eq!(commits_of(16, &data), 1);
    assert_eq!(commits_of(17, &data), 2);
}

#[test]
fn records_of_topics_are_kept_up_to_a_number_of_them() {
    for (others, kept) in [(RECORDS_MAX - 1, RECORDS_MAX), (RECORDS_MAX, 0)] {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(directory.path());
        let other = |n: usize| (topic(&format!("other/{n}")), TopicRecord::absent(0));
        writer.records.extend((0..others).map(other));
        let mut commit = Commit::new(&writer.store);
        writer.stage(append(event("")), &mut commit);
        writer.commit(commit);
        assert_eq!(writer.records.len(), kept);
    }
}

#[test]
fn a_trim_of_another_incarnation_or_of_nothing_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path());
    let mut apply = |request| {
        let mut commit = Commit::new(&writer.store);
        writer.stage(request, &mut commit);
        writer.commit(commit);
        writer.records[&topic("t")].clone()
    };
    apply(append(event("1")));
    let record = apply(append(event("2")));
    let floor_fingerprint = Fingerprint(7);
    let some = Trim {
        id: record.id,
        floor: Offset(1),
        floor_fingerprint,
        oldest_at: None,
        events: 1,
        bytes: 1,
    };
    // It was found by reading, and meanwhile the topic was deleted and written again; or another
    // trim came first.
    for trim in [Trim { id: some.id + 1, ..some }, Trim { floor: record.floor, ..some }] {
        let (reply, _) = oneshot::channel();
        assert_eq!(apply(Request::Trim { topic: topic("t"), trim, reply }), record);
    }
    let (reply, _) = oneshot::channel();
    let trimmed = apply(Request::Trim { topic: topic("t"), trim: some, reply });
    assert_eq!((trimmed.floor, trimmed.events), (Offset(1), record.events - 1));
    // What is trimmed no further may be learnt of.
    let (reply, _) = oneshot::channel();
    let oldest_at = Some(Timestamp::from_millis(5));
    let trim = Trim { oldest_at, events: 0, bytes: 0, ..some };
    let learnt = apply(Request::Trim { topic: topic("t"), trim, reply });
    assert_eq!((learnt.floor, learnt.oldest_at), (trimmed.floor, Timestamp::from_millis(5)));
}
