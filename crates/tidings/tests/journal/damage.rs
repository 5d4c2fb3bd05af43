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
    model::{EventType, JsonText, NewEvent, Offset, StateKey, Tenant, Timestamp, Topic, TopicKey},
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

async fn fill(journal: &dyn Journal) {
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
                Append { event: Arc::new(event), if_offset: None, dedup: Dedup::ById }
            });
            let batch = Batch {
                events: events.collect(),
                now: Timestamp::from_millis(n),
                ..Batch::default()
            };
            journal.append(&topic(t), batch).await.unwrap();
        }
    }
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

/// Opens a damaged copy and judges what it says. Returns whether damage was noticed.
async fn judge(directory: &Path, original: &[Page], what: &str) -> bool {
    let before = files(directory).len();
    let journal = match open(directory) {
        Ok(journal) => journal,
        Err(JournalError::Broken(message)) => {
            assert!(message.contains(&*directory.to_string_lossy()), "{what}: {message}");
            assert_eq!(files(directory).len(), before, "{what}: files were removed");
            return true;
        }
        Err(other) => panic!("{what}: {other:?}"),
    };
    let mut noticed = false;
    for (page, original) in pages(&*journal).await.into_iter().zip(original) {
        match page {
            Err(_) => noticed = true,
            Ok(page) if page.head.epoch != original.head.epoch => {
                noticed = true;
                assert!(page.events.iter().all(|event| original.events.contains(event)), "{what}");
            }
            Ok(page) => {
                assert_eq!(page.head, original.head, "{what}: silent loss");
                assert!(page.events == original.events, "{what}: other events than were stored");
            }
        }
    }
    journal.close().await;
    noticed
}

async fn sound(directory: &Path) -> Vec<Page> {
    let journal = open(directory).unwrap();
    fill(&*journal).await;
    let original = pages(&*journal).await.into_iter().map(Result::unwrap).collect();
    journal.close().await;
    original
}

#[tokio::test]
async fn a_flipped_bit_is_noticed_or_harmless() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let original = sound(&store).await;
    let (mut tried, mut noticed) = (0, 0);
    for (path, bytes) in files(&store) {
        // Spread over the file, denser where it is short; the first and last byte always.
        let places: Vec<usize> = match bytes.len() {
            0 => continue,
            1 => vec![0],
            length => (0..5).map(|n| n * (length - 1) / 4).collect(),
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
    for (page, before) in pages(&*journal).await.into_iter().zip(&before) {
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
    let message = refusal(directory.path());
    assert!(message.contains("another process"), "{message}");
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
