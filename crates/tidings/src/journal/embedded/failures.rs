//! What goes wrong inside: the writer, the store's own record, single records.

use std::{fs, path::Path, thread};

use super::{
    layout::{META, Meta, deletions_key, named_key, offset_key, topic_key},
    *,
};
use crate::{
    journal::{Append, Dedup, DeleteIf, Outcome},
    model::{EventType, JsonText, NewEvent, StateKey, Tenant, Topic},
};

fn topic(name: &str) -> TopicKey {
    TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse(name).unwrap())
}

fn log(text: &str) -> Append {
    let event = NewEvent::new(EventType::parse("a.b").unwrap()).data(JsonText::string(text));
    Append { dedup: Dedup::ById, ..Append::new(Arc::new(event)) }
}

fn state(key: &str, expires_at: u64) -> Append {
    let event = NewEvent::new(EventType::parse("a.b").unwrap());
    let event = event.state(StateKey::parse(key).unwrap()).data(JsonText::string("x"));
    let expires_at = Some(Timestamp::from_millis(expires_at));
    Append::new(Arc::new(NewEvent { expires_at, ..event }))
}

fn batch(events: impl IntoIterator<Item = Append>) -> Batch {
    let now = Timestamp::from_millis(1000);
    Batch { events: events.into_iter().collect(), now, ..Batch::default() }
}

fn open(path: &Path) -> Arc<EmbeddedJournal> {
    EmbeddedJournal::open(path, JournalSettings::default()).unwrap()
}

async fn put(
    journal: &EmbeddedJournal,
    topic: &TopicKey,
    events: impl IntoIterator<Item = Append>,
) -> Appended {
    journal.append(topic, batch(events)).await.unwrap()
}

async fn head(journal: &EmbeddedJournal, topic: &TopicKey) -> Head {
    journal.describe(topic).await.unwrap().head
}

fn store(journal: &EmbeddedJournal) -> layout::Store {
    journal.opened().unwrap().reader.store
}

#[test]
fn a_failure_in_the_background_is_told_with_the_systems_own_reason() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("journal");
    let directory = Directory::open(&path).unwrap();
    let told = || writer::failed_commit(&directory, &fjall::Error::Poisoned);
    assert!(told().contains("failed, as when the disk is full or broken"), "{}", told());
    let left: Vec<_> =
        fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the attempt leaves nothing: {left:?}");
    fs::remove_dir_all(&path).unwrap();
    assert!(told().contains("failed: No such file or directory"), "{}", told());
}

/// Changes one byte of a value, past the store's own checksums.
fn damage(keyspace: &fjall::Keyspace, key: impl AsRef<[u8]>) {
    let mut value = keyspace.get(&key).unwrap().unwrap().to_vec();
    *value.last_mut().unwrap() ^= 1;
    keyspace.insert(key.as_ref(), value).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[derive(Debug)]
struct BrokenClock;

impl Clock for BrokenClock {
    fn now(&self) -> Timestamp {
        panic!("this clock is broken");
    }
}

#[tokio::test]
async fn a_writer_that_panics_is_a_failure_and_leaves_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { clock: Arc::new(BrokenClock), ..EmbeddedOptions::default() };
    let settings = JournalSettings::default();
    let journal = EmbeddedJournal::open_with(directory.path(), settings, options).unwrap();
    put(&journal, &topic("t"), [log("a")]).await;
    assert_eq!(journal.failure(), None);
    let panicked = journal.delete(&topic("t"), DeleteIf::Always).await;
    assert!(matches!(panicked, Err(JournalError::Unavailable(_))), "{panicked:?}");
    assert!(journal.failure().unwrap().contains("panic"), "{:?}", journal.failure());
    let refused = journal.append(&topic("t"), batch([log("b")])).await;
    assert!(matches!(refused, Err(JournalError::Unavailable(_))), "{refused:?}");
    assert_eq!(
        journal.read(&topic("t"), Offset::ZERO, PageLimit::default()).await.unwrap().events.len(),
        1
    );
    journal.close().await;
    assert_eq!(head(&open(directory.path()), &topic("t")).await.tail, Offset(2));
}

