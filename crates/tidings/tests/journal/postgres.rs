//! The journal in PostgreSQL against what servers and networks do to it.
//!
//! The rule: what was acknowledged is there once, where it was said to be, on every node; and what
//! failed may be there, once.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tidings::{
    journal::{
        Append, Batch, Dedup, DeleteIf, Journal, JournalError, JournalSettings, Outcome, PageLimit,
        Retention,
        postgres::{Migrate, PostgresJournal, PostgresOptions, migrate},
    },
    model::{
        EventId, EventType, JsonText, NewEvent, Offset, StateKey, Tenant, Timestamp, Topic,
        TopicKey,
    },
};
use tidings_services::{Postgres, SharedPostgres, until};
use tokio_postgres::{Client, NoTls};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn topic(n: usize) -> TopicKey {
    TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse(&format!("t/{n}")).unwrap())
}

fn event(dedup: Dedup) -> Append {
    let event = NewEvent::new(EventType::parse("a.b").unwrap()).data(JsonText::string("x"));
    Append { dedup, ..Append::new(Arc::new(event)) }
}

fn one(append: Append) -> Batch {
    Batch { events: vec![append], now: Timestamp::from_millis(1), ..Batch::default() }
}

/// Options for a schema that nobody else has.
pub(crate) fn fresh(url: &str) -> PostgresOptions {
    PostgresOptions::new(url).schema(format!("t{}", uuid::Uuid::new_v4().simple()))
}

async fn open(options: &PostgresOptions) -> Arc<PostgresJournal> {
    PostgresJournal::open(options.clone(), JournalSettings::default()).await.unwrap()
}

async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn shared() -> SharedPostgres {
    Postgres::shared().unwrap()
}

/// Looks again and again without holding up the runtime.
pub(crate) async fn wait_for(what: &'static str, mut holds: impl FnMut() -> bool + Send + 'static) {
    tokio::task::spawn_blocking(move || until(what, PATIENCE, &mut holds)).await.unwrap().unwrap();
}

/// The ids of a topic's events by offset, which have no holes.
async fn ids(journal: &dyn Journal, topic: &TopicKey) -> Vec<EventId> {
    let (mut ids, mut after) = (Vec::new(), Offset::ZERO);
    loop {
        let page = journal.read(topic, after, PageLimit::default()).await.unwrap();
        for event in &page.events {
            assert_eq!(event.offset.0, ids.len() as u64 + 1);
            ids.push(event.body.id.clone());
        }
        if page.events.is_empty() {
            return ids;
        }
        after = page.next.offset;
    }
}

/// Appends until a number was acknowledged by all; a failure is tried again with the same id, if it
/// was the publisher's. Gives what was acknowledged, by topic and offset, and what failed.
struct Load {
    journal: Arc<PostgresJournal>,
    acked: Arc<AtomicUsize>,
    appends: usize,
    topics: usize,
}

type Acked = HashMap<(usize, u64), EventId>;

