//! The transactional outbox: an event appears if, and only if, its transaction commits.
//!
//! The rule: in the order of commits within a topic, once, whoever drains.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tidings::{
    Hub,
    journal::{
        Journal, JournalSettings, PageLimit,
        memory::MemoryJournal,
        postgres::{PostgresJournal, PostgresOptions},
    },
    model::{Class, Data, Offset, Tenant, Timestamp, Topic, TopicKey},
    source::outbox::{Outbox, migrate},
};
use tidings_services::Postgres;
use tokio_postgres::{Client, NoTls};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn client(options: &PostgresOptions) -> Client {
    let (client, connection) = tokio_postgres::connect(&options.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn fresh(url: &str) -> PostgresOptions {
    PostgresOptions::new(url).schema(format!("t{}", uuid::Uuid::new_v4().simple()))
}

fn key(topic: &str) -> TopicKey {
    TopicKey::new(Tenant::parse("default").unwrap(), Topic::parse(topic).unwrap())
}

/// What a topic holds, as JSON, once it holds so many.
async fn told(journal: &dyn Journal, topic: &str, count: usize) -> Vec<String> {
    let read = async {
        loop {
            let limit = PageLimit { events: usize::MAX, bytes: usize::MAX };
            let page = journal.read(&key(topic), Offset::ZERO, limit).await.unwrap();
            if page.events.len() >= count {
                let text = |data: &Data| match data {
                    Data::Json(text) => text.as_str().to_owned(),
                    other => panic!("{other:?}"),
                };
                return page.events.iter().map(|event| text(&event.body.data)).collect();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap()
}

/// A hub over a journal in memory that drains the schema's outbox.
async fn hub(options: &PostgresOptions) -> (Hub, Arc<MemoryJournal>) {
    let journal = Arc::new(MemoryJournal::new(JournalSettings::default()));
    let hub = Hub::builder().journal(journal.clone()).start();
    Outbox::open(options).await.unwrap().start(&hub);
    (hub, journal)
}

fn enqueue(options: &PostgresOptions, topic: &str, data: &str) -> String {
    format!("SELECT {}.enqueue('{topic}', 'a.b', '{data}')", options.schema)
}

#[tokio::test]
async fn an_event_appears_if_and_only_if_its_transaction_commits() {
    let server = Postgres::shared().unwrap();
    let options = fresh(server.url());
    assert_eq!(migrate(&options).await.unwrap(), 1);
    let client = client(&options).await;
    let e = |data: &str| enqueue(&options, "t", data);
    client.batch_execute(&e("1")).await.unwrap();
    client.batch_execute(&format!("BEGIN; {}; ROLLBACK", e("2"))).await.unwrap();
    let savepoint =
        format!("BEGIN; {}; SAVEPOINT s; {}; ROLLBACK TO s; {}; COMMIT", e("3"), e("4"), e("5"));
    client.batch_execute(&savepoint).await.unwrap();
    let released = format!("BEGIN; SAVEPOINT s; {}; RELEASE s; {}; COMMIT", e("6"), e("7"));
    client.batch_execute(&released).await.unwrap();
    let (hub, journal) = hub(&options).await;
    client.batch_execute(&e("8")).await.unwrap();
    assert_eq!(told(&*journal, "t", 6).await, ["1", "3", "5", "6", "7", "8"]);
    hub.shutdown().await;
}

/// Broken on purpose: when a row gets its place as it is inserted, the first one comes first.
#[tokio::test]
async fn events_come_in_the_order_of_commits() {
    let server = Postgres::shared().unwrap();
    let options = fresh(server.url());
    migrate(&options).await.unwrap();
    let (slow, fast) = (client(&options).await, client(&options).await);
    slow.batch_execute(&format!("BEGIN; {}", enqueue(&options, "t", "1"))).await.unwrap();
    // Not held up by the one that is open, which an application may keep open for long.
    for n in 2..5 {
        fast.batch_execute(&enqueue(&options, "t", &n.to_string())).await.unwrap();
    }
    slow.batch_execute("COMMIT").await.unwrap();
    fast.batch_execute(&enqueue(&options, "t", "5")).await.unwrap();
    let (hub, journal) = hub(&options).await;
    assert_eq!(told(&*journal, "t", 5).await, ["2", "3", "4", "1", "5"]);
    hub.shutdown().await;
}

/// Broken on purpose: when the trigger takes locks in the order of rows, applications deadlock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_drain_what_many_enqueue_without_loss_or_doubles() {
    const CLIENTS: usize = 6;
    const TRANSACTIONS: usize = 60;
    const TOPICS: usize = 5;
    let server = Postgres::start().unwrap();
    let options = fresh(&server.url());
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let journal =
            PostgresJournal::open(options.clone(), JournalSettings::default()).await.unwrap();
        let hub = Hub::builder().journal(journal.clone()).start();
        Outbox::open(&options).await.unwrap().start(&hub);
        nodes.push((hub, journal));
    }
    let clients = (0..CLIENTS).map(|number| {
        let options = options.clone();
        tokio::spawn(async move {
            let client = client(&options).await;
            for n in 0..TRANSACTIONS {
                // Each in another order of topics.
                let (one, other) = ((number + n) % TOPICS, (number * 3 + n * 2 + 1) % TOPICS);
                let data = format!("\"{number}-{n:03}\"");
                let end = if n % 5 == 4 { "ROLLBACK" } else { "COMMIT" };
                let transaction = format!(
                    "BEGIN; {}; {}; {end}",
                    enqueue(&options, &format!("t/{one}"), &data),
                    enqueue(&options, &format!("t/{other}"), &data),
                );
                client.batch_execute(&transaction).await.unwrap();
                if number == 0 && n % 20 == 19 {
                    // Nodes lose their connections halfway.
                    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                                WHERE application_name = 'tidings'";
                    client.batch_execute(kill).await.unwrap();
                }
            }
        })
    });
    for client in join_all(clients.collect::<Vec<_>>()).await {
        client.unwrap();
    }
    let mut expected: Vec<Vec<String>> = vec![Vec::new(); TOPICS];
    for number in 0..CLIENTS {
        for n in (0..TRANSACTIONS).filter(|n| n % 5 != 4) {
            for at in [(number + n) % TOPICS, (number * 3 + n * 2 + 1) % TOPICS] {
                expected[at].push(format!("\"{number}-{n:03}\""));
            }
        }
    }
    let client = client(&options).await;
    let left = format!("SELECT count(*) FROM {}.outbox", options.schema);
    let empty = async { while client.query_one(&left, &[]).await.unwrap().get::<_, i64>(0) > 0 {} };
    tokio::time::timeout(PATIENCE, empty).await.unwrap();
    for (at, mut expected) in expected.into_iter().enumerate() {
        let told = told(&*nodes[0].1, &format!("t/{at}"), expected.len()).await;
        for number in 0..CLIENTS {
            let of = format!("\"{number}-");
            let own = || told.iter().filter(|data| data.starts_with(&of));
            assert!(own().is_sorted(), "{own:?}", own = own().collect::<Vec<_>>());
        }
        let mut sorted = told.clone();
        sorted.sort_unstable();
        expected.sort_unstable();
        assert_eq!(sorted, expected);
    }
    let dead = format!("SELECT count(*) FROM {}.outbox_dead", options.schema);
    assert_eq!(client.query_one(&dead, &[]).await.unwrap().get::<_, i64>(0), 0);
    for (hub, _) in nodes {
        hub.shutdown().await;
    }
}

#[tokio::test]
async fn what_cannot_be_published_dies_with_its_reason_and_holds_nothing_up() {
    let server = Postgres::shared().unwrap();
    let options = fresh(server.url());
    migrate(&options).await.unwrap();
    let client = client(&options).await;
    let schema = &options.schema;
    let large = "x".repeat(70_000);
    let call = |arguments: &str| format!("SELECT {schema}.enqueue({arguments})");
    let bad = [
        (call("'a b', 'a.b'"), "malformed"),
        (call("'$hub/x', 'a.b'"), "forbidden_topic"),
        (call("'t', 'a.b', tenant => '~hub'"), "forbidden_topic"),
        (call("'t', 'A B'"), "malformed"),
        (call("'t', 'a.b', class => 'state'"), "malformed"),
        (call("'t', 'a.b', class => 'other'"), "malformed"),
        (call(&format!("'t', 'a.b', to_jsonb('{large}'::text)")), "too_large"),
        (call("'t', 'a.b', ends => true"), "malformed"),
    ];
    for (sql, _) in &bad {
        client.batch_execute(sql).await.unwrap();
        client.batch_execute(&enqueue(&options, "t", "1")).await.unwrap();
    }
    let full = "'t', 'a.b', '{\"a\": [1, null]}', key => 'run/1', id => 'mine', source => '/app', \
                subject => 's', happened_at => '2026-11-21T07:00:00.123Z', \
                expires_at => '2999-01-01', due_at => '2998-01-01', closes => true";
    client.batch_execute(&call(full)).await.unwrap();
    // Enqueued twice by an application that did not learn whether it had.
    client.batch_execute(&call(full)).await.unwrap();
    let (hub, journal) = hub(&options).await;
    assert_eq!(told(&*journal, "t", bad.len() + 1).await.len(), bad.len() + 1);
    let left = format!("SELECT count(*) FROM {schema}.outbox");
    let empty = async { while client.query_one(&left, &[]).await.unwrap().get::<_, i64>(0) > 0 {} };
    tokio::time::timeout(PATIENCE, empty).await.unwrap();
    let dead = format!("SELECT code, reason FROM {schema}.outbox_dead ORDER BY id");
    let rows = client.query(&dead, &[]).await.unwrap();
    let codes: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(codes, bad.each_ref().map(|(_, code)| *code));
    assert!(rows.iter().all(|row| !row.get::<_, &str>(1).is_empty()));
    let limit = PageLimit::default();
    let page = journal.read(&key("t"), Offset::ZERO, limit).await.unwrap();
    let last = page.events.last().unwrap();
    assert!(page.head.closed);
    assert_eq!((last.body.id.as_str(), last.body.class), ("mine", Class::State));
    assert_eq!(last.body.time, Timestamp::parse("2026-11-21T07:00:00.123Z"));
    assert_eq!(last.body.due_at, Timestamp::parse("2998-01-01T00:00:00Z"));
    hub.shutdown().await;
}
