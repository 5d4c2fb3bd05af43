//! No route gives a grant more than its rules say, whatever names are made of and however they are
//! spelled; and nothing tells a topic that is forbidden from one that is not there.
//!
//! The oracle knows rules and claims as text and compares text with text. It shares no code with the
//! hub: what a topic is, it is told by whoever made up the name.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use axum::{Router, body::Body};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tidings::{
    Hub,
    auth::{
        Algorithm, AuthSettings, Authenticator, JwtKeySettings, Secret, SigningKey,
        jwt::{self, JwtSettings},
    },
    http::HttpSettings,
    journal::{
        Appended, Batch, Change, DeleteIf, Due, DueKind, Found, Head, Journal, JournalError,
        Judged, Locate, Page, PageLimit, Retention, StateQuery, TopicInfo, TopicQuery,
        memory::MemoryJournal,
    },
    model::{Offset, Timestamp, TopicKey},
};
use tokio::sync::Notify;
use tower::ServiceExt as _;

const SECRET: &str = "a-secret-of-the-tests-that-is-long-enough-for-hs256";

/// Names that differ only in what sloppy joining, folding, decoding or trimming would lose.
const NAMES: &[&str] = &[
    "a", "b", "A", "a_b", "b_c", "a-b", "a.b", "a.", ".a", "a:b", "a~", "a@b", "_", "-", "~",
    "a__b", "...", "0", "00", "sub", "tenant",
];
/// Claim values that are no segment, beside those that are.
const VALUES: &[&str] = &[
    "",
    "*",
    "**",
    ".",
    "..",
    "/",
    "a/b",
    "a/",
    "/a",
    "a%2Fb",
    "%2F",
    "%61",
    "{sub}",
    "$a",
    "a*",
    "a\0",
    "\u{e9}",
    "e\u{301}",
    "a b",
    "a\n",
    "a\\b",
    "a,b",
    "\u{ff0f}",
    "a\u{200b}",
    " a",
];

/// Numbers that are the same in every run (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % end
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn name(&mut self) -> &'static str {
        self.one_of(NAMES)
    }

    fn value(&mut self) -> String {
        let list = if self.chance(80) { NAMES } else { VALUES };
        self.one_of(list).to_owned()
    }
}

/// Whether the text can be one segment, by the protocol's P-1.
fn is_segment(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._~:@-".contains(c);
    !text.is_empty() && text != "." && text != ".." && text.chars().all(plain)
}

/// Who asks, and by which rules.
#[derive(Debug)]
struct World {
    tenant: &'static str,
    sub: Option<String>,
    one: String,
    list: Vec<String>,
    permissions: Vec<&'static str>,
    /// Topic, who reads, who writes.
    rules: Vec<(String, &'static str, &'static str)>,
}

const CONDITIONS: &[&str] =
    &["false", "true", "true", "\"owner\"", "\"owner\"", "{\"permission\":\"p\"}"];

impl World {
    fn random(random: &mut Random) -> Self {
        let mut rules = Vec::new();
        for _ in 0..=random.below(3) {
            let count = 1 + random.below(3);
            let mut topic: Vec<&str> = Vec::new();
            for _ in 0..count {
                let claim = ["{sub}", "{tenant}", "{one}", "{list}"][random.below(4)];
                let part = match random.below(10) {
                    0..=4 => random.name(),
                    5 => "*",
                    _ if topic.contains(&claim) => "*",
                    _ => claim,
                };
                topic.push(part);
            }
            if random.chance(15) {
                topic.push("**");
            }
            let (read, write) = (random.one_of(CONDITIONS), random.one_of(CONDITIONS));
            rules.push((topic.join("/"), read, write));
        }
        Self {
            tenant: random.one_of(&["acme", "globex"]),
            sub: random.chance(90).then(|| random.value()).filter(|sub| {
                // Others are refused before any topic is looked at.
                !sub.is_empty() && !sub.chars().any(char::is_control)
            }),
            one: random.value(),
            list: (0..random.below(4)).map(|_| random.value()).collect(),
            permissions: if random.chance(50) { vec!["p", "x"] } else { vec!["x"] },
            rules,
        }
    }

    fn token(&self, key: &SigningKey) -> String {
        let mut claims = json!({ "jti": "t", "exp": 4_000_000_000_u64, "tenant": self.tenant,
            "one": self.one, "list": self.list, "permissions": self.permissions });
        if let Some(sub) = &self.sub {
            claims["sub"] = sub.as_str().into();
        }
        jwt::mint(key, claims.as_object().unwrap()).unwrap()
    }

