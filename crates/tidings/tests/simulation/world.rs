//! One run: a hub that comes and goes over a store, its clients, and what goes wrong between them.
//!
//! The rule: first everything goes wrong for a while, then nothing does. From there on everybody
//! must get to the end of everything within a time.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Map, json};
use tidings::{
    Hub,
    auth::{
        Algorithm, ApiKeySettings, AuthSettings, Authenticator, JwtKeySettings, Secret, SigningKey,
        jwt,
    },
    clock::Clock,
    http::HttpSettings,
    journal::Retention,
    model::{Tenant, Timestamp, Topic, TopicKey},
    settings::Settings,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    chance::Chance,
    client::ask,
    followed::{Ends, Since, Wants},
    network::{Host, Network},
    publisher::{Kind, Publisher, with_type},
    reader::{Credential, Form, Habits, Knowledge, Reader},
    store::{Loss, Store},
    trace::Trace,
};

/// Topics that everybody writes.
const OPEN: &[&str] = &["a", "b/c"];
/// A topic that is closed in the middle.
pub(crate) const CLOSING: &str = "run/1";
/// A topic that is deleted now and then.
const DELETED: &str = "gone";
/// A key of the hub's own form; fixed, so that its text does not differ between runs.
const KEY: &str = "tdk_abcdefgh12_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg3To7I2";
const KEY_SHA256: &str = "71d84b1859bad11abcb3dfd9353c8d1873aafd883ffaf6f2c9df7cbcfc3e1850";
const SECRET: &str = "a-secret-of-the-simulation-that-is-long-enough";
/// Within this time everybody gets to the end of everything, once nothing goes wrong any more.
const SETTLE_MAX: Duration = Duration::from_secs(180);

pub(crate) fn key(topic: &str) -> TopicKey {
    TopicKey::new(Tenant::parse("acme").unwrap(), Topic::parse(topic).unwrap())
}

/// The time of day: that of the run, and what somebody set it forward or back.
#[derive(Debug)]
struct SetClock {
    begun: Instant,
    skew_ms: AtomicI64,
}

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        let base = i64::try_from(Timestamp::parse("2026-11-21T07:00:00Z").unwrap().as_millis());
        let passed = i64::try_from(self.begun.elapsed().as_millis()).unwrap();
        let now = base.unwrap() + passed + self.skew_ms.load(Ordering::SeqCst);
        Timestamp::from_millis(u64::try_from(now).unwrap())
    }
}

/// What all actors of a run share.
pub(crate) struct World {
    pub(crate) trace: Arc<Trace>,
    pub(crate) store: Arc<Store>,
    pub(crate) network: Arc<Network>,
    clock: Arc<SetClock>,
    is_calm: AtomicBool,
    authenticator: Arc<Authenticator>,
    settings: Settings,
    process: Mutex<Option<Process>>,
}

/// A running hub.
struct Process {
    hub: Hub,
    host: Host,
    dead: CancellationToken,
}

/// What became of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) failure: Option<String>,
    /// Lines of the trace, and their hash.
    pub(crate) trace: (u64, u64),
}

/// Runs one seed.
pub(crate) fn run(seed: u64, is_loud: bool) -> Outcome {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut chance = Chance::new(seed);
        let world = World::new(seed, is_loud, &mut chance);
        world.live(chance).await;
        Outcome { failure: world.trace.failure(), trace: world.trace.summary() }
    })
}

impl World {
    fn new(seed: u64, is_loud: bool, chance: &mut Chance) -> Arc<Self> {
        let trace = Arc::new(Trace::new(is_loud));
        let clock = Arc::new(SetClock { begun: Instant::now(), skew_ms: AtomicI64::new(0) });
        let topics: Vec<&str> = OPEN.iter().copied().chain([CLOSING, DELETED]).collect();
        let settings = Settings {
            ring_frames_max: *chance.pick(&[1, 2, 8, 64]),
            retention: Retention {
                age: Some(Duration::from_secs(*chance.pick(&[60, 3600, 86_400]))),
                events: Some(*chance.pick(&[10, 40, 10_000])),
                bytes: None,
            },
            retention_sweep: Duration::from_secs(5),
            // Spread by chance that is not the seed's: they do not happen within a run. Connections
            // that end by time are those whose token ends.
            heartbeat: Duration::from_secs(24 * 60 * 60),
            connection_age_max: Duration::from_secs(30 * 24 * 60 * 60),
            drain_window: Duration::ZERO,
            // However it is spread, it has four digits.
            retry: Duration::from_secs(4),
            ..Settings::default()
        };
        let store = Store::new(seed, Arc::clone(&clock) as Arc<_>, Arc::clone(&trace), &topics);
        Arc::new(Self {
            trace,
            store,
            network: Network::new(chance.fork()),
            clock,
            is_calm: AtomicBool::new(false),
            authenticator: Arc::new(Authenticator::new(&auth()).unwrap()),
            settings,
            process: Mutex::new(None),
        })
    }

