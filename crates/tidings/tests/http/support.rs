//! What the tests share: a server on port 0, credentials, and a reader of event streams.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Map, Value, json};
use tidings::{
    Hub,
    auth::{
        Algorithm, ApiKey, AuthSettings, Authenticator, IssuerSettings, JwtKeySettings, KeySource,
        Policy, Secret, SigningKey, jwt,
    },
    clock::{Clock as _, SystemClock},
    http::{CookieSettings, HttpSettings, ServeSettings, Tls, serve},
    journal::Journal,
    settings::Settings,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const SECRET: &str = "a-secret-of-the-tests-that-is-long-enough-for-hs256";
/// An origin that the tests' servers know.
pub(crate) const ORIGIN: &str = "https://app.example";

/// An issuer whose keys are a test's.
pub(crate) const ISSUER: &str = "https://id.example";

/// How a test's server differs from the usual.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) settings: Settings,
    pub(crate) serve: ServeSettings,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) journal: Option<Arc<dyn Journal>>,
    /// Whether `/metrics` is there for clients.
    pub(crate) metrics: bool,
    pub(crate) cookie: Option<CookieSettings>,
    /// Keys of [`ISSUER`], and how often they are read.
    pub(crate) key_set: Option<(Arc<dyn KeySource>, Duration)>,
}

/// A running server. Dropped, it is not waited for.
pub(crate) struct Server {
    pub(crate) hub: Hub,
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
    pub(crate) shutdown: CancellationToken,
    pub(crate) serving: JoinHandle<()>,
    /// An API key that may write and read every topic of its tenant.
    pub(crate) key: String,
    /// The same for another tenant.
    pub(crate) other_key: String,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let (key, mut entry) = ApiKey::generate();
        entry.tenant = Some("acme".to_owned());
        entry.revoke = true;
        (entry.read, entry.write) = (vec!["**".to_owned()], vec!["**".to_owned()]);
        let (other_key, mut other) = ApiKey::generate();
        other.tenant = Some("globex".to_owned());
        other.revoke = true;
        (other.read, other.write) = (vec!["**".to_owned()], vec!["**".to_owned()]);
        let access: Policy = serde_json::from_value(json!([
            { "topic": "user/{sub}", "read": true, "feed": true },
            { "topic": "team/{teams}/jobs", "read": { "permission": "events:read" }, "feed": true },
            { "topic": "message/*", "read": "owner", "write": "owner" },
            { "topic": "public/**", "read": true },
        ]))
        .unwrap();
        let mut auth = AuthSettings {
            default_tenant: "acme".to_owned(),
            jwt: jwt::JwtSettings {
                keys: vec![JwtKeySettings {
                    algorithm: Algorithm::Hs256,
                    kid: None,
                    secret: Some(Secret::new(SECRET.to_owned())),
                    public_key: None,
                }],
                ..jwt::JwtSettings::default()
            },
            api_keys: vec![entry, other],
            access,
            revocation_permission: Some("credentials:revoke".to_owned()),
            ..AuthSettings::default()
        };
        if let Some((_, refresh)) = options.key_set {
            auth.key_sets.refresh = refresh;
            auth.jwt.issuers.push(IssuerSettings {
                issuer: ISSUER.to_owned(),
                audience: vec!["tidings".to_owned()],
                jwks_url: Some(format!("{ISSUER}/jwks.json")),
                ..IssuerSettings::default()
            });
        }
        let connect = |_: &IssuerSettings| match &options.key_set {
            Some((source, _)) => Ok(Arc::clone(source)),
            None => Err("there is none".to_owned()),
        };
        let authenticator = Authenticator::with_key_sources(&auth, &connect).unwrap();
        let mut hub = Hub::builder().settings(options.settings);
        if let Some(journal) = options.journal {
            hub = hub.journal(journal);
        }
        let hub = hub.start();
        let http = HttpSettings {
            cors_origins: vec![ORIGIN.to_owned()],
            trusted_proxies: options.serve.trusted_proxies.clone(),
            metrics: options.metrics,
            cookie: options.cookie,
        };
        let app = hub.service(Arc::new(authenticator), &http).unwrap();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let limits_hit = hub.metrics().limits_hit.clone();
        let stop = shutdown.clone();
        let serving =
            tokio::spawn(serve(listener, app, options.serve, options.tls, limits_hit, stop));
        let (key, other_key) = (key.expose().to_owned(), other_key.expose().to_owned());
        Self { hub, address, client: client(), shutdown, serving, key, other_key }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A request without a credential.
    pub(crate) fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// A request with the API key.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).bearer_auth(&self.key)
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    /// Publishes what must be taken, and returns its results.
    pub(crate) async fn publish(&self, body: &Value) -> Vec<Value> {
        let request = self.post("/v1/events").header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        json_of(answer).await["results"].as_array().unwrap().clone()
    }

    /// Publishes log events with these numbers as data.
    pub(crate) async fn publish_numbers(&self, topic: &str, numbers: std::ops::Range<u64>) {
        let event = |n| json!({ "topic": topic, "type": "number", "data": n });
        let events: Vec<Value> = numbers.map(event).collect();
        for events in events.chunks(500) {
            self.publish(&events.into()).await;
        }
    }

