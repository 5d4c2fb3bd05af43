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
        embedded::{EmbeddedJournal, EmbeddedOptions, OnDamage, check, export, repair},
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
    // A new store has tables, and not its log alone.
    let options = EmbeddedOptions { memtable_bytes: 16 * 1024, ..EmbeddedOptions::default() };
    EmbeddedJournal::open_with(directory, JournalSettings::default(), options)
}

fn refusal(directory: &Path) -> String {
    match open(directory) {
        Err(JournalError::Broken(message) | JournalError::Unusable(message)) => message,
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
        Err(JournalError::Broken(message) | JournalError::Unusable(message)) => {
            assert!(message.contains(&*directory.to_string_lossy()), "{what}: {message}");
            assert!(message.contains("; "), "{what}: no remedy: {message}");
            let after = files(directory);
            let is_kept = |path: &&PathBuf| {
                !path.to_string_lossy().contains("/tables/") || after.contains_key(*path)
            };
            let gone: Vec<_> = before.keys().filter(|path| !is_kept(path)).collect();
            assert!(gone.is_empty(), "{what}: tables were deleted: {gone:?}");
            // The store's own recovery may tidy its files up; ours comes before it.
            if message.contains("/commits: ") || message.contains("TIDINGS") {
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
    // Opened anew, it cuts off what was allocated and not used of its log.
    open(directory).unwrap().close().await;
    Original { pages, stored }
}

/// Numbers that look random, the same for each seed.
struct Random(u64);

impl Random {
    /// One below a bound.
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

/// How many places are damaged: `TESTS_DAMAGES` asks for more than CI has time for.
fn damages() -> usize {
    let more = std::env::var("TESTS_DAMAGES").ok();
    more.map_or(100, |count| count.parse().unwrap())
}

/// Damages a copy of a store at random places, one at a time, and judges each.
async fn damage_at_random(damage: impl Fn(&mut Vec<u8>, &mut Random) -> String) -> (usize, usize) {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let original = sound(&store).await;
    let files: Vec<_> = files(&store).into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
    let tables = files.iter().filter(|(path, _)| path.to_string_lossy().contains("/tables/"));
    assert!(tables.count() > 5, "the store has no tables to damage");
    let seed = u64::from(getrandom::u32().unwrap()) | 1;
    let mut random = Random(seed);
    let mut noticed = 0;
    for _ in 0..damages() {
        let (path, bytes) = &files[random.below(files.len())];
        let name = path.strip_prefix(&store).unwrap();
        let mut bytes = bytes.clone();
        let what = damage(&mut bytes, &mut random);
        let what = format!("seed {seed}: {} {what}", name.display());
        let damaged = parent.path().join("damaged");
        copy(&store, &damaged);
        fs::write(damaged.join(name), bytes).unwrap();
        noticed += usize::from(judge(&damaged, &original, &what).await);
        fs::remove_dir_all(&damaged).unwrap();
    }
    (damages(), noticed)
}

#[tokio::test]
async fn a_bit_that_is_flipped_anywhere_serves_no_wrong_bytes_and_loses_nothing_in_silence() {
    let (tried, noticed) = damage_at_random(|bytes, random| {
        let (place, bit) = (random.below(bytes.len()), random.below(8));
        bytes[place] ^= 1 << bit;
        format!("has bit {bit} of byte {place} flipped")
    })
    .await;
    assert!(noticed * 4 > tried, "only {noticed} of {tried} were noticed");
}

#[tokio::test]
async fn a_file_that_is_cut_anywhere_serves_no_wrong_bytes_and_loses_nothing_in_silence() {
    let (tried, noticed) = damage_at_random(|bytes, random| {
        let length = random.below(bytes.len());
        bytes.truncate(length);
        format!("is cut to {length} bytes")
    })
    .await;
    assert!(noticed * 2 > tried, "only {noticed} of {tried} were noticed");
}

#[tokio::test]
async fn a_list_of_tables_with_a_wrong_bit_is_refused_by_name() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    sound(&store).await;
    let mut lists = 0;
    for (path, bytes) in files(&store.join("store/keyspaces")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let current = path.with_file_name("current");
        let newest = fs::read(&current).unwrap_or_default();
        let newest = newest.first_chunk().map(|number| u64::from_le_bytes(*number));
        // Older lists are not looked at.
        if name != "current" && newest.is_none_or(|number| name != format!("v{number}")) {
            continue;
        }
        lists += 1;
        for place in (0..bytes.len()).step_by(bytes.len() / 12 + 1) {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1 << (place % 8);
            fs::write(&path, damaged).unwrap();
            let message = refusal(&store);
            let directory = path.parent().unwrap().to_string_lossy().into_owned();
            assert!(message.contains(&*directory), "byte {place} of {path:?}: {message}");
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(lists, 2 * 10, "nine keyspaces, and the store's own");
    open(&store).unwrap().close().await;
}

/// Flips a bit at some sixths of a file, and removes it at last.
fn damage_table(file: &Path, sixth: usize) {
    let mut bytes = fs::read(file).unwrap();
    let place = bytes.len() * sixth / 6;
    match bytes.get_mut(place) {
        Some(byte) => *byte ^= 1 << sixth,
        None => return fs::remove_file(file).unwrap(),
    }
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_table_that_is_damaged_or_missing_is_told_by_its_files_name() {
    let parent = tempfile::tempdir().unwrap();
    let (store, damaged) = (parent.path().join("store"), parent.path().join("damaged"));
    sound(&store).await;
    assert!(check(&store, &mut |_| {}).unwrap().is_sound());
    let is_table = |path: &PathBuf| path.parent().unwrap().ends_with("tables");
    let (mut told, mut refused, mut unread) = (0, 0, 0);
    for path in files(&store).into_keys().filter(is_table) {
        let file = damaged.join(path.strip_prefix(&store).unwrap());
        let (name, keyspace) = (file.to_string_lossy(), file.ancestors().nth(2).unwrap());
        for sixth in 0..=6 {
            copy(&store, &damaged);
            damage_table(&file, sixth);
            match check(&damaged, &mut |_| {}) {
                Ok(report) => {
                    told += 1;
                    let found = report.findings.iter().map(ToString::to_string);
                    let found: Vec<_> = found.filter(|what| what.contains(&*name)).collect();
                    assert_eq!(found.len(), 1, "{name}, {sixth}: {report:#?}");
                    assert!(found[0].contains("journal export --salvage"), "{found:?}");
                }
                Err(error) => {
                    refused += 1;
                    let message = error.to_string();
                    assert!(message.contains(&*name), "{name}, {sixth}: {message}");
                    assert!(message.contains("; restore a backup"), "{message}");
                }
            }
            // What a check or a start puts in the place of its tables does not count.
            fs::remove_dir_all(&damaged).unwrap();
            copy(&store, &damaged);
            damage_table(&file, sixth);
            match open(&damaged) {
                Ok(journal) => {
                    for error in pages(&*journal).await.into_iter().filter_map(Result::err) {
                        unread += 1;
                        let (message, from) = (error.to_string(), keyspace.display());
                        assert!(message.contains(&format!("{from}: the tables of `")), "{message}");
                        assert!(message.contains("run `tidings journal check`"), "{message}");
                    }
                    journal.close().await;
                }
                Err(error) => {
                    let message = error.to_string();
                    assert!(message.contains(&*name), "{name}, {sixth}: {message}");
                }
            }
            fs::remove_dir_all(&damaged).unwrap();
        }
    }
    // Some of each, or the test shows nothing.
    assert!(told > 5 && refused > 5 && unread > 5, "{told}, {refused}, {unread}");
}

/// The newest file of the commit log.
fn log_file(store: &Path) -> PathBuf {
    let mut files = files(&store.join("store")).into_keys();
    files.rfind(|path| path.extension().is_some_and(|kind| kind == "jnl")).unwrap()
}

#[tokio::test]
async fn a_log_that_was_cut_leaves_one_piece_under_another_epoch() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let original = sound(&store).await;
    let log = log_file(&store);
    let whole = fs::read(&log).unwrap();
    // The first commit marks the keyspaces as there: without it the store is refused.
    for part in 1..12 {
        let damaged = parent.path().join("damaged");
        copy(&store, &damaged);
        let cut = damaged.join(log.strip_prefix(&store).unwrap());
        fs::write(&cut, &whole[..whole.len() * part / 12]).unwrap();
        let report = check(&damaged, &mut |_| {}).unwrap();
        assert!(report.findings[0].what.contains("were lost"), "{part}: {report:#?}");
        assert!(judge(&damaged, &original, "log cut").await, "{part}: nobody was told");
        let report = check(&damaged, &mut |_| {}).unwrap();
        assert!(report.is_sound(), "{part}: {report:#?}");
        // What is published now is not mixed up with what was.
        let journal = open(&damaged).unwrap();
        fill(&*journal).await;
        journal.close().await;
        let report = check(&damaged, &mut |_| {}).unwrap();
        assert!(report.is_sound(), "{part}: {report:#?}");
        fs::remove_dir_all(&damaged).unwrap();
    }
}

#[tokio::test]
async fn a_log_that_is_damaged_inside_is_refused_untouched_and_can_be_repaired() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let original = sound(&store).await;
    let log = log_file(&store);
    let whole = fs::read(&log).unwrap();
    // Behind the damage there must be commits: the last alone could have been cut short.
    for part in 1..6 {
        let damaged = parent.path().join("damaged");
        copy(&store, &damaged);
        let file = damaged.join(log.strip_prefix(&store).unwrap());
        let mut bytes = whole.clone();
        bytes[whole.len() * part / 8] ^= 4;
        fs::write(&file, &bytes).unwrap();
        let before = files(&damaged);
        let message = refusal(&damaged);
        for part in [&*file.to_string_lossy(), "damaged at byte", "tidings journal repair"] {
            assert!(message.contains(part), "{part:?} in {message}");
        }
        assert!(!check(&damaged, &mut |_| {}).unwrap().is_sound());
        assert_eq!(files(&damaged), before, "a refusal changes nothing");
        let repaired = repair(&damaged, &mut |_| {}).unwrap();
        assert!(repaired.new_epoch && repaired.left.is_sound(), "{repaired:#?}");
        let kept = repaired.kept.unwrap().join(file.file_name().unwrap());
        assert_eq!(fs::read(kept).unwrap(), bytes);
        assert!(judge(&damaged, &original, "log repaired").await, "{part}: nobody was told");
        fs::remove_dir_all(&damaged).unwrap();
    }
}

#[tokio::test]
async fn a_commit_that_a_crash_cut_short_is_dropped_under_the_same_epoch() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let original = sound(&store).await;
    let log = log_file(&store);
    let whole = fs::read(&log).unwrap();
    let before = parent.path().join("before");
    copy(&store, &before);
    let journal = open(&store).unwrap();
    let event = NewEvent::new(EventType::parse("a.b").unwrap());
    let event = event.data(JsonText::string(&"y".repeat(30_000)));
    let batch = Batch { events: vec![Append::new(Arc::new(event))], ..Batch::default() };
    journal.append(&topic(0), batch).await.unwrap();
    journal.close().await;
    let longer = fs::read(&log).unwrap();
    let written = longer.len() - whole.len();
    // Cut anywhere, or with a hole in it that a power cut left; nobody was told of it.
    for part in 0..10 {
        for hole in [false, true] {
            let damaged = parent.path().join("damaged");
            copy(&before, &damaged);
            let mut bytes = longer.clone();
            let place = whole.len() + 1 + (written - 2) * part / 10;
            match hole {
                false => bytes.truncate(place),
                true => bytes[place..(place + 500).min(longer.len() - 1)].fill(0),
            }
            fs::write(damaged.join(log.strip_prefix(&store).unwrap()), &bytes).unwrap();
            let noticed = judge(&damaged, &original, "torn").await;
            assert!(!noticed, "{part}, {hole}: a crash that lost nothing changed something");
            fs::remove_dir_all(&damaged).unwrap();
        }
    }
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
    fs::remove_file(store.join("store/version")).unwrap();
    let message = refusal(&store);
    assert!(message.contains("store/version: is missing"), "{message}");
    fs::remove_dir_all(store.join("store")).unwrap();
    let message = refusal(&store);
    assert!(message.contains("is missing"), "{message}");
}

type Opener = fn(&Path) -> Result<(), JournalError>;

/// A file or directory of a store, what a refusal says of it, and what is done to it.
type StoreDamage<'a> = (&'a str, &'a str, &'a dyn Fn(&Path));

/// Whatever opens a journal: each is the first to meet the damage.
fn openers() -> [(&'static str, Opener); 4] {
    [
        ("check", |path| check(path, &mut |_| {}).map(drop)),
        ("open", |path| open(path).map(drop)),
        ("salvage", |path| export(path, &mut Vec::new(), OnDamage::Salvage, &mut |_| {}).map(drop)),
        ("repair", |path| repair(path, &mut |_| {}).map(drop)),
    ]
}

/// Damages copies of a store with tables, and asks whatever opens one twice each: it is refused by
/// the name of what is wrong, and every file is there as it was.
async fn refused_untouched(damages: &[StoreDamage<'_>]) {
    let parent = tempfile::tempdir().unwrap();
    let (store, damaged) = (parent.path().join("store"), parent.path().join("damaged"));
    sound(&store).await;
    let has_tables = |n: usize| {
        let tables = store.join(format!("store/keyspaces/{n}/tables"));
        fs::read_dir(tables).unwrap().next().is_some()
    };
    assert!(has_tables(0) && has_tables(2), "the store has no tables to lose");
    for (name, says, damage) in damages {
        let file = damaged.join("store").join(name);
        for (opener, open) in openers() {
            copy(&store, &damaged);
            damage(&file);
            let before = files(&damaged);
            for turn in 1..=2 {
                let message = match open(&damaged) {
                    Err(JournalError::Broken(message)) => message,
                    other => panic!("{opener}, {name}, turn {turn}: {other:?}"),
                };
                let expected = format!("{}: {says}; restore a backup", file.display());
                assert!(message.starts_with(&expected), "{opener}, turn {turn}: {message}");
                let same = files(&damaged) == before;
                assert!(same, "{opener}, {name}, turn {turn}: files were changed");
            }
            fs::remove_dir_all(&damaged).unwrap();
        }
    }
}

/// Broken on purpose, it failed: without the look at `current`, whole keyspaces were deleted (that
/// is what the store does to one that it takes for unfinished; without its own, to all of them);
/// without the numbers, a missing keyspace was made anew.
#[tokio::test]
async fn a_store_without_one_of_its_small_files_is_refused_untouched() {
    let remove_file: &dyn Fn(&Path) = &|path| fs::remove_file(path).unwrap();
    let remove_dir: &dyn Fn(&Path) = &|path| fs::remove_dir_all(path).unwrap();
    let keyspaces: Vec<_> = (0..10).map(|n| format!("keyspaces/{n}")).collect();
    let currents: Vec<_> = keyspaces.iter().map(|path| format!("{path}/current")).collect();
    let mut damages = vec![("version", "is missing", remove_file)];
    let remove_all: &dyn Fn(&Path) = &|path| fs::remove_dir_all(path.parent().unwrap()).unwrap();
    damages.push(("keyspaces/0", "is missing", remove_all));
    damages.extend(currents.iter().map(|name| (&**name, "is missing", remove_file)));
    damages.extend(keyspaces.iter().map(|name| (&**name, "is missing", remove_dir)));
    refused_untouched(&damages).await;
}

/// Broken on purpose, it failed: without the look at the names, what was put there was deleted.
#[tokio::test]
async fn a_keyspace_that_the_store_does_not_know_is_refused_untouched() {
    let put: &dyn Fn(&Path) = &|path| copy(&path.with_file_name("2"), path);
    let unknown = "the store does not know this keyspace";
    let damages = [("keyspaces/11", unknown, put), ("keyspaces/2.backup", unknown, put)];
    refused_untouched(&damages).await;
}

#[tokio::test]
async fn an_attempt_that_was_cut_short_is_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("TIDINGS.new"), "tidi").unwrap();
    fs::create_dir(directory.path().join("store.new")).unwrap();
    fs::write(directory.path().join("store.new/0.jnl"), "").unwrap();
    let message = refusal(directory.path());
    assert!(message.contains("store.new"), "without `TIDINGS` it is foreign: {message}");
    fs::write(directory.path().join("TIDINGS"), "tidings journal 3\n").unwrap();
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
async fn a_store_whose_count_of_commits_is_gone_has_other_epochs() {
    let directory = tempfile::tempdir().unwrap();
    let before = sound(directory.path()).await;
    let mark = directory.path().join("commits");
    fs::remove_file(&mark).unwrap();
    // Looking at it is not accepting it.
    for _ in 0..2 {
        let report = check(directory.path(), &mut |_| {}).unwrap();
        let [finding] = &report.findings[..] else { panic!("{report:#?}") };
        assert!(finding.what.contains("the file `commits` is missing"), "{finding:?}");
        assert!(!mark.exists());
    }
    let journal = open(directory.path()).unwrap();
    let mut epochs = Vec::new();
    for (page, before) in pages(&*journal).await.into_iter().zip(&before.pages) {
        let page = page.unwrap();
        assert_ne!(page.head.epoch, before.head.epoch);
        assert_eq!(page.events, before.events);
        epochs.push(page.head.epoch);
    }
    journal.close().await;
    assert!(check(directory.path(), &mut |_| {}).unwrap().is_sound());
    let journal = open(directory.path()).unwrap();
    for (page, epoch) in pages(&*journal).await.into_iter().zip(epochs) {
        assert_eq!(page.unwrap().head.epoch, epoch, "it is counted again");
    }
    journal.close().await;
}

/// The log's end and the count of its commits are lost together: nothing else tells.
#[tokio::test]
async fn a_log_that_lost_its_end_and_its_count_of_commits_has_other_epochs() {
    let directory = tempfile::tempdir().unwrap();
    let before = sound(directory.path()).await;
    let log = log_file(directory.path());
    let bytes = fs::read(&log).unwrap();
    fs::write(&log, &bytes[..bytes.len() - 10]).unwrap();
    fs::remove_file(directory.path().join("commits")).unwrap();
    let journal = open(directory.path()).unwrap();
    for (page, before) in pages(&*journal).await.into_iter().zip(&before.pages) {
        assert_ne!(page.unwrap().head.epoch, before.head.epoch);
    }
    journal.close().await;
}

#[tokio::test]
async fn an_empty_directory_begins_one_epoch_and_keeps_it() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path()).unwrap();
    fill(&*journal).await;
    let first: Vec<_> =
        pages(&*journal).await.into_iter().map(|page| page.unwrap().head.epoch).collect();
    journal.close().await;
    let journal = open(directory.path()).unwrap();
    for (page, epoch) in pages(&*journal).await.into_iter().zip(first) {
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
    for (content, says) in [
        ("tidings journal 999\n", "newer"),
        ("tidings journal 2\n", "knows version 3"),
        ("", "damaged"),
        ("hello", "damaged"),
    ] {
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