    fn router(&self, hub: &Hub) -> Router {
        let rules = self.rules.iter().map(|(topic, read, write)| {
            let condition = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            json!({ "topic": topic, "read": condition(read), "write": condition(write) })
        });
        let key = JwtKeySettings {
            algorithm: Algorithm::Hs256,
            kid: None,
            secret: Some(Secret::new(SECRET)),
            public_key: None,
        };
        let settings = AuthSettings {
            jwt: JwtSettings { keys: vec![key], ..JwtSettings::default() },
            access: serde_json::from_value(rules.collect()).unwrap(),
            ..AuthSettings::default()
        };
        let authenticator = Arc::new(Authenticator::new(&settings).unwrap());
        hub.router(authenticator, &HttpSettings::default()).unwrap()
    }

    /// Every text that a placeholder stands for.
    fn stands_for(&self, part: &str) -> Vec<String> {
        let values = match part {
            "{tenant}" => vec![self.tenant.to_owned()],
            "{sub}" => self.sub.iter().cloned().collect(),
            "{one}" => vec![self.one.clone()],
            "{list}" => self.list.clone(),
            literal => return vec![literal.to_owned()],
        };
        values.into_iter().filter(|value| is_segment(value)).collect()
    }

    /// `yes`, `owner` or `no`.
    fn says(
        &self,
        topic: &str,
        who: impl Fn(&(String, &'static str, &'static str)) -> &'static str,
    ) -> &'static str {
        let mut best = "no";
        for rule in &self.rules {
            let parts: Vec<&str> = rule.0.split('/').collect();
            let names: Vec<&str> = topic.split('/').collect();
            let (parts, rest) = match parts.split_last() {
                Some((&"**", parts)) => (parts.to_vec(), true),
                _ => (parts, false),
            };
            let long_enough =
                if rest { names.len() > parts.len() } else { names.len() == parts.len() };
            let fits = long_enough
                && !topic.starts_with('$')
                && parts.iter().zip(&names).all(|(part, name)| {
                    *part == "*" || self.stands_for(part).iter().any(|text| text == name)
                });
            let answer = match who(rule) {
                "true" => "yes",
                "\"owner\"" if self.sub.is_some() => "owner",
                "{\"permission\":\"p\"}" if self.permissions.contains(&"p") => "yes",
                _ => "no",
            };
            if fits && (best == "no" || answer == "yes") {
                best = answer;
            }
        }
        best
    }
}

/// A topic as the test knows it.
#[derive(Debug, Clone, Default)]
struct Known {
    owner: Option<String>,
    readers: Vec<String>,
    has_events: bool,
}

type Topics = HashMap<(String, String), Known>;

fn may_read(world: &World, topics: &Topics, topic: &str) -> bool {
    match world.says(topic, |rule| rule.1) {
        "yes" => true,
        "owner" => {
            let known = topics.get(&(world.tenant.to_owned(), topic.to_owned()));
            known.is_some_and(|known| {
                known.owner == world.sub
                    || known.readers.iter().any(|reader| Some(reader) == world.sub.as_ref())
            })
        }
        _ => false,
    }
}

fn may_write(world: &World, topics: &Topics, topic: &str) -> bool {
    match world.says(topic, |rule| rule.2) {
        "yes" => true,
        "owner" => {
            let known = topics.get(&(world.tenant.to_owned(), topic.to_owned()));
            known.is_some_and(|known| known.owner.is_some() && known.owner == world.sub)
        }
        _ => false,
    }
}

/// A topic as a request spells it, and which it is: `None` if it is none.
fn spelled(random: &mut Random, topic: &str) -> (String, Option<String>) {
    let every_byte = |text: &str, upper: bool| {
        text.bytes().fold(String::new(), |mut all, byte| {
            let _ = if upper { write!(all, "%{byte:02X}") } else { write!(all, "%{byte:02x}") };
            all
        })
    };
    let same = Some(topic.to_owned());
    match random.below(20) {
        0 => (every_byte(topic, true), same),
        1 => (every_byte(topic, false), same),
        2 | 3 => (topic.replace('/', "%2F"), same),
        4 => (topic.replace('/', "%2f"), same),
        // What stays wrong after it was decoded once.
        5 => (topic.replace('/', "%252F") + "%252F", None),
        6 => (format!("{topic}/"), None),
        7 => (format!("{topic}%2F"), None),
        8 => (format!("{topic}/../{topic}"), None),
        9 => (format!("{topic}/%2E%2E/a"), None),
        10 => (format!("{topic}//a"), None),
        11 => (format!("{topic}%00"), None),
        12 => (format!("{topic}%0A"), None),
        13 => (format!("{topic}%20"), None),
        14 => (format!("{topic}%EF%BC%8Fa"), None),
        15 => (format!("{topic}%5Ca"), None),
        16 => (format!("{topic}/*"), None),
        17 => (every_byte("a/e\u{301}", true), None),
        _ => (topic.to_owned(), same),
    }
}

