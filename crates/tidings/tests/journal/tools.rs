//! Exports and imports: a whole one is the same journal to everybody.

use std::{io::Cursor, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use tidings::{
    journal::{
        Append, Batch, Change, Dedup, DeleteIf, DueKind, Journal, JournalError, JournalSettings,
        Outcome, PageLimit, Properties, Retention, StateQuery, TopicInfo, TopicQuery,
        embedded::{EmbeddedJournal, OnDamage, Transferred, check, export, import},
    },
    model::{
        Data, Event, EventId, EventType, Fingerprint, JsonText, NewEvent, Offset, StateKey, Tenant,
        Timestamp, Topic, TopicKey, event::Attribute,
    },
};

const EVERYTHING: PageLimit = PageLimit { events: usize::MAX, bytes: usize::MAX };

fn topic(tenant: &str, name: &str) -> TopicKey {
    TopicKey::new(Tenant::parse(tenant).unwrap(), Topic::parse(name).unwrap())
}

fn event(text: &str) -> NewEvent {
    NewEvent::new(EventType::parse("a.b").unwrap()).data(JsonText::string(text))
}

fn plain(event: NewEvent) -> Append {
    Append { dedup: Dedup::ById, ..Append::new(Arc::new(event)) }
}

fn state(key: &str, text: &str) -> NewEvent {
    event(text).state(StateKey::parse(key).unwrap())
}

async fn put(journal: &dyn Journal, topic: &TopicKey, at: u64, events: Vec<Append>) {
    let batch = Batch { events, now: Timestamp::from_millis(at), ..Batch::default() };
    let appended = journal.append(topic, batch).await.unwrap();
    let stored = |outcome: &Outcome| matches!(outcome, Outcome::Stored(_));
    assert!(appended.outcomes.iter().all(stored));
}

/// A journal with some of everything.
async fn fill(journal: &dyn Journal) {
    let rich = NewEvent {
        id: EventId::parse("chosen \u{2028} id").unwrap(),
        source: Some(Attribute::parse("/worker \"7\"").unwrap()),
        subject: Some(Attribute::parse("ü").unwrap()),
        time: Some(Timestamp::from_millis(77)),
        data: Data::Json(JsonText::parse("{\"b\":1.50e3,\"a\":[\"\\u0000\\n\",null]}").unwrap()),
        extensions: vec![
            ("zeta".into(), JsonText::string("1")),
            ("alpha".into(), JsonText::parse("2.0").unwrap()),
        ],
        ..event("")
    };
    let binary = Data::Binary {
        content_type: Attribute::parse("image/png").unwrap(),
        bytes: Bytes::from_static(b"\x89\0\xff"),
    };
    let a = topic("acme", "a");
    let timed = NewEvent {
        expires_at: Some(Timestamp::from_millis(5000)),
        due_at: Some(Timestamp::from_millis(4000)),
        ..state("run/1", "new")
    };
    let ended = NewEvent { delete: true, data: Data::None, ..state("run/2", "") };
    let events = [
        rich,
        NewEvent { data: binary, ..event("") },
        state("run/1", "old"),
        NewEvent { data: Data::None, ..event("") },
        state("run/2", "ended"),
        timed,
        ended,
        state("run/3", "stays"),
    ];
    for (n, event) in events.into_iter().enumerate() {
        put(journal, &a, 1000 + n as u64, vec![plain(event)]).await;
    }
    let trimmed = topic("acme", "trimmed");
    let mut events = vec![plain(state("old", "below the floor"))];
    events.extend((0..30).map(|n| plain(event(&n.to_string()))));
    put(journal, &trimmed, 2000, events).await;
    let ten = Retention { events: Some(10), ..Retention::UNLIMITED };
    journal.trim(&trimmed, &ten, Timestamp::from_millis(3000)).await.unwrap();
    put(journal, &trimmed, 2500, vec![plain(state("old", "above it"))]).await;
    let all = topic("other", "emptied");
    put(journal, &all, 2000, vec![plain(event("x")), plain(state("k", "y"))]).await;
    let none = Retention { events: Some(0), ..Retention::UNLIMITED };
    journal.trim(&all, &none, Timestamp::from_millis(3000)).await.unwrap();
    let properties = Properties {
        owner: Some("ann".to_owned()),
        ttl: Some(Duration::from_secs(60)),
        ..Properties::default()
    };
    let change = Change { close: true, ..Change::to(properties) };
    journal.set_properties(&topic("other", "closed"), change).await.unwrap().unwrap();
    for name in ["deleted", "written again"] {
        let topic = topic("acme", &name.replace(' ', "-"));
        for _ in 0..2 {
            put(journal, &topic, 2000, vec![plain(event("x"))]).await;
            assert!(journal.delete(&topic, DeleteIf::Always).await.unwrap().unwrap());
        }
    }
    put(journal, &topic("acme", "written-again"), 9000, vec![plain(event("y"))]).await;
}

/// Everything that anybody can see of a journal.
#[derive(Debug, PartialEq)]
struct Seen {
    topics: Vec<TopicInfo>,
    events: Vec<Vec<Event>>,
    states: Vec<Vec<Event>>,
    fingerprints: Vec<Vec<Option<Fingerprint>>>,
    absent: Vec<TopicInfo>,
    due: Vec<(TopicKey, Event)>,
}

async fn seen(journal: &dyn Journal) -> Seen {
    let list = TopicQuery { tenant: None, prefix: String::new(), after: None, limit: 99 };
    let topics = journal.topics(list).await.whole().unwrap();
    let (mut events, mut states, mut fingerprints) = (Vec::new(), Vec::new(), Vec::new());
    for TopicInfo { topic, head, .. } in &topics {
        events.push(journal.read(topic, Offset::ZERO, EVERYTHING).await.unwrap().events);
        let query = StateQuery { limit: EVERYTHING, ..StateQuery::all() };
        states.push(journal.states(topic, query).await.unwrap().events);
        let mut known = Vec::new();
        for after in 0..=head.tail.0 {
            let page = journal.read(topic, Offset(after), EVERYTHING).await.unwrap();
            known.push(page.after_fingerprint);
        }
        fingerprints.push(known);
    }
    let mut absent = Vec::new();
    for name in ["deleted", "never-written"] {
        absent.push(journal.describe(&topic("acme", name)).await.unwrap());
    }
    let mut due = Vec::new();
    for kind in [DueKind::Expired, DueKind::Due] {
        let found = journal.due(kind, Timestamp::from_millis(9999), 99).await.whole().unwrap();
        due.extend(found.into_iter().map(|due| (due.topic, due.event)));
    }
    Seen { topics, events, states, fingerprints, absent, due }
}

fn open(path: &Path) -> Arc<EmbeddedJournal> {
    EmbeddedJournal::open(path, JournalSettings::default()).unwrap()
}

fn exported(path: &Path) -> String {
    let mut out = Vec::new();
    let done = export(path, &mut out, OnDamage::Stop, &mut |_| {}).unwrap();
    assert!(done.is_whole());
    String::from_utf8(out).unwrap()
}

fn imported(path: &Path, text: &str) -> Result<Transferred, JournalError> {
    import(path, &mut Cursor::new(text), &mut |_| {})
}

#[tokio::test]
async fn an_imported_export_is_the_same_journal() {
    let parent = tempfile::tempdir().unwrap();
    let (one, other) = (parent.path().join("one"), parent.path().join("other"));
    let journal = open(&one);
    fill(&*journal).await;
    let before = seen(&*journal).await;
    journal.close().await;
    let text = exported(&one);
    let done = imported(&other, &text).unwrap();
    assert_eq!((done.topics, done.is_whole()), (before.topics.len() as u64, true));
    let report = check(&other, &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{report:#?}");
    let again = exported(&other);
    let lines = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&again), lines(&text));
    let journal = open(&other);
    assert_eq!(seen(&*journal).await, before);
    // Ids are still known, and what comes next goes on.
    let known = NewEvent { id: EventId::parse("chosen \u{2028} id").unwrap(), ..event("again") };
    let batch = |event| Batch { events: vec![plain(event)], ..Batch::default() };
    let outcome = journal.append(&topic("acme", "a"), batch(known)).await.unwrap().outcomes;
    assert!(matches!(outcome[0], Outcome::Duplicate(at) if at.offset == Offset(1)), "{outcome:?}");
    let next = journal.append(&topic("acme", "a"), batch(event("next"))).await.unwrap();
    assert_eq!(next.events[0].offset, Offset(9));
    journal.close().await;
}

#[tokio::test]
async fn an_export_that_was_changed_or_cut_short_makes_no_journal() {
    let parent = tempfile::tempdir().unwrap();
    let (one, other) = (parent.path().join("one"), parent.path().join("other"));
    let journal = open(&one);
    fill(&*journal).await;
    journal.close().await;
    let text = exported(&one);
    let cut = text.lines().count() - 1;
    let without = |gone: usize| {
        let kept = text.lines().enumerate().filter(|(n, _)| *n != gone);
        kept.map(|(_, line)| format!("{line}\n")).collect::<String>()
    };
    let behind = &*format!("line {}: something follows", cut + 2);
    let mut wrong = vec![
        (without(cut), "cut short"),
        (text.replace("1.50e3", "1.51e3"), "fingerprint"),
        (text.replacen("\"version\":1", "\"version\":2", 1), "version 2"),
        (String::new(), "cut short"),
        ("hello\n".to_owned(), "line 1"),
        // Broken on purpose, it failed: without asking for the input's end.
        (text.repeat(2), behind),
        (format!("{text}garbage"), behind),
        (format!("{text}\n"), behind),
    ];
    // Whatever line is missing, it is missed, but for what nobody counts: ids and deletions.
    for (number, line) in text.lines().enumerate().step_by(4) {
        if !line.starts_with("{\"seen") && !line.starts_with("{\"deletions") {
            wrong.push((without(number), ""));
        }
    }
    for (text, says) in wrong {
        let result = imported(&other, &text);
        // A hub that is started now must not begin an empty journal instead.
        let opened = EmbeddedJournal::open(&other, JournalSettings::default());
        let unfinished = |error: &JournalError| error.to_string().contains("was not finished");
        assert!(opened.is_err_and(|error| unfinished(&error)), "{says:?}");
        match result {
            Err(JournalError::Broken(message)) => {
                assert!(message.contains(says), "{says:?} in {message}");
            }
            result => panic!("{says:?}: {result:?}"),
        }
        let absent = check(&other, &mut |_| {});
        assert!(matches!(absent, Err(JournalError::Unusable(_))), "{absent:?}");
    }
    imported(&other, &text).unwrap();
    assert!(matches!(imported(&other, &text), Err(JournalError::Unusable(_))));
}
