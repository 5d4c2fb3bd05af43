//! `kill -9` of a process that appends, over and over on one directory.
//!
//! The rule: what was acknowledged is there, once, where it was said to be; and what was once read
//! after a crash is there after the next. Proven by breaking the adapter: when the writer answers
//! before it commits, the first round fails. (That commits reach the disk itself, a kill cannot
//! show: what was written survives in the page cache.)

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use tidings::{
    journal::{
        Append, Batch, Dedup, Journal, JournalSettings, Outcome, PageLimit,
        embedded::{EmbeddedJournal, EmbeddedOptions, check as check_store},
    },
    model::{
        Epoch, EventId, EventType, Fingerprint, JsonText, NewEvent, Offset, StateKey, Tenant,
        Timestamp, Topic, TopicKey,
    },
};

/// `TESTS_ROUNDS` asks for more than CI has time for.
const ROUNDS: u64 = 25;
const TOPICS: usize = 6;
const DIRECTORY: &str = "TESTS_CRASH_DIRECTORY";

fn topic(n: usize) -> TopicKey {
    TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse(&format!("t/{n}")).unwrap())
}

fn open(directory: &Path) -> Arc<EmbeddedJournal> {
    // Tables are written and compacted all the time, so that kills hit that too.
    let options = EmbeddedOptions { memtable_bytes: 64 * 1024, ..EmbeddedOptions::default() };
    EmbeddedJournal::open_with(directory, JournalSettings::default(), options).unwrap()
}

/// The process that is killed. It says `opening`, and then each acknowledgement on a line.
#[test]
#[ignore = "started and killed by the test of this file"]
fn appends_until_it_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    println!("opening");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let journal = open(Path::new(&directory));
        let writers = (0..12).map(|writer| {
            let journal = journal.clone();
            tokio::spawn(async move {
                for round in 0_u64.. {
                    append(&*journal, writer, round).await;
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    });
}

async fn append(journal: &dyn Journal, writer: usize, round: u64) {
    let topic = writer % TOPICS;
    let count = 1 + round % 4;
    let events = (0..count).map(|n| {
        let mut event = NewEvent::new(EventType::parse("a.b").unwrap())
            .data(JsonText::string(&"x".repeat(usize::try_from(round % 300).unwrap())));
        if (round + n).is_multiple_of(3) {
            event = event.state(StateKey::parse(&format!("k{}", n % 2)).unwrap());
        }
        Append { dedup: Dedup::ById, ..Append::new(Arc::new(event)) }
    });
    let batch =
        Batch { events: events.collect(), now: Timestamp::from_millis(round), ..Batch::default() };
    let appended = journal.append(&self::topic(topic), batch).await.unwrap();
    let mut lines = String::new();
    for (outcome, event) in appended.outcomes.iter().zip(&appended.events) {
        let Outcome::Stored(position) = outcome else { panic!("{outcome:?}") };
        let is_state = event.body.key.is_some();
        let (offset, fingerprint) = (position.offset, position.fingerprint.0);
        lines += &format!("ack {topic} {offset} {fingerprint} {} {is_state}\n", event.body.id);
    }
    std::io::stdout().lock().write_all(lines.as_bytes()).unwrap();
}

#[derive(Debug, Clone, PartialEq)]
struct Known {
    fingerprint: Fingerprint,
    id: Option<EventId>,
    is_state: bool,
}

/// What must be there: by topic and offset.
type Expected = BTreeMap<(usize, u64), Known>;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the process until it acknowledged so many lines (0: until it opens), kills it and reads what else it said.
fn run(directory: &Path, lines_max: u64, expected: &mut Expected) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::appends_until_it_is_killed", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut child = Killed(child);
    let (mut lines, mut line) = (0, String::new());
    while said.read_line(&mut line).unwrap() > 0 {
        // A line without an end was cut by the kill: it says nothing.
        if line.ends_with('\n') && line.starts_with("ack ") {
            note(&line, expected);
            lines += 1;
        }
        let opening = lines_max == 0 && line.contains("opening");
        if opening || lines_max > 0 && lines == lines_max {
            child.0.kill().unwrap();
        }
        line.clear();
    }
    child.0.wait().unwrap();
    assert!(lines >= lines_max, "the process ended by itself after {lines} acknowledgements");
}

fn note(line: &str, expected: &mut Expected) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let known = Known {
        fingerprint: Fingerprint(words[3].parse().unwrap()),
        id: Some(EventId::parse(words[4]).unwrap()),
        is_state: words[5] == "true",
    };
    let place = (words[1].parse().unwrap(), words[2].parse().unwrap());
    assert_eq!(expected.insert(place, known), None, "{place:?} was acknowledged twice");
}