    /// Follows over SSE with the API key.
    pub(crate) async fn follow(&self, query: &str) -> Reader {
        Reader::of(self.get(&format!("/v1/events?{query}")).send().await.unwrap())
    }
}

pub(crate) fn client() -> Client {
    // The crate's own TLS provider; without TLS it is only there to be found.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().unwrap()
}

/// A token of the tests' server for the subject `sub`, ending in so many seconds, with more claims.
pub(crate) fn token(sub: &str, seconds: i64, more: Value) -> String {
    let key = SigningKey::new(Algorithm::Hs256, None, &Secret::new(SECRET.to_owned())).unwrap();
    let now = i64::try_from(SystemClock.now().as_secs()).unwrap();
    let mut claims = Map::new();
    claims.insert("sub".to_owned(), sub.into());
    claims.insert("exp".to_owned(), (now + seconds).into());
    if let Value::Object(more) = more {
        claims.extend(more);
    }
    jwt::mint(&key, &claims).unwrap()
}

pub(crate) async fn json_of(answer: Response) -> Value {
    let text = answer.text().await.unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Checks that the answer is a whole problem, and returns it with its status.
pub(crate) async fn problem_of(answer: Response) -> (u16, Value) {
    let status = answer.status().as_u16();
    let header =
        |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let [kind, id, cache] = ["content-type", "x-request-id", "cache-control"].map(header);
    let retry_after = header("retry-after");
    let problem = json_of(answer).await;
    assert_eq!(kind.as_deref(), Some("application/problem+json"), "{problem}");
    assert_eq!(cache.as_deref(), Some("no-store"), "{problem}");
    assert_eq!(problem["request_id"], id.unwrap(), "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
    for text in ["type", "title", "detail", "code"] {
        assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
    }
    let retry_after_ms = problem["retry_after_ms"].as_u64();
    assert_eq!(retry_after, retry_after_ms.map(|ms| ms.div_ceil(1000).to_string()), "{problem}");
    (status, problem)
}

/// One dispatched event of a stream, read as WHATWG HTML §9.2.6 says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Empty for the application's events.
    pub(crate) event: String,
    /// The last id, also if this frame had none.
    pub(crate) id: String,
    pub(crate) data: String,
    /// Whether this frame had an id of its own.
    pub(crate) has_id: bool,
}

impl Message {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

/// Reads a stream of events as a browser does.
pub(crate) struct Reader {
    pub(crate) answer: Response,
    text: String,
    pub(crate) last_id: String,
    pub(crate) retry_ms: Option<u64>,
    pub(crate) raw: String,
}

impl Reader {
    pub(crate) fn of(answer: Response) -> Self {
        assert_eq!(answer.status(), 200);
        Self {
            answer,
            text: String::new(),
            last_id: String::new(),
            retry_ms: None,
            raw: String::new(),
        }
    }

    /// The next dispatched event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let frame: String = self.text.drain(..end + 2).collect();
                if let Some(message) = self.dispatch(&frame) {
                    return Some(message);
                }
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.answer.chunk()).await;
            let chunk = chunk.expect("the stream is silent").ok()??;
            let chunk = std::str::from_utf8(&chunk).expect("frames are whole").to_owned();
            self.raw.push_str(&chunk);
            self.text.push_str(&chunk);
        }
    }

    fn dispatch(&mut self, frame: &str) -> Option<Message> {
        let mut message = Message::default();
        let mut has_data = false;
        for line in frame.lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "id" => {
                    value.clone_into(&mut self.last_id);
                    message.has_id = true;
                }
                "event" => value.clone_into(&mut message.event),
                "data" => {
                    assert!(!has_data, "data is on one line");
                    has_data = true;
                    value.clone_into(&mut message.data);
                }
                "retry" => self.retry_ms = value.parse().ok(),
                "" => {}
                other => panic!("a field that no browser knows: {other}"),
            }
        }
        self.last_id.clone_into(&mut message.id);
        has_data.then_some(message)
    }

    /// The next frame of this name, passing over others.
    pub(crate) async fn control(&mut self, name: &str) -> Value {
        loop {
            let message = self.next().await.unwrap_or_else(|| panic!("ended before {name}"));
            if message.event == name {
                return message.json();
            }
        }
    }

    /// The next event of the application, passing over the hub's own frames.
    pub(crate) async fn event(&mut self) -> Message {
        loop {
            let message = self.next().await.expect("the stream goes on");
            if message.event.is_empty() {
                return message;
            }
        }
    }

    /// The data of the next so many events.
    pub(crate) async fn data(&mut self, count: usize) -> Vec<Value> {
        let mut all = Vec::new();
        while all.len() < count {
            all.push(self.event().await.json()["data"].clone());
        }
        all
    }
}

/// Sends bytes and reads until the server closes the connection.
pub(crate) async fn raw(stream: &mut TcpStream, bytes: &[u8]) -> String {
    use tokio::io::AsyncWriteExt as _;
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
    let _ = reading.await.expect("the server closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

/// What is logged on this thread, on which server and client run.
pub(crate) struct Log {
    lines: Lines,
    _guard: tracing::subscriber::DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn of_this_thread(level: tracing::Level) -> Self {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// All that was logged.
    pub(crate) fn end(self) -> String {
        String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
