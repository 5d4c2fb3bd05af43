//! The journal in a Redis Cluster of three masters: the contract.

use std::sync::Arc;

use tidings::{
    journal::{Journal, JournalSettings, contract::Store, redis::RedisJournal},
    journal_contract,
};
use tidings_services::RedisCluster;

use crate::redis::options_of;

async fn store(settings: JournalSettings) -> Store {
    let cluster = RedisCluster::shared().unwrap();
    let options = options_of(cluster.url());
    let open = move || {
        let options = options.clone();
        async move {
            let journal = RedisJournal::open(options, settings).await.unwrap();
            let journal: Arc<dyn Journal> = journal;
            journal
        }
    };
    Store::new(open().await).reopened_by(open).keeping(cluster)
}

journal_contract!(contract, store);
