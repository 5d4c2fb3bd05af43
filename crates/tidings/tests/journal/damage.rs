//! Directories that are damaged, foreign, newer or in use.
//!
//! The rule: an error that names the file and the remedy, or every bit as it was, or another
//! epoch. Never other bytes, never silence, and nothing is deleted.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tidings::{
    journal::{
        Append, Batch, Dedup, Journal, JournalError, JournalSettings, Page, PageLimit,
        embedded::EmbeddedJournal,
    },
    model::{
        Event, EventType, JsonText, NewEvent, Offset, StateKey, Tenant, Timestamp, Topic, TopicKey,
    },
};

const TOPICS: usize = 3;

fn topic(n: usize) -> TopicKey {
    TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse(&format!("t/{n}")).unwrap())
}

fn open(directory: &Path) -> Result<Arc<EmbeddedJournal>, JournalError> {
    EmbeddedJournal::open(directory, JournalSettings::default())
}

fn refusal(directory: &Path) -> String {
    match open(directory) {
        Err(JournalError::Broken(message)) => message,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Appends, and returns every event by its topic.
async fn fill(journal: &dyn Journal) -> Vec<(usize, Event)> {
    let mut stored = Vec::new();
    for n in 0..40_u64 {
        for t in 0..TOPICS {
            let events = (0..3).map(|k| {
                let text = format!("{n} {k} {}", "x".repeat(200));
                let event = NewEvent::new(EventType::parse("a.b").unwrap());
                let event = event.data(JsonText::string(&text));
                let event = match k {
                    0 => event.state(StateKey::parse("k").unwrap()),
                    _ => event,
                };
                Append { dedup: Dedup::ById, ..Append::new(Arc::new(event)) }
            });
            let batch = Batch {
                events: events.collect(),
                now: Timestamp::from_millis(n),
                ..Batch::default()
            };
            let appended = journal.append(&topic(t), batch).await.unwrap();
            stored.extend(appended.events.into_iter().map(|event| (t, event)));
        }
    }
    stored
}

async fn pages(journal: &dyn Journal) -> Vec<Result<Page, JournalError>> {
    let mut pages = Vec::new();
    for t in 0..TOPICS {
        let limit = PageLimit { events: usize::MAX, bytes: usize::MAX };
        pages.push(journal.read(&topic(t), Offset::ZERO, limit).await);
    }
    pages
}

/// Every file below a directory with its bytes.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
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

/// What a sound store held.
struct Original {
    pages: Vec<Page>,
    /// Everything ever stored, superseded states too: a store that lost its end shows them.
    stored: Vec<(usize, Event)>,
}

/// Opens a damaged copy and judges what it says. Returns whether damage was noticed.
async fn judge(directory: &Path, original: &Original, what: &str) -> bool {
    let before = files(directory);
    let journal = match open(directory) {
        Ok(journal) => journal,
        Err(JournalError::Broken(message)) => {
            assert!(message.contains(&*directory.to_string_lossy()), "{what}: {message}");
            // The store's own recovery may tidy its files up; ours comes before it.
            if message.contains("commits") || message.contains("TIDINGS") {
                assert_eq!(files(directory), before, "{what}: files were changed");
            }
            return true;
        }
        Err(other) => panic!("{what}: {other:?}"),
    };
    let mut noticed = false;
    for (t, page) in pages(&*journal).await.into_iter().enumerate() {
        let whole = &original.pages[t];
        match page {
            Err(_) => noticed = true,
            Ok(page) if page.head.epoch != whole.head.epoch => {
                noticed = true;
                for event in page.events {
                    assert!(original.stored.contains(&(t, event)), "{what}: an event of nobody");
                }
            }
            Ok(page) => {
                assert_eq!(page.head, whole.head, "{what}: silent loss");
                assert!(page.events == whole.events, "{what}: other events than were stored");
            }
        }
    }
    journal.close().await;
    noticed
}

async fn sound(directory: &Path) -> Original {
    let journal = open(directory).unwrap();
    let stored = fill(&*journal).await;
    let pages = pages(&*journal).await.into_iter().map(Result::unwrap).collect();
    journal.close().await;
    Original { pages, stored }
}

#[tokio::test]
async fn a_flipped_bit_is_noticed_or_harmless() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let original = sound(&store).await;
    let (mut tried, mut noticed) = (0, 0);
    for (path, bytes) in files(&store) {
        // The first and last byte, and one in the middle.
        let places: Vec<usize> = match bytes.len() {
            0 => continue,
            1 => vec![0],
            length => (0..3).map(|n| n * (length - 1) / 2).collect(),
        };
        for place in places {
            let damaged = parent.path().join("damaged");
            copy(&store, &damaged);
            let name = path.strip_prefix(&store).unwrap();
            let mut bytes = bytes.clone();
            bytes[place] ^= 1 << (place % 8);
            fs::write(damaged.join(name), bytes).unwrap();
            tried += 1;
            let what = format!("bit flipped in {} at {place}", name.display());
            noticed += i32::from(judge(&damaged, &original, &what).await);
            fs::remove_dir_all(&damaged).unwrap();
        }
    }
    assert!(noticed * 4 > tried, "only {noticed} of {tried} flips were noticed");
}

#[tokio::test]
async fn a_truncated_file_is_noticed_or_harmless() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let original = sound(&store).await;
    for (path, bytes) in files(&store) {
        for length in [0, bytes.len() / 2, bytes.len().saturating_sub(1)] {
            let damaged = parent.path().join("damaged");
            copy(&store, &damaged);
            let name = path.strip_prefix(&store).unwrap();
            fs::write(damaged.join(name), &bytes[..length]).unwrap();
            let what = format!("{} cut to {length} of {} bytes", name.display(), bytes.len());
            judge(&damaged, &original, &what).await;
            fs::remove_dir_all(&damaged).unwrap();
        }
    }
}

