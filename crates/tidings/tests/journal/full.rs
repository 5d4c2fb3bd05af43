//! A journal on a file system that is really full, with tables so small that it is their turn as
//! often as the commit log's to find no room.
//!
//! The rule: what was acknowledged is there once there is room, whatever could not be written.

use std::{collections::BTreeMap, fs, io::Write as _, path::Path, sync::Arc};

use tidings::{
    journal::{
        Append, Batch, Dedup, Journal, JournalError, JournalSettings, Outcome, PageLimit,
        embedded::{EmbeddedJournal, EmbeddedOptions, check},
    },
    model::{Event, EventType, JsonText, NewEvent, Offset, Tenant, Timestamp, Topic, TopicKey},
};
use tidings_services::{on_a_small_disk, small_disk};

const DISK_BYTES: u64 = 8 * 1024 * 1024;
/// Room that there is in each round, until more is made.
const ROOM_BYTES: u64 = 400 * 1024;
const ROUNDS: usize = 6;

#[test]
fn a_journal_whose_tables_find_no_room_loses_nothing() {
    on_a_small_disk("full::a_journal_on_a_small_disk", DISK_BYTES);
}

fn topic(n: usize) -> TopicKey {
    TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse(&format!("t/{}", n % 3)).unwrap())
}

fn open(directory: &Path) -> Result<Arc<EmbeddedJournal>, JournalError> {
    let options = EmbeddedOptions { memtable_bytes: 16 * 1024, ..EmbeddedOptions::default() };
    EmbeddedJournal::open_with(directory, JournalSettings::default(), options)
}

/// Takes all room of a file system but so many bytes.
fn leave(others: &Path, bytes: u64) {
    let mut file = fs::File::create(others).unwrap();
    while file.write_all(&[0; 16 * 1024]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(bytes)).unwrap();
}

type Acknowledged = BTreeMap<(TopicKey, Offset), Event>;

/// Appends until that fails; how.
async fn fill(journal: &dyn Journal, acknowledged: &mut Acknowledged) -> JournalError {
    for n in 0.. {
        let mut bytes = [0_u8; 900];
        getrandom::fill(&mut bytes).unwrap();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let event = NewEvent::new(EventType::parse("a.b").unwrap()).data(JsonText::string(&text));
        let append = Append { dedup: Dedup::ById, ..Append::new(Arc::new(event)) };
        let now = Timestamp::from_millis(n);
        let batch = Batch { events: vec![append], now, ..Batch::default() };
        let topic = topic(usize::try_from(n).unwrap());
        match journal.append(&topic, batch).await {
            Ok(appended) => {
                assert!(matches!(appended.outcomes[0], Outcome::Stored(_)));
                let event = appended.events[0].clone();
                assert_eq!(acknowledged.insert((topic, event.offset), event), None);
            }
            Err(error) => return error,
        }
    }
    unreachable!("there is room for so many")
}

/// Compares all that is there with what was acknowledged.
async fn holds(journal: &dyn Journal, acknowledged: &Acknowledged, when: &str) {
    let everything = PageLimit { events: usize::MAX, bytes: usize::MAX };
    let mut found = Acknowledged::new();
    for n in 0..3 {
        let page = journal.read(&topic(n), Offset::ZERO, everything).await.unwrap();
        found.extend(page.events.into_iter().map(|event| ((topic(n), event.offset), event)));
    }
    for (place, event) in acknowledged {
        assert_eq!(found.get(place), Some(event), "{when}: {place:?}");
    }
}

#[tokio::test]
#[ignore = "started by the test of this file, on a file system of its own"]
async fn a_journal_on_a_small_disk() {
    let disk = small_disk();
    let (directory, others) = (disk.join("journal"), disk.join("others"));
    let mut acknowledged = Acknowledged::new();
    for round in 0..ROUNDS {
        let before = acknowledged.len();
        let journal = open(&directory).unwrap();
        leave(&others, ROOM_BYTES + 10_000 * round as u64);
        let error = fill(&*journal, &mut acknowledged).await;
        assert!(matches!(error, JournalError::Unavailable(_)), "{error:?}");
        let failure = journal.failure().unwrap();
        let causes = ["No space left on device", "writing in the background failed"];
        assert!(causes.iter().any(|cause| failure.contains(cause)), "{failure}");
        assert!(failure.ends_with("then start the hub anew"), "{failure}");
        assert!(acknowledged.len() > before, "round {round} begins without room");
        holds(&*journal, &acknowledged, "full").await;
        journal.close().await;
        // Started while there is no room, it reads, or says why it does not start.
        match open(&directory) {
            Ok(journal) => {
                holds(&*journal, &acknowledged, "started while full").await;
                fill(&*journal, &mut acknowledged).await;
                assert!(journal.failure().is_some());
                journal.close().await;
            }
            Err(error) => {
                assert!(error.to_string().contains("No space left on device"), "{error}");
            }
        }
        fs::write(&others, "").unwrap();
        let journal = open(&directory).unwrap();
        holds(&*journal, &acknowledged, "with room").await;
        assert_eq!(journal.failure(), None);
        journal.close().await;
    }
    let report = check(&directory, &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{report:#?}");
}