/// Compares what is there with what must be, and notes the rest for the next round.
async fn check(journal: &dyn Journal, epochs: &mut HashMap<usize, Epoch>, expected: &mut Expected) {
    for n in 0..TOPICS {
        let topic = topic(n);
        let page = PageLimit { events: usize::MAX, bytes: usize::MAX };
        let page = journal.read(&topic, Offset::ZERO, page).await.unwrap();
        let epoch = *epochs.entry(n).or_insert(page.head.epoch);
        assert_eq!(page.head.epoch, epoch, "a crash that lost nothing changed the epoch");
        let held: HashMap<u64, _> = page.events.iter().map(|e| (e.offset.0, e)).collect();
        let mut ids: Vec<_> = page.events.iter().map(|event| &event.body.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), page.events.len(), "an event is doubled in {topic:?}");
        let last = expected.range((n, 0)..=(n, u64::MAX)).next_back();
        let last = last.map_or(0, |((_, offset), _)| *offset);
        assert!(page.head.tail.0 > last, "{topic:?} ends at {} before {last}", page.head.tail);
        for offset in 1..page.head.tail.0 {
            let found = match held.get(&offset) {
                Some(event) => Known {
                    fingerprint: event.fingerprint,
                    id: Some(event.body.id.clone()),
                    is_state: event.body.key.is_some(),
                },
                // A superseded state has left its fingerprint; a log event may not be missing.
                None => {
                    let one = PageLimit { events: 1, bytes: 1 };
                    let page = journal.read(&topic, Offset(offset), one).await.unwrap();
                    let fingerprint = page.after_fingerprint;
                    let fingerprint = fingerprint.unwrap_or_else(|| panic!("no {n}/{offset}"));
                    Known { fingerprint, id: None, is_state: true }
                }
            };
            let known = expected.entry((n, offset)).or_insert_with(|| found.clone());
            let id = found.id.clone().or_else(|| known.id.clone());
            assert_eq!(Known { id, ..found }, *known, "{n}/{offset}");
        }
    }
}

#[test]
fn no_acknowledged_event_is_lost_doubled_or_renumbered_by_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (mut expected, mut epochs) = (Expected::new(), HashMap::new());
    let rounds = std::env::var("TESTS_ROUNDS").ok();
    let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        // Every fourth is killed while it opens, the others somewhere in their first thousand.
        let lines = match round % 4 {
            3 => 0,
            _ => 1 + u64::from(getrandom::u32().unwrap()) % 1_500,
        };
        run(directory.path(), lines, &mut expected);
        runtime.block_on(async {
            let journal = open(directory.path());
            check(&*journal, &mut epochs, &mut expected).await;
            journal.close().await;
        });
    }
    assert!(expected.len() > 1_000, "only {} events were appended", expected.len());
    let report = check_store(directory.path(), &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{report:#?}");
}

#[test]
fn a_journal_can_be_opened_after_kill_9_while_it_was_made() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for _ in 0..6 {
        let directory = tempfile::tempdir().unwrap();
        // Killed at its first line, it has come some way into making the store, or not begun.
        run(directory.path(), 0, &mut Expected::new());
        runtime.block_on(async {
            let journal = open(directory.path());
            append(&*journal, 0, 0).await;
            journal.close().await;
        });
    }
}