#[tokio::test]
async fn a_missing_file_is_noticed_or_harmless() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let original = sound(&store).await;
    for path in files(&store).keys() {
        let damaged = parent.path().join("damaged");
        copy(&store, &damaged);
        let name = path.strip_prefix(&store).unwrap();
        fs::remove_file(damaged.join(name)).unwrap();
        let what = format!("{} removed", name.display());
        judge(&damaged, &original, &what).await;
        fs::remove_dir_all(&damaged).unwrap();
    }
    fs::remove_dir_all(store.join("store")).unwrap();
    let message = refusal(&store);
    assert!(message.contains("is missing"), "{message}");
}

#[tokio::test]
async fn an_attempt_that_was_cut_short_is_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("TIDINGS.new"), "tidi").unwrap();
    fs::create_dir(directory.path().join("store.new")).unwrap();
    fs::write(directory.path().join("store.new/0.jnl"), "").unwrap();
    let message = refusal(directory.path());
    assert!(message.contains("store.new"), "without `TIDINGS` it is foreign: {message}");
    fs::write(directory.path().join("TIDINGS"), "tidings journal 2\n").unwrap();
    let journal = open(directory.path()).unwrap();
    fill(&*journal).await;
    journal.close().await;
}

#[tokio::test]
async fn a_store_that_went_back_in_time_has_other_epochs() {
    let parent = tempfile::tempdir().unwrap();
    let (store, backup) = (parent.path().join("store"), parent.path().join("backup"));
    let before = sound(&store).await;
    copy(&store, &backup);
    let journal = open(&store).unwrap();
    fill(&*journal).await;
    journal.close().await;
    // The data is yesterday's, the high-water mark today's.
    let mark = fs::read(store.join("commits")).unwrap();
    fs::write(backup.join("commits"), mark).unwrap();
    let journal = open(&backup).unwrap();
    let mut epochs = Vec::new();
    for (page, before) in pages(&*journal).await.into_iter().zip(&before.pages) {
        let page = page.unwrap();
        assert_ne!(page.head.epoch, before.head.epoch);
        assert_eq!(page.events, before.events);
        epochs.push(page.head.epoch);
    }
    journal.close().await;
    // Once noticed, that is its history: it does not change again.
    let journal = open(&backup).unwrap();
    for (page, epoch) in pages(&*journal).await.into_iter().zip(epochs) {
        assert_eq!(page.unwrap().head.epoch, epoch);
    }
    journal.close().await;
}

#[tokio::test]
async fn a_foreign_directory_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("letter.txt"), "dear").unwrap();
    let before = files(directory.path());
    let message = refusal(directory.path());
    assert!(message.contains(&*directory.path().to_string_lossy()), "{message}");
    assert_eq!(files(directory.path()), before);
}

#[tokio::test]
async fn a_path_that_is_no_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "dear").unwrap();
    let message = refusal(&file);
    assert!(message.contains(&*file.to_string_lossy()), "{message}");
    assert_eq!(fs::read(&file).unwrap(), b"dear");
}

#[tokio::test]
async fn a_second_open_is_refused_until_the_first_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path()).unwrap();
    match open(directory.path()) {
        // It may work later.
        Err(JournalError::Unavailable(message)) => {
            assert!(message.contains("another process"), "{message}");
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    first.close().await;
    drop(first);
    open(directory.path()).unwrap().close().await;
}

#[tokio::test]
async fn another_format_is_refused_by_name() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    sound(&store).await;
    let file = store.join("TIDINGS");
    let version = fs::read_to_string(&file).unwrap();
    for (content, says) in
        [("tidings journal 999\n", "newer"), ("", "damaged"), ("hello", "damaged")]
    {
        fs::write(&file, content).unwrap();
        let before = files(&store);
        let message = refusal(&store);
        assert!(message.contains(&*file.to_string_lossy()) && message.contains(says), "{message}");
        assert_eq!(files(&store), before);
    }
    fs::remove_file(&file).unwrap();
    refusal(&store);
    fs::write(&file, version).unwrap();
    open(&store).unwrap().close().await;
}