#[tokio::test]
async fn a_writer_that_is_gone_is_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    let requests = journal.opened().unwrap().requests;
    let (reply, closed) = oneshot::channel();
    requests.send(Request::Close { reply }).await.unwrap();
    closed.await.unwrap();
    assert!(journal.failure().unwrap().contains("writer has ended"), "{:?}", journal.failure());
    journal.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_it_is_closed_it_can_be_opened_however_many_read() {
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        let journal = open(directory.path());
        put(&journal, &topic("t"), (0..50).map(|_| log("a"))).await;
        let reads = (0..READS_MAX * 2).map(|_| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move {
                // Until it is closed.
                while journal.read(&topic("t"), Offset::ZERO, PageLimit::default()).await.is_ok() {}
            })
        });
        let reads: Vec<_> = reads.collect();
        tokio::task::yield_now().await;
        journal.close().await;
        open(directory.path()).close().await;
        for read in reads {
            read.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_does_not_wait_for_a_compaction_that_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    put(&journal, &topic("t"), [log("a")]).await;
    let (begun, end) = (oneshot::channel(), std::sync::mpsc::channel::<()>());
    let (shared, (tell, told), (over, hold)) = (Arc::clone(&journal.shared), begun, end);
    let compaction = thread::spawn(move || {
        let store = store_of(&shared);
        let run = shared.reclaimer.begin();
        tell.send(()).unwrap();
        let _ = hold.recv();
        drop((store, run));
    });
    told.await.unwrap();
    journal.close().await;
    let refused = EmbeddedJournal::open(directory.path(), JournalSettings::default());
    assert!(matches!(refused, Err(JournalError::Unavailable(_))), "{refused:?}");
    drop(over);
    compaction.join().unwrap();
    drop(journal);
    assert_eq!(head(&open(directory.path()), &topic("t")).await.tail, Offset(2));
}

fn store_of(shared: &Shared) -> Option<layout::Store> {
    shared.store.lock().unwrap().clone()
}

#[tokio::test]
async fn each_commit_is_marked_before_it_is_answered() {
    let parent = tempfile::tempdir().unwrap();
    let (live, copied) = (parent.path().join("live"), parent.path().join("copied"));
    let journal = open(&live);
    put(&journal, &topic("t"), [log("a")]).await;
    let before = head(&journal, &topic("t")).await;
    copy(&live, &copied);
    put(&journal, &topic("t"), [log("b")]).await;
    // As a disk that forgot the last commit, but not that there was one.
    fs::copy(live.join("commits"), copied.join("commits")).unwrap();
    let after = open(&copied);
    let found = head(&after, &topic("t")).await;
    assert_eq!(found.tail, before.tail);
    assert_ne!(found.epoch, before.epoch);
    after.close().await;
    journal.close().await;
}

