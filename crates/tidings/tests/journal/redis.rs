//! The journal in Redis, on real servers: the contract, and what only a server can go through.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tidings::{
    journal::{
        Append, Batch, Journal, JournalSettings, Retention,
        contract::Store,
        redis::{RedisJournal, RedisOptions},
    },
    journal_contract,
    model::{EventType, NewEvent, Tenant, Timestamp, Topic, TopicKey},
};
use tidings_services::Redis;

/// Options with a prefix that no other test has, whoever shares the server.
pub(crate) fn options(redis: &Redis) -> RedisOptions {
    options_of(redis.url())
}

/// The same of whatever is at a URL.
pub(crate) fn options_of(url: &str) -> RedisOptions {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::SeqCst);
    let prefix = format!("test-{}-{next}-{:08x}:", std::process::id(), getrandom::u32().unwrap());
    RedisOptions { prefix, ..RedisOptions::new(url) }
}

async fn store(settings: JournalSettings) -> Store {
    let redis = Redis::shared().unwrap();
    let options = options(&redis);
    let open = move || {
        let options = options.clone();
        async move {
            let journal = RedisJournal::open(options, settings).await.unwrap();
            let journal: Arc<dyn Journal> = journal;
            journal
        }
    };
    Store::new(open().await).reopened_by(open).keeping(redis)
}

journal_contract!(contract, store);

/// Broken on purpose: when a trim that removes nothing leaves the time as it is, it stays unknown.
#[tokio::test]
async fn a_topic_of_an_earlier_version_says_how_old_it_is_once_it_was_looked_at() {
    let redis = Redis::start().unwrap();
    let options = options(&redis);
    let journal = RedisJournal::open(options, JournalSettings::default()).await.unwrap();
    let topic = TopicKey::new(Tenant::parse("a").unwrap(), Topic::parse("t").unwrap());
    let event = NewEvent::new(EventType::parse("a.b").unwrap());
    let events = vec![Append::new(Arc::new(event))];
    let now = Timestamp::from_millis(1000);
    journal.append(&topic, Batch { events, now, ..Batch::default() }).await.unwrap();
    let known = journal.describe(&topic).await.unwrap();
    assert_eq!(known.oldest_at, now);
    let keys = redis.command(&["KEYS", "*:a/t:h"]).unwrap();
    redis.command(&["HDEL", keys.lines().nth(2).unwrap(), "oldest_at"]).unwrap();
    assert_eq!(journal.describe(&topic).await.unwrap().oldest_at, Timestamp::default());
    assert_eq!(journal.trim(&topic, &Retention::UNLIMITED, now).await.unwrap(), known.head);
    assert_eq!(journal.describe(&topic).await.unwrap(), known);
}
