//! The journal in Redis, on real servers: the contract, and what only a server can go through.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tidings::{
    journal::{
        Journal, JournalSettings,
        contract::Store,
        redis::{RedisJournal, RedisOptions},
    },
    journal_contract,
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