    /// Whether nothing goes wrong any more.
    pub(crate) fn is_calm(&self) -> bool {
        self.is_calm.load(Ordering::SeqCst)
    }

    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {KEY}")
    }

    /// A token that ends in so many seconds.
    pub(crate) fn token(&self, seconds: u64) -> String {
        let secret = Secret::new(SECRET.to_owned());
        let key = SigningKey::new(Algorithm::Hs256, None, &secret).unwrap();
        let mut claims = Map::new();
        claims.insert("sub".to_owned(), "reader".into());
        claims.insert("exp".to_owned(), (self.clock.now().as_secs() + seconds).into());
        claims.insert("tidings".to_owned(), json!({ "read": ["**"] }));
        jwt::mint(&key, &claims).unwrap()
    }

    pub(crate) fn in_seconds(&self, seconds: u64) -> String {
        self.clock.now().plus(Duration::from_secs(seconds)).to_string()
    }

    pub(crate) fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let builder = Request::builder().method(method).uri(path).header("host", "hub");
        builder.header("authorization", self.bearer()).body(Full::new(body)).unwrap()
    }

    async fn live(self: &Arc<Self>, mut chance: Chance) {
        self.start();
        let (readers, reading) = self.readers(&mut chance);
        let publishing = self.publishers(&mut chance);
        let until = Instant::now() + chance.millis(10_000..30_000);
        while Instant::now() < until && !self.has_failed() {
            sleep(chance.millis(100..4000)).await;
            self.mishap(&mut chance).await;
        }
        self.calm();
        for publisher in publishing {
            if !self.has_failed() && timeout(SETTLE_MAX, publisher).await.is_err() {
                self.trace.fail("world", "a publisher is stuck");
            }
        }
        self.settle(&readers, "what was published").await;
        self.last_words().await;
        self.settle(&readers, "what is published while nothing goes wrong").await;
        self.finish(&readers);
        for reader in reading {
            reader.abort();
        }
    }

    fn readers(
        self: &Arc<Self>,
        chance: &mut Chance,
    ) -> (BTreeMap<String, Following>, Vec<JoinHandle<()>>) {
        let mut readers = BTreeMap::new();
        let mut tasks = Vec::new();
        let all: Vec<String> =
            OPEN.iter().chain(&[CLOSING, DELETED]).map(|topic| (*topic).to_owned()).collect();
        for number in 0..7 {
            let topics = match chance.within(0..4) {
                0 => all.clone(),
                1 => vec![CLOSING.to_owned()],
                _ => vec![chance.pick(&all).clone()],
            };
            let form = *chance.pick(&[Form::Sse, Form::Sse, Form::Ndjson, Form::LongPoll]);
            let credential = match chance.within(0..4) {
                0 => Credential::Token(String::new()),
                1 if form == Form::Sse => Credential::Ticket(String::new()),
                _ => Credential::Key,
            };
            let wants = [Wants::Everything, Wants::Everything, Wants::Logs, Wants::States];
            let habits = Habits {
                name: format!("reader-{number}"),
                topics,
                form,
                since: *chance.pick(&[Since::Earliest, Since::Earliest, Since::Now]),
                wants: *chance.pick(&wants),
                credential,
            };
            self.trace.line(&habits.name, format_args!("{habits:?}"));
            let reader = Reader::new(self, habits.clone(), chance.fork());
            let knowledge = reader.knowledge();
            readers.insert(habits.name.clone(), Following { habits, knowledge });
            tasks.push(tokio::spawn(reader.run()));
        }
        (readers, tasks)
    }

    fn publishers(self: &Arc<Self>, chance: &mut Chance) -> Vec<JoinHandle<()>> {
        let most = [OPEN[0], OPEN[1], CLOSING, DELETED];
        let kinds: [(&str, Kind, &[&'static str]); 6] = [
            ("single", Kind::Single, &most[..1]),
            ("batch", Kind::Batch, &most),
            ("keyed", Kind::Keyed, &most[..2]),
            ("lines", Kind::Lines, &most),
            ("one", Kind::Counter, &most[1..2]),
            ("two", Kind::Counter, &most[1..2]),
        ];
        let publisher = |(name, kind, topics)| {
            tokio::spawn(Publisher::new(self, name, kind, topics, chance.fork()).run())
        };
        kinds.map(publisher).into()
    }

    fn start(self: &Arc<Self>) {
        let dead = CancellationToken::new();
        let hub = Hub::builder()
            .settings(self.settings.clone())
            .clock(Arc::clone(&self.clock) as Arc<_>)
            .journal(self.store.open(dead.clone()))
            .start();
        let app = hub.router(Arc::clone(&self.authenticator), &HttpSettings::default()).unwrap();
        let host = Host::new(app, dead.clone());
        self.network.host(Some(host.clone()));
        *self.process.lock().unwrap() = Some(Process { hub, host, dead });
        self.trace.line("world", format_args!("the hub starts"));
    }

    fn crash(&self) {
        self.network.host(None);
        if let Some(process) = self.process.lock().unwrap().take() {
            process.dead.cancel();
        }
        self.trace.line("world", format_args!("the hub dies"));
    }

    /// The hub ends in order: connections are sent away, what was accepted is finished.
    async fn stop(&self) {
        let Some(process) = self.process.lock().unwrap().take() else { return };
        self.trace.line("world", format_args!("the hub drains"));
        process.hub.drain();
        let drained = timeout(Duration::from_secs(5), process.host.wait()).await.is_ok();
        self.network.host(None);
        process.hub.shutdown().await;
        process.dead.cancel();
        self.trace.line("world", format_args!("the hub ends, drained {drained}"));
    }

    /// Something goes wrong.
    async fn mishap(self: &Arc<Self>, chance: &mut Chance) {
        match chance.within(0..13) {
            0 | 1 => {
                self.crash();
                sleep(chance.millis(0..4000)).await;
                self.start();
            }
            2 | 3 => {
                self.crash();
                let count = usize::try_from(chance.within(1..40)).unwrap();
                let loss = *chance.pick(&[Loss::Known, Loss::Silent]);
                self.store.lose(count, loss);
                self.trace.line("world", format_args!("{count} writes are lost, {loss:?}"));
                sleep(chance.millis(0..2000)).await;
                self.start();
            }
            4 => {
                self.stop().await;
                sleep(chance.millis(0..2000)).await;
                self.start();
            }
            5 => {
                self.network.host(None);
                sleep(chance.millis(500..8000)).await;
                let host = self.process.lock().unwrap().as_ref().map(|one| one.host.clone());
                self.network.host(host);
            }
            6 | 7 => {
                let most = *chance.pick(&[2, 100, 4000, 100_000]);
                let by = i64::try_from(chance.within(0..most * 1000)).unwrap();
                let by = if chance.one_in(3) { -by } else { by };
                // Not before 1970, nor by ever more.
                let skew = (self.clock.skew_ms.load(Ordering::SeqCst) + by)
                    .clamp(-86_400_000, 864_000_000);
                self.clock.skew_ms.store(skew, Ordering::SeqCst);
                self.trace.line("world", format_args!("the clock is set by {by} ms"));
            }
            8 | 9 => {
                let topic = *chance.pick(&[OPEN[0], OPEN[1], CLOSING, DELETED]);
                let keep = chance.within(0..20);
                self.store.trim(topic, keep);
                self.trace.line("world", format_args!("{topic} is trimmed to {keep}"));
            }
            10 | 11 => self.operate(Method::DELETE, DELETED, "", chance).await,
            _ => self.operate(Method::PUT, CLOSING, "{\"closed\":true}", chance).await,
        }
    }

    /// Does something to a topic, again until it is answered.
    async fn operate(&self, method: Method, topic: &str, body: &'static str, chance: &mut Chance) {
        for _ in 0..20 {
            let path = format!("/v1/topics/{topic}");
            let request = self.request(method.clone(), &path, Bytes::from_static(body.as_bytes()));
            let answer = ask(&self.network, with_type(request, "application/json")).await;
            let status = answer.map_or(StatusCode::REQUEST_TIMEOUT, |(status, _)| status);
            self.trace.line("world", format_args!("{method} {topic}: {status}"));
            if status.is_success() || status == StatusCode::NOT_FOUND {
                return;
            }
            sleep(chance.millis(10..500)).await;
        }
    }

    /// From here on nothing goes wrong.
    fn calm(self: &Arc<Self>) {
        self.trace.line("world", format_args!("calm"));
        self.is_calm.store(true, Ordering::SeqCst);
        self.store.is_calm.store(true, Ordering::SeqCst);
        self.network.calm();
        if self.process.lock().unwrap().is_none() {
            self.start();
        }
    }

    fn has_failed(&self) -> bool {
        if let Some(panic) = crate::panics() {
            self.trace.fail("world", &panic);
        }
        self.trace.failure().is_some()
    }

    /// Waits until every reader has everything.
    async fn settle(&self, readers: &BTreeMap<String, Following>, what: &str) {
        let until = Instant::now() + SETTLE_MAX;
        loop {
            if self.has_failed() {
                return;
            }
            let behind = readers.values().find_map(|reader| self.behind(reader));
            let Some(behind) = behind.or_else(|| {
                self.store.has_due().then(|| "states expired and are still there".to_owned())
            }) else {
                return;
            };
            if Instant::now() > until {
                self.trace.fail("world", &format!("did not get to the end of {what}: {behind}"));
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn behind(&self, reader: &Following) -> Option<String> {
        let knowledge = reader.knowledge.lock().unwrap();
        if knowledge.is_finished {
            return None;
        }
        let ends = if reader.habits.form == Form::LongPoll { Ends::Untold } else { Ends::Told };
        self.store.history(|history| {
            let mut topics = knowledge.topics.iter();
            let behind = topics.find(|(topic, one)| !one.is_at_end(topic, ends, history));
            behind.map(|(topic, followed)| {
                let (mark, line) = (followed.mark, history.now(topic));
                let end = (line.epoch, line.end(), line.closed);
                format!("{} in {topic} is at {mark:?}, the end is {end:?}", reader.habits.name)
            })
        })
    }

    /// An event for each topic that is open: all readers must hear of it where they are.
    async fn last_words(&self) {
        for topic in OPEN.iter().chain(&[CLOSING, DELETED]) {
            for class in ["log", "state"] {
                let data = format!("last {class}");
                let mut event = json!({
                    "topic": topic, "type": "test", "class": class, "data": data,
                });
                if class == "state" {
                    event["key"] = "last".into();
                }
                let body = event.to_string().into();
                let request = self.request(Method::POST, "/v1/events", body);
                let answer = ask(&self.network, with_type(request, "application/json")).await;
                let status = answer.map_or(StatusCode::REQUEST_TIMEOUT, |(status, _)| status);
                self.trace.line("world", format_args!("last {class} in {topic}: {status}"));
                let closed = self.store.history(|history| history.now(topic).closed);
                if status != if closed { StatusCode::CONFLICT } else { StatusCode::OK } {
                    self.trace.fail("world", &format!("{topic} was answered {status} in the end"));
                }
            }
        }
    }

    fn finish(&self, readers: &BTreeMap<String, Following>) {
        for reader in readers.values() {
            let mut knowledge = reader.knowledge.lock().unwrap();
            if knowledge.is_finished {
                continue;
            }
            for (topic, followed) in &mut knowledge.topics {
                let wants = reader.habits.wants;
                let finished = self.store.history(|history| followed.finish(topic, wants, history));
                if let Err(wrong) = finished {
                    self.trace.fail(&reader.habits.name, &format!("{topic}: {wrong}"));
                }
            }
        }
    }
}

/// A reader as the world sees it.
struct Following {
    habits: Habits,
    knowledge: Arc<Mutex<Knowledge>>,
}

fn auth() -> AuthSettings {
    AuthSettings {
        default_tenant: "acme".to_owned(),
        jwt: jwt::JwtSettings {
            keys: vec![JwtKeySettings {
                algorithm: Algorithm::Hs256,
                kid: None,
                secret: Some(Secret::new(SECRET.to_owned())),
                public_key: None,
            }],
            issuer: None,
            audience: Vec::new(),
            issuers: Vec::new(),
        },
        api_keys: vec![ApiKeySettings {
            id: "abcdefgh12".to_owned(),
            sha256: KEY_SHA256.to_owned(),
            tenant: None,
            subject: None,
            read: vec!["**".to_owned()],
            write: vec!["**".to_owned()],
            revoke: false,
            expires_at: None,
        }],
        ..AuthSettings::default()
    }
}