impl Load {
    async fn writer(&self, number: usize, dedup: Dedup) -> (Acked, usize) {
        let (mut acked, mut failed) = (Acked::new(), 0);
        for n in 0..self.appends {
            let at = (number + n) % self.topics;
            let append = event(dedup);
            loop {
                match self.journal.append(&topic(at), one(append.clone())).await {
                    Ok(appended) => {
                        let (Outcome::Stored(position) | Outcome::Duplicate(position)) =
                            &appended.outcomes[0]
                        else {
                            panic!("{appended:?}");
                        };
                        acked.insert((at, position.offset.0), append.event.id.clone());
                        self.acked.fetch_add(1, Ordering::SeqCst);
                        break;
                    }
                    Err(JournalError::Unavailable(_)) if dedup == Dedup::ById => {
                        tokio::task::yield_now().await;
                    }
                    Err(JournalError::Unavailable(_)) => {
                        failed += 1;
                        self.acked.fetch_add(1, Ordering::SeqCst);
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
        (acked, failed)
    }
}

/// Every event is there once, dense, and what was acknowledged where it was said to be.
async fn check(journal: &dyn Journal, topics: usize, acked: &[Acked]) -> usize {
    let mut seen = HashSet::new();
    let mut held = HashMap::new();
    for at in 0..topics {
        for (offset, id) in (1_u64..).zip(ids(journal, &topic(at)).await) {
            assert!(seen.insert(id.clone()), "{id} is there twice");
            held.insert((at, offset), id);
        }
    }
    for (place, id) in acked.iter().flatten() {
        assert_eq!(held.get(place), Some(id), "acknowledged at {place:?}");
    }
    held.len()
}

/// Broken on purpose: when a writer tries a lost commit again without looking for it, events with minted
/// ids are there twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_once_after_the_server_was_killed() {
    const WRITERS: usize = 8;
    const APPENDS: usize = 150;
    const KILLS: usize = 3;
    let mut server = Postgres::start().unwrap();
    let options = fresh(&server.url());
    let journal = open(&options).await;
    let acked = Arc::new(AtomicUsize::new(0));
    let writers = (0..WRITERS).map(|number| {
        let load =
            Load { journal: journal.clone(), acked: acked.clone(), appends: APPENDS, topics: 5 };
        let dedup = if number % 2 == 0 { Dedup::ById } else { Dedup::Minted };
        tokio::spawn(async move { load.writer(number, dedup).await })
    });
    let writers: Vec<_> = writers.collect();
    for kill in 1..=KILLS {
        let acked = acked.clone();
        let enough = kill * WRITERS * APPENDS / (KILLS + 1);
        wait_for("so many appends", move || acked.load(Ordering::SeqCst) >= enough).await;
        server = tokio::task::spawn_blocking(move || {
            server.kill().unwrap();
            server.restart().unwrap();
            server
        })
        .await
        .unwrap();
    }
    let (acked, failed): (Vec<_>, Vec<_>) =
        join_all(writers).await.into_iter().map(Result::unwrap).unzip();
    let acknowledged: usize = acked.iter().map(HashMap::len).sum();
    let failed: usize = failed.into_iter().sum();
    assert_eq!(acknowledged + failed, WRITERS * APPENDS);
    wait_for("the journal", {
        let journal = journal.clone();
        move || journal.failure().is_none()
    })
    .await;
    let held = check(&*journal, 5, &acked).await;
    assert!((acknowledged..=acknowledged + failed).contains(&held));
    journal.close().await;
}

/// Not seen to fail yet: as above, nor when a lost connection is told at once. Hardly a commit is met.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_survive_a_storm_of_terminated_backends() {
    const WRITERS: usize = 6;
    const APPENDS: usize = 100;
    let server = Postgres::start().unwrap();
    let options = fresh(&server.url());
    let journal = open(&options).await;
    let acked = Arc::new(AtomicUsize::new(0));
    let writers = (0..WRITERS).map(|number| {
        let load =
            Load { journal: journal.clone(), acked: acked.clone(), appends: APPENDS, topics: 4 };
        let dedup = if number % 2 == 0 { Dedup::ById } else { Dedup::Minted };
        tokio::spawn(async move { load.writer(number, dedup).await })
    });
    let writers: Vec<_> = writers.collect();
    let client = client(&server.url()).await;
    let mut terminated = 0;
    for storm in 1..=10 {
        let acked = acked.clone();
        let enough = storm * WRITERS * APPENDS / 12;
        wait_for("so many appends", move || acked.load(Ordering::SeqCst) >= enough).await;
        let rows = client
            .query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE application_name = 'tidings'",
                &[],
            )
            .await
            .unwrap();
        terminated += rows.len();
    }
    assert!(terminated >= 10);
    let (acked, failed): (Vec<_>, Vec<_>) =
        join_all(writers).await.into_iter().map(Result::unwrap).unzip();
    assert_eq!(failed.into_iter().sum::<usize>(), 0);
    assert_eq!(check(&*journal, 4, &acked).await, WRITERS * APPENDS);
    journal.close().await;
}

/// Not seen to fail yet: when rows are locked in the order of asking (`ORDER BY w.number`, with each
/// node's batches in another order), the server counts deadlocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_on_the_same_topics_neither_deadlock_nor_leave_holes() {
    const WRITERS: usize = 10;
    const APPENDS: usize = 60;
    let server = Postgres::start().unwrap();
    // Longer than the server takes to look for a deadlock.
    let patience = Duration::from_secs(20);
    let options = PostgresOptions {
        writers: 1,
        lock_timeout: patience,
        statement_timeout: patience,
        ..fresh(&server.url())
    };
    let nodes = [open(&options).await, open(&options).await];
    let acked = Arc::new(AtomicUsize::new(0));
    let writers = (0..WRITERS * 2).map(|number| {
        let load = Load {
            journal: nodes[number % 2].clone(),
            acked: acked.clone(),
            appends: APPENDS,
            topics: 7,
        };
        tokio::spawn(async move { load.writer(number, Dedup::Minted).await })
    });
    let writers: Vec<_> = writers.collect();
    // A reader of either node sees no offset before its predecessor, and a page agrees with its head.
    for at in (0..7).cycle().take(200) {
        let page =
            nodes[at % 2].read(&topic(at), Offset::ZERO, PageLimit::default()).await.unwrap();
        let offsets: Vec<u64> = page.events.iter().map(|event| event.offset.0).collect();
        assert_eq!(offsets, (1..=page.next.offset.0).collect::<Vec<_>>());
        assert_eq!(page.next, page.head.end());
    }
    let (acked, failed): (Vec<_>, Vec<_>) =
        join_all(writers).await.into_iter().map(Result::unwrap).unzip();
    assert_eq!(failed.into_iter().sum::<usize>(), 0);
    for node in &nodes {
        assert_eq!(check(&**node, 7, &acked).await, WRITERS * 2 * APPENDS);
        // Who counted a deadlock says so at its end at the latest.
        node.close().await;
    }
    let client = client(&server.url()).await;
    let row = client
        .query_one("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}

/// Two nodes that create and delete one topic: no history gets an epoch that another had.
///
/// Broken on purpose: when whoever creates a topic does not share the lock of its slot, two histories get
/// the same epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_created_and_deleted_on_two_nodes_never_get_an_epoch_again() {
    let server = shared();
    let options = fresh(server.url());
    let nodes = [open(&options).await, open(&options).await];
    // Now and then a topic is created long after it was looked for.
    let schema = &options.schema;
    let slowly = format!(
        "CREATE FUNCTION {schema}.slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF random() < 0.3 THEN PERFORM pg_sleep(0.03); END IF; RETURN NULL; END $$; \
         CREATE TRIGGER slowly BEFORE INSERT ON {schema}.topics \
         FOR EACH STATEMENT EXECUTE FUNCTION {schema}.slowly()"
    );
    client(server.url()).await.batch_execute(&slowly).await.unwrap();
    let tasks = (0..6).map(|number| {
        let node = nodes[number % 2].clone();
        tokio::spawn(async move {
            let mut stored = Vec::new();
            for _ in 0..40 {
                let appended = node.append(&topic(0), one(event(Dedup::Minted))).await.unwrap();
                let Outcome::Stored(position) = appended.outcomes[0] else { panic!() };
                stored.push((position.epoch, position.offset));
                node.delete(&topic(0), DeleteIf::Always).await.unwrap().unwrap();
            }
            stored
        })
    });
    let mut places = HashSet::new();
    for task in join_all(tasks).await {
        for place in task.unwrap() {
            assert!(places.insert(place), "{place:?} was given twice");
        }
    }
}

/// Where commits hang, topics that are tried one by one are not one hanging commit each.
///
/// Broken on purpose: when it is not asked before each whether commits hang, several wait at the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_beside_one_that_somebody_holds_cost_one_connection_while_commits_hang() {
    let server = Postgres::start().unwrap();
    let options = PostgresOptions {
        writers: 1,
        statement_timeout: Duration::from_secs(1),
        lock_timeout: Duration::from_millis(200),
        ..fresh(&server.url())
    };
    let journal = open(&options).await;
    let other = open(&fresh(&server.url())).await;
    let append = async |n| journal.append(&topic(n), one(event(Dedup::Minted))).await;
    let all = || join_all((0..20).map(&append));
    all().await.into_iter().for_each(|appended| drop(appended.unwrap()));
    let holder = client(&server.url()).await;
    let hold =
        format!("BEGIN; SELECT FROM {}.topics WHERE name = 't/0' FOR UPDATE", options.schema);
    holder.batch_execute(&hold).await.unwrap();
    // There is no standby: from some moment on commits hang, the other journal's first.
    server.configure("SET synchronous_standby_names = '*'").unwrap();
    while other.append(&topic(0), one(event(Dedup::Minted))).await.is_ok() {}
    // What queues up behind the first is one group.
    let (first, refused) = tokio::join!(append(0), all());
    assert!(first.is_err());
    assert!(refused.iter().all(Result::is_err), "{refused:?}");
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert_eq!(server.ask(waiting).unwrap(), "2", "one of each journal");
    holder.batch_execute("ROLLBACK").await.unwrap();
    server.configure("RESET synchronous_standby_names").unwrap();
    let again =
        async { while journal.append(&topic(1), one(event(Dedup::Minted))).await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("nothing is taken any more");
}

/// Broken on purpose: without `append_each`, the other topics fail with the locked one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_somebody_holds_keeps_no_other_back() {
    let server = shared();
    let options = PostgresOptions {
        writers: 1,
        lock_timeout: Duration::from_millis(200),
        ..fresh(server.url())
    };
    let journal = open(&options).await;
    for at in 0..4 {
        journal.append(&topic(at), one(event(Dedup::Minted))).await.unwrap();
    }
    let client = client(server.url()).await;
    let lock =
        format!("BEGIN; SELECT FROM {}.topics WHERE name = 't/0' FOR UPDATE", options.schema);
    client.batch_execute(&lock).await.unwrap();
    // While the first waits for the lock, the others queue up and are one group.
    let appends = [0, 0, 1, 2, 3].map(|at| {
        let journal = journal.clone();
        async move { journal.append(&topic(at), one(event(Dedup::Minted))).await }
    });
    let answers = join_all(appends).await;
    let is_refused = |answer| matches!(answer, &Err(JournalError::Unavailable(_)));
    assert!(answers[..2].iter().all(is_refused), "{answers:?}");
    assert!(answers[2..].iter().all(Result::is_ok), "{answers:?}");
    client.batch_execute("ROLLBACK").await.unwrap();
    let appended = journal.append(&topic(0), one(event(Dedup::Minted))).await.unwrap();
    assert_eq!(appended.head.tail, Offset(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_answers_nothing_is_told_and_used_again_by_itself() {
    let server = Postgres::start().unwrap();
    let options = PostgresOptions {
        statement_timeout: Duration::from_millis(300),
        append_timeout: Duration::from_secs(1),
        ..fresh(&server.url())
    };
    let journal = open(&options).await;
    journal.append(&topic(0), one(event(Dedup::Minted))).await.unwrap();
    assert_eq!(journal.failure(), None);
    server.pause().unwrap();
    let waiting = {
        let journal = journal.clone();
        tokio::spawn(async move { journal.append(&topic(0), one(event(Dedup::Minted))).await })
    };
    wait_for("the failure", {
        let journal = journal.clone();
        move || journal.failure().is_some()
    })
    .await;
    assert!(waiting.await.unwrap().is_err());
    assert!(journal.append(&topic(0), one(event(Dedup::Minted))).await.is_err());
    assert!(journal.describe(&topic(0)).await.is_err());
    server.resume().unwrap();
    wait_for("the recovery", {
        let journal = journal.clone();
        move || journal.failure().is_none()
    })
    .await;
    let appended = journal.append(&topic(0), one(event(Dedup::Minted))).await.unwrap();
    let held = ids(&*journal, &topic(0)).await;
    assert_eq!(held.len() as u64, appended.head.end().offset.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_is_migrated_once_by_whoever_comes_or_by_command() {
    let server = shared();
    let by_command = PostgresOptions { migrate: Migrate::ByCommand, ..fresh(server.url()) };
    let refused = PostgresJournal::open(by_command.clone(), JournalSettings::default()).await;
    let told = refused.unwrap_err();
    assert!(
        matches!(&told, JournalError::Broken(what) if what.contains("tidings migrate")),
        "{told}"
    );
    assert_eq!(migrate(&by_command).await.unwrap(), 2);
    assert_eq!(migrate(&by_command).await.unwrap(), 0);
    open(&by_command).await;
    let options = fresh(server.url());
    for journal in join_all((0..4).map(|_| open(&options))).await {
        journal.append(&topic(0), one(event(Dedup::Minted))).await.unwrap();
    }
    let client = client(server.url()).await;
    let newer = format!("UPDATE {}.versions SET version = 99", options.schema);
    client.batch_execute(&newer).await.unwrap();
    let refused = PostgresJournal::open(options, JournalSettings::default()).await;
    let told = refused.unwrap_err();
    assert!(matches!(&told, JournalError::Broken(what) if what.contains("newer")), "{told}");
}

/// Broken on purpose: when a trim that removes nothing leaves the time as it is, it stays unknown.
#[tokio::test]
async fn a_topic_of_an_earlier_version_says_how_old_it_is_once_it_was_looked_at() {
    let server = shared();
    let options = fresh(server.url());
    let journal = open(&options).await;
    journal.append(&topic(0), one(event(Dedup::Minted))).await.unwrap();
    let known = journal.describe(&topic(0)).await.unwrap();
    assert_eq!(known.oldest_at, known.written_at);
    let client = client(server.url()).await;
    let earlier = format!("UPDATE {}.topics SET oldest_at = DEFAULT", options.schema);
    client.batch_execute(&earlier).await.unwrap();
    let unknown = journal.describe(&topic(0)).await.unwrap();
    assert_eq!(unknown.oldest_at, Timestamp::default());
    let head = journal.trim(&topic(0), &Retention::UNLIMITED, known.written_at).await.unwrap();
    assert_eq!(head, known.head);
    assert_eq!(journal.describe(&topic(0)).await.unwrap(), known);
    // What such a version trims, it does not date anew.
    let trimmed = format!("UPDATE {}.topics SET oldest_at = oldest_at - 1", options.schema);
    client.batch_execute(&trimmed).await.unwrap();
    journal.trim(&topic(0), &Retention::UNLIMITED, known.written_at).await.unwrap();
    assert_eq!(journal.describe(&topic(0)).await.unwrap(), known);
}

/// Whoever reads a table holds it, and whoever wants to change it keeps everybody else from it: a
/// backup would stop all nodes.
///
/// Broken on purpose: when a step waits for the table as long as it may take, nobody reads meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_somebody_reads_is_migrated_behind_him_and_others_go_on() {
    let server = shared();
    let options = fresh(server.url());
    open(&options).await;
    let (reader, other) = (client(server.url()).await, client(server.url()).await);
    let schema = &options.schema;
    let earlier = format!(
        "UPDATE {schema}.versions SET version = 1 WHERE part = 'journal'; \
         ALTER TABLE {schema}.topics DROP COLUMN oldest_at"
    );
    reader.batch_execute(&earlier).await.unwrap();
    let read = format!("BEGIN; LOCK TABLE {schema}.topics IN ACCESS SHARE MODE");
    reader.batch_execute(&read).await.unwrap();
    let migrating = tokio::spawn({
        let options = options.clone();
        async move { migrate(&options).await }
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' \
                 AND relation = $1::text::regclass";
    let table = format!("{schema}.topics");
    let is_waiting = async || other.query_one(waits, &[&table]).await.unwrap().get::<_, i64>(0) > 0;
    let waited = async {
        while !is_waiting().await {}
        // Behind the one that waits, which gives way: `lock_timeout` is not set here.
        other.query(&format!("SELECT FROM {table}"), &[]).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, waited).await.expect("nobody else reads");
    assert!(!migrating.is_finished());
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(migrating.await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn another_server_than_before_is_another_history() {
    let server = shared();
    let options = fresh(server.url());
    let journal = open(&options).await;
    let before = journal.append(&topic(0), one(event(Dedup::Minted))).await.unwrap().head.epoch;
    journal.close().await;
    let journal = open(&options).await;
    assert_eq!(journal.describe(&topic(0)).await.unwrap().head.epoch, before);
    journal.close().await;
    // As if this were restored from a dump, or a standby that was promoted.
    let client = client(server.url()).await;
    let moved = format!("UPDATE {}.store SET timeline = timeline + 1", options.schema);
    client.batch_execute(&moved).await.unwrap();
    let nodes = [open(&options).await, open(&options).await];
    let after = nodes[0].describe(&topic(0)).await.unwrap().head.epoch;
    assert_ne!(after, before);
    assert_eq!(nodes[1].describe(&topic(0)).await.unwrap().head.epoch, after);
}

/// Broken on purpose: without `remove_deleted`, the rows stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deleted_topic_leaves_is_removed() {
    let server = shared();
    let options = fresh(server.url());
    let journal = open(&options).await;
    let events = (0..40).map(|n| {
        let mut append = event(Dedup::ById);
        if n % 2 == 0 {
            let key = StateKey::parse(&format!("k{}", n % 6)).unwrap();
            append.event = Arc::new(NewEvent::clone(&append.event).state(key));
        }
        append
    });
    let batch = Batch { events: events.collect(), ..Batch::default() };
    journal.append(&topic(0), batch).await.unwrap();
    assert!(journal.delete(&topic(0), DeleteIf::Always).await.unwrap().unwrap());
    let client = client(server.url()).await;
    let schema = &options.schema;
    let count = format!(
        "SELECT (SELECT count(*) FROM {schema}.log) + (SELECT count(*) FROM {schema}.states) \
         + (SELECT count(*) FROM {schema}.marks) + (SELECT count(*) FROM {schema}.dedup) \
         + (SELECT count(*) FROM {schema}.deleted)"
    );
    let runtime = tokio::runtime::Handle::current();
    wait_for("an empty schema", move || {
        let counted = runtime.block_on(client.query_one(&count, &[])).unwrap();
        counted.get::<_, i64>(0) == 0
    })
    .await;
}