#[tokio::test]
async fn a_store_that_lost_its_own_record_uses_no_id_again() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    let first = put(&journal, &topic("t"), [log("a")]).await.head;
    store(&journal).meta.remove(META).unwrap();
    journal.close().await;
    let journal = open(directory.path());
    put(&journal, &topic("u"), [log("b")]).await;
    let events = journal.read(&topic("u"), Offset::ZERO, PageLimit::default()).await.unwrap();
    assert_eq!(events.events.len(), 1, "an event of another topic is read");
    assert_eq!(head(&journal, &topic("t")).await.tail, first.tail);
    assert_ne!(head(&journal, &topic("t")).await.epoch, first.epoch);
    journal.close().await;
    let report = check(directory.path(), &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{report:#?}");
}

#[tokio::test]
async fn deleted_topics_leave_nothing_but_their_slots_count() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    let mut epochs = Vec::new();
    for n in 0..50 {
        let name = topic(&format!("t/{n}"));
        epochs.push(put(&journal, &name, [log("a"), state("k", 9)]).await.head.epoch);
        assert!(journal.delete(&name, DeleteIf::Always).await.unwrap().unwrap());
    }
    journal.reclaim().await.unwrap();
    let counts = |journal: &EmbeddedJournal| {
        store(journal).keyspaces().map(|keyspace| keyspace.len().unwrap()).to_vec()
    };
    // The keyspaces' own keys; the floors, as long as the log tells of them; a count for each name.
    let left = counts(&journal);
    let names = store(&journal).keyspaces().map(|keyspace| keyspace.name().to_string());
    let left: HashMap<String, usize> = names.into_iter().zip(left).collect();
    assert_eq!((left["topics"], left["log"], left["states"], left["due"]), (1, 1, 1, 1));
    assert_eq!((left["floors"], left["meta"]), (1 + 50, 2 + 50));
    journal.close().await;
    let journal = open(directory.path());
    for (n, epoch) in epochs.into_iter().enumerate() {
        let name = topic(&format!("t/{n}"));
        let absent = head(&journal, &name).await.epoch;
        assert_ne!(absent, epoch);
        assert_eq!(put(&journal, &name, [log("a")]).await.head.epoch, absent);
    }
    journal.close().await;
    let report = check(directory.path(), &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{report:#?}");
}

/// Two names whose deletions are counted together.
fn of_one_slot() -> (TopicKey, TopicKey) {
    let mut slots = HashMap::new();
    for n in 0.. {
        let name = topic(&format!("t/{n}"));
        if let Some(other) = slots.insert(deletions_key(&name), name.clone()) {
            return (other, name);
        }
    }
    unreachable!("there are fewer slots than numbers")
}

#[tokio::test]
async fn topics_of_one_slot_never_get_an_epoch_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = open(directory.path());
    let (one, other) = of_one_slot();
    let mut epochs: HashMap<&str, Vec<_>> = HashMap::new();
    let there = put(&journal, &other, [log("a")]).await.head;
    epochs.entry("other").or_default().push(there.epoch);
    for round in 0..3 {
        let mut commits = Vec::new();
        // Written and deleted within one commit, if the writer is slow enough.
        for event in [log("a"), log("b")] {
            commits.push(put(&journal, &one, [event]).await.head.epoch);
            assert!(journal.delete(&one, DeleteIf::Always).await.unwrap().unwrap());
        }
        for epoch in commits {
            assert!(!epochs.entry("one").or_default().contains(&epoch));
            epochs.entry("one").or_default().push(epoch);
        }
        assert_eq!(head(&journal, &other).await, there, "a topic that is there keeps its epoch");
        if round == 1 {
            journal.close().await;
            journal = open(directory.path());
        }
    }
    assert!(journal.delete(&other, DeleteIf::Always).await.unwrap().unwrap());
    let absent = head(&journal, &other).await.epoch;
    assert!(!epochs["other"].contains(&absent));
    assert_eq!(put(&journal, &other, [log("a")]).await.head.epoch, absent);
    journal.close().await;
}

#[tokio::test]
async fn damage_harms_its_own_topic_only() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    for name in ["a", "b", "c"] {
        put(&journal, &topic(name), [log("1"), state("k", 5), log("3")]).await;
    }
    let id = |name: &str| journal.opened().unwrap().reader.id_of(&topic(name)).unwrap();
    let store = store(&journal);
    damage(&store.states, named_key(id("a"), "k"));
    damage(&store.log, offset_key(id("b"), Offset(3)));
    let due = async || {
        let due =
            journal.due(DueKind::Expired, Timestamp::from_millis(9), 10).await.whole().unwrap();
        due.into_iter().map(|due| due.topic.topic.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(due().await, ["b", "c"]);
    assert_eq!(due().await, ["b", "c"]);
    assert_eq!(journal.damaged_places(), 1, "it is told and counted once");
    damage(&store.topics, topic_key(&topic("a")));
    let list = TopicQuery { tenant: None, prefix: String::new(), after: None, limit: 9 };
    let names =
        journal.topics(list).await.whole().unwrap().into_iter().map(|info| info.topic.topic);
    assert_eq!(names.map(|name| name.to_string()).collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(journal.damaged_places(), 2);
    // Whoever asks for the damaged itself is told of the topic and what to do.
    for (name, says) in [("a", "its record"), ("b", "offset 3")] {
        let read = journal.read(&topic(name), Offset::ZERO, PageLimit::default()).await;
        let Err(JournalError::Broken(message)) = read else { panic!("{name}: {read:?}") };
        for part in [&format!("topic {name} of tenant a"), says, "tidings journal check"] {
            assert!(message.contains(part), "{message}");
        }
    }
    put(&journal, &topic("c"), [log("x")]).await;
    assert_eq!(journal.failure(), None);
    // A topic with a damaged event can be deleted, and is then another one.
    assert!(journal.delete(&topic("b"), DeleteIf::Always).await.unwrap().unwrap());
    put(&journal, &topic("b"), [log("new")]).await;
    drop(store);
    journal.close().await;
}

#[tokio::test]
async fn a_check_finds_what_is_wrong_by_topic_and_offset() {
    let directory = tempfile::tempdir().unwrap();
    let sound = open(directory.path());
    for name in ["a", "b", "c", "d", "e"] {
        let events = [log("1"), state("k", 5), log("3"), state("k", 6), state("l", 7), log("6")];
        put(&sound, &topic(name), events).await;
    }
    sound.close().await;
    let report = check(directory.path(), &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.topics, report.events, report.states), (5, 15, 10));
    let journal = open(directory.path());
    let id = |name: &str| journal.opened().unwrap().reader.id_of(&topic(name)).unwrap();
    let store = store(&journal);
    damage(&store.log, offset_key(id("a"), Offset(3)));
    store.log.remove(offset_key(id("b"), Offset(6))).unwrap();
    store.marks.remove(offset_key(id("c"), Offset(2))).unwrap();
    store.states.remove(named_key(id("d"), "l")).unwrap();
    store.topics.remove(topic_key(&topic("e"))).unwrap();
    drop(store);
    journal.close().await;
    let report = check(directory.path(), &mut |_| {}).unwrap();
    let found: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    for part in [
        "topic a of tenant a, offset 3: ",
        "topic b of tenant a, offset 6: what was at 6 to 6 is missing",
        "topic c of tenant a, offset 2: what was at 2 to 3 is missing",
        "topic d of tenant a, offset 5: ",
        "whose record is missing",
    ] {
        assert!(
            found.iter().any(|finding| finding.starts_with(part) || finding.contains(part)),
            "{part}: {found:#?}"
        );
    }
    assert_eq!(report.findings_total, report.findings.len() as u64);
    // A repair makes one piece of what is left, and says what stays wrong.
    let repaired = repair(directory.path(), &mut |_| {}).unwrap();
    assert!(repaired.new_epoch && repaired.cut_after.is_none());
    let left: Vec<String> = repaired.left.findings.iter().map(ToString::to_string).collect();
    assert!(left.iter().all(|finding| finding.contains("topic ")), "{left:#?}");
    assert!(
        left.iter().any(|finding| finding.contains("topic a of tenant a, offset 3")),
        "{left:#?}"
    );
    assert!(!left.iter().any(|finding| finding.contains("topic d")), "{left:#?}");
}

#[tokio::test]
async fn an_id_whose_event_was_lost_can_be_published_again_after_mending() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    let lost = log("lost");
    put(&journal, &topic("t"), [log("kept"), lost.clone()]).await;
    let id = journal.opened().unwrap().reader.id_of(&topic("t")).unwrap();
    let store = store(&journal);
    store.log.remove(offset_key(id, Offset(2))).unwrap();
    drop(store);
    journal.close().await;
    assert!(repair(directory.path(), &mut |_| {}).unwrap().new_epoch);
    let journal = open(directory.path());
    let again = put(&journal, &topic("t"), [lost]).await;
    assert!(
        matches!(again.outcomes[0], Outcome::Stored(at) if at.offset == Offset(3)),
        "{again:?}"
    );
    journal.close().await;
}

#[tokio::test]
async fn the_stores_own_record_tells_of_each_commit_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    for n in 0..20 {
        put(&journal, &topic("t"), [log(&"x".repeat(n * 1000))]).await;
    }
    let commits = journal.shared.progress.commits();
    journal.close().await;
    let log = commit_log::CommitLog::read(&directory.path().join("store")).unwrap();
    assert_eq!((log.last.unwrap().commits, log.commits), (commits, commits + 1));
    assert_eq!(Meta::read(&log.last.unwrap().write()), log.last);
}