/// A topic that has a good chance of being one that the rules are about.
fn topic(random: &mut Random, world: &World) -> String {
    let rule = &world.rules[random.below(world.rules.len())].0;
    let mut names: Vec<String> = Vec::new();
    for part in rule.split('/') {
        let values = world.stands_for(part);
        let near = random.chance(75) && !part.contains('*') && !values.is_empty();
        names.push(if near {
            values[random.below(values.len())].clone()
        } else {
            random.name().to_owned()
        });
    }
    if random.chance(10) {
        names.push(random.name().to_owned());
    }
    if random.chance(5) {
        names.truncate(1);
    }
    let text = names.join("/");
    if random.chance(3) { format!("${text}") } else { text }
}

struct Asked {
    status: u16,
    text: String,
}

async fn ask(
    router: &Router,
    bearer: &str,
    method: &str,
    uri: &str,
    accept: &str,
    body: String,
) -> Asked {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("authorization", format!("Bearer {bearer}"))
        .header("accept", accept)
        .header("content-type", "application/json")
        .body(Body::from(body))
        .unwrap_or_else(|error| panic!("{uri}: {error}"));
    let answer = router.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    let mut text = String::new();
    if accept == "text/event-stream" && status == StatusCode::OK {
        // Until it has all there was.
        let mut body = answer.into_body();
        while !text.contains("tidings.caught_up") {
            let frame = body.frame().await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    } else {
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        text = String::from_utf8(bytes.to_vec()).unwrap();
    }
    Asked { status: status.as_u16(), text }
}

/// The hub, what is in it, and a number of worlds.
struct Trial {
    hub: Hub,
    topics: Topics,
    random: Random,
    key: SigningKey,
    cases: usize,
    allowed: usize,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let key = SigningKey::new(Algorithm::Hs256, None, &Secret::new(SECRET)).unwrap();
        Self {
            hub: Hub::builder().start(),
            topics: Topics::new(),
            random: Random(seed),
            key,
            cases: 0,
            allowed: 0,
        }
    }

    /// Counts a case, and says what it was if it is wrong.
    fn judge(&mut self, world: &World, what: &str, asked: &Asked, want: &[u16]) {
        self.cases += 1;
        assert!(
            want.contains(&asked.status),
            "{what} was {} and should be {want:?}: {} in {world:?}",
            asked.status,
            asked.text
        );
    }

    /// No event in the answer is of another topic or tenant: each carries where it was written.
    fn untainted(&mut self, world: &World, topic: &str, asked: &Asked) {
        let own = format!("\"data\":\"{} {topic}\"", world.tenant);
        let events = asked.text.matches("\"specversion\"").count();
        assert_eq!(asked.text.matches(&own).count(), events, "{}: {topic}", asked.text);
    }

    async fn run(&mut self, worlds: usize) {
        for _ in 0..worlds {
            let world = World::random(&mut self.random);
            let router = world.router(&self.hub);
            let bearer = world.token(&self.key);
            for _ in 0..4 {
                let name = topic(&mut self.random, &world);
                self.reads(&world, &router, &bearer, &name).await;
                self.writes(&world, &router, &bearer, &name).await;
            }
            self.lists(&world, &router, &bearer).await;
        }
    }

    async fn reads(&mut self, world: &World, router: &Router, bearer: &str, name: &str) {
        let allowed = may_read(world, &self.topics, name);
        self.allowed += usize::from(allowed);
        let known = self.topics.get(&(world.tenant.to_owned(), name.to_owned()));
        let (exists, has_events) = (known.is_some(), known.is_some_and(|known| known.has_events));
        for (path, accept) in [
            ("/v1/events?topic=", "text/event-stream"),
            ("/v1/events?since=earliest&topic=", "text/event-stream"),
            ("/v1/events?since=earliest&wait=0&topic=", "application/json"),
            ("/v1/state?topic=", "application/json"),
            ("/v1/topics/", "application/json"),
        ] {
            let (text, is) = spelled(&mut self.random, name);
            // A query may also have a space as a plus, which no topic has.
            let uri = format!("{path}{text}");
            let asked = ask(router, bearer, "GET", &uri, accept, String::new()).await;
            let denied = if path.contains("events") { 403 } else { 404 };
            let want = match is {
                None => 400,
                Some(_) if !allowed => denied,
                Some(_) if path == "/v1/topics/" && !exists => 404,
                Some(_) => 200,
            };
            self.judge(world, &format!("GET {uri} ({name})"), &asked, &[want]);
            if asked.status == 200 && path.contains("events") {
                self.untainted(world, name, &asked);
                // Replay has what live was written to.
                let has = asked.text.contains("\"specversion\"");
                assert!(!path.contains("earliest") || has == has_events, "{uri}: {}", asked.text);
            }
        }
    }

    async fn writes(&mut self, world: &World, router: &Router, bearer: &str, name: &str) {
        let allowed = may_write(world, &self.topics, name);
        let place = (world.tenant.to_owned(), name.to_owned());
        let (text, is) = spelled(&mut self.random, name);
        let data = format!("{} {name}", world.tenant);
        // In the body a name is as it is; in the query and the path it is spelled.
        let event = json!({ "topic": name, "type": "x", "data": data }).to_string();
        let uri = format!("/v1/events?type=x&topic={text}");
        let owner = self.random.value();
        let properties = Known {
            owner: (is_segment(&owner) && self.random.chance(70)).then_some(owner),
            readers: vec![self.random.name().to_owned()],
            has_events: false,
        };
        let put = json!({ "owner": properties.owner, "readers": properties.readers }).to_string();
        let refused = if name.starts_with('$') { &[403, 400][..] } else { &[403] };
        let want = |is_topic: bool, good: &'static [u16]| match (is_topic, allowed) {
            (false, _) => &[400][..],
            (true, true) => good,
            (true, false) => refused,
        };
        let asked = ask(router, bearer, "POST", "/v1/events", "*/*", event).await;
        self.judge(world, &format!("POST {name}"), &asked, want(true, &[200]));
        if asked.status == 200 {
            self.topics.entry(place.clone()).or_default().has_events = true;
        }
        let body = Value::from(data).to_string();
        let asked = ask(router, bearer, "POST", &uri, "*/*", body).await;
        self.judge(world, &format!("POST {uri}"), &asked, want(is.is_some(), &[200]));
        let uri = format!("/v1/topics/{text}");
        // Whoever creates a topic may only name himself where the owner counts.
        let claims = world.says(name, |rule| rule.2) == "owner"
            && !self.topics.contains_key(&place)
            && properties.owner == world.sub;
        let want =
            if is.is_some() && claims { &[201][..] } else { want(is.is_some(), &[200, 201]) };
        let asked = ask(router, bearer, "PUT", &uri, "*/*", put).await;
        self.judge(world, &format!("PUT {uri}"), &asked, want);
        if matches!(asked.status, 200 | 201) {
            let has_events = self.topics.get(&place).is_some_and(|known| known.has_events);
            self.topics.insert(place, Known { has_events, ..properties });
        }
    }

    async fn lists(&mut self, world: &World, router: &Router, bearer: &str) {
        let mut listed = BTreeSet::new();
        let mut uri = "/v1/topics?limit=1000".to_owned();
        loop {
            let asked = ask(router, bearer, "GET", &uri, "*/*", String::new()).await;
            self.judge(world, &uri, &asked, &[200]);
            let page: Value = serde_json::from_str(&asked.text).unwrap();
            let names = page["topics"].as_array().unwrap().iter();
            listed.extend(names.map(|topic| topic["topic"].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            uri = format!("/v1/topics?limit=1000&after={next}");
        }
        let readable: BTreeSet<String> = self
            .topics
            .keys()
            .filter(|(tenant, name)| tenant == world.tenant && may_read(world, &self.topics, name))
            .map(|(_, name)| name.clone())
            .collect();
        assert_eq!(listed, readable, "{world:?}");
    }
}

/// Runs worlds until there were so many cases, and looks whether they were worth it.
fn trial(seed: u64, cases: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut trial = Trial::new(seed);
        while trial.cases < cases {
            trial.run(10).await;
        }
        let share = trial.allowed * 5 * 100 / trial.cases;
        assert!((10..90).contains(&share), "{share} % of the reads were allowed");
        assert!(trial.topics.len() > 50, "{} topics", trial.topics.len());
    });
}

