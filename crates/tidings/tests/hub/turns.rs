//! Readers take turns: however many of them read the journal, publishers and other tenants do not
//! wait for them.

use std::sync::Arc;

use tidings::{
    Hub,
    journal::{JournalSettings, memory::MemoryJournal},
    model::{Tenant, TopicKey},
    publish::Publish,
    settings::Settings,
    subscribe::{Follow, Since},
};
use tokio::sync::oneshot;

use crate::support::{Seam, SeamJournal, catch_up, event, follow, key, log, publish, topic};

/// A hub with so many turns, and one reader that has its turn until the sender is dropped.
async fn with_a_slow_reader(all: usize, of_tenant: usize) -> (Hub, oneshot::Sender<()>) {
    let memory = Arc::new(MemoryJournal::new(JournalSettings::default()));
    let journal = SeamJournal::new(memory);
    let settings = Settings {
        replay_reads_max: all,
        tenant_replay_reads_max: of_tenant,
        ..Settings::default()
    };
    let hub = Hub::builder().journal(Arc::clone(&journal) as Arc<_>).settings(settings).start();
    publish(&hub, "a", log(1)).await;
    let (begun, begins) = oneshot::channel();
    let (held, release) = oneshot::channel::<()>();
    let mut once = Some((begun, release));
    journal.at(Seam::BeforeRead, move || {
        let (begun, release) = once.take().unwrap();
        async move {
            begun.send(()).unwrap();
            let _ = release.await;
        }
    });
    let slow = hub.clone();
    tokio::spawn(async move { catch_up(&mut follow(&slow, earliest(key("a"))).await).await });
    begins.await.unwrap();
    (hub, held)
}

fn earliest(key: TopicKey) -> Follow {
    Follow { since: Some(Since::Earliest), ..Follow::new(vec![key]) }
}

/// Broken on purpose, it failed: with `describe` waiting for its turn.
#[tokio::test]
async fn publishers_do_not_wait_for_readers() {
    let (hub, held) = with_a_slow_reader(1, 1).await;
    publish(&hub, "a", log(2)).await;
    publish(&hub, "never-used-before", log(1)).await;
    hub.describe(&key("a")).await.unwrap();
    let waiting = tokio::spawn({
        let hub = hub.clone();
        async move { catch_up(&mut follow(&hub, earliest(key("a"))).await).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "there was one turn only");
    drop(held);
    assert_eq!(waiting.await.unwrap(), [event("log", 1, 1), event("log", 2, 2)]);
}

/// Broken on purpose, it failed: with the turn of all taken before the tenant's own.
#[tokio::test]
async fn the_readers_of_one_tenant_do_not_hold_up_anothers() {
    let (hub, held) = with_a_slow_reader(2, 1).await;
    // In line behind the slow one of their tenant.
    let crowd: Vec<_> = (0..20)
        .map(|_| {
            let hub = hub.clone();
            tokio::spawn(async move { catch_up(&mut follow(&hub, earliest(key("a"))).await).await })
        })
        .collect();
    tokio::task::yield_now().await;
    let other = Tenant::parse("globex").unwrap();
    hub.publish_one(&other, Publish::new(topic("a"), log(7))).await.unwrap();
    let mut reader = follow(&hub, earliest(TopicKey::new(other, topic("a")))).await;
    assert_eq!(catch_up(&mut reader).await, [event("log", 1, 7)]);
    drop(held);
    for reader in crowd {
        assert_eq!(reader.await.unwrap(), [event("log", 1, 1)]);
    }
}