#[tokio::test]
async fn a_salvage_leaves_out_what_is_damaged_and_nothing_else() {
    let parent = tempfile::tempdir().unwrap();
    let (damaged, made) = (parent.path().join("damaged"), parent.path().join("made"));
    let journal = open(&damaged);
    for name in ["a", "b", "c"] {
        put(&journal, &topic(name), [log("1"), log("2"), state("k", 5), log("4")]).await;
    }
    let before = head(&journal, &topic("c")).await;
    let id = |name: &str| journal.opened().unwrap().reader.id_of(&topic(name)).unwrap();
    let store = store(&journal);
    damage(&store.log, offset_key(id("a"), Offset(2)));
    damage(&store.states, named_key(id("b"), "k"));
    drop(store);
    journal.close().await;
    let mut out = Vec::new();
    let stopped = export(&damaged, &mut out, OnDamage::Stop, &mut |_| {});
    let Err(JournalError::Broken(message)) = stopped else { panic!("{stopped:?}") };
    for part in ["topic a of tenant a: offset 2: ", "fails its checksum", "export --salvage"] {
        assert!(message.contains(part), "{part:?} in {message}");
    }
    let mut out = Vec::new();
    let done = export(&damaged, &mut out, OnDamage::Salvage, &mut |_| {}).unwrap();
    assert_eq!((done.left_out_total, done.events, done.states), (2, 8, 2), "{done:#?}");
    import(&made, &mut &*out, &mut |_| {}).unwrap();
    let report = check(&made, &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{report:#?}");
    let journal = open(&made);
    let mut held = Vec::new();
    for name in ["a", "b", "c"] {
        let page = journal.read(&topic(name), Offset::ZERO, PageLimit::default()).await.unwrap();
        assert_ne!(page.head.epoch, before.epoch, "what is not whole begins a new epoch");
        assert_eq!(page.head.tail, before.tail);
        held.push(page.events.iter().map(|event| event.offset.0).collect::<Vec<_>>());
    }
    assert_eq!(held, [vec![1, 3, 4], vec![1, 2, 4], vec![1, 2, 3, 4]]);
    journal.close().await;
}

#[tokio::test]
async fn a_state_that_a_commit_looks_at_and_does_not_change_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    put(&journal, &topic("t"), [state("k", 5000)]).await;
    let before = journal.states(&topic("t"), StateQuery::all()).await.unwrap().events;
    // Its batch stores another event, so that there is a commit.
    let refused = Append { if_offset: Some(Offset(9)), ..state("k", 6000) };
    let outcomes = put(&journal, &topic("t"), [refused, log("a")]).await.outcomes;
    assert!(matches!(outcomes[..], [Outcome::Refused(_), Outcome::Stored(_)]), "{outcomes:?}");
    let after = journal.states(&topic("t"), StateQuery::all()).await.unwrap().events;
    assert_eq!(after, before);
    journal.close().await;
    assert!(check(directory.path(), &mut |_| {}).unwrap().is_sound());
}

#[tokio::test]
async fn a_state_is_due_that_comes_after_a_look_beyond_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    let now = Timestamp::from_millis(10_000);
    for expires_at in [9000, 5000, 7000] {
        put(&journal, &topic("t"), [state("k", expires_at)]).await;
        let due = journal.due(DueKind::Expired, now, 9).await.whole().unwrap();
        assert_eq!(due.len(), 1, "{expires_at}");
        let ended = Append { ends_expired: true, ..state("k", 1) };
        let ended = NewEvent { delete: true, expires_at: None, ..NewEvent::clone(&ended.event) };
        put(&journal, &topic("t"), [Append::new(Arc::new(ended))]).await;
        assert!(journal.due(DueKind::Expired, now, 9).await.whole().unwrap().is_empty());
    }
    journal.close().await;
}