/// Broken on purpose: comparing claims without regard to case, or listing without asking the grant,
/// makes it fail.
#[test]
fn a_hundred_thousand_random_cases_first_quarter() {
    trial(0x9e37_79b9_7f4a_7c15, 25_000);
}

#[test]
fn a_hundred_thousand_random_cases_second_quarter() {
    trial(0xbf58_476d_1ce4_e5b9, 25_000);
}

#[test]
fn a_hundred_thousand_random_cases_third_quarter() {
    trial(0x94d0_49bb_1331_11eb, 25_000);
}

#[test]
fn a_hundred_thousand_random_cases_last_quarter() {
    trial(0xd6e8_feb8_6659_fd93, 25_000);
}

/// A journal that notes what it is asked, and can lose an answer.
#[derive(Debug)]
struct Watched {
    inner: MemoryJournal,
    asked: Mutex<Vec<&'static str>>,
    /// That the hub looked what to trim, as it does first of all.
    swept: Notify,
    loses_next_answer: AtomicBool,
}

impl Watched {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryJournal::new(Default::default()),
            asked: Mutex::default(),
            swept: Notify::new(),
            loses_next_answer: AtomicBool::new(false),
        })
    }

    /// The hub's own topics are its own affair.
    fn note(&self, what: &'static str, topic: &TopicKey) {
        if !topic.tenant.is_reserved() {
            self.asked.lock().unwrap().push(what);
        }
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

#[async_trait]
impl Journal for Watched {
    async fn append(&self, topic: &TopicKey, batch: Batch) -> Result<Appended, JournalError> {
        self.note("append", topic);
        let appended = self.inner.append(topic, batch).await;
        if self.loses_next_answer.swap(false, Ordering::SeqCst) {
            return Err(JournalError::Unavailable("the answer was lost".to_owned()));
        }
        appended
    }

    async fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        self.note("read", topic);
        self.inner.read(topic, after, limit).await
    }

    async fn states(&self, topic: &TopicKey, query: StateQuery) -> Result<Page, JournalError> {
        self.note("states", topic);
        self.inner.states(topic, query).await
    }

    async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        self.note("describe", topic);
        self.inner.describe(topic).await
    }

    async fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError> {
        self.note("locate", topic);
        self.inner.locate(topic, from).await
    }

    async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        self.note("set_properties", topic);
        self.inner.set_properties(topic, change).await
    }

    async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        self.note("delete", topic);
        self.inner.delete(topic, condition).await
    }

    async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Head, JournalError> {
        self.inner.trim(topic, retention, now).await
    }

    async fn due(&self, kind: DueKind, now: Timestamp, limit: usize) -> Found<Due> {
        self.inner.due(kind, now, limit).await
    }

    async fn topics(&self, query: TopicQuery) -> Found<TopicInfo> {
        self.swept.notify_one();
        self.inner.topics(query).await
    }

    fn failure(&self) -> Option<String> {
        self.inner.failure()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// What a caller could measure of a refusal is the work behind it. It is the same: where the rules
/// alone deny, the journal is not asked at all, and where the topic's properties decide, it is asked
/// the same whether there is such a topic or not.
///
/// Broken on purpose: looking whether the topic is there before the rules are asked makes it fail.
#[tokio::test]
async fn a_refusal_costs_the_same_whether_the_topic_is_there_or_not() {
    let journal = Watched::new();
    let hub = Hub::builder().journal(Arc::clone(&journal) as Arc<dyn Journal>).start();
    // While there is nothing to read: what it reads later is no work of a refusal.
    journal.swept.notified().await;
    let world = World {
        tenant: "acme",
        sub: Some("42".to_owned()),
        one: "a".to_owned(),
        list: Vec::new(),
        permissions: Vec::new(),
        rules: vec![
            ("all/**".to_owned(), "true", "true"),
            ("owned/*".to_owned(), "\"owner\"", "\"owner\""),
        ],
    };
    let admin =
        World { rules: vec![("**".to_owned(), "true", "true")], ..World::random(&mut Random(1)) };
    let admin = World { tenant: "acme", sub: Some("1".to_owned()), ..admin };
    let key = SigningKey::new(Algorithm::Hs256, None, &Secret::new(SECRET)).unwrap();
    let all = admin.router(&hub);
    for name in ["denied/there", "owned/there"] {
        let put = json!({ "owner": "7", "readers": ["8"] }).to_string();
        let uri = format!("/v1/topics/{name}");
        let asked = ask(&all, &admin.token(&key), "PUT", &uri, "*/*", put).await;
        assert_eq!(asked.status, 201);
        let event = json!({ "topic": name, "type": "x", "data": 1 }).to_string();
        let asked = ask(&all, &admin.token(&key), "POST", "/v1/events", "*/*", event).await;
        assert_eq!(asked.status, 200);
    }
    let (router, bearer) = (world.router(&hub), world.token(&key));
    let brief = |asked: &Asked, name: &str| {
        let mut problem: BTreeMap<String, Value> = serde_json::from_str(&asked.text).unwrap();
        problem.remove("request_id");
        json!(problem).to_string().replace(name, "<topic>")
    };
    let mut costs = BTreeSet::new();
    for (there, absent) in [("denied/there", "denied/absen"), ("owned/there", "owned/absen")] {
        let owner = json!({ "owner": "7" }).to_string();
        for (method, path, body) in [
            ("GET", "/v1/events?topic={}", ""),
            ("GET", "/v1/events?since=earliest&topic={}", ""),
            ("GET", "/v1/events?since=latest:1&topic=all/x&topic={}", ""),
            ("GET", "/v1/state?topic={}", ""),
            ("GET", "/v1/topics/{}", ""),
            ("PUT", "/v1/topics/{}", &*owner),
            ("DELETE", "/v1/topics/{}", ""),
            ("POST", "/v1/events", "{\"topic\":\"{}\",\"type\":\"x\"}"),
            ("POST", "/v1/events", "{\"topic\":\"{}\",\"type\":\"x\",\"class\":\"ephemeral\"}"),
        ] {
            let mut answers = Vec::new();
            for name in [there, absent] {
                journal.take();
                let (uri, body) = (path.replace("{}", name), body.replace("{}", name));
                let asked = ask(&router, &bearer, method, &uri, "application/json", body).await;
                assert!(matches!(asked.status, 403 | 404), "{method} {uri}: {}", asked.text);
                answers.push((asked.status, brief(&asked, name), journal.take()));
            }
            let cost = answers[0].2.clone();
            assert_eq!(answers[0], answers[1], "{method} {path}");
            if there.starts_with("denied") {
                assert!(cost.is_empty(), "{method} {path}: {cost:?}");
            }
            costs.insert(cost);
        }
    }
    assert!(costs.len() > 1, "where the owner counts, somebody must be asked: {costs:?}");
}

/// A ticket is used up in the journal, and the answer does not arrive: the reader is told the tag by
/// which it is known now, and comes back. Broken on purpose: a refusal without it strands the reader.
#[tokio::test]
async fn a_ticket_whose_use_was_stored_but_not_answered_serves_its_reader() {
    let journal = Watched::new();
    let hub = Hub::builder().journal(Arc::clone(&journal) as Arc<dyn Journal>).start();
    let rules = vec![("user/{sub}".to_owned(), "true", "false")];
    let world = World { rules, ..World::random(&mut Random(1)) };
    let world = World { tenant: "acme", sub: Some("42".to_owned()), ..world };
    let key = SigningKey::new(Algorithm::Hs256, None, &Secret::new(SECRET)).unwrap();
    let router = world.router(&hub);
    let issued =
        ask(&router, &world.token(&key), "POST", "/v1/tickets", "*/*", String::new()).await;
    let issued: Value = serde_json::from_str(&issued.text).unwrap();
    let ticket = issued["ticket"].as_str().unwrap();
    let follow = async |last_id: &str| {
        let request = Request::builder()
            .uri(format!("/v1/events?topic=user/42&ticket={ticket}"))
            .header("accept", "text/event-stream")
            .header("last-event-id", last_id)
            .body(Body::empty())
            .unwrap();
        router.clone().oneshot(request).await.unwrap()
    };
    journal.loses_next_answer.store(true, Ordering::SeqCst);
    let refused = follow("").await;
    assert_eq!(refused.status(), StatusCode::OK, "an EventSource survives nothing else");
    let text = refused.into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&text).unwrap();
    assert!(text.contains("\"reason\":\"unavailable\""), "{text}");
    let id = text.strip_prefix("id: ").and_then(|rest| rest.split('\n').next()).unwrap();
    assert_eq!(follow("").await.status(), StatusCode::UNAUTHORIZED, "it was used");
    assert_eq!(follow(id).await.status(), StatusCode::OK);
}
