//! Reading while commits are written and tables are flushed: each commit is there whole, or not.
//!
//! Broken on purpose, it failed within three seconds: with snapshots as the store hands them out.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tidings::{
    journal::{
        Append, Batch, Journal, JournalSettings, PageLimit,
        embedded::{EmbeddedJournal, EmbeddedOptions},
    },
    model::{EventType, JsonText, NewEvent, Offset, StateKey, Tenant, Timestamp, Topic, TopicKey},
};

const COMMITS: u64 = 1_500;
const EVENTS: u64 = 40;

fn topic() -> TopicKey {
    TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse("t").unwrap())
}

fn batch(number: u64) -> Batch {
    let event = |n: u64| {
        let event = NewEvent::new(EventType::parse("a.b").unwrap());
        let event = event.data(JsonText::string(&"x".repeat(200)));
        // States move in the order of offsets: the old place goes and a new one comes.
        let state = || StateKey::parse(&format!("k{}", n % 8)).unwrap();
        let event = if n.is_multiple_of(4) { event.state(state()) } else { event };
        Append::new(Arc::new(event))
    };
    let events = (0..EVENTS).map(event).collect();
    Batch { events, now: Timestamp::from_millis(number), ..Batch::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_commit_is_read_by_nobody() {
    let directory = tempfile::tempdir().unwrap();
    // Tables are written and compacted all the time.
    let options = EmbeddedOptions { memtable_bytes: 16 * 1024, ..EmbeddedOptions::default() };
    let journal =
        EmbeddedJournal::open_with(directory.path(), JournalSettings::default(), options).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let readers = [(); 2].map(|()| {
        let (journal, done) = (Arc::clone(&journal), Arc::clone(&done));
        tokio::spawn(async move {
            let mut after = Offset::ZERO;
            while !done.load(Ordering::SeqCst) {
                let page = journal.read(&topic(), after, PageLimit::default()).await.unwrap();
                let last = page.events.last().map_or(after, |event| event.offset);
                assert!(last < page.head.tail, "{last:?} is behind the end {:?}", page.head);
                assert!(last <= page.next.offset, "{last:?} comes again behind {:?}", page.next);
                after = page.next.offset;
            }
        })
    });
    for number in 1..=COMMITS {
        let appended = journal.append(&topic(), batch(number)).await.unwrap();
        assert_eq!(appended.head.tail, Offset(number * EVENTS + 1));
    }
    done.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
    journal.close().await;
}
