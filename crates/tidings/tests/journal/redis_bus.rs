//! The bus in Redis, on real servers: the contract, what the journal says in it, and broken links.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidings::{
    auth::Secret,
    bus::{
        Announcement, Bus, Codec, Heard,
        contract::Pair,
        redis::{RedisBus, SaidBy},
    },
    bus_contract,
    journal::{
        Append, Batch, Change, DeleteIf, Journal, JournalSettings, Properties,
        redis::{RedisJournal, RedisOptions},
    },
    model::{EventType, NewEvent, Tenant, Topic, TopicKey},
};
use tidings_services::Redis;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::redis::options;

/// Longer than a silent connection is believed.
const PATIENCE: Duration = Duration::from_secs(40);

fn codec() -> Codec {
    Codec::new(&Secret::new("0123456789abcdef0123456789abcdef"))
}

async fn open(options: &RedisOptions, said_by: SaidBy) -> Arc<RedisBus> {
    RedisBus::open(options.clone(), codec(), said_by).await.unwrap()
}

async fn pair() -> Pair {
    let redis = Redis::shared().unwrap();
    let options = options(&redis);
    let (one, other) = (open(&options, SaidBy::Hub).await, open(&options, SaidBy::Hub).await);
    Pair::new(one, other).keeping(redis)
}

bus_contract!(contract, pair);

fn topic(name: &str) -> TopicKey {
    TopicKey::new(Tenant::parse("acme").unwrap(), Topic::parse(name).unwrap())
}

fn batch() -> Batch {
    let event = NewEvent::new(EventType::parse("a.b").unwrap());
    Batch { events: vec![Append::new(Arc::new(event))], ..Batch::default() }
}

/// Waits until this is heard, whatever else is.
async fn hears(bus: &dyn Bus, what: Heard) {
    let until = async { while bus.heard().await != what {} };
    timeout(PATIENCE, until).await.unwrap_or_else(|_| panic!("{what:?} was not heard"));
}

async fn follow(bus: &dyn Bus, topic: &TopicKey) {
    bus.follow(topic);
    hears(bus, Heard::Missed(Some(topic.clone()))).await;
}

/// Broken on purpose: with another product in `announce` of common.lua, epochs after a deletion
/// differ.
#[tokio::test]
async fn the_journal_says_itself_what_becomes_of_topics() {
    let redis = Redis::shared().unwrap();
    let options = options(&redis);
    let journal = RedisJournal::open(options.clone(), JournalSettings::default()).await.unwrap();
    let bus = open(&options, SaidBy::Journal).await;
    let topic = topic("user/1:h@x~y");
    follow(&*bus, &topic).await;
    for _ in 0..3 {
        for _ in 0..2 {
            let end = journal.append(&topic, batch()).await.unwrap().head.end();
            let advanced = Announcement::Advanced { topic: topic.clone(), end };
            hears(&*bus, Heard::Announced(advanced.clone())).await;
            // Said again by the hub, it is not said twice.
            bus.announce(advanced);
        }
        let changed = || Heard::Announced(Announcement::Changed { topic: topic.clone() });
        let change = Change::to(Properties::default());
        journal.set_properties(&topic, change).await.unwrap().unwrap();
        assert_eq!(timeout(PATIENCE, bus.heard()).await.unwrap(), changed());
        assert_eq!(journal.delete(&topic, DeleteIf::Always).await.unwrap(), Ok(true));
        assert_eq!(timeout(PATIENCE, bus.heard()).await.unwrap(), changed());
    }
    assert_eq!(bus.dropped(), 0);
}

#[tokio::test]
async fn a_bus_whose_server_is_killed_says_so_and_goes_on_once_it_is_back() {
    let mut redis = Redis::start().unwrap();
    let options = options(&redis);
    let (one, other) = (open(&options, SaidBy::Hub).await, open(&options, SaidBy::Hub).await);
    let (kept, left) = (topic("kept"), topic("left"));
    follow(&*other, &kept).await;
    follow(&*other, &left).await;
    redis.kill().unwrap();
    let failing = async {
        while one.failure().is_none() || other.failure().is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, failing).await.unwrap();
    let changed = |topic: &TopicKey| Announcement::Changed { topic: topic.clone() };
    one.announce(changed(&kept));
    assert_eq!(one.dropped(), 1);
    other.unfollow(&left);
    redis.restart().unwrap();
    hears(&*other, Heard::Missed(None)).await;
    hears(&*one, Heard::Missed(None)).await;
    one.announce(changed(&left));
    one.announce(changed(&kept));
    // The one that was left meanwhile is not heard.
    let heard = timeout(PATIENCE, other.heard()).await.unwrap();
    assert_eq!(heard, Heard::Announced(changed(&kept)));
    assert_eq!((one.failure(), other.failure()), (None, None));
}

/// Passes bytes on to a server, until what it delivers to subscribers is swallowed.
async fn proxy(server: SocketAddr, swallows: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(server).await.unwrap();
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            let subscribes = Arc::new(AtomicBool::new(false));
            let (of_subscriber, swallows) = (Arc::clone(&subscribes), Arc::clone(&swallows));
            tokio::spawn(async move {
                let mut bytes = vec![0; 64 * 1024];
                while let Ok(length @ 1..) = from_client.read(&mut bytes).await {
                    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                    subscribes.fetch_or(text.contains("SUBSCRIBE"), Ordering::SeqCst);
                    let _ = to_server.write_all(&bytes[..length]).await;
                }
            });
            tokio::spawn(async move {
                let mut bytes = vec![0; 64 * 1024];
                while let Ok(length @ 1..) = from_server.read(&mut bytes).await {
                    if swallows.load(Ordering::SeqCst) && of_subscriber.load(Ordering::SeqCst) {
                        continue;
                    }
                    let _ = to_client.write_all(&bytes[..length]).await;
                }
            });
        }
    });
    address
}

/// Broken on purpose: without `silence` in the bus, it goes on believing the connection.
#[tokio::test]
async fn a_subscription_that_delivers_nothing_is_given_up_though_it_stays_open() {
    let redis = Redis::shared().unwrap();
    let server = redis.url().trim_start_matches("redis://").parse().unwrap();
    let swallows = Arc::new(AtomicBool::new(false));
    let address = proxy(server, Arc::clone(&swallows)).await;
    let url = format!("redis://{address}");
    let bus = open(&RedisOptions { url, ..options(&redis) }, SaidBy::Hub).await;
    let topic = topic("t");
    follow(&*bus, &topic).await;
    swallows.store(true, Ordering::SeqCst);
    let failing = async {
        while bus.failure().is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, failing).await.unwrap();
    swallows.store(false, Ordering::SeqCst);
    hears(&*bus, Heard::Missed(None)).await;
    let changed = Announcement::Changed { topic };
    bus.announce(changed.clone());
    hears(&*bus, Heard::Announced(changed)).await;
}
