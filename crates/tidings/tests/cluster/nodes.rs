//! Nodes: hubs with a journal, a bus and a runtime of their own, on one server.
//!
//! The rule: whoever asks something of a node asks as a client does. It gets an answer, or none
//! because the node died, and then asks another one.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tidings::{
    Hub,
    auth::Secret,
    bus::{Announcement, Bus, Codec, Heard},
    clock::{Clock, SystemClock},
    journal::Journal,
    model::{Timestamp, TopicKey},
    settings::Settings,
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// How many there are.
pub(crate) const NODES: usize = 3;
/// Far longer than anything here may take: a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Everything works again within 5 s of the server's first answer, or of the election of one that takes
/// events.
const SOON: Duration = Duration::from_secs(5);
/// Between two looks whether something came.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a node is built on.
pub(crate) type Parts = (Arc<dyn Journal>, Arc<dyn Bus>);

/// The nodes of one cluster.
pub(crate) struct Nodes {
    nodes: Vec<Node>,
}

/// A node's clock: the machine's, and as far off as it was told.
#[derive(Debug, Default)]
struct Jumping {
    off_ms: AtomicI64,
}

impl Clock for Jumping {
    fn now(&self) -> Timestamp {
        let off = self.off_ms.load(Ordering::SeqCst);
        Timestamp::from_millis(SystemClock.now().as_millis().saturating_add_signed(off))
    }
}

struct Node {
    hub: Hub,
    clock: Arc<Jumping>,
    /// Where everything of it runs; `None` once it was killed.
    runtime: Mutex<Option<Runtime>>,
    handle: Handle,
}

impl Nodes {
    /// Starts all of them; `open` connects one to the server.
    pub(crate) async fn start<F>(open: impl Fn() -> F) -> Arc<Self>
    where
        F: Future<Output = Parts> + Send + 'static,
    {
        Self::start_with(Settings::default(), open).await
    }

    /// The same with other settings.
    pub(crate) async fn start_with<F>(settings: Settings, open: impl Fn() -> F) -> Arc<Self>
    where
        F: Future<Output = Parts> + Send + 'static,
    {
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.unwrap();
            let (opening, settings) = (open(), settings.clone());
            let clock = Arc::<Jumping>::default();
            let told = Arc::clone(&clock);
            let starting = runtime.spawn(async move {
                let (journal, bus) = opening.await;
                Hub::builder().journal(journal).bus(bus).settings(settings).clock(told).start()
            });
            let (hub, handle) = (starting.await.unwrap(), runtime.handle().clone());
            nodes.push(Node { hub, clock, runtime: Mutex::new(Some(runtime)), handle });
        }
        Arc::new(Self { nodes })
    }

    /// A node's hub.
    pub(crate) fn hub(&self, number: usize) -> &Hub {
        &self.nodes[number].hub
    }

    /// All hubs that live.
    pub(crate) fn living(&self) -> impl Iterator<Item = &Hub> {
        self.nodes.iter().filter(|node| node.is_alive()).map(|node| &node.hub)
    }

    /// Starts work at a node, or at the next one that lives.
    pub(crate) fn spawn<T, F>(&self, number: usize, work: impl FnOnce(Hub) -> F) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let places = (0..NODES).map(|ahead| (number + ahead) % NODES);
        let node = places.map(|place| &self.nodes[place]).find(|node| node.is_alive()).unwrap();
        node.handle.spawn(work(node.hub.clone()))
    }

    /// Sets a node's clock so many milliseconds ahead of the machine's, or behind it.
    pub(crate) fn set_clock(&self, number: usize, off_ms: i64) {
        self.nodes[number].clock.off_ms.store(off_ms, Ordering::SeqCst);
    }

    /// Ends a node as `kill -9` does: nothing of it is asked or told.
    pub(crate) fn kill(&self, number: usize) {
        let runtime = self.nodes[number].runtime.lock().unwrap().take();
        runtime.unwrap().shutdown_background();
    }
}

impl Node {
    fn is_alive(&self) -> bool {
        self.runtime.lock().unwrap().is_some()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Waiting for it would block a worker of the test's own.
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits for something, looking again and again.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            sleep(LOOK_AGAIN).await;
        }
    };
    assert!(timeout(PATIENCE, waiting).await.is_ok(), "waited in vain for {what}");
}

/// Waits for something that is to come soon after what failed answers again. It is counted in looks: on
/// a machine that has other work they come late, as everything does.
pub(crate) async fn soon(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    for _ in 0..SOON.as_millis() / LOOK_AGAIN.as_millis() {
        if holds().await {
            return;
        }
        sleep(LOOK_AGAIN).await;
    }
    panic!("waited too long for {what}: {:?}", began.elapsed());
}

pub(crate) fn secret() -> Secret {
    Secret::new("0123456789abcdef0123456789abcdef")
}

pub(crate) fn codec() -> Codec {
    Codec::new(&secret())
}

/// A bus that loses 3 of 10 announcements, by a pattern without a rhythm.
#[derive(Debug)]
pub(crate) struct LossyBus {
    inner: Arc<dyn Bus>,
    chance: AtomicU64,
    lost: Arc<AtomicUsize>,
}

impl LossyBus {
    /// Counts in `lost` what it loses.
    pub(crate) fn around(inner: Arc<dyn Bus>, seed: u64, lost: Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self { inner, chance: AtomicU64::new(seed), lost })
    }

    fn loses(&self) -> bool {
        let seed = self.chance.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        // SplitMix64's mixing: its low bits are as random as the others.
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % 10 < 3
    }
}

#[async_trait]
impl Bus for LossyBus {
    fn announce(&self, announcement: Announcement) {
        self.inner.announce(announcement);
    }

    fn follow(&self, topic: &TopicKey) {
        self.inner.follow(topic);
    }

    fn unfollow(&self, topic: &TopicKey) {
        self.inner.unfollow(topic);
    }

    async fn heard(&self) -> Heard {
        loop {
            let heard = self.inner.heard().await;
            if !(matches!(heard, Heard::Announced(_)) && self.loses()) {
                return heard;
            }
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn failure(&self) -> Option<String> {
        self.inner.failure()
    }

    fn dropped(&self) -> u64 {
        self.inner.dropped()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
